"""JAX networks of any library go to trees and back, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import symcompile as sc
from symcompile import specs
from symcompile.errors import BackendError, ShapeError

jax = pytest.importorskip("jax")
flax = pytest.importorskip("flax")

import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

from symcompile_jax.data import (  # noqa: E402
    from_params,
    stack_weights,
    to_params,
    unstack_weights,
)
from tests import flax_networks as nets  # noqa: E402

WIDTHS = (4, 6, 5, 3)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight", "bias", "steps", "activation"],
    meta_fields=["name"],
)
@dataclass(frozen=True)
class Layer:
    """Like an Equinox module: fields are leaves, among them a function and None."""

    weight: Any
    bias: Any
    steps: Any
    activation: Any
    name: str = "layer"


class Model(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.dropout(jnp.tanh(self.norm(self.layers[0](x))))
        return self.layers[1](x)


def linen(seed: int) -> Any:
    params = nets.drawn(specs.mlp(WIDTHS, norm="batch").shapes, seed)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def frozen(seed: int) -> Any:
    return flax.core.freeze(linen(seed))


def equinox_like(seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def layer(*shape: int) -> Layer:
        weight = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        return Layer(weight, None, jnp.asarray(seed), jax.nn.relu)

    return {"layers": (layer(3, 2), layer(2, 5)), "scale": jnp.asarray(rng.normal(), jnp.float32)}


def nnx_state(seed: int) -> Any:
    return nnx.state(Model(seed))


def numpy_params(seed: int) -> Any:
    return nets.drawn(specs.rnn(3, 5, 2, kind="lstm").shapes, seed)  # float64, JAX's x64 being off


SOURCES = {
    "linen": linen,
    "frozen": frozen,
    "equinox-like": equinox_like,
    "nnx state": nnx_state,
    "nnx module": Model,
    "numpy": numpy_params,
}


def same(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if not hasattr(other, "dtype"):
            assert one is other
            continue
        assert one.dtype == other.dtype
        if jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("name", SOURCES)
def test_networks_come_back_bit_for_bit(name: str) -> None:
    networks = [SOURCES[name](seed) for seed in range(3)]
    tree = stack_weights(networks)
    leaves = jax.tree.leaves(tree)
    assert all(leaf.shape[0] == 3 and leaf.shape[-1] == 1 for leaf in leaves)
    for found, wanted in zip(unstack_weights(tree, like=networks), networks, strict=True):
        same(found, wanted)
    one = from_params(networks[1])
    same(to_params(one, like=networks[1]), networks[1])
    for leaf, stacked in zip(jax.tree.leaves(one), leaves, strict=True):
        assert np.array_equal(np.asarray(leaf), np.asarray(stacked[1]))


def test_paths_are_keys_names_and_places() -> None:
    tree = from_params(equinox_like(0))
    assert jax.tree.map(jnp.shape, tree) == {
        "layers": {0: {"weight": (3, 2, 1)}, 1: {"weight": (2, 5, 1)}},
        "scale": (1,),
    }
    state, module = from_params(nnx_state(0)), from_params(Model(0))
    assert set(state) == {"layers", "norm"}  # and no random keys
    assert state["layers"][1]["kernel"].shape == (6, 3, 1)
    assert jax.tree.structure(state) == jax.tree.structure(module)


def test_what_is_no_weight_comes_from_its_own_network() -> None:
    networks = [equinox_like(seed) for seed in range(2)]
    tree = stack_weights(networks)
    steps = [found["layers"][0].steps for found in unstack_weights(tree, like=networks)]
    assert [int(step) for step in steps] == [0, 1]
    steps = [found["layers"][0].steps for found in unstack_weights(tree, like=networks[1])]
    assert [int(step) for step in steps] == [1, 1]


def test_an_nnx_module_computes_with_what_comes_back() -> None:
    modules = [Model(seed) for seed in range(2)]
    for module in modules:
        module.eval()
    x = jnp.ones((5, 4))
    wanted = [module(x) for module in modules]
    tree = stack_weights([nnx.state(module) for module in modules])
    graph, rest = nnx.split(modules[0])
    for found, y in zip(unstack_weights(tree, like=rest), wanted, strict=True):
        assert jnp.array_equal(nnx.merge(graph, found)(x), y)


def test_networks_are_called_by_the_batch_under_jit_and_vmap() -> None:
    networks = [linen(seed) for seed in range(3)]
    module, x = nets.MLP(WIDTHS, "batch"), jnp.ones((5, 4))

    @jax.jit
    @jax.vmap
    def call(tree: Any) -> Any:
        return module.apply(to_params(tree, like=networks[0]), x)

    wanted = jnp.stack([module.apply(one, x) for one in networks])
    np.testing.assert_allclose(call(stack_weights(networks)), wanted, rtol=1e-5)


def test_stacking_traces_and_keeps_the_device() -> None:
    networks = [linen(seed) for seed in range(2)]
    wanted = stack_weights(networks)
    same(jax.jit(lambda *each: stack_weights(list(each)))(*networks), wanted)
    assert not jax.tree.leaves(wanted)[0].committed
    device = jax.devices()[0]
    tree = stack_weights(jax.device_put(networks, device))
    assert all(leaf.committed and leaf.device == device for leaf in jax.tree.leaves(tree))
    same(tree, wanted)


def test_a_spec_gives_the_tree_its_structure_and_a_layer_takes_it() -> None:
    network = specs.mlp(WIDTHS, norm="batch")
    tree = stack_weights([linen(seed) for seed in range(2)], network.spec)
    layer = sc.compile(
        network.spec, in_channels=1, out_channels=1, shapes=network.shapes, backend="jax"
    )
    y = jax.jit(layer.apply)(layer.init(jax.random.key(0)), tree)
    for found, like in zip(unstack_weights(y, like=linen(0)), range(2), strict=True):
        assert jax.tree.structure(found) == jax.tree.structure(linen(like))
    listed = {"layers": [{"weight": ("a", "b")}, {"weight": ("b", "c")}], "scale": ()}
    tree = from_params(equinox_like(0), listed)
    assert isinstance(tree["layers"], list)
    same(to_params(tree, like=equinox_like(0)), equinox_like(0))


def test_a_missing_or_surplus_array_is_named() -> None:
    spec = specs.mlp(WIDTHS, norm="batch").spec
    with pytest.raises(ShapeError, match=r"\['more'\], which in network 0 is missing; it has"):
        stack_weights([linen(0)], {**spec, "more": ()})
    with pytest.raises(
        ShapeError, match=r"network 0 has an array \['batch_stats'\]\['BatchNorm_0'\]\['mean'\] of"
    ):
        stack_weights([linen(0)], {"params": spec["params"]})
    aside = [("batch_stats", f"BatchNorm_{i}", part) for i in range(2) for part in ("mean", "var")]
    tree = stack_weights([linen(0)], {"params": spec["params"]}, aside=aside)
    assert set(tree) == {"params"}
    same(unstack_weights(tree, like=linen(0))[0], linen(0))
    with pytest.raises(ShapeError, match=r"aside: params has nothing at \(\); it has"):
        from_params(linen(0), aside=[()])
    with pytest.raises(ShapeError, match=r"\['steps'\], which in params is not a floating array"):
        from_params({"steps": jnp.asarray(3)}, {"steps": ()})
    with pytest.raises(ShapeError, match="one label has one size"):
        from_params({"w": jnp.ones((2, 3))}, {"w": (0, 0)})


def test_networks_that_differ_are_refused() -> None:
    one = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    with pytest.raises(ShapeError, match="sources is empty"):
        stack_weights([])
    with pytest.raises(ShapeError, match="sources is a dict; give a list"):
        stack_weights(one)
    with pytest.raises(ShapeError, match=r"network 0 has an array \['b'\], network 1 has none"):
        stack_weights([one, {"w": one["w"]}])
    with pytest.raises(ShapeError, match=r"network 1 has an array \['b'\], network 0 has none"):
        stack_weights([{"w": one["w"]}, one])
    with pytest.raises(ShapeError, match=r"\['w'\] is \(3, 2\) float32 in network 1, \(2, 3\)"):
        stack_weights([one, {**one, "w": one["w"].T}])
    with pytest.raises(ShapeError, match=r"\['b'\] is \(3,\) bfloat16 in network 1"):
        stack_weights([one, {**one, "b": one["b"].astype(jnp.bfloat16)}])


def test_numpy_of_64_bits_is_not_rounded_among_jax_arrays() -> None:
    wide = {"w": np.ones(3)}
    assert stack_weights([wide, wide])["w"].dtype == np.float64
    with jax.enable_x64(True):
        other = {"w": jnp.ones(3)}
    with pytest.raises(BackendError, match="JAX would turn float64 into float32"):
        stack_weights([other, wide])


def test_trees_that_do_not_fit_are_refused() -> None:
    one = {"w": jnp.ones((2, 3))}
    tree = stack_weights([one, one])
    with pytest.raises(ShapeError, match="like has 3 networks, the tree a batch of 2"):
        unstack_weights(tree, like=[one] * 3)
    with pytest.raises(ShapeError, match=r"has shape \(2, 2, 3, 1\), expected \(2, 3, 1\)"):
        to_params(tree, like=one)
    with pytest.raises(ShapeError, match=r"expected \(2, 2, 3, 1\): \(batch, \*axes, 1\)"):
        unstack_weights({"w": jnp.ones((2, 2, 3, 4))}, like=one)
    with pytest.raises(ShapeError, match=r"the tree has a leaf \['v'\], like= has none"):
        to_params({"v": jnp.ones(1)}, like=one)
    with pytest.raises(ShapeError, match="the tree is empty"):
        unstack_weights({}, like=one)


def test_an_attribute_called_value_is_a_name_like_any_other() -> None:
    """Only nnx's variables are nodes of one value that paths leave out."""
    holder = replace(equinox_like(0)["layers"][0], activation=None)
    same(to_params(from_params({"value": holder}), like={"value": holder}), {"value": holder})
    assert set(from_params({"value": holder})) == {"value"}


def test_equinox_modules() -> None:
    equinox = pytest.importorskip("equinox")
    models = [equinox.nn.MLP(4, 3, 5, depth=2, key=jax.random.key(seed)) for seed in range(2)]
    tree = stack_weights(models)
    assert tree["layers"][0]["weight"].shape == (2, 5, 4, 1)
    for found, wanted in zip(unstack_weights(tree, like=models), models, strict=True):
        same(found, wanted)
        assert jnp.array_equal(found(jnp.ones(4)), wanted(jnp.ones(4)))
