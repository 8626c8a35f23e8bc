"""NFN: `NPLinear` and `HNPLinear` of the nfn package (arXiv 2302.14040), eager and compiled.

In: a workload that is an MLP or a CNN. Out: a contestant; `Unsuited` for anything else, or where
nfn is not installed (`pip install nfn`).

The one thing to know: where inputs and outputs of the network are permuted the layer is `NPLinear`,
where they are fixed it is `HNPLinear`, the same class of maps as ours. Data is laid out as nfn
wants it, (batch, channels, out, in, *taps), before anything is timed. The positions that a flatten
puts in front of channels are taps of a kernel, to nfn, of a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

from symcompile.bench.subject import Setting, Stopwatch, Subject, Unsuited
from symcompile.bench.workloads import Workload
from symcompile.spec import DictNode, Fixed, Leaf, LeafNode, Node, Perm

__all__ = ["CONTESTANTS", "Layer", "layers_of"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the network whose weights are the data.

    Attributes:
        kernel, bias: places of the two tensors among the leaves of the spec.
        order: places, among the kernel's atoms, of (out, in, *taps).
    """

    kernel: int
    bias: int
    order: tuple[int, ...]


def layers_of(workload: Workload) -> list[Layer]:
    """The network's layers, first to last.

    Raises:
        Unsuited: the workload is no chain of layers, each with a kernel (or weight) and a bias.
    """
    leaves = workload.spec.leaves
    layers = [_layer(node, leaves) for node in _parts(workload.spec.structure)]
    if len(layers) < 2 or 2 * len(layers) != len(leaves):
        raise Unsuited("nfn has layers for MLPs and CNNs of two layers or more")
    ends = [_atoms(layer, leaves) for layer in layers]
    chained = all(isinstance(out, Perm) and out == into for (out, _), (_, into) in pairwise(ends))
    hidden = [out for out, _ in ends[:-1]]
    kinds = {type(ends[0][1]), type(ends[-1][0])}
    if not chained or len(set(hidden)) != len(hidden) or len(kinds) != 1:
        raise Unsuited("nfn has layers for chains of layers, with both ends permuted or both fixed")
    if kinds == {Perm} and len({*hidden, ends[0][1], ends[-1][0]}) != len(layers) + 1:
        raise Unsuited("nfn has layers for networks without shared permutations")
    return layers


def _parts(node: Node) -> list[DictNode]:
    """The containers that hold tensors, in the order they are written."""
    if not isinstance(node, DictNode):
        raise Unsuited("nfn has layers for MLPs and CNNs")
    children = [child for _, child in node.items]
    if all(isinstance(child, LeafNode) for child in children):
        return [node]
    return [part for child in children for part in _parts(child)]


def _layer(node: DictNode, leaves: tuple[Leaf, ...]) -> Layer:
    named = {key: child.index for key, child in node.items if isinstance(child, LeafNode)}
    weight = "weight" if "weight" in named else "kernel"
    if set(named) != {weight, "bias"}:
        raise Unsuited("nfn has layers for networks of layers, each a kernel or weight and a bias")
    kernel, bias = leaves[named[weight]], leaves[named["bias"]]
    # A kernel of Flax ends with the outputs, a weight of PyTorch begins with them.
    axes = range(len(kernel.atoms))
    out, *others = axes if weight == "weight" else reversed(axes)
    permuted = [axis for axis in others if isinstance(kernel.atoms[axis], Perm)]
    # Without a permuted axis the inputs are the axis beside the outputs, as in both.
    into = (permuted or others or [-1])[0]
    if len(permuted) > 1 or into < 0 or bias.atoms != (kernel.atoms[out],):
        raise Unsuited("nfn has layers for kernels from one permutation to another")
    taps = sorted(axis for axis in others if axis != into)
    return Layer(named[weight], named["bias"], (out, into, *taps))


def _atoms(layer: Layer, leaves: tuple[Leaf, ...]) -> tuple[Perm | Fixed, Perm | Fixed]:
    """What acts on the outputs and on the inputs of a kernel."""
    atoms = leaves[layer.kernel].atoms
    return atoms[layer.order[0]], atoms[layer.order[1]]


def build(workload: Workload, setting: Setting, *, compiled: bool) -> Subject:
    """The contestant."""
    layers = layers_of(workload)
    watch = Stopwatch()
    try:
        from nfn.common import ArraySpec, NetworkSpec, WeightSpaceFeatures
        from nfn.layers import HNPLinear, NPLinear
    except ImportError as error:
        raise Unsuited(f"nfn is not installed ({error}): pip install nfn") from None
    import torch

    from symcompile.bench.torch_subject import prepare, torch_subject

    device = prepare(setting)
    leaves, sizes = workload.spec.leaves, dict(workload.spec.sizes)
    permuted_ends = isinstance(_atoms(layers[0], leaves)[1], Perm)
    split = {
        layer.kernel: [
            sizes[a.label] if isinstance(a, Perm) else a.size or 0
            for a in leaves[layer.kernel].atoms
        ]
        for layer in layers
    }
    watch.lap("import")
    weight_spec, bias_spec = [], []
    for number, layer in enumerate(layers):
        out, into = (split[layer.kernel][axis] for axis in layer.order[:2])
        shape = [
            out if number == len(layers) - 1 and not permuted_ends else -1,
            into if number == 0 and not permuted_ends else -1,
        ]
        taps = layer.order[2:]
        if taps:
            shape += [prod(split[layer.kernel][axis] for axis in taps), 1]
        weight_spec.append(ArraySpec(tuple(shape)))
        bias_spec.append(ArraySpec((shape[0],)))
    network = NetworkSpec(weight_spec, bias_spec)
    kind = NPLinear if permuted_ends else HNPLinear
    inner = kind(network, workload.channels, workload.channels)

    class Wrapped(torch.nn.Module):
        """The layer on plain lists, so that `torch.compile` sees tensors only."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, weights: list[Any], biases: list[Any]) -> tuple[list[Any], list[Any]]:
            y = self.inner(WeightSpaceFeatures(tuple(weights), tuple(biases)))
            return list(y.weights), list(y.biases)

    class Called(torch.nn.Module):
        """One argument for `torch_subject`."""

        def __init__(self) -> None:
            super().__init__()
            self.wrapped = Wrapped()

        def forward(self, x: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
            out: tuple[list[Any], list[Any]] = self.wrapped(*x)
            return out

    module = Called().to(device=device, dtype=getattr(torch, setting.dtype))
    watch.lap("emit")  # its layers draw their weights as they are made
    kernels = {layer.kernel: layer for layer in layers}

    def pack(x: list[Any]) -> Any:
        return [x[layer.kernel] for layer in layers], [x[layer.bias] for layer in layers]

    def unpack(y: Any) -> list[Any]:
        outputs: list[Any] = [None] * len(leaves)
        for layer, weight, bias in zip(layers, *y, strict=True):
            outputs[layer.kernel], outputs[layer.bias] = weight, bias
        return outputs

    def layout_in(place: int, tensor: Any) -> Any:
        if place not in kernels:
            return tensor.movedim(-1, 1)
        order, atoms = kernels[place].order, split[place]
        tensor = tensor.reshape(tensor.shape[0], *atoms, tensor.shape[-1])
        tensor = tensor.permute(0, len(atoms) + 1, *(1 + axis for axis in order))
        return tensor.flatten(4).unsqueeze(-1) if len(order) > 2 else tensor

    def layout_out(place: int, tensor: Any) -> Any:
        if place not in kernels:
            return tensor.movedim(1, -1)
        order, atoms = kernels[place].order, split[place]
        tensor = tensor.reshape(*tensor.shape[:2], *(atoms[axis] for axis in order))
        back = [2 + order.index(axis) for axis in range(len(order))]
        return tensor.permute(0, *back, 1).reshape(workload.shapes[place])

    return torch_subject(
        module,
        setting,
        pack=pack,
        unpack=unpack,
        stages=watch.stages,
        compiled=compiled,
        layout_in=layout_in,
        layout_out=layout_out,
    )


CONTESTANTS = {
    "nfn": partial(build, compiled=False),
    "nfn compiled": partial(build, compiled=True),
}
