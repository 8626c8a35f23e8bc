"""The text of generated modules that are one node of autograd: the frame, and helpers.

In: nothing. Out: strings that `emit` puts together with those of `text`; a helper is written only
where it is called.
"""

from __future__ import annotations

__all__ = [
    "CHOICE",
    "DIVIDED",
    "FIRST_NODE",
    "IN_PARTS",
    "NODE",
    "OUTER",
    "OUTERS",
    "SUM_AND_OUTER",
    "TO_WEIGHTS",
    "TWO_SUMS",
]

IN_PARTS = '''\
    def forward(self, x):
        sizes, inputs, matrices = self._given(x)
        node = _node(inputs, matrices)
        if node is None:
            outputs = _layer(sizes, inputs, matrices, lambda x: None)
        else:
            outputs = node.apply(sizes, len(inputs), *inputs, *matrices)
{unpack}
{result}

    def _given(self, x):
        """The sizes of an input, and all that is multiplied, in one dtype."""
{given}
{returned}


def _layer(sizes, inputs, matrices, keep):
    """The layer; what weights are multiplied by is given to `keep`."""
{unpack_inputs}
    del inputs[:], matrices[:]  # so that they are freed here

{compute}
{outputs}


def _gradients(sizes, matrices, kept, grads):
    """The layer the other way round: from gradients of outputs to those of inputs and matrices."""
{unpack_gradients}

{to_all}


'''

TO_WEIGHTS = '''\
def _weight_gradients(sizes, kept, grads):
    """The same to those of matrices alone."""
{unpack_gradients}

{to_weights}


'''

NODE = '''\
class _Layer(torch.autograd.Function):
    """The layer as one node of autograd."""

    @staticmethod
    def forward(ctx, sizes, count, *values):
        kept = []
        inputs, matrices = [*values[:count]], [*values[count:]]
        outputs = _layer(sizes, inputs, matrices, kept.append)
        ctx.sizes, ctx.counts = sizes, (count, len(values))
        ctx.save_for_backward(*values, *kept)
        return tuple([_made(y) for y in outputs])

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors  # once: checkpointing hands it out once
        count, end = ctx.counts
        values, kept = saved[:end], saved[end:]
        batched = any([_is_batched(grad) for grad in grads])
        if not (batched or torch.is_grad_enabled()):
            found = _gradients(ctx.sizes, values[count:], kept, grads)
            return None, None, *found[0], *found[1]
        # To be differentiated again, or many gradients at once: as autograd does it.
        with torch.enable_grad():
            # Of the values as they came in: what they are made of, one of another perhaps, is not
            # this layer's.
            values = [value.view_as(value) for value in values]
            outputs = _layer(ctx.sizes, values[:count], values[count:], lambda x: None)
        create = torch.is_grad_enabled()
        return None, None, *torch.autograd.grad(
            outputs, values, grads, create_graph=create, allow_unused=True
        )


'''

FIRST_NODE = '''\
class _FirstLayer(torch.autograd.Function):
    """The layer as a node where no input learns: of those it keeps what weights multiply."""

    @staticmethod
    def forward(ctx, sizes, count, *values):
        kept = []
        outputs = _layer(sizes, [*values[:count]], [*values[count:]], kept.append)
        ctx.sizes, ctx.count = sizes, count
        ctx.save_for_backward(*kept)
        return tuple([_made(y) for y in outputs])

    @staticmethod
    def backward(ctx, *grads):
        # No weight is read on this way: it can be differentiated as it is.
        found = _weight_gradients(ctx.sizes, ctx.saved_tensors, grads)
        return None, None, *[None] * ctx.count, *found


'''

CHOICE = '''\
def _node(inputs, matrices):
    """The node that the layer is, on a CPU, where {learns}
    and nothing looks into it; else None: autograd goes op by op."""
    learn = [value.requires_grad for value in inputs]
    if not (
        torch.is_grad_enabled()
        and all([value.requires_grad for value in matrices])
        and ({first}all(learn))
        and all([value.dtype in _LEARNED for value in (*inputs, *matrices)])
        and matrices[0].is_cpu
        and getattr(torch.autograd.forward_ad, "_current_level", -1) < 0
        and not (_exporting() or _in_transform() or torch.jit.is_tracing())
    ):
        return None
    return {nodes}


def _made(y):
    """An output of the node. To autograd it is no view, as the result of a sum is none. Where a
    node is compiled, PyTorch takes its outputs for contiguous, and views of others amiss."""
    if torch.compiler.is_compiling():
        y = y.contiguous()
    return torch.ops.aten._unsafe_view(y, y.shape)


# A weight divided by the size of a mean may be too small for float16.
_LEARNED = torch.float32, torch.float64, torch.bfloat16


def _is_batched(grad):
    """Whether it is many gradients at once (`is_grads_batched=`)."""
    return not torch.compiler.is_compiling() and _is_legacy_batched(grad)


_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda x: False)


'''

DIVIDED = '''\
def _divided(matrix, runs):
    """Rows divided by numbers; `runs` says for how many each is."""
    if torch.compiler.is_compiling():
        parts = matrix.flatten(0, -2).split([count for count, _ in runs])
        parts = [part / number for part, (_, number) in zip(parts, runs)]
        return torch.cat(parts).view(matrix.shape)
    kind = torch.promote_types(matrix.dtype, torch.float32)
    key = runs, matrix.shape, kind, matrix.device
    plain = type(matrix) in (torch.Tensor, nn.Parameter)
    numbers = _NUMBERS.get(key) if plain else None
    if numbers is None:
        numbers = [number for count, number in runs for _ in range(count)]
        with torch.inference_mode(False):
            numbers = torch.tensor(numbers, dtype=kind, device=matrix.device)
            numbers = numbers.view(*matrix.shape[:-1], 1)
        if plain and type(numbers) is torch.Tensor:  # no fake one
            if len(_NUMBERS) >= 64:
                _NUMBERS.clear()
            _NUMBERS[key] = numbers
    return (matrix / numbers).to(matrix.dtype)


_NUMBERS = {}


'''

OUTERS = '''\
def _outers(x, grad):
    """The gradient of a weight: from what it multiplied, and of the product, either in parts."""
    x, grad = (part if type(part) is tuple else (part,) for part in (x, grad))
    return _beside([_beside([_outer_of(one, other) for other in grad], -1) for one in x], 0)


def _beside(parts, dim):
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


'''

OUTER = '''\
def _outer_of(x, grad):
    """The gradient of a weight: from what it multiplied, and of the product."""
    rows, cols = x.shape[-1], grad.shape[-1]
    work = x.numel() * cols
    if x.dtype is grad.dtype and x.dim() <= 9 and _has_kernels(x, max(x.numel(), work // 16)):
        # The larger a weight, the more it is worth to pack what is multiplied.
        if _MIXED and rows * cols >= 2**17 and not _is_batched(grad):
            return torch.ops.symcompile.mixed_back([x], [grad], x.dim() - 1)
        if max(rows, cols) <= 512:
            return torch.ops.symcompile.outer(x, [*range(x.dim() - 1)], grad)
    if x.dtype is torch.float32 and work >= 2**23 and not (_BLAS or _transformed()):
        return _outer(x, grad)
    return _product(x.reshape(-1, x.shape[-1]).t(), grad.reshape(-1, grad.shape[-1]))


'''

SUM_AND_OUTER = '''\
def _sum_and_outer(grad, weight, x, *terms):
    """The sum of a product and two terms; and the gradient of a weight that multiplied x."""
    if _fits([((grad,), weight)], terms) and grad.is_contiguous() and x.is_contiguous():
        for first, second in (terms, terms[::-1]):
            axis = _lacking(grad, first)
            if axis and _lacking(grad, second) == axis + 1 < grad.dim() - 1:
                first, second = first.squeeze(axis), second.squeeze(axis + 1)
                back_from = torch.ops.symcompile.back_from
                return back_from(grad, x, weight.t(), axis, first, second)
    return _linear_sum((grad, weight), terms=terms), _outer_of(x, grad)


def _lacking(grad, term):
    """The one axis of rows that a term is broadcast over, if it is; else None."""
    if term.dim() != grad.dim():
        return None
    sizes = zip(grad.shape[:-1], term.shape[:-1])
    found = [axis for axis, (size, own) in enumerate(sizes) if size != own]
    return found[0] if len(found) == 1 else None


'''

TWO_SUMS = '''\
def _two_sums(x, dim, dtype=None):
    """The sums over one axis and over the one after it."""
    if _reads_once(x, dim, dtype):
        return torch.ops.symcompile.sums(x, x.dim() + dim, False)
    return tuple(x.sum(dim + k, dtype=dtype) for k in range(2))


'''
