"""How large each weight starts.

In: a Schema. Out: for each matrix the standard deviation of every entry, run-length coded by row
and column, and which entries are drawn together as an orthogonal block.

Why not plain fan-in: a mean over n entries of unit variance has variance 1/n, so dividing the
variance evenly over all diagrams (as UNF and NFN do) loses a factor at every layer, down to a
tenth after six. Amplifying the means instead would be right for independent entries and wrong from
the second layer on, where entries share what was broadcast to them. So most of the variance,
`DIRECT`, goes to the diagrams that pass every entry on as it is, the rest evenly to all others,
and the sum is rescaled to what independent inputs of unit variance give. Whatever the
correlations, one layer then multiplies the expected variance by a factor in [DIRECT, 1/DIRECT].

Why orthogonal: a random matrix keeps the length of a vector on average only. With few channels one
draw is off by a third, and six in a row by a factor of two either way; the more so since all
entries of one tensor are multiplied by the same draw. The direct block is one matrix, so it can be
orthogonal and keep every length (Saxe et al., arXiv 1312.6120).

At low rank the first factor makes hidden channels of unit variance, the first of them from direct
rows, and the second gives every column the variance that the whole matrix would. The direct blocks
of both are orthogonal, so their product keeps the length of whatever fits through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import TypeVar

from symcompile.errors import OptionError
from symcompile.spec import Label
from symcompile.weights.schema import Column, Factors, Row, Schema, Weight

__all__ = ["DIRECT", "INITS", "Scale", "init_scales"]

DIRECT = 0.9
"""Share of an output's variance carried by diagrams that pass every entry on as it is."""

ORTHOGONAL_LIMIT = 1024
"""Wider direct blocks are drawn as they come: at that width one draw is off by a few percent, and
making it orthogonal takes time that grows with the cube."""

_MOST_GAIN = 2.0
"""Outputs that only means can reach (invariants) are amplified at most this much in variance:
their inputs, after a few layers, are no longer independent."""

INITS = ("scaled", "unf")
"""`scaled` keeps the scale; `unf` is N(0, 1/(c_in * terms)) of arXiv 2402.05232."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How one weight matrix is drawn; the bias starts at zero and has no Scale.

    A mix of low rank has two, one for each factor. The entry at row r, column c has standard
    deviation `factor` of r times `base` of c. Where r is a direct row and c a direct column
    (`direct` of c is not zero) it is `direct` of c instead, and these entries form one block whose
    longer side has orthogonal lines, if `orthogonal`.

    Attributes:
        weight: its name.
        rows: runs of (length, factor, is direct).
        cols: runs of (length, base, direct).
        orthogonal: how the direct block is drawn.
    """

    weight: str
    rows: tuple[tuple[int, float, bool], ...]
    cols: tuple[tuple[int, float, float], ...]
    orthogonal: bool


def init_scales(schema: Schema, init: str = "scaled", reduce: str = "mean") -> tuple[Scale, ...]:
    """The initial scale of every weight matrix.

    Args:
        init: "scaled" or "unf".
        reduce: with "sum", rows that sum over n known entries are divided by n.

    Raises:
        OptionError: `init` is neither.
    """
    if init not in INITS:
        raise OptionError(
            f"init={init!r} is not known; choose one of {', '.join(map(repr, INITS))}"
        )
    sizes = dict(schema.sizes)
    matrices = [weight for weight in schema.weights if weight.rows]
    share = DIRECT if init == "scaled" else 0.0
    base, direct = _deviations(schema, matrices, sizes, share)
    scales = []
    for weight in matrices:
        rows = [
            (
                row.width,
                1 / _entries(row, schema, sizes) if reduce == "sum" and share else 1.0,
                share > 0 and _is_direct(row),
            )
            for row in weight.rows
        ]
        cols = [
            (
                column.width,
                base[column.tensor],
                direct[column.tensor] if column.half.is_identity else 0.0,
            )
            for column in weight.columns
        ]
        if weight.factors is None:
            scales.append(_scale(weight.name, rows, cols))
        else:
            scales += _factor_scales(weight.factors, rows, cols)
    return tuple(scales)


_RowRuns = list[tuple[int, float, bool]]
_ColumnRuns = list[tuple[int, float, float]]


def _scale(name: str, rows: _RowRuns, cols: _ColumnRuns) -> Scale:
    block = (sum(n for n, _, is_direct in rows if is_direct), sum(n for n, _, d in cols if d))
    orthogonal = 0 < min(block) <= ORTHOGONAL_LIMIT
    return Scale(name, _runs(rows), _runs(cols), orthogonal)


def _factor_scales(factors: Factors, rows: _RowRuns, cols: _ColumnRuns) -> tuple[Scale, Scale]:
    """Both factors of a matrix whose entries would be drawn by `rows` and `cols`."""
    direct = sum(n for n, _, is_direct in rows if is_direct)
    rest = sum(n for n, _, is_direct in rows if not is_direct)
    straight = min(direct, factors.inner)
    mixed = factors.inner - straight
    # Direct rows have hidden channels to themselves, unless there are too few: then they share.
    share = DIRECT if direct and rest and not mixed else 1.0
    hidden = [
        (straight, sqrt((1 - share) / max(rest, 1)), sqrt(share / max(direct, 1))),
        (mixed, sqrt(1 / (direct + rest)), 0.0),
    ]
    out: _ColumnRuns = []
    for n, base, deviation in cols:
        if deviation and straight:
            through, around = direct * deviation**2, rest * base**2
            if not mixed:
                through += around
            out.append((n, sqrt(around / max(mixed, 1)), sqrt(through / straight)))
        else:
            out.append((n, sqrt((direct + rest) * base**2 / factors.inner), 0.0))
    made = [(straight, 1.0, True), (mixed, 1.0, False)]
    return (
        _scale(factors.into, rows, [run for run in hidden if run[0]]),
        _scale(factors.out, [run for run in made if run[0]], out),
    )


def _deviations(
    schema: Schema, matrices: list[Weight], sizes: Mapping[Label, int], share: float
) -> tuple[dict[int, float], dict[int, float]]:
    """Per output tensor: deviation of ordinary and of direct weights."""
    direct_fan: Counter[int] = Counter()
    rest_fan: Counter[int] = Counter()
    survives: dict[int, float] = {}
    for weight in matrices:
        fan = weight.shape[0]
        kept = sum(row.width * _kept(row, schema, sizes) for row in weight.rows)
        direct = sum(row.width for row in weight.rows if _is_direct(row)) if share else 0
        for column in weight.columns:
            through = direct if column.half.is_identity else 0
            direct_fan[column.tensor] += through
            rest_fan[column.tensor] += fan - through
            reached = _reached(column, schema, sizes)
            survives[column.tensor] = survives.get(column.tensor, 0.0) + (kept - through) * reached
    base: dict[int, float] = {}
    deviation: dict[int, float] = {}
    for output in survives:
        direct_share = share if direct_fan[output] else 0.0
        if not rest_fan[output]:
            direct_share = 1.0
        rest = (1 - direct_share) / max(rest_fan[output], 1)
        variance = direct_share + rest * survives[output]
        gain = 1 / max(variance, 1 / _MOST_GAIN) if share else 1.0
        base[output] = sqrt(gain * rest)
        deviation[output] = sqrt(gain * direct_share / max(direct_fan[output], 1))
    return base, deviation


def _is_direct(row: Row) -> bool:
    """The input itself: every axis through, on its own, in its place.

    Its transposes lose nothing either, but share their entries with it: the sum of a tensor and
    its transpose has twice the expected variance where it is symmetric, and none where it is not.
    """
    return row.half.is_identity and row.bijection == tuple(range(len(row.bijection)))


_First = TypeVar("_First")
_Second = TypeVar("_Second")


def _runs(
    items: Iterable[tuple[int, _First, _Second]],
) -> tuple[tuple[int, _First, _Second], ...]:
    """Merge neighbours that differ in length only."""
    merged: list[tuple[int, _First, _Second]] = []
    for length, first, second in items:
        if merged and merged[-1][1:] == (first, second):
            length += merged.pop()[0]
        merged.append((length, first, second))
    return tuple(merged)


def _entries(row: Row, schema: Schema, sizes: Mapping[Label, int]) -> int:
    """How many entries an in-feature reduces over, as far as sizes are known."""
    labels = schema.inputs[row.tensor].labels
    return prod(sizes.get(labels[block[0]], 1) for block in row.half.closed)


def _kept(row: Row, schema: Schema, sizes: Mapping[Label, int]) -> float:
    """Variance of an in-feature of independent unit-variance entries; unknown sizes are large."""
    labels = schema.inputs[row.tensor].labels
    return prod(
        1 / sizes[labels[block[0]]] if labels[block[0]] in sizes else 0.0
        for block in row.half.closed
    )


def _reached(column: Column, schema: Schema, sizes: Mapping[Label, int]) -> float:
    """The share of an output's entries that lie on the diagonals of an out half-diagram."""
    labels = schema.outputs[column.tensor].labels
    return prod(
        sizes[labels[block[0]]] ** (1.0 - len(block)) if labels[block[0]] in sizes else 0.0
        for block in column.half.propagating + column.half.closed
        if len(block) > 1
    )
