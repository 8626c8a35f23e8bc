"""One term at a time: an equivariant layer in JAX the way UNF's paper describes it.

In: a workload. Out: a contestant. For every pair of an output and an input tensor, and every set
partition of their joint axes whose blocks hold one label, one linear map without weights: take
diagonals of repeated in-axes, means over blocks of in-axes alone, embed on diagonals of repeated
out-axes, broadcast over blocks of out-axes alone (Zhou et al., arXiv 2402.05232, section 3; Maron
et al. 2019). A layer sums the terms, each with a channel matrix of its own, and adds one bias per
output channel. It is written for one example and one channel, vmapped over both, and jitted.

The one thing to know: it was written from the paper for these benchmarks and shares nothing between
terms except what XLA finds by itself. Fixed axes, which the paper does not have, count as channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Any

from symcompile.bench.subject import Setting, Stopwatch, Subject
from symcompile.bench.workloads import Workload
from symcompile.check.draw import stored_shape
from symcompile.diagrams import set_partitions
from symcompile.spec import Fixed, Label, Leaf, Perm

__all__ = ["CONTESTANTS", "partitions", "term"]

Blocks = tuple[tuple[int, ...], ...]


def partitions(labels: Sequence[Label]) -> Iterator[Blocks]:
    """Set partitions of axes whose blocks hold one label.

    >>> sum(1 for _ in partitions(("a", "a", "a", "a")))
    15
    >>> list(partitions(("a", "b")))
    [((0,), (1,))]
    """
    by_label: dict[Label, list[int]] = {}
    for axis, label in enumerate(labels):
        by_label.setdefault(label, []).append(axis)
    for choice in product(*(tuple(set_partitions(axes)) for axes in by_label.values())):
        yield tuple(block for blocks in choice for block in blocks)


def term(x: Any, blocks: Blocks, out_sizes: Sequence[int]) -> Any:
    """One basis map, applied to a tensor without batch and channels.

    Args:
        x: the input tensor.
        blocks: of the joint axes; axes below `len(out_sizes)` are the output's.
        out_sizes: shape of the output.
    """
    import jax.numpy as jnp

    split = len(out_sizes)
    # einsum takes repeated indices as diagonals and leaves out those that are summed.
    index = {axis: number for number, block in enumerate(blocks) for axis in block}
    in_index = [index[split + axis] for axis in range(x.ndim)]
    out_index = [index[axis] for axis in range(split)]
    kept = [number for number in dict.fromkeys(in_index) if number in out_index]
    sizes = dict(zip(in_index, x.shape, strict=True))
    averaged = prod(size for number, size in sizes.items() if number not in kept)
    value = jnp.einsum(x, in_index, kept) / averaged

    # One axis for each block of out-axes: those that the input lacks are broadcast.
    distinct = list(dict.fromkeys(out_index))
    order = [kept.index(number) for number in distinct if number in kept]
    value = jnp.transpose(value, order)
    shape = [value.shape[order.index(kept.index(n))] if n in kept else 1 for n in distinct]
    whole = [out_sizes[out_index.index(number)] for number in distinct]
    value = jnp.broadcast_to(value.reshape(shape), whole)
    if len(distinct) == split:
        return value
    # Embed on the diagonal of out-axes that share a block.
    places = jnp.meshgrid(*(jnp.arange(size) for size in whole), indexing="ij")
    at = tuple(places[distinct.index(number)] for number in out_index)
    return jnp.zeros(tuple(out_sizes), value.dtype).at[at].set(value)


def build(workload: Workload, setting: Setting) -> Subject:
    """The contestant."""
    watch = Stopwatch()
    import jax
    import jax.numpy as jnp

    from symcompile.bench.jax_subject import jax_subject, prepare

    prepare(setting)
    leaves, sizes = workload.spec.leaves, dict(workload.spec.sizes)
    channels = workload.channels
    watch.lap("import")
    terms = {
        (o, i): tuple(partitions((*out.labels, *into.labels)))
        for o, out in enumerate(leaves)
        for i, into in enumerate(leaves)
    }
    watch.lap("plan")
    params = jax.block_until_ready(_init(leaves, channels, terms, jnp.dtype(setting.dtype)))
    watch.lap("init")
    out_sizes = [[sizes[label] for label in leaf.labels] for leaf in leaves]

    def example(params: Any, x: list[Any]) -> list[Any]:
        folded = [_fold(value, leaf, sizes) for value, leaf in zip(x, leaves, strict=True)]
        outputs = []
        for o, leaf in enumerate(leaves):
            total = params["bias"][o]
            for i, value in enumerate(folded):
                for k, blocks in enumerate(terms[o, i]):
                    mapped = _over_channels(partial(term, blocks=blocks, out_sizes=out_sizes[o]))
                    total = total + mapped(value) @ params[f"{o},{i}"][k]
            outputs.append(_unfold(total, leaf, sizes))
        return outputs

    apply = jax.vmap(example, in_axes=(None, 0))
    return jax_subject(apply, params, setting, stages=watch.stages)


def _over_channels(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import jax

    return jax.vmap(function, in_axes=-1, out_axes=-1)


def _init(leaves: Sequence[Leaf], channels: int, terms: dict[Any, Any], dtype: Any) -> Any:
    """theta ~ N(0, 1 / (channels in * terms of the output)), as in the paper."""
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    widths = [channels * prod(_fixed(leaf)) for leaf in leaves]
    params: dict[str, Any] = {
        "bias": [jnp.asarray(rng.standard_normal(width) * 0.1, dtype) for width in widths]
    }
    for o, width in enumerate(widths):
        count = sum(len(terms[o, i]) for i in range(len(leaves)))
        for i, into in enumerate(widths):
            shape = (len(terms[o, i]), into, width)
            theta = rng.standard_normal(shape, np.float32) / np.sqrt(into * count)
            params[f"{o},{i}"] = jnp.asarray(theta, dtype)
    return params


def _fixed(leaf: Leaf) -> list[int]:
    return [atom.size or 0 for atom in leaf.atoms if isinstance(atom, Fixed)]


def _orders(leaf: Leaf) -> tuple[list[int], list[int]]:
    perms = [axis for axis, atom in enumerate(leaf.atoms) if isinstance(atom, Perm)]
    return perms, [axis for axis, atom in enumerate(leaf.atoms) if isinstance(atom, Fixed)]


def _fold(value: Any, leaf: Leaf, sizes: dict[Label, int]) -> Any:
    """From (*stored axes, channels) to (*permuted axes, fixed sizes * channels)."""
    perms, fixed = _orders(leaf)
    atoms = [sizes[a.label] if isinstance(a, Perm) else a.size or 0 for a in leaf.atoms]
    split = value.reshape(*atoms, value.shape[-1]).transpose(*perms, *fixed, len(atoms))
    return split.reshape(*(atoms[axis] for axis in perms), -1)


def _unfold(value: Any, leaf: Leaf, sizes: dict[Label, int]) -> Any:
    """The inverse of `_fold`."""
    perms, fixed = _orders(leaf)
    order = [*perms, *fixed, len(leaf.atoms)]
    whole = value.reshape(*value.shape[: len(perms)], *_fixed(leaf), -1)
    back = [order.index(axis) for axis in range(len(order))]
    return whole.transpose(*back).reshape(*stored_shape(leaf, sizes), -1)


CONTESTANTS = {"one term at a time": build}
