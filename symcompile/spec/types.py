"""The data of a perm_spec: axes, leaves, the container structure, and `PermSpec` itself.

In: nothing; this file only defines frozen, hashable data and how it prints.
Out: `Perm`, `Fixed`, `Composite`, `Leaf`, `DictNode`, `ListNode`, `LeafNode`, `PermSpec`.
The one thing to know: `PermSpec.leaves` are in canonical order (keys sorted at each level, ints
before strings), whatever order the user's dicts had; only `PermSpec.structure` remembers that
order, so that results come back looking like the spec.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from symcompile.errors import ShapeError, SpecError

__all__ = [
    "Atom",
    "Axis",
    "Composite",
    "DictNode",
    "Fixed",
    "Label",
    "Leaf",
    "LeafNode",
    "ListNode",
    "Node",
    "Path",
    "Perm",
    "PermSpec",
    "axis_atoms",
    "format_axis",
    "format_label",
    "format_path",
    "format_place",
    "label_order",
]

Label: TypeAlias = int | str
Path: TypeAlias = tuple[int | str, ...]

INT_LIMIT = 2**63
"""Labels, keys and sizes stay below this: every file format and framework holds them exactly."""

_SHOWN = 60  # characters of a key or label shown in a message


def label_order(label: Label) -> tuple[int, int, str]:
    """Sort key of the canonical order of labels and of keys: ints numerically, then strings.

    >>> sorted(["b", 10, "a", 9, -1], key=label_order)
    [-1, 9, 10, 'a', 'b']
    """
    return (1, 0, label) if isinstance(label, str) else (0, label, "")


def format_label(label: Label) -> str:
    """`repr` of a label or key, truncated when huge; never holds a newline.

    >>> format_label("a\\nb"), format_label(3)
    ("'a\\\\nb'", '3')
    """
    if isinstance(label, str) and len(label) > _SHOWN:
        return f"{label[:_SHOWN]!r}...({len(label)} characters)"
    return repr(label)


def format_path(path: Path) -> str:
    """Where a leaf sits in the tree, as one would index it; huge keys are truncated.

    >>> format_path(("params", "Dense_0", 1))
    "['params']['Dense_0'][1]"
    >>> format_path(())
    'the root'
    """
    if not path:
        return "the root"
    return "".join(f"[{format_label(key)}]" for key in path)


def format_place(path: Path, what: str = "x") -> str:
    """A leaf of the tree called `what`, as one would index it.

    >>> format_place(("w", 1)), format_place(())
    ("x['w'][1]", 'x')
    """
    return what + (format_path(path) if path else "")


@dataclass(frozen=True, slots=True)
class Perm:
    """An axis moved by the symmetric group of `label`, an int or a string."""

    label: Label

    def __post_init__(self) -> None:
        if isinstance(self.label, bool) or not isinstance(self.label, int | str):
            raise SpecError(
                f"a label is an int or a string, found {short_repr(self.label)}; name the "
                "permutation with an int such as 0, or a string"
            )


@dataclass(frozen=True, slots=True)
class Fixed:
    """An axis no permutation moves: `size` entries, or as many as `shapes=` says if None.

    Raises `SpecError` unless `size` is a positive int or None.

    >>> Fixed(9)
    Fixed(size=9)
    """

    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is None:
            return
        number = plain_int(self.size)
        if number is None or not 0 < number < INT_LIMIT:
            raise SpecError(
                f"Fixed takes a positive int, found {short_repr(self.size)}; write for example "
                "Fixed(9), or None for a size taken from shapes="
            )


Atom: TypeAlias = Perm | Fixed


@dataclass(frozen=True, slots=True)
class Composite:
    """One stored axis that is the product of `parts`, outer first (heads x head width)."""

    parts: tuple[Atom, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SpecError(
                "a composite axis needs at least one part, found none; "
                "write for example (0, 1), or Fixed(1) for an axis of size one"
            )


Axis: TypeAlias = Perm | Fixed | Composite


def axis_atoms(axis: Axis) -> tuple[Atom, ...]:
    """The parts of a stored axis, outer first: one for a plain axis, several for a composite."""
    return axis.parts if isinstance(axis, Composite) else (axis,)


def format_axis(axis: Axis) -> str:
    """An axis as it is written in a spec, huge labels truncated.

    >>> format_axis(Composite((Perm("head"), Fixed(4), Fixed())))
    "('head', Fixed(4), None)"
    """
    if isinstance(axis, Perm):
        return format_label(axis.label)
    if isinstance(axis, Fixed):
        return "None" if axis.size is None else f"Fixed({axis.size})"
    return _format_tuple(axis.parts)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor: where it sits, and what acts on each stored axis (batch and channel aside)."""

    path: Path
    axes: tuple[Axis, ...]

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """All axes after every composite is split into its parts, in storage order."""
        return tuple(atom for axis in self.axes for atom in axis_atoms(axis))

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels of the permuted atoms, in storage order, repeats kept."""
        return tuple(atom.label for atom in self.atoms if isinstance(atom, Perm))

    @property
    def fixed(self) -> tuple[Fixed, ...]:
        """The atoms no permutation moves, in storage order."""
        return tuple(atom for atom in self.atoms if isinstance(atom, Fixed))

    def __str__(self) -> str:
        return f"{format_path(self.path)}  {_format_tuple(self.axes)}"


@dataclass(frozen=True, slots=True)
class LeafNode:
    """A place in the tree that holds leaf number `index` of `PermSpec.leaves`."""

    index: int


@dataclass(frozen=True, slots=True)
class DictNode:
    """A mapping; `items` keep the order the user wrote them in."""

    items: tuple[tuple[int | str, Node], ...]


@dataclass(frozen=True, slots=True)
class ListNode:
    """A list; child i has the key i in paths."""

    items: tuple[Node, ...]


Node: TypeAlias = DictNode | ListNode | LeafNode


@dataclass(frozen=True, slots=True)
class PermSpec:
    """A parsed perm_spec: which permutation acts on which axis of which tensor.

    Made by `parse_spec`; `sizes` are filled in by `bind_specs`. Two specs whose dicts differ in
    insertion order only have the same `leaves` and the same `digest`, yet are not `==`, since
    results are handed back in the order the user wrote.
    """

    leaves: tuple[Leaf, ...]
    structure: Node
    sizes: tuple[tuple[Label, int], ...] = ()

    @property
    def labels(self) -> tuple[Label, ...]:
        """Every distinct label, in canonical order."""
        return tuple(sorted({x for leaf in self.leaves for x in leaf.labels}, key=label_order))

    def size(self, label: Label) -> int | None:
        """How many things `label` permutes, or None if that was not bound."""
        for known, size in self.sizes:
            if known == label:
                return size
        return None

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the spec and its sizes; blind to the insertion order of dicts."""
        text = json.dumps(
            [_canonical(self.structure, self.leaves), [list(pair) for pair in self.sizes]],
            ensure_ascii=True,
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def to_python(self) -> Any:
        """The plain spec: dicts, lists and tuples; `Fixed(None)` becomes None; no sizes."""
        return _plain(self.structure, self.leaves)

    def __str__(self) -> str:
        paths = [format_path(leaf.path) for leaf in self.leaves]
        width = min(max(map(len, paths), default=0), 72)
        lines = [f"PermSpec with {len(self.leaves)} leaves"]
        if len(self.leaves) == 1:
            lines = ["PermSpec with 1 leaf"]
        if self.sizes:
            bound = ", ".join(f"{format_label(label)}: {size}" for label, size in self.sizes)
            lines[0] += f", sizes {{{bound}}}"
        lines += [
            f"  {path:<{width}}  {_format_tuple(leaf.axes)}"
            for path, leaf in zip(paths, self.leaves, strict=True)
        ]
        return "\n".join(lines)

    # Immutable all the way down, so a copy of a layer may share its spec.
    def __copy__(self) -> PermSpec:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PermSpec:
        return self


def plain_int(value: object) -> int | None:
    """An exact int for anything that is an integer (numpy's too), None for bools and the rest."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return None
    return operator.index(value)


def positive_size(value: object, where: str) -> int:
    """`value` as a plain positive int; `where` opens the `ShapeError` raised otherwise."""
    size = plain_int(value)
    if size is None:
        raise ShapeError(f"{where}: a size is a positive int, found {short_repr(value)}")
    if not 0 < size < INT_LIMIT:
        raise ShapeError(f"{where}: a size is a positive int below 2**63, found {_short_int(size)}")
    return size


def short_repr(value: object) -> str:
    """The type and a bounded, one-line `repr` of something a user handed in."""
    kind = type(value).__name__
    number = plain_int(value)
    if value is None or isinstance(value, bool):
        return repr(value)
    if number is not None:
        return f"the {kind} {number}" if _is_short(number) else _short_int(number)
    if isinstance(value, str):
        return f"the string {format_label(value)}"
    if isinstance(value, float | complex):
        return f"the {kind} {value!r}"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"a {kind} of {len(value)} entries"
    return f"an object of type {kind}"


def _short_int(number: int) -> str:
    return str(number) if _is_short(number) else f"an int of {number.bit_length()} bits"


def _is_short(number: int) -> bool:
    return abs(number) < 10**20  # Python refuses to print ints of thousands of digits


def _format_tuple(axes: Iterable[Axis]) -> str:
    shown = [format_axis(axis) for axis in axes]
    return f"({shown[0]},)" if len(shown) == 1 else f"({', '.join(shown)})"


def _canonical(node: Node, leaves: tuple[Leaf, ...]) -> list[Any]:
    """A JSON value that tells 0 from "0", dict from list, and permuted from fixed."""
    if isinstance(node, LeafNode):
        return ["leaf", [_canonical_axis(axis) for axis in leaves[node.index].axes]]
    if isinstance(node, ListNode):
        return ["list", [_canonical(child, leaves) for child in node.items]]
    ordered = sorted(node.items, key=lambda item: label_order(item[0]))
    return ["dict", [[key, _canonical(child, leaves)] for key, child in ordered]]


def _canonical_axis(axis: Axis) -> list[Any]:
    if isinstance(axis, Perm):
        return ["perm", axis.label]
    if isinstance(axis, Fixed):
        return ["fixed", axis.size]
    return ["composite", [_canonical_axis(part) for part in axis.parts]]


def _plain(node: Node, leaves: tuple[Leaf, ...]) -> Any:
    if isinstance(node, LeafNode):
        return tuple(_plain_axis(axis) for axis in leaves[node.index].axes)
    if isinstance(node, ListNode):
        return [_plain(child, leaves) for child in node.items]
    return {key: _plain(child, leaves) for key, child in node.items}


def _plain_axis(axis: Axis) -> Any:
    if isinstance(axis, Perm):
        return axis.label
    if isinstance(axis, Fixed):
        return None if axis.size is None else axis
    return tuple(_plain_axis(part) for part in axis.parts)
