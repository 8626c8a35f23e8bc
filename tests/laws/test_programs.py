"""Laws of programs: what the compiler builds, proven symbolically and compared as text.

`diagrams_of` expands a program to the diagrams it sums. If every basis element comes once, with
coefficient 1 and its own weights, then before and after any pass the program is the layer.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings

from symcompile.api import compile_spec
from symcompile.codegen import Compiled, get_backend
from symcompile.cost.objective import MINIMIZE, Objective
from symcompile.ir import Program, Term, diagrams_of, parse_program, print_program, verify
from symcompile.ir.meaning import BIAS
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
)
from symcompile.passes.batch import batch_mixes, plan_batches
from symcompile.passes.fill import fill_mixes, plan_fills
from symcompile.passes.mixes import FORMS, form_mixes, plan_mixes
from symcompile.passes.schedule import plan_schedule, reorder
from symcompile.passes.slices import plan_wholes
from symcompile.planner.decisions import plan_lattices
from symcompile.planner.search import PLANNERS
from tests.laws.strategies import Case, cases


def every_basis_element_once(compiled: Compiled) -> Counter[Term]:
    """What a correct program sums, written down from the basis."""
    inputs = [tensor.path for tensor in compiled.program.inputs]
    outputs = [tensor.path for tensor in compiled.program.outputs]
    terms: Counter[Term] = Counter()
    for element in compiled.basis:
        output = outputs.index(element.output)
        cols = (element.cols.start, element.cols.stop)
        if element.input is None:
            slot = (element.weight, (0, 1), cols)
            terms[Term(output, BIAS, element.diagram, (0, 1), (slot,), ())] += 1
        else:
            into = inputs.index(element.input)
            rows = (element.rows.start, element.rows.stop)
            width = compiled.program.inputs[into].width
            slot = (element.weight, rows, cols)
            terms[Term(output, into, element.diagram, (0, width), (slot,), ())] += 1
    return terms


@settings(max_examples=60)
@given(cases())
def test_every_stage_sums_every_basis_element_once(case: Case) -> None:
    compiled = compile_spec(case.spec, case.out_spec, **case.options)
    wanted = every_basis_element_once(compiled)
    assert set(wanted.values()) <= {1}
    for lower in (lower_reference, lower_factored):
        lowered = lower(compiled.schema, case.reduce)
        minimize = MINIMIZE[case.seed % len(MINIMIZE)]
        done = optimize(lowered, PLANNERS["auto"], Objective(minimize, lowered.sizes))
        for name, program in done.stages:
            assert diagrams_of(verify(program)) == wanted, f"{lower.__name__}, {name}"


def each_pass(program: Program) -> Iterator[Program]:
    """The program after each pass on its own, planned greedily."""
    objective, greedy = Objective("bytes", program.sizes), PLANNERS["greedy"]
    yield share_equal(program)
    yield mix_before_spread(program)
    needed = needed_reductions(program)
    plans = plan_lattices("reduce", needed, program.inputs, greedy, objective)
    yield share_reductions(program, {plan.tensor: plan.parents for plan in plans})
    covers = plan_fills(program, objective)
    yield fill_mixes(program, [replace(plan, chosen="filled") for plan in covers])
    mixes = plan_mixes(program, objective)
    for form in FORMS:
        yield form_mixes(program, [replace(plan, chosen=form) for plan in mixes])
    landed = needed_spreads(program)
    plans = plan_lattices("spread", landed, program.outputs, greedy, objective)
    yield sum_before_spread(program, {plan.tensor: plan.parents for plan in plans})
    yield add_before_slice(program, plan_wholes(program, Objective("time", program.sizes)))
    batches = plan_batches(program, objective)
    yield batch_mixes(program, [replace(plan, chosen="batched") for plan in batches])
    yield reorder(program, plan_schedule(program, objective).order)


@settings(max_examples=50)
@given(cases())
def test_each_pass_alone_keeps_the_meaning(case: Case) -> None:
    """Passes do not lean on the ones before them."""
    compiled = compile_spec(case.spec, case.out_spec, **case.options)
    wanted = every_basis_element_once(compiled)
    for lower in (lower_reference, lower_factored):
        program = lower(compiled.schema, case.reduce)
        for transformed in each_pass(program):
            assert diagrams_of(verify(transformed)) == wanted


@settings(max_examples=60)
@given(cases())
def test_printed_programs_parse_back(case: Case) -> None:
    for plan in (False, "auto"):
        program = compile_spec(case.spec, case.out_spec, optimize=plan, **case.options).program
        text = print_program(program)
        assert parse_program(text) == program
        assert print_program(parse_program(text)) == text


@settings(max_examples=60)
@given(cases())
def test_compiling_twice_gives_the_same_bytes(case: Case) -> None:
    options = {**case.options, "keep_stages": True}  # else the first is taken for the second
    first, second = (compile_spec(case.spec, case.out_spec, **options) for _ in range(2))
    assert first is not second
    assert print_program(first.program) == print_program(second.program)
    for backend in ("torch", "jax"):
        pytest.importorskip(backend)
        assert get_backend(backend).emit(first) == get_backend(backend).emit(second)


@settings(max_examples=40)
@given(cases())
def test_the_order_of_dict_keys_does_not_reach_the_program(case: Case) -> None:
    def reversed_keys(tree: object) -> object:
        if isinstance(tree, dict):
            return {key: reversed_keys(value) for key, value in reversed(tree.items())}
        return [reversed_keys(child) for child in tree] if isinstance(tree, list) else tree

    straight = compile_spec(case.spec, case.out_spec, **case.options)
    turned = compile_spec(reversed_keys(case.spec), reversed_keys(case.out_spec), **case.options)
    assert print_program(straight.program) == print_program(turned.program)
    assert straight.shapes == turned.shapes


_DIGEST = """
import hashlib
import symcompile as sc
from symcompile.api import compile_spec
from symcompile.codegen import get_backend

specs = [
    ({"w": (0, "a", 0), "b": [("a",), ((0, "a"), sc.Fixed(2))], 3: ()}, {}),
    ({"x": ("n", "n"), "y": ("m", "n", "m")}, {"sizes": {"n": 2, "m": 3}}),
    ((0, 0, 0), {"optimize": False}),
]
text = ""
for spec, options in specs:
    compiled = compile_spec(spec, in_channels=2, out_channels=3, **options)
    text += str(compiled.program) + get_backend("torch").emit(compiled)
    text += get_backend("jax").emit(compiled)
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_hash_seed_does_not_reach_source_or_program() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    digests = set()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert len(digests.pop()) == len(hashlib.sha256().hexdigest())


@settings(max_examples=100)
@given(cases())
def test_the_basis_is_as_large_as_it_was_counted(case: Case) -> None:
    """The count comes from Stirling numbers before anything is built, the basis one by one."""
    compiled = compile_spec(case.spec, case.out_spec, **case.options)
    biases = sum(element.input is None for element in compiled.basis)
    assert compiled.plan.diagrams == len(compiled.basis)
    assert (biases > 0) == case.bias
