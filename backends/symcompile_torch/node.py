"""The text of generated modules that are one node of autograd: the frame, and helpers.

In: nothing. Out: strings that `emit` puts together with those of `text`; a helper is written only
where it is called.
"""

from __future__ import annotations

__all__ = ["DIVIDED", "IN_PARTS", "NODE", "OUTER", "OUTERS", "SUM_AND_OUTER", "TWO_SUMS"]

IN_PARTS = '''\
    def forward(self, x):
        sizes, inputs, matrices = self._given(x)
        if _learns(inputs, matrices):
            outputs = _Layer.apply(sizes, len(inputs), *inputs, *matrices)
        else:
            outputs = _layer(sizes, inputs, matrices, lambda x: None)
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


def _weight_gradients(sizes, matrices, kept, grads):
    """The same for matrices alone: where no input learns, as in a first layer."""
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
        # To autograd none is a view, as the result of a sum is none: each may be changed in place.
        return tuple([torch.ops.aten._unsafe_view(y, y.shape) for y in outputs])

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors  # once: checkpointing hands it out once
        count, end = ctx.counts
        values, kept = saved[:end], saved[end:]
        batched = not torch.compiler.is_compiling() and any(map(_is_batched, grads))
        learn = ctx.needs_input_grad[2:]
        if not (batched or torch.is_grad_enabled()):
            given = ctx.sizes, values[count:], kept, grads
            if not any(learn[:count]):
                return None, None, *[None] * count, *_weight_gradients(*given)
            found = _gradients(*given)
            return None, None, *found[0], *found[1]
        # To be differentiated again, or many gradients at once: as autograd does it.
        with torch.enable_grad():
            # Of the values as they came in: what they are made of, one of another perhaps, is not
            # this layer's.
            values = [value.view_as(value) for value in values]
            outputs = _layer(ctx.sizes, values[:count], values[count:], lambda x: None)
        wanted = [value for value, needed in zip(values, learn) if needed]
        create = torch.is_grad_enabled()
        found = torch.autograd.grad(outputs, wanted, grads, create_graph=create, allow_unused=True)
        found = [*found]
        return None, None, *[found.pop(0) if needed else None for needed in learn]


def _learns(inputs, matrices):
    """Whether the layer is a node: where all weights learn, on a CPU, and nothing looks into it."""
    return (
        torch.is_grad_enabled()
        and all([matrix.requires_grad for matrix in matrices])
        and all([value.dtype in _LEARNED for value in (*inputs, *matrices)])
        and matrices[0].device.type == "cpu"
        and getattr(torch.autograd.forward_ad, "_current_level", -1) < 0
        and not (_exporting() or _in_transform())
        and (torch.compiler.is_compiling() or not any([x.is_inference() for x in matrices]))
    )


# A weight divided by the size of a mean may be too small for float16.
_LEARNED = torch.float32, torch.float64, torch.bfloat16

# Whether it is many gradients at once (`is_grads_batched=`).
_is_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda x: False)


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
    work = x.numel() * grad.shape[-1]
    sides = x.shape[-1], grad.shape[-1]
    if x.dtype is grad.dtype and x.dim() <= 9 and _has_kernels(x, max(x.numel(), work // 16)):
        if _MIXED and sides[0] * sides[1] >= 2**17 and x.device.type == "cpu":
            return torch.ops.symcompile.mixed_back([x], [grad], x.dim() - 1)
        if max(sides) <= 512:
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
