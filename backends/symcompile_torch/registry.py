"""Operators of PyTorch with gradients, and what computes them on a device.

In: signatures, shapes, gradients, and functions. Out: operators under `torch.ops.symcompile`.

The one thing to know: an operator is defined once, whichever device is served first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Operator", "implement", "is_batched", "is_implemented"]

Operator: TypeAlias = tuple[str, tuple[Callable[..., Any], ...]]
"""A signature; and the shape of the result, its gradient, what that one needs."""

# Of many gradients at once (`is_grads_batched=`), an operator of lists takes none.
is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda x: False)


def implement(
    key: str, operators: Sequence[Operator], computes: Mapping[str, Callable[..., Any]]
) -> None:
    """Make them operators of PyTorch, computed so where tensors are.

    Args:
        key: PyTorch's dispatch key of a device, "CPU" or "CUDA".
        computes: by name.
    """
    for schema, (shape, *gradient) in operators:
        name, _, rest = schema.partition("(")
        full = f"symcompile::{name}"
        if not hasattr(torch.ops.symcompile, name):
            torch.library.define(full, f"({rest}")
            torch.library.register_fake(full, shape)
            if gradient:
                back, keep = gradient
                torch.library.register_autograd(full, _with_tangents(back), setup_context=keep)
        torch.library.impl(full, key, computes[name])


def is_implemented(name: str, device: str) -> bool:
    """Whether an operator is computed on a kind of device, "cpu" or "cuda"."""
    known = torch._C._dispatch_has_kernel_for_dispatch_key
    return hasattr(torch.ops.symcompile, name) and known(f"symcompile::{name}", device.upper())


def _with_tangents(back: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient of dual numbers too. It is linear, and operators would lose their tangents."""

    @wraps(back)
    def both(ctx: Any, *grads: Any) -> Any:
        if forward_ad._current_level < 0:
            return back(ctx, *grads)
        unpack: Any = forward_ad.unpack_dual
        given: list[Tensor | None]
        given, tree = optree.tree_flatten(grads, none_is_leaf=True)  # type: ignore[arg-type]
        pairs = [(None, None) if grad is None else unpack(grad) for grad in given]
        values, tangents = zip(*pairs, strict=True)
        if all(tangent is None for tangent in tangents):
            return back(ctx, *grads)
        filled = [
            torch.zeros_like(value) if tangent is None and value is not None else tangent
            for value, tangent in pairs
        ]
        made = [back(ctx, *tree.unflatten(side)) for side in (values, filled)]
        return optree.tree_map(forward_ad.make_dual, *made)  # none for what needs none

    return both
