"""Channel counts: one int for all leaves, or one per leaf.

In: a `PermSpec`, and an int or a tree of ints with the same paths.
Out: a tuple of ints, one for each leaf, in canonical order.
"""

from __future__ import annotations

from typing import Any

from symcompile.errors import OptionError
from symcompile.spec.trees import flatten_like
from symcompile.spec.types import INT_LIMIT, PermSpec, format_path, plain_int, short_repr

__all__ = ["resolve_channels"]


def resolve_channels(spec: PermSpec, channels: Any, what: str) -> tuple[int, ...]:
    """The number of channels of each leaf of `spec`, in canonical order.

    `channels` is one positive int for all leaves, or a tree of them with the paths of `spec`;
    `what` names the option ("in_channels", "out_channels") in messages.

    Raises `OptionError` for anything but a positive int, `ShapeError` for missing or extra leaves.

    >>> from symcompile.spec.parse import parse_spec
    >>> spec = parse_spec({"w": (0, 1), "b": (1,)})
    >>> resolve_channels(spec, 8, "in_channels")
    (8, 8)
    >>> resolve_channels(spec, {"w": 3, "b": 1}, "in_channels")
    (1, 3)
    """
    if plain_int(channels) is not None or isinstance(channels, bool | float | str | None):
        return (_count(channels, what),) * len(spec.leaves)
    given = flatten_like(spec, channels, what)
    return tuple(
        _count(value, f"{what}, {format_path(leaf.path)}")
        for leaf, value in zip(spec.leaves, given, strict=True)
    )


def _count(value: object, where: str) -> int:
    count = plain_int(value)
    if count is None or not 0 < count < INT_LIMIT:
        raise OptionError(
            f"{where}: found {short_repr(value)}, expected a positive int; give one for all "
            "leaves, or a tree of them with the same paths as the spec"
        )
    return count
