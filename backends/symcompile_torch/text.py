"""The text of generated modules that does not depend on the spec: the frame, and helpers.

In: nothing. Out: strings that `emit` puts together; a helper is written only where it is called.
"""

from __future__ import annotations

__all__ = [
    "AT_ONCE",
    "DISTRIBUTED",
    "FILL",
    "FILLED_PLACES",
    "FLAT",
    "KERNELS",
    "LAY_OUT",
    "LINEAR_SUM",
    "MEAN",
    "MIXED",
    "ONE_GO",
    "ONTO",
    "PRODUCT",
    "READS_ONCE",
    "TEMPLATE",
    "TRANSFORMED",
    "TWO_MEANS",
    "TWO_MEANS_HELD",
]

TEMPLATE = '''\
{header}

import torch
from torch import nn

# The tensors read: (path, number of axes besides batch and channels).
TENSORS = {tensors}

# How weights are drawn, run-length coded: rows (length, factor, is direct), columns (length, base,
# direct), and whether direct rows and columns meet in an orthogonal block. Standard deviations are
# factor x base, and direct in that block.
SCALES = {scales}{stacks}


class ShapeError(ValueError):
    """A tensor or a tree does not fit the spec."""


class {name}(nn.Module):
    """y = layer(x); x and y are trees of tensors, a leaf has shape (*batch, *axes, channels)."""

    def __init__(self, *, dtype=None, device=None):
        super().__init__()
{default_dtype}        kind = {{"dtype": dtype, "device": device}}
{parameters}
{laid_out}        self.reset_parameters()

{lay_out}    @torch.no_grad()
    def reset_parameters(self):
        """Draw the weights anew; the bias starts at zero."""
        for name, weight in self.named_parameters(recurse=False):
            if name in SCALES:
                weight.copy_(_shared_out(_draw(weight, *SCALES[name]), weight))
            else:
                weight.zero_()

{body}

def _draw(weight, rows, cols, orthogonal):
    """Initial values of a weight."""
    factor, is_direct = ([run[k] for run in rows for _ in range(run[0])] for k in (1, 2))
    base, direct = ([run[k] for run in cols for _ in range(run[0])] for k in (1, 2))
    tops = [row for row, yes in enumerate(is_direct) if yes]
    lefts = [col for col, deviation in enumerate(direct) if deviation]
    # Half types are drawn in float32 and rounded.
    kind = {{"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}}
    values = torch.randn(weight.shape, **kind)
    values *= torch.tensor(factor, **kind)[:, None] * torch.tensor(base, **kind)
    if tops and lefts:
        block = torch.randn(len(tops), len(lefts), **kind)
        if orthogonal:
            block = _orthogonal(block)
        block *= torch.tensor([direct[col] for col in lefts], **kind)
        index = torch.tensor(tops, device=weight.device)[:, None]
        values[index, torch.tensor(lefts, device=weight.device)] = block
    return values


def _orthogonal(noise):
    """A random matrix whose shorter side is orthogonal; entries keep unit variance."""
    tall = noise if noise.shape[0] >= noise.shape[1] else noise.mH
    q, r = torch.linalg.qr(tall)
    # The signs make it uniform over orthogonal matrices (Mezzadri, arXiv math-ph/0609050).
    q = q * r.diagonal().sgn() * tall.shape[0] ** 0.5
    return q if tall is noise else q.mH


def _shared_out(values, weight):
    """Values as a weight lies: shared out to devices, if it is, by the first of them."""
    if not hasattr(type(weight), "device_mesh"):
        return values
    share = torch.distributed.tensor.distribute_tensor
    return share(values, weight.device_mesh, weight.placements)


{reading}


{side_by_side}{products}{means}{transformed}def _cast(values, dtype):
    """Values in one dtype."""
    return [value if value.dtype is dtype else value.to(dtype) for value in values]


def _common_dtype(leaves, weight):
    """The dtype to compute in: the inputs', unless they are integers or the weights complex.

    Under autocast it is autocast's, as for any matrix product.
    """
    dtype = leaves[0].dtype
    for leaf in leaves:
        dtype = torch.promote_types(dtype, leaf.dtype)
    if weight.is_complex() or not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.promote_types(dtype, weight.dtype)
    device = leaves[0].device.type
    narrow = dtype.is_floating_point and dtype.itemsize <= 4
    # There is no autocast on "meta", and asking whether there is breaks graphs in PyTorch 2.9.
    if narrow and device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return dtype
'''

DISTRIBUTED = """\
if hasattr(type({}), "device_mesh"):  # what is added to views of such is lost
    raise ShapeError(
        f"{_place(path)} is a DTensor, and a layer reads plain tensors: share a batch by "
        "DistributedDataParallel or fully_shard, or give the part that is here, to_local()"
    )
"""

AT_ONCE = """\
    def forward(self, x):
{given}

{compute}
{result}

"""

LAY_OUT = '''\
    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._lay_out()
        return self

    def __setstate__(self, state):
        super().__setstate__(state)
        self._lay_out()

    def _lay_out(self):
        """Put weights that are read at once side by side in memory, if plain parameters."""
        for names in STACKS:
            parts = [self._parameters.get(name) for name in names]
            if all(type(part) is nn.Parameter for part in parts) and _can_move(parts):
                whole = torch.cat([part.detach().flatten() for part in parts])
                for part, new in zip(parts, whole.split([part.numel() for part in parts])):
                    part.data = new.view(part.shape)
'''

FILLED_PLACES = """\
        self._places = _places(self)
"""

FLAT = '''\
def _flat(*parts):
    """The entries of all parts in a row, without a copy where they lie side by side already."""
    if torch.compiler.is_compiling() or not _side_by_side(parts):
        return torch.cat([part.reshape(-1) for part in parts])
    if torch.is_grad_enabled():
        return _SideBySide.apply(*parts)
    return _SideBySide.forward(*parts)


def _side_by_side(parts):
    """True of parameters that follow each other in one storage."""
    if not all(type(part) is nn.Parameter and part.is_contiguous() for part in parts):
        return False
    storage, place = parts[0].untyped_storage().data_ptr(), parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != place or part.untyped_storage().data_ptr() != storage:
            return False
        place += part.nbytes
    return True


def _can_move(parts):
    """True of parameters that lie apart, are alike, and are shared with no other process."""
    kinds = {(part.dtype, part.device) for part in parts}
    shared = any(part.is_shared() for part in parts if part.is_cpu)
    return len(kinds) == 1 and not shared and not _side_by_side(parts)


class _SideBySide(torch.autograd.Function):
    """Matrices that lie side by side, as one array over the same memory."""

    @staticmethod
    def forward(*parts):
        return parts[0].detach().as_strided((sum(part.numel() for part in parts),), (1,))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shapes = [part.shape for part in inputs]

    @staticmethod
    def backward(ctx, grad):
        parts = grad.split([shape.numel() for shape in ctx.shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, ctx.shapes))

    @staticmethod
    def vmap(info, in_dims, *parts):
        return _SideBySide.apply(*parts), None  # parameters: a batch of them is none


'''

FILL = '''\
def _fill(layer, entries, size):
    """Entries at their places, zeros elsewhere."""
    places = layer._places
    if places.device != entries.device:  # a layer on the meta device was loaded
        with torch.inference_mode(False):
            places = places.to(entries.device)
        if not (places.is_meta or torch.compiler.is_compiling()):
            layer._places = places
    return entries.new_zeros(size).index_put_((places,), entries)


@torch.inference_mode(False)
def _places(layer):
    """The place of every entry of `STACKS[-1]` in the matrices of `FILLED`, one after another."""
    weights = [(name, getattr(layer, name)) for name in STACKS[-1]]
    places = {
        name: torch.empty(weight.shape, dtype=torch.long, device="cpu") for name, weight in weights
    }
    start = 0
    for (rows, cols), blocks in FILLED:
        for name, (top, bottom), (left, right), row, col in blocks:
            down = start + cols * torch.arange(row, row + bottom - top, device="cpu")
            across = torch.arange(col, col + right - left, device="cpu")
            places[name][top:bottom, left:right] = down[:, None] + across
        start += rows * cols
    flat = torch.cat([places[name].flatten() for name, _ in weights])
    device = weights[0][1].device
    return flat if device.type == "meta" else flat.to(device)


'''

TWO_MEANS = '''\
def _two_means(x, dim, counts, dtype=None):
    """The means over one axis and over the one after it, of `counts` entries."""
    if _reads_once(x, dim, dtype):
        return torch.ops.symcompile.sums(x, x.dim() + dim, True)
    return tuple(_mean(x, dim + k, count, dtype) for k, count in enumerate(counts))


'''

READS_ONCE = '''\
def _reads_once(x, dim, dtype):
    """Whether a kernel makes both means: where enough of what follows both axes lies in a row."""
    if not _has_kernels(x, x.numel()):
        return False
    wide = torch.promote_types(x.dtype, torch.float32)  # the dtype of what a kernel makes
    if (dtype or x.dtype) is not wide:
        return False
    row = 1
    for size, step in zip(x.shape[: dim + 1 : -1], x.stride()[: dim + 1 : -1]):
        if step != row and size != 1:
            break
        row *= size
    if x.is_cpu and row == x.shape[dim + 2 :].numel():
        return row > 1
    return _fill_vectors(row)  # a GPU's, or one for every line


'''

TWO_MEANS_HELD = '''\
def _two_means_held(x, dim, counts, weight, dtype=None, channels=1):
    """As `_two_means`, of an x that a sum will multiply by a weight; and what that sum holds.

    That is None or zeros which take the gradient of the product: with those of the means they make
    those of x and weight, together, reading x once.
    """
    learns = torch.is_grad_enabled() and x.requires_grad and x.dtype == weight.dtype
    if learns and (channels > 1 or x.is_contiguous()) and _reads_once(x, dim, dtype):
        return torch.ops.symcompile.sums_held(x, weight, x.dim() + dim, True, channels)
    return *_two_means(x, dim, counts, dtype), None


'''

MEAN = '''\
def _mean(x, dim, count, dtype=None):
    """A mean over `count` entries.

    The gradient of torch's own is as large as `x`; this one divides first and repeats a view.
    """
    # Where it is compiled, sizes are looked at last: what is exported serves any size.
    if torch.compiler.is_compiling():
        if _has_kernels(x, 2**20) and _is_outer(x, dim, dtype):
            return torch.ops.symcompile.mean(x, x.dim() + dim)
    elif x.numel() >= 2**20 and _by_product(x, dim, dtype):
        if _differs(x):
            return _Mean.apply(x, dim)
        return _Mean.forward(x, dim)
    if x.requires_grad and torch.is_grad_enabled():
        return _along(torch.sum, x, dim, dtype) / count
    return _along(torch.mean, x, dim, dtype)


def _along(reduce, x, dim, dtype):
    """A sum or mean. Of axes that are not in the order of memory, torch's own goes to and fro."""
    # Inductor orders axes itself; and what it traces, and what is exported, serves any size.
    left = torch.compiler.is_compiling() or x.numel() < 2**16 or type(dim) is not int
    if left or x.is_contiguous() or not x.is_cpu:
        return reduce(x, dim, dtype=dtype)
    dim %= x.dim()
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    y = reduce(x.permute(order), order.index(dim), dtype=dtype)
    order.remove(dim)
    return y.permute([order.index(axis) for axis in range(x.dim()) if axis != dim])


def _by_product(x, dim, dtype):
    """Whether a mean is quickest as a product with ones."""
    # Autocast would round what it multiplies.
    if _in_transform() or torch.is_autocast_enabled("cpu"):
        return False
    if not _is_outer(x, dim, dtype) or x.dtype not in (torch.float32, torch.float64):
        return False
    # A product sums in order: over more entries than this, float32 loses too much.
    return x.stride(dim) >= 2**10 and x.shape[dim] <= 2**10


def _is_outer(x, dim, dtype):
    """Whether a mean is of a large array in the processor's memory, over an axis with steps."""
    if type(dim) is not int or not (x.is_cpu and x.is_contiguous()):
        return False
    return x.numel() >= 2**20 and x.stride(dim) >= 2**4 and dtype in (None, x.dtype)


class _Mean(torch.autograd.Function):
    """A mean over one axis as a product with ones, about twice as fast as torch's own on CPU."""

    @staticmethod
    def forward(x, dim):
        before, count, after = x.shape[:dim], x.shape[dim], x.shape[dim + 1 :]
        x = x.reshape(before.numel(), count, -1)
        y = torch.bmm(x.new_ones((1, 1, count)).expand(len(x), 1, count), x).div_(count)
        # To autograd this is no view, as the result of a mean is none.
        return torch.ops.aten._unsafe_view(y, before + after)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.dim = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx, grad):
        return (grad / ctx.shape[ctx.dim]).unsqueeze(ctx.dim).expand(ctx.shape), None

    @staticmethod
    def jvp(ctx, to_x, _):
        return to_x.mean(ctx.dim)


'''

PRODUCT = '''\
def _product(x, weight):
    """x @ weight.

    On CPU oneDNN makes large products of float32 several times as fast as a BLAS that is tuned for
    another processor; a BLAS that is tuned for this one is the quicker.
    """
    # An exported program serves batches of any size, so it must not choose by size.
    if x.dtype is not torch.float32 or not x.is_cpu or _exporting():
        return x @ weight
    if _is_wide(weight, (x,)):
        shape, order = [1, weight.shape[1]], [*range(x.dim())]
        return torch.ops.symcompile.mixed([x], weight, False, x.dim() - 1, shape, order)[0]
    if _BLAS or x.numel() * weight.shape[1] < 2**22:
        return x @ weight
    rows = x.numel() // x.shape[-1]
    if _LINEAR is not None and not _in_transform():
        if not torch.compiler.is_compiling():
            if _differs(x, weight):
                return _Product.apply(x, weight)
            return _Product.forward(x, weight)
        if _fits([((x,), weight)], ()):
            return _in_one_go([((x,), weight)], ())
        # The operator has no derivative forward. A convolution makes torch.compile lay out other
        # tensors for it; where there are no kernels it is the quickest for many rows all the same.
        if (_KERNELS or rows < 4 * x.shape[-1]) and getattr(_forward, "_current_level", -1) < 0:
            y = torch.ops.symcompile.linear(x.reshape(rows, -1), weight.t())
            return y.view(*x.shape[:-1], weight.shape[1])
    if rows < 512:
        return x @ weight
    # A convolution of size one goes through oneDNN too, and every transform knows it.
    image = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)
    y = nn.functional.conv2d(image, weight.t()[:, :, None, None]).permute(0, 2, 3, 1)
    return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], weight.shape[1]))


def _is_wide(weight, parts):
    """Whether kernels multiply matrices in parts, as quick as libraries do those that are whole."""
    wide = _MIXED and weight.numel() >= 2**18 and weight.is_cpu
    return wide and all(_has_kernels(part, 2**17) for part in parts)


def _linear(x, weight):
    """x @ weight.t(), for matrices, by oneDNN."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # a part of a matrix takes oneDNN a thousand times as long
    return _LINEAR(x, weight, None, "none", [], "")


def _outer(x, grad):
    """The gradient of a weight: over all rows, the sum of products of x and grad."""
    x, grad = (part.reshape(-1, part.shape[-1]) for part in (x, grad))
    if len(x) < 4 * x.shape[1]:
        return _product(x.t(), grad)
    # Many rows of few channels: as the gradient of a convolution of size one.
    images = [part[None, :, None].permute(0, 3, 1, 2) for part in (grad, x)]
    kernel = x.new_empty((grad.shape[1], x.shape[1], 1, 1))
    options = None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, False)
    found = torch.ops.aten.convolution_backward(*images, kernel, *options)[1]
    return found[:, :, 0, 0].t()


class _Product(torch.autograd.Function):
    """x @ weight by oneDNN, which knows no derivative of it."""

    @staticmethod
    def forward(x, weight):
        y = _linear(x.reshape(-1, x.shape[-1]), weight.t())
        # To autograd this is no view, as the result of @ is none: sums in place need no copies.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], weight.shape[1]))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if to_x else None,
            _outer(x, grad) if to_weight else None,
        )

    @staticmethod
    def jvp(ctx, to_x, to_weight):
        x, weight = ctx.saved_tensors
        parts = [] if to_x is None else [_product(to_x, weight)]
        return sum(parts if to_weight is None else [*parts, _product(x, to_weight)])


def _remember(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    to_x, to_weight = ctx.needs_input_grad
    linear = torch.ops.symcompile.linear
    return (
        linear(grad, weight.t()) if to_x else None,
        linear(grad.t(), x.t()) if to_weight else None,
    )


_MIXED = hasattr(torch.ops.symcompile, "mixed")

# Whether BLAS is tuned for this processor: that is MKL, for those of its maker.
_known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
_BLAS = torch.backends.mkl.is_available() and "Intel" in str(_known.get("cpu_name"))

# Missing where PyTorch is built without oneDNN, or names it otherwise.
_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_forward = torch.autograd.forward_ad


def _define():
    """Make `_linear` an operator: torch.compile calls those it does not know, but not oneDNN's."""
    try:
        torch.library.define("symcompile::linear", "(Tensor x, Tensor weight) -> Tensor")
    except RuntimeError:
        return  # another layer did so at the same time
    torch.library.impl("symcompile::linear", "CPU", _linear)
    torch.library.register_fake("symcompile::linear", _shaped)
    torch.library.register_autograd("symcompile::linear", _backward, setup_context=_remember)


def _shaped(x, weight):
    return x.new_empty(x.shape[0], weight.shape[0])


# All layers of a process share it.
if _LINEAR is not None and not hasattr(torch.ops.symcompile, "linear"):
    _define()


'''

MIXED = '''\
def _mixed(parts, weight, channels, into):
    """Parts side by side times a weight, in parts: with kernels, read and written where they lie.

    The last axes of a part, as many as `channels` says, are its channels. `into` has the width of
    each result; or its axes of channels, and the order of all axes but the batch's in memory.
    """
    rows = parts[0].dim() - channels[0]
    into = [piece if type(piece) is tuple else ((piece,), ()) for piece in into]
    if _is_wide(weight, parts):
        shapes = [size for sizes, _ in into for size in (len(sizes), *sizes)]
        orders = []
        for sizes, order in into:
            before = rows + len(sizes) - len(order)
            orders += [*range(before), *(before + axis for axis in order)]
        return torch.ops.symcompile.mixed(parts, weight, False, rows, shapes, orders)
    y = _product(torch.cat([part.flatten(rows) for part in parts], dim=-1), weight)
    pieces = y.split([torch.Size(sizes).numel() for sizes, _ in into], dim=-1)
    return [piece.unflatten(-1, sizes) for piece, (sizes, _) in zip(pieces, into)]


'''

ONTO = '''\
def _onto(total, terms, sizes, order, stored):
    """An output as it is stored: the sum of a part of a product and of terms.

    Of axes of channels of these sizes; in `order` all axes but the batch's lie as they are stored.
    In place unless something could tell, or the rest of the product is kept by it.
    """
    before = total.dim() - len(order)
    order = [*range(before), *(before + axis for axis in order)]
    terms = [term.unflatten(-1, sizes).expand(total.shape).permute(order) for term in terms]
    alone = not _transformed() and total.untyped_storage().nbytes() == total.nbytes
    total = total.permute(order)
    if not alone or _differs(total, *terms):
        return sum(terms, total).reshape(stored)
    for term in terms:
        total += term
    return total.reshape(stored)


'''

LINEAR_SUM = '''\
def _linear_sum(*products, terms=(), anchors=(), held=None, channels=1):
    """The sum of products and terms, in one go where symcompile's kernels are at hand.

    A product is (x, weight) or (x, weight, axes): index axis k of what is added is its axis
    `axes[k]`; a tuple x stands for its parts side by side. Terms are broadcast to the first
    product, whose x has so many axes of channels; for what is held see `_two_means_held`. Under
    vmap the first product may lack a batch axis of what is added to it: zeros made from all that is
    added, and anchors, give it the axis.
    """
    products = [(x if type(x) is tuple else (x,), *other) for x, *other in products]
    if held is not None and _fits(products, (*terms, held), channels):
        (((x,), weight),) = products
        return _in_one_go([((x.detach(),), weight.detach())], (*terms, held), channels)
    if _fits(products, terms, channels):
        return _in_one_go(products, terms, channels)
    (parts, weight), *others = products
    if channels > 1:
        parts = [part.flatten(-channels) for part in parts]
    if _transformed():
        factors = [value for parts, other, _ in others for value in (*parts, other)]
        for part in (*terms, *anchors, *factors):
            weight = weight + part.new_zeros(())
    total = _product(_joined(parts), weight)
    for parts, weight, axes in others:
        _add_product(total, _joined(parts), weight, axes)
    for term in terms:
        total += term
    return total


def _joined(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _add_product(total, x, weight, axes):
    """total += x @ weight, where index axis k of what is added is axis `axes[k]` of the product.

    On CPU a few samples at a time: what is added is still in the cache, and takes little memory.
    """
    batch = x.dim() - len(axes) - 1
    order = (*range(batch), *(batch + axis for axis in axes), -1)
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in (total, x, weight))
    if not batch or not x.is_cpu or learns or _transformed():
        total += _product(x, weight).permute(order)
        return
    # So many samples as take 1.5 MiB and as make a large product, if all together do.
    samples, work = max(len(total), 1), x.numel() * weight.shape[1]
    size, work = (max(whole // samples, 1) for whole in (total.nbytes, work))
    few = 1 + max((3 * 2**19 - 1) // size, (2**22 - 1) // work)
    for part, rows in zip(total.split(few), x.split(few)):
        part += _product(rows, weight).permute(order)


'''

ONE_GO = '''\
def _fits(products, terms, channels=1):
    """Whether the kernels are there and the quickest: for many rows of few channels."""
    x, weight = products[0][0][0], products[0][1]
    entries = x.numel() // max(x.shape[-channels:].numel(), 1) * weight.shape[1]
    if not _has_kernels(x, entries):
        return False
    values = [value for parts, weight, *_ in products for value in (*parts, weight)]
    count = sum(len(parts) for parts, *_ in products)
    if x.is_cpu:
        deep = sum(weight.shape[0] for _, weight, *_ in products)
        # A sum of one channel is not quicker, but its gradients are.
        worth = weight.shape[1] > 1 or (deep >= 8 and _differs(x, weight))
        suits = worth and max(deep, 2 * weight.shape[1]) <= 512
    else:
        most = max(max(weight.shape) for _, weight, *_ in products)
        suits = most <= 128 and all(_fill_vectors(value.shape[-1]) for value in values)
    return (
        suits
        and max(count, len(terms), x.dim() - channels + 1) <= 8
        and all(value.dtype is x.dtype for value in (*values, *terms))
    )


def _in_one_go(products, terms, channels=1):
    values, sources, orders, weights = [], [], [], []
    for parts, weight, *axes in products:
        batch = parts[0].dim() - (1 + len(axes[0]) if axes else channels)
        moved = [batch + axis for axis in axes[0]] if axes else []
        for part in parts:
            # Of equal values the gradients come back together.
            known = [k for k, value in enumerate(values) if value is part]
            values += [] if known else [part]
            sources.append(known[0] if known else len(values) - 1)
            orders += [*range(batch), *moved]
        widths = [part.shape[-1] for part in parts]
        weights += weight.split(widths) if len(parts) > 1 else [weight]
    return torch.ops.symcompile.linear_sum(values, weights, sources, orders, list(terms))


'''

KERNELS = '''\
def _are_made(key):
    """Whether operators for a kind of device are there: their package was imported before."""
    known = torch._C._dispatch_has_kernel_for_dispatch_key
    return hasattr(torch.ops.symcompile, "mean") and known("symcompile::mean", key)


_KERNELS = _are_made("CPU")  # by symcompile_torch.kernels
_TRITON = _are_made("CUDA")  # by symcompile_torch.triton


def _has_kernels(x, entries):
    """Whether an operator takes `x`, which makes so many entries, and is the quickest."""
    on_cpu = x.is_cpu
    if not (_KERNELS if on_cpu else _TRITON and x.is_cuda):
        return False
    # An exported program serves any size, and runs without them; they have no derivative forward.
    if _exporting() or entries < (2**17 if on_cpu else 2**22):
        return False
    forward = getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0
    if forward or _in_transform():
        return False
    return x.dtype is torch.float32 if on_cpu else x.dtype in _TRITON_DTYPES


_TRITON_DTYPES = torch.float32, torch.bfloat16, torch.float16


def _fill_vectors(channels):
    """Whether the vectors of a processor are well filled by so many channels side by side."""
    return channels % 8 == 0 or channels > 16


def _differs(*parts):
    """Whether this call may be differentiated; if not, the way by autograd is a detour."""
    if getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0:
        return True
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


'''

TRANSFORMED = '''\
# Whether torch.func takes this call apart.
_in_transform = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _transformed():
    """Whether this call is compiled or taken apart by torch.func."""
    return torch.compiler.is_compiling() or _in_transform()


'''
