"""A contestant at work, inside its process.

In: a workload, a dtype and a device. Out: a `Subject`: four calls on the contestant's own tensors,
all of which return only once their result is there.

The one thing to know: `put` lays data out the way the contestant likes it best, and is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import numpy as np

from symcompile.bench.workloads import Workload
from symcompile.errors import SymcompileError

__all__ = ["Arrays", "Build", "Setting", "Stopwatch", "Subject", "Unsuited"]

Arrays: TypeAlias = Sequence[np.ndarray[Any, Any]]
"""One array (batch, *axes, channels) for every tensor of a spec, in canonical order."""


class Unsuited(SymcompileError):
    """A contestant cannot take part here: no such device, package, or kind of workload."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contestants of a run share.

    Attributes:
        device: "cpu" or "cuda".
        dtype: of data and weights, by name.
        threads: for every library that has threads.
        fresh: leave the C library's allocator as it is, so that large results are in memory fresh
            from the system; it is told to use memory again otherwise.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    fresh: bool = False


class Stopwatch:
    """Seconds of the stages of building, each from the end of the one before.

    Stages: "import" of the framework (with the start of its device), "plan", "emit" (source written
    and loaded, or whatever builds the layer), "init" (weights drawn and put on the device). A
    contestant without one of them leaves it out.
    """

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._since = perf_counter()

    def lap(self, stage: str) -> None:
        """What went by since the last call belongs to this stage."""
        now = perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True, slots=True)
class Subject:
    """A built contestant.

    Attributes:
        put: data on the device, in the contestant's own layout.
        get: outputs of `forward` as NumPy arrays of the canonical order and layout.
        forward: outputs of an input.
        train: of an input and a cotangent: outputs, gradients with respect to the input, in the
            layout of inputs, and with respect to weights; None if the contestant has no gradients.
        stages: seconds that building took, see `Stopwatch`.
        versions: of what it is built on.
        weigh: of "forward" or "train", an input and a cotangent: bytes that the call takes beyond
            these and the weights, where the device or the framework counts them.
        rest: gives memory of the device back, before others have their turn.
        like: of outputs, and data from `put`: the data, lying in memory as the outputs do. So come
            gradients of what is made of outputs entry by entry, where the framework has strides.
    """

    put: Callable[[Arrays], Any]
    get: Callable[[Any], list[np.ndarray[Any, Any]]]
    forward: Callable[[Any], Any]
    train: Callable[[Any, Any], tuple[Any, Any, Any]] | None
    stages: Mapping[str, float]
    versions: Mapping[str, str]
    weigh: Callable[[str, Any, Any], int] | None = None
    rest: Callable[[], None] = lambda: None
    like: Callable[[Any, Any], Any] = lambda outputs, data: data


class Build(Protocol):
    """What a contestant's module offers."""

    def __call__(self, workload: Workload, setting: Setting, /) -> Subject:
        """Build it.

        Raises:
            Unsuited: it cannot take part, and why.
        """
