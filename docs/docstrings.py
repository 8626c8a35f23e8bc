"""Lets mkdocstrings read this project's docstrings: a griffe extension, named in mkdocs.yml.

In: a docstring in Google's style with three habits of ours. Out: one that griffe can read.
The habits: an example stands at the end without a heading, one entry of `Args:` or `Attributes:`
may name several (`rows, cols: …`), and an entry of `Returns:` begins with no type.

The one thing to know: only what is shown changes, never the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from griffe import Extension, Object

__all__ = ["Readable", "readable"]

NAMED = ("Args:", "Attributes:")
SEVERAL = re.compile(r"^(    )(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*)$")
RETURNS = "Returns:"


class Readable(Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """A docstring as griffe reads it.

    >>> readable("Args:\\n    a, b: numbers,\\n        both.").split("\\n")
    ['Args:', '    a: numbers,', '        both.', '    b: numbers,', '        both.']
    >>> readable("Returns:\\n    the sum: a + b.").split("\\n")
    ['Returns:', '    : the sum: a + b.']
    >>> readable("Adds.\\n\\n>>> 1 + 2\\n3\\n\\nMore.").split("\\n")
    ['Adds.', '', '```pycon', '>>> 1 + 2', '3', '```', '', 'More.']
    """
    return "\n".join(_fenced(_entries(text.split("\n"))))


def _entries(lines: list[str]) -> Iterator[str]:
    """One name for each entry, and no type for what is returned."""
    section = ""
    for number, line in enumerate(lines):
        if line and not line.startswith(" "):
            section = line
        several = SEVERAL.match(line) if section in NAMED else None
        if several:
            indent, names, rest = several.groups()
            more = _continuation(lines[number + 1 :])
            *others, last = names.split(", ")
            for name in others:
                yield f"{indent}{name}: {rest}"
                yield from more
            yield f"{indent}{last}: {rest}"
        elif section == RETURNS and lines[number - 1] == RETURNS:
            yield f"    : {line.strip()}"
        else:
            yield line


def _continuation(lines: list[str]) -> list[str]:
    """The lines at the start that are indented deeper than an entry."""
    found = []
    for line in lines:
        if not line.startswith("     "):
            break
        found.append(line)
    return found


def _fenced(lines: Iterator[str]) -> Iterator[str]:
    """Examples between fences: from a prompt to the next empty line that no prompt follows."""
    inside, empty = False, 0
    for line in lines:
        prompt = line.startswith(">>> ")
        if inside and not line:
            empty += 1
            continue
        if inside and empty and not prompt:
            yield from ("```", *[""] * empty)
            inside = False
        elif inside:
            yield from [""] * empty
        empty = 0
        if prompt and not inside:
            yield "```pycon"
            inside = True
        yield line
    if inside:
        yield "```"
