"""The torch layer library: what is equivariant, what is invariant, and what is computed.

In: specs with repeated labels, composite and fixed axes, and tensors without axes. The one thing to
know: symmetry is tested by `check_equivariance`, which knows group actions and none of the layers;
values are tested against NumPy, loops or the published formula.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import symcompile as sc
from symcompile.spec import flatten_like, parse_spec
from symcompile_torch import nn as layers
from symcompile_torch.nn import encodings, pooling
from tests.backend_cases import CUBE, SIZES, SPEC, inputs

MLP = {
    "w0": (sc.Fixed(3), "h0"),
    "b0": ("h0",),
    "w1": ("h0", "h1"),
    "b1": ("h1",),
    "w2": ("h1", sc.Fixed(2)),
    "b2": (sc.Fixed(2),),
}
SPECS = {
    "mlp": MLP,
    "graph": {"w": (0, 0)},
    "cube": CUBE,
    "mixed": SPEC,
    "powers": {"w": (("a", "a"), "a"), "s": ()},
    "scalars": {"a": (), "b": [(), (sc.Fixed(2),)]},
}
SIZE = {"h0": 4, "h1": 3, **SIZES}

Make = Callable[[Any], nn.Module]

EQUIVARIANT: dict[str, Make] = {
    "EquivariantLinear": lambda spec: layers.EquivariantLinear(
        spec, in_channels=4, out_channels=3, init="unf"
    ),
    "Activation": lambda spec: layers.Activation(nn.functional.gelu),
    "ChannelLinear": lambda spec: layers.ChannelLinear(spec, 4, 3),
    "ChannelDropout": lambda spec: layers.ChannelDropout(0.5, spec),
    "ChannelNorm": lambda spec: layers.ChannelNorm(spec, 4),
    "TensorNorm": lambda spec: layers.TensorNorm(spec, 4),
    "LearnedScale": lambda spec: layers.LearnedScale(spec, 4),
    "LearnedPosEmbedding": lambda spec: layers.LearnedPosEmbedding(spec, 4),
    "SinusoidalEncoding": lambda spec: layers.SinusoidalEncoding(spec, num_bands=3),
    "GaussianFourierFeatures": lambda spec: layers.GaussianFourierFeatures(4, 6, scale=0.1),
    "EquivariantAttention": lambda spec: layers.EquivariantAttention(spec, 4, heads=2),
    "Residual": lambda spec: layers.Residual(
        layers.ChannelNorm(spec, 4), layers.EquivariantAttention(spec, 4)
    ),
    "trunk": lambda spec: layers.trunk(
        spec, [4, 6, 6], norm=layers.TensorNorm, dropout=0.2, residual=True
    ),
}
INVARIANT: dict[str, Make] = {
    "InvariantPool": lambda spec: layers.InvariantPool(spec, ("mean", "sum", "max", "var", 0, 0.3)),
    "StatFeaturizer": lambda spec: layers.StatFeaturizer(spec),
    "InvariantHead": lambda spec: layers.InvariantHead(
        spec, 4, (8, 8), 3, stats=("mean", "max", 0.5)
    ),
}
EVERY = EQUIVARIANT | INVARIANT


def made(name: str, spec: Any, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A layer whose weights are all random, none at zero or one."""
    torch.manual_seed(0)
    module = EVERY[name](spec).to(dtype)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
    return module.eval()


def tensors(spec: Any = SPEC, channels: int = 4, *, dtype: Any = torch.float64, **kind: Any) -> Any:
    tree = inputs(spec, channels, sizes={**SIZE, **kind.pop("sizes", {})}, **kind)
    return pytree.tree_map(lambda array: torch.from_numpy(array).to(dtype), tree)


def on_arrays(module: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A module as a function of NumPy trees, as `check_equivariance` calls it."""

    def call(x: Any) -> Any:
        torch.manual_seed(0)  # of dropout
        y = module(pytree.tree_map(torch.from_numpy, x))
        return pytree.tree_map(lambda leaf: leaf.detach().numpy(), y)

    return call


def check(module: Callable[[Any], Any], spec: Any, *, invariant: bool = False) -> None:
    sc.check_equivariance(
        function=on_arrays(module),
        spec=spec,
        out_spec=() if invariant else None,
        in_channels=4,
        tolerance=1e-11,
    )


def close(found: Any, expected: Any, **tolerance: Any) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


# -- symmetry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", EVERY)
def test_commutes_with_permutations(name: str, spec: Any) -> None:
    module = made(name, spec)
    if any(isinstance(part, layers.ChannelDropout) for part in module.modules()):
        module.train()
    check(module, spec, invariant=name in INVARIANT)


def everything_fixed(leaf: Any) -> tuple[int, ...]:
    return tuple(range(-len(leaf.atoms) - 1, -1))


def faulty_norm(x: Any) -> Any:
    return {"w": x["w"] - x["w"][..., :1, :]}


def faulty_attention(module: nn.Module) -> nn.Module:
    """Values are weighted by their place along the label."""
    attend = module._attend

    def weighted(tokens: Any, offsets: torch.Tensor) -> Any:
        place = torch.arange(1.0, 1.0 + tokens[0].shape[-2])[:, None]
        return attend([token * place for token in tokens], offsets)

    module._attend = weighted  # type: ignore[assignment]
    return module


FAULTS: dict[str, Callable[[Any], Any]] = {
    "an activation over an axis": layers.Activation(lambda x: x.cumsum(-2)),
    "dropout entry by entry": layers.Activation(nn.functional.dropout),
    "a norm by one index": faulty_norm,
    "a linear map by index": lambda x: {"w": x["w"] * torch.arange(x["w"].shape[-2])[:, None]},
    "attention by place": faulty_attention(
        layers.EquivariantAttention({"w": ("a", "b")}, 4).double()
    ),
    "a residual of the transpose": lambda x: {"w": x["w"] + x["w"].flip(-2)},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(fault: Callable[[Any], Any]) -> None:
    with pytest.raises(sc.CheckError, match="not equivariant"):
        check(fault, {"w": ("a", "b")})


def test_a_position_on_a_permuted_axis_is_found(monkeypatch: Any) -> None:
    module = layers.SinusoidalEncoding({"w": ("a", sc.Fixed(2)), "v": (sc.Fixed(2),) * 2})
    check(module, module.reader.spec)
    monkeypatch.setattr(encodings, "fixed_axes", everything_fixed)
    with pytest.raises(sc.CheckError, match="not equivariant"):
        check(module, module.reader.spec)


def test_a_pool_that_keeps_a_permuted_axis_is_found(monkeypatch: Any) -> None:
    module = layers.InvariantPool({"w": (sc.Fixed(2), "a")})
    check(module, module.reader.spec, invariant=True)
    monkeypatch.setattr(pooling, "permuted_axes", pooling.fixed_axes)
    monkeypatch.setattr(pooling, "fixed_axes", lambda leaf: (-2,))
    with pytest.raises(sc.CheckError):
        check(module, module.reader.spec, invariant=True)


# -- ordinary modules --------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_batch_axes_are_examples(name: str) -> None:
    module = made(name, SPEC)
    x = tensors(batch=(2, 3))
    y = module(x)
    close(torch.func.vmap(torch.func.vmap(module))(x), y)
    one = module(pytree.tree_map(lambda leaf: leaf[1, 2], x))
    close(one, pytree.tree_map(lambda leaf: leaf[1, 2], y))


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_batch(name: str) -> None:
    y = made(name, SPEC)(tensors(batch=(0,)))
    assert all(leaf.shape[0] == 0 for leaf in pytree.tree_leaves(y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", EVERY)
def test_dtypes_of_inputs_are_kept(name: str, dtype: torch.dtype) -> None:
    module = made(name, SPEC)
    expected = module(tensors())
    for weights in (torch.float32, dtype):
        y = module.to(weights)(tensors(dtype=dtype))
        assert {leaf.dtype for leaf in pytree.tree_leaves(y)} == {dtype}
        # Quantiles and angles of inputs that were rounded are off by more than one rounding.
        rough = 1e-4 if dtype is torch.float32 else 0.15
        for found, wanted in zip(pytree.tree_leaves(y), pytree.tree_leaves(expected), strict=True):
            assert (found - wanted).abs().max() <= rough * wanted.abs().max()


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_inputs_and_all_weights(name: str) -> None:
    module = made(name, SPEC)
    x = pytree.tree_map(lambda leaf: leaf.requires_grad_(), tensors())
    sum((leaf**3).sum() for leaf in pytree.tree_leaves(module(x))).backward()
    for tensor in [*pytree.tree_leaves(x), *module.parameters()]:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("name", EVERY)
def test_inputs_stay_and_containers_do_not_matter(name: str) -> None:
    module = made(name, SPEC)
    x = tensors()
    before = copy.deepcopy(x)
    y = module(x)
    close(x, before)
    other = OrderedDict(reversed(list(x.items())))
    other["deep"] = tuple(x["deep"])
    again = module(other)
    if name in EQUIVARIANT:
        again = {key: again[key] for key in y}
    close(again, y)


@pytest.mark.parametrize("name", EVERY)
def test_copies_compute_the_same(name: str) -> None:
    module = made(name, SPEC)
    if name == "Activation":
        module = layers.Activation(torch.tanh)
    expected = module(tensors())
    close(copy.deepcopy(module)(tensors()), expected)
    close(pickle.loads(pickle.dumps(module))(tensors()), expected)
    state = io.BytesIO()
    torch.save(module.state_dict(), state)
    fresh = EVERY[name](SPEC).double().eval()
    fresh.load_state_dict(torch.load(io.BytesIO(state.getvalue())))
    if name != "Activation":
        close(fresh(tensors()), expected)
    repr(module)


KNOW_NO_SPEC = {"Activation", "GaussianFourierFeatures"}

CHANGES: dict[str, Callable[[Any], Any]] = {
    "an axis": lambda x: {**x, "w": x["w"][:, :, :2]},
    "a batch": lambda x: {**x, "w": x["w"][:1]},
    "a missing leaf": lambda x: {key: x[key] for key in ("w", "deep")},
    "an extra leaf": lambda x: {**x, "more": x["w"]},
    "no tensor": lambda x: {**x, "w": 1.0},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", sorted(EVERY.keys() - KNOW_NO_SPEC))
def test_trees_that_do_not_fit_are_refused(name: str, change: Callable[[Any], Any]) -> None:
    with pytest.raises((sc.ShapeError, ValueError), match=r"w'|more|heads"):
        made(name, SPEC)(change(tensors()))


@pytest.mark.parametrize(
    "name",
    ["EquivariantLinear", "ChannelLinear", "ChannelNorm", "TensorNorm", "LearnedScale",
     "LearnedPosEmbedding", "GaussianFourierFeatures", "EquivariantAttention", "InvariantHead"],
)  # fmt: skip
def test_other_channels_are_refused(name: str) -> None:
    x = tensors()
    with pytest.raises(sc.ShapeError, match=r"x\['w'\] has shape \(.*1\), expected .*4"):
        made(name, SPEC)({**x, "w": x["w"][..., :1]})  # 1 would broadcast


@pytest.mark.parametrize("name", ["Activation", "ChannelNorm", "GaussianFourierFeatures"])
def test_what_is_no_tensor_is_named_with_its_place(name: str) -> None:
    with pytest.raises(
        sc.ShapeError, match=r"x\['w'\]: found a NoneType object, expected a Tensor"
    ):
        made(name, SPEC)({**tensors(), "w": None})


# -- transforms --------------------------------------------------------------------------------


@pytest.fixture
def _quiet_trace() -> Iterator[None]:
    """torch logs every step for its own tools; pytest would keep it all, at ten times the cost."""
    logger = logging.getLogger("torch.__trace")
    before, logger.propagate = logger.propagate, False
    yield
    logger.propagate = before


SMALL = {"w": ("a", ("a", sc.Fixed(2))), "s": ()}
"""Tracing time grows with the number of tensors; this has all kinds of axes."""


def network(spec: Any = SMALL) -> nn.Module:
    """One of every layer."""
    torch.manual_seed(0)
    encoding = layers.SinusoidalEncoding(spec, num_bands=2)
    return layers.Sequential(
        encoding,
        layers.ChannelLinear(spec, encoding.out_channels(4), 6),
        layers.GaussianFourierFeatures(6, 8, scale=0.1),
        layers.LearnedPosEmbedding(spec, 8),
        layers.Residual(layers.ChannelNorm(spec, 8), layers.EquivariantAttention(spec, 8, heads=2)),
        layers.trunk(spec, [8, 8, 8], norm=layers.TensorNorm, residual=True, dropout=0.1),
        layers.LearnedScale(spec, 8),
        layers.InvariantHead(spec, 8, 16, 2, stats=("mean", "sum", "max", "var", 0.25)),
    ).double()


@pytest.mark.usefixtures("_quiet_trace")
def test_compiles_as_one_graph() -> None:
    for module in (network().eval(), layers.StatFeaturizer(SMALL)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)
        for batch, size in (((2,), 3), ((5,), 4)):
            x = tensors(SMALL, batch=batch, sizes={"a": size})
            close(compiled(x), module(x))


@pytest.mark.usefixtures("_quiet_trace")
def test_exports_with_any_number_of_examples() -> None:
    module = network().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    x = tensors(SMALL, batch=(3,))
    shapes = (pytree.tree_map(lambda _: {0: batch}, x),)
    program = torch.export.export(module, (x,), dynamic_shapes=shapes)
    for count in (3, 7):
        x = tensors(SMALL, batch=(count,))
        close(program.module()(x), module(x))


def test_an_ensemble_under_vmap() -> None:
    models = [network().eval() for _ in range(3)]
    state = torch.func.stack_module_state(models)
    x = tensors(SMALL)
    call = torch.func.vmap(
        lambda *state: torch.func.functional_call(models[0], state, (x,)), in_dims=0
    )
    close(call(*state), torch.stack([model(x) for model in models]))


# torch's own, at the first derivative in forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_second_derivatives_and_forward_mode() -> None:
    module = network().eval()
    x = tensors(SMALL, batch=())
    leaves, structure = pytree.tree_flatten(x)
    values = [leaf.requires_grad_() for leaf in leaves]

    def call(*given: torch.Tensor) -> torch.Tensor:
        return module(pytree.tree_unflatten(given, structure))

    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(call, values, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, values, fast_mode=True)
    backward, forward = (
        way(call, argnums=(0, 1))(*values) for way in (torch.func.jacrev, torch.func.jacfwd)
    )
    close(forward, backward)


def test_autocast_computes_products_in_its_dtype() -> None:
    module = network().eval()
    x = tensors(SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        y = module.float()(pytree.tree_map(lambda leaf: leaf.float(), x))
    expected = module.double()(x)
    assert (y - expected).abs().max() < 0.1 * expected.abs().max()


INITIAL: dict[str, tuple[Callable[[], nn.Module], dict[str, float]]] = {
    "ChannelLinear": (
        lambda: layers.ChannelLinear((0,), 100, 200),
        {"weight.0": 0.1, "bias.0": 0},
    ),
    "LearnedPosEmbedding": (
        lambda: layers.LearnedPosEmbedding((sc.Fixed(50), 0), 100),
        {"weight.0": 0.02},
    ),
    "EquivariantAttention": (
        lambda: layers.EquivariantAttention((), 64),
        {"qkv": 0.125, "bias": 0, "role": 0},
    ),
    "InvariantHead": (
        lambda: layers.InvariantHead((0,), 100, 64, 100),
        {"weight.0": 0.1, "bias.0": 0, "weight.1": 0.125, "bias.1": 0},
    ),
}


@pytest.mark.parametrize(("make", "deviations"), INITIAL.values(), ids=INITIAL)
def test_weights_start_as_documented(
    make: Callable[[], nn.Module], deviations: dict[str, float]
) -> None:
    torch.manual_seed(0)
    for name, weight in make().state_dict().items():
        assert weight.square().mean().sqrt() == pytest.approx(deviations[name], rel=0.05)


@pytest.mark.parametrize("name", EVERY)
def test_weights_that_are_reset_start_as_those_of_a_new_module(name: str) -> None:
    torch.manual_seed(0)
    expected = EVERY[name](SPEC).state_dict()
    with torch.device("meta"):
        module = EVERY[name](SPEC)
    module.to_empty(device="cpu")
    for value in module.state_dict().values():
        value.fill_(torch.nan)
    torch.manual_seed(0)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    torch.testing.assert_close(module.state_dict(), expected, rtol=0, atol=0)


def test_half_types_are_drawn_in_float32_and_rounded() -> None:
    half = layers.ChannelLinear(SPEC, 5, 30).half()
    torch.manual_seed(0)
    half.reset_parameters()
    torch.manual_seed(0)
    rounded = layers.ChannelLinear(SPEC, 5, 30).half()
    torch.testing.assert_close(half.state_dict(), rounded.state_dict(), rtol=0, atol=0)


# -- linear and pointwise ----------------------------------------------------------------------


def test_the_compiled_layer_itself() -> None:
    layer = layers.EquivariantLinear(MLP, {"y": ()}, in_channels=2, out_channels=5, bias=False)
    same = sc.compile(MLP, {"y": ()}, in_channels=2, out_channels=5, bias=False)
    assert type(layer) is type(same)
    with pytest.raises(sc.OptionError, match="leave it out"):
        layers.EquivariantLinear(MLP, in_channels=2, out_channels=5, backend="jax")


def test_channel_linear_of_different_widths() -> None:
    ins, outs = {"b": 2, "a": [3]}, {"b": 5, "a": [1]}
    module = layers.ChannelLinear({"b": (0, 1), "a": [(1,)]}, ins, outs)
    assert {name: tuple(weight.shape) for name, weight in module.named_parameters()} == {
        "weight.0": (3, 1),
        "weight.1": (2, 5),
        "bias.0": (1,),
        "bias.1": (5,),
    }
    x = {"b": torch.randn(7, 4, 3, 2), "a": [torch.randn(7, 3, 3)]}
    close(module(x)["b"], x["b"] @ module.weight[1] + module.bias[1])
    assert len(layers.ChannelLinear((0,), 2, 3, bias=False).state_dict()) == 1
    with pytest.raises(sc.ShapeError, match=r"x\['b'\] has shape .*, expected 2 channels"):
        module({**x, "b": torch.randn(7, 4, 3, 3)})


def test_integers_are_read_in_the_dtype_of_the_weights() -> None:
    x = torch.arange(6).reshape(3, 2)
    for module in (layers.ChannelLinear((0,), 2, 2), layers.LearnedScale((0,), 2, 0.5)):
        close(module(x), module(x.float()))
    for plain in (layers.StatFeaturizer((0,)), layers.InvariantPool((0,), ("mean", "var", 0.5))):
        close(plain(x), plain(x.float()))


def test_nothing_has_a_sum_and_no_other_statistic() -> None:
    empty = torch.zeros(2, 0, 1)
    found = layers.InvariantPool(("a",), ("sum", "mean", "max", "var", 0.5))(empty)
    assert found.isnan().tolist() == [[False, True, True, True, True]] * 2
    assert layers.StatFeaturizer(("a",))(empty).isnan().all()


def test_complex_numbers_have_no_order() -> None:
    x = {"w": torch.ones(3, 1, dtype=torch.complex64)}
    for module in (
        layers.StatFeaturizer({"w": ("a",)}),
        layers.InvariantPool({"w": ("a",)}, ("mean", "max")),
    ):
        with pytest.raises(sc.ShapeError, match=r"x\['w'\] is complex"):
            module(x)
    layers.InvariantPool({"w": ("a",)}, ("mean", "sum", "var"))(x)


def test_positions_are_never_added_to_the_input_itself() -> None:
    embed = layers.LearnedPosEmbedding({"w": (sc.Fixed(3), "h"), "b": ("h",)}, 1)
    x = {"w": torch.ones(3, 4, 1), "b": torch.ones(4, 1)}
    with torch.no_grad():
        for leaf in embed(x).values():
            leaf.zero_()
    assert all((leaf == 1).all() for leaf in x.values())


def test_scales_start_where_asked() -> None:
    module = layers.LearnedScale(MLP, 4, init=0.25)
    x = tensors(MLP)
    close(module(x), pytree.tree_map(lambda leaf: leaf / 4, x))


def test_dropout_drops_channels_of_examples() -> None:
    torch.manual_seed(0)
    x = {"w": torch.ones(50, 3, 4, 40), "b": torch.ones(50, 4, 40)}
    y = layers.ChannelDropout(0.25, {"w": (0, 1), "b": (1,)})(x)
    for leaf in y.values():
        kept = leaf.reshape(50, -1, 40)
        assert (kept == kept[:, :1]).all()
        assert not (kept == kept[:1]).all()  # examples differ
        assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
        assert kept.mean() == pytest.approx(1, abs=0.1)
    assert not (y["w"][:, 0, 0] == y["b"][:, 0]).all()  # and so do tensors
    without = layers.ChannelDropout(0.25)(x)["w"]
    assert (without == without[:1, :1, :1]).all()


def test_dropout_is_nothing_in_evaluation() -> None:
    x = tensors()
    for module in (layers.ChannelDropout(0.5, SPEC), layers.ChannelDropout(0.5)):
        close(module.eval()(x), x)
    close(layers.ChannelDropout(0.0, SPEC)(x), x)
    for rate in (1, -0.1, True, "0.5"):
        with pytest.raises(sc.OptionError, match=r"expected a number in \[0, 1\)"):
            layers.ChannelDropout(rate)


# -- norms -------------------------------------------------------------------------------------


def test_channel_norm_is_layer_norm() -> None:
    module = made("ChannelNorm", MLP)
    x = tensors(MLP)
    oracle = nn.LayerNorm(4, dtype=torch.float64)
    oracle.load_state_dict({"weight": module.scale[3], "bias": module.shift[3]})
    close(module(x)["w0"], oracle(x["w0"]))


def test_tensor_norm_has_mean_zero_and_variance_one() -> None:
    x = tensors(MLP, batch=(5,))
    y = layers.TensorNorm(MLP, 4, eps=0.0).double()(x)
    for leaf in y.values():
        flat = leaf.reshape(5, -1, 4)
        close(flat.mean(1), torch.zeros(5, 4, dtype=torch.float64))
        close(flat.var(1, correction=0), torch.ones(5, 4, dtype=torch.float64))


def test_variances_of_complex_numbers_are_real() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3)) + 1j * rng.standard_normal((2, 5, 3))
    leaf = torch.from_numpy(x)
    for kind, axis in ((layers.ChannelNorm, 2), (layers.TensorNorm, 1)):
        centred = x - x.mean(axis, keepdims=True)
        expected = centred / np.sqrt(x.var(axis, keepdims=True) + 1e-5)
        close(kind(("a",), 3).double()(leaf), torch.from_numpy(expected))
    expected = np.concatenate([x.mean(1), x.var(1)], -1)
    close(layers.InvariantPool(("a",), ("mean", "var"))(leaf), torch.from_numpy(expected))


@pytest.mark.parametrize("kind", [layers.ChannelNorm, layers.TensorNorm])
def test_norms_of_one_entry_and_one_channel(kind: Any) -> None:
    spec = {"w": ("a", "b"), "s": ()}
    x = tensors(spec, 1, sizes={"a": 1, "b": 1}, dtype=torch.float32)
    x = pytree.tree_map(lambda leaf: leaf.requires_grad_(), x)
    y = kind(spec, 1)(x)
    sum(leaf.sum() for leaf in y.values()).backward()
    for key, leaf in x.items():
        assert torch.isfinite(leaf.grad).all()
        close(y[key], leaf if kind is layers.TensorNorm else torch.zeros_like(leaf))


@pytest.mark.parametrize("kind", [layers.ChannelNorm, layers.TensorNorm])
def test_norms_of_constant_tensors_are_finite(kind: Any) -> None:
    x = torch.full((3, 4, 2), 1000.0, requires_grad=True)
    y = kind((0, 1), 2)(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_norms_of_half_types_are_taken_in_float32() -> None:
    x = 300 + torch.randn(2, 500, 1).double()
    y = layers.TensorNorm((0,), 1)(x.to(torch.bfloat16))
    expected = layers.TensorNorm((0,), 1)(x.to(torch.bfloat16).double())
    assert (y - expected).abs().max() < 0.02


# -- pooling -----------------------------------------------------------------------------------

ORACLE: dict[Any, Callable[[Any], Any]] = {
    "mean": lambda x: x.mean(1),
    "sum": lambda x: x.sum(1),
    "max": lambda x: x.max(1),
    "var": lambda x: x.var(1),
    0.0: lambda x: np.quantile(x, 0.0, axis=1),
    0.37: lambda x: np.quantile(x, 0.37, axis=1),
    1.0: lambda x: np.quantile(x, 1.0, axis=1),
}


@pytest.mark.parametrize("sizes", [{}, dict.fromkeys(SIZE, 1)])
def test_pools_equal_numpy(sizes: Any) -> None:
    spec = {"w": (("a", sc.Fixed(2)), "b"), "f": (sc.Fixed(3),), "s": ()}
    pool = layers.InvariantPool(spec, tuple(ORACLE))
    x = tensors(spec, batch=(5,), sizes=sizes)
    a = sizes.get("a", 3)
    columns = {  # (batch, permuted, fixed x channels), in canonical order
        "f": x["f"].reshape(5, 1, 12),
        "s": x["s"].reshape(5, 1, 4),
        "w": x["w"].reshape(5, a, 2, -1, 4).transpose(2, 3).reshape(5, -1, 8),
    }
    expected = [one(leaf.numpy()) for leaf in columns.values() for one in ORACLE.values()]
    close(pool(x), torch.from_numpy(np.concatenate(expected, axis=-1)))
    assert pool.out_features(4) == pool(x).shape[-1]


def test_statistics_equal_numpy() -> None:
    module = layers.StatFeaturizer(SPEC)
    x = tensors(batch=(5,))
    features = []
    for leaf in flatten_like(parse_spec(SPEC), x):
        flat = leaf.numpy().reshape(5, -1, 4)
        features += [flat.mean(1), flat.var(1)]
        features += [np.quantile(flat, q, axis=1) for q in (0, 0.25, 0.5, 0.75, 1)]
    close(module(x), torch.from_numpy(np.concatenate(features, axis=-1)))
    assert module.out_features(4) == module(x).shape[-1]
    assert module.out_features({"w": 1, "deep": [{"v": 2}, {"s": 3}], "heads": 4}) == 70


def test_quantiles_of_tensors_too_large_for_torch_quantile() -> None:
    x = torch.arange(2**24 + 1, dtype=torch.float32)[:, None].flip(0)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.5)
    pool = layers.InvariantPool((0,), (0.25, 0.5, 1))
    assert pool(x).tolist() == [2.0**22, 2.0**23, 2.0**24]


def test_quantiles_of_half_types_are_rounded_once() -> None:
    x = torch.randn(50, 8).to(torch.bfloat16)
    qs = (0.1, 0.37, 0.5, 0.93)
    expected = torch.quantile(x.double(), torch.tensor(qs).double(), dim=0).flatten()
    assert torch.equal(layers.InvariantPool((0,), qs)(x), expected.to(torch.bfloat16))


def test_quantiles_of_what_is_no_number() -> None:
    pool = layers.InvariantPool((0,), (0.0, 0.5, 0.75))
    assert pool(torch.tensor([[1.0], [float("nan")], [2.0]])).isnan().all()
    assert pool(torch.tensor([[-torch.inf], [0.0], [torch.inf]])).tolist() == [
        -torch.inf,
        0.0,
        torch.inf,
    ]


def test_a_pool_of_nothing_known_is_refused() -> None:
    for stats in ((), "mean", ("median",), (1.5,), (True,), None, (-0.1,)):
        with pytest.raises(sc.OptionError, match="expected"):
            layers.InvariantPool((0,), stats)
    pool = layers.InvariantPool({"w": (None, 0)})
    assert pool({"w": torch.ones(3, 2, 1)}).shape == (3,)
    with pytest.raises(sc.ShapeError, match=r"spec\['w'\].*no size; give shapes="):
        pool.out_features(1)
    assert layers.InvariantPool({"w": (None, 0)}, shapes={"w": (3, 2)}).out_features(1) == 3


# -- encodings ---------------------------------------------------------------------------------


def test_positions_along_every_fixed_axis() -> None:
    spec = {"w": ((sc.Fixed(2), "h"), None), "b": (None,)}
    module = layers.LearnedPosEmbedding(spec, 4, shapes={"w": (6, 5), "b": (5,)}).double()
    x = tensors({"w": (("h", sc.Fixed(2)), sc.Fixed(5)), "b": (sc.Fixed(5),)}, sizes={"h": 3})
    b, outer, last = module.weight
    y = module(x)
    close(y["b"], x["b"] + b)
    split = x["w"].reshape(2, 2, 3, 5, 4) + outer[:, None, None] + last
    close(y["w"], split.reshape(2, 6, 5, 4))
    with pytest.raises(sc.ShapeError, match="no size"):
        layers.LearnedPosEmbedding({"b": (None,)}, 4)


def test_sinusoidal_codes_by_the_formula() -> None:
    spec = {"w": (sc.Fixed(3), "h"), "v": ("h", ("h", sc.Fixed(2)), sc.Fixed(4)), "s": ()}
    module = layers.SinusoidalEncoding(spec, num_bands=2, max_period=100.0)
    x = tensors(spec, sizes={"h": 5})
    y = module(x)

    def code(t: int) -> list[float]:
        angles = np.array([t, t / 10.0])
        return [*np.sin(angles), *np.cos(angles)]

    zeros = [0.0] * 4
    assert module.out_channels(4) == 16
    for key, place, expected in [
        ("s", (1,), [*code(0), *zeros, *zeros]),
        ("v", (1, 4, 7, 3), [*code(1), *code(1), *code(3)]),  # 7 = 3 * 2 + 1
        ("w", (0, 2, 4), [*code(2), *code(2), *zeros]),
    ]:
        found = y[key][place]
        close(found[:4], x[key][place])
        torch.testing.assert_close(found[4:], torch.tensor(expected, dtype=torch.float64))


def test_codes_of_no_bands_are_refused() -> None:
    for options in ({"num_bands": 0}, {"max_period": 0.0}, {"max_period": "long"}):
        with pytest.raises(sc.OptionError, match="expected a positive"):
            layers.SinusoidalEncoding((0,), **options)


def test_fourier_features_by_the_formula() -> None:
    module = made("GaussianFourierFeatures", MLP)
    x = tensors(MLP)["w1"]
    angles = 2 * np.pi * x.numpy() @ module.frequencies.numpy()
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    close(module(x), torch.from_numpy(expected))
    assert list(module.state_dict()) == ["frequencies"]
    assert not list(module.parameters())
    torch.manual_seed(0)
    deviation = layers.GaussianFourierFeatures(100, 200, scale=3.0).frequencies.std()
    assert deviation == pytest.approx(3, rel=0.05)
    with pytest.raises(sc.OptionError, match="odd"):
        layers.GaussianFourierFeatures(1, 7)


# -- attention ---------------------------------------------------------------------------------


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention_by_loops(module: Any, x: dict[str, Any], atoms: dict[str, tuple[Any, ...]]) -> Any:
    """The definition, token by token, for one head and one example; `x` is split into atoms."""
    qkv, bias, role = (w.detach().numpy() for w in (module.qkv, module.bias, module.role))
    c = qkv.shape[0]
    y = {key: np.zeros(value.shape) for key, value in x.items()}
    row = 0
    places: dict[Any, list[Any]] = {"means": []}
    for key in sorted(x):
        for axis, label in enumerate(atoms[key]):
            if label is None:
                continue
            others = [range(n) for i, n in enumerate(x[key].shape[:-1]) if i != axis]
            for index in np.ndindex(*map(len, others)):
                place = (*index[:axis], slice(None), *index[axis:])
                places.setdefault(label, []).append((key, place, row))
            row += 1
        places["means"].append((key, ..., row))
        row += 1
    for label, tokens in places.items():
        q, k, v = [], [], []
        for key, place, number in tokens:
            entries = x[key][place] + role[number]
            if label == "means":
                entries = entries.reshape(-1, c).mean(0, keepdims=True)
            for kind, many in enumerate((q, k, v)):
                cut = slice(kind * c, (kind + 1) * c)
                many.append((entries @ qkv[:, cut] + bias[cut]).ravel())
        weights = softmax(np.array(q) @ np.array(k).T / len(q[0]) ** 0.5)
        for (key, place, _), received in zip(tokens, weights @ np.array(v), strict=True):
            y[key][place] += received.reshape(-1, c) if label != "means" else received
    return y


def test_attention_by_the_definition() -> None:
    spec = {"g": ("a", "a"), "h": (("a", sc.Fixed(2)), "b"), "s": (), "b": ("b",)}
    module = layers.EquivariantAttention(spec, 4).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
    x = tensors(spec, batch=())
    y = module(x)
    split = {key: value.numpy() for key, value in x.items()}
    split["h"] = split["h"].reshape(3, 2, 4, 4)
    atoms = {"g": ("a", "a"), "h": ("a", None, "b"), "s": (), "b": ("b",)}
    expected = attention_by_loops(module, split, atoms)
    for key in spec:
        close(y[key], torch.from_numpy(expected[key].reshape(x[key].shape)))


def test_attention_of_an_mlp_is_that_of_nft() -> None:
    """nfn, by the authors of NFT, keeps heads outside of queries, keys and values."""
    common = pytest.importorskip("nfn.common")
    nfn = pytest.importorskip("nfn.layers")
    sizes, heads, channels = (3, 5, 4, 2), 2, 6
    pairs = list(pairwise(sizes))
    shapes = (
        [common.ArraySpec((b, a)) for a, b in pairs],
        [common.ArraySpec((b,)) for _, b in pairs],
    )
    theirs = nfn.NPAttention(common.NetworkSpec(*shapes), channels, num_heads=heads).double()
    spec = [[(i + 1, i) for i in range(3)], [(i + 1,) for i in range(3)]]
    ours = layers.EquivariantAttention(spec, channels, heads=heads, embed=False).double()
    order = torch.arange(3 * channels).reshape(heads, 3, -1).transpose(0, 1).flatten()
    with torch.no_grad():
        ours.qkv.copy_(theirs.to_qkv.linear.weight[order].T)
        ours.bias.copy_(theirs.to_qkv.linear.bias[order])
    weights = [torch.randn(7, b, a, channels).double() for a, b in pairs]
    biases = [torch.randn(7, b, channels).double() for _, b in pairs]
    found = ours([weights, biases])
    expected = theirs(
        common.WeightSpaceFeatures(
            [w.permute(0, 3, 1, 2) for w in weights], [b.permute(0, 2, 1) for b in biases]
        )
    )
    close(found[0], [w.permute(0, 2, 3, 1) for w in expected.weights])
    close(found[1], [b.permute(0, 2, 1) for b in expected.biases])


def test_roles_tell_tensors_and_axes_apart() -> None:
    spec = {"w": (0, 0), "v": (0, 0)}
    x = dict.fromkeys(spec, torch.randn(3, 3, 4).double())
    plain = layers.EquivariantAttention(spec, 4, embed=False).double()
    y = plain(x)
    close(y["v"], y["w"])
    transposed = plain(pytree.tree_map(lambda leaf: leaf.transpose(0, 1), x))
    close(transposed, pytree.tree_map(lambda leaf: leaf.transpose(0, 1), y))
    roles = made("EquivariantAttention", spec)
    y = roles(x)
    assert not torch.allclose(y["v"], y["w"])
    transposed = roles(pytree.tree_map(lambda leaf: leaf.transpose(0, 1), x))
    assert not torch.allclose(transposed["v"], y["v"].transpose(0, 1))


def test_heads_must_divide_channels() -> None:
    for channels, heads in ((4, 3), (4, 0), (0, 1), (4, 1.0)):
        with pytest.raises(sc.OptionError, match=r"heads|channels"):
            layers.EquivariantAttention((0,), channels, heads=heads)


# -- networks ----------------------------------------------------------------------------------


def test_residual_refuses_other_shapes() -> None:
    x = tensors(MLP)
    with pytest.raises(sc.ShapeError, match=r"\['w0'\].*made the shape .* channels included"):
        layers.Residual(layers.ChannelLinear(MLP, 4, 1).double())(x)
    for spec, value in ((MLP, x), ([(0,)], [torch.ones(2, 3, 4)]), ((0,), torch.ones(2, 3, 4))):
        with pytest.raises(sc.ShapeError, match="other paths"):
            layers.Residual(
                layers.EquivariantLinear(spec, {"y": ()}, in_channels=4, out_channels=1)
            )(pytree.tree_map(lambda leaf: leaf.float(), value))
    with pytest.raises(sc.ShapeError, match="other paths"):
        layers.Residual(
            layers.EquivariantLinear([(0,), (0,)], [(0,)], in_channels=4, out_channels=4)
        )([torch.ones(3, 4)] * 2)
    with pytest.raises(sc.OptionError, match="layer 1: found a builtin_function"):
        layers.Sequential(layers.Activation(torch.relu), torch.relu)
    with pytest.raises(sc.OptionError, match="expected a function"):
        layers.Activation(3)


@pytest.mark.parametrize("norm", [None, layers.ChannelNorm, layers.TensorNorm])
def test_activations_keep_scale_through_six_residual_blocks(norm: Any) -> None:
    torch.manual_seed(0)
    net = layers.trunk(MLP, [1] + [32] * 7, norm=norm, residual=True)
    x = tensors(MLP, 1, batch=(16,), sizes={"h0": 32, "h1": 32}, dtype=torch.float32)
    for layer in net.layers:
        x = layer(x)
        rms = torch.cat([leaf.flatten() for leaf in x.values()]).square().mean().sqrt()
        assert 0.5 < rms < (5 if norm is None else 3)


def test_attention_keeps_scale_in_residual_blocks() -> None:
    torch.manual_seed(0)
    x = tensors(MLP, 32, batch=(16,), sizes={"h0": 32, "h1": 32}, dtype=torch.float32)
    for _ in range(6):
        x = layers.Residual(
            layers.ChannelNorm(MLP, 32), layers.EquivariantAttention(MLP, 32, heads=4)
        )(x)
    rms = torch.cat([leaf.flatten() for leaf in x.values()]).square().mean().sqrt()
    assert 0.5 < rms < 3


def test_a_head_of_no_hidden_layer_is_linear_in_the_pool() -> None:
    head = made("InvariantHead", MLP)
    assert [tuple(w.shape) for w in head.weight] == [(head.pool.out_features(4), 8), (8, 8), (8, 3)]
    flat = layers.InvariantHead(MLP, 4, (), 3, activation=torch.tanh).double()
    x = tensors(MLP)
    close(flat(x), flat.pool(pytree.tree_map(torch.tanh, x)) @ flat.weight[0])
    for options in ({"hidden": 0}, {"out_features": 0}):
        with pytest.raises(sc.OptionError, match="expected a positive int"):
            layers.InvariantHead(MLP, 4, **{"hidden": 8, "out_features": 1, **options})


def test_what_a_trunk_is_made_of() -> None:
    net = layers.trunk((0,), [1, 4, 4, 2], norm=layers.ChannelNorm, dropout=0.5, residual=True)
    first, block, *last = net.layers
    parts = ["ChannelNorm", "Activation", "ChannelDropout", "EquivariantLinear"]
    assert type(first).__name__ == "EquivariantLinear"
    assert isinstance(block, layers.Residual)
    assert [type(part).__name__ for part in block.layers] == parts
    assert [type(part).__name__ for part in last] == parts
    assert net(torch.ones(3, 1)).shape == (3, 2)
    assert block.layers[2].reader is not None  # every example drops channels of its own
    flat = layers.trunk((0,), [1, 4, 4], activation=torch.tanh)
    x = torch.randn(3, 1)
    close(flat(x), flat.layers[2](torch.tanh(flat.layers[0](x))))


def test_a_trunk_needs_two_widths() -> None:
    for channels in ([4], 4, [4, 0]):
        with pytest.raises(sc.OptionError, match="channels"):
            layers.trunk(MLP, channels)


def test_a_small_network_learns() -> None:
    """The norm of the product of two layers, which no statistic of either alone tells."""
    torch.manual_seed(0)
    spec = {"w0": (sc.Fixed(3), "h"), "w1": ("h", sc.Fixed(2))}
    net = layers.Sequential(
        layers.trunk(spec, [1, 16, 16]), layers.InvariantHead(spec, 16, 32, out_features=1)
    )
    x = {"w0": torch.randn(256, 3, 6, 1), "w1": torch.randn(256, 6, 2, 1)}
    product = (x["w0"][..., 0] @ x["w1"][..., 0])[:, 0, 0]
    target = (product / product.std())[:, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8
    assert losses[-1] < 0.1


def test_weights_do_not_depend_on_the_order_of_keys() -> None:
    forward = {"a": (0,), "b": (0, 1)}
    backward = {"b": (0, 1), "a": (0,)}
    for make in (
        lambda spec: layers.ChannelLinear(spec, {"a": 1, "b": 2}, 3),
        lambda spec: layers.EquivariantAttention(spec, 4),
        lambda spec: layers.TensorNorm(spec, {"a": 1, "b": 2}),
    ):
        one, other = (
            {name: tuple(w.shape) for name, w in make(spec).state_dict().items()}
            for spec in (forward, backward)
        )
        assert one == other
        assert prod(map(len, one)) > 0
