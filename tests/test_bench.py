"""Claims about the benchmarks: who is refused, what is timed and how, and what the figures mean."""

from __future__ import annotations

import gc
import io
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from symcompile.bench import child, compare, process, report, runner
from symcompile.bench.child import check_gradients, check_outputs, settle, tell
from symcompile.bench.contestants import Contestant, build_of, find_contestants, peers_beside
from symcompile.bench.plots import draw
from symcompile.bench.records import Measurement, Results, Session, append, read_results
from symcompile.bench.roofline import Rates
from symcompile.bench.runner import Run, pending, ready, run
from symcompile.bench.subject import Setting
from symcompile.bench.workloads import Workload
from symcompile.cli import app
from symcompile.errors import CheckError, OptionError
from tests.bench_cases import SETTING, TINY

# Contestants that misbehave; NumPy alone, so that they start at once.
PEERS = """
import os, time
import numpy as np
from symcompile.bench.subject import Subject, Unsuited

HERE = os.path.dirname(__file__)

def made(forward, train=None):
    def build(workload, setting):
        return Subject(lambda x: [v.copy() for v in x], lambda y: y, forward(workload), train,
                       {"plan": 0.0, "emit": 0.0}, {})
    return build

def log(name):
    def forward(workload):
        def call(x):
            with open(os.path.join(HERE, "log"), "a") as file:
                cpus = sorted(os.sched_getaffinity(0))
                print(name, os.getpid(), id(x), os.environ["OMP_NUM_THREADS"], cpus, sep=";",
                      file=file)
            return [2 * v for v in x]
        return call
    return forward

def broken(workload, setting):
    raise ValueError("no such luck\\nsecond line")

def gone(workload, setting):
    os._exit(3)

def away(workload, setting):
    raise Unsuited("not on a Sunday")

def hangs(workload, setting):
    time.sleep(100)

def dies_later(workload):
    calls = []
    def call(x):
        calls.append(1)
        if len(calls) > 8:
            os.abort()
        return [2 * v for v in x]
    return call

def doubling(workload):
    return lambda x: [2 * v for v in x]

def doubles(x, g):
    return [2 * v for v in x], [2 * v for v in g], []

def breaks(x, g):
    raise ValueError("not differentiable")

CONTESTANTS = {
    "first": made(log("first")),
    "second": made(log("second")),
    "trains": made(log("trains"), doubles),
    "wrong gradient": made(doubling, lambda x, g: ([2 * v for v in x], [3 * v for v in g], [])),
    "other output": made(doubling, lambda x, g: ([3 * v for v in x], [2 * v for v in g], [])),
    "no gradient": made(doubling, lambda x, g: ([2 * v for v in x], [None for v in g], [])),
    "backward breaks": made(doubling, breaks),
    "backward hangs": made(doubling, lambda x, g: time.sleep(100)),
    "backward dies": made(doubling, lambda x, g: os.abort()),
    "cumulative": made(lambda w: lambda x: [np.cumsum(v, axis=1) for v in x]),
    "shapeless": made(lambda w: lambda x: [v[..., :1] for v in x]),
    "zero": made(lambda w: lambda x: [0 * v for v in x]),
    "constant": made(lambda w: lambda x: [np.ones_like(v) for v in x]),
    "one short": made(lambda w: lambda x: [2 * v for v in x[:-1]]),
    "nan": made(lambda w: lambda x: [v * np.nan for v in x]),
    "broken": broken, "gone": gone, "away": away, "hangs": hangs,
    "dies later": made(dies_later),
}
"""


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "own.py").write_text(PEERS)
    return folder


@pytest.fixture(autouse=True)
def _gauges(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """NumPy alone tells what the machine can do, but where a test asks for all: it is quicker."""
    if "every_gauge" not in request.fixturenames:
        monkeypatch.setattr(runner, "GAUGES", ("numpy",))


@pytest.fixture
def every_gauge() -> None:
    """PyTorch and JAX tell what the machine can do as well."""


@pytest.fixture
def asked(tmp_path: Path, peers: Path) -> Callable[..., Run]:
    """A short run of contestants by name."""

    def make(*names: str, workload: Workload = TINY, **options: Any) -> Run:
        known = {c.name: c for c in find_contestants([peers])}
        picked = tuple(known[name] for name in names)
        short = {"rounds": 2, "budget": 0.0, "most": 3, "limit": 60.0, "copied": 1 << 16, "side": 8}
        records = tmp_path / "out" / "records.jsonl"
        return Run(((workload, picked),), SETTING, records, **{**short, **options})

    return make


# --- end to end -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_gauge")
def test_a_run_leaves_checked_timings_and_every_report_and_nothing_else(
    asked: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what is in the environment is read again
    wanted = asked("numpy auto", "numpy reference", "jax auto", "trains", command="bench x")
    steps: list[int] = []
    results = run(wanted, lambda text, done: steps.append(done))
    assert not list(scratch.iterdir()), "contestants are killed, and cannot tidy up"
    made = results.of("tiny")
    assert [m.status for m in made.values()] == ["ok"] * 4, [m.reason for m in made.values()]
    assert sum(steps) == 4 * wanted.steps
    for m in made.values():
        assert len(m.forward) == 2
        assert all(len(turn) >= 1 and min(turn) > 0 for turn in m.forward)
        assert m.error is not None
        assert m.tolerance is not None
        assert m.error <= m.tolerance
        assert set(m.stages) >= {"compile", "run"}
    jax = made["jax auto"]
    assert len(jax.train) == 2
    assert jax.stages["compile"] > jax.stages["run"]
    # Importing jax takes tenths of a second; it is stated, and no part of the first result.
    assert jax.stages["import"] > 0.05
    assert set(jax.stages) == {"import", "plan", "emit", "init", "compile", "run", "compile_train"}
    assert jax.first_result == pytest.approx(
        sum(seconds for name, seconds in jax.stages.items() if "_" not in name and name != "import")
    )
    assert (made["numpy auto"].train, made["numpy auto"].train_status) == ((), "none")
    if sys.platform == "linux":
        assert jax.extra is not None
        assert jax.extra_train is not None
        assert made["numpy auto"].extra_train is None
    assert made["trains"].ours is False

    data = json.loads(report.json_text(results))
    assert {"processor", "memory_bytes", "packages"} <= data["sessions"][0]["machine"].keys()
    assert data["sessions"][0]["rates"]["bandwidth"] > 0
    assert {(m["framework"], m["peer"]) for m in data["matches"]} == {("jax", "trains")}
    assert {m["what"] for m in data["matches"]} == {"forward", "train", "first result"}
    page = report.markdown(results)
    assert "`bench x`" in page
    assert "| jax auto |" in page
    assert "1 thread for everyone" in page
    assert len(report.tables(results, ["tiny"])) == 3
    written = draw(results, wanted.records.parent)
    assert {path.name for path in written} == {
        f"{name}.{suffix}" for name in ("ratios", "roofline") for suffix in ("png", "svg")
    }
    assert all(path.stat().st_size > 2000 for path in written)


def test_contestants_alternate_in_processes_of_their_own(
    asked: Callable[..., Run], peers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "available", lambda: 1 << 40)
    wanted = asked("first", "second", rounds=3)
    assert len({m.group for m in run(wanted).measurements}) == 1
    lines = [line.split(";") for line in (peers / "log").read_text().splitlines()]
    assert len({pid for _, pid, *_ in lines}) == 2
    # Built one after the other, then A B A B A B, then weighed.
    order = [name for name, *_ in lines]
    turns = [name for place, name in enumerate(order) if place == 0 or order[place - 1] != name]
    assert turns == ["first", "second"] * 5
    threads = {(count, cpus) for *_, count, cpus in lines}
    assert len(threads) == 1
    ((count, cpus),) = threads
    assert count == "1"
    assert len(json.loads(cpus)) == 1
    inputs = [where for name, _, where, *_ in lines if name == "first"]
    assert all(a != b for a, b in zip(inputs[-4:], inputs[-3:], strict=False)), "inputs rotate"


@pytest.mark.parametrize(("fresh", "calls"), [(0, 1), (3, 4), (100, 5)])
def test_a_turn_begins_when_memory_is_at_hand(fresh: int, calls: int) -> None:
    pytest.importorskip("resource")
    taken: list[mmap.mmap] = []

    def call() -> None:
        if len(taken) < fresh:
            taken.append(mmap.mmap(-1, 1 << 23))
            taken[-1].write(b"x" * (1 << 23))

    settle(lambda: None)  # what Python itself takes on the way
    assert settle(call) == calls


@pytest.mark.parametrize(
    ("seconds", "budget", "most", "calls"),
    [(0.2, 0.0, 9, 3), (0.2, 0.9, 9, 5), (0.2, 9.0, 4, 4), (0.7, 0.5, 9, 2), (3.0, 0.5, 9, 1)],
)
def test_a_turn_is_three_calls_at_least_unless_they_take_long(
    seconds: float, budget: float, most: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, seconds / 2)  # looked at before and after a call, and between
    monkeypatch.setattr(child, "settle", lambda _: 0)
    monkeypatch.setattr(child, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(child, "_seconds", lambda call: call())
    bench = object.__new__(child.Bench)
    monkeypatch.setattr(bench, "_forward", lambda: next(clock), raising=False)
    bench.subject = SimpleNamespace(rest=lambda: None)  # type: ignore[assignment]
    assert len(bench.round("forward", budget, most)["times"]) == calls


def test_a_turn_ends_when_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    answers = io.StringIO()
    monkeypatch.setattr(child, "give_back", lambda: done.append(answers.getvalue()))
    try:
        tell(iter([{"turn": 1}, {"turn": 2}]), answers)
        assert len(gc.get_objects()) < 1000, "what is there already is not looked through again"
    finally:
        gc.unfreeze()
    assert done == ["", '{"turn": 1}\n'], "while others wait for the answer"
    assert answers.getvalue() == '{"turn": 1}\n{"turn": 2}\n'


@pytest.mark.parametrize(("after", "looks"), [(60.0, 1), (0.0, 2)])
def test_the_machine_is_measured_again_after_a_while(
    after: float, looks: int, asked: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = asked("first")
    other = (replace(TINY, batch=TINY.batch + 1), wanted.entries[0][1])
    told: list[str] = []
    monkeypatch.setattr(runner, "_WHILE", after)
    results = run(
        replace(wanted, entries=(*wanted.entries, other)), lambda text, _: told.append(text)
    )
    assert told.count("measuring the machine") == looks
    assert all(results.session(m).rates is not None for m in results.measurements)


def test_without_memory_for_all_they_take_no_turns_and_the_ratio_says_so(
    asked: Callable[..., Run], peers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "available", lambda: 1 << 20)
    results = run(asked("first", "numpy auto"))
    assert len({m.group for m in results.measurements}) == 2
    as_ours = replace(results.measurements[0], ours=True, contestant="jax auto")
    peer = replace(results.measurements[1], ours=False)
    found = compare.matches(replace(results, measurements=(as_ours, peer)))
    assert [m.ratio.paired for m in found if m.what == "forward"] == [False]
    assert "(not interleaved)" in report.markdown(replace(results, measurements=(as_ours, peer)))


# --- who is left out ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cumulative", "not equivariant"),
        ("shapeless", "outputs have shapes"),
        ("one short", "outputs have shapes"),
        ("zero", "is zero, not finite or the same"),
        ("constant", "is zero, not finite or the same"),
        ("nan", "is zero, not finite or the same"),
    ],
)
def test_a_wrong_contestant_does_not_pass_the_check(peers: Path, name: str, reason: str) -> None:
    (wrong,) = (c for c in find_contestants([peers]) if c.name == name)
    subject = build_of(wrong)(TINY, SETTING)
    with pytest.raises(CheckError, match=reason):
        check_outputs(subject, TINY, np.dtype("float32"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong gradient", r"off by 0\.5 along one direction"),
        ("other output", "differs by .* when gradients are asked for"),
        ("no gradient", "not every input has a gradient"),
    ],
)
def test_a_wrong_backward_pass_does_not_pass_the_check(
    asked: Callable[..., Run], peers: Path, name: str, reason: str
) -> None:
    known = {c.name: c for c in find_contestants([peers])}
    subjects = [build_of(known[each])(TINY, SETTING) for each in ("trains", name)]
    check_gradients(subjects[0], TINY, np.dtype("float32"))
    with pytest.raises(CheckError, match=reason):
        check_gradients(subjects[1], TINY, np.dtype("float32"))
    made = run(asked(name)).of("tiny")[name]
    assert (made.status, made.forward) == ("refused", ())


def test_who_fails_in_the_backward_pass_is_timed_forward(asked: Callable[..., Run]) -> None:
    names = ("backward breaks", "backward hangs", "backward dies", "trains", "numpy auto")
    wanted = asked(*names, limit=8.0)
    steps: list[int] = []
    results = run(wanted, lambda text, done: steps.append(done))
    made = results.of("tiny")
    assert sum(steps) == len(names) * wanted.steps
    assert {(m.status, len(m.forward)) for m in made.values()} == {("ok", 2)}
    assert {name: (m.train_status, len(m.train)) for name, m in made.items()} == {
        "backward breaks": ("failed", 0),
        "backward hangs": ("late", 0),
        "backward dies": ("failed", 0),
        "trains": ("ok", 2),
        "numpy auto": ("none", 0),
    }
    assert made["backward breaks"].train_reason == "ValueError: not differentiable"
    assert "SIGABRT" in made["backward dies"].train_reason
    page = report.markdown(results)
    line = (
        "- tiny, backward hangs, forward + backward: late: not built, compiled and checked within"
    )
    assert f"{line} 8 s" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| backward hangs |"))
    assert row.split(" | ")[3] == "late"


def test_who_has_no_time_stands_in_the_tables_as_what_it_is(asked: Callable[..., Run]) -> None:
    results = run(asked("hangs", "broken", "away", "trains", "jax auto", limit=10.0))
    page = report.markdown(results)
    assert "| hangs | late |" in page
    assert "| broken | failed |" in page
    assert "| away |" not in page
    assert "- tiny, away: skipped: not on a Sunday" in page
    against = compare.matches(results)
    cells = [
        report.ratio_text(results, against, "tiny", "forward", peer, "jax")
        for peer in ("trains", "hangs", "broken", "away")
    ]
    assert cells[1:] == ["late", "failed", "–"]
    assert cells[0].endswith("]")
    # Ours is not left out either.
    lost = replace(results.of("tiny")["hangs"], contestant="torch auto", ours=True)
    with_ours = replace(results, measurements=(*results.measurements, lost))
    told = [
        report.ratio_text(with_ours, against, "tiny", "forward", peer, "torch")
        for peer in ("trains", "hangs", "away")
    ]
    assert told == ["ours late", "late", "–"]


def test_who_is_wrong_crashes_or_hangs_is_reported_and_the_rest_is_timed(
    asked: Callable[..., Run], peers: Path
) -> None:
    names = ("cumulative", "broken", "gone", "away", "dies later", "first")
    made = run(asked(*names)).of("tiny")
    assert {name: m.status for name, m in made.items()} == {
        "cumulative": "refused",
        "broken": "failed",
        "gone": "failed",
        "away": "skipped",
        "dies later": "failed",
        "first": "ok",
    }
    assert made["cumulative"].forward == ()
    assert made["broken"].reason == "ValueError: no such luck"
    assert "exit code 3" in made["gone"].reason
    assert made["away"].reason == "not on a Sunday"
    assert "SIGABRT" in made["dies later"].reason
    assert len(made["first"].forward) == 2
    page = report.markdown(read_results(asked().records))
    assert "- tiny, gone: failed: the process ended with exit code 3" in page


def test_a_contestant_that_hangs_is_late(asked: Callable[..., Run]) -> None:
    made = run(asked("hangs", limit=2.0)).of("tiny")["hangs"]
    assert (made.status, made.reason) == ("late", "not built, compiled and checked within 2 s")
    # It is not asked again, except for a longer time.
    assert pending(asked("hangs", limit=2.0)) == []
    assert len(pending(asked("hangs", limit=3.0))) == 1


# --- going on where a run stopped -----------------------------------------------------------------


def test_what_was_measured_is_left_alone(asked: Callable[..., Run], peers: Path) -> None:
    before = run(asked("first", "away")).of("tiny")
    assert before["away"].status == "skipped"
    # Whoever could not take part is asked again: a package may be there now.
    assert [[c.name for c in left] for _, left in pending(asked("first", "away"))] == [["away"]]
    assert pending(asked("first")) == []
    told: list[str] = []
    run(asked("first"), lambda text, done: told.append(text))
    assert told == []
    after = run(asked("first", "second"))
    assert after.of("tiny")["first"] == before["first"]
    assert after.of("tiny")["second"].session != before["first"].session

    # Other code, another setting or another batch is another thing to measure.
    file = peers / "own.py"
    file.write_text(PEERS + "\n")
    assert len(pending(asked("first"))) == 1
    file.write_text(PEERS)
    for other in ({"dtype": "float64"}, {"fresh": True}):
        assert len(pending(replace(asked("first"), setting=replace(SETTING, **other)))) == 1
    assert len(pending(asked("first", rounds=3))) == 1
    assert pending(asked("first", rounds=1)) == []
    assert len(pending(asked("first", workload=replace(TINY, batch=3)))) == 1


# Slow enough to be ended in the middle of its turns.
SLOW = """
import os, time
import numpy as np
from symcompile.bench.subject import Subject

def build(workload, setting):
    def call(x):
        with open(os.path.join(os.path.dirname(__file__), "pids"), "a") as file:
            print(os.getpid(), workload.name, file=file)
        time.sleep(0.2 if workload.name == "rnn" else 0.02)
        return [2 * v for v in x]
    return Subject(lambda x: [v.copy() for v in x], lambda y: y, call, None, {}, {})

CONTESTANTS = {"one": build, "two": build}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="ends a process by a signal")
def test_a_run_that_was_killed_goes_on_without_losing_or_doubling(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    out, pids = tmp_path / "out", tmp_path / "pids"
    words = ["graph3", "rnn", "--quick", "--batch", "1", "--channels", "1", "--no-plots"]
    words += ["--peers", str(tmp_path / "slow.py"), "--contestant", "one", "--contestant", "two"]
    # NumPy alone says what the machine reaches, as for the other tests.
    code = "from symcompile.bench import runner; runner.GAUGES = ('numpy',)\n"
    code += "from symcompile.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", *words, "--threads", "1", "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if pids.exists() and pids.read_text().count("rnn\n") > 14:  # both, by turns
                break
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    before = read_results(out / "records.jsonl")
    assert [m.workload["name"] for m in before.measurements] == ["graph3", "graph3"]
    assert not (out / "results.json").exists()
    running = {int(line.split()[0]) for line in pids.read_text().splitlines()[-2:]}
    if sys.platform == "linux":
        end = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in running) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{pid}").exists() for pid in running), "contestants live on"

    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    made = [
        (line["workload"]["name"], line["contestant"])
        for line in lines
        if line["kind"] == "measurement"
    ]
    assert made == [(w, c) for w in ("graph3", "rnn") for c in ("one", "two")]
    after = Results.from_dict(json.loads((out / "results.json").read_text()))
    assert after.measurements[:2] == before.measurements
    assert after == read_results(out / "records.jsonl")
    # Each workload was interleaved within one run, where there was memory for both.
    assert [m.session for m in after.measurements] == [
        after.measurements[place].session for place in (0, 0, 2, 2)
    ]
    assert after.measurements[0].session != after.measurements[2].session


def test_results_of_another_workload_setting_or_machine_do_not_mix(
    asked: Callable[..., Run],
) -> None:
    run(asked("first", "second"))
    results = run(asked("first", workload=replace(TINY, batch=3)))
    assert [m.contestant for m in results.measurements] == ["first"]
    ready(asked("first"))
    with pytest.raises(OptionError, match=r"another setting \(threads 1, not 2\); give another"):
        ready(replace(asked("first"), setting=replace(SETTING, threads=2)))
    session = results.sessions[-1]
    other = replace(session, machine={**session.machine, "processor": "Abacus"})
    append(asked().records, [other])
    with pytest.raises(OptionError, match="processor Abacus, not"):
        ready(asked("first"))


def test_what_a_process_said_last_is_told_and_no_row_of_stars(tmp_path: Path) -> None:
    ended = process.Child.__new__(process.Child)
    vars(ended)["_process"] = SimpleNamespace(wait=lambda timeout: None, returncode=3)
    vars(ended)["_log"] = tmp_path / "stderr"
    (tmp_path / "stderr").write_text("first\n  no such luck\n****\n\n")
    assert ended._epitaph() == "the process ended with exit code 3: no such luck"


@pytest.mark.parametrize(("device", "processes"), [("cpu", 1), ("cuda", 2)])
def test_after_an_error_on_a_gpu_another_process_is_timed(
    device: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may answer every later call with that error."""
    answers = {
        "first": {"status": "ok", "error": 0.0, "tolerance": 1.0, "stages": {}, "versions": {}},
        "first_train": {"status": "failed", "reason": "no such luck"},
    }
    made: list[Any] = []

    class Scripted:
        alive = True

        def __init__(self, job: Any, setting: Setting) -> None:
            self.closed = False
            made.append(self)

        def __enter__(self) -> Scripted:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start(self, limit: float) -> dict[str, Any]:
            return {"status": "ok"}

        def ask(self, command: Any, limit: float) -> dict[str, Any]:
            return answers[command["do"]]

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(runner, "Child", Scripted)
    asked = Run((), replace(SETTING, device=device), Path("none"))
    blank = Measurement(TINY.to_dict(), "one", True, "k", "s", "g", "failed")
    with ExitStack() as stack:
        seat = runner._built(asked, stack, {}, blank)
    assert [each.closed for each in made] == [True] * (processes - 1) + [False]
    assert seat.child is made[-1]
    assert (seat.so_far.status, seat.so_far.train_status) == ("ok", "failed")


def test_published_results_are_not_written_over_by_those_of_another_machine(
    asked: Callable[..., Run],
) -> None:
    """A checkout has results, and not the records that they were made of."""
    results = run(asked("first"))
    (asked().records.parent / "results.json").write_text(report.json_text(results))
    asked().records.unlink()
    ready(asked("first"))
    (session,) = results.sessions
    other = replace(session, machine={**session.machine, "processor": "Abacus"})
    file = asked().records.parent / "results.json"
    file.write_text(report.json_text(replace(results, sessions=(other,))))
    with pytest.raises(OptionError, match="processor Abacus, not"):
        ready(asked("first"))
    file.write_text("[]")
    with pytest.raises(OptionError, match=r"results\.json: no results of a benchmark"):
        ready(asked("first"))


def test_records_survive_a_cut_and_refuse_other_files(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    one = Measurement(TINY.to_dict(), "a", True, "k", "s", "g", "ok", forward=((1.0, 2.0),))
    session = Session("s", "c", {}, SETTING, Rates(1.0, 2.0), 1, 0.1, 9.0)
    append(path, [session, one, replace(one, contestant="b"), replace(one, reason="newer")])
    whole = read_results(path)
    assert [m.contestant for m in whole.measurements] == ["a", "b"]
    assert whole.of("tiny")["a"].reason == "newer"
    assert whole.sessions == (session,)
    path.write_text(path.read_text()[:-40])
    assert [m.reason for m in read_results(path).measurements] == ["", ""]
    append(path, [replace(one, contestant="c")])  # after a cut, a record starts on its own line
    assert [m.contestant for m in read_results(path).measurements] == ["a", "b", "c"]
    path.write_text("not json\nneither\n")
    with pytest.raises(OptionError, match="line 1: no record of a benchmark"):
        read_results(path)
    assert read_results(tmp_path / "none") == Results()
    assert Results.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


# --- the command ----------------------------------------------------------------------------------


def _cli(*words: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, words)], prog_name="symcompile")


def test_the_command_times_a_spec_of_ones_own(tmp_path: Path) -> None:
    spec = tmp_path / "rows.yaml"
    spec.write_text("table: [row, {fixed: 2}]\n")
    words = ("--spec", spec, "--size", "row=6", "--contestant", "numpy auto", "--quick")
    done = _cli(*words, "--rounds", 1, "--batch", 2, "--threads", 1, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "rows: " in done.stdout
    assert "numpy auto" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (made,) = results["measurements"]
    assert made["workload"]["sizes"] == [["row", 6]]
    assert (tmp_path / "out" / "results.md").read_text().startswith("# Benchmark results")

    words += ("--fresh", "--rounds", 1, "--batch", 2, "--threads", 1, "-o")
    refused = _cli(*words, tmp_path / "out")
    assert refused.exit_code == 2
    assert "results of another setting (fresh False, not True)" in refused.stderr
    done = _cli(*words, tmp_path / "fresh")
    assert done.exit_code == 0, done.output
    assert "fresh from the system" in (tmp_path / "fresh" / "results.md").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("mpl",), "workload 'mpl' is not known"),
        (("--contestant", "torhc"), "found 'torhc', expected one of torch auto"),
        (("--device", "tpu"), "found 'tpu', expected cpu or cuda"),
        (("--dtype", "int8"), "dtype='int8' cannot be checked"),
        (("--threads", 0), "--threads: found 0, expected 1 to"),
        (("--rounds", 0), "--rounds: found 0"),
        (("--batch", 0), "--batch: found 0"),
        (("--limit", 0), "--limit: found 0"),
        (("--size", "a=3"), "are for --spec FILE"),
        (("--peers", "no/such/folder"), "'no/such/folder' does not exist"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: tuple[object, ...], reason: str, tmp_path: Path
) -> None:
    done = _cli(*words, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def _has_cuda() -> bool:
    torch = pytest.importorskip("torch")
    return bool(torch.cuda.is_available())


def test_a_device_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    if _has_cuda():
        pytest.skip("there is a CUDA device")
    done = _cli("rnn", "--device", "cuda", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr == (
        "Error: --device cuda: neither torch nor JAX sees such a device; install one of them with "
        "CUDA on a machine that has it, or use --device cpu\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("every_gauge")
def test_on_a_cuda_device_everyone_takes_part_and_is_weighed(tmp_path: Path) -> None:
    if not _has_cuda():
        pytest.skip("there is no CUDA device")
    names = ("torch auto", "torch.compile auto", "torch.triton auto", "nfn")
    wanted = [word for name in names for word in ("--contestant", name)]
    done = _cli("rnn", "cnn", "--quick", "--device", "cuda", *wanted, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    results = read_results(tmp_path / "out" / "records.jsonl")
    for made in results.measurements:
        if (made.workload["name"], made.contestant) == ("rnn", "nfn"):
            assert made.status == "skipped"
            continue
        assert (made.status, made.train_status) == ("ok", "ok"), made
        needed = 4 * Workload.from_dict(made.workload).entries
        assert made.extra is not None
        assert needed <= made.extra < 100 * needed
    assert results.sessions[-1].rates is not None


@pytest.mark.usefixtures("every_gauge")
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_contestants_take_other_dtypes(dtype: str, tmp_path: Path) -> None:
    names = {"torch auto", "jax auto", "nfn", "one term at a time"}
    contestants = tuple(c for c in find_contestants(peers_beside()) if c.name in names)
    records = tmp_path / "records.jsonl"
    setting = replace(SETTING, dtype=dtype)
    short = {"rounds": 1, "budget": 0.0, "most": 1, "copied": 1 << 16, "side": 8}
    results = run(Run(((TINY, contestants),), setting, records, **short))
    assert results.sessions[-1].rates is not None
    every = results.of("tiny")
    assert every.keys() == names
    for made in every.values():
        if made.status == "skipped":
            assert made.contestant not in {"torch auto", "jax auto"}, made.reason
        else:
            assert (made.status, made.train_status) == ("ok", "ok"), made


def test_the_command_lists_and_imports_no_framework() -> None:
    code = (
        "import sys; sys.argv = ['symcompile', 'bench', '--list']\n"
        "from symcompile.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'jax', 'matplotlib', 'nfn'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for name in ("torch auto", "torch.compile reference", "nfn compiled", "one term at a time"):
        assert name in done.stdout


def test_an_unknown_contestant_and_a_file_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="contestant 'x' is not known"):
        build_of(Contestant("x"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(OptionError, match="has no CONTESTANTS"):
        find_contestants([tmp_path / "empty.py"])
