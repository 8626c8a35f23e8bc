"""From a compiled layer to the source of an `nn.Module`.

In: a `Compiled`. Out: a file that imports torch alone and defines one module class.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

from symcompile.codegen import (
    Batching,
    Compiled,
    Embedding,
    Piece,
    Product,
    SourceParts,
    emits,
    write_parts,
)
from symcompile.codegen.layout import wrapped
from symcompile.codegen.stacks import poured_of, stacks_of
from symcompile.codegen.template import (
    block,
    header,
    linear_sum,
    reading,
    scales_table,
    tensors_table,
)
from symcompile.ir import Filled
from symcompile_torch.gradient import Learning, learning
from symcompile_torch.node import (
    CHOICE,
    DIVIDED,
    FIRST_NODE,
    IN_PARTS,
    NODE,
    OUTER,
    OUTERS,
    SUM_AND_OUTER,
    TO_WEIGHTS,
    TWO_SUMS,
)
from symcompile_torch.text import (
    AT_ONCE,
    DISTRIBUTED,
    FILL,
    FILLED_PLACES,
    FLAT,
    KERNELS,
    LAY_OUT,
    LINEAR_SUM,
    MEAN,
    MIXED,
    ONE_GO,
    ONTO,
    PRODUCT,
    READS_ONCE,
    TEMPLATE,
    TRANSFORMED,
    TWO_MEANS,
    TWO_MEANS_HELD,
)

__all__ = ["emit"]

_TAKEN = {
    *("grads", "inputs", "keep", "kept", "matrices", "outputs", "sizes"),
    "FILLED",
    "SCALES",
    "STACKS",
    "ShapeError",
    "TENSORS",
    "dtype",
    "leaves",
    "nn",
    "self",
    "torch",
    "x",
}


@emits
def emit(compiled: Compiled) -> str:
    """The layer's source; the same bytes for the same spec and options."""
    program = compiled.program
    shapes, stacks, poured = dict(program.weights), stacks_of(program), poured_of(program)
    stacked = {name for names in stacks.values() for name in names}.union(poured)
    matrices = [name for name in shapes if name not in stacked]
    weights = _cast(matrices, [f"self.{name}" for name in matrices])
    for stack, names in stacks.items():
        shape = (len(names), *shapes[names[0]])
        weights.append(f"{stack} = {_flat(names)}.view{shape}")
    weights += _filled(program.filled, poured)
    matrices += [*stacks, *(matrix.name for matrix in program.filled)]
    taken = _TAKEN | {compiled.name}
    learns = learning(compiled, _Torch(), _Back(), taken, matrices)
    parts = learns.forward if learns else write_parts(compiled, _Torch(), taken)
    if parts.reduces or learns:
        weights.append("wide = torch.promote_types(dtype, torch.float32)  # reductions")
    default = ""
    if compiled.dtype is not None:
        default = f"        dtype = torch.{compiled.dtype} if dtype is None else dtype\n"
    written = [*parts.compute]
    if learns:
        written += learns.to_all.lines + (learns.to_weights.lines if learns.to_weights else ())
    called = set(re.findall(r"\b_\w+(?=\()", "\n".join(written)))
    if learns:
        called |= {"_product"} | ({"_linear_sum"} if "_sum_and_outer" in called else set())
    sums, held = "_linear_sum" in called, "_two_means_held" in called
    mixed = "_mixed" in called
    products = mixed or not called.isdisjoint({"_linear_sum", "_product"})
    pairs = held or "_two_means" in called
    means = pairs or "_mean" in called
    reads = pairs or "_two_sums" in called
    return TEMPLATE.format(
        header=header(compiled, "PyTorch"),
        name=compiled.name,
        tensors=tensors_table(parts.tensors),
        scales=scales_table(compiled),
        default_dtype=default,
        parameters=block(
            (
                f"self.{name} = nn.Parameter(torch.empty({shape!r}, **kind))"
                for name, shape in shapes.items()
            ),
            8,
        ),
        stacks=_stacks_table([*stacks.values(), poured] if poured else [*stacks.values()])
        + _filled_table(program.filled),
        lay_out=_lay_out(bool(stacks), bool(poured)),
        laid_out="        self._lay_out()\n" if stacked else "",
        body=_body(next(iter(shapes)), parts, weights, matrices, learns),
        side_by_side=(FLAT if stacked else "") + (FILL if poured else ""),
        products=(_nodes(learns) if learns else "")
        + (OUTERS if "_outers" in called else "")
        + (SUM_AND_OUTER if "_sum_and_outer" in called else "")
        + (DIVIDED if "_divided" in called else "")
        + (MIXED if mixed else "")
        + (ONTO if "_onto" in called else "")
        + (LINEAR_SUM if sums else "")
        + (ONE_GO + PRODUCT if products else ""),
        means=(TWO_MEANS if pairs else "")
        + (TWO_SUMS if "_two_sums" in called else "")
        + (READS_ONCE if reads else "")
        + (TWO_MEANS_HELD if held else "")
        + (MEAN if means else ""),
        transformed=KERNELS + TRANSFORMED if products or means else "",
        reading=reading("tensor", "a tensor", "isinstance({}, torch.Tensor)", "{}", DISTRIBUTED),
    )


def _body(
    first: str,
    parts: SourceParts,
    weights: Sequence[str],
    matrices: Sequence[str],
    learns: Learning | None,
) -> str:
    """What the layer does when it is called, in one function or with its way back."""
    given = ["leaves = _read(x)", f"dtype = _common_dtype(leaves, self.{first})", *parts.read]
    given += [*_cast(parts.inputs, parts.inputs), *weights]
    known = {"given": block(given, 8)}
    known["result"] = block((*parts.trees, f"return {parts.result}"), 8)
    if learns is None:
        return AT_ONCE.format(compute=block(parts.compute, 8), **known)
    to_all, alone = learns.to_all, learns.to_weights
    inputs, sizes = wrapped(to_all.to_inputs), ("batch", "dtype", "wide", *learns.sizes)
    unpack = {"sizes": sizes, "inputs": parts.inputs, "matrices": matrices}
    kept = {"sizes": sizes, "kept": learns.kept, "grads": learns.gradients}
    back = {"matrices": matrices, **kept}
    text = IN_PARTS.format(
        unpack=block([f"{_tuple(parts.outputs)} = outputs", *learns.moved], 8),
        returned=block(
            [
                f"sizes = {wrapped(sizes)}",
                f"inputs = [*{wrapped(parts.inputs)}]",
                f"matrices = [*{wrapped(matrices)}]",
                "return sizes, inputs, matrices",
            ],
            8,
        ),
        unpack_inputs=block((f"{_tuple(names)} = {name}" for name, names in unpack.items()), 4),
        compute=block(parts.compute, 4),
        outputs=block([f"return {_tuple(parts.outputs)}"], 4),
        unpack_gradients=block((f"{_tuple(names)} = {name}" for name, names in back.items()), 4),
        to_all=block([*to_all.lines, f"return {inputs}, {wrapped(to_all.to_matrices)}"], 4),
        **known,
    )
    if alone is None:
        return text
    return text + TO_WEIGHTS.format(
        unpack_gradients=block((f"{_tuple(names)} = {name}" for name, names in kept.items()), 4),
        to_weights=block([*alone.lines, f"return {wrapped(alone.to_matrices)}"], 4),
    )


def _nodes(learns: Learning) -> str:
    """The nodes that the layer may be, and which of them it is."""
    if learns.to_weights is None:
        alone = CHOICE.format(learns="everything learns", first="", nodes="_Layer")
        return NODE + alone + OUTER
    either = CHOICE.format(
        learns="all weights learn, all inputs or none,",
        first="not any(learn) or ",
        nodes="_Layer if any(learn) else _FirstLayer",
    )
    return NODE + FIRST_NODE + either + OUTER


def _tuple(names: Sequence[str]) -> str:
    return wrapped(names, bare=True) if names else "()"


def _cast(names: Sequence[str], values: Sequence[str]) -> list[str]:
    width = 68 - len(", ".join(names))  # of what is on the same line
    return [f"{_tuple(names)} = _cast({wrapped(values, width=width)}, dtype)"] if names else []


def _flat(names: Sequence[str]) -> str:
    return f"_flat{wrapped([f'self.{name}' for name in names], width=40)}.to(dtype)"


def _filled(matrices: Sequence[Filled], poured: Sequence[str]) -> list[str]:
    """Statements that put all filled matrices together."""
    if not matrices:
        return []
    names, sizes = [m.name for m in matrices], [m.shape[0] * m.shape[1] for m in matrices]
    lines = [f"filled = _fill(self, {_flat(poured)}, {sum(sizes)})"]
    # One split for all: a slice each would make a gradient of full size for each.
    parts = f"filled.split({wrapped([str(size) for size in sizes])})"
    lines.append(f"{wrapped(names, bare=True)} = {parts}")
    return lines + [f"{m.name} = {m.name}.view{m.shape}" for m in matrices]


def _lay_out(stacks: bool, filled: bool) -> str:
    if not (stacks or filled):
        return ""
    return LAY_OUT + (FILLED_PLACES if filled else "") + "\n"


def _stacks_table(stacks: Sequence[Sequence[str]]) -> str:
    if not stacks:
        return ""
    rows = "".join(f"{wrapped([repr(name) for name in names])},\n" for names in stacks)
    return f"""

# Weights that are read at once: they lie side by side in memory.
STACKS = (
{textwrap.indent(rows, "    ")})"""


def _filled_table(matrices: Sequence[Filled]) -> str:
    if not matrices:
        return ""
    rows = "".join(
        f"({m.shape}, {wrapped([repr(astuple(block)) for block in m.blocks])}),\n" for m in matrices
    )
    return f"""

# Matrices put together from the weights of the last stack, zero elsewhere: shape, then blocks (the
# weight, the part of it: rows and columns, and the row and column of its first entry).
FILLED = (
{textwrap.indent(rows, "    ")})"""


class _Batching:
    def split(self, value: str, count: int, width: int) -> str:
        return f"{value}.reshape(-1, {count}, {width}).transpose(0, 1)"

    def multiply(self, batch: str, stack: str) -> str:
        return f"torch.bmm({batch}, {stack})"

    def members(self, batch: str, count: int, shape: str) -> str:
        return f"{batch}.reshape(({count}, {shape[1:]}).unbind(0)"


class _Torch:
    """PyTorch's spelling."""

    frees = True

    @property
    def batching(self) -> Batching:
        return _Batching()

    def ones(self) -> str:
        return "torch.ones(1, dtype=dtype, device=leaves[0].device)"

    def concat(self, values: Sequence[str]) -> str:
        return f"torch.cat({wrapped(values, width=40)}, dim=-1)"

    def product(self, value: str, weight: str, *, large: bool) -> str:
        return f"_product({value}, {weight})" if large else f"{value} @ {weight}"

    def mixed(
        self,
        parts: Sequence[str],
        weight: str,
        channels: Sequence[int],
        pieces: Sequence[Piece],
    ) -> str:
        into = [str((p.sizes, p.order) if p.sizes else p.width) for p in pieces]
        given = [f"{wrapped(parts)}, {weight},", f"{tuple(channels)}, {wrapped(into)},"]
        return f"_mixed(\n{textwrap.indent(chr(10).join(given), '    ')}\n)"

    def onto(self, value: str, terms: Sequence[str], piece: Piece) -> str:
        stored = f"(*batch, {piece.stored[1:]}"
        given = f"{value}, {wrapped(terms)},\n{piece.sizes}, {piece.order}, {stored},"
        return f"_onto(\n{textwrap.indent(given, '    ')}\n)"

    takes_parts = True
    moves_together = False  # only views are made
    joins_late = True
    pairs = "mean"

    def join(self, value: str, channels: int) -> str:
        return f"{value}.flatten(-{channels})"

    def linear_sum(
        self,
        target: str,
        products: Sequence[Product],
        terms: Sequence[str],
        anchors: Sequence[str],
        held: str | None,
    ) -> list[str]:
        return linear_sum(target, products, held, terms=terms, anchors=anchors)

    def two_means(
        self,
        value: str,
        axis: int,
        counts: Sequence[str],
        weight: str | None,
        *,
        widen: bool,
        channels: int = 1,
    ) -> str | None:
        args = [value, str(axis), f"({', '.join(counts)})", *([weight] if weight else [])]
        args += ["dtype=wide"] if widen else []
        args += [f"channels={channels}"] if weight and channels > 1 else []
        return f"_two_means{'_held' if weight else ''}({', '.join(args)})"

    def reduce(self, value: str, how: str, axes: Sequence[int], count: str, *, widen: bool) -> str:
        dims = str(axes[0]) if len(axes) == 1 else str(tuple(axes))
        dtype = ", dtype=wide" if widen else ""
        if how == "mean":
            return f"_mean({value}, {dims}, {count}{dtype})"
        return f"{value}.sum(dim={dims}{dtype})"

    def cast(self, value: str) -> str:
        return f"{value}.to(dtype)"

    def copy(self, value: str) -> str:
        return f"{value}.clone()"

    def move_axes(self, value: str, source: Sequence[int], target: Sequence[int]) -> str:
        if len(source) == 1:
            return f"{value}.movedim({source[0]}, {target[0]})"
        return f"{value}.movedim({tuple(source)}, {tuple(target)})"

    diagonal_last = True

    def diagonal(self, value: str, axis1: int, axis2: int) -> str:
        return f"{value}.diagonal(dim1={axis1}, dim2={axis2})"

    def expand(self, value: str, shape: str) -> str:
        return f"{value}.expand({shape}).contiguous()"

    def split(self, value: str, widths: Sequence[int], axis: int = -1) -> str:
        sizes = str(widths[0]) if len(set(widths)) == 1 else wrapped([str(w) for w in widths])
        return f"{value}.split({sizes}, dim={axis})"

    def embed(self, request: Embedding) -> list[str]:
        # In place on a view of the diagonals: several times faster than to make a whole array of
        # zeros and add it, forward and backward.
        target, value = request.target, request.value
        lines = []
        if not request.owned:
            start = f"{value}.new_zeros({request.shape})"
            if request.total is not None:
                start += f" + {request.total}"
            lines.append(f"{target} = {start}")
        elif not request.covered:
            # Zero, but batched wherever vmap batches the value.
            lines.append(f"{target} = {target} + {value}.new_zeros(())")
        return [*lines, f"{request.view(target)}.add_({value})"]


class _Back(_Torch):
    """The same, for the way back: it sums, reads gradients as they are, and is never under vmap."""

    joins_late = False
    pairs = "sum"

    def two_means(self, value: str, axis: int, *_: Any, widen: bool, **__: Any) -> str:
        return f"_two_sums({value}, {axis}{', dtype=wide' if widen else ''})"

    def embed(self, request: Embedding) -> list[str]:
        return super().embed(replace(request, covered=True))
