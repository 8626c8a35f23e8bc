"""Passes: pure functions Program -> Program, none of which changes what the program computes.

`PASSES` lists them in the order they run; after each, `diagrams_of` is what it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from symcompile.errors import ProgramError
from symcompile.ir import Program, diagrams_of, verify
from symcompile.passes.hoist import mix_before_spread
from symcompile.passes.reductions import share_reductions
from symcompile.passes.share import share_equal
from symcompile.passes.spreads import sum_before_spread

__all__ = [
    "PASSES",
    "mix_before_spread",
    "run_passes",
    "share_equal",
    "share_reductions",
    "stages",
    "sum_before_spread",
]

Pass = Callable[[Program], Program]

PASSES: tuple[Pass, ...] = (share_equal, mix_before_spread, share_reductions, sum_before_spread)


def stages(program: Program) -> Iterator[tuple[str, Program]]:
    """The program as it comes in and after every pass, by name.

    With SYMCOMPILE_VERIFY=1 in the environment every stage is type-checked and its `diagrams_of`
    compared with that of the stage before.

    Raises:
        ProgramError: a verified pass changed what the program computes.
    """
    check = os.environ.get("SYMCOMPILE_VERIFY", "0") not in ("", "0")
    meaning = diagrams_of(verify(program)) if check else None
    yield "lowered", program
    for transform in PASSES:
        name = getattr(transform, "__name__", str(transform))
        program = transform(program)
        if check and diagrams_of(verify(program)) != meaning:
            raise ProgramError(f"pass {name} changed what the program computes")
        yield name, program


def run_passes(program: Program) -> Program:
    """The program after all passes."""
    for _, stage in stages(program):
        program = stage
    return program
