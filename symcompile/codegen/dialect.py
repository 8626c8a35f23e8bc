"""How one array framework spells each operation.

In and out: expressions as text. Axes are counted from the end; the last is the channel axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Dialect", "Embedding"]


@dataclass(frozen=True, slots=True)
class Embedding:
    """A request to add a value to the diagonals of another.

    Attributes:
        target: name to assign.
        value: what is added, without the merged axes: see `place` and `view`.
        place: `value` indexed so that it broadcasts against the target.
        view: maps an expression for the target to the expression of its diagonals, shaped as value.
        total: what to add to, or None for zero.
        owned: True if `total` is a new array of full extent that nothing else reads.
        shape: full shape of the target, a tuple expression.
        equal: groups of axes that share one index, with the group's size.
        order: number of index axes of the target.
    """

    target: str
    value: str
    place: str
    view: Callable[[str], str]
    total: str | None
    owned: bool
    shape: str
    equal: tuple[tuple[tuple[int, ...], str], ...]
    order: int


class Dialect(Protocol):
    """One framework's spelling."""

    def weight(self, name: str) -> str:
        """A weight, in the dtype of the computation."""

    def ones(self) -> str:
        """The constant 1: an array of one channel."""

    def concat(self, values: Sequence[str]) -> str:
        """Side by side along the channels."""

    def reduce(self, value: str, how: str, axes: Sequence[int]) -> str:
        """`how` is "mean" or "sum"."""

    def move_axes(self, value: str, source: Sequence[int], target: Sequence[int]) -> str:
        """Axis `source[k]` goes to `target[k]`, the others keep their order."""

    def diagonal(self, value: str, axis1: int, axis2: int) -> str:
        """The diagonal of two axes, as a new last axis."""

    def expand(self, value: str, shape: str) -> str:
        """Broadcast to `shape`, a tuple expression."""

    def split(self, value: str, widths: Sequence[int]) -> str:
        """A tuple of pieces along the channels."""

    def embed(self, request: Embedding) -> list[str]:
        """Statements that assign `target`: `total` (or zero) plus `value` on its diagonals."""
