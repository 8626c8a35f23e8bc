"""A compiled layer as two pure functions on JAX arrays.

In: a `Compiled`. Out: an object with `init(key)` and `apply(params, x)` from the generated module.
It is frozen, hashable and picklable, so it can be closed over or passed as a static argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from symcompile.codegen import Compiled, CompiledLayer, load_module
from symcompile.errors import OptionError
from symcompile_jax.emit import emit
from symcompile_jax.width import require_width

__all__ = ["JaxLayer", "build"]


@dataclass(frozen=True)
class JaxLayer(CompiledLayer):
    """What `symcompile.compile(..., backend="jax")` returns.

    >>> import jax, jax.numpy as jnp, symcompile as sc
    >>> layer = sc.compile({"w": (0, 1), "b": (1,)}, in_channels=1, out_channels=4, backend="jax")
    >>> params = layer.init(jax.random.key(0))
    >>> y = layer.apply(params, {"w": jnp.ones((5, 3, 2, 1)), "b": jnp.ones((5, 2, 1))})
    >>> y["w"].shape
    (5, 3, 2, 4)
    """

    compiled: Compiled
    backend = "jax"

    def __repr__(self) -> str:
        return f"JaxLayer({self.describe()})"

    @cached_property
    def source(self) -> str:
        """The generated file: it needs jax, not symcompile."""
        return emit(self.compiled)

    @cached_property
    def module(self) -> ModuleType:
        """The generated module, imported."""
        return load_module(self.source, "jax")

    def __getstate__(self) -> dict[str, Any]:
        return {"compiled": self.compiled}  # a module does not pickle; it is loaded again

    def init(self, key: Any, dtype: Any = None) -> dict[str, Any]:
        """Draw weights.

        Args:
            key: of `jax.random`.
            dtype: of the weights; default what the layer was compiled for, else float32.

        Returns:
            a dict of arrays by name, of the shapes that `layer.compiled.shapes` has.

        Raises:
            OptionError: the dtype is neither floating nor complex.
            BackendError: it has 64 bits, and JAX rounds those to 32.
        """
        if dtype is not None and not jnp.issubdtype(dtype, jnp.inexact):
            raise OptionError(f"dtype={dtype!r} is none of weights; give a floating or complex one")
        require_width(dtype or self.compiled.dtype or "float32")
        params: dict[str, Any] = self.module.init(key, dtype)
        return params

    def apply(self, params: Any, x: Any) -> Any:
        """The layer's output.

        Args:
            params: arrays by name.
            x: a tree like the spec; a leaf has shape (*batch, *axes, channels).

        Returns:
            a tree like the output spec, in the inputs' common dtype; the weights' where inputs are
            integers, a complex one where weights are complex.

        Raises:
            ShapeError: `x` or `params` does not fit.
        """
        return self.module.apply(params, x)


def build(compiled: Compiled) -> JaxLayer:
    """Generate and load."""
    layer = JaxLayer(compiled)
    _ = layer.module  # fail here rather than at the first call
    return layer
