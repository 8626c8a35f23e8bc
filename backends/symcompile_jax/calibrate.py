"""What JAX reaches on its default device, op by op. Out: the figures of a `Machine`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from symcompile.cost.measure import COPIED, LAUNCHED, SIDE, rates
from symcompile_jax.kernels import AVAILABLE

__all__ = ["calibrate"]


def calibrate() -> tuple[float, ...]:
    """(bytes per second, float32 operations per second, seconds per launch, seconds per byte of a
    new array, whether there are kernels for sums in one pass).

    Every copy is a new array, so `bandwidth` has the cost of new arrays already.
    """
    source = jnp.ones(COPIED, jnp.float32)
    matrix, entry = jnp.ones((SIDE, SIDE), jnp.float32), jnp.ones(1, jnp.float32)

    def launch() -> None:
        result = entry
        for _ in range(LAUNCHED):
            result = jnp.add(result, entry)
        result.block_until_ready()

    figures = rates(
        lambda: jnp.array(source, copy=True).block_until_ready(),
        lambda: (matrix @ matrix).block_until_ready(),
        launch,
    )
    return *figures, AVAILABLE and jax.default_backend() == "cpu"
