"""Pass: dense pieces of one signature as blocks of one matrix, zero elsewhere.

In: a Program and a plan per cover. Out: one in which the pieces of every cover that the plan says
are mixed at once, by a `Filled`. A part of a basis (`terms=`, small sizes) is stored in dense
matrices that hold nothing else. Where they share features, or land on the same places, each reads
its features again and adds to what others made; one matmul over all of them multiplies by zeros
instead.

The one thing to know: the weights are the same either way. A filled matrix is put together while
the layer runs, so nothing that stands for nothing is stored, drawn or trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from symcompile.cost.objective import Objective
from symcompile.cost.work import FILL_LAUNCHES
from symcompile.ir import (
    Add,
    Block,
    Builder,
    Concat,
    Filled,
    Mix,
    Output,
    Program,
    Slice,
    Tensor,
    Transpose,
    Type,
    by_level,
    levels_of,
    readers_of,
    types_of,
)
from symcompile.passes.batch import batch_mixes, plan_batches
from symcompile.passes.mixes import form_mixes, plan_mixes
from symcompile.passes.schedule import plan_schedule
from symcompile.passes.spreads import landings
from symcompile.planner.decisions import FillPlan
from symcompile.spec import Perm

__all__ = ["FORMS", "fill_mixes", "plan_fills"]

FORMS = ("pieces", "filled")

_ROUNDING = 1e-9
"""Scores that differ by less, relative, are the same sum in another order."""


def plan_fills(program: Program, objective: Objective) -> tuple[FillPlan, ...]:
    """For every cover of two pieces and more, whether one filled matrix costs less.

    All filled matrices are put together at once: the launches that takes count once, against what
    all of them save.
    """
    types = types_of(program)
    scored: dict[object, tuple[float, float]] = {}
    plans = []
    once = objective.score(0, 0, 0, FILL_LAUNCHES)
    saved = 0.0
    for cover in _covers(program, types):
        key = _kind(program, types, cover, objective)
        if key not in scored:
            one_by_one, at_once = _scores(program, types, cover, objective)
            scored[key] = one_by_one, at_once - once
        pieces, filled = zip(FORMS, scored[key], strict=True)
        cheaper = filled[1] < pieces[1] * (1 - _ROUNDING)
        saved += cheaper * (pieces[1] - filled[1])
        ranked = (filled, pieces) if cheaper else (pieces, filled)
        matrix = _matrix(cover, types, "filled")
        share = matrix.entries / (matrix.shape[0] * matrix.shape[1])
        plans.append(FillPlan(cover.weights, ranked[0][0], ranked, share=share))
    if saved > once:
        return tuple(plans)
    reason = "to put matrices together takes longer than they save"
    return tuple(plan.one_by_one(reason) for plan in plans)


def fill_mixes(program: Program, plans: Iterable[FillPlan]) -> Program:
    """Mix the pieces of every cover that is planned as "filled" by one matrix."""
    chosen = {plan.weights for plan in plans if plan.chosen == "filled"}
    if not chosen:
        return program
    types = types_of(program)
    covers = [cover for cover in _covers(program, types) if cover.weights in chosen]
    start = len(program.filled)
    matrices = [_matrix(cover, types, f"filled_{start + k}") for k, cover in enumerate(covers)]
    last = {cover.pieces[-1].mix: k for k, cover in enumerate(covers)}
    done = {number for cover in covers for piece in cover.pieces for number in piece.numbers}
    build = Builder(replace(program, filled=(*program.filled, *matrices)))
    place: dict[int, int] = {}  # nothing for what is a part of another by now
    for number in by_level(program):
        op = program.ops[number]
        if number in last:
            cover, matrix = covers[last[number]], matrices[last[number]]
            stack = build.concat([place[feature] for feature in cover.features])
            rows, cols = matrix.shape
            whole = build.mix(stack, matrix.name, (0, rows), (0, cols))
            start = 0
            for width, first in cover.columns(types):
                place[first] = build.slice(whole, start, start + width, cols)
                start += width
        elif number in done:
            continue
        elif isinstance(op, Add):
            place[number] = build.add([place[arg] for arg in op.args if arg in place])
        elif all(arg in place for arg in op.args):
            place[number] = build.emit(op.renumbered(place))
    return build.program()


@dataclass(frozen=True, slots=True)
class _Piece:
    """One mix of a cover.

    Attributes:
        mix: its number.
        weight: all of which it reads.
        features: what it mixes.
        parts: by the place each lands on, the slice of the product, or the product itself.
    """

    mix: int
    weight: str
    features: tuple[int, ...]
    parts: tuple[tuple[object, int], ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.mix, *(number for _, number in self.parts))


@dataclass(frozen=True, slots=True)
class _Cover:
    """Pieces that share features, or places to land on, directly or through others."""

    pieces: tuple[_Piece, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(piece.weight for piece in self.pieces)

    @property
    def features(self) -> tuple[int, ...]:
        """All features, each once: the rows of the matrix."""
        return tuple(sorted({feature for piece in self.pieces for feature in piece.features}))

    @property
    def places(self) -> dict[object, int]:
        """All places to land on, with the first part that does: the columns of the matrix."""
        found: dict[object, int] = {}
        for piece in self.pieces:
            for place, number in piece.parts:
                found.setdefault(place, number)
        return found

    def columns(self, types: Sequence[Type]) -> Iterator[tuple[int, int]]:
        """Width of every column, and the first part that lands there."""
        return ((types[number].width, number) for number in self.places.values())


def _covers(program: Program, types: Sequence[Type]) -> list[_Cover]:
    pieces = list(_pieces(program, types))
    if len(pieces) < 2:
        return []
    from networkx import Graph, connected_components

    graph = Graph()
    for piece in pieces:
        graph.add_edges_from((piece.mix, ("feature", value)) for value in piece.features)
        graph.add_edges_from((piece.mix, ("place", place)) for place, _ in piece.parts)
    by_mix = {piece.mix: piece for piece in pieces}
    covers = [
        _Cover(tuple(by_mix[mix] for mix in sorted(part & by_mix.keys())))
        for part in connected_components(graph)
    ]
    return sorted(
        (cover for cover in covers if len(cover.pieces) > 1), key=lambda cover: cover.pieces[0].mix
    )


def _pieces(program: Program, types: Sequence[Type]) -> Iterator[_Piece]:
    """Mixes that a matrix could be filled with: of whole weights, from inputs to outputs.

    The only one of a signature meets no other.
    """
    shapes, levels = dict(program.weights), levels_of(program)
    mixes = [
        number
        for number, op in enumerate(program.ops)
        if isinstance(op, Mix)
        and not levels[number]
        and (op.rows, op.cols) == tuple((0, side) for side in shapes.get(op.weight, ()))
    ]
    signatures = Counter(types[number].labels for number in mixes)
    mixes = [number for number in mixes if signatures[types[number].labels] > 1]
    if not mixes:
        return
    readers = readers_of(program)
    lands: dict[int, list[object]] = {}
    for op in program.ops:
        if isinstance(op, Output):
            for landing in landings(program, op):
                key = (op.tensor, landing.half, landing.axes)
                lands.setdefault(landing.source, []).append(key)
    for number in mixes:
        op = program.ops[number]
        assert isinstance(op, Mix)
        source = program.ops[op.args[0]]
        alone = isinstance(source, Concat) and len(readers[op.args[0]]) == 1
        features = source.args if alone else op.args
        parts = readers[number]
        start = 0
        for part in parts:
            piece = program.ops[part]
            if not isinstance(piece, Slice) or piece.start != start:
                break
            start = piece.stop
        if start != types[number].width:
            parts = (number,)
        if all(len(lands.get(part, ())) == 1 for part in parts):
            yield _Piece(
                number, op.weight, features, tuple((lands[part][0], part) for part in parts)
            )


def _matrix(cover: _Cover, types: Sequence[Type], name: str) -> Filled:
    """The matrix of a cover: features down, places to land on across."""
    rows: dict[int, int] = {}
    height = width = 0
    for feature in cover.features:
        rows[feature] = height
        height += types[feature].width
    cols: dict[object, int] = {}
    for place, number in cover.places.items():
        cols[place] = width
        width += types[number].width
    blocks = []
    for piece in cover.pieces:
        down = _runs([(rows[feature], types[feature].width) for feature in piece.features])
        across = _runs([(cols[place], types[number].width) for place, number in piece.parts])
        blocks += [
            Block(piece.weight, read, kept, row, col)
            for (row, read), (col, kept) in product(down, across)
        ]
    return Filled(name, (height, width), tuple(blocks))


def _runs(parts: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    """Parts of a weight's side, one after the other, that also follow each other in a matrix.

    >>> _runs([(0, 2), (2, 3), (9, 1)])
    [(0, (0, 5)), (9, (5, 6))]
    """
    runs: list[tuple[int, tuple[int, int]]] = []
    start = 0
    for place, width in parts:
        if runs and runs[-1][0] + runs[-1][1][1] - runs[-1][1][0] == place:
            first, (begin, _) = runs.pop()
            runs.append((first, (begin, start + width)))
        else:
            runs.append((place, (start, start + width)))
        start += width
    return runs


def _kind(program: Program, types: Sequence[Type], cover: _Cover, objective: Objective) -> object:
    """All that the cost of a cover depends on: covers of one kind are scored once."""
    sizes = dict(objective.sizes)
    bases: dict[int, int] = {}
    features = {}
    for place, value in enumerate(cover.features):
        op = program.ops[value]
        base, axes = (op.args[0], op.axes) if isinstance(op, Transpose) else (value, ())
        features[value] = (place, bases.setdefault(base, len(bases)), axes, types[value].width)
    columns = {place: number for number, place in enumerate(cover.places)}
    pieces = tuple(
        (
            tuple(features[value] for value in piece.features),
            tuple((columns[place], types[number].width) for place, number in piece.parts),
        )
        for piece in cover.pieces
    )
    return tuple(sizes.get(label) for label in types[cover.features[0]].labels), pieces


def _scores(
    program: Program, types: Sequence[Type], cover: _Cover, objective: Objective
) -> tuple[float, float]:
    """The cost of both forms, each at its best."""
    pieces = _fragment(program, types, cover)
    plan = FillPlan(cover.weights, "filled", ())
    best = []
    for stage in (pieces, fill_mixes(pieces, [plan])):
        stage = form_mixes(stage, plan_mixes(stage, objective))
        stage = replace(stage, in_place=True)
        stage = batch_mixes(stage, plan_batches(stage, objective))
        if objective.minimize == "peak":
            best.append(float(plan_schedule(stage, objective).peak * objective.itemsize))
        else:
            best.append(objective.cost_of(stage))
    return best[0], best[1]


def _fragment(program: Program, types: Sequence[Type], cover: _Cover) -> Program:
    """The pieces on their own: a program that starts from their features.

    It ends where they land, in a sum with something smaller each.
    """
    features = cover.features
    labels = types[features[0]].labels
    bases = list(dict.fromkeys(_base(program, value) for value in features))
    axes = tuple(map(Perm, labels))
    columns = list(cover.columns(types))
    inputs = [
        Tensor((k,), tuple(map(Perm, types[value].labels)), types[value].width)
        for k, value in enumerate(bases)
    ]
    inputs += [Tensor((len(bases) + k,), (), width) for k, (width, _) in enumerate(columns)]
    outputs = [Tensor((k,), axes, width) for k, (width, _) in enumerate(columns)]
    names = set(cover.weights)
    like = replace(
        program,
        ops=(),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        weights=tuple(weight for weight in program.weights if weight[0] in names),
        filled=(),
    )
    build = Builder(like)
    place = {value: build.input(k) for k, value in enumerate(bases)}
    for value in features:
        op = program.ops[value]
        if isinstance(op, Transpose):
            place[value] = build.transpose(place[op.args[0]], op.axes)
    shapes = dict(program.weights)
    terms: dict[object, list[int]] = {key: [] for key in cover.places}
    for piece in cover.pieces:
        rows, cols = shapes[piece.weight]
        stack = build.concat([place[value] for value in piece.features])
        whole = build.mix(stack, piece.weight, (0, rows), (0, cols))
        start = 0
        for key, number in piece.parts:
            width = types[number].width
            terms[key].append(build.slice(whole, start, start + width, cols))
            start += width
    for k, values in enumerate(terms.values()):
        values.append(build.broadcast(build.input(len(bases) + k), labels, ()))
        build.output(build.add(values), k)
    return build.program()


def _base(program: Program, value: int) -> int:
    op = program.ops[value]
    return op.args[0] if isinstance(op, Transpose) else value
