"""NFN's layers, on the compiler: every class takes what its namesake in `nfn.layers` takes.

In and out: `WeightSpaceFeatures`, channels first, unless a class says otherwise.
"""

from symcompile_torch.nfn.layers.attention import NPAttention
from symcompile_torch.nfn.layers.encodings import (
    GaussianFourierFeatureTransform,
    IOSinusoidalEncoding,
    LearnedPosEmbedding,
)
from symcompile_torch.nfn.layers.linear import ChannelLinear, HNPLinear, NPLinear, Pointwise
from symcompile_torch.nfn.layers.norms import (
    ChannelDropout,
    ChannelLayerNorm,
    ParamLayerNorm,
    SimpleLayerNorm,
)
from symcompile_torch.nfn.layers.pools import HNPPool, NPPool, StatFeaturizer
from symcompile_torch.nfn.layers.tokens import (
    CrossAttnDecoder,
    CrossAttnEncoder,
    FlattenWeights,
    UnflattenWeights,
)
from symcompile_torch.nfn.layers.wrappers import LearnedScale, ResBlock, TupleOp

__all__ = [
    "ChannelDropout",
    "ChannelLayerNorm",
    "ChannelLinear",
    "CrossAttnDecoder",
    "CrossAttnEncoder",
    "FlattenWeights",
    "GaussianFourierFeatureTransform",
    "HNPLinear",
    "HNPPool",
    "IOSinusoidalEncoding",
    "LearnedPosEmbedding",
    "LearnedScale",
    "NPAttention",
    "NPLinear",
    "NPPool",
    "ParamLayerNorm",
    "Pointwise",
    "ResBlock",
    "SimpleLayerNorm",
    "StatFeaturizer",
    "TupleOp",
    "UnflattenWeights",
]
