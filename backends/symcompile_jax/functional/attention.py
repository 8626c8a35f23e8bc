"""Attention between the rows of all tensors that share a label.

In: a tree and one projection to queries, keys and values. Out: a tree like it.

The one thing to know: a token is a whole fibre of a tensor along a label, its features the entries
along that fibre. Permuting the label permutes the features of all tokens alike, which no dot
product sees; permuting any other label permutes tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from symcompile.errors import ShapeError
from symcompile.library import fibres, head_width
from symcompile.spec import parse_spec, unflatten
from symcompile_jax.functional.trees import Array, read, reader_of, together, wide

__all__ = ["attention"]


def attention(
    spec: Any, x: Any, qkv: Array, bias: Array, role: Array | None = None, heads: int = 1
) -> Any:
    """Neural functional transformers' attention (arXiv 2305.13546), for any spec.

    For every label, all fibres along it of all tensors that carry it attend to each other; a
    tensor that carries it twice has fibres of both kinds. The means of all tensors attend too, and
    what each gets is added to all its entries. Everything an entry gets is summed. It runs on
    `jax.nn.dot_product_attention`, except for float64, of which that keeps half the digits.

    Args:
        qkv: (channels, 3 * channels): queries, keys, values, each (heads, channels // heads).
        bias: (3 * channels,).
        role: (roles, channels), added to the inputs of tokens of one kind: for each tensor one row
            per permuted axis, in storage order, then one for its mean.

    Raises `OptionError` unless `heads` divides the channels.

    >>> x = {"w": jnp.ones((3, 2, 4)), "s": jnp.ones(4)}
    >>> y = attention({"w": (0, 1), "s": ()}, x, jnp.ones((4, 12)), jnp.zeros(12), heads=2)
    >>> y["w"].shape, y["s"].shape
    ((3, 2, 4), (4,))
    """
    channels = qkv.shape[0]
    cuts = (3, heads, head_width(channels, heads))
    parsed = parse_spec(spec)
    reader = reader_of(parsed, [channels] * len(parsed.leaves), split=True)
    leaves = read(reader, x)
    lead = leaves[0].ndim - len(parsed.leaves[0].axes) - 1
    dtype = jnp.result_type(*leaves)
    split = []
    for value in reader.split(leaves):
        own, matrix, shift = together(value.astype(dtype), qkv, bias)
        split.append((own @ matrix + shift).reshape(*own.shape[:-1], *cuts))
    by_label, means = fibres(parsed)
    roles = _roles(role, means[-1] + 1, qkv, split[0].dtype).reshape(-1, *cuts)
    outputs = _means(split, roles[jnp.array(means)], lead)
    for _, along in by_label:
        tokens = [
            _fibres(split[fibre.leaf], lead, fibre.axis) + roles[fibre.role][..., None, :]
            for fibre in along
        ]
        for fibre, found in zip(along, _attend(tokens, lead), strict=True):
            received = _entries(found, split[fibre.leaf].shape, lead, fibre.axis)
            outputs[fibre.leaf] = outputs[fibre.leaf] + received
    results = [
        jnp.broadcast_to(output, (*value.shape[:-3], *output.shape[-2:])).reshape(leaf.shape)
        for output, value, leaf in zip(outputs, split, leaves, strict=True)
    ]
    return unflatten(parsed, results)


def _roles(role: Array | None, count: int, qkv: Array, dtype: Any) -> Array:
    """What each role adds to its projections, (roles, 3 * channels)."""
    channels = qkv.shape[0]
    if role is None:
        return jnp.zeros((count, 3 * channels), dtype)
    if role.shape != (count, channels):
        raise ShapeError(f"role has shape {role.shape}, expected {(count, channels)}")
    return role.astype(dtype) @ qkv.astype(dtype)


def _means(split: Sequence[Array], roles: Array, lead: int) -> list[Array]:
    """What the means get of each other, each with one entry along every axis of its tensor."""
    tokens = [
        (wide(value).mean(range(lead, value.ndim - 3)).astype(value.dtype) + role)[..., None, :]
        for value, role in zip(split, roles, strict=True)
    ]
    found = _attend([jnp.expand_dims(token, lead) for token in tokens], lead)
    return [
        one.reshape(*one.shape[:lead], *(1,) * (value.ndim - lead - 3), *value.shape[-2:])
        for value, one in zip(split, found, strict=True)
    ]


def _fibres(value: Array, lead: int, axis: int) -> Array:
    """(*batch, *atoms, 3, heads, width) as (*batch, tokens, 3, heads, entries, width)."""
    moved = jnp.moveaxis(value, axis - 2, -2)
    return moved.reshape(*moved.shape[:lead], prod(moved.shape[lead:-4]), *moved.shape[-4:])


def _entries(fibres: Array, shape: tuple[int, ...], lead: int, axis: int) -> Array:
    """(*batch, tokens, heads, entries, width) as (*batch, *atoms, heads, width)."""
    atoms = list(shape[lead:-3])
    del atoms[axis + 1]
    apart = fibres.reshape(*fibres.shape[:lead], *atoms, *fibres.shape[-3:])
    return jnp.moveaxis(apart, -2, axis - 1)


def _attend(tokens: Sequence[Array], lead: int) -> list[Array]:
    """Each token from all; (*batch, tokens, 3, heads, entries, width) loses its 3."""
    joined = jnp.concatenate(tokens, axis=lead)
    batch, length = joined.shape[:lead], joined.shape[lead]
    heads, entries, width = joined.shape[-3:]
    flat = joined.reshape(prod(batch), length, 3, heads, entries * width)
    query, key, value = (flat[:, :, k] for k in range(3))
    found = _among(query, key, value)
    ends = list(accumulate(token.shape[lead] for token in tokens[:-1]))
    return jnp.split(found.reshape(*batch, length, heads, entries, width), ends, axis=lead)


def _among(query: Array, key: Array, value: Array) -> Array:
    """Attention of (batch, tokens, heads, features), scaled by 1 / sqrt(features)."""
    if query.dtype in (jnp.float32, jnp.bfloat16):
        return jax.nn.dot_product_attention(query, key, value)
    if query.dtype == jnp.float16:  # on CPU, JAX's own has no product of this type
        return _among(*map(wide, (query, key, value))).astype(query.dtype)
    # JAX's own takes every softmax in float32, whatever the type.
    scores = jnp.einsum("bqhf,bkhf->bhqk", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("bhqk,bkhf->bqhf", jax.nn.softmax(scores, axis=-1), value)
