"""From a trained layer of the `nfn` package to ours, with the same outputs.

In: an `NPLinear` or `HNPLinear` of `nfn` 0.1.2. Out: our layer, its weights set.

The one thing to know: both are linear in the same features. nfn mixes means of its inputs that keep
the index of some neurons, and a term of ours is named by (output, input, neurons that propagate);
so every block of an nfn weight is the coefficient of one of our terms, or is added to it. nfn's
means over inputs or outputs of the network, where those are fixed, are redundant: the sum over n
entries that we mix anyway, each with weight 1 / n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from symcompile.diagrams import cut
from symcompile.errors import OptionError
from symcompile.spec import Label, Path
from symcompile.weights import BasisElement
from symcompile_torch.nfn.chain import unfold
from symcompile_torch.nfn.common import ArraySpec, NetworkSpec
from symcompile_torch.nfn.layers.linear import HNPLinear, NPLinear

__all__ = ["from_nfn"]


@dataclass(frozen=True)
class _Source:
    """An input of one of nfn's modules: a tensor, and whether it kept its fixed neurons."""

    path: Path
    kept: bool = False


def from_nfn(layer: nn.Module) -> NPLinear | HNPLinear:
    """Ours that computes what a layer of the `nfn` package computes.

    An `HNPLinear` comes out dense (`rank=None`): with wide inputs it is as large as nfn's own.
    Its maps from the last hidden bias to the last weight, which nfn's has not, are zero.

    Args:
        layer: an `NPLinear` (with or without `io_embed`) or `HNPLinear` of nfn 0.1.2.

    Returns:
        a layer of the same dtype, on the same device, that shares no memory with it.

    Raises:
        OptionError: it is neither.
    """
    # By name, so that nfn need not be installed.
    names = {kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("nfn.")}
    if not names & {"NPLinear", "HNPLinear"}:
        raise OptionError(
            f"from_nfn takes an NPLinear or HNPLinear of the nfn package, found a "
            f"{type(layer).__module__}.{type(layer).__name__}; other layers of ours take nfn's "
            "state_dict as it is"
        )
    theirs: Any = layer
    spec = NetworkSpec(
        [ArraySpec(tuple(array.shape)) for array in theirs.network_spec.weight_spec],
        [ArraySpec(tuple(array.shape)) for array in theirs.network_spec.bias_spec],
    )
    ours: NPLinear | HNPLinear
    if "NPLinear" in names:
        ours = NPLinear(spec, theirs.c_in, theirs.c_out, io_embed=theirs.io_embed)
    else:
        ours = HNPLinear(spec, theirs.c_in, theirs.c_out, rank=None)
    ours.to(next(layer.parameters()))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
        if isinstance(ours, NPLinear):
            _np(theirs, _Target(ours))
            if theirs.io_embed:
                _embed(theirs, ours)
        else:
            _hnp(theirs, _Target(ours))
    return ours.train(layer.training)


class _Target:
    """Our layer, its weights by term."""

    def __init__(self, ours: NPLinear | HNPLinear) -> None:
        self.chain = ours.chain
        self.channels = (ours.in_channels, ours.out_channels)
        self.weights = dict(ours.layer.named_parameters())
        self.tensors = {tensor.path: tensor for tensor in ours.layer.compiled.schema.inputs}
        self.terms: dict[tuple[Path, Path | None, tuple[Label, ...]], BasisElement] = {}
        for element in ours.layer.basis:
            out = self.tensors[element.output].labels
            into = () if element.input is None else self.tensors[element.input].labels
            half, _, _ = cut(element.diagram, out, into)
            self.terms[element.output, element.input, half.signature(out)] = element

    def add(
        self, module: Any, output: Path, propagating: tuple[int, ...], *sources: _Source
    ) -> None:
        """Add a module of nfn, which mixes `sources` along `propagating` neurons into `output`.

        Its rows and columns are (channels, taps, fixed neurons); ours are the other way round.
        """
        into, out = self.channels
        n_out, taps_out = self._fixed(output)
        weight, start = module.weight.flatten(1), 0
        for source in sources:
            n_in, taps_in = self._fixed(source.path)
            kept = n_in if source.kept else 1
            stop = start + into * taps_in * kept
            block = weight[:, start:stop].reshape(out, taps_out, n_out, into, taps_in, kept)
            block = block.permute(5, 4, 3, 2, 1, 0)
            if not source.kept:
                block = block.expand(n_in, *block.shape[1:]) / n_in
            term = self.terms[output, source.path, propagating]
            assert term.rows is not None, "only the bias has no input"
            self.weights[term.weight][term.rows, term.cols] += block.flatten(3).flatten(0, 2)
            start = stop
        assert start == weight.shape[1], "the sources are what nfn concatenates"
        term = self.terms[output, None, ()]
        bias = module.bias.reshape(out, taps_out, n_out).permute(2, 1, 0)
        self.weights[term.weight][term.cols] += bias.flatten()

    def _fixed(self, path: Path) -> tuple[int, int]:
        """The numbers of fixed neurons and of taps of a tensor, 1 where it has none."""
        layer = self.chain.layers[int(path[0])]
        taps = layer.entries if path[1] == "weight" else 1
        return prod(self.tensors[path].fixed) // taps, taps


def _weight(i: int, kept: bool = False) -> _Source:
    return _Source((i, "weight"), kept)


def _bias(i: int, kept: bool = False) -> _Source:
    return _Source((i, "bias"), kept)


def _np(theirs: Any, target: _Target) -> None:
    """Every module of an NPLinear; neurons i are the inputs of weight i."""
    count = len(target.chain.layers)
    means = [_weight(i) for i in range(count)] + [_bias(i) for i in range(count)]
    for i in range(count):
        rows, columns = _shared(i, count)
        _inner(theirs, target, i, rows, columns, means)


def _hnp(theirs: Any, target: _Target) -> None:
    """Every module of an HNPLinear."""
    count = len(target.chain.layers)
    last = count - 1
    means = [_weight(i) for i in range(count)] + [_bias(i) for i in range(count)]
    means += [_weight(0, kept=True), _weight(last, kept=True), _bias(last, kept=True)]

    first = [_weight(0, kept=True), _weight(1), _bias(0)]
    final = [_weight(last, kept=True), _weight(last - 1)]
    if count == 2:
        first.append(_weight(last, kept=True))
        final.append(_weight(0, kept=True))
    target.add(theirs.w0_rpt, (0, "weight"), (1,), *first)
    target.add(theirs.w0_rbdcst, (0, "weight"), (), *means)
    target.add(theirs.bias_0, (0, "bias"), (1,), *first)
    target.add(theirs.bias_0_rc, (0, "bias"), (), *means)
    target.add(theirs.wfin_cpt, (last, "weight"), (last,), *final)
    target.add(theirs.wfin_cbdcst, (last, "weight"), (), *means)
    target.add(theirs.bias_fin_rc, (last, "bias"), (), *means)
    for i in range(1, last):
        rows, columns = _shared(i, count)
        if i == 1:
            rows.append(_weight(0, kept=True))
        if i == last - 1:
            columns.append(_weight(last, kept=True))
        _inner(theirs, target, i, rows, columns, means)


def _shared(i: int, count: int) -> tuple[list[_Source], list[_Source]]:
    """What nfn spreads over the rows of weight i (at its inputs), and over its columns."""
    rows, columns = [_weight(i)], [_weight(i), _bias(i)]
    if i > 0:
        rows += [_weight(i - 1), _bias(i - 1)]
    if i < count - 1:
        columns.append(_weight(i + 1))
    return rows, columns


def _inner(
    theirs: Any,
    target: _Target,
    i: int,
    rows: Sequence[_Source],
    columns: Sequence[_Source],
    means: Sequence[_Source],
) -> None:
    """The modules of a weight whose inputs and outputs are both permuted, and of its bias."""
    weight, bias = (i, "weight"), (i, "bias")
    module = theirs.get_submodule
    target.add(module(f"layer_{i}"), weight, (i, i + 1), _weight(i))
    target.add(module(f"layer_{i}_rc"), weight, (), *means)
    target.add(module(f"layer_{i}_r"), weight, (i,), *rows)
    target.add(module(f"layer_{i}_c"), weight, (i + 1,), *columns)
    target.add(module(f"bias_{i}"), bias, (i + 1,), *columns)
    target.add(module(f"bias_{i}_rc"), bias, (), *means)


def _embed(theirs: Any, ours: NPLinear) -> None:
    """Learned embeddings; nfn keeps the taps in front, among the channels."""
    first, last = ours.chain.layers[0], ours.chain.layers[-1]
    ours.in_embed.copy_(unfold(theirs.in_embed, first))
    ours.out_embed.copy_(unfold(theirs.out_embed, last))
    ours.out_bias_embed.copy_(theirs.out_bias_embed)
