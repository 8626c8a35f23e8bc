"""Half-diagrams of one tensor.

In: the labels of a tensor's permuted axes. Out: its half-diagrams, a partition of the axes with
some blocks marked propagating (Halverson & Ram 2005), grouped by signature.

The one thing to know: propagating blocks are kept in *canonical order* (by label, then by first
axis). The index axes of an in-feature, and of the slice of a mix that an out half-diagram
receives, follow that order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from symcompile.diagrams.partitions import Blocks, set_partitions
from symcompile.diagrams.signatures import Signature
from symcompile.spec.types import Label, label_order

__all__ = ["HalfDiagram", "canonical_half", "half_diagrams"]


@dataclass(frozen=True, slots=True)
class HalfDiagram:
    """A partition of a tensor's axes into propagating and closed blocks.

    Attributes:
        propagating: blocks whose index survives, in canonical order.
        closed: blocks that are averaged over (in) or broadcast over (out), by first axis.

    >>> half = HalfDiagram(propagating=((0, 2),), closed=((1,),))
    >>> half.signature(("a", "b", "a"))
    ('a',)
    """

    propagating: Blocks
    closed: Blocks

    @property
    def order(self) -> int:
        """The number of axes of the tensor."""
        return sum(map(len, self.propagating + self.closed))

    @property
    def is_identity(self) -> bool:
        """True when every axis propagates on its own."""
        return not self.closed and all(len(block) == 1 for block in self.propagating)

    def signature(self, labels: Sequence[Label]) -> Signature:
        """The labels of the propagating blocks, in canonical order."""
        return tuple(labels[block[0]] for block in self.propagating)

    def closed_counts(self, labels: Sequence[Label]) -> Counter[Label]:
        """How many closed blocks each label has."""
        return Counter(labels[block[0]] for block in self.closed)

    def fits(self, labels: Sequence[Label], sizes: Mapping[Label, int]) -> bool:
        """False when some label of known size has more blocks than that size."""
        counts = Counter(labels[block[0]] for block in self.propagating + self.closed)
        return all(count <= sizes.get(label, count) for label, count in counts.items())

    def __str__(self) -> str:
        parts = ["".join(map(str, block)) for block in self.propagating]
        parts += [f"({''.join(map(str, block))})" for block in self.closed]
        return "|".join(parts) or "-"


def canonical_half(
    propagating: Sequence[tuple[int, ...]],
    closed: Sequence[tuple[int, ...]],
    labels: Sequence[Label],
) -> HalfDiagram:
    """The half-diagram with its blocks put in canonical order."""
    return HalfDiagram(
        tuple(sorted(propagating, key=lambda block: (label_order(labels[block[0]]), block[0]))),
        tuple(sorted(closed)),
    )


def half_diagrams(
    labels: Sequence[Label],
    sizes: Mapping[Label, int] | None = None,
    signatures: Collection[Signature] | None = None,
) -> Iterator[HalfDiagram]:
    """Every half-diagram of a tensor, the identity first, then by falling number of blocks.

    Args:
        labels: one label per axis.
        sizes: known label sizes; half-diagrams with more blocks of a label than its size are left
            out, since no diagram that contains them is part of the basis.
        signatures: the only signatures wanted; others are never enumerated.

    >>> [str(half) for half in half_diagrams(("a", "b"))]
    ['0|1', '1|(0)', '0|(1)', '(0)|(1)']
    >>> sum(1 for _ in half_diagrams((0, 0, 0)))
    22
    """
    by_label: dict[Label, list[int]] = {}
    for axis, label in enumerate(labels):
        by_label.setdefault(label, []).append(axis)
    counts: Iterable[tuple[int, ...]]
    if signatures is None:
        counts = product(*(range(len(axes) + 1) for axes in by_label.values()))
    else:
        counts = [tuple(signature.count(label) for label in by_label) for signature in signatures]
    largest = [(sizes or {}).get(label, len(axes)) for label, axes in by_label.items()]
    found = []
    for wanted in counts:
        marked = [
            list(_marked(axes, count, most))
            for axes, count, most in zip(by_label.values(), wanted, largest, strict=True)
        ]
        for choice in product(*marked):
            propagating = [block for part, _ in choice for block in part]
            closed = [block for _, part in choice for block in part]
            found.append(canonical_half(propagating, closed, labels))
    found.sort(key=lambda h: (-len(h.propagating), -len(h.closed), h.closed, h.propagating))
    return iter(found)


def _marked(axes: Sequence[int], count: int, most: int) -> Iterator[tuple[Blocks, Blocks]]:
    """Partitions of one label's axes into at most `most` blocks, `count` of them propagating."""
    for blocks in set_partitions(axes):
        if count <= len(blocks) <= most:
            for chosen in combinations(range(len(blocks)), count):
                yield (
                    tuple(blocks[k] for k in chosen),
                    tuple(block for k, block in enumerate(blocks) if k not in chosen),
                )
