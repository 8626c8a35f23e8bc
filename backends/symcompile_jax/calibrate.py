"""What JAX reaches on its default device, op by op. Out: the figures of a `Machine`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from symcompile.cost.measure import LAUNCHED, SIZES, rates
from symcompile_jax.kernels import AVAILABLE

__all__ = ["calibrate"]


def calibrate() -> tuple[float, ...]:
    """(bytes per second, float32 operations per second, seconds per launch, seconds per byte of a
    new array, whether there are kernels for sums in one pass).

    Every copy is a new array, so `bandwidth` has the cost of new arrays already.
    """
    on_cpu = jax.default_backend() == "cpu"
    copied, side = SIZES["cpu" if on_cpu else "gpu"]
    source, matrix = jnp.ones(copied, jnp.float32), jnp.ones((side, side), jnp.float32)
    entry = jnp.ones(1, jnp.float32)

    def launch() -> None:
        result = entry
        for _ in range(LAUNCHED):
            result = jnp.add(result, entry)
        result.block_until_ready()

    figures = rates(
        lambda: jnp.array(source, copy=True).block_until_ready(),
        lambda: (matrix @ matrix).block_until_ready(),
        launch,
        copied=copied,
        side=side,
    )
    return *figures, AVAILABLE and on_cpu
