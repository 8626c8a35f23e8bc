"""What every command is asked for: a spec, read from a file, and the options of `sc.compile`.

In: the words after options. Out: a `Request` that `sc.compile` takes as it is.
The one thing to know: trees of shapes and of channel counts are files in the grammar of a spec,
with sizes where a spec has labels, so the one careful reader (`load_spec`) reads them all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from symcompile.errors import OptionError, ShapeError, SymcompileError
from symcompile.spec.types import Label, Perm, PermSpec, format_axis, format_label, format_path

__all__ = ["Request", "label_sizes", "named_tree", "read_request"]

_DECIMAL = re.compile(r"-?[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Request:
    """A layer to compile: `sc.compile(spec, out_spec, **options)`.

    Attributes:
        file: the path of the spec, to name it.
        spec, out_spec: as read; `out_spec` is None where the output is like the input.
        options: keyword arguments of `sc.compile`, all but the backend.
    """

    file: Path
    spec: PermSpec
    out_spec: PermSpec | None
    options: Mapping[str, Any]


_LAYER, _SIZES, _SEARCH = "The layer", "Sizes", "How it is computed"


def read_request(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Spec file: .yaml, .yml or .json.")],
    in_channels: Annotated[
        str, typer.Option(metavar="N|FILE", help="Channels of the inputs; a FILE holds [n] leaves.")
    ] = "1",
    out_channels: Annotated[
        str, typer.Option(metavar="N|FILE", help="Channels of the outputs, likewise.")
    ] = "1",
    out_spec: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Spec of the outputs; default: like the inputs."),
    ] = None,
    shapes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Shapes of the inputs: like SPEC, sizes for labels."),
    ] = None,
    out_shapes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Shapes of the outputs, likewise.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=N", help="Size of one label; may be given many times."),
    ] = None,
    no_bias: Annotated[bool, typer.Option("--no-bias", help="Leave out the constants.")] = False,
    reduce: Annotated[
        str, typer.Option(metavar="mean|sum", help="How indices are reduced.")
    ] = "mean",
    optimize: Annotated[
        str,
        typer.Option(
            metavar="STRATEGY", help="auto, greedy, optimal, or false: one diagram at a time."
        ),
    ] = "auto",
    init: Annotated[
        str, typer.Option(metavar="scaled|unf", help="How weights are initialised.")
    ] = "scaled",
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="Of the weights, such as float32.")
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Class name in generated source.")
    ] = "EquivariantLinear",
    machine: Annotated[
        str,
        typer.Option(
            metavar="cpu|a100|h100|h200",
            help="What the layer will run on; for another GPU the nearest.",
        ),
    ] = "cpu",
    max_basis: Annotated[
        int | None,
        typer.Option(metavar="N", help="Refuse a basis of more elements (default 1,000,000)."),
    ] = None,
) -> Request:
    """Read the files and words of one command line.

    Its signature is that of every command: `app` adds these parameters to each.

    Raises:
        SpecError: a file cannot be read or holds no tree of lists.
        ShapeError, OptionError: a size or a count is none.
    """
    # Imported here: `symcompile --help` reads this signature and should not wait for the parsers.
    from symcompile.spec import load_spec

    source = load_spec(spec)
    target = None if out_spec is None else named_tree("--out-spec", out_spec)
    options: dict[str, Any] = {
        "in_channels": _channels("--in-channels", in_channels),
        "out_channels": _channels("--out-channels", out_channels),
        "shapes": None if shapes is None else named_tree("--shapes", shapes).to_python(),
        "out_shapes": (
            None if out_shapes is None else named_tree("--out-shapes", out_shapes).to_python()
        ),
        "sizes": label_sizes(size or [], [*source.labels, *(target.labels if target else ())]),
        "bias": not no_bias,
        "reduce": reduce,
        "optimize": False if optimize.lower() in ("false", "none", "off") else optimize,
        "machine": machine,
        "init": init,
        "dtype": dtype,
        "name": name,
    }
    if max_basis is not None:
        options["max_basis"] = max_basis
    return Request(spec, source, target, options)


def named_tree(option: str, path: Path) -> PermSpec:
    """The tree in a file; messages say for which option it was read."""
    from symcompile.spec import load_spec

    try:
        return load_spec(path)
    except SymcompileError as error:
        raise type(error)(f"{option} {error}") from None


def _channels(option: str, text: str) -> Any:
    if _DECIMAL.fullmatch(text):
        return int(text)
    if Path(text).suffix.lower() not in (".json", ".yaml", ".yml"):
        raise OptionError(
            f"{option}: found {format_label(text)}, expected a positive int, or a .yaml or .json "
            "file: a tree like the spec with [n] for each tensor"
        )
    from symcompile.spec import unflatten

    tree = named_tree(option, Path(text))
    counts = []
    for leaf in tree.leaves:
        match leaf.axes:
            case (Perm(label=int(count)),):
                counts.append(count)
            case _:
                found = ", ".join(map(format_axis, leaf.axes))
                raise OptionError(
                    f"{option} {text}: {format_path(leaf.path)}: found [{found}], expected one "
                    "int in brackets, such as [16]"
                )
    return unflatten(tree, counts)


def label_sizes(pairs: list[str], labels: list[Label]) -> dict[Label, int] | None:
    """`LABEL=N` pairs; 0 is the int 0 where the spec has that label, else the string."""
    # A spec never holds both 0 and "0": the parser refuses labels that look alike.
    known = {str(label): label for label in labels}
    sizes: dict[Label, int] = {}
    for pair in pairs:
        text, equals, number = pair.rpartition("=")  # a label may hold = itself
        if not equals or not _DECIMAL.fullmatch(number):
            raise OptionError(
                f"--size: found {format_label(pair)}, expected LABEL=N with an int N, such as 0=64"
            )
        label = known.get(text, text)
        if sizes.setdefault(label, int(number)) != int(number):
            raise ShapeError(
                f"--size: the label {format_label(label)} is given the sizes {sizes[label]} and "
                f"{int(number)}; give one"
            )
    return sizes or None
