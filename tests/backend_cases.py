"""Specs and inputs that the tests of the backends share.

In: nothing. Out: `SPEC`, which has everything an emitter must spell (repeated labels, several
tensors, an invariant, composite and fixed axes), and `inputs` for it or for another spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

import symcompile as sc
from symcompile.spec import Fixed, axis_atoms, parse_spec, unflatten

MLP = {
    "params": {
        "Dense_0": {"kernel": (0, 1), "bias": (1,)},
        "Dense_1": {"kernel": (1, 2), "bias": (2,)},
    }
}

SPEC = {
    "w": ("a", "a"),
    "deep": [{"v": ("a", "b", "a")}, {"s": ()}],
    "heads": (("b", sc.Fixed(2)), sc.Fixed(3), "a"),
}

CUBE = {"cube": (0, 0, 0), "flat": (0,)}
"""Diagonals of diagonals, where sums in place are chained."""

SIZES = {"a": 3, "b": 4, 0: 3, 1: 4, 2: 2}


def inputs(
    spec: Any,
    channels: int,
    batch: tuple[int, ...] = (2,),
    sizes: Mapping[Any, int] = SIZES,
    seed: int = 0,
    dtype: Any = np.float64,
) -> Any:
    """A tree of normal arrays of shape (*batch, *axes, channels)."""
    rng = np.random.default_rng(seed)
    parsed = parse_spec(spec)
    leaves = []
    for leaf in parsed.leaves:
        axes = [
            prod((a.size or 0) if isinstance(a, Fixed) else sizes[a.label] for a in axis_atoms(x))
            for x in leaf.axes
        ]
        shape = (*batch, *axes, channels)
        array = rng.standard_normal(shape)
        if np.dtype(dtype).kind == "c":
            array = array + 1j * rng.standard_normal(shape)
        leaves.append(array.astype(dtype))
    return unflatten(parsed, leaves)


def random_weights(layer: Any, seed: int = 1, dtype: Any = np.float64) -> dict[str, Any]:
    """Weights with no zeros, so that no bias goes untested."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(shape), dtype)
        for name, shape in layer.compiled.shapes.items()
    }
