"""A contestant at work, inside its process.

In: a workload, a dtype and a device. Out: a `Subject`: four calls on the contestant's own tensors,
all of which return only once their result is there.

The one thing to know: `put` lays data out the way the contestant likes it best, and is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from symcompile.bench.workloads import Workload
from symcompile.errors import SymcompileError

__all__ = ["Arrays", "Build", "Setting", "Subject", "Unsuited"]

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
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """A built contestant.

    Attributes:
        put: data on the device, in the contestant's own layout.
        get: outputs of `forward` as NumPy arrays of the canonical order and layout.
        forward: outputs of an input.
        train: outputs of an input and, for a cotangent, the gradients with respect to input and
            weights; None if the contestant has no gradients.
        stages: seconds that building took, by stage: "plan" and "emit".
        versions: of what it is built on.
        allocated: (bytes on the device now, most since `reset`), where the device counts them.
        reset: forgets the most.
    """

    put: Callable[[Arrays], Any]
    get: Callable[[Any], list[np.ndarray[Any, Any]]]
    forward: Callable[[Any], Any]
    train: Callable[[Any, Any], Any] | None
    stages: Mapping[str, float]
    versions: Mapping[str, str]
    allocated: Callable[[], tuple[int, int]] | None = None
    reset: Callable[[], None] | None = None


class Build(Protocol):
    """What a contestant's module offers."""

    def __call__(self, workload: Workload, setting: Setting, /) -> Subject:
        """Build it.

        Raises:
            Unsuited: it cannot take part, and why.
        """
