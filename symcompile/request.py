"""What is asked of `compile`, checked: the options of a layer as data.

In: a spec and options, as a user gives them. Out: a `Request`, or an error that names the option.
The one thing to know: equal requests are equal layers, see `Request.repeats`.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from symcompile.cost import PRESETS, Machine
from symcompile.cost.objective import Objective
from symcompile.diagrams import Signature, basis_size
from symcompile.errors import BasisTooLargeError, OptionError
from symcompile.ir import Tensor
from symcompile.passes import verifies
from symcompile.planner.search import get_planner
from symcompile.spec import PermSpec, bind_specs, parse_spec, require_derivable, resolve_channels
from symcompile.terms import Predicate, parse_terms
from symcompile.weights import INITS, parse_rank

__all__ = ["BASIS_LIMIT", "ITEMSIZE", "Request", "parse_request"]

BASIS_LIMIT = 1_000_000
"""Most basis elements a layer may have unless `max_basis=` says otherwise."""

REDUCTIONS = ("mean", "sum")
ITEMSIZE = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""Dtypes of weights, and the bytes of one entry."""


@dataclass(frozen=True, slots=True)
class Request:
    """All that a layer follows from; names as in `compile`.

    Attributes:
        source, target: the bound specs.
        inputs, outputs: their tensors, with channels.
        keep: the predicate that `terms` makes.
        ranks: `rank`; pairs of a signature and its rank, if it is a dict.
    """

    source: PermSpec
    target: PermSpec
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    optimize: Any
    minimize: str
    machine: Machine
    memory_limit: int | None
    keep: Predicate | None
    ranks: tuple[tuple[Signature, int], ...] | int | None
    bias: bool
    reduce: str
    init: str
    dtype: str | None
    name: str
    keep_stages: bool

    @property
    def repeats(self) -> bool:
        """Whether it makes the same layer every time: users' own parts may answer otherwise."""
        own = self.keep is not None or type(self.machine) is not Machine
        own = own or not (self.optimize is False or isinstance(self.optimize, str))
        return not (own or self.keep_stages or verifies())


def parse_request(
    spec: Any,
    out_spec: Any = None,
    *,
    in_channels: Any,
    out_channels: Any,
    shapes: Any = None,
    out_shapes: Any = None,
    sizes: Mapping[Any, int] | None = None,
    bias: bool = True,
    reduce: str = "mean",
    optimize: Any = "auto",
    minimize: str = "time",
    machine: str | Machine = "cpu",
    memory_limit: int | None = None,
    terms: Predicate | Sequence[Predicate] | None = None,
    rank: int | Mapping[tuple[Any, ...], int] | None = None,
    init: str = "scaled",
    dtype: Any = None,
    name: str = "EquivariantLinear",
    max_basis: int = BASIS_LIMIT,
    keep_stages: bool = False,
) -> Request:
    """Check all options; as in `compile`, but for the backend.

    Raises:
        SpecError, ShapeError, OptionError, BasisTooLargeError: as `compile`.

    >>> parse_request({"w": (0, 1)}, in_channels=1, out_channels=2).outputs[0].width
    2
    """
    _choose("bias", bias, (True, False))
    _choose("reduce", reduce, REDUCTIONS)
    if optimize is not False:
        get_planner(optimize)
    target_machine = _machine(machine)
    _check_limit(memory_limit)
    Objective(minimize)  # refuses an unknown one before any work
    dtype = _dtype_name(dtype)
    _choose("init", init, INITS)
    _check_name(name)
    source, target = _bound(spec, out_spec, shapes, out_shapes, sizes)
    inputs = _tensors(source, in_channels, "in_channels")
    outputs = _tensors(target, out_channels, "out_channels")
    ranks = parse_rank(rank)
    request = Request(
        source=source,
        target=target,
        inputs=inputs,
        outputs=outputs,
        optimize=optimize,
        minimize=minimize,
        machine=target_machine,
        memory_limit=memory_limit,
        keep=parse_terms(terms),
        ranks=tuple(ranks.items()) if isinstance(ranks, Mapping) else ranks,
        bias=bias,
        reduce=reduce,
        init=init,
        dtype=dtype,
        name=name,
        keep_stages=bool(keep_stages),
    )
    _refuse_large(request, max_basis)
    return request


def _machine(machine: str | Machine) -> Machine:
    if isinstance(machine, Machine):
        return machine
    if not isinstance(machine, str) or machine not in PRESETS:
        known = ", ".join(map(repr, PRESETS))
        raise OptionError(
            f"machine={machine!r:.80} is not known; choose one of {known}, or pass a Machine, "
            "for example Machine.measure('torch')"
        )
    return PRESETS[machine]


def _check_limit(limit: int | None) -> None:
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise OptionError(
            f"memory_limit={limit!r:.80}: expected a positive int, the bytes for one example"
        )


def _bound(
    spec: Any, out_spec: Any, shapes: Any, out_shapes: Any, sizes: Mapping[Any, int] | None
) -> tuple[PermSpec, PermSpec]:
    source = parse_spec(spec)
    target = None if out_spec is None else parse_spec(out_spec)
    source, target = bind_specs(source, target, shapes, out_shapes, sizes)
    require_derivable(source, target)
    return source, target


def _tensors(spec: PermSpec, channels: Any, what: str) -> tuple[Tensor, ...]:
    counts = resolve_channels(spec, channels, what)
    return tuple(
        Tensor(leaf.path, leaf.axes, count) for leaf, count in zip(spec.leaves, counts, strict=True)
    )


def _refuse_large(request: Request, limit: int) -> None:
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise OptionError(f"max_basis={limit!r:.80}: expected a positive int")
    outputs, inputs = (
        [tensor.labels for tensor in tensors] for tensors in (request.outputs, request.inputs)
    )
    count = basis_size(outputs, inputs, dict(request.source.sizes))
    if count > limit:
        raise BasisTooLargeError(
            f"the basis has {count:,} elements, more than max_basis={limit:,}; nothing was built. "
            "Lower the order of the tensors, give some axes labels of their own or fix them, "
            "or raise max_basis"
        )


def _choose(option: str, value: object, known: tuple[object, ...]) -> None:
    # `is` for False: 0 == False, and 0 is no strategy.
    texts = [choice for choice in known if isinstance(choice, str)]
    if not any(value is choice for choice in known) and not (
        isinstance(value, str) and value in texts
    ):
        raise OptionError(
            f"{option}={value!r} is not known; choose one of {', '.join(map(repr, known))}"
        )


def _dtype_name(dtype: Any) -> str | None:
    """The name of a dtype given as text, or as NumPy's, JAX's or PyTorch's object."""
    if dtype is None:
        return None
    text = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    text = text.removeprefix("torch.")
    if text not in ITEMSIZE:
        raise OptionError(f"dtype={dtype!r} is not known; choose one of {', '.join(ITEMSIZE)}")
    return text


def _check_name(name: str) -> None:
    taken = {"nn", "torch", "jax", "jnp", "np", "Mapping", "ShapeError"}
    taken |= {"FILLED", "SCALES", "STACKS", "TENSORS", "WEIGHTS"}
    if (
        not isinstance(name, str)
        or not name.isidentifier()
        or not name.isascii()
        or keyword.iskeyword(name)
        or name.startswith("_")
        or name in taken
        or hasattr(builtins, name)
        or len(name) > 100
    ):
        raise OptionError(
            f"name={name!r:.120} is no class name; give an ASCII identifier such as 'WeightLayer' "
            "that does not start with an underscore"
        )
