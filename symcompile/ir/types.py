"""What a Program's values and its inputs and outputs look like.

`Tensor` is one leaf as users pass it: stored axes and channels. `Type` is a value inside the
program: index axes that permutations act on, and one channel axis that also holds every fixed axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from symcompile.spec import Axis, Fixed, Label, Leaf, Path, Perm

__all__ = ["Tensor", "Type"]


@dataclass(frozen=True, slots=True)
class Type:
    """The type of one value: an array of shape (*batch, *sizes of labels, width).

    Attributes:
        labels: the label of each index axis.
        width: channels times fixed axes, the last axis.
        batched: False for values that do not depend on any input (made from constants alone).
        members: for a batched mix, the labels of each result; `width` counts all of them.
    """

    labels: tuple[Label, ...]
    width: int
    batched: bool = True
    members: tuple[tuple[Label, ...], ...] = ()


@dataclass(frozen=True)
class Tensor:
    """One input or output of a layer: an array of shape (*batch, *axes, channels).

    Attributes:
        path: where it sits in the tree.
        axes: its stored axes; every fixed axis has a size.
        channels: length of its last axis.
    """

    path: Path
    axes: tuple[Axis, ...]
    channels: int

    @cached_property
    def leaf(self) -> Leaf:
        """The spec leaf this tensor was made from."""
        return Leaf(self.path, self.axes)

    @cached_property
    def atoms(self) -> tuple[Perm | Fixed, ...]:
        """Its axes after composite axes are split."""
        return self.leaf.atoms

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        """Labels of its permuted axes, in storage order."""
        return self.leaf.labels

    @cached_property
    def fixed(self) -> tuple[int, ...]:
        """Sizes of its fixed axes, in storage order; they come before the channels in `width`."""
        return tuple(atom.size or 0 for atom in self.atoms if isinstance(atom, Fixed))

    @cached_property
    def width(self) -> int:
        """Channels of the value inside the program: fixed axes folded into the channel axis."""
        return prod(self.fixed) * self.channels

    @cached_property
    def type(self) -> Type:
        """The type of the value inside the program."""
        return Type(self.labels, self.width)
