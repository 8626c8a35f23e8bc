"""Does a layer commute with the permutations of its spec?

In: a layer of any backend, or a function of NumPy trees with its specs. Out: an
`EquivarianceReport`, or a `CheckError`. It tests the definition itself, layer(g x) = g layer(x)
(Maron et al. 2019, eq. 1), on random weights, inputs and permutations g.

The one thing to know: unless sizes are given, trials take turns between sizes that all differ
(axes mixed up show there) and sizes that are all equal (labels mixed up show there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from symcompile.check.draw import (
    Array,
    draw_permutations,
    dtype_of,
    labels_of,
    permute,
    tolerance_of,
    wide,
)
from symcompile.check.run import (
    Leaves,
    Run,
    compiled_of,
    draw_inputs,
    draw_weights,
    expect,
    runner,
)
from symcompile.errors import CheckError, OptionError
from symcompile.spec import (
    Label,
    Path,
    PermSpec,
    bind_specs,
    flatten_like,
    format_label,
    format_path,
    parse_spec,
    resolve_channels,
    unflatten,
)

__all__ = ["EquivarianceReport", "check_equivariance"]

_EQUAL = 3
_DISTINCT = (3, 8)
"""Sizes tried where none are bound: all 3, and 3 to 8 in turn."""


@dataclass(frozen=True, slots=True)
class EquivarianceReport:
    """Figures of a passed check.

    Attributes:
        max_error: largest |layer(g x) - g layer(x)| met.
        scale: largest |layer(x)| of the trial where the relative error was largest.
        relative: largest error relative to its trial's scale.
        tolerance: what `relative` was held to.
        trials: how many (input, permutation) pairs were tried.
        worst_path: the output where the relative error was largest.
        dtype: of the outputs.
        permuted: the labels that were permuted; one of size 1 never is.
    """

    max_error: float
    scale: float
    relative: float
    tolerance: float
    trials: int
    worst_path: Path
    dtype: str
    permuted: tuple[Label, ...]

    def __str__(self) -> str:
        if not self.permuted:
            return (
                "nothing was permuted, since every label has size 1: the check says nothing; "
                "give larger sizes"
            )
        return (
            f"equivariant: largest error {self.max_error:.2g}, relative {self.relative:.2g} "
            f"(tolerance {self.tolerance:.2g}, {self.dtype}) at y{format_path(self.worst_path)}, "
            f"in {self.trials} trials"
        )


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is checked."""

    run: Callable[[np.random.Generator], Run]
    spec: PermSpec
    out_spec: PermSpec
    in_channels: tuple[int, ...]
    out_channels: tuple[int, ...] | None


def check_equivariance(
    layer: Any = None,
    *,
    function: Callable[[Any], Any] | None = None,
    spec: Any = None,
    out_spec: Any = None,
    in_channels: Any = 1,
    weights: Mapping[str, Any] | None = None,
    sizes: Mapping[Any, int] | None = None,
    batch_shapes: Sequence[tuple[int, ...]] = ((), (3,), (2, 2)),
    trials: int = 3,
    seed: int = 0,
    tolerance: float | None = None,
    dtype: str = "float64",
) -> EquivarianceReport:
    """Check that permuting a layer's inputs permutes its outputs likewise.

    Args:
        layer: what `symcompile.compile` returned, of any backend.
        function, spec, out_spec, in_channels: instead of a layer, a function from a tree of NumPy
            arrays to a tree of them, a leaf of shape (*batch, *axes, channels), and the specs it
            should obey (`out_spec` defaults to `spec`).
        weights: of the layer; default standard normal, drawn anew for every trial.
        sizes: by label, for labels that are not bound; default small ones, different and equal in
            turn.
        batch_shapes: batch axes to try.
        trials: how often each batch shape is tried.
        seed: of inputs, weights and permutations.
        tolerance: largest error allowed, relative to the largest output; default what rounding
            explains in the dtype that comes back (1e-12 for float64, 1e-5 for float32).
        dtype: of inputs and drawn weights.

    Returns:
        the figures.

    Raises:
        CheckError: the layer is not equivariant, or an output's shape does not follow the spec.
        OptionError: an argument is not allowed.
        ShapeError: `sizes` contradict the spec.

    >>> import symcompile as sc
    >>> layer = sc.compile({"w": (0, 0)}, in_channels=2, out_channels=3, backend="numpy")
    >>> report = check_equivariance(layer)
    >>> report.trials, report.relative < 1e-12
    (9, True)
    >>> check_equivariance(function=lambda x: x.cumsum(-2), spec=(0,))
    Traceback (most recent call last):
    symcompile.errors.CheckError: not equivariant...
    """
    kind = dtype_of(dtype)
    if trials < 1 or not batch_shapes:
        raise OptionError("trials and batch_shapes must not be empty; nothing would be checked")
    subject = _subject(layer, function, spec, out_spec, in_channels, weights, sizes, kind)
    rng = np.random.default_rng(seed)
    worst: EquivarianceReport | None = None
    largest = 0.0
    for trial in range(trials):
        filled = _fill(subject, equal=trial % 2 == 1)
        for batch in batch_shapes:
            report = _trial(subject, rng, filled, batch, kind, tolerance)
            largest = max(largest, report.max_error)
            if worst is None or report.relative > worst.relative:
                worst = report
    assert worst is not None, "there was a trial"
    return EquivarianceReport(
        largest,
        worst.scale,
        worst.relative,
        worst.tolerance,
        trials * len(batch_shapes),
        worst.worst_path,
        worst.dtype,
        worst.permuted,
    )


def _subject(
    layer: Any,
    function: Callable[[Any], Any] | None,
    spec: Any,
    out_spec: Any,
    in_channels: Any,
    weights: Mapping[str, Any] | None,
    sizes: Mapping[Any, int] | None,
    kind: np.dtype[Any],
) -> _Subject:
    if (layer is None) == (function is None):
        raise OptionError("give either a layer, or function= with its spec=")
    if layer is not None:
        if spec is not None or out_spec is not None:
            raise OptionError("a layer brings its specs; leave out spec= and out_spec=")
        compiled = compiled_of(layer)
        source, target = bind_specs(compiled.spec, compiled.out_spec, sizes=sizes)
        return _Subject(
            lambda rng: runner(
                layer, draw_weights(rng, compiled, kind) if weights is None else weights, kind
            ),
            source,
            target,
            tuple(tensor.channels for tensor in compiled.program.inputs),
            tuple(tensor.channels for tensor in compiled.program.outputs),
        )
    if spec is None or weights is not None:
        raise OptionError("function= takes spec= (and out_spec=, in_channels=), and no weights=")
    assert function is not None, "one of the two was given"
    source = parse_spec(spec)
    target = source if out_spec is None else parse_spec(out_spec)
    source, target = bind_specs(source, target, sizes=sizes)
    channels = resolve_channels(source, in_channels, "in_channels")
    return _Subject(lambda rng: _plain(function, source, target), source, target, channels, None)


def _plain(function: Callable[[Any], Any], source: PermSpec, target: PermSpec) -> Run:
    def run(leaves: Sequence[Array]) -> Leaves:
        y = function(unflatten(source, list(leaves)))
        return [np.asarray(output) for output in flatten_like(target, y, "y")]

    return run


def _fill(subject: _Subject, *, equal: bool) -> dict[Label, int]:
    """Sizes of all labels: bound ones, and small ones for the rest."""
    sizes = dict(subject.spec.sizes) | dict(subject.out_spec.sizes)
    low, high = _DISTINCT
    free = [label for label in labels_of(subject.spec, subject.out_spec) if label not in sizes]
    for place, label in enumerate(free):
        sizes[label] = _EQUAL if equal else low + place % (high - low + 1)
    return sizes


def _trial(
    subject: _Subject,
    rng: np.random.Generator,
    sizes: dict[Label, int],
    batch: tuple[int, ...],
    kind: np.dtype[Any],
    tolerance: float | None,
) -> EquivarianceReport:
    run = subject.run(rng)
    x = draw_inputs(rng, subject.spec, subject.in_channels, sizes, batch, kind)
    permutations = draw_permutations(rng, sizes)
    y = run(x)
    expect(y, subject.out_spec, sizes, batch, subject.out_channels)
    scale = max((float(np.abs(wide(v)).max(initial=0.0)) for v in y), default=0.0)
    errors = _errors(subject, run, x, y, sizes, permutations)
    place = int(np.argmax(errors)) if errors else 0  # argmax finds a NaN first
    allowed = max(tolerance_of(v.dtype) for v in y) if tolerance is None else tolerance
    path = subject.out_spec.leaves[place].path
    error = errors[place]
    relative = error / scale if scale else (0.0 if error == 0 else float("inf"))
    if not relative <= allowed:
        label = _culprit(subject, run, x, y, sizes, permutations)
        raise CheckError(_message(path, label, error, scale, allowed, sizes, batch, kind.name))
    permuted = tuple(label for label, size in sizes.items() if size > 1)
    return EquivarianceReport(error, scale, relative, allowed, 1, path, y[0].dtype.name, permuted)


def _errors(
    subject: _Subject,
    run: Run,
    x: Sequence[Array],
    y: Sequence[Array],
    sizes: Mapping[Label, int],
    permutations: Mapping[Label, Array],
) -> list[float]:
    """Per output leaf, the largest |run(g x) - g run(x)|."""
    moved = [
        permute(value, leaf, sizes, permutations)
        for value, leaf in zip(x, subject.spec.leaves, strict=True)
    ]
    after = run(moved)
    errors = []
    for place, leaf in enumerate(subject.out_spec.leaves):
        if after[place].shape != y[place].shape:
            raise CheckError(
                f"y{format_path(leaf.path)} has shape {after[place].shape} for permuted inputs, "
                f"{y[place].shape} before; the shape must not depend on the values"
            )
        wanted = permute(y[place], leaf, sizes, permutations)
        difference = np.abs(wide(after[place]) - wide(wanted))
        errors.append(float(difference.max(initial=0.0)))
    return errors


def _culprit(
    subject: _Subject,
    run: Run,
    x: Sequence[Array],
    y: Sequence[Array],
    sizes: Mapping[Label, int],
    permutations: Mapping[Label, Array],
) -> Label | None:
    """The label whose permutation alone gives the largest error."""
    alone = {
        label: max(_errors(subject, run, x, y, sizes, {label: permutation}), default=0.0)
        for label, permutation in permutations.items()
    }
    worst = max(alone, key=lambda label: alone[label], default=None)
    return None if worst is None or alone[worst] == 0 else worst


def _message(
    path: Path,
    label: Label | None,
    error: float,
    scale: float,
    tolerance: float,
    sizes: Mapping[Label, int],
    batch: tuple[int, ...],
    dtype: str,
) -> str:
    shown = ", ".join(f"{format_label(key)}: {size}" for key, size in list(sizes.items())[:8])
    which = "" if label is None else f", most for the permutation of label {format_label(label)}"
    return (
        f"not equivariant at y{format_path(path)}{which}: layer(permuted x) differs from permuted "
        f"layer(x) by {error:.3g} where outputs reach {scale:.3g} (relative tolerance "
        f"{tolerance:.1g}, {dtype}, sizes {{{shown}}}, batch {batch}). If the layer is right, its "
        "rounding is coarser than its dtype says: raise tolerance=; otherwise look at how that "
        "output depends on the order of that label's axes"
    )
