"""Do all backends and all plans compute the same layer?

In: a spec and options. Out: an `AgreementReport`, or a `CheckError`. Every backend gets the same
canonical weights and the same inputs, for the reference program (`optimize=False`) and the planned
one; all are compared with the first, NumPy's reference program if it is among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from symcompile.check.draw import dtype_of, labels_of, tolerance_of, wide
from symcompile.check.run import Leaves, draw_inputs, draw_weights, expect, runner
from symcompile.codegen import Backend, Compiled, backend_names, get_backend
from symcompile.errors import BackendError, CheckError, OptionError
from symcompile.spec import Label, bind_specs, format_path

__all__ = ["AgreementReport", "Comparison", "check_backends"]

_FIRST_SIZE, _LAST_SIZE = 2, 6
"""Sizes of labels that are not bound: 2 to 6 in turn."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One backend and plan against the first.

    Attributes:
        backend, optimize: what was run.
        dtype: of weights and inputs.
        max_error: largest difference of any output entry.
        relative: the same, relative to the largest output.
        tolerance: what `relative` was held to.
    """

    backend: str
    optimize: str
    dtype: str
    max_error: float
    relative: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class AgreementReport:
    """Figures of a passed check.

    Attributes:
        baseline: the backend and plan the others were compared with.
        comparisons: one per other backend and plan, and dtype.
        skipped: installed backends whose framework cannot be imported, and why.
    """

    baseline: str
    comparisons: tuple[Comparison, ...]
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"all agree with {self.baseline}:"]
        lines += [
            f"  {c.backend} optimize={c.optimize} {c.dtype}: largest difference {c.max_error:.2g}, "
            f"relative {c.relative:.2g} (tolerance {c.tolerance:.0e})"
            for c in self.comparisons
        ]
        lines += [f"  skipped {name}: {why}" for name, why in self.skipped]
        return "\n".join(lines)


def check_backends(
    spec: Any,
    out_spec: Any = None,
    *,
    backends: Sequence[str | Backend] | None = None,
    plans: Sequence[bool | str] = (False, "auto"),
    dtypes: Sequence[str] = ("float64", "float32"),
    weights: Mapping[str, Any] | None = None,
    sizes: Mapping[Any, int] | None = None,
    batch_shapes: Sequence[tuple[int, ...]] = ((), (3,), (2, 2)),
    seed: int = 0,
    tolerance: float | None = None,
    **options: Any,
) -> AgreementReport:
    """Check that backends and plans agree on one layer.

    Args:
        spec, out_spec, options: as for `compile`; `in_channels` is 2 and `out_channels` 3 unless
            given.
        backends: names, or `Backend` objects (one you are writing, say); default all installed.
        plans: values of `optimize=` to compare.
        dtypes: of weights and inputs; outputs must come back in the same.
        weights: NumPy arrays by name; default standard normal.
        sizes: by label; they are bound when compiling. Others are not bound, and 2 to 6 in turn.
        batch_shapes: batch axes to try.
        seed: of inputs and weights.
        tolerance: largest difference allowed, relative to the largest output; default 1e-12 for
            float64 and 1e-5 for float32.

    Returns:
        the figures.

    Raises:
        CheckError: two disagree, or one has other weights, another shape or another dtype.
        OptionError: an argument is not allowed.
        BackendError: a backend that was asked for by name is not installed.

    >>> report = check_backends({"w": (0, 1), "b": (1,)}, backends=["numpy"])
    >>> report.baseline, [c.optimize for c in report.comparisons]
    ('numpy optimize=False', ['auto', 'auto'])
    """
    chosen, skipped = _backends(backends)
    if not chosen or not plans or not dtypes or not batch_shapes:
        raise OptionError(
            "backends, plans, dtypes and batch_shapes must not be empty; nothing would be checked"
        )
    programs = _compiled(spec, out_spec, plans, sizes, options)
    layers = [
        (backend, plan, backend.build(compiled))
        for backend, (plan, compiled) in product(chosen, programs.items())
    ]
    compiled = next(iter(programs.values()))
    rng = np.random.default_rng(seed)
    comparisons = []
    for dtype in dtypes:
        kind = dtype_of(dtype)
        given = draw_weights(rng, compiled, kind) if weights is None else dict(weights)
        full = _fill(compiled)
        channels = [tensor.channels for tensor in compiled.program.inputs]
        x = [draw_inputs(rng, compiled.spec, channels, full, batch, kind) for batch in batch_shapes]
        results = []
        for backend, plan, layer in layers:
            run = runner(layer, given, kind, backend)
            outputs = []
            for batch, leaves in zip(batch_shapes, x, strict=True):
                y = run(leaves)
                counts = [tensor.channels for tensor in compiled.program.outputs]
                _well_formed(y, compiled, full, batch, counts, kind, _name(backend, plan))
                outputs.append(y)
            results.append(outputs)
        allowed = tolerance_of(kind) if tolerance is None else tolerance
        for (backend, plan, _), outputs in list(zip(layers, results, strict=True))[1:]:
            comparisons.append(
                _compare(
                    compiled, results[0], outputs, layers[0][:2], (backend, plan), dtype, allowed
                )
            )
    return AgreementReport(_name(*layers[0][:2]), tuple(comparisons), tuple(skipped))


def _name(backend: Backend, plan: bool | str) -> str:
    return f"{backend.name} optimize={plan}"


def _backends(
    wanted: Sequence[str | Backend] | None,
) -> tuple[list[Backend], list[tuple[str, str]]]:
    """The backends, NumPy's first, and those left out because they cannot be imported."""
    chosen: list[Backend] = []
    skipped: list[tuple[str, str]] = []
    for one in backend_names() if wanted is None else wanted:
        if not isinstance(one, str):
            chosen.append(one)
            continue
        try:
            chosen.append(get_backend(one))
        except BackendError as error:
            if wanted is not None:
                raise
            skipped.append((one, str(error)))
    return sorted(chosen, key=lambda backend: backend.name != "numpy"), skipped


def _compiled(
    spec: Any,
    out_spec: Any,
    plans: Sequence[bool | str],
    sizes: Mapping[Any, int] | None,
    options: dict[str, Any],
) -> dict[bool | str, Compiled]:
    from symcompile.api import compile_spec  # the API is above the checks: it must not load them

    options = {"in_channels": 2, "out_channels": 3} | options
    if "backend" in options or "optimize" in options:
        raise OptionError("give backends= and plans=, not backend= and optimize=")
    programs = {
        plan: compile_spec(spec, out_spec, sizes=sizes, optimize=plan, **options) for plan in plans
    }
    first, *others = programs.items()
    for plan, compiled in others:
        if compiled.shapes != first[1].shapes:
            raise CheckError(
                f"optimize={plan!r} has weights {dict(compiled.shapes)}, optimize={first[0]!r} has "
                f"{dict(first[1].shapes)}; the canonical weights must not depend on the plan"
            )
    return programs


def _fill(compiled: Compiled) -> dict[Label, int]:
    source, target = bind_specs(compiled.spec, compiled.out_spec)
    bound = dict(source.sizes) | dict(target.sizes)
    span = _LAST_SIZE - _FIRST_SIZE + 1
    return {
        label: bound.get(label, _FIRST_SIZE + place % span)
        for place, label in enumerate(labels_of(source, target))
    }


def _well_formed(
    y: Leaves,
    compiled: Compiled,
    sizes: Mapping[Label, int],
    batch: tuple[int, ...],
    channels: Sequence[int],
    kind: np.dtype[Any],
    name: str,
) -> None:
    try:
        expect(y, compiled.out_spec, sizes, batch, channels)
    except CheckError as error:
        raise CheckError(f"{name}: {error}") from None
    for leaf, value in zip(compiled.out_spec.leaves, y, strict=True):
        if value.dtype != kind:
            raise CheckError(
                f"{name}: y{format_path(leaf.path)} is {value.dtype.name} for {kind.name} inputs; "
                "outputs keep the inputs' dtype"
            )


def _compare(
    compiled: Compiled,
    wanted: Sequence[Leaves],
    found: Sequence[Leaves],
    first: tuple[Backend, bool | str],
    second: tuple[Backend, bool | str],
    dtype: str,
    tolerance: float,
) -> Comparison:
    largest = worst = 0.0
    for expected, outputs in zip(wanted, found, strict=True):
        scale = max(float(np.abs(wide(value)).max(initial=0.0)) for value in expected)
        for leaf, one, other in zip(compiled.out_spec.leaves, expected, outputs, strict=True):
            error = float(np.abs(wide(one) - wide(other)).max(initial=0.0))
            if not error <= tolerance * scale:
                raise CheckError(
                    f"{_name(*first)} and {_name(*second)} disagree at y{format_path(leaf.path)}: "
                    f"{dtype} outputs that reach {scale:.3g} differ by {error:.3g} (relative "
                    f"tolerance {tolerance:.1g}); one of the two computes another layer"
                )
            largest = max(largest, error)
            worst = max(worst, error / scale if scale else 0.0)
    return Comparison(second[0].name, str(second[1]), dtype, largest, worst, tolerance)
