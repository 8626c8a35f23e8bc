"""Every pass: golden text before and after, purity, meaning kept, planted faults caught.

The one thing to know: `UPDATE_GOLDEN=1 pytest tests/test_passes.py` writes tests/golden/*.txt
anew; read the difference before you commit it.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import symcompile as sc
from symcompile import passes
from symcompile.cost.objective import Objective
from symcompile.errors import ProgramError
from symcompile.ir import (
    Add,
    Broadcast,
    Builder,
    Embed,
    Mix,
    Output,
    Program,
    Reduce,
    Slice,
    Tensor,
    Transpose,
    diagrams_of,
    parse_program,
    readers_of,
    verify,
)
from symcompile.lower import lower_factored, lower_reference
from symcompile.passes import (
    add_before_slice,
    mix_before_spread,
    needed_reductions,
    needed_spreads,
    optimize,
    share_equal,
    share_reductions,
    sum_before_spread,
    sum_in_place,
)
from symcompile.passes.batch import batch_mixes, plan_batches
from symcompile.passes.fill import fill_mixes, plan_fills
from symcompile.passes.mixes import APART, FORMS, form_mixes, plan_mixes
from symcompile.passes.schedule import plan_schedule, reorder
from symcompile.passes.slices import plan_wholes
from symcompile.planner.decisions import plan_lattices
from symcompile.planner.search import get_planner
from symcompile.spec import Fixed, parse_spec
from symcompile.weights import build_schema
from symcompile_numpy import run

GOLDEN = Path(__file__).parent / "golden"

LOWER = {"reference": lower_reference, "factored": lower_factored}

# name -> (spec, out_spec, sizes, reduce)
SPECS = {
    "set": ({"x": (0,)}, None, {}, "mean"),
    "twice_read": ({"x": (0,)}, {"y": (), "z": (0,)}, {}, "mean"),
    "graph": ({"w": ("n", "n")}, None, {}, "mean"),
    "graph_of_two": ({"w": ("n", "n")}, None, {"n": 2}, "mean"),
    "small": ({"w": ("n", "n"), "u": ("n",), "v": ("n",)}, None, {"n": 2}, "mean"),
    "dense": ({"kernel": (0, 1), "bias": (1,)}, None, {0: 784, 1: 512}, "mean"),
    "summed": ({"x": (0, 1)}, {"y": (1, 0)}, {}, "sum"),
    "invariant": ({"w": (0, 0)}, (), {}, "mean"),
    "unsorted": ({"w": ("b", "a", "b")}, {"v": ("b", "a")}, {}, "mean"),
    "fixed": ({"k": (Fixed(3), 0), "s": ()}, None, {}, "mean"),
    "transposed": ({"w": (0, 0, Fixed(8))}, {"v": (0, 0)}, {0: 300}, "mean"),
    "chain": ({k: (k, k + 1) for k in range(4)}, None, dict.fromkeys(range(5), 6), "mean"),
    "pair": ({"w": (0, 1)}, {"y": (0, 1), "z": (0, 1)}, {0: 300, 1: 300}, "mean"),
    "margins": ({"w": (0, 1)}, {"r": (0,), "c": (1,), "t": ()}, {0: 9, 1: 4}, "sum"),
}


def lowered(name, how="factored", channels=2):
    spec, out_spec, sizes, reduce = SPECS[name]
    into, out = (
        [Tensor(leaf.path, leaf.axes, channels) for leaf in parse_spec(one).leaves]
        for one in (spec, spec if out_spec is None else out_spec)
    )
    return verify(LOWER[how](build_schema(into, out, sizes), reduce))


AUTO = get_planner("auto")


def objective_of(program):
    return Objective(sizes=program.sizes)


def shared_reductions(program):
    """`share_reductions` as it is planned."""
    needed = needed_reductions(program)
    plans = plan_lattices("reduce", needed, program.inputs, AUTO, objective_of(program))
    return share_reductions(program, {plan.tensor: plan.parents for plan in plans})


def filled(program):
    """`fill_mixes` as it is planned."""
    return fill_mixes(program, plan_fills(program, objective_of(program)))


def formed_mixes(program):
    """`form_mixes` as it is planned."""
    return form_mixes(program, plan_mixes(program, objective_of(program)))


def summed_spreads(program):
    """`sum_before_spread` as it is planned."""
    landed = needed_spreads(program)
    plans = plan_lattices("spread", landed, program.outputs, AUTO, objective_of(program))
    return sum_before_spread(program, {plan.tensor: plan.parents for plan in plans})


def added_whole(program):
    """`add_before_slice` as it is planned."""
    return add_before_slice(program, plan_wholes(program, objective_of(program)))


def batched(program):
    """`batch_mixes` as it is planned."""
    return batch_mixes(program, plan_batches(program, objective_of(program)))


def scheduled(program):
    """`reorder` as it is planned."""
    return reorder(program, plan_schedule(program, objective_of(program)).order)


PASSES = {
    "share_equal": share_equal,
    "mix_before_spread": mix_before_spread,
    "share_reductions": shared_reductions,
    "fill_mixes": filled,
    "form_mixes": formed_mixes,
    "sum_before_spread": summed_spreads,
    "add_before_slice": added_whole,
    "sum_in_place": sum_in_place,
    "batch_mixes": batched,
    "schedule": scheduled,
}
"""Every pass under the name of its stage, planned as `optimize` plans it."""


def run_passes(program):
    return optimize(program, AUTO, objective_of(program)).program


every_pass = pytest.mark.parametrize("transform", PASSES.values(), ids=PASSES)
# These reference programs spread one mean for several outputs.
TWO_OUTPUTS = [("pair", "reference"), ("small", "reference")]
every_program = pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in SPECS for how in LOWER if (name, how) not in TWO_OUTPUTS],
)


# -- golden text ------------------------------------------------------------------------------

# Small enough to read: one program before and after each pass, chosen so that the pass has work.
SHOWN = {
    "share_equal": ("twice_read", "reference"),
    "mix_before_spread": ("set", "reference"),
    "share_reductions": ("graph", "factored"),
    "fill_mixes": ("small", "factored"),
    "form_mixes": ("transposed", "factored"),
    "sum_before_spread": ("graph", "factored"),
    "add_before_slice": ("margins", "factored"),
    "sum_in_place": ("graph", "factored"),
    "batch_mixes": ("chain", "factored"),
    "schedule": ("small", "factored"),
}


def before_and_after(pass_name):
    program = lowered(*SHOWN[pass_name])
    for name, transform in PASSES.items():
        after = transform(program)
        if name == pass_name:
            return program, after
        program = after
    raise AssertionError(pass_name)


@pytest.mark.parametrize("pass_name", SHOWN)
def test_golden_text_before_and_after(pass_name):
    before, after = before_and_after(pass_name)
    assert before != after
    text = f"# Before {pass_name}:\n{before}\n# After {pass_name}:\n{after}"
    path = GOLDEN / f"{pass_name}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, (
        f"{path.name} differs; if the change is meant, run UPDATE_GOLDEN=1 pytest {__file__}"
    )


@pytest.mark.parametrize("pass_name", SHOWN)
def test_golden_text_parses_back_to_the_programs_it_shows(pass_name):
    text = (GOLDEN / f"{pass_name}.txt").read_text(encoding="utf-8")
    before, after = text.split(f"# After {pass_name}:\n")
    assert (parse_program(before), parse_program(after)) == before_and_after(pass_name)


def test_every_pass_has_a_golden_file_and_no_file_is_left_over():
    assert list(PASSES) == list(SHOWN)
    assert {f"{name}.txt" for name in SHOWN} == {path.name for path in GOLDEN.glob("*.txt")}


# -- what holds for every pass ----------------------------------------------------------------


@every_pass
@every_program
def test_a_pass_keeps_the_meaning(transform, name, how):
    program = lowered(name, how)
    after = verify(transform(program))
    assert diagrams_of(after) == diagrams_of(program)
    assert replace(after, ops=(), in_place=False, filled=()) == replace(program, ops=())


@every_pass
@every_program
def test_a_pass_leaves_its_input_as_it_was_and_gives_the_same_twice(transform, name, how):
    program = lowered(name, how)
    text, copy = str(program), parse_program(str(program))
    first = transform(program)
    assert program == copy
    assert str(program) == text
    assert transform(program) == first
    assert transform(copy) == first


@every_pass
@every_program
def test_a_pass_run_again_has_nothing_left_to_do(transform, name, how):
    once = transform(lowered(name, how))
    assert transform(once) == once


@every_program
def test_no_pass_makes_a_program_longer_in_ops_that_cost(name, how):
    """Reductions, mixes and embeddings never become more."""
    program = lowered(name, how)
    for pass_name, transform in PASSES.items():
        after = transform(program)
        # Mixes that read their features unstacked are more, and cheaper; helpers may be reduced.
        for kind in (Reduce,) if pass_name == "form_mixes" else (Reduce, Mix):
            assert count(kind, after) <= count(kind, program), (pass_name, kind)
        program = after


@every_program
def test_all_passes_in_a_row_compute_the_same_numbers(name, how):
    rng = np.random.default_rng(0)
    program = lowered(name, how)
    sizes = {label: 4 for t in program.inputs for label in t.labels} | dict(program.sizes)
    sizes = {label: min(size, 5) for label, size in sizes.items()}
    weights = {name: rng.standard_normal(shape) for name, shape in program.weights}
    arrays = [
        rng.standard_normal((2, *t.fixed, *(sizes[label] for label in t.labels), t.channels))
        for t in program.inputs
    ]
    expected = run(program, weights, arrays, sizes)
    for _, stage in optimize(program, AUTO, objective_of(program)).stages:
        for one, other in zip(run(stage, weights, arrays, sizes), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def count(kind, program):
    return sum(isinstance(op, kind) for op in program.ops)


# -- what each pass is for --------------------------------------------------------------------


@every_program
def test_share_equal_leaves_no_op_twice_and_none_unread(name, how):
    after = share_equal(lowered(name, how))
    assert max(Counter(after.ops).values()) == 1
    used = {arg for op in after.ops for arg in op.args}
    outputs = {k for k, op in enumerate(after.ops) if isinstance(op, Output)}
    assert used | outputs == set(range(len(after.ops)))


def test_share_equal_has_work_in_the_reference_program():
    program = lowered("dense", "reference")
    assert len(share_equal(program).ops) < len(program.ops)


@every_program
def test_after_mix_before_spread_no_mix_reads_a_spread(name, how):
    after = mix_before_spread(lowered(name, how))
    for op in after.ops:
        if isinstance(op, Mix):
            assert not isinstance(after.ops[op.args[0]], Broadcast | Embed)


def test_after_share_reductions_a_mean_of_the_matrix_is_made_from_a_mean_of_its_rows():
    after = shared_reductions(share_equal(lowered("dense")))
    reductions = [op for op in after.ops if isinstance(op, Reduce)]
    (scalar,) = [op for op in reductions if after.ops[op.args[0]] in reductions]
    # 512 entries are fewer than 784: the mean over both axes starts from the shorter vector.
    assert after.ops[scalar.args[0]].axes == (0,)


@every_program
def test_after_sum_before_spread_each_value_lands_on_an_output_once(name, how):
    after = summed_spreads(lowered(name, how))
    spreads = [op for op in after.ops if isinstance(op, Broadcast | Embed)]
    assert len(spreads) == len(set(spreads))
    readers = Counter(arg for op in after.ops for arg in op.args)
    for number, op in enumerate(after.ops):
        if isinstance(op, Broadcast | Embed):
            assert readers[number] == 1


def test_after_sum_before_spread_what_lands_in_one_place_is_spread_once():
    """Scalar and bias to all and to the diagonal, vector to rows, columns and the diagonal.

    Planned, the scalars ride along on the vectors: to the rows, and to the diagonal.
    """
    before, after = lowered("graph"), run_passes(lowered("graph"))
    assert (count(Broadcast, before), count(Embed, before)) == (6, 3)
    assert (count(Broadcast, after), count(Embed, after)) == (4, 1)


@pytest.mark.parametrize("name", ["graph", "margins", "pair", "chain"])
def test_after_add_before_slice_the_constant_is_added_to_what_is_mixed_once(name):
    before = summed_spreads(shared_reductions(lowered(name)))
    after = added_whole(before)
    (made,) = [op for op in after.ops if isinstance(op, Mix) and op.weight == "bias"]
    (total,) = readers_of(after)[after.ops.index(made)]
    assert isinstance(after.ops[total], Add)
    assert {after.ops[arg].weight for arg in after.ops[total].args} == {"bias", "mix_scalar"}
    slices = [after.ops[reader] for reader in readers_of(after)[total]]
    assert slices
    assert all(isinstance(op, Slice) for op in slices)
    assert count(Slice, before) - count(Slice, after) == len(slices)


def test_slices_that_do_not_all_meet_are_added_one_by_one():
    """One slice twice: of the wholes there is one, of that slice there are two."""
    program = summed_spreads(lowered("margins"))
    ops = list(program.ops)
    number, first = next((k, op) for k, op in enumerate(ops) if isinstance(op, Add))
    ops[number] = Add((first.args[0], *first.args))
    before = replace(program, ops=tuple(ops))
    assert added_whole(program) != program
    assert added_whole(before) == before


def whole(program, minimize="time"):
    """What is added whole, as it is planned for an objective."""
    plans = plan_wholes(program, Objective(minimize, program.sizes))
    return [plan.values for plan in plans if plan.chosen == "whole"]


def test_what_costs_more_bytes_is_left_apart_where_bytes_are_to_be_few():
    """An output without index axes would be a slice, to be copied."""
    program = summed_spreads(lowered("margins"))
    assert whole(program)
    assert not whole(program, "bytes")
    assert not whole(program, "peak")
    # One sum of two, and the copy takes its place.
    (plan,) = plan_wholes(summed_spreads(lowered("fixed")), Objective())
    assert plan.chosen == "slices"


def test_products_of_many_channels_are_made_in_slices():
    """Then they are written where outputs are stored: nothing is sliced."""
    for channels, found in ((8, True), (1024, False)):
        program = lowered("transposed", channels=channels)
        assert bool(plan_wholes(summed_spreads(program), objective_of(program))) is found


def test_values_with_index_axes_are_added_slice_by_slice():
    """All at once they would all be alive."""
    program = lowered("pair")
    build = Builder(program)
    x = build.input(0)
    twice = build.add([x, x])
    mixes = [build.mix(value, "mix_0_1", (0, 2), (0, 4)) for value in (x, twice)]
    for k in range(2):
        parts = [build.slice(mix, 2 * k, 2 * k + 2, 4) for mix in mixes]
        build.output(build.add(parts), k)
    assert plan_wholes(build.program(), objective_of(program)) == ()


@pytest.mark.parametrize("form", FORMS)
@every_program
def test_a_mix_in_every_form_there_is_computes_the_same(name, how, form):
    program = shared_reductions(share_equal(lowered(name, how)))
    plans = plan_mixes(program, objective_of(program))
    after = verify(form_mixes(program, [replace(plan, chosen=form) for plan in plans]))
    assert diagrams_of(after) == diagrams_of(program)


def chosen(spec, out_spec, n, minimize="time", **options):
    """The scores of the mix of whole matrices, the form taken first."""
    options = {"in_channels": 16, "out_channels": 16, "sizes": {0: n, 1: n}, **options}
    mixes = sc.plan(spec, out_spec, minimize=minimize, **options).mixes
    return dict(next(mix.scores for mix in mixes if mix.weight == "mix_0_1"))


PAIR = {"x": (0, 1)}, {"y": (0, 1), "z": (0, 1)}


def test_large_outputs_are_apart_and_small_ones_together():
    assert list(chosen(*PAIR, 300)) == ["stacked" + APART, "stacked"]
    assert list(chosen(*PAIR, 8)) == ["stacked", "stacked" + APART]


def test_where_bytes_count_the_features_are_read_once():
    scores = chosen(*PAIR, 300, "bytes", machine="h100")
    assert list(scores) == ["stacked", "stacked" + APART]
    # Apart, they and what sets off the sums are read once more.
    again = 4 * 300 * 300 * 16
    assert scores["stacked" + APART] - scores["stacked"] == pytest.approx(again, rel=0.01)


def test_a_slice_that_is_an_output_by_itself_is_copied_and_a_product_is_not():
    spec, out_spec = PAIR

    def identity(output, into, diagram):
        return diagram.blocks == ((0, 2), (1, 3))

    alone = {"bias": False, "terms": identity}
    scores = chosen(spec, out_spec, 300, "bytes", **alone)
    assert list(scores) == ["stacked" + APART, "stacked"]
    # Two copies are read and written; the features are read again.
    entries = 4 * 300 * 300 * 16
    assert scores["stacked"] - scores["stacked" + APART] == pytest.approx(3 * entries, rel=0.01)
    source = sc.compile(
        spec,
        out_spec,
        in_channels=16,
        out_channels=16,
        sizes={0: 300, 1: 300},
        backend="torch",
        **alone,
    ).source
    assert "[..., " not in source  # no slice of a product


def test_every_combination_of_inputs_and_outputs_is_weighed():
    mixes = sc.plan({"w": (0, 0)}, {"y": (0, 0), "z": (0, 0)}, in_channels=4, out_channels=4).mixes
    assert {form for mix in mixes if mix.weight == "mix_0_0" for form, _ in mix.scores} == set(
        FORMS
    )
    # What is too small to be summed in place stays together.
    assert not [mix for mix in mixes if mix.weight == "mix_0" and len(mix.scores) > 2]


def test_a_mix_over_one_axis_is_priced_as_its_sums_are_made():
    options = {"in_channels": 16, "out_channels": 16}
    sets = sc.plan({"a": (0,), "b": (0,)}, sizes={0: 20_000}, **options)
    (chosen,) = (mix.chosen for mix in sets.mixes if mix.weight == "mix_0")
    assert chosen == "separate" + APART
    assert [plan.weight for plan in sets.sums] == ["mix_0", "mix_0"]
    wide = sc.plan(dict.fromkeys("abc", (0,)), sizes={0: 20_000}, in_channels=200, out_channels=200)
    assert [plan.weight for plan in wide.sums] == ["mix_0"] * 3
    # Beside a matrix they are small, and made anew.
    mlp = {"w": (0, 1), "v": (1, 2), "b": (1,)}
    found = sc.plan(mlp, sizes={0: 784, 1: 512, 2: 10}, **options)
    (scores,) = (dict(mix.scores) for mix in found.mixes if mix.weight == "mix_1")
    assert next(iter(scores)) == "stacked"
    assert not [form for form in scores if form.endswith(APART)]
    assert sorted(plan.weight for plan in found.sums) == ["mix_0_1", "mix_1_2"]


# -- stages -----------------------------------------------------------------------------------


def test_stages_give_the_program_after_every_pass_by_name():
    program = lowered("graph")
    names, programs = zip(*optimize(program, AUTO, objective_of(program)).stages, strict=True)
    assert names == ("lowered", *PASSES)
    assert programs[0] is program
    for transform, before, after in zip(PASSES.values(), programs, programs[1:], strict=False):
        assert transform(before) == after
    assert programs[-1] == run_passes(program)


def test_a_layer_keeps_its_stages_if_asked_to():
    options = {"in_channels": 1, "out_channels": 1, "backend": "numpy"}
    kept = sc.compile({"w": (0, 0)}, **options, keep_stages=True).compiled
    assert [name for name, _ in kept.stages] == ["lowered", *PASSES]
    assert kept.stages[-1][1] == kept.program
    for _, stage in kept.stages:
        assert parse_program(str(stage)) == stage
    assert sc.compile({"w": (0, 0)}, **options).compiled.stages == ()


def swap_reduced_axis(program: Program) -> Program:
    """Wrong: means over the other axis."""
    ops = list(program.ops)
    number = next(k for k, op in enumerate(ops) if op == Reduce((0,), (0,)))
    ops[number] = Reduce((0,), (1,))
    return replace(program, ops=tuple(ops))


def drop_a_term(program: Program) -> Program:
    """Wrong: a sum loses its last operand."""
    return changed(program, Add, lambda op: replace(op, args=op.args[:-1]))


def count_a_term_twice(program: Program) -> Program:
    """Wrong: a sum takes its first operand twice."""
    return changed(program, Add, lambda op: replace(op, args=(*op.args, op.args[0])))


def forget_an_output(program: Program) -> Program:
    """Wrong: ill-formed, an output is never written."""
    return replace(program, ops=tuple(op for op in program.ops if not isinstance(op, Output)))


def misspell_a_transpose(program: Program) -> Program:
    """Wrong: ill-typed."""
    return changed(program, Reduce, lambda op: Transpose(op.args, (0, 0)))


def changed(program, kind, change):
    ops = list(program.ops)
    number = next(k for k, op in enumerate(ops) if isinstance(op, kind))
    ops[number] = change(ops[number])
    return replace(program, ops=tuple(ops))


WRONG = [
    swap_reduced_axis,
    drop_a_term,
    count_a_term_twice,
    forget_an_output,
    misspell_a_transpose,
]


PLANTED = [
    "share_equal",
    "share_reductions",
    "fill_mixes",
    "form_mixes",
    "sum_before_spread",
    "add_before_slice",
    "reorder",
]


def plant(monkeypatch, wrong, name):
    """Let `wrong` follow the pass called `name`."""
    right = getattr(passes, name)

    def planted(program, *plans):
        return wrong(right(program, *plans))

    planted.__name__ = name
    monkeypatch.setattr(passes, name, planted)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_pass_is_caught_when_verifying(monkeypatch, wrong, name):
    plant(monkeypatch, wrong, name)
    monkeypatch.setenv("SYMCOMPILE_VERIFY", "1")
    stage = "schedule" if name == "reorder" else name
    with pytest.raises(ProgramError, match=f"^pass {stage} (changed what the|broke the) program"):
        run_passes(lowered("graph"))


def test_right_passes_stand_when_verifying(monkeypatch):
    monkeypatch.setenv("SYMCOMPILE_VERIFY", "1")
    for name in SPECS:
        for how in LOWER:
            run_passes(lowered(name, how))


@pytest.mark.parametrize("value", [None, "", "0"])
def test_verifying_is_off_unless_asked_for(monkeypatch, value):
    plant(monkeypatch, drop_a_term, "reorder")
    if value is None:
        monkeypatch.delenv("SYMCOMPILE_VERIFY", raising=False)
    else:
        monkeypatch.setenv("SYMCOMPILE_VERIFY", value)
    wrong = run_passes(lowered("graph"))
    assert diagrams_of(wrong) != diagrams_of(lowered("graph"))


def test_a_wrong_pass_is_caught_through_compile(monkeypatch):
    plant(monkeypatch, drop_a_term, "form_mixes")
    monkeypatch.setenv("SYMCOMPILE_VERIFY", "1")
    with pytest.raises(ProgramError, match="pass form_mixes changed"):
        sc.compile({"w": (0, 0)}, in_channels=1, out_channels=1, backend="numpy")
