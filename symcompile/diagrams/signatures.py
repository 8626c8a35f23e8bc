"""Signatures that two sides have in common.

In: label tuples of the tensors on either side. Out: the multisets of labels that are part of some
tensor on each. Only half-diagrams of these signatures ever meet in a diagram, so only these are
ever counted or built.

The one thing to know: a tensor with many labels has exponentially many signatures, so they are
enumerated on the side where there are fewer, and after labels that the other side lacks are gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from math import prod

from symcompile.errors import BasisTooLargeError
from symcompile.spec.types import Label, label_order

__all__ = ["SIGNATURE_LIMIT", "Signature", "shared_signatures", "signatures_within"]

Signature = tuple[Label, ...]
"""Labels in canonical order, repeated as often as they occur."""

SIGNATURE_LIMIT = 1_000_000
"""Most signatures that are enumerated on either side."""

_Counts = Counter[Label]


def shared_signatures(
    outs: Iterable[Sequence[Label]], ins: Iterable[Sequence[Label]]
) -> frozenset[Signature]:
    """Every signature that some tensor on each side has.

    Raises:
        BasisTooLargeError: there are more than `SIGNATURE_LIMIT` to look at.

    >>> sorted(shared_signatures([("a", "b")], [("b", "a"), ("a", "a")]))
    [(), ('a',), ('a', 'b'), ('b',)]
    """
    left, right = _kinds(outs), _kinds(ins)
    left, right = _restricted(left, right), _restricted(right, left)
    few, many = sorted((left, right), key=_total)
    if _total(few) > SIGNATURE_LIMIT:
        raise BasisTooLargeError(
            f"the tensors have {_total(few):,} signatures (multisets of labels), more than "
            f"{SIGNATURE_LIMIT:,}; nothing was built. Give tensors fewer axes, or fix some"
        )
    found = {signature for kind in few for signature in _parts(kind)}
    if _total(many) <= SIGNATURE_LIMIT:
        return frozenset(found & {signature for kind in many for signature in _parts(kind)})
    return frozenset(s for s in found if any(not Counter(s) - kind for kind in many))


def signatures_within(labels: Sequence[Label], shared: frozenset[Signature]) -> list[Signature]:
    """Those of `shared` that a tensor with these labels has."""
    have = Counter(labels)
    if _size(have) <= 4 * len(shared):
        return [signature for signature in _parts(have) if signature in shared]
    return [signature for signature in shared if not Counter(signature) - have]


def _kinds(tensors: Iterable[Sequence[Label]]) -> list[_Counts]:
    return [Counter(labels) for labels in {tuple(sorted(t, key=label_order)) for t in tensors}]


def _restricted(kinds: list[_Counts], others: list[_Counts]) -> list[_Counts]:
    """Without what no tensor on the other side could propagate."""
    most: _Counts = Counter()
    for kind in others:
        most |= kind
    parts = {tuple(sorted((kind & most).items(), key=_key)) for kind in kinds}
    return [Counter(dict(part)) for part in parts]


def _key(item: tuple[Label, int]) -> tuple[int, int, str]:
    return label_order(item[0])


def _size(kind: _Counts) -> int:
    return prod(count + 1 for count in kind.values())


def _total(kinds: list[_Counts]) -> int:
    return sum(map(_size, kinds))


def _parts(kind: _Counts) -> Iterable[Signature]:
    labels = sorted(kind, key=label_order)
    for counts in product(*(range(kind[label] + 1) for label in labels)):
        yield tuple(
            label for label, count in zip(labels, counts, strict=True) for _ in range(count)
        )
