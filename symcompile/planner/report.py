"""What the planner did and why: the report.

In: the schema, the objective, the planned program and the planner's decisions. Out: a `PlanInfo`
with named fields, `str()`, `to_dict()` and `explain()`. Planning needs shapes only and never
touches data. Figures are for one example; sizes that are not bound count as a nominal size, which
the report states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from symcompile.cost import Polynomial, Work, total_work
from symcompile.cost.memory import footprint, peak_entries
from symcompile.cost.objective import NOMINAL_SIZE, Objective
from symcompile.ir import (
    Add,
    BatchMix,
    Mix,
    Op,
    Program,
    Reduce,
    accumulations,
    large_sums,
    types_of,
)
from symcompile.planner.baseline import baseline
from symcompile.planner.baseline_peak import baseline_peak
from symcompile.planner.bound import least_held, least_moved
from symcompile.planner.decisions import (
    BatchPlan,
    FillPlan,
    LatticePlan,
    MixPlan,
    Schedule,
    SumPlan,
    WholePlan,
)
from symcompile.planner.search import cost_of
from symcompile.planner.told import gap, gave_way, told
from symcompile.spec import Label
from symcompile.weights import Schema

if TYPE_CHECKING:
    import sympy

__all__ = ["Figures", "PlanInfo", "Step", "plan_info"]

_SHOWN = 40
"""Most steps that `str` prints."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One column of the report; None where nothing is known.

    Attributes:
        reductions: ops that reduce.
        mixes: how often channels of features are mixed, however many matmuls one mix takes: once
            for every map in the reference, once for every matrix in a plan. The bias is no mix.
        launches: kernels started by torch in eager execution, without gradients. (A mean whose
            gradient is wanted takes one more. JAX decides by itself, and takes no batches.)
        flops: operations; a multiply-add is two.
        bytes: read and written.
        peak: most bytes alive at once, weights left out.
        seconds: what the machine model makes of bytes, flops, launches and new arrays.
    """

    reductions: int | None
    mixes: int | None
    launches: int | None
    flops: int | None
    bytes: int
    peak: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """One op that does work.

    Attributes:
        text: the op, as the program prints it.
        moved, flops: entries moved and operations.
        launches: kernels started.
    """

    text: str
    moved: Polynomial
    flops: Polynomial
    launches: int


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """A plan, as figures and decisions.

    Attributes:
        optimize: the strategy, or the planner's class.
        minimize, machine: what was minimised, on which machine.
        asked: what `minimize=` asked for; not `minimize` if that did not fit `memory_limit`.
        diagrams: basis elements, bias included: what the reference computes one at a time.
        weights: number of scalar weights.
        signatures: (signature, in-features, out half-diagrams) of every mix.
        reference: every diagram on its own.
        deduplicated: the same after equal values are shared, as XLA would.
        planned: this plan.
        lower_bound: what no plan can beat: weights and what is needed of the inputs read once,
            outputs written once.
        steps: the ops that do work, in order.
        decisions: where each feature is reduced from, and what each part of an output is spread
            through.
        fills: for pieces of one signature that meet, whether they are blocks of one matrix.
        mixes: for every mix of stacked features, how it is computed.
        wholes: for values whose slices are added pair by pair, whether they are added whole.
        batches: for mixes of equal size, whether they are computed at once.
        sums: for every large sum, whether it is accumulated into a mix.
        schedule: the order of ops, or None for the order of lowering.
        assumed: sizes assumed because they are not bound.
        search_seconds: how long the search took: all choices and the passes that apply them; 0
            for the reference, which searches nothing.
        seconds: how long planning took as a whole, from spec to report: the search, and before it
            the spec, the basis and its program, after it the figures. No code is generated. Layers
            that share a plan state the time of the first.
    """

    optimize: str
    minimize: str
    asked: str
    machine: str
    diagrams: int
    weights: int
    signatures: tuple[tuple[tuple[Label, ...], int, int], ...]
    reference: Figures
    deduplicated: Figures
    planned: Figures
    lower_bound: Figures
    steps: tuple[Step, ...]
    decisions: tuple[LatticePlan, ...]
    fills: tuple[FillPlan, ...]
    mixes: tuple[MixPlan, ...]
    wholes: tuple[WholePlan, ...]
    batches: tuple[BatchPlan, ...]
    sums: tuple[SumPlan, ...]
    schedule: Schedule | None
    assumed: tuple[tuple[Label, int], ...]
    search_seconds: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def work(self) -> Work:
        """All of the plan's work, as polynomials in the sizes."""
        return Work(
            Polynomial(),
            Polynomial.sum(step.moved for step in self.steps),
            Polynomial.sum(step.flops for step in self.steps),
            sum(step.launches for step in self.steps),
        )

    @property
    def cost(self) -> sympy.Expr:
        """Entries moved, or operations with minimize="flops", as a sympy polynomial in the sizes.

        >>> import symcompile as sc
        >>> sorted(map(str, sc.plan({"w": ("a", "b")}, bias=False).cost.free_symbols))
        ['n[a]', 'n[b]']
        """
        return (self.work.flops if self.minimize == "flops" else self.work.moved).to_sympy()

    @property
    def proven(self) -> bool:
        """True if every choice of reductions and spreads was proven to cost least in its lattice.

        That is said of these choices at the costs of the lattice's edges, one tensor at a time. It
        does not say that no plan is better: what a choice does to sums, mixes and copies elsewhere
        has no price in the lattice. `lower_bound` is what no plan can beat.
        """
        return all(gap(plan) <= 1e-9 for plan in self.decisions)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: figures, signatures, steps and decisions."""
        plain = {
            name: getattr(self, name)
            for name in (
                "optimize",
                "minimize",
                "asked",
                "machine",
                "diagrams",
                "weights",
                "search_seconds",
                "seconds",
            )
        }
        columns = ("reference", "deduplicated", "planned", "lower_bound")
        return {
            **plain,
            "proven": self.proven,
            "signatures": [[list(s), rows, columns] for s, rows, columns in self.signatures],
            **{name: asdict(getattr(self, name)) for name in columns},
            "steps": [
                [step.text, str(step.moved), str(step.flops), step.launches] for step in self.steps
            ],
            "decisions": [_as_dict(plan) for plan in self.decisions],
            "fills": [asdict(plan) for plan in self.fills],
            "mixes": [asdict(plan) for plan in self.mixes],
            "wholes": [asdict(plan) for plan in self.wholes],
            "batches": [asdict(plan) for plan in self.batches],
            "sums": [asdict(plan) for plan in self.sums],
            "schedule": None if self.schedule is None else asdict(self.schedule),
            "assumed": [list(pair) for pair in self.assumed],
        }

    def summary(self) -> str:
        """The table of figures; the same text for the same plan."""
        return "\n".join(self._summary())

    def __str__(self) -> str:
        # Without a schedule nothing was searched.
        searched = f"searched in {self.search_seconds:.3f} s, " if self.schedule else ""
        lines = [*self._summary(), f"  {searched}planned in {self.seconds:.3f} s", "  steps"]
        shown = [step for step in self.steps if step.launches][:_SHOWN]
        lines += [f"    {step.text}  # moves {step.moved}, flops {step.flops}" for step in shown]
        left = sum(bool(step.launches) for step in self.steps) - len(shown)
        return "\n".join([*lines, f"    and {left} more, in plan.steps"] if left else lines)

    def explain(self) -> str:
        """For every decision what was chosen, at what cost, and what the alternatives cost.

        Tensors of one kind share their decisions and are told together. Scores of one decision
        that differ are printed with enough digits to tell them apart, up to nine.
        """
        return "\n".join(told(self))

    def _summary(self) -> Iterator[str]:
        yield (
            f"plan {self.optimize}, least {self.minimize} on {self.machine}: {self.diagrams:,} "
            f"diagrams in {self.planned.mixes:,} mixes, {self.weights:,} weights"
        )
        columns = ("reference", "deduplicated", "planned", "lower_bound")
        yield "  " + " " * 12 + "".join(f"{name.replace('_', ' '):>16}" for name in columns)
        yield f"  {'diagrams':<12}" + f"{self.diagrams:>16,}" * 3 + f"{'-':>16}"
        for row in ("reductions", "mixes", "launches", "flops", "bytes", "peak", "seconds"):
            cells = [getattr(getattr(self, name), row) for name in columns]
            yield f"  {row:<12}" + "".join(f"{_cell(cell):>16}" for cell in cells)
        yield f"  {'weights':<12}" + f"{self.weights:>16,}" * 4
        if self.decisions:
            word = "each proven to cost least in its lattice" if self.proven else "best found"
            yield f"  reductions and spreads: {word}"
        if self.asked != self.minimize:
            yield f"  {gave_way(self)}"
        if self.assumed:
            names = ", ".join(f"{label!a:.40}" for label, _ in self.assumed[:6])
            more = f" and {len(self.assumed) - 6} more" if len(self.assumed) > 6 else ""
            yield f"  sizes not bound, figures assume {NOMINAL_SIZE} for: {names}{more}"


def plan_info(
    schema: Schema,
    optimize: str,
    objective: Objective,
    program: Program,
    decisions: Sequence[LatticePlan] = (),
    fills: Sequence[FillPlan] = (),
    mixes: Sequence[MixPlan] = (),
    wholes: Sequence[WholePlan] = (),
    batches: Sequence[BatchPlan] = (),
    schedule: Schedule | None = None,
    *,
    asked: str = "",
) -> PlanInfo:
    """Count what a plan costs, and what it is compared with.

    Args:
        asked: what was to be minimised, if not what `objective` says.
    """
    sizes = objective.sizes_of(program)
    known = dict(objective.sizes)
    matrices = [weight for weight in schema.weights if weight.rows]
    works = objective.works(program)
    reductions = sum(isinstance(op, Reduce) for op in program.ops)
    # Without a schedule nothing was planned: the program is the reference, which mixes every map.
    mixed = sum(1 if schedule else len(w.rows) * len(w.columns) for w in matrices)
    mixed -= sum(len(filled.weights) - 1 for filled in program.filled)
    peak = peak_entries(footprint(program, sizes))
    return PlanInfo(
        optimize=optimize,
        minimize=objective.minimize,
        asked=asked or objective.minimize,
        machine=objective.machine.name,
        diagrams=schema.elements,
        weights=program.weight_count,
        signatures=tuple((w.signature, len(w.rows), len(w.columns)) for w in matrices),
        reference=_baseline(schema, objective, sizes, share=False),
        deduplicated=_baseline(schema, objective, sizes, share=True),
        planned=_figures(total_work(works), objective, sizes, reductions, mixed, peak),
        lower_bound=_lower_bound(schema, program, objective, sizes),
        steps=tuple(
            Step(_text(number, op), work.moved, work.flops, work.launches)
            for number, (op, work) in enumerate(zip(program.ops, works, strict=True))
            if work != Work()
        ),
        decisions=tuple(decisions),
        fills=tuple(fills),
        mixes=tuple(mixes),
        wholes=tuple(wholes),
        batches=tuple(batches),
        sums=tuple(_sums(program, sizes)) if schedule else (),
        schedule=schedule,
        assumed=tuple((label, size) for label, size in sizes.items() if label not in known),
    )


def _baseline(
    schema: Schema, objective: Objective, sizes: dict[Label, int], *, share: bool
) -> Figures:
    found = baseline(schema, share=share)
    peak = baseline_peak(schema, sizes, share=share)
    return _figures(found.work, objective, sizes, found.reductions, found.mixes, peak)


def _figures(
    work: Work,
    objective: Objective,
    sizes: dict[Label, int],
    reductions: int,
    mixes: int,
    peak: int,
) -> Figures:
    moved, flops = work.moved.at(sizes) * objective.itemsize, work.flops.at(sizes)
    new = work.new.at(sizes) * objective.itemsize
    return Figures(
        reductions,
        mixes,
        work.launches,
        flops,
        moved,
        peak * objective.itemsize,
        objective.machine.seconds(moved, flops, work.launches, new),
    )


def _lower_bound(
    schema: Schema, program: Program, objective: Objective, sizes: dict[Label, int]
) -> Figures:
    moved = least_moved(schema, sizes) * objective.itemsize
    return Figures(
        None,
        None,
        1,
        None,
        moved,
        least_held(program, sizes) * objective.itemsize,
        objective.machine.seconds(moved, 0, 1),
    )


def _text(number: int, op: Op) -> str:
    operands = ", ".join(f"v{arg}" for arg in op.args[:6]) + (", …" if len(op.args) > 6 else "")
    match op:
        case Mix(weight=name):
            weight = f" with {name}"
        case BatchMix(weights=names):
            weight = f" with {names[0]} and {len(names) - 1} more"
        case _:
            weight = ""
    return f"v{number} = {type(op).__name__.lower()}({operands}){weight}"


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}"


def _as_dict(plan: LatticePlan) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "path": list(plan.path),
        "method": plan.choice.method,
        "cost": cost_of(plan.lattice, plan.choice),
        "bound": plan.choice.bound,
        "parents": [[str(child), str(parent)] for child, parent in plan.parents.items()],
    }


def _sums(program: Program, sizes: dict[Label, int]) -> Iterator[SumPlan]:
    """Every large sum."""
    types, accumulated = types_of(program), accumulations(program)
    is_large = large_sums(program)
    for number, op in enumerate(program.ops):
        kind = types[number]
        if isinstance(op, Add) and len(op.args) > 1 and is_large(kind):
            found = accumulated.get(number)
            base = program.ops[found.base] if found else None
            weight = base.weight if isinstance(base, Mix) else None
            entries = prod(sizes[label] for label in kind.labels) * kind.width
            yield SumPlan(weight, len(op.args), entries)
