"""Refusing 64-bit dtypes where JAX would silently round them to 32 bits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import dtypes

from symcompile.errors import BackendError

__all__ = ["require_width"]


def require_width(dtype: Any) -> None:
    """Check that JAX keeps `dtype` as it is.

    Raises:
        BackendError: it would be rounded; the message says how to allow 64 bits.
    """
    asked = jnp.dtype(dtype)
    kept = dtypes.canonicalize_dtype(asked)
    if kept != asked:
        raise BackendError(
            f"JAX would turn {asked} into {kept}; allow 64 bits with "
            "jax.config.update('jax_enable_x64', True), or use 32-bit weights"
        )
