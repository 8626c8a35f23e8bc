"""The factored program: one mix per signature.

In: a Schema. Out: a Program that makes every in-feature straight from its input, stacks those of
one signature, mixes once (at low rank twice in a row) at the propagating size, and spreads each
slice on its own. Its size is linear in the number of tensors. How features share work, and how
spreads do, is for the passes.
"""

from __future__ import annotations

from symcompile.ir import Builder, Program
from symcompile.lower.reference import empty_program
from symcompile.lower.steps import mix_by, reduce_by, spread_by
from symcompile.weights import Schema

__all__ = ["lower_factored"]


def lower_factored(schema: Schema, reduce: str = "mean") -> Program:
    """One mix per weight of the schema."""
    build = Builder(empty_program(schema, reduce))
    terms: list[list[int]] = [[] for _ in schema.outputs]
    for weight in schema.weights:
        rows, cols = weight.shape if weight.rows else (1, *weight.shape)
        stacked = build.concat(
            [
                build.transpose(reduce_by(build, build.input(row.tensor), row.half), row.bijection)
                for row in weight.rows
            ]
            or [build.const()]
        )
        mixed = mix_by(build, stacked, weight, (0, rows), (0, cols))
        for column in weight.columns:
            part = build.slice(mixed, column.start, column.start + column.width, cols)
            labels = schema.outputs[column.tensor].labels
            terms[column.tensor].append(spread_by(build, part, column.half, labels))
    for tensor, values in enumerate(terms):
        build.output(build.add(values), tensor)
    return build.program()
