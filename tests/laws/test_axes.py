"""Laws of axes: composite axes are reshaped plain ones, fixed axes are channels.

The same weights serve both forms, and give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from hypothesis import given, settings

import symcompile as sc
from symcompile.spec import Fixed, Leaf, Perm, PermSpec, resolve_channels, unflatten
from tests.laws.strategies import Case, cases, leaves_of, normal_weights

Array = np.ndarray[Any, Any]


def atom_shape(leaf: Leaf, case: Case) -> list[int]:
    return [a.size or 0 if isinstance(a, Fixed) else case.sizes[a.label] for a in leaf.atoms]


def outputs(
    case: Case,
    write: Callable[[Leaf], tuple[Any, ...]],
    channels: Callable[[Leaf, int], int],
    change: Callable[[Leaf, Array], Array],
) -> tuple[list[Array], list[Array]]:
    """Outputs of the layer as drawn and of the rewritten one, from the same weights.

    `write` rewrites a leaf of a spec, `channels` its channels, `change` an input or output array.
    """
    layer = sc.compile(case.spec, case.out_spec, backend="numpy", **case.options)
    source, target = case.source, case.target

    def rewritten(spec: PermSpec, given: Any, what: str) -> tuple[Any, Any]:
        counts = resolve_channels(spec, given, what)
        return (
            unflatten(spec, [write(leaf) for leaf in spec.leaves]),
            unflatten(
                spec, [channels(leaf, n) for leaf, n in zip(spec.leaves, counts, strict=True)]
            ),
        )

    spec, in_channels = rewritten(source, case.in_channels, "in_channels")
    out_spec, out_channels = rewritten(target, case.out_channels, "out_channels")
    options = case.options | {"in_channels": in_channels, "out_channels": out_channels}
    other = sc.compile(spec, out_spec, backend="numpy", **options)
    assert other.compiled.shapes == layer.compiled.shapes

    rng = np.random.default_rng(case.seed)
    weights = normal_weights(rng, layer.compiled.shapes)
    x = case.inputs(rng, batch=(2,))
    moved = [change(leaf, value) for leaf, value in zip(source.leaves, x, strict=True)]
    y = leaves_of(target, layer.apply(weights, unflatten(source, x)))
    found = leaves_of(target, other.apply(weights, unflatten(source, moved)))
    return [change(leaf, v) for leaf, v in zip(target.leaves, y, strict=True)], found


@settings(max_examples=80)
@given(cases(max_weights=1_500))
def test_composite_axes_are_reshaped_plain_ones(case: Case) -> None:
    wanted, found = outputs(
        case,
        lambda leaf: tuple(a.label if isinstance(a, Perm) else a for a in leaf.atoms),
        lambda leaf, count: count,
        lambda leaf, value: value.reshape(2, *atom_shape(leaf, case), value.shape[-1]),
    )
    for one, other in zip(wanted, found, strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one, other)


@settings(max_examples=80)
@given(cases(max_weights=1_500))
def test_fixed_axes_are_channels(case: Case) -> None:
    def fold(leaf: Leaf, value: Array) -> Array:
        extent = atom_shape(leaf, case)
        value = value.reshape(2, *extent, value.shape[-1])
        fixed = [place for place, atom in enumerate(leaf.atoms) if isinstance(atom, Fixed)]
        # From the first on, each goes behind all permuted axes, which keeps their order.
        for done, place in enumerate(fixed):
            value = np.moveaxis(value, 1 + place - done, -2)
        width = prod(extent[place] for place in fixed)
        kept = [n for place, n in enumerate(extent) if place not in fixed]
        return value.reshape(2, *kept, width * value.shape[-1])

    wanted, found = outputs(
        case,
        lambda leaf: leaf.labels,
        lambda leaf, count: count * prod(atom.size or 0 for atom in leaf.fixed),
        fold,
    )
    for one, other in zip(wanted, found, strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one, other)
