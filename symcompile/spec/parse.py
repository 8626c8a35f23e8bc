"""perm_spec → `PermSpec`: read the user's tree of dicts, lists and tuples, and validate it.

In: a mapping or list nested to any depth up to 200, whose leaves are tuples of labels.
Out: a `PermSpec` without sizes.
The one thing to know: a tuple is always a leaf, a list is always a container, and nothing is
guessed; whatever could be read in two ways is refused with the mend in the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from symcompile.errors import SpecError
from symcompile.spec.types import (
    INT_LIMIT,
    Atom,
    Axis,
    Composite,
    DictNode,
    Fixed,
    Label,
    Leaf,
    LeafNode,
    ListNode,
    Node,
    Path,
    Perm,
    PermSpec,
    format_label,
    format_path,
    label_order,
    plain_int,
    short_repr,
)

__all__ = ["MAX_ATOMS", "MAX_DEPTH", "MAX_LEAVES", "SpecLike", "parse_spec"]

MAX_DEPTH = 200
MAX_LEAVES = 1_000_000
MAX_ATOMS = 64  # per leaf; no array library holds more axes

SpecLike = object
"""A mapping, list, tuple or `PermSpec`; what exactly is fine is checked by `parse_spec`."""


def parse_spec(tree: object) -> PermSpec:
    """The `PermSpec` of a tree of mappings and lists whose leaves are tuples of labels.

    An axis is a label (int or string), `None` or `Fixed(n)` for an axis that no permutation moves,
    or a nested tuple for a composite axis, outer part first. A tuple at the root is a spec of one
    leaf. A `PermSpec` is returned as it is.

    Raises `SpecError` when the tree is malformed; the message names the path and the mend.

    >>> spec = parse_spec({"kernel": (0, 1), "bias": (1,)})
    >>> [leaf.path for leaf in spec.leaves], spec.labels
    ([('bias',), ('kernel',)], (0, 1))
    """
    if isinstance(tree, PermSpec):
        return tree
    state = _Parse()
    try:
        structure = _node(tree, (), state)
    except RecursionError:
        raise SpecError(
            "the spec is nested deeper than the Python stack allows here; flatten its containers"
        ) from None
    if not state.leaves:
        raise SpecError(
            "the spec has no leaves, so there is nothing to compile; give at least one tuple of "
            'labels, for example {"weight": (0, 1)}'
        )
    return PermSpec(leaves=tuple(state.leaves), structure=structure)


@dataclass(slots=True)
class _Parse:
    """What one run of the parser has met so far."""

    leaves: list[Leaf] = field(default_factory=list)
    containers: int = 0
    open_ids: set[int] = field(default_factory=set)  # containers we are inside of
    labels: dict[str, tuple[Label, Path]] = field(default_factory=dict)  # by how they look


def _node(tree: object, path: Path, state: _Parse) -> Node:
    if isinstance(tree, tuple):
        return _leaf(tree, path, state)
    if not isinstance(tree, Mapping | list):
        raise SpecError(_not_a_leaf(tree, path))
    if len(path) >= MAX_DEPTH:
        raise SpecError(
            f"the spec is nested more than {MAX_DEPTH} levels deep, at "
            f"{format_path(path[:3])}...; flatten its containers"
        )
    if id(tree) in state.open_ids:
        raise SpecError(
            f"{format_path(path)}: this {type(tree).__name__} contains itself; a spec is a tree, "
            "so give each place its own container"
        )
    state.containers += 1
    if state.containers > MAX_LEAVES:
        raise SpecError(f"the spec has more than {MAX_LEAVES:,} containers; give a smaller tree")
    state.open_ids.add(id(tree))
    node: Node
    if isinstance(tree, list):
        node = ListNode(tuple(_list_child(tree, i, path, state) for i in range(len(tree))))
    else:
        node = _mapping(tree, path, state)
    state.open_ids.discard(id(tree))
    return node


def _mapping(tree: Mapping[object, object], path: Path, state: _Parse) -> DictNode:
    children: dict[int | str, object] = {}
    alike: dict[str, int | str] = {}
    for raw, child in tree.items():
        key = _key(raw, path)
        if str(key) in alike:
            raise SpecError(
                f"{format_path(path)}: the keys {format_label(alike[str(key)])} and "
                f"{format_label(key)} look alike; rename one of them"
            )
        alike[str(key)] = key
        children[key] = child
    # Leaves are numbered as they are met, so walk in canonical order, then restore the user's.
    ordered = sorted(children, key=label_order)
    built = {key: _node(children[key], (*path, key), state) for key in ordered}
    return DictNode(tuple((key, built[key]) for key in children))


def _list_child(tree: list[object], index: int, path: Path, state: _Parse) -> Node:
    child = tree[index]
    if child is None or isinstance(child, str | Fixed | Perm) or plain_int(child) is not None:
        shown = ", ".join(_short_axis(entry) for entry in tree[:4])
        more = ", ..." if len(tree) > 4 else ("," if len(tree) == 1 else "")
        raise SpecError(
            f"{format_path(path)}: found a list that holds {short_repr(child)}; a list is a "
            f"container of leaves, and a leaf is a tuple: write ({shown}{more}) for one tensor"
        )
    return _node(child, (*path, index), state)


def _short_axis(entry: object) -> str:
    if isinstance(entry, str):
        return format_label(entry)
    if isinstance(entry, list | tuple):
        return "(...)"
    return repr(entry) if entry is None or plain_int(entry) is not None else type(entry).__name__


def _key(raw: object, path: Path) -> int | str:
    where = f"{format_path(path)}: the key"
    number = plain_int(raw)
    if number is not None:
        return _checked_int(number, where)
    if isinstance(raw, str):
        return _checked_text(raw, where)
    raise SpecError(
        f"{where} {short_repr(raw)} is neither a string nor an int; use a string such as 'weight'"
    )


def _leaf(axes: tuple[object, ...], path: Path, state: _Parse) -> LeafNode:
    if hasattr(axes, "_fields"):
        raise SpecError(
            f"{format_path(path)}: found the named tuple {type(axes).__name__}; a tuple is always "
            "a leaf, so give a dict where a container is meant (value._asdict())"
        )
    if len(state.leaves) >= MAX_LEAVES:
        raise SpecError(f"the spec has more than {MAX_LEAVES:,} leaves; give a smaller tree")
    budget = [MAX_ATOMS]
    leaf = Leaf(path, tuple(_axis(axis, i, path, budget) for i, axis in enumerate(axes)))
    for label in leaf.labels:
        known, first = state.labels.setdefault(str(label), (label, path))
        if known != label:
            raise SpecError(
                f"{format_path(path)}: the label {format_label(label)} looks like the label "
                f"{format_label(known)} of {format_path(first)}, yet they are different "
                "permutations; write both the same way, or rename one"
            )
    state.leaves.append(leaf)
    return LeafNode(len(state.leaves) - 1)


def _axis(axis: object, index: int, path: Path, budget: list[int]) -> Axis:
    where = f"{format_path(path)}, axis {index}"
    if not isinstance(axis, tuple | Composite):
        return _atom(axis, where, path, budget)
    parts = tuple(_parts(axis, where, path, budget, depth=0))
    return parts[0] if len(parts) == 1 else Composite(parts)


def _parts(
    axis: tuple[object, ...] | Composite, where: str, path: Path, budget: list[int], depth: int
) -> list[Atom]:
    """The atoms of a composite axis; composites inside it are flattened, outer first."""
    if isinstance(axis, Composite):
        axis = axis.parts
    if not axis:
        raise SpecError(
            f"{where}: found an empty tuple (); a composite axis needs at least one part: write "
            "its labels, or Fixed(1) for an axis of size one"
        )
    if hasattr(axis, "_fields"):
        raise SpecError(
            f"{where}: found the named tuple {type(axis).__name__}; write a composite axis as a "
            "plain tuple, and containers as dicts"
        )
    if depth >= MAX_ATOMS:
        raise SpecError(
            f"{where}: tuples are nested more than {MAX_ATOMS} deep; write the composite axis as "
            "one flat tuple, outer part first"
        )
    parts: list[Atom] = []
    for part in axis:
        if isinstance(part, tuple | Composite):
            parts += _parts(part, where, path, budget, depth + 1)
        else:
            parts.append(_atom(part, where, path, budget))
    return parts


def _atom(axis: object, where: str, path: Path, budget: list[int]) -> Atom:
    budget[0] -= 1
    if budget[0] < 0:
        raise SpecError(
            f"{format_path(path)}: the leaf has more than {MAX_ATOMS} axes (parts of composite "
            "axes included); no array holds that many"
        )
    if axis is None:
        return Fixed()
    if isinstance(axis, Fixed):
        return Fixed(plain_int(axis.size))
    if isinstance(axis, Perm):
        axis = axis.label
    number = plain_int(axis)
    if number is not None:
        return Perm(_checked_int(number, f"{where}: the label"))
    if isinstance(axis, str):
        return Perm(_checked_text(axis, f"{where}: the label"))
    raise SpecError(f"{where}: {_not_an_axis(axis)}")


def _checked_int(number: int, where: str) -> int:
    if not -INT_LIMIT < number < INT_LIMIT:
        raise SpecError(f"{where} is {short_repr(number)}, too large; use an int below 2**63")
    return number


def _checked_text(text: str, where: str) -> str:
    text = str.__str__(text)  # a plain str even for subclasses such as numpy.str_
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise SpecError(
            f"{where} {format_label(text)} holds a lone surrogate, which no file can store; "
            "use valid Unicode text"
        ) from None
    return text


def _not_an_axis(axis: object) -> str:
    found = f"found {short_repr(axis)}"
    if isinstance(axis, bool):
        return (
            f"{found}, which Python cannot tell from the label {int(axis)}; "
            f"write {int(axis)} or a string for a label, None for a fixed axis"
        )
    if isinstance(axis, list):
        return f"{found}; write a composite axis as a tuple, outer part first, for example (0, 1)"
    if isinstance(axis, Mapping):
        return (
            f"{found}; a tuple is a leaf and holds labels only: use a list where a container of "
            "mappings is meant"
        )
    return (
        f"{found}; an axis is a label (an int or a string), None or Fixed(n) for a fixed axis, or "
        "a tuple of these for a composite axis"
    )


def _not_a_leaf(tree: object, path: Path) -> str:
    found = f"{format_path(path)}: found {short_repr(tree)}"
    if isinstance(tree, str):
        split = ", ".join(repr(c) for c in tree[:4]) + (", ..." if len(tree) > 4 else "")
        split += "," if len(tree) == 1 else ""
        return f"{found}; a leaf is a tuple of labels, one per axis: write ({split})"
    if isinstance(tree, PermSpec):
        return f"{found}; a PermSpec inside a spec must be plain: give its to_python()"
    if hasattr(tree, "shape"):
        return (
            f"{found}, which looks like an array; a leaf of a spec is a tuple of labels, one per "
            "axis, for example (0, 1); arrays go to shapes="
        )
    if tree is None or isinstance(tree, Fixed | Perm) or plain_int(tree) is not None:
        return (
            f"{found}; a leaf is a tuple of labels, one per axis: write (0,) for a tensor of one "
            "axis, () for a scalar"
        )
    return (
        f"{found}; a spec is made of mappings and lists (containers) and tuples of labels (leaves)"
    )


def distinct_looking(*specs: PermSpec) -> None:
    """Raise `SpecError` if labels of different specs look alike (0 and "0")."""
    seen: dict[str, tuple[Label, Path]] = {}
    for spec in specs:
        for leaf in spec.leaves:
            for label in leaf.labels:
                known, first = seen.setdefault(str(label), (label, leaf.path))
                if known != label:
                    raise SpecError(
                        f"the label {format_label(label)} of {format_path(leaf.path)} looks "
                        f"like the label {format_label(known)} of {format_path(first)} in the "
                        "other spec; write both the same way, or rename one"
                    )
