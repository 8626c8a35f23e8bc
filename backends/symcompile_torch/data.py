"""state_dicts and modules ↔ trees of tensors with a channel axis.

In: a module, its state_dict, or many of them, of any architecture. Out: a dict of tensors by
state_dict key (or a tree like a perm_spec) whose leaves have shape (*axes, 1), or (batch, *axes, 1)
for many networks; and from such a tree the state_dicts, bit for bit.

The one thing to know: trees are plain dicts and lists, which torch.export, torch.func.vmap,
torch.compile and `default_collate` see through. What is no weight (integer buffers such as
`num_batches_tracked`) stays aside, and comes back from the network that `like=` gives.

>>> from torch import nn
>>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
>>> tree = stack_weights([network, network])
>>> {key: tuple(leaf.shape) for key, leaf in tree.items()}
{'0.weight': (2, 3, 4, 1), '0.bias': (2, 3, 1), '2.weight': (2, 2, 3, 1), '2.bias': (2, 2, 1)}
>>> first, second = unstack_weights(tree, like=network)
>>> torch.equal(second["2.weight"], network[2].weight)
True
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from symcompile.errors import ShapeError
from symcompile.spec import PermSpec, bind_specs, parse_spec, unflatten

__all__ = ["Source", "from_module", "stack_weights", "to_state_dict", "unstack_weights"]

_EXTRA = "_extra_state"
"""Ends the keys of a state_dict under which modules keep what is no tensor."""

Source: TypeAlias = nn.Module | Mapping[str, Tensor]
"""A module, or tensors by name: a state_dict, or `dict(module.named_parameters())`."""


def from_module(source: Source, spec: Any = None, *, aside: Collection[str] = ()) -> Any:
    """The weights of one network as a tree, each (*axes, 1): an item of a torch Dataset.

    Args:
        source: a module, its state_dict, or other tensors by name. Leaves share memory with them,
            and stay in their dtype, on their device and on their autograd graph (a state_dict has
            none).
        spec: the tree's structure; a leaf's path, joined by dots, is its state_dict key. Default a
            flat dict of all floating tensors by key, in the order of the state_dict, where tensors
            that are one and the same (tied weights) appear once.
        aside: keys of floating tensors to leave out, such as a buffer that all networks share.

    Raises:
        ShapeError: the spec lacks a floating tensor of the network or names one it has not, or a
            tensor does not have the axes its leaf says.

    >>> from torch.utils.data import DataLoader
    >>> networks = [nn.Linear(3, 2) for _ in range(6)]
    >>> data = [(from_module(network), float(i)) for i, network in enumerate(networks)]
    >>> tree, target = next(iter(DataLoader(data, batch_size=6)))
    >>> tuple(tree["weight"].shape), tuple(target.shape)
    ((6, 2, 3, 1), (6,))
    """
    values = _values(source)
    parsed = None if spec is None else parse_spec(spec)
    keys = _keys(values, parsed, aside, "the network")
    _require_fit(parsed, keys, values)
    return _tree(parsed, keys, {key: values[key].unsqueeze(-1) for key in keys})


def stack_weights(
    sources: Source | Sequence[Source], spec: Any = None, *, aside: Collection[str] = ()
) -> Any:
    """The weights of many networks of one architecture as a tree, each (batch, *axes, 1).

    Args:
        sources: modules or state_dicts; one alone is a batch of one.
        spec, aside: as in `from_module`.

    Raises:
        ShapeError: there are no networks, they differ in keys, shapes, dtypes or devices, or they
            do not fit the spec.
    """
    many = [_values(source) for source in _listed(sources)]
    if not many:
        raise ShapeError("sources is empty; give at least one module or state_dict")
    parsed = None if spec is None else parse_spec(spec)
    keys = _keys(many[0], parsed, aside, "network 0")
    _require_fit(parsed, keys, many[0])
    for number, values in enumerate(many[1:], start=1):
        _require_alike(values, many[0], number)
        more = set(_keys(values, parsed, aside, f"network {number}"))
        if more.difference(keys):  # tied in network 0, and not in this one
            keys = [key for key in many[0] if key in more or key in keys]
    stacked = {key: torch.stack([values[key] for values in many]).unsqueeze(-1) for key in keys}
    return _tree(parsed, keys, stacked)


def to_state_dict(tree: Any, like: Source) -> OrderedDict[str, Tensor]:
    """The state_dict of one network, from a tree whose leaves have shape (*axes, 1).

    Args:
        tree: as `from_module` makes it. Its tensors are copied, on their autograd graph.
        like: where keys, their order, tied weights and all that the tree does not have come from.

    Raises:
        ShapeError: the tree has a key that `like` has not, a leaf has another shape than (*axes,
            1), or tied weights got different values.
    """
    found = _by_key(tree)
    values = _values(like)
    for key, leaf in found.items():
        _require_shape(key, leaf, (), values)
    return _state_dict(found, values)


def unstack_weights(tree: Any, like: Source | Sequence[Source]) -> list[OrderedDict[str, Tensor]]:
    """The state_dicts of many networks, from a tree whose leaves have shape (batch, *axes, 1).

    Args:
        tree: as `stack_weights` makes it.
        like: the networks, or one for all, from which keys, their order, tied weights and all that
            the tree does not have come.

    Returns:
        one state_dict for each network; on the same networks the very bits that were stacked.

    Raises:
        ShapeError: as in `to_state_dict`, or the number of networks is not that of the tree.
    """
    found = _by_key(tree)
    sources = _listed(like)
    if not found or not sources:
        raise ShapeError(
            "the tree or like= is empty; give a tree of stack_weights, and its networks"
        )
    first, leaf = next(iter(found.items()))
    if not leaf.ndim:
        raise ShapeError(f"the leaf {first!r} has shape (), expected (batch, *axes, 1)")
    count = len(leaf)
    if len(sources) not in (1, count):
        raise ShapeError(
            f"like has {len(sources)} networks, the tree a batch of {count} (at {first!r}); give "
            "one network for each, or one for all"
        )
    each = [_values(source) for source in sources]
    for values in each:
        for key, leaf in found.items():
            _require_shape(key, leaf, (count,), values)
    every = each if len(each) == count else each * count
    return [
        _state_dict({key: leaf[number] for key, leaf in found.items()}, values)
        for number, values in enumerate(every)
    ]


def _values(source: Source) -> Mapping[str, Tensor]:
    if isinstance(source, nn.Module):
        source = source.state_dict()
    elif not isinstance(source, Mapping):
        raise ShapeError(
            f"found a {type(source).__name__} object, expected a module, or tensors by name; load "
            "a file with torch.load first"
        )
    for key, value in source.items():
        if isinstance(value, Mapping) and not str(key).endswith(_EXTRA):
            raise ShapeError(
                f"{key!r} is a container of {len(value)} entries, expected a tensor; give tensors "
                "by name, as a state_dict has them"
            )
        if is_lazy(value):
            raise ShapeError(f"{key!r} has no shape yet; call the module once before this")
    return source


def _listed(sources: Source | Sequence[Source]) -> list[Source]:
    if isinstance(sources, Iterable) and not isinstance(
        sources, nn.Module | Mapping | str | Tensor
    ):
        return list(sources)
    _values(sources)  # refuses what is none
    return [sources]


def _keys(
    values: Mapping[str, Tensor], spec: PermSpec | None, aside: Collection[str], what: str
) -> list[str]:
    """The keys that go into a tree, in the order of the spec's leaves or of the state_dict."""
    weights = [
        key
        for key, value in values.items()
        if isinstance(value, Tensor)
        and (value.is_floating_point() or value.is_complex())
        and key not in aside
    ]
    unknown = [key for key in aside if key not in values]
    if unknown:
        raise ShapeError(f"aside: {what} has no tensor {unknown[0]!r}; it has {_shown(values)}")
    tied = _tied(values)
    if spec is None:
        return [key for key in weights if key not in tied or tied[key] in aside]
    named = [".".join(map(str, leaf.path)) for leaf in spec.leaves]
    for key in named:
        if key not in weights:
            why = "not a floating tensor, or set aside" if key in values else "missing"
            raise ShapeError(
                f"the spec has a leaf {key!r}, which in {what} is {why}; it has {_shown(weights)}"
            )
    same = {tied.get(key, key) for key in named}
    for key in weights:
        if key not in named and tied.get(key, key) not in same:
            raise ShapeError(
                f"{what} has a tensor {key!r} of shape {tuple(values[key].shape)} that the spec "
                "does not name; add a leaf for it, with None for every axis if nothing permutes "
                "it, or leave it out with aside="
            )
    return named


def _require_fit(spec: PermSpec | None, keys: Sequence[str], values: Mapping[str, Tensor]) -> None:
    """Raise `ShapeError` where a tensor has other axes than its leaf, or a label two sizes."""
    if spec is not None:
        bind_specs(spec, None, unflatten(spec, [values[key] for key in keys]), what="weights")


def _tied(values: Mapping[str, Tensor]) -> dict[str, str]:
    """By key, the first key of the same tensor, for tensors that a module holds more than once."""
    first: dict[Any, str] = {}
    tied = {}
    for key, value in values.items():
        if not isinstance(value, Tensor) or value.is_meta or not value.numel():
            continue
        place = value.untyped_storage().data_ptr(), value.storage_offset()
        name = first.setdefault((*place, value.shape, value.stride(), value.dtype), key)
        if name != key:
            tied[key] = name
    return tied


def _require_alike(values: Mapping[str, Tensor], first: Mapping[str, Tensor], number: int) -> None:
    for key in [*first, *values]:
        if key not in values or key not in first:
            lacking, having = (number, 0) if key not in values else (0, number)
            raise ShapeError(
                f"network {having} has a tensor {key!r}, network {lacking} has none; stack "
                "networks of one architecture"
            )
        found, wanted = (
            (tuple(value.shape), value.dtype, value.device)
            if isinstance(value, Tensor)
            else type(value)
            for value in (values[key], first[key])
        )
        if found != wanted:
            raise ShapeError(
                f"{key!r} is {_told(values[key])} in network {number}, {_told(first[key])} in "
                "network 0; stack networks of one architecture, dtype and device"
            )


def _require_shape(
    key: str, leaf: Tensor, batch: tuple[int, ...], values: Mapping[str, Tensor]
) -> None:
    if key not in values:
        raise ShapeError(
            f"the tree has a leaf {key!r}, which like= has not; it has {_shown(values)}"
        )
    wanted = (*batch, *values[key].shape, 1)
    if tuple(leaf.shape) != wanted:
        raise ShapeError(
            f"the leaf {key!r} has shape {tuple(leaf.shape)}, expected {wanted}: "
            f"{'(batch, ' if batch else '('}*axes, 1), one channel"
        )


def _state_dict(
    found: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> OrderedDict[str, Tensor]:
    """Copies of a network's own leaves, each (*axes, 1), and of all else that it has."""
    tied = _tied(values)
    own: dict[str, Any] = {}
    origin: dict[str, str] = {}  # under which key the tree had the first of tied tensors
    for key, leaf in found.items():
        name, value = tied.get(key, key), leaf[..., 0]
        if origin.setdefault(name, key) == key:
            own[name] = value.clone()
        elif not torch.allclose(own[name], value, rtol=0, atol=0, equal_nan=True):
            raise ShapeError(
                f"{origin[name]!r} and {key!r} are tied, one tensor by two names, and the tree has "
                "different values for them; leave one of them out of the spec"
            )
    result = OrderedDict()
    for key, value in values.items():
        name = tied.get(key, key)
        if name not in own:
            own[name] = value.clone() if isinstance(value, Tensor) else deepcopy(value)
        result[key] = own[name]
    # load_state_dict reads from it which version of each module wrote the tensors.
    if hasattr(values, "_metadata"):
        result._metadata = deepcopy(values._metadata)  # type: ignore[attr-defined]
    return result


def _by_key(tree: Any) -> dict[str, Tensor]:
    """The leaves of a tree by state_dict key, which is their path joined by dots."""
    paths, leaves, _ = optree.tree_flatten_with_path(tree, none_is_leaf=True)
    found = {".".join(map(str, path)): leaf for path, leaf in zip(paths, leaves, strict=True)}
    for key, leaf in found.items():
        if not isinstance(leaf, Tensor):
            place = f"the leaf {key!r}" if key else "the tree"
            raise ShapeError(f"{place} is a {type(leaf).__name__} object, expected a tensor")
    return found


def _tree(spec: PermSpec | None, keys: Sequence[str], values: Mapping[str, Tensor]) -> Any:
    if spec is None:
        return {key: values[key] for key in keys}
    return unflatten(spec, [values[key] for key in keys])


def _told(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"


def _shown(keys: Collection[str]) -> str:
    listed = [repr(key) for key in list(keys)[:8]]
    return ", ".join(listed) + (f", ... ({len(keys)} in all)" if len(keys) > 8 else "") or "none"
