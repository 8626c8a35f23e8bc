"""Every perm_spec of `symcompile.specs` in flax's layout is a symmetry of a real flax network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
import pytest

import symcompile as sc
from symcompile import specs
from symcompile.errors import OptionError
from symcompile.specs import Network

jax = pytest.importorskip("jax")
pytest.importorskip("flax")

from tests import flax_networks as nets  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_xla")

NORMS = [None, "batch", "layer"]
WIDTHS = (4, 6, 5, 3)

Case = tuple[Network, Callable[[], Any], tuple[int, ...]]
CASES: dict[str, Case] = {}
"""A spec, the module it is of, and the shape of the module's inputs."""

for norm in NORMS:
    CASES[f"mlp norm={norm}"] = (
        specs.mlp(WIDTHS, norm=norm),
        lambda norm=norm: nets.MLP(WIDTHS, norm),
        (4,),
    )
for dim, size, norm in ((1, (5,), "batch"), (2, (4, 3), None), (3, (3, 2, 2), "layer")):
    for head in ("flatten", "pool"):
        CASES[f"cnn dim={dim} norm={norm} head={head}"] = (
            specs.cnn((4, 3), dim=dim, norm=norm, head=head, pixels=prod(size), hidden=(5,)),
            lambda dim=dim, norm=norm, head=head: nets.CNN((4, 3), dim, head, norm, (5,)),
            (*size, 1),
        )
for kind in ("lstm", "gru"):
    for layers in (1, 2):
        CASES[f"rnn kind={kind} layers={layers}"] = (
            specs.rnn(3, 5, 2, kind=kind, layers=layers),
            lambda kind=kind, layers=layers: nets.Recurrent(kind, 5, 2, layers),
            (4, 3),
        )
for dim, size, norm in ((0, (), "layer"), (0, (), None), (2, (3, 2), "batch")):
    CASES[f"residual dim={dim} norm={norm}"] = (
        specs.residual(3, 5, 2, hidden=4, dim=dim, norm=norm),
        lambda dim=dim, norm=norm: nets.Residual(5, 4, 2, dim, norm),
        (*size, 3),
    )


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def inputs(shape: tuple[int, ...]) -> Any:
    return jax.numpy.asarray(np.random.default_rng(1).standard_normal((4, *shape)))


def variables(params: Any) -> Any:
    """What `apply` takes: the params alone are a spec's tree where nothing keeps statistics."""
    return params if "batch_stats" in params else {"params": params}


def call(module: Any) -> Any:
    apply = jax.jit(module.apply)
    return lambda params, x: apply(variables(params), x)


@pytest.mark.parametrize("name", CASES)
def test_the_spec_is_a_symmetry_of_the_network_and_names_all_its_tensors(name: str) -> None:
    network, make, shape = CASES[name]
    module, x = make(), inputs(shape)
    made = jax.tree.map(np.shape, jax.eval_shape(module.init, jax.random.key(0), x))
    assert made == variables(network.shapes)
    params = jax.tree.map(jax.numpy.asarray, nets.drawn(network.shapes))
    report = sc.check_symmetry(call(module), params, network.spec, x)
    assert report.conclusive
    assert report.dtype == "float64"
    assert report.permuted == tuple(network.sizes)


def transformer() -> tuple[Network, Any, Any]:
    network = specs.transformer(2, width=6, heads=2, mlp_width=5, vocab=7, positions=4)
    tokens = np.array([[3, 0, 6, 3], [1, 2, 2, 5]])
    ids = {"tokens": np.eye(7)[tokens], "positions": np.eye(4)[np.arange(4)[None].repeat(2, 0)]}
    return network, nets.Transformer(2), ids


ENDS = {"in_spec": {"tokens": ("vocab",), "positions": ("positions",)}, "out_spec": ("vocab",)}


def test_the_transformer_is_symmetric_with_its_vocabulary() -> None:
    network, module, ids = transformer()
    made = jax.tree.map(np.shape, jax.eval_shape(module.init, jax.random.key(0), ids))
    assert made == {"params": network.shapes}
    params = nets.drawn(network.shapes)
    report = sc.check_symmetry(call(module), params, network.spec, ids, **ENDS)
    assert report.conclusive


def test_heads_without_their_label_are_caught() -> None:
    network, module, ids = transformer()
    block = network.spec["block1"]
    query = {"kernel": ("embed", "own", "block1.qk"), "bias": ("own", "block1.qk")}
    wrong = {
        **network.spec,
        "block1": {**block, "attention": {**block["attention"], "query": query}},
    }
    with pytest.raises(sc.CheckError, match="'own' alone changes y by") as caught:
        sc.check_symmetry(call(module), nets.drawn(network.shapes), wrong, ids, **ENDS)
    assert "'block1.heads' alone" in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "bias", "labels"),
    [(1, True, ["hidden"]), (2, False, ["hidden0", "hidden1"])],
)
def test_the_elman_cells_are_symmetric(layers: int, bias: bool, labels: list[str]) -> None:
    network = specs.rnn(3, 5, 2, layers=layers, bias=bias)

    def model(params: Any, x: Any) -> Any:
        names = ["cell"] if layers == 1 else ["cell_0", "cell_1"]
        for name in names:
            cell, state, states = params[name], np.zeros((len(x), 5)), []
            for step in np.moveaxis(x, 1, 0):
                total = step @ cell["input_kernel"] + state @ cell["state_kernel"]
                state = np.tanh(total + cell.get("bias", 0.0))
                states.append(state)
            x = np.stack(states, 1)
        return x[:, -1] @ params["readout"]["kernel"] + params["readout"]["bias"]

    x = np.asarray(inputs((4, 3)))
    report = sc.check_symmetry(model, nets.drawn(network.shapes), network.spec, x)
    assert report.conclusive
    assert list(report.permuted) == labels == list(network.sizes)


def test_mlp_widths_and_biases_are_as_told() -> None:
    network = specs.mlp((784, 64, 64, 10), bias=[True, False, True], norm="batch")
    assert set(network.spec) == {"params", "batch_stats"}
    assert [set(network.spec["params"][f"Dense_{i}"]) for i in range(3)] == [
        {"kernel", "bias"},
        {"kernel"},
        {"kernel", "bias"},
    ]
    assert network.spec["batch_stats"]["BatchNorm_1"] == {"mean": ("hidden1",), "var": ("hidden1",)}
    assert network.sizes == {"hidden0": 64, "hidden1": 64}


@pytest.mark.parametrize(
    "name",
    [
        "mlp norm=batch",
        "cnn dim=2 norm=None head=flatten",
        "rnn kind=gru layers=2",
        "residual dim=0 norm=layer",
    ],
)
def test_the_spec_compiles_to_an_equivariant_layer(name: str) -> None:
    network, _, _ = CASES[name]
    layer = sc.compile(
        network.spec, in_channels=1, out_channels=2, shapes=network.shapes, backend="jax"
    )
    assert sc.check_equivariance(layer, trials=1, batch_shapes=((2,),)).permuted


def test_renaming_gives_layers_the_names_of_ones_own_network() -> None:
    network = specs.mlp((4, 3, 2)).renamed({"Dense_1": "head"})
    assert list(network.spec) == list(network.shapes) == ["Dense_0", "head"]
    assert network.sizes == {"hidden0": 3}
    with pytest.raises(OptionError, match="no layer 'Dense_2'; its layers are 'Dense_0'"):
        specs.mlp((4, 3, 2)).renamed({"Dense_2": "head"})
    with pytest.raises(OptionError, match="two layers the same name"):
        specs.mlp((4, 3, 2)).renamed({"Dense_1": "Dense_0"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: specs.mlp((4, 3, 2), layout="keras"), "layout='keras'; choose one of 'flax'"),
        (lambda: specs.mlp((4, 3, 2), norm="group"), "norm='group'"),
        (lambda: specs.mlp((4, 3, 2), bias=[True]), "bias has 1 entries for 2 layers"),
        (lambda: specs.cnn(dim=4), "dim=4; choose one of 1, 2, 3"),
        (lambda: specs.cnn(head="max"), "head='max'"),
        (lambda: specs.cnn(taps=(3, 3, 3)), "taps has 3 entries for 2 spatial axes"),
        (lambda: specs.rnn(3, 4, 5, kind="mgu"), "kind='mgu'"),
        (lambda: specs.rnn(3, 4, 5, layers=0), "layers=0, expected 1 or more"),
        (lambda: specs.rnn(3, 4, 5, kind="gru", bias=False), "no gru cell without biases"),
        (lambda: specs.residual(3, 4, 5, dim=-1), "dim=-1"),
        (lambda: specs.transformer(1, layout=""), "layout=''"),
    ],
)
def test_options_that_mean_nothing_are_refused(make: Callable[[], Network], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_shapes_and_spec_are_trees_of_one_structure() -> None:
    for network, _, _ in CASES.values():
        for (path, axes), (other, shape) in pairwise_leaves(network):
            assert path == other
            assert len(axes) == len(shape)


def pairwise_leaves(network: Network) -> list[Any]:
    is_leaf = lambda node: isinstance(node, tuple)  # noqa: E731
    flat = [jax.tree.leaves_with_path(tree, is_leaf=is_leaf) for tree in network]
    return list(zip(*flat, strict=True))
