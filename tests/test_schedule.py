"""The order of ops: peaks counted another way, and the best of all orders where there are few."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.cost import work_of
from symcompile.cost.memory import Footprint, footprint, peak_entries
from symcompile.cost.objective import MINIMIZE, Objective
from symcompile.errors import OptionError, PlanError
from symcompile.ir import Output, diagrams_of, verify
from symcompile.passes import schedule
from symcompile.passes.schedule import plan_schedule, reorder
from tests.laws.strategies import cases

SMALL = [
    ({"x": (0,)}, None),
    ({"w": (0, 1)}, {"r": (0,), "c": (1,), "t": ()}),
    ({"w": (0, 0)}, {"d": (0,)}),
    ({"a": (0,), "b": (1,)}, None),
    ({"x": (0, 0)}, ()),
]
LARGE = [{"w": (0, 0, 0)}, {"w": (0, 1), "v": (1, 2), "b": (1,)}, {"w": ("a", "b", "a")}]
SIZES = {0: 7, 1: 5, 2: 3, "a": 5, "b": 4}


def program_of(spec, out_spec=None, **options):
    return compile_spec(spec, out_spec, in_channels=2, out_channels=3, **options).program


def every_order(program):
    """All topological orders, by depth-first search."""
    count = len(program.ops)

    def extend(order, done):
        if len(order) == count:
            yield tuple(order)
            return
        for op in range(count):
            if op not in done and all(arg in done for arg in program.ops[op].args):
                yield from extend([*order, op], done | {op})

    return extend([], frozenset())


def least_peak(program, facts):
    """The least peak of any order: sets of ops already run, every way to reach each."""
    count = len(program.ops)
    best = {frozenset(): facts.held}
    layer = dict(best)
    for _ in range(count):
        reached = {}
        for done, peak in layer.items():
            for op in range(count):
                if op in done or not all(arg in done for arg in program.ops[op].args):
                    continue
                during = alive(facts, done) + facts.made[op] + facts.transient[op]
                after = done | {op}
                reached[after] = min(reached.get(after, 1 << 62), max(peak, during))
        layer = reached
    return layer[frozenset(range(count))]


def alive(facts: Footprint, done):
    """Entries held once the ops in `done` have run: what someone still reads, and outputs."""
    total = facts.held
    for made_by in done:
        wanted = any(made_by in facts.reads[op] for op in range(len(facts.made)) if op not in done)
        if wanted or made_by in facts.kept:
            total += facts.made[made_by]
    return total


def simulated_peak(facts: Footprint, order):
    """The peak, by looking at who is still wanted before every op."""
    done, peak = set(), facts.held
    for op in order:
        peak = max(peak, alive(facts, done) + facts.made[op] + facts.transient[op])
        done.add(op)
    return peak


@pytest.mark.parametrize(("spec", "out_spec"), SMALL, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_small_programs_get_the_least_peak_of_all_orders(spec, out_spec, bias):
    objective = Objective(sizes=tuple(SIZES.items()))
    program = program_of(spec, out_spec, bias=bias)
    facts = footprint(program, SIZES)
    plan = plan_schedule(program, objective)
    assert plan.exact
    assert plan.peak == least_peak(program, facts) == simulated_peak(facts, plan.order)


def test_the_search_over_sets_is_the_search_over_orders():
    program = program_of({"x": (0,)}, bias=False)
    facts = footprint(program, SIZES)
    peaks = [simulated_peak(facts, order) for order in every_order(program)]
    assert len(peaks) > 1
    assert min(peaks) == least_peak(program, facts)


@settings(max_examples=40)
@given(st.data())
def test_exact_search_on_random_graphs_is_exact(data):
    """Random op graphs as footprints, so that sizes pull in different directions."""
    count = data.draw(st.integers(2, 7))
    args = [
        tuple(data.draw(st.sets(st.integers(0, k - 1), max_size=2))) if k else ()
        for k in range(count)
    ]
    read = {arg for each in args for arg in each}
    facts = Footprint(
        made=tuple(data.draw(st.integers(1, 9)) for _ in range(count)),
        transient=tuple(data.draw(st.integers(0, 5)) for _ in range(count)),
        reads=tuple(frozenset(each) for each in args),
        held=data.draw(st.integers(0, 3)),
        kept=frozenset(set(range(count)) - read),
    )
    ops = tuple(type("Op", (), {"args": each})() for each in args)
    program = type("Graph", (), {"ops": ops})()
    order, least = schedule._exact(program, facts, 1 << 40)
    assert least == least_peak(program, facts) == simulated_peak(facts, order)
    assert peak_entries(facts, order) == least


@settings(max_examples=50)
@given(cases())
def test_peaks_are_those_of_a_plain_simulation(case):
    compiled = compile_spec(case.spec, case.out_spec, **case.options)
    program = compiled.program
    facts = footprint(program, case.sizes)
    assert peak_entries(facts) == simulated_peak(facts, range(len(program.ops)))


@settings(max_examples=50)
@given(cases())
def test_a_schedule_keeps_the_meaning_and_is_never_worse(case):
    program = compile_spec(case.spec, case.out_spec, **case.options).program
    plan = plan_schedule(program, Objective(sizes=tuple(case.sizes.items())))
    after = verify(reorder(program, plan.order))
    assert sorted(plan.order) == list(range(len(program.ops)))
    assert diagrams_of(after) == diagrams_of(program)
    assert plan.peak <= plan.before
    facts = footprint(after, case.sizes)
    assert peak_entries(facts) == plan.peak
    assert sum(w.launches for w in work_of(after)) == sum(w.launches for w in work_of(program))


@pytest.mark.parametrize("spec", LARGE, ids=str)
def test_a_schedule_is_the_same_twice(spec):
    program = program_of(spec)
    assert plan_schedule(program, Objective()) == plan_schedule(program, Objective())


def test_outputs_live_on_and_inputs_throughout():
    program = program_of({"x": (0,)}, bias=False)
    facts = footprint(program, {0: 5})
    assert facts.held == 5 * 2
    outputs = [op.args[0] for op in program.ops if isinstance(op, Output)]
    assert facts.kept == frozenset(outputs)
    assert peak_entries(facts) >= 5 * 2 + 5 * 3


# -- memory limits ----------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [{"x": (0,)}, *LARGE], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_limit_that_cannot_be_met_is_refused_with_the_one_that_can(spec, dtype):
    options = {"in_channels": 2, "out_channels": 3, "sizes": sizes_of(spec), "dtype": dtype}
    with pytest.raises(PlanError, match=r"memory_limit=1 bytes cannot be met") as caught:
        compile_spec(spec, memory_limit=1, **options)
    least = int(str(caught.value).split("peak is ")[1].split(" bytes")[0].replace(",", ""))
    met = compile_spec(spec, memory_limit=least, **options)
    assert met.plan.planned.peak == least
    with pytest.raises(PlanError, match="raise the limit"):
        compile_spec(spec, memory_limit=least - 1, **options)


def sizes_of(spec):
    return {label: SIZES[label] for axes in spec.values() for label in axes}


def only_the_tensor(output, input, diagram):
    return len(diagram.blocks) == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [({"terms": only_the_tensor, "bias": False}, "possible"), ({}, "found")],
)
def test_a_refusal_claims_no_more_than_was_proven(options, word):
    with pytest.raises(PlanError, match=f"the least {word} peak") as caught:
        sc.plan({"x": (0,)}, memory_limit=1, **options)
    # Nothing but the input and the output: no plan holds less.
    assert ("is 512 bytes" in str(caught.value)) == (word == "possible")


SQUARE = {"sizes": {0: 20}, "in_channels": 16, "out_channels": 2, "machine": "h100"}


def test_a_limit_that_another_objective_meets_is_met_and_the_report_says_how():
    free, least = (sc.plan({"w": (0, 0)}, minimize=m, **SQUARE) for m in ("time", "peak"))
    assert least.planned.peak < free.planned.peak
    met = sc.plan({"w": (0, 0)}, memory_limit=least.planned.peak, **SQUARE)
    assert met.planned == least.planned
    assert (met.asked, met.minimize) == ("time", "peak")
    told = "no plan for least time fits memory_limit: planned for least peak"
    assert f"  {told}\n" in str(met)
    assert met.explain().splitlines()[0] == told
    assert met.to_dict()["asked"] == "time"
    assert "memory_limit" not in str(free) + free.explain()


@pytest.mark.parametrize("minimize", ["time", "bytes", "flops", "peak"])
def test_a_refusal_names_the_smallest_peak_of_all_that_was_tried(minimize):
    least = min(sc.plan({"w": (0, 0)}, minimize=m, **SQUARE).planned.peak for m in MINIMIZE)
    with pytest.raises(PlanError, match=f"the least found peak is {least:,} bytes"):
        sc.plan({"w": (0, 0)}, minimize=minimize, memory_limit=1, **SQUARE)


def test_the_reference_heeds_a_limit_too():
    peak = sc.plan({"w": (0, 0)}, sizes={0: 9}, optimize=False).planned.peak
    options = {"sizes": {0: 9}, "optimize": False}
    assert sc.plan({"w": (0, 0)}, memory_limit=peak, **options).planned.peak == peak
    with pytest.raises(PlanError, match=f"memory_limit=1 bytes .* peak is {peak:,} bytes"):
        sc.plan({"w": (0, 0)}, memory_limit=1, **options)


@pytest.mark.parametrize("optimize", [False, "auto"])
@pytest.mark.parametrize(
    "limit", ["5", float("nan"), float("inf"), 2.5, -1, 0, True, [1]], ids=repr
)
def test_a_limit_that_is_no_number_of_bytes_is_refused(limit, optimize):
    with pytest.raises(OptionError, match=r"memory_limit=.*: expected a positive int"):
        sc.plan({"w": (0, 0)}, memory_limit=limit, optimize=optimize)


def test_the_peak_grows_with_the_sizes():
    peaks = [sc.plan({"w": (0, 0)}, sizes={0: n}).planned.peak for n in (4, 8, 16)]
    assert all(one < other for one, other in pairwise(peaks))
