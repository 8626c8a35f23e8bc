"""What the planner says of each of its decisions: `explain()`.

In: a `PlanInfo`. Out: lines of text, one or more per decision: what was chosen, at what score, and
what the alternatives would have scored.

The one thing to know: scores of one decision that differ are printed with enough digits to tell
them apart, up to nine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from symcompile.diagrams import HalfDiagram
from symcompile.planner.decisions import (
    BatchPlan,
    FillPlan,
    LatticePlan,
    MixPlan,
    Schedule,
    SumPlan,
    WholePlan,
)
from symcompile.planner.lattice import NODE_LIMIT, Lattice
from symcompile.planner.search import AUTO_EDGE_LIMIT, cost_of
from symcompile.spec import format_path

if TYPE_CHECKING:
    from symcompile.planner.report import PlanInfo

__all__ = ["gap", "gave_way", "told"]

_SHOWN = 40
"""Most choices of one lattice that are told."""


def told(info: PlanInfo) -> Iterator[str]:
    """Every decision of a plan, in the order they were made."""
    if info.asked != info.minimize:
        yield gave_way(info)
    yield from _lattices(info.decisions, info.optimize)
    yield from map(_fill, info.fills)
    yield from map(_mix, info.mixes)
    yield from map(_whole, info.wholes)
    yield from map(_batch, info.batches)
    yield from map(_sum, info.sums)
    if info.schedule is not None:
        yield _schedule(info.schedule)


def gave_way(info: PlanInfo) -> str:
    """What did not fit a limit of memory."""
    return f"no plan for least {info.asked} fits memory_limit: planned for least {info.minimize}"


def gap(plan: LatticePlan) -> float:
    """How far a choice may be from the best, relative; infinite if nothing was proven."""
    cost = cost_of(plan.lattice, plan.choice)
    if plan.choice.bound is None:
        return float("inf")
    return (cost - plan.choice.bound) / cost if cost else 0.0


def _lattices(decisions: Sequence[LatticePlan], optimize: str) -> Iterator[str]:
    alike: dict[tuple[str, int], list[LatticePlan]] = {}
    for plan in decisions:
        alike.setdefault((plan.kind, id(plan.lattice)), []).append(plan)
    for (kind, _), plans in alike.items():
        first = plans[0]
        names = ", ".join(format_path(plan.path) for plan in plans[:3])
        more = f" and {len(plans) - 3} alike" if len(plans) > 3 else ""
        proof, off = _unproven(first.lattice, optimize), gap(first)
        if off < float("inf"):
            proof = f"within {max(off, 0.0):.2g} of the least cost in its lattice"
        yield f"{kind} {names}{more} {first.lattice.labels!a}: {first.choice.method}, {proof}"
        yield from _alternatives(first)


def _alternatives(plan: LatticePlan) -> Iterator[str]:
    lattice, chosen = plan.lattice, dict(plan.choice.parents)
    verb = "from" if plan.kind == "reduce" else "to"

    def name(half: HalfDiagram) -> str:
        return "the tensor" if half.is_identity else str(half)

    for child, parent in list(chosen.items())[:_SHOWN]:
        options = [edge for edge in lattice.edges if edge.child == child]
        cost = next(edge.cost for edge in options if edge.parent == parent)
        others = [edge for edge in options if edge.parent != parent][:2]
        mine, *scores = _apart([cost, *(edge.cost for edge in others)])
        names = [name(lattice.nodes[edge.parent]) for edge in others]
        rest = ", ".join(f"{one} {score}" for one, score in zip(names, scores, strict=True))
        helper = "" if child in lattice.needed else " (helper)"
        yield (
            f"  {lattice.nodes[child]}{helper} {verb} {name(lattice.nodes[parent])} {mine}"
            f"{'; else ' + rest if rest else ''}"
        )
    if len(chosen) > _SHOWN:
        yield f"  and {len(chosen) - _SHOWN} more"


def _unproven(lattice: Lattice, optimize: str) -> str:
    """Why nothing was proven, where a limit of size is the reason."""
    if lattice.partial:
        return f"nothing proven: of {NODE_LIMIT:,} half-diagrams and more only those needed count"
    if optimize == "auto" and len(lattice.edges) > AUTO_EDGE_LIMIT:
        return (
            f"nothing proven: {len(lattice.edges):,} edges, and auto tries the integer program up "
            f"to {AUTO_EDGE_LIMIT:,}"
        )
    return "nothing proven"


def _mix(plan: MixPlan) -> str:
    cost, *others = _apart([score for _, score in plan.scores])
    forms = [form for form, _ in plan.scores[1:]]
    rest = ", ".join(f"{form} {score}" for form, score in zip(forms, others, strict=True))
    return f"mix {plan.weight}: {plan.chosen} {cost}" + (f"; else {rest}" if rest else "")


def _fill(plan: FillPlan) -> str:
    return f"pieces {_either(plan)}; as one matrix {plan.share:.0%} of it is filled"


def _whole(plan: WholePlan) -> str:
    (chosen, _), (other, _) = plan.scores
    cost, score = _apart([score for _, score in plan.scores])
    count = f"{len(plan.values)} values in {plan.slices} slices"
    return f"sums of {count}: {chosen} {cost}; else {other} {score}"


def _batch(plan: BatchPlan) -> str:
    return f"mixes {_either(plan)}"


def _either(plan: FillPlan | BatchPlan) -> str:
    (_, taken), (other, left) = plan.scores
    cost, score = _apart([taken, left])
    names = ", ".join(plan.weights[:3])
    more = f" and {len(plan.weights) - 3} more" if len(plan.weights) > 3 else ""
    why = f" ({plan.reason})" if plan.reason else ""
    return f"{names}{more}: {plan.chosen} {cost}{why}; else {other} {score}"


def _sum(plan: SumPlan) -> str:
    if plan.weight is None:
        return (
            f"sum of {plan.terms} terms: a new array of {plan.entries:,} entries; no mix makes a "
            "product for it alone that all terms can be added to"
        )
    return (
        f"sum of {plan.terms} terms: added in place to the product of {plan.weight}; "
        f"else a new array of {plan.entries:,} entries"
    )


def _schedule(plan: Schedule) -> str:
    proof = (
        "the least of any order of these ops"
        if plan.exact
        else "the least of three orders tried: as given, output by output, and always next "
        "the op after which least is alive"
    )
    return f"schedule: peak {plan.peak:,} entries, {proof}; else {plan.before:,} in the order given"


def _apart(scores: Sequence[float]) -> list[str]:
    """Scores as text, with as many digits as tell them apart, at least three.

    Past nine digits scores are the same sum in another order.
    """
    same = {f"{score:.9g}" for score in scores}
    for digits in range(3, 10):
        texts = [f"{score:.{digits}g}" for score in scores]
        if len(set(texts)) == len(same):
            break
    return texts
