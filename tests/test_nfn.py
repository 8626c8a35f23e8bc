"""Programs written for the `nfn` package run on ours, with equal values; its faults are mended.

In: nfn itself. The one thing to know: every mended fault is shown beside nfn's, so the claim stays
true: where nfn no longer fails, the test does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from symcompile.errors import OptionError
from symcompile_torch.nfn import common, from_nfn, layers
from tests.nfn_cases import CASES

nfn_common = pytest.importorskip("nfn.common", reason="nfn is not installed")
nfn_layers = pytest.importorskip("nfn.layers", reason="nfn is not installed")


def draw(
    widths: tuple[int, ...], taps: tuple[tuple[int, ...], ...] = (), channels: int = 2
) -> tuple[list[Tensor], list[Tensor]]:
    """Random weights and biases; taps of each kernel."""
    torch.manual_seed(0)
    kernels = taps or ((),) * (len(widths) - 1)
    pairs = list(zip(widths, widths[1:], kernels, strict=False))
    weights = [torch.randn(3, channels, out, into, *tap) for into, out, tap in pairs]
    return weights, [torch.randn(3, channels, out) for _, out, _ in pairs]


def both(data: tuple[list[Tensor], list[Tensor]]) -> tuple[Any, Any, Any, Any]:
    """Features and spec of nfn, and ours."""
    theirs, ours = nfn_common.WeightSpaceFeatures(*data), common.WeightSpaceFeatures(*data)
    return (
        theirs,
        nfn_common.network_spec_from_wsfeat(theirs),
        ours,
        common.network_spec_from_wsfeat(ours),
    )


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, nfn_common.WeightSpaceFeatures):
        return [*value.weights, *value.biases]
    return pytree.tree_leaves(value)


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest entry of each tensor."""
    for one, other in zip(leaves(ours), leaves(theirs), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max()


NETWORKS = {
    "mlp of 2": draw((3, 5, 4)),
    "mlp of 3": draw((3, 5, 6, 4)),
    "mlp of 4": draw((3, 5, 6, 7, 4)),
    "mlp with ends of 1": draw((1, 5, 6, 1)),
    "cnn of 2": draw((3, 5, 4), ((3, 2), (1, 3))),
    "cnn of 4": draw((1, 5, 6, 7, 4), ((3, 2), (2, 2), (1, 4), (2, 3))),
    "cnn with a linear end": draw((3, 5, 6, 4), ((3, 2), (2, 2), ())),
}


# -- names and arguments -------------------------------------------------------------------------


OTHERWISE = {
    ("NPLinear", "init_type"): "a default that keeps the variance of activations",
    ("ChannelDropout", "process_matrix"): "a step of nfn's forward",
}
"""What is not as in nfn, and why."""


def different(theirs: Any, ours: Any, name: str) -> list[str]:
    """What a caller of nfn's class or function would miss in ours."""

    def arguments(function: Any) -> list[tuple[Any, ...]]:
        found = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in found if (name, p.name) not in OTHERWISE]

    def misses(function: Any, other: Any) -> bool:
        known, all_ours = arguments(function), arguments(other)
        # More arguments may follow, each with a default.
        more = [default for _, _, default in all_ours[len(known) :]]
        return all_ours[: len(known)] != known or inspect.Parameter.empty in more

    missed = ["()"] if misses(theirs, ours) else []
    methods = vars(theirs) if inspect.isclass(theirs) else {}
    for method in methods:
        if method.startswith("__") or (name, method) in OTHERWISE:
            continue
        known, other = getattr(theirs, method), getattr(ours, method, None)
        if other is None or (callable(known) and misses(known, other)):
            missed.append(method)
    return missed


PUBLIC = [
    (package, ours, name)
    for package, ours in ((nfn_common, common), (nfn_layers, layers))
    for name, value in vars(package).items()
    if not name.startswith("_") and not inspect.ismodule(value)
]


@pytest.mark.parametrize(("package", "ours", "name"), PUBLIC, ids=[name for *_, name in PUBLIC])
def test_names_arguments_and_methods_are_nfns(package: Any, ours: Any, name: str) -> None:
    assert name in ours.__all__
    assert different(getattr(package, name), getattr(ours, name), name) == []


def test_the_comparison_notices_what_is_missing() -> None:
    class Theirs:
        def __init__(self, spec: Any, channels: int, scale: float = 1) -> None: ...
        def count(self, channels: int) -> int:
            return channels

    class NoMethod:
        def __init__(self, spec: Any, channels: int, scale: float = 1) -> None: ...

    class OtherDefault(Theirs):
        def __init__(self, spec: Any, channels: int, scale: float = 2) -> None: ...

    class OtherOrder(Theirs):
        def __init__(self, channels: int, spec: Any, scale: float = 1) -> None: ...

    class MoreNeeded(Theirs):
        def __init__(self, spec: Any, channels: int, scale: float = 1, *, more: int) -> None: ...
        def count(self, channel: int) -> int:
            return channel

    class More(Theirs):
        def __init__(self, spec: Any, channels: int, scale: float = 1, more: int = 0) -> None: ...

    assert different(Theirs, NoMethod, "") == ["count"]
    assert different(Theirs, OtherDefault, "") == different(Theirs, OtherOrder, "") == ["()"]
    assert different(Theirs, MoreNeeded, "") == ["()", "count"]
    assert different(Theirs, More, "") == different(Theirs, Theirs, "") == []


# -- from_nfn ------------------------------------------------------------------------------------


def trained(layer: nn.Module) -> Any:
    """All weights random, none small: as different from a fresh layer's as can be."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


KINDS: dict[str, Callable[[Any], Any]] = {
    "NP": lambda spec: nfn_layers.NPLinear(spec, 2, 3),
    "NP io_embed": lambda spec: nfn_layers.NPLinear(spec, 2, 3, io_embed=True),
    "HNP": lambda spec: nfn_layers.HNPLinear(spec, 2, 3),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_trained_layer_of_nfn_is_taken_over(network: str, kind: str) -> None:
    x, spec, ours_x, _ = both(NETWORKS[network])
    theirs = trained(KINDS[kind](spec))
    ours = from_nfn(theirs)
    close(ours(ours_x), theirs(x))


def test_what_is_taken_over_is_told_from_what_is_not() -> None:
    """The test above can fail: for each parameter of nfn's, if it is not carried over."""
    x, spec, ours_x, _ = both(NETWORKS["cnn of 4"])
    for make in (KINDS["NP io_embed"], KINDS["HNP"]):
        theirs = trained(make(spec))
        ours = from_nfn(theirs)
        for parameter in theirs.parameters():
            parameter.data.add_(0.01)
            with pytest.raises(AssertionError):
                close(ours(ours_x), theirs(x))
            ours = from_nfn(theirs)
        close(ours(ours_x), theirs(x))


def test_one_layer_is_taken_over() -> None:
    x, spec, ours_x, _ = both(draw((3, 4)))
    theirs = trained(nfn_layers.NPLinear(spec, 2, 3))
    close(from_nfn(theirs)(ours_x), theirs(x))


@pytest.mark.parametrize("network", ["mlp of 3", "cnn of 4"])
def test_float64_is_taken_over_to_its_last_digits(network: str) -> None:
    weights, biases = NETWORKS[network]
    x, spec, ours_x, _ = both(([w.double() for w in weights], [b.double() for b in biases]))
    for make in KINDS.values():
        theirs = trained(make(spec)).double().eval()
        ours = from_nfn(theirs)
        assert not ours.training
        close(ours(ours_x), theirs(x), 1e-13)


def test_from_nfn_takes_layers_of_nfn_only() -> None:
    spec = both(NETWORKS["mlp of 2"])[1]
    with pytest.raises(OptionError, match=r"found a nfn\.layers\.layers\.Pointwise"):
        from_nfn(nfn_layers.Pointwise(spec, 1, 1))
    with pytest.raises(OptionError, match="found a torch"):
        from_nfn(nn.Linear(2, 2))
    ours = layers.NPLinear(spec, 1, 1)  # nfn's own spec is fine
    with pytest.raises(OptionError, match="symcompile_torch"):
        from_nfn(ours)


def test_nfn_layers_may_be_subclassed() -> None:
    class Mine(nfn_layers.NPLinear):  # type: ignore[misc]
        pass

    x, spec, ours_x, _ = both(NETWORKS["mlp of 2"])
    theirs = Mine(spec, 2, 3)
    close(from_nfn(theirs)(ours_x), theirs(x))


# -- other layers load nfn's state_dict ------------------------------------------------------------


ALIKE: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "NPPool": ((), {}),
    "HNPPool": ((), {}),
    "NPAttention": ((2,), {"num_heads": 2}),
    "NPAttention apart": ((2, 1), {"share_projections": False}),
    "NPAttention means": ((2, 1), {"ablate_crossterm": True}),
    "NPAttention rows": ((2, 1), {"ablate_diagonalterm": True}),
    "SimpleLayerNorm": ((2,), {}),
    "ParamLayerNorm": ((2,), {}),
    "IOSinusoidalEncoding": ((), {}),
    "IOSinusoidalEncoding of ends": ((), {"enc_layers": False, "num_bands": 3, "max_freq": 8}),
    "LearnedPosEmbedding": ((2,), {}),
    "GaussianFourierFeatureTransform": ((2,), {"mapping_size": 4, "scale": 0.5}),
    "LearnedScale": ((0.5,), {}),
    "FlattenWeights": ((), {}),
    "CrossAttnEncoder": ((2, 5), {}),
}
ONE_LAYER = draw((3, 4))
# What nfn cannot do on kernels of more than one tap; the mended faults below have each.
NOT_ON_KERNELS = {"NPAttention", "NPAttention means", "NPAttention rows", "ParamLayerNorm"}
NOT_ON_KERNELS |= {"FlattenWeights", "CrossAttnEncoder"}


COMPARED = [
    (network, name)
    for network in ("one layer", "mlp of 2", "mlp of 4", "cnn with a linear end")
    for name in ALIKE
    if not (network.startswith("cnn") and name in NOT_ON_KERNELS)
    and (network, name) != ("one layer", "HNPPool")
]


@pytest.mark.parametrize(("network", "name"), COMPARED)
def test_other_layers_load_nfns_weights_and_agree(network: str, name: str) -> None:
    x, spec, ours_x, ours_spec = both(ONE_LAYER if network == "one layer" else NETWORKS[network])
    arguments, options = ALIKE[name]
    kind = name.partition(" ")[0]
    theirs = trained(getattr(nfn_layers, kind)(spec, *arguments, **options))
    ours = getattr(layers, kind)(ours_spec, *arguments, **options)
    ours.load_state_dict(theirs.state_dict())
    close(ours(ours_x), theirs(x))


def test_statistics_and_single_tensors_agree() -> None:
    x, spec, ours_x, ours_spec = both(NETWORKS["cnn of 2"])
    close(layers.StatFeaturizer()(ours_x), nfn_layers.StatFeaturizer()(x), 1e-6)
    for kind, arguments in (("ChannelLinear", (2, 5)), ("ChannelLayerNorm", (2,))):
        theirs = trained(getattr(nfn_layers, kind)(*arguments))
        ours = getattr(layers, kind)(*arguments)
        ours.load_state_dict(theirs.state_dict())
        close(ours(ours_x.weights[0]), theirs(x.weights[0]))
    for pool in ("NPPool", "HNPPool", "StatFeaturizer"):
        counted = getattr(nfn_layers, pool).get_num_outs(spec)
        assert getattr(layers, pool).get_num_outs(ours_spec) == counted


def test_decoders_agree_and_tokens_come_in_nfns_order() -> None:
    x, _, ours_x, _ = both(NETWORKS["mlp of 3"])
    spec = nfn_common.network_spec_from_wsfeat(x, set_all_dims=True)
    ours_spec = common.network_spec_from_wsfeat(ours_x, set_all_dims=True)
    assert ours_spec.get_num_params() == spec.get_num_params()
    theirs = nfn_layers.CrossAttnDecoder(spec, 2, spec.get_num_params())
    ours = layers.CrossAttnDecoder(ours_spec, 2, spec.get_num_params())
    ours.load_state_dict(theirs.state_dict())
    latents = torch.randn(3, 7, 2)
    close(ours(latents), theirs(latents))


@pytest.mark.parametrize("kind", ["pytorch_default", "kaiming_normal"])
def test_nfns_initial_weights_have_nfns_scale(kind: str) -> None:
    x, spec, ours_x, ours_spec = both(draw((20, 30, 40, 10), channels=8))
    theirs = nfn_layers.NPLinear(spec, 8, 16, init_type=kind)
    ours = layers.NPLinear(ours_spec, 8, 16, init_type=kind)
    if kind == "kaiming_normal":
        assert not ours.layer.bias.any()
    for one, other in zip(leaves(ours(ours_x)), leaves(theirs(x)), strict=True):
        assert one.std().item() == pytest.approx(other.std().item(), rel=0.25)
    with pytest.raises(OptionError, match="init_type='xavier'"):
        layers.NPLinear(ours_spec, 1, 1, init_type="xavier")


# -- programs ------------------------------------------------------------------------------------


PREDICTOR = """
import torch
from torch import nn
from torch.utils.data import default_collate
from nfn.common import state_dict_to_tensors, WeightSpaceFeatures, network_spec_from_wsfeat
from nfn.layers import NPLinear, HNPLinear, HNPPool, NPPool, TupleOp, StatFeaturizer
from nfn.layers import SimpleLayerNorm, ChannelDropout, IOSinusoidalEncoding
from nfn.layers import GaussianFourierFeatureTransform

torch.manual_seed(1)
models = [nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)) for _ in range(5)]
features = default_collate([state_dict_to_tensors(model.state_dict()) for model in models])
x = WeightSpaceFeatures(*features).to("cpu")
spec = network_spec_from_wsfeat(x)

encode = GaussianFourierFeatureTransform(spec, 1, mapping_size=4)
place = IOSinusoidalEncoding(spec)
channels = place.num_out_chan(encode.out_channels)
model = nn.Sequential(
    encode, place,
    NPLinear(spec, channels, 16, io_embed=True), SimpleLayerNorm(spec, 16), TupleOp(nn.ReLU()),
    ChannelDropout(0.1),
    HNPLinear(spec, in_channels=16, out_channels=8), TupleOp(nn.ReLU()),
    HNPPool(spec), nn.Flatten(start_dim=-2),
    nn.Linear(8 * HNPPool.get_num_outs(spec), 32), nn.ReLU(), nn.Linear(32, 1)).eval()
y = model(x)
statistics = nn.Sequential(StatFeaturizer(), nn.Flatten(start_dim=-2),
                           nn.Linear(StatFeaturizer.get_num_outs(spec), 4))(x)
"""

EDITOR = """
import torch
from torch import nn
from nfn.common import state_dict_to_tensors, params_to_state_dicts, params_to_func_params
from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
from nfn.layers import NPLinear, TupleOp, LearnedScale, LearnedPosEmbedding, ResBlock
from nfn.layers import ParamLayerNorm

torch.manual_seed(1)
def siren():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
sirens = [siren() for _ in range(4)]
keys = list(sirens[0].state_dict())
tensors = [state_dict_to_tensors(net.state_dict()) for net in sirens]
weights = [torch.stack(layer) for layer in zip(*(w for w, _ in tensors))]
biases = [torch.stack(layer) for layer in zip(*(b for _, b in tensors))]
x = WeightSpaceFeatures(weights, biases)
spec = network_spec_from_wsfeat(x)

model = nn.Sequential(
    NPLinear(spec, 1, 4, io_embed=True), TupleOp(nn.ReLU()), LearnedPosEmbedding(spec, 4),
    ResBlock(NPLinear(spec, 4, 4), TupleOp(nn.ReLU()), 0, ParamLayerNorm(spec, 4)),
    NPLinear(spec, 4, 1), LearnedScale(spec, 0.01))
change = model(x)
edited = x + change
first = siren()
first.load_state_dict(params_to_state_dicts(keys, edited)[0])
y = first(torch.ones(1, 2))
params = params_to_func_params(edited.detach())
total = sum((w * w).sum() + (b * b).sum() for w, b in edited)
"""

TRANSFORMER = """
import torch
from torch import nn
from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
from nfn.layers import NPAttention, SimpleLayerNorm, ResBlock, TupleOp, ChannelLinear
from nfn.layers import CrossAttnEncoder, CrossAttnDecoder, LearnedPosEmbedding

torch.manual_seed(1)
x = WeightSpaceFeatures((torch.randn(3, 1, 6, 2), torch.randn(3, 1, 3, 6)),
                        (torch.randn(3, 1, 6), torch.randn(3, 1, 3)))
spec = network_spec_from_wsfeat(x)
full = network_spec_from_wsfeat(x, set_all_dims=True)
def block():
    attention = ResBlock(NPAttention(spec, 8, num_heads=2), TupleOp(nn.Identity()), 0,
                         SimpleLayerNorm(spec, 8))
    widen = TupleOp(nn.Sequential(ChannelLinear(8, 16), nn.GELU(), ChannelLinear(16, 8)))
    return nn.Sequential(attention, ResBlock(widen, TupleOp(nn.Identity()), 0,
                                             SimpleLayerNorm(spec, 8)))
count = full.get_num_params()
model = nn.Sequential(TupleOp(ChannelLinear(1, 8)), LearnedPosEmbedding(spec, 8), block(), block(),
                      CrossAttnEncoder(full, 8, 5), CrossAttnDecoder(full, 8, count))
y = model(x)
"""

PROGRAMS = {"predictor": PREDICTOR, "editor": EDITOR, "transformer": TRANSFORMER}


def run(program: str, package: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(program.replace("from nfn.", f"from {package}."), namespace)
    return namespace


def transplant(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """Our model with the weights of nfn's."""
    kind = type(theirs).__name__
    if kind in ("NPLinear", "HNPLinear"):
        return from_nfn(theirs)
    if kind not in ("Sequential", "ResBlock", "TupleOp"):
        ours.load_state_dict(theirs.state_dict())
        return ours
    for (name, child), (_, other) in zip(
        list(ours.named_children()), theirs.named_children(), strict=True
    ):
        setattr(ours, name, transplant(other, child))
    return ours


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_run_with_only_their_imports_changed(name: str) -> None:
    theirs = run(PROGRAMS[name], "nfn")
    ours = run(PROGRAMS[name], "symcompile_torch.nfn")
    assert type(ours["x"]).__module__.startswith("symcompile_torch.nfn")
    for variable, value in theirs.items():
        if isinstance(value, Tensor | nfn_common.WeightSpaceFeatures):
            assert [leaf.shape for leaf in leaves(ours[variable])] == [
                leaf.shape for leaf in leaves(value)
            ], variable
    model = transplant(theirs["model"], ours["model"])
    close(model(ours["x"]), theirs["model"](theirs["x"]))


def test_networks_that_are_no_chain() -> None:
    """Skips make a layer wider than the one before it: what reads no neighbour takes them."""
    torch.manual_seed(0)
    shapes = [(8, 4), (8, 12), (3, 20)]
    data = (
        [torch.randn(3, 2, *shape) for shape in shapes],
        [torch.randn(3, 2, out) for out, _ in shapes],
    )
    x, spec, ours_x, ours_spec = both(data)
    for name in ALIKE.keys() - {"NPAttention", "NPAttention apart", "NPAttention rows"}:
        arguments, options = ALIKE[name]
        kind = name.partition(" ")[0]
        theirs = trained(getattr(nfn_layers, kind)(spec, *arguments, **options))
        ours = getattr(layers, kind)(ours_spec, *arguments, **options)
        ours.load_state_dict(theirs.state_dict())
        close(ours(ours_x), theirs(x))
    close(layers.StatFeaturizer()(ours_x), nfn_layers.StatFeaturizer()(x), 1e-6)
    theirs, ours = nfn_layers.Pointwise(spec, 2, 3), layers.Pointwise(ours_spec, 2, 3)
    assert [leaf.shape for leaf in leaves(ours(ours_x))] == [
        leaf.shape for leaf in leaves(theirs(x))
    ]


def test_a_program_trains() -> None:
    """Predict the mean of all weights: far below the variance of the target after some steps."""
    torch.manual_seed(0)
    data = draw((2, 8, 8, 1), channels=1)
    x = common.WeightSpaceFeatures(
        [w.repeat(20, 1, 1, 1) + 0.3 * torch.randn(60, *w.shape[1:]) for w in data[0]],
        [b.repeat(20, 1, 1) for b in data[1]],
    )
    target = torch.cat([w.flatten(1) for w in x.weights], dim=1).mean(1, keepdim=True)
    target = (target - target.mean()) / target.std()
    spec = common.network_spec_from_wsfeat(x)
    model = nn.Sequential(
        layers.NPLinear(spec, 1, 8, io_embed=True),
        layers.TupleOp(nn.ReLU()),
        layers.HNPLinear(spec, 8, 8),
        layers.HNPPool(spec),
        nn.Flatten(),
        nn.Linear(layers.HNPPool.get_num_outs(spec, channels=8), 1),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


# -- what fails in nfn and works here --------------------------------------------------------------


def net_features(net: nn.Module) -> common.WeightSpaceFeatures:
    weights, biases = common.state_dict_to_tensors(net.state_dict())
    return common.WeightSpaceFeatures(
        [w[None] for w in weights], [None if b is None else b[None] for b in biases]
    )


def runs(model: Any, x: common.WeightSpaceFeatures, channels: int) -> None:
    """Finite features of the shapes of x, with other channels."""
    y = model(x)
    for one, other in zip(leaves(y), leaves(x), strict=True):
        assert one.shape == (other.shape[0], channels, *other.shape[2:])
        assert one.isfinite().all()


def test_one_layer_with_io_embed() -> None:
    theirs_x, theirs_spec, x, spec = both(draw((3, 4)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        nfn_layers.NPLinear(theirs_spec, 2, 3, io_embed=True)(theirs_x)
    layer = layers.NPLinear(spec, 2, 3, io_embed=True)
    runs(layer, x, 3)
    with torch.no_grad():  # each embedding is added to the one weight
        y = layer(x).weights[0]
        layer.in_embed.zero_()
        assert not torch.allclose(layer(x).weights[0], y)
        y = layer(x).weights[0]
        layer.out_embed.zero_()
        assert not torch.allclose(layer(x).weights[0], y)


def test_one_layer_in_hnp() -> None:
    """All neurons are fixed, so every entry may depend on every other."""
    theirs_x, theirs_spec, x, spec = both(draw((3, 4)))
    with pytest.raises(IndexError):
        nfn_layers.HNPLinear(theirs_spec, 2, 3)
    layer = layers.HNPLinear(spec, 2, 3)
    runs(layer, x, 3)
    assert sum(weight.numel() for weight in layer.parameters()) == (32 + 1) * 48
    pooled = nfn_layers.HNPPool(theirs_spec)(theirs_x)
    assert nfn_layers.HNPPool.get_num_outs(theirs_spec) != pooled.shape[-1]
    assert layers.HNPPool.get_num_outs(spec) == layers.HNPPool(spec)(x).shape[-1] == 16


def test_networks_without_biases() -> None:
    net = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False))
    with pytest.raises(AssertionError):
        nfn_common.state_dict_to_tensors(net.state_dict())
    x = net_features(net)
    assert x.biases == (None, None)
    spec = common.network_spec_from_wsfeat(x)
    for layer in (layers.NPLinear(spec, 1, 4, io_embed=True), layers.HNPLinear(spec, 1, 4)):
        runs(layer, x, 4)
    assert layers.HNPPool.get_num_outs(spec) == 3 + 2


@pytest.mark.parametrize(("kind", "count"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
def test_kernels_of_one_and_three_axes(kind: Any, count: int) -> None:
    net = nn.Sequential(kind(2, 5, 3), kind(5, 4, 2))
    x = net_features(net)
    theirs = nfn_common.WeightSpaceFeatures(x.weights, x.biases)
    with pytest.raises(ValueError, match="Unsupported weight dim"):
        nfn_common.network_spec_from_wsfeat(theirs)
    spec = common.network_spec_from_wsfeat(x)
    assert spec.weight_spec[0].shape == (-1, 2, *(3,) * count)
    for layer in (layers.NPLinear(spec, 1, 4, io_embed=True), layers.HNPLinear(spec, 1, 4)):
        runs(layer, x, 4)


def test_convolution_then_flatten_then_linear() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6, 3))
    x = net_features(net)
    theirs = nfn_common.WeightSpaceFeatures(x.weights, x.biases)
    theirs_spec = nfn_common.network_spec_from_wsfeat(theirs)
    for kind in (nfn_layers.NPLinear, nfn_layers.HNPLinear):
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            kind(theirs_spec, 1, 4)(theirs)
    spec = common.network_spec_from_wsfeat(x)
    assert spec.weight_spec[1].pixels == 6
    for layer in (layers.NPLinear(spec, 1, 4, io_embed=True), layers.HNPLinear(spec, 1, 4)):
        runs(layer, x, 4)


def test_parameters_of_batch_norm() -> None:
    net = CASES["batch norm"].make()
    with pytest.raises(AssertionError):
        nfn_common.state_dict_to_tensors(net.state_dict())
    x = net_features(net)
    assert [tuple(w.shape[2:]) for w in x.weights] == [(4, 2, 3, 3), (4,), (4,), (3, 24)]
    spec = common.network_spec_from_wsfeat(x)
    for layer in (layers.NPLinear(spec, 1, 4, io_embed=True), layers.HNPLinear(spec, 1, 4)):
        runs(layer, x, 4)


def test_sinusoidal_encoding_of_a_convolution_at_the_end() -> None:
    theirs_x, theirs_spec, x, spec = both(NETWORKS["cnn of 2"])
    with pytest.raises(RuntimeError, match="size of tensor"):
        nfn_layers.IOSinusoidalEncoding(theirs_spec)(theirs_x)
    encode = layers.IOSinusoidalEncoding(spec)
    y = encode(x)
    assert y.weights[-1].shape == (3, encode.num_out_chan(2), 4, 5, 1, 3)
    # Alike at every tap; told apart by output; the same code as the output's bias has.
    code = y.weights[-1][:, 2:]
    assert (code == code[..., :1, :1]).all()
    close(code[:, :, :, 0, 0, 0], y.biases[-1][:, 2:])
    assert (code[:, :, 0] != code[:, :, 1]).any()


@pytest.mark.parametrize("name", ["ParamLayerNorm", "NPAttention"])
def test_norms_and_shared_attention_on_convolutions(name: str) -> None:
    theirs_x, theirs_spec, x, spec = both(NETWORKS["cnn with a linear end"])
    options = {"num_heads": 2} if name == "NPAttention" else {}
    with pytest.raises(RuntimeError, match=r"normalized_shape|cannot be multiplied"):
        getattr(nfn_layers, name)(theirs_spec, 2, **options)(theirs_x)
    runs(getattr(layers, name)(spec, 2, **options), x, 2)


def test_param_layer_norm_normalizes_channels_taps_and_ends() -> None:
    _, _, x, spec = both(NETWORKS["cnn of 2"])
    first, last = layers.ParamLayerNorm(spec, 2)(x).weights
    for y, axes in ((first, (1, 3, 4, 5)), (last, (1, 2, 4, 5))):
        torch.testing.assert_close(y.mean(axes), torch.zeros(3, 5), rtol=0, atol=1e-5)
        torch.testing.assert_close(y.square().mean(axes), torch.ones(3, 5), rtol=0, atol=1e-2)


def test_flattening_convolutions() -> None:
    theirs_x, theirs_spec, x, spec = both(NETWORKS["cnn of 4"])
    for kind, arguments in (("FlattenWeights", ()), ("CrossAttnEncoder", (2, 5))):
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            getattr(nfn_layers, kind)(theirs_spec, *arguments)(theirs_x)
        assert getattr(layers, kind)(spec, *arguments)(x).shape[::2] == (3, 2)


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom:UserWarning")
def test_statistics_of_one_bias() -> None:
    theirs_x, _, x, _ = both(NETWORKS["mlp with ends of 1"])
    assert nfn_layers.StatFeaturizer()(theirs_x).isnan().any()
    y = layers.StatFeaturizer()(x)
    assert y.isfinite().all()
    only = x.biases[-1]
    assert only is not None
    # Mean, variance and quantiles of one entry: itself, nothing, and itself.
    wanted = torch.cat([only, 0 * only, *[only] * 5], dim=-1)
    torch.testing.assert_close(y[..., -7:], wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_statistics_of_other_dtypes(dtype: torch.dtype) -> None:
    weights, biases = NETWORKS["mlp of 3"]
    cast = ([w.to(dtype) for w in weights], [b.to(dtype) for b in biases])
    theirs_x, _, x, _ = both(cast)
    with pytest.raises(RuntimeError, match="quantile"):
        nfn_layers.StatFeaturizer()(theirs_x)
    y = layers.StatFeaturizer()(x)
    assert y.dtype is dtype
    wanted = nfn_layers.StatFeaturizer()(nfn_common.WeightSpaceFeatures(weights, biases))
    tolerance = 0.02 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(y.float(), wanted, rtol=tolerance, atol=tolerance)


def test_statistics_of_more_than_16_million_entries() -> None:
    count = 2**24 + 1
    ramp = torch.arange(count, dtype=torch.float64).view(1, 1, count, 1)
    with pytest.raises(RuntimeError, match="too large"):
        nfn_layers.StatFeaturizer().compute_stats(ramp.float())
    y = layers.StatFeaturizer().compute_stats(ramp)[0, 0]
    top = count - 1
    wanted = [top / 2, count * (count + 1) / 12, 0, top / 4, top / 2, 3 * top / 4, top]
    torch.testing.assert_close(y, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:std.*degrees of freedom:UserWarning")
def test_channel_norm_of_one_channel() -> None:
    theirs_x, theirs_spec, x, spec = both(draw((3, 5, 4), channels=1))
    theirs = nfn_layers.SimpleLayerNorm(theirs_spec, 1)(theirs_x)
    assert theirs.weights[0].isnan().all()
    norm = layers.SimpleLayerNorm(spec, 1)
    y = norm(x)
    assert all(leaf.isfinite().all() for leaf in leaves(y))
    sum(leaf.sum() for leaf in leaves(y)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())


@pytest.mark.parametrize("name", ["NPPool", "HNPPool", "StatFeaturizer"])
def test_numbers_of_outputs_count_channels(name: str) -> None:
    _, theirs_spec, x, spec = both(NETWORKS["mlp of 3"])
    with pytest.raises(TypeError):
        getattr(nfn_layers, name).get_num_outs(theirs_spec, channels=2)
    kind = getattr(layers, name)
    pool = kind() if name == "StatFeaturizer" else kind(spec)
    assert kind.get_num_outs(spec, channels=2) == pool(x).flatten(1).shape[1]


def test_dropout_drops_channels_of_biases_whole() -> None:
    ones = ([torch.ones(50, 8, 4, 3)], [torch.ones(50, 8, 4)])
    theirs_x, _, x, _ = both(ones)
    torch.manual_seed(0)

    def whole(bias: Tensor) -> Tensor:
        return (bias == bias[..., :1]).all(-1)

    assert not whole(nfn_layers.ChannelDropout(0.5)(theirs_x).biases[0]).all()
    y = layers.ChannelDropout(0.5)(x)
    (bias,) = y.biases
    assert bias is not None
    assert whole(bias).all()
    assert whole(y.weights[0].flatten(2)).all()
    for leaf in (bias, y.weights[0]):
        assert set(leaf.unique().tolist()) == {0, 2}
        assert leaf.mean().item() == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(layers.ChannelDropout(0.5).eval()(x).weights, x.weights)


def test_nfns_features_are_no_pytree() -> None:
    theirs_x, theirs_spec, x, spec = both(NETWORKS["mlp of 2"])
    with pytest.raises(ValueError, match=r"no inputs|vmap"):
        torch.func.vmap(nfn_layers.NPLinear(theirs_spec, 2, 3))(theirs_x)
    with pytest.raises(Exception, match="WeightSpaceFeatures"):
        torch.export.export(nfn_layers.NPLinear(theirs_spec, 2, 3), (theirs_x,))
    layer = layers.NPLinear(spec, 2, 3)
    stacked = common.WeightSpaceFeatures.stack([x, x])
    assert torch.func.vmap(layer)(stacked).weights[0].shape == (2, 3, 3, 5, 3)
    close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_wide_inputs_need_no_hundreds_of_millions_of_weights() -> None:
    arrays = ([(-1, 784), (-1, -1), (10, -1)], [(-1,), (-1,), (10,)])
    theirs_spec, spec = (
        package.NetworkSpec(*([package.ArraySpec(shape) for shape in part] for part in arrays))
        for package in (nfn_common, common)
    )

    def count(layer: nn.Module) -> int:
        return sum(weight.numel() for weight in layer.parameters())

    with torch.device("meta"):
        assert count(nfn_layers.HNPLinear(theirs_spec, 16, 16)) > 300e6
        assert count(layers.HNPLinear(spec, 16, 16, rank=None)) > 300e6
    layer = layers.HNPLinear(spec, 16, 16)
    assert count(layer) < 4e6
    assert layer.rank == 4
    assert count(layers.HNPLinear(spec, 16, 16, rank=2)) < count(layer)
    small = layers.HNPLinear(both(NETWORKS["mlp of 3"])[3], 16, 16)
    assert small.rank is None
    x = common.WeightSpaceFeatures(*draw((784, 64, 64, 10), channels=16))
    runs(layer, x, 16)
    with pytest.raises(OptionError, match="rank"):
        layers.HNPLinear(spec, 1, 1, rank=0)


def test_activations_do_not_fade() -> None:
    theirs_x, theirs_spec, x, spec = both(draw((16, 32, 32, 16), channels=16))
    y: Any = x
    theirs_y: Any = theirs_x
    with torch.no_grad():
        for _ in range(5):
            y = layers.NPLinear(spec, 16, 16)(y)
            theirs_y = nfn_layers.NPLinear(theirs_spec, 16, 16)(theirs_y)
    assert theirs_y.weights[1].var() < 0.05
    assert 0.5 < y.weights[1].var() < 2


def test_equal_networks_are_compiled_once() -> None:
    spec = both(NETWORKS["mlp of 4"])[3]
    one, other = layers.NPLinear(spec, 2, 3), layers.NPLinear(spec, 2, 3)
    assert one.layer.compiled is other.layer.compiled
    assert one.layer.bias.data_ptr() != other.layer.bias.data_ptr()
    first, second = next(one.parameters()), next(other.parameters())
    assert not torch.equal(first, second)
