"""What no plan can beat: the bytes and the memory that a layer needs however it is computed.

In: what is computed and label sizes. Out: entries. The one thing to know: of an input only what
some half-diagram reads counts, so an input that nothing reads is free, and one that is read on its
diagonal alone costs its diagonal to read; held it is whole, for it belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from symcompile.diagrams import HalfDiagram
from symcompile.ir import Input, Program
from symcompile.ir.types import Tensor
from symcompile.spec import Label
from symcompile.weights import Schema

__all__ = ["least_held", "least_moved"]


def least_moved(schema: Schema, sizes: Mapping[Label, int]) -> int:
    """Entries: the most that one half-diagram reads of each input, the weights, the outputs."""
    read: dict[int, int] = {}
    for weight in schema.weights:
        for row in weight.rows:
            entries = _read(schema.inputs[row.tensor], row.half, sizes)
            read[row.tensor] = max(read.get(row.tensor, 0), entries)
    weights = sum(prod(shape) for _, shape in schema.stored)
    return sum(read.values()) + weights + _whole(schema.outputs, sizes)


def least_held(program: Program, sizes: Mapping[Label, int]) -> int:
    """Entries alive at the end of any plan: the inputs that are used, whole, and the outputs."""
    used = {op.tensor for op in program.ops if isinstance(op, Input)}
    inputs = [tensor for number, tensor in enumerate(program.inputs) if number in used]
    return _whole(inputs, sizes) + _whole(program.outputs, sizes)


def _read(tensor: Tensor, half: HalfDiagram, sizes: Mapping[Label, int]) -> int:
    blocks = half.propagating + half.closed
    return prod(sizes[tensor.labels[block[0]]] for block in blocks) * tensor.width


def _whole(tensors: Sequence[Tensor], sizes: Mapping[Label, int]) -> int:
    return sum(prod(sizes[label] for label in t.labels) * t.width for t in tensors)
