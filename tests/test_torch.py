"""The torch backend: an ordinary `nn.Module` under every transform of torch.

In: specs with diagonals, composite and fixed axes. The one thing to know: the oracle of values is
the NumPy interpreter; everything else is compared with the plain call.
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import logging
import pickle
import subprocess
import sys
import traceback
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import symcompile as sc
from symcompile.codegen import get_backend
from tests.backend_cases import CUBE, MLP, SIZES, SPEC, inputs, random_weights

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]


def tensors(spec: Any = SPEC, channels: int = 2, *, dtype: Any = torch.float64, **kind: Any) -> Any:
    source = np.complex128 if dtype.is_complex else np.float64
    tree = inputs(spec, channels, dtype=source, **kind)
    return pytree.tree_map(lambda array: torch.from_numpy(array).to(dtype), tree)


def make(spec: Any = SPEC, dtype: str | None = "float64", **options: Any) -> Any:
    layer = sc.compile(spec, in_channels=2, out_channels=3, dtype=dtype, **options)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_()
    return layer


def close(found: Any, expected: Any, **tolerance: Any) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def weights_of(layer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in layer.named_parameters()}


def with_weights(layer: Any, weights: dict[str, torch.Tensor], x: Any) -> Any:
    return torch.func.functional_call(layer, weights, (x,))


# -- an ordinary module ------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, CUBE, MLP])
@pytest.mark.parametrize("batch", [(), (2,), (2, 1), (1, 2, 3), (0,), (2, 0)])
def test_equals_numpy_for_any_batch_axes(spec: Any, batch: tuple[int, ...]) -> None:
    oracle = sc.compile(spec, in_channels=2, out_channels=3, backend="numpy")
    weights = random_weights(oracle)
    layer = make(spec)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    expected = oracle.apply(weights, inputs(spec, 2, batch))
    close(layer(tensors(spec, batch=batch)), pytree.tree_map(torch.from_numpy, expected))


def test_state_is_the_canonical_weights_only() -> None:
    layer = make()
    assert isinstance(layer, torch.nn.Module)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == dict(layer.compiled.shapes)
    assert not list(layer.buffers())
    for optimize in (False, "greedy"):
        other = make(optimize=optimize)
        assert list(other.state_dict()) == list(layer.state_dict())
        other.load_state_dict(layer.state_dict(), strict=True)
        close(other(tensors()), layer(tensors()))


def test_a_wrong_state_dict_is_refused() -> None:
    state = make().state_dict()
    state["extra"] = state.pop("bias")
    with pytest.raises(RuntimeError, match="Missing key"):
        make().load_state_dict(state)


def test_stacks_with_other_modules() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(
                sc.compile(SPEC, in_channels=a, out_channels=b) for a, b in [(2, 5), (5, 5), (5, 1)]
            )

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = pytree.tree_map(torch.relu_, layer(x))  # outputs may be changed in place
            return x

    net = torch.nn.Sequential(Net())
    y = net(tensors(dtype=torch.float32))
    sum(leaf.sum() for leaf in pytree.tree_leaves(y)).backward()
    assert all(weight.grad is not None for weight in net.parameters())
    assert len(net.state_dict()) == 3 * len(make().state_dict())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"optimize": False}])
@pytest.mark.parametrize(
    "spec", [SPEC, CUBE, {"a": (), "b": ()}, {"w": (0, 1)}, {"only": (sc.Fixed(2),)}]
)
def test_inputs_stay_and_outputs_are_new(spec: Any, options: dict[str, Any], size: int) -> None:
    layer = sc.compile(spec, in_channels=1, out_channels=1, **options)
    # Of size one, nothing need be expanded, and what is not copied for that is not copied at all.
    x = tensors(spec, 1, dtype=torch.float32, batch=(), sizes=dict.fromkeys(SIZES, size))
    before = copy.deepcopy(x)
    state = copy.deepcopy(layer.state_dict())
    y = layer(x)
    kept = [leaf.detach().clone() for leaf in pytree.tree_leaves(y)]
    for changed, leaf in enumerate(pytree.tree_leaves(y)):
        leaf.mul_(0).add_(7)  # would show in whatever it aliases
        for other in range(changed + 1, len(kept)):
            torch.testing.assert_close(pytree.tree_leaves(y)[other].detach(), kept[other])
    close(x, before)
    close(layer.state_dict(), state)


def test_gradients_reach_inputs_and_all_weights() -> None:
    layer = make()
    x = pytree.tree_map(lambda leaf: leaf.requires_grad_(), tensors())
    loss = sum((leaf**2).sum() for leaf in pytree.tree_leaves(layer(x)))
    loss.backward()
    for tensor in [*pytree.tree_leaves(x), *layer.parameters()]:
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("spec", [SPEC, CUBE])
def test_first_and_second_derivatives(spec: Any) -> None:
    layer = sc.compile(spec, in_channels=1, out_channels=1, dtype="float64")
    leaves, structure = pytree.tree_flatten(
        tensors(spec, 1, batch=(), sizes=dict.fromkeys(SIZES, 2))
    )
    names = list(weights_of(layer))
    weights = list(weights_of(layer).values())

    def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = pytree.tree_unflatten(list(values[: len(leaves)]), structure)
        given = dict(zip(names, values[len(leaves) :], strict=True))
        return tuple(pytree.tree_leaves(with_weights(layer, given, x)))

    values = [value.detach().requires_grad_() for value in (*leaves, *weights)]
    assert torch.autograd.gradcheck(call, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, values, fast_mode=True)


# -- transforms --------------------------------------------------------------------------------


@pytest.fixture
def _quiet_trace() -> Iterator[None]:
    """torch logs every step for its own tools; pytest would keep it all, at ten times the cost."""
    logger = logging.getLogger("torch.__trace")
    before, logger.propagate = logger.propagate, False
    yield
    logger.propagate = before


@pytest.mark.usefixtures("_quiet_trace")
@pytest.mark.parametrize("spec", [SPEC, CUBE])
def test_compile_whole(spec: Any) -> None:
    layer = make(spec)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch, n in (((2,), 3), ((5,), 6)):
            x = tensors(spec, batch=batch, sizes=dict.fromkeys(SIZES, n))
            close(compiled(x), layer(x))
    x = pytree.tree_map(lambda leaf: leaf.requires_grad_(), tensors(spec))
    grads = []
    for call in (layer, compiled):
        loss = sum((leaf**2).sum() for leaf in pytree.tree_leaves(call(x)))
        grads.append(torch.autograd.grad(loss, [*pytree.tree_leaves(x), *layer.parameters()]))
    close(grads[1], grads[0])


# Inductor's own lowering of `diagonal`.
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")
@pytest.mark.usefixtures("_quiet_trace")
def test_compile_with_inductor() -> None:
    layer = make(CUBE, dtype="float32")
    x = tensors(CUBE, dtype=torch.float32)
    with torch.no_grad():
        close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [MLP, CUBE])
def test_export_with_dynamic_batch_and_sizes(spec: Any) -> None:
    layer = make(spec)
    batch = torch.export.Dim("batch", min=1)
    sizes = {label: torch.export.Dim(f"n_{label}", min=2) for label in (0, 1, 2)}
    shapes = sc.compile(spec, in_channels=1, out_channels=1).spec
    dims = [
        {0: batch, **{1 + k: sizes[axis.label] for k, axis in enumerate(leaf.axes)}}
        for leaf in shapes.leaves
    ]
    from symcompile.spec import unflatten

    program = torch.export.export(
        layer, (tensors(spec, batch=(3,)),), dynamic_shapes=(unflatten(shapes, dims),)
    )
    x = tensors(spec, batch=(7,), sizes={0: 6, 1: 5, 2: 8})
    close(program.module()(x), layer(x))


def test_export_static() -> None:
    layer = make()
    program = torch.export.export(layer, (tensors(),))
    close(program.module()(tensors()), layer(tensors()))
    assert {str(name) for name in program.state_dict} == set(layer.state_dict())


@pytest.mark.parametrize("spec", [SPEC, CUBE])
def test_vmap_over_inputs(spec: Any) -> None:
    layer = make(spec)
    x = tensors(spec, batch=(4, 2))
    close(torch.func.vmap(layer)(x), layer(x))


@pytest.mark.parametrize("spec", [SPEC, CUBE])
@pytest.mark.parametrize("bias", [True, False])
def test_vmap_over_all_some_and_one_of_the_weights(spec: Any, bias: bool) -> None:
    layer = make(spec, bias=bias)
    weights, x = weights_of(layer), tensors(spec)
    stacked = {name: torch.stack([w, 2 * w, w + 1]) for name, w in weights.items()}
    groups = [tuple(weights), tuple(weights)[::2], *((name,) for name in weights)]
    for group in groups:
        given = {name: stacked[name] for name in group}
        found = torch.func.vmap(lambda w: with_weights(layer, {**weights, **w}, x))(given)
        for k in range(3):
            chosen = {**weights, **{name: stacked[name][k] for name in group}}
            one = pytree.tree_map(lambda leaf, k=k: leaf[k], found)
            close(one, with_weights(layer, chosen, x))


def test_vmap_over_one_input_leaf() -> None:
    layer = make(CUBE)
    x = tensors(CUBE)
    for name in CUBE:
        given = torch.stack([x[name], 2 * x[name]])
        found = torch.func.vmap(lambda leaf, name=name: layer({**x, name: leaf}))(given)
        for k in range(2):
            one = pytree.tree_map(lambda leaf, k=k: leaf[k], found)
            close(one, layer({**x, name: given[k]}))


def test_jacobians_forward_and_backward() -> None:
    layer = make(CUBE)
    weights, x = weights_of(layer), tensors(CUBE, batch=())
    for name in ("bias", "mix_0", "mix_0_0_0"):

        def call(weight: torch.Tensor, name: str = name) -> Any:
            return with_weights(layer, {**weights, name: weight}, x)

        with warnings.catch_warnings():
            # torch's own forward-mode rules are still written in TorchScript.
            warnings.filterwarnings("ignore", message=".*torch.jit.script", append=False)
            forward = torch.func.jacfwd(call)(weights[name])
        close(forward, torch.func.jacrev(call)(weights[name]))
    backward = torch.func.grad(lambda x: layer(x)["cube"].sum())(x)
    assert backward["cube"].shape == x["cube"].shape


# -- dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES + COMPLEX)
def test_dtype_of_inputs_is_kept_with_float32_weights(dtype: torch.dtype) -> None:
    layer = make(dtype=None)
    y = layer(tensors(dtype=dtype))
    assert {leaf.dtype for leaf in pytree.tree_leaves(y)} == {dtype}
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = layer(pytree.tree_map(lambda leaf: leaf.to(wide), tensors(dtype=dtype)))
    scale = max(leaf.detach().abs().max().item() for leaf in pytree.tree_leaves(exact))
    close(y, exact, check_dtype=False, rtol=0, atol=scale * 20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((torch.int64, torch.int64), torch.float32),
        ((torch.bool, torch.uint8), torch.float32),
        ((torch.int32, torch.bfloat16), torch.bfloat16),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float64, torch.complex64), torch.complex128),
    ],
)
def test_integers_and_mixed_dtypes_promote(given: Any, expected: torch.dtype) -> None:
    layer = sc.compile({"p": (0, 0), "q": (0,)}, in_channels=1, out_channels=1)
    x = {"p": torch.ones(3, 3, 1, dtype=given[0]), "q": torch.ones(3, 1, dtype=given[1])}
    assert {leaf.dtype for leaf in layer(x).values()} == {expected}


def test_complex_weights_make_complex_outputs() -> None:
    layer = sc.compile({"p": (0, 0)}, in_channels=1, out_channels=1, dtype="complex64")
    assert layer({"p": torch.ones(3, 3, 1)})["p"].dtype == torch.complex64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_reduce_in_float32(dtype: torch.dtype) -> None:
    """One rounding at the end, however many reductions are chained."""
    generator = torch.Generator().manual_seed(0)
    for spec, shape in [((0,), (2**17,)), ((0, 1, 2), (33, 48, 49)), ((0, 0), (300, 300))]:
        layer = sc.compile({"x": spec}, {"m": ()}, in_channels=1, out_channels=1, bias=False)
        with torch.no_grad():
            layer.mix_scalar.zero_()
            layer.mix_scalar[0] = 1  # the mean over everything
        for offset in (0.0, 1.0, 100.0):
            x = (torch.rand(*shape, 1, generator=generator) + offset).to(dtype)
            exact = x.double().mean()
            ulp = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(exact))
            found = layer({"x": x})["m"].double()
            assert (found - exact).abs().item() <= 0.51 * ulp.item()


def test_chained_half_reductions_do_not_round_in_between() -> None:
    """Means that all round up, then means of those that do again: rounding each would add up."""
    one, ulp = 1.0, 2.0**-7
    row = torch.tensor([one] * 16 + [one + ulp] * 17)  # mean: just over half an ulp above one
    x = row.expand(33, 33).clone()
    x[:16] = one
    x = x.expand(33, 33, 33).clone()
    x[:16] = one
    # Outputs that need the means on the way, so that the last is made from them.
    outputs = {"m": (), "p": (0, 1), "q": (0,)}
    layer = sc.compile({"x": (0, 1, 2)}, outputs, in_channels=1, out_channels=1, bias=False)
    assert sum(type(op).__name__ == "Reduce" for op in layer.compiled.program.ops) >= 3
    torch.nn.init.ones_(layer.mix_scalar)
    found = layer({"x": x.bfloat16()[..., None]})["m"].item()
    assert abs(found - x.double().mean().item()) <= 0.51 * ulp


def test_autocast() -> None:
    layer = make(dtype=None)
    x = tensors(dtype=torch.float32)
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        exact = layer(tensors(dtype=torch.float64))
    assert {leaf.dtype for leaf in pytree.tree_leaves(y)} == {torch.bfloat16}  # as nn.Linear
    assert {leaf.dtype for leaf in pytree.tree_leaves(exact)} == {torch.float64}
    close(y, plain, check_dtype=False, rtol=0.1, atol=0.5)
    sum(leaf.float().sum() for leaf in pytree.tree_leaves(y)).backward()
    assert {weight.grad.dtype for weight in layer.parameters()} == {torch.float32}


def test_to_dtype_and_dtype_option() -> None:
    layer = make(dtype="float32").to(torch.float64)
    assert {weight.dtype for weight in layer.parameters()} == {torch.float64}
    close(layer(tensors()), make(dtype="float32")(tensors()), rtol=1e-4, atol=1e-4)
    assert make(dtype="bfloat16").bias.dtype == torch.bfloat16
    kind = type(layer)
    assert kind(dtype=torch.float16).bias.dtype == torch.float16


def test_meta_device() -> None:
    layer = make()
    kind = type(layer)
    with torch.device("meta"):
        empty = kind(dtype=torch.float64)
    assert all(
        weight.is_meta for weight in [*empty.parameters(), *kind(device="meta").parameters()]
    )
    shapes = empty(pytree.tree_map(lambda leaf: leaf.to("meta"), tensors()))
    assert shapes["w"].shape == layer(tensors())["w"].shape
    filled = empty.to_empty(device="cpu")
    filled.reset_parameters()
    assert all(weight.isfinite().all() for weight in filled.parameters())
    filled.load_state_dict(layer.state_dict(), assign=True)
    close(filled(tensors()), layer(tensors()))


# -- copies, files, source -----------------------------------------------------------------------


def test_copies_are_independent() -> None:
    layer = make()
    layer.bias.requires_grad_(False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        close(other(tensors()), layer(tensors()))
        assert not other.bias.requires_grad
        assert type(other) is not torch.nn.Module
        assert other.spec == layer.spec
        with torch.no_grad():
            other.bias.add_(1)
        assert not torch.equal(other.bias, layer.bias)


def test_copies_of_a_compiled_layer_run_their_own_weights() -> None:
    layer = make()
    layer.compile(backend="eager")
    expected = layer(tensors())
    copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    average = torch.optim.swa_utils.AveragedModel(layer)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    for other in (*copies, average):
        close(other(tensors()), expected)


class Doubled(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


Made: Any = None  # a class that somebody made of a layer's


def test_copies_are_of_the_class_they_are_copies_of() -> None:
    global Made
    layer = make()
    Made = type("Made", (type(layer),), {"__module__": __name__, "mine": 1})
    layer.__class__ = Made
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is Made
        close(other(tensors()), layer(tensors()))


def test_a_parametrized_layer_is_copied_and_says_that_it_does_not_pickle() -> None:
    layer = make()
    torch.nn.utils.parametrize.register_parametrization(layer, "bias", Doubled())
    expected = layer(tensors())
    other = copy.deepcopy(layer)
    with torch.no_grad():
        layer.parametrizations["bias"].original.zero_()
    close(other(tensors()), expected)
    with pytest.raises(RuntimeError, match="parametrized modules is only supported through"):
        pickle.dumps(other)


def test_linearize_needs_no_grad_as_the_docs_say() -> None:
    layer = make({"w": ("a", "a"), "v": ("a",)})
    x = tensors({"w": ("a", "a"), "v": ("a",)})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y, push = torch.func.linearize(layer, x)
        expected, tangent = torch.func.jvp(layer, (x,), (x,))
        close(y, expected)
        close(push(x), tangent)


def test_torch_save_loads_in_a_fresh_process(tmp_path: Any) -> None:
    layer = make()
    torch.save((layer, tensors(), layer(tensors())), tmp_path / "layer.pt")
    code = (
        "import sys, torch\n"
        "layer, x, y = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(layer(x)['w'], y['w'])\n"
        "print(layer.plan.diagrams)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "layer.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == layer.plan.diagrams


def test_a_pickle_holds_no_caches() -> None:
    layer = make()
    before = len(pickle.dumps(layer))
    assert layer.basis
    assert hash(layer.compiled)
    assert len(pickle.dumps(layer)) == before


def test_state_dict_is_loadable_with_weights_only() -> None:
    stream = io.BytesIO()
    torch.save(make().state_dict(), stream)
    stream.seek(0)
    make().load_state_dict(torch.load(stream, weights_only=True))


def test_the_source_is_at_hand() -> None:
    layer = make()
    assert "def forward(self, x):" in inspect.getsource(type(layer))
    assert inspect.getsource(layer.forward) in layer.source
    with pytest.raises(sc.ShapeError) as caught:
        layer({})
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert "leaves = _read(x)" in [frame.line for frame in frames]


def test_equal_layers_share_one_module() -> None:
    assert sys.modules[type(make()).__module__] is sys.modules[type(make()).__module__]
    assert type(make()).__module__ != type(make(bias=False)).__module__


# -- containers and misfits ----------------------------------------------------------------------

Pair = namedtuple("Pair", ["first", "second"])


def test_any_container_with_the_same_paths() -> None:
    from flax.core import FrozenDict

    layer, x = make(), tensors()
    expected = layer(x)
    deep = x["deep"]
    for tree in (
        OrderedDict(reversed(x.items())),
        FrozenDict(x),
        {**x, "deep": tuple(deep)},
        {**x, "deep": Pair(*deep)},
        {**x, "deep": {1: deep[1], 0: deep[0]}},
        {**x, "deep": [FrozenDict(deep[0]), torch.nn.ParameterDict(deep[1])]},
    ):
        close(layer(tree), expected)


def broken(x: Any) -> list[tuple[Any, list[str]]]:
    """Inputs that do not fit SPEC, and what the message must say."""
    w, deep, heads = x["w"], x["deep"], x["heads"]
    return [
        ({"deep": deep, "heads": heads}, ["x['w']", "nothing"]),
        ({**x, "more": w}, ["x['more']", "leave it out"]),
        ({**x, "deep": [*deep, w]}, ["x['deep'][2]", "leave it out"]),
        ({**x, "w": None}, ["x['w']", "NoneType"]),
        ({**x, "w": [w]}, ["x['w']", "container of 1 entries"]),
        ({**x, "w": 3.0}, ["x['w']", "float"]),
        ({**x, "w": "text"}, ["x['w']", "str"]),
        (w, ["x['", "nothing"]),
        (None, ["x['", "nothing"]),
        ({**x, "w": w[..., :1]}, ["x['w']", "(2, 3, 3, 1)", "(2, 3, 3, 2)"]),
        ({**x, "w": w[:, :, :1]}, ["x['w']", "(2, 3, 1, 2)"]),
        ({**x, "w": w[:, :1, :1]}, ["(2, 1, 1, 2)", "(2, 3, 3, 2)"]),
        ({**x, "w": w[:1]}, ["(1, 3, 3, 2)", "batch (2,)"]),
        ({**x, "w": w[0]}, ["x['w']", "(3, 3, 2)"]),
        ({**x, "w": w[0, 0]}, ["x['w']", "(3, 2)"]),
        ({**x, "heads": heads[:, :6]}, ["x['heads']", "(2, 6, 3, 3, 2)", "(2, 8, 3, 3, 2)"]),
        ({**x, "heads": heads[:, :, :2]}, ["x['heads']", "(2, 8, 2, 3, 2)"]),
    ]


@pytest.mark.parametrize("case", range(17))
def test_a_misfit_is_refused_by_path(case: int) -> None:
    tree, words = broken(tensors())[case]
    with pytest.raises(sc.ShapeError) as caught:
        make()(tree)
    for word in words:
        assert word in str(caught.value)


def test_one_is_never_broadcast_to_six() -> None:
    layer = sc.compile({"k": (0, 1), "b": (1,)}, in_channels=1, out_channels=1)
    for sizes in ((6, 1), (1, 6)):
        x = {"k": torch.ones(4, sizes[0], 1), "b": torch.ones(sizes[1], 1)}
        with pytest.raises(sc.ShapeError, match=r"x\['k'\] has shape"):
            layer(x)
    bound = sc.compile({"b": (1,)}, in_channels=1, out_channels=1, sizes={1: 6})
    with pytest.raises(sc.ShapeError, match=r"expected \(6, 1\)"):
        bound({"b": torch.ones(1, 1)})


def test_the_gradient_of_a_mean_is_divided_before_it_is_repeated() -> None:
    layer = sc.compile({"w": (0, 1)}, {"r": (0,), "c": (1,)}, in_channels=2, out_channels=2)
    x = {"w": torch.randn(6, 5, 2, requires_grad=True)}
    divided = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket is torch.ops.aten.div:
                divided.append(result.numel())
            return result

    with Watch():
        y = layer(x)
        (y["r"].sum() + y["c"].sum()).backward()
    assert divided
    assert max(divided) < x["w"].numel()
    with torch.no_grad():
        close(layer(x), y)  # without a gradient it is torch's own mean


# -- large products ----------------------------------------------------------------------------

LARGE = {"w": ("a", "b")}


def without_kernels(layer: Any) -> None:
    """What its file does by itself, by oneDNN: `test_kernels.py` has the kernels."""
    module: Any = sys.modules[type(layer).__module__]
    module._KERNELS = module._BLAS = False


def large(dtype: Any = torch.float32, batch: int = 4, **options: Any) -> tuple[Any, Any]:
    """A layer whose one large product just goes through oneDNN, and its input."""
    torch.manual_seed(0)
    layer = sc.compile(LARGE, in_channels=16, out_channels=16, **options).to(dtype)
    without_kernels(layer)
    return layer, {"w": torch.randn(batch, 64, 64, 16, dtype=dtype, requires_grad=True)}


def by_onednn(run: Any, name: str = "mkldnn._linear") -> int:
    found = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if name in str(func):
                found.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        run()
    return len(found)


def test_a_large_product_is_by_onednn_and_a_small_one_is_not() -> None:
    layer, x = large()
    assert by_onednn(lambda: layer(x)) == 1
    assert by_onednn(lambda: layer({"w": x["w"][:3]})) == 0
    double, wide = large(torch.float64)
    assert by_onednn(lambda: double(wide)) == 0


def test_onednn_gets_no_part_of_a_matrix() -> None:
    """It takes a thousand times as long where the rows of a weight lie apart."""
    dense: list[bool] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "_linear_pointwise" in str(func):
                weight = args[1]
                dense.append(weight.is_contiguous() or weight.t().is_contiguous())
            return func(*args, **(kwargs or {}))

    # One map at a time: every one reads some rows and columns of a weight.
    options: dict[str, Any] = {"in_channels": 32, "out_channels": 32, "optimize": False}
    layer = sc.compile({"v": ("a", "b"), "w": ("a", "b")}, **options)
    without_kernels(layer)
    x = {name: torch.randn(2, 64, 64, 32, requires_grad=True) for name in ("v", "w")}
    with Watch():
        sum(leaf.sum() for leaf in layer(x).values()).backward()
    assert len(dense) >= 8
    assert all(dense)


def test_large_products_do_without_onednn() -> None:
    layer, x = large()
    expected = layer(x)["w"]
    module = sys.modules[type(layer).__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LINEAR", None)
        assert by_onednn(lambda: close(layer(x)["w"], expected, rtol=1e-5, atol=1e-5)) == 0
        assert by_onednn(lambda: layer(x), "convolution") == 1


def test_where_blas_is_tuned_for_the_processor_it_multiplies() -> None:
    layer, x = large()
    expected = layer(x)["w"]
    module = sys.modules[type(layer).__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLAS", True)
        assert by_onednn(lambda: close(layer(x)["w"], expected, rtol=1e-5, atol=1e-5)) == 0
        assert by_onednn(lambda: layer(x), "convolution") == 0


WIDE = {"w": ("a", sc.Fixed(40))}
"""Of more channels than rows: gradients of weights take another way."""


def test_a_wide_product_without_index_axes_is_by_onednn() -> None:
    layer = sc.compile(WIDE, in_channels=16, out_channels=16)
    without_kernels(layer)
    x = torch.randn(16, 3, 40, 16)
    assert by_onednn(lambda: layer({"w": x})) == 2


@pytest.mark.parametrize("spec", [LARGE, WIDE], ids=str)
@pytest.mark.parametrize("bound", [True, False])
def test_large_products_have_the_values_and_gradients_of_small_ones(bound: bool, spec: Any) -> None:
    layer, x = large()
    if spec is WIDE:
        layer = sc.compile(WIDE, in_channels=16, out_channels=16, dtype="float32")
        without_kernels(layer)
        x = {"w": torch.randn(2, 64, 40, 16, requires_grad=True)}
    elif bound:
        layer = large(sizes={"a": 64, "b": 64})[0]
    assert by_onednn(lambda: layer(x)) >= 1
    double, wide = copy.deepcopy(layer).double(), {"w": x["w"].detach().double()}
    wide["w"].requires_grad_()
    results = []
    for one, given in ((layer, x), (double, wide)):
        y = one(given)["w"]
        grads = torch.autograd.grad(
            (y**3).sum(), [given["w"], *one.parameters()], create_graph=True
        )
        weight = one.mix_a if spec is WIDE else one.mix_a_b
        second = torch.autograd.grad(grads[0].square().sum(), [given["w"], weight])
        results.append([y, *grads, *second])
    for found, expected in zip(*results, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=1e-5)


# torch's own rule for the forward derivative of a convolution goes through TorchScript.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_large_products_under_transforms() -> None:
    layer, x = large(batch=16)
    x = {"w": x["w"].detach()}
    expected = layer(x)["w"]
    close(torch.func.vmap(layer)({"w": x["w"].unflatten(0, (2, 8))})["w"].flatten(0, 1), expected)
    many = {name: torch.stack([w, w]) for name, w in weights_of(layer).items()}
    both = torch.func.vmap(lambda w: with_weights(layer, w, x)["w"])(many)
    close(both[1], expected, rtol=1e-5, atol=1e-5)
    _, tangent = torch.func.jvp(lambda w: layer({"w": w})["w"], (x["w"],), (x["w"],))
    bias = layer({"w": torch.zeros_like(x["w"])})["w"]
    close(tangent, expected - bias, rtol=1e-4, atol=1e-4)
    close(torch.compile(layer, fullgraph=True)(x)["w"], expected, rtol=1e-5, atol=1e-5)
    shapes = {"x": {"w": {0: torch.export.Dim("batch")}}}
    program = torch.export.export(layer, (x,), dynamic_shapes=shapes).module()
    close(program(x)["w"], expected, rtol=1e-5, atol=1e-5)
    assert program({"w": x["w"][:3]})["w"].shape[0] == 3


def test_a_wide_product_is_an_operator_that_torch_compile_leaves_alone() -> None:
    """Inductor would multiply by BLAS or a convolution, half as fast."""
    layer = sc.compile(WIDE, in_channels=16, out_channels=16)
    without_kernels(layer)
    x = torch.randn(16, 3, 40, 16, requires_grad=True)
    seen = []

    def backend(graph: Any, _: Any) -> Any:
        forward = [part for name, part in graph.named_modules() if not name.startswith("bwd")]
        seen.append([node.target for part in forward for node in part.graph.nodes])
        return graph.forward

    operator = torch.ops.symcompile.linear
    torch.compile(layer, fullgraph=True, backend=backend)({"w": x})
    assert seen[0].count(operator) == 2
    narrow, large_x = large()
    torch.compile(narrow, fullgraph=True, backend=backend)(large_x)
    assert operator not in seen[1]
    # Its own derivative, shapes and way of making them up are those torch holds operators to.
    weight = torch.randn(70, 40).t()  # of a matrix read the other way round
    for rows in (torch.randn(5, 70), torch.randn(70, 5).t()):
        args = rows.requires_grad_(), weight.requires_grad_()
        torch.library.opcheck(operator.default, args)
        close(operator(*args), rows @ weight.t(), rtol=1e-5, atol=1e-5)
    results = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        y = call({"w": x})["w"]
        results.append([y, *torch.autograd.grad((y**2).sum(), [x, *layer.parameters()])])
    for found, expected in zip(*results, strict=True):
        close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dynamic", [True, None])
def test_a_compiled_wide_product_takes_batches_of_any_size(dynamic: bool | None) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    layer = sc.compile({"w": (sc.Fixed(3), sc.Fixed(40))}, in_channels=16, out_channels=16)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=counter)
    for batch in range(16, 22):
        x = {"w": torch.randn(batch, 3, 40, 16)}
        with torch.no_grad():
            close(call(x)["w"], layer(x)["w"], rtol=1e-5, atol=1e-4)
    assert counter.frame_count <= 2
    assert any(
        node.target is torch.ops.symcompile.linear.default or "symcompile" in str(node.target)
        for graph in counter.graphs
        for node in graph.graph.nodes
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_compiled_wide_product_has_a_derivative_forward() -> None:
    layer = sc.compile(WIDE, in_channels=16, out_channels=16)
    x, t = torch.randn(16, 3, 40, 16), torch.randn(16, 3, 40, 16)
    call = torch.compile(layer, backend="eager")
    call({"w": x})
    forward = torch.autograd.forward_ad
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, forward.dual_level():
            tangent = forward.unpack_dual(call({"w": forward.make_dual(x, t)})["w"])[1]
        close(tangent, layer({"w": t})["w"] - layer({"w": 0 * t})["w"], rtol=1e-4, atol=1e-3)


def test_a_wide_product_in_a_transform_that_is_compiled() -> None:
    layer = sc.compile(WIDE, in_channels=16, out_channels=16)
    x = {"w": torch.randn(2, 16, 3, 40, 16)}
    call = torch.compile(torch.func.vmap(layer), fullgraph=True, backend="aot_eager")
    close(call(x)["w"], layer(x)["w"], rtol=1e-5, atol=1e-4)


def test_a_sum_in_place_after_a_large_product_copies_no_gradient() -> None:
    layer, x = large()
    y = layer(x)["w"]
    copied = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten.clone):
                copied.append(result.numel())
            return result

    with Watch():
        y.backward(torch.ones_like(y))
    assert max(copied, default=0) < y.numel()


def tall(dtype: Any = torch.float32, batch: int = 4) -> tuple[Any, Any]:
    """A layer that takes a mean of many entries over its first axis, and its input."""
    torch.manual_seed(0)
    layer = sc.compile({"w": ("a", "b")}, in_channels=8, out_channels=2).to(dtype)
    without_kernels(layer)
    return layer, {"w": torch.rand(batch, 257, 128, 8, dtype=dtype, requires_grad=True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_large_mean_over_an_outer_axis_is_a_product(dtype: Any) -> None:
    layer, x = tall(dtype)
    assert by_onednn(lambda: layer(x), "bmm") == 1
    assert by_onednn(lambda: layer({"w": x["w"][:2]}), "bmm") == 0
    # None of these: its entries would be rounded, or too many, or do not lie in order.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert by_onednn(lambda: layer(x), "bmm") == 0
    half, rounded = tall(torch.bfloat16)
    assert by_onednn(lambda: half(rounded), "bmm") == 0
    many = torch.rand(1025, 128, 8, dtype=dtype)
    assert by_onednn(lambda: layer({"w": many}), "bmm") == 0
    assert by_onednn(lambda: layer({"w": many[:1024]}), "bmm") == 1
    assert by_onednn(lambda: layer({"w": many[:1024].movedim(0, 1)}), "bmm") == 0


def test_large_means_have_the_values_and_gradients_of_small_ones() -> None:
    layer, x = tall(torch.float64)
    module = sys.modules[type(layer).__module__]
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            y = layer(x)["w"]
            grads = torch.autograd.grad(
                (y**3).sum(), [x["w"], *layer.parameters()], create_graph=True
            )
            second = torch.autograd.grad(grads[0].square().sum(), [x["w"], *layer.parameters()])
            results.append([y, *grads, *second])
            patch.setattr(module, "_by_product", lambda *args: False)
    for found, expected in zip(*results, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-13)
    single = copy.deepcopy(layer).float()({"w": x["w"].float()})["w"]
    close(single.double(), results[1][0], rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_large_mean_is_a_view() -> None:
    layer, x = tall()
    mean = sys.modules[type(layer).__module__]._mean(x["w"], -3, 257)
    (grad,) = torch.autograd.grad(mean.sum(), x["w"])
    assert grad.stride()[1] == 0
    assert (grad == 1 / 257).all()


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))], ids=str)
def test_a_mean_of_axes_out_of_order_goes_by_memory(order: tuple[int, ...]) -> None:
    layer, _ = tall()
    module = sys.modules[type(layer).__module__]
    whole = torch.rand(16, 9, 8, 64, dtype=torch.float64, requires_grad=True)
    x = whole.permute(order)
    reduced: list[bool] = []

    def reduce(part: torch.Tensor, dim: int, **options: Any) -> torch.Tensor:
        reduced.append(part.is_contiguous())
        return torch.sum(part, dim, **options)

    for dim in range(-4, 4):
        expected = x.detach().numpy().mean(dim)
        with torch.no_grad():
            close(module._mean(x, dim, x.shape[dim]), torch.from_numpy(expected))
        mean = module._mean(x, dim, x.shape[dim])
        close(mean.detach(), torch.from_numpy(expected))
        (grad,) = torch.autograd.grad(mean.square().sum(), x)
        close(grad, (2 * mean.detach() / x.shape[dim]).unsqueeze(dim).expand(x.shape))
        module._along(reduce, x.detach(), dim, None)
    assert all(reduced)
    vmapped = torch.func.vmap(lambda part: module._mean(part, -1, x.shape[-1]))(x.detach())
    close(vmapped, x.detach().mean(-1))
    assert module._along(torch.sum, x[:1, :1], -1, None).shape == (1, 1, x.shape[2])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_large_means_under_transforms() -> None:
    layer, x = tall(torch.float64)
    x = {"w": x["w"].detach()}
    expected = layer(x)["w"]
    close(torch.func.vmap(layer)({"w": x["w"].unflatten(0, (2, 2))})["w"].flatten(0, 1), expected)
    many = {name: torch.stack([w, w]) for name, w in weights_of(layer).items()}
    both = torch.func.vmap(lambda w: with_weights(layer, w, x)["w"])(many)
    close(both[1], expected)
    bias = layer({"w": torch.zeros_like(x["w"])})["w"]
    _, tangent = torch.func.jvp(lambda w: layer({"w": w})["w"], (x["w"],), (x["w"],))
    close(tangent, expected - bias)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x["w"], x["w"])
        tangent = torch.autograd.forward_ad.unpack_dual(layer({"w": dual})["w"]).tangent
    close(tangent, expected - bias)
    close(torch.compile(layer, fullgraph=True)(x)["w"], expected)
    shapes = {"x": {"w": {0: torch.export.Dim("batch")}}}
    program = torch.export.export(layer, (x,), dynamic_shapes=shapes).module()
    close(program(x)["w"], expected)
    assert program({"w": x["w"][:3]})["w"].shape[0] == 3


def test_equal_layers_and_copies_are_of_one_class() -> None:
    one, other = make(), make()
    models = [one, other, copy.deepcopy(one), pickle.loads(pickle.dumps(other))]
    params, buffers = torch.func.stack_module_state(models)
    x = tensors()
    y = torch.func.vmap(lambda p, b: torch.func.functional_call(one, (p, b), (x,)))(params, buffers)
    close(pytree.tree_map(lambda leaf: leaf[1], y), other(x))
    assert type(make(bias=False)) is not type(one)
    assert one.compiled.stages == ()
    kept = make(keep_stages=True)
    assert type(kept) is type(one)
    assert kept.compiled.stages
    assert copy.deepcopy(kept).compiled.stages == kept.compiled.stages


def test_a_layer_is_checked_where_it_is() -> None:
    """Weights and inputs that are drawn for a check go to the layer's device."""
    layer, backend = make(), get_backend("torch")
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    there = backend.call(layer.to("meta"), weights, tensors())
    assert all(leaf.is_meta for leaf in pytree.tree_leaves(there))


def test_a_meta_layer_runs_on_meta_tensors() -> None:
    y = make().to("meta")(pytree.tree_map(lambda leaf: leaf.to("meta"), tensors()))
    assert [leaf.shape for leaf in pytree.tree_leaves(y)] == [
        leaf.shape for leaf in pytree.tree_leaves(make()(tensors()))
    ]
