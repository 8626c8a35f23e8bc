"""A family of trained networks, with a layer compiled from its spec on each backend.

In: a `Zoo` and an empty folder. Out: a `Family`: the stacked weights as a layer takes them, and the
layers, all with the same weights, as functions of NumPy trees.

The one thing to know: spec, weights and inputs are also written to the folder, for processes that
share nothing else with this one (`standalone.py`, `timing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import symcompile as sc
from examples.zoo import Permutations, Zoo, apply_permutations

__all__ = [
    "BACKENDS",
    "CHANNELS",
    "Family",
    "compile_family",
    "difference",
    "options",
    "permuted",
    "read_outputs",
]

BACKENDS = ("torch", "jax")
CHANNELS = 8  # out of each layer; into it goes one, the weight itself


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A zoo on its way through the compiler.

    name: as in "MLP". x: the zoo's weights, a tree of arrays (networks, *axes, 1). layers: by
    backend. runs: by backend, a function from a tree like `x` to the layer's output, a tree of
    arrays (networks, *axes, CHANNELS). folder: where the files are.
    """

    name: str
    zoo: Zoo
    x: Any
    layers: Mapping[str, Any]
    runs: Mapping[str, Callable[[Any], Any]]
    folder: Path


def options(zoo: Zoo) -> dict[str, Any]:
    """What `sc.compile` and `sc.export` are told, besides the spec and the backend."""
    return {"shapes": zoo.shapes, "in_channels": 1, "out_channels": CHANNELS}


def compile_family(zoo: Zoo, folder: Path) -> Family:
    """Compile the zoo's spec for every backend and give all layers the same random weights."""
    folder.mkdir()
    layers = {
        backend: sc.compile(zoo.spec, backend=backend, **options(zoo)) for backend in BACKENDS
    }
    with torch.no_grad():
        layers["torch"].bias.normal_()  # it starts at zero, where it could hide mistakes
    sc.save_weights(layers["torch"], folder / "weights.safetensors")
    params = sc.load_weights(folder / "weights.safetensors", backend="jax")

    # Copied, as torch wants arrays that it could write to and JAX's are read-only.
    x = jax.tree.map(lambda leaf: np.array(leaf)[..., None], zoo.params)
    sc.save_weights(_flat(x), folder / "inputs.safetensors")
    sc.dump_spec(zoo.spec, folder / "spec.yaml")
    apply = jax.jit(layers["jax"].apply)

    @torch.no_grad()
    def run_torch(tree: Any) -> Any:
        outputs = layers["torch"](jax.tree.map(torch.from_numpy, tree))
        return jax.tree.map(lambda leaf: leaf.numpy(), outputs)

    def run_jax(tree: Any) -> Any:
        return jax.tree.map(np.asarray, apply(params, tree))

    runs = {"torch": run_torch, "jax": run_jax}
    return Family(zoo.name.upper(), zoo, x, layers, runs, folder)


def permuted(tree: Any, spec: Any, permutations: Permutations) -> Any:
    """A tree of arrays (networks, *axes, channels) with `permutations` applied to their axes.

    >>> x = np.array([[[5.0], [6.0], [7.0]]])
    >>> permuted(x, ("a",), {"a": np.array([2, 0, 1])}).ravel().tolist()
    [7.0, 5.0, 6.0]
    """
    with_channel = jax.tree.map(
        lambda axes: (*axes, None), spec, is_leaf=lambda node: isinstance(node, tuple)
    )
    return apply_permutations(tree, with_channel, permutations)


def difference(found: Any, expected: Any) -> float:
    """The largest |found - expected| of any tensor, relative to that tensor's largest entry.

    >>> difference({"a": np.array([1.0, 4.0])}, {"a": np.array([2.0, 4.0])})
    0.25
    """
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    # np.max hands a NaN on, where max() may lose it.
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))


def read_outputs(family: Family, name: str) -> Any:
    """What another process wrote to NAME.safetensors, as a tree like the spec."""
    arrays = sc.load_weights(family.folder / f"{name}.safetensors")
    structure = jax.tree.structure(family.x)
    return jax.tree.unflatten(structure, [arrays[path] for path in _flat(family.x)])


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path, "Dense_0/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
