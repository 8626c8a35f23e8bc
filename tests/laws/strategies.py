"""Random layers for the laws: specs, sizes and channels, kept small enough to try many.

In: bounds. Out: `cases()`, a strategy of `Case`s. Up to 4 tensors on a side, order up to 4, up to
3 labels (ints and strings), fixed and composite axes, dicts and lists, sizes from 1 up and often
equal between labels, channels per tensor.

The one thing to know: a draw that would be too large is cut down, axis by axis, not rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from symcompile.diagrams import basis_size
from symcompile.errors import ShapeError
from symcompile.spec import (
    Fixed,
    Label,
    PermSpec,
    axis_atoms,
    flatten_like,
    parse_spec,
    require_derivable,
    resolve_channels,
)

Axes = tuple[Any, ...]
"""One tensor as a user writes it: labels, `Fixed`, nested tuples."""

LABELS: tuple[Label, ...] = (0, 1, 2, 7, "a", "b", "head", "n 1")


@dataclass(frozen=True)
class Case:
    """One layer to compile and the sizes to try it at."""

    spec: Any
    out_spec: Any
    sizes: dict[Label, int]
    in_channels: Any
    out_channels: Any
    bound: bool
    bias: bool
    reduce: str
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """For `compile`, beside the specs."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "sizes": self.sizes if self.bound else None,
            "bias": self.bias,
            "reduce": self.reduce,
        }

    @property
    def source(self) -> PermSpec:
        return parse_spec(self.spec)

    @property
    def target(self) -> PermSpec:
        return self.source if self.out_spec is None else parse_spec(self.out_spec)

    def inputs(
        self, rng: np.random.Generator, batch: tuple[int, ...] = ()
    ) -> list[np.ndarray[Any, Any]]:
        """Normal inputs, in the order of `source.leaves`."""
        counts = resolve_channels(self.source, self.in_channels, "in_channels")
        return [
            rng.standard_normal((*batch, *shape(leaf.axes, self.sizes), count))
            for leaf, count in zip(self.source.leaves, counts, strict=True)
        ]


def shape(axes: Sequence[Any], sizes: Mapping[Label, int]) -> tuple[int, ...]:
    """Stored shape of parsed axes."""
    return tuple(
        prod(a.size if isinstance(a, Fixed) else sizes[a.label] for a in axis_atoms(axis))
        for axis in axes
    )


def normal_weights(
    rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray[Any, Any]]:
    return {name: rng.standard_normal(extent) for name, extent in shapes.items()}


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    max_weights: int = 2_000,
    max_entries: int = 3_000,
    max_channels: int = 3,
    max_size: int = 6,
) -> Case:
    """A layer with at most about `max_weights` weights and `max_entries` entries per tensor."""
    labels = draw(st.lists(st.sampled_from(LABELS), min_size=1, max_size=3, unique=True))
    # Equal sizes are where labels get mixed up, small ones where the basis is pruned.
    size = st.integers(1, 3) | st.integers(1, max_size)
    if draw(st.booleans()):
        sizes = dict.fromkeys(labels, draw(size))
    else:
        sizes = {label: draw(size) for label in labels}
    sides = [draw(st.lists(_leaves(labels), min_size=1, max_size=4))]
    same = draw(st.booleans())
    if not same:
        sides.append(draw(st.lists(_leaves(labels), min_size=1, max_size=4)))
    channels = [
        [draw(st.integers(1, max_channels)) for _ in leaves] for leaves in (sides[0], sides[-1])
    ]
    bound = draw(st.booleans())
    _cut_down(sides, channels, sizes, bound, max_weights, max_entries)
    trees = [draw(_arrangements(len(leaves))) for leaves in sides]
    spec = _filled(trees[0], sides[0])
    out_spec = None if same else _filled(trees[1], sides[1])
    used = {label for leaves in sides for axes in leaves for label in _labels(axes)}
    return Case(
        spec=spec,
        out_spec=out_spec,
        sizes={label: size for label, size in sizes.items() if label in used},
        in_channels=_filled(trees[0], channels[0]),
        out_channels=_filled(trees[-1], channels[1]),
        bound=bound or not _derivable(spec, out_spec),
        bias=draw(st.booleans()),
        reduce=draw(st.sampled_from(["mean", "mean", "sum"])),
        seed=draw(st.integers(0, 2**16)),
    )


def _derivable(spec: Any, out_spec: Any) -> bool:
    source = parse_spec(spec)
    try:
        require_derivable(source, source if out_spec is None else parse_spec(out_spec))
    except ShapeError:
        return False
    return True


@st.composite
def _leaves(draw: st.DrawFn, labels: list[Label]) -> Axes:
    label = st.sampled_from(labels)
    atoms = draw(st.lists(label, max_size=4))
    fixed = draw(st.lists(st.integers(1, 3).map(Fixed), max_size=2)) if draw(st.booleans()) else []
    for atom in fixed:
        atoms.insert(draw(st.integers(0, len(atoms))), atom)
    if len(atoms) >= 2 and draw(st.integers(0, 2)) == 0:
        start = draw(st.integers(0, len(atoms) - 2))
        stop = draw(st.integers(start + 2, len(atoms)))
        atoms[start:stop] = [tuple(atoms[start:stop])]
    return tuple(atoms)


def _atoms(axes: Axes) -> list[Any]:
    return [atom for axis in axes for atom in (axis if isinstance(axis, tuple) else (axis,))]


def _labels(axes: Axes) -> list[Label]:
    return [atom for atom in _atoms(axes) if not isinstance(atom, Fixed)]


def _width(axes: Axes) -> int:
    return prod(atom.size or 1 for atom in _atoms(axes) if isinstance(atom, Fixed))


def _weights(
    sides: list[list[Axes]], channels: list[list[int]], sizes: dict[Label, int] | None
) -> int:
    return sum(
        basis_size([_labels(out)], [_labels(into)], sizes) * _width(out) * a * _width(into) * b
        for out, a in zip(sides[-1], channels[1], strict=True)
        for into, b in zip(sides[0], channels[0], strict=True)
    )


def _cut_down(
    sides: list[list[Axes]],
    channels: list[list[int]],
    sizes: dict[Label, int],
    bound: bool,
    max_weights: int,
    max_entries: int,
) -> None:
    def entries(axes: Axes) -> int:
        return prod(sizes[label] for label in _labels(axes)) * _width(axes)

    known = sizes if bound else None
    while (
        _weights(sides, channels, known) > max_weights
        or max(entries(axes) for leaves in sides for axes in leaves) > max_entries
    ):
        # The tensor of highest order loses its last axis.
        side, place = max(
            ((s, p) for s, leaves in enumerate(sides) for p in range(len(leaves))),
            key=lambda at: (len(_atoms(sides[at[0]][at[1]])), entries(sides[at[0]][at[1]])),
        )
        axes = sides[side][place]
        if not axes:  # only scalars are left: it is their channels that are too many
            channels[:] = [[1] * len(counts) for counts in channels]
            break
        last = axes[-1]
        rest = last[:-1] if isinstance(last, tuple) else ()
        sides[side][place] = axes[:-1] + ((rest,) if len(rest) > 1 else rest)


@st.composite
def _arrangements(draw: st.DrawFn, count: int) -> Any:
    """A container structure over `count` leaves: ("leaf", i), ("list", children), ("dict", items).

    >>> _filled(("dict", [("w", ("leaf", 0)), (3, ("list", [("leaf", 1)]))]), "ab")
    {'w': 'a', 3: ['b']}
    """
    nodes: list[Any] = [("leaf", place) for place in range(count)]
    if count == 1 and draw(st.booleans()):
        return nodes[0]
    if count > 2 and draw(st.booleans()):
        start = draw(st.integers(0, count - 2))
        nodes[start : start + 2] = [draw(_container(nodes[start : start + 2]))]
    return draw(_container(nodes))


@st.composite
def _container(draw: st.DrawFn, nodes: list[Any]) -> Any:
    if draw(st.booleans()):
        return ("list", nodes)
    keys = draw(
        st.lists(
            st.sampled_from(["w", "b", "kernel", "Dense_0", "x y", 0, 3, 10]),
            min_size=len(nodes),
            max_size=len(nodes),
            unique=True,
        )
    )
    return ("dict", list(zip(keys, nodes, strict=True)))


def _filled(tree: Any, values: Sequence[Any]) -> Any:
    kind, content = tree
    if kind == "leaf":
        return values[content]
    if kind == "list":
        return [_filled(child, values) for child in content]
    return {key: _filled(child, values) for key, child in content}


def leaves_of(spec: PermSpec, tree: Any) -> list[np.ndarray[Any, Any]]:
    """Output leaves as NumPy arrays, in canonical order."""
    return [np.asarray(leaf) for leaf in flatten_like(spec, tree)]
