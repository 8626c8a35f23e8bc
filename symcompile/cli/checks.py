"""`symcompile check`: the public checks, run in turn on one spec.

In: a `Request` and names of backends. Out: one line of figures for each check; `CheckError` if one
failed, after all have run.
The one thing to know: completeness is a rank of dense matrices, so it runs at small sizes, which
the line states, or is skipped, which the line says too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from rich.text import Text

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.cli.request import Request
from symcompile.cli.show import escaped
from symcompile.codegen import Compiled, get_backend
from symcompile.errors import CheckError, OptionError
from symcompile.spec import Fixed, Label, PermSpec, label_order

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_checks"]

MOST_ENTRIES = 2_000
"""Entries of the full matrix, from all inputs to all outputs, up to which completeness runs."""

MOST_NUMBERS = 20_000_000
"""Weights, or entries of all tensors of one example, that are drawn at all."""


def run_checks(request: Request, backends: Sequence[str], seed: int, console: Console) -> None:
    """Check one spec on some backends.

    Raises:
        CheckError: how many checks failed; each has printed why.
        SymcompileError: the spec or an option is bad, and nothing was checked.
    """
    compiled = compile_spec(request.spec, request.out_spec, **request.options)
    _refuse_large(compiled)
    layers = {name: get_backend(name).build(compiled) for name in backends}
    failed = 0

    def check(name: str, run: Callable[[], object]) -> None:
        nonlocal failed
        try:
            verdict, figures = Text("ok", style="green"), str(run())
        except CheckError as error:
            failed += 1
            verdict, figures = Text("FAILED", style="bold red"), str(error)
        console.print(Text(f"{name}: "), verdict, Text(f" {escaped(figures)}"), sep="")

    for name, layer in layers.items():
        check(f"equivariance ({name})", partial(sc.check_equivariance, layer, seed=seed))
    # Two plans, so that there is something to compare on a single backend too.
    options = {key: value for key, value in request.options.items() if key != "optimize"}
    check(
        f"agreement ({', '.join(layers)})",
        lambda: sc.check_backends(
            request.spec, request.out_spec, backends=list(layers), seed=seed, **options
        ),
    )
    sizes = _small_sizes(compiled)
    if sizes is None:
        console.print(Text("completeness: skipped, the tensors are too large for a rank"))
    else:
        check(
            "completeness",
            lambda: sc.check_completeness(
                replace(compiled.spec, sizes=()),
                replace(compiled.out_spec, sizes=()),
                sizes=sizes,
                **{key: request.options[key] for key in ("bias", "reduce", "optimize")},
            ),
        )
    if failed:
        raise CheckError(f"{failed} check{'s' * (failed != 1)} failed, see above")


def _refuse_large(compiled: Compiled) -> None:
    bound = dict(compiled.schema.sizes)
    entries = sum(
        tensor.width * prod(bound.get(label, 8) for label in tensor.labels)
        for tensor in (*compiled.schema.inputs, *compiled.schema.outputs)
    )
    for count, what in ((compiled.program.weight_count, "weights"), (entries, "entries")):
        if count > MOST_NUMBERS:
            raise OptionError(
                f"a check draws random numbers, and the layer has {count:,} {what}, more than "
                f"{MOST_NUMBERS:,}; check it at smaller sizes or with fewer channels"
            )


def _small_sizes(compiled: Compiled) -> dict[Label, int] | None:
    """The layer's sizes, or smaller ones if they are too many for a rank; None if all are.

    A label that is not bound gets the size from which on all diagrams are independent.
    """
    specs = (compiled.spec, compiled.out_spec)
    full = {
        label: sum(max(leaf.labels.count(label) for leaf in spec.leaves) for spec in specs)
        for label in sorted({x for spec in specs for x in spec.labels}, key=label_order)
    }
    for sizes in (
        full | dict(compiled.schema.sizes),
        full,
        dict.fromkeys(full, 3),
        dict.fromkeys(full, 2),
    ):
        if prod(_entries(spec, sizes) for spec in specs) <= MOST_ENTRIES:
            return sizes
    return None


def _entries(spec: PermSpec, sizes: dict[Label, int]) -> int:
    return sum(
        prod(a.size or 1 if isinstance(a, Fixed) else sizes[a.label] for a in leaf.atoms)
        for leaf in spec.leaves
    )
