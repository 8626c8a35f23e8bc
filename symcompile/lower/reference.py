"""The reference program: one diagram at a time, as UNF computes it (arXiv 2402.05232, eq. 9).

In: a Schema. Out: a Program that, for every basis element on its own, reduces, spreads to the
output's full size and mixes channels there. Nothing is shared: it is the semantics every plan is
held to, and the baseline every plan is compared with.
"""

from __future__ import annotations

from symcompile.ir import Builder, Program
from symcompile.lower.steps import mix_by, reduce_by, spread_by
from symcompile.weights import Schema

__all__ = ["empty_program", "lower_reference"]


def empty_program(schema: Schema, reduce: str) -> Program:
    """A Program with the schema's tensors, weights and sizes, and no ops."""
    return Program((), schema.inputs, schema.outputs, schema.stored, schema.sizes, reduce)


def lower_reference(schema: Schema, reduce: str = "mean") -> Program:
    """One op sequence per basis element, summed per output."""
    build = Builder(empty_program(schema, reduce), share=False)
    inputs = [build.input(tensor) for tensor in range(len(schema.inputs))]
    terms: list[list[int]] = [[] for _ in schema.outputs]
    for weight in schema.weights:
        for column in weight.columns:
            labels = schema.outputs[column.tensor].labels
            cols = (column.start, column.start + column.width)
            if not weight.rows:
                value = spread_by(build, build.const(), column.half, labels)
                terms[column.tensor].append(build.mix(value, weight.name, (0, 1), cols))
            for row in weight.rows:
                value = reduce_by(build, inputs[row.tensor], row.half)
                value = build.transpose(value, row.bijection)
                value = spread_by(build, value, column.half, labels)
                span = (row.start, row.start + row.width)
                terms[column.tensor].append(mix_by(build, value, weight, span, cols))
    for tensor, values in enumerate(terms):
        build.output(build.add(values), tensor)
    return build.program()
