"""The peak memory of the reference program, without building it.

In: a Schema and sizes. Out: the most entries alive at once while every diagram is computed on its
own, or while the same is computed with equal values shared.

The one thing to know: terms come weight by weight, column by column, row by row, and their products
wait for the sums at the very end. Along a column all terms do the same to memory but for where a
value is made first or read last, so only such columns are walked row by row, and of every other
column one term of each kind is looked at. Tests hold the result to the programs themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import prod

from symcompile.cost.layout import moves_on_the_way_in, moves_on_the_way_out
from symcompile.diagrams import HalfDiagram
from symcompile.ir import Tensor
from symcompile.planner.baseline import (
    axes_in_memory,
    lazy_axes,
    merges,
    multiplies_constants,
    order_of,
    torn_inputs,
)
from symcompile.spec import Label
from symcompile.weights import Column, Row, Schema, Weight

__all__ = ["baseline_peak"]


def baseline_peak(schema: Schema, sizes: Mapping[Label, int], *, share: bool) -> int:
    """Entries of the reference program, or with `share` of the reference with equal values shared.

    The same as `peak_entries(footprint(program, sizes))` of the program itself.
    """
    size = _Sizes(schema, sizes)
    torn = torn_inputs(schema)
    parts = [_part(weight, schema, size, torn, share=share) for weight in schema.weights]
    lives = _shared_lives(parts, size) if share else _separate_lives(parts, size)
    live = size.held + sum(size.copies.values())
    peak = live
    for place, part in enumerate(parts):
        for number, column in enumerate(part.columns):
            if not column.product:
                continue
            for term in _terms(part, column, lives[place, number]):
                peak = max(peak, live + term.top)
                live += term.left
    return max(peak, _peak_of_sums(parts, schema, size, live))


# -- what there is ----------------------------------------------------------------------------


class _Sizes:
    """Entries of things.

    Attributes:
        copies: of inputs that are copied on the way in, by number.
        held: of all inputs that are read.
    """

    def __init__(self, schema: Schema, sizes: Mapping[Label, int]) -> None:
        self._sizes = sizes
        used = sorted({row.tensor for weight in schema.weights for row in weight.rows})
        whole = {k: self.of(schema.inputs[k].labels) * schema.inputs[k].width for k in used}
        self.held = sum(whole.values())
        self.copies = {k: whole[k] for k in used if moves_on_the_way_in(schema.inputs[k])}

    def of(self, labels: Sequence[Label]) -> int:
        """With one channel."""
        return prod(self._sizes[label] for label in labels)


@dataclass(frozen=True, slots=True)
class _Feature:
    """What a row contributes.

    Attributes:
        key: equal for equal values.
        source: the storage it lies in: a reduction, a copy of an input, or nothing of ours.
        made: entries of the reduction, or of the constant 1; 0 if it is a view.
        copied: the input's copy, if it has one.
        width: channels.
        order: how its axes lie in memory, as `axes_in_memory` tells it.
    """

    key: Hashable
    source: Hashable
    made: int
    copied: int | None
    width: int
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Target:
    """What a column asks for.

    Attributes:
        kind: equal where features are spread alike.
        area: entries, per channel, of what its mixes read.
        embedded: entries, per channel, that embedding takes; 0 for a view.
        product: entries of one mix of it; 0 if that is the bias itself.
        hidden: entries of the first of two mixes, at low rank.
        order: the order a matmul wants its axes in; () if any will do.
        first, last: True for the first and the last column of its kind in the matrix.
    """

    kind: Hashable
    area: int
    embedded: int
    product: int
    hidden: int
    order: tuple[int, ...]
    first: bool
    last: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """A matrix, or the bias.

    Attributes:
        examples: (row, its feature) for the last feature of each kind.
        widths: (number of rows, the first of them) of every run of rows of equal width.
    """

    weight: Weight
    features: tuple[_Feature, ...]
    columns: tuple[_Target, ...]
    examples: tuple[tuple[int, _Feature], ...]
    widths: tuple[tuple[int, _Feature], ...]


def _part(
    weight: Weight, schema: Schema, size: _Sizes, torn: Collection[int], *, share: bool
) -> _Part:
    constant = not weight.rows
    features = [_feature(row, weight, torn, size) for row in weight.rows]
    if constant:
        features = [_Feature("1", "1", 1, None, 1, ())]
    runs = [list(run) for _, run in groupby(features, key=lambda feature: feature.width)]
    examples = {(f.width, f.order, f.made): (place, f) for place, f in enumerate(features)}
    multiplied = not constant or multiplies_constants(schema, share=share)
    return _Part(
        weight,
        tuple(features),
        tuple(_targets(weight, schema, size, multiplied=multiplied)),
        tuple(examples.values()),
        tuple((len(run), run[0]) for run in runs),
    )


def _feature(row: Row, weight: Weight, torn: Collection[int], size: _Sizes) -> _Feature:
    copied = row.tensor if row.tensor in size.copies else None
    source: Hashable = (row.tensor, row.half) if row.half.closed else copied
    made = size.of(weight.signature) * row.width if row.half.closed else 0
    key = (row.tensor, row.half, row.bijection)
    return _Feature(key, source, made, copied, row.width, axes_in_memory(row, torn))


def _targets(
    weight: Weight, schema: Schema, size: _Sizes, *, multiplied: bool
) -> Iterator[_Target]:
    kinds = [(not weight.rows, schema.outputs[c.tensor].labels, c.half) for c in weight.columns]
    first = {kind: place for place, kind in reversed([*enumerate(kinds)])}
    last = {kind: place for place, kind in enumerate(kinds)}
    known: dict[Hashable, tuple[int, int, tuple[int, ...]]] = {}
    for place, (column, kind) in enumerate(zip(weight.columns, kinds, strict=True)):
        if kind not in known:
            known[kind] = _spread(*kind[1:], weight, size)
        area, embedded, order = known[kind]
        yield _Target(
            kind,
            area,
            embedded,
            area * column.width if multiplied or column.half.closed else 0,
            area * weight.factors.inner if weight.factors else 0,
            order,
            first[kind] == place,
            last[kind] == place,
        )


def _spread(
    labels: Sequence[Label], half: HalfDiagram, weight: Weight, size: _Sizes
) -> tuple[int, int, tuple[int, ...]]:
    if merges(half):
        return size.of(labels), size.of(labels), ()
    order = order_of(half)
    return size.of(weight.signature), 0, order if len(order) > 1 else ()


# -- how long it lives ------------------------------------------------------------------------


@dataclass(slots=True)
class _Life:
    """What the terms of one column make, and what they are the last to read.

    Attributes:
        reduced: rows whose reduction is made here.
        embedded: rows that are embedded here.
        spent: rows whose embedding is read here for the last time.
        hidden, hidden_spent: the same of the first of two mixes, for all rows.
        separate: True if a reduction is dropped by the term that made it.
        ends: by row, the entries that are dropped once it is reduced, and once it is read.
    """

    reduced: Collection[int] = ()
    embedded: Collection[int] = ()
    spent: Collection[int] = ()
    hidden: bool = True
    hidden_spent: bool = True
    separate: bool = False
    ends: dict[int, tuple[int, int]] = field(default_factory=dict)

    def partly(self, rows: int) -> bool:
        """True if some rows of the column are embedded here, or spent, and others not."""
        return not {len(self.embedded), len(self.spent)} <= {0, rows}

    def drop(self, row: int, feature: _Feature, storage: Hashable, size: _Sizes) -> None:
        """`storage` dies in this term."""
        reduced, read = self.ends.get(row, (0, 0))
        if feature.copied is None or storage != feature.copied:
            read += feature.made
        elif feature.made:
            reduced += size.copies[feature.copied]
        else:
            read += size.copies[feature.copied]
        self.ends[row] = (reduced, read)


_Lives = dict[tuple[int, int], _Life]
"""By number of the matrix and of the column."""


def _separate_lives(parts: Sequence[_Part], size: _Sizes) -> _Lives:
    """Everything is made by the term that needs it, but for copies of inputs."""
    lives: _Lives = {}
    last: dict[int, tuple[int, int, int]] = {}
    for place, part in enumerate(parts):
        rows = range(len(part.features))
        for number in range(len(part.columns)):
            lives[place, number] = _Life(rows, rows, rows, separate=True)
        for row, feature in enumerate(part.features):
            if feature.copied is not None:
                last[feature.copied] = (place, len(part.columns) - 1, row)
    for copied, (place, number, row) in last.items():
        lives[place, number].drop(row, parts[place].features[row], copied, size)
    return lives


def _shared_lives(parts: Sequence[_Part], size: _Sizes) -> _Lives:
    """Everything is made by the first term that needs it and dropped by the last."""
    lives: _Lives = {}
    last: dict[Hashable, tuple[int, int, int]] = {}

    def reads_at(storage: Hashable, place: int, number: int, row: int) -> None:
        last[storage] = max(last.get(storage, (0, 0, 0)), (place, number, row))

    born, spent = _embeddings(parts)
    for place, part in enumerate(parts):
        rows = range(len(part.features))
        low_rank = part.weight.factors is not None
        reader, readers = -1, dict[int, int]()  # the last column to read all rows, or a row
        for number, column in enumerate(part.columns):
            life = _Life(hidden=column.first, hidden_spent=column.last)
            reads: Collection[int] = rows if column.first or not low_rank else ()
            if column.embedded:
                reads = born(place, column) if column.first else ()
                life.embedded = reads
                if column.first if low_rank else column.last:
                    life.spent = spent(place, column)
            if len(reads) == len(rows):
                reader = number
            else:
                readers |= dict.fromkeys(reads, number)
            lives[place, number] = life
        reduced = []
        for row, feature in enumerate(part.features):
            if feature.made and feature.source not in last:
                reduced.append(row)
                if feature.copied is not None:
                    reads_at(feature.copied, place, 0, row)
            number = max(reader, readers.get(row, -1))
            if feature.source is not None and number >= 0:
                reads_at(feature.source, place, number, row)
        lives[place, 0].reduced = reduced
    for storage, (place, number, row) in last.items():
        lives[place, number].drop(row, parts[place].features[row], storage, size)
    return lives


_Rows = Callable[[int, _Target], Collection[int]]


def _embeddings(parts: Sequence[_Part]) -> tuple[_Rows, _Rows]:
    """Which rows are embedded in a matrix first, and which in none after it."""
    met: dict[Hashable, list[int]] = {}
    for place, part in enumerate(parts):
        for column in part.columns:
            if column.embedded and column.first:
                met.setdefault(column.kind, []).append(place)
    # Few kinds are spread in more than one matrix: where small sizes or a predicate part them.
    first: dict[Hashable, int] = {}
    last: dict[Hashable, int] = {}
    for kind, places in met.items():
        if len(places) > 1:
            for place in places:
                for feature in parts[place].features:
                    first.setdefault((kind, feature.key), place)
                    last[kind, feature.key] = place

    def rows(table: Mapping[Hashable, int], place: int, column: _Target) -> Collection[int]:
        features = parts[place].features
        if len(met[column.kind]) == 1:
            return range(len(features))
        return {row for row, f in enumerate(features) if table[column.kind, f.key] == place}

    return partial(rows, first), partial(rows, last)


# -- terms ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Term:
    """A term, or some in a row: the most entries on top of what was there, and what is left."""

    top: int
    left: int


def _terms(part: _Part, column: _Target, life: _Life) -> Iterator[_Term]:
    """The terms of one column, those that are alike in one."""
    if life.ends or (life.reduced and not life.separate) or life.partly(len(part.features)):
        for row, feature in enumerate(part.features):
            yield _term(row, feature, column, life)
        return
    alike = [(row, _term(row, feature, column, life)) for row, feature in part.examples]
    left = alike[0][1].left
    if left >= 0 and all(term.left == left for _, term in alike):
        # What is left grows, so that the last term of each kind is the one that matters.
        top = max(row * left + term.top for row, term in alike)
        yield _Term(top, len(part.features) * left)
        return
    for count, feature in part.widths:  # here nothing but the width makes a difference
        term = _term(0, feature, column, life)
        yield _Term(term.top + max(0, (count - 1) * term.left), count * term.left)


def _term(row: int, feature: _Feature, column: _Target, life: _Life) -> _Term:
    """Op by op: what is made, what is needed on top, what is dropped after."""
    ops: list[tuple[int, int, int]] = []
    after_reduction, after_reading = life.ends.get(row, (0, 0))
    if feature.made and row in life.reduced:
        ops.append((feature.made, 0, after_reduction))
    after_reading += feature.made * life.separate
    embedding = column.embedded * feature.width
    if embedding and row in life.embedded:
        ops.append((embedding, 0, after_reading))
        after_reading = 0
    if embedding and row in life.spent:
        after_reading += embedding
    moved = column.area * feature.width if column.order not in ((), feature.order) else 0
    if not column.hidden:
        ops.append((column.product, moved, after_reading))
    else:
        if life.hidden:
            ops.append((column.hidden, moved, after_reading))
        ops.append((column.product, 0, column.hidden * life.hidden_spent))
    live = top = 0
    for made, transient, dropped in ops:
        live += made
        top = max(top, live + transient)
        live -= dropped
    return _Term(top, live)


# -- sums -------------------------------------------------------------------------------------


def _peak_of_sums(parts: Sequence[_Part], schema: Schema, size: _Sizes, live: int) -> int:
    """The most while terms are added up and written out, output by output."""
    found: list[list[tuple[Column, _Target, int]]] = [[] for _ in schema.outputs]
    for part in parts:
        for column, target in zip(part.weight.columns, part.columns, strict=True):
            found[column.tensor].append((column, target, len(part.features)))
    peak = live
    for tensor, terms in zip(schema.outputs, found, strict=True):

        def extent(lazy: frozenset[int], tensor: Tensor = tensor) -> int:
            labels = [label for axis, label in enumerate(tensor.labels) if axis not in lazy]
            return size.of(labels) * tensor.width

        lazies = [lazy_axes(column.half) for column, _, _ in terms]
        lazy = frozenset.intersection(*lazies)
        count = sum(rows for _, _, rows in terms)
        total, shared = terms[0][1].product, not terms[0][1].product
        if count > 1:
            products = sum(target.product * rows for _, target, rows in terms)
            total = extent(lazy)
            # Of a + b + c the first sum is alive while the second is written.
            all_but_last = lazies if terms[-1][2] > 1 else lazies[:-1]
            before = extent(frozenset.intersection(*all_but_last)) if count > 2 else 0
            live += total
            peak = max(peak, live + before)
            live -= products
        order = range(len(tensor.labels))
        copies = bool(lazy) + shared + moves_on_the_way_out(tensor, order)
        if copies:
            whole = extent(frozenset())
            live += whole
            peak = max(peak, live + whole * (copies > 1))
            live -= total
    return peak
