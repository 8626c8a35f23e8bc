"""Exact counts of half-diagrams and diagrams, without enumerating either.

In: labels per tensor and, where known, label sizes. Out: a `Census` (how many half-diagrams of
each signature and each number of closed blocks) and the size of the whole basis.

The one thing to know: a label's axes can be counted on their own. k axes fall into m propagating
and c closed blocks in stirling2(k, m + c) * binomial(m + c, m) ways, and labels multiply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import comb, factorial, prod

from symcompile.diagrams.partitions import stirling2
from symcompile.diagrams.signatures import Signature, shared_signatures, signatures_within
from symcompile.errors import BasisTooLargeError
from symcompile.spec.types import Label, label_order

__all__ = ["Census", "basis_size", "census", "tight_sizes"]

Closed = tuple[tuple[Label, int], ...]
"""Labels with their positive numbers of closed blocks, in canonical order."""

Census = dict[Signature, Counter[Closed]]
"""For each signature: number of half-diagrams by closed blocks."""


def census(
    tensors: Iterable[Sequence[Label]],
    sizes: Mapping[Label, int] | None = None,
    *,
    watch: Collection[Label] | None = None,
    signatures: frozenset[Signature] | None = None,
) -> Census:
    """Count the half-diagrams of all `tensors` by signature and closed blocks.

    Args:
        sizes: known label sizes; half-diagrams with more blocks of a label than that are left out.
        watch: labels whose closed blocks are told apart; default all.
        signatures: the only signatures counted; default all.

    >>> {len(m): sum(c.values()) for m, c in census([("a", "a", "a")]).items()}
    {0: 5, 1: 10, 2: 6, 3: 1}
    """
    tensors = list(tensors)
    sizes = sizes or {}
    wanted = shared_signatures(tensors, tensors) if signatures is None else signatures
    total: Census = {}
    kinds = Counter(tuple(sorted(labels, key=label_order)) for labels in tensors)
    for labels, times in kinds.items():
        for signature in signatures_within(labels, wanted):
            found = _closed_counts(Counter(labels), Counter(signature), sizes, watch)
            if found:
                here = total.setdefault(signature, Counter())
                for closed, count in found.items():
                    here[closed] += times * count
    return total


def basis_size(
    out_tensors: Iterable[Sequence[Label]],
    in_tensors: Iterable[Sequence[Label]],
    sizes: Mapping[Label, int] | None = None,
) -> int:
    """The number of diagrams from all of `in_tensors` to all of `out_tensors`.

    With `sizes`, only diagrams with at most n blocks of each label of known size n count: exactly
    a basis, for every size (for one label, 2 to 2: 1, 8, 14 at n = 1, 2, 3 and 15 from 4 on).

    >>> basis_size([(0, 0)], [(0, 0)]), basis_size([(0, 0)], [(0, 0)], {0: 3})
    (15, 14)
    """
    out_tensors, in_tensors = list(out_tensors), list(in_tensors)
    tight = tight_sizes(out_tensors, in_tensors, sizes or {})
    try:
        shared = shared_signatures(out_tensors, in_tensors)
    except BasisTooLargeError:
        return _count_pairs(out_tensors, in_tensors, sizes or {})
    outs = census(out_tensors, sizes, watch=tight, signatures=shared)
    ins = census(in_tensors, sizes, watch=tight, signatures=shared)
    total = 0
    for signature in outs.keys() & ins.keys():
        through = Counter(signature)
        joins = prod(factorial(count) for count in through.values())
        for closed_out, count_out in outs[signature].items():
            for closed_in, count_in in ins[signature].items():
                blocks = through + Counter(dict(closed_out)) + Counter(dict(closed_in))
                if all(blocks[label] <= size for label, size in tight.items()):
                    total += joins * count_out * count_in
    return total


def tight_sizes(
    out_tensors: Iterable[Sequence[Label]],
    in_tensors: Iterable[Sequence[Label]],
    sizes: Mapping[Label, int],
) -> dict[Label, int]:
    """The known sizes small enough that some diagram has more blocks than they allow.

    >>> tight_sizes([("a", "a", "b")], [("a", "b")], {"a": 2, "b": 2})
    {'a': 2}
    """
    most: Counter[Label] = Counter()
    for side in (out_tensors, in_tensors):
        highest: Counter[Label] = Counter()
        for labels in side:
            highest |= Counter(labels)
        most += highest
    return {label: size for label, size in sizes.items() if size < most[label]}


def _count_pairs(
    out_tensors: Sequence[Sequence[Label]],
    in_tensors: Sequence[Sequence[Label]],
    sizes: Mapping[Label, int],
) -> int:
    """The same count pair by pair: quadratic in tensors, but blind to the number of signatures."""
    return sum(
        prod(
            sum(stirling2(axes, blocks) for blocks in range(1, min(axes, sizes.get(x, axes)) + 1))
            for x, axes in (Counter(outs) + Counter(ins)).items()
        )
        for outs in out_tensors
        for ins in in_tensors
    )


def _closed_counts(
    axes: Counter[Label],
    through: Counter[Label],
    sizes: Mapping[Label, int],
    watch: Collection[Label] | None,
) -> Counter[Closed]:
    """Half-diagrams of one tensor and one signature, by closed blocks of the watched labels."""
    found: Counter[Closed] = Counter({(): 1})
    for label in sorted(axes, key=label_order):
        k, m = axes[label], through[label]
        ways = {
            c: stirling2(k, m + c) * comb(m + c, m)
            for c in range(k - m + 1)
            if 0 < m + c <= sizes.get(label, k)
        }
        if watch is not None and label not in watch:
            ways = {0: sum(ways.values())}
        grown: Counter[Closed] = Counter()
        for closed, count in found.items():
            for c, number in ways.items():
                grown[(*closed, (label, c)) if c else closed] += count * number
        found = +grown
    return found
