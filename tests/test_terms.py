"""`terms=`: a layer that keeps a part of the basis, in dense matrices that hold nothing else."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile import terms
from symcompile.api import compile_spec
from symcompile.diagrams import Diagram
from symcompile.ir import diagrams_of, verify
from symcompile.lower import lower_factored, lower_reference
from symcompile.spec import parse_spec
from symcompile.specs import transformer
from symcompile.weights.cover import dense_pieces
from tests.backend_cases import SPEC, inputs
from tests.baselines import held_to_programs

pytestmark = pytest.mark.usefixtures("quick_xla")

MLP = {"Dense_0": {"kernel": (0, 1), "bias": (1,)}, "Dense_1": {"kernel": (1, 2), "bias": (2,)}}
SPECS = {
    "mlp": (MLP, None),
    "graph": ({"w": (0, 0), "b": (0,)}, None),
    "all kinds": (SPEC, None),
    "to another order": ({"w": ("b", "a"), "v": ("a",)}, {"w": ("a", "b", "a")}),
}
READY = {
    "same_tensor": terms.same_tensor,
    "shared_label": terms.shared_label,
    "max_order(0)": terms.max_order(0),
    "max_order(1)": terms.max_order(1),
    "no_diagonals": terms.no_diagonals,
    "two of them": [terms.no_diagonals, terms.max_order(1)],
}
OPTIONS = {"in_channels": 2, "out_channels": 3}


def holds(predicate, element):
    many = predicate if isinstance(predicate, list) else [predicate]
    return all(one(element.output, element.input, element.diagram) for one in many)


def key(element):
    return element.output, element.input, element.diagram


def chosen(seed, share):
    """A predicate that keeps a random part, the same whenever it is asked."""

    def keep(output, input, diagram):
        return random.Random(f"{seed} {output} {input} {diagram}").random() < share

    return keep


def moved(full, part, weights, rest=0.0):
    """Weights of the full layer that make it the partial one."""
    result = {name: np.full(shape, rest) for name, shape in full.compiled.shapes.items()}
    kept = {key(element): element for element in part.basis}
    for element in full.basis:
        if key(element) in kept:
            place = (element.cols,) if element.rows is None else (element.rows, element.cols)
            result[element.weight][place] = kept[key(element)].coefficient(weights)
    return result


def random_weights(layer, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in layer.compiled.shapes.items()}


# -- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize("terms_", READY.values(), ids=READY)
@pytest.mark.parametrize(("spec", "out_spec"), SPECS.values(), ids=SPECS)
def test_the_basis_is_the_full_one_filtered(spec, out_spec, terms_):
    full = compile_spec(spec, out_spec, **OPTIONS)
    wanted = {key(e) for e in full.basis if e.input is None or holds(terms_, e)}
    if not any(input is not None for _, input, _ in wanted):
        with pytest.raises(sc.OptionError, match="removes every map"):
            compile_spec(spec, out_spec, terms=terms_, **OPTIONS)
        return
    part = compile_spec(spec, out_spec, terms=terms_, **OPTIONS)
    assert len(part.basis) == len(wanted) == part.plan.diagrams
    assert {key(e) for e in part.basis} == wanted


@pytest.mark.parametrize("terms_", READY.values(), ids=READY)
def test_the_layer_is_the_full_one_with_the_other_coefficients_zero(terms_):
    spec = SPECS["all kinds"][0]
    full = sc.compile(spec, backend="numpy", **OPTIONS)
    part = sc.compile(spec, backend="numpy", terms=terms_, **OPTIONS)
    weights, x = random_weights(part), inputs(spec, 2)
    found = part.apply(weights, x)
    wanted = full.apply(moved(full, part, weights), x)
    other = full.apply(moved(full, part, weights, rest=1.0), x)
    for name in ("w", "heads"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-12)
        assert not np.allclose(found[name], other[name])


@pytest.mark.parametrize("terms_", READY.values(), ids=READY)
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_a_part_of_the_basis_is_still_equivariant(terms_, backend):
    layer = sc.compile(SPEC, backend=backend, terms=terms_, **OPTIONS)
    sc.check_equivariance(layer)


@pytest.mark.parametrize("terms_", [terms.same_tensor, terms.shared_label, chosen(1, 0.4)])
def test_all_backends_and_plans_agree(terms_):
    sc.check_backends(SPEC, terms=terms_, sizes={"a": 3, "b": 4})


def test_what_the_ready_predicates_keep():
    def count(spec, terms_, out_spec=None):
        return sc.plan(spec, out_spec, bias=False, terms=terms_).diagrams

    assert count({"w": (0, 0), "b": (0,)}, terms.same_tensor) == 15 + 2
    assert count((0, 0), terms.shared_label) == 15 - 4  # two ways to average, two to spread
    assert [count((0, 0), terms.max_order(k)) for k in range(4)] == [4, 13, 15, 15]
    # Without diagonals a block is one axis, or one of each: partial matchings of 2 with 2.
    assert count((0, 0), terms.no_diagonals) == 1 + 4 + 2
    assert count({"w": (0, 1)}, terms.no_diagonals) == 4


def test_predicates_see_paths_and_diagrams_and_never_the_bias():
    asked = []

    def keep(output, input, diagram):
        asked.append((output, input, str(diagram)))
        return True

    layer = compile_spec({"w": (0,)}, {"y": [(0,)]}, terms=keep, **OPTIONS)
    assert asked == [(("y", 0), ("w",), "0<-|<-0"), (("y", 0), ("w",), "0<-0")]
    assert [e.input for e in layer.basis] == [("w",), ("w",), None]


def test_predicates_are_asked_about_each_element_once_and_only_about_what_sizes_allow():
    asked = []

    def keep(output, input, diagram):
        asked.append(diagram)
        return True

    compile_spec((0, 0), sizes={0: 3}, terms=keep, **OPTIONS)
    assert len(asked) == len(set(asked)) == 14
    assert all(isinstance(diagram, Diagram) and len(diagram.blocks) <= 3 for diagram in asked)


@pytest.mark.parametrize("small", [{}, {0: 2, "a": 2, "b": 1}], ids=["unbound", "small"])
@pytest.mark.parametrize(("spec", "out_spec"), SPECS.values(), ids=SPECS)
def test_keeping_everything_is_the_layer_without_terms(spec, out_spec, small):
    sizes = {label: small[label] for label in small if label in parse_spec(spec).labels}
    full = compile_spec(spec, out_spec, sizes=sizes, **OPTIONS)
    for everything in ([], (), lambda output, input, diagram: True):
        part = compile_spec(spec, out_spec, sizes=sizes, terms=everything, **OPTIONS)
        assert part.schema == full.schema


# -- dense pieces -----------------------------------------------------------------------------


@given(st.lists(st.integers(0, 63), min_size=1, max_size=8))
def test_pieces_hold_every_pair_once_and_no_other(masks):
    pairs = {(row, column) for row, mask in enumerate(masks) for column in range(6)
             if mask >> column & 1}  # fmt: skip
    pieces = dense_pieces(range(len(masks)), range(6), lambda *pair: pair in pairs)
    held = [(row, column) for rows, columns in pieces for row in rows for column in columns]
    assert len(held) == len(set(held))
    assert set(held) == pairs
    by_row = len({mask for mask in masks if mask})
    by_column = len({tuple(m >> c & 1 for m in masks) for c in range(6)} - {(0,) * len(masks)})
    assert len(pieces) <= min(by_row, by_column)


def test_pieces_are_grouped_by_rows_or_by_columns_part_by_part():
    # Three rows and two columns want grouping by columns, three columns and two rows by rows.
    pairs = {("a", "x"), ("b", "x"), ("b", "y"), ("c", "y"), ("c", "x"), ("a", "y"), ("d", "x")}
    assert dense_pieces("abcd", "xy", lambda *pair: pair in pairs) == [
        ([0, 1, 2], [0, 1]),
        ([3], [0]),
    ]
    pairs = {("a", "x"), ("b", "y"), ("c", "x"), ("c", "y")}
    assert len(dense_pieces("abc", "xy", lambda *pair: pair in pairs)) == 2
    both = pairs | {("d", "u"), ("d", "v"), ("e", "v"), ("e", "w")}
    pieces = dense_pieces("abcde", "xyuvw", lambda *pair: pair in both)
    assert len(pieces) == 4


def test_same_tensor_has_one_small_matrix_for_each_tensor():
    schema = compile_spec({"a": (0,), "b": (0,)}, terms=terms.same_tensor, **OPTIONS).schema
    assert [(w.name, w.shape) for w in schema.weights] == [
        ("mix_scalar", (2, 3)),
        ("mix_scalar_2", (2, 3)),
        ("mix_0", (2, 3)),
        ("mix_0_2", (2, 3)),
        ("bias", (6,)),
    ]


@settings(max_examples=60)
@given(st.sampled_from(list(SPECS)), st.integers(0, 1000), st.sampled_from([0.1, 0.5, 0.9]))
def test_any_part_of_a_basis_is_summed_once_and_costs_what_the_baseline_says(name, seed, share):
    spec, out_spec = SPECS[name]
    keep = chosen(seed, share)
    try:
        part = compile_spec(spec, out_spec, terms=keep, keep_stages=True, **OPTIONS)
    except sc.OptionError as error:
        if "removes every map" not in str(error):
            raise
        return
    full = compile_spec(spec, out_spec, **OPTIONS)
    wanted = [key(e) for e in full.basis if e.input is None or holds(keep, e)]
    assert sorted(map(key, part.basis), key=str) == sorted(wanted, key=str)
    weights = sum(w.shape[0] * w.shape[1] for w in part.schema.weights if w.rows)
    assert weights == sum(
        (e.rows.stop - e.rows.start) * (e.cols.stop - e.cols.start) for e in part.basis if e.rows
    )
    reference = lower_reference(part.schema)
    meaning = diagrams_of(verify(reference))
    assert set(meaning.values()) == {1}
    assert len(meaning) == len(part.basis)
    assert diagrams_of(lower_factored(part.schema)) == meaning
    assert [diagrams_of(verify(program)) for _, program in part.stages] == [meaning] * len(
        part.stages
    )
    held_to_programs(part.schema)


def test_the_schema_depends_on_no_plan():
    shapes = {
        optimize: compile_spec(SPEC, terms=terms.no_diagonals, optimize=optimize, **OPTIONS).shapes
        for optimize in (False, "greedy", "auto")
    }
    assert shapes[False] == shapes["greedy"] == shapes["auto"]


def test_same_tensor_on_a_transformer_compiles_fast():
    network = transformer(3)
    start = time.process_time()
    plan = sc.plan(
        network.spec, shapes=network.shapes, terms=terms.same_tensor,
        in_channels=64, out_channels=64,
    )  # fmt: skip
    assert time.process_time() - start < 3  # a fifth of a second alone
    assert (plan.diagrams, plan.weights) == (270, 888_192)


# -- edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_an_output_that_only_the_bias_reaches_and_an_input_that_nothing_reads(backend):
    spec = {"w": (0, 1), "b": (1,)}

    def keep(output, input, diagram):
        return output == input == ("w",)

    layer = sc.compile(spec, backend=backend, terms=keep, **OPTIONS)
    sc.check_equivariance(layer)
    assert {e.output for e in layer.basis if e.input is None} == {("w",), ("b",)}


def test_terms_reach_export_and_the_report(tmp_path):
    options = {"terms": terms.same_tensor, "backend": "torch", **OPTIONS}
    path = sc.export(MLP, tmp_path / "layer.py", **options)
    assert path.read_text() == sc.compile(MLP, **options).source
    assert sc.plan(MLP, terms=terms.same_tensor).weights < sc.plan(MLP).weights


def test_a_layer_of_a_part_of_the_basis_is_found_incomplete():
    with pytest.raises(sc.CheckError, match="incomplete"):
        sc.check_completeness((0, 0), sizes={0: 4}, terms=terms.no_diagonals)


@pytest.mark.parametrize(
    ("terms_", "message"),
    [
        (lambda *_: False, "removes every map; keep some"),
        ([terms.shared_label, terms.max_order(0)], "removes every map"),
        ("same_tensor", "terms: found the string 'same_tensor', expected a function of"),
        ([terms.same_tensor, 3], "terms: found the int 3, expected a function"),
        (
            lambda o, i, d: 1,
            r"<lambda> returned the int 1 on output \['a'\], input \['a'\], diagram",
        ),
        (lambda o, i, d: None, "returned None .*expected True or False; wrap it in bool"),
        (lambda o: True, r"<lambda> raised TypeError on output \['a'\]"),
        (lambda o, i, d: {}["x"], "<lambda> raised KeyError"),
    ],
)
def test_terms_that_mean_nothing_are_refused(terms_, message):
    with pytest.raises(sc.OptionError, match=message):
        sc.plan({"a": (0,), "b": (0,)}, terms=terms_)


def test_a_predicate_that_raises_is_the_cause():
    def fails(output, input, diagram):
        raise ValueError("no such thing")

    with pytest.raises(sc.OptionError, match=r"fails raised ValueError .*no such thing") as caught:
        sc.plan((0,), terms=fails)
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_output_left_without_terms_is_named_unless_it_has_a_bias():
    spec = {"w": (0, 1), "b": (1,)}

    def keep(output, input, diagram):
        return output == ("w",)

    with pytest.raises(sc.OptionError, match=r"nothing for output \['b'\], and there is no bias"):
        sc.plan(spec, terms=keep, bias=False)
    assert sc.plan(spec, terms=keep).diagrams == 8 - 2 + 2


@pytest.mark.parametrize("k", [-1, 1.5, True, "1", None])
def test_an_order_that_is_no_count_is_refused(k):
    with pytest.raises(sc.OptionError, match=r"max_order: found .*, expected an int from 0 up"):
        terms.max_order(k)


def test_the_whole_basis_is_bounded_before_any_predicate_is_asked():
    with pytest.raises(sc.BasisTooLargeError):
        sc.plan((0, 0, 0, 0), max_basis=100, terms=lambda *_: 1 / 0)
