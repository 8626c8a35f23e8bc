"""The canonical schema: names, shapes, order, pruned groups, basis elements; and their scales."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import symcompile as sc
from symcompile.diagrams import (
    basis_size,
    bijections,
    cut,
    glue,
    half_diagrams,
)
from symcompile.errors import OptionError
from symcompile.ir import Tensor
from symcompile.spec import parse_spec
from symcompile.weights import Scale, Schema, basis_elements, build_schema, init_scales
from symcompile.weights.scale import DIRECT, ORTHOGONAL_LIMIT
from tests.spec_strategies import HOSTILE


def tensors_of(spec, channels=1):
    leaves = parse_spec(spec).leaves
    counts = channels if isinstance(channels, list) else [channels] * len(leaves)
    return [Tensor(leaf.path, leaf.axes, n) for leaf, n in zip(leaves, counts, strict=True)]


def schema_of(spec, out_spec=None, sizes=None, bias=True, channels=(1, 1)):
    into = tensors_of(spec, channels[0])
    out = tensors_of(spec if out_spec is None else out_spec, channels[1])
    return build_schema(into, out, sizes or {}, bias=bias)


def shapes(schema):
    return {weight.name: weight.shape for weight in schema.weights}


MLP = {
    "params": {
        "Dense_0": {"kernel": (0, 1), "bias": (1,)},
        "Dense_1": {"kernel": (1, 2), "bias": (2,)},
    }
}

SPECS = {
    "empty leaf": ({"s": ()}, None),
    "set": ({"x": (0,)}, None),
    "graph": ({"w": (0, 0)}, None),
    "mlp": (MLP, None),
    "to a scalar": ({"w": (0, 0), "b": (0,)}, ()),
    "to another order": ({"w": ("b", "a")}, {"w": ("a", "b", "a")}),
    "three alike": ((0, 0, 0), (0,)),
}
SIZES = [{}, {0: 1, "a": 1, "b": 1}, {0: 2, "a": 2, 1: 3}, {0: 3, 1: 2, 2: 1}]


def test_names_and_shapes_of_a_small_network():
    assert shapes(schema_of({"w": (0, 1), "b": (1,)}, channels=(2, 3))) == {
        "mix_scalar": (2 * 2, 2 * 3),
        "mix_0": (2, 3),
        "mix_1": (2 * 2, 2 * 3),
        "mix_0_1": (2, 3),
        "bias": (2 * 3,),
    }


def test_one_label_twice_has_a_row_for_each_bijection():
    assert shapes(schema_of({"w": (0, 0)})) == {
        "mix_scalar": (2, 2),
        "mix_0": (3, 3),
        "mix_0_0": (2, 1),
        "bias": (2,),
    }


def test_without_bias_there_is_none():
    assert list(shapes(schema_of({"x": (0,)}, bias=False))) == ["mix_scalar", "mix_0"]


def test_the_bias_reaches_every_out_half_diagram_without_propagating_blocks():
    schema = schema_of({"w": (0, 0), "b": (0,)})
    (bias,) = [weight for weight in schema.weights if not weight.rows]
    assert (bias.name, bias.signature) == ("bias", ())
    assert [(c.tensor, str(c.half)) for c in bias.columns] == [
        (0, "(0)"),
        (1, "(0)|(1)"),
        (1, "(01)"),
    ]


def test_fixed_axes_and_channels_widen_rows_and_columns():
    spec = {"k": (None, 0)}
    bound = {"k": (7, 5)}
    layer = sc.compile(spec, in_channels=2, out_channels=3, shapes=bound, backend="numpy")
    assert layer.compiled.shapes == {"mix_scalar": (14, 21), "mix_0": (14, 21), "bias": (21,)}


def test_tensors_of_different_channels_lie_one_after_the_other():
    schema = schema_of({"a": (0,), "b": (0,)}, channels=([2, 5], [1, 4]))
    mix = next(weight for weight in schema.weights if weight.signature == (0,))
    assert [(row.start, row.width) for row in mix.rows] == [(0, 2), (2, 5)]
    assert [(col.start, col.width) for col in mix.columns] == [(0, 1), (1, 4)]


def test_the_schema_does_not_depend_on_the_order_a_dict_was_written_in():
    turned = {
        "params": {
            "Dense_1": {"bias": (2,), "kernel": (1, 2)},
            "Dense_0": {"bias": (1,), "kernel": (0, 1)},
        }
    }
    assert schema_of(turned) == schema_of(MLP)
    assert sc.plan(turned).weights == sc.plan(MLP).weights


def test_int_keys_sort_as_numbers_and_before_strings():
    schema = schema_of({10: (0,), "b": (0,), 9: (0,), "a": (0,)})
    assert [t.path for t in schema.inputs] == [(9,), (10,), ("a",), ("b",)]


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("optimize", [False, "greedy", "auto"])
def test_no_backend_and_no_plan_changes_the_schema(backend, optimize):
    layer = sc.compile(MLP, in_channels=2, out_channels=3, backend=backend, optimize=optimize)
    assert layer.compiled.schema == schema_of(MLP, channels=(2, 3))
    assert dict(layer.compiled.program.weights) == shapes(layer.compiled.schema)


@pytest.mark.parametrize("optimize", [False, "auto"])
def test_weights_of_a_torch_layer_and_params_of_jax_have_the_schema_s_names_and_shapes(optimize):
    import jax

    options = {"in_channels": 2, "out_channels": 3, "optimize": optimize}
    expected = shapes(schema_of(MLP, channels=(2, 3)))
    module = sc.compile(MLP, backend="torch", **options)
    assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == expected
    params = sc.compile(MLP, backend="jax", **options).init(jax.random.key(0))
    assert {k: v.shape for k, v in params.items()} == expected
    params = sc.compile(MLP, backend="numpy", **options).init(0)
    assert {k: v.shape for k, v in params.items()} == expected


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_names_of_weights_are_identifiers_whatever_the_labels(name):
    schema = schema_of({"x": (name, 0), "y": (0, 0)})
    names = [weight.name for weight in schema.weights]
    assert all(n.isidentifier() and n.isascii() and len(n) < 64 for n in names)
    assert len(set(names)) == len(names)


def test_labels_that_clean_up_to_one_name_get_distinct_weights():
    names = shapes(schema_of({"x": ("a b",), "y": ("a-b",), "z": ("a_b",)}))
    assert {"mix_a_b", "mix_a_b_2", "mix_a_b_3"} < set(names)


# -- basis elements ---------------------------------------------------------------------------


def expected_basis(schema: Schema):
    """(output, input, diagram) by gluing every pair of half-diagrams; None is the bias."""
    sizes = dict(schema.sizes)
    found = Counter()
    for out in schema.outputs:
        for top in half_diagrams(out.labels, sizes):
            if not top.propagating:
                found[out.path, None, glue(top, next(half_diagrams(())), ())] += 1
            for into in schema.inputs:
                for bottom in half_diagrams(into.labels, sizes):
                    signature = top.signature(out.labels)
                    if signature != bottom.signature(into.labels):
                        continue
                    blocks = Counter(signature)
                    blocks += top.closed_counts(out.labels) + bottom.closed_counts(into.labels)
                    if all(n <= sizes.get(label, n) for label, n in blocks.items()):
                        for bijection in bijections(signature):
                            found[out.path, into.path, glue(top, bottom, bijection)] += 1
    return found


@pytest.mark.parametrize(("spec", "out_spec"), SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_basis_is_exactly_all_diagrams_that_fit(spec, out_spec, sizes):
    schema = schema_of(spec, out_spec, sizes)
    found = Counter((e.output, e.input, e.diagram) for e in basis_elements(schema))
    assert found == expected_basis(schema)
    assert set(found.values()) == {1}
    maps = sum(count for (_, into, _), count in found.items() if into is not None)
    outs, intos = ([t.labels for t in side] for side in (schema.outputs, schema.inputs))
    assert maps == basis_size(outs, intos, sizes)


@pytest.mark.parametrize(("spec", "out_spec"), SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_weight_is_the_coefficient_of_exactly_one_element(spec, out_spec, sizes):
    schema = schema_of(spec, out_spec, sizes, channels=(2, 3))
    used = {weight.name: np.zeros(weight.shape, int) for weight in schema.weights}
    for element in basis_elements(schema):
        if element.rows is None:
            used[element.weight][element.cols] += 1
        else:
            used[element.weight][element.rows, element.cols] += 1
    assert all((count == 1).all() for count in used.values())


def test_an_element_cuts_into_the_half_diagrams_of_its_row_and_column():
    schema = schema_of({"w": ("b", "a", "b")}, {"v": ("b", "b")})
    into, out = schema.inputs[0].labels, schema.outputs[0].labels
    halves = {
        (weight.name, row.start, column.start): (column.half, row.half, row.bijection)
        for weight in schema.weights
        for row in weight.rows
        for column in weight.columns
    }
    for element in basis_elements(schema):
        if element.rows is not None:
            place = (element.weight, element.rows.start, element.cols.start)
            assert cut(element.diagram, out, into) == halves[place]


def test_elements_name_their_tensors_by_path_and_end_with_the_bias():
    elements = list(basis_elements(schema_of({"w": (0, 1), "b": [(1,), ()]})))
    assert {e.output for e in elements} == {("w",), ("b", 0), ("b", 1)}
    is_bias = [element.input is None for element in elements]
    assert is_bias == sorted(is_bias)
    assert sum(is_bias) == 3


# -- pruned groups ----------------------------------------------------------------------------


def test_a_small_size_splits_a_signature_into_dense_groups():
    schema = schema_of({"w": (0, 0)}, sizes={0: 3})
    scalar = [weight for weight in schema.weights if weight.signature == () and weight.rows]
    assert [weight.name for weight in scalar] == ["mix_scalar", "mix_scalar_2"]
    halves = [
        ([str(row.half) for row in w.rows], [str(col.half) for col in w.columns]) for w in scalar
    ]
    # Two closed blocks on both sides would be four blocks of a label of size three.
    assert halves == [(["(0)|(1)"], ["(01)"]), (["(01)"], ["(0)|(1)", "(01)"])]


def test_size_one_leaves_one_map():
    schema = schema_of({"w": (0, 0)}, sizes={0: 1})
    assert [weight.shape for weight in schema.weights if weight.rows] == [(1, 1)]


def test_sizes_that_prune_nothing_change_no_name_and_no_shape():
    assert shapes(schema_of({"w": (0, 0)}, sizes={0: 4})) == shapes(schema_of({"w": (0, 0)}))


@given(
    st.lists(st.lists(st.sampled_from([0, 1]), max_size=3).map(tuple), min_size=1, max_size=3),
    st.fixed_dictionaries({}, optional={0: st.integers(1, 6), 1: st.integers(1, 6)}),
)
def test_groups_hold_as_many_elements_as_the_basis(leaves, sizes):
    schema = schema_of(list(leaves), sizes=sizes, bias=False)
    cells = sum(len(weight.rows) * len(weight.columns) for weight in schema.weights)
    assert cells == basis_size(leaves, leaves, sizes)


# -- no pairs ---------------------------------------------------------------------------------


def test_rows_and_columns_grow_with_the_number_of_tensors_and_not_with_its_square():
    def entries(count):
        schema = schema_of([(0, 1)] * count)
        return sum(len(weight.rows) + len(weight.columns) for weight in schema.weights)

    per_tensor = entries(1)
    assert [entries(count) for count in (2, 8, 64)] == [per_tensor * n for n in (2, 8, 64)]


def test_a_basis_of_millions_needs_no_walk_over_pairs():
    start = time.process_time()
    schema = schema_of([("a", "b")] * 1000)
    elapsed = time.process_time() - start
    assert basis_size([("a", "b")] * 1000, [("a", "b")] * 1000) == 4_000_000
    assert sum(len(weight.rows) for weight in schema.weights) == 4000
    assert elapsed < 1.0


def test_basis_elements_are_made_one_at_a_time():
    schema = schema_of([("a", "b")] * 1000)
    start = time.process_time()
    next(iter(basis_elements(schema)))
    assert time.process_time() - start < 0.1


# -- scales -----------------------------------------------------------------------------------


def runs(items):
    return sum(run[0] for run in items)


@pytest.mark.parametrize(("spec", "out_spec"), SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("init", ["scaled", "unf"])
def test_every_matrix_has_a_scale_that_covers_it(spec, out_spec, sizes, init):
    schema = schema_of(spec, out_spec, sizes, channels=(2, 3))
    scales = init_scales(schema, init)
    matrices = [weight for weight in schema.weights if weight.rows]
    assert [scale.weight for scale in scales] == [weight.name for weight in matrices]
    for scale, weight in zip(scales, matrices, strict=True):
        assert (runs(scale.rows), runs(scale.cols)) == weight.shape
        assert all(factor > 0 for _, factor, _ in scale.rows)
        assert all(base >= 0 and direct >= 0 for _, base, direct in scale.cols)


def test_a_scale_is_run_length_coded():
    (scale,) = [
        s for s in init_scales(schema_of([(0,)] * 50, channels=(2, 3))) if s.weight == "mix_0"
    ]
    (base,) = {base for _, base, _ in scale.cols}
    assert scale.rows == ((100, 1.0, True),)
    assert scale.cols == ((150, base, scale.cols[0][2]),)


def test_only_the_tensor_itself_is_direct_and_not_its_transpose():
    (scale,) = [s for s in init_scales(schema_of({"w": (0, 0)})) if s.weight == "mix_0_0"]
    assert scale.rows == ((1, 1.0, True), (1, 1.0, False))


def test_direct_weights_carry_the_stated_share_of_the_variance():
    schema = schema_of({"w": (0, 1)}, channels=(4, 5))
    scales = {scale.weight: scale for scale in init_scales(schema)}
    ((rows, _, is_direct),) = scales.pop("mix_0_1").rows
    ((_, _, direct),) = init_scales(schema)[-1].cols
    rest = sum(runs(scale.rows) * scale.cols[0][1] ** 2 for scale in scales.values())
    assert is_direct
    assert rows * direct**2 / (rows * direct**2 + rest) == pytest.approx(DIRECT)


def test_the_variance_of_an_output_is_that_of_its_inputs():
    """Independent unit-variance inputs: sum, over all weights, of deviation squared is one."""
    n, m, channels = 5, 3, 2
    schema = schema_of({"w": (0, 1)}, sizes={0: n, 1: m}, bias=False, channels=(channels, 7))
    # A mean over k entries has variance 1/k; the spread repeats it and loses nothing.
    variance = {"mix_scalar": 1 / (n * m), "mix_0": 1 / m, "mix_1": 1 / n, "mix_0_1": 1.0}
    total = 0.0
    for scale in init_scales(schema):
        ((_, base, direct),) = scale.cols
        total += channels * variance[scale.weight] * (direct or base) ** 2
    assert total == pytest.approx(1.0)


@pytest.mark.parametrize("sizes", [{}, {0: 4}])
def test_a_sum_starts_as_the_mean_it_is_a_multiple_of(sizes):
    schema = schema_of({"w": (0, 1)}, sizes=sizes)
    mean, total = init_scales(schema), init_scales(schema, reduce="sum")
    for one, other in zip(mean, total, strict=True):
        assert one.cols == other.cols
        over_label_0 = one.weight in ("mix_scalar", "mix_1")
        ratio = 1 / sizes.get(0, 1) if over_label_0 else 1.0
        assert [f for _, f, _ in other.rows] == [f * ratio for _, f, _ in one.rows]


def test_unf_gives_every_weight_one_over_channels_times_terms():
    schema = schema_of({"w": (0, 0), "b": (0,)}, channels=(3, 2))
    terms = {("w",): 15 + 5, ("b",): 5 + 2}  # per output, over all inputs
    for scale in init_scales(schema, "unf"):
        weight = next(w for w in schema.weights if w.name == scale.weight)
        start = 0
        assert {(f, d) for _, f, d in scale.rows} == {(1.0, False)}
        per_column = [base for length, base, _ in scale.cols for _ in range(length)]
        for column in weight.columns:
            path = schema.outputs[column.tensor].path
            assert per_column[start] == pytest.approx((3 * terms[path]) ** -0.5)
            start += column.width
        assert {d for _, _, d in scale.cols} == {0.0}
        assert not scale.orthogonal


def test_a_direct_block_is_orthogonal_up_to_the_limit():
    wide = ORTHOGONAL_LIMIT + 1
    for into, out, orthogonal in ((1, wide, True), (wide, wide, False), (wide, 3, True)):
        scales = init_scales(schema_of({"x": (0,)}, channels=(into, out)))
        assert {s.weight: s.orthogonal for s in scales} == {
            "mix_scalar": False,
            "mix_0": orthogonal,
        }


def test_an_invariant_output_has_no_direct_block():
    scales = init_scales(schema_of({"x": (0,)}, ()))
    assert [type(scale) for scale in scales] == [Scale]
    assert not scales[0].orthogonal
    assert scales[0].cols[0][1] > 0


def test_an_unknown_init_is_refused_with_the_choices():
    with pytest.raises(
        OptionError, match="init='xavier' is not known; choose one of 'scaled', 'unf'"
    ):
        init_scales(schema_of({"x": (0,)}), "xavier")
