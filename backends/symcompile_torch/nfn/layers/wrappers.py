"""Any operation on every tensor, a learned scale for each, and a residual block around a layer.

In and out: features. The one thing to know: where a layer has no bias, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from symcompile_torch.nfn.chain import chain_of
from symcompile_torch.nfn.common import NetworkSpec, WeightSpaceFeatures

__all__ = ["LearnedScale", "ResBlock", "TupleOp", "map_present"]


class TupleOp(nn.Module):
    """`op` of every weight and bias.

    >>> x = WeightSpaceFeatures([-torch.ones(1, 1, 2, 1)], [None])
    >>> TupleOp(torch.nn.ReLU())(x).weights[0].sum().item()
    0.0
    """

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        return wsfeat.map(self.op)

    def __repr__(self) -> str:
        return f"TupleOp({self.op})"


class LearnedScale(nn.Module):
    """One learned factor for every weight and every bias, at first `init_scale`.

    >>> from symcompile_torch.nfn.common import network_spec_from_wsfeat
    >>> x = WeightSpaceFeatures([torch.ones(1, 1, 2, 1)], [None])
    >>> LearnedScale(network_spec_from_wsfeat(x), 0.5)(x).weights[0].sum().item()
    1.0
    """

    def __init__(self, network_spec: NetworkSpec, init_scale: float) -> None:
        super().__init__()
        chain = chain_of(network_spec)

        def scale() -> nn.Parameter:
            return nn.Parameter(torch.tensor(init_scale, dtype=torch.float32))

        self.weight_scales = nn.ParameterList(scale() for _ in chain.layers)
        self.bias_scales = nn.ParameterDict({str(i): scale() for i in chain.biases})

    def forward(self, wsfeat: WeightSpaceFeatures) -> WeightSpaceFeatures:
        weights = [w * scale for w, scale in zip(wsfeat.weights, self.weight_scales, strict=True)]
        biases = [
            None if bias is None else bias * self.bias_scales[str(i)]
            for i, bias in enumerate(wsfeat.biases)
        ]
        return WeightSpaceFeatures(weights, biases)


class ResBlock(nn.Module):
    """x + dropout(activation(base_layer(norm(x)))), dropout of single entries.

    >>> x = WeightSpaceFeatures([torch.ones(1, 1, 2, 1)], [None])
    >>> same = TupleOp(torch.nn.Identity())
    >>> ResBlock(same, TupleOp(torch.nn.ReLU()), 0, same)(x).weights[0].sum().item()
    4.0
    """

    def __init__(
        self,
        base_layer: Callable[[WeightSpaceFeatures], WeightSpaceFeatures],
        activation: Callable[[WeightSpaceFeatures], WeightSpaceFeatures],
        dropout: float,
        norm: Callable[[WeightSpaceFeatures], WeightSpaceFeatures],
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.activation = activation
        self.dropout = TupleOp(nn.Dropout(dropout)) if dropout > 0 else None
        self.norm = norm

    def forward(self, x: WeightSpaceFeatures) -> WeightSpaceFeatures:
        change = self.activation(self.base_layer(self.norm(x)))
        if self.dropout is not None:
            change = self.dropout(change)
        return x + change


def map_present(modules: nn.ModuleDict, biases: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Every bias through the module at its number."""
    return [None if bias is None else modules[str(i)](bias) for i, bias in enumerate(biases)]
