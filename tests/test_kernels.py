"""The CPU kernels: held to float64, to PyTorch's own checks, and to layers without them."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import symcompile as sc
from symcompile_kernels import build as building
from symcompile_torch.kernels import AVAILABLE
from tests import operator_laws as laws
from tests.kernel_cases import CHANNELS, SIZES, recipes, views
from tests.operator_laws import close, doubled, draw, sum_of

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the kernels were not compiled here")

ops = torch.ops.symcompile


@settings(max_examples=150)
@given(recipes())
def test_a_sum_is_what_it_says(recipe) -> None:  # type: ignore[no-untyped-def]
    laws.a_sum_is_what_it_says(recipe)


@settings(max_examples=60)
@given(recipes())
def test_gradients_of_a_sum(recipe) -> None:  # type: ignore[no-untyped-def]
    laws.gradients_of_a_sum(recipe)


@settings(max_examples=60)
@given(st.tuples(*[st.integers(0, 12)] * 3), st.integers(1, 40), st.booleans(), st.integers(0, 9))
def test_sums_over_two_axes_and_back(sizes, width, mean, seed) -> None:  # type: ignore[no-untyped-def]
    laws.sums_over_two_axes_and_back(sizes, width, mean, seed)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def hold_to_means(x: Tensor, axis: int) -> None:
    """The means over an axis and the next one, and their gradients, against float64."""
    leaf = x.detach().requires_grad_()
    exact = x.detach().double().requires_grad_()
    found, wanted = ops.sums(leaf, axis, True), (exact.mean(axis), exact.mean(axis + 1))
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
        assert a.is_contiguous()
    cotangents = [torch.linspace(-1, 1, b.numel()).view(b.shape) for b in wanted]
    (to_x,) = torch.autograd.grad(found, leaf, cotangents)
    (to_exact,) = torch.autograd.grad(wanted, exact, [part.double() for part in cotangents])
    close(to_x, to_exact)


def read_from(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where what the kernel of two sums reads lies, of all its calls from now on."""
    import symcompile_torch.kernels as kernels

    places: list[int] = []
    call = kernels.call

    def noted(name, *args):  # type: ignore[no-untyped-def]
        if name == "symcompile_sums":
            places.append(next(arg for arg in args if isinstance(arg, Tensor)).data_ptr())
        call(name, *args)

    monkeypatch.setattr(kernels, "call", noted)
    return places


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rank", SIZES)
def test_means_of_views_are_read_as_they_lie(rank, channels, monkeypatch, two_threads) -> None:  # type: ignore[no-untyped-def]
    """Whatever the order of axes, those between both and the channels among them."""
    whole = draw(np.random.default_rng(0), *SIZES[rank], channels)
    places, in_place = read_from(monkeypatch), 0
    for order, axis in views(rank):
        hold_to_means(whole.permute(order), axis)
        in_place += bool(places)  # else there were too few rows
        assert places == [whole.data_ptr()] * len(places)
        places.clear()
    assert in_place >= len(views(rank)) / 2


@pytest.mark.parametrize("channels", CHANNELS)
def test_means_of_parts_are_read_as_they_lie(channels, monkeypatch, two_threads) -> None:  # type: ignore[no-untyped-def]
    """Every other row, a part of every axis, one row repeated, steps that overlap."""
    rng = np.random.default_rng(1)
    whole = draw(rng, 6, 40, 42, channels + 10)
    places = read_from(monkeypatch)
    for x in (
        whole[::2],
        whole[1:, 3:, 5:, 1:-1],
        whole[:, ::3, ::2, 2:],
        whole[:, :1].expand(-1, 40, -1, -1),
        whole[:, :, :1].expand(-1, -1, 42, -1).transpose(1, 2),
        whole.as_strided((6, 40, 42, channels), (7, 3, 11, 1)),
        *(whole[..., :few] for few in (2, 3, 7, 12)),  # vectors that are not full
    ):
        hold_to_means(x, 1)
        assert places == [x.data_ptr()] * len(places)
        assert places
        places.clear()
    wide = draw(rng, 6, 40, 42, 2 * channels)
    for x in (wide[..., ::2], whole.transpose(-1, -2)):  # no channels side by side
        hold_to_means(x, 1)
        assert places
        assert x.data_ptr() not in places
        places.clear()
    hold_to_means(whole[..., :1], 1)  # PyTorch's own are quicker
    assert not places
    x = draw(rng, *[2] * 8, 3, 4, channels).transpose(0, 1)  # more axes than there is room for
    for found, k in zip(ops.sums(x, 8, True), (8, 9), strict=True):
        close(found, x.double().mean(k))
    assert places


def test_few_rows_of_a_view_are_the_axis_of_shorter_steps(monkeypatch, two_threads) -> None:  # type: ignore[no-untyped-def]
    """Threads share rows, either axis's, and where neither has enough PyTorch makes both means."""
    whole = draw(np.random.default_rng(2), 2, 300, 3, 8)
    places = read_from(monkeypatch)
    for order, axis, used in (
        ((0, 1, 2, 3), 1, True),
        ((0, 2, 1, 3), 1, True),
        ((1, 0, 2, 3), 0, True),
        ((0, 1, 2, 3), 0, False),
        ((2, 0, 1, 3), 0, False),
    ):
        hold_to_means(whole.permute(order), axis)
        assert bool(places) == used
        places.clear()


def test_layers_read_views_once(monkeypatch, two_threads) -> None:  # type: ignore[no-untyped-def]
    """Not where a product holds them: its gradients are of arrays that lie as they are read."""
    layer, _ = a_layer("mlp")
    helpers = type(layer).forward.__globals__
    x = draw(np.random.default_rng(3), 4, 64, 40, 16)
    called = counted(monkeypatch)
    for view, times in ((x, 1), (x.movedim(0, 2), 1), (x.movedim(1, 0), 1), (x.movedim(3, 1), 0)):
        found = helpers["_two_means"](view, -3, view.shape[-3:-1])
        assert called.count("symcompile_sums") == times
        for k, mean in enumerate(found):
            close(mean, view.double().mean(k + 1))
        called.clear()
    leaf, weight = x.movedim(0, 2).requires_grad_(), torch.eye(16)
    *_, held = helpers["_two_means_held"](leaf, -3, leaf.shape[-3:-1], weight)
    assert held is None
    assert called == ["symcompile_sums"]


@pytest.mark.parametrize(
    ("batch", "rows", "count", "inner", "depth", "width"),
    [(2, 13, 11, 1, 5, 7), (3, 29, 30, 1, 16, 16), (1, 17, 3, 4, 33, 40), (2, 1, 1, 1, 8, 8)],
)
def test_all_gradients_at_once(batch, rows, count, inner, depth, width) -> None:  # type: ignore[no-untyped-def]
    laws.all_gradients_at_once(batch, rows, count, inner, depth, width)


@settings(max_examples=60)
@given(
    st.tuples(*[st.integers(0, 12)] * 4),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 9),
)
def test_gradients_of_means_and_a_sum_together(sizes, depth, width, mean, seed) -> None:  # type: ignore[no-untyped-def]
    laws.gradients_of_means_and_a_sum_together(sizes, depth, width, mean, seed)


@settings(max_examples=60)
@given(
    st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 40)),
    st.lists(st.integers(1, 4), min_size=1, max_size=2),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(0, 9),
)
def test_channels_of_several_axes_are_as_joined(rows, taps, line, width, seed) -> None:  # type: ignore[no-untyped-def]
    laws.channels_of_several_axes_are_as_joined(rows, taps, line, width, seed)


def test_long_sums_keep_their_digits() -> None:
    """Sums of 200,000 equal terms, which float32 gets wrong by 1e-3 if it adds them up in order."""
    x = torch.full((1, 200_000, 2, 16), 0.1)
    exact = x.double()
    for tall in (x, x.transpose(1, 2).contiguous()):
        for mean in ops.sums(tall, 1, True):
            assert (mean - exact.mean()).abs().max() < 1e-5 * exact.mean()
    outer = exact.square().sum((0, 1, 2))
    assert (ops.outer(x, [0, 1, 2], x) - outer).abs().max() < 1e-6 * outer.max()
    in_order = np.add.accumulate(x[0, :, 0, 0].numpy(), dtype=np.float32)[-1] / 200_000
    assert abs(in_order - exact.mean()) > 1e-4 * exact.mean()


@pytest.mark.parametrize("sizes", [(2, 37, 19), (3, 2, 5, 301), (1, 9, 40)])
def test_products_across_are_computed_in_blocks(sizes) -> None:  # type: ignore[no-untyped-def]
    """Of places that blocks do not divide, by threads of which some get nothing."""
    rng, axes = np.random.default_rng(5), len(sizes)
    across = [*range(axes - 2), axes - 1, axes - 2]
    x, turned = draw(rng, *sizes, 16), draw(rng, *(sizes[axis] for axis in across), 16)
    weights, term = [draw(rng, 16, 12), draw(rng, 16, 12)], draw(rng, *sizes[:-1], 1, 12)
    given = [x, turned], weights, [0, 1], [*range(axes), *across], [term]
    exact = doubled([x, turned]), doubled(weights), *given[2:4], doubled([term])
    wanted = sum_of(*exact)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            close(ops.linear_sum(*given), wanted)
    finally:
        torch.set_num_threads(before)


def test_long_rows_past_the_caches() -> None:
    """Rows in several parts, of a result that is streamed; those of one product do not touch, and
    those of another lie across."""
    rng = np.random.default_rng(7)
    x, beside = draw(rng, 64, 2100, 16), draw(rng, 64, 2100, 24)[..., 3:19]
    values, orders = [x, beside, draw(rng, 2100, 64, 16)], [0, 1, 0, 1, 1, 0]
    weights = [draw(rng, 16, 16) for _ in values]
    terms = [draw(rng, 64, 1, 16), draw(rng, 2100, 16)]
    before = torch.get_num_threads()
    try:
        for count in (2, 3):  # the third makes blocks of the first axis
            given = values[:count], weights[:count], [*range(count)], orders[: 2 * count], terms
            wanted = sum_of(*map(doubled, given[:2]), *given[2:4], doubled(terms))
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                close(ops.linear_sum(*given), wanted)
    finally:
        torch.set_num_threads(before)


def test_any_number_of_threads() -> None:
    rng = np.random.default_rng(3)
    x, weight, term = draw(rng, 3, 50, 60, 16), draw(rng, 16, 16), draw(rng, 3, 1, 60, 16)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            wanted = x.double() @ weight.double() + term.double()
            close(ops.linear_sum([x], [weight], [0], [0, 1, 2], [term]), wanted)
            close(ops.sums(x, 1, False)[0], x.double().sum(1))
            wanted = x.double().view(-1, 16).t() @ x.double().view(-1, 16)
            close(ops.outer(x, [0, 1, 2], x), wanted)
    finally:
        torch.set_num_threads(before)


def test_pytorch_finds_no_fault_with_the_operators() -> None:
    laws.pytorch_finds_no_fault_with_the_operators()


def test_what_the_kernels_have_no_room_for_is_refused() -> None:
    x, weight = torch.ones(2, 3), torch.ones(3, 3)
    with pytest.raises(ValueError, match="more than 8"):
        ops.linear_sum([x], [weight], [0], [0], [x] * 9)
    wide = x.double()
    for call in (
        lambda: ops.linear_sum([wide], [weight.double()], [0], [0], []),
        lambda: ops.sums(wide[:, None], 0, True),
        lambda: ops.outer(wide, [0], wide),
        lambda: ops.back(wide[:, None], wide[:, None], weight.double(), 0),
    ):
        with pytest.raises(ValueError, match="float32 only"):
            call()
    with pytest.raises(ValueError, match=r"found \(2, 3\) times \(4, 3\)"):
        ops.linear_sum([x], [torch.ones(4, 3)], [0], [0], [])
    with pytest.raises(ValueError, match="expected the axes"):
        ops.linear_sum([x, torch.ones(5, 3)], [weight, weight], [0, 1], [0, 0], [])
    y = torch.ones(1, 40, 40, 3)
    with pytest.raises(ValueError, match=r"expected \(1, 40, 3\)"):
        ops.back_from(y, y, weight, 1, torch.ones(1, 40, 4), torch.ones(1, 40, 3))
    with pytest.raises(ValueError, match="axes differ"):
        ops.outer(x, [0], torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"found a term \(5, 3\), expected one that broadcasts"):
        ops.linear_sum([x], [weight], [0], [0], [torch.ones(5, 3)])
    y = torch.ones(5, 6, 3)
    for orders in ([0, 0], [0, 2]):  # they would read what is not theirs
        with pytest.raises(ValueError, match="found the order"):
            ops.linear_sum([y], [weight], [0], orders, [])
    with pytest.raises(ValueError, match=r"found the order \[0\] of axes of \(5,\)"):
        ops.linear_sum([torch.ones(5)], [weight[:1]], [0], [0], [])
    assert (ops.linear_sum([y], [weight], [0], [0, 1], [torch.tensor(2.0)]) == 5).all()


def test_a_term_of_one_channel_is_no_pair_with_another() -> None:
    rng = np.random.default_rng(0)
    leaves = (
        draw(rng, 2, 9, 8, 16),
        draw(rng, 16, 16),
        draw(rng, 2, 9, 1, 16),
        draw(rng, 2, 9, 8, 1),
    )
    found, wanted = [], []
    for asked, dtype in ((found, torch.float32), (wanted, torch.float64)):
        x, weight, *terms = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        if dtype is torch.float32:
            y = ops.linear_sum([x], [weight], [0], [0, 1, 2], terms)
        else:
            y = x @ weight + terms[0] + terms[1]
        asked += torch.autograd.grad((y**2).sum(), (x, weight, *terms))
    for one, other in zip(found, wanted, strict=True):
        close(one, other, 1e-5)
    with pytest.raises(ValueError, match="expected two before channels"):
        ops.back(leaves[0], leaves[0], leaves[1], 2)


def test_a_term_is_broadcast_over_channels_too() -> None:
    x, weight = torch.ones(2, 3), torch.ones(3, 3)
    y = ops.linear_sum([x], [weight], [0], [0], [torch.tensor([[1.0], [2.0]])])
    assert torch.equal(y, torch.tensor([[4.0], [5.0]]).expand(2, 3))


def test_few_rows_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads could not share them: four rows make a part."""
    called = counted(monkeypatch)
    x = draw(np.random.default_rng(0), 1, 4, 5000, 16)
    weight = torch.eye(16)
    first, second = ops.sums(x, 1, False)
    to_x, to_weight, *sums = ops.back(x, x, weight, 1)
    assert not {"symcompile_sums", "symcompile_back"} & set(called)
    close(to_x, x.double())
    close(to_weight, x.double().view(-1, 16).t() @ x.double().view(-1, 16))
    for found, axis in zip((first, second, *sums), (1, 2, 1, 2), strict=True):
        close(found, x.double().sum(axis))


# -- layers ---------------------------------------------------------------------------------

SPECS = {
    "mlp": ({"w0": (0, 1), "b0": (1,), "w1": (1, 2), "b1": (2,)}, {0: 70, 1: 90, 2: 60}),
    "graph": ({"x": ("n", "n")}, {"n": 80}),
    "triples": ({"x": ("n", "n", "n")}, {"n": 18}),
    "block": ({"in": ("e", "m"), "out": ("m", "e"), "b": ("m",)}, {"e": 70, "m": 90}),
    "heads": (
        {"k": ("e", "h", "q"), "q": ("e", "h", "q"), "b": ("h", "q")},
        {"e": 30, "h": 5, "q": 40},
    ),
    "rnn": ({"in": ("i", "h"), "cell": ("h", "h"), "b": ("h",)}, {"i": 60, "h": 80}),
    "taps": (
        {"k0": (sc.Fixed(3), sc.Fixed(3), 0, 1), "b0": (1,), "k1": (1, sc.Fixed(2), 2)},
        {0: 24, 1: 36, 2: 40},
    ),
}


def shape_of(labels, sizes):  # type: ignore[no-untyped-def]
    return [part.size if isinstance(part, sc.Fixed) else sizes[part] for part in labels]


def a_layer(name: str, channels: int = 16):  # type: ignore[no-untyped-def]
    """A layer large enough for kernels, and its inputs."""
    spec, sizes = SPECS[name]
    torch.manual_seed(0)
    layer = sc.compile(spec, in_channels=channels, out_channels=channels, sizes=sizes)
    inputs = {
        key: torch.randn(3, *shape_of(labels, sizes), channels) for key, labels in spec.items()
    }
    return layer, inputs


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are called from now on."""
    import symcompile_torch.kernels as kernels

    called: list[str] = []
    call = kernels.call
    monkeypatch.setattr(
        kernels, "call", lambda name, *args: (called.append(name), call(name, *args))
    )
    return called


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("channels", [8, 16, 24])
def test_a_layer_by_kernels_is_the_layer(name, channels, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    layer, inputs = a_layer(name, channels)
    called = counted(monkeypatch)
    leaves = {key: value.requires_grad_() for key, value in inputs.items()}
    y = layer(leaves)
    assert "symcompile_sum" in called
    cotangents = [torch.randn_like(value) for value in y.values()]
    asked = [*leaves.values(), *layer.parameters()]
    found = torch.autograd.grad([*y.values()], asked, cotangents)
    assert {"symcompile_outer", "symcompile_back"} & set(called)
    exact = layer.double()
    doubles = {key: value.detach().double().requires_grad_() for key, value in inputs.items()}
    wanted_y = exact(doubles)
    wanted = torch.autograd.grad(
        [*wanted_y.values()],
        [*doubles.values(), *exact.parameters()],
        [cotangent.double() for cotangent in cotangents],
    )
    for key in y:
        close(y[key], wanted_y[key])
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 5e-6 * max(b.abs().max(), 1.0)


def test_fixed_axes_are_joined_by_nobody(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Kernels read kernels of convolutions as they lie: no copy with their taps moved is made."""
    import symcompile_torch.kernels as kernels

    layer, inputs = a_layer("taps")
    places: dict[str, set[int]] = {}
    call = kernels.call

    def noted(name, *args):  # type: ignore[no-untyped-def]
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        tensors += [part for arg in args if isinstance(arg, list) for part in arg]
        read = {part.data_ptr() for part in tensors if isinstance(part, Tensor)}
        places.setdefault(name, set()).update(read)
        call(name, *args)

    monkeypatch.setattr(kernels, "call", noted)
    with torch.no_grad():
        y = layer(inputs)
    leaves = {inputs[key].data_ptr() for key in ("k0", "k1")}
    assert leaves <= places["symcompile_sum"]
    assert leaves <= places["symcompile_sums"]
    monkeypatch.setattr(sys.modules[type(layer).__module__], "_KERNELS", False)
    for key, value in layer(inputs).items():
        close(y[key], value.double())


def test_compiled_the_kernels_serve_too(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    layer, inputs = a_layer("mlp")
    leaves = {key: value.requires_grad_() for key, value in inputs.items()}
    wanted = layer(leaves)
    to_wanted = torch.autograd.grad(
        sum(v.square().sum() for v in wanted.values()), [*leaves.values()]
    )
    called = counted(monkeypatch)
    y = torch.compile(layer, fullgraph=True)(leaves)
    assert "symcompile_sum" in called
    found = torch.autograd.grad(sum(v.square().sum() for v in y.values()), [*leaves.values()])
    assert "symcompile_back" in called
    for a, b in zip((*y.values(), *found), (*wanted.values(), *to_wanted), strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(b.abs().max(), 1.0)


@pytest.mark.parametrize(("n", "used"), [(5000, True), (4000, False)])
def test_compiled_a_large_mean_is_pytorchs_own(n: int, used: bool) -> None:
    """Inductor's takes twice as long over an outer axis; small ones it puts beside other ops."""
    layer = sc.compile({"x": (0,)}, backend="torch", in_channels=64, out_channels=64)
    called: list[object] = []

    def noting(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        for part in graph.modules():
            called.extend(node.target for node in part.graph.nodes)
        return graph

    x = torch.randn(4, n, 64, generator=torch.Generator().manual_seed(n), requires_grad=True)
    y = torch.compile(layer, backend=noting, fullgraph=True)({"x": x})["x"]
    assert (torch.ops.symcompile.mean in called) == used
    assert torch.ops.symcompile.linear_sum in called
    wanted = layer({"x": x})["x"]
    close(y, wanted.double())
    pairs = [torch.autograd.grad(made.square().sum(), x)[0] for made in (y, wanted)]
    close(pairs[0], pairs[1].double())


@pytest.mark.parametrize(
    ("channels", "used"), [((2, 2), 1), ((12, 12), 1), ((16, 16), 1), ((20, 20), 1), ((1, 16), 0)]
)
def test_means_of_one_channel_are_left_to_pytorch(channels, used, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    called = counted(monkeypatch)
    layer = sc.compile({"w": (0, 1)}, in_channels=channels[0], out_channels=channels[1])
    layer({"w": torch.randn(8, 128, 128, channels[0])})
    assert called.count("symcompile_sum") == 1
    assert called.count("symcompile_sums") == used


def test_a_sum_of_one_channel_is_left_to_pytorch_but_for_its_gradients(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    layer = sc.compile({"w": (0, 1)}, in_channels=16, out_channels=1)
    x = {"w": torch.randn(9, 128, 128, 16)}
    called = counted(monkeypatch)
    with torch.no_grad():
        y = layer(x)["w"]
    assert called == ["symcompile_sums"]
    layer.bias.requires_grad_(False)  # autograd goes op by op
    close(layer(x)["w"], y.double())
    assert "symcompile_sum" in called


@pytest.mark.parametrize("channels", [(1, 16), (2, 2), (3, 20), (32, 3), (16, 1)])
def test_few_channels_on_one_side(channels, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """As of the first layer of a network and of the last."""
    torch.manual_seed(0)
    layer = sc.compile({"w": (0, 1), "b": (1,)}, in_channels=channels[0], out_channels=channels[1])
    exact = copy.deepcopy(layer).double()
    x = [torch.randn(9, 128, 128, channels[0]), torch.randn(9, 128, channels[0])]
    called = counted(monkeypatch)

    def run(layer, dtype):  # type: ignore[no-untyped-def]
        w, b = (part.to(dtype).requires_grad_() for part in x)
        y = layer({"w": w, "b": b})
        loss = sum(made.cos().sum() for made in y.values())
        return *y.values(), *torch.autograd.grad(loss, [w, b, *layer.parameters()])

    found = run(layer, torch.float32)
    # Of one channel a library is as quick forward; gradients are made at once all the same.
    assert ("symcompile_sum" if channels[1] > 1 else "symcompile_back") in called
    assert {"symcompile_outer", "symcompile_back"} & {*called}
    for one, other in zip(found, run(exact, torch.float64), strict=True):
        assert (one - other).abs().max() <= 2e-5 * max(other.abs().max(), 1.0)


@pytest.mark.parametrize("name", ["mlp", "graph", "taps"])
def test_checkpoints_and_many_gradients_at_once(name: str) -> None:
    layer, inputs = a_layer(name)
    leaves = {key: value.requires_grad_() for key, value in inputs.items()}
    first = next(iter(leaves))
    for weight in layer.parameters():
        weight.requires_grad_(name == "graph")
    y = layer(leaves)[first]
    cotangents = torch.randn(3, *y.shape)
    each = [
        torch.autograd.grad(y, leaves[first], part, retain_graph=True)[0] for part in cotangents
    ]
    (together,) = torch.autograd.grad(
        y, leaves[first], cotangents, is_grads_batched=True, retain_graph=True
    )
    again = torch.utils.checkpoint.checkpoint(layer, leaves, use_reentrant=False)[first]
    (kept,) = torch.autograd.grad(again, leaves[first], cotangents[0])
    scale = 1e-5 * together.abs().max()
    assert (together - torch.stack(each)).abs().max() <= scale
    assert (kept - each[0]).abs().max() <= scale


@pytest.mark.parametrize("all_learn", [True, False])
def test_no_gradient_comes_back_where_none_arrives(all_learn: bool) -> None:
    layer = sc.compile({"k": ("a", "b"), "b": ("b",)}, in_channels=8, out_channels=16)
    x = {"k": torch.randn(8, 64, 64, 8, requires_grad=True), "b": torch.randn(8, 64, 8)}
    x["b"].requires_grad_(all_learn)
    scale = torch.ones(16, requires_grad=True)
    # Runs the layer's nodes without a gradient: the function within cuts it off.
    torch.utils.checkpoint.checkpoint(
        lambda y, scale: (y.detach() * scale).sum(), layer(x)["b"], scale, use_reentrant=True
    ).backward()
    assert scale.grad is not None
    if all_learn:  # one node: zeros
        assert not x["k"].grad.any()
    else:
        assert x["k"].grad is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_gradients_of_dual_numbers(name: str, again: bool) -> None:
    """Of a graph that was made before: their tangents are the gradients of the tangents."""
    layer, inputs = a_layer(name)
    leaves = [*({key: value.requires_grad_() for key, value in inputs.items()}.values())]
    leaves += layer.parameters()
    y = [*layer(inputs).values()]
    grads, tangents = ([torch.randn_like(value) for value in y] for _ in range(2))
    wanted = torch.autograd.grad(y, leaves, tangents, retain_graph=True)
    dual = torch.autograd.forward_ad
    with dual.dual_level():
        given = [dual.make_dual(*pair) for pair in zip(grads, tangents, strict=True)]
        found = torch.autograd.grad(y, leaves, given, retain_graph=True, create_graph=again)
        for one, exact in zip(found, wanted, strict=True):
            tangent = dual.unpack_dual(one).tangent
            assert (tangent - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_what_is_held_for_a_sum_holds_nothing_else() -> None:
    """Neither inputs that learn nothing, nor arrays that nothing asks for."""
    layer, inputs = a_layer("mlp")
    for name, weight in layer.named_parameters():
        weight.requires_grad_(name == "mix_0_1")
    y = layer(inputs)
    assert [key for key in y if y[key].requires_grad] == ["w0"]
    leaves = {key: value.requires_grad_() for key, value in inputs.items()}
    changed = {key: value * 1 for key, value in leaves.items()}
    y = layer(changed)["b0"]  # made of means alone
    with torch.no_grad():
        changed["w0"].add_(1)
        layer.mix_0_1.add_(1)
    wanted = torch.autograd.grad(layer(leaves)["b0"].sum(), leaves["w0"])[0]
    close(torch.autograd.grad(y.sum(), leaves["w0"])[0], wanted)
    y = layer(changed)["w0"]
    with torch.no_grad():
        changed["w0"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_autograd() -> None:
    layer, inputs = a_layer("mlp")
    found = []
    for compiled in (False, True):
        leaves = {key: value.detach().clone().requires_grad_() for key, value in inputs.items()}
        loss = sum((value**2).sum() for value in layer(leaves).values())
        if compiled:
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
                loss.backward()
        else:
            loss.backward()
        found.append([leaf.grad for leaf in leaves.values()])
    for one, other in zip(*found, strict=True):
        close(one, other, 1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_what_kernels_cannot_do_is_done_without(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Transforms, forward derivatives, other dtypes and exported programs."""
    layer, inputs = a_layer("mlp")
    wanted = layer(inputs)
    called = counted(monkeypatch)
    per_sample = torch.func.vmap(layer)(inputs)
    tangents = {key: torch.ones_like(value) for key, value in inputs.items()}
    y, forward = torch.func.jvp(layer, (inputs,), (tangents,))
    with torch.autograd.forward_ad.dual_level():
        make = torch.autograd.forward_ad.make_dual
        duals = layer({key: make(value, tangents[key]) for key, value in inputs.items()})
        again = {
            key: torch.autograd.forward_ad.unpack_dual(value).tangent
            for key, value in duals.items()
        }
    exported = torch.export.export(layer, (inputs,)).module()(inputs)
    weights = {k: torch.stack([v.detach(), 2 * v.detach()]) for k, v in layer.named_parameters()}
    ensemble = torch.func.vmap(
        lambda w: torch.func.functional_call(layer, w, (inputs,)), in_dims=(0,)
    )(weights)
    assert not called
    for key in wanted:
        scale = 1e-5 * wanted[key].abs().max()
        for other in (per_sample, y, exported, {k: v[0] for k, v in ensemble.items()}):
            assert (other[key] - wanted[key]).abs().max() <= scale
        assert (forward[key] - again[key]).abs().max() <= 1e-5 * forward[key].abs().max()
    layer.bfloat16()({key: value.bfloat16() for key, value in inputs.items()})
    assert not called


@pytest.mark.parametrize("sizes", [(40_000,), (300, 90)], ids=str)
@pytest.mark.parametrize("from_small", [True, False])
def test_an_exported_program_serves_sizes_large_enough_for_kernels_and_small_ones(
    sizes: tuple[int, ...], from_small: bool
) -> None:
    spec = {"w": tuple(range(len(sizes)))}
    layer = sc.compile(spec, in_channels=16, out_channels=16, backend="torch")
    dims = {"w": {axis: torch.export.Dim(f"n{axis}", min=2) for axis in range(1 + len(sizes))}}
    given = [torch.randn(2, *(5, 6)[: len(sizes)], 16), torch.randn(3, *sizes, 16)]
    assert given[1].numel() > 2**20
    first, second = given if from_small else given[::-1]
    exported = torch.export.export(layer, ({"w": first},), dynamic_shapes=({**dims},))
    found = exported.module()({"w": second})["w"]
    close(found, layer.double()({"w": second.double()})["w"].detach(), 1e-5)


def test_the_file_alone_runs_without_kernels(tmp_path: Path) -> None:
    """And with them where the package was imported before."""
    layer, inputs = a_layer("rnn")
    file, data = tmp_path / "layer.py", tmp_path / "data.pt"
    file.write_text(layer.source)
    torch.save({"x": inputs, "weights": layer.state_dict(), "y": layer(inputs)}, data)
    program = f"""
import sys, torch
if sys.argv[1] == "kernels": import symcompile_torch.kernels
import layer
data = torch.load({str(data)!r})
made = layer.EquivariantLinear()
made.load_state_dict(data["weights"])
assert layer._KERNELS == (sys.argv[1] == "kernels")
assert sys.argv[1] == "kernels" or not [name for name in sys.modules if "symcompile" in name]
y = made(data["x"])
assert all((y[k] - data["y"][k]).abs().max() < 1e-5 for k in y)
"""
    name = next(
        line.split()[1].split("(")[0]
        for line in layer.source.splitlines()
        if line.startswith("class ") and "nn.Module" in line
    )
    for how in ("kernels", "plain"):
        subprocess.run(
            [sys.executable, "-c", program.replace("EquivariantLinear", name), how],
            cwd=tmp_path,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )


# -- building -------------------------------------------------------------------------------


def test_without_a_compiler_there_are_none(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert building.build(tmp_path) == []
    for compiler in ("false", "an unbalanced '", "c++ --no-such-option"):
        monkeypatch.setenv("CXX", compiler)
        assert building.build(tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers make no effort: these libraries are looked at, not run."""
    monkeypatch.setattr(building, "FLAGS", ("-O0", *building.FLAGS[1:]))


@pytest.mark.usefixtures("quick")
def test_compilers_with_options_are_run_and_what_is_not_wanted_goes(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Libraries of other sources, and all of them where none are asked for."""
    (tmp_path / "openmp-avx2-000000000000.so").touch()
    monkeypatch.setenv("CXX", "c++ -DOPTION='a b'")
    made = building.build(tmp_path)
    assert made
    assert sorted(tmp_path.iterdir()) == sorted(made)
    names = {building.library(kind, host=host).name for kind in kinds() for host in building.HOSTS}
    assert {path.name for path in made} <= names
    assert {building.library(kind).name for kind in kinds()} <= {path.name for path in made}
    monkeypatch.setenv("SYMCOMPILE_KERNELS", "0")
    assert building.build(tmp_path) == []
    assert not list(tmp_path.iterdir())


def kinds() -> list[str]:
    from symcompile_torch import native

    return [*building.X86] if native.kinds() != ("DEFAULT",) else ["DEFAULT"]
