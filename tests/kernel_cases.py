"""What the tests of the CPU kernels share, whatever the framework: sums to draw."""

from __future__ import annotations

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
