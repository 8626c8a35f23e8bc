"""Torch networks of any architecture go to trees and back, bit for bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

import symcompile as sc
from symcompile import specs
from symcompile.errors import ShapeError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, default_collate  # noqa: E402

from symcompile_torch.data import (  # noqa: E402
    from_module,
    stack_weights,
    to_state_dict,
    unstack_weights,
)
from tests import torch_networks as nets  # noqa: E402

WIDTHS = (4, 6, 5, 3)


class Tied(nn.Module):
    """An embedding whose table is the output's weight too, a scalar, and a complex buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 7)
        self.embed = nn.Embedding(7, 4)
        self.embed.weight = self.head.weight
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("phase", torch.tensor([1j, 2.0]))


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"note": "kept"}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"note": "kept"}


MODULES: dict[str, Callable[[], Any]] = {
    "mlp": lambda: nets.mlp(WIDTHS),
    "no biases": lambda: nets.mlp(WIDTHS, bias=False),
    "batch norm": lambda: nets.mlp(WIDTHS, norm="batch"),
    "cnn 1d": lambda: nets.cnn((4, 3), dim=1, pixels=5, norm="layer"),
    "cnn 3d": lambda: nets.cnn((4, 3), dim=3, pixels=8, head="pool", norm="batch"),
    "lstm": lambda: nets.Recurrent("lstm", 3, 5, 2, num_layers=2),
    "residual": lambda: nets.Residual(3, 5, 2, hidden=4, dim=2, norm="batch"),
    "transformer": lambda: nets.Transformer(1, norm_first=True),
    "tied": Tied,
    "extra state": lambda: Extra(3, 2),
    "weight norm": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "half": lambda: nets.mlp(WIDTHS).to(torch.bfloat16),
    "double": lambda: nets.mlp(WIDTHS).double(),
}


def trained(make: Callable[[], Any], seed: int) -> Any:
    """A module whose tensors, counters included, are its own."""
    torch.manual_seed(seed)
    module = make()
    for name, value in module.state_dict(keep_vars=True).items():
        if name.endswith("num_batches_tracked"):
            value.fill_(seed + 7)
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            value.data.copy_(torch.randn(value.shape))
    return module


def same_bits(found: Any, wanted: Any) -> None:
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
            raw = [v.contiguous().reshape(-1).view(torch.uint8) for v in (found[key], value)]
            assert torch.equal(*raw)
        else:
            assert found[key] == value


@pytest.mark.parametrize("name", MODULES)
def test_modules_come_back_bit_for_bit(name: str) -> None:
    modules = [trained(MODULES[name], seed) for seed in range(3)]
    tree = stack_weights(modules)
    assert all(leaf.shape[0] == 3 and leaf.shape[-1] == 1 for leaf in tree.values())
    back = unstack_weights(tree, like=modules)
    for module, found in zip(modules, back, strict=True):
        wanted = module.state_dict()
        same_bits(found, wanted)
        assert found._metadata == wanted._metadata
        fresh = MODULES[name]()
        fresh.load_state_dict(found)
        same_bits(fresh.state_dict(), wanted)
    one = from_module(modules[1])
    same_bits(to_state_dict(one, like=modules[1]), modules[1].state_dict())
    for key, leaf in one.items():
        same_bits({key: leaf}, {key: tree[key][1]})


def test_state_dicts_do_as_modules_do() -> None:
    modules = [trained(MODULES["batch norm"], seed) for seed in range(2)]
    dicts = [dict(module.state_dict()) for module in modules]
    tree = stack_weights(dicts)
    same_bits(tree, stack_weights(modules))
    for found, wanted in zip(unstack_weights(tree, like=dicts), dicts, strict=True):
        same_bits(found, wanted)
    assert {key: len(leaf) for key, leaf in stack_weights(dicts[0]).items()} == dict.fromkeys(
        tree, 1
    )


def test_not_a_number_and_infinities_come_back() -> None:
    module = nn.Linear(4, 1)
    values = torch.tensor([[float("nan"), float("inf"), -0.0, 1e-45]])
    module.weight.data.copy_(values)
    same_bits(unstack_weights(stack_weights(module), like=module)[0], module.state_dict())


def test_integer_buffers_stay_aside_and_come_from_their_own_network() -> None:
    modules = [trained(MODULES["batch norm"], seed) for seed in range(2)]
    tree = stack_weights(modules)
    assert not [key for key in tree if key.endswith("num_batches_tracked")]
    back = unstack_weights(tree, like=modules)
    assert [int(found["1.num_batches_tracked"]) for found in back] == [7, 8]
    back = unstack_weights(tree, like=modules[0])
    assert [int(found["1.num_batches_tracked"]) for found in back] == [7, 7]


def test_what_comes_back_is_a_copy() -> None:
    module = trained(MODULES["batch norm"], 0)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    for value in unstack_weights(stack_weights(module), like=module)[0].values():
        value.zero_()
    same_bits(module.state_dict(), before)


def test_tied_weights_appear_once_and_stay_tied() -> None:
    module = trained(Tied, 0)
    tree = from_module(module)
    assert list(tree) == ["scale", "phase", "head.weight", "head.bias"]
    back = to_state_dict(tree, like=module)
    assert back["embed.weight"] is back["head.weight"]
    named = {key: (None,) * (leaf.ndim - 1) for key, leaf in tree.items()}
    by_other = {**named, "embed.weight": named["head.weight"]}
    del by_other["head.weight"]
    for spec in (named, by_other, {**named, **by_other}):
        same_bits(to_state_dict(from_module(module, spec), like=module), module.state_dict())
    both = from_module(module, {**named, **by_other})
    both["embed.weight"] = both["embed.weight"] + 1
    with pytest.raises(ShapeError, match=r"'embed\.weight' and 'head\.weight' are tied"):
        to_state_dict(both, like=module)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_tensor_tied_in_some_networks_only_is_not_lost(order: tuple[int, int]) -> None:
    modules = [trained(Tied, seed) for seed in range(2)]
    modules[1].embed.weight = nn.Parameter(torch.randn(7, 4))
    modules = [modules[i] for i in order]
    tree = stack_weights(modules)
    for found, module in zip(unstack_weights(tree, like=modules), modules, strict=True):
        same_bits(found, module.state_dict())


def test_a_spec_gives_the_tree_its_structure() -> None:
    network = specs.mlp(WIDTHS, norm="batch", layout="torch")
    modules = [trained(MODULES["batch norm"], seed) for seed in range(2)]
    tree = stack_weights(modules, network.spec)
    assert list(tree) == list(network.spec)
    nested = {
        "0": {"weight": ("h", None), "bias": ("h",)},
        "2": {"weight": (None, "h"), "bias": (None,)},
    }
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    tree = stack_weights(module, nested)
    assert tree["2"]["weight"].shape == (1, 2, 3, 1)
    same_bits(unstack_weights(tree, like=module)[0], module.state_dict())
    listed = [{"weight": ("h", None), "bias": ("h",)}, {"weight": (None, "h"), "bias": (None,)}]
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    tree = from_module(module, listed)
    assert tree[1]["weight"].shape == (2, 3, 1)
    same_bits(to_state_dict(tree, like=module), module.state_dict())


def test_a_missing_or_surplus_tensor_is_named() -> None:
    module = nn.Linear(3, 2)
    both = {"weight": ("out", None), "bias": ("out",)}
    with pytest.raises(ShapeError, match="'scale', which in network 0 is missing; it has 'weight'"):
        stack_weights(module, {**both, "scale": ()})
    with pytest.raises(ShapeError, match=r"has a tensor 'bias' of shape \(2,\) that the spec does"):
        stack_weights(module, {"weight": ("out", None)})
    assert list(stack_weights(module, {"weight": ("out", None)}, aside=["bias"])) == ["weight"]
    with pytest.raises(ShapeError, match="aside: network 0 has no tensor 'biass'"):
        stack_weights(module, aside=["biass"])
    with pytest.raises(ShapeError, match=r"'num_batches_tracked', which .* is not a floating"):
        stack_weights(nn.BatchNorm1d(2), {"num_batches_tracked": ()})
    with pytest.raises(ShapeError, match=r"weights\['weight'\].*one label has one size"):
        from_module(module, {"weight": (None, "out"), "bias": ("out",)})


def test_networks_that_differ_are_refused() -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(ShapeError, match="sources is empty"):
        stack_weights([])
    with pytest.raises(ShapeError, match="found a str object, expected a module"):
        stack_weights(["network.pt"])  # type: ignore[list-item]
    with pytest.raises(ShapeError, match="network 0 has a tensor 'bias', network 1 has none"):
        stack_weights([module, nn.Linear(3, 2, bias=False)])
    with pytest.raises(ShapeError, match="network 1 has a tensor 'bias', network 0 has none"):
        stack_weights([nn.Linear(3, 2, bias=False), module])
    with pytest.raises(ShapeError, match=r"'weight' is \(2, 4\) float32 on cpu in network 1"):
        stack_weights([module, nn.Linear(4, 2)])
    with pytest.raises(ShapeError, match=r"float64 on cpu in network 1, \(2, 3\) float32"):
        stack_weights([module, nn.Linear(3, 2).double()])


def test_trees_that_do_not_fit_are_refused() -> None:
    module = nn.Linear(3, 2)
    tree = stack_weights([module, module])
    with pytest.raises(ShapeError, match="like has 3 networks, the tree a batch of 2"):
        unstack_weights(tree, like=[module] * 3)
    with pytest.raises(ShapeError, match=r"'bias' has shape \(2, 2, 1\), expected \(2, 1\)"):
        to_state_dict(tree, like=module)
    wide = {key: leaf.expand(*leaf.shape[:-1], 2) for key, leaf in tree.items()}
    with pytest.raises(ShapeError, match=r"expected \(2, 2, 1\): \(batch, \*axes, 1\)"):
        unstack_weights(wide, like=module)
    with pytest.raises(ShapeError, match="the tree has a leaf 'gain', which like= has not"):
        to_state_dict({"gain": torch.ones(1)}, like=module)
    with pytest.raises(ShapeError, match="is empty"):
        unstack_weights({}, like=module)


def test_what_is_no_tensor_is_named() -> None:
    module = nn.Linear(3, 2)
    whole = {"weight": torch.ones(2, 3, 1)}
    for give in (to_state_dict, unstack_weights):
        with pytest.raises(ShapeError, match="the leaf 'bias' is a NoneType object"):
            give({**whole, "bias": None}, like=module)
        with pytest.raises(ShapeError, match="the leaf 'weight' is a int object"):
            give({"weight": 3}, like=module)
        with pytest.raises(ShapeError, match="the tree is a NoneType object"):
            give(None, like=module)
    with pytest.raises(ShapeError, match=r"'weight' has shape \(\), expected \(batch, "):
        unstack_weights({"weight": torch.tensor(1.0)}, like=module)
    for sources in (None, 3, "network.pt"):
        with pytest.raises(ShapeError, match="expected a module, or tensors by name"):
            stack_weights(sources)  # type: ignore[arg-type]
    nested: Any = {"params": {"w": torch.ones(2)}}
    with pytest.raises(ShapeError, match="'params' is a container of 1 entries"):
        from_module(nested)
    with pytest.raises(ShapeError, match="'weight' has no shape yet"):
        from_module(nn.LazyLinear(3))


def test_a_batch_of_none_is_checked_like_any() -> None:
    module = nn.Linear(3, 2)
    none = {key: leaf[:0] for key, leaf in stack_weights(module).items()}
    assert unstack_weights(none, like=module) == []
    with pytest.raises(ShapeError, match="the tree has a leaf 'gain'"):
        unstack_weights({"gain": torch.zeros(0, 7)}, like=module)


def test_default_collate_makes_the_batches_that_stacking_does() -> None:
    modules = [trained(MODULES["batch norm"], seed) for seed in range(4)]
    wanted = stack_weights(modules)
    same_bits(default_collate([from_module(module) for module in modules]), wanted)
    data = [(from_module(module), i / 4) for i, module in enumerate(modules)]
    batches = list(DataLoader(data, batch_size=2))
    assert [target.tolist() for _, target in batches] == [[0.0, 0.25], [0.5, 0.75]]
    same_bits(batches[1][0], {key: leaf[2:] for key, leaf in wanted.items()})
    listed = default_collate([from_module(nn.Linear(3, 2), {"weight": (0, 1), "bias": (0,)})] * 2)
    assert listed["bias"].shape == (2, 2, 1)


class Predictor(nn.Module):
    """A layer over the weights of MLPs, then a mean over all of them."""

    def __init__(self) -> None:
        super().__init__()
        network = specs.mlp(WIDTHS, layout="torch")
        self.layer = sc.compile(
            network.spec, in_channels=1, out_channels=3, shapes=network.shapes, backend="torch"
        )

    def forward(self, tree: dict[str, Any]) -> Any:
        y = self.layer(tree)
        means = [leaf.flatten(1, -2).mean(1) for leaf in y.values()]
        return torch.stack(means).sum((0, -1))


def predictor() -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = Predictor()
    tree = stack_weights([nets.mlp(WIDTHS) for _ in range(3)])
    with torch.no_grad():
        return model, tree, model(tree)


def test_export_sees_through_a_tree() -> None:
    model, tree, wanted = predictor()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(
        model, (tree,), dynamic_shapes=({key: {0: batch} for key in tree},)
    )
    torch.testing.assert_close(exported.module()(tree), wanted)
    more = stack_weights([nets.mlp(WIDTHS) for _ in range(5)])
    torch.testing.assert_close(exported.module()(more), model(more))


def test_vmap_sees_through_a_tree() -> None:
    model, tree, wanted = predictor()
    one_by_one = torch.func.vmap(lambda one: model({k: v[None] for k, v in one.items()})[0])(tree)
    torch.testing.assert_close(one_by_one.detach(), wanted)


def test_compile_sees_through_a_tree() -> None:
    model, tree, wanted = predictor()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tree).detach(), wanted)


def test_gradients_go_through_both_ways() -> None:
    """From weights to a tree, and from a changed tree into the network that it is of."""
    module = nets.mlp(WIDTHS)
    params = dict(module.named_parameters())
    tree = from_module(params)
    sum(leaf.sum() for leaf in tree.values()).backward()
    assert all(torch.equal(value.grad, torch.ones_like(value)) for value in params.values())

    gain = torch.tensor(2.0, requires_grad=True)
    moved = {key: leaf.detach() * gain for key, leaf in tree.items()}
    new = to_state_dict(moved, like=module)
    torch.func.functional_call(module, new, (torch.ones(2, 4),)).sum().backward()
    assert gain.grad is not None
    assert gain.grad != 0


def test_networks_are_called_by_the_batch_under_vmap() -> None:
    modules = [nets.mlp(WIDTHS) for _ in range(3)]
    x = torch.randn(5, 4)

    def call(tree: Any) -> Any:
        return torch.func.functional_call(modules[0], to_state_dict(tree, like=modules[0]), (x,))

    found = torch.func.vmap(call)(stack_weights(modules))
    torch.testing.assert_close(found, torch.stack([module(x) for module in modules]))


def test_a_state_dict_keeps_its_order_and_type() -> None:
    module = trained(MODULES["batch norm"], 0)
    shuffled = dict(reversed(module.state_dict().items()))
    back = unstack_weights(stack_weights(module), like=shuffled)[0]
    assert isinstance(back, OrderedDict)
    assert list(back) == list(shuffled)
