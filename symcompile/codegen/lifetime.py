"""Freeing large values as soon as nothing reads them any more.

In: statements, and the names worth freeing. Out: the statements with `del` lines between them.
Python keeps every local alive until the function returns; without these lines a layer's peak memory
would be the sum of all its intermediate values.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence

__all__ = ["free_early"]

_LINE = 84
"""Longest list of names in one statement."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def free_early(statements: Sequence[str], names: Collection[str], result: str) -> list[str]:
    """Delete each of `names` after the last statement that mentions it.

    Names in `result`, the expression returned, stay; so do those the last statement mentions.

    >>> free_early(["b = f(a)", "c = b + b"], {"a", "b"}, "{'a': c}")
    ['b = f(a)', 'del a', 'c = b + b']
    >>> free_early(["a = f(x)", "b = g(a)", "c = b + b"], {"a", "b", "c"}, "c")
    ['a = f(x)', 'b = g(a)', 'del a', 'c = b + b']
    """
    last: dict[str, int] = {}
    for number, statement in enumerate(statements):
        for name in _names(statement):
            last[name] = number
    dead: dict[int, list[str]] = {}
    for name in sorted(last.keys() & set(names) - set(_names(result))):
        dead.setdefault(last[name], []).append(name)
    dead.pop(len(statements) - 1, None)
    lines: list[str] = []
    for number, statement in enumerate(statements):
        lines.append(statement)
        listed = ", ".join(dead.get(number, ()))
        for names_of_line in textwrap.wrap(listed, _LINE, break_long_words=False):
            lines.append(f"del {names_of_line.rstrip(',')}")
    return lines


def _names(code: str) -> list[str]:
    """All names in a piece of code; words of comments and strings, such as keys, are none."""
    return [] if code.startswith("#") else _NAME.findall(_STRING.sub("", code))
