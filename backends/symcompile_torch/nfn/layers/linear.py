"""Linear layers: `NPLinear`, `HNPLinear` and `Pointwise`, compiled, and `ChannelLinear`.

In: a `NetworkSpec` and channels. Out: modules from features to features, channels first.

The one thing to know: all three are `symcompile.compile` of one perm_spec, the chain of the
network's neurons. NP permutes every neuron, HNP all but inputs and outputs (Zhou et al. 2023, arXiv
2302.14040, section 3), and Pointwise keeps of NP's basis what moves no index.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

import symcompile as sc
from symcompile import Fixed
from symcompile.diagrams import Diagram
from symcompile.errors import OptionError
from symcompile.spec import Path
from symcompile.weights import Schema
from symcompile.weights.rank import inner_width
from symcompile_torch.layer import TorchLayer
from symcompile_torch.nfn.chain import Chain, chain_of, known_io, merge, require_chain, split
from symcompile_torch.nfn.common import NetworkSpec, WeightSpaceFeatures

__all__ = ["WEIGHT_LIMIT", "ChannelLinear", "HNPLinear", "NPLinear", "Pointwise"]

WEIGHT_LIMIT = 4_000_000
"""An `HNPLinear` with more weights than this is of low rank unless it is told otherwise."""


class _Compiled(nn.Module):
    """A compiled layer behind NFN's interface; `layer` is the layer itself."""

    layer: TorchLayer

    def __init__(self, network_spec: NetworkSpec, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.network_spec = network_spec
        self.chain = chain_of(network_spec)
        self.in_channels = self.c_in = in_channels
        self.out_channels = self.c_out = out_channels

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        """Features of `in_channels` to features of `out_channels`, the rest of the shapes kept."""
        parts = split(wsfeat, self.chain)
        require_chain(parts, self.chain)
        return self._apply_to(parts)

    def _apply_to(self, parts: WeightSpaceFeatures) -> WeightSpaceFeatures:
        tree: dict[int, dict[str, Tensor]] = {}
        for i, (weight, bias) in enumerate(parts):
            tree[i] = {"weight": weight.movedim(1, -1)}
            if bias is not None:
                tree[i]["bias"] = bias.movedim(1, -1)
        out = self.layer(tree)
        weights = [out[i]["weight"].movedim(-1, 1) for i in tree]
        biases = [out[i]["bias"].movedim(-1, 1) if len(out[i]) > 1 else None for i in tree]
        return merge(weights, biases, self.chain)

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, out_channels={self.out_channels}"


class NPLinear(_Compiled):
    """Every linear map that commutes with permuting each layer's neurons, inputs and outputs too.

    Args:
        network_spec: of the networks whose weights come in.
        in_channels, out_channels: of every weight and bias.
        io_embed: add a learned embedding of every input and output to the features first, so that
            inputs and outputs are told apart.
        init_type: "scaled" keeps the variance of activations; "pytorch_default" and
            "kaiming_normal" are nfn's, uniform and normal by the number of all features that an
            output is made of. With those, activations fade from layer to layer.

    Raises:
        ShapeError: the spec is of no chain of layers; with `io_embed`, it does not have the numbers
            of inputs and outputs.
        OptionError: `init_type` is none of the three.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> weights = [torch.ones(5, 1, 8, 3), torch.ones(5, 1, 2, 8)]
    >>> biases = [torch.ones(5, 1, 8), torch.ones(5, 1, 2)]
    >>> x = WeightSpaceFeatures(weights, biases)
    >>> NPLinear(network_spec_from_wsfeat(x), 1, 4, io_embed=True)(x)
    WeightSpaceFeatures(weights=[(5, 4, 8, 3), (5, 4, 2, 8)], biases=[(5, 4, 8), (5, 4, 2)])
    """

    def __init__(
        self,
        network_spec: NetworkSpec,
        in_channels: int,
        out_channels: int,
        io_embed: bool = False,
        init_type: str = "scaled",
    ) -> None:
        super().__init__(network_spec, in_channels, out_channels)
        self.layer = _make(self.chain, (), in_channels, out_channels)
        _init(self.layer, init_type)
        self.io_embed = io_embed
        self._sizes: tuple[int, ...] = ()
        if io_embed:
            self._first, self._last = _outer(self.chain)
            self._sizes = n_in, n_out = known_io(network_spec)
            into, out = self.chain.layers[self._first].taps, self.chain.layers[self._last].taps
            self.in_embed = nn.Parameter(torch.randn(1, in_channels, 1, n_in, *into))
            self.out_embed = nn.Parameter(torch.randn(1, in_channels, n_out, 1, *out))
            if self.chain.layers[self._last].bias:
                self.out_bias_embed = nn.Parameter(torch.randn(1, in_channels, n_out))

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        parts = split(wsfeat, self.chain, self._sizes)
        require_chain(parts, self.chain)
        if not self.io_embed:
            return self._apply_to(parts)
        weights, biases = list(parts.weights), list(parts.biases)
        weights[self._first] = weights[self._first] + self.in_embed
        weights[self._last] = weights[self._last] + self.out_embed
        bias = biases[self._last]
        if bias is not None:
            biases[self._last] = bias + self.out_bias_embed
        return self._apply_to(WeightSpaceFeatures(weights, biases))


class HNPLinear(_Compiled):
    """Every linear map that commutes with permuting hidden neurons; inputs and outputs stay.

    Weights are dense over inputs and outputs, which for wide ones is hundreds of millions. Then
    each mix is the product of two, `rank` times `out_channels` wide in between: smaller, no longer
    every map. nfn has neither that nor the maps from the last hidden bias to the last weight.

    Args:
        network_spec: of the networks whose weights come in.
        in_channels, out_channels: of every weight and bias.
        rank: of the mixes; None for dense ones. "auto" is dense up to `WEIGHT_LIMIT` weights, and
            above the largest rank that stays within it (1, if none does).

    Raises:
        ShapeError: the spec is of no chain of layers, or its inputs or outputs have no size.
        OptionError: `rank` is no positive int.

    >>> from symcompile_torch.nfn.common import ArraySpec
    >>> spec = NetworkSpec([ArraySpec((-1, 784)), ArraySpec((-1, -1)), ArraySpec((10, -1))],
    ...                    [ArraySpec((-1,)), ArraySpec((-1,)), ArraySpec((10,))])
    >>> layer = HNPLinear(spec, 16, 16)
    >>> layer.rank, sum(weight.numel() for weight in layer.parameters())
    (4, 3300208)
    """

    def __init__(
        self,
        network_spec: NetworkSpec,
        in_channels: int,
        out_channels: int,
        *,
        rank: int | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__(network_spec, in_channels, out_channels)
        self.n_in, self.n_out = sizes = known_io(network_spec)
        self.L = len(network_spec)
        if rank == "auto":
            dense = _template(self.chain, sizes, in_channels, out_channels)
            rank = _largest_rank(dense.compiled.schema, out_channels)
        self.rank = rank
        self.layer = _make(self.chain, sizes, in_channels, out_channels, rank=rank)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_in={self.n_in}, n_out={self.n_out}, rank={self.rank}"


class Pointwise(_Compiled):
    """Each tensor mixed over its channels and taps alone, the same at every pair of neurons.

    No tensor reads another, so the network need not be a chain.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(5, 4, 8, 3), torch.ones(5, 4, 2, 8)], [None, None])
    >>> Pointwise(network_spec_from_wsfeat(x), 4, 6)(x)
    WeightSpaceFeatures(weights=[(5, 6, 8, 3), (5, 6, 2, 8)], biases=[None, None])
    """

    def __init__(self, network_spec: NetworkSpec, in_channels: int, out_channels: int) -> None:
        super().__init__(network_spec, in_channels, out_channels)
        self.layer = _make(_apart(self.chain), (), in_channels, out_channels, pointwise=True)

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        return self._apply_to(split(wsfeat, self.chain))


class ChannelLinear(nn.Module):
    """A linear map of the channels of one tensor (batch, channels, ...).

    >>> ChannelLinear(4, 6)(torch.ones(5, 4, 8, 3)).shape
    torch.Size([5, 6, 8, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.movedim(1, -1))
        return out.movedim(-1, 1)


def perm_spec(chain: Chain, sizes: tuple[int, ...]) -> dict[int, dict[str, tuple[Any, ...]]]:
    """The perm_spec of a chain: neurons are labels, taps fixed.

    Args:
        sizes: () permutes all neurons; (inputs, outputs) fixes those two.
    """
    fixed = dict(zip(chain.ends, map(Fixed, sizes), strict=True)) if sizes else {}

    def axis(neurons: int) -> int | Fixed:
        return fixed.get(neurons, neurons)

    spec: dict[int, dict[str, tuple[Any, ...]]] = {}
    for i, layer in enumerate(chain.layers):
        spec[i] = {"weight": (*map(axis, layer.neurons), *map(Fixed, layer.taps))}
        if layer.bias:
            spec[i]["bias"] = (axis(layer.neurons[0]),)
    return spec


@lru_cache(maxsize=256)
def _template(
    chain: Chain,
    sizes: tuple[int, ...],
    in_channels: int,
    out_channels: int,
    pointwise: bool = False,
    rank: int | None = None,
) -> TorchLayer:
    """The compiled layer without memory for its weights; equal networks are compiled once."""
    with torch.device("meta"):
        layer: TorchLayer = sc.compile(
            perm_spec(chain, sizes),
            in_channels=in_channels,
            out_channels=out_channels,
            terms=_moves_no_index if pointwise else None,
            rank=rank,
        )
    return layer


def _make(
    chain: Chain, sizes: tuple[int, ...], in_channels: int, out_channels: int, **options: Any
) -> TorchLayer:
    template = _template(chain, sizes, in_channels, out_channels, **options)
    layer = type(template)()
    layer.compiled = template.compiled
    return layer


def _apart(chain: Chain) -> Chain:
    """The same layers, each with neurons of its own."""
    layers = (
        replace(layer, neurons=(2 * i + 1, 2 * i)[: len(layer.neurons)])
        for i, layer in enumerate(chain.layers)
    )
    return Chain(tuple(layers), 2 * len(chain.layers) - 1)


def _moves_no_index(output: Path, into: Path, diagram: Diagram) -> bool:
    order = diagram.out_order
    return output == into and diagram.blocks == tuple((k, k + order) for k in range(order))


def _largest_rank(schema: Schema, out_channels: int) -> int | None:
    def weights(rank: int | None) -> int:
        total = 0
        for weight in schema.weights:
            if weight.rows:
                rows, cols = weight.shape
                inner = inner_width(rank, weight.signature, out_channels, (rows, cols))
                total += rows * cols if inner is None else inner * (rows + cols)
            else:
                total += weight.shape[0]
        return total

    if weights(None) <= WEIGHT_LIMIT:
        return None
    rank = 1
    while weights(rank + 1) <= WEIGHT_LIMIT:
        rank += 1
    return rank


def _outer(chain: Chain) -> tuple[int, int]:
    """The first and the last layer that are no norm."""
    matrices = [i for i, layer in enumerate(chain.layers) if len(layer.neurons) > 1]
    return matrices[0], matrices[-1]


@torch.no_grad()
def _init(layer: TorchLayer, init_type: str) -> None:
    """Draw the weights as nfn does, unless by our own scale."""
    if init_type not in ("scaled", "pytorch_default", "kaiming_normal"):
        raise OptionError(
            f"init_type={init_type!r:.80} is not known; choose 'scaled', 'pytorch_default' or "
            "'kaiming_normal'"
        )
    if init_type == "scaled":
        return
    schema = layer.compiled.schema
    features = dict.fromkeys(range(len(schema.outputs)), 0)
    for weight in schema.weights:
        for column in weight.columns:
            features[column.tensor] += sum(row.width for row in weight.rows)
    for weight in schema.weights:
        parameter = layer.get_parameter(weight.name)
        for column in weight.columns:
            part = parameter[..., column.start : column.start + column.width]
            bound = 1 / sqrt(features[column.tensor])
            if init_type == "pytorch_default":
                part.uniform_(-bound, bound)
            elif weight.rows:
                part.normal_(0, sqrt(2) * bound)
