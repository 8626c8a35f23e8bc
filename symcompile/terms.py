"""Ready predicates for `terms=`: which part of the basis a layer keeps.

In: the path of an output, the path of an input, and a diagram. Out: True to keep it. All are plain
functions of the three, so that a predicate of one's own can call them.

The one thing to know: the bias is no term. It has no input, predicates are never asked about it,
and `bias=` alone decides.

>>> import symcompile as sc
>>> sc.plan({"w": (0, 0), "b": (0,)}, bias=False).diagrams
27
>>> sc.plan({"w": (0, 0), "b": (0,)}, bias=False, terms=same_tensor).diagrams  # 15 and 2
17
>>> sc.plan({"w": (0, 0), "b": (0,)}, bias=False, terms=[same_tensor, max_order(1)]).diagrams
15
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from symcompile.diagrams import Diagram
from symcompile.errors import OptionError
from symcompile.spec import Path, format_path
from symcompile.spec.types import plain_int, short_repr
from symcompile.weights import Schema

__all__ = [
    "Predicate",
    "max_order",
    "no_diagonals",
    "parse_terms",
    "require_terms",
    "same_tensor",
    "shared_label",
]

Predicate = Callable[[Path, Path, Diagram], bool]
"""(output path, input path, diagram) -> keep it."""


def same_tensor(output: Path, input: Path, diagram: Diagram) -> bool:
    """Keep maps from each tensor to the one at the same path."""
    return output == input


def shared_label(output: Path, input: Path, diagram: Diagram) -> bool:
    """Keep maps in which an output axis and an input axis share a label's index.

    In other words, some block joins the output to the input. What is left out are the maps that
    average all of the input and broadcast the result (signature `()`), the only ones between
    tensors that have no label in common.
    """
    return _order(diagram) > 0


def no_diagonals(output: Path, input: Path, diagram: Diagram) -> bool:
    """Keep maps that read and write no diagonal: no block holds two axes of one tensor."""
    return all(
        sum(axis < diagram.out_order for axis in block) <= 1
        and sum(axis >= diagram.out_order for axis in block) <= 1
        for block in diagram.blocks
    )


def max_order(k: int) -> Predicate:
    """Keep maps that pass at most `k` indices from input to output: the length of the signature.

    No channels are then mixed at more than k axes. With k = 0 only averages of whole tensors pass.

    Raises:
        OptionError: `k` is no int from 0 up.
    """
    number = plain_int(k)
    if number is None or number < 0:
        raise OptionError(f"max_order: found {short_repr(k)}, expected an int from 0 up")
    return _MaxOrder(number)


@dataclass(frozen=True, slots=True)
class _MaxOrder:
    k: int

    def __call__(self, output: Path, input: Path, diagram: Diagram) -> bool:
        return _order(diagram) <= self.k

    def __repr__(self) -> str:
        return f"max_order({self.k})"


def _order(diagram: Diagram) -> int:
    """How many blocks propagate; axes within a block are sorted, the output's first."""
    return sum(block[0] < diagram.out_order <= block[-1] for block in diagram.blocks)


def parse_terms(terms: Any) -> Predicate | None:
    """One predicate out of what a user passed: all of them must hold.

    What it returns raises an OptionError that names the predicate where one raises, or answers
    with anything but True or False.

    Raises:
        OptionError: `terms` is neither a predicate nor a list of them.
    """
    if terms is None:
        return None
    predicates = list(terms) if isinstance(terms, list | tuple) else [terms]
    for predicate in predicates:
        if not callable(predicate):
            raise OptionError(
                f"terms: found {short_repr(predicate)}, expected a function of (output path, input "
                "path, diagram), or a list of them; symcompile.terms has ready ones"
            )

    def keep(output: Path, input: Path, diagram: Diagram) -> bool:
        return all(_ask(predicate, output, input, diagram) for predicate in predicates)

    return keep


def _ask(predicate: Predicate, output: Path, input: Path, diagram: Diagram) -> bool:
    try:
        answer = predicate(output, input, diagram)
    except Exception as error:
        raise OptionError(
            f"terms: {_name(predicate)} raised {type(error).__name__} on "
            f"{_element(output, input, diagram)}: {error}"
        ) from error
    if not isinstance(answer, bool):
        raise OptionError(
            f"terms: {_name(predicate)} returned {short_repr(answer)} on "
            f"{_element(output, input, diagram)}, expected True or False; wrap it in bool(...)"
        )
    return answer


def _name(predicate: Any) -> str:
    name = getattr(predicate, "__qualname__", None)
    return name if isinstance(name, str) else short_repr(predicate)


def _element(output: Path, input: Path, diagram: Diagram) -> str:
    return f"output {format_path(output)}, input {format_path(input)}, diagram {diagram}"


def require_terms(schema: Schema) -> None:
    """Refuse what a predicate left, if that is no map at all or nothing for some output.

    Raises:
        OptionError: naming the output, and what to change.
    """
    if not any(weight.rows for weight in schema.weights):
        raise OptionError(
            "terms: the predicate removes every map; keep some (shared_label and max_order(0), "
            "for one, contradict each other), or leave terms= out"
        )
    reached = {column.tensor for weight in schema.weights for column in weight.columns}
    for number, tensor in enumerate(schema.outputs):
        if number not in reached:
            raise OptionError(
                f"terms: the predicate leaves nothing for output {format_path(tensor.path)}, and "
                "there is no bias; keep a map into it, give bias=True, or leave it out of out_spec"
            )
