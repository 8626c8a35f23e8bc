"""What a plan is to be best at.

In: the bytes, flops and launches of a step. Out: one number, lower is better. Sizes that are not
bound count as `NOMINAL_SIZE`, and reports say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from symcompile.cost.machine import PRESETS, Machine
from symcompile.cost.work import Work, work_of
from symcompile.errors import OptionError
from symcompile.ir import Program
from symcompile.spec import Label, label_order

__all__ = ["MINIMIZE", "NOMINAL_SIZE", "Objective"]

NOMINAL_SIZE = 64
"""Stands for a label size that is unknown while planning."""

MINIMIZE = ("time", "bytes", "flops", "peak")


@dataclass(frozen=True, slots=True)
class Objective:
    """How steps are scored.

    Attributes:
        minimize: "time" (roofline and launches on `machine`), "bytes" moved, "flops", or "peak"
            (bytes held by what the step makes).
        sizes: known label sizes.
        machine: what "time" is taken on; whatever is least, it tells how sums are made.
        itemsize: bytes of one entry.

    Raises:
        OptionError: `minimize` is none of these.
    """

    minimize: str = "time"
    sizes: tuple[tuple[Label, int], ...] = ()
    machine: Machine = PRESETS["cpu"]
    itemsize: int = 4

    def __post_init__(self) -> None:
        if self.minimize not in MINIMIZE:
            raise OptionError(
                f"minimize={self.minimize!r} is not known; choose one of "
                f"{', '.join(map(repr, MINIMIZE))}"
            )

    def sizes_of(self, program: Program) -> dict[Label, int]:
        """A size for every label of a program, nominal where unknown."""
        tensors = (*program.inputs, *program.outputs)
        labels = {label for tensor in tensors for label in tensor.labels}
        ordered = sorted(labels, key=label_order)
        return dict.fromkeys(ordered, NOMINAL_SIZE) | dict(self.sizes)

    def entries(self, labels: Iterable[Label]) -> int:
        """The number of index tuples over axes of these labels."""
        known = dict(self.sizes)
        return prod(known.get(label, NOMINAL_SIZE) for label in labels)

    def works(self, program: Program) -> tuple[Work, ...]:
        """The work of every op on the machine."""
        return work_of(program, one_pass=self.one_pass)

    @property
    def one_pass(self) -> bool:
        """Whether the machine has kernels for sums of such entries: they take float32."""
        return self.machine.one_pass and self.itemsize == 4

    def cost_of(self, program: Program) -> float:
        """The score of a program."""
        return self.total(self.works(program), program)

    def total(self, works: Iterable[Work], program: Program) -> float:
        """The summed score of work on a program's values."""
        sizes = self.sizes_of(program)
        return sum(
            self.score(
                work.read.at(sizes),
                work.written.at(sizes),
                work.flops.at(sizes),
                work.launches,
                work.placed.at(sizes),
            )
            for work in works
        )

    def score(self, read: int, written: int, flops: int, launches: int, placed: int = 0) -> float:
        """The cost of a step that reads and writes so many entries.

        Args:
            placed: how many of those written go into arrays that are there already.

        Units: seconds for "time", bytes for "bytes" and "peak", operations for "flops". The other
        resources break ties: they count a millionth.
        """
        bytes, new = self.itemsize * (read + written), self.itemsize * (written - placed)
        if self.minimize == "time":
            return self.machine.seconds(bytes, flops, launches, new)
        tie = 1e-6 * bytes
        if self.minimize == "bytes":
            return bytes + 1e-6 * launches
        return (flops if self.minimize == "flops" else new) + tie
