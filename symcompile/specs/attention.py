"""The perm_spec of a transformer with learned positions and an unembedding of its own.

In: its sizes. Out: a `Network`. The one thing to know: every block adds to the residual stream, so
that is ONE label over all blocks. Attention heads are a label of their own next to the head width:
two axes in flax, one composite axis in torch, where query, key and value are stacked on it too.
"""

from __future__ import annotations

from symcompile.errors import ShapeError
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
    norm_tensors,
    product,
)

__all__ = ["transformer"]


def transformer(
    blocks: int,
    *,
    width: int = 64,
    heads: int = 4,
    mlp_width: int = 256,
    vocab: int = 256,
    positions: int = 64,
    permute_ends: bool = True,
    layout: Layout = "flax",
) -> Network:
    """A transformer: tokens and positions are embedded, blocks follow, then a norm and the logits.

    16 tensors a block and 6 outside in flax: 198 tensors at 12 blocks, 63,148 basis elements in all
    (17,212 at 6 blocks, 932 at 1). In torch, a module with `token_embedding` and
    `position_embedding` (nn.Embedding), `encoder` (nn.TransformerEncoder of
    nn.TransformerEncoderLayer, with a norm), and `unembedding` (nn.Linear). Norms may come first or
    last in a block, and attention may be masked. The labels:

    - "embed": the residual stream. ONE label over all blocks, since every block adds to it.
    - "blockN.heads", and "blockN.mlp" for the block's hidden neurons.
    - in flax "blockN.qk", the head width that queries and keys are dotted over, and "blockN.v" for
      that of values and the out kernel; in torch "blockN.head_width" for both, since all three are
      stacked on one axis. Each head could permute its own; the label moves all alike.
    - "vocab": renaming tokens. "positions": renaming positions. The network is equivariant to
      these: it gives the renamed logits when the token ids and position ids are renamed with the
      tables. A causal mask goes by order in the sequence, not by position id.

    Args:
        blocks: how many there are.
        width: of the residual stream.
        heads: of attention, in every block.
        mlp_width: hidden neurons of every block.
        vocab: number of tokens.
        positions: number of positions.
        permute_ends: label tokens and positions as above, instead of fixed axes.
        layout: "flax" or "torch": whose names, and whose order of axes in kernels.

    Returns:
        the spec, and the shapes that bind its sizes.

    Raises:
        ShapeError: `heads` does not divide `width`.
        OptionError: the layout is unknown.

    >>> transformer(2).spec["block1"]["attention"]["query"]["kernel"]
    ('embed', 'block1.heads', 'block1.qk')
    >>> transformer(2).shapes["block1"]["attention"]["query"]["kernel"]
    (64, 4, 16)
    >>> transformer(2, layout="torch").spec["encoder.layers.1.self_attn.in_proj_weight"]
    ((Fixed(size=3), 'block1.heads', 'block1.head_width'), 'embed')
    """
    choose("layout", layout, LAYOUTS)
    if heads < 1 or width % heads:
        raise ShapeError(
            f"transformer: width {width} is not a multiple of heads {heads}; "
            "choose a width that heads divides"
        )
    embed = Dim("embed", width)
    words, places = end("vocab", vocab, permute_ends), end("positions", positions, permute_ends)
    suffix = ".weight" if layout == "torch" else ""
    root = () if layout == "torch" else ("params",)
    tensors = [
        Tensor((*root, f"token_embedding{suffix}"), (words, embed)),
        Tensor((*root, f"position_embedding{suffix}"), (places, embed)),
    ]
    block = _torch_block if layout == "torch" else _flax_block
    for i in range(blocks):
        tensors += block(i, embed, heads, mlp_width)
    last = "encoder.norm" if layout == "torch" else "ln_final"
    tensors += norm_tensors(layout, last, "layer", embed)
    tensors += linear(layout, "unembedding", embed, words)
    if layout == "flax":
        return network(tensors)
    return network(tensors, *(Dim(f"block{i}.heads", heads) for i in range(blocks)))


def _flax_block(number: int, embed: Dim, heads: int, mlp_width: int) -> list[Tensor]:
    name = f"block{number}"
    head = Dim(f"{name}.heads", heads)
    qk, v = (Dim(f"{name}.{part}", embed.size // heads) for part in ("qk", "v"))
    hidden = Dim(f"{name}.mlp", mlp_width)
    attention = ("params", name, "attention")
    tensors = norm_tensors("flax", f"{name}.ln1", "layer", embed)
    for part, width in (("query", qk), ("key", qk), ("value", v)):
        tensors.append(Tensor((*attention, part, "kernel"), (embed, head, width)))
        tensors.append(Tensor((*attention, part, "bias"), (head, width)))
    return [
        *tensors,
        Tensor((*attention, "out", "kernel"), (head, v, embed)),
        Tensor((*attention, "out", "bias"), (embed,)),
        *norm_tensors("flax", f"{name}.ln2", "layer", embed),
        *linear("flax", f"{name}.mlp_in", embed, hidden),
        *linear("flax", f"{name}.mlp_out", hidden, embed),
    ]


def _torch_block(number: int, embed: Dim, heads: int, mlp_width: int) -> list[Tensor]:
    name, at = f"block{number}", f"encoder.layers.{number}"
    head = Dim(f"{name}.heads", heads)
    width = Dim(f"{name}.head_width", embed.size // heads)
    hidden = Dim(f"{name}.mlp", mlp_width)
    stacked = product(Dim(Fixed(3), 3), head, width)  # query, key and value
    return [
        Tensor((f"{at}.self_attn.in_proj_weight",), (stacked, embed)),
        Tensor((f"{at}.self_attn.in_proj_bias",), (stacked,)),
        *linear("torch", f"{at}.self_attn.out_proj", product(head, width), embed),
        *linear("torch", f"{at}.linear1", embed, hidden),
        *linear("torch", f"{at}.linear2", hidden, embed),
        *norm_tensors("torch", f"{at}.norm1", "layer", embed),
        *norm_tensors("torch", f"{at}.norm2", "layer", embed),
    ]
