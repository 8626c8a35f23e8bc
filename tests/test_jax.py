"""The JAX backend: two pure functions under every transform of JAX.

In: specs with diagonals, composite and fixed axes. The oracle of values is the NumPy interpreter.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import time
from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symcompile as sc
from symcompile.codegen import get_backend
from tests.backend_cases import CUBE, MLP, SPEC, inputs, random_weights

# Op by op, JAX compiles every op on its own: small, and under jit where that is not the point.
SMALL = {"w": ("a", "a"), "k": ("a", sc.Fixed(2)), "s": ()}


def make(spec: Any = SPEC, **options: Any) -> Any:
    return sc.compile(spec, in_channels=2, out_channels=3, backend="jax", **options)


def arrays(spec: Any = SPEC, dtype: Any = jnp.float32, **kind: Any) -> Any:
    source = np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype), inputs(spec, 2, dtype=source, **kind)
    )


def close(found: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-4) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=atol)


@pytest.mark.parametrize("spec", [SPEC, CUBE, MLP])
@pytest.mark.parametrize("batch", [(), (2,), (2, 1, 3), (0,)])
def test_equals_numpy_for_any_batch_axes(spec: Any, batch: tuple[int, ...]) -> None:
    oracle = sc.compile(spec, in_channels=2, out_channels=3, backend="numpy")
    weights = random_weights(oracle)
    x = inputs(spec, 2, batch)
    with jax.enable_x64(True):
        found = jax.jit(make(spec).apply)(weights, x)
        close(found, oracle.apply(weights, x), rtol=1e-12, atol=1e-11)


def test_init_gives_the_canonical_weights() -> None:
    layer = make(SMALL)
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):  # typed and legacy keys
        params = layer.init(key)
        assert {name: value.shape for name, value in params.items()} == dict(layer.compiled.shapes)
        assert {value.dtype for value in params.values()} == {jnp.dtype("float32")}
        assert not params["bias"].any()
        assert all(value.std() > 0 for name, value in params.items() if name != "bias")
    again = layer.init(jax.random.key(0))
    close(again, params, rtol=0, atol=0)
    assert not np.array_equal(layer.init(jax.random.key(1))["mix_a_a"], params["mix_a_a"])
    jitted = jax.jit(layer.init)(jax.random.key(0))
    close(jitted, params)
    shapes = jax.eval_shape(layer.init, jax.random.key(0))
    assert shapes["bias"].shape == params["bias"].shape


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_dtype_of_weights(dtype: str) -> None:
    params = make(SMALL).init(jax.random.key(0), dtype)
    assert {value.dtype.name for value in params.values()} == {dtype}
    own = make(SMALL, dtype=dtype).init(jax.random.key(0))
    assert {value.dtype.name for value in own.values()} == {dtype}


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
def test_dtype_of_inputs_is_kept_with_float32_weights(dtype: str) -> None:
    with jax.enable_x64(True):
        layer = make(SMALL)
        params = random_weights(layer, dtype=np.float32)
        apply, x = jax.jit(layer.apply), arrays(SMALL, dtype=dtype)
        y = apply(params, x)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(y)} == {dtype}
        wide = "complex128" if dtype.startswith("complex") else "float64"
        exact = apply(params, jax.tree.map(lambda leaf: leaf.astype(wide), x))
        scale = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(exact))
        rounding = 20 * float(jnp.finfo(dtype).eps) * scale
        close(jax.tree.map(lambda leaf: leaf.astype(wide), y), exact, rtol=0, atol=rounding)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("int32", "int32"), "float32"),
        (("bool", "uint8"), "float32"),
        (("int32", "bfloat16"), "bfloat16"),
        (("float16", "bfloat16"), "float32"),
        (("float32", "complex64"), "complex64"),
    ],
)
def test_integers_and_mixed_dtypes_promote(given: tuple[str, str], expected: str) -> None:
    layer = sc.compile({"p": (0, 0), "q": (0,)}, in_channels=1, out_channels=1, backend="jax")
    x = {"p": jnp.ones((3, 3, 1), given[0]), "q": jnp.ones((3, 1), given[1])}
    y = jax.jit(layer.apply)(random_weights(layer, dtype=np.float32), x)
    assert {leaf.dtype.name for leaf in y.values()} == {expected}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_reduce_in_float32(dtype: str) -> None:
    rng = np.random.default_rng(0)
    for spec, shape in [((0,), (2**17,)), ((0, 1, 2), (33, 48, 49)), ((0, 0), (300, 300))]:
        layer = sc.compile(
            {"x": spec}, {"m": ()}, in_channels=1, out_channels=1, bias=False, backend="jax"
        )
        (shape_of_mix,) = layer.compiled.shapes.values()
        params = {"mix_scalar": np.zeros(shape_of_mix, "float32")}
        params["mix_scalar"][0] = 1  # the mean over everything
        for offset in (0.0, 1.0, 100.0):
            x = jnp.asarray(rng.random((*shape, 1)) + offset, dtype)
            exact = np.asarray(x).astype(np.float64).mean()
            ulp = float(jnp.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(exact))
            found = float(jax.jit(layer.apply)(params, {"x": x})["m"][0])
            assert abs(found - exact) <= 0.51 * ulp


def test_chained_half_reductions_do_not_round_in_between() -> None:
    """Means that all round up, then means of those that do again: rounding each would add up."""
    ulp = 2.0**-7
    x = np.ones((33, 33, 33, 1))
    x[16:, 16:, 16:] += ulp
    # Outputs that need the means on the way, so that the last is made from them.
    layer = sc.compile({"x": (0, 1, 2)}, {"m": (), "p": (0, 1), "q": (0,)}, in_channels=1,
                       out_channels=1, bias=False, backend="jax")  # fmt: skip
    params = {name: np.ones(shape) for name, shape in layer.compiled.shapes.items()}
    found = float(jax.jit(layer.apply)(params, {"x": jnp.asarray(x, "bfloat16")})["m"][0])
    assert abs(found - x.mean()) <= 0.51 * ulp


# -- transforms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SMALL, CUBE])
def test_jit_vmap_and_gradients(spec: Any) -> None:
    layer = make(spec)
    params, x = random_weights(layer, dtype=np.float32), arrays(spec, batch=(4, 2))
    y = layer.apply(params, x)
    close(jax.jit(layer.apply)(params, x), y)
    close(jax.jit(jax.vmap(layer.apply, in_axes=(None, 0)))(params, x), y)
    stacked = jax.tree.map(lambda w: np.stack([w, 2 * w]), params)
    both = jax.jit(jax.vmap(layer.apply, in_axes=(0, None)))(stacked, x)
    close(jax.tree.map(lambda leaf: leaf[0], both), y)

    def loss(params: Any, x: Any) -> Any:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(layer.apply(params, x)))

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    assert all(jnp.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(grads))
    small = jax.tree.map(lambda leaf: leaf[0, 0], x)
    forward = jax.jit(jax.jacfwd(lambda p: layer.apply(p, small)))(params)
    close(forward, jax.jit(jax.jacrev(lambda p: layer.apply(p, small)))(params))


def test_second_derivatives() -> None:
    from jax.test_util import check_grads

    spec = {"w": (0, 0), "s": ()}
    layer = sc.compile(spec, in_channels=1, out_channels=1, backend="jax")
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, random_weights(layer))
        x = jax.tree.map(jnp.asarray, inputs(spec, 1, (), {0: 2}))
        check_grads(jax.jit(layer.apply), (params, x), order=2)


def test_sharded_inputs() -> None:
    code = """
import jax, numpy as np, symcompile as sc
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
assert len(jax.devices()) == 4
layer = sc.compile({"w": (0, 1), "v": (0, 0)}, in_channels=2, out_channels=3, backend="jax")
params = layer.init(jax.random.key(0))
rng = np.random.default_rng(0)
x = {"w": rng.normal(size=(8, 4, 3, 2)).astype("f"), "v": rng.normal(size=(8, 4, 4, 2)).astype("f")}
expected = layer.apply(params, x)
mesh = Mesh(np.array(jax.devices()), ("devices",))
for places in (P("devices"), P(None, "devices")):  # samples, and the axis both tensors share
    y = jax.jit(layer.apply)(params, jax.device_put(x, NamedSharding(mesh, places)))
    for name in y:
        np.testing.assert_allclose(y[name], expected[name], rtol=1e-5, atol=1e-5)
        assert len(y[name].sharding.device_set) == 4
        if places == P("devices"):
            assert {s.data.shape[0] for s in y[name].addressable_shards} == {2}
"""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_layer_is_a_static_argument_and_a_constant() -> None:
    calls = []

    @partial(jax.jit, static_argnums=0)
    def call(layer: Any, params: Any, x: Any) -> Any:
        calls.append(layer)
        return layer.apply(params, x)

    layer, x = make(SMALL), arrays(SMALL)
    params = random_weights(layer, dtype=np.float32)
    expected = layer.apply(params, x)
    close(call(layer, params, x), expected)
    close(call(make(SMALL), params, x), expected)  # an equal layer: nothing is traced again
    assert len(calls) == 1
    call(make(SMALL, bias=False), params, x)
    assert len(calls) == 2
    close(jax.jit(lambda x: layer.apply(params, x))(x), expected)


def test_hashing_is_cheap() -> None:
    layer = sc.compile((0, 0, 0, 0), in_channels=1, out_channels=1, backend="jax")
    hash(layer)
    start = time.process_time()
    for _ in range(1000):
        hash(layer)
    assert time.process_time() - start < 0.1


def test_pickle() -> None:
    layer, x = make(SMALL), arrays(SMALL)
    other = pickle.loads(pickle.dumps(layer))
    assert other == layer
    assert hash(other) == hash(layer)
    params = random_weights(layer, dtype=np.float32)
    close(jax.jit(other.apply)(params, x), jax.jit(layer.apply)(params, x), rtol=0, atol=0)


# -- containers and misfits ------------------------------------------------------------------------


def test_any_container_with_the_same_paths() -> None:
    from flax.core import FrozenDict

    spec = {"w": ("a", "a"), "deep": [("a",), ()]}
    layer, x = make(spec), arrays(spec)
    params = random_weights(layer, dtype=np.float32)
    expected = layer.apply(params, x)
    deep = x["deep"]
    for tree in (
        OrderedDict(reversed(x.items())),
        FrozenDict(x),
        {**x, "deep": tuple(deep)},
        {**x, "deep": {1: deep[1], 0: deep[0]}},
        jax.tree.map(np.asarray, x),
    ):
        close(layer.apply(FrozenDict(params), tree), expected)


@pytest.mark.parametrize("case", range(9))
@pytest.mark.parametrize("traced", [False, True])
def test_a_misfit_is_refused_by_path(case: int, traced: bool) -> None:
    layer, x = make(), arrays()
    params = random_weights(layer, dtype=np.float32)
    w = x["w"]
    tree, words = [
        ({"deep": x["deep"], "heads": x["heads"]}, ["x['w']", "nothing"]),
        ({**x, "more": w}, ["x['more']", "leave it out"]),
        ({**x, "w": [w]}, ["x['w']", "container of 1 entries"]),
        ({**x, "w": w[..., :1]}, ["x['w']", "(2, 3, 3, 1)", "(2, 3, 3, 2)"]),
        ({**x, "w": w[:, :, :1]}, ["x['w']", "(2, 3, 1, 2)"]),
        ({**x, "w": w[:1]}, ["(1, 3, 3, 2)", "batch (2,)"]),
        ({**x, "w": w[0, 0]}, ["x['w']", "(3, 2)"]),
        ({**x, "heads": x["heads"][:, :6]}, ["x['heads']", "(2, 6, 3, 3, 2)"]),
        ({**x, "w": None}, ["x['w']", "NoneType"]),
    ][case]
    call = jax.jit(layer.apply) if traced else layer.apply
    with pytest.raises(sc.ShapeError) as caught:
        call(params, tree)
    for word in words:
        assert word in str(caught.value)


def test_wrong_weights_are_refused() -> None:
    layer, x = make(SMALL), arrays(SMALL)
    params = random_weights(layer, dtype=np.float32)
    for wrong, word in (
        ({**params, "bias": params["bias"][:1]}, "bias"),
        ({"bias": params["bias"]}, "missing"),
        (None, "NoneType"),
        ([1], "list"),
    ):
        with pytest.raises(sc.ShapeError, match=word):
            layer.apply(wrong, x)


@pytest.mark.parametrize("backend", ["jax", "numpy"])
def test_means_of_integers_are_none_though_weights_are_integers(backend: str) -> None:
    layer = sc.compile(
        {"v": ("a",)}, {"m": ()}, in_channels=1, out_channels=1, bias=False, backend=backend
    )
    weights = {"mix_scalar": np.array([[5]], "int32")}
    y = layer.apply(weights, {"v": np.array([[1], [2], [2], [2]], "int32")})
    assert np.issubdtype(y["m"].dtype, np.floating)
    assert y["m"].tolist() == [8.75]
    for wrong in ("int32", "bool"):
        with pytest.raises(sc.OptionError, match="none of weights"):
            layer.init(jax.random.key(0) if backend == "jax" else 0, wrong)


def test_a_weight_that_is_no_array_is_named() -> None:
    layer = sc.compile({"v": ("a",)}, in_channels=1, out_channels=1, backend="jax")
    params = layer.init(jax.random.key(0))
    for wrong in (None, [0.0], 0.0, {"b": params["bias"]}):
        with pytest.raises(sc.ShapeError, match=r"params\['bias'\]: found a \w+ object"):
            layer.apply({**params, "bias": wrong}, {"v": jnp.ones((3, 1))})


def test_one_is_never_broadcast_to_six() -> None:
    layer = sc.compile({"k": (0, 1), "b": (1,)}, in_channels=1, out_channels=1, backend="jax")
    params = layer.init(jax.random.key(0))
    for sizes in ((6, 1), (1, 6)):
        x = {"k": jnp.ones((4, sizes[0], 1)), "b": jnp.ones((sizes[1], 1))}
        with pytest.raises(sc.ShapeError, match=r"x\['k'\] has shape"):
            layer.apply(params, x)


def test_64_bits_are_refused_where_jax_would_round_them(tmp_path):
    layer = sc.compile({"w": (0, 1)}, in_channels=1, out_channels=1, backend="jax", dtype="float64")
    with pytest.raises(sc.BackendError, match="jax_enable_x64"):
        layer.init(jax.random.key(0))
    sc.save_weights({"w": np.ones((2, 2))}, tmp_path / "w.safetensors")
    with pytest.raises(sc.BackendError, match="jax_enable_x64"):
        sc.load_weights(tmp_path / "w.safetensors", backend="jax")


def test_diagonals_are_entries_at_equal_steps() -> None:
    """No gather, that XLA makes and then moves, and no scatter for its gradient."""
    spec = {"p": ("a", "b", "a"), "q": ("a", "a")}
    layer = sc.compile(spec, in_channels=2, out_channels=2, backend="jax")
    x = {"p": jnp.ones((3, 2, 3, 2)), "q": jnp.ones((3, 3, 2))}
    params = random_weights(layer, dtype=np.float32)

    def total(params: Any, x: Any) -> Any:
        return sum(jnp.sum(leaf**2) for leaf in layer.apply(params, x).values())

    text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, x).as_text()
    assert not {"gather", "scatter"} & set(re.findall(r"stablehlo\.(\w+)", text))
    assert "_diagonal(" in layer.source


def test_checks_multiply_in_full_precision() -> None:
    """On a GPU JAX would multiply float32 in TF32, and agree with no other backend."""
    with get_backend("jax").precision("float32"):
        text = jax.jit(jnp.dot).lower(jnp.ones((2, 2)), jnp.ones((2, 2))).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in text
    assert "HIGHEST" not in jax.jit(jnp.dot).lower(jnp.ones((2, 2)), jnp.ones((2, 2))).as_text()
