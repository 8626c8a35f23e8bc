"""What the reference program costs, without building it.

In: a Schema. Out: the work of computing every diagram on its own, and of the same after equal
features are shared (what a compiler that eliminates common subexpressions, such as XLA, reaches).

The one thing to know: a term's cost splits into a part of its in half-diagram, a part of its out
half-diagram, and a product of both. Sums over all pairs are therefore products of sums, and no pair
is ever enumerated. Tests hold every figure to the work of the programs themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from symcompile.cost import Polynomial, Work, total_work
from symcompile.cost.layout import layouts_of, moves_on_the_way_in, moves_on_the_way_out
from symcompile.diagrams import HalfDiagram
from symcompile.ir import Input, Program
from symcompile.spec import Label
from symcompile.weights import Column, Row, Schema, Weight

__all__ = ["Baseline", "baseline"]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Work and counts of the reference program.

    Attributes:
        work: everything the program does.
        reductions: how many of its ops reduce.
        mixes: how often it mixes channels of features: once for every map, the bias not counted.
    """

    work: Work
    reductions: int
    mixes: int


def baseline(schema: Schema, *, share: bool) -> Baseline:
    """The reference program, or with `share` the reference with equal values computed once."""
    parts, reductions = _reductions(schema, share=share)
    parts += _embeds(schema, share=share)
    written, multiplied = _constants(schema, share=share)
    parts += _moves(schema, bare_bias=not multiplied)
    parts.append(Work(written=Polynomial.of((), written), launches=written))
    torn = torn_inputs(schema)
    for weight in schema.weights:
        columns = weight.columns
        count = max(len(weight.rows), 1)
        features = _Features(count, weight.shape[0] if weight.rows else 1)
        by_order = _by_order(weight, torn)
        if weight.factors is None:
            # A constant that is not spread is the weight itself.
            worked = [c for c in columns if weight.rows or c.half.closed or multiplied]
            parts += [_mix(c, c.width, features, _copied(c, by_order), schema) for c in worked]
            continue
        # A factor's own slice of rows does not depend on the column, but for how it is spread.
        inner = weight.factors.inner
        kinds = {(schema.outputs[c.tensor].labels, c.half): c for c in columns}
        first = list(kinds.values()) if share else columns
        parts += [_mix(c, inner, features, _copied(c, by_order), schema) for c in first]
        hidden = _Features(count, inner * count)
        parts += [_mix(c, c.width, hidden, _Features(), schema) for c in columns]
    parts += _sums(schema)
    mixes = sum(len(weight.rows) * len(weight.columns) for weight in schema.weights)
    return Baseline(total_work(parts), reductions, mixes)


def _reductions(schema: Schema, *, share: bool) -> tuple[list[Work], int]:
    """Every in-feature for every column it meets, or once in all; and how many that are."""
    if share:
        features = {
            (row.tensor, row.half): row
            for weight in schema.weights
            for row in weight.rows
            if row.half.closed
        }
        return [_reduce(row, schema) for row in features.values()], len(features)
    parts, count = [], 0
    for weight in schema.weights:
        times = len(weight.columns)
        reduced = [row for row in weight.rows if row.half.closed]
        parts += [_reduce(row, schema) * times for row in reduced]
        count += times * len(reduced)
    return parts, count


_Kind = tuple[tuple[Label, ...], HalfDiagram]
"""What decides how a value is spread: an output's labels and a half-diagram of it."""


def _embeds(schema: Schema, *, share: bool) -> Iterator[Work]:
    """Every spread for every pair of row and column, or for every row once to each kind."""
    met: dict[_Kind, list[Weight]] = {}
    for weight in schema.weights:
        columns = [(schema.outputs[c.tensor].labels, c.half) for c in weight.columns]
        if share:
            for kind in dict.fromkeys(columns):
                met.setdefault(kind, []).append(weight)
            continue
        width = weight.shape[0] if weight.rows else 1
        for labels, half in columns:
            yield _embed(labels, half, width, max(len(weight.rows), 1))
    for (labels, half), weights in met.items():
        if not merges(half):
            continue
        constants = sum(not weight.rows for weight in weights)
        # Where several matrices cover a signature, two may have a row in common.
        rows = {
            (row.tensor, row.half, row.bijection): row.width
            for weight in weights
            for row in weight.rows
        }
        yield _embed(labels, half, sum(rows.values()) + constants, len(rows) + constants)


def _reduce(row: Row, schema: Schema) -> Work:
    """One pass over the entries on a half-diagram's diagonals."""
    labels = schema.inputs[row.tensor].labels
    kept = [labels[block[0]] for block in row.half.propagating]
    read = Polynomial.of(kept + [labels[block[0]] for block in row.half.closed], row.width)
    return Work(read, Polynomial.of(kept, row.width), read, 1)


def merges(half: HalfDiagram) -> bool:
    """True if some block has several axes, so that a value is embedded on its diagonal."""
    return any(len(block) > 1 for block in half.propagating + half.closed)


def _embed(labels: Sequence[Label], half: HalfDiagram, width: int, count: int) -> Work:
    """Zeros of full size and a write on the diagonals, for `count` features of `width` in all."""
    if not merges(half):
        return Work()
    stored = Polynomial.of([labels[block[0]] for block in half.propagating], width)
    placed = Polynomial.of([labels[block[0]] for block in half.propagating + half.closed], width)
    whole = Polynomial.of(labels, width)
    return Work(stored + placed, whole + placed, placed, 2 * count, placed)


@dataclass(frozen=True, slots=True)
class _Features:
    """Some features of one signature: how many, and of how many channels together."""

    count: int = 0
    width: int = 0


def _by_order(weight: Weight, torn: Collection[int]) -> dict[tuple[int, ...], _Features]:
    """The features of a weight by the order of their axes in memory."""
    found: dict[tuple[int, ...], _Features] = {}
    for row in weight.rows:
        key = axes_in_memory(row, torn)
        so_far = found.get(key, _Features())
        found[key] = _Features(so_far.count + 1, so_far.width + row.width)
    return found


def torn_inputs(schema: Schema) -> frozenset[int]:
    """Inputs whose entries lie apart: a fixed axis that is folded by a view stands between."""
    found = set()
    for number, tensor in enumerate(schema.inputs):
        if tensor.width != tensor.channels:
            alone = Program((Input((), 0),), (tensor,), (), ())
            (layout,) = layouts_of(alone)
            if not layout.dense:
                found.add(number)
    return frozenset(found)


def axes_in_memory(row: Row, torn: Collection[int]) -> tuple[int, ...]:
    """The order of a feature's axes in memory; () if its entries lie apart.

    Args:
        torn: as `torn_inputs` has it.
    """
    if not row.half.closed and (merges(row.half) or row.tensor in torn):
        return ()
    order = order_of(row.half)
    return tuple(order[axis] for axis in row.bijection)


def order_of(half: HalfDiagram) -> tuple[int, ...]:
    """Where the propagating blocks stand among each other in memory, in canonical order."""
    by_first_axis = sorted(half.propagating)
    return tuple(by_first_axis.index(block) for block in half.propagating)


def _copied(column: Column, by_order: Mapping[tuple[int, ...], _Features]) -> _Features:
    """Features that a matmul copies first, as they do not lie in the order the column wants.

    What is embedded is written anew, in order.
    """
    order = order_of(column.half)
    if len(order) < 2 or merges(column.half):
        return _Features()
    moved = [features for key, features in by_order.items() if key != order]
    return _Features(sum(f.count for f in moved), sum(f.width for f in moved))


def _mix(column: Column, to: int, features: _Features, copied: _Features, schema: Schema) -> Work:
    """One matmul to `to` channels per feature, at the size the spread left."""
    at: Sequence[Label] = schema.outputs[column.tensor].labels
    if not merges(column.half):
        at = [at[block[0]] for block in column.half.propagating]
    width, count = features.width, features.count
    read = Polynomial.of(at, width) + Polynomial.of((), width * to)
    matmul = Work(read, Polynomial.of(at, to * count), Polynomial.of(at, 2 * width * to), count)
    moved = Polynomial.of(at, copied.width)
    return total_work([matmul, Work(moved, moved, Polynomial(), copied.count)])


def _constants(schema: Schema, *, share: bool) -> tuple[int, bool]:
    """How often the constant 1 is written, and whether mixes of it as it stands are matmuls.

    Where nothing but mixes read a constant, they are the weights themselves.
    """
    spread = sum(
        bool(column.half.closed)
        for weight in schema.weights
        if not weight.rows
        for column in weight.columns
    )
    return (min(spread, 1), spread > 0) if share else (spread, False)


def multiplies_constants(schema: Schema, *, share: bool) -> bool:
    """True if mixes of the constant 1 as it stands are matmuls, not the weights themselves."""
    return _constants(schema, share=share)[1]


def _moves(schema: Schema, *, bare_bias: bool) -> Iterator[Work]:
    """Folding inputs and unfolding outputs, where that takes a copy.

    Args:
        bare_bias: an output that is nothing but a part of the bias is copied out of it.
    """
    used = sorted({row.tensor for weight in schema.weights for row in weight.rows})
    tensors = [schema.inputs[k] for k in used if moves_on_the_way_in(schema.inputs[k])]
    tensors += [
        tensor
        for tensor in schema.outputs
        if moves_on_the_way_out(tensor, range(len(tensor.labels)))
    ]
    mixed = {column.tensor for weight in schema.weights if weight.rows for column in weight.columns}
    tensors += [
        schema.outputs[column.tensor]
        for weight in schema.weights
        if bare_bias and not weight.rows
        for column in weight.columns
        if column.tensor not in mixed and not column.half.closed
    ]
    for tensor in tensors:
        whole = Polynomial.of(tensor.labels, tensor.width)
        yield Work(whole, whole, Polynomial(), 1)


def lazy_axes(half: HalfDiagram) -> frozenset[int]:
    """The axes of a spread value that stay of extent one: none once it is embedded."""
    if merges(half):
        return frozenset()
    return frozenset(axis for block in half.closed for axis in block)


def _sums(schema: Schema) -> Iterator[Work]:
    """Adding up the terms of every output, in the order the reference has them."""
    terms: list[list[tuple[frozenset[int], int, int]]] = [[] for _ in schema.outputs]
    for weight in schema.weights:
        for column in weight.columns:
            count = max(len(weight.rows), 1)
            terms[column.tensor].append((lazy_axes(column.half), count, column.width))
    for output, tensor in zip(terms, schema.outputs, strict=True):

        def extent(
            lazy: frozenset[int], width: int, labels: tuple[Label, ...] = tensor.labels
        ) -> Polynomial:
            return Polynomial.of([x for axis, x in enumerate(labels) if axis not in lazy], width)

        total: frozenset[int] | None = None
        for lazy, count, width in output:
            for times in (1, count - 1):  # only the first of equal terms can widen the sum
                if not times:
                    continue
                if total is None:
                    total = lazy
                    continue
                before, total = total, total & lazy
                after = extent(total, width)
                yield Work(extent(before, width) + extent(lazy, width), after, after, 1) * times
        if total:
            yield Work(
                extent(total, tensor.width), extent(frozenset(), tensor.width), Polynomial(), 1
            )
