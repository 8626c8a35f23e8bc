"""How large each weight starts.

In: a Schema. Out: for each matrix the standard deviation of every entry, run-length coded by row
and column, so that layers stacked on layers neither fade nor explode.

Why not plain fan-in: a mean over n entries of unit variance has variance 1/n, so dividing the
variance evenly over all diagrams (as UNF and NFN do) loses a factor at every layer, down to a
tenth after six. Amplifying the means instead would be right for independent entries and wrong from
the second layer on, where entries share what was broadcast to them. So most of the variance,
`DIRECT`, goes to the diagrams that lose nothing (every axis through, on its own), the rest evenly
to all others, and the sum is rescaled to what independent inputs of unit variance give. Whatever
the correlations, one layer then multiplies the variance by a factor in [DIRECT, 1/DIRECT] times
what it was, up to the fluctuation of the draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from typing import TypeVar

from symcompile.errors import OptionError
from symcompile.spec import Label
from symcompile.weights.schema import Column, Row, Schema, Weight

__all__ = ["DIRECT", "INITS", "Scale", "init_scales"]

DIRECT = 0.9
"""Share of an output's variance carried by diagrams that neither average nor broadcast."""

_MOST_GAIN = 2.0
"""Outputs that only means can reach (invariants) are amplified at most this much in variance:
their inputs, after a few layers, are no longer independent."""

INITS = ("scaled", "unf")
"""`scaled` keeps the scale; `unf` is N(0, 1/(c_in * terms)) of arXiv 2402.05232."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Standard deviations of one weight matrix; the bias starts at zero and has none.

    The entry at row r, column c is drawn with standard deviation `full` of c where r is full, else
    `factor` of r times `base` of c.

    Attributes:
        weight: its name.
        rows: runs of (length, factor, is full).
        cols: runs of (length, base, full).
    """

    weight: str
    rows: tuple[tuple[int, float, bool], ...]
    cols: tuple[tuple[int, float, float], ...]


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
    base, full = _deviations(schema, matrices, sizes, share)
    return tuple(
        Scale(
            weight.name,
            _runs(
                (
                    row.width,
                    1 / _entries(row, schema, sizes)
                    if reduce == "sum" and init == "scaled"
                    else 1.0,
                    share > 0 and row.half.is_identity,
                )
                for row in weight.rows
            ),
            _runs(
                (
                    column.width,
                    base[column.tensor],
                    full[column.tensor] if column.half.is_identity else base[column.tensor],
                )
                for column in weight.columns
            ),
        )
        for weight in matrices
    )


def _deviations(
    schema: Schema, matrices: list[Weight], sizes: Mapping[Label, int], share: float
) -> tuple[dict[int, float], dict[int, float]]:
    """Per output tensor: deviation of ordinary and of full weights."""
    full_fan: Counter[int] = Counter()
    rest_fan: Counter[int] = Counter()
    survives: dict[int, float] = {}
    for weight in matrices:
        fan = weight.shape[0]
        kept = sum(row.width * _kept(row, schema, sizes) for row in weight.rows)
        direct = sum(row.width for row in weight.rows if row.half.is_identity) if share else 0
        for column in weight.columns:
            through = direct if column.half.is_identity else 0
            full_fan[column.tensor] += through
            rest_fan[column.tensor] += fan - through
            reached = _reached(column, schema, sizes)
            survives[column.tensor] = survives.get(column.tensor, 0.0) + (kept - through) * reached
    base: dict[int, float] = {}
    full: dict[int, float] = {}
    for output in survives:
        direct_share = share if full_fan[output] else 0.0
        if not rest_fan[output]:
            direct_share = 1.0
        rest = (1 - direct_share) / max(rest_fan[output], 1)
        variance = direct_share + rest * survives[output]
        gain = 1 / max(variance, 1 / _MOST_GAIN) if share else 1.0
        base[output] = sqrt(gain * rest)
        full[output] = sqrt(gain * direct_share / max(full_fan[output], 1))
    return base, full


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
