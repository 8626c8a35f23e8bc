"""The reduction lattice, and the figures of a plan against counts made another way."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.diagrams import HalfDiagram, basis_size, half_diagrams
from symcompile.diagrams.half import canonical_half
from symcompile.ir import Mix, Reduce, types_of
from symcompile.planner import Column, PlanInfo, choose_parents, relative
from symcompile.planner.lattice import NOMINAL_SIZE

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


# -- who is reduced from whom -----------------------------------------------------------------


def entries(blocks, labels, sizes):
    return prod(sizes.get(labels[block[0]], NOMINAL_SIZE) for block in blocks)


@given(labels_of, st.dictionaries(st.sampled_from([0, 1]), st.integers(1, 100)), st.data())
def test_parents_lie_above_read_least_and_have_no_cycles(labels, sizes, data):
    halves = list(half_diagrams(labels))
    needed = data.draw(st.lists(st.sampled_from(halves), max_size=8, unique=True))
    parents = choose_parents(needed, labels, sizes)
    identity = halves[0]
    assert set(parents) == set(needed) - {identity}

    def read(parent, child):
        new = [block for block in child.closed if block not in parent.closed]
        return entries((*child.propagating, *new), labels, sizes)

    for child, parent in parents.items():
        options = {identity, *needed} - {child}
        assert parent in options
        assert relative(parent, child) is not None
        assert read(parent, child) == min(
            read(option, child) for option in options if relative(option, child) is not None
        )
        seen = {child}
        while parent != identity:
            assert parent not in seen
            seen.add(parent)
            parent = parents[parent]


def test_the_identity_needs_no_parent():
    assert choose_parents([FULL], (0, 0), {}) == {}
    assert choose_parents([], (0, 0), {}) == {}


def test_a_total_comes_from_the_shorter_of_two_margins():
    needed = [ROWS, COLUMNS, TOTAL]
    assert choose_parents(needed, (0, 1), {0: 784, 1: 512})[TOTAL] == COLUMNS
    assert choose_parents(needed, (0, 1), {0: 512, 1: 784})[TOTAL] == ROWS


def test_without_a_margin_at_hand_a_total_comes_from_the_tensor():
    assert choose_parents([TOTAL, TRACE], (0, 0), {})[TOTAL] == FULL


def test_a_trace_comes_from_the_diagonal():
    parents = choose_parents([TRACE, ON_DIAGONAL, ROWS], (0, 0), {})
    assert parents == {TRACE: ON_DIAGONAL, ON_DIAGONAL: FULL, ROWS: FULL}


def test_the_choice_does_not_depend_on_the_order_of_asking_where_costs_differ():
    needed = [ROWS, COLUMNS, TOTAL, FULL]
    sizes = {0: 3, 1: 4}
    assert choose_parents(needed, (0, 1), sizes) == choose_parents(needed[::-1], (0, 1), sizes)


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


def test_multiply_adds_are_those_of_a_matrix_product_at_the_propagating_size():
    rows_times_columns = 2 * 4
    expected = (
        (2 * 2) * rows_times_columns  # scalars
        + 5 * rows_times_columns  # label 0
        + 3 * (2 * 2) * rows_times_columns  # label 1
        + 5 * 3 * rows_times_columns
        + (1 * 4) * 2  # the constant, to two outputs
    )
    assert plan().planned.multiply_adds == expected


def test_the_reference_mixes_at_full_size():
    """Every map of the reference costs the output's entries times channels in and out."""
    maps_into = {(5, 3): 4 + 2, (3,): 2 + 2}
    expected = sum(prod(shape) * count * 2 * 4 for shape, count in maps_into.items())
    expected += 5 * 3 * 4 + 3 * 4  # the constant spread first, then mixed
    assert plan(optimize=False).planned.multiply_adds == expected
    assert plan(optimize=False).planned.mixes == plan().diagrams


@pytest.mark.parametrize("optimize", [False, "greedy", "auto"])
@pytest.mark.parametrize("spec", [SPEC, {"w": (0, 0)}, {"w": ("a", "b", "a"), "s": ()}])
def test_columns_count_the_program(optimize, spec):
    compiled = compile_spec(
        spec, in_channels=2, out_channels=3, optimize=optimize, keep_stages=True
    )
    labels = {label for t in compiled.program.inputs for label in t.labels}
    for info, program in (
        (compiled.plan.lowered, compiled.stages[0][1]),
        (compiled.plan.planned, compiled.program),
    ):
        kinds = [type(op) for op in program.ops]
        assert info.ops == len(program.ops)
        assert info.reductions == kinds.count(Reduce)
        assert info.mixes == kinds.count(Mix)
        made = [
            kind.width * NOMINAL_SIZE ** len(kind.labels)
            for op, kind in zip(program.ops, types_of(program), strict=True)
            if type(op).__name__ in ("Reduce", "Mix", "Concat", "Embed", "Add")
        ]
        assert info.elements == sum(made)
    assert {label for label, _ in compiled.plan.assumed} == labels


@pytest.mark.parametrize("spec", [{"w": (0, 0)}, {"w": (0, 0, 0), "v": (0, 0)}, {"v": (0, 0, 1)}])
def test_planning_saves_memory_traffic_where_labels_repeat(spec):
    info = sc.plan(spec, in_channels=4, out_channels=4)
    assert info.planned.elements < 0.75 * info.lowered.elements
    assert info.planned.multiply_adds == info.lowered.multiply_adds
    assert info.planned.reductions <= info.lowered.reductions


def test_sizes_that_are_not_bound_are_assumed_and_said_to_be():
    half_bound = sc.plan(SPEC, sizes={0: 5})
    assert half_bound.assumed == ((1, NOMINAL_SIZE),)
    assert "sizes not bound, figures assume {1: 64}" in str(half_bound)
    assert plan().assumed == ()
    assert "assume" not in str(plan())


# -- how it reads -----------------------------------------------------------------------------


def test_a_plan_prints_its_figures():
    info = plan()
    lines = str(info).split("\n")
    assert lines[0] == "plan (auto): 12 diagrams in 4 mixes, 88 weights"
    assert lines[1].split() == ["as", "lowered", "planned"]
    rows = {name: figures for name, *figures in map(str.split, lines[2:7])}
    for name in ("ops", "reductions", "mixes", "multiply_adds", "elements"):
        expected = [f"{getattr(column, name):,}" for column in (info.lowered, info.planned)]
        assert rows[name.replace("_", "-")] == expected
    assert [line.strip() for line in lines[8:]] == [
        "(): 2 -> 2",
        "(0,): 1 -> 1",
        "(1,): 2 -> 2",
        "(0, 1): 1 -> 1",
    ]


def test_a_plan_as_a_dict_is_plain_data_that_json_takes():
    info = plan(optimize="greedy")
    data = info.to_dict()
    assert data["optimize"] == "greedy"
    assert data["lowered"] == asdict(info.lowered)
    back = json.loads(json.dumps(data))
    assert set(back) == set(PlanInfo.__dataclass_fields__)
    assert back["planned"]["ops"] == info.planned.ops
    assert Column(**back["planned"]) == info.planned


def test_a_plan_of_hostile_labels_prints_in_ascii_on_its_own_lines():
    info = sc.plan({"x": ("a\nb", "鍵")})
    assert str(info).isascii()
    assert len(str(info).split("\n")) == len(str(sc.plan({"x": ("a", "b")})).split("\n"))


def test_planning_needs_shapes_only_however_large():
    start = time.perf_counter()
    info = sc.plan({"w": (0, 1)}, sizes={0: 10**9, 1: 10**9})
    assert time.perf_counter() - start < 0.5
    assert info.planned.multiply_adds > 10**18
