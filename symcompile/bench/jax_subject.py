"""Contestants on JAX: a pure function of weights and a list of arrays, jitted.

In: `apply(params, leaves)` and weights. Out: a `Subject`. Imports jax, so only child processes
import this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from symcompile.bench.subject import Arrays, Setting, Subject, Unsuited

__all__ = ["jax_subject", "prepare"]


def prepare(setting: Setting) -> None:
    """Pin precision; the device and the threads are pinned by the environment.

    Raises:
        Unsuited: JAX sees no such device.
    """
    # Every contestant multiplies in full precision: TF32 would be a different layer.
    jax.config.update("jax_default_matmul_precision", "highest")  # type: ignore[no-untyped-call]
    if setting.dtype in ("float64", "complex128"):
        jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    platform = jax.default_backend()
    if platform != ("gpu" if setting.device == "cuda" else "cpu"):
        raise Unsuited(f"JAX runs on {platform}, not on {setting.device}")


def jax_subject(
    apply: Callable[[Any, list[jax.Array]], list[jax.Array]],
    params: Any,
    setting: Setting,
    *,
    stages: Mapping[str, float],
) -> Subject:
    """A function as a contestant.

    Args:
        apply: from weights and leaves in canonical order to outputs in canonical order.
        params: any pytree of arrays.
    """
    done: Callable[[Any], Any] = jax.block_until_ready
    forward_jit = jax.jit(apply)

    # The outputs are returned too: the layer is linear, and XLA would drop an unused forward pass.
    def pulled(params: Any, x: list[jax.Array], cotangent: list[jax.Array]) -> Any:
        outputs, pull = jax.vjp(apply, params, x)
        return outputs, pull(cotangent)

    train_jit = jax.jit(pulled)

    def put(leaves: Arrays) -> list[jax.Array]:
        # A copy: on CPU, JAX may otherwise share NumPy's memory and keep it alive.
        copies: list[jax.Array] = done([jax.numpy.array(leaf, copy=True) for leaf in leaves])
        return copies

    def get(outputs: list[jax.Array]) -> list[np.ndarray[Any, Any]]:
        return [np.asarray(output) for output in outputs]

    def allocated() -> tuple[int, int]:
        stats = jax.devices()[0].memory_stats() or {}
        return int(stats.get("bytes_in_use", 0)), int(stats.get("peak_bytes_in_use", 0))

    return Subject(
        put,
        get,
        lambda x: done(forward_jit(params, x)),
        lambda x, cotangent: done(train_jit(params, x, cotangent)),
        stages,
        {"jax": jax.__version__},
        # JAX cannot forget its peak: the child measures it before anything else has run.
        allocated if setting.device == "cuda" else None,
    )
