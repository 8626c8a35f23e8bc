"""`compile`, `export` and `plan`: the whole way from a perm_spec to a layer.

In: a spec and options. Out: a layer object, a file of source, or a report. The arrows run one way:
spec, schema, lowering, passes, code generation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import Any, Literal
from weakref import WeakValueDictionary

from symcompile.codegen import Compiled, get_backend
from symcompile.cost import Machine
from symcompile.cost.objective import Objective
from symcompile.errors import OptionError, PlanError
from symcompile.files import write_atomically
from symcompile.lower import lower_factored, lower_reference
from symcompile.passes import Optimized
from symcompile.passes import optimize as run_passes
from symcompile.planner import PlanInfo, plan_info
from symcompile.planner.search import get_planner
from symcompile.request import BASIS_LIMIT, ITEMSIZE, Request, parse_request
from symcompile.terms import Predicate, require_terms
from symcompile.weights import build_schema, init_scales

__all__ = ["BASIS_LIMIT", "compile", "compile_spec", "export", "plan"]


def compile(
    spec: Any,
    out_spec: Any = None,
    *,
    in_channels: Any,
    out_channels: Any,
    backend: str = "torch",
    shapes: Any = None,
    out_shapes: Any = None,
    sizes: Mapping[Any, int] | None = None,
    bias: bool = True,
    reduce: Literal["mean", "sum"] = "mean",
    optimize: Any = "auto",
    minimize: str = "time",
    machine: str | Machine = "cpu",
    memory_limit: int | None = None,
    terms: Predicate | Sequence[Predicate] | None = None,
    rank: int | Mapping[tuple[Any, ...], int] | None = None,
    init: Literal["scaled", "unf"] = "scaled",
    dtype: Any = None,
    name: str = "EquivariantLinear",
    max_basis: int = BASIS_LIMIT,
    keep_stages: bool = False,
) -> Any:
    """Compile a perm_spec into an equivariant linear layer.

    Unless `terms` or `rank` says otherwise the layer is complete: every linear map that commutes
    with the spec's permutations is reached by some weights (the basis is that of Maron et al. 2019,
    one element per set partition; it is factored along half-diagrams, Godfrey et al. arXiv
    2303.06208).

    Args:
        spec: containers (dicts, lists) of tuples; a tuple names, axis by axis, the permutation
            that acts there: an int or a string. `None` is a fixed axis, `Fixed(n)` one of stated
            size, a nested tuple a composite axis, outer part first.
        out_spec: likewise for the output; default the input's.
        in_channels, out_channels: length of the last axis; one int, or a tree of ints.
        backend: "torch", "jax", "numpy", or any registered one.
        shapes, out_shapes: a tree like the spec of arrays or shapes, without batch and channel
            axes; binds sizes.
        sizes: sizes by label, for what shapes do not tell.
        bias: add every equivariant constant.
        reduce: "mean" or "sum" over indices that an output does not keep.
        optimize: how the plan is searched. False computes one diagram at a time (the reference);
            "greedy" is fast; "optimal" solves an integer program, which proves that its choice
            costs least in its lattice; "auto" takes the closed form where that is exact, else the
            better of both, up to 4,000 edges of a lattice, and greedy beyond; or any object with a
            method `choose(lattice) -> Choice`.
        minimize: "time" (a roofline on `machine`), "bytes", "flops" or "peak".
        machine: what the layer will run on: a `Machine`, or the name of a preset. "cpu" counts on
            symcompile's kernels for CPU: for a GPU say "a100", "h100" or "h200", whichever is
            nearest. `Machine.measure(backend)` calibrates.
        memory_limit: most bytes to hold at once, for one example, inputs and outputs included; a
            positive int. Where the plan for `minimize` does not fit, one for least peak or least
            bytes is taken, and the report says so.
        terms: keep a part of the basis: a function of (output path, input path, diagram) that
            returns True to keep a map, or a list of them that must all hold. `symcompile.terms`
            has ready ones. The bias is no term: `bias` alone decides about it.
        rank: mix channels through `rank` times the largest number of out-channels, one int for all
            signatures or a dict by signature (a tuple of labels in any order). A matrix that
            would not get smaller stays whole.
        init: "scaled" keeps the variance of activations; "unf" is N(0, 1/(c_in * terms)).
        dtype: of the weights, a name or a framework's dtype; default the framework's.
        name: class name in generated source.
        max_basis: refuse a larger basis, by default of 1,000,000 elements, before building
            anything. All of it counts, whatever `terms` keeps; the bias does not.
        keep_stages: keep the program after every pass, in `layer.compiled.stages`.

    Returns:
        the backend's layer: for torch an `nn.Module`, for jax and numpy an object with `init`
        and `apply`. All have `source`, `plan`, `basis` and `spec`. While a layer is in use, one of
        the same spec and options shares its plan, and is not planned again (weights are its own),
        unless `terms`, a planner or kind of machine of one's own, or `keep_stages` is given.

    Raises:
        SpecError: the spec is malformed.
        ShapeError: sizes disagree, or are needed and not known.
        OptionError: an option has a value that is not allowed.
        PlanError: no plan meets `memory_limit`, or a planner returned a wrong plan.
        BasisTooLargeError: with the exact count.
        BackendError: the backend is unknown or its framework not installed.

    >>> import numpy as np
    >>> layer = compile({"w": (0, 0)}, in_channels=1, out_channels=1, backend="numpy")
    >>> len(layer.basis)  # 15 maps, 2 biases
    17
    """
    chosen = get_backend(backend)
    return chosen.build(
        compile_spec(
            spec,
            out_spec,
            in_channels=in_channels,
            out_channels=out_channels,
            shapes=shapes,
            out_shapes=out_shapes,
            sizes=sizes,
            bias=bias,
            reduce=reduce,
            optimize=optimize,
            minimize=minimize,
            machine=machine,
            memory_limit=memory_limit,
            terms=terms,
            rank=rank,
            init=init,
            dtype=dtype,
            name=name,
            max_basis=max_basis,
            keep_stages=keep_stages,
        )
    )


def export(
    spec: Any, path: str | Path, out_spec: Any = None, *, backend: str, **options: Any
) -> Path:
    """Write a layer's source to `path`.

    The file imports torch only, or jax and numpy, and runs where symcompile is not installed. It is
    written beside and renamed, so an error leaves what stood there.

    Args:
        spec, out_spec, backend, options: as for `compile`.

    Returns:
        the path written.

    Raises:
        ExportError: the file cannot be written.
        SymcompileError: as `compile`.
    """
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"path is a {type(path).__name__}; give a str or a Path")
    _refuse_unknown(options, "export")
    source = get_backend(backend).emit(compile_spec(spec, out_spec, **options))
    return write_atomically(Path(path), source)


def plan(
    spec: Any, out_spec: Any = None, *, in_channels: Any = 1, out_channels: Any = 1, **options: Any
) -> PlanInfo:
    """What `compile` would do, without a backend.

    Args:
        spec, out_spec, in_channels, out_channels, options: as for `compile`; `backend` is none.

    Returns:
        the plan, as `layer.plan` has it: `print` shows it, `explain()` tells why.

    Raises:
        OptionError: an option is unknown.
        SymcompileError: as `compile`.

    >>> plan({"w": (0, 0, 0)}, bias=False).diagrams
    203
    """
    _refuse_unknown(options, "plan")
    compiled = compile_spec(
        spec, out_spec, in_channels=in_channels, out_channels=out_channels, **options
    )
    return compiled.plan


def _refuse_unknown(options: Mapping[str, Any], function: str) -> None:
    known = signature(parse_request).parameters
    for option in options:
        if option not in known:
            raise OptionError(
                f"{option!r} is no option of {function}, which takes: {', '.join(list(known)[2:])}"
            )


def compile_spec(spec: Any, out_spec: Any = None, **options: Any) -> Compiled:
    """All of `compile` that needs no framework; arguments as there.

    Where an equal layer is in use, that one is returned.
    """
    began = perf_counter()
    request = parse_request(spec, out_spec, **options)
    if not request.repeats:
        return _compiled(request, began)
    compiled = _IN_USE.get(request)
    if compiled is None:
        compiled = _IN_USE[request] = _compiled(request, began)
    return compiled


_IN_USE: WeakValueDictionary[Request, Compiled] = WeakValueDictionary()
"""Layers that somebody holds: a network with equal layers plans them once."""


def _compiled(request: Request, began: float) -> Compiled:
    """The layer; `began` is when it was asked for."""
    bias, reduce, limit = request.bias, request.reduce, request.memory_limit
    ranks = dict(request.ranks) if isinstance(request.ranks, tuple) else request.ranks
    known = dict(request.source.sizes)
    schema = build_schema(
        request.inputs, request.outputs, known, bias=bias, keep=request.keep, rank=ranks
    )
    if request.keep is not None:
        require_terms(schema)
    itemsize = ITEMSIZE[request.dtype or "float32"]
    objective = Objective(request.minimize, schema.sizes, request.machine, itemsize)
    scales = init_scales(schema, request.init, reduce)
    optimize, searched = request.optimize, 0.0
    if optimize is False:
        lowered = lower_reference(schema, reduce)
        done = Optimized((("lowered", lowered),), (), ())
    else:
        lowered = lower_factored(schema, reduce)
        start = perf_counter()
        done = run_passes(lowered, get_planner(optimize), objective, limit)
        searched = perf_counter() - start
    decisions = (*done.reductions, *done.spreads)
    how = optimize if isinstance(optimize, str) else type(optimize).__name__
    report = plan_info(
        schema,
        "off" if optimize is False else how,
        replace(objective, minimize=done.minimize or request.minimize),
        done.program,
        decisions,
        done.fills,
        done.mixes,
        done.wholes,
        done.batches,
        done.schedule,
        asked=request.minimize,
    )
    if optimize is False and limit is not None and report.planned.peak > limit:
        raise PlanError(
            f"memory_limit={limit:,} bytes cannot be met by the reference "
            f"(optimize=False): its peak is {report.planned.peak:,} bytes for one example, inputs "
            "and outputs included; raise the limit, or let the planner share work"
        )
    report = replace(report, search_seconds=searched, seconds=perf_counter() - began)
    return Compiled(
        spec=request.source,
        out_spec=request.target,
        schema=schema,
        program=done.program,
        scales=scales,
        plan=report,
        dtype=request.dtype,
        name=request.name,
        stages=done.stages if request.keep_stages else (),
    )
