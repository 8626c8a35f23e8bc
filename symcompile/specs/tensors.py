"""`Network`, and how the tensors of a layer are named and stored in flax and in torch.

In: a layout, a layer's name, and the axes it maps between. Out: `Tensor`s, which `network` gathers
into a `Network`. The one thing to know: a name is a torch module path ("blocks.0.first"); in the
flax layout every dot opens a dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

from symcompile.errors import OptionError
from symcompile.spec import Fixed, Label, PermSpec, bind_specs, parse_spec
from symcompile.spec.types import plain_int

__all__ = [
    "LAYOUTS",
    "NORMS",
    "Axis",
    "Dim",
    "Layout",
    "Network",
    "Norm",
    "Shapes",
    "Spec",
    "Tensor",
    "choose",
    "end",
    "flags",
    "kernel_taps",
    "linear",
    "network",
    "norm_name",
    "norm_tensors",
    "product",
]

Axis: TypeAlias = "str | int | Fixed | tuple[Axis, ...] | None"
Spec: TypeAlias = "Mapping[str, Spec] | tuple[Axis, ...]"
Shapes: TypeAlias = "Mapping[str, Shapes] | tuple[int, ...]"
Layout: TypeAlias = Literal["flax", "torch"]
Norm: TypeAlias = Literal["batch", "layer"] | None

LAYOUTS = ("flax", "torch")
NORMS = (None, "batch", "layer")


@dataclass(frozen=True, slots=True)
class Network:
    """A perm_spec and the shapes that bind its sizes; unpacks as `spec, shapes`.

    `sizes` has the size of every label, for those that shapes do not tell (heads, where an axis of
    torch is heads times their width); `bound` is the spec with all of them.

    >>> from symcompile.specs import mlp
    >>> spec, shapes = network = mlp((4, 3, 2))
    >>> network.sizes
    {'hidden0': 3}
    """

    spec: Mapping[str, Spec]
    shapes: Mapping[str, Shapes]
    sizes: Mapping[Label, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter((self.spec, self.shapes))

    @property
    def bound(self) -> PermSpec:
        """The spec with the sizes of all its labels: layers take it where shapes do not tell them.

        >>> import symcompile as sc
        >>> network = sc.specs.transformer(1, layout="torch")
        >>> layer = sc.compile(network.bound, in_channels=1, out_channels=2)
        """
        return bind_specs(parse_spec(self.spec), None, self.shapes, sizes=self.sizes)[0]

    def renamed(self, names: Mapping[str, str]) -> Network:
        """The same network with other names for its layers, in the order it had.

        A name is the first part of a path: a key of the flax tree, or what stands before the first
        dot of a state_dict key.

        Raises:
            OptionError: the network has no layer of a name, or two would be called the same.

        >>> from symcompile.specs import mlp
        >>> network = mlp((4, 3, 2), layout="torch").renamed({"0": "first", "2": "last"})
        >>> list(network.spec)
        ['first.weight', 'first.bias', 'last.weight', 'last.bias']
        """
        first = {key: key.partition(".") for key in self.spec}
        known = list(dict.fromkeys(head for head, _, _ in first.values()))
        for name in names:
            if name not in known:
                raise OptionError(
                    f"renamed: the network has no layer {name!r}; its layers are "
                    f"{', '.join(map(repr, known))}"
                )
        new = {key: names.get(head, head) + dot + rest for key, (head, dot, rest) in first.items()}
        if len(set(new.values())) != len(new):
            raise OptionError(f"renamed: {dict(names)} gives two layers the same name")
        return Network(
            {new[key]: part for key, part in self.spec.items()},
            {new[key]: part for key, part in self.shapes.items()},
            self.sizes,
        )


class Dim(NamedTuple):
    """One stored axis: what acts on it, and its size."""

    axis: Axis
    size: int


class Tensor(NamedTuple):
    """One tensor of a network: the keys that lead to it, and its axes."""

    path: tuple[str, ...]
    dims: tuple[Dim, ...]


def product(*dims: Dim) -> Dim:
    """One stored axis that is the product of some, outer first.

    >>> product(Dim("heads", 4), Dim("width", 16))
    Dim(axis=('heads', 'width'), size=64)
    """
    return Dim(tuple(dim.axis for dim in dims), prod(dim.size for dim in dims))


def linear(
    layout: Layout,
    name: str,
    inputs: Dim,
    outputs: Dim,
    *,
    taps: Sequence[int] = (),
    bias: bool = True,
) -> list[Tensor]:
    """The tensors of a linear layer, or of a convolution with a kernel of that many `taps`."""
    fixed = tuple(Dim(None, count) for count in taps)
    if layout == "torch":
        tensors = [Tensor((f"{name}.weight",), (outputs, inputs, *fixed))]
        return tensors + [Tensor((f"{name}.bias",), (outputs,))] * bias
    path = ("params", *name.split("."))
    tensors = [Tensor((*path, "kernel"), (*fixed, inputs, outputs))]
    return tensors + [Tensor((*path, "bias"), (outputs,))] * bias


def norm_tensors(layout: Layout, name: str, kind: Norm, features: Dim) -> list[Tensor]:
    """The tensors of a normalisation, running statistics of a batch norm included."""
    if kind is None:
        return []
    if layout == "torch":
        names = ["weight", "bias"] + ["running_mean", "running_var"] * (kind == "batch")
        return [Tensor((f"{name}.{part}",), (features,)) for part in names]
    path = name.split(".")
    tensors = [Tensor(("params", *path, part), (features,)) for part in ("scale", "bias")]
    if kind == "batch":
        tensors += [Tensor(("batch_stats", *path, part), (features,)) for part in ("mean", "var")]
    return tensors


def norm_name(kind: Norm, number: int) -> str:
    """What flax calls the norm of a compact module: BatchNorm_0, LayerNorm_0."""
    return f"{'BatchNorm' if kind == 'batch' else 'LayerNorm'}_{number}"


def network(tensors: Iterable[Tensor], *told: Dim) -> Network:
    """A `Network` of some tensors; `told` are labels whose sizes their shapes do not tell.

    Where batch norms keep statistics in flax, the tree is that of the variables, {"params": ...,
    "batch_stats": ...}; it is the params alone otherwise.
    """
    spec: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for path, dims in tensors:
        _put(spec, path, tuple(dim.axis for dim in dims))
        _put(shapes, path, tuple(dim.size for dim in dims))
    if set(spec) == {"params"}:
        spec, shapes = spec["params"], shapes["params"]
    known = {dim.axis: dim.size for dim in told}
    bound, _ = bind_specs(parse_spec(spec), None, shapes, sizes=known)
    return Network(spec, shapes, dict(bound.sizes))


def _put(tree: dict[str, Any], path: tuple[str, ...], leaf: object) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def choose(what: str, value: object, options: Sequence[object]) -> None:
    """Raise `OptionError` unless `value` is one of the options."""
    if value not in options:
        raise OptionError(f"{what}={value!r}; choose one of {', '.join(map(repr, options))}")


def flags(what: str, value: bool | Sequence[bool], count: int) -> tuple[bool, ...]:
    """One flag for each of `count` layers, from one for all or a sequence of them.

    Raises `OptionError` where their number is another.
    """
    if isinstance(value, bool):
        return (value,) * count
    if len(value) != count:
        raise OptionError(
            f"{what} has {len(value)} entries for {count} layers; give one for each, or one bool"
        )
    return tuple(bool(flag) for flag in value)


def end(label: str, size: int, permuted: bool) -> Dim:
    """The input or the output of a network: labelled, or a fixed axis."""
    return Dim(label if permuted else None, size)


def kernel_taps(what: str, taps: int | Sequence[int], dim: int) -> tuple[int, ...]:
    """The taps of a kernel along each spatial axis, from one number for all or one for each.

    Raises `OptionError` where their number is not `dim`.
    """
    number = plain_int(taps)
    if number is not None:
        return (number,) * dim
    assert isinstance(taps, Sequence), "one int was the other choice"
    if len(taps) != dim:
        raise OptionError(
            f"{what}: taps has {len(taps)} entries for {dim} spatial axes; give one for each, or "
            "one int"
        )
    return tuple(taps)
