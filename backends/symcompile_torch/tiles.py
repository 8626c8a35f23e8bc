"""The programs that a GPU runs: sums of products and terms, pairs of sums, products over all rows.

In: arrays by address, with steps along their axes. Out: results, or parts of them to be added up.

The one thing to know: axes before channels are `outer`, then rows, then columns, and a program
makes tiles of ROWS by COLS of them, so that what is repeated along either is read once per tile.
Upper-case arguments are known when a program is compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["linear_sum", "outer_product", "two_sums"]


@triton.jit
def _start(left, outer, steps):
    """Where the part that `left` counts begins."""
    start = left.to(tl.int64) * 0
    for back in tl.static_range(1, len(outer) + 1):
        size = outer[len(outer) - back]
        start += (left % size).to(tl.int64) * steps[len(outer) - back]
        left = left // size
    return start


@triton.jit
def _tile(number, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr, WIDE: tl.constexpr):
    """Rows and columns of a tile, which of them exist, and the number of its outer part."""
    across, down = tl.cdiv(cols, COLS), tl.cdiv(rows, ROWS)
    place = tl.arange(0, ROWS * COLS)
    col = number % across * COLS + place % COLS
    row = number // across % down * ROWS + place // COLS
    inside = (row < rows) & (col < cols)
    if WIDE:
        row, col = row.to(tl.int64), col.to(tl.int64)
    return row, col, inside[:, None], number // across // down


@triton.jit
def _place(left, outer, row, col, steps):
    """Where each row of a tile begins."""
    start = _start(left, outer, steps)
    return start, (row * steps[len(outer)] + col * steps[len(outer) + 1])[:, None]


@triton.jit
def linear_sum(
    y,
    x,
    weights,
    terms,
    y_steps,
    x_steps,
    term_steps,
    outer,
    rows,
    cols,
    width,
    depths,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = the sum of x[i] @ weights[i] and of terms[j]."""
    row, col, inside, left = _tile(tl.program_id(0), rows, cols, ROWS, COLS, WIDE)
    channel = tl.arange(0, WIDTH)[None, :]
    filled = inside & (channel < width)
    total = tl.zeros((ROWS * COLS, WIDTH), tl.float32)
    for i in tl.static_range(len(x)):
        start, at = _place(left, outer, row, col, x_steps[i])
        for first in tl.static_range(0, DEPTH, CHUNK):
            depth = first + tl.arange(0, CHUNK)
            known = depth < depths[i]
            part = tl.load(x[i] + start + at + depth[None, :], inside & known[None, :], 0.0)
            weight = tl.load(
                weights[i] + depth[:, None] * width + channel,
                known[:, None] & (channel < width),
                0.0,
            )
            total = tl.dot(part, weight, total, input_precision=PRECISION)
    for i in tl.static_range(len(terms)):
        start, at = _place(left, outer, row, col, term_steps[i])
        total += tl.load(terms[i] + start + at + channel, filled, 0.0).to(tl.float32)
    start, at = _place(left, outer, row, col, y_steps)
    tl.store(y + start + at + channel, total.to(y.dtype.element_ty), filled)


@triton.jit
def outer_product(
    y,
    x,
    grad,
    x_steps,
    grad_steps,
    outer,
    rows,
    cols,
    depth,
    width,
    tiles,
    count,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y[p] = the sum, over the rows of `count` tiles, of products of x and grad."""
    program = tl.program_id(0)
    down, across = tl.arange(0, DEPTH), tl.arange(0, WIDTH)
    total = tl.zeros((DEPTH, WIDTH), tl.float32)
    for number in range(program * count, min(program * count + count, tiles)):
        row, col, inside, left = _tile(number, rows, cols, ROWS, COLS, WIDE)
        start, at = _place(left, outer, row, col, x_steps)
        part = tl.load(x + start + at + down[None, :], inside & (down < depth)[None, :], 0.0)
        start, at = _place(left, outer, row, col, grad_steps)
        other = tl.load(
            grad + start + at + across[None, :], inside & (across < width)[None, :], 0.0
        )
        total = tl.dot(tl.trans(part), other, total, input_precision=PRECISION)
    at = program.to(tl.int64) * depth * width + down[:, None] * width + across[None, :]
    tl.store(y + at, total, (down < depth)[:, None] & (across < width)[None, :])


@triton.jit
def two_sums(
    first,
    second,
    x,
    steps,
    outer,
    rows,
    cols,
    width,
    count,
    over_rows,
    over_cols,
    down,
    across,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of x (outer, rows, cols, width): first (outer, down, cols, width) = sums over `count` rows
    each, second (outer, across, rows, width) = sums over COLS columns each; times two factors."""
    pieces = tl.cdiv(width, WIDTH)
    left = tl.program_id(0)
    channel = left % pieces * WIDTH + tl.arange(0, WIDTH)
    left = left // pieces
    block, left = left % across, left // across
    part, left = left % down, left // down
    x += _start(left, outer, steps)
    left = left.to(tl.int64)
    col = block * COLS + tl.arange(0, COLS)
    known, there = channel < width, col < cols
    if WIDE:
        col = col.to(tl.int64)
    total = tl.zeros((COLS, WIDTH), tl.float32)
    second += (left * across + block) * rows * width
    for start in range(part * count, min(part * count + count, rows), ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < rows
        if WIDE:
            row = row.to(tl.int64)
        tile = tl.load(
            x
            + row[:, None, None] * steps[len(outer)]
            + col[None, :, None] * steps[len(outer) + 1]
            + channel[None, None, :],
            inside[:, None, None] & there[None, :, None] & known[None, None, :],
            0.0,
        ).to(tl.float32)
        total += tl.sum(tile, 0)
        tl.store(
            second + row[:, None] * width + channel[None, :],
            tl.sum(tile, 1) * over_cols,
            inside[:, None] & known[None, :],
        )
    first += (left * down + part) * cols * width
    tl.store(
        first + col[:, None] * width + channel[None, :],
        total * over_rows,
        there[:, None] & known[None, :],
    )
