"""The perm_spec of a recurrent network with a linear readout.

In: its sizes and its kind of cell. Out: a `Network`. The one thing to know: all gates of a cell are
of the same neurons, so they share one label. torch stacks them on one axis, which is then a
composite of the number of gates (fixed) and the neurons; flax keeps a kernel for each.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from symcompile.errors import OptionError
from symcompile.spec import Fixed
from symcompile.specs.tensors import (
    LAYOUTS,
    Dim,
    Layout,
    Network,
    Tensor,
    choose,
    end,
    linear,
    network,
)

__all__ = ["rnn"]

Kind: TypeAlias = Literal["elman", "lstm", "gru"]

_GATES = {"elman": 1, "lstm": 4, "gru": 3}
# flax's names of the kernels from input and state, gate by gate, and which of them have a bias.
_FLAX = {
    "lstm": {f"{side}{gate}": side == "h" for side in "ih" for gate in "ifgo"},
    "gru": {"ir": True, "iz": True, "in": True, "hr": False, "hz": False, "hn": True},
}


def rnn(
    inputs: int,
    hidden: int,
    outputs: int,
    *,
    kind: Kind = "elman",
    layers: int = 1,
    bias: bool = True,
    permute_ends: bool = False,
    layout: Layout = "flax",
) -> Network:
    """Recurrent layers on top of each other, and a linear readout of the last one's state.

    In torch, a module with `rnn`, an nn.RNN, nn.LSTM or nn.GRU, and `readout`, an nn.Linear. In
    flax, "cell" holds the kernels of LSTMCell or GRUCell, or {"input_kernel", "state_kernel",
    "bias"} of an Elman cell; with more layers, "cell_0" and so on, each with a label of its own.

    Args:
        inputs, hidden, outputs: numbers of neurons.
        kind: of the cells; "elman" is the plain one, state = tanh(inputs + state).
        layers: of cells, one on top of the other.
        bias: of the cells; the readout has one in any case. flax's cells always have theirs.
        permute_ends: label inputs and outputs "input" and "output", instead of fixed axes.
        layout: "flax" or "torch": whose names, and whose order of axes in kernels.

    Returns:
        the spec, and the shapes that bind its sizes.

    Raises:
        OptionError: an option that is not allowed, or fewer than one layer.

    >>> rnn(8, 32, 10).spec["cell"]["state_kernel"]
    ('hidden', 'hidden')
    >>> network = rnn(8, 32, 10, kind="lstm", layout="torch")
    >>> network.spec["rnn.weight_hh_l0"], network.shapes["rnn.weight_hh_l0"]
    (((Fixed(size=4), 'hidden'), 'hidden'), (128, 32))
    """
    choose("layout", layout, LAYOUTS)
    choose("kind", kind, tuple(_GATES))
    if layers < 1:
        raise OptionError(f"rnn: layers={layers}, expected 1 or more")
    if layout == "flax" and kind in _FLAX and not bias:
        raise OptionError(f"rnn: flax has no {kind} cell without biases; leave out bias=False")
    tensors: list[Tensor] = []
    below = end("input", inputs, permute_ends)
    for i in range(layers):
        label, cell = ("hidden", "cell") if layers == 1 else (f"hidden{i}", f"cell_{i}")
        state = Dim(label, hidden)
        if layout == "torch":
            tensors += _torch_cell(i, kind, below, state, bias)
        else:
            tensors += _flax_cell(cell, kind, below, state, bias)
        below = state
    tensors += linear(layout, "readout", below, end("output", outputs, permute_ends))
    return network(tensors)


def _torch_cell(number: int, kind: Kind, below: Dim, state: Dim, bias: bool) -> list[Tensor]:
    gates = state
    if _GATES[kind] > 1:
        gates = Dim((Fixed(_GATES[kind]), state.axis), _GATES[kind] * state.size)
    tensors = [
        Tensor((f"rnn.weight_ih_l{number}",), (gates, below)),
        Tensor((f"rnn.weight_hh_l{number}",), (gates, state)),
    ]
    if bias:
        tensors += [Tensor((f"rnn.bias_{side}_l{number}",), (gates,)) for side in ("ih", "hh")]
    return tensors


def _flax_cell(name: str, kind: Kind, below: Dim, state: Dim, bias: bool) -> list[Tensor]:
    if kind == "elman":
        path = ("params", name)
        tensors = [
            Tensor((*path, "input_kernel"), (below, state)),
            Tensor((*path, "state_kernel"), (state, state)),
        ]
        return tensors + [Tensor((*path, "bias"), (state,))] * bias
    return [
        tensor
        for gate, with_bias in _FLAX[kind].items()
        for tensor in linear(
            "flax",
            f"{name}.{gate}",
            below if gate.startswith("i") else state,
            state,
            bias=with_bias,
        )
    ]
