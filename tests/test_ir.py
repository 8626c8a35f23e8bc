"""The intermediate representation: ops, types, the verifier, text and back, the builder."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symcompile.cost.objective import Objective
from symcompile.errors import ProgramError
from symcompile.ir import (
    Add,
    BatchMix,
    Broadcast,
    Builder,
    Concat,
    Const,
    Diagonal,
    Embed,
    Input,
    Mix,
    Op,
    Output,
    Pick,
    Program,
    Reduce,
    Slice,
    Tensor,
    Transpose,
    Type,
    ops,
    parse_program,
    print_program,
    types_of,
    verify,
)
from symcompile.ir.ops import OPS
from symcompile.ir.text import format_axes, format_type
from symcompile.lower import lower_factored, lower_reference
from symcompile.passes import optimize
from symcompile.planner.search import get_planner
from symcompile.spec import Composite, Fixed, Perm, parse_spec
from symcompile.weights import build_schema
from tests.spec_strategies import HOSTILE


def tensor(path, *labels, channels=2):
    return Tensor((path,), tuple(map(Perm, labels)), channels)


MATRIX = tensor("w", "a", "a")
ROW = tensor("b", "a")
MIXED = tensor("m", "a", "b")


def program(*ops, inputs=(MATRIX, ROW, MIXED), outputs=(MATRIX,), weights=(), **rest):
    return Program(tuple(ops), inputs, outputs, weights, **rest)


SOUND = program(
    Input((), 0),
    Diagonal((0,), ((0, 1),)),
    Reduce((1,), (0,)),
    Mix((2,), "mix", (0, 2), (0, 2)),
    Broadcast((3,), ("a", "a"), ()),
    Input((), 1),
    Embed((5,), ((0, 1),)),
    Transpose((0,), (1, 0)),
    Add((4, 6, 7)),
    Output((8,), 0),
    weights=(("mix", (2, 2)), ("bias", (4,))),
)


# -- types ------------------------------------------------------------------------------------


def test_what_is_found_about_a_program_is_found_once_and_not_pickled():
    sound = replace(SOUND)
    found = types_of(sound)
    assert types_of(sound) is found
    again = pickle.loads(pickle.dumps(sound))
    assert again == sound
    assert len(pickle.dumps(sound)) == len(pickle.dumps(replace(sound)))
    assert types_of(again) == found


def test_types_follow_the_ops():
    wide = program(
        Input((), 2),
        Transpose((0,), (1, 0)),
        Reduce((0,), (0,)),
        Concat((2, 2)),
        Slice((3,), 1, 3),
        Mix((4,), "mix", (0, 2), (1, 4)),
        Broadcast((5,), ("c", "b", "a"), (1,)),
        Embed((1,), ((2,), (0, 1))),
        Const(()),
        Mix((8,), "bias", (0, 1), (0, 4)),
        weights=(("mix", (2, 5)), ("bias", (4,))),
    )
    assert types_of(wide) == (
        Type(("a", "b"), 2),
        Type(("b", "a"), 2),
        Type(("b",), 2),
        Type(("b",), 4),
        Type(("b",), 2),
        Type(("b",), 3),
        Type(("c", "b", "a"), 3),
        Type(("a", "a", "b"), 2),
        Type((), 1, batched=False),
        Type((), 4, batched=False),
    )


def test_a_sum_is_batched_if_one_of_its_operands_is():
    both = program(
        Input((), 0), Const(()), Concat((1, 1)), Broadcast((2,), ("a", "a"), ()), Add((0, 3))
    )
    assert types_of(both)[-1] == Type(("a", "a"), 2, batched=True)


def test_a_sound_program_verifies_and_comes_back():
    assert verify(SOUND) is SOUND


def test_fixed_and_composite_axes_show_as_channels_and_labels():
    stored = Tensor(("k",), (Fixed(3), Composite((Perm("h"), Fixed(5))), Perm(0)), 2)
    assert stored.labels == ("h", 0)
    assert stored.fixed == (3, 5)
    assert stored.width == 30
    assert stored.type == Type(("h", 0), 30)
    assert stored.atoms == (Fixed(3), Perm("h"), Fixed(5), Perm(0))


def test_ops_and_programs_are_frozen_and_hashable():
    op = Mix((0,), "mix", (0, 2), (0, 2))
    with pytest.raises(FrozenInstanceError):
        op.weight = "other"  # type: ignore[misc]
    assert {op, Mix((0,), "mix", (0, 2), (0, 2))} == {op}
    assert hash(SOUND) == hash(replace(SOUND))
    assert Reduce((0,), (1,)) != Transpose((0,), (1,))


def test_every_op_has_a_printed_name():
    assert {kind.__name__ for kind in OPS.values()} == set(ops.__all__) - {"OPS", "Op"}
    assert all(name == kind.__name__.lower() for name, kind in OPS.items())


def test_weights_are_counted():
    assert SOUND.weight_count == 2 * 2 + 4


# -- the verifier -----------------------------------------------------------------------------

X = Input((), 0)  # labels ("a", "a"), 2 channels
M = Input((), 2)  # labels ("a", "b"), 2 channels
WEIGHTS = (("mix", (2, 3)), ("bias", (3,)))


class Unknown(Op):
    """An op no table knows."""


ILL_TYPED = {
    "reads itself": ((Reduce((0,), (0,)),), "no earlier op"),
    "reads a later op": ((Add((1,)), X), "no earlier op"),
    "reads a negative number": ((X, Add((-1,))), "no earlier op"),
    "input with operands": ((X, Input((0,), 0)), "an input has no operands"),
    "input of no tensor": ((Input((), 3),), "there is no input 3"),
    "input of a negative tensor": ((Input((), -1),), "there is no input -1"),
    "const with operands": ((X, Const((0,))), "a const has no operands"),
    "empty sum": ((Add(()),), "at least one operand"),
    "empty concat": ((Concat(()),), "at least one operand"),
    "sum of other labels": ((X, M, Add((0, 1))), "differ in labels"),
    "concat of other labels": ((X, M, Concat((0, 1))), "differ in labels"),
    "concat of batched and not": (
        (X, Const(()), Broadcast((1,), ("a", "a"), ()), Concat((0, 2))),
        "differ in batch",
    ),
    "sum of other widths": ((X, Concat((0, 0)), Add((0, 1))), "differ in width"),
    "diagonal of two": ((X, Diagonal((0, 0), ((0, 1),))), "needs one operand, has 2"),
    "reduce of nothing": ((Reduce((), (0,)),), "needs one operand, has 0"),
    "diagonal that drops an axis": ((X, Diagonal((0,), ((0,),))), "do not partition 2 axes"),
    "diagonal that repeats an axis": ((X, Diagonal((0,), ((0, 1), (1,)))), "do not partition"),
    "diagonal with an empty block": ((X, Diagonal((0,), ((0, 1), ()))), "do not partition"),
    "diagonal across labels": ((M, Diagonal((0,), ((0, 1),))), "mixes labels"),
    "reduce over no axes": ((X, Reduce((0,), ())), "axes repeat, or there are none"),
    "reduce twice over one axis": ((X, Reduce((0,), (1, 1))), "axes repeat"),
    "reduce over an axis too many": ((X, Reduce((0,), (2,))), "outside 0 to 1"),
    "reduce over a negative axis": ((X, Reduce((0,), (-1,))), "outside 0 to 1"),
    "transpose of too few": ((X, Transpose((0,), (0,))), "do not permute 2 axes"),
    "transpose that repeats": ((X, Transpose((0,), (0, 0))), "do not permute 2 axes"),
    "mix by no weight": ((X, Mix((0,), "other", (0, 2), (0, 3))), "no weight 'other'"),
    "mix by rows outside": ((X, Mix((0,), "mix", (1, 3), (0, 3))), "rows .* outside"),
    "mix by columns outside": ((X, Mix((0,), "mix", (0, 2), (0, 4))), "columns .* outside"),
    "mix by no columns": ((X, Mix((0,), "mix", (0, 2), (1, 1))), "columns .* outside"),
    "mix by too few rows": ((X, Mix((0,), "mix", (0, 1), (0, 3))), "2 channels meet rows"),
    "mix of an input by the bias": ((X, Mix((0,), "bias", (0, 1), (0, 3))), "2 channels meet rows"),
    "slice past the end": ((X, Slice((0,), 0, 3)), "outside 2 channels"),
    "slice of nothing": ((X, Slice((0,), 1, 1)), "outside 2 channels"),
    "slice below zero": ((X, Slice((0,), -1, 1)), "outside 2 channels"),
    "broadcast that loses an axis": ((X, Broadcast((0,), ("a", "a"), (0,))), "1 places for 2"),
    "broadcast out of order": ((X, Broadcast((0,), ("a", "a", "b"), (1, 0))), "do not increase"),
    "broadcast past the end": ((X, Broadcast((0,), ("a", "a"), (0, 2))), "outside the result"),
    "broadcast that renames": ((X, Broadcast((0,), ("a", "b"), (0, 1))), "labels change"),
    "embed of too few": ((X, Embed((0,), ((0, 1),))), "1 blocks for 2 axes"),
    "embed that leaves a gap": ((X, Embed((0,), ((0,), (2,)))), "do not partition the result"),
    "embed that overlaps": ((X, Embed((0,), ((0, 1), (1,)))), "do not partition the result"),
    "output of no tensor": ((X, Output((0,), 1)), "there is no output 1"),
    "output of other labels": ((M, Output((0,), 0)), "expects Type"),
    "output of another width": ((X, Slice((0,), 0, 1), Output((1,), 0)), "expects Type"),
    "unknown op": ((X, Unknown((0,))), "unknown op Unknown"),
}


@pytest.mark.parametrize(("lines", "message"), ILL_TYPED.values(), ids=ILL_TYPED)
def test_an_ill_typed_op_is_named(lines, message):
    wrong = program(*lines, weights=WEIGHTS)
    with pytest.raises(ProgramError, match=rf"op %\d.*{message}"):
        types_of(wrong)
    with pytest.raises(ProgramError, match=message):
        verify(wrong)


def test_an_output_not_written_is_refused_by_name():
    with pytest.raises(ProgramError, match=r"output 1 .*'b'.* is written 0 times"):
        verify(program(X, Output((0,), 0), outputs=(MATRIX, ROW)))


def test_an_output_written_twice_is_refused():
    with pytest.raises(ProgramError, match="written 2 times, not once"):
        verify(program(X, Output((0,), 0), Output((0,), 0)))


def test_an_output_that_is_read_is_refused():
    again = program(
        X, Output((0,), 0), Transpose((1,), (1, 0)), Output((2,), 1), outputs=(MATRIX, MATRIX)
    )
    with pytest.raises(ProgramError, match="an output is read by another op"):
        verify(again)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ProgramError, match="reduce is 'max', expected 'mean' or 'sum'"):
        verify(program(X, Output((0,), 0), reduce="max"))


# -- text -------------------------------------------------------------------------------------


def lowered(spec, factored=True, channels=2, **options):
    leaves = parse_spec(spec).leaves
    tensors = [Tensor(leaf.path, leaf.axes, channels) for leaf in leaves]
    schema = build_schema(tensors, tensors, options.get("sizes", {}))
    return (lower_factored if factored else lower_reference)(schema, options.get("reduce", "mean"))


SPECS = [
    {"w": (0, 1), "b": (1,)},
    {"w": (0, 0)},
    [(), ("a", Fixed(3)), (("a", 0, Fixed(2)), "a")],
    {"deep": [{"x": ("b", "a", "b")}, {"class": (-5,)}]},
    (0, 0),
]


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
@pytest.mark.parametrize("factored", [True, False])
def test_programs_read_back_equal(spec, factored):
    for one in (
        lowered(spec, factored),
        optimize(lowered(spec, factored), get_planner("auto"), Objective()).program,
    ):
        text = print_program(one)
        assert parse_program(text) == one
        assert print_program(parse_program(text)) == text == str(one)


def test_sizes_and_reduction_read_back():
    one = lowered({"w": ("a", 7)}, sizes={7: 3, "a": 4}, reduce="sum")
    back = parse_program(str(one))
    assert (back.sizes, back.reduce) == (((7, 3), ("a", 4)), "sum")
    assert back == one


def test_every_kind_of_op_prints_on_one_line_and_reads_back():
    kinds = program(
        X,
        Diagonal((0,), ((0, 1),)),
        Embed((1,), ((0, 1),)),
        Reduce((0,), (0, 1)),
        Const(()),
        Concat((3, 3)),
        Slice((5,), 1, 3),
        Mix((6,), "mix", (0, 2), (0, 3)),
        Transpose((0,), (1, 0)),
        Broadcast((3,), ("a", "a"), ()),
        Add((2, 8, 9)),
        Output((10,), 0),
        BatchMix((6, 6), ("mix", "mix_2")),
        Pick((12,), 1),
        weights=(*WEIGHTS, ("mix_2", (2, 3))),
    )
    assert {type(op) for op in kinds.ops} == set(OPS.values())
    text = str(kinds)
    assert len(text.splitlines()) == 1 + 4 + 3 + len(kinds.ops)
    assert parse_program(text) == kinds


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_hostile_paths_and_labels_read_back_and_stay_on_their_line(name):
    strange = Tensor((name, 0, name), (Perm(name), Composite((Perm(name), Fixed(2)))), 1)
    one = program(
        Input((), 0),
        Reduce((0,), (1,)),
        Broadcast((1,), (name, name), (0,)),
        Mix((2,), name, (0, 2), (0, 2)),
        Output((3,), 0),
        inputs=(strange,),
        outputs=(strange,),
        weights=((name, (2, 2)),),
        sizes=((name, 4),),
    )
    text = str(verify(one))
    assert len(text.split("\n")) == 1 + 2 + 1 + 5 + 1
    assert parse_program(text) == one


@given(st.text(), st.text())
def test_any_text_reads_back(path, label):
    strange = Tensor((path,), (Perm(label),), 1)
    one = program(Input((), 0), Output((0,), 0), inputs=(strange,), outputs=(strange,))
    assert parse_program(str(one)) == one


def test_labels_keep_their_kind_in_text():
    for label in (0, "0", -1, "-1", 2**62):
        one = Tensor(("x",), (Perm(label),), 1)
        text = str(program(Input((), 0), Output((0,), 0), inputs=(one,), outputs=(one,)))
        assert parse_program(text).inputs[0].labels == (label,)


def test_comments_and_empty_lines_are_skipped():
    text = str(SOUND)
    assert parse_program("# a remark\n\n" + text.replace("\n", "\n   \n  # more\n")) == SOUND


@pytest.mark.parametrize(
    "line",
    [
        "v1 = reduce(v0, axes=(0,))",  # a number is skipped
        "v0 = explode(tensor=0)",
        "v0 = input(tensor=0",
        "v0 = input(tensor=0, extra=1)",
        "v0 = input()",
        "v0 = input(tensor=__import__('os').getcwd())",
        "v0 = input(tensor=open)",
        "v0 = input(0)",
        "v0 = os.system(tensor=0)",
        "v0 = reduce(x0, axes=(0,))",
        "v0 = reduce(vx, axes=(0,))",
        "v0 = 7",
        "v0 = v0 = input(tensor=0)",
        f"v0 = input(tensor={'-' * 100_000}1)",
        f"v0 = input(tensor={'(' * 300}0{')' * 300})",
        "v0 = input(tensor=\0)",
        "v0 = input(tensor='\ud800')",
        "program()",
        "program(reduce='mean', sizes=3)",
        "v0 += input(tensor=0)",
        "import os",
        "v0 = input(tensor=0); v1 = input(tensor=1)",
        "tensor(path=(), axes=(), channels=1)",
        "input(path=(), axes=(True,), channels=1)",
        "input(path=(), axes=(1.5,), channels=1)",
        "input(path=(), axes=((0, (1, 2)),), channels=1)",
        "input(path=(), axes=(), channels='many')",
        "input(path=(), axes=())",
        "weight(name='w')",
        "weight(name='w', shape=3)",
    ],
    ids=lambda line: ascii(line[:40]),
)
def test_a_line_that_is_no_line_of_a_program_is_refused_by_number(line):
    with pytest.raises(ProgramError, match="line 2 is not a line of a program"):
        parse_program("# first\n" + line)


def test_parsing_never_evaluates(tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(ProgramError):
        parse_program(f"v0 = input(tensor=open({str(mark)!r}, 'w').close())")
    assert not mark.exists()


def test_a_printed_op_states_its_shape_and_size():
    known, unknown = Type((0, 1), 16), Type((), 3, batched=False)
    assert format_type(known, {}) == "(0, 1) x 16 = 16*n[0]*n[1]"
    assert format_type(known, {0: 2, 1: 5}) == "(0, 1) x 16 = 160"
    assert format_type(Type(("a",), 1), {}) == "('a',) x 1 = n['a']"
    assert format_type(unknown, {}) == "() x 3 = 3, no batch"
    assert (
        format_axes((Perm(0), Fixed(9), Composite((Perm("h"), Fixed(2))))) == "(0, {9}, ('h', {2}))"
    )
    assert format_axes((Perm("h"),)) == "('h',)"


# -- the builder ------------------------------------------------------------------------------


def test_the_builder_shares_equal_ops():
    build = Builder(program(weights=WEIGHTS))
    assert build.input(0) == build.input(0)
    assert build.reduce(0, [1]) == build.reduce(0, (1,))
    assert build.input(1) != build.input(0)


def test_the_builder_keeps_equal_ops_apart_when_told_to():
    build = Builder(program(), share=False)
    assert build.input(0) != build.input(0)


def test_the_builder_skips_ops_that_do_nothing():
    build = Builder(program(weights=WEIGHTS))
    x = build.input(0)
    assert build.diagonal(x, ((0,), (1,))) == x
    assert build.reduce(x, []) == x
    assert build.transpose(x, [0, 1]) == x
    assert build.concat([x]) == x
    assert build.add([x]) == x
    assert build.slice(x, 0, 2, 2) == x
    assert build.broadcast(x, ("a", "a"), (0, 1)) == x
    assert build.embed(x, ((0,), (1,))) == x


def test_a_diagonal_or_embedding_of_single_axes_is_a_transpose():
    build = Builder(program(inputs=(tensor("t", "a", "a", "a"),)))
    x = build.input(0)
    down = build.diagonal(x, ((2,), (0,), (1,)))
    up = build.embed(down, ((2,), (0,), (1,)))
    assert build._ops[down] == Transpose((x,), (2, 0, 1))
    assert build._ops[up] == Transpose((down,), (1, 2, 0))  # and the embedding undoes the diagonal


def test_ops_that_nobody_reads_are_left_out_and_the_rest_renumbered():
    build = Builder(program(weights=WEIGHTS))
    x = build.input(0)
    build.reduce(x, [0])
    turned = build.transpose(x, [1, 0])
    build.output(turned, 0)
    assert build.program() == program(X, Transpose((0,), (1, 0)), Output((1,), 0), weights=WEIGHTS)


def test_a_builder_starts_from_the_tensors_and_weights_of_a_program_not_its_ops():
    built = Builder(replace(SOUND, sizes=(("a", 3),), reduce="sum"))
    assert built.program() == replace(SOUND, ops=(), sizes=(("a", 3),), reduce="sum")


def test_lowered_programs_are_sound():
    for spec in SPECS:
        for factored in (True, False):
            one = verify(lowered(spec, factored))
            kinds = Counter(type(op) for op in one.ops)
            assert kinds[Output] == len(one.outputs)


def test_the_factored_program_has_one_mix_per_weight_and_the_reference_one_per_diagram():
    spec = {"w": (0, 0), "b": (0,)}
    factored, reference = lowered(spec), lowered(spec, factored=False)
    assert sum(isinstance(op, Mix) for op in factored.ops) == len(factored.weights)
    maps, biases = 15 + 5 + 5 + 2, 2 + 1
    assert sum(isinstance(op, Mix) for op in reference.ops) == maps + biases
