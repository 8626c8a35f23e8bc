"""Trees are read along a spec: whatever does not fit it is refused by name; atoms come apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import symcompile as sc
from symcompile.spec import TreeReader
from tests.backend_cases import SPEC, inputs

SHAPES = {"w": (3, 3), "deep": [{"v": (3, 4, 3)}, {"s": ()}], "heads": (8, 3, 3)}


def reader(spec: Any = SPEC, channels: Any = 2, **options: Any) -> TreeReader:
    return TreeReader.of(spec, channels, kind=np.ndarray, **options)


@pytest.mark.parametrize("batch", [(), (5,), (2, 0)])
def test_leaves_come_in_canonical_order(batch: tuple[int, ...]) -> None:
    leaves = reader().read(inputs(SPEC, 2, batch))
    assert [leaf.shape[len(batch) : -1] for leaf in leaves] == [(3, 4, 3), (), (8, 3, 3), (3, 3)]


@pytest.mark.parametrize("shapes", [None, SHAPES])
def test_atoms_come_apart_outer_part_first(shapes: Any) -> None:
    x = inputs(SPEC, 2)
    one = reader(shapes=shapes, split=True)
    split = one.split(one.read(x))
    np.testing.assert_array_equal(split[2], x["heads"].reshape(2, 4, 2, 3, 3, 2))
    assert split[0] is x["deep"][0]["v"]


def test_a_label_only_in_composites_is_solved_for() -> None:
    one = reader({"w": (("h", "d"), None), "b": (("h", sc.Fixed(2)),)}, split=True)
    x = {"w": np.zeros((12, 5, 2)), "b": np.zeros((6, 2))}
    assert [value.shape for value in one.split(one.read(x))] == [(3, 2, 2), (3, 4, 5, 2)]


CASES = [
    ("w", np.zeros((2, 3, 4, 2)), "axis 1 has size 4, but 'a' has size 3"),
    ("w", np.zeros((3, 3, 3, 2)), r"batch axes are \(3,\), those of the leaves before it \(2,\)"),
    ("w", np.zeros((2, 3, 3, 1)), "expected 2 channels"),
    ("w", np.zeros((3, 2)), r"has shape \(3, 2\), expected \(\*batch, 'a', 'a', channels\)"),
    ("w", 1.0, "found a float object, expected a ndarray"),
    ("heads", np.zeros((2, 9, 3, 3, 2)), r"axis 0 has size 9, but \('b', Fixed\(2\)\) has size 8"),
    ("heads", np.zeros((2, 8, 4, 3, 2)), r"axis 1 has size 4, but Fixed\(3\) has size 3"),
]


@pytest.mark.parametrize(("key", "value", "message"), CASES)
def test_what_does_not_fit_is_refused(key: str, value: Any, message: str) -> None:
    x = inputs(SPEC, 2)
    with pytest.raises(sc.ShapeError, match=rf"x\['{key}'\].*{message}"):
        reader().read({**x, key: value})


def test_an_unknown_part_of_a_composite_asks_for_shapes() -> None:
    spec = {"w": (("c", None), "o")}
    reader(spec).read({"w": np.zeros((6, 5, 2))})
    with pytest.raises(sc.ShapeError, match=r"\['w'\], axis 0 .* give shapes="):
        reader(spec, split=True)
    with pytest.raises(sc.ShapeError, match="cannot be read off"):
        reader({"w": (("c", "d"),)}, split=True)
