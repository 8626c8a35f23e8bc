"""The peak of the reference program in closed form, against that of the program itself.

The one thing to know: where a peak lies depends on which of inputs, features, embeddings and
products are large. So channels are drawn far apart, and `held_to_programs` compares exactly.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.spec import parse_spec
from tests.baselines import held_to_programs
from tests.laws.strategies import cases

F = sc.Fixed


def schema_of(spec, out_spec=None, **options):
    options = {"in_channels": 1, "out_channels": 1, "optimize": "greedy", **options}
    return compile_spec(spec, out_spec, **options).schema


def some_of(seed, share):
    """A predicate that keeps about this share of the basis, the same part every time."""
    return lambda *element: random.Random(f"{seed} {element}").random() < share


def times(tree, factor):
    if isinstance(tree, dict):
        return {key: times(child, factor) for key, child in tree.items()}
    if isinstance(tree, list):
        return [times(child, factor) for child in tree]
    return tree * factor


@settings(max_examples=150)
@given(
    cases(),
    st.sampled_from([(1, 1), (5, 1), (40, 1), (1, 7)]),
    st.sampled_from([None, None, 1, 2]),
    st.one_of(st.none(), st.tuples(st.integers(0, 1000), st.sampled_from([0.3, 0.6, 0.9]))),
)
def test_peaks_of_random_layers_are_those_of_their_programs(case, wide, rank, part):
    options = case.options | {
        "in_channels": times(case.in_channels, wide[0]),
        "out_channels": times(case.out_channels, wide[1]),
        "rank": rank,
    }
    if part is not None:
        options["terms"] = some_of(*part)
    try:
        schema = schema_of(case.spec, case.out_spec, **options)
    except sc.OptionError as error:
        if part is None or not str(error).startswith("terms"):
            raise
        return
    held_to_programs(schema, case.reduce)


PARTED = [
    ({"w": (0, 0)}, None),
    ({"x": (0,), "y": (0,)}, {"w": (0, 0), "v": (0, 0)}),
    ({"w": (0, 0), "v": (0, 1, 0)}, {"w": (0, 0, 1)}),
    ({"w": (0, F(2), 0), "v": (0,)}, {"w": (0, 0), "v": ((0, F(2)), 0)}),
]


@settings(max_examples=150)
@given(
    st.sampled_from(PARTED),
    st.integers(0, 1000),
    st.sampled_from([0.3, 0.6, 0.9]),
    st.sampled_from([1, 3, 30]),
    st.sampled_from([1, 3, 30]),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_peaks_hold_where_several_matrices_have_rows_and_spreads_in_common(
    specs, seed, share, cin, cout, rank, bias
):
    try:
        schema = schema_of(
            *specs,
            in_channels=cin,
            out_channels=cout,
            terms=some_of(seed, share),
            rank=rank,
            bias=bias,
        )
    except sc.OptionError as error:
        if not str(error).startswith("terms"):
            raise
        return
    held_to_programs(schema)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("channels", [(1, 1), (1, 20), (20, 1), (7, 3)])
@pytest.mark.parametrize(
    ("spec", "out_spec"),
    [
        ({"x": ()}, {"y": ((F(3), 0),)}),  # written out whole, then once more
        ({"a": (0, 1), "b": (1, 0)}, {"y": (1, 0)}),  # the first of two features is copied
        ({"x": (0,), "y": (0,)}, {"w": (0, 0), "v": (0, 0)}),  # embeddings wait, then go
        ({"x": ()}, {"y": (F(3),), "z": ()}),
        ({"x": (0, F(3), 1), "z": (F(2), 0)}, None),  # copied on the way in, or torn
        ({"x": (F(2), 0, 1)}, {"y": (1,)}),
        ({"x": (F(2), 0, 1), "z": (0, 0)}, {"y": (0,), "z": (0, 0)}),
        ({"x": ((1, 0), 0, F(2))}, {"y": ((0, F(2)), (1, 0)), "z": (1, 1)}),
        ({"a": (0, 0), "b": (0, 0)}, {"c": (0, 0), "d": (0, 0)}),
        ({"x": (0, 0, 0)}, {"y": (0,)}),
        ({"x": (0,), "y": ()}, {"z": ()}),
        ({"x": (0,)}, {"y": (0, 0, 0)}),
        ({"x": (0, 1)}, {"y": (1, 0)}),
    ],
    ids=str,
)
def test_peaks_of_chosen_layers_are_those_of_their_programs(spec, out_spec, channels, bias):
    parsed = [parse_spec(one) for one in (spec, spec if out_spec is None else out_spec)]
    sizes = {label: 4 + label for one in parsed for label in one.labels}
    cin, cout = channels
    for rank in (None, 1):
        options = {"in_channels": cin, "out_channels": cout, "rank": rank, "bias": bias}
        held_to_programs(schema_of(spec, out_spec, sizes=sizes, **options))


def test_the_constant_that_the_bias_spreads_is_alive():
    """Its one entry, while it is embedded for `a` and before `u` reads it as well."""

    def only_u(output, *_):
        return output == ("u",)

    outputs = {"a": (0, 0, 1), "u": ()}
    info = sc.plan({"x": ()}, outputs, sizes={0: 1, 1: 10}, terms=only_u)
    assert info.deduplicated.peak == 4 * (1 + 1 + 1 + 10 + 10)  # x, its product, and those of `a`
    held_to_programs(schema_of({"x": ()}, outputs, sizes={0: 1, 1: 10}, terms=only_u))


def test_inputs_with_channels_of_their_own_are_told_apart():
    spec = {"a": (0, 0), "b": (0, 0), "c": (0,), "d": (0, 0)}
    for seed in range(20):
        draw = random.Random(seed)
        channels = [{name: draw.choice([1, 2, 30]) for name in spec} for _ in range(2)]
        held_to_programs(schema_of(spec, in_channels=channels[0], out_channels=channels[1]))


def test_peaks_by_hand():
    # x, the product of its mean, that of x itself, and the sum of both; the mean is dropped.
    info = sc.plan({"x": (0,)}, sizes={0: 100}, bias=False, dtype="float32")
    assert info.reference.peak == info.deduplicated.peak == 4 * (100 + 1 + 100 + 100)
    # x of 50 channels, and while the second of two terms is mixed: its mean and both products.
    wide = sc.plan({"x": (0, 0)}, {"y": ()}, sizes={0: 10}, bias=False, in_channels=50)
    assert wide.reference.peak == wide.deduplicated.peak == 4 * (5000 + 50 + 1 + 1)


def test_shared_values_live_longer():
    """The means of 50 channels wait for the second output; alone they are dropped at once."""
    given = {"in_channels": 50, "out_channels": 1, "bias": False, "sizes": {0: 10}}
    info = sc.plan({"x": (0, 0)}, {"y": (), "z": ()}, **given)
    assert info.reference.peak == 4 * (5000 + 50 + 4)
    assert info.deduplicated.peak == 4 * (5000 + 2 * 50 + 3)
