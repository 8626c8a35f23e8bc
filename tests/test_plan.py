"""What lies below what, and the counts of a plan.

Figures of work are held to running code in test_cost, the search to optimality in test_search, and
the report's text in test_report.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.cost.objective import NOMINAL_SIZE
from symcompile.diagrams import HalfDiagram, basis_size, half_diagrams
from symcompile.diagrams.half import canonical_half
from symcompile.ir import Mix
from symcompile.planner import relative

FULL = HalfDiagram(((0,), (1,)), ())
ROWS = HalfDiagram(((0,),), ((1,),))
COLUMNS = HalfDiagram(((1,),), ((0,),))
ON_DIAGONAL = HalfDiagram(((0, 1),), ())
TRACE = HalfDiagram((), ((0, 1),))
TOTAL = HalfDiagram((), ((0,), (1,)))

labels_of = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=4).map(tuple)


# -- the lattice ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("above", "below", "expected"),
    [
        (FULL, FULL, HalfDiagram(((0,), (1,)), ())),
        (FULL, ROWS, HalfDiagram(((0,),), ((1,),))),
        (FULL, COLUMNS, HalfDiagram(((1,),), ((0,),))),
        (FULL, ON_DIAGONAL, HalfDiagram(((0, 1),), ())),
        (FULL, TRACE, HalfDiagram((), ((0, 1),))),
        (FULL, TOTAL, HalfDiagram((), ((0,), (1,)))),
        (ROWS, TOTAL, HalfDiagram((), ((0,),))),
        (COLUMNS, TOTAL, HalfDiagram((), ((0,),))),
        (ON_DIAGONAL, TRACE, HalfDiagram((), ((0,),))),
    ],
)
def test_what_lies_below_is_written_over_the_blocks_above(above, below, expected):
    assert relative(above, below) == expected


@pytest.mark.parametrize(
    ("above", "below"),
    [
        (ROWS, FULL),  # a closed block stays closed
        (TOTAL, ROWS),
        (ROWS, COLUMNS),
        (ROWS, ON_DIAGONAL),  # nothing joins a closed block
        (ROWS, TRACE),
        (ON_DIAGONAL, FULL),  # a block stays whole
        (ON_DIAGONAL, ROWS),
        (ON_DIAGONAL, TOTAL),
        (TRACE, TOTAL),
        (TOTAL, TRACE),
    ],
)
def test_what_does_not_lie_below_is_none(above, below):
    assert relative(above, below) is None


def composed(step: HalfDiagram, above: HalfDiagram, labels):
    """What `step`, over the propagating blocks of `above`, makes of it."""

    def joined(block):
        return tuple(sorted(axis for place in block for axis in above.propagating[place]))

    return canonical_half(
        [joined(block) for block in step.propagating],
        [*above.closed, *map(joined, step.closed)],
        labels,
    )


@given(labels_of)
def test_relative_is_defined_exactly_where_a_step_leads_down(labels):
    halves = list(half_diagrams(labels))
    for above in halves[:40]:
        reached = {composed(step, above, labels) for step in half_diagrams(above.signature(labels))}
        for below in halves:
            step = relative(above, below)
            assert (step is not None) == (below in reached)
            if step is not None:
                assert composed(step, above, labels) == below


@given(labels_of)
def test_every_half_diagram_lies_below_the_identity_and_below_itself(labels):
    identity, *rest = half_diagrams(labels)
    for half in rest:
        assert relative(identity, half) is not None
        step = relative(half, half)
        assert step is not None
        assert step.is_identity


@given(labels_of)
def test_two_half_diagrams_below_each_other_are_one(labels):
    halves = list(half_diagrams(labels))[:60]
    for one in halves:
        for other in halves:
            if relative(one, other) is not None and relative(other, one) is not None:
                assert one == other


# -- the figures ------------------------------------------------------------------------------

SPEC = {"kernel": (0, 1), "bias": (1,)}
SHAPES = {"kernel": (5, 3), "bias": (3,)}


def plan(**options):
    return sc.plan(SPEC, shapes=SHAPES, in_channels=2, out_channels=4, **options)


def test_diagrams_count_maps_and_biases():
    labels = [(0, 1), (1,)]
    assert plan().diagrams == basis_size(labels, labels) + 2
    assert plan(bias=False).diagrams == basis_size(labels, labels)


def test_diagrams_are_as_many_as_the_layer_s_basis_also_when_pruned():
    for spec, sizes in (({"w": (0, 0)}, {0: 2}), (SPEC, {0: 1, 1: 1}), ({"w": (0, 0, 0)}, {0: 3})):
        layer = sc.compile(spec, sizes=sizes, in_channels=1, out_channels=1, backend="numpy")
        assert layer.plan.diagrams == len(layer.basis)


def test_signatures_list_in_features_and_out_half_diagrams_of_each_mix():
    assert plan().signatures == (((), 2, 2), ((0,), 1, 1), ((1,), 2, 2), ((0, 1), 1, 1))


def test_three_to_three_becomes_four_mixes():
    """The figures of the design: 203 terms, mixes of 5, 10, 6 and 1 in-features."""
    info = sc.plan({"w": (0, 0, 0)}, bias=False)
    assert info.diagrams == 203
    in_features = {signature: columns for signature, _, columns in info.signatures}
    assert in_features == {(): 5, (0,): 10, (0, 0): 6, (0, 0, 0): 1}


def test_weights_count_the_scalars_of_a_checkpoint():
    params = sc.compile(SPEC, in_channels=2, out_channels=4, backend="numpy").init(0)
    assert plan().weights == sum(value.size for value in params.values())


def test_a_plan_reduces_and_mixes_once_per_feature_and_signature():
    # Rows, columns and all of the kernel, all of the bias; four signatures.
    assert (plan().planned.reductions, plan().planned.mixes) == (4, 4)


@pytest.mark.parametrize("channels", [(1, 16), (16, 1)])
@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("spec", [SPEC, {"w": (0, 0, 0)}, {"w": (0, 0), "v": (0,)}], ids=str)
def test_a_plan_mixes_once_per_matrix_however_each_is_computed(spec, rank, channels):
    compiled = compile_spec(spec, in_channels=channels[0], out_channels=channels[1], rank=rank)
    first = {weight.factors.into for weight in compiled.schema.weights if weight.factors}
    mixed = {op.weight for op in compiled.program.ops if isinstance(op, Mix)}
    assert compiled.plan.planned.mixes == len(mixed - first - {"bias"})


def test_a_mix_in_several_matmuls_is_one():
    info = sc.plan({"w": (0, 0, 0)}, in_channels=16, out_channels=1)
    assert {mix.chosen for mix in info.mixes} > {"stacked"}
    assert (info.planned.mixes, info.reference.mixes) == (4, 203)


def test_the_reference_mixes_once_per_map():
    maps = plan(bias=False).diagrams
    assert plan(optimize=False).planned.mixes == plan().reference.mixes == maps
    assert plan().deduplicated.mixes == maps
    assert plan(optimize=False).planned.peak == plan().reference.peak
    assert plan(optimize=False).planned.launches == plan().reference.launches


def test_planning_never_does_worse_than_the_baselines():
    for spec in ({"w": (0, 0)}, {"w": (0, 0, 0), "v": (0, 0)}, {"v": (0, 0, 1)}, SPEC):
        info = sc.plan(spec, in_channels=4, out_channels=4)
        for figure in ("reductions", "mixes", "launches", "flops", "bytes", "seconds"):
            least, planned = getattr(info.deduplicated, figure), getattr(info.planned, figure)
            assert planned <= least <= getattr(info.reference, figure), figure
        assert info.lower_bound.bytes <= info.planned.bytes
        assert info.lower_bound.peak <= info.planned.peak
        assert info.lower_bound.seconds <= info.planned.seconds


def test_sizes_that_are_not_bound_are_assumed_and_said_to_be():
    half_bound = sc.plan(SPEC, sizes={0: 5})
    assert half_bound.assumed == ((1, NOMINAL_SIZE),)
    assert "sizes not bound, figures assume 64 for: 1" in str(half_bound)
    assert plan().assumed == ()
    assert "assume" not in str(plan())


def test_planning_needs_shapes_only_however_large():
    start = time.process_time()
    info = sc.plan({"w": (0, 1)}, sizes={0: 10**9, 1: 10**9})
    assert time.process_time() - start < 0.5
    assert info.planned.flops > 10**18


def test_of_forms_that_take_as_long_the_one_that_holds_least_is_taken():
    options = {"in_channels": 32, "out_channels": 32, "sizes": {"n": 64}}
    plan = sc.plan({"w": ("n", "n")}, **options)
    mix = next(mix for mix in plan.mixes if mix.weight == "mix_n_n")
    assert mix.chosen == "transposed after"
    scores = dict(mix.scores)
    assert scores["transposed after"] <= 1.02 * min(scores.values())
    exact = sc.plan({"w": ("n", "n")}, **options, minimize="bytes")
    for mix in exact.mixes:
        assert mix.scores[0][1] == min(score for _, score in mix.scores)
