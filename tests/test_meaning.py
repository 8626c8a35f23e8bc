"""`diagrams_of`: the symbolic meaning of hand-written programs, checked against NumPy.

The one thing to know: `numerically` evaluates the terms of `diagrams_of` by brute force, index
by index, so its agreement with the interpreter holds coefficients and powers to account.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest

from symcompile.diagrams import Diagram
from symcompile.errors import ProgramError
from symcompile.ir import (
    Add,
    Broadcast,
    Concat,
    Const,
    Diagonal,
    Embed,
    Input,
    Mix,
    Output,
    Program,
    Reduce,
    Slice,
    Tensor,
    Term,
    Transpose,
    diagrams_of,
    verify,
)
from symcompile.ir.meaning import BIAS
from symcompile.lower import lower_factored, lower_reference
from symcompile.spec import Perm, parse_spec
from symcompile.weights import basis_elements, build_schema
from symcompile_numpy import run

SIZES = {"a": 3, "b": 2}


def tensor(*labels, channels=1):
    return Tensor(("".join(labels),), tuple(map(Perm, labels)), channels)


def program(into, out, *ops, weights=(), reduce="mean", channels=(1, 1)):
    """A program from one tensor with labels `into` to one with labels `out`."""
    tensors = (tensor(*into, channels=channels[0]),), (tensor(*out, channels=channels[1]),)
    return verify(Program(tuple(ops), *tensors, weights, reduce=reduce))


def meaning(one):
    """diagram -> (multiplicity, powers), of a program without weights."""
    return {
        str(term.diagram): (count, dict(term.powers)) for term, count in diagrams_of(one).items()
    }


def numerically(one, weights, arrays):
    """The sum of the terms of `diagrams_of(one)`, index by index."""
    outputs = [np.zeros((*(SIZES[label] for label in t.labels), t.width)) for t in one.outputs]
    for term, count in diagrams_of(one).items():
        out, labels = outputs[term.output], one.outputs[term.output].labels
        source = np.ones(1) if term.input == BIAS else arrays[term.input]
        into = () if term.input == BIAS else one.inputs[term.input].labels
        matrix = np.eye(source.shape[-1])[:, slice(*term.channels)]
        for name, rows, cols in term.slots:
            matrix = matrix @ np.atleast_2d(weights[name])[slice(*rows), slice(*cols)]
        both = (*labels, *into)
        split = term.diagram.out_order
        blocks = term.diagram.blocks
        factor = count * prod(float(SIZES[label]) ** power for label, power in term.powers)
        for block in blocks:
            if min(block) >= split and one.reduce == "mean":
                factor /= SIZES[both[block[0]]]  # a closed block of the input is averaged over
        for values in product(*(range(SIZES[both[block[0]]]) for block in blocks)):
            index = {axis: v for block, v in zip(blocks, values, strict=True) for axis in block}
            place = tuple(index[axis] for axis in range(split))
            taken = tuple(index[axis + split] for axis in range(len(into)))
            out[place] += factor * source[taken] @ matrix
    return outputs


def agrees(one):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in one.weights}
    arrays = [
        rng.standard_normal((*(SIZES[label] for label in t.labels), t.width)) for t in one.inputs
    ]
    found = run(one, weights, arrays, SIZES)
    for expected, value in zip(numerically(one, weights, arrays), found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


X = Input((), 0)

# name -> (program, diagram -> (multiplicity, powers))
HAND_WRITTEN = {
    "identity": (program("ab", "ab", X, Output((0,), 0)), {"0<-0|1<-1": (1, {})}),
    "transpose": (
        program("aa", "aa", X, Transpose((0,), (1, 0)), Output((1,), 0)),
        {"0<-1|1<-0": (1, {})},
    ),
    "transpose of three axes": (
        program("aaa", "aaa", X, Transpose((0,), (1, 2, 0)), Output((1,), 0)),
        {"0<-1|1<-2|2<-0": (1, {})},
    ),
    "twice the input": (
        program("a", "a", X, Add((0, 0)), Output((1,), 0)),
        {"0<-0": (2, {})},
    ),
    "diagonal": (
        program("aa", "a", X, Diagonal((0,), ((0, 1),)), Output((1,), 0)),
        {"0<-01": (1, {})},
    ),
    "embed": (
        program("a", "aa", X, Embed((0,), ((0, 1),)), Output((1,), 0)),
        {"01<-0": (1, {})},
    ),
    "trace": (
        program("aa", "", X, Diagonal((0,), ((0, 1),)), Reduce((1,), (0,)), Output((2,), 0)),
        {"<-01": (1, {})},
    ),
    "mean and back": (
        program("a", "a", X, Reduce((0,), (0,)), Broadcast((1,), ("a",), ()), Output((2,), 0)),
        {"0<-|<-0": (1, {})},
    ),
    "mean over a broadcast axis": (
        program(
            "a", "a", X,
            Broadcast((0,), ("a", "b"), (0,)), Reduce((1,), (1,)), Output((2,), 0),
        ),
        {"0<-0": (1, {})},
    ),
    "embed, then reduce one axis": (
        program("a", "a", X, Embed((0,), ((0, 1),)), Reduce((1,), (1,)), Output((2,), 0)),
        {"0<-0": (1, {"a": -1})},
    ),
    "embed, then reduce all axes": (
        program("a", "", X, Embed((0,), ((0, 1),)), Reduce((1,), (0, 1)), Output((2,), 0)),
        {"<-0": (1, {"a": -1})},
    ),
    "embed on three, then reduce all axes": (
        program("a", "", X, Embed((0,), ((0, 1, 2),)), Reduce((1,), (0, 1, 2)), Output((2,), 0)),
        {"<-0": (1, {"a": -2})},
    ),
    "embed on three, then reduce one after the other": (
        program(
            "a", "", X,
            Embed((0,), ((0, 1, 2),)), Reduce((1,), (2,)), Reduce((2,), (0,)), Reduce((3,), (0,)),
            Output((4,), 0),
        ),
        {"<-0": (1, {"a": -2})},
    ),
    "embed, then the diagonal": (
        program("a", "a", X, Embed((0,), ((0, 1),)), Diagonal((1,), ((0, 1),)), Output((2,), 0)),
        {"0<-0": (1, {})},
    ),
    "the diagonal joins what a broadcast parted": (
        program(
            "a", "a", X,
            Broadcast((0,), ("a", "a"), (1,)), Diagonal((1,), ((0, 1),)), Output((2,), 0),
        ),
        {"0<-0": (1, {})},
    ),
    "the diagonal of half an embedding": (
        program(
            "aa", "a", X,
            Embed((0,), ((0, 1), (2,))), Diagonal((1,), ((0, 2), (1,))), Reduce((2,), (1,)),
            Output((3,), 0),
        ),
        {"0<-01": (1, {"a": -1})},
    ),
    "a sum of different maps": (
        program(
            "aa", "aa", X,
            Transpose((0,), (1, 0)), Reduce((0,), (0,)), Broadcast((2,), ("a", "a"), (1,)),
            Add((0, 1, 1, 3)), Output((4,), 0),
        ),
        {"0<-0|1<-1": (1, {}), "0<-1|1<-0": (2, {}), "0<-|1<-1|<-0": (1, {})},
    ),
    "labels apart": (
        program(
            "ab", "ba", X,
            Reduce((0,), (0,)), Broadcast((1,), ("b", "a"), (0,)), Output((2,), 0),
        ),
        {"0<-1|1<-|<-0": (1, {})},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("one", "expected"), HAND_WRITTEN.values(), ids=HAND_WRITTEN)
def test_hand_written_programs_mean_what_they_say(one, expected):
    assert meaning(one) == expected
    agrees(one)


SUMMED = {
    "a broadcast axis": (
        "a", "a", (Broadcast((0,), ("a", "b"), (0,)), Reduce((1,), (1,))), {"0<-0": (1, {"b": 1})}
    ),
    "two broadcast axes": (
        "b", "b",
        (Broadcast((0,), ("a", "a", "b"), (2,)), Reduce((1,), (0, 1))),
        {"0<-0": (1, {"a": 2})},
    ),
    "a diagonal of broadcast axes": (
        "b", "b",
        (
            Broadcast((0,), ("a", "a", "b"), (2,)), Diagonal((1,), ((0, 1), (2,))),
            Reduce((2,), (0,)),
        ),
        {"0<-0": (1, {"a": 1})},
    ),
    "one axis of an embedding": (
        "a", "a", (Embed((0,), ((0, 1),)), Reduce((1,), (1,))), {"0<-0": (1, {})}
    ),
    "all of an embedding": (
        "a", "", (Embed((0,), ((0, 1),)), Reduce((1,), (0, 1))), {"<-0": (1, {})}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("into", "out", "steps", "expected"), SUMMED.values(), ids=SUMMED)
def test_sums_count_what_means_do_not(into, out, steps, expected):
    one = program(into, out, X, *steps, Output((len(steps),), 0), reduce="sum")
    assert meaning(one) == expected
    agrees(one)


def test_a_mean_and_a_sum_of_one_program_differ_by_powers_only():
    both = {
        reduce: diagrams_of(
            program(
                "a",
                "a",
                X,
                Embed((0,), ((0, 1),)),
                Reduce((1,), (0,)),
                Output((2,), 0),
                reduce=reduce,
            )
        )
        for reduce in ("mean", "sum")
    }
    (mean,), (total,) = both["mean"], both["sum"]
    assert mean != total
    assert replace(mean, powers=()) == replace(total, powers=())


# -- channels and weights ---------------------------------------------------------------------


def test_a_mix_records_its_slot_and_a_slice_narrows_it():
    one = program(
        "a", "a",
        X, Mix((0,), "m", (1, 3), (0, 5)), Slice((1,), 2, 4), Output((2,), 0),
        weights=(("m", (4, 6)),), channels=(2, 2),
    )  # fmt: skip
    assert diagrams_of(one) == Counter(
        [Term(0, 0, Diagram(1, ((0, 1),)), (0, 2), (("m", (1, 3), (2, 4)),), ())]
    )
    agrees(one)


def test_a_concat_deals_out_the_rows_of_a_mix():
    one = program(
        "aa", "aa",
        X, Transpose((0,), (1, 0)), Concat((0, 1)), Mix((2,), "m", (0, 4), (0, 3)), Output((3,), 0),
        weights=(("m", (4, 3)),), channels=(2, 3),
    )  # fmt: skip
    slots = {str(term.diagram): term.slots for term in diagrams_of(one)}
    assert slots == {
        "0<-0|1<-1": (("m", (0, 2), (0, 3)),),
        "0<-1|1<-0": (("m", (2, 4), (0, 3)),),
    }
    agrees(one)


def test_a_slice_across_the_seam_of_a_concat_takes_a_part_of_each():
    one = program(
        "aa", "aa",
        X, Transpose((0,), (1, 0)), Concat((0, 1)), Slice((2,), 1, 3),
        Mix((3,), "m", (0, 2), (0, 1)), Output((4,), 0),
        weights=(("m", (2, 1)),), channels=(2, 1),
    )  # fmt: skip
    found = {str(term.diagram): (term.channels, term.slots) for term in diagrams_of(one)}
    assert found == {
        "0<-0|1<-1": ((1, 2), (("m", (0, 1), (0, 1)),)),
        "0<-1|1<-0": ((0, 1), (("m", (1, 2), (0, 1)),)),
    }
    agrees(one)


def test_sums_of_values_cut_at_different_channels_are_refined():
    one = program(
        "aa", "aa",
        X, Transpose((0,), (1, 0)), Slice((0,), 0, 1), Slice((1,), 0, 2), Concat((2, 3)),
        Concat((3, 2)), Add((4, 5)), Mix((6,), "m", (0, 3), (0, 1)), Output((7,), 0),
        weights=(("m", (3, 1)),), channels=(2, 1),
    )  # fmt: skip
    agrees(one)
    rows = Counter(rows for term in diagrams_of(one) for _, rows, _ in term.slots)
    assert set(rows) == {(0, 1), (1, 2), (2, 3)}


def test_two_mixes_in_a_row_are_two_slots():
    one = program(
        "a", "a",
        X, Mix((0,), "m", (0, 1), (0, 3)), Mix((1,), "n", (0, 3), (1, 2)), Output((2,), 0),
        weights=(("m", (1, 3)), ("n", (3, 2))),
    )  # fmt: skip
    (term,) = diagrams_of(one)
    assert [slot[0] for slot in term.slots] == ["m", "n"]
    agrees(one)


def test_the_constant_is_an_input_of_its_own():
    one = program(
        "a", "a",
        Const(()), Mix((0,), "bias", (0, 1), (0, 2)), Broadcast((1,), ("a",), ()), Output((2,), 0),
        weights=(("bias", (2,)),), channels=(1, 2),
    )  # fmt: skip
    (term,) = diagrams_of(one)
    assert (term.input, str(term.diagram), term.slots) == (
        BIAS,
        "0<-",
        (("bias", (0, 1), (0, 2)),),
    )
    agrees(one)


def test_an_output_pieced_together_along_channels_is_refused():
    pieces = program("a", "a", X, Concat((0, 0)), Output((1,), 0), channels=(1, 2))
    with pytest.raises(ProgramError, match="pieced together"):
        diagrams_of(pieces)


def test_an_ill_typed_program_has_no_meaning():
    one = program("a", "a", X, Output((0,), 0))
    with pytest.raises(ProgramError, match="axes do not permute"):
        diagrams_of(replace(one, ops=(X, Transpose((0,), (1, 0)), Output((1,), 0))))


# -- as a judge of programs -------------------------------------------------------------------


def schema_of(spec, sizes=None, channels=1):
    leaves = parse_spec(spec).leaves
    tensors = [Tensor(leaf.path, leaf.axes, channels) for leaf in leaves]
    return build_schema(tensors, tensors, sizes or {})


@pytest.mark.parametrize("lower", [lower_reference, lower_factored])
@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ({"w": ("a", "a")}, {}),
        ({"w": ("a", "b"), "v": ("b",)}, {}),
        ({"w": ("a", "a")}, {"a": 3}),
        ({"w": ("b", "a", "b"), "s": ()}, {"b": 2, "a": 3}),
    ],
)
def test_a_lowered_program_is_its_basis_each_element_once_with_its_own_slot(lower, spec, sizes):
    schema = schema_of(spec, sizes, channels=2)
    paths = {t.path: place for place, t in enumerate(schema.inputs)}
    expected = Counter(
        (
            paths[element.output],
            BIAS if element.input is None else paths[element.input],
            element.diagram,
            element.weight,
            (0, 1) if element.rows is None else (element.rows.start, element.rows.stop),
            (element.cols.start, element.cols.stop),
        )
        for element in basis_elements(schema)
    )
    found = diagrams_of(lower(schema))
    assert all(not term.powers and len(term.slots) == 1 for term in found)
    assert expected == Counter(
        {(t.output, t.input, t.diagram, *t.slots[0]): n for t, n in found.items()}
    )


def numbered(kind, one):
    return [k for k, op in enumerate(one.ops) if isinstance(op, kind)]


def test_every_single_change_to_a_program_changes_its_meaning():
    """Mutation: swap a reduced axis, a diagonal, a slot, an embedding, a term of a sum."""
    one = verify(lower_factored(schema_of({"w": ("a", "a"), "u": ("a", "a")})))
    truth = diagrams_of(one)

    def planted(number, op):
        ops = list(one.ops)
        ops[number] = op
        return verify(replace(one, ops=tuple(ops)))

    wrong = []
    for number in numbered(Reduce, one):
        if one.ops[number].axes in ((0,), (1,)) and isinstance(
            one.ops[one.ops[number].args[0]], Input
        ):
            other = replace(one.ops[number], axes=(1 - one.ops[number].axes[0],))
            wrong.append(planted(number, other))
    for number in numbered(Broadcast, one):
        op = one.ops[number]
        if len(op.labels) == 2 and len(op.axes) == 1:
            wrong.append(planted(number, replace(op, axes=(1 - op.axes[0],))))
    for number in numbered(Slice, one):
        op = one.ops[number]
        if op.start:
            wrong.append(planted(number, replace(op, start=op.start - 1, stop=op.stop - 1)))
    for number in numbered(Add, one):
        op = one.ops[number]
        wrong.append(planted(number, replace(op, args=op.args[1:])))
        wrong.append(planted(number, replace(op, args=(*op.args, op.args[0]))))
    for number in numbered(Concat, one):
        op = one.ops[number]
        if len(set(op.args)) > 1:
            wrong.append(planted(number, replace(op, args=op.args[::-1])))
    assert len(wrong) > 20
    assert all(diagrams_of(other) != truth for other in wrong)
