"""Polynomials in label sizes.

In: counts of entries of values. Out: sums and multiples of them, evaluated or handed to sympy. A
few lines of our own because a plan adds up thousands of monomials: sympy takes a second for what a
dict does in a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from symcompile.spec import Label, label_order

if TYPE_CHECKING:
    import sympy

__all__ = ["Polynomial"]

_Monomial: TypeAlias = tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A sum of integer multiples of products of label sizes.

    Attributes:
        terms: (sorted labels of the monomial, coefficient), sorted.

    >>> area = Polynomial.of(("a", "b"), 3) + Polynomial.of((), 5)
    >>> str(area), area.at({"a": 2, "b": 10})
    ('5 + 3*n[a]*n[b]', 65)
    """

    terms: tuple[tuple[_Monomial, int], ...] = ()

    @staticmethod
    def of(labels: Iterable[Label], coefficient: int = 1) -> Polynomial:
        """`coefficient` times the product of the labels' sizes."""
        if not coefficient:
            return _ZERO
        return Polynomial(((tuple(sorted(labels, key=label_order)), coefficient),))

    @staticmethod
    def sum(parts: Iterable[Polynomial]) -> Polynomial:
        """The sum of any number of polynomials."""
        total: dict[_Monomial, int] = {}
        for part in parts:
            for monomial, coefficient in part.terms:
                total[monomial] = total.get(monomial, 0) + coefficient
        kept = [item for item in total.items() if item[1]]
        return Polynomial(tuple(sorted(kept, key=_order) if len(kept) > 1 else kept))

    def __add__(self, other: Polynomial) -> Polynomial:
        return Polynomial.sum((self, other))

    def __mul__(self, factor: int) -> Polynomial:
        return Polynomial(tuple([(m, c * factor) for m, c in self.terms])) if factor else _ZERO

    def at(self, sizes: Mapping[Label, int]) -> int:
        """Its value; every label needs a size."""
        return sum(c * prod(sizes[label] for label in m) for m, c in self.terms)

    def to_sympy(self) -> sympy.Expr:
        """The same polynomial in sympy symbols `n[label]`, positive integers."""
        import sympy

        def symbol(label: Label) -> sympy.Symbol:
            return sympy.Symbol(_name(label), integer=True, positive=True)

        return sympy.Add(*(c * sympy.prod(map(symbol, m)) for m, c in self.terms))

    def __str__(self) -> str:
        def term(monomial: tuple[Label, ...], coefficient: int) -> str:
            names = [_name(label) for label in monomial]
            return "*".join(([] if coefficient == 1 and names else [str(coefficient)]) + names)

        return " + ".join(term(m, c) for m, c in self.terms) or "0"


_ZERO = Polynomial()


def _order(term: tuple[_Monomial, int]) -> tuple[int, list[tuple[int, int, str]]]:
    """Sort key of terms: short monomials first."""
    monomial, _ = term
    return len(monomial), list(map(label_order, monomial))


def _name(label: Label) -> str:
    """The symbol of a label's size, in ASCII and on one line whatever the label."""
    return f"n[{ascii(str(label))[1:-1]}]"
