"""The machine model: a few figures that turn work into time.

In: bytes, flops, launches, bytes of new arrays. Out: seconds, by a roofline with a fixed cost per
kernel launch and one for memory never written before. It is coarse on purpose: it has to rank
plans, not predict them.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from symcompile.errors import OptionError

__all__ = ["PRESETS", "Machine"]


@dataclass(frozen=True, slots=True)
class Machine:
    """A device.

    Attributes:
        name: for reports.
        bandwidth: bytes per second between memory and the processor.
        flops: floating-point operations per second in a large matmul (a multiply-add is two).
        launch: seconds every kernel costs however small.
        fresh: seconds per byte that a new array costs on top of being written. A system that
            clears pages before it hands them out takes about as long as writing them does; where
            memory is kept for the next array, as on GPUs, it is nothing.
        one_pass: whether a sum of products and other terms takes one pass over memory if it is of
            float32, as it does with symcompile's kernels for CPU, and in half types too with those
            for GPUs, which have to be asked for; else one for every term.

    Raises:
        OptionError: a figure is no number, or not positive (`launch` and `fresh` may be zero), or
            the name no text.

    >>> Machine("toy", bandwidth=1e9, flops=1e12, launch=1e-6).seconds(2e6, 1e6, 3)
    0.002003
    """

    name: str
    bandwidth: float
    flops: float
    launch: float
    fresh: float = 0.0
    one_pass: bool = False

    def __post_init__(self) -> None:
        for field in ("bandwidth", "flops"):
            value = getattr(self, field)
            if not _is_number(value) or not value > 0:
                raise OptionError(f"Machine {field}={value!r:.80}: expected a positive number")
        for field in ("launch", "fresh"):
            value = getattr(self, field)
            if not _is_number(value) or not value >= 0:
                raise OptionError(f"Machine {field}={value!r:.80}: expected zero or more seconds")
        for field, kind in (("name", str), ("one_pass", bool)):
            value = getattr(self, field)
            if not isinstance(value, kind):
                found = f"{value!r:.80}"
                raise OptionError(f"Machine {field}={found}: expected a {kind.__name__}")

    def seconds(self, bytes: float, flops: float, launches: float, new: float = 0.0) -> float:
        """Time of one kernel, or of several that are all bound by the same resource.

        Args:
            new: bytes of new arrays.
        """
        busy = max(bytes / self.bandwidth, flops / self.flops)
        return busy + launches * self.launch + new * self.fresh

    @staticmethod
    def measure(backend: str = "torch") -> Machine:
        """Calibrate on this machine with a backend's own operations, in a second or two.

        Raises:
            BackendError: the backend is unknown or its framework not installed.
        """
        from symcompile.codegen import get_backend

        figures = (*get_backend(backend).calibrate(), 0.0, False)  # the last two may be left out
        bandwidth, flops, launch, fresh, one_pass = figures[:5]
        return Machine(f"measured with {backend}", bandwidth, flops, launch, fresh, bool(one_pass))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


PRESETS = {
    "cpu": Machine("cpu", bandwidth=2e10, flops=2e11, launch=5e-6, fresh=5e-11, one_pass=True),
    "a100": Machine("a100", bandwidth=1.6e12, flops=1.9e13, launch=6e-6),
    "h100": Machine("h100", bandwidth=3.0e12, flops=6.0e13, launch=5e-6),
    "h200": Machine("h200", bandwidth=4.2e12, flops=6.0e13, launch=5e-6),
}
"""Round figures for float32; `Machine.measure` gives those of the machine at hand."""
