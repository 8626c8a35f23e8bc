"""Which weights are read in pieces, and how one cut after the other makes them.

In: a Program. Out: for every matrix that mixes read in pieces, the ranges of rows and of columns
that it is cut into.

The one thing to know: a slice costs nothing forward, but backward each makes an array as large as
the whole weight, and all of them are added up. Pieces of one split are put together by one copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from symcompile.ir import BatchMix, Mix, Program, tiles

__all__ = ["Grid", "grids_of"]

_Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """A matrix cut along its rows, its columns, or both.

    Attributes:
        rows, cols: half-open ranges that follow each other from the first row, or column, to the
            last.
    """

    rows: tuple[_Range, ...]
    cols: tuple[_Range, ...]


def grids_of(program: Program) -> dict[str, Grid]:
    """By name of the weight, where every cell of the grid is read and nothing else is.

    Weights that are read whole, or in any other way, are left out.
    """
    shapes = program.matrices
    read: dict[str, set[tuple[_Range, _Range]]] = {}
    for op in program.ops:
        if isinstance(op, Mix) and len(shapes[op.weight]) == 2:
            read.setdefault(op.weight, set()).add((op.rows, op.cols))
    whole = {name for op in program.ops if isinstance(op, BatchMix) for name in op.weights}
    grids = {}
    for name, cells in read.items():
        rows, cols = (tuple(sorted(set(side))) for side in zip(*cells, strict=True))
        tiled = all(map(tiles, (rows, cols), shapes[name]))
        if tiled and 1 < len(cells) == len(rows) * len(cols) and name not in whole:
            grids[name] = Grid(rows, cols)
    return grids
