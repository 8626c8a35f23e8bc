"""How values lie in memory, as far as it decides whether a view will do or a copy is made.

In: a Program. Out: for every value a `Layout`. What is written anew lies in the
order of its axes; transposes and diagonals are views that do not.

The one thing to know: the rows of a matmul, and the parts of a composite axis, have to follow each
other in memory. Where they do not, PyTorch copies first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from re import search

from symcompile.ir import (
    Add,
    Broadcast,
    Diagonal,
    Embed,
    Input,
    Program,
    Slice,
    Tensor,
    Transpose,
    fact,
    lazy_axes,
    types_of,
)
from symcompile.spec import Fixed, Perm, axis_atoms

__all__ = ["Layout", "layouts_of", "moves_on_the_way_in", "moves_on_the_way_out"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of a value's axes in memory.

    Attributes:
        order: axes that are not lazy, outermost first.
        dense: False if some axis walks a diagonal, so that entries lie apart.
    """

    order: tuple[int, ...]
    dense: bool = True

    @property
    def in_rows(self) -> bool:
        """True if the index axes can be counted through as one without a copy."""
        return len(self.order) < 2 or (self.dense and list(self.order) == sorted(self.order))


@fact
def layouts_of(program: Program) -> tuple[Layout, ...]:
    """The layout of every value."""
    found: list[Layout] = []
    for op, kind, lazy in zip(program.ops, types_of(program), lazy_axes(program), strict=True):
        source = found[op.args[0]] if op.args else Layout(())
        full = tuple([axis for axis in range(len(kind.labels)) if axis not in lazy])
        match op:
            case Input(tensor=tensor):
                # Folded by a view, a fixed axis between labels keeps their entries apart.
                folded = program.inputs[tensor]
                torn = search("lf+l", _fixed_places(folded)) is not None
                layout = Layout(full, moves_on_the_way_in(folded) or not torn)
            case Slice():
                layout = source
            case Transpose(axes=axes):
                layout = Layout(tuple(axes.index(axis) for axis in source.order), source.dense)
            case Broadcast(axes=axes):
                layout = Layout(tuple(axes[axis] for axis in source.order), source.dense)
            case Diagonal(blocks=blocks):
                outermost = [min(map(source.order.index, block)) for block in blocks]
                order = sorted(range(len(blocks)), key=outermost.__getitem__)
                layout = Layout(tuple(order), source.dense and len(blocks) == len(source.order))
            case Add():
                plain = [arg for arg in op.args if not isinstance(program.ops[arg], Embed)]
                # A sum lies like the first operand that has all of its axes.
                alike = (found[arg].order for arg in plain if len(found[arg].order) == len(full))
                layout = Layout(next(alike, full) if len(plain) > 1 else full)
            case _:
                layout = Layout(full)
        found.append(layout)
    return tuple(found)


def moves_on_the_way_in(tensor: Tensor) -> bool:
    """True if folding an input's fixed axes into its channels copies it.

    A view will do where they come last, or where there is one channel and they stand together.
    """
    kept = _fixed_places(tensor)
    first, last = kept.find("f"), kept.rfind("f")
    together = "l" not in kept[first : last + 1]
    return "fl" in kept and not (together and tensor.channels == 1)


def _fixed_places(tensor: Tensor) -> str:
    """Which atoms are fixed (f) and which have a label (l), those of extent one left out."""
    return "".join(
        "f" if isinstance(atom, Fixed) else "l" for atom in tensor.atoms if atom != Fixed(1)
    )


def moves_on_the_way_out(tensor: Tensor, order: Sequence[int]) -> bool:
    """True if merging an output's composite axes copies it.

    Args:
        order: the layout of the folded value.
    """
    kept = [atom for atom in tensor.atoms if atom != Fixed(1)]
    labels = [place for place, atom in enumerate(kept) if isinstance(atom, Perm)]
    fixed = [place for place, atom in enumerate(kept) if isinstance(atom, Fixed)]
    memory = [labels[axis] for axis in order] + fixed
    place = 0
    for axis in tensor.axes:
        count = sum(atom != Fixed(1) for atom in axis_atoms(axis))
        start = memory.index(place) if count else 0
        if memory[start : start + count] != list(range(place, place + count)):
            return True
        place += count
    return False
