"""Walk a user's tree of tensors along a spec, and build such a tree back.

In: a `PermSpec` and a tree with the same paths, in any container types.
Out: its leaves in canonical order, or, from leaves, a tree of dicts and lists like the spec.
The one thing to know: the spec says where the leaves are, so a leaf may be anything, tuples and
dicts included; missing and extra entries are both errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from symcompile.errors import ShapeError
from symcompile.spec.types import (
    DictNode,
    LeafNode,
    ListNode,
    Node,
    Path,
    PermSpec,
    format_label,
    format_path,
    short_repr,
)

__all__ = ["flatten_like", "lookup", "unflatten"]


def lookup(tree: Any, path: Path, what: str = "the tree") -> Any:
    """What sits at `path` in a tree of containers, which messages call `what`.

    Raises `ShapeError` naming the first key that is missing.

    >>> lookup({"a": [10, 20]}, ("a", 1))
    20
    """
    for depth, key in enumerate(path):
        entries = _entries(tree, what, path[:depth], (key,))
        if key not in entries:
            raise ShapeError(_mismatch(what, path[:depth], [key], [], (key,), entries))
        tree = tree[key]
    return tree


def flatten_like(spec: PermSpec, tree: Any, what: str = "x") -> list[Any]:
    """The leaves of `tree`, one for each leaf of `spec`, in canonical order.

    Containers may be anything indexed with `[]` that has the same keys: a dict, a FrozenDict, a
    tuple for a list, a dict with the keys 0, 1, ... for a list, a list for such a dict. `what`
    names the tree in messages.

    Raises `ShapeError` for a missing entry, an extra entry, or a leaf where a container should be.

    >>> from symcompile.spec.parse import parse_spec
    >>> flatten_like(parse_spec({"w": (0, 1), "b": [(1,), ()]}), {"w": 1, "b": (2, 3)})
    [2, 3, 1]
    """
    leaves: list[Any] = [None] * len(spec.leaves)
    _collect(spec.structure, tree, what, (), leaves)
    return leaves


def unflatten(spec: PermSpec, leaves: Sequence[Any]) -> Any:
    """A tree of dicts and lists like `spec`, keys in the user's order, holding `leaves`.

    `leaves` are in canonical order. Raises `ShapeError` if their number is not that of the spec.

    >>> from symcompile.spec.parse import parse_spec
    >>> unflatten(parse_spec({"w": (0, 1), "b": [(1,), ()]}), [2, 3, 1])
    {'w': 1, 'b': [2, 3]}
    """
    if len(leaves) != len(spec.leaves):
        raise ShapeError(
            f"the spec has {len(spec.leaves)} leaves, found {len(leaves)}; give one for each, in "
            "the order of spec.leaves"
        )
    return _build(spec.structure, leaves)


def _build(node: Node, leaves: Sequence[Any]) -> Any:
    if isinstance(node, LeafNode):
        return leaves[node.index]
    if isinstance(node, ListNode):
        return [_build(child, leaves) for child in node.items]
    return {key: _build(child, leaves) for key, child in node.items}


def _collect(node: Node, tree: Any, what: str, path: Path, leaves: list[Any]) -> None:
    if isinstance(node, LeafNode):
        leaves[node.index] = tree
        return
    children = node.items if isinstance(node, DictNode) else tuple(enumerate(node.items))
    wanted = tuple(key for key, _ in children)
    entries = _entries(tree, what, path, wanted)
    missing = [key for key in wanted if key not in entries]
    if missing or len(entries) != len(wanted):
        known = set(wanted)
        extra = [key for key in entries if key not in known]
        raise ShapeError(_mismatch(what, path, missing, extra, wanted, entries))
    for key, child in children:
        _collect(child, tree[key], what, (*path, key), leaves)


def _entries(tree: Any, what: str, path: Path, wanted: Sequence[int | str]) -> Any:
    """The keys of a container, as a collection with quick membership."""
    if isinstance(tree, Mapping):
        return tree.keys()
    if isinstance(tree, list | tuple):
        return range(len(tree))
    # Containers such as torch.nn.ParameterDict and ModuleList; arrays have [] too, but are leaves.
    if not isinstance(tree, str | bytes) and not hasattr(tree, "shape"):
        if hasattr(tree, "keys") and hasattr(tree, "__getitem__"):
            return dict.fromkeys(tree.keys())
        if hasattr(tree, "__len__") and hasattr(tree, "__getitem__"):
            return range(len(tree))
    raise ShapeError(
        f"{_place(what, path)}: found {short_repr(tree)} where the spec has a container with the "
        f"entries {_listed(wanted)}; give a tree with the same paths as the spec"
    )


def _mismatch(
    what: str,
    path: Path,
    missing: Sequence[Any],
    extra: Sequence[Any],
    wanted: Sequence[Any],
    entries: Any,
) -> str:
    found = " and ".join(
        f"{kind} {_listed(keys)}" for kind, keys in (("missing", missing), ("extra", extra)) if keys
    )
    return (
        f"{_place(what, path)}: {found}; expected the entries {_listed(wanted)}, found "
        f"{_listed(list(entries))}: give a tree with the same paths as the spec"
    )


def _place(what: str, path: Path) -> str:
    return f"{what}{format_path(path)}" if path else f"{what}, at the root"


def _listed(keys: Sequence[Any]) -> str:
    shown = [
        format_label(key) if isinstance(key, int | str) else short_repr(key) for key in keys[:8]
    ]
    if len(keys) > 8:
        shown.append(f"... ({len(keys)} in all)")
    return ", ".join(shown) or "none"
