"""Layers without weights that treat every index alike: activations, dropout of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from symcompile.errors import OptionError
from symcompile.library import check_rate
from symcompile.spec import unflatten
from symcompile_torch.nn.trees import map_tree, reader

__all__ = ["Activation", "ChannelDropout"]


class Activation(nn.Module):
    """A function of tensors on every tensor of a tree.

    Equivariant if `fn` acts entry by entry, or on the last axis, the channels.

    Args:
        fn: from tensor to tensor; a module's weights are under `fn`.

    Raises:
        OptionError: `fn` cannot be called. When called, ShapeError: a leaf is no tensor.

    >>> import torch
    >>> y = Activation(torch.relu)({"w": torch.tensor([[-1.0], [2.0]])})
    >>> y["w"].tolist()
    [[0.0], [2.0]]
    """

    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(fn):
            raise OptionError(
                f"fn: found a {type(fn).__name__} object, expected a function of one tensor, such "
                "as torch.relu"
            )
        self.fn = fn

    def forward(self, x: Any) -> Any:
        return map_tree(self.fn, x)

    def extra_repr(self) -> str:
        return "" if isinstance(self.fn, nn.Module) else getattr(self.fn, "__name__", "")


class ChannelDropout(nn.Module):
    """In training, sets whole channels of a tensor to zero and scales up the others.

    A channel is dropped at all indices at once, so that the layer commutes with permutations. No
    effect in `eval()` mode.

    Args:
        rate: the part of the channels to drop, in [0, 1).
        spec: as for `symcompile.compile`. With it every example of a batch drops channels of its
            own; without it nobody can tell batch axes from others, and all drop the same.

    Raises:
        OptionError: `rate` is outside [0, 1).

    >>> import torch
    >>> y = ChannelDropout(0.5, spec=("a", "b"))(torch.ones(4, 2, 3, 64))
    >>> sorted(set(y.flatten().tolist())), bool((y == y[:, :1, :1]).all())
    ([0.0, 2.0], True)
    """

    def __init__(self, rate: float, spec: Any = None) -> None:
        super().__init__()
        self.rate = check_rate(rate)
        self.reader = None if spec is None else reader(spec)

    def forward(self, x: Any) -> Any:
        if self.reader is None:
            return map_tree(lambda leaf: self._drop(leaf, 0), x)
        spec = self.reader.spec
        pairs = zip(self.reader.read(x), spec.leaves, strict=True)
        return unflatten(spec, [self._drop(t, t.ndim - len(leaf.axes) - 1) for t, leaf in pairs])

    def _drop(self, x: Tensor, lead: int) -> Tensor:
        if not self.training:
            return x
        ones = x.new_ones((*x.shape[:lead], *(1,) * (x.ndim - lead - 1), x.shape[-1]))
        return x * F.dropout(ones, self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate}"
