"""Memory a Program holds while it runs, op by op.

In: a Program and sizes. Out: the entries alive after and during every op, for one example. Views
share the storage of what they view; a storage dies after the last reader of its last view.

The one thing to know: inputs belong to the caller and live throughout, outputs from when they are
written; weights are the layer's own and not counted, but matrices filled with them are, throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from symcompile.cost.work import Accountant
from symcompile.ir import Input, Output, Program
from symcompile.spec import Label

__all__ = ["Footprint", "footprint", "peak_entries"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What every op does to memory, independent of the order they run in.

    Attributes:
        made: entries of the storage each op makes; 0 for a view.
        transient: entries needed on top, only while the op runs.
        reads: the storages each op reads, named by the op that made them.
        held: entries alive throughout: the inputs, and matrices filled with weights.
        kept: storages that outlive the program: the outputs.
    """

    made: tuple[int, ...]
    transient: tuple[int, ...]
    reads: tuple[frozenset[int], ...]
    held: int
    kept: frozenset[int]


def footprint(program: Program, sizes: Mapping[Label, int]) -> Footprint:
    """The memory behaviour of every op."""
    accountant = Accountant(program)
    made: list[int] = []
    transient: list[int] = []
    reads: list[frozenset[int]] = []
    # The ops that made where a value lives: none for the caller's arrays, several for a stack that
    # is not written before it is read.
    storage: list[frozenset[int]] = []
    held = sum(prod(filled.shape) for filled in program.filled)
    for number, op in enumerate(program.ops):
        new, extra = accountant.storage_of(number)
        made.append(new.at(sizes))
        transient.append(extra.at(sizes))
        if isinstance(op, Input):
            kind = accountant.types[number]
            held += prod(sizes[label] for label in kind.labels) * kind.width
        sources = frozenset().union(*(storage[arg] for arg in op.args))
        later = number in accountant.owned.within
        reads.append(frozenset() if later else sources)
        if new.terms:
            storage.append(frozenset([number]))
        else:
            storage.append(sources if later or not op.args else storage[op.args[0]])
    outputs = [number for number, op in enumerate(program.ops) if isinstance(op, Output)]
    kept = frozenset().union(*(storage[number] for number in outputs))
    return Footprint(
        tuple(made),
        tuple(transient),
        tuple(reads),
        held,
        kept,
    )


def peak_entries(facts: Footprint, order: Sequence[int] | None = None) -> int:
    """The most entries alive at once when ops run in `order` (default: as written)."""
    waiting = Counter(source for reads in facts.reads for source in reads)
    live = peak = facts.held
    for number in range(len(facts.made)) if order is None else order:
        live += facts.made[number]
        peak = max(peak, live + facts.transient[number])
        for source in facts.reads[number]:
            waiting[source] -= 1
            if not waiting[source] and source not in facts.kept:
                live -= facts.made[source]
    return peak
