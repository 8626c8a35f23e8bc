"""Who owns memory: what `ownership` claims against the arrays of torch code as it runs.

The one thing to know: a layer runs with every local of its code recorded, and a value's array
is what its expression in the source stands for. All are kept, so that no address is used twice.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile.codegen import get_backend, writer
from symcompile.ir import Concat, Sum, Transpose, ownership, parse_program
from symcompile.spec import flatten_like, parse_spec, unflatten
from symcompile_torch.emit import _TAKEN, _Torch
from symcompile_torch.gradient import Keeping
from tests.backend_cases import CUBE, MLP, SPEC, inputs
from tests.laws.strategies import cases

SIZES = {"a": 3, "b": 4, 0: 3, 1: 4, 2: 2}
SPECS = [
    ({"w": (0, 0)}, None),
    ({"x": (0,), "y": (0,)}, {"y": (), "z": ()}),
    ({"x": (0,)}, {"y": (0, 0, 0)}),
    ({"k": (0, 1), "b": (1,)}, None),
    ({"x": (0, 1)}, {"y": (1, 0)}),
    (MLP, None),
    (SPEC, None),
    (CUBE, None),
]
OPTIONS = [{}, {"bias": False}, {"optimize": False}, {"optimize": False, "bias": False}]


def test_mixes_of_many_channels_that_are_sliced_are_in_parts():
    """Their inputs are joined to the channels by them; one that something else reads is not."""
    fixed, few = {"k": (sc.Fixed(40), "a"), "b": ("a",)}, {"k": (sc.Fixed(4), "a"), "b": ("a",)}
    for spec, expected, apart in (
        (fixed, {"mix_a", "mix_scalar"}, {"k", "b"}),
        (few, set(), {"b"}),
    ):
        program = sc.compile(
            spec, in_channels=16, out_channels=16, optimize="auto"
        ).compiled.program
        found = ownership(program)
        assert {program.ops[k].weight for k in found.parted} == expected
        assert {program.inputs[program.ops[k].tensor].path[-1] for k in found.apart} == apart


@pytest.mark.parametrize(
    ("spec", "apart"),
    [
        ({"k": (sc.Fixed(3), 0, 1), "b": (1,)}, {"k"}),  # the bias is put together with means
        ({"k": (sc.Fixed(3), 0, 0)}, set()),  # its diagonal and its transpose are read too
        ({"k": (sc.Fixed(3), 0)}, {"k"}),
        ({"k": (sc.Fixed(3), 0), "w": (0, 0, 0)}, set()),  # its sum is small beside the other's
    ],
    ids=str,
)
def test_inputs_whose_channels_sums_alone_join(spec, apart):
    sizes = dict.fromkeys(parse_spec(spec).labels, 6)
    layer = sc.compile(spec, sizes=sizes, in_channels=4, out_channels=4)
    program = layer.compiled.program
    found = ownership(program).apart
    assert {program.inputs[program.ops[k].tensor].path[-1] for k in found} == apart


def recorded(layer, x):
    """Everything that the layer's code ever bound to each of its names, first to last."""
    bound = {}
    forward = type(layer).forward
    code = forward.__globals__.get("_layer", forward).__code__

    def watch(frame, event, arg):
        if frame.f_code is not code:
            return None
        for name, value in frame.f_locals.items():
            if isinstance(value, torch.Tensor) and not any(value is b for b in bound.get(name, ())):
                bound.setdefault(name, []).append(value)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        with torch.no_grad():
            y = layer(x)
    finally:
        sys.settrace(before)
    return bound, y


def address(array):
    return array.untyped_storage().data_ptr()


def false_claims(owned, layer, x):
    """What `owned` says about the layer's program that is not so when the layer runs."""
    compiled = layer.compiled
    keeps = "_layer" in type(layer).forward.__globals__
    kind = Keeping if keeps else writer.Writer
    wrote = kind(compiled, _Torch(), _TAKEN | {compiled.name})
    wrote.write()
    bound, y = recorded(layer, x)
    last = {name: arrays[-1] for name, arrays in bound.items()}
    texts = [value.text for value in wrote.values]

    def array_of(text):
        return eval(text, {"torch": torch}, last) if text else None

    for text, op in zip(texts, compiled.program.ops, strict=True):
        if keeps and isinstance(op, Transpose) and text and text not in last:
            last[text] = array_of(texts[op.args[0]])  # an output: `forward` moves its axes
    # Of a value cut into named slices the slices alone have names.
    arrays = [array_of(text) for text in texts]
    weights = {address(weight) for weight in layer.parameters()}
    found = []
    for number in owned.shared:
        array = arrays[number]
        if array is None or address(array) in weights:
            continue
        if array.untyped_storage().nbytes() == array.numel() * array.itemsize:
            found.append(f"%{number} is not shared")
    found += [f"%{number} is made" for number in owned.unmade if arrays[number] is not None]
    found += [f"%{number} has its own array" for number in owned.within if texts[number] in bound]
    for number, made in owned.sums.items():
        if not texts[number] or not (made.embeds or made.accumulation):
            continue
        written = {address(array) for array in bound[texts[number]]}
        for other in range(number):
            read_later = any(reader > number for reader in wrote.readers[other])
            if read_later and arrays[other] is not None and address(arrays[other]) in written:
                found.append(f"%{number} is written over %{other}, which is read later")
        if len(made.plain) == 1 and not made.accumulation:
            in_place = address(arrays[made.plain[0]]) in written
            if in_place != made.owned:
                found.append(f"%{number} is{' not' * (not in_place)} added to in place")
    results = [address(leaf) for leaf in flatten_like(compiled.out_spec, y)]
    if len(set(results)) < len(results) or weights.intersection(results):
        found.append("outputs share memory")
    return found


def built(spec, out_spec=None, **options):
    """A layer and an input; all sizes are known."""
    parsed = [parse_spec(one) for one in (spec, spec if out_spec is None else out_spec)]
    sizes = {label: SIZES[label] for one in parsed for label in one.labels}
    channels = {"in_channels": 2, "out_channels": 3}
    layer = sc.compile(spec, out_spec, **channels, sizes=sizes, dtype="float64", **options)
    arrays = flatten_like(parsed[0], inputs(spec, 2, (2,), SIZES))
    return layer, unflatten(parsed[0], [torch.from_numpy(array) for array in arrays])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("spec", "out_spec"), SPECS, ids=str)
def test_claims_are_true_of_the_running_code(spec, out_spec, options):
    layer, x = built(spec, out_spec, **options)
    assert false_claims(ownership(layer.compiled.program), layer, x) == []


@settings(max_examples=60)
@given(cases(max_weights=600, max_entries=800), st.sampled_from([False, "greedy", "auto"]))
def test_claims_are_true_of_random_layers(case, optimize):
    layer = sc.compile(case.spec, case.out_spec, optimize=optimize, dtype="float64", **case.options)
    leaves = [torch.from_numpy(leaf) for leaf in case.inputs(np.random.default_rng(0), (2,))]
    x = unflatten(case.source, leaves)
    assert false_claims(ownership(layer.compiled.program), layer, x) == []


# -- by hand ----------------------------------------------------------------------------------

CHAIN = """program(reduce='mean', sizes=((0, 3),), in_place=False)
input(path=('x',), axes=(0,), channels=2)
output(path=('y',), axes=(0, 0), channels=3)
output(path=('z',), axes=(0, 0), channels=3)
weight(name='mix_scalar', shape=(2, 12))
weight(name='mix_0', shape=(2, 18))
weight(name='bias', shape=(12,))
v0 = input(tensor=0)
v1 = mix(v0, weight='mix_0', rows=(0, 2), cols=(0, 3))
v2 = broadcast(v1, labels=(0, 0), axes=(0,))
v3 = broadcast(v1, labels=(0, 0), axes=(1,))
v4 = add(v2, v3)
v5 = embed(v1, blocks=((0, 1),))
v6 = add(v4, v5)
v7 = output(v6, tensor=0)
v8 = add(v2, v3)
v9 = output(v8, tensor=1)
"""
"""A sum that is added to in place by the next."""

READ_LATER = CHAIN.replace("add(v2, v3)\nv9", "transpose(v4, axes=(1, 0))\nv9")


def by_hand(text, name="EquivariantLinear"):
    """A layer of the program in `text`, and an input."""
    layer, x = built({"x": (0,)}, {"y": (0, 0), "z": (0, 0)}, backend="numpy", name=name)
    program = parse_program(text)
    assert program.weights == layer.compiled.program.weights
    return get_backend("torch").build(replace(layer.compiled, program=program)), x


def facts(text):
    return ownership(parse_program(text))


def test_a_sum_is_added_to_in_place_if_nothing_else_reads_it():
    assert facts(CHAIN).sums[6] == Sum((4,), (5,), True, frozenset({5}), None)
    assert facts(READ_LATER).sums[6] == Sum((4,), (5,), False, frozenset({5}), None)
    for text in (CHAIN, READ_LATER):
        layer, x = by_hand(text)
        assert false_claims(facts(text), layer, x) == []


def test_a_sum_of_broadcasts_along_one_axis_is_not_of_full_extent():
    lazy = CHAIN.replace("v3 = broadcast(v1, labels=(0, 0), axes=(1,))", "v3 = add(v2)")
    assert not facts(lazy).sums[6].owned


def test_an_embedding_that_depends_on_more_than_the_sum_is_not_covered():
    more = CHAIN.replace("v5 = embed(v1,", "v5 = embed(v0,").replace("(2, 18)", "(2, 16)")
    more = more.replace("channels=3", "channels=2").replace("cols=(0, 3)", "cols=(0, 2)")
    assert facts(more).sums[6].covered == {5}  # x is part of the mix
    swapped = more.replace("v4 = add(v2, v3)", "v4 = embed(v0, blocks=((0, 1),))")
    swapped = swapped.replace("embed(v0, blocks=((0, 1),))\nv6", "embed(v1, blocks=((0, 1),))\nv6")
    assert facts(swapped).sums[6] == Sum((), (4, 5), False, frozenset(), None)


def test_an_embedding_that_is_read_twice_is_an_operand_like_others():
    text = CHAIN.replace("output(v8", "output(v5")
    assert facts(text).sums[6] == Sum((4, 5), (), True, frozenset(), None)
    assert facts(text).within == {}


def test_the_constant_is_unmade_where_mixes_alone_read_it_and_they_are_weights():
    text = (
        CHAIN.split("v0 =")[0]
        + """v0 = const()
v1 = mix(v0, weight='bias', rows=(0, 1), cols=(0, 3))
v2 = broadcast(v1, labels=(0, 0), axes=())
v3 = output(v2, tensor=0)
v4 = output(v2, tensor=1)
"""
    )
    found = facts(text)
    assert (found.unmade, found.shared) == ({0}, {1, 2})
    read = facts(
        text.replace("v3 = output(v2, tensor=0)", "v3 = broadcast(v0, labels=(), axes=())")
    )
    assert (read.unmade, read.shared) == (frozenset(), frozenset())


def test_a_mix_that_is_accumulated_into_is_within_its_sum_with_its_stack():
    program = sc.compile({"w": (0, 0)}, in_channels=2, out_channels=3).compiled.program
    found = ownership(program)
    ((total, made),) = [(k, made) for k, made in found.sums.items() if made.accumulation]
    base = made.accumulation.base
    stack = program.ops[base].args[0]
    assert isinstance(program.ops[stack], Concat)
    assert found.within == dict.fromkeys([base, stack, *made.embeds], total)
    assert made.owned
    assert made.covered == set(made.embeds) != set()


# -- planted faults -------------------------------------------------------------------------


def test_claims_that_are_not_so_are_found():
    layer, x = built(CUBE)
    program = layer.compiled.program
    owned = ownership(program)
    made = next(number for number in owned.sums if number not in owned.shared)
    for field, complaint in [
        ({"shared": owned.shared | {made}}, f"%{made} is not shared"),
        ({"unmade": owned.unmade | {made}}, f"%{made} is made"),
        ({"within": {**owned.within, made: made}}, f"%{made} has its own array"),
    ]:
        assert false_claims(replace(owned, **field), layer, x) == [complaint]


def test_code_written_by_a_wrong_analysis_is_found(monkeypatch):
    def nothing_is_shared(program):
        return replace(ownership(program), shared=frozenset())

    # So many features that reading them twice costs more than copying slices of one product.
    spec = {f"x{k}": (0,) for k in range(12)}, {"y": (), "z": ()}
    layer, x = built(*spec, bias=False, minimize="bytes")
    assert false_claims(ownership(layer.compiled.program), layer, x) == []
    monkeypatch.setattr(writer, "ownership", nothing_is_shared)
    layer, x = built(*spec, bias=False, minimize="bytes", name="Other")
    assert false_claims(ownership(layer.compiled.program), layer, x) == ["outputs share memory"]


@pytest.mark.parametrize("text", [CHAIN, READ_LATER], ids=["in place", "anew"])
def test_a_sum_wrongly_said_to_be_in_place_or_anew_is_found(text):
    right = facts(text)
    planted = replace(right.sums[6], owned=not right.sums[6].owned)
    wrong = replace(right, sums={**right.sums, 6: planted})
    assert len(false_claims(wrong, *by_hand(text))) == 1


def test_code_that_writes_over_what_is_read_later_is_found(monkeypatch):
    right = facts(READ_LATER)
    planted = replace(right, sums={**right.sums, 6: replace(right.sums[6], owned=True)})
    program, right_of = parse_program(READ_LATER), writer.ownership
    monkeypatch.setattr(
        writer,
        "ownership",
        lambda one: planted if one.ops == program.ops else right_of(one),
    )
    complaints = false_claims(right, *by_hand(READ_LATER, "Other"))
    assert "%6 is written over %4, which is read later" in complaints
