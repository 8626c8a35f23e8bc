"""NFN's interface (Zhou et al., arXiv 2302.14040 and 2305.13546) on the compiler.

In: programs written for the PyPI package `nfn`, with `nfn` replaced by `symcompile_torch.nfn` in
their imports. Out: the same shapes, channels first.

The one thing to know: `from_nfn` takes a trained `NPLinear` or `HNPLinear` over; the other layers
have nfn's parameters under nfn's names, so they load its state_dict. What nfn has no case for works
here: networks of one layer, without biases, with norms, with kernels of any number of axes, and
with a flatten before a linear layer.

>>> import torch
>>> from symcompile_torch.nfn import common, layers
>>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> weights, biases = common.state_dict_to_tensors(net.state_dict())
>>> x = common.WeightSpaceFeatures([w[None] for w in weights], [b[None] for b in biases])
>>> spec = common.network_spec_from_wsfeat(x)
>>> model = torch.nn.Sequential(
...     layers.NPLinear(spec, 1, 16, io_embed=True), layers.TupleOp(torch.nn.ReLU()),
...     layers.HNPPool(spec), torch.nn.Flatten(),
...     torch.nn.Linear(layers.HNPPool.get_num_outs(spec, channels=16), 1))
>>> model(x).shape
torch.Size([1, 1])
"""

from symcompile_torch.nfn import common, layers
from symcompile_torch.nfn.convert import from_nfn

__all__ = ["common", "from_nfn", "layers"]
