"""From a compiled layer to the source of an `nn.Module`.

In: a `Compiled`. Out: a file that imports torch alone and defines one module class.
"""

from __future__ import annotations

from collections.abc import Sequence

from symcompile.codegen import Compiled, Embedding, write_parts
from symcompile.codegen.layout import wrapped
from symcompile.codegen.template import block, header, scales_table, tensors_table

__all__ = ["emit"]

_TEMPLATE = '''\
{header}

from collections.abc import Mapping

import torch
from torch import nn

# The tensors read: (path, number of axes besides batch and channels).
TENSORS = {tensors}

# Initial deviations, run-length coded: rows (length, factor, full), columns (length, base, full).
SCALES = {scales}


class ShapeError(ValueError):
    """A tensor or a tree does not fit the spec."""


class {name}(nn.Module):
    """y = layer(x); x and y are trees of tensors, a leaf has shape (*batch, *axes, channels)."""

    def __init__(self, *, dtype=None, device=None):
        super().__init__()
{default_dtype}        kind = {{"dtype": dtype, "device": device}}
{parameters}
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Draw the weights anew; the bias starts at zero."""
        for name, weight in self.named_parameters(recurse=False):
            if name in SCALES:
                weight.copy_(torch.randn_like(weight) * _deviation(weight, *SCALES[name]))
            else:
                weight.zero_()

    def forward(self, x):
        leaves = _read(x)
        dtype = _common_dtype(leaves, self.{first})
{read}
{cast}
{weights}

{compute}
        return {result}


def _deviation(weight, rows, cols):
    """Standard deviation of each entry of a weight."""
    kind = {{"device": weight.device, "dtype": torch.float64}}
    if weight.device.type == "mps":
        kind["dtype"] = torch.float32
    lengths, factor, full = zip(*rows, strict=True)
    lengths = torch.tensor(lengths, device=weight.device)
    factor = torch.tensor(factor, **kind).repeat_interleave(lengths)[:, None]
    is_full = torch.tensor(full, device=weight.device).repeat_interleave(lengths)[:, None]
    lengths, base, full = zip(*cols, strict=True)
    lengths = torch.tensor(lengths, device=weight.device)
    base = torch.tensor(base, **kind).repeat_interleave(lengths)
    full = torch.tensor(full, **kind).repeat_interleave(lengths)
    return torch.where(is_full, full, factor * base).to(weight.real.dtype)


def _flatten(tree, path=()):
    """Every tensor of a tree of mappings and sequences, by path."""
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        return {{path: tree}}
    found = {{}}
    for key, child in items:
        found.update(_flatten(child, (*path, key)))
    return found


def _place(path):
    return "x" + "".join([f"[{{key!r}}]" for key in path])


def _read(x):
    """The tensors of a tree, in the order of TENSORS."""
    found = _flatten(x)
    for path, order in TENSORS:
        if path not in found:
            raise ShapeError(f"{{_place(path)}} is missing; the spec has a tensor there")
        if not isinstance(found[path], torch.Tensor):
            raise ShapeError(f"{{_place(path)}} is a {{type(found[path]).__name__}}, not a tensor")
        if found[path].dim() < order + 1:
            raise ShapeError(
                f"{{_place(path)}} has shape {{tuple(found[path].shape)}}, expected (*batch, "
                f"{{order}} axes, channels)"
            )
    if len(found) != len(TENSORS):
        known = {{path for path, _ in TENSORS}}
        extra = [_place(path) for path in found if path not in known]
        raise ShapeError(f"{{', '.join(extra)}}: no such tensor in the spec; leave it out")
    return [found[path] for path, _ in TENSORS]


def _check(index, tensor, expected):
    """Refuse a tensor of another shape; nothing is ever broadcast to fit."""
    if tuple(tensor.shape) != expected:
        path, order = TENSORS[index]
        batch = len(expected) - order - 1
        raise ShapeError(
            f"{{_place(path)}} has shape {{tuple(tensor.shape)}}, expected {{expected}}: "
            f"batch {{expected[:batch]}}, axes {{expected[batch:-1]}}, channels {{expected[-1]}}"
        )


def _common_dtype(leaves, weight):
    """The dtype to compute in: the inputs', unless they are integers or the weights complex."""
    dtype = leaves[0].dtype
    for leaf in leaves:
        dtype = torch.promote_types(dtype, leaf.dtype)
    if weight.is_complex() or not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.promote_types(dtype, weight.dtype)
    return dtype
'''

_TAKEN = {
    "Mapping",
    "SCALES",
    "ShapeError",
    "TENSORS",
    "dtype",
    "leaves",
    "nn",
    "self",
    "torch",
    "x",
}


def emit(compiled: Compiled) -> str:
    """The layer's source; the same bytes for the same spec and options."""
    shapes = compiled.program.weights
    parts = write_parts(compiled, _Torch(), _TAKEN | {compiled.name})
    first = shapes[0][0]
    default = ""
    if compiled.dtype is not None:
        default = f"        dtype = torch.{compiled.dtype} if dtype is None else dtype\n"
    return _TEMPLATE.format(
        header=header(compiled, "PyTorch"),
        name=compiled.name,
        tensors=tensors_table(parts.tensors),
        scales=scales_table(compiled),
        default_dtype=default,
        parameters=block(
            (
                f"self.{name} = nn.Parameter(torch.empty({shape!r}, **kind))"
                for name, shape in shapes
            ),
            8,
        ),
        first=first,
        read=block(parts.read, 8),
        cast=block((f"{name} = {name}.to(dtype)" for name in parts.inputs), 8),
        weights=block((f"{name} = self.{name}.to(dtype)" for name, _ in shapes), 8),
        compute=block(parts.compute, 8),
        result=parts.result,
    )


class _Torch:
    """PyTorch's spelling."""

    def weight(self, name: str) -> str:
        return name

    def ones(self) -> str:
        return "torch.ones(1, dtype=dtype, device=leaves[0].device)"

    def concat(self, values: Sequence[str]) -> str:
        return f"torch.cat({wrapped(values)}, dim=-1)"

    def reduce(self, value: str, how: str, axes: Sequence[int]) -> str:
        dims = str(axes[0]) if len(axes) == 1 else str(tuple(axes))
        return f"{value}.{how}(dim={dims})"

    def move_axes(self, value: str, source: Sequence[int], target: Sequence[int]) -> str:
        return f"{value}.movedim({tuple(source)}, {tuple(target)})"

    def diagonal(self, value: str, axis1: int, axis2: int) -> str:
        return f"{value}.diagonal(dim1={axis1}, dim2={axis2})"

    def expand(self, value: str, shape: str) -> str:
        return f"{value}.expand({shape}).contiguous()"

    def split(self, value: str, widths: Sequence[int]) -> str:
        sizes = str(widths[0]) if len(set(widths)) == 1 else wrapped([str(w) for w in widths])
        return f"({value}).split({sizes}, dim=-1)"

    def embed(self, request: Embedding) -> list[str]:
        target = request.target
        if request.owned:
            start = str(request.total)
        else:
            start = f"{request.value}.new_zeros({request.shape})"
            if request.total is not None:
                start += f" + {request.total}"
        diagonals = request.view(target)
        return [f"{target} = {start}", f"{diagonals}.add_({request.value})"]
