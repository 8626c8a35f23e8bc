"""Running a Program op by op on NumPy arrays.

In: a Program, weights by name, input arrays of shape (*batch, *axes, channels). Out: output arrays
likewise. Slow and plain: every op is one or two NumPy calls, so that reading them is enough to
trust them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from symcompile.ir import (
    Add,
    BatchMix,
    Broadcast,
    Concat,
    Const,
    Diagonal,
    Embed,
    Input,
    Mix,
    Op,
    Output,
    Pick,
    Program,
    Reduce,
    Slice,
    Tensor,
    Transpose,
    grouped,
    types_of,
)
from symcompile.spec import Fixed, Label, axis_atoms

__all__ = ["run", "stored_shape"]

Array = np.ndarray[Any, Any]


def run(
    program: Program,
    weights: Mapping[str, Array],
    inputs: Sequence[Array],
    sizes: Mapping[Label, int],
) -> list[Array]:
    """Interpret `program`.

    Args:
        weights: shape by name as in `program.weights`, in the dtype of the computation.
        inputs: one array per input tensor, shapes already checked, one dtype, equal batch axes.
        sizes: the size of every label.

    Returns:
        one array per output tensor.
    """
    types = types_of(program)
    batch = inputs[0].shape[: inputs[0].ndim - len(program.inputs[0].axes) - 1]
    dtype = inputs[0].dtype
    weights = {**weights, **_filled(program, weights)}
    values: list[Array] = []
    outputs: dict[int, Array] = {}
    for number, op in enumerate(program.ops):
        labels = types[number].labels
        shape = tuple(sizes[label] for label in labels)
        args = [values[arg] for arg in op.args]
        match op:
            case Input(tensor=tensor):
                value = fold(inputs[tensor], program.inputs[tensor], sizes, batch)
            case Const():
                value = np.ones((1,), dtype)
            case Output(tensor=tensor):
                value = np.broadcast_to(args[0], (*batch, *shape, args[0].shape[-1]))
                outputs[tensor] = unfold(value, program.outputs[tensor], sizes, batch)
            case _:
                value = _step(op, args, labels, shape, program.reduce, weights)
        values.append(value)
    return [outputs[tensor] for tensor in range(len(program.outputs))]


def _filled(program: Program, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The matrices that are put together from weights."""
    found = {}
    for filled in program.filled:
        found[filled.name] = np.zeros(filled.shape, weights[filled.weights[0]].dtype)
        for block in filled.blocks:
            part = weights[block.weight][slice(*block.rows), slice(*block.cols)]
            found[filled.name][slice(*block.down), slice(*block.across)] = part
    return found


def _step(
    op: Op,
    args: list[Array],
    labels: tuple[Label, ...],
    shape: tuple[int, ...],
    reduce: str,
    weights: Mapping[str, Array],
) -> Array:
    match op:
        case Add():
            return np.asarray(sum(args[1:], args[0]))
        case Concat():
            return np.concatenate(args, axis=-1)
        case BatchMix(weights=names):
            groups = grouped([arg.shape[-1] for arg in args], len(weights[names[0]])) or []
            stacks = [np.concatenate([args[k] for k in group], axis=-1) for group in groups]
            return np.stack([x @ weights[name] for x, name in zip(stacks, names, strict=True)])
    (x,) = args
    match op:
        case Slice(start=start, stop=stop):
            return x[..., start:stop]
        case Pick(member=member):
            return np.asarray(x[member])
        case Mix(weight=weight, rows=rows, cols=cols):
            matrix = np.atleast_2d(weights[weight])[rows[0] : rows[1], cols[0] : cols[1]]
            return np.asarray(x @ matrix)
        case Reduce(axes=axes):
            order = len(labels) + len(axes)
            over = tuple(axis - order - 1 for axis in axes)
            return np.asarray(x.mean(over) if reduce == "mean" else x.sum(over))
        case Transpose(axes=axes):
            places = [axis - len(axes) - 1 for axis in range(len(axes))]
            return np.moveaxis(x, [places[axis] for axis in axes], places)
        case Broadcast(axes=axes):
            batch = x.shape[: x.ndim - len(axes) - 1]
            new = tuple(axis - len(labels) - 1 for axis in range(len(labels)) if axis not in axes)
            return np.broadcast_to(np.expand_dims(x, new), (*batch, *shape, x.shape[-1]))
        case Diagonal(blocks=blocks):
            return np.asarray(x[_index(blocks, shape)])
        case Embed(blocks=blocks):
            batch = x.shape[: x.ndim - len(blocks) - 1]
            value = np.zeros((*batch, *shape, x.shape[-1]), x.dtype)
            value[_index(blocks, tuple(shape[block[0]] for block in blocks))] = x
            return value
    raise AssertionError(f"no rule for {op}")


def _index(blocks: Sequence[Sequence[int]], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Index arrays that walk all axes of a block at once; result axes follow the blocks."""
    grids = np.ogrid[tuple(slice(0, n) for n in shape)] if shape else []
    index = {axis: grids[k] for k, block in enumerate(blocks) for axis in block}
    return (..., *(index[axis] for axis in range(len(index))), slice(None))


def fold(x: Array, tensor: Tensor, sizes: Mapping[Label, int], batch: tuple[int, ...]) -> Array:
    """Split composite axes and fold fixed axes into the channels."""
    atoms = tensor.atoms
    split = [a.size or 0 if isinstance(a, Fixed) else sizes[a.label] for a in atoms]
    x = x.reshape((*batch, *split, tensor.channels))
    order = [k for k, a in enumerate(atoms) if not isinstance(a, Fixed)]
    order += [k for k, a in enumerate(atoms) if isinstance(a, Fixed)]
    x = x.transpose([*range(len(batch)), *(len(batch) + k for k in order), x.ndim - 1])
    return x.reshape((*batch, *(sizes[label] for label in tensor.labels), tensor.width))


def unfold(x: Array, tensor: Tensor, sizes: Mapping[Label, int], batch: tuple[int, ...]) -> Array:
    """The inverse of `fold`; the result is a new array."""
    atoms = tensor.atoms
    order = [k for k, a in enumerate(atoms) if not isinstance(a, Fixed)]
    order += [k for k, a in enumerate(atoms) if isinstance(a, Fixed)]
    split = [a.size or 0 if isinstance(a, Fixed) else sizes[a.label] for a in atoms]
    x = x.reshape((*batch, *(split[k] for k in order), tensor.channels))
    back = [len(batch) + order.index(k) for k in range(len(order))]
    x = x.transpose([*range(len(batch)), *back, x.ndim - 1])
    stored = stored_shape(tensor, sizes)
    return np.array(x.reshape((*batch, *stored, tensor.channels)))


def stored_shape(tensor: Tensor, sizes: Mapping[Label, int]) -> list[int]:
    """Sizes of a tensor's stored axes, without batch and channels."""
    return [
        prod(a.size or 0 if isinstance(a, Fixed) else sizes[a.label] for a in axis_atoms(axis))
        for axis in tensor.axes
    ]
