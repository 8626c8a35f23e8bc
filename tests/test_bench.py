"""Claims about the benchmarks: who is refused, what is timed and how, and what the figures mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from symcompile.bench import compare, report
from symcompile.bench.child import check_outputs
from symcompile.bench.contestants import Contestant, build_of, find_contestants, peers_beside
from symcompile.bench.plots import draw
from symcompile.bench.records import Measurement, Results, Session, append, read_results
from symcompile.bench.roofline import Floor, Rates, floor_of
from symcompile.bench.runner import Run, pending, run
from symcompile.bench.statistics import geometric_mean, ratio, summary
from symcompile.bench.subject import Setting, Unsuited
from symcompile.bench.workloads import (
    SERIES,
    WORKLOADS,
    Workload,
    own_workload,
    series,
    transformer,
    workload,
)
from symcompile.cli import app
from symcompile.diagrams import basis_size
from symcompile.errors import CheckError, OptionError, ShapeError
from symcompile.spec import load_spec, parse_spec

ROOT = Path(__file__).parents[1]
SETTING = Setting(threads=1)
TINY = own_workload(
    {
        "Dense_0": {"kernel": (0, 1), "bias": (1,)},
        "Dense_1": {"kernel": (1, 2), "bias": (2,)},
    },
    sizes={0: 5, 1: 4, 2: 3},
    batch=2,
    channels=3,
    name="tiny",
)
CNN = own_workload(
    {
        "Conv_0": {"kernel": (None, None, None, "a"), "bias": ("a",)},
        "Conv_1": {"kernel": (None, None, "a", "b"), "bias": ("b",)},
        "Dense_0": {"kernel": ((None, "b"), None), "bias": (None,)},
    },
    shapes={
        "Conv_0": {"kernel": (3, 3, 2, 5), "bias": (5,)},
        "Conv_1": {"kernel": (3, 3, 5, 4), "bias": (4,)},
        "Dense_0": {"kernel": (24, 7), "bias": (7,)},
    },
    sizes={"b": 4},
    batch=2,
    channels=3,
    name="cnn",
)
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

CONTESTANTS = {
    "first": made(log("first")),
    "second": made(log("second")),
    "trains": made(log("trains"), lambda x, g: [2 * v for v in x]),
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


# --- end to end ----------------------------------------------------------------------------------


def test_a_run_leaves_checked_timings_and_every_report(asked: Callable[..., Run]) -> None:
    wanted = asked("numpy auto", "numpy reference", "jax auto", "trains", command="bench x")
    steps: list[int] = []
    results = run(wanted, lambda text, done: steps.append(done))
    made = results.of("tiny")
    assert [m.status for m in made.values()] == ["ok"] * 4, [m.reason for m in made.values()]
    assert sum(steps) == 4 * wanted.steps
    for m in made.values():
        assert len(m.forward) == 2
        assert all(len(turn) >= 2 and min(turn) > 0 for turn in m.forward)
        assert m.error is not None
        assert m.tolerance is not None
        assert m.error <= m.tolerance
        assert set(m.stages) >= {"plan", "emit", "compile", "run"}
    jax = made["jax auto"]
    assert len(jax.train) == 2
    assert jax.stages["compile"] > jax.stages["run"]
    assert made["numpy auto"].train == ()
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
    assert "1 threads" in page
    assert len(report.tables(results, ["tiny"])) == 3
    written = draw(results, wanted.records.parent)
    assert {path.name for path in written} == {
        f"{name}.{suffix}" for name in ("ratios", "roofline") for suffix in ("png", "svg")
    }
    assert all(path.stat().st_size > 2000 for path in written)


def test_contestants_alternate_in_processes_of_their_own(
    asked: Callable[..., Run], peers: Path
) -> None:
    wanted = asked("first", "second", rounds=3)
    run(wanted)
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


# --- who is left out -----------------------------------------------------------------------------


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
    assert (made.status, made.reason) == ("late", "no answer within 2 s")


# --- going on where a run stopped ----------------------------------------------------------------


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
    assert len(pending(replace(asked("first"), setting=replace(SETTING, dtype="float64")))) == 1
    assert len(pending(asked("first", workload=replace(TINY, batch=3)))) == 1


def test_records_survive_a_cut_and_refuse_other_files(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    one = Measurement(TINY.to_dict(), "a", True, "k", "s", "ok", forward=((1.0, 2.0),))
    session = Session("s", "c", {}, SETTING, Rates(1.0, 2.0), 1, 0.1)
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


# --- figures -------------------------------------------------------------------------------------


def test_pairs_cancel_what_slows_the_machine_for_both() -> None:
    slow, fast = [[2.0, 2.0], [20.0], [4.0]], [[1.0], [10.0, 10.0, 99.0], [2.0]]
    assert ratio(slow, fast).median == ratio(slow, fast).low == ratio(slow, fast).high == 2.0
    apart = ratio(slow, fast, paired=False)
    assert (apart.median, apart.low, apart.high) == (2.0, 0.2, 20.0)
    assert apart.paired is False
    with pytest.raises(OptionError, match="3 turns against 2"):
        ratio(slow, fast[:2])
    for nothing in ([], [[]]):
        with pytest.raises(OptionError, match=r"no turns|without calls"):
            summary(nothing)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


def _results(times: dict[str, float], sessions: dict[str, str] | None = None) -> Results:
    made = tuple(
        Measurement(
            TINY.to_dict(),
            name,
            name in ("torch auto", "torch.compile auto", "jax auto", "numpy auto"),
            "k",
            (sessions or {}).get(name, "s"),
            "ok",
            stages={"plan": 1.0, "emit": 1.0, "compile": 1.0, "run": seconds},
            forward=((seconds, seconds), (seconds,)),
            extra=100,
        )
        for name, seconds in times.items()
    )
    kept = tuple(
        Session(name, "", {}, SETTING, Rates(1e6, 1e9), 2, 0.1)
        for name in {"s", *(sessions or {}).values()}
    )
    return Results(kept, made)


def test_ours_is_the_best_of_a_framework_and_a_peer_the_best_of_its_kind() -> None:
    times = {
        "torch auto": 4.0,
        "torch.compile auto": 2.0,
        "jax auto": 1.0,
        "numpy auto": 0.1,
        "nfn": 6.0,
        "nfn compiled": 8.0,
        "one term at a time": 10.0,
    }
    found = {
        (m.framework, m.peer): m for m in compare.matches(_results(times)) if m.what == "forward"
    }
    assert {key: m.ratio.median for key, m in found.items()} == {
        ("torch", "nfn"): 3.0,
        ("jax", "nfn"): 6.0,
        ("torch", "one term at a time"): 5.0,
        ("jax", "one term at a time"): 10.0,
    }
    assert found["torch", "nfn"].ours == "torch.compile auto"
    assert found["torch", "nfn"].theirs == "nfn"
    (total,) = (
        t
        for t in compare.totals(list(found.values()), ["tiny"])
        if (t.framework, t.peer) == ("jax", "nfn")
    )
    assert (total.mean, total.worst, total.count) == (pytest.approx(6.0), 6.0, 1)
    apart = compare.matches(_results({"jax auto": 1.0, "nfn": 2.0}, {"nfn": "other"}))
    assert [m.ratio.paired for m in apart if m.what == "forward"] == [False]


def test_the_floor_counts_what_no_layer_can_do_without() -> None:
    made = own_workload({"w": ("a", "b")}, sizes={"a": 3, "b": 5}, batch=2, channels=4)
    entries = 2 * 3 * 5 * 4
    weights = 4 * 4 * 4 + 4  # four diagrams of 4 x 4, one bias
    flops = 2 * 2 * 16 * (1 + 3 + 5 + 15)  # one mix for each signature: (), a, b, ab
    assert floor_of(made, 4) == Floor((2 * entries + weights) * 4, flops)
    assert floor_of(made, 4, train=True) == Floor((4 * entries + 2 * weights) * 4, 3 * flops)
    row = compare.rows(_results({"jax auto": 2.0}))[0]
    floor = floor_of(TINY, 4)
    assert row.share == pytest.approx(max(floor.bytes / 1e6, floor.flops / 1e9) / 2.0)
    assert row.peak == 100 + 4 * TINY.entries
    assert row.needed == 8 * TINY.entries


# In a process of its own, as contestants have: it changes how the process allocates.
WEIGHED = """
import sys
import numpy as np
from symcompile.bench.memory import peak_of
size = 4 << 20
if sys.argv[1] == "jax":
    import jax
    twice = jax.jit(lambda x: 2 * x)
    x = jax.numpy.ones(size, jax.numpy.uint8)
    call = lambda: jax.block_until_ready(twice(x))
else:
    def call():
        np.ones(2 * size, np.uint8)  # let go before the end
        return np.ones(size, np.uint8)
for _ in range(20):
    call()
print(peak_of(call) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are Linux's")
@pytest.mark.parametrize(("kind", "held"), [("numpy", 2), ("jax", 1)])
def test_peak_memory_counts_what_is_held_at_the_peak_only(kind: str, held: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WEIGHED, kind], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    # The kernel counts pages in batches for each thread.
    assert float(done.stdout) == pytest.approx(held, rel=0.1)


# --- workloads -----------------------------------------------------------------------------------


def test_the_workloads_are_those_that_were_agreed() -> None:
    assert list(WORKLOADS) == ["mlp", "deep", "graph2", "graph3", "rnn", "transformer", "cnn"]
    made = {name: workload(name) for name in WORKLOADS}
    assert {name: (w.batch, w.channels) for name, w in made.items()} == {
        "mlp": (8, 16),
        "deep": (8, 32),
        "graph2": (8, 32),
        "graph3": (4, 16),
        "rnn": (8, 16),
        "transformer": (4, 16),
        "cnn": (16, 16),
    }
    assert set(made["mlp"].shapes) == {
        (8, 784, 512, 16),
        (8, 512, 16),
        (8, 512, 10, 16),
        (8, 10, 16),
    }
    assert made["deep"].shapes.count((8, 128, 128, 32)) == 8
    assert made["graph3"].shapes == ((4, 16, 16, 16, 16),)
    spec = load_spec(ROOT / "symcompile" / "bench" / "specs" / "transformer.yaml")
    assert made["transformer"].spec.leaves == spec.leaves
    blocks = [w.series for w in series("blocks", SERIES["blocks"])]
    assert blocks == [("blocks", count) for count in (1, 2, 4, 8)]
    assert transformer(4).spec.size("block3.qk") == 16
    with pytest.raises(OptionError, match="workload 'mpl' is not known"):
        workload("mpl")


@pytest.mark.parametrize("name", ["mlp", "cnn", "graph2-n128", "transformer"])
def test_a_workload_is_the_same_in_another_process(name: str) -> None:
    made = workload(name)
    again = Workload.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert again.digest == made.digest


def test_inputs_are_the_same_for_everyone_and_differ_by_seed() -> None:
    kind = np.dtype("float32")
    one, same, other = TINY.inputs(0, kind), TINY.inputs(0, kind), TINY.inputs(1, kind)
    assert [a.shape for a in one] == list(TINY.shapes)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(ShapeError, match="label 'b'"):
        own_workload({"w": ("a", "b")}, sizes={"a": 2})
    with pytest.raises(ShapeError, match="the fixed axis written None has no size"):
        own_workload({"w": ("a", None)}, sizes={"a": 2})


# --- peers ---------------------------------------------------------------------------------------


def _peer(name: str) -> Contestant:
    return next(c for c in find_contestants(peers_beside()) if c.name == name)


SPECS: Sequence[Workload] = (
    TINY,
    CNN,
    own_workload({"w": ("a", "a")}, sizes={"a": 4}, batch=2, channels=2, name="graph"),
    own_workload(
        {"w": ("a", "b", "a"), "v": ("b",), "s": ()}, sizes={"a": 3, "b": 4}, batch=2, channels=2
    ),
)


@pytest.mark.parametrize("made", SPECS, ids=lambda w: w.name)
def test_one_term_at_a_time_is_equivariant(made: Workload) -> None:
    pytest.importorskip("jax")
    subject = build_of(_peer("one term at a time"))(made, SETTING)
    error, tolerance = check_outputs(subject, made, np.dtype("float32"))
    assert error <= tolerance


def test_one_term_at_a_time_has_the_whole_basis() -> None:
    jnp = pytest.importorskip("jax.numpy")
    module = sys.modules[build_of(_peer("one term at a time")).__module__]
    blocks = list(module.partitions(("a",) * 4))
    assert len(blocks) == basis_size([("a", "a")], [("a", "a")], {})
    eye = np.eye(16, dtype=np.float32).reshape(16, 4, 4)
    maps = [
        np.concatenate([np.asarray(module.term(jnp.asarray(x), b, (4, 4))).ravel() for x in eye])
        for b in blocks
    ]
    assert np.linalg.matrix_rank(np.stack(maps)) == 15


@pytest.mark.parametrize("made", [TINY, CNN], ids=lambda w: w.name)
def test_nfn_is_equivariant_on_its_own_layout(made: Workload) -> None:
    pytest.importorskip("nfn", reason="nfn is not installed")
    subject = build_of(_peer("nfn"))(made, SETTING)
    error, tolerance = check_outputs(subject, made, np.dtype("float32"))
    assert error <= tolerance
    assert subject.train is not None
    x = subject.put(made.inputs(0, np.dtype("float32")))
    outputs, gradients = subject.train(x, subject.forward(x))
    assert len(outputs) == len(made.shapes)
    assert all(g is None or np.isfinite(g.numpy()).all() for g in gradients)


@pytest.mark.parametrize(
    "spec",
    [
        {"w": ("a", "b")},
        {
            "l0": {"kernel": ("a", "a"), "bias": ("a",)},
            "l1": {"kernel": ("a", "b"), "bias": ("b",)},
        },
        {
            "l0": {"kernel": ("a", "b"), "bias": ("b",)},
            "l1": {"kernel": ("c", "d"), "bias": ("d",)},
        },
        {
            "l0": {"kernel": ("a", "b"), "bias": ("b",)},
            "l1": {"kernel": ("b", "a"), "bias": ("a",)},
        },
        {"l0": {"kernel": ("a", "b")}, "l1": {"kernel": ("b", "c")}},
        {"l0": {"kernel": ("a", "b"), "bias": ("b",)}},
    ],
)
def test_nfn_takes_no_part_where_it_has_no_layer(spec: Any) -> None:
    made = own_workload(spec, sizes=dict.fromkeys(parse_spec(spec).labels, 3), name="other")
    with pytest.raises(Unsuited, match="nfn has layers for"):
        build_of(_peer("nfn"))(made, SETTING)


# --- the command ---------------------------------------------------------------------------------


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
