"""A network as a function of its parameters, which can be permuted.

In: the function, the parameters of one network, their spec, and inputs. Out: its outputs in NumPy,
for parameters that were permuted or changed otherwise. The one thing to know: parameters stay in
their own framework; all that is asked of them is `shape`, `reshape` and indexing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import optree

from symcompile.check.draw import Array, atom_sizes, labels_of, wide
from symcompile.codegen import get_backend
from symcompile.errors import CheckError, ShapeError, SpecError
from symcompile.spec import (
    DictNode,
    Label,
    Leaf,
    LeafNode,
    Node,
    Path,
    Perm,
    PermSpec,
    bind_specs,
    flatten_like,
    format_label,
    format_place,
    lookup,
    parse_spec,
    size_sources,
    unflatten,
)

__all__ = ["Moves", "Network", "Outputs", "bind_network", "to_numpy"]

Moves: TypeAlias = Mapping[Label, Array]
"""Permutations by label; labels that have none stay."""

Outputs: TypeAlias = list[tuple[Path, Array]]


@dataclass(frozen=True, slots=True)
class Network:
    """What is checked; `leaves` are the parameters in the order of the spec."""

    function: Callable[[Any, Any], Any]
    params: Any
    leaves: list[Any]
    inputs: Any
    spec: PermSpec
    in_spec: PermSpec | None
    out_spec: PermSpec | None
    sizes: Mapping[Label, int]

    def outputs(self, leaves: Sequence[Any], inputs: Any) -> Outputs:
        """What the network computes with other parameters, array by array."""
        y = self.function(_replaced(self.spec.structure, self.params, leaves), inputs)
        if self.out_spec is None:
            paths, found, _ = optree.tree_flatten_with_path(y)
        else:
            found = flatten_like(self.out_spec, y, "y")
            paths = [leaf.path for leaf in self.out_spec.leaves]
        if not found:
            raise CheckError("model_fn returned no arrays, so that there is nothing to compare")
        arrays = [(path, to_numpy(value)) for path, value in zip(paths, found, strict=True)]
        for (path, array), value in zip(arrays, found, strict=True):
            if array.dtype.kind in "OUSMm":
                raise CheckError(
                    f"{format_place(path, 'y')} is a {type(value).__name__}, expected an array of "
                    "numbers; let model_fn return arrays in dicts, lists and tuples"
                )
        return arrays

    def permuted(self, index: int, moves: Moves) -> Any:
        """Parameter number `index` after a permutation."""
        return _permute(self.leaves[index], self.spec.leaves[index], self.sizes, moves)

    def along(self, index: int, position: int, move: Array) -> Any:
        """Parameter number `index` after one of its axes (or parts of axes) alone was permuted."""
        value, leaf = self.leaves[index], self.spec.leaves[index]
        return _take(value, leaf, self.sizes, {position: move})

    def shuffled(self, index: int) -> Any:
        """Parameter number `index` with its entries in another order, whatever its axes."""
        value = self.leaves[index]
        flat = value.reshape(-1)
        return flat[np.random.default_rng(0).permutation(flat.shape[0])].reshape(value.shape)

    def change(self, before: Outputs, moves: Moves) -> tuple[float, Path]:
        """The largest deviation from a symmetry under a permutation, and the output it is met at.

        Outputs are to be as before, but for the axes that `out_spec` names.
        """
        inputs = self.inputs
        if self.in_spec is not None:
            given = flatten_like(self.in_spec, inputs, "inputs")
            inputs = unflatten(self.in_spec, self._acted(self.in_spec, given, moves))
        moved = [self.permuted(index, moves) for index in range(len(self.leaves))]
        after = self.outputs(moved, inputs)
        wanted = [value for _, value in before]
        if self.out_spec is not None:
            wanted = self._acted(self.out_spec, wanted, moves)
        worst: tuple[float, Path] = (0.0, after[0][0])
        for (path, value), old in zip(after, wanted, strict=True):
            if value.shape != old.shape:
                raise CheckError(
                    f"{format_place(path, 'y')} has shape {value.shape} for permuted parameters, "
                    f"{old.shape} before; the shape must not depend on the values"
                )
            error = float(np.abs(wide(value) - wide(old)).max(initial=0.0))
            if not error <= worst[0]:  # a NaN is worse than any number
                worst = (error, path)
        return worst

    def unnamed(self) -> tuple[Path, ...]:
        """The entries of `params` that the spec does not name."""
        return tuple(_unnamed(self.spec.structure, self.params, ()))

    def _acted(self, spec: PermSpec, values: Sequence[Any], moves: Moves) -> list[Any]:
        pairs = zip(values, spec.leaves, strict=True)
        return [_permute(value, leaf, self.sizes, moves) for value, leaf in pairs]


def bind_network(
    function: Callable[[Any, Any], Any],
    params: Any,
    spec: Any,
    inputs: Any,
    in_spec: Any,
    out_spec: Any,
    sizes: Mapping[Any, int] | None,
) -> tuple[Network, Outputs]:
    """A network with the size of every label, and its outputs before anything is permuted.

    Raises:
        ShapeError: parameters, inputs or outputs do not fit their spec.
        SpecError: inputs or outputs have a label that no parameter has.
    """
    parsed = parse_spec(spec)
    leaves = [lookup(params, leaf.path, "params") for leaf in parsed.leaves]
    bound, _ = bind_specs(parsed, None, unflatten(parsed, leaves), sizes=sizes, what="params")
    size_sources(bound)  # raises where a label's size is not told
    known = {label: size for label, size in bound.sizes if label in bound.labels}
    source = _bind_ends(in_spec, inputs, known, "inputs")
    network = Network(function, params, leaves, inputs, bound, source, None, known)
    if out_spec is None:
        return network, network.outputs(leaves, inputs)
    y = function(_replaced(bound.structure, params, leaves), inputs)
    target = _bind_ends(out_spec, y, known, "y")
    network = Network(function, params, leaves, inputs, bound, source, target, known)
    return network, network.outputs(leaves, inputs)


def to_numpy(value: Any) -> Array:
    """An array of any framework in NumPy, bfloat16 included."""
    if type(value).__module__.partition(".")[0] == "torch":
        value = get_backend("torch").to_numpy(value)
    return np.asarray(value)


def _bind_ends(spec: Any, tree: Any, sizes: Mapping[Label, int], what: str) -> PermSpec | None:
    """The spec of inputs or outputs, whose leaves have any number of axes before those it names."""
    if spec is None:
        return None
    parsed = parse_spec(spec)
    for label in labels_of(parsed):
        if label not in sizes:
            raise SpecError(
                f"{what}: the label {format_label(label)} is on no parameter; name labels of spec="
            )
    shapes = []
    for leaf, value in zip(parsed.leaves, flatten_like(parsed, tree, what), strict=True):
        shape, axes = tuple(value.shape), len(leaf.axes)
        if len(shape) < axes:
            raise ShapeError(
                f"{format_place(leaf.path, what)} has shape {shape}, expected at least {axes} axes "
                f"for {leaf}"
            )
        shapes.append(shape[len(shape) - axes :])
    told = {label: sizes[label] for label in labels_of(parsed)}
    return bind_specs(parsed, None, unflatten(parsed, shapes), sizes=told)[0]


def _permute(value: Any, leaf: Leaf, sizes: Mapping[Label, int], moves: Moves) -> Any:
    by_position = {
        position: moves[atom.label]
        for position, atom in enumerate(leaf.atoms)
        if isinstance(atom, Perm) and atom.label in moves
    }
    return _take(value, leaf, sizes, by_position)


def _take(value: Any, leaf: Leaf, sizes: Mapping[Label, int], moves: Mapping[int, Array]) -> Any:
    """Index some of the leaf's axes, or parts of axes; others may stand before them."""
    shape = tuple(value.shape)
    lead = len(shape) - len(leaf.axes)
    split = value.reshape((*shape[:lead], *atom_sizes(leaf, sizes)))
    for position, move in moves.items():
        split = split[(slice(None),) * (lead + position) + (move,)]
    return split.reshape(shape)


def _replaced(node: Node, tree: Any, leaves: Sequence[Any]) -> Any:
    """The tree in plain dicts and lists, with other leaves where the spec names some."""
    if isinstance(node, LeafNode):
        return leaves[node.index]
    if isinstance(node, DictNode):
        named = {key: _replaced(child, tree[key], leaves) for key, child in node.items}
        return {key: tree[key] for key in _keys(tree)} | named
    items = list(tree)
    for index, child in enumerate(node.items):
        items[index] = _replaced(child, tree[index], leaves)
    return items


def _unnamed(node: Node, tree: Any, path: Path) -> list[Path]:
    if isinstance(node, LeafNode):
        return []
    children = dict(node.items if isinstance(node, DictNode) else enumerate(node.items))
    found = [(*path, key) for key in _keys(tree) if key not in children]
    for key, child in children.items():
        found += _unnamed(child, tree[key], (*path, key))
    return found


def _keys(tree: Any) -> list[Any]:
    return list(tree.keys()) if hasattr(tree, "keys") else list(range(len(tree)))
