"""Products of many channels in parts, on torch: held to float64, and layers in parts too."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import symcompile as sc
from symcompile.bench.workloads import workload
from symcompile_torch import products
from symcompile_torch.kernels import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the kernels were not compiled here")

ops = torch.ops.symcompile


def drawn(rng: np.random.Generator, sizes: list[int], rows: int) -> Tensor:
    """Of that shape, its axes but the last in any order in memory, maybe within a larger one."""
    order = [*rng.permutation(len(sizes) - 1).tolist(), len(sizes) - 1]
    more = int(rng.integers(2))
    whole = rng.standard_normal([sizes[axis] + more for axis in order]).astype(np.float32)
    part = torch.from_numpy(whole[tuple(slice(more, None) for _ in order)])
    return part.permute([order.index(axis) for axis in range(len(order))])


def normal(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(sum(sizes)))


@st.composite
def matrices(draw: Any) -> tuple[Any, ...]:
    """Arguments of `mixed`: parts of one or several axes of channels, into parts that lie so."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(0, 30), min_size=0, max_size=3))
    channels = st.lists(st.integers(1, 40), min_size=1, max_size=3)
    some = st.lists(channels.filter(lambda axes: prod(axes) <= 300), min_size=1, max_size=4)
    read, made = draw(some), draw(some)
    rows = len(sizes)
    x = [drawn(rng, [*sizes, *axes], rows) for axes in read]
    sides = [sum(map(prod, axes)) for axes in (read, made)]
    transposed = draw(st.booleans())
    weight = drawn(rng, sides[::-1] if transposed else sides, 1)
    if draw(st.booleans()):
        weight = weight.T.contiguous().T
    shapes = [size for axes in made for size in (len(axes), *axes)]
    orders = []
    for axes in made:
        last = rows + len(axes) - 1
        orders += [*rng.permutation(last).tolist(), last]
    return x, weight, transposed, rows, shapes, orders


def joined(part: Tensor, rows: int) -> Tensor:
    return part.reshape(*part.shape[:rows], prod(part.shape[rows:]))


def by_the_book(
    x: list[Tensor], weight: Tensor, transposed: bool, rows: int, shapes: list[int], orders: Any
) -> list[Tensor]:
    whole = torch.cat([joined(part, rows) for part in x], -1)
    y = whole @ (weight.T if transposed else weight)
    made = []
    while shapes:
        count, *shapes = shapes
        sizes, shapes = shapes[:count], shapes[count:]
        width = prod(sizes)
        made.append(y[..., :width].reshape(*y.shape[:-1], *sizes))
        y = y[..., width:]
    return made


def as_exact(found: list[Tensor], compute: Any, *args: list[Tensor]) -> None:
    """As in float64, each on the scale of what was added for it: sums may cancel."""
    doubles = [[part.double() for part in parts] for parts in args]
    terms = compute(*([part.abs() for part in parts] for parts in doubles))
    for one, wanted, scale in zip(found, compute(*doubles), terms, strict=True):
        assert one.shape == wanted.shape
        assert ((one - wanted).abs() <= 1e-6 * scale).all()


def close(found: list[Tensor], wanted: list[Tensor], within: float = 3e-6) -> None:
    """Within a few roundings of float32, on the scale of the whole."""
    scale = max([1.0, *(part.abs().max().item() for part in wanted if part.numel())])
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        if other.numel():
            assert (one.double() - other).abs().max().item() <= within * scale


def doubled(args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, weight, *others = args
    return [part.double() for part in x], weight.double(), *others


@settings(max_examples=150, deadline=None)
@given(matrices())
@example(
    ([normal(700, 3)], normal(3, 70), False, 1, [1, 70], [0, 1])
)  # more rows than are packed at once, more channels than a panel
@example(([normal(3, 700)], normal(90, 700), True, 1, [1, 90], [0, 1]))
@example(([normal(1400, 600)], normal(600, 40), False, 1, [2, 5, 8], [0, 1, 2]))
@example(
    ([torch.linspace(-1, 1, 27000)[:, None]], torch.ones(1, 1), False, 1, [1, 1], [0, 1])
)  # its gradient cancels to a small part of what is added
def test_a_product_in_parts_is_what_it_says(args: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    x, weight, _, rows, _, orders = args
    y = ops.mixed(*args)
    as_exact(y, lambda x, weight: by_the_book(x, *weight, *args[2:]), x, [weight])
    g = [torch.randn(part.shape) for part in y]

    def back(x: list[Tensor], g: list[Tensor]) -> list[Tensor]:
        one, other = (torch.cat([joined(part, rows) for part in parts], -1) for parts in (x, g))
        return [torch.einsum("...i,...j->ij", one, other)]

    as_exact([ops.mixed_back(x, g, rows)], back, x, g)
    for part in y:  # they lie as they were asked to
        order, orders = orders[: part.dim()], orders[part.dim() :]
        assert part.permute(order).is_contiguous()


@pytest.mark.parametrize("rows", [64, 700])
def test_products_are_as_exact_as_those_of_float32(rows: int) -> None:
    """Also by AMX, of three bfloat16 for a float: no digit of any size is lost."""
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(size, generator=generator) for size in ((rows, 1200), (1200, 700)))
    x *= 10.0 ** torch.randint(-12, 12, (rows, 1), generator=generator)
    weight *= 10.0 ** torch.randint(-12, 12, (700,), generator=generator)

    def worst(found: Tensor, one: Tensor, other: Tensor) -> float:
        one, other = one.double(), other.double()
        return ((found - one @ other).abs() / (one.abs() @ other.abs())).max().item()

    def in_order(one: Tensor, other: Tensor) -> Tensor:
        """As float32 sums it one by one: how a library does depends on the processor."""
        total = torch.zeros(len(one), other.shape[1])
        for column, row in zip(one.T, other, strict=True):
            total += column[:, None] * row
        return total

    g = x[:, :700].contiguous() * 3
    for found, one, other in (
        (ops.mixed([x], weight, False, 1, [1, 700], [0, 1])[0], x, weight),
        (ops.mixed([g], weight, True, 1, [1, 1200], [0, 1])[0], g, weight.T),
        (ops.mixed_back([x], [g], 1), x.T, g),
    ):
        assert worst(found, one, other) <= min(2 * worst(in_order(one, other), one, other), 1e-6)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.40282e38, 1e-42])
def test_what_is_no_number_comes_out_as_in_float32(value: float) -> None:
    """Three bfloat16 of an infinity are none: it goes the way of vectors."""
    x, weight = torch.rand(64, 600) + 1, torch.rand(600, 500) / 1000
    x[5, 7] = value
    wanted = x.double() @ weight.double()
    y = ops.mixed([x], weight, False, 1, [1, 500], [0, 1])[0]
    assert torch.allclose(y.double(), wanted, rtol=1e-5, equal_nan=True)
    wanted = x.double().T @ x.double()[:, :500]
    y = ops.mixed_back([x], [x[:, :500].contiguous()], 1)
    assert torch.allclose(y.double(), wanted.float().double(), rtol=1e-5, equal_nan=True)


def test_products_without_amx() -> None:
    """What a processor without it runs, in a process that is told not to use it."""
    chosen = "a_product_in_parts or as_exact or no_number"
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", chosen]
    done = subprocess.run(
        command, env={**os.environ, "SYMCOMPILE_AMX": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


@settings(max_examples=40, deadline=None)
@given(matrices())
def test_gradients_of_a_product_in_parts(args: tuple[Any, ...]) -> None:
    """Of the first degree and the second; many at once are those one by one."""
    results = []
    for compute, (x, weight, *others) in ((ops.mixed, args), (by_the_book, doubled(args))):
        asked = [part.clone().requires_grad_() for part in (*x, weight)]
        y = compute(asked[:-1], asked[-1], *others)
        g = [torch.ones_like(part) * (1 + k) for k, part in enumerate(y)]
        g = [part.cumsum(-1).requires_grad_() for part in g]
        first = torch.autograd.grad(y, asked, g, create_graph=True)
        second = torch.autograd.grad(sum((part**2).sum() for part in first), [*asked, *g])
        both = [torch.stack([part, -part]).detach() for part in g]
        y = compute(asked[:-1], asked[-1], *others)
        many = torch.autograd.grad(y, asked, both, is_grads_batched=True)
        results.append([first, second, many])
    for found, wanted in zip(*results, strict=True):
        for one, other in zip(found, wanted, strict=True):
            close([one], [other], 2e-5)


def test_gradients_of_some() -> None:
    """What needs none is not made, and what has none counts as zero."""
    x, weight = [torch.randn(3, 5, 8), torch.randn(3, 5, 9)], torch.randn(17, 20)
    args = False, 2, [1, 4, 1, 16], [0, 1, 2, 0, 1, 2]
    x[1].requires_grad_()
    first, second = ops.mixed(x, weight, *args)
    (found,) = torch.autograd.grad(second.sum(), [x[1]])
    close([found], [(weight[8:, 4:].double().sum(1)).expand(3, 5, 9)])
    assert first.requires_grad


def test_they_are_operators_as_torch_holds_them_to() -> None:
    x = [torch.randn(3, 5, 7), torch.randn(3, 4, 5, 6).movedim(1, 2), torch.randn(3, 5, 16)]
    weight = torch.randn(47, 50)
    for part in (*x, weight):
        part.requires_grad_()
    args = x, weight, False, 2, [1, 10, 2, 4, 10], [0, 1, 2, 0, 2, 1, 3]
    torch.library.opcheck(ops.mixed.default, args)
    g = [torch.randn(3, 5, 10, requires_grad=True), torch.randn(3, 5, 40, requires_grad=True)]
    torch.library.opcheck(ops.mixed_back.default, (x, g, 2))


def test_parts_without_channels_are_nothing() -> None:
    x, weight = [torch.ones(3, 0), torch.ones(3, 5)], torch.ones(5, 4)
    empty, found = ops.mixed(x, weight, False, 1, [1, 0, 1, 4], [0, 1, 0, 1])
    assert empty.shape == (3, 0)
    assert (found == 5).all()
    assert (ops.mixed_back(x, [empty, found], 1) == 15).all()


def test_results_can_be_changed_in_place() -> None:
    """Autograd forbids it of views that an operator made."""
    x = [torch.randn(3, 5, requires_grad=True)]
    (y,) = ops.mixed(x, torch.ones(5, 4), False, 1, [2, 2, 2], [1, 0, 2])
    y += 1
    y.sum().backward()
    assert (x[0].grad == 4).all()


def test_what_does_not_fit_is_refused() -> None:
    x, weight = [torch.randn(3, 5)], torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"expected equal axes of rows and a weight \(5, 4\)"):
        ops.mixed(x, weight, False, 1, [1, 4], [0, 1])
    with pytest.raises(ValueError, match="axes of rows"):
        ops.mixed([*x, torch.randn(4, 1)], weight, False, 1, [1, 4], [0, 1])
    with pytest.raises(ValueError, match="float32"):
        ops.mixed([x[0].double()], torch.randn(5, 4), False, 1, [1, 4], [0, 1])
    with pytest.raises(ValueError, match="the last axis"):
        ops.mixed(x, torch.randn(5, 4), False, 1, [1, 4], [1, 0])
    with pytest.raises(ValueError, match="axes of rows differ"):
        ops.mixed_back(x, [torch.randn(4, 1)], 1)


SPECS: dict[str, Any] = {
    "cnn": workload("cnn").spec,
    "fixed ends": {
        "k0": (sc.Fixed(40), "a"),
        "b0": ("a",),
        "k1": ("a", sc.Fixed(7), sc.Fixed(5)),
        "b1": (sc.Fixed(5),),
    },
    "fixed before and after": {"k": (sc.Fixed(8), "a", sc.Fixed(5)), "b": ("a",)},
    "wide sums": {"k": ("a", "b", sc.Fixed(40)), "b": ("b",)},  # accumulated into a wide product
}


def a_layer(name: str) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    spec = SPECS[name]
    layer = sc.compile(spec, in_channels=16, out_channels=16, dtype="float32")
    sizes = {"a": 33, "b": 7}
    leaves = layer.spec.leaves
    shapes = [
        [size_of(axis, {**sizes, **dict(layer.spec.sizes)}) for axis in leaf.axes]
        for leaf in leaves
    ]
    return layer, [torch.randn(4, *shape, 16) for shape in shapes]


def size_of(axis: Any, sizes: dict[Any, int]) -> int:
    from symcompile.spec import Fixed, axis_atoms

    atoms = axis_atoms(axis)
    return prod([a.size if isinstance(a, Fixed) else sizes[a.label] for a in atoms])


def outputs(layer: Any, leaves: list[Tensor]) -> list[Tensor]:
    from symcompile.spec import flatten_like, unflatten

    return flatten_like(layer.spec, layer(unflatten(layer.spec, leaves)), "y")


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_read_where_it_lies(transposed: bool, monkeypatch: Any) -> None:
    """A transposed view is no copy: the gradients of a layer give such weights."""
    read: list[Tensor] = []
    call = products.call

    def watched(name: str, width: int, *args: Any) -> None:
        read.extend(arg for arg in args if isinstance(arg, Tensor))
        call(name, width, *args)

    monkeypatch.setattr(products, "call", watched)
    weight = normal(20, 24).T
    x = normal(5, 20 if transposed else 24)
    shape = [1, 24 if transposed else 20]
    (y,) = ops.mixed([x], weight, transposed, 1, shape, [0, 1])
    torch.testing.assert_close(y, x @ (weight.T if transposed else weight))
    assert [part.data_ptr() for part in read] == [weight.data_ptr()]


@pytest.mark.parametrize("name", SPECS)
def test_a_layer_in_parts_is_the_layer(name: str, monkeypatch: Any) -> None:
    layer, leaves = a_layer(name)
    assert "_mixed(" in layer.source
    exact = copy.deepcopy(layer).double()
    results = []
    called: list[str] = []
    call = products.call
    kept = [leaf.clone() for leaf in leaves]
    monkeypatch.setattr(
        products, "call", lambda name, *args: (called.append(name), call(name, *args))
    )
    for one, kind in ((layer, torch.float32), (exact, torch.float64)):
        asked = [leaf.to(kind).requires_grad_() for leaf in leaves]
        y = outputs(one, asked)
        g = [torch.ones_like(part).cumsum(-1) for part in y]
        found = torch.autograd.grad(y, [*asked, *one.parameters()], g)
        with torch.no_grad():
            again = outputs(one, asked)  # sums are made in place then
        results.append(([*y, *again], found))
    assert {"symcompile_product", "symcompile_product_back"} <= {*called}
    assert all(map(torch.equal, leaves, kept))
    (y, found), (wanted_y, wanted) = results
    close(y, wanted_y)
    for one, other in zip(found, wanted, strict=True):
        close([one / max(other.abs().max(), 1)], [other / max(other.abs().max(), 1)])


@pytest.mark.parametrize("name", SPECS)
def test_without_kernels_it_is_the_same_layer(name: str, monkeypatch: Any) -> None:
    layer, leaves = a_layer(name)
    expected = outputs(layer, leaves)
    monkeypatch.setattr(sys.modules[type(layer).__module__], "_KERNELS", False)
    found = outputs(layer, leaves)
    close(found, [part.double() for part in expected], 1e-5)
    with torch.no_grad():
        alone = outputs(layer, leaves)
    close(alone, [part.double() for part in expected], 1e-5)
    large = [part for part in alone if part.numel() > 2**10]
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in large)
    each = torch.func.vmap(lambda *x: tuple(outputs(layer, [*x])))(*leaves)
    close([*each], [part.double() for part in expected], 1e-5)


def test_nothing_is_put_together_or_taken_apart() -> None:
    """Forward, the flattened layer is read and written where it is stored."""
    layer, leaves = a_layer("cnn")
    large = leaves[-1].numel()
    copies: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.numel() >= large:
                copies.extend([str(func)] * any(k in str(func) for k in ("copy", "clone", "cat")))
            return made

    with torch.no_grad(), Watch():
        y = outputs(layer, leaves)
    assert copies == []
    assert y[-1].is_contiguous()


def test_torch_compile_keeps_it_whole() -> None:
    layer, leaves = a_layer("fixed ends")
    expected = outputs(layer, leaves)
    from symcompile.spec import flatten_like, unflatten

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = flatten_like(layer.spec, compiled(unflatten(layer.spec, leaves)), "y")
    close(found, [part.double() for part in expected], 1e-5)
