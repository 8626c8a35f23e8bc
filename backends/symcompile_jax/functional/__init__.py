"""Layers as pure functions on trees, for any JAX library or none.

In: a spec, a tree of arrays like it, and weights as arrays or lists of them, one for each tensor in
the canonical order of the spec's leaves. Out: a tree like the spec, or one array.

The one thing to know: a leaf has shape (*batch, *axes, channels) with any number of batch axes,
none included, and keeps its dtype, to which weights are cast; integers take that of the weights,
and complex weights make complex outputs. `symcompile_jax.nn` holds the weights of
these functions in Flax NNX modules.

>>> import jax.numpy as jnp
>>> from symcompile_jax.functional import channel_norm
>>> spec = {"w": ("in", "out")}
>>> y = channel_norm(spec, {"w": jnp.ones((5, 3, 2, 4))}, scale=[jnp.ones(4)], shift=[jnp.ones(4)])
>>> y["w"].shape
(5, 3, 2, 4)
"""

from symcompile_jax.functional.attention import attention
from symcompile_jax.functional.encodings import (
    fourier_features,
    position_embedding,
    sinusoidal_encoding,
)
from symcompile_jax.functional.linear import channel_linear, channel_scale
from symcompile_jax.functional.norms import channel_norm, tensor_norm
from symcompile_jax.functional.pointwise import activation, add, channel_dropout
from symcompile_jax.functional.pooling import invariant_pool, statistics

__all__ = [
    "activation",
    "add",
    "attention",
    "channel_dropout",
    "channel_linear",
    "channel_norm",
    "channel_scale",
    "fourier_features",
    "invariant_pool",
    "position_embedding",
    "sinusoidal_encoding",
    "statistics",
    "tensor_norm",
]
