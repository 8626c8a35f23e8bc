"""Operators of PyTorch with gradients, and what computes them on a device.

In: signatures, shapes, gradients, and functions. Out: operators under `torch.ops.symcompile`.

The one thing to know: an operator is defined once, whichever device is served first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from symcompile_torch.autograd import with_gradient

__all__ = ["Operator", "implement", "is_implemented"]

Operator: TypeAlias = tuple[str, tuple[Callable[..., Any], ...]]
"""A signature; and the shape of the result, its gradient, what that one needs."""

_LIBRARY: Any = torch.library.Library("symcompile", "FRAGMENT")  # type: ignore[no-untyped-call]


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
                op = getattr(torch.ops.symcompile, name).default
                differentiable = with_gradient(op, *gradient)
                _LIBRARY.impl(name, differentiable, "Autograd", with_keyset=True)
        torch.library.impl(full, key, computes[name])


def is_implemented(name: str, device: str) -> bool:
    """Whether an operator is computed on a kind of device, "cpu" or "cuda"."""
    known = torch._C._dispatch_has_kernel_for_dispatch_key
    return hasattr(torch.ops.symcompile, name) and known(f"symcompile::{name}", device.upper())
