"""Check a tree's tensors against a spec, and split composite axes.

In: a spec, perhaps channel counts, and a tree of tensors of any framework.
Out: its leaves in canonical order, of shape (*batch, *axes, channels), checked; the same leaves
with one axis per atom.
The one thing to know: nothing is ever broadcast to fit. All leaves have the same batch axes, and
a label measures the same wherever it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from symcompile.errors import ShapeError
from symcompile.spec.bind import SizeSource, bind_specs, size_sources
from symcompile.spec.channels import resolve_channels
from symcompile.spec.parse import parse_spec
from symcompile.spec.trees import flatten_like
from symcompile.spec.types import (
    Atom,
    Composite,
    Fixed,
    Label,
    Leaf,
    Perm,
    PermSpec,
    axis_atoms,
    format_axis,
    format_path,
    format_place,
)

__all__ = ["TreeReader"]


@dataclass(frozen=True)
class TreeReader:
    """Reads trees of one spec; made by `TreeReader.of`."""

    spec: PermSpec
    channels: tuple[int, ...] | None
    kind: type[Any]
    sources: tuple[tuple[Label, int | SizeSource], ...]

    @staticmethod
    def of(
        spec: Any, channels: Any = None, *, kind: type[Any], shapes: Any = None, split: bool = False
    ) -> TreeReader:
        """A reader for `spec`.

        Args:
            spec: as for `compile`, or a `PermSpec`.
            channels: of every leaf, an int or a tree of ints; None allows any number.
            kind: the class of the framework's arrays.
            shapes: as for `compile`; sizes what the spec leaves open.
            split: whether `split` will be called.

        Raises `ShapeError` where `shapes` do not fit, or if `split` needs a size that is unknown.
        """
        parsed = parse_spec(spec)
        if shapes is not None:
            parsed, _ = bind_specs(parsed, None, shapes)
        counts = None if channels is None else resolve_channels(parsed, channels, "channels")
        if split:
            _require_parts(parsed)
        return TreeReader(parsed, counts, kind, size_sources(parsed) if split else ())

    def read(self, x: Any) -> list[Any]:
        """The leaves of `x` in canonical order.

        Raises `ShapeError` for a missing or an extra leaf, one that is no array, or a shape that
        does not fit the spec, the channels or the other leaves.
        """
        leaves = flatten_like(self.spec, x, "x")
        sizes = dict(self.spec.sizes)
        batch: tuple[int, ...] | None = None
        for index, (leaf, value) in enumerate(zip(self.spec.leaves, leaves, strict=True)):
            if not isinstance(value, self.kind):
                kind = self.kind.__name__.rpartition(".")[2]  # jaxlib puts its module into it
                raise ShapeError(
                    f"{format_place(leaf.path)}: found a {type(value).__name__} object, expected "
                    f"a {kind} of shape {_wanted(leaf)}"
                )
            shape = tuple(value.shape)
            lead = len(shape) - len(leaf.axes) - 1
            if lead < 0:
                raise ShapeError(f"{_has(leaf, shape)}, expected {_wanted(leaf)}")
            if batch is None:
                batch = shape[:lead]
            elif shape[:lead] != batch:
                raise ShapeError(
                    f"{_has(leaf, shape)}: its batch axes are {shape[:lead]}, those of the leaves "
                    f"before it {batch}; expected {_wanted(leaf)} with one batch for all"
                )
            if self.channels is not None and shape[-1] != self.channels[index]:
                raise ShapeError(
                    f"{_has(leaf, shape)}, expected {self.channels[index]} channels: channels are "
                    "the last axis"
                )
            _check_axes(leaf, shape, shape[lead:-1], sizes)
        return leaves

    def split(self, leaves: Sequence[Any]) -> list[Any]:
        """Leaves that were read, with one axis per atom: (*batch, *atoms, channels)."""
        sizes: dict[Label, int] = {}
        for label, source in self.sources:
            sizes[label] = source if isinstance(source, int) else self._size(source, leaves, sizes)
        return [
            _split(leaf, value, sizes) for leaf, value in zip(self.spec.leaves, leaves, strict=True)
        ]

    def _size(self, source: SizeSource, leaves: Sequence[Any], sizes: Mapping[Label, int]) -> int:
        """A label's size, read off an axis whose other parts are known."""
        index, position, others = source
        axis = position - len(self.spec.leaves[index].axes) - 1
        size: int = leaves[index].shape[axis]
        for atom in others:
            size //= _atom_size(atom, sizes)
        return size


def _require_parts(spec: PermSpec) -> None:
    for leaf in spec.leaves:
        for position, axis in enumerate(leaf.axes):
            if isinstance(axis, Composite) and Fixed(None) in axis.parts:
                raise ShapeError(
                    f"{format_path(leaf.path)}, axis {position} {format_axis(axis)}: the fixed "
                    "part written None has no size; give shapes=, or write Fixed(n)"
                )


def _split(leaf: Leaf, value: Any, sizes: Mapping[Label, int]) -> Any:
    if not any(isinstance(axis, Composite) for axis in leaf.axes):
        return value
    shape = tuple(value.shape)
    lead = len(shape) - len(leaf.axes) - 1
    parts: list[int] = []
    for axis, size in zip(leaf.axes, shape[lead:-1], strict=True):
        atoms = axis_atoms(axis)
        parts += [size] if len(atoms) == 1 else [_atom_size(atom, sizes) for atom in atoms]
    return value.reshape(*shape[:lead], *parts, shape[-1])


def _atom_size(atom: Atom, sizes: Mapping[Label, int]) -> int:
    if isinstance(atom, Perm):
        return sizes[atom.label]
    assert atom.size is not None, "required when the reader was made"
    return atom.size


def _check_axes(
    leaf: Leaf, shape: tuple[int, ...], axes: tuple[int, ...], sizes: dict[Label, int]
) -> None:
    """Hold the axes to the sizes known so far, and learn those of plain labels."""
    for position, (axis, size) in enumerate(zip(leaf.axes, axes, strict=True)):
        if isinstance(axis, Perm):
            known: int | None = sizes.setdefault(axis.label, size)
        elif isinstance(axis, Fixed):
            known = axis.size
        else:
            known = _product(axis, sizes)
        if known is not None and known != size:
            raise ShapeError(
                f"{_has(leaf, shape)}: axis {position} has size {size}, but {format_axis(axis)} "
                f"has size {known} by the spec or another axis; expected {_wanted(leaf)}"
            )


def _product(axis: Composite, sizes: Mapping[Label, int]) -> int | None:
    total = 1
    for atom in axis.parts:
        size = sizes.get(atom.label) if isinstance(atom, Perm) else atom.size
        if size is None:
            return None
        total *= size
    return total


def _has(leaf: Leaf, shape: tuple[int, ...]) -> str:
    return f"{format_place(leaf.path)} has shape {shape}"


def _wanted(leaf: Leaf) -> str:
    axes = "".join(f"{format_axis(axis)}, " for axis in leaf.axes)
    return f"(*batch, {axes}channels)"
