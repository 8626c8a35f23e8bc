"""Claims about what the benchmarks' figures mean: ratios, floors, what is held, the README."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symcompile.bench import compare, machine, ours, report, runner, torch_subject
from symcompile.bench.process import environment
from symcompile.bench.records import Session
from symcompile.bench.roofline import GAUGES, Floor, Rates, calibrate, floor_of
from symcompile.bench.runner import Run
from symcompile.bench.statistics import geometric_mean, ratio, summary
from symcompile.bench.subject import Setting
from symcompile.bench.workloads import own_workload
from symcompile.cost import PRESETS, Machine
from symcompile.errors import OptionError
from tests.bench_cases import SETTING, TINY, results_of

ROOT = Path(__file__).parents[1]


# --- ratios and floors ----------------------------------------------------------------------------


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
        (m.framework, m.peer): m for m in compare.matches(results_of(times)) if m.what == "forward"
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
    apart = compare.matches(results_of({"jax auto": 1.0, "nfn": 2.0}, {"nfn": "other"}))
    assert [m.ratio.paired for m in apart if m.what == "forward"] == [False]


def test_the_floor_counts_what_no_layer_can_do_without() -> None:
    made = own_workload({"w": ("a", "b")}, sizes={"a": 3, "b": 5}, batch=2, channels=4)
    entries = 2 * 3 * 5 * 4
    weights = 4 * 4 * 4 + 4  # four diagrams of 4 x 4, one bias
    flops = 2 * 2 * 16 * (1 + 3 + 5 + 15)  # one mix for each signature: (), a, b, ab
    assert floor_of(made, 4) == Floor((2 * entries + weights) * 4, flops)
    assert floor_of(made, 4, train=True) == Floor((4 * entries + 2 * weights) * 4, 3 * flops)
    row = compare.rows(results_of({"jax auto": 2.0}))[0]
    floor = floor_of(TINY, 4)
    assert row.share == pytest.approx(max(floor.bytes / 1e6, floor.flops / 1e9) / 2.0)
    assert row.peak == 100 + 4 * TINY.entries
    assert row.needed == 8 * TINY.entries


@pytest.mark.parametrize("by", GAUGES)
def test_every_library_measures_the_machine(by: str) -> None:
    pytest.importorskip(by)
    rates = calibrate(SETTING, by, copied=1 << 20, side=64)
    assert 1e6 < rates["bandwidth"] < 1e13
    assert 1e6 < rates["flops"] < 1e13


def test_the_limit_is_the_best_that_any_library_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measures in a process of its own, which has ended before the next begins."""
    answers = {
        "torch": {"status": "ok", "bandwidth": 3.0, "flops": 5.0},
        "jax": {"status": "ok", "bandwidth": 2.0, "flops": 9.0},
        "numpy": {"status": "skipped", "reason": "not on a Sunday"},
    }
    alive: list[object] = []

    class Gauge:
        def __init__(self, job: Any, setting: Setting) -> None:
            assert not alive

        def __enter__(self) -> Gauge:
            alive.append(self)
            return self

        def __exit__(self, *_: object) -> None:
            alive.remove(self)

        def start(self, limit: float) -> None:
            pass

        def ask(self, command: Any, limit: float) -> dict[str, Any]:
            return answers[command["by"]]

    monkeypatch.setattr(runner, "Child", Gauge)
    session = Session("s", "c", {}, SETTING, None, 1, 0.1, 9.0)
    asked = Run((), SETTING, Path("none"))
    first = runner._gauged(asked, session)
    assert first.rates == Rates(3.0, 9.0)
    # What an earlier workload's turn saw counts too.
    answers["torch"] = {"status": "ok", "bandwidth": 1.0, "flops": 1.0}
    answers["jax"] = answers["numpy"]
    assert runner._gauged(asked, first).rates == Rates(3.0, 9.0)
    answers["torch"] = answers["numpy"]
    assert runner._gauged(asked, session).rates is None


# --- memory ---------------------------------------------------------------------------------------


# In a process of its own, as contestants have: it changes how the process allocates.
WEIGHED = """
import sys
import numpy as np
from symcompile.bench.memory import peak_of
size = 4 << 20
if sys.argv[1] == "torch":
    import torch
    x = torch.ones(size, dtype=torch.uint8)
    call = lambda: (x + 1) + (x + 2)
elif sys.argv[1] == "jax":
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
@pytest.mark.parametrize(("kind", "held"), [("numpy", 2), ("jax", 1), ("torch", 3)])
def test_peak_memory_counts_what_is_held_at_the_peak_only(
    kind: str, held: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WEIGHED, kind],
        env=environment(SETTING, str(tmp_path)),  # whose allocator keeps what it has
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # The kernel counts pages in batches for each thread.
    assert float(done.stdout) == pytest.approx(held, rel=0.1)


HOLES = """
import sys
import numpy as np
from symcompile.bench import memory

if sys.argv[1] == "left":
    memory._plug = lambda: None
hole, above = np.zeros(1 << 28, np.uint8), np.zeros(1 << 24, np.uint8)
del hole

def call():
    # The heap grows for small blocks: by no more than they take, or it has room again.
    kept = [np.ones(1 << 15, np.uint8) for k in range(16)]
    for k in range(10):  # each that passes leaves room that is too small for those to come
        passing = np.ones((k + 6) << 18, np.uint8)
        kept.append(np.ones(1 << 22, np.uint8))
        del passing
    return kept

print(memory.peak_of(call) / 2**20)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="about its allocator")
def test_room_in_the_heap_does_not_make_calls_seem_to_hold_what_they_let_go(tmp_path: Path) -> None:
    plugged, left = (
        float(
            subprocess.check_output(
                [sys.executable, "-c", HOLES, what],
                env=environment(SETTING, str(tmp_path)),
                timeout=60,
            )
        )
        for what in ("plugged", "left")
    )
    assert plugged == pytest.approx(0.5 + 40 + 15 / 4, rel=0.05)
    assert left > 1.2 * plugged, "if this is so no more, nothing needs to be plugged"


def test_xla_states_what_a_call_on_a_gpu_takes() -> None:
    jax = pytest.importorskip("jax")
    from symcompile.bench.jax_subject import jax_subject

    def apply(params: Any, x: list[Any]) -> list[Any]:
        half = jax.numpy.sort(x[0])  # has to be there as a whole before anything is put out
        return [half[::-1] + half]

    asked = Setting(device="cuda")  # the figures are the same on any device
    subject = jax_subject(apply, (), asked, stages={})
    x = subject.put([np.ones(1 << 20, np.float32)])
    assert subject.weigh is not None
    size = 4 << 20
    assert subject.weigh("forward", x, x) == pytest.approx(2 * size, rel=0.01)
    assert subject.weigh("train", x, x) >= 2 * size  # an output and a gradient
    assert jax_subject(apply, (), SETTING, stages={}).weigh is None


@pytest.mark.parametrize(
    ("device", "mode", "one_pass"),
    [("cpu", "torch", True), ("cuda", "torch", False), ("cuda", "torch.triton", True)],
)
def test_layers_are_planned_for_what_they_run_on(
    device: str, mode: str, one_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU has kernels for sums in one pass if asked for, and clears no page for a new array."""
    machines: list[str | Machine] = []

    class Planned(Exception):
        pass

    def compile_spec(*_: Any, machine: str | Machine, **__: Any) -> None:
        machines.append(machine)
        raise Planned

    monkeypatch.setattr(ours, "compile_spec", compile_spec)
    monkeypatch.setattr(ours, "_import_kernels", lambda: None)
    monkeypatch.setattr(torch_subject, "prepare", lambda setting: None)
    with pytest.raises(Planned):
        ours.build_ours(TINY, replace(SETTING, device=device), mode, "auto")
    machine = PRESETS[machines[0]] if isinstance(machines[0], str) else machines[0]
    assert (machine.one_pass, machine.fresh > 0) == (one_pass, device == "cpu")


@pytest.mark.parametrize(
    ("said", "free", "fits"),
    [
        ("80000 MiB\n500 MiB\n", 80_000 << 20, True),
        ("500 MiB\n", 500 << 20, False),
        ("", None, True),
    ],
)
def test_as_many_take_turns_as_fit_into_the_memory_of_the_gpu(
    said: str, free: int | None, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first that a process may use; where NVIDIA's tool says nothing, all take turns."""
    asked: list[list[str]] = []

    def answer(query: list[str], **_: Any) -> Any:
        asked.append(query)
        return subprocess.CompletedProcess(query, 0, said)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setattr(machine, "run", answer)
    monkeypatch.setattr(runner, "available", lambda: None)
    assert machine.free_on_gpu() == free
    assert asked[0][-2:] == ["-i", "3"]
    assert runner._fits(TINY, "cuda") is fits
    assert runner._fits(TINY, "cpu")


FAULTS = """
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    b"x" * (64 << 20)
before = faults()
for _ in range(4):
    b"x" * (64 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about the allocator of Linux")
def test_contestants_use_memory_again_unless_it_is_to_be_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    again, fresh = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS], env=env, timeout=60))
        for each in (SETTING, replace(SETTING, fresh=True))
        for env in [environment(each, str(tmp_path))]
    )
    assert again < 100
    if "glibc" in platform.libc_ver():
        assert fresh > 1000, "if this is so no more, the instrument needs no setting for it"


# --- the README -----------------------------------------------------------------------------------


def _readme() -> Any:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_what_the_committed_results_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert _readme().updated(text) == text, "run: python benchmarks/readme.py"


def test_the_readme_shows_a_plot_and_a_table_of_the_results(tmp_path: Path) -> None:
    readme = _readme()
    text = "a\n<!-- benchmark results: r/cpu -->\nold\n<!-- end of benchmark results -->\nb\n"
    empty = text.replace("old\n", "")
    assert readme.updated(text, tmp_path) == empty
    folder = tmp_path / "r" / "cpu"
    folder.mkdir(parents=True)
    times = {"torch auto": 0.002, "torch.compile auto": 0.001, "jax auto": 0.004, "nfn": 0.006}
    results = results_of(times)
    machine = {"processor": "Abacus", "usable_cores": 2, "packages": {}}
    sessions = tuple(replace(s, machine=machine, command="bench y") for s in results.sessions)
    results = replace(results, sessions=sessions)
    (folder / "results.json").write_text(report.json_text(results))
    shown = readme.updated(empty, tmp_path)
    assert shown.startswith("a\n<!-- benchmark results: r/cpu -->\n")
    assert shown.endswith("<!-- end of benchmark results -->\nb\n")
    assert readme.updated(shown, tmp_path) == shown
    assert "](r/cpu/ratios.svg)" in shown
    assert "| tiny | forward | 1 | 4 | 6.00× | 1.50× |" in shown
    assert "| geometric mean | forward |  |  | 6.00× over 1 | 1.50× over 1 |" in shown
    assert "Abacus, 2 cores" in shown
    assert "`bench y`" in shown
    # Another figure in the results is another README.
    changed = results_of({**times, "nfn": 0.007})
    (folder / "results.json").write_text(report.json_text(replace(changed, sessions=sessions)))
    assert readme.updated(shown, tmp_path) != shown
    for broken in ("a\n", text + text):
        with pytest.raises(ValueError, match="pairs of comments"):
            readme.updated(broken, tmp_path)
