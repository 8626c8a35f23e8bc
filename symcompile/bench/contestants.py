"""Who takes part.

In: a list of names, and files of peers. Out: `Contestant`s, each of which a child process can
build by itself.

The one thing to know: a peer is a Python file with a `CONTESTANTS` dict, from a name to a function
`build(workload, setting) -> Subject`. It is code, loaded only from folders that the caller names.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from symcompile.bench.subject import Build
from symcompile.errors import OptionError

__all__ = ["OURS", "Contestant", "build_of", "find_contestants", "peers_beside"]


_MEASURING = (
    "child",
    "memory",
    "ours",
    "process",
    "jax_subject",
    "runner",
    "subject",
    "torch_subject",
)
"""Files of this package that a measurement depends on; reports may change."""

_CODE = (".py", ".cpp")
"""Endings of the files that a backend is made of."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that computes an equivariant layer.

    Attributes:
        name: a key in results.
        file: where its code is, or None for ours.
    """

    name: str
    file: str | None = None

    @property
    def is_ours(self) -> bool:
        """True for a layer of this compiler."""
        return self.file is None

    @property
    def digest(self) -> str:
        """Changes whenever its code, or the code that measures it, changes."""
        package = Path(__file__).parents[1]
        bench = package / "bench"
        files = [bench / f"{name}.py" for name in _MEASURING]
        if self.file is not None:
            files.append(Path(self.file))
        else:
            compiler = (path for path in package.rglob("*.py") if path.parent != bench)
            files += [path for path in compiler if path.parent.name not in ("cli", "check")]
            for backend in ("numpy", "torch", "jax"):
                found = importlib.util.find_spec(f"symcompile_{backend}")
                for folder in (found and found.submodule_search_locations) or ():
                    files += [path for path in Path(folder).rglob("*.*") if path.suffix in _CODE]
        total = sha256()
        for file in sorted(files):
            total.update(file.read_bytes())
        return total.hexdigest()[:16]


_MODES = ("torch", "torch.compile", "jax", "numpy")
_MODES_ON_GPU = ("torch.triton", "torch.compile.triton")

OURS: Mapping[str, tuple[str, str | bool]] = {
    f"{mode} {word}": (mode, optimize)
    for word, optimize, modes in (
        ("auto", "auto", _MODES + _MODES_ON_GPU),
        ("reference", False, _MODES),
    )
    for mode in modes
}
"""Our contestants: name to mode and `optimize=`."""


def peers_beside() -> list[Path]:
    """The folder of peers of the checkout that this package lies in, if it lies in one."""
    folder = Path(__file__).parents[2] / "benchmarks" / "peers"
    return [folder] if folder.is_dir() else []


def find_contestants(peers: Sequence[Path], device: str = "cpu") -> list[Contestant]:
    """Ours, then those of every file in the folders, or files, of `peers`.

    Args:
        device: "cpu" or "cuda"; ours for a GPU alone are no contestants on a CPU.

    Raises:
        OptionError: a path does not exist, or a file defines no contestants.
    """
    left_out = _MODES_ON_GPU if device == "cpu" else ()
    found = [Contestant(name) for name, (mode, _) in OURS.items() if mode not in left_out]
    for path in peers:
        if not os.path.exists(path):
            raise OptionError(f"peers: {str(path)!r} does not exist; give a folder or a .py file")
        files = sorted(path.glob("[!_]*.py")) if path.is_dir() else [path]
        for file in files:
            names = [name for name in _load(file) if name not in {c.name for c in found}]
            found += [Contestant(name, str(file.resolve())) for name in names]
    return found


def build_of(contestant: Contestant) -> Build:
    """The function that builds a contestant.

    Raises:
        OptionError: there is none of that name.
    """
    if contestant.file is not None:
        known = _load(Path(contestant.file))
        if contestant.name in known:
            build: Build = known[contestant.name]
            return build
    elif contestant.name in OURS:
        from symcompile.bench.ours import build_ours

        mode, optimize = OURS[contestant.name]
        return partial(build_ours, mode=mode, optimize=optimize)
    raise OptionError(f"contestant {contestant.name!r} is not known")


def _load(file: Path) -> Mapping[str, Any]:
    module = _module(file)
    known = getattr(module, "CONTESTANTS", None)
    if not isinstance(known, Mapping):
        raise OptionError(
            f"{file}: has no CONTESTANTS; define a dict from names to build functions"
        )
    return known


def _module(file: Path) -> ModuleType:
    file = file.resolve()
    name = f"symcompile_bench_peer_{file.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(file):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise OptionError(f"{file}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
