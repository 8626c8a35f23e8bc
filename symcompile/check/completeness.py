"""Does a layer reach every equivariant map, each in one way only?

In: a spec (or a layer) and sizes. Out: a `CompletenessReport`, or a `CheckError`. By brute force
and with no diagrams: the equivariant linear maps are the matrices that are constant on the orbits
of the group on pairs (output entry, input entry), so the number of orbits is their dimension
(Maron et al. 2019, §3; Godfrey et al. arXiv 2303.06208). The layer's own maps are read off one
weight at a time, and their rank must be that dimension.

The one thing to know: channels and fixed axes are entries that no permutation moves, so every
combination of them counts as an orbit of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from symcompile.check.draw import Array, atom_sizes, labels_of, permute, stored_shape
from symcompile.check.run import Run, compiled_of, expect, runner
from symcompile.codegen import Compiled
from symcompile.errors import CheckError, OptionError
from symcompile.spec import Label, Leaf, PermSpec, bind_specs, format_label, format_path, parse_spec

__all__ = ["CompletenessReport", "check_completeness"]

_LIMIT = 20_000_000
"""Most matrix entries looked at, over all weights."""

_NULL_SPACE_LIMIT = 256
"""Most matrix entries for which the dimension is computed a second way, by singular values."""

_ROUNDING = 1e-9
"""Of float64 maps with entries of at most 1."""


@dataclass(frozen=True, slots=True)
class CompletenessReport:
    """Figures of a passed check.

    Attributes:
        weights: number of scalar weights, bias left out.
        rank: of the maps they multiply.
        dimension: of all equivariant linear maps, counted as orbits.
        constants: number of bias weights; also their rank, and the number of equivariant
            constants. None where the layer has no bias.
        null_space: the dimension again, as the null space of the group's constraints; None where
            that is too large.
        sizes: what the labels measure.
    """

    weights: int
    rank: int
    dimension: int
    constants: int | None
    null_space: int | None
    sizes: tuple[tuple[Label, int], ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{format_label(label)}: {size}" for label, size in self.sizes[:8])
        bias = "" if self.constants is None else f", {self.constants} constants"
        return (
            f"complete: {self.weights} weights, rank {self.rank}, dimension {self.dimension}{bias} "
            f"at sizes {{{shown}}}"
        )


@dataclass(frozen=True, slots=True)
class _Side:
    """All entries of all tensors of one side, counted through."""

    leaves: tuple[Leaf, ...]
    shapes: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    total: int


def check_completeness(
    spec: Any = None,
    out_spec: Any = None,
    *,
    layer: Any = None,
    sizes: Mapping[Any, int] | None = None,
    bias: bool = True,
    limit: int = _LIMIT,
    **options: Any,
) -> CompletenessReport:
    """Check that number of weights, rank of their maps and dimension are one number.

    Args:
        spec, out_spec: what to compile, with all sizes bound.
        layer: a layer to check instead, of any backend.
        sizes: by label. A label without one gets the size from which on all diagrams are
            independent (its axes in one output and one input). A layer compiled without sizes has
            all diagrams, and is dependent at smaller ones.
        bias: compile with bias.
        limit: refuse to look at more matrix entries than this.
        options: as for `compile`; channels are 1 and the backend is "numpy" unless given.

    Returns:
        the figures.

    Raises:
        CheckError: a map is missing, dependent on others, or not equivariant.
        OptionError: too large for brute force, of low rank, or an argument is not allowed.

    >>> for n in (1, 2, 3, 4):
    ...     print(check_completeness((0, 0), sizes={0: n}, bias=False))
    complete: 1 weights, rank 1, dimension 1 at sizes {0: 1}
    complete: 8 weights, rank 8, dimension 8 at sizes {0: 2}
    complete: 14 weights, rank 14, dimension 14 at sizes {0: 3}
    complete: 15 weights, rank 15, dimension 15 at sizes {0: 4}
    """
    if (layer is None) == (spec is None):
        raise OptionError("give either a spec, or layer=")
    if layer is None:
        layer, bound = _build(spec, out_spec, sizes, bias, limit, options)
    else:
        if out_spec is not None or options:
            raise OptionError("a layer brings its specs and options; give only sizes= and limit=")
        compiled = compiled_of(layer)
        source, target = bind_specs(compiled.spec, compiled.out_spec, sizes=sizes)
        bound = _filled(source, target)
    return _check(layer, compiled_of(layer), bound, limit)


def _build(
    spec: Any,
    out_spec: Any,
    sizes: Mapping[Any, int] | None,
    bias: bool,
    limit: int,
    options: dict[str, Any],
) -> tuple[Any, dict[Label, int]]:
    from symcompile.api import compile  # the API is above the checks: it must not load them

    full: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "backend": "numpy", **options}
    shapes, out_shapes = full.pop("shapes", None), full.pop("out_shapes", None)
    source = parse_spec(spec)
    target = None if out_spec is None else parse_spec(out_spec)
    source, target = bind_specs(source, target, shapes, out_shapes, sizes)
    bound = _filled(source, target)
    entries = _entries(source, bound) * _entries(target, bound)
    _refuse(entries, limit)  # before the compiler spends time on it
    return compile(source, target, bias=bias, sizes=bound, **full), bound


def _entries(spec: PermSpec, sizes: Mapping[Label, int]) -> int:
    return sum(prod(atom_sizes(leaf, sizes)) for leaf in spec.leaves)


def _filled(source: PermSpec, target: PermSpec) -> dict[Label, int]:
    """Bound sizes, and for the rest the least at which no diagram is dependent."""
    bound = dict(source.sizes) | dict(target.sizes)
    return {
        label: bound.get(label)
        or sum(
            max((leaf.labels.count(label) for leaf in side.leaves), default=0)
            for side in (source, target)
        )
        for label in labels_of(source, target)
    }


def _refuse(entries: int, limit: int) -> None:
    if entries > limit:
        raise OptionError(
            f"brute force would look at {entries:,} matrix entries, more than limit={limit:,}; "
            "give smaller sizes=, check a smaller spec of the same form, or raise limit="
        )


def _refuse_low_rank(compiled: Compiled) -> None:
    if any(weight.factors for weight in compiled.schema.weights):
        raise OptionError(
            "a layer of low rank is not complete, by design: its maps share weights; check the "
            "same layer without rank="
        )


def _check(
    layer: Any, compiled: Compiled, sizes: dict[Label, int], limit: int
) -> CompletenessReport:
    _refuse_low_rank(compiled)
    into = _side(compiled.spec, [t.channels for t in compiled.program.inputs], sizes)
    out = _side(compiled.out_spec, [t.channels for t in compiled.program.outputs], sizes)
    weights = sum(prod(shape) for name, shape in compiled.shapes.items() if name != "bias")
    _refuse(out.total * into.total * max(weights, 1), limit)
    moves_in, moves_out = _generators(into, sizes), _generators(out, sizes)
    pairs = _orbits(
        [
            (a[:, None] * into.total + b[None, :]).ravel()
            for a, b in zip(moves_out, moves_in, strict=True)
        ],
        out.total * into.total,
    )
    null_space = _null_space(moves_out, moves_in, out.total, into.total)
    dimension = int(pairs.max(initial=-1)) + 1
    if null_space is not None and null_space != dimension:
        raise AssertionError(f"{dimension} orbits, yet a null space of dimension {null_space}")

    names, maps, constants = _maps(layer, compiled, into, out, sizes)
    values = _on_orbits(maps, pairs, names, out, into)
    _compare(values, pairs, names, out, into)
    found_constants = None
    if "bias" in compiled.shapes:
        entries = _orbits(moves_out, out.total)
        biases = [f"bias[{place}]" for place in range(len(constants))]
        found = _on_orbits(constants, entries, biases, out, None)
        _compare(found, entries, biases, out, None)
        found_constants = len(constants)
    _check_linear(layer, compiled, maps, constants, into, out, sizes)
    rank = _rank(values)
    return CompletenessReport(
        weights, rank, dimension, found_constants, null_space, tuple(sizes.items())
    )


def _side(spec: PermSpec, channels: Sequence[int], sizes: Mapping[Label, int]) -> _Side:
    shapes = tuple(
        (*stored_shape(leaf, sizes), count)
        for leaf, count in zip(spec.leaves, channels, strict=True)
    )
    counts = [prod(shape) for shape in shapes]
    starts = tuple(sum(counts[:place]) for place in range(len(counts)))
    return _Side(spec.leaves, shapes, starts, sum(counts))


def _generators(side: _Side, sizes: Mapping[Label, int]) -> list[Array]:
    """How a transposition and a cycle of every label move the entries of a side."""
    moves = []
    for label, size in sizes.items():
        cycle = np.roll(np.arange(size), 1)
        swap = np.arange(size)
        swap[:2] = swap[:2][::-1]
        for permutation in (swap, cycle):
            moves.append(
                np.concatenate(
                    [
                        permute(
                            np.arange(prod(shape)).reshape(shape), leaf, sizes, {label: permutation}
                        ).ravel()
                        + start
                        for leaf, shape, start in zip(
                            side.leaves, side.shapes, side.starts, strict=True
                        )
                    ]
                )
            )
    return moves


def _orbits(moves: Sequence[Array], count: int) -> Array:
    """The orbit number of every entry: the least entry reached, spread until nothing changes."""
    least = np.arange(count)
    while True:
        before = least.copy()
        for move in moves:
            least = np.minimum(least, least[move])
            np.minimum.at(least, move, least.copy())
        least = least[least]
        if np.array_equal(least, before):
            break
    numbers: Array = np.unique(least, return_inverse=True)[1]
    return numbers


def _null_space(
    moves_out: Sequence[Array], moves_in: Sequence[Array], rows: int, columns: int
) -> int | None:
    """Dimension of all M with M g = g M for the generators g."""
    if rows * columns > _NULL_SPACE_LIMIT:
        return None
    eye_out, eye_in = np.eye(rows), np.eye(columns)
    identity = np.eye(rows * columns)
    constraints = [
        np.kron(eye_out[a], eye_in[b]) - identity for a, b in zip(moves_out, moves_in, strict=True)
    ]
    return rows * columns - int(np.linalg.matrix_rank(np.concatenate([*constraints, 0 * identity])))


def _maps(
    layer: Any, compiled: Compiled, into: _Side, out: _Side, sizes: Mapping[Label, int]
) -> tuple[list[str], list[Array], list[Array]]:
    """Names and matrices (out, in) of all weights, and the constants of the bias's."""
    names: list[str] = []
    maps: list[Array] = []
    constants: list[Array] = []
    identity, zero = np.eye(into.total), np.zeros((1, into.total))
    zeros = {name: np.zeros(shape) for name, shape in compiled.shapes.items()}
    for name, shape in compiled.shapes.items():
        for place in np.ndindex(shape):
            one_hot = np.zeros(shape)
            one_hot[place] = 1
            run = runner(layer, zeros | {name: one_hot}, np.dtype(np.float64))
            if name == "bias":
                constants.append(_apply(run, zero, compiled, into, out, sizes)[0])
            else:
                names.append(f"{name}[{', '.join(map(str, place))}]")
                maps.append(_apply(run, identity, compiled, into, out, sizes).T)
    return names, maps, constants


def _apply(
    run: Run, x: Array, compiled: Compiled, into: _Side, out: _Side, sizes: Mapping[Label, int]
) -> Array:
    """A layer on a stack of flat inputs."""
    batch = (len(x),)
    ends = [*into.starts[1:], into.total]
    y = run(
        [
            x[:, start:end].reshape(*batch, *shape)
            for start, end, shape in zip(into.starts, ends, into.shapes, strict=True)
        ]
    )
    expect(y, compiled.out_spec, sizes, batch, [shape[-1] for shape in out.shapes])
    return np.concatenate([value.reshape(len(x), -1) for value in y], axis=1)


def _on_orbits(
    maps: Sequence[Array], orbits: Array, names: Sequence[str], out: _Side, into: _Side | None
) -> Array:
    """The value of every map on every orbit; rows are maps, scaled to length 1 as matrices."""
    count = int(orbits.max(initial=-1)) + 1
    first = np.unique(orbits, return_index=True)[1]
    values = np.zeros((len(maps), count))
    members = np.sqrt(np.bincount(orbits, minlength=count))
    for row, (name, entries) in enumerate(zip(names, maps, strict=True)):
        flat = entries.ravel()
        wrong = np.abs(flat - flat[first][orbits])
        size = np.abs(flat).max(initial=0.0)
        if not np.all(wrong <= _ROUNDING * max(size, 1)):
            where = _where(int(np.argmax(wrong)), out, into)
            raise CheckError(
                f"the map of weight {name} is not equivariant ({where}): entries that a "
                f"permutation takes to each other differ by {wrong.max():.3g}"
            )
        value = flat[first] * members
        values[row] = value / (np.linalg.norm(value) or 1)
    return values


def _compare(
    values: Array, orbits: Array, names: Sequence[str], out: _Side, into: _Side | None
) -> None:
    """Raise unless the rows of `values` are a basis; name a pair of tensors where they are not."""
    count, dimension = values.shape
    rank = _rank(values)
    if count == rank == dimension:
        return
    what = "equivariant map" if into is not None else "equivariant constant"
    first = np.unique(orbits, return_index=True)[1]
    pairs = [_where(int(entry), out, into) for entry in first]
    for pair in dict.fromkeys(pairs):
        columns = [place for place, other in enumerate(pairs) if other == pair]
        own = values[:, columns]
        used = [name for name, row in zip(names, own, strict=True) if np.abs(row).max() > _ROUNDING]
        reached = _rank(own)
        if reached < len(columns):
            raise CheckError(
                f"incomplete ({pair}): the layer reaches {reached} of {len(columns)} {what}s; "
                "a basis element is missing from its weights or its program"
            )
        if len(used) > reached:
            shown = ", ".join(used[:6]) + (", ..." if len(used) > 6 else "")
            raise CheckError(
                f"redundant ({pair}): {len(used)} weights ({shown}) span only {reached} {what}s; "
                "a basis element appears twice, or the layer was compiled without sizes= and has "
                "more diagrams than these sizes tell apart"
            )
    raise CheckError(
        f"{count} weights span {rank} {what}s of {dimension}; some weight does nothing, or acts "
        "on several pairs of tensors at once"
    )


def _rank(values: Array) -> int:
    return int(np.linalg.matrix_rank(values, tol=_ROUNDING)) if values.size else 0


def _where(entry: int, out: _Side, into: _Side | None) -> str:
    """The tensors an entry of a flattened map joins."""

    def leaf(side: _Side, place: int) -> str:
        return format_path(side.leaves[int(np.searchsorted(side.starts, place, "right")) - 1].path)

    if into is None:
        return f"y{leaf(out, entry)}"
    return f"y{leaf(out, entry // into.total)} from x{leaf(into, entry % into.total)}"


def _check_linear(
    layer: Any,
    compiled: Compiled,
    maps: Sequence[Array],
    constants: Sequence[Array],
    into: _Side,
    out: _Side,
    sizes: Mapping[Label, int],
) -> None:
    """The maps say everything about a layer only if it is linear in weights and inputs."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in compiled.shapes.items()}
    x = rng.standard_normal((1, into.total))
    found = _apply(runner(layer, weights, np.dtype(np.float64)), x, compiled, into, out, sizes)[0]
    scalars = [weights[name].ravel() for name in compiled.shapes if name != "bias"]
    matrix = np.zeros((out.total, into.total))
    for scalar, entries in zip(np.concatenate([*scalars, []]), maps, strict=True):
        matrix += scalar * entries
    wanted = matrix @ x[0]
    for scalar, constant in zip(weights.get("bias", np.zeros(0)), constants, strict=True):
        wanted = wanted + scalar * constant
    wrong = np.abs(found - wanted)
    if not np.all(wrong <= _ROUNDING * max(float(np.abs(wanted).max(initial=0.0)), 1)):
        raise CheckError(
            f"not linear ({_where(int(np.argmax(wrong)), out, None)}): the output for random "
            f"weights and inputs differs by {wrong.max():.3g} from the sum of the maps of single "
            "weights"
        )
