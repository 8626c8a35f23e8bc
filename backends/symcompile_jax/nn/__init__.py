"""Layers for networks over the tensors of any spec, as Flax NNX modules.

In: a spec, channel counts and `rngs`. Out: modules from trees to trees, or from trees to one array.
A leaf has shape (*batch, *axes, channels) with any number of batch axes, none included.

The one thing to know: names, constructor arguments and weights are those of `symcompile_torch.nn`.
What PyTorch calls `layers.0.weight.1` has the NNX path ("layers", 0, "weight", 1) and the same
shape, so weights can be carried across. The functions beneath, for any other JAX library, are in
`symcompile_jax.functional`.

>>> import jax.numpy as jnp
>>> from flax import nnx
>>> from symcompile_jax.nn import InvariantHead, Sequential, trunk
>>> spec = {"w0": (None, "h"), "b0": ("h",), "w1": ("h", None)}
>>> shapes = {"w0": (4, 16), "b0": (16,), "w1": (16, 3)}
>>> rngs = nnx.Rngs(0)
>>> network = Sequential(
...     trunk(spec, [1, 8, 8], shapes=shapes, rngs=rngs),
...     InvariantHead(spec, 8, hidden=32, out_features=1, shapes=shapes, rngs=rngs),
... )
>>> x = {"w0": jnp.ones((5, 4, 16, 1)), "b0": jnp.ones((5, 16, 1)), "w1": jnp.ones((5, 16, 3, 1))}
>>> network(x).shape
(5, 1)
"""

from symcompile_jax.nn.attention import EquivariantAttention
from symcompile_jax.nn.containers import Residual, Sequential
from symcompile_jax.nn.encodings import (
    Buffer,
    GaussianFourierFeatures,
    LearnedPosEmbedding,
    SinusoidalEncoding,
)
from symcompile_jax.nn.linear import ChannelLinear, EquivariantLinear, LearnedScale
from symcompile_jax.nn.networks import InvariantHead, trunk
from symcompile_jax.nn.norms import ChannelNorm, TensorNorm
from symcompile_jax.nn.pointwise import Activation, ChannelDropout
from symcompile_jax.nn.pooling import InvariantPool, StatFeaturizer

__all__ = [
    "Activation",
    "Buffer",
    "ChannelDropout",
    "ChannelLinear",
    "ChannelNorm",
    "EquivariantAttention",
    "EquivariantLinear",
    "GaussianFourierFeatures",
    "InvariantHead",
    "InvariantPool",
    "LearnedPosEmbedding",
    "LearnedScale",
    "Residual",
    "Sequential",
    "SinusoidalEncoding",
    "StatFeaturizer",
    "TensorNorm",
    "trunk",
]
