"""From a compiled layer to the source of `init` and `apply`.

In: a `Compiled`. Out: a file that imports jax alone and defines two pure functions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from symcompile.codegen import Compiled, Embedding, Piece, Product, emits, write_parts
from symcompile.codegen.layout import wrapped
from symcompile.codegen.template import (
    block,
    header,
    linear_sum,
    reading,
    scales_table,
    tensors_table,
)
from symcompile.ir import Block

__all__ = ["emit"]

_TEMPLATE = '''\
{header}

{imports}import jax
import jax.numpy as jnp
import numpy as np

{kernels}# The tensors read: (path, number of axes besides batch and channels).
TENSORS = {tensors}

# Shapes of the weights.
WEIGHTS = {shapes}

# How weights are drawn, run-length coded: rows (length, factor, is direct), columns (length, base,
# direct), and whether direct rows and columns meet in an orthogonal block. Standard deviations are
# factor x base, and direct in that block.
SCALES = {scales}


class ShapeError(ValueError):
    """A tensor or a tree does not fit the spec."""


def init(key, dtype=None):
    """Draw the weights, a dict of arrays; the bias starts at zero."""
    dtype = jnp.dtype({default_dtype} if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"dtype: found {{dtype}}, expected a floating or complex one")
    draw = jax.jit(_noise, static_argnums=1)
    noise = draw(key, dtype)
    if isinstance(noise, jax.core.Tracer) or len(noise.devices()) > 1:
        share = jax.jit(_drawn, static_argnums=(0, 2))
        return share(jnp, noise, dtype)
    # On the host, as XLA would compile every part of every weight; then to where the key is.
    (device,) = noise.devices()
    with jax.default_device(device):
        params = _drawn(np, jax.device_get(noise), dtype)
        return jax.device_put(params, device if noise.committed else None)


def _noise(key, dtype):
    """Normal noise for all weights, in one draw: half types are drawn in float32 and rounded."""
    total = sum(rows * cols for rows, cols in (WEIGHTS[name] for name in SCALES))
    return jax.random.normal(key, (total,), jnp.promote_types(dtype, jnp.float32))


def _drawn(xp, noise, dtype):
    """The weights out of noise, as arrays of NumPy or JAX."""
    params = {{}}
    place = noise.size
    for name, shape in WEIGHTS.items():
        if name not in SCALES:
            params[name] = xp.zeros(shape, dtype)
            continue
        place -= shape[0] * shape[1]
        values = noise[place : place + shape[0] * shape[1]].reshape(shape)
        params[name] = _scaled(xp, values, *SCALES[name]).astype(dtype)
    return params


def apply(params, x):
    """y = apply(params, x); x and y are trees, a leaf has shape (*batch, *axes, channels)."""
    leaves = _read(x)
    weights = _weights(params)
    dtype = _common_dtype(leaves, weights)
{read}
{cast}
{weights}

{compute}
{result}


def _scaled(xp, noise, rows, cols, orthogonal):
    """Initial values of a weight, out of normal noise."""
    heights, factor, is_direct = map(np.array, zip(*rows))
    widths, base, direct = map(np.array, zip(*cols))
    factor, is_direct = factor.repeat(heights), is_direct.repeat(heights)
    base, direct = base.repeat(widths), direct.repeat(widths)
    kind = noise.dtype
    values = noise * factor.astype(kind)[:, None] * base.astype(kind)
    tops, lefts = np.flatnonzero(is_direct), np.flatnonzero(direct)
    if tops.size and lefts.size:
        place = np.ix_(tops, lefts)
        block = _orthogonal(xp, noise[place]) if orthogonal else noise[place]
        block = block * direct[lefts].astype(kind)
        if xp is jnp:
            return values.at[place].set(block)
        values[place] = block
    return values


def _orthogonal(xp, noise):
    """A random matrix whose shorter side is orthogonal; entries keep unit variance."""
    tall = noise if noise.shape[0] >= noise.shape[1] else noise.conj().T
    q, r = xp.linalg.qr(tall)
    # The signs make it uniform over orthogonal matrices (Mezzadri, arXiv math-ph/0609050).
    signs = r.diagonal() / abs(r.diagonal())
    q = q * signs * tall.shape[0] ** 0.5
    return q if tall is noise else q.conj().T


{reading}


def _weights(params):
    """The weights by name; every one there, of its shape."""
    if not hasattr(params, "keys"):
        raise ShapeError(f"params: found {{type(params).__name__}}, expected a dict of arrays")
    for name, shape in WEIGHTS.items():
        if name not in params:
            raise ShapeError(f"params[{{name!r}}] is missing; expected {{sorted(WEIGHTS)}}")
        if not (hasattr(params[name], "shape") and hasattr(params[name], "dtype")):
            kind = type(params[name]).__name__
            raise ShapeError(f"params[{{name!r}}]: found a {{kind}} object, expected an array")
        if tuple(params[name].shape) != shape:
            raise ShapeError(
                f"params[{{name!r}}] has shape {{tuple(params[name].shape)}}, expected {{shape}}"
            )
    return {{name: jnp.asarray(params[name]) for name in WEIGHTS}}


def _common_dtype(leaves, weights):
    """The dtype to compute in: the inputs', unless they are integers or the weights complex.

    Never one of integers: means are none.
    """
    dtype = jnp.result_type(*leaves)
    weight = jnp.result_type(*weights.values())
    if jnp.issubdtype(weight, jnp.complexfloating) or not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.promote_types(dtype, weight)
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.promote_types(dtype, jnp.float32)
'''

_KERNELS = """\
# The kernels of symcompile: used where they were imported before.
_KERNELS = sys.modules.get("symcompile_jax.kernels")

"""

_LINEAR_SUM = '''

def _linear_sum(*products, terms=(), held=None):
    """The sum of products and terms, in one go where symcompile's kernels are at hand.

    A product is (x, weight) or (x, weight, axes): index axis k of what is added is its axis
    `axes[k]`; a tuple x stands for its parts side by side. Terms are broadcast to the first
    product; for what is held see `_two_means_held`.
    """
    products = [(x if type(x) is tuple else (x,), *other) for x, *other in products]
    if _KERNELS is not None and _KERNELS.fits(products, terms):
        return _KERNELS.linear_sum(products, terms, held)
    (parts, weight), *others = products
    total = _joined(parts) @ weight
    for parts, weight, axes in others:
        product = _joined(parts) @ weight
        batch = product.ndim - len(axes) - 1
        total += product.transpose(*range(batch), *(batch + axis for axis in axes), -1)
    for term in terms:
        total += term
    return total


'''

_MIXED = '''

def _mixed(parts, weight, into):
    """Parts side by side times a weight, in parts: with kernels, read and written where they lie.

    `into` has the width of each result; or how it is stored: its axes of channels, the order of all
    axes but the batch's, and the shape that they are joined to then.
    """
    fits = getattr(_KERNELS, "mixed_fit", None)
    if fits is not None and fits(parts, weight):
        return _KERNELS.mixed(parts, weight, into)
    into = [piece if type(piece) is tuple else ((piece,), (), ()) for piece in into]
    widths = [math.prod(sizes) for sizes, *_ in into]
    ends = [sum(widths[: k + 1]) for k in range(len(widths) - 1)]
    pieces = jnp.split(_joined(parts) @ weight, ends, axis=-1)
    return [_stored(y.reshape(*y.shape[:-1], *how[0]), *how[1:]) for y, how in zip(pieces, into)]


def _stored(value, order, shape):
    """With its last axes in that order, and joined."""
    before = value.ndim - len(order)
    moved = value.transpose(*range(before), *(before + axis for axis in order))
    return moved.reshape(*moved.shape[:before], *shape)
'''

_ONTO = '''

def _onto(total, terms, shape, sizes, order):
    """The sum of a part of a product, that lies as an output is stored, and of terms."""
    for term in terms:
        whole = jnp.broadcast_to(term.reshape(*term.shape[:-1], *sizes), shape)
        total += _stored(whole, order, total.shape[len(shape) - len(order) :])
    return total
'''

_JOINED = """

def _joined(parts):
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
"""

_TWO_MEANS = '''

def _two_means(x, axis, dtype=None):
    """The means over one axis and over the one after it."""
    if _KERNELS is not None and dtype in (None, x.dtype) and _KERNELS.two_means_fit(x, axis):
        return _KERNELS.two_means(x, axis)
    return x.mean(axis=axis, dtype=dtype), x.mean(axis=axis + 1, dtype=dtype)
'''

_TWO_MEANS_HELD = '''

def _two_means_held(x, axis, weight, dtype=None):
    """As `_two_means`, of an x that a sum will multiply by a weight; and what that sum holds.

    That is None or zeros which have the derivatives of the product: with those of the means they
    make those of x and weight, together, reading x once.
    """
    plain = dtype in (None, x.dtype) and x.dtype == weight.dtype
    if _KERNELS is not None and plain and _KERNELS.two_means_fit(x, axis):
        return _KERNELS.two_means_held(x, weight, axis)
    return *_two_means(x, axis, dtype), None
'''

_DIAGONAL = '''

def _diagonal(x, axis, other):
    """The diagonal of two axes, in the place of the first.

    Entries at equal steps, which XLA reads where they are used. A gather, as of jnp.diagonal, it
    makes and then moves, and the gradient of that is a scatter.
    """
    axis, other = axis % x.ndim, other % x.ndim
    x = jnp.moveaxis(x, other, axis + 1)
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 2 :]
    x = x.reshape(*before, size * size, *after)
    return jax.lax.slice_in_dim(x, 0, None, size + 1, axis)
'''

_ON_DIAGONAL = '''

def _equal(order, *groups):
    """True where, in each group of (axes, size), all indices are the same; then the channels."""
    result = True
    for axes, size in groups:
        index = [
            jnp.arange(size).reshape([size if axis == k else 1 for k in range(order)])
            for axis in axes
        ]
        for other in index[1:]:
            result = result & (index[0] == other)
    return result[..., None]
'''

_FILLED = '''

def _filled(shape, *blocks):
    """A matrix of blocks (part of a weight, its row, its column), zero elsewhere."""
    whole = jnp.zeros(shape, blocks[0][0].dtype)
    for part, row, col in blocks:
        rows, cols = part.shape
        whole = whole.at[row : row + rows, col : col + cols].set(part)
    return whole
'''

_TAKEN = {
    "SCALES",
    "ShapeError",
    "TENSORS",
    "WEIGHTS",
    "apply",
    "dtype",
    "init",
    "jax",
    "jnp",
    "leaves",
    "np",
    "params",
    "sys",
    "weights",
    "x",
}


@emits
def emit(compiled: Compiled) -> str:
    """The layer's source; the same bytes for the same spec and options."""
    shapes = compiled.program.weights
    parts = write_parts(compiled, _Jax(), _TAKEN)
    weights = [f"{name} = weights[{name!r}].astype(dtype)" for name, _ in shapes]
    for filled in compiled.program.filled:
        blocks = [str(filled.shape), *(_placed(part, dict(shapes)) for part in filled.blocks)]
        weights.append(f"{filled.name} = _filled{wrapped(blocks, width=40)}")
    if parts.reduces:
        weights.append("wide = jnp.promote_types(dtype, jnp.float32)  # reductions")
    sums, held, pairs, mixed, onto = (
        any(f"{helper}(" in line for line in parts.compute)
        for helper in ("_linear_sum", "_two_means_held", "_two_means", "_mixed", "_onto")
    )
    pairs = pairs or held
    helped = sums or pairs or mixed
    listing = "".join(f"    {name!r}: {shape!r},\n" for name, shape in shapes)
    source = _TEMPLATE.format(
        header=header(compiled, "JAX"),
        imports=("import math\n" if mixed else "") + ("import sys\n\n" if helped else ""),
        kernels=_KERNELS if helped else "",
        tensors=tensors_table(parts.tensors),
        shapes=f"{{\n{listing}}}",
        scales=scales_table(compiled),
        default_dtype=repr(compiled.dtype) if compiled.dtype else "jnp.result_type(float)",
        read=block(parts.read, 4),
        cast=block((f"{name} = {name}.astype(dtype)" for name in parts.inputs), 4),
        weights=block(weights, 4),
        compute=block((*parts.compute, *parts.trees), 4),
        result=block((f"return {parts.result}",), 4),
        reading=reading(
            "array", "an array", 'hasattr({}, "shape") and hasattr({}, "dtype")', "jnp.asarray({})"
        ),
    )
    source += (_LINEAR_SUM if sums else "") + (_MIXED if mixed else "")
    source += _ONTO if onto else ""
    source += (_JOINED if sums or mixed else "") + (_TWO_MEANS if pairs else "")
    source += _TWO_MEANS_HELD if held else ""
    source += _DIAGONAL if "_diagonal(" in source else ""
    source += _ON_DIAGONAL if "_equal(" in source else ""
    return source + (_FILLED if compiled.program.filled else "")


def _placed(part: Block, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A part of a weight, and its place in a matrix."""
    text = part.weight
    if (part.rows, part.cols) != tuple((0, side) for side in shapes[text]):
        text += f"[{part.rows[0]}:{part.rows[1]}, {part.cols[0]}:{part.cols[1]}]"
    return f"({text}, {part.row}, {part.col})"


class _Jax:
    """JAX's spelling."""

    frees = False
    batching = None  # XLA brings products together by itself, and params are the caller's

    def ones(self) -> str:
        return "jnp.ones(1, dtype)"

    def concat(self, values: Sequence[str]) -> str:
        return f"jnp.concatenate({wrapped(values, width=40)}, axis=-1)"

    def product(self, value: str, weight: str, *, large: bool) -> str:
        return f"{value} @ {weight}"

    def mixed(
        self,
        parts: Sequence[str],
        weight: str,
        channels: Sequence[int],
        pieces: Sequence[Piece],
    ) -> str:
        into = [f"({p.sizes}, {p.order}, {p.stored})" if p.sizes else str(p.width) for p in pieces]
        return f"_mixed({wrapped(parts, width=40)}, {weight}, {wrapped(into)})"

    def onto(self, value: str, terms: Sequence[str], piece: Piece) -> str:
        given = f"{value}, {wrapped(terms)},\n{piece.shape}, {piece.sizes}, {piece.order},"
        return f"_onto(\n{textwrap.indent(given, '    ')}\n)"

    takes_parts = True
    moves_together = True
    pairs = "mean"
    joins_late = False  # kernels look through what XLA would join

    def join(self, value: str, channels: int) -> str:
        return f"{value}.reshape(*{value}.shape[:-{channels}], -1)"

    def linear_sum(
        self,
        target: str,
        products: Sequence[Product],
        terms: Sequence[str],
        anchors: Sequence[str],
        held: str | None,
    ) -> list[str]:
        return linear_sum(target, products, held, terms=terms)

    def two_means(
        self,
        value: str,
        axis: int,
        counts: Sequence[str],
        weight: str | None,
        *,
        widen: bool,
        channels: int = 1,
    ) -> str | None:
        dtype = ", dtype=wide" if widen else ""
        if weight:
            return f"_two_means_held({value}, {axis}, {weight}{dtype})"
        return f"_two_means({value}, {axis}{dtype})"

    def reduce(self, value: str, how: str, axes: Sequence[int], count: str, *, widen: bool) -> str:
        over = str(axes[0]) if len(axes) == 1 else str(tuple(axes))
        return f"{value}.{how}(axis={over}{', dtype=wide' if widen else ''})"

    def cast(self, value: str) -> str:
        return f"{value}.astype(dtype)"

    def copy(self, value: str) -> str:
        return value

    def move_axes(self, value: str, source: Sequence[int], target: Sequence[int]) -> str:
        if len(source) == 1:
            return f"jnp.moveaxis({value}, {source[0]}, {target[0]})"
        return f"jnp.moveaxis({value}, {tuple(source)}, {tuple(target)})"

    diagonal_last = False

    def diagonal(self, value: str, axis1: int, axis2: int) -> str:
        return f"_diagonal({value}, {axis1}, {axis2})"

    def expand(self, value: str, shape: str) -> str:
        return f"jnp.broadcast_to({value}, {shape})"

    def split(self, value: str, widths: Sequence[int], axis: int = -1) -> str:
        if len(set(widths)) == 1:
            return f"jnp.split({value}, {len(widths)}, axis={axis})"
        ends = [sum(widths[: k + 1]) for k in range(len(widths) - 1)]
        return f"jnp.split({value}, {wrapped([str(end) for end in ends])}, axis={axis})"

    def embed(self, request: Embedding) -> list[str]:
        groups = ", ".join(f"({axes}, {size})" for axes, size in request.equal)
        text = f"jnp.where(_equal({request.order}, {groups}), {request.place}, 0)"
        target = request.target
        if request.owned:
            return [f"{target} = {target} + {text}"]
        total = target if request.total is None else f"{request.total} + {target}"
        return [f"{target} = {text}", f"{target} = jnp.broadcast_to({total}, {request.shape})"]
