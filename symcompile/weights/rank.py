"""Mixes of low rank: a matrix as the product of two, so that weights grow linearly.

In: what a user passed as `rank=`. Out: for a mix, how many channels its two factors meet in, or
None where the matrix itself is no larger.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from symcompile.diagrams import Signature
from symcompile.errors import OptionError
from symcompile.spec import format_label, label_order
from symcompile.spec.types import INT_LIMIT, plain_int, short_repr

__all__ = ["Ranks", "inner_width", "parse_rank", "require_known"]

Ranks = int | Mapping[Signature, int] | None
"""One rank for all mixes, or one by signature (others are dense), or none."""

_SHOWN = 8


def parse_rank(rank: Any) -> Ranks:
    """Check a rank and put the labels of signatures in canonical order.

    Raises:
        OptionError: a rank is no positive int, or a key no tuple of labels.

    >>> parse_rank({("b", "a"): 2})
    {('a', 'b'): 2}
    """
    if rank is None:
        return None
    if not isinstance(rank, Mapping):
        return _positive(rank, "rank")
    found: dict[Signature, int] = {}
    for key, value in rank.items():
        if not isinstance(key, tuple) or not all(_is_label(label) for label in key):
            raise OptionError(
                "rank: a signature is a tuple of labels (ints or strings), such as (0, 1), "
                f"('embed',) or (); found {short_repr(key)}"
            )
        where = f"rank[{_format(key)}]"
        signature = tuple(sorted(key, key=label_order))
        if signature in found:
            raise OptionError(
                f"{where} is given twice: the order of labels means nothing; leave one out"
            )
        found[signature] = _positive(value, where)
    return found


def require_known(ranks: Ranks, signatures: Collection[Signature]) -> None:
    """Refuse a rank for a signature that no mix has.

    Raises:
        OptionError: naming the signature and those there are.
    """
    if not isinstance(ranks, Mapping):
        return
    for signature in ranks:
        if signature not in signatures:
            known = ", ".join(map(_format, list(signatures)[:_SHOWN]))
            more = f" and {len(signatures) - _SHOWN} more" if len(signatures) > _SHOWN else ""
            raise OptionError(
                f"rank[{_format(signature)}]: no mix has this signature; there are {known}{more}"
            )


def inner_width(
    ranks: Ranks, signature: Signature, channels: int, shape: tuple[int, int]
) -> int | None:
    """Channels between the factors of a mix of `shape`, rank times `channels`.

    >>> inner_width(2, (), 16, (640, 480)), inner_width(2, (), 16, (48, 48))
    (32, None)
    """
    rank = ranks.get(signature) if isinstance(ranks, Mapping) else ranks
    rows, cols = shape
    if rank is None or rank * channels * (rows + cols) >= rows * cols:
        return None
    return rank * channels


def _positive(value: Any, where: str) -> int:
    number = plain_int(value)
    if number is None or not 0 < number < INT_LIMIT:
        raise OptionError(
            f"{where}: found {short_repr(value)}, expected a positive int (or, for rank, a dict "
            "from signatures to positive ints); leave it out for dense mixes"
        )
    return number


def _is_label(label: Any) -> bool:
    return isinstance(label, int | str) and not isinstance(label, bool)


def _format(signature: Signature) -> str:
    inner = ", ".join(map(format_label, signature))
    return f"({inner},)" if len(signature) == 1 else f"({inner})"
