"""What the tests of JAX's primitives share: arrays to draw, oracles, derivatives of any degree.

The one thing to know: whatever is compared is compiled as one function; else JAX would compile each
of its ops.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def close(found: Array, wanted: Array, within: float = 2e-6) -> None:
    """Within a few roundings of float32, on the scale of the whole."""
    assert found.shape == wanted.shape
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if wanted.size:
        assert np.abs(found - wanted).max() <= within * max(np.abs(wanted).max(), 1.0)


def all_close(found, wanted, within: float = 2e-6) -> None:  # type: ignore[no-untyped-def]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        close(one, other, within)


def draw(rng: np.random.Generator, *shape: int) -> Array:
    return jnp.asarray(rng.standard_normal(shape, np.float32))


QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
"""XLA compiles without its optimizer, in two thirds of the time."""


def once(compute, *args):  # type: ignore[no-untyped-def]
    """What a function makes, compiled as one, not op by op."""
    return jax.jit(lambda *args: compute(*args), compiler_options=QUICK)(*args)


def exact(compute, *args):  # type: ignore[no-untyped-def]
    """What a function makes in float64, out of JAX's own ops."""
    with jax.enable_x64(True):
        made = once(compute, *(np.asarray(arg, float) for arg in args))
        return jax.tree.map(np.asarray, made)


def batched(args, dims):  # type: ignore[no-untyped-def]
    """A batch of three of some arguments, along any axis."""
    return [
        arg if dim is None else jnp.asarray(np.stack([arg, 2 * arg, -arg], dim))
        for arg, dim in zip(map(np.asarray, args), dims, strict=True)
    ]


def count(compute, *args) -> int:  # type: ignore[no-untyped-def]
    """The calls of kernels in a compiled program."""
    text = jax.jit(compute).lower(*args).as_text()
    return text.count("@symcompile_")


def gradients(compute, args):  # type: ignore[no-untyped-def]
    """Forward, backward, and of a square of the gradients backward again."""

    def loss(args):  # type: ignore[no-untyped-def]
        y = compute(*args)
        return (y * jnp.linspace(-1, 1, y.size, dtype=y.dtype).reshape(y.shape)).sum()

    def length(args):  # type: ignore[no-untyped-def]
        return sum((part**2).sum() for part in jax.grad(loss)(args))

    args = tuple(args)
    tangents = tuple(jnp.ones_like(arg) for arg in args)
    _, forward = jax.jvp(lambda *args: compute(*args), args, tangents)
    return forward, jax.grad(loss)(args), jax.grad(length)(args)
