"""Operators for GPUs: sums of products and terms, and pairs of means, in one pass over memory.

In: tensors of float32, bfloat16 or float16, of many rows of few channels. Out: what
`symcompile_torch.operators` defines, computed by Triton, accumulated in float32.

The one thing to know: importing this file makes them, and generated modules look for them when they
are imported themselves. Nothing imports it by itself: no GPU has run them yet. They are tested by
Triton's interpreter, and compiled for GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import __version__ as installed
from triton import cdiv

from symcompile_torch import tiles
from symcompile_torch.operators import (
    OPERATORS,
    check_back,
    check_back_from,
    check_outer,
    check_sum,
    held,
    linear_sum_shape,
    mean_over,
    orders_of,
    spread_shape,
    sums_shape,
)
from symcompile_torch.registry import implement
from symcompile_torch.strides import axes_before, channels_last, first_in_line

__all__ = ["COMPUTES"]

if tuple(int(part) for part in installed.split(".")[:2]) < (3, 4):
    raise ImportError(f"found Triton {installed}, expected 3.4 or later; PyTorch 2.8 brings it")

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_LEAST = 16
"""Rows, columns and depth of the smallest product of tensor cores."""

_ENTRIES = 2**13
"""Entries of a tile of what is summed."""

_WIDEST = 128
"""Channels in and out beyond which libraries multiply: a product is bound by arithmetic then."""


def _check_dtype(*tensors: Tensor) -> None:
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= {*_DTYPES}:
        raise ValueError(
            f"found {sorted(map(str, dtypes))}, expected one of float32, bfloat16 and float16"
        )


def _power(size: int) -> int:
    """The least power of two that is no less."""
    return 1 << (size - 1).bit_length()


def _padded(width: int) -> int:
    return max(_power(width), _LEAST)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # Triton's interpreter
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _precision(x: Tensor) -> str:
    """How float32 is multiplied: on tensor cores, in three products of TF32 unless one will do."""
    if torch.version.hip is not None or (
        x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0)
    ):
        return "ieee"
    told = torch.backends.cuda.matmul
    # PyTorch before 2.9 knows one name only, later versions refuse it where the other was used.
    tf32 = told.fp32_precision == "tf32" if hasattr(told, "fp32_precision") else told.allow_tf32
    return "tf32" if tf32 else "tf32x3"


class _Plan(NamedTuple):
    """How a kernel goes about tensors that lie so: worked out once, as that takes as long as
    launching it.

    Attributes:
        programs: how many of them run.
        sizes: arguments after the tensors.
        known: arguments by name, those in capitals known when programs are compiled.
    """

    programs: int
    sizes: tuple[Any, ...]
    known: Mapping[str, Any]


def _launch(kernel: Any, plan: _Plan, *tensors: Any, **known: Any) -> None:
    """Run a kernel on the device of its first tensor."""
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
        # Triton 3.9 warns where it is not told whether to fuse multiplications and additions.
        kernel[(plan.programs,)](
            *tensors, *plan.sizes, **plan.known, **known, enable_fp_fusion=True
        )


# -- how tensors lie ------------------------------------------------------------------------


def _in_rows(x: Tensor, order: Sequence[int]) -> Tensor:
    """With the axes of rows in order, and one axis of channels, side by side."""
    rows = len(order)
    if list(order) != list(range(rows)):
        x = x.permute(*order, *range(rows, x.dim()))
    if x.dim() > rows + 1:
        x = x.reshape(*x.shape[:rows], prod(x.shape[rows:]))
    return channels_last(x)


def _merged(
    sizes: Sequence[int], steps: Sequence[Sequence[int]]
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Axes without those of size one, neighbours merged where every tensor goes on in equal steps;
    at least two axes.

    >>> _merged((5, 2, 1, 3), [(6, 3, 3, 1), (3, 0, 0, 1)])
    ([5, 2, 3], [(6, 3, 1), (3, 0, 1)])
    >>> _merged((5, 2, 3), [(6, 3, 1)])
    ([1, 30], [(0, 1)])
    """
    kept: list[int] = []
    along: list[list[int]] = []
    for axis, size in enumerate(sizes):
        if size == 1:
            continue
        here = [step[axis] for step in steps]
        if along and [step * size for step in here] == along[-1]:
            kept[-1] *= size
            along[-1] = here
        else:
            kept.append(size)
            along.append(here)
    missing = max(2 - len(kept), 0)
    kept = [1] * missing + kept
    along = [[0] * len(steps)] * missing + along
    return kept, [*zip(*along, strict=True)]


def _is_wide(sizes: Sequence[int], steps: Sequence[Sequence[int]], width: int) -> bool:
    """Whether places within rows and columns need more than 32 bits."""
    return any(
        sum((size - 1) * abs(step) for size, step in zip(sizes[-2:], one[-2:], strict=True)) + width
        >= 2**31
        for one in steps
    )


def _shape_of_tile(rows: int, cols: int, entries: int) -> tuple[int, int]:
    """Rows and columns of a tile of so many: of both if it can be, as terms repeat along either."""
    high = min(8, _power(rows))
    wide = max(min(entries // high, _power(cols)), 1)
    return min(max(entries // wide, 1), max(_power(rows), _LEAST // wide)), wide


def _rows_of(bytes: int, row: int, least: int, most: int) -> int:
    """Rows of a tile, a power of two, which take so many bytes, within limits."""
    return min(max(_power(bytes // row + 1) // 2, least), most)


# -- sums of products -----------------------------------------------------------------------


def _linear_sum(
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    sources: Sequence[int],
    orders: Sequence[int],
    terms: Sequence[Tensor],
) -> Tensor:
    axes = len(orders) // len(sources)
    views = [
        _in_rows(x[source], order)
        for source, order in zip(sources, orders_of(axes, orders), strict=True)
    ]
    y = linear_sum_shape(x, weights, sources, orders, terms)
    _check_dtype(*views, *weights)
    _fill(y, views, weights, terms)
    return y


def _fill(
    y: Tensor, x: Sequence[Tensor], weights: Sequence[Tensor], terms: Sequence[Tensor]
) -> None:
    """Write the sum of `x[i] @ weights[i]` and of terms into y."""
    check_sum(y.shape, [part.shape for part in x], [part.shape for part in weights], len(terms))
    axes, width = y.dim() - 1, y.shape[-1]
    spread = [channels_last(term.expand(y.shape)) for term in terms]
    if y.numel() == 0:
        return
    depths = tuple(view.shape[-1] for view in x)
    if max(width, *depths, 0) > _WIDEST:
        parts = [view @ weight for view, weight in zip(x[1:], weights[1:], strict=True)] + spread
        torch.matmul(x[0], weights[0], out=y) if x else y.zero_()
        for part in parts:
            y += part
        return
    lies = tuple(tensor.stride()[:axes] for tensor in (y, *x, *spread))
    _launch(
        tiles.linear_sum,
        _plan_of_sum(y.shape, lies, depths, y.element_size()),
        y,
        (*x,),
        tuple(weight.contiguous() for weight in weights),
        (*spread,),
        PRECISION=_precision(y),
    )


@lru_cache(4096)
def _plan_of_sum(
    shape: tuple[int, ...], lies: tuple[tuple[int, ...], ...], depths: tuple[int, ...], each: int
) -> _Plan:
    """Of `linear_sum`.

    Args:
        shape: of what is made.
        lies: steps along its rows, of the result, of what is multiplied, and of terms.
        depths: channels of what is multiplied.
        each: bytes of an entry.
    """
    sizes, (y_steps, *steps) = _merged(shape[:-1], lies)
    *outer, rows, cols = sizes
    width, deepest = _padded(shape[-1]), _padded(max(depths, default=_LEAST))
    chunk = min(deepest, 128 // each)
    high, wide = _shape_of_tile(rows, cols, _rows_of(2**13, max(width, chunk) * each, 64, 128))
    return _Plan(
        prod(outer) * cdiv(rows, high) * cdiv(cols, wide),
        (
            y_steps,
            (*steps[: len(depths)],),
            (*steps[len(depths) :],),
            (*outer,),
            rows,
            cols,
            shape[-1],
            depths,
        ),
        {
            "DEPTH": deepest,
            "WIDTH": width,
            "CHUNK": chunk,
            "ROWS": high,
            "COLS": wide,
            "WIDE": _is_wide(sizes, [y_steps, *steps], max(shape[-1], *depths, 0)),
            "num_warps": 4 if width < 128 else 8,
        },
    )


def _spread(first: Tensor, second: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor:
    y = spread_shape(first, second, axis, dtype)
    _fill(y, [], [], [first.unsqueeze(axis), second.unsqueeze(axis + 1)])
    return y


# -- sums over two axes ---------------------------------------------------------------------


def _sums(x: Tensor, axis: int, mean: bool) -> tuple[Tensor, Tensor]:
    _check_dtype(x)
    first, second = sums_shape(x, axis, mean)
    if x.numel() == 0:
        how = torch.mean if mean else torch.sum
        return how(x, axis, dtype=first.dtype), how(x, axis + 1, dtype=first.dtype)
    last = max(first_in_line(x), axis + 2)
    if axis + 2 < last < x.dim():
        return axes_before(_sums, x, axis, last, mean)
    before, (rows, cols) = x.shape[:axis].numel(), x.shape[axis : axis + 2]
    width = x.shape[axis + 2 :].numel()
    x = x if last == axis + 2 or width == 1 else x.contiguous()
    lies = x.stride()[: axis + 2]
    plan = _plan_of_sums(x.shape[: axis + 2], width, lies, mean, _multiprocessors(x.device))
    across, down = plan.known["across"], plan.known["down"]
    over_rows = x.new_empty((before, down, cols, width), dtype=first.dtype)
    over_cols = x.new_empty((before, across, rows, width), dtype=first.dtype)
    _launch(tiles.two_sums, plan, over_rows, over_cols, x)
    found = [part.sum(1) if part.shape[1] > 1 else part for part in (over_rows, over_cols)]
    return found[0].view(first.shape), found[1].view(second.shape)


@lru_cache(4096)
def _plan_of_sums(
    shape: tuple[int, ...], width: int, steps: tuple[int, ...], mean: bool, processors: int
) -> _Plan:
    """Of `two_sums`.

    Args:
        shape, steps: the axes before both, and both, and the steps along them.
        width: entries of all that follows.
    """
    *outer, rows, cols = shape
    before = prod(outer)
    piece = min(_power(width), 64)
    wide = min(_power(cols), max(_ENTRIES // 4 // piece, 1))
    high = min(_power(rows), max(_ENTRIES // (wide * piece), 1))
    across, pieces = cdiv(cols, wide), cdiv(width, piece)
    # Parts of rows: so many programs that all multiprocessors have some.
    parts = cdiv(4 * processors, before * across * pieces)
    count = cdiv(cdiv(rows, min(parts, cdiv(rows, high))), high) * high
    down = cdiv(rows, count)
    scales = (1 / rows, 1 / cols) if mean else (1.0, 1.0)
    return _Plan(
        before * down * across * pieces,
        (steps, tuple(outer), rows, cols, width, count, *scales),
        {
            "down": down,
            "across": across,
            "ROWS": high,
            "COLS": wide,
            "WIDTH": piece,
            "WIDE": _is_wide((rows, cols), [steps], width),
            "num_warps": 8,
        },
    )


def _sums_held(
    x: Tensor, weight: Tensor, axis: int, mean: bool, channels: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    return *_sums(x, axis, mean), held(x, weight, channels)


# -- outer products -------------------------------------------------------------------------


def _outer(x: Tensor, order: Sequence[int], grad: Tensor) -> Tensor:
    _check_dtype(x, grad)
    axes = len(order)
    x, grad = _in_rows(x, order), _in_rows(grad, range(axes))
    check_outer(x, grad)
    depth, width = x.shape[-1], grad.shape[-1]
    if x.numel() == 0 or grad.numel() == 0:
        return x.new_zeros((depth, width))
    if max(depth, width) > _WIDEST:
        return x.reshape(-1, depth).t() @ grad.reshape(-1, width)
    lies = x.stride()[:axes], grad.stride()[:axes]
    processors = _multiprocessors(x.device)
    plan = _plan_of_outer(x.shape[:axes], lies, (depth, width), x.element_size(), processors)
    parts = x.new_empty((plan.programs, depth, width), dtype=torch.float32)
    _launch(tiles.outer_product, plan, parts, x, grad, PRECISION=_precision(x))
    return parts.sum(0).to(x.dtype)


@lru_cache(4096)
def _plan_of_outer(
    shape: tuple[int, ...],
    lies: tuple[tuple[int, ...], ...],
    widths: tuple[int, int],
    each: int,
    processors: int,
) -> _Plan:
    """Of `outer_product`.

    Args:
        shape, lies: axes of rows, and steps along them.
        widths: channels of both sides.
        each: bytes of an entry.
    """
    sizes, steps = _merged(shape, lies)
    *outer, rows, cols = sizes
    depth, width = map(_padded, widths)
    high, wide = _shape_of_tile(rows, cols, _rows_of(2**14, (depth + width) * each, _LEAST, 64))
    count = prod(outer) * cdiv(rows, high) * cdiv(cols, wide)
    # So many tiles that partial results are few beside what is read.
    least = cdiv(4 * prod(widths), sum(widths) * high * wide)
    some = max(cdiv(count, 4 * processors), least)
    return _Plan(
        cdiv(count, some),
        (*steps, (*outer,), rows, cols, *widths, count, some),
        {
            "DEPTH": depth,
            "WIDTH": width,
            "ROWS": high,
            "COLS": wide,
            "WIDE": _is_wide(sizes, steps, max(widths)),
            "num_warps": 4 if max(widths) <= 64 else 8,
        },
    )


# -- all gradients at once ------------------------------------------------------------------


def _back(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, ...]:
    check_back(grad, x, weight, axis)
    order = list(range(grad.dim() - 1))
    to_x = _linear_sum([grad], [weight.t()], [0], order, [])
    return to_x, _outer(x, order, grad), *_sums(grad, axis, False)


def _back_from(
    grad: Tensor, x: Tensor, weight: Tensor, axis: int, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    check_back(grad, x, weight, axis)
    check_back_from(x, axis, first, second)
    order = list(range(grad.dim() - 1))
    terms = [first.unsqueeze(axis), second.unsqueeze(axis + 1)]
    return _linear_sum([grad], [weight.t()], [0], order, terms), _outer(x, order, grad)


COMPUTES: Mapping[str, Callable[..., Any]] = {
    "linear_sum": _linear_sum,
    "sums": _sums,
    "spread": _spread,
    "outer": _outer,
    "sums_held": _sums_held,
    "mean": mean_over,
    "back": _back,
    "back_from": _back_from,
}

implement("CUDA", OPERATORS, COMPUTES)
