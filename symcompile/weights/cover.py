"""Covering a part of a signature's basis with dense matrices.

In: which in-features may meet which out half-diagrams, a bipartite graph. Out: bicliques that hold
every edge exactly once and nothing else, so that no weight ever stands for nothing.

The one thing to know: fewest bicliques is an NP-hard question. Here rows with the same partners
make one, or columns with the same partners do, whichever gives fewer, in each connected part of
the graph on its own. The answer depends on the graph alone, never on a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from operator import or_
from typing import TypeVar

__all__ = ["dense_pieces"]

_Kind = TypeVar("_Kind", bound=Hashable)
_Other = TypeVar("_Other", bound=Hashable)

Piece = tuple[list[int], list[int]]
"""Numbers of rows and of columns, each increasing."""


def dense_pieces(
    rows: Sequence[_Kind], columns: Sequence[_Other], meet: Callable[[_Kind, _Other], bool]
) -> list[Piece]:
    """Bicliques that partition all pairs that meet, by first row, then by first column.

    Args:
        rows, columns: the kind of each; all of one kind have the same partners.
        meet: asked once for every pair of kinds.

    >>> dense_pieces("abc", "xyz", lambda row, column: (row, column) in {*zip("abc", "xyz")})
    [([0], [0]), ([1], [1]), ([2], [2])]
    >>> dense_pieces("abcd", "xy", lambda row, column: column == "x" or row in "ab")
    [([0, 1], [0, 1]), ([2, 3], [0])]
    >>> pairs = {"ax", "by", "cx", "cy"}
    >>> dense_pieces("abc", "xy", lambda row, column: row + column in pairs)
    [([0, 2], [0]), ([1, 2], [1])]
    """
    row_places, column_places = _places(rows), _places(columns)
    row_kinds, column_kinds = list(row_places), list(column_places)
    partners = [
        sum(1 << place for place, column in enumerate(column_kinds) if meet(row, column))
        for row in row_kinds
    ]
    pieces: list[Piece] = []
    for part in _connected(partners):
        for row_set, column_set in _cover(partners, part):
            pieces.append(
                (
                    sorted(place for kind in row_set for place in row_places[row_kinds[kind]]),
                    sorted(
                        place for kind in column_set for place in column_places[column_kinds[kind]]
                    ),
                )
            )
    return sorted(pieces)


def _places(kinds: Sequence[_Kind]) -> dict[_Kind, list[int]]:
    found: dict[_Kind, list[int]] = {}
    for place, kind in enumerate(kinds):
        found.setdefault(kind, []).append(place)
    return found


def _connected(partners: Sequence[int]) -> list[list[int]]:
    """Rows by connected part; rows without partners are in none."""
    parts: list[tuple[int, list[int]]] = []
    alike: dict[int, list[int]] = {}
    for row, mask in enumerate(partners):
        if mask:
            alike.setdefault(mask, []).append(row)
    for mask, rows in alike.items():
        touched = [part for part in parts if part[0] & mask]
        parts = [part for part in parts if not part[0] & mask]
        joined = reduce(or_, (columns for columns, _ in touched), mask)
        parts.append((joined, [row for _, others in touched for row in others] + rows))
    return [sorted(rows) for _, rows in parts]


def _cover(partners: Sequence[int], part: Sequence[int]) -> list[Piece]:
    """One connected part, grouped by row or by column."""
    by_row: dict[int, list[int]] = {}
    for row in part:
        by_row.setdefault(partners[row], []).append(row)
    by_column: dict[tuple[int, ...], list[int]] = {}
    for column in _bits(reduce(or_, by_row)):
        met = tuple(row for row in part if partners[row] >> column & 1)
        by_column.setdefault(met, []).append(column)
    if len(by_column) < len(by_row):
        return [(list(rows), columns) for rows, columns in by_column.items()]
    return [(rows, _bits(mask)) for mask, rows in by_row.items()]


def _bits(mask: int) -> list[int]:
    return [place for place in range(mask.bit_length()) if mask >> place & 1]
