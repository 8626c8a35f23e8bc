"""UNF's interface (Zhou et al., arXiv 2402.05232) on compiled layers, for Flax Linen.

In: what UNF's own classes take: `UNFLayer(c_out, c_in)`, called with a tree of parameters whose
leaves end in a channel axis, and a perm_spec. Out: a tree like the parameters.

The one thing to know: a network written for UNF runs with only the import changed; its weights are
the canonical ones of `symcompile.compile`, so weights trained with UNF do not carry over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import flax.linen as nn
import jax

from symcompile import compile
from symcompile.errors import ShapeError, SpecError
from symcompile.spec import (
    Path,
    PermSpec,
    bind_specs,
    flatten_like,
    format_path,
    lookup,
    parse_spec,
    unflatten,
)
from symcompile_jax import BACKEND, JaxLayer

__all__ = ["BatchUNFLayer", "UNFLayer", "UNFSequential", "nf_relu"]

# A parsed spec can then be an argument of what jit compiles: it is part of the tree, not traced.
jax.tree_util.register_static(PermSpec)


class UNFLayer(nn.Module):
    """A complete equivariant linear layer for one example (arXiv 2402.05232).

    `layer.init(key, params, perm_spec)` draws weights, `layer.apply(variables, params, perm_spec)`
    runs it. A leaf of `params` has shape (*axes, c_in), of the result (*axes, c_out); dtypes stay.
    Trees may be dicts, FrozenDicts, lists or tuples; the result is of the kind of `params`.

    `perm_spec` is a tree like `params`, with a label for each axis in the place of an array, as
    for `symcompile.compile`: fixed axes (None), strings and composite axes are fine too. Under
    `jax.jit`, close over it, or pass `parse_spec(perm_spec)`, which is not traced.

    It is compiled once for each spec, its sizes and channel counts. As sizes are known, no weight
    is redundant: where a label permutes very few things, there are fewer of them.

    Attributes:
        c_out, c_in: length of the channel axis of outputs and of inputs.
        weight_init: "unf" is UNF's N(0, 1 / (c_in * terms)), so that a network starts out as it
            did there; "scaled" keeps the variance of activations over many layers, as UNF's does
            not.

    Raises:
        SpecError: the spec is malformed, or traced.
        ShapeError: `params` does not fit the spec.

    >>> import jax.numpy as jnp
    >>> layer = UNFLayer(4, 1)
    >>> params = {"w": jnp.ones((3, 2, 1)), "b": jnp.ones((2, 1))}
    >>> perm_spec = {"w": (0, 1), "b": (1,)}
    >>> variables = layer.init(jax.random.key(0), params, perm_spec)
    >>> layer.apply(variables, params, perm_spec)["w"].shape
    (3, 2, 4)
    """

    c_out: int
    c_in: int
    weight_init: str = "unf"

    batch_axes: ClassVar[int] = 0

    @nn.compact
    def __call__(self, params: Any, perm_spec: Any) -> Any:
        spec = _bound(perm_spec, params, self.batch_axes)
        layer = _compiled(spec, self.c_in, self.c_out, self.weight_init)
        weights = self.param("weights", layer.init)
        return _like(params, BACKEND.call(layer, weights, params))


class BatchUNFLayer(UNFLayer):
    """`UNFLayer` for a batch: a leaf has shape (batch, *axes, channels). Weights are the same.

    >>> import jax.numpy as jnp
    >>> layer, perm_spec = BatchUNFLayer(4, 1), {"w": (0, 0)}
    >>> params = {"w": jnp.ones((5, 3, 3, 1))}
    >>> variables = layer.init(jax.random.key(0), params, perm_spec)
    >>> layer.apply(variables, params, perm_spec)["w"].shape
    (5, 3, 3, 4)
    """

    batch_axes: ClassVar[int] = 1


class UNFSequential(nn.Module):
    """Layers one after the other; anything that is no `UNFLayer` is called without the spec.

    >>> import jax.numpy as jnp
    >>> network = UNFSequential([UNFLayer(8, 1), nf_relu, UNFLayer(1, 8)])
    >>> params, perm_spec = {"w": jnp.ones((3, 2, 1))}, {"w": (0, 1)}
    >>> variables = network.init(jax.random.key(0), params, perm_spec)
    >>> network.apply(variables, params, perm_spec)["w"].shape
    (3, 2, 1)
    """

    layers: Sequence[Callable[..., Any]]

    @nn.compact
    def __call__(self, params: Any, perm_spec: Any) -> Any:
        for layer in self.layers:
            takes_spec = isinstance(layer, UNFLayer)
            params = layer(params, perm_spec) if takes_spec else layer(params)
        return params


def nf_relu(params: Any) -> Any:
    """ReLU on every leaf.

    >>> import jax.numpy as jnp
    >>> nf_relu([jnp.array([-1.0, 2.0])])[0].tolist()
    [0.0, 2.0]
    """
    return jax.tree.map(nn.relu, params)


@lru_cache(maxsize=256)
def _compiled(spec: PermSpec, c_in: int, c_out: int, weight_init: Any) -> JaxLayer:
    layer: JaxLayer = compile(
        spec, in_channels=c_in, out_channels=c_out, backend="jax", init=weight_init
    )
    return layer


def _bound(perm_spec: Any, params: Any, batch_axes: int) -> PermSpec:
    """The spec with the sizes of `params`."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(perm_spec)):
        raise SpecError(
            "perm_spec: found traced labels, expected ints or strings; do not pass a spec of "
            "plain ints through jit or grad: close over it, or pass "
            "symcompile.spec.parse_spec(perm_spec), which is not traced"
        )
    spec = parse_spec(_tuples_listed(perm_spec, params))
    shapes = []
    for leaf, value in zip(spec.leaves, flatten_like(spec, params, "params"), strict=True):
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) != batch_axes + len(leaf.axes) + 1:
            found = type(value).__name__ if shape is None else f"shape {tuple(shape)}"
            raise ShapeError(
                f"params{format_path(leaf.path)}: found {found}, expected an array of "
                f"{batch_axes + len(leaf.axes) + 1} axes ({batch_axes} of the batch, "
                f"{len(leaf.axes)} in the spec, and channels last); BatchUNFLayer takes one batch "
                "axis, UNFLayer none"
            )
        shapes.append(tuple(shape[batch_axes:-1]))
    return bind_specs(spec, None, shapes=unflatten(spec, shapes))[0]


def _tuples_listed(spec: Any, params: Any) -> Any:
    """The spec with lists where `params` has tuples: in UNF these are containers in both trees."""
    if isinstance(spec, Mapping) and isinstance(params, Mapping):
        return {
            key: _tuples_listed(child, params[key]) if key in params else child
            for key, child in spec.items()
        }
    if isinstance(spec, list | tuple) and isinstance(params, list | tuple):
        more = [None] * (len(spec) - len(params))
        return [_tuples_listed(*pair) for pair in zip(spec, [*params, *more], strict=False)]
    return spec


def _like(params: Any, y: Any) -> Any:
    """The tree `y` in the containers of `params`."""
    places, structure = jax.tree_util.tree_flatten_with_path(params)
    return jax.tree.unflatten(structure, [lookup(y, _plain(path, params)) for path, _ in places])


def _plain(path: Sequence[Any], tree: Any) -> Path:
    """A path of JAX's as keys and indices; a named tuple is a tuple."""
    plain: list[Any] = []
    for key in path:
        if hasattr(key, "name"):
            plain.append(tree._fields.index(key.name))
        else:
            plain.append(key.key if hasattr(key, "key") else key.idx)
        tree = tree[plain[-1]]
    return tuple(plain)
