"""The `symcompile` command.

In: the words of a command line. Out: a layer's source, an explanation or a verdict, and an exit
code: 0 fine, 1 a check failed, 2 bad input.
The one thing to know: what a user can mend is one message on stderr, never a traceback; and
nothing heavy is imported before a command runs.
"""

from symcompile.cli.app import app, main

__all__ = ["app", "main"]
