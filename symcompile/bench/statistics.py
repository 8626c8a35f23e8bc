"""Medians with their spread, and ratios pair by pair.

In: seconds of calls, one list for each turn. Out: `Summary`s.

The one thing to know: a turn counts as one observation, its median, since what disturbs a machine
disturbs the neighbouring calls alike; and a ratio is taken between turns that followed each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

from symcompile.errors import OptionError

__all__ = ["Summary", "geometric_mean", "ratio", "summary"]


@dataclass(frozen=True, slots=True)
class Summary:
    """A median over turns.

    Attributes:
        median: of the turns' values.
        low, high: the least and the greatest of them.
        paired: for a ratio, whether the turns it is made of alternated.
    """

    median: float
    low: float
    high: float
    paired: bool = True


def summary(turns: Sequence[Sequence[float]]) -> Summary:
    """The median over turns of each turn's median.

    Raises:
        OptionError: there is no turn, or an empty one.

    >>> summary([[3.0, 1.0, 2.0], [4.0], [9.0, 9.0]])
    Summary(median=4.0, low=2.0, high=9.0, paired=True)
    """
    return _over([_middle(turn) for turn in turns])


def ratio(
    slow: Sequence[Sequence[float]], fast: Sequence[Sequence[float]], *, paired: bool = True
) -> Summary:
    """How many times longer `slow` takes: turn by turn, then the median.

    Args:
        paired: turn i of both followed each other. If not, medians are divided, and the spread is
            from the most to the least favourable pair of turns.

    Raises:
        OptionError: there is no turn, or, if paired, not the same number of them.

    >>> ratio([[2.0], [4.0], [9.0]], [[1.0], [2.0], [3.0]])
    Summary(median=2.0, low=2.0, high=3.0, paired=True)
    """
    top, bottom = [_middle(turn) for turn in slow], [_middle(turn) for turn in fast]
    if paired:
        if len(top) != len(bottom):
            raise OptionError(
                f"ratio: {len(top)} turns against {len(bottom)}; pairs need as many of both"
            )
        return _over([a / b for a, b in zip(top, bottom, strict=True)])
    above, below = _over(top), _over(bottom)
    return Summary(
        above.median / below.median, above.low / below.high, above.high / below.low, paired=False
    )


def geometric_mean(values: Sequence[float]) -> float:
    """The mean that treats twice as fast and twice as slow alike.

    >>> round(geometric_mean([2.0, 8.0]), 9)
    4.0
    """
    if not values:
        raise OptionError("geometric_mean: found no values, expected at least one")
    return exp(sum(map(log, values)) / len(values))


def _middle(turn: Sequence[float]) -> float:
    if not turn:
        raise OptionError("a turn without calls; every turn times at least one")
    return median(turn)


def _over(values: Sequence[float]) -> Summary:
    if not values:
        raise OptionError("no turns; nothing was timed")
    return Summary(median(values), min(values), max(values))
