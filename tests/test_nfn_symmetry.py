"""Every layer of `symcompile_torch.nfn` commutes with what permutes in a network, on every kind.

In: networks of one layer, without biases, with kernels, a flatten, norms. The one thing to know:
the permutations are first shown to be symmetries of the networks themselves.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from symcompile.errors import ShapeError
from symcompile_torch.nfn.common import (
    ArraySpec,
    NetworkSpec,
    WeightSpaceFeatures,
    network_spec_from_wsfeat,
    params_to_func_params,
    params_to_state_dicts,
    state_dict_to_tensors,
)
from symcompile_torch.nfn.layers import (
    ChannelDropout,
    CrossAttnDecoder,
    CrossAttnEncoder,
    FlattenWeights,
    GaussianFourierFeatureTransform,
    HNPLinear,
    HNPPool,
    IOSinusoidalEncoding,
    LearnedPosEmbedding,
    LearnedScale,
    NPAttention,
    NPLinear,
    NPPool,
    ParamLayerNorm,
    Pointwise,
    ResBlock,
    SimpleLayerNorm,
    StatFeaturizer,
    TupleOp,
    UnflattenWeights,
)
from tests.nfn_cases import (
    CASES,
    Case,
    features_of,
    permutations,
    permute_features,
    permute_state,
)

Build = Callable[[NetworkSpec], nn.Module]

CHANNELS = 4

# Commute with permuting inputs and outputs as well.
EVERYWHERE: dict[str, Build] = {
    "NPLinear": lambda spec: NPLinear(spec, CHANNELS, 3),
    "NPLinear nfn's init": lambda s: NPLinear(s, CHANNELS, 3, init_type="pytorch_default"),
    "NPLinear normal init": lambda s: NPLinear(s, CHANNELS, 3, init_type="kaiming_normal"),
    "Pointwise": lambda spec: Pointwise(spec, CHANNELS, 3),
    "NPAttention": lambda spec: NPAttention(spec, CHANNELS, num_heads=2),
    "NPAttention apart": lambda s: NPAttention(s, CHANNELS, num_heads=2, share_projections=False),
    "NPAttention means": lambda s: NPAttention(s, CHANNELS, num_heads=1, ablate_crossterm=True),
    "NPAttention rows": lambda s: NPAttention(s, CHANNELS, num_heads=1, ablate_diagonalterm=True),
    "SimpleLayerNorm": lambda spec: SimpleLayerNorm(spec, CHANNELS),
    "GaussianFourier": lambda s: GaussianFourierFeatureTransform(s, CHANNELS, mapping_size=3),
    "LearnedScale": lambda spec: LearnedScale(spec, 0.5),
    "ChannelDropout": lambda spec: ChannelDropout(0.5).eval(),
    "TupleOp": lambda spec: TupleOp(nn.Tanh()),
    "ResBlock": lambda spec: ResBlock(
        NPLinear(spec, CHANNELS, CHANNELS), TupleOp(nn.Tanh()), 0, SimpleLayerNorm(spec, CHANNELS)
    ),
}
# Tell inputs from inputs, and outputs from outputs.
HIDDEN: dict[str, Build] = {
    "NPLinear io_embed": lambda spec: NPLinear(spec, CHANNELS, 3, io_embed=True),
    "HNPLinear": lambda spec: HNPLinear(spec, CHANNELS, 3),
    "HNPLinear rank 1": lambda spec: HNPLinear(spec, CHANNELS, 3, rank=1),
    "ParamLayerNorm": lambda spec: ParamLayerNorm(spec, CHANNELS),
    "IOSinusoidalEncoding": lambda spec: IOSinusoidalEncoding(spec),
    "LearnedPosEmbedding": lambda spec: LearnedPosEmbedding(spec, CHANNELS),
}
INVARIANT: dict[str, Build] = {
    "NPPool": NPPool,
    "StatFeaturizer": lambda spec: StatFeaturizer(),
    "CrossAttnEncoder": lambda spec: CrossAttnEncoder(spec, CHANNELS, 5),
}
INVARIANT_HIDDEN: dict[str, Build] = {"HNPPool": HNPPool}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


def build(make: Build, x: WeightSpaceFeatures) -> nn.Module:
    """The layer in float64, all its parameters random."""
    layer = make(network_spec_from_wsfeat(x)).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def leaves(value: Any) -> list[Tensor]:
    return pytree.tree_leaves(value)


def close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def check(layer: Any, case: Case, *, ends: bool, invariant: bool = False) -> None:
    """Permute before and after; something must depend on the neurons at all."""
    x = features_of(case, CHANNELS)
    orders = permutations(case, ends=ends)
    with torch.no_grad():
        y, moved = layer(x), layer(permute_features(x, case, orders))
    close(moved, y if invariant else permute_features(y, case, orders))
    assert all(leaf.isfinite().all() for leaf in leaves(y))


# -- symmetries ----------------------------------------------------------------------------------


def test_the_permutations_are_symmetries_of_the_network(case: Case) -> None:
    net = case.make().double()
    x = torch.randn(2, *case.x, dtype=torch.float64)
    state = permute_state(net.state_dict(), case, permutations(case, ends=False))
    torch.testing.assert_close(torch.func.functional_call(net, state, x), net(x))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_layers_commute_with_permuting_all_neurons(name: str, case: Case) -> None:
    check(build(EVERYWHERE[name], features_of(case, CHANNELS)), case, ends=True)


@pytest.mark.parametrize("name", HIDDEN)
def test_layers_commute_with_permuting_hidden_neurons(name: str, case: Case) -> None:
    check(build(HIDDEN[name], features_of(case, CHANNELS)), case, ends=False)


@pytest.mark.parametrize("name", INVARIANT)
def test_invariants_of_permuting_all_neurons(name: str, case: Case) -> None:
    layer = build(INVARIANT[name], features_of(case, CHANNELS))
    check(layer, case, ends=True, invariant=True)


@pytest.mark.parametrize("name", INVARIANT_HIDDEN)
def test_invariants_of_permuting_hidden_neurons(name: str, case: Case) -> None:
    layer = build(INVARIANT_HIDDEN[name], features_of(case, CHANNELS))
    check(layer, case, ends=False, invariant=True)


@pytest.mark.parametrize("name", HIDDEN)
def test_layers_that_know_inputs_do_not_commute_with_permuting_them(name: str) -> None:
    """Else the tests above could not tell HNP from NP."""
    torch.manual_seed(0)
    layer = build(HIDDEN[name], features_of(CASES["mlp"], CHANNELS))
    with pytest.raises(AssertionError, match="not close"):
        check(layer, CASES["mlp"], ends=True)


def test_the_check_rejects_a_layer_that_numbers_hidden_neurons() -> None:
    def wrong(x: WeightSpaceFeatures) -> WeightSpaceFeatures:
        return x.map(lambda t: t + 1e-6 * torch.arange(t.shape[2]).view(-1, *(1,) * (t.dim() - 3)))

    with pytest.raises(AssertionError, match="not close"):
        check(wrong, CASES["mlp"], ends=False)
    with pytest.raises(AssertionError, match="not close"):
        check(FlattenWeights(None), CASES["mlp"], ends=False, invariant=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", [True, False], ids=["NP", "HNP"])
def test_linear_layers_are_complete(ends: bool) -> None:
    """As many weights as the space of equivariant maps has dimensions, and no redundant one."""
    case = CASES["no biases"]
    x = features_of(case, 1, batch=1)
    spec = network_spec_from_wsfeat(x)
    layer = (NPLinear if ends else HNPLinear)(spec, 1, 1).double()
    inputs = [pytree.tree_map(torch.randn_like, x) for _ in range(8)]
    columns = []
    for parameter in layer.parameters():
        parameter.data.zero_()
        for entry in parameter.data.view(-1):
            entry.fill_(1)
            columns.append(torch.cat([leaf.flatten() for y in inputs for leaf in leaves(layer(y))]))
            entry.fill_(0)
    count = len(columns)
    assert torch.linalg.matrix_rank(torch.stack(columns).detach()) == count
    # One hidden layer of 5: partitions of the joint axes into blocks of one label.
    a = {(1, 1): 2, (1, 0): 1, (0, 1): 1}
    if ends:
        # Per pair of weights: from (a, in) to itself 2 * 2, to (out, a) 2, and likewise.
        assert count == 4 + 4 + 2 + 2 + 2
    else:
        assert count == a[1, 1] * (3 + 4) ** 2 + (3 + 4)


# -- data ----------------------------------------------------------------------------------------


def test_state_dicts_there_and_back(case: Case) -> None:
    nets = [case.make() for _ in range(3)]
    examples = [WeightSpaceFeatures(*state_dict_to_tensors(net.state_dict())) for net in nets]
    x = WeightSpaceFeatures.stack(examples)
    assert {weight.shape[:2] for weight in x.weights} == {(3, 1)}
    states = params_to_state_dicts(nets[0].state_dict().keys(), x)
    for net, state in zip(nets, states, strict=True):
        assert list(state) == list(net.state_dict())
        close(dict(state), dict(net.state_dict()))
        case.make().load_state_dict(state)


@pytest.mark.parametrize("set_all_dims", [False, True])
def test_specs_give_sizes_to_what_is_not_hidden(case: Case, set_all_dims: bool) -> None:
    x = features_of(case)
    spec = network_spec_from_wsfeat(x, set_all_dims=set_all_dims)
    assert spec.get_io() == (case.sizes["in"], case.sizes["out"])
    for values, axes, arrays in zip(
        (x.weights, x.biases), case.pairs, (spec.weight_spec, spec.bias_spec), strict=True
    ):
        for value, labels, array in zip(values, axes, arrays, strict=True):
            if value is None:
                assert array is None
                continue
            assert array is not None
            hidden = [label not in ("in", "out", None) for label in labels or ()]
            wanted = [
                -1 if unknown and not set_all_dims else size
                for size, unknown in zip(value.shape[2:], hidden, strict=True)
            ]
            assert list(array.shape) == wanted
    if set_all_dims:
        assert spec.get_num_params() == sum(leaf[0].numel() for leaf in leaves(x))
        found = NPLinear(spec, 1, 2)(x)
        assert [w.shape[2:] for w in found.weights] == [w.shape[2:] for w in x.weights]


def test_tokens_there_and_back(case: Case) -> None:
    x = features_of(case, CHANNELS)
    spec = network_spec_from_wsfeat(x, set_all_dims=True)
    tokens = FlattenWeights(spec)(x)
    assert tokens.shape == (2, spec.get_num_params(), CHANNELS)
    close(UnflattenWeights(spec)(tokens), x, 0)
    latents = CrossAttnEncoder(spec, CHANNELS, 5).double()(x)
    assert latents.shape == (2, 5, CHANNELS)
    y = CrossAttnDecoder(spec, CHANNELS, spec.get_num_params()).double()(latents)
    assert [leaf.shape for leaf in leaves(y)] == [leaf.shape for leaf in leaves(x)]


def test_pools_count_their_outputs(case: Case) -> None:
    x = features_of(case, CHANNELS)
    spec = network_spec_from_wsfeat(x)
    for pool in (NPPool(spec), HNPPool(spec), StatFeaturizer()):
        y = pool(x)
        assert y.shape == (2, CHANNELS, pool.get_num_outs(spec))
        assert y.flatten(1).shape[1] == pool.get_num_outs(spec, channels=CHANNELS)


def test_features_add_and_multiply() -> None:
    x = features_of(CASES["no biases"])
    close(x + x, x * 2)
    close(x * x, x.map(torch.square))
    assert x.to(torch.float32).weights[0].dtype is torch.float32
    assert len(list(x)) == len(x) == 2
    assert x[1][0] is x.weights[1]
    close(WeightSpaceFeatures.from_zipped(list(x)), x)
    assert len(params_to_func_params(x)) == 2
    assert params_to_func_params(x)[0].shape == x.weights[0].shape[:1] + x.weights[0].shape[2:]
    weight = x.weights[0].clone().requires_grad_()
    assert not WeightSpaceFeatures([weight], [None]).detach().weights[0].requires_grad


# -- torch's transforms --------------------------------------------------------------------------


def model_of(spec: NetworkSpec) -> nn.Module:
    return nn.Sequential(
        NPLinear(spec, CHANNELS, CHANNELS, io_embed=True),
        TupleOp(nn.ReLU()),
        NPAttention(spec, CHANNELS, num_heads=2),
        HNPLinear(spec, CHANNELS, CHANNELS),
        SimpleLayerNorm(spec, CHANNELS),
    ).double()


TRANSFORMED = ["mlp", "no biases", "batch norm"]


@pytest.mark.parametrize("name", TRANSFORMED)
def test_features_are_a_pytree(name: str) -> None:
    x = features_of(CASES[name], CHANNELS)
    flat, structure = pytree.tree_flatten(x)
    assert all(isinstance(leaf, Tensor) for leaf in flat)
    assert len(flat) == len(x) + sum(bias is not None for bias in x.biases)
    back = pytree.tree_unflatten(flat, structure)
    assert isinstance(back, WeightSpaceFeatures)
    assert [b is None for b in back.biases] == [b is None for b in x.biases]
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(x)[0]]
    assert paths[0] == ".weights[0]"
    assert len(set(paths)) == len(flat)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's attention
@pytest.mark.parametrize("name", TRANSFORMED)
def test_vmap_over_features(name: str) -> None:
    examples = [features_of(CASES[name], CHANNELS) for _ in range(3)]
    model = model_of(network_spec_from_wsfeat(examples[0]))
    stacked = WeightSpaceFeatures.stack(examples)
    found = torch.func.vmap(model)(stacked)
    for i, example in enumerate(examples):
        close(pytree.tree_map(lambda leaf, i=i: leaf[i], found), model(example))


@pytest.mark.parametrize("name", TRANSFORMED)
def test_features_are_saved_and_loaded(name: str) -> None:
    x = features_of(CASES[name], CHANNELS)
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    close(torch.load(file), x, 0)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_export_takes_and_returns_features(name: str) -> None:
    x = features_of(CASES[name], CHANNELS)
    model = model_of(network_spec_from_wsfeat(x))
    exported = torch.export.export(model, (x,))
    close(exported.module()(x), model(x))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    close(torch.export.load(file).module()(x), model(x))


def test_compile_without_a_graph_break() -> None:
    x = features_of(CASES["batch norm"], CHANNELS)
    model = model_of(network_spec_from_wsfeat(x))
    close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_models_are_copied_and_pickled(copied: Any) -> None:
    x = features_of(CASES["flatten"], CHANNELS)
    model = model_of(network_spec_from_wsfeat(x))
    y = model(x)
    twin = copied(model)
    model[0].layer.bias.data.add_(1)
    close(twin(x), y)


def test_gradients_reach_every_parameter() -> None:
    x = features_of(CASES["batch norm"], CHANNELS)
    model = model_of(network_spec_from_wsfeat(x))
    sum(leaf.square().sum() for leaf in leaves(model(x))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_come_out_as_they_go_in(dtype: torch.dtype, case: Case) -> None:
    x = features_of(case, CHANNELS, dtype=dtype)
    spec = network_spec_from_wsfeat(x)
    for make in (EVERYWHERE | HIDDEN | INVARIANT | INVARIANT_HIDDEN).values():
        y = make(spec).to(dtype)(x)
        assert {leaf.dtype for leaf in leaves(y)} == {dtype}


# -- what is refused -----------------------------------------------------------------------------


def test_features_of_another_network_are_refused() -> None:
    spec = network_spec_from_wsfeat(features_of(CASES["mlp"]))
    layer = NPLinear(spec, 1, 2)
    with pytest.raises(ShapeError, match="features have 2 layers, the network spec 3"):
        layer(features_of(CASES["one output"]))
    x = features_of(CASES["mlp"])
    with pytest.raises(ShapeError, match=r"layer 1: .* without bias"):
        layer(WeightSpaceFeatures(x.weights, [x.biases[0], None, x.biases[2]]))
    with pytest.raises(ShapeError, match="features of different networks"):
        x + features_of(CASES["one output"])
    with pytest.raises(ShapeError, match="1 weights and 0 biases"):
        WeightSpaceFeatures(x.weights[:1], [])


@pytest.mark.parametrize("name", HIDDEN)
def test_one_input_is_not_broadcast_to_many(name: str) -> None:
    x = features_of(CASES["mlp"], CHANNELS)
    layer = build(HIDDEN[name], x)
    narrow = WeightSpaceFeatures([x.weights[0][..., :1], *x.weights[1:]], x.biases)
    # ParamLayerNorm is torch's own layer norm.
    with pytest.raises(RuntimeError if name == "ParamLayerNorm" else ShapeError):
        layer(narrow)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(5, 3), (4, 6)], "does not follow the layer before it, which has 5 outputs"),
        ([(5, 3), (4, 10)], "does not follow"),  # a multiple, but no convolution before it
        ([(5, 3), (4,)], "does not follow"),
        ([(5, 3, 2), (4, 12)], "does not follow"),  # no multiple of the convolution's channels
    ],
)
def test_layers_that_do_not_follow_are_refused(shapes: list[tuple[int, ...]], message: str) -> None:
    weights = [torch.ones(1, 2, *shape) for shape in shapes]
    x = WeightSpaceFeatures(weights, [None] * len(shapes))
    spec = network_spec_from_wsfeat(x)
    for layer in (NPLinear(spec, 2, 1), HNPLinear(spec, 2, 1), NPAttention(spec, 2, 1)):
        with pytest.raises(ShapeError, match=message):
            layer(x)
    for layer in (Pointwise(spec, 2, 2), NPAttention(spec, 2, 1, ablate_crossterm=True)):
        y = layer(x)
        assert [leaf.shape for leaf in leaves(y)] == [leaf.shape for leaf in leaves(x)]


def test_tensors_with_too_few_axes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected .batch, channels, out, in"):
        network_spec_from_wsfeat(WeightSpaceFeatures([torch.ones(1, 1)], [None]))


def test_specs_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ShapeError, match="no linear or convolutional layer"):
        NPLinear(NetworkSpec([ArraySpec((3,))], [None]), 1, 1)
    with pytest.raises(ShapeError, match="size of every tap"):
        NPLinear(NetworkSpec([ArraySpec((3, 2, -1))], [None]), 1, 1)
    with pytest.raises(ShapeError, match=r"bias_spec\[0\]"):
        NPLinear(NetworkSpec([ArraySpec((3, 2))], [ArraySpec((3, 2))]), 1, 1)
    unknown = NetworkSpec([ArraySpec((-1, -1)), ArraySpec((3, -1))], [None, None])
    for make in HIDDEN.values():
        with pytest.raises(ShapeError, match="numbers must be known"):
            make(unknown)
    with pytest.raises(ShapeError, match="numbers must be known"):
        HNPPool.get_num_outs(unknown)
    with pytest.raises(ShapeError, match="2 weights and 1 biases"):
        NPLinear(NetworkSpec(unknown.weight_spec, [None]), 1, 1)
    with pytest.raises(ShapeError, match="axes of size -1"):
        UnflattenWeights(unknown)
    NPLinear(unknown, 1, 1)  # these need no size
    assert NPPool.get_num_outs(unknown) == 2


def test_keys_and_channels_that_do_not_fit_are_refused() -> None:
    x = features_of(CASES["mlp"], 2)
    keys = list(CASES["mlp"].make().state_dict())
    with pytest.raises(ShapeError, match=r"\[2\] channels are no parameters"):
        params_to_state_dicts(keys, x)
    with pytest.raises(ShapeError, match="the keys name 2 layers"):
        params_to_state_dicts(keys[:4], x)
    with pytest.raises(ShapeError, match="'bias' has no weight before it"):
        state_dict_to_tensors({"bias": torch.ones(3)})
    with pytest.raises(ShapeError, match="'bias_hh_l0' has no weight"):
        state_dict_to_tensors(nn.RNN(2, 3).state_dict())
    spec = network_spec_from_wsfeat(x, set_all_dims=True)
    with pytest.raises(ShapeError, match="found 7 tokens"):
        UnflattenWeights(spec)(torch.ones(2, 7, 1))
