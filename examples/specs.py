"""The perm_specs of common networks, each with the shapes of its tensors.

In: the sizes of a network. Out: a `Network`, two trees of the same structure (nested dicts), one
whose leaves are the labels of each tensor's axes, one whose leaves are the sizes of those axes.

The one thing to know: two axes share a label exactly when the network computes the same function
after both are permuted together. A `None` axis is fixed (pixels, classes, taps of a kernel), and
a nested tuple is one stored axis that is a product, outer factor first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from symcompile.errors import OptionError, ShapeError
from symcompile.spec import Fixed

__all__ = ["Axis", "Network", "Shapes", "Spec", "cnn", "mlp", "rnn", "transformer"]

Axis: TypeAlias = "str | int | Fixed | tuple[Axis, ...] | None"
Spec: TypeAlias = "Mapping[str, Spec] | tuple[Axis, ...]"
Shapes: TypeAlias = "Mapping[str, Shapes] | tuple[int, ...]"


class Network(NamedTuple):
    """A perm_spec and the shapes that bind its sizes; unpacks as `spec, shapes`."""

    spec: Mapping[str, Spec]
    shapes: Mapping[str, Shapes]


def mlp(widths: Sequence[int], *, permute_ends: bool = False) -> Network:
    """A multi-layer perceptron with kernels (inputs, outputs) and biases (outputs,).

    `widths` are the sizes of all layers of neurons, inputs and outputs included. Inputs and
    outputs are fixed axes unless `permute_ends`, which labels them "input" and "output".

    Raises `OptionError` for fewer than two widths.

    >>> mlp((64, 16, 10)).spec["Dense_0"]
    {'kernel': (None, 'hidden0'), 'bias': ('hidden0',)}
    >>> mlp((64, 16, 10)).shapes["Dense_1"]
    {'kernel': (16, 10), 'bias': (10,)}
    """
    if len(widths) < 2:
        raise OptionError(
            f"mlp: widths has {len(widths)} entries, expected at least 2; "
            "give the input and the output size too, such as (64, 16, 10)"
        )
    hidden = [f"hidden{i}" for i in range(len(widths) - 2)]
    labels = [_end("input", permute_ends), *hidden, _end("output", permute_ends)]
    spec: dict[str, Spec] = {}
    shapes: dict[str, Shapes] = {}
    for i in range(len(widths) - 1):
        spec[f"Dense_{i}"] = {"kernel": (labels[i], labels[i + 1]), "bias": (labels[i + 1],)}
        shapes[f"Dense_{i}"] = {"kernel": (widths[i], widths[i + 1]), "bias": (widths[i + 1],)}
    return Network(spec, shapes)


def cnn(
    channels: Sequence[int] = (8, 16),
    *,
    taps: int = 3,
    pixels: int = 4,
    in_channels: int = 1,
    classes: int = 10,
) -> Network:
    """A 2D convolutional network that ends in a flatten and one linear layer.

    Kernels are (taps, taps, channels in, channels out), as in Flax. `pixels` is the number of
    positions left when the last feature map is flattened. Flattening (height, width, channels)
    makes the linear layer's input axis a composite: pixels (fixed) outside, channels inside.

    Raises `OptionError` if `channels` is empty.

    >>> cnn((8,)).spec["Dense_0"]["kernel"], cnn((8,)).shapes["Dense_0"]["kernel"]
    (((None, 'channels0'), None), (32, 10))
    """
    if not channels:
        raise OptionError("cnn: channels is empty, expected one size per convolution, as (8, 16)")
    widths = [in_channels, *channels]
    labels: list[Axis] = [None, *(f"channels{i}" for i in range(len(channels)))]
    spec: dict[str, Spec] = {}
    shapes: dict[str, Shapes] = {}
    for i in range(len(channels)):
        kernel, size = (None, None, labels[i], labels[i + 1]), (taps, taps, *widths[i : i + 2])
        spec[f"Conv_{i}"] = {"kernel": kernel, "bias": (labels[i + 1],)}
        shapes[f"Conv_{i}"] = {"kernel": size, "bias": (widths[i + 1],)}
    spec["Dense_0"] = {"kernel": ((None, labels[-1]), None), "bias": (None,)}
    shapes["Dense_0"] = {"kernel": (pixels * widths[-1], classes), "bias": (classes,)}
    return Network(spec, shapes)


def rnn(inputs: int, hidden: int, outputs: int, *, permute_ends: bool = False) -> Network:
    """An Elman recurrent network with a linear readout of its state.

    The state's own kernel carries the label "hidden" on both axes. Inputs and outputs are fixed
    axes unless `permute_ends`, which labels them "input" and "output".

    >>> rnn(8, 32, 10).spec["cell"]["state_kernel"]
    ('hidden', 'hidden')
    """
    x, y = _end("input", permute_ends), _end("output", permute_ends)
    return Network(
        {
            "cell": {
                "input_kernel": (x, "hidden"),
                "state_kernel": ("hidden", "hidden"),
                "bias": ("hidden",),
            },
            "readout": {"kernel": ("hidden", y), "bias": (y,)},
        },
        {
            "cell": {
                "input_kernel": (inputs, hidden),
                "state_kernel": (hidden, hidden),
                "bias": (hidden,),
            },
            "readout": {"kernel": (hidden, outputs), "bias": (outputs,)},
        },
    )


def transformer(
    blocks: int,
    *,
    width: int = 64,
    heads: int = 4,
    mlp_width: int = 256,
    vocab: int = 256,
    positions: int = 64,
) -> Network:
    """A GPT-like decoder: pre-norm, learned positions, an unembedding of its own.

    16 tensors a block and 6 outside: 198 tensors at 12 blocks, 63,148 basis elements in all
    (17,212 at 6 blocks, 932 at 1). The labels:

    - "embed": the residual stream. ONE label over all blocks, since every block adds to it.
    - "blockN.heads", and "blockN.mlp" for the block's hidden neurons.
    - "blockN.qk": the head width that queries and keys are dotted over, and "blockN.v" for that
      of values and the out kernel. Each head could permute its own; the label moves all alike.
    - "vocab": renaming tokens. "positions": renaming positions. The network is equivariant to
      these: it gives the renamed logits when the token ids and position ids are renamed with the
      tables. The causal mask goes by order in the sequence, not by position id.

    Raises `ShapeError` unless `heads` divides `width`.

    >>> transformer(2).spec["block1"]["attention"]["query"]["kernel"]
    ('embed', 'block1.heads', 'block1.qk')
    >>> transformer(2).shapes["block1"]["attention"]["query"]["kernel"]
    (64, 4, 16)
    """
    if width % heads:
        raise ShapeError(
            f"transformer: width {width} is not a multiple of heads {heads}; "
            "choose a width that heads divides"
        )
    spec: dict[str, Spec] = {
        "token_embedding": ("vocab", "embed"),
        "position_embedding": ("positions", "embed"),
    }
    sizes = {"embed": width, "vocab": vocab, "positions": positions}
    for i in range(blocks):
        name = f"block{i}"
        spec[name] = _block(name)
        sizes |= {f"{name}.heads": heads, f"{name}.mlp": mlp_width}
        sizes |= {f"{name}.{part}": width // heads for part in ("qk", "v")}
    spec["ln_final"] = _norm()
    spec["unembedding"] = {"kernel": ("embed", "vocab"), "bias": ("vocab",)}
    return Network(spec, {name: _sized(part, sizes) for name, part in spec.items()})


def _block(name: str) -> dict[str, Spec]:
    heads, qk, v, hidden = (f"{name}.{part}" for part in ("heads", "qk", "v", "mlp"))
    return {
        "ln1": _norm(),
        "attention": {
            "query": {"kernel": ("embed", heads, qk), "bias": (heads, qk)},
            "key": {"kernel": ("embed", heads, qk), "bias": (heads, qk)},
            "value": {"kernel": ("embed", heads, v), "bias": (heads, v)},
            "out": {"kernel": (heads, v, "embed"), "bias": ("embed",)},
        },
        "ln2": _norm(),
        "mlp_in": {"kernel": ("embed", hidden), "bias": (hidden,)},
        "mlp_out": {"kernel": (hidden, "embed"), "bias": ("embed",)},
    }


def _norm() -> dict[str, Spec]:
    return {"scale": ("embed",), "bias": ("embed",)}


def _sized(spec: Spec, sizes: Mapping[str, int]) -> Shapes:
    """The shapes of a spec in which every axis is a plain string label."""
    if isinstance(spec, Mapping):
        return {name: _sized(part, sizes) for name, part in spec.items()}
    return tuple(sizes[str(label)] for label in spec)


def _end(label: str, permuted: bool) -> str | None:
    return label if permuted else None
