"""A layer on NumPy arrays: `init(seed)` and `apply(params, x)`.

In: a `Compiled`. Out: an object with the same two calls as the JAX layer. Half types are computed
in float32 and rounded once, at the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from symcompile.codegen import Compiled, CompiledLayer
from symcompile.dtypes import numpy_dtype
from symcompile.errors import OptionError, ShapeError
from symcompile.ir import Program
from symcompile.spec import (
    Fixed,
    Label,
    Path,
    flatten_like,
    format_path,
    size_sources,
    unflatten,
)
from symcompile.weights import Scale
from symcompile_numpy.interpret import Array, run, stored_shape

__all__ = ["NumpyLayer"]


@dataclass(frozen=True)
class NumpyLayer(CompiledLayer):
    """A compiled layer, interpreted.

    >>> import numpy as np
    >>> import symcompile as sc
    >>> layer = sc.compile({"w": (0, 1), "b": (1,)}, in_channels=1, out_channels=4, backend="numpy")
    >>> x = {"w": np.ones((5, 3, 2, 1)), "b": np.ones((5, 2, 1))}
    >>> layer.apply(layer.init(0), x)["w"].shape
    (5, 3, 2, 4)
    """

    compiled: Compiled
    backend = "numpy"

    def __repr__(self) -> str:
        return f"NumpyLayer({self.describe()})"

    @property
    def program(self) -> Program:
        """What is computed."""
        return self.compiled.program

    @property
    def source(self) -> str:
        """The program as text: this backend interprets it."""
        return str(self.compiled.program)

    def init(self, seed: int | np.random.Generator, dtype: Any = None) -> dict[str, Array]:
        """Draw weights.

        Args:
            seed: an int or a NumPy generator.
            dtype: of the weights; default the layer's, else float32.

        Returns:
            arrays by name, in the canonical schema.

        Raises:
            OptionError: the dtype is neither floating nor complex.
        """
        rng = np.random.default_rng(seed)
        kind = numpy_dtype(dtype or self.compiled.dtype or "float32")
        if not _is_inexact(kind):
            raise OptionError(f"dtype={dtype!r} is none of weights; give a floating or complex one")
        scales = {scale.weight: scale for scale in self.compiled.scales}
        return {
            name: _draw(rng, shape, scales.get(name), kind)
            for name, shape in self.compiled.program.weights
        }

    def apply(self, params: Mapping[str, Any], x: Any) -> Any:
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
        program = self.compiled.program
        leaves = [
            _array(leaf, tensor.path)
            for leaf, tensor in zip(flatten_like(self.spec, x), program.inputs, strict=True)
        ]
        sizes = self._sizes(leaves)
        if not isinstance(params, Mapping):
            raise ShapeError(
                f"params: found {type(params).__name__}, expected a dict of arrays by name"
            )
        weights = {name: np.asarray(value) for name, value in params.items()}
        for name, shape in program.weights:
            if name not in weights:
                raise ShapeError(
                    f"params has no {name!r}; expected {sorted(dict(program.weights))}"
                )
            if weights[name].shape != shape:
                raise ShapeError(
                    f"params[{name!r}] has shape {weights[name].shape}, expected {shape}"
                )
        kind = np.result_type(*leaves)
        if not _is_inexact(kind):
            kind = np.result_type(*weights.values())
        if not _is_inexact(kind):
            kind = np.result_type(kind, np.float32)  # means are no integers
        if any(weight.dtype.kind == "c" for weight in weights.values()):
            kind = np.result_type(kind, np.complex64)
        inner = np.dtype(np.float32) if kind.itemsize <= 2 else kind
        outputs = run(
            program,
            {name: value.astype(inner) for name, value in weights.items()},
            [leaf.astype(inner) for leaf in leaves],
            sizes,
        )
        return unflatten(self.compiled.out_spec, [output.astype(kind) for output in outputs])

    def _sizes(self, leaves: list[Array]) -> dict[Label, int]:
        """Read label sizes off the inputs, and check every axis and the batch axes."""
        tensors = self.compiled.program.inputs
        for leaf, tensor in zip(leaves, tensors, strict=True):
            if leaf.ndim < len(tensor.axes) + 1:
                raise ShapeError(
                    f"x{format_path(tensor.path)} has shape {leaf.shape}, expected at least "
                    f"{len(tensor.axes) + 1} axes: (*batch, {len(tensor.axes)} axes, channels)"
                )
        sizes = dict(self.compiled.program.sizes)
        for label, source in size_sources(self.spec):
            if isinstance(source, int):
                sizes[label] = source
            elif label not in sizes:
                index, axis, others = source
                length = leaves[index].shape[axis - len(tensors[index].axes) - 1]
                for atom in others:
                    length //= (atom.size or 1) if isinstance(atom, Fixed) else sizes[atom.label]
                sizes[label] = length
        batch = leaves[0].shape[: leaves[0].ndim - len(tensors[0].axes) - 1]
        for leaf, tensor in zip(leaves, tensors, strict=True):
            stored = stored_shape(tensor, sizes)
            expected = (*batch, *stored, tensor.channels)
            if leaf.shape != expected:
                raise ShapeError(
                    f"x{format_path(tensor.path)} has shape {leaf.shape}, expected {expected}: "
                    f"batch axes {batch}, axes {tuple(stored)}, channels {tensor.channels}"
                )
        return sizes


def _array(leaf: Any, path: Path) -> Array:
    # A list of numbers would convert too, and hide a tree that is nested too deep.
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise ShapeError(
            f"x{format_path(path)}: found a {type(leaf).__name__} object, expected an array"
        )
    return np.asarray(leaf)


def _is_inexact(kind: np.dtype[Any]) -> bool:
    # bfloat16 is a float that NumPy files under "void".
    return kind.kind in "fc" or kind.name == "bfloat16"


def _draw(
    rng: np.random.Generator, shape: tuple[int, ...], scale: Scale | None, kind: np.dtype[Any]
) -> Array:
    if scale is None:
        return np.zeros(shape, kind)
    length, factor, is_direct = zip(*scale.rows, strict=True)
    factors, tops = np.repeat(factor, length), np.flatnonzero(np.repeat(is_direct, length))
    length, base, direct = zip(*scale.cols, strict=True)
    bases, deviations = np.repeat(base, length), np.repeat(direct, length)
    lefts = np.flatnonzero(deviations)
    values = _noise(rng, shape, kind) * (factors[:, None] * bases)
    if tops.size and lefts.size:
        block = _noise(rng, (tops.size, lefts.size), kind)
        if scale.orthogonal:
            block = _orthogonal(block)
        values[np.ix_(tops, lefts)] = block * deviations[lefts]
    return np.asarray(values).astype(kind)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    noise = rng.standard_normal(shape)
    if kind.kind == "c":
        return np.asarray((noise + 1j * rng.standard_normal(shape)) / np.sqrt(2))
    return noise


def _orthogonal(noise: Array) -> Array:
    """A random matrix whose shorter side is orthogonal; entries keep unit variance."""
    if noise.shape[0] < noise.shape[1]:
        return _orthogonal(noise.T).T
    q, r = np.linalg.qr(noise)
    # The signs make it uniform over orthogonal matrices (Mezzadri, arXiv math-ph/0609050).
    phase = np.diagonal(r) / np.abs(np.diagonal(r))
    return np.asarray(q * phase * np.sqrt(noise.shape[0]))
