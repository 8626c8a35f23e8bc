"""Counting what generated torch code does, op by op, while it runs.

In: a layer and inputs. Out: entries read and written, operations and kernels of one forward pass,
taken from the arrays that actual operations are called with. It knows nothing of symcompile's cost
model, programs or plans: it sees only what PyTorch is asked to do.

The one thing to know: views are free; an axis of stride 0 holds one entry, however long it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Tally", "metered"]

aten = torch.ops.aten

VIEWS = {
    aten._unsafe_view,
    aten.alias,
    aten.as_strided,
    aten.detach,
    aten.diagonal,
    aten.expand,
    aten.permute,
    aten.select,
    aten.slice,
    aten.split,
    aten.split_with_sizes,
    aten.squeeze,
    aten.t,
    aten.transpose,
    aten.unbind,
    aten.unsqueeze,
    aten.view,
}
COPIES = {aten.cat, aten.clone, aten._to_copy, aten.copy_}
FILLS = {aten.new_zeros, aten.zeros, aten.ones, aten.zero_, aten.fill_}
SUMS = {aten.mean, aten.sum}
PRODUCTS = {aten.mm, aten.bmm}
PLACED = {aten.index_put_}
ADDS = {aten.add, aten.add_, aten.div}


@dataclass
class Tally:
    """Entries moved, operations (a multiply-add is two) and kernels.

    `placed` are entries written into arrays that were there before; the others went to new ones.
    """

    read: int = 0
    written: int = 0
    flops: int = 0
    launches: int = 0
    placed: int = 0


class Meter(TorchDispatchMode):
    """Adds up every operation while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.tally = Tally()
        self.log: list[tuple[str, int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if isinstance(result, torch.Tensor) and kind not in VIEWS:
            inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            read = 0 if kind in FILLS else sum(map(stored, inputs))
            written = result.numel()
            if kind in PLACED:
                read, written = placed(*args)
            flops = operations(kind, inputs, result)
            self.tally.read += read
            self.tally.written += written
            self.tally.placed += written * any(result is leaf for leaf in inputs)
            self.tally.flops += flops
            self.tally.launches += 1
            self.log.append((str(kind), read, written, flops))
        return result


def operations(kind: Any, inputs: list[torch.Tensor], result: torch.Tensor) -> int:
    """A multiply-add is two, adding and averaging one for every entry."""
    if kind in FILLS | COPIES | PLACED:
        return 0
    if kind in SUMS:
        return stored(inputs[0])
    if kind in PRODUCTS:
        return 2 * result.numel() * inputs[0].shape[-1]
    if kind in ADDS:
        return result.numel()
    raise AssertionError(f"no rule for {kind}")


def placed(whole: torch.Tensor, places: list[torch.Tensor], values: torch.Tensor) -> Any:
    """Entries read and written when values go to their places; a place is as long as two."""
    (index,) = places
    return values.numel() + index.nbytes // whole.element_size(), values.numel()


def stored(tensor: torch.Tensor) -> int:
    """Entries that a tensor holds, those it only repeats left out."""
    return prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step)


def metered(layer: Any, x: Any) -> tuple[Tally, list[tuple[str, int, int, int]]]:
    """Run a layer once."""
    with Meter() as meter:
        layer(x)
    return meter.tally, meter.log
