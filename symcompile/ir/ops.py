"""The ops of a Program, one frozen class each.

Every op names its operands by number in `args`; its other fields are plain literals. Index axes
are counted without batch and channel axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from symcompile.diagrams.partitions import Blocks
from symcompile.spec import Label

__all__ = [
    "OPS",
    "Add",
    "BatchMix",
    "Broadcast",
    "Concat",
    "Const",
    "Diagonal",
    "Embed",
    "Input",
    "Mix",
    "Op",
    "Output",
    "Pick",
    "Reduce",
    "Slice",
    "Transpose",
]


@dataclass(frozen=True, slots=True)
class Op:
    """Base of all ops: `args` are the numbers of the ops whose values it reads."""

    args: tuple[int, ...]

    def renumbered(self, place: Sequence[int] | Mapping[int, int]) -> Self:
        """The same op on operands that have got other numbers.

        >>> Add((3, 4)).renumbered({3: 0, 4: 1})
        Add(args=(0, 1))
        """
        args = tuple([place[arg] for arg in self.args])
        return self if args == self.args else replace(self, args=args)


@dataclass(frozen=True, slots=True)
class Input(Op):
    """Input tensor number `tensor`: composite axes split, fixed axes folded into the channels."""

    tensor: int


@dataclass(frozen=True, slots=True)
class Const(Op):
    """The number 1, with no index axes and one channel: the input that makes the bias."""


@dataclass(frozen=True, slots=True)
class Diagonal(Op):
    """Axis k of the result walks all operand axes in `blocks[k]` at once."""

    blocks: Blocks


@dataclass(frozen=True, slots=True)
class Reduce(Op):
    """Mean (or sum, by the program's `reduce`) over index axes `axes`."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transpose(Op):
    """Axis k of the result is operand axis `axes[k]`."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concat(Op):
    """Operands of equal labels, side by side along the channels."""


@dataclass(frozen=True, slots=True)
class Mix(Op):
    """Channels times `weight[rows, cols]`, each a half-open range."""

    weight: str
    rows: tuple[int, int]
    cols: tuple[int, int]


@dataclass(frozen=True, slots=True)
class BatchMix(Op):
    """Several mixes in one batched matmul; `Pick` reads their results, nothing else does.

    Operands follow each other in groups of as many channels as a weight has rows; all weights are
    of one shape, all operands of one size. The channels of group k, side by side, times all of
    `weights[k]` are result k.
    """

    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pick(Op):
    """Result number `member` of a batched mix."""

    member: int


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """Channels `start` to `stop`, half-open."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Broadcast(Op):
    """Operand axis k becomes result axis `axes[k]` (increasing); other axes repeat it."""

    labels: tuple[Label, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Embed(Op):
    """Operand axis k is laid on the diagonal of result axes `blocks[k]`, zero elsewhere."""

    blocks: Blocks


@dataclass(frozen=True, slots=True)
class Add(Op):
    """The sum of operands of one type."""


@dataclass(frozen=True, slots=True)
class Output(Op):
    """Output tensor number `tensor`: fixed axes unfolded, composite axes merged."""

    tensor: int


OPS: dict[str, type[Op]] = {
    cls.__name__.lower(): cls
    for cls in (
        Input,
        Const,
        Diagonal,
        Reduce,
        Transpose,
        Concat,
        Mix,
        BatchMix,
        Pick,
        Slice,
        Broadcast,
        Embed,
        Add,
        Output,
    )
}
"""Ops by their printed name."""
