"""Building Programs: append ops, skip those that do nothing, share equal ones.

In: tensors and weights. Out: a verified Program. The one thing to know: ops are hashable, so with
`share=True` an op equal to an earlier one *is* the earlier one; common subexpressions never arise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from symcompile.diagrams.partitions import Blocks
from symcompile.ir import ops
from symcompile.ir.ops import Op
from symcompile.ir.program import Program
from symcompile.spec import Label

__all__ = ["Builder"]


class Builder:
    """Appends ops to a program that has the tensors, weights and sizes of `like`."""

    def __init__(self, like: Program, *, share: bool = True) -> None:
        self._like = like
        self._share = share
        self._ops: list[Op] = []
        self._known: dict[Op, int] = {}

    def program(self) -> Program:
        """The program built so far, without ops that no output needs."""
        live: set[int] = set()
        for number in range(len(self._ops) - 1, -1, -1):
            op = self._ops[number]
            if isinstance(op, ops.Output) or number in live:
                live.add(number)
                live.update(op.args)
        return self.everything().only(live)

    def everything(self) -> Program:
        """The program built so far, with ops that no output needs."""
        return replace(self._like, ops=tuple(self._ops))

    def emit(self, op: Op) -> int:
        """Append `op` as it stands (or find it) and return its number."""
        if self._share and op in self._known:
            return self._known[op]
        self._ops.append(op)
        self._known[op] = len(self._ops) - 1
        return len(self._ops) - 1

    def input(self, tensor: int) -> int:
        return self.emit(ops.Input((), tensor))

    def const(self) -> int:
        return self.emit(ops.Const(()))

    def diagonal(self, arg: int, blocks: Blocks) -> int:
        if blocks == tuple((axis,) for axis in range(len(blocks))):
            return arg
        if all(len(block) == 1 for block in blocks):
            return self.transpose(arg, [axis for (axis,) in blocks])
        return self.emit(ops.Diagonal((arg,), blocks))

    def reduce(self, arg: int, axes: Sequence[int]) -> int:
        return self.emit(ops.Reduce((arg,), tuple(axes))) if axes else arg

    def transpose(self, arg: int, axes: Sequence[int]) -> int:
        if list(axes) == list(range(len(axes))):
            return arg
        return self.emit(ops.Transpose((arg,), tuple(axes)))

    def concat(self, args: Sequence[int]) -> int:
        return args[0] if len(args) == 1 else self.emit(ops.Concat(tuple(args)))

    def mix(self, arg: int, weight: str, rows: tuple[int, int], cols: tuple[int, int]) -> int:
        return self.emit(ops.Mix((arg,), weight, rows, cols))

    def batch_mix(self, args: Sequence[int], weights: Sequence[str]) -> int:
        return self.emit(ops.BatchMix(tuple(args), tuple(weights)))

    def pick(self, arg: int, member: int) -> int:
        return self.emit(ops.Pick((arg,), member))

    def slice(self, arg: int, start: int, stop: int, width: int) -> int:
        return arg if (start, stop) == (0, width) else self.emit(ops.Slice((arg,), start, stop))

    def broadcast(self, arg: int, labels: Sequence[Label], axes: Sequence[int]) -> int:
        if len(axes) == len(labels):
            return arg
        return self.emit(ops.Broadcast((arg,), tuple(labels), tuple(axes)))

    def embed(self, arg: int, blocks: Blocks) -> int:
        if all(len(block) == 1 for block in blocks):
            places = [axis for (axis,) in blocks]
            return self.transpose(arg, [places.index(axis) for axis in range(len(places))])
        return self.emit(ops.Embed((arg,), blocks))

    def add(self, args: Sequence[int]) -> int:
        return args[0] if len(args) == 1 else self.emit(ops.Add(tuple(args)))

    def output(self, arg: int, tensor: int) -> int:
        return self.emit(ops.Output((arg,), tensor))
