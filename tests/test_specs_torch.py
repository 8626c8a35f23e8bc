"""Every perm_spec of `symcompile.specs` in torch's layout is a symmetry of a real torch network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import symcompile as sc
from symcompile import specs
from symcompile.specs import Network

torch = pytest.importorskip("torch")

from tests import torch_networks as nets  # noqa: E402

NORMS = [None, "batch", "layer"]
WIDTHS = (4, 6, 5, 3)

Case = tuple[Network, Callable[[], Any], tuple[int, ...]]
CASES: dict[str, Case] = {}
"""A spec, the module it is of, and the shape of the module's inputs."""

for norm in NORMS:
    for bias in (True, False):
        CASES[f"mlp norm={norm} bias={bias}"] = (
            specs.mlp(WIDTHS, norm=norm, bias=bias, layout="torch"),
            lambda norm=norm, bias=bias: nets.mlp(WIDTHS, norm=norm, bias=bias),
            (4,),
        )
for dim, size in ((1, (5,)), (2, (4, 3)), (3, (3, 2, 2))):
    for norm in NORMS:
        for head in ("flatten", "pool"):
            pixels = torch.Size(size).numel()
            options = {"dim": dim, "norm": norm, "head": head, "pixels": pixels}
            CASES[f"cnn dim={dim} norm={norm} head={head}"] = (
                specs.cnn((4, 3), layout="torch", **options),
                lambda options=options: nets.cnn((4, 3), **options),
                (1, *size),
            )
LENET = {
    "dim": 2,
    "pixels": 12,
    "taps": (3, 1),
    "hidden": (6, 5),
    "bias": [True, False] * 2 + [True],
}
CASES["cnn with hidden layers"] = (
    specs.cnn((4, 3), layout="torch", **LENET),
    lambda: nets.cnn((4, 3), **LENET),
    (1, 4, 3),
)
for kind in ("elman", "lstm", "gru"):
    for layers, bias in ((1, True), (2, False), (3, True)):
        CASES[f"rnn kind={kind} layers={layers}"] = (
            specs.rnn(3, 5, 2, kind=kind, layers=layers, bias=bias, layout="torch"),
            lambda kind=kind, layers=layers, bias=bias: nets.Recurrent(
                kind, 3, 5, 2, num_layers=layers, bias=bias
            ),
            (4, 3),
        )
for dim, size in ((0, ()), (1, (5,)), (2, (3, 2)), (3, (2, 2, 2))):
    for norm in NORMS:
        CASES[f"residual dim={dim} norm={norm}"] = (
            specs.residual(3, 5, 2, hidden=4, dim=dim, norm=norm, layout="torch"),
            lambda dim=dim, norm=norm: nets.Residual(3, 5, 2, hidden=4, dim=dim, norm=norm),
            (3, *size),
        )
TINY = {"width": 6, "heads": 2, "mlp_width": 5, "vocab": 7, "positions": 4, "layout": "torch"}
ENDS = {
    "in_spec": {"tokens": ("vocab",), "positions": ("positions",)},
    "out_spec": ("vocab",),
}


def inputs(shape: tuple[int, ...]) -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, *shape, generator=generator, dtype=torch.float64)


def ids() -> Any:
    """Token and position ids, one-hot: (batch, time, vocab) and (batch, time, positions)."""
    tokens = torch.tensor([[3, 0, 6, 3], [1, 2, 2, 5]])
    positions = torch.arange(4).expand(2, 4)
    one_hot = torch.nn.functional.one_hot
    return {
        "tokens": one_hot(tokens, 7).double(),
        "positions": one_hot(positions, 4).double(),
    }


def floats(module: Any) -> dict[str, Any]:
    return {name: v for name, v in module.state_dict().items() if v.is_floating_point()}


@pytest.mark.parametrize("name", CASES)
def test_the_spec_is_a_symmetry_of_the_network_and_names_all_its_tensors(name: str) -> None:
    network, make, shape = CASES[name]
    module = nets.drawn(make())
    params = floats(module)
    assert {key: tuple(value.shape) for key, value in params.items()} == network.shapes
    report = sc.check_symmetry(nets.call(module), params, network.spec, inputs(shape))
    assert report.conclusive
    assert report.unnamed == ()
    assert report.permuted == tuple(network.sizes)


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_transformer_is_symmetric_with_its_vocabulary(norm_first: bool) -> None:
    network = specs.transformer(2, **TINY)
    module = nets.drawn(nets.Transformer(2, norm_first=norm_first))
    params = module.state_dict()
    assert {key: tuple(value.shape) for key, value in params.items()} == network.shapes
    told = {"sizes": {"block0.heads": 2, "block1.heads": 2}}
    function = nets.call(module)
    report = sc.check_symmetry(function, params, network.spec, ids(), **ENDS, **told)
    assert report.conclusive
    assert dict.fromkeys(report.permuted) == dict.fromkeys(network.sizes)

    closed = specs.transformer(2, permute_ends=False, **TINY)
    assert sc.check_symmetry(function, params, closed.spec, ids(), **told).conclusive
    assert set(network.sizes) - set(closed.sizes) == {"vocab", "positions"}


@pytest.mark.parametrize("options", [{}, {"kind": "lstm"}, {"kind": "gru"}])
def test_permuted_ends_go_with_the_inputs_and_outputs(options: dict[str, Any]) -> None:
    network = specs.rnn(3, 5, 2, permute_ends=True, layout="torch", **options)
    module = nets.drawn(nets.Recurrent(options.get("kind", "elman"), 3, 5, 2))
    function, x = nets.call(module), inputs((4, 3))
    ends = {"in_spec": ("input",), "out_spec": ("output",)}
    assert sc.check_symmetry(function, floats(module), network.spec, x, **ends).conclusive
    with pytest.raises(sc.CheckError, match=r"the label '(input|output)' alone changes y by"):
        sc.check_symmetry(function, floats(module), network.spec, x)


@pytest.mark.parametrize("head", ["flatten", "pool"])
def test_permuted_ends_of_a_cnn_are_the_channels_of_its_images(head: str) -> None:
    options: dict[str, Any] = {"dim": 2, "pixels": 9, "head": head, "in_channels": 3}
    network = specs.cnn((4, 5), permute_ends=True, layout="torch", **options)
    module = nets.drawn(nets.cnn((4, 5), **options))
    function, images = nets.call(module), inputs((3, 3, 3))
    ends = {"in_spec": ("input", None, None), "out_spec": ("output",)}
    assert sc.check_symmetry(function, floats(module), network.spec, images, **ends).conclusive
    with pytest.raises(sc.CheckError, match=r"the label '(input|output)' alone changes y by"):
        sc.check_symmetry(function, floats(module), network.spec, images)


def relabelled(axis: Any, label: str) -> Any:
    """An axis, or a tuple of them, with another label in place of one."""
    if isinstance(axis, tuple):
        return tuple(relabelled(part, label) for part in axis)
    return "own" if axis == label else axis


@pytest.mark.parametrize(
    "name",
    [
        "mlp norm=batch bias=True",
        "cnn dim=2 norm=layer head=pool",
        "rnn kind=gru layers=3",
        "residual dim=1 norm=batch",
    ],
)
def test_any_tensor_with_a_label_of_its_own_is_caught(name: str) -> None:
    network, make, shape = CASES[name]
    module = nets.drawn(make())
    faults = {
        (key, label): {**network.spec, key: relabelled(axes, label)}
        for key, axes in network.spec.items()
        for label in network.sizes
        if relabelled(axes, label) != axes
    }
    assert len(faults) >= len(network.spec) - 1
    for (_, label), wrong in faults.items():
        with pytest.raises(sc.CheckError, match=rf"the label '(own|{label})' alone"):
            sc.check_symmetry(nets.call(module), floats(module), wrong, inputs(shape), trials=1)


def test_a_transposed_flatten_is_caught() -> None:
    network, make, shape = CASES["cnn dim=2 norm=None head=flatten"]
    module = nets.drawn(make())
    wrong = {**network.spec, "5.weight": (None, (None, "channels1"))}
    with pytest.raises(sc.CheckError, match="permuting the label 'channels1' alone"):
        sc.check_symmetry(nets.call(module), floats(module), wrong, inputs(shape))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gates_that_are_not_stacked_are_caught(kind: str) -> None:
    """The gates of a cell taken for one axis of four times as many neurons, with a label."""
    network, make, shape = CASES[f"rnn kind={kind} layers=1"]
    module = nets.drawn(make())
    gates = network.spec["rnn.bias_ih_l0"][0]
    swapped = {
        key: tuple(axis[::-1] if axis == gates else axis for axis in axes)
        for key, axes in network.spec.items()
    }
    loose = {
        key: tuple("gates" if axis == gates else axis for axis in axes)
        for key, axes in network.spec.items()
    }
    check = (nets.call(module), floats(module))
    with pytest.raises(sc.CheckError, match="the label 'hidden' alone"):
        sc.check_symmetry(*check, swapped, inputs(shape))
    with pytest.raises(sc.CheckError, match=r"the label '(gates|hidden)' alone .* the label"):
        sc.check_symmetry(*check, loose, inputs(shape))


def test_a_stream_with_labels_of_its_own_in_every_block_is_caught() -> None:
    network, make, shape = CASES["residual dim=2 norm=batch"]
    module = nets.drawn(make())
    wrong = {
        key: tuple("own" if key.startswith("blocks.1") and a == "stream" else a for a in axes)
        for key, axes in network.spec.items()
    }
    with pytest.raises(sc.CheckError, match=r"the label '(own|stream)' alone") as caught:
        sc.check_symmetry(nets.call(module), floats(module), wrong, inputs(shape))
    assert "'own' alone" in str(caught.value)
    assert "'stream' alone" in str(caught.value)


def test_heads_and_their_width_swapped_are_caught() -> None:
    network = specs.transformer(1, **TINY)
    module = nets.drawn(nets.Transformer(1, norm_first=True))
    key = "encoder.layers.0.self_attn.out_proj.weight"
    wrong = {**network.spec, key: ("embed", ("block0.head_width", "block0.heads"))}
    with pytest.raises(sc.CheckError, match=r"'block0\.head"):
        sc.check_symmetry(
            nets.call(module), module.state_dict(), wrong, ids(), sizes={"block0.heads": 2}, **ENDS
        )


@pytest.mark.parametrize(
    "name",
    [
        "mlp norm=batch bias=True",
        "cnn dim=1 norm=layer head=flatten",
        "cnn dim=3 norm=None head=pool",
        "rnn kind=lstm layers=2",
        "residual dim=0 norm=layer",
    ],
)
def test_the_spec_compiles_to_an_equivariant_layer(name: str) -> None:
    network, _, _ = CASES[name]
    layer = sc.compile(
        network.spec, in_channels=1, out_channels=2, shapes=network.shapes, sizes=network.sizes
    )
    assert sc.check_equivariance(layer, trials=1, batch_shapes=((2,),)).permuted


def test_the_transformer_compiles_to_an_equivariant_layer() -> None:
    network = specs.transformer(1, **TINY)
    layer = sc.compile(
        network.spec, in_channels=1, out_channels=2, shapes=network.shapes, sizes=network.sizes
    )
    report = sc.check_equivariance(layer, trials=1, batch_shapes=((2,),))
    assert set(report.permuted) == set(network.sizes)


def test_layers_take_a_bound_spec_where_shapes_do_not_tell_sizes() -> None:
    """In torch's layout the heads of a transformer share an axis with their width."""
    from symcompile_torch.nn import EquivariantAttention, InvariantHead

    network = specs.transformer(1, **TINY)
    with pytest.raises(sc.ShapeError, match="heads"):
        sc.compile(network.spec, in_channels=4, out_channels=4, shapes=network.shapes)
    spec = network.bound
    assert dict(spec.sizes) == dict(network.sizes)
    layer = sc.compile(spec, in_channels=4, out_channels=4)
    x = {key: torch.randn(2, *shape, 4) for key, shape in network.shapes.items()}
    y = InvariantHead(spec, 4, 8, 3)(EquivariantAttention(spec, 4, heads=2)(layer(x)))
    assert y.shape == (2, 3)
