"""From a network's state_dict to lists of tensors, and back.

In: a state_dict in the order of the layers. Out: a weight and a bias, or None, for each.

The one thing to know: the running statistics of a batch norm change what the network computes, so
they are features too: a layer of their own, the mean in the place of the weight, the variance in
that of the bias. The counter `num_batches_tracked` is left out, and zero in what is written back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from symcompile.errors import ShapeError
from symcompile_torch.nfn.common.features import WeightSpaceFeatures

__all__ = ["params_to_func_params", "params_to_state_dicts", "state_dict_to_tensors"]

_COUNTER = "num_batches_tracked"


def state_dict_to_tensors(
    state_dict: Mapping[str, Tensor],
) -> tuple[list[Tensor], list[Tensor | None]]:
    """All weights and all biases, each with one channel axis of size 1 in front.

    A bias belongs to the weight just before it; a weight without one has None.

    Raises:
        ShapeError: a bias has no weight before it.

    >>> weights, biases = state_dict_to_tensors(torch.nn.Linear(3, 2, bias=False).state_dict())
    >>> tuple(weights[0].shape), biases
    ((1, 2, 3), [None])
    """
    pairs = _pairs(state_dict)
    weights = [state_dict[weight][None] for weight, _ in pairs]
    biases = [None if bias is None else state_dict[bias][None] for _, bias in pairs]
    return weights, biases


def params_to_state_dicts(
    keys: Iterable[str], wsfeat: WeightSpaceFeatures
) -> list[OrderedDict[str, Tensor]]:
    """One state_dict for each network of the batch, to be loaded.

    Args:
        keys: of the state_dict that the features were made of, in its order.
        wsfeat: with one channel.

    Raises:
        ShapeError: there is more than one channel, or keys and features do not fit.
    """
    names = list(keys)
    pairs = _pairs(names)
    found = [(True, bias is not None) for bias in wsfeat.biases]
    if found != [(True, bias is not None) for _, bias in pairs]:
        raise ShapeError(
            f"the keys name {len(pairs)} layers, {sum(b is not None for _, b in pairs)} with a "
            f"bias, but the features have {len(found)}, {sum(bias for _, bias in found)} with a "
            "bias; give the keys of the state_dict that they were made of"
        )
    channels = {weight.shape[1] for weight in wsfeat.weights}
    if channels != {1}:
        raise ShapeError(
            f"features of {sorted(channels)} channels are no parameters; expected 1 channel: end "
            "with a layer whose out_channels is 1"
        )
    tensors: dict[str, Tensor] = {}
    for (weight_key, bias_key), (weight, bias) in zip(pairs, wsfeat, strict=True):
        tensors[weight_key] = weight.squeeze(1)
        if bias_key is not None and bias is not None:
            tensors[bias_key] = bias.squeeze(1)
    return [
        OrderedDict((key, _entry(key, tensors, example)) for key in names)
        for example in range(wsfeat.weights[0].shape[0])
    ]


def params_to_func_params(params: WeightSpaceFeatures) -> tuple[Tensor, ...]:
    """All tensors in the order of the layers, weight before bias, without a channel axis of 1."""
    single = params.map(lambda x: x.squeeze(1) if x.shape[1] == 1 else x)
    return tuple(tensor for pair in single for tensor in pair if tensor is not None)


def _entry(key: str, tensors: Mapping[str, Tensor], example: int) -> Tensor:
    return torch.tensor(0) if key.endswith(_COUNTER) else tensors[key][example]


def _pairs(keys: Iterable[str]) -> list[tuple[str, str | None]]:
    """(key of the weight, key of the bias or None) for each layer."""
    pairs: list[tuple[str, str | None]] = []
    for key in keys:
        if key.endswith(_COUNTER):
            continue
        name = key.rpartition(".")[2]
        if "bias" not in name and name != "running_var":
            pairs.append((key, None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], key)
        else:
            raise ShapeError(
                f"the key {key!r} has no weight before it to belong to; expected the order "
                "weight, bias, weight, bias, ... of a chain of layers"
            )
    return pairs
