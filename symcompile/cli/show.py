"""Printing to a terminal or a pipe.

In: text that may hold anything. Out: lines without control characters on stdout or stderr.
The one thing to know: nothing is wrapped or cropped to a width, so that a pipe and a terminal get
the same lines; a terminal gets them styled.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "escaped", "say"]


def escaped(text: str, keep: str = "\n") -> str:
    """`text` with characters that do not print, all but those of `keep`, as escapes.

    >>> escaped("a\\x1b[31m"), escaped("a\\nb", keep="")
    ('a\\\\x1b[31m', 'a\\\\nb')
    """
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def say(line: str) -> None:
    """One line on stderr, whatever is in it."""
    stream: TextIO | None = sys.stderr
    if stream is None:  # closed
        return
    encoding = stream.encoding or "utf-8"
    shown = escaped(line).encode(encoding, "backslashreplace").decode(encoding)
    with suppress(OSError):  # to say so is all that is lost
        print(shown, file=stream, flush=True)


def console() -> Console:
    """A rich console on stdout that takes text literally: no markup, no emoji, no wrapping."""
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        # Labels may hold letters that the encoding of the terminal lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(
        file=sys.stdout, width=100_000, markup=False, emoji=False, highlight=False, soft_wrap=True
    )
