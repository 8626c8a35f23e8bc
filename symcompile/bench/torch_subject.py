"""Contestants on PyTorch: a module called on a tree, eagerly or compiled.

In: a function that builds an `nn.Module`. Out: a `Subject`. Imports torch, so only child processes
import this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from symcompile.bench.subject import Arrays, Setting, Subject, Unsuited

__all__ = ["finish", "prepare", "torch_subject"]


def prepare(setting: Setting) -> torch.device:
    """Pin threads and precision, and start the device.

    Raises:
        Unsuited: torch sees no such device.
    """
    torch.set_num_threads(setting.threads)
    # Every contestant multiplies in full precision: TF32 would be a different layer.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = True  # convolutions at their best, as XLA tries them too
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise Unsuited("torch sees no CUDA device")
    device = torch.device(setting.device)
    torch.ones(1, device=device)
    finish(device)
    return device


def finish(device: torch.device) -> None:
    """Wait for all that was started on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def torch_subject(
    module: torch.nn.Module,
    setting: Setting,
    *,
    pack: Callable[[list[torch.Tensor]], Any],
    unpack: Callable[[Any], list[torch.Tensor]],
    stages: Mapping[str, float],
    versions: Mapping[str, str] | None = None,
    compiled: bool = False,
    layout_in: Callable[[int, torch.Tensor], torch.Tensor] = lambda place, tensor: tensor,
    layout_out: Callable[[int, torch.Tensor], torch.Tensor] = lambda place, tensor: tensor,
) -> Subject:
    """A module as a contestant.

    Args:
        module: maps what `pack` makes to what `unpack` takes apart; on its device already.
        pack, unpack: from tensors in canonical order to the module's argument, and from its
            result to tensors in canonical order; they must not copy.
        layout_in, layout_out: of one tensor, from the canonical layout to the module's and back.
        compiled: run it through `torch.compile`.
    """
    device = torch.device(setting.device)
    call: Callable[[Any], Any] = torch.compile(module) if compiled else module
    parameters = list(module.parameters())
    on_cuda = device.type == "cuda"

    def put(leaves: Arrays) -> list[torch.Tensor]:
        return [
            layout_in(place, _tensor(leaf)).contiguous().to(device)
            for place, leaf in enumerate(leaves)
        ]

    def get(outputs: list[torch.Tensor]) -> list[np.ndarray[Any, Any]]:
        return [
            layout_out(place, output.detach().cpu()).float().numpy()
            if output.dtype in (torch.bfloat16, torch.float16)
            else layout_out(place, output.detach().cpu()).numpy()
            for place, output in enumerate(outputs)
        ]

    def forward(x: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            outputs = unpack(call(pack(x)))
        finish(device)
        return outputs

    def train(x: list[torch.Tensor], cotangent: list[torch.Tensor]) -> tuple[Any, Any, Any]:
        leaves = [tensor.detach().requires_grad_() for tensor in x]
        outputs = unpack(call(pack(leaves)))
        # Some weights of a contestant may not reach any output.
        gradients = torch.autograd.grad(
            outputs, [*leaves, *parameters], cotangent, allow_unused=True
        )
        finish(device)
        detached = [output.detach() for output in outputs]
        return detached, gradients[: len(x)], gradients[len(x) :]

    def like(outputs: list[torch.Tensor], data: list[torch.Tensor]) -> list[torch.Tensor]:
        return [
            tensor
            if tensor.stride() == output.stride()
            else torch.empty_like(output, memory_format=torch.preserve_format).copy_(tensor)
            for output, tensor in zip(outputs, data, strict=True)
        ]

    def weigh(what: str, x: list[torch.Tensor], cotangent: list[torch.Tensor]) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = train(x, cotangent) if what == "train" else forward(x)
        peak = torch.cuda.max_memory_allocated()
        del result
        return peak - before

    return Subject(
        put,
        get,
        forward,
        train,
        stages,
        {"torch": torch.__version__, **(versions or {})},
        weigh if on_cuda else None,
        torch.cuda.empty_cache if on_cuda else lambda: None,
        like,
    )


def _tensor(leaf: np.ndarray[Any, Any]) -> torch.Tensor:
    if leaf.dtype.name == "bfloat16":
        return torch.from_numpy(leaf.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(leaf)
