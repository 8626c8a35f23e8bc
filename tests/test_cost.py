"""The cost model against counts of what generated code really does.

The one thing to know: `meter` sees the operations PyTorch is asked to do and nothing of ours.
Bytes, operations and launches are held to it exactly; sizes are distinct and above 1, so that no
two extents are confused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.codegen import get_backend
from symcompile.cost import PRESETS, Machine, Polynomial, Work, total_work, work_of
from symcompile.cost.objective import MINIMIZE, NOMINAL_SIZE, Objective
from symcompile.cost.work import Accountant
from symcompile.errors import OptionError
from symcompile.ir import Broadcast, Concat, accumulations, types_of
from symcompile.spec import flatten_like, parse_spec, unflatten
from tests.backend_cases import CUBE, MLP, SPEC, inputs
from tests.baselines import held_to_programs
from tests.laws.strategies import cases
from tests.meter import metered

SIZES = {"a": 3, "b": 4, "c": 5, 0: 3, 1: 4, 2: 2}

F = sc.Fixed

# (spec, out_spec)
SPECS = [
    ({"x": (0,)}, None),
    ({"x": (0,)}, {"y": (), "z": (0,)}),
    ({"x": ()}, None),
    ({"w": (0, 0)}, None),
    ({"w": (0, 0)}, ()),
    ({"x": (0,)}, {"y": (0, 0, 0)}),
    ({"k": (0, 1), "b": (1,)}, None),
    ({"x": (0, 1)}, {"y": (1, 0)}),
    ({"w": ("b", "a", "b")}, {"v": ("b", "a")}),
    ({"x": (0, 1, 0, 1)}, {"y": (1, 1, 0)}),
    ([(0,), (0,)], {"y": (), "z": ()}),
    ({"a": (0, 1), "b": (1, 2), "c": (2, 0)}, None),
    ({"k": (F(3), 0), "s": ()}, None),
    ({"k": (0, F(3))}, None),
    ({"k": (0, F(1), 1)}, None),
    ({"k": ((0, F(2)), F(3), 1)}, None),
    ({"x": ((1, 0), 0, F(2))}, {"y": ((0, F(2)), (1, 0)), "z": (1, 1)}),
    ({"x": ("b", "a")}, {"y": (("a", "b"),), "z": (F(2), "a")}),
    (MLP, None),
    (SPEC, None),
    (CUBE, None),
]
IDS = [f"{spec}->{out_spec}" for spec, out_spec in SPECS]
every_spec = pytest.mark.parametrize(("spec", "out_spec"), SPECS, ids=IDS)


def built(spec, out_spec, backend="torch", cin=2, cout=3, **options):
    parsed = [parse_spec(one) for one in (spec, spec if out_spec is None else out_spec)]
    sizes = {label: SIZES[label] for one in parsed for label in one.labels}
    return sc.compile(
        spec,
        out_spec,
        in_channels=cin,
        out_channels=cout,
        sizes=sizes,
        dtype="float32",
        backend=backend,
        **options,
    )


def tensors(spec, channels=2, batch=(1,)):
    tree = inputs(spec, channels, batch, SIZES, dtype=np.float32)
    parsed = parse_spec(spec)
    return unflatten(parsed, [torch.from_numpy(leaf) for leaf in flatten_like(parsed, tree)])


# -- against what runs ----------------------------------------------------------------------


@every_spec
@pytest.mark.parametrize("optimize", [False, "greedy", "auto"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_bytes_flops_and_launches_are_those_of_the_running_code(
    spec, out_spec, optimize, reduce, bias
):
    layer = built(spec, out_spec, optimize=optimize, reduce=reduce, bias=bias)
    counted, log = metered(layer, tensors(spec))
    figures = layer.plan.planned
    assert figures.launches == counted.launches, log
    assert figures.flops == counted.flops, log
    assert figures.bytes == 4 * (counted.read + counted.written), log
    work = total_work(work_of(layer.compiled.program))
    assert (work.read.at(SIZES), work.written.at(SIZES)) == (counted.read, counted.written), log
    assert work.new.at(SIZES) == counted.written - counted.placed, log


@pytest.mark.parametrize("minimize", MINIMIZE)
@pytest.mark.parametrize("channels", [(2, 64), (64, 2)])
@pytest.mark.parametrize("spec", [{"w": (0, 0)}, MLP, SPEC, CUBE], ids=str)
def test_figures_hold_whatever_is_minimised(spec, minimize, channels):
    layer = built(spec, None, cin=channels[0], cout=channels[1], minimize=minimize)
    counted, log = metered(layer, tensors(spec, channels[0]))
    figures = layer.plan.planned
    assert (figures.launches, figures.flops, figures.bytes) == (
        counted.launches,
        counted.flops,
        4 * (counted.read + counted.written),
    ), log


@settings(max_examples=60)
@given(cases(max_weights=600, max_entries=800), st.sampled_from([False, "greedy", "auto"]))
def test_figures_of_random_layers_are_those_of_the_running_code(case, optimize):
    # An axis of extent one makes views of what are copies at every other size.
    assume(all(size > 1 for size in case.sizes.values()))
    layer = sc.compile(case.spec, case.out_spec, optimize=optimize, dtype="float32", **case.options)
    leaves = [
        torch.from_numpy(leaf.astype(np.float32))
        for leaf in case.inputs(np.random.default_rng(0), (1,))
    ]
    counted, log = metered(layer, unflatten(case.source, leaves))
    work = total_work(work_of(layer.compiled.program))
    assert [work.read.at(case.sizes), work.written.at(case.sizes)] == [
        counted.read,
        counted.written,
    ], log
    assert work.placed.at(case.sizes) == counted.placed, log
    assert [work.flops.at(case.sizes), work.launches] == [counted.flops, counted.launches], log


def test_an_input_that_no_term_reads_is_not_moved():
    """Its fixed axes come first: to fold them into the channels would copy it."""
    spec = {"c": (F(3), "a"), "d": ("a",)}
    layer = built(spec, None, terms=lambda output, input, diagram: input == ("d",))
    counted, log = metered(layer, {"c": torch.ones(1, 3, 3, 2), "d": torch.ones(1, 3, 2)})
    figures = layer.plan.planned
    assert (figures.launches, figures.bytes) == (
        counted.launches,
        4 * (counted.read + counted.written),
    ), log


KERNELS = {
    "aten::mean",
    "aten::sum",
    "aten::cat",
    "aten::mm",
    "aten::bmm",
    "aten::add",
    "aten::add_",
    "aten::copy_",
    "aten::zero_",
    "aten::fill_",
    "aten::index_put_",
}
"""What PyTorch's profiler calls operations that run a kernel; everything else only looks."""


def profiled(layer, x):
    """Kernels by the profiler's names; those inside another kernel's operation are its own."""
    with profile(activities=[ProfilerActivity.CPU]) as run:
        layer(x)
    found = Counter()
    for event in run.events():
        outer, inside = event.cpu_parent, False
        while outer is not None:
            inside |= outer.name in KERNELS
            outer = outer.cpu_parent
        if event.name in KERNELS and not inside:
            found[event.name] += 1
    return found


@pytest.mark.parametrize("optimize", [False, "auto"])
@pytest.mark.parametrize("spec", [{"w": (0, 0)}, MLP, SPEC, CUBE], ids=str)
def test_launches_are_as_many_as_the_profiler_counts(spec, optimize):
    layer = built(spec, None, optimize=optimize)
    kernels = profiled(layer, tensors(spec))
    assert kernels.total() == layer.plan.planned.launches, kernels


# -- the baselines ----------------------------------------------------------------------------


def schema_of(spec, out_spec, **options):
    channels = {"in_channels": 2, "out_channels": 3}
    return compile_spec(spec, out_spec, optimize="greedy", **channels, **options).schema


@every_spec
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_baselines_are_the_figures_of_programs_that_are_never_built(spec, out_spec, bias):
    parsed = [parse_spec(one) for one in (spec, spec if out_spec is None else out_spec)]
    sizes = {label: SIZES[label] for one in parsed for label in one.labels}
    held_to_programs(schema_of(spec, out_spec, bias=bias, sizes=sizes))


@settings(max_examples=100)
@given(cases())
def test_baselines_of_random_layers_are_the_figures_of_their_programs(case):
    options = case.options | {"optimize": "greedy"}
    held_to_programs(compile_spec(case.spec, case.out_spec, **options).schema, case.reduce)


def test_baselines_know_that_a_fixed_axis_between_labels_keeps_their_entries_apart():
    """With one channel it is folded by a view, and a matmul copies."""
    spec = {"k": (0, F(3), 1)}
    held_to_programs(compile_spec(spec, in_channels=1, out_channels=2).schema)


@pytest.mark.parametrize("spec", [{"w": (0, 0)}, MLP, {"v": (0, 1, 0), "x": (1,)}], ids=str)
def test_baselines_hold_for_mixes_of_low_rank(spec):
    held_to_programs(schema_of(spec, None, rank=1))


# -- polynomials ------------------------------------------------------------------------------

monomials = st.lists(st.sampled_from(["a", "b", 7]), max_size=3)
polynomials = st.lists(st.tuples(monomials, st.integers(-5, 5)), max_size=5).map(
    lambda terms: Polynomial.sum(Polynomial.of(labels, count) for labels, count in terms)
)
SOME = {"a": 3, "b": 5, 7: 11}


@given(polynomials, polynomials, st.integers(-3, 3))
def test_polynomials_add_and_multiply_as_their_values_do(p, q, factor):
    assert (p + q).at(SOME) == p.at(SOME) + q.at(SOME)
    assert (p * factor).at(SOME) == factor * p.at(SOME)
    assert p + q == q + p
    assert p + p * -1 == Polynomial()


@given(polynomials)
def test_a_polynomial_is_the_same_in_sympy(p):
    expression = p.to_sympy()
    values = {symbol: SOME[label_of(symbol)] for symbol in expression.free_symbols}
    assert expression.subs(values) == p.at(SOME)


def label_of(symbol):
    name = symbol.name.removeprefix("n[").removesuffix("]")
    return int(name) if name.isdecimal() else name


def test_the_cost_of_a_plan_is_a_polynomial_that_gives_its_figures():
    sizes = {0: 6, 1: 5, 2: 4}
    unbound = sc.plan(MLP, in_channels=2, out_channels=3)
    bound = sc.plan(MLP, in_channels=2, out_channels=3, sizes=sizes)
    assert unbound.cost.is_polynomial()
    for plan, at in ((unbound, dict.fromkeys(sizes, NOMINAL_SIZE)), (bound, sizes)):
        values = {symbol: at[label_of(symbol)] for symbol in plan.cost.free_symbols}
        assert plan.cost.subs(values) * 4 == plan.planned.bytes
    flops = sc.plan(MLP, in_channels=2, out_channels=3, sizes=sizes, minimize="flops")
    values = {symbol: sizes[label_of(symbol)] for symbol in flops.cost.free_symbols}
    assert flops.cost.subs(values) == flops.planned.flops


# -- machines and objectives --------------------------------------------------------------------


def test_a_machine_is_bound_by_bytes_or_by_flops_and_pays_for_launches():
    machine = Machine("toy", bandwidth=100.0, flops=1000.0, launch=0.5)
    assert machine.seconds(200, 1000, 3) == 2.0 + 1.5
    assert machine.seconds(200, 5000, 0) == 5.0


def test_a_machine_pays_for_new_arrays_if_told_so():
    machine = Machine("toy", bandwidth=100.0, flops=1000.0, launch=0.5, fresh=0.25)
    assert machine.seconds(200, 1000, 3, 8) == 2.0 + 1.5 + 2.0
    assert replace(machine, fresh=0.0).seconds(200, 1000, 3, 8) == 2.0 + 1.5
    assert PRESETS["cpu"].fresh == 1 / PRESETS["cpu"].bandwidth
    assert not any(machine.fresh for name, machine in PRESETS.items() if name != "cpu")


@pytest.mark.parametrize("spec", [{"w": (0, 0)}, MLP, SPEC, CUBE], ids=str)
@pytest.mark.parametrize("fresh", [0.0, 1e-2])
def test_what_a_plan_is_chosen_by_is_what_its_report_says(spec, fresh):
    # Where operations are free, seconds of steps add up to those of the whole.
    machine = Machine("toy", bandwidth=100.0, flops=1e30, launch=0.5, fresh=fresh)
    compiled = compile_spec(spec, in_channels=4, out_channels=4, machine=machine)
    objective = Objective("time", compiled.program.sizes, machine)
    scored = objective.total(work_of(compiled.program), compiled.program)
    assert compiled.plan.planned.seconds == pytest.approx(scored, rel=1e-12)


BLOCK = {"in": ("e", "m"), "out": ("m", "e")}, {"e": 64, "m": 96}
"""Two tensors of one signature, stored either way."""


def block_of(**options):
    spec, sizes = BLOCK
    options = {"in_channels": 16, "out_channels": 16, "bias": False, **options}
    return compile_spec(spec, sizes=sizes, **options)


def test_a_sum_in_one_pass_reads_its_factors_and_terms_once_and_is_written_once():
    compiled = block_of()
    program, sizes = compiled.program, dict(BLOCK[1])
    works = work_of(program, one_pass=True)
    types, sums = types_of(program), accumulations(program)
    assert len(sums) == 2
    whole = 64 * 96 * 16
    for number, found in sums.items():
        parts = [found.base, *found.late.values()]
        terms = set(program.ops[number].args) - {found.base, *found.late}
        smaller = sum(
            prod(sizes[types[term].labels[k]] for k in program.ops[term].axes) * 16
            for term in terms
            if isinstance(program.ops[term], Broadcast)
        )
        made = total_work([works[k] for k in (number, *parts)])
        assert len(parts) == 2
        assert made.read.at(sizes) == 2 * (whole + 16 * 16) + smaller
        assert made.written.at(sizes) == made.new.at(sizes) == whole
        assert made.launches == 1
        assert made.flops.at(sizes) == (2 * 2 * 16 + len(terms)) * whole
        apart = total_work([work_of(program)[k] for k in (number, *parts)])
        assert apart.moved.at(sizes) > made.moved.at(sizes)


@pytest.mark.parametrize(
    "options",
    [
        {"out_channels": 6},  # empty lanes
        {"out_channels": 320},  # many channels
        {"sizes": {"e": 7, "m": 8}},  # few rows
        {"machine": "h100"},
        {"dtype": "float64"},  # kernels take float32
        {"dtype": "bfloat16"},
        {"machine": replace(PRESETS["cpu"], one_pass=False)},
    ],
    ids=str,
)
def test_sums_take_a_pass_for_every_term_elsewhere(options):
    assert {mix.chosen for mix in block_of().plan.mixes if mix.weight == "mix_e_m"} == {
        "transposed after, outputs apart"
    }
    spec, sizes = BLOCK
    options = {"in_channels": 16, "out_channels": 16, "sizes": sizes, **options}
    compiled = compile_spec(spec, **options)
    works = work_of(compiled.program)
    assert compiled.plan.planned.launches == sum(work.launches for work in works)


@pytest.mark.parametrize(("order", "most"), [(5, 5), (6, 6), (7, 6)])
def test_kernels_have_no_room_for_many_axes(order, most):
    spec = {"x": tuple(range(order))}
    program = compile_spec(spec, in_channels=16, out_channels=16, bias=False).program
    types = types_of(program)
    fused = Accountant(program, one_pass=True).fused
    assert max(len(types[value].labels) for value in fused) == most


def test_machines_that_are_measured_know_of_kernels():
    import symcompile_torch

    assert Machine.measure("torch").one_pass == symcompile_torch.HAS_KERNELS
    assert not Machine.measure("numpy").one_pass
    assert {name for name, machine in PRESETS.items() if machine.one_pass} == {"cpu"}


def test_outputs_are_apart_where_new_arrays_are_dear():
    kept = Machine("kept", bandwidth=3e10, flops=1e15, launch=0.0)
    options = {"in_channels": 16, "out_channels": 16, "sizes": {0: 64, 1: 64}}

    def new(fresh):
        plan = sc.plan(
            {"x": (0, 1)},
            {"y": (0, 1), "z": (0, 1)},
            **options,
            machine=replace(kept, fresh=fresh),
        )
        return next(mix.chosen for mix in plan.mixes if mix.weight == "mix_0_1")

    assert (new(0.0), new(1e-9)) == ("stacked", "stacked, outputs apart")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bandwidth", 0),
        ("flops", -1.0),
        ("launch", -1e-9),
        ("bandwidth", float("nan")),
        ("bandwidth", "x"),
        ("flops", None),
        ("flops", True),
        ("launch", [1.0]),
        ("fresh", -1e-12),
        ("fresh", "x"),
        ("one_pass", 1),
        ("name", ["toy"]),
    ],
)
def test_a_machine_with_a_senseless_figure_is_refused(field, value):
    given = {"name": "bad", "bandwidth": 1.0, "flops": 1.0, "launch": 0.0} | {field: value}
    with pytest.raises(OptionError, match=f"Machine {field}="):
        Machine(**given)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_a_machine_is_measured_in_a_second_or_two(backend):
    import time

    get_backend(backend)  # the framework's own import is not ours to time
    start = time.perf_counter()
    machine = Machine.measure(backend)
    assert time.perf_counter() - start < 10.0  # on a busy machine
    assert machine.name == f"measured with {backend}"
    assert 1e8 < machine.bandwidth < 1e14
    assert 1e9 < machine.flops < 1e16
    assert 1e-9 < machine.launch < 1e-2
    assert 0 <= machine.fresh < 1e-7
    assert sc.plan({"w": (0, 0)}, machine=machine).machine == machine.name


def test_objectives_score_what_they_are_named_after():
    machine = Machine("toy", bandwidth=1.0, flops=1.0, launch=1.0)
    scores = {what: Objective(what, machine=machine) for what in MINIMIZE}
    assert scores["time"].score(10, 5, 7, 2) == 4 * 15 + 2
    assert scores["bytes"].score(10, 5, 7, 2) == pytest.approx(4 * 15)
    assert scores["flops"].score(10, 5, 7, 2) == pytest.approx(7, abs=1e-3)
    assert scores["peak"].score(10, 5, 7, 2) == pytest.approx(4 * 5, abs=1e-3)


def test_an_unknown_objective_or_machine_is_refused():
    with pytest.raises(OptionError, match="choose one of 'time', 'bytes', 'flops', 'peak'"):
        sc.plan({"x": (0,)}, minimize="speed")
    with pytest.raises(OptionError, match=r"choose one of 'cpu'.*or pass a Machine"):
        sc.plan({"x": (0,)}, machine="abacus")
    for machine in ({}, [], None, 3):
        with pytest.raises(OptionError, match=r"machine=.* is not known; choose one of 'cpu'"):
            sc.plan({"x": (0,)}, machine=machine)


@pytest.mark.parametrize("spec", [{"w": (0, 0)}, MLP, CUBE, {"x": ("a", "b", "a")}], ids=str)
@pytest.mark.parametrize("channels", [(1, 16), (16, 16), (32, 1)])
def test_each_objective_is_best_at_its_own_figure(spec, channels):
    def figures(minimize):
        plan = sc.plan(
            spec, in_channels=channels[0], out_channels=channels[1], minimize=minimize
        ).planned
        return {"time": plan.seconds, "bytes": plan.bytes, "flops": plan.flops, "peak": plan.peak}

    found = {minimize: figures(minimize) for minimize in MINIMIZE}
    for minimize in MINIMIZE:
        least = min(other[minimize] for other in found.values())
        assert found[minimize][minimize] <= least * (1 + 1e-9), minimize


def test_work_adds_up():
    one = Work(Polynomial.of("a"), Polynomial.of("b", 2), Polynomial.of(()), 1)
    assert total_work([one, one]) == one * 2
    assert (one * 3).launches == 3
    assert one.moved == Polynomial.of("a") + Polynomial.of("b", 2)


def test_a_concat_reads_and_writes_every_entry_once():
    program = compile_spec({"x": (0,), "y": (0,)}, in_channels=2, out_channels=2).program
    works = dict(zip(program.ops, work_of(program), strict=True))
    for op, work in works.items():
        if isinstance(op, Concat):
            assert work.read == work.written
            assert (work.flops, work.launches) == (Polynomial(), 1)
