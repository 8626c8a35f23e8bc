"""Pass: mix channels before spreading.

In: any Program. Out: one in which no mix reads a broadcast or embedded value. A mix acts on the
channels and a spread on the index axes, so they commute, and before the spread there is less to
mix.
"""

from __future__ import annotations

from dataclasses import replace

from symcompile.ir import Broadcast, Builder, Embed, Mix, Op, Program, Transpose

__all__ = ["mix_before_spread"]


def mix_before_spread(program: Program) -> Program:
    """Move every mix above the spread it reads."""
    build = Builder(program)
    place: list[int] = []
    for op in program.ops:
        if isinstance(op, Mix):
            source, spread = _above(program, op.args[0])
            value = build.mix(place[source], op.weight, op.rows, op.cols)
            for step in spread:
                value = build.emit(replace(step, args=(value,)))
            place.append(value)
        else:
            place.append(build.emit(op.renumbered(place)))
    return build.program()


def _above(program: Program, value: int) -> tuple[int, list[Op]]:
    """The value a spread starts from, and the ops of the spread, first to last.

    A transpose that no broadcast or embedding precedes belongs to the feature, not to the spread.
    """
    chain: list[tuple[int, Op]] = []
    op = program.ops[value]
    while isinstance(op, Broadcast | Embed | Transpose):
        chain.append((value, op))
        value = op.args[0]
        op = program.ops[value]
    while chain and isinstance(chain[-1][1], Transpose):
        value, _ = chain.pop()
    return value, [step for _, step in reversed(chain)]
