"""The perm_specs of common networks, each with the shapes of its tensors.

In: the sizes of a network. Out: a `Network`: two trees of the same structure, one whose leaves are
the labels of each tensor's axes, one whose leaves are the sizes of those axes.

The one thing to know: two axes share a label exactly when the network computes the same function
after both are permuted together. A `None` axis is fixed (pixels, classes, taps of a kernel), and
a nested tuple is one stored axis that is a product, outer factor first. With `layout="flax"` the
tree is the nested dict of flax.linen and kernels are (inputs, outputs); with `layout="torch"` it is
a flat dict by state_dict key and weights are (outputs, inputs). `symcompile.check_symmetry` proves
a spec, one of these or your own, on a network.
"""

from symcompile.specs.attention import transformer
from symcompile.specs.chain import residual
from symcompile.specs.convolutional import cnn
from symcompile.specs.dense import mlp
from symcompile.specs.recurrent import rnn
from symcompile.specs.tensors import Axis, Network, Shapes, Spec

__all__ = ["Axis", "Network", "Shapes", "Spec", "cnn", "mlp", "residual", "rnn", "transformer"]
