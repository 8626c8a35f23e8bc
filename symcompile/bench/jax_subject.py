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
    try:
        platform = jax.default_backend()
    except RuntimeError as error:  # asked for a platform that it was not installed for
        raise Unsuited(f"JAX sees no {setting.device} device: {error}") from None
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
    def pulled(params: Any, x: list[jax.Array], cotangent: list[jax.Array]) -> tuple[Any, Any, Any]:
        outputs, pull = jax.vjp(apply, params, x)
        of_params, of_x = pull(cotangent)
        return outputs, of_x, of_params

    train_jit = jax.jit(pulled)

    def put(leaves: Arrays) -> list[jax.Array]:
        # A copy: on CPU, JAX may otherwise share NumPy's memory and keep it alive.
        copies: list[jax.Array] = done([jax.numpy.array(leaf, copy=True) for leaf in leaves])
        return copies

    def get(outputs: list[jax.Array]) -> list[np.ndarray[Any, Any]]:
        return [np.asarray(output) for output in outputs]

    # The allocator cannot forget its peak; XLA says what a program of its will take.
    def weigh(what: str, x: list[jax.Array], cotangent: list[jax.Array]) -> int:
        asked = train_jit.lower(params, x, cotangent) if what == "train" else None
        plan = (asked or forward_jit.lower(params, x)).compile().memory_analysis()
        assert plan is not None, "both CPUs and GPUs have it"
        return int(plan.temp_size_in_bytes + plan.output_size_in_bytes)

    return Subject(
        put,
        get,
        lambda x: done(forward_jit(params, x)),
        lambda x, cotangent: done(train_jit(params, x, cotangent)),
        stages,
        {"jax": jax.__version__},
        weigh if setting.device == "cuda" else None,
    )
