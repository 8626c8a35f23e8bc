"""What the tests of the CPU kernels share, whatever the framework: sums to draw, and views."""

from __future__ import annotations

from itertools import permutations

from hypothesis import strategies as st


@st.composite
def recipes(draw_from):  # type: ignore[no-untyped-def]
    """A seed, a number of axes, sizes, channels in and out, products and terms."""
    axes = draw_from(st.integers(1, 4))
    size = draw_from(st.integers(0, (40, 19, 7, 5)[axes - 1]))
    channels = st.integers(1, 70)
    products, terms = draw_from(st.integers(1, 3)), draw_from(st.integers(0, 4))
    seed = draw_from(st.integers(0, 2**32 - 1))
    return seed, [size] * axes, draw_from(channels), draw_from(channels), products, terms


SIZES = {3: (37, 41), 4: (3, 19, 23), 5: (2, 3, 17, 13)}
"""By rank: the axes of an array but the last one, of channels; enough rows for two threads."""

CHANNELS = [8, 16, 20, 24]


def views(rank: int) -> list[tuple[tuple[int, ...], int]]:
    """Every order of axes that leaves channels the last, with every axis that another one follows.

    Over both of them, means are taken.
    """
    last = rank - 1
    return [
        ((*order, last), axis) for order in permutations(range(last)) for axis in range(last - 1)
    ]
