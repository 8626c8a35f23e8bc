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
from symcompile.spec.types import Label, label_order

__all__ = ["Census", "basis_size", "census", "tight_sizes"]

Profile = tuple[tuple[Label, int], ...]
"""Labels with their positive counts, in canonical order."""

Census = dict[Profile, Counter[Profile]]
"""For each signature (as propagating counts): number of half-diagrams by closed counts."""


def census(
    tensors: Iterable[Sequence[Label]],
    sizes: Mapping[Label, int] | None = None,
    watch: Collection[Label] | None = None,
) -> Census:
    """Count the half-diagrams of all `tensors` by signature and closed blocks.

    Args:
        sizes: known label sizes; half-diagrams with more blocks of a label than that are left out.
        watch: labels whose closed blocks are told apart; default all.

    >>> {dict(m).get("a", 0): sum(c.values()) for m, c in census([("a", "a", "a")]).items()}
    {0: 5, 1: 10, 2: 6, 3: 1}
    """
    sizes = sizes or {}
    total: Census = {}
    for shape, times in Counter(
        tuple(sorted(Counter(t).items(), key=_item_key)) for t in tensors
    ).items():
        profiles: list[tuple[Profile, Profile, int]] = [((), (), times)]
        for label, axes in shape:
            profiles = [
                (
                    propagating + (((label, m),) if m else ()),
                    closed + (((label, c),) if c and (watch is None or label in watch) else ()),
                    count * stirling2(axes, m + c) * comb(m + c, m),
                )
                for propagating, closed, count in profiles
                for m in range(axes + 1)
                for c in range(axes + 1 - m)
                if m + c and m + c <= sizes.get(label, axes)
            ]
        for propagating, closed, count in profiles:
            total.setdefault(propagating, Counter())[closed] += count
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
    outs = census(out_tensors, sizes, tight)
    ins = census(in_tensors, sizes, tight)
    total = 0
    for signature in outs.keys() & ins.keys():
        joins = prod(factorial(count) for _, count in signature)
        for closed_out, count_out in outs[signature].items():
            for closed_in, count_in in ins[signature].items():
                blocks = (
                    Counter(dict(signature)) + Counter(dict(closed_out)) + Counter(dict(closed_in))
                )
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


def _item_key(item: tuple[Label, int]) -> tuple[int, int, str]:
    return label_order(item[0])
