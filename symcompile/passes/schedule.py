"""Pass: order ops so that little is alive at once.

In: a Program. Out: the same ops in another order, with the least peak memory found. Small programs
are searched exactly (dynamic programming over the sets of ops already run); larger ones take the
best of the order they came in and two greedy ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from symcompile.cost.memory import Footprint, footprint, peak_entries
from symcompile.cost.objective import Objective
from symcompile.ir import Program, readers_of
from symcompile.planner.decisions import Schedule

__all__ = ["EXACT_OPS", "plan_schedule", "reorder"]

EXACT_OPS = 18
"""Programs with at most this many ops that allocate are scheduled exactly."""


def plan_schedule(program: Program, objective: Objective) -> Schedule:
    """The best order found, deterministically."""
    sizes = objective.sizes_of(program)
    facts = footprint(program, sizes)
    given = tuple(range(len(program.ops)))
    before = peak_entries(facts, given)
    floor = max(facts.held, *(facts.held + made for made in facts.made))
    candidates = [given, _depth_first(program), _greedy(program, facts)]
    best = min(candidates, key=lambda order: peak_entries(facts, order))
    peak = peak_entries(facts, best)
    if peak == floor:
        return Schedule(best, peak, before, exact=True)
    if sum(map(bool, facts.made)) > EXACT_OPS:
        return Schedule(best, peak, before, exact=False)
    order, least = _exact(program, facts, peak)
    return Schedule(order or best, least, before, exact=True)


def reorder(program: Program, order: Sequence[int]) -> Program:
    """The program with its ops in `order`."""
    place = {old: new for new, old in enumerate(order)}
    return replace(program, ops=tuple([program.ops[old].renumbered(place) for old in order]))


def _depth_first(program: Program) -> tuple[int, ...]:
    """Everything an output needs, output by output."""
    done: dict[int, None] = {}

    def visit(number: int) -> None:
        stack = [number]
        while stack:
            top = stack[-1]
            waiting = [arg for arg in program.ops[top].args if arg not in done]
            if waiting:
                stack.append(waiting[0])
            else:
                done.setdefault(stack.pop(), None)

    for number, readers in enumerate(readers_of(program)):
        if not readers:
            visit(number)
    return tuple(done)


def _greedy(program: Program, facts: Footprint) -> tuple[int, ...]:
    """Of the ops that can run, the one after which least more is alive."""
    import heapq

    missing = [len(set(op.args)) for op in program.ops]
    readers = readers_of(program)
    waiting: dict[int, int] = {}
    touching: dict[int, list[int]] = {}
    for number, reads in enumerate(facts.reads):
        for source in reads:
            waiting[source] = waiting.get(source, 0) + 1
            touching.setdefault(source, []).append(number)

    def growth(number: int) -> int:
        freed = sum(
            facts.made[source]
            for source in facts.reads[number]
            if waiting[source] == 1 and source not in facts.kept
        )
        return facts.made[number] - freed

    ready = [(growth(k), k) for k in range(len(program.ops)) if not missing[k]]
    heapq.heapify(ready)
    order: list[int] = []
    done: set[int] = set()
    while ready:
        score, number = heapq.heappop(ready)
        if number in done:
            continue
        if score != growth(number):
            heapq.heappush(ready, (growth(number), number))
            continue
        done.add(number)
        order.append(number)
        for source in facts.reads[number]:
            waiting[source] -= 1
            if waiting[source] == 1:
                for reader in touching[source]:
                    if reader not in done and not missing[reader]:
                        heapq.heappush(ready, (growth(reader), reader))
        for reader in dict.fromkeys(readers[number]):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, (growth(reader), reader))
    return tuple(order)


def _exact(program: Program, facts: Footprint, limit: int) -> tuple[tuple[int, ...] | None, int]:
    """An order with a lower peak than `limit` (None if there is none), and the least peak.

    A best-first search over sets of ops already run, by the peak so far. Views run at once.
    """
    import heapq

    count = len(program.ops)
    needs = [sum(1 << arg for arg in set(op.args)) for op in program.ops]
    readers: dict[int, int] = {}
    for number, reads in enumerate(facts.reads):
        for source in reads:
            readers[source] = readers.get(source, 0) | 1 << number

    def closure(done: int, order: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Run every view that can run: it costs nothing and can only free."""
        moved = True
        while moved:
            moved = False
            for k in range(count):
                ready = not done >> k & 1 and needs[k] & ~done == 0
                if ready and not facts.made[k] and not facts.transient[k]:
                    done |= 1 << k
                    order = (*order, k)
                    moved = True
        return done, order

    def alive(done: int) -> int:
        total = facts.held
        for k in range(count):
            wanted = k in facts.kept or readers.get(k, 0) & ~done
            if done >> k & 1 and wanted:
                total += facts.made[k]
        return total

    start, prefix = closure(0, ())
    queue: list[tuple[int, int, int, tuple[int, ...]]] = [(facts.held, -len(prefix), start, prefix)]
    best: dict[int, int] = {start: facts.held}
    full = (1 << count) - 1
    while queue:
        peak, _, done, order = heapq.heappop(queue)
        if done == full:
            return order, peak
        if best.get(done, peak) < peak:
            continue
        live = alive(done)
        for k in range(count):
            if not done >> k & 1 and needs[k] & ~done == 0:
                reached = max(peak, live + facts.made[k] + facts.transient[k])
                if reached >= limit:
                    continue
                after, longer = closure(done | 1 << k, (*order, k))
                if reached < best.get(after, limit):
                    best[after] = reached
                    heapq.heappush(queue, (reached, -len(longer), after, longer))
    return None, limit
