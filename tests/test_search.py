"""The search over reduction lattices: exact where it says so, near where it does not, and checked.

In: random needs of random tensors. The one thing to know: the optimum is also found by trying every
set of helpers, which shares nothing with the integer program.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.cost import PRESETS
from symcompile.cost.objective import MINIMIZE, NOMINAL_SIZE, Objective
from symcompile.diagrams import HalfDiagram, half_diagrams
from symcompile.errors import BackendError, OptionError, PlanError
from symcompile.ir import Broadcast, Diagonal, Embed, Reduce, types_of
from symcompile.planner import search
from symcompile.planner.lattice import Edge, Lattice, build_lattice, relative
from symcompile.planner.search import (
    PLANNERS,
    Choice,
    checked,
    choose_auto,
    choose_greedy,
    choose_optimal,
    cost_of,
    get_planner,
    parents_of,
)

SLACK = 1 + 1e-9


@st.composite
def lattices(draw, max_order=4, max_needed=40):
    """The lattice of random needs of a random tensor."""
    labels = tuple(draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=max_order)))
    sizes = draw(st.dictionaries(st.sampled_from("abc"), st.integers(1, 100)))
    halves = list(half_diagrams(labels, sizes))
    needed = draw(st.lists(st.sampled_from(halves), max_size=max_needed, unique=True))
    objective = Objective(
        draw(st.sampled_from(MINIMIZE)),
        tuple(sizes.items()),
        draw(st.sampled_from(list(PRESETS.values()))),
    )
    return build_lattice(needed, labels, draw(st.sampled_from([1, 3, 64, 4096])), objective)


def cheapest(lattice: Lattice, helpers: frozenset[int]) -> float:
    """The least cost when exactly these helpers are made: every node takes its best parent."""
    made = lattice.needed | helpers | {0}
    return sum(
        min(edge.cost for edge in lattice.edges if edge.child == node and edge.parent in made)
        for node in made - {0}
    )


def any_choice(lattice: Lattice, seed: int) -> Choice:
    """Some plan: random helpers, a random parent each."""
    draw = random.Random(seed)
    spare = sorted(set(range(len(lattice.nodes))) - lattice.needed - {0})
    made = lattice.needed | set(draw.sample(spare, draw.randint(0, len(spare)))) | {0}
    parents = {
        node: draw.choice(
            [edge.parent for edge in lattice.edges if edge.child == node and edge.parent in made]
        )
        for node in made - {0}
    }
    used, pending = set(), [node for node in lattice.needed if node]
    while pending:
        node = pending.pop()
        if node and node not in used:
            used.add(node)
            pending.append(parents[node])
    return Choice(tuple((node, parents[node]) for node in sorted(used)), "random")


# -- the lattice ------------------------------------------------------------------------------


@given(lattices(max_order=3))
def test_a_lattice_holds_what_is_needed_and_what_lies_above_it(lattice):
    needed = [lattice.nodes[node] for node in lattice.needed]
    for node, half in enumerate(lattice.nodes):
        assert node == 0 or any(relative(half, below) is not None for below in needed)
    assert lattice.nodes[0].is_identity
    pairs = {(edge.parent, edge.child) for edge in lattice.edges}
    for parent, above in enumerate(lattice.nodes):
        for child, below in enumerate(lattice.nodes):
            leads = parent != child and relative(above, below) is not None
            assert ((parent, child) in pairs) == leads


@given(lattices())
def test_edges_come_by_child_and_cheapest_first_and_make_no_cycle(lattice):

    def place(edge):
        """Of equal costs the parent with fewer blocks comes first."""
        return edge.child, edge.cost, len(lattice.nodes[edge.parent].propagating), edge.parent

    assert list(lattice.edges) == sorted(lattice.edges, key=place)
    for edge in lattice.edges:
        above, below = lattice.nodes[edge.parent], lattice.nodes[edge.child]
        blocks = [len(half.propagating) for half in (above, below)]
        assert blocks[0] > blocks[1]
        assert (edge.cost == 0) == (len(above.closed) == len(below.closed))


def test_an_edge_costs_what_its_step_moves():
    """Rows of a matrix: reads all of it, writes one vector; its total from the rows: one vector."""
    full, rows, total = (
        HalfDiagram(((0,), (1,)), ()),
        HalfDiagram(((0,),), ((1,),)),
        HalfDiagram((), ((0,), (1,))),
    )
    lattice = build_lattice(
        [full, rows, total], ("a", "b"), 8, Objective("bytes", (("a", 5), ("b", 7)))
    )
    costs = {
        (lattice.nodes[edge.parent], lattice.nodes[edge.child]): round(edge.cost)
        for edge in lattice.edges
    }
    assert costs[full, rows] == 4 * 8 * (5 * 7 + 5)
    assert costs[rows, total] == 4 * 8 * (5 + 1)
    assert costs[full, total] == 4 * 8 * (5 * 7 + 1)


def test_a_size_that_is_not_known_counts_as_nominal():
    total = HalfDiagram((), ((0,),))
    (unknown,) = build_lattice([total], ("a",), 1, Objective("flops")).edges
    (known,) = build_lattice([total], ("a",), 1, Objective("flops", (("a", NOMINAL_SIZE),))).edges
    assert unknown == known


# -- how good -------------------------------------------------------------------------------


@settings(max_examples=200)
@given(lattices(), st.integers(0, 2**32))
def test_greedy_is_near_and_optimal_is_best(lattice, seed):
    least = cost_of(lattice, checked(lattice, choose_optimal(lattice)))
    assert cost_of(lattice, checked(lattice, choose_greedy(lattice))) <= 1.2 * least * SLACK
    for other in (choose_greedy(lattice), choose_auto(lattice), any_choice(lattice, seed)):
        assert least <= cost_of(lattice, checked(lattice, other)) * SLACK


def margins(sizes, kept, minimize, width):
    """The lattice of some margins of a tensor of all different labels, a text of axes each."""
    labels = tuple("abcde"[: len(sizes)])
    needed = [
        HalfDiagram(
            tuple((axis,) for axis in range(len(sizes)) if str(axis) in axes),
            tuple((axis,) for axis in range(len(sizes)) if str(axis) not in axes),
        )
        for axes in kept
    ]
    objective = Objective(minimize, tuple(zip(labels, sizes, strict=True)))
    return build_lattice(needed, labels, width, objective)


HARD = [
    ((12, 4, 4, 2, 12), ["023", "04", "12", "13", "24", "3"], "bytes", 3),
    ((5, 8, 12, 12), ["0", "01", "03", "1", "12", "23"], "bytes", 1),
    ((8, 4, 2, 5, 8), ["03", "13", "23", "24"], "flops", 3),
]
"""Where one helper stands in the way of two that are better, as found by trying thousands."""


@pytest.mark.parametrize("case", HARD)
def test_greedy_may_be_worse_and_auto_is_not(case):
    lattice = margins(*case)
    greedy, optimal = choose_greedy(lattice), choose_optimal(lattice)
    least = cost_of(lattice, optimal)
    assert least * 1.01 < cost_of(lattice, greedy) <= 1.2 * least
    assert optimal.bound == pytest.approx(least, rel=1e-9, abs=0)
    auto = choose_auto(lattice)
    assert (cost_of(lattice, auto), auto.bound) == (least, optimal.bound)


def test_greedy_gives_up_helpers_that_stand_in_the_way():
    # Adding helpers only, the best first, costs 1.32 times as much.
    lattice = margins((2, 8, 30, 30), ["23", "12", "03", "01", "1"], "flops", 3)
    least = cost_of(lattice, choose_optimal(lattice))
    assert cost_of(lattice, choose_greedy(lattice)) == pytest.approx(least, rel=1e-6)


@settings(max_examples=200)
@given(lattices())
def test_optimal_proves_what_it_found(lattice):
    choice = choose_optimal(lattice)
    assert choice.bound == pytest.approx(cost_of(lattice, choice), rel=1e-9, abs=0)


@settings(max_examples=150)
@given(lattices(max_order=3))
def test_optimal_is_the_best_of_all_sets_of_helpers(lattice):
    spare = sorted(set(range(len(lattice.nodes))) - lattice.needed - {0})[:9]
    lattice = without(lattice, set(range(len(lattice.nodes))) - lattice.needed - {0, *spare})
    spare = sorted(set(range(len(lattice.nodes))) - lattice.needed - {0})
    everything = (
        frozenset(helpers)
        for count in range(len(spare) + 1)
        for helpers in combinations(spare, count)
    )
    least = min(cheapest(lattice, helpers) for helpers in everything)
    assert cost_of(lattice, choose_optimal(lattice)) == pytest.approx(least, rel=1e-9, abs=0)


def without(lattice: Lattice, dropped: set[int]) -> Lattice:
    """The lattice with some helpers taken out."""
    kept = [node for node in range(len(lattice.nodes)) if node not in dropped]
    number = {old: new for new, old in enumerate(kept)}
    return Lattice(
        lattice.labels,
        tuple(lattice.nodes[node] for node in kept),
        frozenset(number[node] for node in lattice.needed),
        tuple(
            Edge(number[edge.parent], number[edge.child], edge.cost)
            for edge in lattice.edges
            if edge.parent in number and edge.child in number
        ),
    )


@given(lattices(max_order=3))
def test_where_everything_is_needed_the_closed_form_is_the_optimum(lattice):
    lattice = replace(lattice, needed=frozenset(range(len(lattice.nodes))))
    assert lattice.complete
    choice = choose_auto(lattice)
    assert choice.method == "closed form"
    assert choice == choose_optimal(lattice)
    assert choice.bound == cost_of(lattice, choice)
    # The integer program agrees where it is made to run.
    assert cost_of(lattice, solved(lattice)) == pytest.approx(choice.bound, rel=1e-9, abs=0)


def solved(lattice: Lattice) -> Choice:
    """The integer program, also for lattices with a closed form: an idle helper is added."""
    nodes = len(lattice.nodes)
    spare = Edge(0, nodes, 1.0)
    padded = replace(
        lattice, nodes=(*lattice.nodes, lattice.nodes[0]), edges=(*lattice.edges, spare)
    )
    choice = choose_optimal(padded)
    assert choice.method == "integer program"
    return choice


def test_a_helper_is_taken_where_it_pays():
    """Two margins of a large cube share the matrix of pairs, which nothing asked for."""
    needed = [HalfDiagram(((0,),), ((1,), (2,))), HalfDiagram(((1,),), ((0,), (2,)))]
    lattice = build_lattice(needed, ("a", "b", "c"), 1, Objective("bytes"))
    pairs = HalfDiagram(((0,), (1,)), ((2,),))
    for choose in (choose_greedy, choose_optimal, choose_auto):
        parents = parents_of(lattice, choose(lattice))
        assert set(parents.values()) == {lattice.nodes[0], pairs}
        assert parents[pairs] == lattice.nodes[0]


def test_auto_leaves_large_lattices_to_greedy(monkeypatch):
    needed = [HalfDiagram(((0,),), ((1,), (2,))), HalfDiagram(((1,),), ((0,), (2,)))]
    lattice = build_lattice(needed, ("a", "b", "c"), 1, Objective())
    assert choose_auto(lattice).bound is not None
    monkeypatch.setattr(search, "AUTO_EDGE_LIMIT", len(lattice.edges) - 1)
    assert choose_auto(lattice) == choose_greedy(lattice)
    assert choose_auto(lattice).bound is None


@given(lattices())
def test_planners_give_the_same_twice(lattice):
    for planner in PLANNERS.values():
        assert planner.choose(lattice) == planner.choose(lattice)


# -- the mirror -------------------------------------------------------------------------------

SELF_MAPS = [
    {"w": (0, 0)},
    {"w": (0, 0, 0)},
    {"kernel": (0, 1), "bias": (1,)},
    {"w": ("b", "a", "b"), "s": ()},
    {"w": (0, 0, 1, 1), "v": (1,)},
]


@pytest.mark.parametrize("spec", SELF_MAPS, ids=str)
@pytest.mark.parametrize("optimize", list(PLANNERS))
@pytest.mark.parametrize("minimize", MINIMIZE)
def test_the_spread_plan_is_the_transposed_reduce_plan(spec, optimize, minimize):
    plan = sc.plan(spec, in_channels=4, out_channels=4, optimize=optimize, minimize=minimize)
    sides = {"reduce": {}, "spread": {}}
    for decision in plan.decisions:
        sides[decision.kind][decision.path] = decision
    assert sides["reduce"].keys() == sides["spread"].keys()
    for path, reduction in sides["reduce"].items():
        assert sides["spread"][path].lattice == reduction.lattice
        assert sides["spread"][path].parents == reduction.parents


@pytest.mark.parametrize("spec", SELF_MAPS, ids=str)
def test_the_program_broadcasts_back_exactly_what_it_reduces(spec):
    program = compile_spec(spec, in_channels=4, out_channels=4, bias=False).program
    types = types_of(program)
    steps = {Reduce: Counter(), Broadcast: Counter()}
    for number, op in enumerate(program.ops):
        if isinstance(op, Reduce | Broadcast):
            ends = [types[op.args[0]].labels, types[number].labels]
            if isinstance(op, Broadcast):
                ends.reverse()
            steps[type(op)][tuple(tuple(sorted(end, key=str)) for end in ends)] += 1
    assert steps[Reduce] == steps[Broadcast]
    merged = [
        {blocks_merged(op.blocks) for op in program.ops if isinstance(op, kind)}
        for kind in (Diagonal, Embed)
    ]
    assert merged[0] == merged[1]


def blocks_merged(blocks):
    return tuple(sorted(block for block in blocks if len(block) > 1))


# -- planners of one's own ----------------------------------------------------------------------

TO_SCALAR = {"spec": {"x": (0, 1)}, "out_spec": {"y": ()}}
"""Only the total is needed; rows and columns could help."""


def compiled(optimize, **options):
    return sc.compile(
        **TO_SCALAR, in_channels=1, out_channels=1, backend="numpy", optimize=optimize, **options
    )


class Straight:
    """Everything from the tensor."""

    def __init__(self):
        self.asked = []

    def choose(self, lattice):
        self.asked.append(lattice)
        return Choice(tuple((node, 0) for node in sorted(lattice.needed - {0})), "straight")


def test_a_planner_of_one_s_own_decides():
    plan = compiled(Straight()).plan
    assert plan.optimize == "Straight"
    assert {decision.choice.method for decision in plan.decisions} == {"straight"}
    assert not plan.proven


def test_tensors_of_one_kind_are_searched_once():
    planner = Straight()
    sc.plan({"a": (0, 1), "b": (0, 1), "c": (1, 0)}, optimize=planner)
    # a and b are one kind, c another; inputs and outputs are asked about apart.
    assert len(planner.asked) == 4


def nodes_by_name(lattice):
    return {str(half): node for node, half in enumerate(lattice.nodes)}


def missing_node(lattice):
    return Choice((), "none")


def no_edge(lattice):
    rows, columns = nodes_by_name(lattice)["0|(1)"], nodes_by_name(lattice)["1|(0)"]
    (total,) = lattice.needed
    return Choice(((rows, columns), (columns, 0), (total, rows)), "across")


def cycle(lattice):
    rows = nodes_by_name(lattice)["0|(1)"]
    (total,) = lattice.needed
    return Choice(((rows, total), (total, rows)), "cycle")


def parent_not_made(lattice):
    (total,) = lattice.needed
    return Choice(((total, nodes_by_name(lattice)["0|(1)"]),), "dangling")


def two_parents(lattice):
    rows = nodes_by_name(lattice)["0|(1)"]
    (total,) = lattice.needed
    return Choice(((rows, 0), (total, 0), (total, rows)), "both")


def out_of_range(lattice):
    (total,) = lattice.needed
    return Choice(((total, 99),), "far")


def idle_helper(lattice):
    (total,) = lattice.needed
    return Choice(((nodes_by_name(lattice)["0|(1)"], 0), (total, 0)), "idle")


def boasting(lattice):
    (total,) = lattice.needed
    return Choice(((total, 0),), "boast", bound=1e9)


def not_a_number(lattice):
    (total,) = lattice.needed
    return Choice(((total, 0),), "nan", bound=float("nan"))


WRONG = [
    (missing_node, r"needed nodes \[\d\] have no parent"),
    (no_edge, r"no edge leads from node \d to node \d"),
    (cycle, r"no edge leads from node \d to node \d"),
    (parent_not_made, r"node \d is reduced from node \d, which is not made"),
    (two_parents, r"node \d has two parents"),
    (out_of_range, r"no edge leads from node 99 to node \d"),
    (idle_helper, r"helpers \[\d\] are made and nothing is reduced from them"),
    (boasting, r"the bound 1000000000.0 exceeds the cost"),
    (not_a_number, r"the bound nan exceeds the cost"),
    (lambda lattice: Choice((([1], 0),), "list"), r"Choice with \(\[1\], 0\) for a pair"),
    (lambda lattice: Choice((("1", 0),), "text"), r"Choice with \('1', 0\) for a pair"),
    (lambda lattice: Choice((), "text", "3"), r"the bound is '3'; expected a number, or None"),
    (lambda lattice: Choice((), "truth", True), r"the bound is True; expected a number"),
    (lambda lattice: None, "the planner returned None"),
    (lambda lattice: {1: 0}, r"the planner returned \{1: 0\}"),
    (lambda lattice: Choice({1: 0}, "dict"), "the planner returned Choice"),
    (lambda lattice: Choice((1, 0), "flat"), "the planner returned Choice"),
    (lambda lattice: Choice(((1, 0, 0),), "long"), "the planner returned Choice"),
]


@pytest.mark.parametrize(("choose", "message"), WRONG)
def test_a_wrong_plan_is_refused_by_name(choose, message):
    planner = type("Wrong", (), {"choose": staticmethod(choose)})()
    with pytest.raises(PlanError, match=message) as caught:
        compiled(planner)
    if "bound" not in message:
        assert "a planner returns a Choice with one (child, parent) pair" in str(caught.value)


@pytest.mark.parametrize("optimize", ["fast", "", None, True, 0, 1, Straight, object(), ["auto"]])
def test_an_unknown_strategy_is_refused(optimize):
    with pytest.raises(OptionError, match=r"choose False, 'greedy', 'optimal', 'auto'"):
        compiled(optimize)
    with pytest.raises(OptionError):
        get_planner(optimize)


def test_planners_have_names():
    assert list(PLANNERS) == ["greedy", "optimal", "auto"]
    for name, planner in PLANNERS.items():
        assert get_planner(name) is planner


def test_without_scipy_optimal_says_so_and_auto_goes_on(monkeypatch):
    proven = compiled("auto").plan
    for module in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(BackendError, match=r"needs scipy; install it, .*optimize="):
        compiled("optimal")
    plan = compiled("auto").plan
    assert plan.planned == proven.planned
    assert proven.proven
    assert not plan.proven


def test_nothing_is_claimed_of_a_lattice_too_large_to_look_at_whole():
    halves = list(half_diagrams((0,) * 6, None, [()]))[:40]
    lattice = build_lattice(halves, (0,) * 6, 1, Objective("bytes"))
    assert lattice.partial
    assert not lattice.complete
    for planner in (search.choose_greedy, search.choose_optimal, search.choose_auto):
        choice = search.checked(lattice, planner(lattice))
        assert choice.bound is None
        assert choice.method != "closed form"
