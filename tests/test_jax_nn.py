"""The layer library on JAX: equivariant or invariant, right in value, and PyTorch's twin.

In: specs with repeated labels, fixed and composite axes, and tensors without axes. Values are held
to NumPy, written out the long way; weights carried over from `symcompile_torch.nn` by name give the
same outputs.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

import symcompile as sc
from symcompile.spec import flatten_like, parse_spec, unflatten
from symcompile_jax import functional as F
from symcompile_jax import nn
from symcompile_jax.functional import pooling
from tests.backend_cases import CUBE, MLP, SIZES, SPEC, inputs

pytestmark = pytest.mark.usefixtures("quick_xla")  # `test_jax.py` leaves the optimizer on

GRAPH = {"edges": ("a", "a"), "nodes": ("a",), "graph": ()}
FIXED = {"w": (sc.Fixed(3), "b"), "out": (sc.Fixed(2),)}
SPECS = {"mlp": MLP, "graph": GRAPH, "order 3": CUBE, "composite": SPEC, "fixed": FIXED}
CHANNELS = 4


@pytest.fixture
def _optimized() -> Iterator[None]:
    """With XLA's optimizer after all, as users compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# In: a spec. Out: a module from trees with CHANNELS channels to trees.
EQUIVARIANT: dict[str, Callable[[Any, nnx.Rngs], Any]] = {
    "linear": lambda s, r: nn.EquivariantLinear(s, in_channels=4, out_channels=3, rngs=r),
    "activation": lambda s, r: nn.Activation(jax.nn.gelu),
    "channel linear": lambda s, r: nn.ChannelLinear(s, 4, 3, rngs=r),
    "channel norm": lambda s, r: nn.ChannelNorm(s, 4),
    "tensor norm": lambda s, r: nn.TensorNorm(s, 4),
    "positions": lambda s, r: nn.LearnedPosEmbedding(s, 4, rngs=r),
    "sinusoids": lambda s, r: nn.SinusoidalEncoding(s, num_bands=3),
    "fourier": lambda s, r: nn.GaussianFourierFeatures(4, 6, 0.3, rngs=r),
    "scale": lambda s, r: nn.LearnedScale(s, 4, 0.5),
    "attention": lambda s, r: nn.EquivariantAttention(s, 4, heads=2, rngs=r),
    "residual": lambda s, r: nn.Residual(nn.ChannelNorm(s, 4), nn.ChannelLinear(s, 4, 4, rngs=r)),
    "trunk": lambda s, r: nn.trunk(s, [4, 4, 4, 2], norm=nn.TensorNorm, residual=True, rngs=r),
}
ALL_STATS = ("mean", "sum", "max", "var", 0.0, 0.3, 1)
INVARIANT: dict[str, Callable[[Any, nnx.Rngs], Any]] = {
    "pool": lambda s, r: nn.InvariantPool(s, ALL_STATS),
    "statistics": lambda s, r: nn.StatFeaturizer(s),
    "head": lambda s, r: nn.InvariantHead(s, 4, 8, 3, stats=("mean", 0.5), rngs=r),
}


def stirred(module: Any, seed: int = 0) -> Any:
    """The module with every weight moved, so that zeros and ones hide nothing."""
    rng = np.random.default_rng(seed)

    def moved(value: Any) -> Any:
        return value + jnp.asarray(0.3 * rng.standard_normal(value.shape), value.dtype)

    nnx.update(module, jax.tree.map(moved, nnx.state(module, nnx.Param)))
    return module


def function_of(module: Any, *, jit: bool = True) -> Callable[[Any], Any]:
    """A function of NumPy trees, in float64."""
    graph, state = nnx.split(module)

    def call(x: Any) -> Any:
        return nnx.merge(graph, state)(x)

    compiled = jax.jit(call) if jit else call

    def on_numpy(x: Any) -> Any:
        return jax.tree.map(np.asarray, compiled(jax.tree.map(jnp.asarray, x)))

    return on_numpy


def made(make: Callable[[Any, nnx.Rngs], Any], spec: Any) -> Any:
    return stirred(make(spec, nnx.Rngs(0)))


def check(module: Any, spec: Any, out_spec: Any = None, batch: Any = ((2,),)) -> Any:
    labels = parse_spec(spec).labels
    return sc.check_equivariance(
        function=function_of(module),
        spec=spec,
        out_spec=out_spec,
        in_channels=CHANNELS,
        sizes={label: size for label, size in SIZES.items() if label in labels},
        batch_shapes=batch,
        trials=1,
        tolerance=1e-10,
    )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("make", EQUIVARIANT.values(), ids=EQUIVARIANT)
def test_equivariant(make: Any, spec: Any) -> None:
    with jax.enable_x64(True):
        report = check(made(make, spec), spec)
    assert report.dtype == "float64"
    assert report.scale > 0.1


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("make", INVARIANT.values(), ids=INVARIANT)
def test_invariant(make: Any, spec: Any) -> None:
    with jax.enable_x64(True):
        report = check(made(make, spec), spec, ())
    assert report.dtype == "float64"
    assert report.scale > 0.1


FAULTS: dict[str, Any] = {
    "numbers entries": lambda x: jnp.cumsum(x, -2),
    "norm of rows alone": lambda x: x - x[..., :1, :],
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_layer_that_is_not_equivariant_is_found(fault: Any) -> None:
    with jax.enable_x64(True), pytest.raises(sc.CheckError, match="not equivariant"):
        check(nn.Sequential(nn.Activation(fault)), CUBE)


def test_a_position_along_a_permuted_axis_is_found() -> None:
    """The spec says fixed, the symmetry does not: an encoding of positions shows."""
    lied = {"w": (sc.Fixed(3), "b"), "out": (sc.Fixed(2),)}
    honest = {"w": ("a", "b"), "out": (sc.Fixed(2),)}
    for make in (
        nn.SinusoidalEncoding(lied),
        nn.LearnedPosEmbedding(lied, CHANNELS, rngs=nnx.Rngs(0)),
    ):
        with jax.enable_x64(True), pytest.raises(sc.CheckError, match="label 'a'"):
            check(make, honest)


def test_a_pool_that_is_not_invariant_is_found() -> None:
    with jax.enable_x64(True), pytest.raises(sc.CheckError, match="not equivariant"):
        check(nn.InvariantPool({"w": (sc.Fixed(3), "b")}), {"w": ("a", "b")}, ())


# -- batch axes, dtypes, containers ----------------------------------------------------------------


def as_examples(module: Any, x: Any, batch: tuple[int, ...]) -> None:
    """Hold a batch to what its examples give alone."""
    y = module(x)
    for place in np.ndindex(*batch):
        one = module(jax.tree.map(lambda leaf, p=place: leaf[p], x))
        close(jax.tree.map(lambda leaf, p=place: leaf[p], y), one, 1e-10)
    lead = {leaf.shape[: len(batch)] for leaf in jax.tree.leaves(y)}
    assert lead == {batch}


@pytest.mark.parametrize("batch", [(), (2,), (1, 2, 1), (0,)], ids=str)
@pytest.mark.parametrize("make", (EQUIVARIANT | INVARIANT).values(), ids=EQUIVARIANT | INVARIANT)
def test_any_batch_axes(make: Any, batch: tuple[int, ...]) -> None:
    spec = {"w": ("a", ("b", sc.Fixed(2))), "s": ()}
    with jax.enable_x64(True):
        graph, state = nnx.split(made(make, spec))
        module = jax.jit(lambda x: nnx.merge(graph, state)(x))
        x = jax.tree.map(jnp.asarray, inputs(spec, CHANNELS, batch))
        as_examples(module, x, batch)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("make", (EQUIVARIANT | INVARIANT).values(), ids=EQUIVARIANT | INVARIANT)
def test_half_types_stay_and_are_near(make: Any, dtype: str) -> None:
    spec = {"w": ("a", "a", sc.Fixed(2)), "s": ()}
    graph, state = nnx.split(made(make, spec))
    module = jax.jit(lambda x: nnx.merge(graph, state)(x))
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), inputs(spec, CHANNELS))
    y, exact = module(half), module(jax.tree.map(lambda leaf: leaf.astype("float32"), half))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(y)} == {dtype}
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), y)
    close(wide, exact, 16 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", [n for n in EQUIVARIANT | INVARIANT if n != "activation"])
def test_integers_become_floats(name: str) -> None:
    make = (EQUIVARIANT | INVARIANT)[name]
    spec = {"w": ("a", sc.Fixed(2)), "f": (sc.Fixed(3),)}
    x = {"w": jnp.arange(24).reshape(3, 2, 4), "f": jnp.arange(12).reshape(3, 4)}
    y = nnx.jit(lambda module, x: module(x))(made(make, spec), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(y)} == {"float32"}


def test_numpy_arrays_and_frozen_dicts() -> None:
    x = inputs(MLP, CHANNELS)
    for make in (EQUIVARIANT["channel linear"], EQUIVARIANT["fourier"], EQUIVARIANT["linear"]):
        module = made(make, MLP)
        y = module(freeze(jax.tree.map(np.float32, x)))
        close(y, module(jax.tree.map(lambda leaf: jnp.asarray(leaf, "float32"), x)), 1e-6)
        assert type(y["params"]) is dict


def test_one_channel_and_one_entry_are_finite() -> None:
    x = {"w": jnp.full((1, 1, 1), 7.0), "s": jnp.full(1, 3.0)}
    spec = {"w": ("a", "b"), "s": ()}
    assert F.channel_norm(spec, x, [jnp.ones(1)] * 2, [jnp.full(1, 2.0)] * 2)["w"].item() == 2
    y = F.tensor_norm(spec, x, [jnp.full(1, 2.0)] * 2, [jnp.ones(1)] * 2)
    assert (y["s"].item(), y["w"].item()) == (7, 15)
    assert F.statistics(spec, x).tolist() == [3, 0, 3, 3, 3, 3, 3, 7, 0, 7, 7, 7, 7, 7]
    grads = jax.grad(lambda x: nn.TensorNorm(spec, 1)(x)["w"].sum())(x)
    assert jnp.isfinite(grads["w"]).all()


# -- values ----------------------------------------------------------------------------------------


def close(found: Any, expected: Any, tolerance: float) -> None:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in pairs:
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        scale = max(float(np.abs(other).max(initial=0)), 1.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


def test_norms_by_hand() -> None:
    rng = np.random.default_rng(0)
    x = {"w": rng.standard_normal((5, 3, 4, 2)), "s": rng.standard_normal((5, 2))}
    spec = {"w": ("a", sc.Fixed(4)), "s": ()}
    scale, shift = rng.standard_normal((2, 2, 2))
    w, s = x["w"], x["s"]

    def normal(value: Any, axes: Any, number: int) -> Any:
        mean = value.mean(axes, keepdims=True)
        variance = ((value - mean) ** 2).mean(axes, keepdims=True)
        return (value - mean) / np.sqrt(variance + 0.1) * scale[number] + shift[number]

    with jax.enable_x64(True):
        weights = ([*map(jnp.asarray, scale)], [*map(jnp.asarray, shift)])
        found = F.channel_norm(spec, x, *weights, eps=0.1)
        close(found, {"w": normal(w, -1, 1), "s": normal(s, -1, 0)}, 1e-12)
        found = F.tensor_norm(spec, x, *weights, eps=0.1)
        close(found, {"w": normal(w, (1, 2), 1), "s": s * scale[0] + shift[0]}, 1e-12)


def test_pools_by_hand() -> None:
    rng = np.random.default_rng(0)
    spec = {"w": (("a", sc.Fixed(2)), "b"), "f": (sc.Fixed(3),)}
    w, f = rng.standard_normal((2, 6, 4, 5)), rng.standard_normal((2, 3, 5))
    split = w.reshape(2, 3, 2, 4, 5)
    columns = split.transpose(0, 1, 3, 2, 4).reshape(2, 12, 10)
    with jax.enable_x64(True):
        found = F.invariant_pool(spec, {"w": w, "f": f}, ALL_STATS)
        rows = []
        for values in (f.reshape(2, 1, 15), columns):
            rows += [values.mean(1), values.sum(1), values.max(1), values.var(1)]
            rows += [np.quantile(values, q, axis=1) for q in (0.0, 0.3, 1)]
        close(found, np.concatenate(rows, -1), 1e-12)
        pool = nn.InvariantPool(spec, ALL_STATS)
        assert pool.out_features(5) == found.shape[-1] == 7 * (15 + 10)
        rows = []
        for values in (f, w.reshape(2, 24, 5)):
            rows += [values.mean(1), values.var(1)]
            rows += [np.quantile(values, q, axis=1) for q in (0, 0.25, 0.5, 0.75, 1)]
        found = F.statistics(spec, {"w": w, "f": f})
        close(found, np.concatenate(rows, -1), 1e-12)
        assert nn.StatFeaturizer(spec).out_features(5) == found.shape[-1]


def test_a_quantile_of_what_is_not_a_number() -> None:
    x = jnp.array([[1.0, 1.0], [jnp.nan, 2.0], [3.0, 3.0]])
    low, high = F.invariant_pool(("a",), x, (0.5,))
    assert jnp.isnan(low)
    assert high == 2


def test_nothing_has_a_sum_and_no_other_statistic() -> None:
    empty = jnp.zeros((2, 0, 1))
    found = F.invariant_pool(("a",), empty, ("sum", "mean", "max", "var", 0.5))
    assert jnp.isnan(found).tolist() == [[False, True, True, True, True]] * 2
    assert jnp.isnan(F.statistics(("a",), empty)).all()


def test_complex_numbers_have_no_order() -> None:
    spec, x = {"w": ("a",)}, {"w": jnp.ones((3, 1), "complex64")}
    with pytest.raises(sc.ShapeError, match=r"x\['w'\] is complex"):
        F.statistics(spec, x)
    with pytest.raises(sc.ShapeError, match=r"x\['w'\] is complex"):
        F.invariant_pool(spec, x, ("mean", "max"))
    F.invariant_pool(spec, x, ("mean", "sum", "var"))


def test_quantiles_of_more_entries_than_float32_can_count() -> None:
    n = 2**25 + 5  # its third quarter is entry 25,165,827, which float32 cannot name
    place = 3 * (n - 1) // 4
    assert int(np.float32(place)) != place
    x = np.zeros((n, 1), np.float32)
    x[place + 1 :] = 1
    for wanted in (0, 1):
        values = pooling._Values(jnp.asarray(x))
        values.sorted = values.x  # as they are: sorting them takes half a minute
        assert values.stat(0.75).item() == wanted
        x[place] = 1


def test_encodings_by_hand() -> None:
    spec = {"w": ("a", sc.Fixed(3)), "b": ("a",)}  # b is tensor 0, w is tensor 1
    rng = np.random.default_rng(0)
    x = {"w": rng.standard_normal((4, 3, 2)), "b": rng.standard_normal((4, 2))}
    rates = np.array([1, 100.0**-0.5])

    def code(t: int) -> Any:
        return np.concatenate([np.sin(t * rates), np.cos(t * rates)])

    expected = {"b": np.zeros((4, 10)), "w": np.zeros((4, 3, 10))}
    for a in range(4):
        expected["b"][a] = [*x["b"][a], *code(0), *np.zeros(4)]
        for f in range(3):
            expected["w"][a, f] = [*x["w"][a, f], *code(1), *code(f)]
    with jax.enable_x64(True):
        encoding = nn.SinusoidalEncoding(spec, num_bands=2, max_period=100.0)
        close(encoding(x), expected, 1e-12)
        assert encoding.out_channels(2) == 10
        table = rng.standard_normal((3, 2))
        found = F.position_embedding(spec, x, [jnp.asarray(table)])
        close(found, {"w": x["w"] + table, "b": x["b"]}, 1e-12)
        matrix = rng.standard_normal((2, 5))
        angle = 2 * np.pi * x["b"] @ matrix
        found = F.fourier_features({"b": x["b"]}, jnp.asarray(matrix))
        close(found, {"b": np.concatenate([np.sin(angle), np.cos(angle)], -1)}, 1e-12)


def softmax_rows(tokens: dict[Any, Any]) -> dict[Any, Any]:
    """Attention of tokens (q, k, v), each a flat vector, one head."""
    result = {}
    for name, (query, _, _) in tokens.items():
        scores = np.array([query @ key for _, key, _ in tokens.values()]) / np.sqrt(query.size)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        result[name] = sum(w * v for w, (_, _, v) in zip(weights, tokens.values(), strict=True))
    return result


def test_attention_by_hand() -> None:
    """Token by token, head by head, over a repeated label, a fixed axis and a scalar."""
    spec = {"w": ("a", "a"), "v": (sc.Fixed(2), "a"), "s": ()}
    rng = np.random.default_rng(0)
    x = {"w": rng.standard_normal((3, 3, 4)), "v": rng.standard_normal((2, 3, 4)),
         "s": rng.standard_normal(4)}  # fmt: skip
    qkv, bias, role = (rng.standard_normal(s) for s in ((4, 12), (12,), (6, 4)))
    # Tensors in canonical order: s, v, w. Roles: mean of s; v along a, mean; w along 0, 1, mean.
    expected = {name: np.zeros_like(value) for name, value in x.items()}
    for head in range(2):
        cut = [slice(part * 4 + head * 2, part * 4 + head * 2 + 2) for part in range(3)]
        out = slice(head * 2, head * 2 + 2)

        def parts(value: Any, number: int, cut: Any = cut) -> Any:
            projected = (value + role[number]) @ qkv + bias
            return tuple(projected[..., c] for c in cut)

        tokens = {}
        for i in range(2):
            tokens["v", i] = tuple(p.ravel() for p in parts(x["v"][i], 1))
        for i in range(3):
            tokens["w", 0, i] = tuple(p.ravel() for p in parts(x["w"][:, i], 3))
            tokens["w", 1, i] = tuple(p.ravel() for p in parts(x["w"][i], 4))
        found = softmax_rows(tokens)
        for i in range(2):
            expected["v"][i][:, out] += found["v", i].reshape(3, 2)
        for i in range(3):
            expected["w"][:, i][:, out] += found["w", 0, i].reshape(3, 2)
            expected["w"][i][:, out] += found["w", 1, i].reshape(3, 2)
        means = {
            "s": parts(x["s"], 0),
            "v": parts(x["v"].mean((0, 1)), 2),
            "w": parts(x["w"].mean((0, 1)), 5),
        }
        for name, value in softmax_rows(means).items():
            expected[name][..., out] += value
    with jax.enable_x64(True):
        weights = map(jnp.asarray, (qkv, bias, role))
        close(F.attention(spec, x, *weights, heads=2), expected, 1e-12)
        without = F.attention(spec, x, jnp.asarray(qkv), jnp.asarray(bias), heads=2)
        zero = F.attention(spec, x, *map(jnp.asarray, (qkv, bias, 0 * role)), heads=2)
        close(without, zero, 1e-12)
        assert np.abs(without["w"] - expected["w"]).max() > 0.01


def test_channel_linear_and_scale_by_hand() -> None:
    rng = np.random.default_rng(0)
    spec = {"w": ("a",), "s": ()}
    x = {"w": rng.standard_normal((3, 2)), "s": rng.standard_normal(3)}
    layer = nn.ChannelLinear(spec, {"w": 2, "s": 3}, {"w": 4, "s": 1}, rngs=nnx.Rngs(0))
    assert [p.shape for p in layer.weight] == [(3, 1), (2, 4)]
    stirred(layer)
    y = layer(x)
    for number, name in enumerate(("s", "w")):
        weight, bias = np.asarray(layer.weight[number][...]), np.asarray(layer.bias[number][...])
        close(y[name], x[name] @ weight + bias, 1e-6)
    bare = nn.ChannelLinear(spec, {"w": 2, "s": 3}, 2, bias=False, rngs=nnx.Rngs(0))
    assert len(nnx.to_flat_state(nnx.state(bare))) == 2
    assert bare(x)["w"].shape == (3, 2)
    scaled = F.channel_scale(spec, x, [jnp.array([1.0, 2, 3]), jnp.array([4.0, 5])])
    close(scaled, {"w": x["w"] * [4, 5], "s": x["s"] * [1, 2, 3]}, 1e-6)


def test_weights_are_drawn_at_the_scale_that_is_told() -> None:
    rngs = nnx.Rngs(0)
    attend = nn.EquivariantAttention({"w": ("a", "b", "b"), "s": ()}, 64, rngs=rngs)
    columns = np.split(np.asarray(attend.qkv[...]), 3, axis=1)
    found = {
        "queries": (columns[0], 64**-0.5),
        "keys": (columns[1], 64**-0.5),
        "values": (columns[2], 64**-0.5 / 2),  # three axes and the mean
        "linear": (nn.ChannelLinear(("a",), 64, 32, rngs=rngs).weight[0][...], 64**-0.5),
        "head": (nn.InvariantHead(("a",), 64, 32, 1, rngs=rngs).weight[0][...], 64**-0.5),
        "fourier": (nn.GaussianFourierFeatures(32, 64, 3.0, rngs=rngs).frequencies[...], 3),
        "positions": (
            nn.LearnedPosEmbedding((sc.Fixed(64),), 32, rngs=rngs).weight[0][...],
            0.02,
        ),
    }
    for name, (value, deviation) in found.items():
        assert abs(float(value.std()) / deviation - 1) < 0.06, name
        assert abs(float(value.mean())) < 0.1 * deviation, name
    assert not np.asarray(attend.role[...]).any()
    assert nn.LearnedScale(("a",), 3, init=0.25).scale[0][...].tolist() == [0.25] * 3


def test_residual_adds() -> None:
    x = {"w": jnp.array([[-1.0], [2.0]])}
    layers = (nn.Activation(jnp.square), nn.Activation(lambda v: v + 1))
    assert nn.Residual(*layers)(x)["w"].ravel().tolist() == [1, 7]
    assert nn.Sequential(*layers)(x)["w"].ravel().tolist() == [2, 5]
    assert nn.Sequential()(x) is x


# -- dropout -----------------------------------------------------------------------------------


def test_dropout_drops_whole_channels() -> None:
    spec = {"w": ("a", "b"), "s": ()}
    x = {"w": jnp.ones((8, 3, 2, 200)), "s": jnp.ones((8, 200))}
    dropout = nn.ChannelDropout(0.25, spec, rngs=nnx.Rngs(0))
    y = dropout(x)
    assert bool((y["w"] == y["w"][:, :1, :1]).all())
    for leaf in y.values():
        values = set(np.unique(leaf).tolist())
        assert values == {0.0, np.float32(4 / 3).item()}
        assert abs(float((leaf == 0).mean()) - 0.25) < 0.05
    assert not bool((y["w"][0] == y["w"][1]).all())  # examples drop channels of their own
    assert not bool((y["w"][:, 0, 0] == y["s"]).all())
    again = dropout(x)
    assert not bool((again["w"] == y["w"]).all())
    dropout.eval()
    assert dropout(x) is x
    dropout.train()
    assert not bool((dropout(x)["w"] == 1).all())


def test_dropout_without_a_spec_drops_alike_for_all_examples() -> None:
    dropout = nn.ChannelDropout(0.5, rngs=nnx.Rngs(0))
    y = dropout({"w": jnp.ones((4, 3, 64)), "b": [jnp.ones((4, 64))]})
    assert bool((y["w"] == y["w"][0, 0]).all())
    assert not bool((y["w"][0, 0] == y["b"][0][0]).all())


def test_dropout_under_jit_draws_anew() -> None:
    dropout = nn.ChannelDropout(0.5, ("a",), rngs=nnx.Rngs(0))
    run = nnx.jit(lambda module, x: module(x))
    x = jnp.ones((3, 64))
    assert not bool((run(dropout, x) == run(dropout, x)).all())


def test_dropout_of_a_trunk_goes_off_with_eval() -> None:
    net = nn.trunk({"w": ("a",)}, [4, 8, 8], dropout=0.5, residual=True, rngs=nnx.Rngs(0))
    x = {"w": jnp.ones((3, 4))}
    assert not bool((net(x)["w"] == net(x)["w"]).all())
    net.eval()
    assert bool((net(x)["w"] == net(x)["w"]).all())


# -- refusals ------------------------------------------------------------------------------------

RNGS = partial(nnx.Rngs, 0)
PAIR = {"w": ("a", "b"), "b": ("b",)}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.ChannelDropout(1.0), r"rate.*\[0, 1\)"),
        (lambda: nn.ChannelDropout(0.5)(jnp.ones(3)), "rngs="),
        (lambda: nn.EquivariantAttention(PAIR, 4, heads=3, rngs=RNGS()), "heads=3"),
        (lambda: nn.GaussianFourierFeatures(1, 3, rngs=RNGS()), "odd"),
        (lambda: nn.InvariantPool(PAIR, ("median",)), "median"),
        (lambda: nn.InvariantPool(PAIR, "mean"), "sequence"),
        (lambda: nn.SinusoidalEncoding(PAIR, num_bands=0), "num_bands"),
        (lambda: nn.Sequential(jax.nn.relu), "layer 0.*Activation"),
        (lambda: nn.Activation(3), "expected a function"),
        (lambda: nn.trunk(PAIR, [4], rngs=RNGS()), "at least two"),
        (lambda: nn.ChannelLinear(PAIR, 0, 4, rngs=RNGS()), "in_channels"),
        (
            lambda: nn.EquivariantLinear(
                PAIR, in_channels=1, out_channels=1, backend="torch", rngs=RNGS()
            ),
            "backend is 'jax'",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(make: Any, words: str) -> None:
    with pytest.raises(sc.OptionError, match=words):
        make()


def test_a_fixed_axis_without_a_size_is_refused_where_it_matters() -> None:
    spec = {"w": (None, "b")}
    shapes = {"w": (3, 4)}
    with pytest.raises(sc.ShapeError, match="shapes="):
        nn.LearnedPosEmbedding(spec, 2, rngs=RNGS())
    with pytest.raises(sc.ShapeError, match="shapes="):
        nn.InvariantPool(spec).out_features(2)
    assert nn.InvariantPool(spec, shapes=shapes).out_features(2) == 6
    assert nn.InvariantPool(spec)({"w": jnp.ones((5, 3, 4, 2))}).shape == (5, 6)
    assert nn.LearnedPosEmbedding(spec, 2, shapes=shapes, rngs=RNGS()).weight[0].shape == (3, 2)


GOOD = {"w": jnp.ones((2, 3, 5, 4)), "b": jnp.ones((2, 5, 4))}
MISFITS = {
    "missing": {"w": GOOD["w"]},
    "size": {**GOOD, "b": jnp.ones((2, 6, 4))},
    "batch": {**GOOD, "b": jnp.ones((3, 5, 4))},
    "order": {**GOOD, "b": jnp.ones(4)},
    "no array": {**GOOD, "b": None},
}
WITH_SPEC = {
    name: make
    for name, make in (EQUIVARIANT | INVARIANT).items()
    if name not in ("activation", "fourier")
}


@pytest.mark.parametrize("x", MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("make", WITH_SPEC.values(), ids=WITH_SPEC)
def test_a_tree_that_does_not_fit_is_refused(make: Any, x: Any) -> None:
    with pytest.raises(sc.ShapeError, match=r"x(\['[wb]'\] has shape|.*'b')"):
        make(PAIR, RNGS())(x)


@pytest.mark.parametrize(
    "name", ["linear", "channel linear", "channel norm", "tensor norm", "positions", "fourier",
             "scale", "attention", "head"]
)  # fmt: skip
def test_other_channels_are_refused(name: str) -> None:
    x = {"w": GOOD["w"], "b": jnp.ones((2, 5, 1))}  # 1 would broadcast
    with pytest.raises(sc.ShapeError, match=r"x\['b'\] has shape \(2, 5, 1\), expected .*4"):
        (EQUIVARIANT | INVARIANT)[name](PAIR, RNGS())(x)


@pytest.mark.parametrize("name", ["activation", "channel norm", "fourier"])
def test_what_is_no_array_is_named_with_its_place(name: str) -> None:
    with pytest.raises(
        sc.ShapeError, match=r"x\['b'\]: found a NoneType object, expected an? [aA]"
    ):
        EQUIVARIANT[name](PAIR, RNGS())({**GOOD, "b": None})


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (F.channel_linear, {"weight": 2, "bias": 1}),
        (F.channel_scale, {"scale": 1}),
        (F.channel_norm, {"scale": 1, "shift": 2}),
        (F.channel_norm, {"scale": 2, "shift": 1}),
        (F.tensor_norm, {"scale": 2, "shift": 1}),
    ],
)
def test_weights_for_another_number_of_tensors_are_refused(
    function: Any, given: dict[str, int]
) -> None:
    spec, x = {"w": (0, 1), "b": (1,)}, {"w": jnp.ones((3, 2, 4)), "b": jnp.ones((2, 4))}
    shape = {"weight": (4, 4)}
    weights = {name: [jnp.ones(shape.get(name, 4))] * count for name, count in given.items()}
    (wrong,) = (name for name, count in given.items() if count == 1)
    with pytest.raises(sc.ShapeError, match=f"^{wrong}: found 1, expected 2: one for each leaf"):
        function(spec, x, **weights)


def test_residual_broadcasts_nothing() -> None:
    wider = nn.Residual(nn.ChannelLinear(("a",), 1, 4, rngs=RNGS()))
    with pytest.raises(sc.ShapeError, match=r"^x: found the shapes \(3, 1\) and \(3, 4\)"):
        wider(jnp.ones((3, 1)))
    with pytest.raises(sc.ShapeError, match=r"^x\['a'\]\[1\]: found the shapes"):
        F.add({"a": [jnp.ones(1), jnp.ones(1)]}, {"a": [jnp.ones(1), jnp.ones(2)]})

    class Renamed(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return {"other": x["w"]}

    with pytest.raises(sc.ShapeError, match="paths"):
        nn.Residual(Renamed())({"w": jnp.ones((3, 1))})


# -- transforms --------------------------------------------------------------------------------


def network(spec: Any, rngs: nnx.Rngs) -> Any:
    """Every kind of layer in one network."""
    return nn.Sequential(
        nn.GaussianFourierFeatures(CHANNELS, 8, 0.1, rngs=rngs),
        nn.LearnedPosEmbedding(spec, 8, rngs=rngs),
        nn.SinusoidalEncoding(spec, num_bands=1),
        nn.trunk(spec, [nn.SinusoidalEncoding(spec, num_bands=1).out_channels(8), 8, 8],
                 norm=nn.ChannelNorm, residual=True, rngs=rngs),
        nn.LearnedScale(spec, 8, 0.5),
        nn.Residual(nn.TensorNorm(spec, 8), nn.EquivariantAttention(spec, 8, heads=2, rngs=rngs),
                    nn.ChannelLinear(spec, 8, 8, rngs=rngs)),
        nn.InvariantHead(spec, 8, (8,), 3, stats=("mean", "max"), rngs=rngs),
    )  # fmt: skip


@pytest.mark.usefixtures("_optimized")
def test_jit_vmap_and_gradients() -> None:
    spec = {"w": ("a", "a"), "k": ("a", sc.Fixed(2)), "s": ()}
    with jax.enable_x64(True):
        module = stirred(network(spec, nnx.Rngs(0)))
        x = jax.tree.map(jnp.asarray, inputs(spec, CHANNELS, (3,)))
        graph, params, rest = nnx.split(module, nnx.Param, ...)

        @jax.jit
        def call(params: Any, x: Any) -> Any:
            return nnx.merge(graph, params, rest)(x)

        y = call(params, x)
        close(nnx.jit(lambda m, x: m(x))(module, x), y, 1e-10)
        close(jax.jit(jax.vmap(call, (None, 0)))(params, x), y, 1e-10)
        grads = jax.jit(jax.grad(lambda p, x: (call(p, x) ** 2).sum(), argnums=(0, 1)))(params, x)
        for path, leaf in jax.tree.leaves_with_path(grads):
            assert jnp.isfinite(leaf).all(), path
            assert jnp.abs(leaf).sum() > 0, path
        along = jax.tree.map(jnp.ones_like, params)
        slope = sum(
            (g * d).sum()
            for g, d in zip(jax.tree.leaves(grads[0]), jax.tree.leaves(along), strict=True)
        )
        step = 1e-6
        ahead, back = (
            (call(jax.tree.map(lambda p, s=s: p + s, params), x) ** 2).sum() for s in (step, -step)
        )
        close(slope, (ahead - back) / (2 * step), 1e-5)


def test_a_network_is_invariant() -> None:
    with jax.enable_x64(True):
        report = check(stirred(network(SPEC, nnx.Rngs(0))), SPEC, ())
    assert report.scale > 0.01


def test_modules_are_cloned_and_copied() -> None:
    module = network(GRAPH, nnx.Rngs(0))
    x = jax.tree.map(jnp.asarray, inputs(GRAPH, CHANNELS))
    run = nnx.jit(lambda module, x: module(x))
    expected = run(module, x)
    for other in (nnx.clone(module), copy.deepcopy(module)):
        close(run(other, x), expected, 1e-6)
        stirred(other)
        assert float(jnp.abs(run(other, x) - expected).max()) > 1e-3
    close(run(module, x), expected, 1e-6)


def test_the_buffer_is_no_parameter() -> None:
    features = nn.GaussianFourierFeatures(1, 4, rngs=nnx.Rngs(0))
    assert not nnx.to_flat_state(nnx.state(features, nnx.Param))
    assert [path for path, _ in nnx.to_flat_state(nnx.state(features, nn.Buffer))] == [
        ("frequencies",)
    ]


def test_a_compiled_layer_tells_its_source_and_plan() -> None:
    layer = nn.EquivariantLinear(GRAPH, in_channels=1, out_channels=2, rngs=nnx.Rngs(0))
    twin = sc.compile(GRAPH, in_channels=1, out_channels=2, backend="jax")
    assert layer.source == twin.source
    assert layer.spec == twin.spec
    assert layer.plan.weights == twin.plan.weights
    assert len(layer.basis) == len(twin.basis)
    names = {path[0]: value.shape for path, value in nnx.to_flat_state(nnx.state(layer))}
    assert names == dict(twin.compiled.shapes)


def test_the_backend_imports_no_flax() -> None:
    code = (
        "import sys, symcompile_jax, symcompile_jax.functional\n"
        "assert 'flax' not in sys.modules\n"
        "import symcompile_jax.nn\n"
        "assert 'flax' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_trunk_and_a_head_learn() -> None:
    """What is asked for is no function of means of the inputs: the trunk has to work too."""
    optax = pytest.importorskip("optax")
    spec = {"w": ("a", "b"), "v": ("b", "a")}
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((2, 64, 5, 4, 1)).astype("float32")
    x = {"w": jnp.asarray(w), "v": jnp.asarray(v.transpose(0, 2, 1, 3))}
    target = (w.mean(2) ** 2).mean(1) * 4  # mean square of row means
    rngs = nnx.Rngs(0)
    net = nn.Sequential(
        nn.trunk(spec, [1, 16, 16], rngs=rngs), nn.InvariantHead(spec, 16, 16, 1, rngs=rngs)
    )
    optimizer = nnx.Optimizer(net, optax.adam(5e-3), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda net: jnp.mean((net(x) - target) ** 2))(net)
        optimizer.update(net, grads)
        return loss

    losses = [float(step(net, optimizer)) for _ in range(300)]
    assert losses[-1] < 0.05 * float(np.var(target))


# -- PyTorch's twin --------------------------------------------------------------------------------


def carry(source: Any, target: Any) -> None:
    """PyTorch's weights into an NNX module by name; both must have the same names and shapes."""
    state = nnx.state(target, (nnx.Param, nn.Buffer))
    variables = dict(nnx.to_flat_state(state))
    tensors = {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): value
        for name, value in source.state_dict().items()
    }
    assert {path: tuple(value.shape) for path, value in tensors.items()} == {
        path: variable.shape for path, variable in variables.items()
    }
    flat = [
        (path, variable.replace(jnp.asarray(tensors[path].numpy())))
        for path, variable in variables.items()
    ]
    nnx.update(target, nnx.from_flat_state(flat))


def twins(name: str, spec: Any) -> tuple[Any, Any]:
    """A module of PyTorch and one of NNX."""
    torch = pytest.importorskip("torch")
    tnn = pytest.importorskip("symcompile_torch.nn")
    gelu = partial(torch.nn.functional.gelu, approximate="tanh")
    modules: dict[str, Any] = {
        "linear": tnn.EquivariantLinear(spec, in_channels=4, out_channels=3),
        "activation": tnn.Activation(gelu),
        "channel linear": tnn.ChannelLinear(spec, 4, 3),
        "channel norm": tnn.ChannelNorm(spec, 4),
        "tensor norm": tnn.TensorNorm(spec, 4),
        "positions": tnn.LearnedPosEmbedding(spec, 4),
        "sinusoids": tnn.SinusoidalEncoding(spec, num_bands=3),
        "fourier": tnn.GaussianFourierFeatures(4, 6, 0.3),
        "scale": tnn.LearnedScale(spec, 4, 0.5),
        "attention": tnn.EquivariantAttention(spec, 4, heads=2),
        "residual": tnn.Residual(tnn.ChannelNorm(spec, 4), tnn.ChannelLinear(spec, 4, 4)),
        "trunk": tnn.trunk(spec, [4, 4, 4, 2], norm=tnn.TensorNorm, residual=True),
        "pool": tnn.InvariantPool(spec, ALL_STATS),
        "statistics": tnn.StatFeaturizer(spec),
        "head": tnn.InvariantHead(spec, 4, 8, 3, stats=("mean", 0.5)),
    }
    source = modules[name].double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return source, (EQUIVARIANT | INVARIANT)[name](spec, nnx.Rngs(0))


def on_torch(source: Any, spec: Any, x: Any) -> Any:
    import torch

    parsed = parse_spec(spec)
    tree = unflatten(parsed, [torch.from_numpy(value) for value in flatten_like(parsed, x)])
    return jax.tree.map(lambda leaf: leaf.detach().numpy(), source(tree))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", EQUIVARIANT | INVARIANT)
def test_weights_of_pytorch_carried_across_by_name_give_equal_outputs(name: str, spec: Any) -> None:
    with jax.enable_x64(True):
        source, target = twins(name, spec)
        carry(source, target)
        x = inputs(spec, CHANNELS, (2,))
        close(function_of(target)(x), on_torch(source, spec, x), 1e-10)


def test_weights_carried_across_wrongly_are_found() -> None:
    with jax.enable_x64(True):
        source, target = twins("attention", GRAPH)
        carry(source, target)
        target.qkv[...] = target.qkv[...][:, ::-1]
        x = inputs(GRAPH, CHANNELS, (2,))
        with pytest.raises(AssertionError):
            close(function_of(target)(x), on_torch(source, GRAPH, x), 1e-3)
