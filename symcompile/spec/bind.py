"""Bind sizes: what the labels and the fixed axes of a spec measure.

In: one or two `PermSpec`s with trees of shapes, and sizes given by label.
Out: the same specs with every fixed axis sized and `sizes` filled in; and, for run time, where
the size of each label can be read off the inputs.
The one thing to know: every stored axis whose size is given is one equation, "the product of the
parts is the size". Equations are solved one unknown at a time until nothing changes, then all of
them are checked again; sizes that stay unknown are fine for labels, never for fixed axes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

from symcompile.errors import ShapeError
from symcompile.spec.parse import distinct_looking
from symcompile.spec.trees import flatten_like
from symcompile.spec.types import (
    Atom,
    Axis,
    Composite,
    Fixed,
    Label,
    Leaf,
    Perm,
    PermSpec,
    axis_atoms,
    format_axis,
    format_label,
    format_path,
    label_order,
    positive_size,
    short_repr,
)

__all__ = ["SizeSource", "bind_specs", "require_derivable", "size_sources"]

SizeSource: TypeAlias = tuple[int, int, tuple[Atom, ...]]
"""(leaf index, stored axis index, the other atoms of that axis: divide by their sizes)."""

# What an equation solves for: a label, or one fixed atom (spec, leaf, axis, part) of no size yet.
_Unknown: TypeAlias = tuple[str, Label] | tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Equation:
    """A stored axis of known size; `unknowns` lists a repeated one repeatedly."""

    where: str
    axis: Axis
    size: int
    constant: int  # product of the fixed parts of stated size
    unknowns: tuple[_Unknown, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    size: int
    source: str


def bind_specs(
    spec: PermSpec,
    out_spec: PermSpec | None,
    shapes: Any = None,
    out_shapes: Any = None,
    sizes: Mapping[Any, Any] | None = None,
    *,
    what: str = "shapes",
) -> tuple[PermSpec, PermSpec]:
    """Both specs with every fixed axis sized, and with all label sizes that are known.

    `shapes` and `out_shapes` are trees with the paths of `spec` and `out_spec`; a leaf is anything
    with `.shape`, or a tuple or list of ints, without batch and channel axes: one entry per stored
    axis; messages call the first `what`. `sizes` maps labels to sizes. With `out_spec` None the
    output is like the input, and the same object comes back twice.

    Raises `ShapeError` where two sizes disagree, a shape does not fit, or a fixed axis stays
    without a size; `SpecError` where labels of the two specs look alike.

    >>> from symcompile.spec.parse import parse_spec
    >>> spec, _ = bind_specs(parse_spec({"w": (0, (0, "k"))}), None, shapes={"w": (4, 12)})
    >>> spec.sizes
    ((0, 4), ('k', 3))
    """
    specs = (spec,) if out_spec is None else (spec, out_spec)
    distinct_looking(*specs)
    labels = {label for one in specs for label in one.labels}
    known = _given_sizes(specs, sizes, labels)

    equations = [] if shapes is None else _equations(spec, 0, shapes, what)
    if out_shapes is not None:
        side = len(specs) - 1  # without an out_spec, both trees size the fixed axes of one spec
        equations += _equations(specs[-1], side, out_shapes, "out_shapes")
    _solve(equations, known)
    for equation in equations:
        _check(equation, known)

    bound_sizes = tuple(
        (label, known["label", label].size)
        for label in sorted(labels, key=label_order)
        if ("label", label) in known
    )
    bound = [
        replace(one, leaves=_fill_fixed(one, side, known), sizes=bound_sizes)
        for side, one in enumerate(specs)
    ]
    return bound[0], bound[-1]


def require_derivable(spec: PermSpec, out_spec: PermSpec) -> None:
    """Raise `ShapeError` unless every label's size is bound or can be read off the inputs.

    A label can be read off where it is a plain axis of an input leaf, or the only unknown part of
    a composite one.
    """
    readable = {label for label, _ in size_sources(spec)}
    for leaf in out_spec.leaves:
        for label in leaf.labels:
            if label not in readable and out_spec.size(label) is None:
                raise ShapeError(
                    f"out_spec{_at(leaf)}: the size of the label {format_label(label)} is not "
                    "bound and cannot be read off any input axis; bind it with out_shapes=, "
                    f"shapes= or sizes={{{format_label(label)}: ...}}"
                )


def size_sources(spec: PermSpec) -> tuple[tuple[Label, int | SizeSource], ...]:
    """Where each label of an input spec gets its size at run time, in order of use.

    For each label either its bound size, or (leaf index, stored axis index, other atoms): the
    size is that axis of that leaf divided by the sizes of the other atoms, each of which is fixed
    or comes earlier in the result.

    Raises `ShapeError` for a label whose size cannot be had this way.

    >>> from symcompile.spec.parse import parse_spec
    >>> size_sources(parse_spec([(("h", "d"),), ("h",)]))
    (('h', (1, 0, ())), ('d', (0, 0, (Perm(label='h'),))))
    """
    labels = set(spec.labels)
    found: dict[Label, int | SizeSource] = {
        label: size for label, size in spec.sizes if label in labels
    }
    axes = [
        (index, position, axis)
        for index, leaf in enumerate(spec.leaves)
        for position, axis in enumerate(leaf.axes)
    ]
    for index, position, axis in axes:
        if isinstance(axis, Perm) and axis.label not in found:
            found[axis.label] = (index, position, ())
    waiting = [entry for entry in axes if isinstance(entry[2], Composite)]
    while True:
        left = [entry for entry in waiting if not _read_off(entry, found)]
        if len(left) == len(waiting):
            break
        waiting = left
    _all_readable(spec, found)
    return tuple(found.items())


def _read_off(entry: tuple[int, int, Axis], found: dict[Label, int | SizeSource]) -> bool:
    """Settle a composite axis: True once it has nothing more to give."""
    index, position, axis = entry
    atoms = axis_atoms(axis)
    open_parts = [
        i
        for i, atom in enumerate(atoms)
        if (atom.label not in found if isinstance(atom, Perm) else atom.size is None)
    ]
    if len(open_parts) == 1:
        atom = atoms[open_parts[0]]
        if isinstance(atom, Perm):
            others = atoms[: open_parts[0]] + atoms[open_parts[0] + 1 :]
            found[atom.label] = (index, position, others)
            return True
    return not open_parts


def _all_readable(spec: PermSpec, found: Mapping[Label, object]) -> None:
    for leaf in spec.leaves:
        for position, axis in enumerate(leaf.axes):
            for atom in axis_atoms(axis):
                if isinstance(atom, Perm) and atom.label not in found:
                    raise ShapeError(
                        f"{format_path(leaf.path)}, axis {position} {format_axis(axis)}: the size "
                        f"of {format_label(atom.label)} cannot be read off the inputs, since more "
                        "than one part of every such axis is unknown; bind it with shapes= or "
                        f"sizes={{{format_label(atom.label)}: ...}}"
                    )


def _given_sizes(
    specs: Sequence[PermSpec], sizes: Mapping[Any, Any] | None, labels: set[Label]
) -> dict[_Unknown, _Known]:
    known: dict[_Unknown, _Known] = {}
    bound = [
        (label, size, f"the bound {name}")
        for one, name in zip(specs, ("spec", "out_spec"), strict=False)
        for label, size in one.sizes
    ]
    if sizes is not None and not isinstance(sizes, Mapping):
        raise ShapeError(
            f"sizes: found {short_repr(sizes)}; give a mapping of labels to sizes, as {{0: 64}}"
        )
    given = [(label, size, "sizes=") for label, size in (sizes or {}).items()]
    for label, size, source in bound + given:
        # `True in {1}` holds in Python, and a label True is nobody's intention.
        if isinstance(label, bool) or label not in labels:
            if source == "sizes=":
                _unknown_label(label, labels)
            continue
        checked = positive_size(size, f"sizes: the label {format_label(label)}")
        first = known.setdefault(("label", label), _Known(checked, source))
        if first.size != checked:
            raise ShapeError(
                f"the label {format_label(label)} has size {first.size} by {first.source} but "
                f"{checked} by {source}; give one size"
            )
    return known


def _unknown_label(label: object, labels: set[Label]) -> None:
    shown = format_label(label) if isinstance(label, int | str) else short_repr(label)
    listed = [format_label(known) for known in sorted(labels, key=label_order)]
    more = f", ... ({len(listed)} in all)" if len(listed) > 8 else ""
    raise ShapeError(
        f"sizes: the spec has no label {shown}; its labels are "
        f"{', '.join(listed[:8]) or 'none'}{more}"
    )


def _equations(spec: PermSpec, side: int, shapes: Any, what: str) -> list[_Equation]:
    """One equation for each stored axis of each leaf."""
    equations = []
    for index, given in enumerate(flatten_like(spec, shapes, what)):
        leaf = spec.leaves[index]
        place = f"{what}{_at(leaf)}"
        shape = _shape_of(given, place)
        if len(shape) != len(leaf.axes):
            raise ShapeError(
                f"{place}: found {len(shape)} axes, expected {len(leaf.axes)} for the leaf "
                f"{_leaf_text(leaf)}; give the stored axes only, without batch and channel axes"
            )
        for position, (axis, size) in enumerate(zip(leaf.axes, shape, strict=True)):
            where = f"{place}, axis {position}"
            stated = 1
            unknowns: list[_Unknown] = []
            for part, atom in enumerate(axis_atoms(axis)):
                if isinstance(atom, Perm):
                    unknowns.append(("label", atom.label))
                elif atom.size is None:
                    unknowns.append((side, index, position, part))
                else:
                    stated *= atom.size
            equations.append(
                _Equation(where, axis, positive_size(size, where), stated, tuple(unknowns))
            )
    return equations


def _shape_of(given: Any, place: str) -> tuple[Any, ...]:
    shape = getattr(given, "shape", given)
    if not isinstance(shape, tuple | list):
        raise ShapeError(
            f"{place}: found {short_repr(given)}; give an array, or its shape as a tuple of ints"
        )
    return tuple(shape)


def _solve(equations: Sequence[_Equation], known: dict[_Unknown, _Known]) -> None:
    """Solve equations with one unknown until none is left; each new size wakes those it is in."""
    uses: dict[_Unknown, list[int]] = {}
    for number, equation in enumerate(equations):
        for unknown in set(equation.unknowns):
            uses.setdefault(unknown, []).append(number)
    queue = deque(range(len(equations)))
    while queue:
        equation = equations[queue.popleft()]
        open_ones = {unknown for unknown in equation.unknowns if unknown not in known}
        if len(open_ones) != 1:
            continue
        unknown = open_ones.pop()
        known[unknown] = _Known(_solve_one(equation, unknown, known), equation.where)
        queue.extend(uses[unknown])


def _solve_one(equation: _Equation, unknown: _Unknown, known: Mapping[_Unknown, _Known]) -> int:
    rest = equation.constant * prod(known[u].size for u in equation.unknowns if u in known)
    quotient, remainder = divmod(equation.size, rest)
    power = equation.unknowns.count(unknown)
    root = quotient if power == 1 else _whole_root(quotient, power)
    if remainder or root is None:
        raise ShapeError(_does_not_fit(equation, known))
    return root


def _whole_root(number: int, power: int) -> int | None:
    """The int whose `power`-th power is `number` (below 2**63), if there is one."""
    guess = round(number ** (1 / power))
    return next((r for r in range(max(guess - 1, 1), guess + 2) if r**power == number), None)


def _check(equation: _Equation, known: Mapping[_Unknown, _Known]) -> None:
    product = equation.constant * prod(known[u].size for u in equation.unknowns if u in known)
    complete = all(unknown in known for unknown in equation.unknowns)
    if equation.size % product or (complete and equation.size != product):
        raise ShapeError(_does_not_fit(equation, known))


def _does_not_fit(equation: _Equation, known: Mapping[_Unknown, _Known]) -> str:
    found = f"{equation.where} has size {equation.size}"
    if isinstance(equation.axis, Fixed):
        first = [known[unknown] for unknown in equation.unknowns]  # empty for a stated size
        told = f"{first[0].source} has {first[0].size}" if first else "the spec says "
        told += "" if first else format_axis(equation.axis)
        return f"{found}, but {told}; mend either one"
    sources = {u: known[u] for u in equation.unknowns if u in known and u[0] == "label"}
    told = "; ".join(
        f"the label {format_label(u[1])} has size {entry.size} by {entry.source}"
        for u, entry in sources.items()
    )
    if isinstance(equation.axis, Perm):
        return f"{found}, but {told}; one label has one size, so mend either one"
    parts = f"which is not the product of its parts {format_axis(equation.axis)}"
    return f"{found}, {parts}{': ' if told else ''}{told}; mend the shape, the parts or the sizes"


def _fill_fixed(spec: PermSpec, side: int, known: Mapping[_Unknown, _Known]) -> tuple[Leaf, ...]:
    leaves = []
    for index, leaf in enumerate(spec.leaves):
        axes: list[Axis] = []
        for position, axis in enumerate(leaf.axes):
            atoms: list[Atom] = []
            for part, atom in enumerate(axis_atoms(axis)):
                if isinstance(atom, Fixed) and atom.size is None:
                    entry = known.get((side, index, position, part))
                    if entry is None:
                        raise ShapeError(_unsized(leaf, position, axis, side))
                    atom = Fixed(entry.size)
                atoms.append(atom)
            axes.append(Composite(tuple(atoms)) if isinstance(axis, Composite) else atoms[0])
        leaves.append(Leaf(leaf.path, tuple(axes)))
    return tuple(leaves)


def _unsized(leaf: Leaf, position: int, axis: Axis, side: int) -> str:
    option = "out_shapes=" if side else "shapes="
    return (
        f"{'out_spec' if side else 'spec'}{_at(leaf)}, axis {position} {format_axis(axis)}: the "
        f"fixed axis written None has no size; give {option} (it settles one unknown part of an "
        "axis), or write Fixed(n) instead of None"
    )


def _at(leaf: Leaf) -> str:
    return format_path(leaf.path) if leaf.path else ", at the root"


def _leaf_text(leaf: Leaf) -> str:
    shown = [format_axis(axis) for axis in leaf.axes]
    return f"({', '.join(shown)}{',' if len(shown) == 1 else ''})"
