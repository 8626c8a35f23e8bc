"""What the layer libraries of all frameworks decide alike, and before any array is there.

In: specs and options. Out: checked options, positions of axes, numbers of features.
The one thing to know: axes are counted from the end, channels being axis -1, and after composites
were split into atoms, so that batch axes never matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

from symcompile.errors import OptionError, ShapeError
from symcompile.spec import Fixed, Label, Leaf, Perm, PermSpec, format_path, format_place
from symcompile.spec.types import plain_int, short_repr

__all__ = [
    "FIVE_NUMBERS",
    "Fibre",
    "Statistic",
    "check_rate",
    "count",
    "fibres",
    "fixed_axes",
    "fixed_sizes",
    "frequencies",
    "head_width",
    "parse_stats",
    "permuted_axes",
    "pooled_features",
    "require_order",
]

Statistic: TypeAlias = str | float
"""One of `MOMENTS`, or a quantile between 0 and 1."""

MOMENTS = ("mean", "sum", "max", "var")
FIVE_NUMBERS: tuple[Statistic, ...] = ("mean", "var", 0.0, 0.25, 0.5, 0.75, 1.0)
"""What `StatFeaturizer` tells of a tensor."""


def parse_stats(stats: Any) -> tuple[Statistic, ...]:
    """The statistics of a pool.

    Raises `OptionError` for an empty sequence, an unknown name or a quantile outside [0, 1].

    >>> parse_stats(["mean", 0.5, 1])
    ('mean', 0.5, 1.0)
    """
    if isinstance(stats, str) or not isinstance(stats, Sequence) or not stats:
        raise OptionError(
            f"stats: found {short_repr(stats)}, expected a sequence of {', '.join(MOMENTS)} and "
            "quantiles between 0 and 1; write for example ('mean', 0.5)"
        )
    return tuple(_statistic(stat) for stat in stats)


def _statistic(stat: Any) -> Statistic:
    if isinstance(stat, str) and stat in MOMENTS:
        return stat
    if isinstance(stat, int | float) and not isinstance(stat, bool) and 0 <= stat <= 1:
        return float(stat)
    raise OptionError(
        f"stats: found {short_repr(stat)}, expected one of {', '.join(MOMENTS)}, or a quantile "
        "between 0 and 1"
    )


def permuted_axes(leaf: Leaf) -> tuple[int, ...]:
    """The atoms of a leaf that a permutation moves.

    >>> from symcompile.spec import parse_spec
    >>> (leaf,) = parse_spec((("h", Fixed(4)), "o")).leaves
    >>> permuted_axes(leaf), fixed_axes(leaf)
    ((-4, -2), (-3,))
    """
    return _axes(leaf, Perm)


def fixed_axes(leaf: Leaf) -> tuple[int, ...]:
    """The atoms of a leaf that no permutation moves."""
    return _axes(leaf, Fixed)


def _axes(leaf: Leaf, kind: type[Perm | Fixed]) -> tuple[int, ...]:
    atoms = leaf.atoms
    return tuple(i - len(atoms) - 1 for i, atom in enumerate(atoms) if isinstance(atom, kind))


def fixed_sizes(leaf: Leaf) -> tuple[int, ...]:
    """The sizes of a leaf's fixed atoms.

    Raises `ShapeError` for one written None whose size is not bound.
    """
    sizes = tuple(atom.size for atom in leaf.fixed)
    for size in sizes:
        if size is None:
            raise ShapeError(
                f"spec{format_path(leaf.path)}: a fixed axis written None has no size; give "
                "shapes=, or write Fixed(n)"
            )
    return tuple(size for size in sizes if size is not None)


def require_order(leaf: Leaf, stats: Sequence[Statistic], *, is_complex: bool) -> None:
    """Raise `ShapeError` for statistics of complex numbers that ask which is the larger."""
    if is_complex and not {"mean", "sum", "var"}.issuperset(stats):
        raise ShapeError(
            f"{format_place(leaf.path)} is complex, and complex numbers have no order: for max and "
            "quantiles give real and imaginary parts as channels; without, ask for other statistics"
        )


def pooled_features(
    spec: PermSpec, channels: Sequence[int], stats: Sequence[Statistic], *, keep_fixed: bool
) -> int:
    """How many features a pool makes: fixed indices x channels x statistics, over all leaves."""
    kept = [prod(fixed_sizes(leaf)) if keep_fixed else 1 for leaf in spec.leaves]
    return len(stats) * sum(n * c for n, c in zip(kept, channels, strict=True))


@dataclass(frozen=True, slots=True)
class Fibre:
    """The vectors along one permuted atom of one tensor.

    Attributes:
        leaf: number of the tensor.
        axis: of the atom, from the end.
        role: number among all permuted atoms and tensors; a tensor comes after its atoms.
    """

    leaf: int
    axis: int
    role: int


def fibres(spec: PermSpec) -> tuple[tuple[tuple[Label, tuple[Fibre, ...]], ...], tuple[int, ...]]:
    """For every label the fibres along it, and for every tensor the role of its mean.

    >>> from symcompile.spec import parse_spec
    >>> by_label, means = fibres(parse_spec([(0, 1), (1,)]))
    >>> [(label, [(f.leaf, f.axis, f.role) for f in found]) for label, found in by_label]
    [(0, [(0, -3, 0)]), (1, [(0, -2, 1), (1, -2, 3)])]
    >>> means
    (2, 4)
    """
    found: dict[Label, list[Fibre]] = {label: [] for label in spec.labels}
    means, role = [], 0
    for number, leaf in enumerate(spec.leaves):
        for label, axis in zip(leaf.labels, permuted_axes(leaf), strict=True):
            found[label].append(Fibre(number, axis, role))
            role += 1
        means.append(role)
        role += 1
    return tuple((label, tuple(along)) for label, along in found.items()), tuple(means)


def head_width(channels: Any, heads: Any) -> int:
    """Channels of one head; raises `OptionError` unless `heads` divides `channels`."""
    total, number = count(channels, "channels"), count(heads, "heads")
    if total % number:
        raise OptionError(
            f"heads={number} does not divide channels={total}; choose a number of heads that does"
        )
    return total // number


def frequencies(num_bands: Any, max_period: Any) -> tuple[float, ...]:
    """max_period ** (-k / num_bands) for k = 0 .. num_bands - 1.

    >>> frequencies(2, 100.0)
    (1.0, 0.1)
    """
    bands = count(num_bands, "num_bands")
    if not isinstance(max_period, int | float) or not max_period > 0:
        raise OptionError(f"max_period: found {short_repr(max_period)}, expected a positive number")
    return tuple(max_period ** (-band / bands) for band in range(bands))


def check_rate(rate: Any) -> float:
    """A rate of dropout; raises `OptionError` unless 0 <= rate < 1."""
    if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate < 1:
        return float(rate)
    raise OptionError(f"rate: found {short_repr(rate)}, expected a number in [0, 1)")


def count(value: Any, what: str) -> int:
    """A positive int; raises `OptionError` otherwise."""
    number = plain_int(value)
    if number is None or number < 1:
        raise OptionError(f"{what}: found {short_repr(value)}, expected a positive int")
    return number
