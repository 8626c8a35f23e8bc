"""Random perm_specs for hypothesis, with the names a stranger might send.

In: nothing. Out: `spec_trees()` draws a valid spec as plain Python; `nest(depth)` is a deep one.
"""

from __future__ import annotations

import keyword
from typing import Any

from hypothesis import strategies as st

from symcompile.spec import Fixed

HOSTILE = [
    "",
    " ",
    "'",
    '"',
    "'''",
    '"""',
    "\\",
    "\n",
    "a\nimport os",
    "\r\n",
    "\t",
    "\0",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x1b[31m",
    "class",
    "None",
    "null",
    "~",
    "true",
    "yes",
    "on",
    "1e3",
    "0x10",
    "1:30",
    "2001-01-01",
    ".nan",
    "<<",
    "=",
    "- a",
    "a: b",
    "#",
    "*a",
    "&a",
    "!!python/object/apply:os.system",
    "{fixed: 9}",
    "fixed",
    "$list",
    "$$list",
    "$",
    "__class__",
    "__init__",
    "self",
    "__import__('os').system('true')",
    "{x!r}",
    "%s",
    "name.with.dots",
    "ключ",
    "鍵",
    "🔑",
    "e\u0301",
    "\u202eabc",
    "x" * 10_000,
    "ab cd " * 2_000,
]

names = st.sampled_from([*HOSTILE, *keyword.kwlist]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
ints = st.integers(-3, 12) | st.integers(-(2**63) + 1, 2**63 - 1)


def _distinct_looking(labels: list[Any]) -> list[Any]:
    return list({str(label): label for label in labels}.values())


@st.composite
def spec_trees(draw: st.DrawFn, int_keys: bool = True) -> Any:
    """A valid spec as plain Python, with at least one leaf."""
    labels = _distinct_looking(draw(st.lists(ints | names, min_size=1, max_size=5)))
    atoms = (
        st.sampled_from(labels)
        | st.none()
        | st.integers(1, 2**63 - 1).map(Fixed)
        | st.integers(1, 9).map(Fixed)
    )
    composites = st.lists(atoms, min_size=2, max_size=3).map(tuple)
    leaves = st.lists(atoms | composites, max_size=4).map(tuple)
    keys = (ints | names) if int_keys else names

    def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        pairs = st.lists(st.tuples(keys, children), max_size=3)
        dicts = pairs.map(lambda items: dict({str(k): (k, v) for k, v in items}.values()))
        return dicts | st.lists(children, max_size=3)

    tree = draw(st.recursive(leaves, containers, max_leaves=6))
    if isinstance(tree, tuple):
        return tree
    return {"first": draw(leaves), "rest": tree}


def nest(depth: int) -> Any:
    """One leaf under `depth` containers, lists and dicts in turn."""
    tree: Any = (0,)
    for level in range(depth):
        tree = {"k": tree} if level % 2 else [tree]
    return tree
