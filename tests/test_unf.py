"""UNF's interface: the same calls, complete layers, and none of UNF's faults.

The oracle of values computes one term at a time, for one example and one channel
(benchmarks/peers/one_term.py, written from the paper); it shares nothing with the compiler but the
list of diagrams, whose number the paper's own count confirms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict, freeze

import symcompile as sc
from benchmarks.peers.one_term import partitions, term
from symcompile.check.draw import draw_permutations
from symcompile.spec import flatten_like, lookup, parse_spec
from symcompile_jax import unf
from symcompile_jax.unf import BatchUNFLayer, UNFLayer, UNFSequential, nf_relu
from tests.backend_cases import MLP, inputs

pytestmark = pytest.mark.usefixtures("quick_xla")

KEY = jax.random.key(0)

REPEATED = [
    (0, 0, 0),
    (0, 0, 0, 0),
    (0, 0, 0, 1),
    (1, 0, 0, 0),
    (0, 0, 0, 1, 1),
    (0, 0, 0, 1, 2),
]
"""What UNF crashes on, and, the last two, gets silently wrong where sizes are equal."""

MIXED = {"w": (0, 0), "v": (1, 0), "b": (1,), "s": ()}


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


def call(perm_spec: Any, params: Any, layer: Any = None) -> Any:
    """A new layer's variables and outputs."""
    layer = UNFLayer(3, 2) if layer is None else layer
    variables = layer.init(KEY, params, perm_spec)
    return variables, layer.apply(variables, params, perm_spec)


def normal(perm_spec: Any, batch: tuple[int, ...] = (), **kind: Any) -> Any:
    return jax.tree.map(jnp.asarray, inputs(perm_spec, 2, batch, **kind))


# -- the interface -------------------------------------------------------------------------------


class Dense(NamedTuple):
    """A container that JAX knows; its fields are in no alphabetical order."""

    w: Any
    b: Any


class Network(nn.Module):
    """What is fed to a UNF in its own example: a network of two dense layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = nn.relu(nn.Dense(12)(x))
        return nn.Dense(4)(hidden)


@pytest.mark.parametrize("kind", [dict, FrozenDict])
@pytest.mark.parametrize("spec_kind", [dict, FrozenDict])
def test_a_program_written_for_unf_runs(kind: Any, spec_kind: Any) -> None:
    params = Network().init(jax.random.PRNGKey(0), jnp.ones(6))
    params = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, -1), params)
    perm_spec: Any = MLP
    if kind is FrozenDict:
        params = freeze(params)
    if spec_kind is FrozenDict:
        perm_spec = freeze(perm_spec)
    network = UNFSequential([UNFLayer(5, 1), nf_relu, UNFLayer(3, 5)])
    variables = network.init(jax.random.PRNGKey(0), params, perm_spec)
    y = network.apply(variables, params, perm_spec)
    assert type(y) is kind
    wanted = jax.tree.map(lambda leaf: (*leaf.shape[:-1], 3), params)
    assert shapes_of(y) == wanted
    assert jax.tree.structure(y) == jax.tree.structure(params)


def test_sequential_hands_the_spec_to_layers_only() -> None:
    x = normal(MIXED)
    first, last = UNFLayer(4, 2), UNFLayer(1, 4)
    network = UNFSequential([first, nf_relu, lambda tree: tree, last])
    variables = network.init(KEY, x, MIXED)
    assert set(variables["params"]) == {"layers_0", "layers_3"}
    one, two = ({"params": variables["params"][name]} for name in ("layers_0", "layers_3"))
    hidden = jax.tree.map(lambda leaf: jnp.maximum(leaf, 0), first.apply(one, x, MIXED))
    close(network.apply(variables, x, MIXED), last.apply(two, hidden, MIXED), 1e-5)


def test_relu_on_every_leaf() -> None:
    y = nf_relu({"a": [jnp.array([-2.0, 3.0])], "b": jnp.array(-1.0)})
    assert y["a"][0].tolist() == [0, 3]
    assert y["b"] == 0


def test_a_batch_is_examples_side_by_side() -> None:
    batch = normal(MIXED, (3,))
    one, many = UNFLayer(3, 2), BatchUNFLayer(3, 2)
    variables = many.init(KEY, batch, MIXED)
    y = many.apply(variables, batch, MIXED)
    for k in range(3):
        example = jax.tree.map(lambda leaf, k=k: leaf[k], batch)
        expected = one.apply(variables, example, MIXED)
        close(jax.tree.map(lambda leaf, k=k: leaf[k], y), expected, 1e-5)
    mapped = jax.vmap(one.apply, in_axes=(None, 0, None))(variables, batch, MIXED)
    close(mapped, y, 1e-5)
    network = UNFSequential([many, nf_relu])  # a BatchUNFLayer is a layer too
    assert shapes_of(network.apply(network.init(KEY, batch, MIXED), batch, MIXED)) == shapes_of(y)


@pytest.mark.parametrize("wrong", ["batch", "none", "two"])
def test_a_batch_axis_too_many_or_too_few_is_refused(wrong: str) -> None:
    layer, batch = {
        "batch": (UNFLayer(3, 2), (4,)),
        "none": (BatchUNFLayer(3, 2), ()),
        "two": (BatchUNFLayer(3, 2), (4, 1)),
    }[wrong]
    with pytest.raises(sc.ShapeError, match=r"params\['b'\].*BatchUNFLayer takes one batch"):
        layer.init(KEY, normal(MIXED, batch), MIXED)


# -- values --------------------------------------------------------------------------------------


def close(found: Any, expected: Any, tolerance: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        scale = max(float(np.abs(other).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=tolerance * scale)


def one_term_at_a_time(spec: Any, weights: Any, x: Any, c_out: int) -> dict[Any, Any]:
    """What a layer with these weights gives, summed term by term; outputs by path."""
    parsed = parse_spec(spec)
    layer = sc.compile(parsed, in_channels=2, out_channels=c_out, backend="numpy", shapes=bare(x))
    arrays = {
        leaf.path: value for leaf, value in zip(parsed.leaves, flatten_like(parsed, x), strict=True)
    }
    outputs = {path: jnp.zeros((*value.shape[:-1], c_out)) for path, value in arrays.items()}
    for element in layer.basis:
        out_sizes = arrays[element.output].shape[:-1]
        into = jnp.ones(1) if element.input is None else arrays[element.input]
        mapped = jax.vmap(
            lambda value, e=element, s=out_sizes: term(value, e.diagram.blocks, s), -1, -1
        )(into)
        theta = element.coefficient(weights)
        outputs[element.output] += mapped @ jnp.reshape(theta, (into.shape[-1], c_out))
    return outputs


def bare(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[:-1], leaf.dtype), tree)


@pytest.mark.parametrize("spec", [MLP, MIXED, {"w": (0, 0, 0)}, {"w": (0, 0, 1), "v": (1, 0)}])
def test_values_are_those_of_one_term_at_a_time(spec: Any) -> None:
    with jax.enable_x64(True):
        x = normal(spec)
        variables = UNFLayer(3, 2).init(KEY, x, spec)
        rng = np.random.default_rng(0)
        variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), variables)
        y = UNFLayer(3, 2).apply(variables, x, spec)
        weights = variables["params"]["weights"]
        for path, expected in one_term_at_a_time(spec, weights, x, 3).items():
            close(lookup(y, path), expected, 1e-12)


def test_the_oracle_notices_a_weight_at_the_wrong_place() -> None:
    with jax.enable_x64(True):
        x = normal(MIXED)
        variables, y = call(MIXED, x)
        weights = dict(variables["params"]["weights"])
        weights["mix_0"] = weights["mix_0"][::-1]
        wrong = one_term_at_a_time(MIXED, weights, x, 3)
        with pytest.raises(AssertionError):
            close(y["w"], wrong[("w",)], 1e-3)


def test_all_terms_of_unf_are_there() -> None:
    """At sizes where nothing is redundant: one term for each set partition of each pair."""
    spec = {"w": (0, 0), "v": (1, 0), "b": (1,)}
    x = normal(spec, sizes={0: 4, 1: 4})
    variables, _ = call(spec, x)
    terms = sum(
        sum(1 for _ in partitions((*out, *into))) for out in spec.values() for into in spec.values()
    )
    weights = variables["params"]["weights"]
    assert sum(value.size for name, value in weights.items() if name != "bias") == terms * 2 * 3


# -- initial weights -----------------------------------------------------------------------------


def test_weights_are_drawn_as_unf_draws_them() -> None:
    spec = {"w": (0, 0)}
    x = {"w": jnp.ones((5, 5, 64))}
    variables, _ = call(spec, x, UNFLayer(64, 64))
    weights = variables["params"]["weights"]
    drawn = np.concatenate([np.ravel(value) for name, value in weights.items() if name != "bias"])
    assert drawn.size == 15 * 64 * 64
    assert abs(drawn.std() * np.sqrt(64 * 15) - 1) < 0.02
    assert not weights["bias"].any()


def test_scaled_weights_keep_the_scale_over_six_layers() -> None:
    spec = {"w": (0, 1), "b": (1,), "v": (1, 2)}
    x = jax.tree.map(jnp.asarray, inputs(spec, 32, (), {0: 16, 1: 16, 2: 16}))

    def rms(weight_init: str) -> float:
        network = UNFSequential([UNFLayer(32, 32, weight_init=weight_init) for _ in range(6)])
        y = network.apply(network.init(KEY, x, spec), x, spec)
        return float(jnp.sqrt(jnp.mean(jnp.square(y["w"]))))

    assert rms("unf") < 0.2
    assert 0.8 < rms("scaled") < 1.25


def test_an_unknown_way_of_drawing_is_refused() -> None:
    with pytest.raises(sc.OptionError, match="'nonsense'"):
        UNFLayer(3, 2, weight_init="nonsense").init(KEY, normal(MIXED), MIXED)


# -- what UNF gets wrong ---------------------------------------------------------------------------


def equivariance_error(spec: Any, layer: Any, x: Any, variables: Any, sizes: Any) -> float:
    """Largest |layer(g x) - g layer(x)| relative to the outputs, for a random g."""
    rng = np.random.default_rng(1)
    moves = draw_permutations(rng, sizes)

    def act(tree: Any) -> Any:
        return {
            name: value[np.ix_(*(moves[label] for label in spec[name]))]
            for name, value in tree.items()
        }

    y = layer.apply(variables, x, spec)
    moved = layer.apply(variables, act(x), spec)
    return max(
        float(jnp.abs(moved[name] - value).max() / jnp.abs(value).max())
        for name, value in act(y).items()
    )


@pytest.mark.parametrize("axes", REPEATED, ids=str)
def test_labels_repeated_three_times_with_equal_sizes(axes: tuple[int, ...]) -> None:
    sizes = dict.fromkeys(axes, 3)
    with jax.enable_x64(True):
        x = {"w": jnp.asarray(inputs({"w": axes}, 1, (), sizes)["w"])}
        layer = UNFLayer(1, 1)
        variables = layer.init(KEY, x, {"w": axes})
        assert equivariance_error({"w": axes}, layer, x, variables, sizes) < 1e-12


def test_the_check_notices_what_is_not_equivariant() -> None:
    class Numbered:
        """Multiplies every row by its number."""

        @staticmethod
        def apply(variables: Any, x: Any, spec: Any) -> Any:
            return {"w": x["w"] * jnp.arange(1.0, 4.0)[:, None, None]}

    x = normal({"w": (0, 0)}, sizes={0: 3})
    assert equivariance_error({"w": (0, 0)}, Numbered, x, None, {0: 3}) > 0.1


@pytest.mark.parametrize(("size", "terms"), [(1, 1), (2, 8), (3, 14), (4, 15)])
def test_no_redundant_weights_at_small_sizes(size: int, terms: int) -> None:
    x = {"w": jnp.ones((size, size, 1))}
    variables, _ = call({"w": (0, 0)}, x, UNFLayer(1, 1))
    weights = variables["params"]["weights"]
    assert sum(value.size for name, value in weights.items() if name != "bias") == terms


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_dtypes_stay_where_diagonals_are_embedded(dtype: str) -> None:
    spec = {"w": (0, 0)}
    wide = normal(spec)
    variables, exact = call(spec, wide)
    y = UNFLayer(3, 2).apply(variables, {"w": wide["w"].astype(dtype)}, spec)
    assert y["w"].dtype == dtype
    close(y["w"].real.astype("float32"), exact["w"], 8 * float(jnp.finfo(dtype).eps))


def test_imaginary_parts_stay() -> None:
    spec = {"w": (0, 0)}
    real, imaginary = (normal(spec, seed=seed) for seed in (0, 1))
    variables, of_real = call(spec, real)
    layer = UNFLayer(3, 2)
    of_imaginary = layer.apply(variables, imaginary, spec)
    y = layer.apply(variables, {"w": real["w"] + 1j * imaginary["w"]}, spec)
    close(y["w"].real, of_real["w"], 1e-5)
    close(y["w"].imag, of_imaginary["w"], 1e-5)


def test_none_is_a_fixed_axis_and_no_permutation() -> None:
    """Every pair of entries of a fixed axis has weights of its own; UNF shares them."""
    spec = {"w": (None, 0), "b": (None,)}
    x = {"w": jnp.ones((3, 4, 1)), "b": jnp.ones((2, 1))}
    variables, _ = call(spec, x, UNFLayer(1, 1))
    weights = variables["params"]["weights"]
    count = sum(value.size for name, value in weights.items() if name != "bias")
    assert count == 2 * 3 * 3 + 3 * 2 + 2 * 3 + 2 * 2


@pytest.mark.parametrize("shapes", [((5, 6), (1,)), ((5, 1), (6,))], ids=str)
def test_sizes_that_disagree_are_refused(shapes: Any) -> None:
    x = {name: jnp.ones((*shape, 2)) for name, shape in zip("wb", shapes, strict=True)}
    with pytest.raises(sc.ShapeError, match=r"one label has one size"):
        call({"w": (0, 1), "b": (1,)}, x)


def test_missing_tensors_and_other_channels_are_refused() -> None:
    x = normal(MIXED)
    variables, _ = call(MIXED, x)
    missing = {name: value for name, value in x.items() if name != "w"}
    with pytest.raises(sc.ShapeError, match="missing 'w'"):
        UNFLayer(3, 2).apply(variables, missing, MIXED)
    with pytest.raises(sc.ShapeError, match=r"x\['b'\] has shape"):
        UNFLayer(3, 5).init(KEY, x, MIXED)


def test_trees_of_tuples_and_lists() -> None:
    """UNF reads a spec along the parameters, so that a tuple may be a container in both."""
    w, b = jnp.ones((3, 2, 2)), jnp.ones((2, 2))
    expected = call({"w": (0, 1), "b": (1,)}, {"w": w, "b": b})[1]
    for spec, params in (
        (((0, 1), (1,)), (w, b)),
        ([(0, 1), (1,)], [w, b]),
        ({"l": ((0, 1), (1,))}, {"l": (w, b)}),
    ):
        _, y = call(spec, params)
        assert jax.tree.structure(y) == jax.tree.structure(params)
        assert shapes_of(jax.tree.leaves(y)) == [(3, 2, 3), (2, 3)]
    assert expected["w"].shape == (3, 2, 3)
    _, named = call({"l": Dense((0, 1), (1,))}, {"l": Dense(w, b)})
    assert type(named["l"]) is Dense
    assert shapes_of(named["l"]) == Dense((3, 2, 3), (2, 3))
    with pytest.raises(sc.ShapeError):
        call(((0, 1), (1,), ()), (w, b))


# -- transforms ----------------------------------------------------------------------------------


def test_a_spec_under_jit() -> None:
    x = normal(MIXED)
    variables, y = call(MIXED, x)
    layer = UNFLayer(3, 2)
    close(jax.jit(lambda v, x: layer.apply(v, x, MIXED))(variables, x), y, 1e-5)
    close(jax.jit(layer.apply)(variables, x, parse_spec(MIXED)), y, 1e-5)
    static = jax.jit(layer.apply, static_argnums=2)
    close(static(variables, x, parse_spec(MIXED)), y, 1e-5)
    with pytest.raises(sc.SpecError, match="traced"):
        jax.jit(layer.apply)(variables, x, MIXED)


def test_linens_own_transforms() -> None:
    batch = normal(MIXED, (3,))
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    mapped = nn.vmap(
        UNFLayer,
        in_axes=(0, None),
        variable_axes={"params": None},
        split_rngs={"params": False},
    )
    variables, y = call(MIXED, batch, mapped(3, 2))
    close(BatchUNFLayer(3, 2).apply(variables, batch, MIXED), y, 1e-5)
    expected = UNFLayer(3, 2).apply(variables, one, MIXED)
    for lifted in (nn.jit(UNFLayer), nn.remat(UNFLayer)):
        close(lifted(3, 2).apply(variables, one, parse_spec(MIXED)), expected, 1e-5)


def test_another_spec_is_traced_anew() -> None:
    x = {"w": jnp.ones((3, 3, 2))}
    run = jax.jit(UNFLayer(3, 2).init)
    row, graph = (run(KEY, x, parse_spec({"w": axes})) for axes in ((0, 1), (0, 0)))
    assert shapes_of(row) != shapes_of(graph)


def test_a_spec_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    compile_ = unf.compile
    monkeypatch.setattr(unf, "compile", lambda *a, **k: made.append(a) or compile_(*a, **k))
    spec = {"once": (0, 1, 1)}
    x = {"once": jnp.ones((4, 4, 4, 2))}
    variables, _ = call(spec, x)
    UNFLayer(3, 2).apply(variables, x, freeze(spec))
    assert len(made) == 1
    UNFLayer(3, 2).apply(variables, {"once": jnp.ones((5, 6, 6, 2))}, spec)
    assert len(made) == 2


def test_weights_fit_other_sizes() -> None:
    variables, _ = call(MLP, normal(MLP, sizes={0: 4, 1: 5, 2: 3}))
    y = UNFLayer(3, 2).apply(variables, normal(MLP, sizes={0: 7, 1: 2, 2: 9}), MLP)
    assert y["params"]["Dense_1"]["kernel"].shape == (2, 9, 3)


def test_gradients_and_training() -> None:
    optax = pytest.importorskip("optax")
    batch = normal(MLP, (16,))
    target = jax.tree.leaves(batch)[0].mean((1, 2)) * 2
    network = UNFSequential([BatchUNFLayer(8, 2), nf_relu, BatchUNFLayer(1, 8)])
    variables = network.init(KEY, batch, MLP)

    def loss(variables: Any) -> Any:
        y = network.apply(variables, batch, MLP)
        return jnp.mean((jax.tree.leaves(y)[0].mean((1, 2)) - target) ** 2)

    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(variables: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(variables)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(variables, updates), state, value

    state = optimizer.init(variables)
    variables, state, first = step(variables, state)
    for _ in range(150):
        variables, state, last = step(variables, state)
    assert last < 0.1 * first
