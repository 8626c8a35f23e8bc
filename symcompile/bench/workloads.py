"""What is timed: a spec with sizes, a batch and a channel count.

In: a name, or a spec of the user's own. Out: a `Workload`. The built-in ones are the files of
`specs/` with the sizes below; the series grow one of them, to see how time grows.

The one thing to know: a layer maps `channels` to `channels` on the same tensors, so that outputs
have the shapes of inputs and one input serves as the cotangent of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from symcompile.check.draw import stored_shape
from symcompile.errors import OptionError, ShapeError
from symcompile.ir import Tensor
from symcompile.spec import (
    Label,
    PermSpec,
    bind_specs,
    dumps_spec,
    load_spec,
    loads_spec,
    parse_spec,
)
from symcompile.weights import Schema, build_schema

__all__ = ["SERIES", "WORKLOADS", "Series", "Workload", "own_workload", "transformer", "workload"]

Series: TypeAlias = Literal["blocks", "n2", "n3"]
"""What grows: blocks of a transformer, or n of a graph of order 2 or 3."""

_POOL = 1_000_003
_SPECS = Path(__file__).with_name("specs")


@dataclass(frozen=True, slots=True)
class Workload:
    """A layer to compile and the data to run it on.

    Attributes:
        name, title: for tables; the name is a key in results.
        spec: bound: every label has a size.
        batch: size of the one batch axis.
        channels: of every input and every output.
        series: what grows, and how far it has grown here; None for a workload of its own.
    """

    name: str
    title: str
    spec: PermSpec
    batch: int
    channels: int
    series: tuple[Series, int] | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape (batch, *axes, channels) of every tensor, in canonical order."""
        sizes = dict(self.spec.sizes)
        return tuple(
            (self.batch, *stored_shape(leaf, sizes), self.channels) for leaf in self.spec.leaves
        )

    @property
    def entries(self) -> int:
        """Scalars in all inputs together; the outputs have as many."""
        return sum(map(prod, self.shapes))

    @property
    def only_grown(self) -> bool:
        """Whether it is there for its series alone."""
        return self.series is not None and self.name not in WORKLOADS

    @property
    def schema(self) -> Schema:
        """The canonical weights of the layer."""
        tensors = tuple(Tensor(leaf.path, leaf.axes, self.channels) for leaf in self.spec.leaves)
        return build_schema(tensors, tensors, dict(self.spec.sizes))

    @property
    def digest(self) -> str:
        """Changes whenever what is measured changes."""
        text = f"{self.spec.digest} {self.batch} {self.channels}"
        return sha256(text.encode("ascii")).hexdigest()[:16]

    def inputs(self, seed: int, dtype: np.dtype[Any]) -> list[np.ndarray[Any, Any]]:
        """Standard normal tensors, in canonical order; other seeds give other ones.

        Large ones repeat a pool of draws: drawing all of a large workload would take longer than
        timing it. The pool's length is prime, so that no axis shows the period.
        """
        rng = np.random.default_rng(seed)
        pool = rng.standard_normal(min(_POOL, max(self.entries, 1)), np.float32).astype(dtype)
        tensors, start = [], 0
        for shape in self.shapes:
            size = prod(shape)
            tensors.append(np.resize(np.roll(pool, -start)[:size], shape))  # no more than it holds
            start += size
        return tensors

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        return {
            "name": self.name,
            "title": self.title,
            "spec": dumps_spec(self.spec, "yaml"),
            "sizes": [list(pair) for pair in self.spec.sizes],
            "batch": self.batch,
            "channels": self.channels,
            "series": None if self.series is None else list(self.series),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Workload:
        """The workload that `to_dict` wrote."""
        sizes = dict(data["sizes"])
        spec, _ = bind_specs(parse_spec(loads_spec(data["spec"], "yaml")), None, sizes=sizes)
        series = data["series"] and tuple(data["series"])
        return Workload(
            data["name"], data["title"], spec, data["batch"], data["channels"], series or None
        )


def own_workload(
    spec: Any,
    *,
    shapes: Any = None,
    sizes: Mapping[Label, int] | None = None,
    batch: int = 8,
    channels: int = 16,
    name: str = "own",
    title: str = "",
) -> Workload:
    """A workload of a spec of one's own.

    Args:
        spec: as for `symcompile.compile`.
        shapes, sizes: likewise; together they must bind every label and every fixed axis.
        batch, channels: of the data.

    Raises:
        SpecError: the spec is malformed.
        ShapeError: sizes disagree, or some are not known.
        OptionError: batch or channels is no positive int.

    >>> own_workload({"w": ("a", None)}, shapes={"w": (5, 2)}, batch=3, channels=4).shapes
    ((3, 5, 2, 4),)
    """
    for option, value in (("batch", batch), ("channels", channels)):
        if value < 1:
            raise OptionError(f"{option}: found {value}, expected a positive int")
    bound, _ = bind_specs(parse_spec(spec), None, shapes, None, sizes)
    missing = [label for label in bound.labels if bound.size(label) is None]
    if missing:
        what = ", ".join(f"label {label!a}" for label in missing)
        raise ShapeError(
            f"a benchmark needs every size, found none for {what}; give shapes, or a size by label"
        )
    return Workload(name, title or name, bound, batch, channels)


def transformer(blocks: int, width: int = 64, heads: int = 4) -> Workload:
    """A decoder of any number of blocks, each like the first of `specs/transformer.yaml`.

    >>> [len(transformer(blocks).spec.leaves) for blocks in (1, 2, 4)]
    [22, 38, 70]
    """
    two = load_spec(_SPECS / "transformer.yaml").to_python()
    rest = {key: part for key, part in two.items() if not key.startswith("block")}
    spec: dict[str, Any] = {}
    sizes: dict[Label, int] = {"embed": width, "vocab": 256, "positions": 64}
    for number in range(blocks):
        name = f"block{number}"
        spec[name] = _renamed(two["block0"], name)
        sizes |= {f"{name}.heads": heads, f"{name}.mlp": 4 * width}
        sizes |= {f"{name}.{part}": width // heads for part in ("qk", "v")}
    plural = "s" if blocks > 1 else ""
    made = own_workload(
        {**spec, **rest},
        sizes=sizes,
        batch=4,
        channels=16,
        name="transformer" if blocks == 2 else f"transformer-{blocks}",
        title=f"transformer, {blocks} block{plural}, width {width}",
    )
    return _grown(made, "blocks", blocks)


def _renamed(part: Any, block: str) -> Any:
    if isinstance(part, dict):
        return {key: _renamed(child, block) for key, child in part.items()}
    return tuple(label.replace("block0", block) for label in part)


def _grown(made: Workload, series: Series, size: int) -> Workload:
    return Workload(
        made.name, made.title, made.spec, made.batch, made.channels, series=(series, size)
    )


def _graph(order: int, n: int, batch: int, channels: int) -> Workload:
    standard = {2: 64, 3: 16}[order]
    made = own_workload(
        load_spec(_SPECS / f"graph{order}.yaml"),
        sizes={"node": n},
        batch=batch,
        channels=channels,
        name=f"graph{order}" if n == standard else f"graph{order}-n{n}",
        title=f"graph of order {order}, n {n}",
    )
    return _grown(made, "n2" if order == 2 else "n3", n)


def _from_file(
    name: str, title: str, sizes: Mapping[Label, int], batch: int, channels: int
) -> Workload:
    spec = load_spec(_SPECS / f"{name}.yaml")
    return own_workload(
        spec, sizes=sizes or None, batch=batch, channels=channels, name=name, title=title
    )


WORKLOADS = {
    "mlp": lambda: _from_file("mlp", "MLP 784-512-10", {0: 784, 1: 512, 2: 10}, 8, 16),
    "deep": lambda: _from_file("deep", "MLP 8 x 128", dict.fromkeys(range(9), 128), 8, 32),
    "graph2": lambda: _graph(2, 64, 8, 32),
    "graph3": lambda: _graph(3, 16, 4, 16),
    "rnn": lambda: _from_file(
        "rnn", "RNN 32-128-10", {"input": 32, "hidden": 128, "output": 10}, 8, 16
    ),
    "transformer": lambda: transformer(2),
    "cnn": lambda: _from_file(
        "cnn", "CNN 3-16-32, 3 x 3", {"channels0": 16, "channels1": 32}, 16, 16
    ),
}
"""The built-in workloads by name."""

SERIES: dict[Series, tuple[int, ...]] = {
    "blocks": (1, 2, 4, 8),
    "n2": (16, 32, 64, 128, 256),
    "n3": (4, 8, 16, 32),
}
"""How far each series grows."""


def workload(name: str) -> Workload:
    """A built-in workload, or one of a series.

    Raises:
        OptionError: there is none of that name.

    >>> workload("mlp").shapes[1]
    (8, 784, 512, 16)
    >>> workload("graph2-n128").series
    ('n2', 128)
    """
    if name in WORKLOADS:
        return WORKLOADS[name]()
    for made in (each for kind, sizes in SERIES.items() for each in series(kind, sizes)):
        if made.name == name:
            return made
    raise OptionError(f"workload {name!r} is not known; choose from {', '.join(WORKLOADS)}")


def series(kind: Series, sizes: Sequence[int]) -> list[Workload]:
    """The workloads of one series."""
    match kind:
        case "blocks":
            return [transformer(size) for size in sizes]
        case "n2":
            return [_graph(2, size, 8, 32) for size in sizes]
        case "n3":
            return [_graph(3, size, 4, 16) for size in sizes]
