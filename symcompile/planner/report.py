"""What the planner did, as figures.

In: the schema, the reference counts and the planned program. Out: a `PlanInfo` with named fields,
`str()` and `to_dict()`. Planning needs shapes only and never touches data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from symcompile.diagrams import basis_size
from symcompile.ir import Mix, Program, Reduce, types_of
from symcompile.planner.lattice import NOMINAL_SIZE
from symcompile.spec import Label
from symcompile.weights import Schema

__all__ = ["Column", "PlanInfo", "plan_info"]


@dataclass(frozen=True, slots=True)
class Column:
    """Figures of one program, for one example (no batch).

    Attributes:
        ops: number of ops.
        reductions, mixes: how many of those ops reduce, and mix channels.
        multiply_adds: of the mixes.
        elements: entries of all values made, views left out: a measure of memory traffic.
    """

    ops: int
    reductions: int
    mixes: int
    multiply_adds: int
    elements: int


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """What was planned.

    Attributes:
        optimize: the strategy.
        diagrams: basis elements, bias included: what the reference computes one at a time.
        signatures: (signature, in-features, out half-diagrams) of every mix.
        weights: number of scalar weights.
        lowered, planned: figures before and after the passes.
        assumed: label sizes the figures assume because they are not bound.
    """

    optimize: str
    diagrams: int
    signatures: tuple[tuple[tuple[Label, ...], int, int], ...]
    weights: int
    lowered: Column
    planned: Column
    assumed: tuple[tuple[Label, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"plan ({self.optimize}): {self.diagrams:,} diagrams in {len(self.signatures)} mixes, "
            f"{self.weights:,} weights"
        ]
        lines.append(f"  {'':<16}{'as lowered':>16}{'planned':>16}")
        for row in ("ops", "reductions", "mixes", "multiply_adds", "elements"):
            before, after = getattr(self.lowered, row), getattr(self.planned, row)
            lines.append(f"  {row.replace('_', '-'):<16}{before:>16,}{after:>16,}")
        if self.assumed:
            sizes = ", ".join(f"{label!a}: {size}" for label, size in self.assumed)
            lines.append(f"  sizes not bound, figures assume {{{sizes}}}")
        lines.append("  signature: in-features -> out half-diagrams")
        for signature, rows, columns in self.signatures:
            lines.append(f"    {signature!a}: {rows} -> {columns}")
        return "\n".join(lines)


def plan_info(schema: Schema, optimize: str, lowered: Program, planned: Program) -> PlanInfo:
    """Count what a plan costs."""
    labels = {label for t in (*schema.inputs, *schema.outputs) for label in t.labels}
    sizes = dict(schema.sizes)
    assumed = tuple((label, NOMINAL_SIZE) for label in sorted(labels - sizes.keys(), key=repr))
    sizes |= dict(assumed)
    known = dict(schema.sizes)
    diagrams = basis_size(
        [t.labels for t in schema.outputs], [t.labels for t in schema.inputs], known
    )
    matrices = [weight for weight in schema.weights if weight.rows]
    bias = sum(len(weight.columns) for weight in schema.weights if not weight.rows)
    return PlanInfo(
        optimize=optimize,
        diagrams=diagrams + bias,
        signatures=tuple((w.signature, len(w.rows), len(w.columns)) for w in matrices),
        weights=planned.weight_count,
        lowered=_column(lowered, sizes),
        planned=_column(planned, sizes),
        assumed=assumed,
    )


_VIEWS = ("Input", "Const", "Diagonal", "Transpose", "Slice", "Broadcast", "Output")


def _column(program: Program, sizes: dict[Label, int]) -> Column:
    types = types_of(program)
    kinds = Counter(type(op).__name__ for op in program.ops)
    elements = multiply_adds = 0
    for op, kind in zip(program.ops, types, strict=True):
        entries = prod(sizes[label] for label in kind.labels)
        if type(op).__name__ not in _VIEWS:
            elements += entries * kind.width
        if isinstance(op, Mix):
            multiply_adds += entries * (op.rows[1] - op.rows[0]) * kind.width
    return Column(
        len(program.ops), kinds[Reduce.__name__], kinds[Mix.__name__], multiply_adds, elements
    )
