"""What an operator of PyTorch is to autograd: a function with a gradient of its own.

In: an operator, its gradient, and what that one needs. Out: what autograd runs in its place.

The one thing to know: `torch.library.register_autograd` does this too, and takes arguments apart as
trees and puts them together, six times for a call and its gradient. On small tensors that takes
twice as long as the operator itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["is_batched", "with_gradient"]

_Places: TypeAlias = list[int | slice | None]
"""For every argument where its tensors are among all; none of what is no tensor."""

# Of many gradients at once (`is_grads_batched=`), an operator of lists takes none.
is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda x: False)


def with_gradient(
    op: Any, back: Callable[..., Any], keep: Callable[..., None]
) -> Callable[..., Any]:
    """The operator, for PyTorch's dispatch key "Autograd", with the set of keys as first argument.

    Args:
        back: from a context and the gradients of all results, or their list, to one gradient for
            every argument, for a list a list. In `ctx.needs` it finds, likewise, which are needed.
        keep: `keep(ctx, arguments, results)` lays down what `back` will need.
    """
    below, keys = torch._C._AutoDispatchBelowAutograd, torch._C._after_autograd_keyset
    back = _with_tangents(back)
    returns_list = str(op._schema.returns[0].type) == "List[Tensor]"
    defaults = [argument.default_value for argument in op._schema.arguments]

    def forward(ctx: Any, keyset: Any, args: list[Any], places: _Places, *tensors: Tensor) -> Any:
        ctx.places = places
        inputs = _filled(args, places, tensors)
        with below():
            found = op.redispatch(keyset & keys, *inputs)
        keep(ctx, inputs, found)
        return tuple(found) if returns_list else found

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        _, _, _, *needed = ctx.needs_input_grad
        ctx.needs = _filled([False] * len(ctx.places), ctx.places, needed)
        given = back(ctx, grads) if returns_list else back(ctx, *grads)
        flat: list[Any] = [None, None, None]
        for place, grad in zip(ctx.places, given, strict=True):
            if isinstance(place, slice):
                flat += grad or [None] * (place.stop - place.start)
            elif place is not None:
                flat.append(grad)
        return tuple(flat)

    name = "".join(part.title() for part in op._opname.split("_"))
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)

    def run(keyset: Any, *args: Any) -> Any:
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            with below():
                return op.redispatch(keyset & keys, *args)
        found = function.apply(keyset, *_apart([*args, *defaults[len(args) :]]))
        return list(found) if returns_list else found

    return run


def _apart(args: list[Any]) -> tuple[Any, ...]:
    """The arguments without tensors, the places of tensors, and those."""
    places: _Places = [None] * len(args)
    tensors: list[Tensor] = []
    for k, arg in enumerate(args):
        start = len(tensors)
        if isinstance(arg, Tensor):
            places[k], args[k] = start, None
            tensors.append(arg)
        elif isinstance(arg, list) and (not arg or isinstance(arg[0], Tensor)):
            places[k], args[k] = slice(start, start + len(arg)), None
            tensors += arg
    return args, places, *tensors


def _filled(args: Sequence[Any], places: _Places, given: Sequence[Any]) -> list[Any]:
    """The arguments, with what is given at the places of tensors."""
    filled = list(args)
    for k, place in enumerate(places):
        if place is not None:
            filled[k] = list(given[place]) if isinstance(place, slice) else given[place]
    return filled


def _with_tangents(back: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient of dual numbers too. It is linear, and operators would lose their tangents."""

    @wraps(back)
    def both(ctx: Any, *grads: Any) -> Any:
        if forward_ad._current_level < 0:
            return back(ctx, *grads)
        unpack: Any = forward_ad.unpack_dual
        given: list[Tensor | None]
        given, tree = optree.tree_flatten(grads, none_is_leaf=True)  # type: ignore[arg-type]
        pairs = [(None, None) if grad is None else unpack(grad) for grad in given]
        values, tangents = zip(*pairs, strict=True)
        if all(tangent is None for tangent in tangents):
            return back(ctx, *grads)
        filled = [
            torch.zeros_like(value) if tangent is None and value is not None else tangent
            for value, tangent in pairs
        ]
        made = [back(ctx, *tree.unflatten(side)) for side in (values, filled)]
        return optree.tree_map(forward_ad.make_dual, *made)  # none for what needs none

    return both
