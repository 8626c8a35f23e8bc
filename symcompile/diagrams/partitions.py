"""Set partitions: enumeration and counts.

In: a number of elements. Out: partitions as tuples of blocks, each block and the list of blocks in
increasing order (so equal partitions are equal tuples).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

__all__ = ["Blocks", "bell", "set_partitions", "stirling2"]

Blocks = tuple[tuple[int, ...], ...]


def set_partitions(elements: Sequence[int]) -> Iterator[Blocks]:
    """Every set partition of `elements`, in restricted-growth order: coarsest first.

    >>> [len(p) for p in set_partitions((0, 1, 2))]
    [1, 2, 2, 2, 3]
    """

    def grow(index: int, blocks: list[tuple[int, ...]]) -> Iterator[Blocks]:
        if index == len(elements):
            yield tuple(blocks)
            return
        element = elements[index]
        for place, block in enumerate(blocks):
            blocks[place] = (*block, element)
            yield from grow(index + 1, blocks)
            blocks[place] = block
        blocks.append((element,))
        yield from grow(index + 1, blocks)
        blocks.pop()

    return grow(0, [])


@cache
def stirling2(n: int, k: int) -> int:
    """The number of partitions of n elements into exactly k blocks.

    >>> [stirling2(4, k) for k in range(5)]
    [0, 1, 7, 6, 1]
    """
    if n == k:
        return 1
    if k <= 0 or k > n:
        return 0
    return k * stirling2(n - 1, k) + stirling2(n - 1, k - 1)


def bell(n: int) -> int:
    """The number of set partitions of n elements.

    >>> [bell(n) for n in (2, 4, 6, 8)]
    [2, 15, 203, 4140]
    """
    return sum(stirling2(n, k) for k in range(n + 1))
