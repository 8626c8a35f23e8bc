"""Which weights lie side by side in one array.

In: a Program. Out: for every batched mix the name of the array that holds its weights, and the
weights of all filled matrices, which are put together at once. Backends whose layers own their
weights keep them so, and no call has to bring them together; users see the canonical weights all
the same.
"""

from __future__ import annotations

from symcompile.ir import BatchMix, Program

__all__ = ["poured_of", "stacks_of"]


def stacks_of(program: Program) -> dict[str, tuple[str, ...]]:
    """Names of weights by the name of the array (weight, row, column) that holds them.

    No weight has such a name: theirs begin with mix, or are `bias`.
    """
    batches = [op.weights for op in program.ops if isinstance(op, BatchMix)]
    return {f"stack_{place}": weights for place, weights in enumerate(sorted(batches))}


def poured_of(program: Program) -> tuple[str, ...]:
    """Names of the weights that filled matrices are made of, each once."""
    return tuple(dict.fromkeys(name for filled in program.filled for name in filled.weights))
