"""Identifiers made from untrusted text.

In: any text (a path or a label of a spec). Out: a Python identifier of bounded length that is no
keyword and not used before. The original text goes nowhere else than through `repr`.
"""

from __future__ import annotations

import keyword
import re

__all__ = ["Namer"]

_LONGEST = 48


class Namer:
    """Hands out distinct identifiers; deterministic in the order of the requests.

    >>> names = Namer({"x"})
    >>> names("Dense 0/kernel"), names("x"), names("class"), names("x")
    ('Dense_0_kernel', 'x_2', 'class_', 'x_3')
    """

    def __init__(self, taken: set[str] | None = None) -> None:
        self._taken = set(taken or ())
        self._counts: dict[str, int] = {}

    def __call__(self, text: str, fallback: str = "v") -> str:
        """A new identifier that reads like `text`."""
        # ASCII only, and no leading underscore: dunder names and look-alike letters mean nothing.
        clean = re.sub(r"[^0-9A-Za-z]+", "_", text[: 4 * _LONGEST])[:_LONGEST].strip("_")
        if not clean or not clean[0].isalpha():
            clean = f"{fallback}{'_' if clean else ''}{clean}"
        if keyword.iskeyword(clean) or keyword.issoftkeyword(clean):
            clean += "_"
        name, count = clean, self._counts.get(clean, 1)
        while name in self._taken:
            count += 1
            name = f"{clean}_{count}"
        self._counts[clean] = count
        self._taken.add(name)
        return name
