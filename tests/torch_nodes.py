"""Which node of autograd an output of a layer comes from."""

from __future__ import annotations

from typing import Any

__all__ = ["node_of"]


def node_of(y: Any) -> str:
    """The name of the node that made it, before its axes were moved."""
    node = y.grad_fn
    while type(node).__name__ == "PermuteBackward0":
        node = node.next_functions[0][0]
    return type(node).__name__
