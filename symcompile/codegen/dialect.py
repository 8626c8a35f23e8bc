"""How one array framework spells each operation.

In and out: expressions as text. Axes are counted from the end; the last is the channel axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Batching", "Dialect", "Embedding", "Piece", "Product"]


@dataclass(frozen=True, slots=True)
class Product:
    """A product that is added to others.

    Attributes:
        parts: what is multiplied, side by side along the channels.
        weight: the matrix.
        axes: index axis k of what is added is the product's axis `axes[k]`; empty if none moves.
        channels: axes of the one part that are its channels: several where they are not joined.
    """

    parts: tuple[str, ...]
    weight: str
    axes: tuple[int, ...] = ()
    channels: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """What a product of many channels makes for one of its readers.

    Attributes:
        width: channels.
        sizes, order: where the result is to lie as an output is stored: its axes of channels, and
            the order that its axes, but those of the batch, have in memory; else empty.
        shape: then its shape with those axes, as a tuple expression.
        stored: and that of the output, without the batch.
    """

    width: int
    sizes: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    shape: str = ""
    stored: str = ""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A request to add a value to the diagonals of another.

    Attributes:
        target: name to assign.
        value: what is added, without the merged axes: see `place` and `view`.
        place: `value` indexed so that it broadcasts against the target.
        view: maps an expression for the target to the expression of its diagonals, shaped as value.
        total: what to add to, or None for zero.
        owned: True if `total` is a new array of full extent that nothing else reads; `target` is
            then its name.
        covered: True if `total` depends on every input and weight that `value` depends on. Where
            it does not, a transform that batches one of those (vmap) makes `value` larger than
            `total`, and a sum in place would not fit.
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
    covered: bool
    shape: str
    equal: tuple[tuple[tuple[int, ...], str], ...]
    order: int


class Batching(Protocol):
    """How to multiply several features by as many weights at once."""

    def split(self, value: str, count: int, width: int) -> str:
        """From `count` features of `width` channels side by side to a batch of matrices."""

    def multiply(self, batch: str, stack: str) -> str:
        """A batch of matrices times a stack of weights: another batch of matrices."""

    def members(self, batch: str, count: int, shape: str) -> str:
        """The matrices of a batch as `count` arrays, each of `shape`, a tuple expression."""


class Dialect(Protocol):
    """One framework's spelling."""

    @property
    def batching(self) -> Batching | None:
        """None where mixes are written one by one: the layer does not own its weights."""

    @property
    def frees(self) -> bool:
        """True if statements run one by one, so that deleting a name frees its memory."""

    def ones(self) -> str:
        """The constant 1: an array of one channel."""

    def concat(self, values: Sequence[str]) -> str:
        """Side by side along the channels."""

    def product(self, value: str, weight: str, *, large: bool) -> str:
        """Channels times a matrix; `large` if there are index axes or very many channels."""

    def mixed(
        self,
        parts: Sequence[str],
        weight: str,
        channels: Sequence[int],
        pieces: Sequence[Piece],
    ) -> str:
        """A tuple: parts, side by side along their channels, times a matrix, in pieces.

        Args:
            channels: how many axes of channels every part has.
        """

    def onto(self, value: str, terms: Sequence[str], piece: Piece) -> str:
        """An output as it is stored: the sum of a piece that lies so, which nothing else reads, and
        of terms that are broadcast to it."""

    @property
    def takes_parts(self) -> bool:
        """True if `linear_sum` wants what is multiplied in parts, not put together before."""

    @property
    def moves_together(self) -> bool:
        """True if fixed axes beside each other should be moved as one, and so the others: arrays
        are copied then anyway, and what is moved axis by axis is copied twice."""

    @property
    def joins_late(self) -> bool:
        """True if `two_means` and `linear_sum` take channels of several axes, which may lie apart:
        to join them would be a copy."""

    def join(self, value: str, channels: int) -> str:
        """With its last axes, so many, as one."""

    def linear_sum(
        self,
        target: str,
        products: Sequence[Product],
        terms: Sequence[str],
        anchors: Sequence[str],
        held: str | None,
    ) -> list[str]:
        """Statements that assign `target`: the sum of products, the first of which has full extent
        and keeps its axes, and of terms, broadcast; for anchors see `ir.accumulate`, for what is
        held `two_means`."""

    @property
    def pairs(self) -> str:
        """The reductions, "mean" or "sum", that `two_means` makes two of at once."""

    def two_means(
        self,
        value: str,
        axis: int,
        counts: Sequence[str],
        weight: str | None,
        *,
        widen: bool,
        channels: int = 1,
    ) -> str | None:
        """A tuple: the means over `axis` and over the one after it; None to have them one by one.

        If there is a weight, `linear_sum` will multiply the value by it, as the one product of a
        sum, and nothing else will read the value along all its axes. The tuple has a third member
        then, which that sum holds: so their gradients can be made together. See `reduce`; for
        `channels` see `Product`.
        """

    def reduce(self, value: str, how: str, axes: Sequence[int], count: str, *, widen: bool) -> str:
        """A reduction over `axes`, of `count` entries each.

        Args:
            how: "mean" or "sum".
            widen: accumulate in and return dtype `wide`.
        """

    def cast(self, value: str) -> str:
        """In the dtype of the computation, `dtype`."""

    def copy(self, value: str) -> str:
        """A new array, where arrays can be changed in place; else the value."""

    def move_axes(self, value: str, source: Sequence[int], target: Sequence[int]) -> str:
        """Axis `source[k]` goes to `target[k]`, the others keep their order."""

    @property
    def diagonal_last(self) -> bool:
        """Whether the diagonal of two axes becomes the last axis."""

    def diagonal(self, value: str, axis1: int, axis2: int) -> str:
        """The diagonal of two axes, in the place of the first or as the last one."""

    def expand(self, value: str, shape: str) -> str:
        """Broadcast to `shape`, a tuple expression."""

    def split(self, value: str, widths: Sequence[int], axis: int = -1) -> str:
        """A tuple of pieces along an axis, that of the channels if not said otherwise."""

    def embed(self, request: Embedding) -> list[str]:
        """Statements that assign `target`: `total` (or zero) plus `value` on its diagonals."""
