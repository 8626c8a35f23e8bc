"""Matrices put together from weights, zero elsewhere.

In: blocks of weights and where each lies. Out: a `Filled`, a matrix that mixes read as if it were a
weight. The weights stay what they are; no entry that stands for nothing is stored or trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Block", "Filled", "faults_of"]

Span = tuple[int, int]
"""Half-open."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a weight, and where it lies in a matrix.

    Attributes:
        weight: its name.
        rows, cols: the part.
        row, col: the place of its first entry.
    """

    weight: str
    rows: Span
    cols: Span
    row: int
    col: int

    @property
    def down(self) -> Span:
        """The rows of the matrix that it covers."""
        return self.row, self.row + self.rows[1] - self.rows[0]

    @property
    def across(self) -> Span:
        """The columns of the matrix that it covers."""
        return self.col, self.col + self.cols[1] - self.cols[0]


@dataclass(frozen=True, slots=True)
class Filled:
    """A matrix of blocks, zero where there is none."""

    name: str
    shape: tuple[int, int]
    blocks: tuple[Block, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights it is made of, each once."""
        return tuple(dict.fromkeys(block.weight for block in self.blocks))

    @property
    def entries(self) -> int:
        """How many entries are those of a weight."""
        return sum(
            (block.rows[1] - block.rows[0]) * (block.cols[1] - block.cols[0])
            for block in self.blocks
        )


def faults_of(filled: Filled, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with a filled matrix: blocks of no weight, outside of it, or one on another.

    Args:
        shapes: of the weights.
    """
    for place, block in enumerate(filled.blocks):
        shape = shapes.get(block.weight, ())
        if len(shape) != 2:
            yield f"{block.weight!r} is no matrix of weights"
        elif not (_within(block.rows, shape[0]) and _within(block.cols, shape[1])):
            yield f"block {place} reads outside of {block.weight!r}"
        elif not (_within(block.down, filled.shape[0]) and _within(block.across, filled.shape[1])):
            yield f"block {place} lies outside of {filled.shape}"
    ordered = sorted(filled.blocks, key=lambda block: block.down)
    for place, block in enumerate(ordered):
        for other in ordered[place + 1 :]:
            if other.row >= block.down[1]:
                break
            if _meet(block.across, other.across):
                yield f"blocks of {block.weight!r} and {other.weight!r} overlap"


def _within(span: Span, length: int) -> bool:
    return 0 <= span[0] < span[1] <= length


def _meet(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]
