"""Parameters of JAX networks ↔ trees of arrays with a channel axis.

In: any pytrees of parameters: dicts and FrozenDicts of flax.linen, states or modules of flax.nnx,
Equinox modules. Out: nested dicts (or a tree like a perm_spec) whose leaves have shape (*axes, 1),
or (batch, *axes, 1) for many networks; and from such a tree the pytrees, bit for bit.

The one thing to know: a leaf's path is that of its pytree, by dict keys, attribute names and
places in sequences. What is no weight (counters, random keys, activation functions, None) stays
aside, and comes back from the network that `like=` gives.

>>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
>>> tree = stack_weights([params, params])
>>> jax.tree.map(jnp.shape, tree)
{'Dense_0': {'bias': (2, 2, 1), 'kernel': (2, 3, 2, 1)}}
>>> first, second = unstack_weights(tree, like=params)
>>> second["Dense_0"]["kernel"].shape
(3, 2)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from symcompile.errors import ShapeError
from symcompile.spec import Path, PermSpec, bind_specs, format_path, parse_spec, unflatten
from symcompile_jax.width import require_width

__all__ = ["from_params", "stack_weights", "to_params", "unstack_weights"]


def from_params(params: Any, spec: Any = None, *, aside: Collection[Path] = ()) -> Any:
    """The weights of one network as a tree, each (*axes, 1).

    Args:
        params: a pytree. Arrays stay in their dtype, and NumPy's stay NumPy's.
        spec: the tree's structure; default nested dicts of all floating arrays by path, where
            places in a sequence are int keys.
        aside: paths of floating arrays to leave out.

    Raises:
        ShapeError: the spec lacks a floating array of the network or names one it has not, or an
            array does not have the axes its leaf says.

    >>> from_params({"layers": [{"w": np.ones((3, 2))}]})["layers"][0]["w"].shape
    (3, 2, 1)
    """
    parsed = None if spec is None else parse_spec(spec)
    network = _network(params, aside, "params")
    _require_spec(network, parsed)
    return _tree(parsed, {path: value[..., None] for path, value in network.weights.items()})


def stack_weights(sources: Sequence[Any], spec: Any = None, *, aside: Collection[Path] = ()) -> Any:
    """The weights of many networks of one architecture as a tree, each (batch, *axes, 1).

    Args:
        sources: a list or tuple of pytrees.
        spec, aside: as in `from_params`.

    Raises:
        ShapeError: there are no networks, they differ in paths, shapes or dtypes, or they do not
            fit the spec.
        BackendError: an array in NumPy has 64 bits, others are JAX's, and JAX rounds to 32.
    """
    many = [_network(one, aside, f"network {i}") for i, one in enumerate(_listed(sources))]
    if not many:
        raise ShapeError("sources is empty; give at least one pytree of parameters")
    parsed = None if spec is None else parse_spec(spec)
    _require_spec(many[0], parsed)
    for other in many[1:]:
        _require_alike(other, many[0])
    return _tree(
        parsed, {path: _stack([one.weights[path] for one in many]) for path in many[0].weights}
    )


def to_params(tree: Any, like: Any) -> Any:
    """The parameters of one network, from a tree whose leaves have shape (*axes, 1).

    Args:
        tree: as `from_params` makes it.
        like: a pytree, where the structure and all that the tree does not have come from.

    Raises:
        ShapeError: the tree has a path that `like` has not, or a leaf another shape than (*axes,
            1).
    """
    network = _network(like, (), "like=")
    found = _by_path(tree)
    _require_shapes(found, network, ())
    return network.filled({path: leaf[..., 0] for path, leaf in found.items()})


def unstack_weights(tree: Any, like: Any) -> list[Any]:
    """The parameters of many networks, from a tree whose leaves have shape (batch, *axes, 1).

    Args:
        tree: as `stack_weights` makes it.
        like: a list or tuple of the networks, or one network for all, from which the structure and
            all that the tree does not have come.

    Returns:
        one pytree for each network; on the same networks the very bits that were stacked.

    Raises:
        ShapeError: as in `to_params`, or the number of networks is not that of the tree.
    """
    found = _by_path(tree)
    if not found:
        raise ShapeError("the tree is empty; give what stack_weights made")
    first, leaf = next(iter(found.items()))
    count = leaf.shape[0] if leaf.ndim else 0
    several = type(like) in (list, tuple)
    if several and len(like) != count:
        raise ShapeError(
            f"like has {len(like)} networks, the tree a batch of {count} (at "
            f"{format_path(first)}); give one network for each, or one for all"
        )
    networks = [_network(one, (), "like=") for one in (like if several else [like])]
    for network in networks:
        _require_shapes(found, network, (count,))
    return [
        networks[number if several else 0].filled(
            {path: leaf[number, ..., 0] for path, leaf in found.items()}
        )
        for number in range(count)
    ]


@dataclass(frozen=True, slots=True)
class _Network:
    """A pytree taken apart: its floating arrays by path, and how to put it together again."""

    name: str
    weights: dict[Path, Any]
    paths: list[Path]
    leaves: list[Any]
    build: Callable[[Sequence[Any]], Any]

    def filled(self, weights: Mapping[Path, Any]) -> Any:
        """The pytree with other arrays at some paths."""
        pairs = zip(self.paths, self.leaves, strict=True)
        return self.build([weights.get(path, leaf) for path, leaf in pairs])


def _network(tree: Any, aside: Collection[Path], name: str) -> _Network:
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    paths = _plain_paths(tree, [keys for keys, _ in flat])
    leaves = [leaf for _, leaf in flat]
    unknown = [path for path in aside if path not in paths]
    if unknown:
        raise ShapeError(f"aside: {name} has nothing at {unknown[0]}; it has {_shown(paths)}")
    weights = {
        path: leaf
        for path, leaf in zip(paths, leaves, strict=True)
        if _is_weight(leaf) and path not in aside
    }
    return _Network(name, weights, paths, leaves, partial(jax.tree_util.tree_unflatten, structure))


def _is_weight(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return hasattr(leaf, "shape") and dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _plain_paths(tree: Any, flat: Sequence[tuple[Any, ...]]) -> list[Path]:
    """Paths of keys, names and places. An nnx variable is a node around its value: left out."""
    nnx = sys.modules.get("flax.nnx")  # a tree of its variables has imported it
    variables = set()
    if nnx is not None:
        nodes = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
        )[0]
        variables = {keys for keys, node in nodes if isinstance(node, nnx.Variable)}
    return [
        tuple(_plain(key) for depth, key in enumerate(keys) if keys[:depth] not in variables)
        for keys in flat
    ]


def _plain(key: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def _listed(sources: Any) -> list[Any]:
    if type(sources) not in (list, tuple):
        raise ShapeError(
            f"sources is a {type(sources).__name__}; give a list of pytrees, one for each network"
        )
    return list(sources)


def _stack(values: Sequence[Any]) -> Any:
    if all(isinstance(value, np.ndarray | np.generic) for value in values):
        return np.stack(values)[..., None]
    require_width(values[0].dtype)
    if any(isinstance(value, jax.core.Tracer) for value in values):
        return jnp.stack(values)[..., None]
    # On the host: jnp.stack compiles for as long as there are arrays, a minute for thousands.
    stacked = np.stack([np.asarray(value) for value in values])[..., None]
    first = next(value for value in values if isinstance(value, jax.Array))
    return jax.device_put(stacked, first.device if first.committed else None)


def _require_spec(network: _Network, spec: PermSpec | None) -> None:
    if spec is None:
        return
    named = [leaf.path for leaf in spec.leaves]
    for path in named:
        if path not in network.weights:
            why = "not a floating array, or set aside" if path in network.paths else "missing"
            raise ShapeError(
                f"the spec has a leaf {format_path(path)}, which in {network.name} is {why}; it "
                f"has {_shown(network.weights)}"
            )
    for path, value in network.weights.items():
        if path not in set(named):
            raise ShapeError(
                f"{network.name} has an array {format_path(path)} of shape {value.shape} that the "
                "spec does not name; add a leaf for it, with None for every axis if nothing "
                "permutes it, or leave it out with aside="
            )
    bind_specs(
        spec, None, unflatten(spec, [network.weights[path] for path in named]), what="weights"
    )


def _require_alike(network: _Network, first: _Network) -> None:
    for path in [*first.weights, *network.weights]:
        if path not in network.weights or path not in first.weights:
            having, lacking = first.name, network.name
            if path not in first.weights:
                having, lacking = lacking, having
            raise ShapeError(
                f"{having} has an array {format_path(path)}, {lacking} has none; stack networks of "
                "one architecture"
            )
        found, wanted = (
            f"{tuple(one.weights[path].shape)} {one.weights[path].dtype}"
            for one in (network, first)
        )
        if found != wanted:
            raise ShapeError(
                f"{format_path(path)} is {found} in {network.name}, {wanted} in {first.name}; "
                "stack networks of one architecture and dtype"
            )


def _require_shapes(found: Mapping[Path, Any], network: _Network, batch: tuple[int, ...]) -> None:
    for path, leaf in found.items():
        if path not in network.weights:
            raise ShapeError(
                f"the tree has a leaf {format_path(path)}, {network.name} has none; it has "
                f"{_shown(network.weights)}"
            )
        wanted = (*batch, *network.weights[path].shape, 1)
        if tuple(leaf.shape) != wanted:
            raise ShapeError(
                f"the leaf {format_path(path)} has shape {tuple(leaf.shape)}, expected {wanted}: "
                f"{'(batch, ' if batch else '('}*axes, 1), one channel"
            )


def _by_path(tree: Any) -> dict[Path, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(_plain(key) for key in keys): leaf for keys, leaf in flat}


def _tree(spec: PermSpec | None, values: Mapping[Path, Any]) -> Any:
    if spec is not None:
        return unflatten(spec, [values[leaf.path] for leaf in spec.leaves])
    root: dict[Any, Any] = {}
    for path, value in values.items():
        if not path:  # the network is one array
            return value
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return root


def _shown(paths: Collection[Path]) -> str:
    listed = [format_path(path) for path in list(paths)[:8]]
    more = f", ... ({len(paths)} in all)" if len(paths) > 8 else ""
    return ", ".join(listed) + more or "none"
