"""What a backend is handed: a compiled layer, before any framework has seen it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, wraps
from typing import Any

from symcompile.ir import Program
from symcompile.planner import PlanInfo
from symcompile.spec import PermSpec
from symcompile.weights import BasisElement, Scale, Schema, basis_elements

__all__ = ["Compiled", "emits"]


@dataclass(frozen=True)
class Compiled:
    """A layer as data; frozen, and the same for every backend.

    Attributes:
        spec, out_spec: the bound input and output specs.
        schema: the canonical weights.
        program: what is computed, after all passes.
        scales: how weights are initialised.
        plan: what the planner did.
        dtype: dtype of the weights by name, or None for the framework's default.
        name: class name in generated source.
        stages: the program after every pass, if asked for.
    """

    spec: PermSpec
    out_spec: PermSpec
    schema: Schema
    program: Program
    scales: tuple[Scale, ...]
    plan: PlanInfo
    dtype: str | None = None
    name: str = "EquivariantLinear"
    stages: tuple[tuple[str, Program], ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Programs run to thousands of ops, and a static argument is hashed at every call.
        return hash((self.spec, self.out_spec, self.program, self.scales, self.dtype, self.name))

    def __getstate__(self) -> dict[str, Any]:
        # What is cached stays behind: a hash of strings means nothing to another process.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __deepcopy__(self, memo: object) -> Compiled:
        return self  # frozen to the last part

    @cached_property
    def _sources(self) -> dict[Callable[[Compiled], str], str]:
        return {}

    @cached_property
    def basis(self) -> tuple[BasisElement, ...]:
        """Every basis element and the weights that are its coefficients."""
        return tuple(basis_elements(self.schema))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight by name."""
        return dict(self.program.weights)


def emits(write: Callable[[Compiled], str]) -> Callable[[Compiled], str]:
    """A function that writes a layer's source: once for each layer, however many share it."""

    @wraps(write)
    def known(compiled: Compiled) -> str:
        sources = compiled._sources
        if write not in sources:
            sources[write] = write(compiled)
        return sources[write]

    return known
