"""The process of one contestant.

In: a job, then commands, one JSON value per line on stdin. Out: one JSON line for each on stdout.
Run as `python -m symcompile.bench.child`; `process.Child` is the other end.

The one thing to know: nothing is timed before the contestant's outputs have been seen to commute
with the permutations of the workload, at the very sizes it is timed at.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np

from symcompile.bench.contestants import Contestant, build_of
from symcompile.bench.memory import give_back, page_faults, peak_of
from symcompile.bench.roofline import calibrate
from symcompile.bench.subject import Setting, Subject, Unsuited
from symcompile.bench.workloads import Workload
from symcompile.check.draw import draw_permutations, dtype_of, permute, tolerance_of
from symcompile.errors import BackendError, CheckError

__all__ = ["Bench", "check_gradients", "check_outputs", "main", "tell"]

_ROTATED = {"cpu": 1 << 27, "cuda": 1 << 29}
_MOST = 128
"""Bytes of inputs that take turns, more than caches hold, in at most so many inputs."""

_UNSETTLED, _FEW = 5, 1 << 8
"""Calls after which a turn begins though memory is still handed out, and pages that are none."""

_LEAST, _LONGER = 3, 1.0
"""Calls of a turn at least, and seconds of calls that are enough though they are fewer."""

_PATIENCE = 5.0
"""Seconds of a call that is long enough not to need a second look, and of waiting for a turn."""


class Bench:
    """A built contestant with its inputs; one method for each command."""

    def __init__(self, workload: Workload, contestant: Contestant, setting: Setting) -> None:
        """Build it; `Unsuited` if it cannot take part."""
        self.workload = workload
        self.kind = dtype_of(setting.dtype)
        self.subject: Subject = build_of(contestant)(workload, setting)
        self.rotated = _ROTATED[setting.device] // max(workload.entries * self.kind.itemsize, 1)
        self.inputs = [self.subject.put(workload.inputs(0, self.kind))]
        self.cotangents = self.inputs  # until it is known how outputs lie in memory
        self.turn = 0

    def first(self) -> dict[str, Any]:
        """The first forward pass, which compiles; then the check."""
        first = _seconds(lambda: self.subject.forward(self.inputs[0]))
        error, tolerance = check_outputs(self.subject, self.workload, self.kind)
        # Two at least: while one is the input, the next is the cotangent.
        for seed in range(1, max(2, min(_MOST, self.rotated))):
            self.inputs.append(self.subject.put(self.workload.inputs(seed, self.kind)))
        steady = _steady(self._forward)
        self.subject.rest()
        return {
            "stages": {**self.subject.stages, "compile": max(first - steady, 0.0), "run": steady},
            "error": error,
            "tolerance": tolerance,
            "versions": dict(self.subject.versions),
        }

    def first_train(self) -> dict[str, Any]:
        """The first forward and backward pass, which compiles again, if there is one; the check."""
        if self.subject.train is None:
            return {"trains": False}
        first = _seconds(self._train)
        steady = _steady(self._train)
        check_gradients(self.subject, self.workload, self.kind)
        outputs = self._train()[0]
        # Arrays of their own: an input that was the cotangent before might be in a cache.
        self.cotangents = [
            self.subject.like(outputs, self.subject.put(self.workload.inputs(seed, self.kind)))
            for seed in range(len(self.inputs))
        ]
        del outputs  # or a device would not get their memory back
        self.subject.rest()
        return {"trains": True, "compile": max(first - steady, 0.0)}

    def weigh(self, trains: bool) -> dict[str, Any]:
        """Bytes that calls take on top of inputs and weights; nothing can be timed after this."""
        calls = {"extra": ("forward", self._forward), "extra_train": ("train", self._train)}
        if not trains:
            del calls["extra_train"]
        weigh = self.subject.weigh
        return {
            name: peak_of(call) if weigh is None else weigh(what, *self._next())
            for name, (what, call) in calls.items()
        }

    def round(self, what: str, budget: float, most: int) -> dict[str, Any]:
        """Seconds of calls, until `budget` seconds or `most` calls are over.

        Three at least, unless they take a second: one that took fresh memory is not the median.
        """
        call = self._train if what == "train" else self._forward
        settle(call)  # others had their turn: threads sleep, and memory was given back
        times: list[float] = []
        start = perf_counter()
        while len(times) < most:
            times.append(_seconds(call))
            over = budget if len(times) >= _LEAST else max(budget, _LONGER)
            if perf_counter() - start > over:
                break
        self.subject.rest()
        return {"times": times}

    def _next(self) -> tuple[Any, Any]:
        self.turn += 1
        count = len(self.inputs)
        return self.inputs[self.turn % count], self.cotangents[(self.turn + 1) % count]

    def _forward(self) -> Any:
        return self.subject.forward(self._next()[0])

    def _train(self) -> Any:
        assert self.subject.train is not None, "asked only if it trains"
        return self.subject.train(*self._next())


def settle(call: Callable[[], Any]) -> int:
    """Call until a call finds all the memory it needs at hand, though not for ever.

    Where the allocator has more to choose from than one call needs, the next may take other memory,
    which the system has yet to hand out: several times the time of the call itself.

    Returns:
        the number of calls.
    """
    calls, start = 0, perf_counter()
    while calls < _UNSETTLED and perf_counter() - start < _PATIENCE:
        before = page_faults()
        call()
        calls += 1
        if page_faults() - before < _FEW:
            break
    return calls


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    result = call()
    seconds = perf_counter() - start
    del result  # letting go of it is not timed
    return seconds


def _steady(call: Callable[[], Any]) -> float:
    """Seconds of a call that is not the first."""
    seconds = _seconds(call)
    return seconds if seconds > _PATIENCE else _seconds(call)


def check_outputs(
    subject: Subject, workload: Workload, kind: np.dtype[Any], seed: int = 7
) -> tuple[float, float]:
    """Hold a contestant's forward pass to its specification.

    Every output must have the shape of its input, depend on the input, and move as the input
    moves: f(g x) = g f(x) for random permutations g, one per label.

    Returns:
        the largest error relative to the largest entry of its output, and what is allowed.

    Raises:
        CheckError: it does not do so.
    """
    sizes = dict(workload.spec.sizes)
    rng = np.random.default_rng(seed)
    permutations = draw_permutations(rng, sizes)
    leaves, other = workload.inputs(0, kind), workload.inputs(1, kind)
    moved = [
        permute(value, leaf, sizes, permutations)
        for value, leaf in zip(leaves, workload.spec.leaves, strict=True)
    ]
    y, after, changed = (
        subject.get(subject.forward(subject.put(arrays))) for arrays in (leaves, moved, other)
    )
    shapes = [value.shape for value in y]
    if shapes != list(workload.shapes):
        raise CheckError(f"outputs have shapes {shapes[:4]}, expected {workload.shapes[:4]}")
    worst, tolerance = 0.0, tolerance_of(kind)
    for place, leaf in enumerate(workload.spec.leaves):
        scale = _largest(y[place])
        if not np.isfinite(scale) or scale == 0 or np.array_equal(y[place], changed[place]):
            raise CheckError(f"output {leaf.path} is zero, not finite or the same for any input")
        wanted = permute(y[place], leaf, sizes, permutations)
        error = _largest(_exact(after[place]) - _exact(wanted)) / scale
        if not error <= tolerance:
            raise CheckError(
                f"not equivariant: output {leaf.path} is off by {error:.2g} of its largest entry "
                f"after a permutation of the inputs (allowed {tolerance:.1g})"
            )
        worst = max(worst, error)
    return worst, tolerance


def check_gradients(subject: Subject, workload: Workload, kind: np.dtype[Any]) -> None:
    """Hold the backward pass of a contestant to its forward pass.

    Outputs must be those of `forward`. The layer is f(x) = A x + b; for any inputs x and x', with
    d = x - x' and the cotangent g = f(x) - f(x') = A d, gradients A* g meet <d, A* g> = <g, g>.

    Raises:
        CheckError: they do not.
    """
    assert subject.train is not None, "asked only if it trains"
    one, other = workload.inputs(0, kind), workload.inputs(1, kind)
    y, before = (subject.get(subject.forward(subject.put(x))) for x in (one, other))
    cotangent = [(_exact(a) - _exact(b)).astype(kind) for a, b in zip(y, before, strict=True)]
    x, given = subject.put(one), subject.put(cotangent)
    given = subject.like(subject.train(x, given)[0], given)  # as it is timed
    outputs, gradients, _ = subject.train(x, given)
    tolerance = tolerance_of(kind)
    for leaf, value, wanted in zip(workload.spec.leaves, subject.get(outputs), y, strict=True):
        off = _largest(_exact(value) - _exact(wanted))
        if not off <= tolerance * _largest(wanted):
            raise CheckError(
                f"output {leaf.path} differs by {off:.2g} when gradients are asked for"
            )
    if any(gradient is None for gradient in gradients):
        raise CheckError("not every input has a gradient")
    pulled = sum(
        _dot(_exact(a) - _exact(b), gradient)
        for a, b, gradient in zip(one, other, subject.get(gradients), strict=True)
    )
    expected = sum(_dot(g, g) for g in cotangent)
    error = abs(pulled - expected) / expected
    if not error <= tolerance:
        raise CheckError(
            f"gradients are not those of the forward pass: off by {error:.2g} along one direction "
            f"(allowed {tolerance:.1g})"
        )


def _exact(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Wide enough for the tolerances of half types; float64 would take twice the memory."""
    return value.astype(np.float32) if value.itemsize < 4 else value


def _largest(value: np.ndarray[Any, Any]) -> float:
    return float(np.abs(_exact(value)).max(initial=0.0))


def _dot(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    product = _exact(a).conj() * _exact(b)
    return float(product.real.sum(dtype=np.float64))


def main() -> None:
    """Serve one parent until it closes stdin, or ends in whatever way."""
    _end_with_parent()
    _first_to_go()
    # Libraries print; what they print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines = (json.loads(line) for line in sys.stdin)
    tell(_serve(lines), answers)


def tell(found: Iterable[Mapping[str, Any]], answers: TextIO) -> None:
    """Write answers, each when this process is at rest: then another contestant has its turn."""
    for answer in found:
        gc.collect()
        gc.freeze()  # a framework's objects stay: looking through them took longer than a turn
        give_back()  # others need the memory; and the cores, which giving it back takes a while
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _serve(lines: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    job = next(lines)
    bench: Bench | None = None
    setting = Setting(**job["setting"])
    failed: dict[str, Any] = {}
    with _told(failed):
        if job["cpus"]:
            os.sched_setaffinity(0, job["cpus"])
        if "workload" in job:
            workload = Workload.from_dict(job["workload"])
            bench = Bench(workload, Contestant(**job["contestant"]), setting)
    yield failed or {"status": "ok"}
    for command in lines:
        failed, answer = {}, {}
        with _told(failed):
            answer = _obey(bench, setting, **command)
        yield failed or {"status": "ok", **answer}


def _obey(bench: Bench | None, setting: Setting, do: str, **options: Any) -> dict[str, Any]:
    if do == "calibrate":
        return calibrate(setting, **options)
    if do == "look":
        return {"sees_device": any(_sees(framework, setting) for framework in ("torch", "jax"))}
    assert bench is not None, "a process without a contestant is asked about the machine only"
    match do:
        case "first":
            return bench.first()
        case "first_train":
            return bench.first_train()
        case "weigh":
            return bench.weigh(**options)
        case _:
            return bench.round(**options)


def _sees(framework: str, setting: Setting) -> bool:
    with suppress(ImportError, Unsuited):
        import_module(f"symcompile.bench.{framework}_subject").prepare(setting)
        return True
    return False


def _end_with_parent() -> None:
    """In the middle of compiling, a process would not see that stdin is closed."""
    parent_death = 1  # PR_SET_PDEATHSIG, Linux only
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(parent_death, signal.SIGKILL)


def _first_to_go() -> None:
    """Where memory runs out the contestant that takes it is to end, and nobody else."""
    with suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text("1000")


@contextmanager
def _told(failed: dict[str, Any]) -> Iterator[None]:
    """Turn whatever a contestant raises into an answer."""
    try:
        yield
    except (Unsuited, BackendError, ModuleNotFoundError) as error:
        failed.update(status="skipped", reason=_one_line(error))
    except CheckError as error:
        failed.update(status="refused", reason=str(error))
    except Exception as error:  # a contestant's own code: anything may come
        traceback.print_exc()
        failed.update(status="failed", reason=f"{type(error).__name__}: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]


if __name__ == "__main__":
    main()
