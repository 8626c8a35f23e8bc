"""The example specs are true symmetries of their networks, and the zoo's networks are trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sympy
import yaml

from examples import zoo
from symcompile import specs
from symcompile.errors import OptionError, ShapeError
from symcompile.spec import Fixed, bind_specs, parse_spec, require_derivable

FAMILIES: list[tuple[Callable[..., zoo.Zoo], int, float]] = [
    (zoo.train_mlps, 150, 0.7),
    (zoo.train_cnns, 60, 0.7),
    (zoo.train_rnns, 150, 0.7),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=["mlp", "cnn", "rnn"])
def family(request: pytest.FixtureRequest) -> tuple[zoo.Zoo, float, list[tuple[int, int]]]:
    train, steps, floor = request.param
    told: list[tuple[int, int]] = []
    networks = train(
        6, steps=steps, learning_rates=(3e-3, 1e-2), progress=lambda *done: told.append(done)
    )
    return networks, floor, told


def test_every_network_is_trained_and_its_tensors_have_the_stated_shapes(family):
    networks, floor, told = family
    assert networks.accuracies.min() > floor
    assert told[-1][0] == told[-1][1]
    assert len(told) == zoo.ROUNDS
    stacked = jax.tree.map(np.shape, networks.params)
    assert stacked == jax.tree.map(lambda s: (6, *s), networks.shapes, is_leaf=is_leaf)
    assert {a.dtype for a in jax.tree.leaves(networks.params)} == {np.dtype(np.float32)}
    one, other = jax.tree.leaves(networks.params)[-1][:2]
    assert np.abs(one - other).max() > 0.1


def test_permuting_by_the_spec_moves_weights_and_keeps_predictions(family):
    networks, _, _ = family
    rng = np.random.default_rng(1)
    moved = zoo.permute(networks.params, networks.spec, np.random.default_rng(1))
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), networks.params, moved)
    hidden = [
        change
        for change, axes in zip(
            jax.tree.leaves(changes), jax.tree.leaves(networks.spec, is_leaf=is_leaf), strict=True
        )
        if set(axes) != {None}
    ]
    assert min(hidden) > 1e-3
    assert zoo.prediction_change(networks, rng) < 1e-4


FAULTS = {
    "mlp": [("Dense_0", "bias"), ("Dense_1", "kernel"), ("Dense_2", "kernel")],
    "cnn": [("Conv_0", "bias"), ("Conv_0", "kernel"), ("Conv_1", "kernel")],
    "rnn": [("cell", "bias"), ("cell", "state_kernel"), ("readout", "kernel")],
}


@pytest.mark.parametrize("fault", range(3))
def test_permuting_with_a_label_that_is_not_shared_changes_predictions(family, fault):
    networks, _, _ = family
    wrong = relabel(networks.spec, FAULTS[networks.name][fault])
    assert zoo.prediction_change(replace(networks, spec=wrong), np.random.default_rng(1)) > 0.1


def test_swapping_the_factors_of_a_flatten_changes_predictions():
    networks = zoo.train_cnns(3, steps=10)
    dense = dict(networks.spec["Dense_0"], kernel=(("channels1", None), None))
    wrong = replace(networks, spec={**networks.spec, "Dense_0": dense})
    assert zoo.prediction_change(networks, np.random.default_rng(1)) < 1e-4
    assert zoo.prediction_change(wrong, np.random.default_rng(1)) > 1e-2


def test_fixed_factors_of_a_composite_axis_stay():
    weights = np.arange(12).reshape(1, 12)
    perms = {"a": np.array([1, 0]), "b": np.array([2, 0, 1])}
    moved = zoo.apply_permutations(weights, ((Fixed(2), "a", "b"),), perms)
    stored = weights.reshape(2, 2, 3)[:, perms["a"]][:, :, perms["b"]]
    assert moved.tolist() == stored.reshape(1, 12).tolist()
    assert zoo.apply_permutations(weights, (Fixed(12),), perms).tolist() == weights.tolist()


def test_permute_refuses_what_does_not_fit_its_spec():
    rng = np.random.default_rng(0)
    with pytest.raises(ShapeError, match=r"b: label 'x' has size 4 here and 3 before"):
        zoo.permute({"a": np.zeros((1, 3)), "b": np.zeros((1, 4))}, {"a": ("x",), "b": ("x",)}, rng)
    with pytest.raises(ShapeError, match=r"a: shape \(3,\) has 1 axes"):
        zoo.permute({"a": np.zeros(3)}, {"a": ("x",)}, rng)
    spec = {"a": ("x",), "b": (("x", None),)}
    with pytest.raises(ShapeError, match=r"b: an axis of size 4 does not split"):
        zoo.permute({"a": np.zeros((1, 3)), "b": np.zeros((1, 4))}, spec, rng)
    with pytest.raises(ShapeError, match=r"a: label 'x' needs a permutation of size 3, found none"):
        zoo.apply_permutations({"a": np.zeros((1, 3))}, {"a": ("x",)}, {})


@pytest.mark.parametrize(
    "network",
    [
        specs.mlp((7, 5, 3)),
        specs.mlp((7, 5, 3), permute_ends=True),
        specs.cnn(),
        specs.cnn(permute_ends=True),
        specs.rnn(3, 4, 5),
        specs.rnn(3, 4, 5, permute_ends=True),
        specs.transformer(2),
    ],
    ids=["mlp", "mlp-ends", "cnn", "cnn-ends", "rnn", "rnn-ends", "transformer"],
)
def test_labels_and_sizes_agree_on_every_axis(network):
    zeros = jax.tree.map(lambda s: np.zeros((1, *s)), network.shapes, is_leaf=is_leaf)
    moved = zoo.permute(zeros, network.spec, np.random.default_rng(0))
    assert jax.tree.map(np.shape, moved) == jax.tree.map(np.shape, zeros)
    bound, _ = bind_specs(parse_spec(network.spec), None, network.shapes)
    require_derivable(bound, bound)


def test_sizes_that_mean_nothing_are_refused():
    with pytest.raises(OptionError, match=r"found widths=\(3,\), expected"):
        specs.mlp((3,))
    with pytest.raises(OptionError, match=r"found channels=\(\)"):
        specs.cnn(())
    with pytest.raises(OptionError, match=r"found widths=3, expected"):
        specs.mlp(3)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"found channels=8, expected"):
        specs.cnn(8)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="width 10 is not a multiple of heads 4"):
        specs.transformer(1, width=10)
    with pytest.raises(ShapeError, match="not a multiple of heads 0"):
        specs.transformer(1, heads=0)


def test_the_mlp_file_is_the_two_layer_mlp_with_every_axis_permuted():
    text = (Path(zoo.__file__).parent / "mlp.yaml").read_text()
    names = {0: "input", 1: "hidden0", 2: "output"}
    named = jax.tree.map(lambda label: names[label], yaml.safe_load(text)["params"])
    spec = specs.mlp((3, 4, 5), permute_ends=True).spec
    assert named == jax.tree.map(list, spec, is_leaf=is_leaf)


@pytest.mark.parametrize(("blocks", "terms"), [(1, 932), (6, 17_212), (12, 63_148)])
def test_the_transformer_has_this_many_tensors_and_basis_elements(blocks, terms):
    leaves = jax.tree.leaves(specs.transformer(blocks).spec, is_leaf=is_leaf)
    assert len(leaves) == 16 * blocks + 6
    assert count_terms(leaves) == terms


def test_the_count_of_terms_is_that_of_set_partitions_of_one_label_a_block():
    for leaves in ([("a",)], [("a", "a")], [("a", "b"), ("b",)], [("a", "b", "a"), (None, "b")]):
        listed = sum(partitions(out + inn) for out in leaves for inn in leaves)
        assert count_terms(leaves) == listed


def test_the_transformer_spec_is_a_symmetry_of_the_network():
    for seed in range(3):
        assert transformer_change(tiny_transformer().spec, seed) < 1e-10


@pytest.mark.parametrize(
    "path",
    [
        ("block1", "attention", "query", "kernel"),
        ("block1", "attention", "value", "bias"),
        ("block0", "mlp_out", "kernel"),
        ("block1", "ln2", "scale"),
        ("position_embedding",),
        ("unembedding", "bias"),
    ],
    ids="/".join,
)
def test_a_tensor_with_labels_of_its_own_breaks_the_transformer(path):
    wrong = relabel(tiny_transformer().spec, path)
    assert transformer_change(wrong, 0) > 1e-3


def test_a_residual_stream_permuted_block_by_block_breaks_the_transformer():
    spec = dict(tiny_transformer().spec)
    spec["block1"] = jax.tree.map(
        lambda axes: tuple("block1.embed" if a == "embed" else a for a in axes),
        spec["block1"],
        is_leaf=is_leaf,
    )
    assert transformer_change(spec, 0) > 1e-3


def is_leaf(node: object) -> bool:
    return isinstance(node, tuple)


def relabel(spec: Any, path: tuple[str, ...]) -> Any:
    """The spec with every label of the tensor at `path` renamed, so that it is shared no more."""
    if not path:
        return tuple(axis and f"own.{axis}" for axis in spec)
    return {**spec, path[0]: relabel(spec[path[0]], path[1:])}


def count_terms(leaves: list[tuple[Any, ...]]) -> int:
    """Set partitions of the joint axes with one label a block, over all pairs: Bell numbers."""
    bell = [int(sympy.bell(n)) for n in range(10)]
    counts = [Counter(axis for axis in leaf if axis is not None) for leaf in leaves]
    total = 0
    for out in counts:
        for inn in counts:
            term = 1
            for n in (out + inn).values():
                term *= bell[n]
            total += term
    return total


def partitions(axes: tuple[Any, ...], blocks: tuple[tuple[Any, ...], ...] = ()) -> int:
    """The same count for one pair, by placing one axis after another in an old or a new block."""
    if not axes:
        return 1
    axis, rest = axes[0], axes[1:]
    if axis is None:
        return partitions(rest, blocks)
    joined = [
        (*blocks[:i], (*block, axis), *blocks[i + 1 :])
        for i, block in enumerate(blocks)
        if block[0] == axis
    ]
    return sum(partitions(rest, choice) for choice in [*joined, (*blocks, (axis,))])


def tiny_transformer() -> specs.Network:
    return specs.transformer(2, width=6, heads=2, mlp_width=5, vocab=7, positions=4)


def transformer_change(spec: Mapping[str, Any], seed: int) -> float:
    """How far renamed inputs and permuted weights move the renamed logits, in float64."""
    rng = np.random.default_rng(seed)
    shapes = tiny_transformer().shapes
    params = jax.tree.map(lambda s: rng.normal(size=(1, *s)), shapes, is_leaf=is_leaf)
    tokens, positions = np.array([3, 0, 6, 3]), np.arange(4)
    # Ids are renamed by the true labels' permutations, also where a faulty spec lacks one of them.
    perms = zoo.draw_permutations(params, tiny_transformer().spec, rng)
    perms |= {k: v for k, v in zoo.draw_permutations(params, spec, rng).items() if k not in perms}
    moved = zoo.apply_permutations(params, spec, perms)
    before = transformer_logits(first(params), tokens, positions)
    # Row i of a permuted table is row perms[i] of the old one: old id t is found at its inverse.
    vocab, place = perms["vocab"], perms["positions"]
    after = transformer_logits(
        first(moved), np.argsort(vocab)[tokens], np.argsort(place)[positions]
    )
    return float(np.abs(after - before[:, vocab]).max())


def first(params: Any) -> Any:
    return jax.tree.map(lambda a: a[0], params)


def transformer_logits(params: Any, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A pre-norm decoder over one sequence with a causal mask: logits (tokens, vocab)."""
    x = params["token_embedding"][tokens] + params["position_embedding"][positions]
    mask = np.where(np.tri(len(tokens), dtype=bool), 0.0, -np.inf)
    for name in sorted(name for name in params if name.startswith("block")):
        block = params[name]
        heads = {
            part: np.einsum("te,ehd->thd", normed(block["ln1"], x), weights["kernel"])
            + weights["bias"]
            for part, weights in block["attention"].items()
            if part != "out"
        }
        scores = np.einsum("thd,shd->hts", heads["query"], heads["key"])
        scores = scores / np.sqrt(heads["query"].shape[-1]) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        read = np.einsum("hts,shd->thd", weights, heads["value"])
        out = block["attention"]["out"]
        x = x + np.einsum("thd,hde->te", read, out["kernel"]) + out["bias"]
        hidden = np.tanh(
            normed(block["ln2"], x) @ block["mlp_in"]["kernel"] + block["mlp_in"]["bias"]
        )
        x = x + hidden @ block["mlp_out"]["kernel"] + block["mlp_out"]["bias"]
    x = normed(params["ln_final"], x)
    return x @ params["unembedding"]["kernel"] + params["unembedding"]["bias"]


def normed(norm: Any, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
