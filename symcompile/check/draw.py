"""Random sizes, weights, inputs and permutations, and the group action on arrays.

In: specs, sizes and a NumPy generator. Out: NumPy arrays of shape (*batch, *axes, channels). The
one thing to know: `permute` is the definition of the symmetry that every check holds a layer to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from symcompile.dtypes import numpy_dtype
from symcompile.errors import OptionError
from symcompile.spec import Fixed, Label, Leaf, Perm, PermSpec, axis_atoms, label_order

__all__ = [
    "Array",
    "atom_sizes",
    "draw",
    "draw_permutations",
    "dtype_of",
    "labels_of",
    "permute",
    "stored_shape",
    "tolerance_of",
    "wide",
]

Array: TypeAlias = np.ndarray[Any, Any]

_TOLERANCES = {"float64": 1e-12, "complex128": 1e-12, "float32": 1e-5, "complex64": 1e-5}
_HALF_TOLERANCES = {"float16": 2.0**-6, "bfloat16": 2.0**-3}  # 16 units of rounding


def dtype_of(name: str) -> np.dtype[Any]:
    """A NumPy dtype by name, bfloat16 included.

    Raises:
        OptionError: no such float or complex dtype.
        BackendError: bfloat16 without `ml_dtypes`.
    """
    if name not in _TOLERANCES | _HALF_TOLERANCES:
        known = ", ".join(map(repr, _TOLERANCES | _HALF_TOLERANCES))
        raise OptionError(f"dtype={name!r} cannot be checked; choose one of {known}")
    return numpy_dtype(name)


def tolerance_of(dtype: np.dtype[Any]) -> float:
    """Largest error, relative to the largest output, that rounding in `dtype` explains."""
    return (_TOLERANCES | _HALF_TOLERANCES).get(dtype.name, 1e-12)


def wide(value: Array) -> Array:
    """As float64 or complex128, so that differences of half types are exact."""
    return value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)


def labels_of(*specs: PermSpec) -> tuple[Label, ...]:
    """All labels of some specs, in canonical order."""
    return tuple(sorted({label for spec in specs for label in spec.labels}, key=label_order))


def atom_sizes(leaf: Leaf, sizes: Mapping[Label, int]) -> list[int]:
    """Sizes of a leaf's axes after every composite is split."""
    return [_size(atom, sizes) for atom in leaf.atoms]


def stored_shape(leaf: Leaf, sizes: Mapping[Label, int]) -> tuple[int, ...]:
    """Sizes of a leaf's stored axes, without batch and channels."""
    return tuple(prod(_size(atom, sizes) for atom in axis_atoms(axis)) for axis in leaf.axes)


def _size(atom: Perm | Fixed, sizes: Mapping[Label, int]) -> int:
    return sizes[atom.label] if isinstance(atom, Perm) else atom.size or 0


def draw(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Standard normal entries; complex ones have independent parts."""
    value = rng.standard_normal(tuple(shape))
    if dtype.kind == "c":
        value = value + 1j * rng.standard_normal(tuple(shape))
    return np.asarray(value).astype(dtype)


def draw_permutations(rng: np.random.Generator, sizes: Mapping[Label, int]) -> dict[Label, Array]:
    """One permutation per label, never the identity where there is another."""
    permutations = {}
    for label, size in sizes.items():
        chosen = rng.permutation(size)
        while size > 1 and np.array_equal(chosen, np.arange(size)):
            chosen = rng.permutation(size)
        permutations[label] = chosen
    return permutations


def permute(
    value: Array, leaf: Leaf, sizes: Mapping[Label, int], permutations: Mapping[Label, Array]
) -> Array:
    """Let one permutation per label act on a tensor of shape (*batch, *axes, channels).

    Every axis, and every part of a composite axis, is indexed by the permutation of its label;
    batch, fixed and channel axes, and labels that have no permutation, stay.

    >>> from symcompile.spec import parse_spec
    >>> (leaf,) = parse_spec((("a", "b"),)).leaves
    >>> value = np.array([[0], [1], [10], [11], [20], [21]])
    >>> swap = {"b": np.array([1, 0])}
    >>> permute(value, leaf, {"a": 3, "b": 2}, swap)[:, 0].tolist()
    [1, 0, 11, 10, 21, 20]
    """
    lead = value.ndim - len(leaf.axes) - 1
    split = value.reshape(*value.shape[:lead], *atom_sizes(leaf, sizes), value.shape[-1])
    for axis, atom in enumerate(leaf.atoms):
        if isinstance(atom, Perm) and atom.label in permutations:
            split = split.take(permutations[atom.label], axis=lead + axis)
    return split.reshape(value.shape)
