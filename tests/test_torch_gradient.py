"""Claims about layers of PyTorch that are one node of autograd: what users do with gradients.

That their gradients are those of autograd, for random layers, is in `laws/test_transposes.py`.
"""

from __future__ import annotations

import copy
import gc
import io
import sys
import weakref
from typing import Any

import pytest

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.ir import Concat, Input, Mix, Output, Reduce, transposed
from symcompile.spec import flatten_like, parse_spec, unflatten
from tests.backend_cases import MLP, SIZES, SPEC, inputs
from tests.torch_nodes import node_of

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import symcompile_torch.gradient  # noqa: E402
import symcompile_torch.kernels  # noqa: E402


def make(spec: Any = MLP, channels: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"in_channels": channels, "out_channels": channels, **options}
    layer: Any = sc.compile(spec, backend="torch", **options).double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, dtype=weight.dtype))
    return layer


def leaves(spec: Any = MLP, channels: int = 2, seed: int = 0, batch: tuple[int, ...] = (2,)) -> Any:
    tree = inputs(spec, channels, seed=seed, batch=batch)
    arrays = flatten_like(parse_spec(spec), tree, "x")
    return [torch.tensor(array).requires_grad_() for array in arrays]


def run(layer: Any, x: Any, spec: Any = MLP) -> Any:
    parsed = parse_spec(spec)
    return flatten_like(parsed, layer(unflatten(parsed, x)), "y")


def is_node(*y: Any) -> bool:
    return all(node_of(part) == "_LayerBackward" for part in y)


def by_autograd(layer: Any, patch: Any) -> None:
    patch.setitem(layer.forward.__globals__, "_node", lambda *values: None)


def same(found: Any, wanted: Any, within: float = 1e-12) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).abs().max() <= within * max(1.0, other.abs().max())


@pytest.mark.parametrize("spec", [MLP, SPEC], ids=["mlp", "spec"])
@pytest.mark.parametrize("rank", [None, 1])
def test_first_and_second_derivatives(spec: Any, rank: int | None) -> None:
    layer = make(spec, 1, rank=rank)
    x, names = leaves(spec, 1, batch=()), [name for name, _ in layer.named_parameters()]

    def call(*values: Any) -> Any:
        weights = dict(zip(names, values[len(x) :], strict=True))
        with torch.nn.utils.stateless._reparametrize_module(layer, weights):
            return tuple(run(layer, values[: len(x)], spec))

    given = [*x, *layer.parameters()]
    assert is_node(*call(*given))
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def test_gradients_in_the_wrong_places_are_found(monkeypatch: Any) -> None:
    layer, x = make(), leaves(batch=())
    names = layer.forward.__globals__
    right = names["_gradients"]

    def wrong(*given: Any) -> Any:
        to_inputs, to_matrices = right(*given)
        return [2 * to_inputs[0], *to_inputs[1:]], to_matrices

    monkeypatch.setitem(names, "_gradients", wrong)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda *values: tuple(run(layer, values)), x)


def test_many_gradients_at_once() -> None:
    layer, x = make(), leaves()
    y = run(layer, x)
    g = [torch.randn(3, *part.shape, dtype=part.dtype) for part in y]
    given = [*x, *layer.parameters()]
    found = torch.autograd.grad(y, given, g, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        wanted = torch.autograd.grad(y, given, [part[k] for part in g], retain_graph=True)
        same([part[k] for part in found], wanted)


@pytest.mark.parametrize("many", [False, True])
def test_inputs_that_depend_on_each_other(many: bool, monkeypatch: Any) -> None:
    """What an input is made of, and what is hooked to it, is not the layer's."""
    layer = make({"u": ("a", "b"), "v": ("a", "b")})
    g = torch.randn(3, 2, 3, 4, 2, dtype=torch.float64)

    def found() -> list[Any]:
        x = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(2, 3, 4, 2).requires_grad_()
        all_of_them = []
        for v in (x, x.sin()):
            hooked = x * 1
            hooked.register_hook(lambda grad: 2 * grad)
            y = layer({"u": hooked, "v": v})["u"]
            if many:
                all_of_them += torch.autograd.grad(y, [x], g, is_grads_batched=True)
            else:
                first = torch.autograd.grad(y.sin().sum(), [x], create_graph=True)
                all_of_them += [*first, *torch.autograd.grad(first[0].sin().sum(), [x])]
        return all_of_them

    ours = found()
    by_autograd(layer, monkeypatch)
    same(ours, found())


def test_weights_that_are_tied(monkeypatch: Any) -> None:
    layer = make({"u": ("a", "b")})
    layer.mix_a = layer.mix_b = layer.mix_a_b = layer.mix_scalar
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)

    def found() -> list[Any]:
        y = layer({"u": x})["u"]
        return [
            *torch.autograd.grad(y.sin().sum(), [x, layer.mix_a], retain_graph=True),
            *torch.autograd.grad(y.sin().sum(), [x, layer.mix_a], create_graph=True),
        ]

    ours = found()
    by_autograd(layer, monkeypatch)
    same(ours, found())


def test_of_some_outputs_alone(monkeypatch: Any) -> None:
    layer, x = make(), leaves()
    given = [*x, *layer.parameters()]
    found = torch.autograd.grad(run(layer, x)[1].sum(), given)
    by_autograd(layer, monkeypatch)
    wanted = torch.autograd.grad(run(layer, x)[1].sum(), given, allow_unused=True)
    same(
        found, [torch.zeros_like(v) if w is None else w for v, w in zip(given, wanted, strict=True)]
    )


def test_it_goes_back_twice_if_asked_to() -> None:
    layer, x = make(), leaves()
    loss = sum(part.sin().sum() for part in run(layer, x))
    first = torch.autograd.grad(loss, x, retain_graph=True)
    same(torch.autograd.grad(loss, x), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


def slopes(layer: Any, x: Any, given: Any) -> Any:
    return torch.autograd.grad([part.sin().sum() for part in run(layer, x)], given)


def test_where_a_weight_is_frozen_autograd_does_it() -> None:
    layer, x = make(), leaves()
    first, *others = layer.parameters()
    wanted = slopes(layer, x, others)
    first.requires_grad_(False)
    assert not is_node(*run(layer, x))
    same(slopes(layer, x, others), wanted)
    with torch.no_grad():
        assert not any(part.requires_grad for part in run(layer, x))


@pytest.mark.parametrize("spec", [MLP, SPEC], ids=["mlp", "spec"])
def test_of_weights_alone(spec: Any, monkeypatch: Any) -> None:
    """A first layer: no input learns, and nothing is done for their gradients."""
    layer, x = make(spec), leaves(spec)
    given = list(layer.parameters())

    def found(x: Any) -> Any:
        y = run(layer, x, spec)
        return [
            {node_of(part) for part in y},
            torch.autograd.grad([part.sin().sum() for part in y], given),
        ]

    names = layer.forward.__globals__
    _, wanted = found(x)
    fixed = [part.detach() for part in x]
    alone = names["_weight_gradients"]
    with monkeypatch.context() as patch:
        patch.setitem(names, "_gradients", None)
        kinds, ours = found(fixed)
        assert kinds == {"_FirstLayerBackward"}
        same(ours, wanted)
        patch.setitem(names, "_weight_gradients", lambda *x: (alone(*x)[0] * 2, *alone(*x)[1:]))
        with pytest.raises(AssertionError):
            same(found(fixed)[1], wanted)
    # Where some inputs learn, autograd goes op by op.
    some = [part.requires_grad_(place == 0) for place, part in enumerate(fixed)]
    kinds, ours = found(some)
    assert not any("Layer" in kind for kind in kinds)
    same(ours, wanted)


@pytest.mark.parametrize("learns", [True, False])
def test_of_low_rank(learns: bool, monkeypatch: Any) -> None:
    """On the way to the weights of a first factor the second is read."""
    layer, x = make(rank=1), leaves()
    x = [part.requires_grad_(learns) for part in x]
    assert is_node(*run(layer, x)) == learns
    assert "_FirstLayer" not in layer.source
    given = list(layer.parameters())
    ours = slopes(layer, x, given)
    by_autograd(layer, monkeypatch)
    same(ours, slopes(layer, x, given))


def test_of_weights_alone_in_every_way() -> None:
    """Twice, many at once, checkpointed, compiled."""
    layer, x = make(), [part.detach() for part in leaves()]
    given = list(layer.parameters())

    def call(*weights: Any) -> Any:
        y = run(layer, x)
        if torch.is_grad_enabled():
            assert all(node_of(part) == "_FirstLayerBackward" for part in y)
        return y[0]

    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)
    assert torch.autograd.gradcheck(call, given, check_batched_grad=True)
    wanted = torch.autograd.grad(call(*given).sum(), given)
    for reentrant in (True, False):
        y = torch.utils.checkpoint.checkpoint(call, *given, use_reentrant=reentrant)
        y.sum().backward(inputs=given) if not reentrant else y.sum().backward()
        same([weight.grad for weight in given], wanted)
        for weight in given:
            weight.grad = None
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    same(torch.autograd.grad(run(compiled, x)[0].sum(), given), wanted)


def test_many_gradients_of_large_weights_at_once(monkeypatch: Any) -> None:
    torch.manual_seed(0)
    layer: Any = sc.compile({"w": ()}, in_channels=400, out_channels=400, backend="torch")
    x = torch.randn(512, 400)
    y, given = layer({"w": x})["w"], list(layer.parameters())
    assert node_of(y) == "_FirstLayerBackward"
    g = torch.randn(3, *y.shape)
    found = torch.autograd.grad(y, given, g, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        one = torch.autograd.grad(y, given, g[k], retain_graph=True)
        same([part[k] for part in found], one, within=1e-5)


def test_a_first_layer_keeps_what_weights_multiply_and_no_more() -> None:
    """So what is not multiplied as it is may be used again."""
    spec = {"w": ("a", "b"), "v": ("b",)}
    layer = make(spec, out_spec={"s": ()})
    buffer = {"w": torch.zeros(2, 5, 6, 2).double(), "v": torch.zeros(2, 6, 2).double()}
    total: Any = 0
    for k in range(3):
        for part in buffer.values():
            part.fill_(k + 1)
        y = layer(buffer)["s"]
        assert node_of(y) == "_FirstLayerBackward"
        total = total + y.sum()
    given = list(layer.parameters())
    found = torch.autograd.grad(total, given)
    ones = {name: torch.full_like(part, 6) for name, part in buffer.items()}
    *slopes, bias = torch.autograd.grad(layer(ones)["s"].sum(), given)
    same(found, [*slopes, 3 * bias])
    with torch.inference_mode():
        frozen = {name: part.clone() for name, part in buffer.items()}
    torch.autograd.grad(layer(frozen)["s"].sum(), given)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_can_be_saved(learns: bool) -> None:
    layer = make({"w": ("a", "b")})
    x = {"w": torch.randn(2, 5, 6, 2, dtype=torch.float64, requires_grad=learns)}
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(layer, (x,), strict=False, check_trace=False), file)
    file.seek(0)
    same([torch.jit.load(file)(x)["w"]], [layer(x)["w"]])


def test_a_first_layer_needs_nothing_but_sums_and_products() -> None:
    """What only the gradients of inputs need is not in it: no weight is read."""
    compiled = compile_spec(MLP, in_channels=2, out_channels=2)
    back = transposed(compiled.program)
    assert back is not None
    assert len(back.to_weights.ops) < len(back.program.ops)
    kinds = {type(op) for op in back.to_weights.ops}
    assert kinds == {Input, Reduce, Concat, Mix, Output}
    source = sc.compile(MLP, in_channels=2, out_channels=2, backend="torch").source
    alone = source.split("def _weight_gradients")[1].split("\n\n\n")[0]
    assert ".t()" not in alone
    assert "_divided" not in alone
    assert "_outer_of(" in alone


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_transforms_look_into_it() -> None:
    layer, x = make(), leaves()

    def loss(*values: Any) -> Any:
        return sum(part.sin().sum() for part in run(layer, values))

    wanted = torch.autograd.grad(loss(*x), x)
    same(torch.func.grad(loss, argnums=tuple(range(len(x))))(*x), wanted)
    tangents = [torch.randn_like(part) for part in x]
    _, slope = torch.func.jvp(loss, tuple(x), tuple(tangents))
    inner = sum((part * tangent).sum() for part, tangent in zip(wanted, tangents, strict=True))
    same([slope], [inner])
    with torch.autograd.forward_ad.dual_level():
        dual = [
            torch.autograd.forward_ad.make_dual(part, tangent)
            for part, tangent in zip(x, tangents, strict=True)
        ]
        same([torch.autograd.forward_ad.unpack_dual(loss(*dual)).tangent], [inner])


def test_what_was_changed_since_is_not_read() -> None:
    layer, x = make(), leaves()
    changed = [part.clone() for part in x]
    y = run(layer, changed)
    changed[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad([part.sum() for part in y], x)


@pytest.mark.parametrize("spec", [MLP, SPEC], ids=["mlp", "spec"])
def test_outputs_may_be_changed_in_place(spec: Any) -> None:
    layer, x = make(spec), leaves(spec)
    y = run(layer, x, spec)
    kept = [part.detach().clone() for part in y]
    wanted = torch.autograd.grad([(3 * part).sum() for part in run(layer, x, spec)], x)
    for part in y:
        part.mul_(3)
    for part, before in zip(y, kept, strict=True):
        assert torch.equal(part, 3 * before)
    same(torch.autograd.grad([part.sum() for part in y], x), wanted)


def test_what_it_keeps_is_let_go() -> None:
    gc.disable()
    try:
        layer, x = make(), [part.clone() for part in leaves()]
        alive = [weakref.ref(part) for part in x]
        y = run(layer, x)
        del x
        assert any(part() is not None for part in alive)  # they are what weights multiplied
        del y
        assert all(part() is None for part in alive)
    finally:
        gc.enable()


def test_checkpoints() -> None:
    from torch.utils.checkpoint import checkpoint

    layer, x = make(), leaves()
    given = [*x, *layer.parameters()]
    wanted = torch.autograd.grad([part.sin().sum() for part in run(layer, x)], given)
    y = checkpoint(lambda *values: run(layer, values), *x, use_reentrant=False)
    same(torch.autograd.grad([part.sin().sum() for part in y], given), wanted)


def test_copies_have_gradients_of_their_own() -> None:
    layer, x = make(), leaves()
    other = copy.deepcopy(layer)
    for part in run(other, x):
        part.sum().backward(retain_graph=True)
    assert all(weight.grad is None for weight in layer.parameters())
    assert all(weight.grad is not None for weight in other.parameters())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_of_other_dtypes(kind: Any, monkeypatch: Any) -> None:
    layer = make(channels=4).to(kind)
    x = [part.detach().to(kind).requires_grad_() for part in leaves(channels=4)]
    y = run(layer, x)
    assert is_node(*y)
    given = [*x, *layer.parameters()]
    g = [torch.randn_like(part) for part in y]
    found = torch.autograd.grad(y, given, g)
    assert all(one.dtype is kind for one in found)
    by_autograd(layer, monkeypatch)
    wanted = torch.autograd.grad(run(layer, x), given, g)
    # Of bfloat16 both ways round to 8 bits, a few times over.
    same(found, wanted, 1e-5 if kind is torch.float32 else 0.05)


def test_under_autocast(monkeypatch: Any) -> None:
    layer = make(channels=4).float()
    x = [part.detach().float().requires_grad_() for part in leaves(channels=4)]
    given = [*x, *layer.parameters()]

    def found() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = run(layer, x)
        assert all(part.dtype is torch.bfloat16 for part in y)
        return torch.autograd.grad([part.float().sin().sum() for part in y], given)

    ours = found()
    assert all(one.dtype is torch.float32 for one in ours)
    by_autograd(layer, monkeypatch)
    same(ours, found(), 0.05)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_complex_numbers_are_left_to_autograd() -> None:
    layer = make().to(torch.complex128)
    x = [part.detach().to(torch.complex128).requires_grad_() for part in leaves(batch=())]
    assert not is_node(*run(layer, x))
    assert torch.autograd.gradcheck(lambda *values: tuple(run(layer, values)), x)


def test_sizes_that_are_read_from_inputs() -> None:
    """Means are divided by them: one layer serves networks of any width, one after the other."""
    layer = make(SPEC)
    parsed = parse_spec(SPEC)
    for size in (2, 5, 3):
        sizes = {**SIZES, "a": size}
        arrays = flatten_like(parsed, inputs(SPEC, 2, batch=(2,), sizes=sizes), "x")
        x = [torch.tensor(array).requires_grad_() for array in arrays]
        assert is_node(*run(layer, x, SPEC))
        assert torch.autograd.gradcheck(
            lambda *values: tuple(run(layer, values, SPEC)), x, fast_mode=True
        )


def test_many_channels_of_fixed_axes_are_left_to_autograd() -> None:
    """Products that read and write parts have gradients that do so too."""
    layer: Any = sc.compile(
        {"w": ("a", sc.Fixed(40)), "v": ("a", sc.Fixed(40))},
        backend="torch",
        in_channels=16,
        out_channels=16,
        sizes={"a": 8},
    )
    assert "_Layer" not in layer.source


@pytest.mark.parametrize("spec", [MLP, SPEC], ids=["mlp", "spec"])
def test_compiled_it_takes_batches_of_any_size(spec: Any, monkeypatch: Any) -> None:
    torch._dynamo.reset()
    layer = make(spec)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    given = list(layer.parameters())
    found = []
    for batch in (2, 3, 5):
        x = leaves(spec, batch=(batch,))
        y = run(compiled, x, spec)
        found.append(torch.autograd.grad([part.sin().sum() for part in y], [*x, *given]))
    by_autograd(layer, monkeypatch)
    for batch, ours in zip((2, 3, 5), found, strict=True):
        x = leaves(spec, batch=(batch,))
        y = run(layer, x, spec)
        same(ours, torch.autograd.grad([part.sin().sum() for part in y], [*x, *given]))


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize(
    ("spec", "out_spec"),
    [
        (("b", "a"), {"o": ("b", "a"), "r": ("a", "b")}),
        (("b", "a", sc.Fixed(2)), None),
        ((("b", sc.Fixed(2)), "a"), None),
        (("b", "a"), {"o": ("b", sc.Fixed(2), "a")}),
    ],
    ids=["moved", "fixed", "composite", "fixed between"],
)
def test_compiled_its_outputs_and_views_of_them_may_be_changed_in_place(
    spec: Any, out_spec: Any, learns: bool
) -> None:
    layer = make({"w": spec}, out_spec=out_spec)
    x = leaves({"w": spec})[0].detach().requires_grad_(learns)
    given = [*([x] if learns else []), *layer.parameters()]

    def call(x: Any) -> Any:
        y = next(iter(layer({"w": x}).values()))
        y.mul_(2)
        part = y[:, :2]
        part.add_(1)
        return y, part

    def found(call: Any) -> Any:
        y, part = call(x)
        return torch.autograd.grad((y**2).sum() + (part**3).sum(), given)

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    same(compiled(x), call(x))
    same(found(compiled), found(call))


@pytest.mark.parametrize("learns", [True, False])
def test_compiled_it_copies_nothing(learns: bool, monkeypatch: Any) -> None:
    """Axes of outputs are moved after the node: what it makes and is given is contiguous."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    spec, clones = {"v": ("b", "a")}, []

    def look(graph: Any, _: Any) -> Any:
        found = graph.graph.nodes
        clones.extend(node for node in found if node.target == torch.ops.aten.clone.default)
        return make_boxed_func(graph)

    def step() -> int:
        layer = make(spec, channels=16).float()
        torch._dynamo.reset()
        clones.clear()
        backend = aot_autograd(fw_compiler=look, bw_compiler=look)
        call = torch.compile(layer, backend=backend, fullgraph=True)
        call({"v": torch.randn(8, 32, 128, 16, requires_grad=learns)})["v"].sin().sum().backward()
        return len(clones)

    copies = step()
    if symcompile_torch.HAS_KERNELS:  # without, PyTorch's products copy what they read across
        assert copies == 0
    monkeypatch.setattr(symcompile_torch.gradient, "_before_moves", lambda program: (program, {}))
    assert step() > copies


@pytest.mark.parametrize(
    ("spec", "channels"),
    [(("a",), (1, 1)), ({"p": (sc.Fixed(2),), "q": (sc.Fixed(3),)}, (1, 2))],
    ids=["repeated", "in pieces"],
)
def test_one_diagram_at_a_time(spec: Any, channels: tuple[int, int], monkeypatch: Any) -> None:
    """Means are spread before they are mixed there, and weights read in many pieces."""
    into, out = channels
    for bias in (False, True):
        layer: Any = sc.compile(
            spec, in_channels=into, out_channels=out, optimize=False, bias=bias, backend="torch"
        )
        layer = layer.double()
        parsed = parse_spec(spec)
        arrays = flatten_like(parsed, inputs(spec, into), "x")
        x = [torch.tensor(array).requires_grad_() for array in arrays]

        def call(*values: Any, layer: Any = layer, parsed: Any = parsed) -> Any:
            return tuple(flatten_like(parsed, layer(unflatten(parsed, values)), "y"))

        given = [*x, *layer.parameters()]
        g = [torch.randn_like(part) for part in call(*x)]
        found = torch.autograd.grad(call(*x), given, g)
        with monkeypatch.context() as patch:
            if "_layer" in layer.forward.__globals__:
                by_autograd(layer, patch)
            same(found, torch.autograd.grad(call(*x), given, g))


def test_large_layers_are_taken_back_by_kernels(monkeypatch: Any) -> None:
    if not symcompile_torch.HAS_KERNELS:
        pytest.skip("no kernels for this processor")
    torch.manual_seed(0)
    spec, sizes = {"w": ("a", "b"), "v": ("b",)}, {"a": 64, "b": 65}
    layer: Any = sc.compile(spec, in_channels=8, out_channels=16, sizes=sizes, backend="torch")
    shapes = [(4, 65, 8), (4, 64, 65, 8)]
    x = [torch.randn(shape).requires_grad_() for shape in shapes]
    y = flatten_like(parse_spec(spec), layer(unflatten(parse_spec(spec), x)), "y")
    assert is_node(*y)
    called: list[str] = []
    call = symcompile_torch.kernels.call
    monkeypatch.setattr(
        symcompile_torch.kernels,
        "call",
        lambda name, *args: (called.append(name), call(name, *args)),
    )
    g = [torch.randn_like(part) for part in y]
    given = [*x, *layer.parameters()]
    found = torch.autograd.grad(y, given, g)
    assert called == ["symcompile_sums", "symcompile_back"]
    exact = layer.double()
    doubles = [part.detach().double().requires_grad_() for part in x]
    by_autograd(exact, monkeypatch)
    y = flatten_like(parse_spec(spec), exact(unflatten(parse_spec(spec), doubles)), "y")
    wanted = torch.autograd.grad(y, [*doubles, *exact.parameters()], [part.double() for part in g])
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= 2e-6 * max(1.0, other.abs().max())


@pytest.mark.parametrize(
    ("shape", "width", "operator"),
    [
        ((4, 256, 464), 464, "symcompile.mixed_back.default"),
        ((300, 1024), 512, "symcompile.mixed_back.default"),
        ((4, 1024, 48), 96, "symcompile.outer.default"),
        ((2, 3, 48), 96, "aten.mm.default"),
    ],
)
def test_products_that_gradients_of_weights_are(shape: Any, width: int, operator: str) -> None:
    if not symcompile_torch.HAS_KERNELS:
        pytest.skip("no kernels for this processor")
    of = make().forward.__globals__["_outer_of"]
    called: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    x, g = torch.randn(shape), torch.randn(*shape[:-1], width)
    with Watch():
        found = of(x, g)
    assert operator in called
    rows, others = x.double().flatten(0, -2).t(), g.double().flatten(0, -2)
    assert (found - rows @ others).abs().max() <= 1e-6 * (rows.abs() @ others.abs()).max()


def test_float16_is_left_to_autograd() -> None:
    """A weight divided by the size of a mean may be too small for it."""
    layer = make().half()
    x = [part.detach().half().requires_grad_() for part in leaves()]
    assert not is_node(*run(layer, x))


def test_what_is_remembered_is_no_fake() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer, x = make(), leaves()
    for _ in range(2):
        fake, mode = copy.deepcopy(layer), FakeTensorMode()
        parts = [mode.from_tensor(part.detach()).requires_grad_() for part in x]
        for name, weight in list(fake.named_parameters()):
            setattr(fake, name, torch.nn.Parameter(mode.from_tensor(weight.detach())))
        with mode:
            y = run(fake, parts)
            assert is_node(*y)
            torch.autograd.grad([part.sum() for part in y], parts)
    torch.autograd.grad([part.sum() for part in run(layer, x)], x)


def test_threads_share_what_is_remembered() -> None:
    from concurrent.futures import ThreadPoolExecutor

    layer = make(SPEC)
    parsed = parse_spec(SPEC)

    def one(size: int) -> None:
        sizes = {**SIZES, "a": 2 + size % 70}
        arrays = flatten_like(parsed, inputs(SPEC, 2, batch=(), sizes=sizes), "x")
        x = [torch.tensor(array).requires_grad_() for array in arrays]
        torch.autograd.grad([part.sum() for part in run(layer, x, SPEC)], x)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(140)))
    finally:
        sys.setswitchinterval(before)
