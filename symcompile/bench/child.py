"""The process of one contestant.

In: a job, then commands, one JSON value per line on stdin. Out: one JSON line for each on stdout.
Run as `python -m symcompile.bench.child`; `process.Child` is the other end.

The one thing to know: nothing is timed before the contestant's outputs have been seen to commute
with the permutations of the workload, at the very sizes it is timed at.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from symcompile.bench.contestants import Contestant, build_of
from symcompile.bench.memory import peak_of
from symcompile.bench.roofline import calibrate
from symcompile.bench.subject import Setting, Subject, Unsuited
from symcompile.bench.workloads import Workload
from symcompile.check.draw import draw_permutations, dtype_of, permute, tolerance_of, wide
from symcompile.errors import BackendError, CheckError

__all__ = ["Bench", "check_outputs", "main"]

_ROTATED = 1 << 28
"""Bytes of inputs that take turns, where memory allows: more than caches hold."""


class Bench:
    """A built contestant with its inputs; one method for each command."""

    def __init__(self, workload: Workload, contestant: Contestant, setting: Setting) -> None:
        """Build it; `Unsuited` if it cannot take part."""
        self.workload = workload
        self.kind = dtype_of(setting.dtype)
        self.subject: Subject = build_of(contestant)(workload, setting)
        self.bytes = workload.entries * self.kind.itemsize
        self.inputs = [self.subject.put(workload.inputs(0, self.kind))]
        self.turn = 0
        self.extra: dict[str, int | None] = {}

    def first(self) -> dict[str, Any]:
        """The first forward pass, which compiles; then the check."""
        first, self.extra["forward"] = self._first(lambda: self.subject.forward(self.inputs[0]))
        error, tolerance = check_outputs(self.subject, self.workload, self.kind)
        # Two at least: while one is the input, the next is the cotangent.
        for seed in range(1, max(2, min(8, _ROTATED // max(self.bytes, 1)))):
            self.inputs.append(self.subject.put(self.workload.inputs(seed, self.kind)))
        steady = self._steady(self._forward)
        return {
            "stages": {**self.subject.stages, "compile": max(first - steady, 0.0), "run": steady},
            "error": error,
            "tolerance": tolerance,
            "versions": dict(self.subject.versions),
        }

    def first_train(self) -> dict[str, Any]:
        """The first forward and backward pass, which compiles again, if there is one."""
        if self.subject.train is None:
            return {"trains": False}
        first, self.extra["train"] = self._first(self._train)
        return {"trains": True, "compile": max(first - self._steady(self._train), 0.0)}

    def weigh(self) -> dict[str, Any]:
        """Bytes that calls take on top of their inputs; nothing can be timed after this."""
        if self.subject.allocated is None:
            self.extra["forward"] = peak_of(self._forward)
            if self.subject.train is not None:
                self.extra["train"] = peak_of(self._train)
        return {"extra": self.extra.get("forward"), "extra_train": self.extra.get("train")}

    def _first(self, call: Callable[[], Any]) -> tuple[float, int | None]:
        """Seconds of a first call, and where the device counts them its bytes."""
        allocated = self.subject.allocated
        if self.subject.reset is not None:
            self.subject.reset()
        before = 0 if allocated is None else allocated()[0]
        start = perf_counter()
        call()
        seconds = perf_counter() - start
        return seconds, None if allocated is None else allocated()[1] - before

    def round(self, what: str, budget: float, most: int) -> dict[str, Any]:
        """Seconds of each call until `budget` seconds have gone by, or `most` calls."""
        call = self._train if what == "train" else self._forward
        call()  # wakes the threads that slept while others had their turn
        times: list[float] = []
        end = perf_counter() + budget
        while len(times) < most and (len(times) < 2 or perf_counter() < end):
            start = perf_counter()
            result = call()
            times.append(perf_counter() - start)
            del result
        return {"times": times}

    def _next(self) -> tuple[Any, Any]:
        self.turn += 1
        count = len(self.inputs)
        return self.inputs[self.turn % count], self.inputs[(self.turn + 1) % count]

    def _forward(self) -> Any:
        return self.subject.forward(self._next()[0])

    def _train(self) -> Any:
        assert self.subject.train is not None, "asked only if it trains"
        return self.subject.train(*self._next())

    def _steady(self, call: Callable[[], Any]) -> float:
        call()
        start = perf_counter()
        call()
        return perf_counter() - start


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
        scale = float(np.abs(wide(y[place])).max(initial=0.0))
        if not np.isfinite(scale) or scale == 0 or np.array_equal(y[place], changed[place]):
            raise CheckError(f"output {leaf.path} is zero, not finite or the same for any input")
        wanted = permute(y[place], leaf, sizes, permutations)
        error = float(np.abs(wide(after[place]) - wide(wanted)).max(initial=0.0)) / scale
        if not error <= tolerance:
            raise CheckError(
                f"not equivariant: output {leaf.path} is off by {error:.2g} of its largest entry "
                f"after a permutation of the inputs (allowed {tolerance:.1g})"
            )
        worst = max(worst, error)
    return worst, tolerance


def main() -> None:
    """Serve one parent until it closes stdin."""
    # Libraries print; what they print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines = (json.loads(line) for line in sys.stdin)
    for answer in _serve(lines):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        gc.collect()


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
    assert bench is not None, "a process without a contestant is only asked to calibrate"
    match do:
        case "first":
            return bench.first()
        case "first_train":
            return bench.first_train()
        case "weigh":
            return bench.weigh()
        case _:
            return bench.round(**options)


@contextmanager
def _told(failed: dict[str, Any]) -> Iterator[None]:
    """Turn whatever a contestant raises into an answer."""
    try:
        yield
    except (Unsuited, BackendError, ModuleNotFoundError) as error:
        failed.update(status="skipped", reason=str(error))
    except CheckError as error:
        failed.update(status="refused", reason=str(error))
    except Exception as error:  # a contestant's own code: anything may come
        traceback.print_exc()
        text = (str(error).splitlines() or [""])[0][:300]
        failed.update(status="failed", reason=f"{type(error).__name__}: {text}")


if __name__ == "__main__":
    main()
