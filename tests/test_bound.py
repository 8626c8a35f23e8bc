"""What no plan can beat: no plan does, of whatever spec, terms and objective."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile.errors import OptionError

SIZES = {"a": 2, "b": 3, "c": 5}
tensors = st.lists(st.sampled_from(list(SIZES)), max_size=3).map(tuple)
specs = st.lists(tensors, min_size=1, max_size=3)


@st.composite
def terms(draw):
    """Keeps some of a layer's maps: by the number of blocks, or as a hash of the map falls."""
    if draw(st.booleans()):
        most = draw(st.integers(1, 3))
        return lambda output, input, diagram: len(diagram.blocks) <= most
    salt, share = draw(st.integers(0, 99)), draw(st.sampled_from([2, 5, 20]))

    def keep(output, input, diagram):
        # A hash of ints alone is the same in every run.
        return hash((salt, output, input, diagram.blocks)) % share == 0

    return keep


@settings(max_examples=150, deadline=None)
@given(
    spec=specs,
    out_spec=specs,
    keep=st.none() | terms(),
    minimize=st.sampled_from(["time", "bytes", "flops", "peak"]),
    optimize=st.sampled_from([False, "auto"]),
    bias=st.booleans(),
    reduce=st.sampled_from(["mean", "sum"]),
    rank=st.sampled_from([None, 1]),
)
def test_no_plan_beats_the_lower_bound(spec, out_spec, keep, rank, **options):
    try:
        plan = sc.plan(
            spec,
            out_spec,
            sizes={label: SIZES[label] for axes in (*spec, *out_spec) for label in axes},
            in_channels=2,
            out_channels=3,
            terms=keep,
            rank=rank,
            **options,
        )
    except OptionError:  # nothing is kept, or nothing is mixed: no layer
        assume(False)
    bound, planned = plan.lower_bound, plan.planned
    assert bound.bytes <= planned.bytes
    assert bound.peak <= planned.peak
    assert bound.seconds <= planned.seconds
    assert bound.launches <= planned.launches


def test_of_an_input_what_is_read_counts_and_held_it_is_whole():
    plan = sc.plan(
        {"w": (0, 0)},
        {"o": (0,)},
        sizes={0: 100},
        bias=False,
        terms=lambda output, input, diagram: len(diagram.blocks) == 1,
    )
    assert plan.lower_bound.bytes == plan.planned.bytes == 4 * (100 + 1 + 100)
    assert plan.lower_bound.peak == plan.planned.peak == 4 * (100 * 100 + 100)


@pytest.mark.parametrize("optimize", [False, "auto"])
def test_an_input_that_nothing_reads_is_free(optimize):
    plan = sc.plan(
        {"w": (0, 1), "idle": (2, 3)},
        {"o": (0,)},
        sizes={0: 5, 1: 5, 2: 50, 3: 50},
        bias=False,
        terms=sc.terms.shared_label,
        optimize=optimize,
    )
    assert plan.lower_bound.peak == 4 * (5 * 5 + 5)
    assert plan.lower_bound.bytes == 4 * (5 * 5 + plan.weights + 5)
    assert plan.planned.peak >= plan.lower_bound.peak
