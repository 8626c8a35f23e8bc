"""A layer with a gradient of its own: what it keeps, and the way back, as source.

In: a `Compiled`. Out: the statements of the layer and those of its transpose, which together are
one node of autograd. By itself PyTorch makes a node for every op, and every sum, part and mean of
the layer is taken back by itself: in all but the largest layers that is a quarter to a half of the
time of a training step.

The one thing to know: what a weight was multiplied by is kept by the layer, and the transpose
multiplies the gradient of that product by the weight: from the two comes the weight's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from symcompile.codegen import Compiled, Dialect, Product, SourceParts, Writer
from symcompile.codegen.layout import wrapped
from symcompile.codegen.lifetime import free_early
from symcompile.ir import (
    Accumulation,
    BatchMix,
    Mix,
    Output,
    Program,
    Slot,
    Transpose,
    Transposed,
    readers_of,
    tiles,
    transposed,
)
from symcompile.spec import Perm

__all__ = ["Back", "Keeping", "Learning", "learning"]


@dataclass(frozen=True, slots=True)
class Back:
    """A way back.

    Attributes:
        lines: its statements.
        to_inputs, to_matrices: what the gradients are called, in the order of the layer's.
    """

    lines: tuple[str, ...]
    to_inputs: tuple[str, ...]
    to_matrices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Learning:
    """A layer and its transpose as written.

    Attributes:
        forward: the layer, which keeps what it multiplies by calls of `keep`; it leaves outputs as
            they lie in memory.
        moved: statements that move their axes to where the spec has them.
        sizes: names of the sizes that it reads from its inputs.
        kept: names of what it keeps, in order.
        gradients: names of what the ways back read, the gradients of all outputs.
        to_all: from those to the gradients of inputs and of matrices.
        to_weights: to those of matrices alone, as a first layer needs them; None where weights
            are read on that way, as those of low rank are.
    """

    forward: SourceParts
    moved: tuple[str, ...]
    sizes: tuple[str, ...]
    kept: tuple[str, ...]
    gradients: tuple[str, ...]
    to_all: Back
    to_weights: Back | None


def learning(
    compiled: Compiled,
    forward: Dialect,
    backward: Dialect,
    taken: set[str],
    matrices: Sequence[str],
) -> Learning | None:
    """Write a layer and its transpose.

    None where it has none; where inputs have several axes of channels, or products are made in
    parts; and where what is multiplied is not of full extent.

    Args:
        forward, backward: how either is spelled.
        taken: names the template uses.
        matrices: names of all that the layer multiplies by: weights, stacks of them, and what is
            put together from them.
    """
    program, moves = _before_moves(compiled.program)
    compiled, other = replace(compiled, program=program), transposed(program)
    if other is None:
        return None
    layer = Keeping(compiled, forward, taken)
    if layer.owned.parted or any(count > 1 for count in layer.layout.channels.values()):
        return None
    parts = layer.write()
    back, alone = (
        _Taking(compiled, other, program, backward, layer, taken, matrices)
        for program in (other.program, other.to_weights)
    )
    if any(one.multiplies_lazy for one in (layer, back, alone)):
        return None
    return Learning(
        parts,
        tuple(layer.moved(parts.outputs[tensor], axes) for tensor, axes in moves.items()),
        tuple(layer.layout.sizes.values()),
        tuple(layer.kept),
        tuple(back.layout.inputs),
        back.written(),
        None if alone.read else alone.written(),
    )


def _before_moves(program: Program) -> tuple[Program, dict[int, tuple[int, ...]]]:
    """The program without the moves of axes that outputs end with; and those, by output.

    What a compiled node makes and the gradients that it is given PyTorch has contiguous: copies of
    what had been moved inside.
    """
    readers, ops, outputs = readers_of(program), [*program.ops], [*program.outputs]
    live, moves = {*range(len(ops))}, {}
    for number, op in enumerate(program.ops):
        match op, op.args and ops[op.args[0]]:
            case Output(args=(move,), tensor=tensor), Transpose(args=args, axes=axes):
                stored = outputs[tensor].axes
                if len(readers[move]) == 1 and all(isinstance(axis, Perm) for axis in stored):
                    lying = tuple(stored[axes.index(axis)] for axis in range(len(axes)))
                    outputs[tensor] = replace(outputs[tensor], axes=lying)
                    ops[number] = replace(op, args=args)
                    live.remove(move)
                    moves[tensor] = axes
    return replace(program, ops=tuple(ops), outputs=tuple(outputs)).only(live), moves


class Keeping(Writer):
    """The layer, with a line for all that it multiplies."""

    def __init__(self, compiled: Compiled, dialect: Dialect, taken: set[str]) -> None:
        super().__init__(compiled, dialect, taken)
        self.kept: list[str] = []
        self.factors: dict[tuple[str, ...] | Slot, tuple[str, ...]] = {}

    def multiplies(self, number: int, operands: Sequence[str]) -> tuple[str, ...]:
        names = tuple(self.named(number, operand) for operand in operands)
        for name in names:
            if name not in self.kept:
                self.kept.append(name)
                self.lines.append(f"keep({name})")
        match self.program.ops[number]:
            case BatchMix(weights=weights):
                self.factors[weights] = names
            case Mix(weight=weight, rows=rows, cols=cols):
                self.factors[weight, rows, cols] = names
        return names

    def moved(self, output: str, axes: Sequence[int]) -> str:
        """A statement that moves the axes of an output."""
        return f"{output} = {self.transposed(output, axes)}"


class _Taking(Writer):
    """The transpose, with a line for the gradient of every weight."""

    def __init__(
        self,
        compiled: Compiled,
        other: Transposed,
        program: Program,
        dialect: Dialect,
        layer: Keeping,
        taken: set[str],
        matrices: Sequence[str],
    ) -> None:
        turned = replace(compiled, spec=compiled.out_spec, out_spec=compiled.spec, program=program)
        sizes = layer.layout.sizes
        known = taken | {*layer.kept, *sizes.values(), *matrices}
        super().__init__(turned, dialect, known, prefix="grad_", sizes=sizes, folded=True)
        self.other, self.layer, self.matrices = other, layer, matrices
        self.joined = {}  # sums of it are in no need to be held
        self.found: dict[str, list[tuple[Slot, str]]] = {}  # gradients of weights, or their parts
        self.factors: dict[int, tuple[str, ...]] = {}
        # Weights of mixes that are read.
        self.read = {
            op.weights if isinstance(op, BatchMix) else (op.weight,)
            for number, op in enumerate(program.ops)
            if isinstance(op, Mix | BatchMix) and self.readers[number]
        }

    def written(self) -> Back:
        """Write everything."""
        self.lines += [*self.layout.fold(), *self._weights()]
        self.compute()
        outputs = self.layout.outputs
        for bias in self.other.biases:
            one, total = outputs[bias.output], self.namer(f"to_{bias.weight}")
            self.lines.append(f"{total} = {one}.reshape(-1, {one}.shape[-1]).sum(dim=0)")
            cell = bias.weight, (0, 1), bias.cols
            self.found.setdefault(bias.weight, []).append((cell, total))
        written = {op.tensor for op in self.program.ops if isinstance(op, Output)}
        to_inputs = [outputs[k] for k in range(len(self.other.read)) if k in written]
        to_matrices = [self._whole(name) for name in self.matrices]
        lines = free_early(self.lines, self.large, ", ".join([*to_inputs, *to_matrices]))
        return Back(tuple(lines), tuple(to_inputs), tuple(to_matrices))

    def _weights(self) -> list[str]:
        """From the matrices of the layer to those of its transpose."""
        lines = []
        for name in self.other.means:
            if (name,) in self.read:
                lines.append(f"{name} = {self._divided(name, [name])}.t()")
        for names, stack in self.stacks.items():
            if names in self.read:
                lines.append(f"{stack} = {self._divided(stack, names)}.transpose(1, 2)")
        return lines

    def _divided(self, text: str, names: Sequence[str]) -> str:
        """Weights with rows divided by how many entries those multiplied are means of."""
        runs = []
        for name in names:
            counts = [
                (width, " * ".join(map(self.layout.size, labels)) or "1")
                for width, labels in self.other.means[name]
            ]
            runs += [f"({width}, {count})" for width, count in counts]
        if all(run.endswith(", 1)") for run in runs):
            return text
        return f"_divided({text}, {wrapped(runs)})"

    # -- what is multiplied -----------------------------------------------------------------

    def multiplies(self, number: int, operands: Sequence[str]) -> tuple[str, ...]:
        self.factors[number] = tuple(self.named(number, operand) for operand in operands)
        return self.factors[number]

    def multiplied(self, number: int) -> None:
        op, grads = self.program.ops[number], self.factors[number]
        if isinstance(op, BatchMix):
            (batch,), stack = self.layer.factors[op.weights], self.stacks[op.weights]
            name = self.namer(f"to_{stack}")
            self.lines.append(f"{name} = torch.bmm({batch}.transpose(1, 2), {grads[0]})")
            self.found[stack] = [((stack, (0, 0), (0, 0)), name)]
            return
        cell, x = self._cell_of(number)
        name = self._named_for(cell)
        call = "_outer_of" if len(x) == len(grads) == 1 else "_outers"
        self.lines.append(f"{name} = {call}({_tuple(x)}, {_tuple(grads)})")

    def sum_of_products(
        self, accumulation: Accumulation, target: str, products: Sequence[Product], **others: Any
    ) -> None:
        cell, x = self._cell_of(accumulation.base)
        grads, weight = products[0].parts, products[0].weight
        terms = others["terms"]
        if len(products) == 1 and len(terms) == 2 and len(x) == len(grads) == 1:
            # One reads the gradient for both.
            name = self._named_for(cell)
            given = wrapped([*grads, weight, *x, *terms], width=40)
            self.lines.append(f"{target}, {name} = _sum_and_outer{given}")
        else:
            super().sum_of_products(accumulation, target, products, **{**others, "anchors": ()})

    def _cell_of(self, number: int) -> tuple[Slot, tuple[str, ...]]:
        """The part of the layer's weight that a mix reads, and what that is multiplied by."""
        op = self.program.ops[number]
        assert isinstance(op, Mix), "batches have stacks"
        cell = op.weight, op.cols, op.rows
        return cell, self.layer.factors[cell]

    def _named_for(self, cell: Slot) -> str:
        name = self.namer(f"to_{cell[0]}")
        self.found.setdefault(cell[0], []).append((cell, name))
        return name

    def _whole(self, matrix: str) -> str:
        """The gradient of a matrix, put together from those of its parts."""
        parts = self.found.get(matrix, ())
        if len(parts) == 1:
            return parts[0][1]
        shape, name = self.layer.shapes[matrix], self.namer(f"to_{matrix}")
        cells = {cell[1:]: part for cell, part in parts}
        assert len(cells) == len(parts), "every part of a weight is read once"
        rows, cols = (sorted({cell[side] for cell in cells}) for side in (0, 1))
        whole = tiles(rows, (1, *shape)[-2]) and tiles(cols, shape[-1])  # a bias is one row
        if whole and len(cells) == len(rows) * len(cols):
            strips = [_together([cells[row, col] for col in cols], -1) for row in rows]
            self.lines.append(f"{name} = {_together(strips, 0)}")
            return name
        like = parts[0][1] if parts else self.layout.inputs[0]
        self.lines.append(f"{name} = {like}.new_zeros({shape})")
        for ((top, bottom), (left, right)), part in cells.items():
            self.lines.append(f"{name}[{top}:{bottom}, {left}:{right}] = {part}")
        return name


def _together(parts: Sequence[str], dim: int) -> str:
    return parts[0] if len(parts) == 1 else f"torch.cat({wrapped(parts, width=40)}, dim={dim})"


def _tuple(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else wrapped(names, width=40)
