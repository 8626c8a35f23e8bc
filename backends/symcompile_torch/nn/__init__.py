"""Layers for networks over the tensors of any spec, as `nn.Module`s.

In: a spec and channel counts. Out: modules from trees to trees, or from trees to one tensor. A leaf
has shape (*batch, *axes, channels) with any number of batch axes, none included.

The one thing to know: a per-tensor weight is called after its kind and the number of its tensor in
the canonical order of the spec's leaves, as in `weight.0`; `symcompile_jax` has the same classes
with the same names and shapes, so weights can be carried across.

>>> import torch
>>> from symcompile_torch.nn import InvariantHead, Sequential, trunk
>>> spec = {"w0": (None, "h"), "b0": ("h",), "w1": ("h", None)}
>>> shapes = {"w0": (4, 16), "b0": (16,), "w1": (16, 3)}
>>> network = Sequential(
...     trunk(spec, [1, 8, 8], shapes=shapes),
...     InvariantHead(spec, 8, hidden=32, out_features=1, shapes=shapes),
... )
>>> x = {"w0": torch.ones(5, 4, 16, 1), "b0": torch.ones(5, 16, 1), "w1": torch.ones(5, 16, 3, 1)}
>>> tuple(network(x).shape)
(5, 1)
"""

from symcompile_torch.nn.attention import EquivariantAttention
from symcompile_torch.nn.containers import Residual, Sequential
from symcompile_torch.nn.encodings import (
    GaussianFourierFeatures,
    LearnedPosEmbedding,
    SinusoidalEncoding,
)
from symcompile_torch.nn.linear import ChannelLinear, EquivariantLinear, LearnedScale
from symcompile_torch.nn.networks import InvariantHead, trunk
from symcompile_torch.nn.norms import ChannelNorm, TensorNorm
from symcompile_torch.nn.pointwise import Activation, ChannelDropout
from symcompile_torch.nn.pooling import InvariantPool, StatFeaturizer

__all__ = [
    "Activation",
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
