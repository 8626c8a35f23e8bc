"""Runs an exported layer where symcompile cannot be imported.

In: a backend's name and a folder with `layer_torch.py` or `layer_jax.py`, `weights.safetensors` and
`inputs.safetensors`. Out: `outputs-standalone-BACKEND.safetensors` beside them, and one line of
JSON: the error that `import symcompile` raised, and what of symcompile came in all the same.

The one thing to know: this file imports nothing of symcompile or of examples, and it first puts an
import hook in the way that would refuse them.

    python examples/standalone.py torch FOLDER
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file


class Refuse:
    """An import hook that finds no package of ours, installed or not."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises `ImportError` for symcompile and its backends, and leaves the rest alone."""
        if name.partition(".")[0].startswith("symcompile"):
            raise ImportError(f"{name} is kept out of this process")


def main(backend: str, folder: Path) -> None:
    """Run the layer in `folder` and tell what importing symcompile came to."""
    sys.meta_path.insert(0, Refuse())
    refusal = _try_import("symcompile")
    module = _load(folder / f"layer_{backend}.py")
    weights = load_file(folder / "weights.safetensors")
    inputs = load_file(folder / "inputs.safetensors")
    run = {"torch": _run_torch, "jax": _run_jax}[backend]
    outputs = _flat(run(module, weights, _nested(inputs)))
    save_file(outputs, folder / f"outputs-standalone-{backend}.safetensors")
    ours = sorted(name for name in sys.modules if name.startswith("symcompile"))
    print(json.dumps({"refusal": refusal, "imported": ours}))


def _try_import(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        return type(error).__name__
    return None


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "a .py file always has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_torch(module: ModuleType, weights: dict[str, Any], x: Any) -> Any:
    import torch

    layer = module.EquivariantLinear()
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        return layer(_map(torch.from_numpy, x))


def _run_jax(module: ModuleType, weights: dict[str, Any], x: Any) -> Any:
    import jax

    return jax.jit(module.apply)(weights, x)


def _map(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, child) for name, child in tree.items()}
    return function(tree)


def _nested(arrays: dict[str, Any]) -> dict[str, Any]:
    """{"Dense_0/kernel": array} as {"Dense_0": {"kernel": array}}."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = array
    return tree


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, child in tree.items():
        if isinstance(child, dict):
            arrays |= _flat(child, f"{prefix}{name}/")
        else:
            arrays[prefix + name] = np.ascontiguousarray(child)
    return arrays


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
