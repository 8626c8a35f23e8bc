"""Initialisation: stacked layers keep the scale; every backend draws from the same table.

The one thing to know: run `pytest tests/test_init.py -s` to see the figures that are measured.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import pytest

import symcompile as sc

LAYERS = 6
LOW, HIGH = 0.5, 2.0


def mlp(inputs, hidden, outputs):
    spec = {
        "params": {
            "Dense_0": {"kernel": (0, 1), "bias": (1,)},
            "Dense_1": {"kernel": (1, 2), "bias": (2,)},
        }
    }
    shapes = {
        "params": {
            "Dense_0": {"kernel": (inputs, hidden), "bias": (hidden,)},
            "Dense_1": {"kernel": (hidden, outputs), "bias": (outputs,)},
        }
    }
    return spec, shapes


def rnn(inputs, hidden, outputs):
    spec = {
        "cell": {"input": ("x", "h"), "hidden": ("h", "h"), "bias": ("h",)},
        "out": {"kernel": ("h", "y"), "bias": ("y",)},
    }
    shapes = {
        "cell": {"input": (inputs, hidden), "hidden": (hidden, hidden), "bias": (hidden,)},
        "out": {"kernel": (hidden, outputs), "bias": (outputs,)},
    }
    return spec, shapes


NETWORKS = {
    "mlp 78-51-10": mlp(78, 51, 10),
    "mlp 20-30-10": mlp(20, 30, 10),
    "rnn 28-32-10": rnn(28, 32, 10),
    "rnn 10-64-10": rnn(10, 64, 10),
    "graph of 40": ({"w": (0, 0)}, {"w": (40, 40)}),
    "graph of 8": ({"w": (0, 0)}, {"w": (8, 8)}),
    "one leaf": ((0, 0), (16, 16)),
    "third order": ({"w": (0, 0, 0)}, {"w": (7, 7, 7)}),
    "set": ({"x": (0,)}, {"x": (50,)}),
    "sets of one kind": (
        {"a": (0,), "b": (0,), "c": (0,), "d": (0, 0)},
        {"a": (30,), "b": (30,), "c": (30,), "d": (30, 30)},
    ),
    "unsorted": ({"w": ("b", "a", "b")}, {"w": (6, 9, 6)}),
    "fixed axes": (
        {"k": (None, None, "c"), "f": (("c", None), None)},
        {"k": (3, 3, 16), "f": (64, 5)},
    ),
}


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    return [tree]


def mapped(function, tree):
    if isinstance(tree, dict):
        return {key: mapped(function, child) for key, child in tree.items()}
    return function(tree)


def rms(array):
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


@cache
def layer(name, bound, into, out, reduce):
    spec, shapes = NETWORKS[name]
    options = {"shapes": shapes} if bound else {}
    if name == "fixed axes":
        options = {"shapes": shapes}
    return sc.compile(
        spec, in_channels=into, out_channels=out, backend="numpy", reduce=reduce, **options
    )


def stacked(name, seed, *, bound=True, width=16, reduce="mean", batch=8):
    """RMS of every output tensor and of the whole, after six layers on unit-variance inputs."""
    rng = np.random.default_rng(seed)
    _, shapes = NETWORKS[name]
    x = mapped(lambda shape: rng.standard_normal((batch, *shape, 1)), shapes)
    for depth in range(LAYERS):
        one = layer(name, bound, 1 if depth == 0 else width, width, reduce)
        x = one.apply(one.init(rng), x)
    out = leaves(x)
    return [rms(leaf) for leaf in out], rms(np.concatenate([leaf.ravel() for leaf in out]))


@pytest.mark.parametrize("bound", [True, False], ids=["bound", "unbound"])
@pytest.mark.parametrize("name", NETWORKS)
def test_six_layers_keep_the_scale_of_every_tensor_and_of_the_whole(name, bound):
    found = [stacked(name, seed, bound=bound) for seed in range(8)]
    tensors = [value for each, _ in found for value in each]
    whole = [value for _, value in found]
    print(
        f"\n{name}, sizes {'bound' if bound else 'unknown'}: tensors "
        f"[{min(tensors):.2f}, {max(tensors):.2f}], whole [{min(whole):.2f}, {max(whole):.2f}]"
    )
    assert min(tensors) >= LOW
    assert max(tensors) <= HIGH
    assert min(whole) >= LOW
    assert max(whole) <= HIGH


@pytest.mark.parametrize("width", [1, 2, 4, 32, 64])
@pytest.mark.parametrize("name", ["mlp 20-30-10", "rnn 10-64-10", "graph of 8"])
def test_any_width_keeps_the_scale_of_the_whole(name, width):
    whole = [stacked(name, seed, width=width, batch=2)[1] for seed in range(4)]
    print(f"\n{name}, {width} channels: whole [{min(whole):.2f}, {max(whole):.2f}]")
    assert min(whole) >= LOW
    assert max(whole) <= HIGH


@pytest.mark.parametrize("name", ["mlp 78-51-10", "rnn 28-32-10", "graph of 40", "third order"])
def test_sums_keep_the_scale_when_sizes_are_known(name):
    for seed in range(4):
        tensors, whole = stacked(name, seed, reduce="sum")
        assert min(*tensors, whole) >= LOW
        assert max(*tensors, whole) <= HIGH


def test_the_network_of_the_readme_keeps_the_scale():
    """784-512-10 at full size, in torch for speed; six layers, the first from one channel."""
    torch = pytest.importorskip("torch")
    spec, shapes = mlp(784, 512, 10)
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    for options in ({"shapes": shapes}, {}):
        x = mapped(
            lambda shape: torch.from_numpy(generator.standard_normal((*shape, 1), np.float32)),
            shapes,
        )
        for depth in range(LAYERS):
            channels = {"in_channels": 1 if depth == 0 else 4, "out_channels": 4}
            with torch.no_grad():
                x = sc.compile(spec, **channels, **options)(x)
        found = [rms(leaf.numpy()) for leaf in leaves(x)]
        print(f"\n784-512-10: {[round(value, 2) for value in found]}")
        # The ten entries of the last bias come with their own luck; the others are many.
        assert min(found) >= LOW
        assert max(found) <= HIGH


def test_the_scale_would_be_lost_without_it():
    """The measurement itself: UNF's initialisation fails the bound that ours keeps."""
    spec, shapes = NETWORKS["mlp 78-51-10"]
    rng = np.random.default_rng(0)
    x = mapped(lambda shape: rng.standard_normal((8, *shape, 1)), shapes)
    for depth in range(LAYERS):
        one = sc.compile(
            spec, in_channels=1 if depth == 0 else 16, out_channels=16, backend="numpy", init="unf"
        )
        x = one.apply(one.init(rng), x)
    assert rms(np.concatenate([leaf.ravel() for leaf in leaves(x)])) < LOW


# -- what is drawn ----------------------------------------------------------------------------

BACKENDS = ["numpy", "torch", "jax"]


def drawer(spec, backend, **options):
    """A function from a seed to a layer's initial weights as NumPy arrays."""
    one = sc.compile(spec, backend=backend, **options)
    if backend == "numpy":
        return one.init
    if backend == "torch":
        import torch

        def draw(seed):
            torch.manual_seed(seed)
            one.reset_parameters()
            return {name: w.detach().numpy().copy() for name, w in one.state_dict().items()}

        return draw
    import jax

    init = jax.jit(one.init)  # compiled once instead of once for every operation of every shape
    return lambda seed: {name: np.asarray(w) for name, w in init(jax.random.key(seed)).items()}


def drawn(spec, backend, seed=0, **options):
    return drawer(spec, backend, **options)(seed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unf_draws_every_weight_at_one_over_the_root_of_channels_times_terms(backend):
    """N(0, 1/(c_in * terms)), terms being all maps into an output tensor."""
    weights = drawn({"w": (0, 0), "b": (0,)}, backend, in_channels=40, out_channels=60, init="unf")
    terms = {"b": 5 + 2, "w": 15 + 5}
    # The columns of b come first in every mix: one out half-diagram of each signature.
    for name in ("mix_scalar", "mix_0"):
        weight = weights[name]
        for columns, path in ((weight[:, :60], "b"), (weight[:, 60:], "w")):
            expected = (40 * terms[path]) ** -0.5
            # A sample deviation of n draws is within 4 / sqrt(2 n) of the true one.
            assert columns.std() == pytest.approx(expected, rel=4 / (2 * columns.size) ** 0.5)
            assert abs(columns.mean()) < 4 * expected / columns.size**0.5
    assert weights["mix_0_0"].std() == pytest.approx((40 * 20) ** -0.5, rel=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_every_backend_draws_at_the_deviations_of_the_schema(backend, reduce):
    options = {
        "in_channels": 40, "out_channels": 60, "sizes": {0: 9, 1: 5}, "reduce": reduce
    }  # fmt: skip
    spec = {"w": (0, 1), "b": (1,), "v": (0, 0)}
    scales = sc.compile(spec, backend="numpy", **options).compiled.scales
    weights = drawn(spec, backend, **options)
    for scale in scales:
        top = 0
        for rows, factor, is_direct in scale.rows:
            left = 0
            for cols, base, direct in scale.cols:
                block = weights[scale.weight][top : top + rows, left : left + cols]
                expected = direct if is_direct and direct else factor * base
                assert block.std() == pytest.approx(expected, rel=5 / (2 * block.size) ** 0.5)
                left += cols
            top += rows
    assert not weights["bias"].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("into", "out"), [(1, 16), (5, 12), (12, 5)])
def test_the_direct_block_is_orthogonal_on_its_shorter_side(backend, into, out):
    block = drawn({"x": (0,)}, backend, in_channels=into, out_channels=out)["mix_0"]
    gram = block @ block.T if into <= out else block.T @ block
    scale = gram[0, 0]
    np.testing.assert_allclose(gram / scale, np.eye(len(gram)), atol=1e-5)
    # Unit-variance inputs come out with variance one, but for the little the mean adds.
    assert (block**2).sum() / out == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_orthogonal_block_is_uniform_and_has_no_preferred_sign(backend):
    draw = drawer({"x": (0,)}, backend, in_channels=3, out_channels=3)
    diagonals = [np.diagonal(draw(seed)["mix_0"]) for seed in range(60)]
    # QR without the signs of its diagonal would lean to one side.
    assert abs(np.mean(diagonals)) < 4 * np.std(diagonals) / np.sqrt(len(diagonals) * 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_differ_by_seed_and_agree_on_one(backend):
    draw = drawer({"x": (0,)}, backend, in_channels=2, out_channels=3)
    one, same, other = draw(0), draw(0), draw(1)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["mix_0"], other["mix_0"])
    assert not np.array_equal(one["mix_scalar"], other["mix_scalar"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
def test_every_dtype_is_drawn_at_the_same_scale(backend, dtype):
    weights = drawn({"x": (0,)}, backend, dtype=dtype, in_channels=8, out_channels=64)
    block = weights["mix_0"]
    assert block.dtype == dtype
    assert (np.abs(block.astype(np.complex128)) ** 2).sum() / 64 == pytest.approx(1.0, abs=2e-3)
    rest = np.abs(weights["mix_scalar"].astype(np.complex128))
    assert rest.any()
    assert (weights["bias"] == 0).all()


def test_bfloat16_layers_are_drawn_in_float32_and_rounded():
    import jax
    import torch

    module = sc.compile({"x": (0,)}, in_channels=8, out_channels=64, dtype="bfloat16")
    assert module.mix_0.dtype is torch.bfloat16
    torch_block = module.mix_0.detach().float().numpy()
    params = sc.compile(
        {"x": (0,)}, in_channels=8, out_channels=64, dtype="bfloat16", backend="jax"
    ).init(jax.random.key(0))
    assert params["mix_0"].dtype == "bfloat16"
    for block in (torch_block, np.asarray(params["mix_0"], np.float32)):
        assert (block**2).sum() / 64 == pytest.approx(1.0, abs=1e-2)


def test_a_torch_layer_is_built_on_the_meta_device():
    import torch

    with torch.device("meta"):
        module = sc.compile({"w": (0, 0)}, in_channels=2, out_channels=3)
    assert module.mix_0_0.is_meta
    filled = module.to_empty(device="cpu")
    filled.reset_parameters()
    assert filled.mix_0_0.isfinite().all()


def test_jax_initialises_under_jit_and_vmap():
    import jax

    one = sc.compile(
        {"x": (0,), "y": (0, 0), "z": (0, 1)}, in_channels=2, out_channels=3, backend="jax"
    )
    keys = jax.random.split(jax.random.key(3), 4)
    plain, many = one.init(keys[1]), jax.jit(jax.vmap(one.init))(keys)
    for name in plain:
        assert many[name].shape == (4, *plain[name].shape)
        np.testing.assert_allclose(many[name][1], plain[name], rtol=1e-5, atol=1e-6)


def test_jax_compiles_one_draw_whatever_the_number_of_weights(caplog):
    import jax

    key = jax.random.key(0)
    spec = {"x": (0,), "y": (0, 0), "z": (0, 1), "k": (1, 2)}
    one = sc.compile(spec, in_channels=2, out_channels=3, backend="jax")
    with jax.log_compiles(), caplog.at_level("WARNING"):
        assert len(one.init(key)) > 6
    compiled = [text for text in caplog.messages if text.startswith("Finished XLA compilation")]
    assert len(compiled) == 1, compiled


def test_jax_draws_where_the_key_is():
    script = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=3"
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import symcompile as sc

layer = sc.compile({"k": (0, 1), "b": (1,)}, in_channels=2, out_channels=2, backend="jax")
key, devices = jax.random.key(0), jax.devices()
everywhere = NamedSharding(Mesh(np.array(devices), ("x",)), PartitionSpec())
plain = layer.init(key)
for place in (devices[1], everywhere):
    params = layer.init(jax.device_put(key, place))
    wanted = {place} if place is devices[1] else {*devices}
    for name, weight in params.items():
        assert weight.devices() == wanted, (name, weight.devices())
        assert weight.committed and not plain[name].committed, name
        np.testing.assert_allclose(weight, plain[name], rtol=1e-5, atol=1e-6)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
