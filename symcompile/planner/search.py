"""Choosing where every feature is reduced from.

In: a `Lattice`. Out: a `Choice`: a parent for every needed node and for every helper it takes, the
cheapest in total. In general this is a directed Steiner arborescence on a DAG (NP-hard); where
every node is needed, each takes its cheapest parent and that is exact.

A planner is any object with `choose(lattice) -> Choice`; users may pass their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol, runtime_checkable

from symcompile.diagrams import HalfDiagram
from symcompile.errors import BackendError, OptionError, PlanError
from symcompile.planner.lattice import Edge, Lattice

__all__ = [
    "AUTO_EDGE_LIMIT",
    "PLANNERS",
    "Choice",
    "Parents",
    "Planner",
    "checked",
    "choose_auto",
    "choose_greedy",
    "choose_optimal",
    "cost_of",
    "get_planner",
    "parents_of",
]

AUTO_EDGE_LIMIT = 4000
"""`auto` solves the integer program of lattices with at most this many edges."""

_ROUNDING = 1e-12
"""Costs that differ by less, relative, are the same sum in another order."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan of one lattice.

    Attributes:
        parents: (child, parent) by child: every needed node but the root, and helpers.
        method: "closed form", "greedy", "integer program", or a planner's own word.
        bound: no choice of this lattice costs less than this, or None if nothing was proven.
    """

    parents: tuple[tuple[int, int], ...]
    method: str
    bound: float | None = None


Parents = Mapping[HalfDiagram, HalfDiagram]
"""A choice in terms of half-diagrams: what each is reduced from (or spread to)."""


def parents_of(lattice: Lattice, choice: Choice) -> dict[HalfDiagram, HalfDiagram]:
    """A choice in terms of half-diagrams."""
    return {lattice.nodes[child]: lattice.nodes[parent] for child, parent in choice.parents}


@runtime_checkable
class Planner(Protocol):
    """Anything that chooses."""

    def choose(self, lattice: Lattice) -> Choice:
        """A parent for every needed node; helpers may be added."""


def cost_of(lattice: Lattice, choice: Choice) -> float:
    """The summed cost of a choice's edges."""
    costs = {(edge.child, edge.parent): edge.cost for edge in lattice.edges}
    return sum(costs[pair] for pair in choice.parents)


def checked(lattice: Lattice, choice: Choice) -> Choice:
    """The choice itself, if it is a plan of the lattice.

    Raises:
        PlanError: it is no `Choice`, a node is no int, a needed node has no parent, a parent is
            not made, an edge does not exist, a helper helps nobody, or the bound is no number or
            exceeds the cost.
    """
    mend = (
        "a planner returns a Choice with one (child, parent) pair for every needed node but node "
        "0, and for every helper, along edges of the lattice, nodes being ints"
    )
    pairs = getattr(choice, "parents", None)
    if not isinstance(choice, Choice) or not isinstance(pairs, tuple):
        raise PlanError(f"the planner returned {choice!r:.80}; {mend}")
    for pair in pairs:
        if not _is_pair(pair):
            raise PlanError(f"the planner returned Choice with {pair!r:.80} for a pair; {mend}")
    if choice.bound is not None and not _is_number(choice.bound):
        raise PlanError(f"the bound is {choice.bound!r:.80}; expected a number, or None")
    parents, edges = dict(pairs), {(edge.child, edge.parent) for edge in lattice.edges}
    if len(parents) != len(pairs):
        twice = next(child for child, count in Counter(c for c, _ in pairs).items() if count > 1)
        raise PlanError(f"node {twice} has two parents; {mend}")
    for child, parent in pairs:
        if (child, parent) not in edges:
            raise PlanError(f"no edge leads from node {parent} to node {child}; {mend}")
        if parent != 0 and parent not in parents:
            raise PlanError(
                f"node {child} is reduced from node {parent}, which is not made; {mend}"
            )
    missing = sorted(lattice.needed - parents.keys() - {0})
    if missing:
        raise PlanError(f"needed nodes {missing} have no parent; {mend}")
    idle = sorted(parents.keys() - lattice.needed - set(parents.values()))
    if idle:
        raise PlanError(f"helpers {idle} are made and nothing is reduced from them; {mend}")
    cost = cost_of(lattice, choice)
    if choice.bound is not None and not choice.bound <= cost * (1 + 1e-9):
        raise PlanError(f"the bound {choice.bound!r} exceeds the cost {cost!r} of the plan itself")
    return choice


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, Integral) for n in pair)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def choose_greedy(lattice: Lattice) -> Choice:
    """Cheapest parents among what is needed, then helpers one by one while they pay.

    Helpers taken early may turn out to be in the way of better ones. So each is left out once,
    others are taken in its place, and what is cheaper stays, until nothing is.
    """
    edges = _Edges(lattice)
    found = _with_helpers(lattice, edges, set())
    cost = cost_of(lattice, found)
    pending = _helpers(lattice, found)
    while pending:
        helper = pending.pop(0)
        kept = set(_helpers(lattice, found)) - {helper}
        other = _with_helpers(lattice, edges, kept, without=helper)
        if cost_of(lattice, other) < cost * (1 - _ROUNDING):
            found, cost = other, cost_of(lattice, other)
            pending = _helpers(lattice, found)
    return found


def _helpers(lattice: Lattice, choice: Choice) -> list[int]:
    return [child for child, _ in choice.parents if child not in lattice.needed]


def _with_helpers(
    lattice: Lattice, edges: _Edges, helpers: Collection[int], without: int = 0
) -> Choice:
    """Helpers, and more of them one by one while they pay.

    A helper's gain is what its children save by it, less its own cheapest edge.

    Args:
        helpers: those taken from the start.
        without: one that is not taken.
    """
    made = set(lattice.needed) | {0, *helpers}
    best = {node: _cheapest(edges.incoming[node], made) for node in made - {0}}
    spare = set(range(len(lattice.nodes))) - made - {without}
    while spare:
        gains = []
        for helper in sorted(spare):
            saved = sum(
                max(0.0, best[edge.child].cost - edge.cost)
                for edge in edges.outgoing.get(helper, ())
                if edge.child in best
            )
            gains.append((saved - _cheapest(edges.incoming[helper], made).cost, -helper))
        gain, negative = max(gains)
        if gain <= _ROUNDING * sum(edge.cost for edge in best.values()):
            break
        helper = -negative
        spare.discard(helper)
        made.add(helper)
        best[helper] = _cheapest(edges.incoming[helper], made)
        for edge in edges.outgoing.get(helper, ()):
            if edge.child in best and edge.cost < best[edge.child].cost:
                best[edge.child] = edge
    return Choice(_pairs(lattice, best), "greedy")


def choose_optimal(lattice: Lattice) -> Choice:
    """The integer program, solved to optimality by HiGHS through `scipy.optimize.milp`.

    x[e] = 1 if edge e is taken, y[v] = 1 if node v is made; a made node takes one edge in, an edge
    needs its parent made. The lattice has no cycles, so nothing else is needed.

    Raises:
        BackendError: scipy is not installed.
    """
    if lattice.complete:
        return _closed_form(lattice)
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array
    except ImportError as error:
        raise BackendError(
            "optimize='optimal' needs scipy; install it, or symcompile with its extra 'optimal', "
            "or use optimize='greedy'"
        ) from error
    edges, count = lattice.edges, len(lattice.edges)
    nodes = len(lattice.nodes)
    rows, cols, values = [], [], []
    for k, edge in enumerate(edges):
        rows += [edge.child]  # edges in - y[child] = 0
        cols += [k]
        values += [1.0]
        rows += [nodes + k, nodes + k]  # x[e] - y[parent] <= 0
        cols += [k, count + edge.parent]
        values += [1.0, -1.0]
    for node in range(1, nodes):
        rows.append(node)
        cols.append(count + node)
        values.append(-1.0)
    matrix = coo_array((values, (rows, cols)), shape=(nodes + count, count + nodes))
    low = np.concatenate([np.zeros(nodes), np.full(count, -np.inf)])
    fixed = np.array([float(node in lattice.needed or node == 0) for node in range(nodes)])
    # HiGHS stops within absolute tolerances of 1e-6: costs in millionths of the dearest edge keep
    # what that leaves open far below what floats resolve.
    scale = 1e-6 * max((edge.cost for edge in edges), default=1.0) or 1.0
    objective = np.concatenate([[edge.cost / scale for edge in edges], np.zeros(nodes)])
    result = milp(
        objective,
        constraints=LinearConstraint(matrix.tocsr(), low, np.zeros(nodes + count)),
        integrality=np.ones(count + nodes, dtype=np.int64),
        bounds=Bounds(np.concatenate([np.zeros(count), fixed]), np.ones(count + nodes)),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise PlanError(f"the integer program was not solved: {result.message}")
    taken = {edges[k].child: edges[k] for k in range(count) if result.x[k] > 0.5}
    # What was solved to optimality is the lattice as given; helpers that it lacks might save more.
    bound = None if lattice.partial else float(result.mip_dual_bound) * scale
    return Choice(_pairs(lattice, taken), "integer program", bound)


def choose_auto(lattice: Lattice) -> Choice:
    """The closed form where it is exact, else the better of greedy and, if small, the program."""
    if lattice.complete:
        return _closed_form(lattice)
    greedy = choose_greedy(lattice)
    if len(lattice.edges) > AUTO_EDGE_LIMIT:
        return greedy
    try:
        optimal = choose_optimal(lattice)
    except BackendError:
        return greedy
    if cost_of(lattice, optimal) < cost_of(lattice, greedy):
        return optimal
    return Choice(greedy.parents, "greedy", optimal.bound)


@dataclass(frozen=True, slots=True)
class _Named:
    name: str

    def choose(self, lattice: Lattice) -> Choice:
        strategies = {
            "greedy": choose_greedy,
            "optimal": choose_optimal,
            "auto": choose_auto,
        }
        return strategies[self.name](lattice)


PLANNERS: Mapping[str, Planner] = {name: _Named(name) for name in ("greedy", "optimal", "auto")}


def get_planner(optimize: object) -> Planner:
    """The planner that `optimize=` names or is.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(optimize, str) and optimize in PLANNERS:
        return PLANNERS[optimize]
    if isinstance(optimize, Planner) and not isinstance(optimize, type):
        return optimize
    raise OptionError(
        f"optimize={optimize!r} is not known; choose False, {', '.join(map(repr, PLANNERS))}, "
        "or pass an object with a method choose(lattice)"
    )


def _closed_form(lattice: Lattice) -> Choice:
    best: dict[int, Edge] = {}
    for edge in lattice.edges:
        best.setdefault(edge.child, edge)  # cheapest first
    choice = _pairs(lattice, best)
    return Choice(choice, "closed form", sum(edge.cost for edge in best.values()))


class _Edges:
    """The edges of a lattice by child, cheapest first, and by parent."""

    def __init__(self, lattice: Lattice) -> None:
        self.incoming: dict[int, list[Edge]] = {}
        self.outgoing: dict[int, list[Edge]] = {}
        for edge in lattice.edges:
            self.incoming.setdefault(edge.child, []).append(edge)
            self.outgoing.setdefault(edge.parent, []).append(edge)


def _cheapest(edges: list[Edge], made: set[int]) -> Edge:
    return next(edge for edge in edges if edge.parent in made)  # edges come cheapest first


def _pairs(lattice: Lattice, best: Mapping[int, Edge]) -> tuple[tuple[int, int], ...]:
    """The chosen pairs, without helpers that nothing is reduced from."""
    used: set[int] = set()
    pending = [node for node in lattice.needed if node != 0]
    while pending:
        node = pending.pop()
        if node not in used:
            used.add(node)
            if best[node].parent != 0:
                pending.append(best[node].parent)
    return tuple((node, best[node].parent) for node in sorted(used))
