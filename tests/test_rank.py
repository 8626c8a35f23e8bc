"""`rank=`: mixes as products of two small matrices, so that weights grow linearly."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile import terms
from symcompile.api import compile_spec
from symcompile.ir import diagrams_of, verify
from symcompile.lower import lower_factored, lower_reference
from symcompile.specs import mlp, transformer
from tests import test_init
from tests.backend_cases import SPEC, inputs
from tests.baselines import held_to_programs
from tests.test_terms import chosen, key, random_weights

pytestmark = pytest.mark.usefixtures("quick_xla")

OPTIONS = {"in_channels": 2, "out_channels": 2}


def factored(compiled):
    return [weight for weight in compiled.schema.weights if weight.factors]


# -- what is stored ---------------------------------------------------------------------------


def test_a_mix_becomes_two_weights_where_they_are_smaller():
    spec = {"a": (0,), "b": (0,), "c": (0,), "w": ("x", "y")}
    schema = compile_spec(spec, in_channels=4, out_channels=5, rank=1).schema
    assert dict(schema.stored) == {
        "mix_scalar_in": (16, 5),
        "mix_scalar_out": (5, 20),
        "mix_0_in": (12, 5),
        "mix_0_out": (5, 15),
        "mix_x": (4, 5),
        "mix_y": (4, 5),
        "mix_x_y": (4, 5),
        "bias": (20,),
    }


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 100])
def test_a_mix_is_factored_exactly_where_that_saves_weights(rank):
    network = transformer(1)
    options = {"shapes": network.shapes, "in_channels": 3, "out_channels": 2}
    dense = compile_spec(network.spec, **options).schema.weights
    low = compile_spec(network.spec, rank=rank, **options).schema.weights
    for one, other in zip(dense, low, strict=True):
        assert (one.name, one.rows, one.columns) == (other.name, other.rows, other.columns)
        if one.rows:
            rows, cols = one.shape
            saves = 2 * rank * (rows + cols) < rows * cols
            assert (other.factors is not None) == saves
            assert other.factors is None or other.factors.inner == 2 * rank


def test_the_inner_width_goes_by_channels_and_not_by_fixed_axes():
    (weight,) = factored(
        compile_spec(
            {"k": (sc.Fixed(50), 0)},
            in_channels=2,
            out_channels=4,
            rank={(0,): 3},
        )
    )
    assert weight.stored == ((weight.factors.into, (100, 12)), (weight.factors.out, (12, 200)))


def test_the_widest_output_of_a_mix_sets_the_inner_width():
    spec = {"a": (0,), "b": (0,), "c": ("x",)}
    channels = {"a": 3, "b": 5, "c": 40}
    schema = compile_spec(spec, in_channels=50, out_channels=channels, rank=1).schema
    inner = {w.signature: w.factors.inner for w in schema.weights if w.factors}
    assert inner[(0,)] == 5


def test_a_rank_by_signature_takes_labels_in_any_order_and_leaves_others_dense():
    spec = {"a": ("x", 3), "b": (3, "x")}
    compiled = compile_spec(spec, in_channels=4, out_channels=1, rank={("x", 3): 1})
    assert [weight.signature for weight in factored(compiled)] == [(3, "x")]
    assert compiled.shapes["mix_scalar"] == (8, 2)
    assert compile_spec(spec, **OPTIONS, rank={}).schema == compile_spec(spec, **OPTIONS).schema


def test_names_of_dense_mixes_are_the_same_at_every_rank():
    # The mix of labels 0 and "in" is called what a factor of the mix of label 0 would be.
    spec = {"a": (0,), "b": (0,), "c": (0,), "w": (0, "in"), "v": ("in",)}
    dense = compile_spec(spec, **OPTIONS).shapes
    low = compile_spec(spec, rank=1, **OPTIONS).shapes
    assert low["mix_0_in"] == dense["mix_0_in"] == (2, 2)
    assert "mix_0_in_2" in low
    assert len(low) == len(set(low))


def test_every_group_of_a_pruned_or_chosen_basis_is_factored_on_its_own():
    spec = dict.fromkeys("abcdef", (0, 0))
    for options in ({"sizes": {0: 3}}, {"terms": terms.same_tensor}, {"terms": chosen(3, 0.9)}):
        many = factored(compile_spec(spec, rank=1, in_channels=4, out_channels=1, **options))
        assert len(many) > 1
        assert len({weight.signature for weight in many}) < len(many)


# -- what is computed -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_layer_of_low_rank_is_equivariant(backend, reduce):
    layer = sc.compile(SPEC, backend=backend, rank=1, reduce=reduce, **OPTIONS)
    assert factored(layer.compiled)
    sc.check_equivariance(layer)


def test_all_backends_and_plans_agree():
    sc.check_backends(SPEC, rank=1, sizes={"a": 3, "b": 4}, **OPTIONS)


def test_it_is_the_dense_layer_whose_coefficients_are_the_products():
    low = sc.compile(SPEC, backend="numpy", rank=1, **OPTIONS)
    full = sc.compile(SPEC, backend="numpy", **OPTIONS)
    weights, x = random_weights(low), inputs(SPEC, 2)
    dense = {name: np.zeros(shape) for name, shape in full.compiled.shapes.items()}
    for one, other in zip(full.basis, low.basis, strict=True):
        assert key(one) == key(other)
        place = (one.cols,) if one.rows is None else (one.rows, one.cols)
        dense[one.weight][place] = other.coefficient(weights)
        if other.factors is not None:
            into, out = other.factors
            by_hand = weights[into][other.rows] @ weights[out][:, other.cols]
            np.testing.assert_array_equal(dense[one.weight][place], by_hand)
    found, wanted = low.apply(weights, x), full.apply(dense, x)
    for name in ("w", "heads"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-11)


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from([0, 1]), max_size=3).map(tuple), min_size=1, max_size=3),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(0, 100)),
    st.booleans(),
)
def test_every_pass_keeps_the_terms_and_the_baseline_is_exact(leaves, rank, seed, small):
    options = {"in_channels": 3, "out_channels": 1, "rank": rank}
    if seed is not None:
        options["terms"] = chosen(seed, 0.8)
    if small:
        options["sizes"] = {label: 2 for leaf in leaves for label in leaf}
    try:
        compiled = compile_spec(leaves, keep_stages=True, **options)
    except sc.OptionError as error:
        if "removes every map" not in str(error):
            raise
        return
    reference = lower_reference(compiled.schema)
    meaning = diagrams_of(verify(reference))
    assert len(meaning) == len(compiled.basis)
    assert diagrams_of(lower_factored(compiled.schema)) == meaning
    for name, program in compiled.stages:
        assert diagrams_of(verify(program)) == meaning, name
    slots = {(name for name, _, _ in term.slots) and len(term.slots) for term in meaning}
    assert slots <= {1, 2}
    assert (2 in slots) == bool(factored(compiled))
    held_to_programs(compiled.schema)


def test_weights_of_low_rank_go_from_torch_to_jax_by_file(tmp_path):
    module = sc.compile(SPEC, rank=1, **OPTIONS)
    path = sc.save_weights(module, tmp_path / "weights.safetensors")
    layer = sc.compile(SPEC, rank=1, backend="jax", **OPTIONS)
    params = sc.load_weights(path, "jax")
    assert {name: value.shape for name, value in params.items()} == dict(layer.compiled.shapes)
    import torch

    x = inputs(SPEC, 2, dtype=np.float32)
    found = layer.apply(params, x)
    with torch.no_grad():
        wanted = module({**x, "w": torch.from_numpy(x["w"]),
                         "heads": torch.from_numpy(x["heads"]),
                         "deep": [{"v": torch.from_numpy(x["deep"][0]["v"])},
                                  {"s": torch.from_numpy(x["deep"][1]["s"])}]})  # fmt: skip
    np.testing.assert_allclose(found["w"], wanted["w"].numpy(), atol=1e-5)


def test_generated_source_says_where_features_meet():
    source = sc.compile(SPEC, rank=1, **OPTIONS).source
    assert ", mix_a_in)" in source
    assert "_product(hidden_a, mix_a_out)" in source


# -- how many weights -------------------------------------------------------------------------


def test_twelve_blocks_of_a_transformer_at_64_channels_stay_below_ten_million():
    network = transformer(12)
    options = {"shapes": network.shapes, "in_channels": 64, "out_channels": 64}
    weights = sum(np.prod(s) for s in compile_weights(network.spec, rank=1, **options))
    assert weights == 6_640_000
    dense = sum(np.prod(s) for s in compile_weights(network.spec, **options))
    assert dense == 258_666_880


@pytest.mark.parametrize(
    ("rank", "weights"), [(1, 834_928), (2, 1_656_688), (3, 2_478_448), (4, 3_300_208)]
)
def test_a_network_with_fixed_ends_at_16_channels_stays_below_four_million(rank, weights):
    network = mlp((784, 64, 64, 10))
    options = {"shapes": network.shapes, "in_channels": 16, "out_channels": 16}
    assert sc.plan(network.spec, rank=rank, **options).weights == weights < 4_000_000
    assert sc.plan(network.spec, **options).weights > 300_000_000


def compile_weights(spec, rank=None, shapes=None, in_channels=1, out_channels=1):
    """Shapes of the weights without planning, which takes its time for 12 blocks."""
    from symcompile.ir import Tensor
    from symcompile.spec import bind_specs, parse_spec
    from symcompile.weights import build_schema

    source, _ = bind_specs(parse_spec(spec), None, shapes)
    into = [Tensor(leaf.path, leaf.axes, in_channels) for leaf in source.leaves]
    out = [Tensor(leaf.path, leaf.axes, out_channels) for leaf in source.leaves]
    return [shape for _, shape in build_schema(into, out, dict(source.sizes), rank=rank).stored]


def test_weights_grow_with_the_number_of_tensors_and_not_with_its_square():
    def count(tensors):
        return sc.plan([(0, 1)] * tensors, in_channels=4, out_channels=4, rank=1).weights

    assert count(64) - count(32) == 2 * (count(32) - count(16))


# -- initial scale ----------------------------------------------------------------------------

# Rank 2 leaves the small networks dense; rank 1 factors two of their mixes.
STACKED = [
    (name, rank) for name in ("mlp 78-51-10", "rnn 28-32-10", "graph of 40") for rank in (1, 2)
]


# Sums over unknown sizes keep no scale, at any rank.
@pytest.mark.parametrize(
    ("bound", "reduce"), [(True, "mean"), (False, "mean"), (True, "sum")], ids=str
)
@pytest.mark.parametrize(("name", "rank"), STACKED)
def test_six_layers_of_low_rank_keep_the_scale(name, rank, bound, reduce, monkeypatch):
    spec, shapes = test_init.NETWORKS[name]

    @cache
    def layer(name, bound, into, out, reduce):
        options = {"shapes": shapes} if bound else {}
        return sc.compile(
            spec, in_channels=into, out_channels=out, backend="numpy", reduce=reduce, rank=rank,
            **options,
        )  # fmt: skip

    monkeypatch.setattr(test_init, "layer", layer)
    found = [test_init.stacked(name, seed, bound=bound, reduce=reduce) for seed in range(6)]
    tensors = [value for each, whole in found for value in (*each, whole)]
    print(f"\n{name}, rank {rank}: [{min(tensors):.2f}, {max(tensors):.2f}]")
    assert min(tensors) >= test_init.LOW
    assert max(tensors) <= test_init.HIGH


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_every_backend_draws_the_factors_so_that_their_product_keeps_directions(backend):
    spec = dict.fromkeys("abcde", (0,))
    weights = test_init.drawn(spec, backend, in_channels=6, out_channels=6, rank=2)
    into, out = weights["mix_0_in"], weights["mix_0_out"]
    assert (into.shape, out.shape) == ((30, 12), (12, 30))
    # Of 30 directions 12 fit through, each with the same factor.
    values = np.linalg.svd(into @ out, compute_uv=False)
    np.testing.assert_allclose(values[:12], values[0], rtol=1e-4)
    np.testing.assert_allclose(values[12:], 0, atol=1e-5)


def test_unf_draws_products_at_its_own_variance():
    spec = dict.fromkeys("abcdefgh", (0,))
    options = {"in_channels": 8, "out_channels": 8, "init": "unf"}
    low = test_init.drawn(spec, "numpy", rank=2, **options)
    for name in ("mix_scalar", "mix_0"):
        product = low[f"{name}_in"] @ low[f"{name}_out"]
        assert product.std() == pytest.approx((8 * 16) ** -0.5, rel=0.1)


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "rank: found the int 0, expected a positive int"),
        (-2, "rank: found the int -2, expected a positive int"),
        (True, "rank: found True, expected a positive int"),
        (1.5, "rank: found the float 1.5"),
        ("2", "rank: found the string '2'"),
        ([1], "rank: found a list of 1 entries"),
        ({(0,): 0}, r"rank\[\(0,\)\]: found the int 0, expected a positive int"),
        ({(0,): False}, r"rank\[\(0,\)\]: found False"),
        ({(0,): None}, r"rank\[\(0,\)\]: found None"),
        ({0: 1}, "rank: a signature is a tuple of labels .*; found the int 0"),
        ({(True,): 1}, "rank: a signature is a tuple of labels"),
        ({("z",): 1}, r"rank\[\('z',\)\]: no mix has this signature; there are \(\), \(0,\)"),
        ({(0, 0): 1}, r"rank\[\(0, 0\)\]: no mix has this signature"),
        ({(0, 1): 1, (1, 0): 2}, r"rank\[\(1, 0\)\] is given twice"),
    ],
)
def test_ranks_that_mean_nothing_are_refused(rank, message):
    with pytest.raises(sc.OptionError, match=message):
        sc.plan({"w": (0, 1)}, rank=rank)


def test_a_signature_that_terms_removed_is_unknown():
    with pytest.raises(sc.OptionError, match=r"rank\[\(0, 1\)\]: no mix has this signature"):
        sc.plan({"w": (0, 1)}, rank={(0, 1): 1}, terms=terms.max_order(1))


def test_a_layer_of_low_rank_is_not_complete_by_design():
    with pytest.raises(sc.OptionError, match="low rank is not complete, by design"):
        sc.check_completeness({"w": (0, 0)}, sizes={0: 4}, rank=1, in_channels=2)
    low = sc.compile({"w": (0, 0)}, rank=1, sizes={0: 4}, backend="numpy", **OPTIONS)
    with pytest.raises(sc.OptionError, match="check the same layer without rank="):
        sc.check_completeness(layer=low)
    # Where nothing is factored, nothing is lost.
    assert sc.check_completeness((0,), sizes={0: 4}, rank=1).rank == 2
