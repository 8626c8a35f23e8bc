"""The reduction lattice of one tensor.

In: the half-diagrams needed of a tensor. Out: a `Lattice`: every half-diagram that could help, and
for each pair where one can be reduced to the other an edge with its cost. Spreads have the same
lattice: an edge that is a reduction one way is a spread the other way.

The one thing to know: a half-diagram is *above* another if the second arises from the first by
merging and closing propagating blocks; closed blocks never change again. So edges go from many
propagating blocks to few and a lattice has no cycles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from symcompile.cost.objective import Objective
from symcompile.diagrams import HalfDiagram, half_diagrams, stirling2
from symcompile.spec import Label, label_order

__all__ = ["NODE_LIMIT", "Edge", "Lattice", "build_lattice", "identity_half", "relative"]

NODE_LIMIT = 1000
"""With more half-diagrams than this, only needed ones are considered to reduce from."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Reduce node `child` from node `parent` at a cost."""

    parent: int
    child: int
    cost: float


@dataclass(frozen=True, slots=True)
class Lattice:
    """What the search chooses from.

    Attributes:
        labels: of the tensor's axes.
        nodes: half-diagrams; node 0 is the identity, the tensor itself. A parent's number may be
            larger than its child's.
        needed: numbers of the nodes that must be made.
        edges: every possible step, by child, cheapest first.
        partial: True if there are so many half-diagrams that only needed ones are nodes; then
            nothing can be proven about helpers.
    """

    labels: tuple[Label, ...]
    nodes: tuple[HalfDiagram, ...]
    needed: frozenset[int]
    edges: tuple[Edge, ...]
    partial: bool = False

    @property
    def complete(self) -> bool:
        """True when every node is needed: then the cheapest parent of each is optimal."""
        return not self.partial and len(self.needed | {0}) == len(self.nodes)


def identity_half(labels: Sequence[Label]) -> HalfDiagram:
    """The half-diagram of the tensor itself."""
    axes = sorted(range(len(labels)), key=lambda axis: (label_order(labels[axis]), axis))
    return HalfDiagram(tuple((axis,) for axis in axes), ())


def relative(above: HalfDiagram, below: HalfDiagram) -> HalfDiagram | None:
    """`below` as a half-diagram over the propagating blocks of `above`, or None if not below it.

    >>> full = HalfDiagram(((0,), (1,)), ())
    >>> row = HalfDiagram(((0,),), ((1,),))
    >>> relative(full, row)
    HalfDiagram(propagating=((0,),), closed=((1,),))
    >>> relative(row, full) is None
    True
    """
    place = {axis: k for k, block in enumerate(above.propagating) for axis in block}
    newly_closed = tuple(block for block in below.closed if block not in above.closed)
    if len(newly_closed) + len(above.closed) != len(below.closed):
        return None
    joined = below.propagating + newly_closed
    if any(axis not in place for block in joined for axis in block):
        return None
    moved = [tuple(sorted({place[axis] for axis in block})) for block in joined]
    if sum(map(len, moved)) != len(above.propagating):
        return None  # a block of `above` would be torn apart
    split = len(below.propagating)
    return HalfDiagram(tuple(moved[:split]), tuple(sorted(moved[split:])))


def build_lattice(
    needed: Iterable[HalfDiagram], labels: Sequence[Label], width: int, objective: Objective
) -> Lattice:
    """The lattice of everything above what is needed.

    An edge costs what its step moves: it reads the parent on the diagonals the child keeps (a
    diagonal is a view), adds, and writes the child. A step that closes nothing is a view and free.

    Args:
        width: channels of the tensor, fixed axes included.
    """
    wanted = dict.fromkeys(needed)
    root = identity_half(labels)
    sizes = dict(objective.sizes)
    everything = _count(labels) < NODE_LIMIT
    found = half_diagrams(labels, sizes) if everything else wanted
    candidates = [half for half in found if half != root]
    nodes = [root, *candidates]
    # From the bottom up: a node is of use if it is needed or lies above one that is.
    above: dict[int, list[tuple[int, HalfDiagram]]] = {}
    for child, below in enumerate(nodes):
        if below in wanted:
            above[child] = _parents(nodes, child)
    useful = {0, *above, *(parent for found in above.values() for parent, _ in found)}
    for child in sorted(useful - {0} - above.keys()):
        above[child] = [step for step in _parents(nodes, child) if step[0] in useful]
    kept = sorted(useful)
    number = {old: new for new, old in enumerate(kept)}
    edges = [
        Edge(number[parent], number[child], _cost(step, nodes[parent], labels, width, objective))
        for child, found in above.items()
        for parent, step in found
    ]
    chosen = tuple(nodes[old] for old in kept)
    # Of equal costs the smaller parent: on the way out, what merges later merges once.
    edges.sort(key=lambda e: (e.child, e.cost, len(chosen[e.parent].propagating), e.parent))
    return Lattice(
        tuple(labels),
        chosen,
        frozenset(number[k] for k, half in enumerate(nodes) if half in wanted),
        tuple(edges),
        partial=not everything,
    )


def _count(labels: Sequence[Label]) -> int:
    """The number of half-diagrams: each block propagates or not."""
    return prod(
        sum(stirling2(axes, blocks) << blocks for blocks in range(1, axes + 1))
        for axes in Counter(labels).values()
    )


def _parents(nodes: Sequence[HalfDiagram], child: int) -> list[tuple[int, HalfDiagram]]:
    below = nodes[child]
    found = []
    for parent, above in enumerate(nodes):
        if parent != child and len(above.closed) <= len(below.closed):
            step = relative(above, below)
            if step is not None:
                found.append((parent, step))
    return found


def _cost(
    step: HalfDiagram,
    parent: HalfDiagram,
    labels: Sequence[Label],
    width: int,
    objective: Objective,
) -> float:
    if not step.closed:
        return 0.0
    kept = [labels[parent.propagating[block[0]][0]] for block in step.propagating]
    closed = [labels[parent.propagating[block[0]][0]] for block in step.closed]
    written = objective.entries(kept) * width
    read = written * objective.entries(closed)
    return objective.score(read, written, read, 1)
