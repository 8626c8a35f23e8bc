"""The meter itself: what it must count, and what it must not.

In: generated source with a fault planted in it. The oracle is arithmetic on the shapes involved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import symcompile as sc
from tests.meter import Tally, metered

torch = pytest.importorskip("torch")

SIZES = {0: 5, 1: 7}
X = torch.randn(1, 5, 7, 3)
ENTRIES = X.numel()


def layer_of(change: Callable[[str], str] = lambda line: line) -> Any:
    """A layer whose source has a line `x_2 = x_2` more, changed."""
    compiled = sc.compile({"x": (0, 1)}, in_channels=3, out_channels=2, sizes=SIZES)
    line = "(x_2,) = _cast((x_2,), dtype)"
    assert compiled.source.count(line) == 1
    names: dict[str, Any] = {"__name__": "planted"}
    exec(compiled.source.replace(line, f"{line}; {change('x_2 = x_2')}"), names)
    return names[type(compiled).__name__]()


def tally(change: Callable[[str], str] = lambda line: line) -> Tally:
    return metered(layer_of(change), {"x": X})[0]


PLANTED = {
    "a copy": (".clone()", Tally(ENTRIES, ENTRIES, 0, 1)),
    "a copy of a part": ("; x_2[..., :2].clone()", Tally(5 * 7 * 2, 5 * 7 * 2, 0, 1)),
    "zeros": ("; x_2.new_zeros((4, 5))", Tally(0, 20, 0, 1)),
    "a sum": (" + x_2", Tally(2 * ENTRIES, ENTRIES, ENTRIES, 1)),
    "a sum in place": (
        "; y = x_2.clone(); y += x_2",
        Tally(3 * ENTRIES, 2 * ENTRIES, ENTRIES, 2, ENTRIES),
    ),
    "a mean": ("; x_2.mean(-2)", Tally(ENTRIES, 15, ENTRIES, 1)),
    "one entry repeated": ("; x_2[..., :1, :].expand_as(x_2).clone()", Tally(15, ENTRIES, 0, 1)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_counted(name: str) -> None:
    extra, expected = PLANTED[name]
    plain, planted = tally(), tally(lambda line: line + extra)
    added = Tally(*(getattr(planted, f) - getattr(plain, f) for f in Tally.__annotations__))
    assert added == expected
    assert plain.launches > 0


VIEWS = [
    ".movedim(-3, -2).movedim(-2, -3)",
    "; x_2.diagonal(dim1=-3, dim2=-2)",
    "; x_2[..., 1:3]",
    "; x_2.split(1, dim=-1)",
    "; x_2.split((1, 2), dim=-1)",
    "; x_2.unbind(-1)",
    "; x_2[..., None, :].expand(1, 5, 7, 9, 3)",
    "; x_2.reshape(-1, 3)",
    "; x_2.contiguous()",
]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_free(view: str) -> None:
    assert tally(lambda line: line + view) == tally()


def test_an_operation_without_a_rule_is_refused() -> None:
    with pytest.raises(AssertionError, match="no rule for aten"):
        tally(lambda line: line + ".sin()")
