"""Compiles `kernels.cpp`, where there is a C++ compiler.

In: the folder it is in. Out: libraries beside it, one for each kind of processor that may load
them. The build backend runs this when the package is installed; by hand, `python -m
symcompile_torch.kernels.build`. It uses the standard library only, and fails by making nothing: the
layers then run on PyTorch's own ops.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

__all__ = ["build", "library"]

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "kernels.cpp"
FLAGS = ("-O3", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fopenmp", "-fPIC", "-shared")
X86 = {"AVX512": ("-march=x86-64-v4",), "AVX2": ("-march=x86-64-v3",)}
"""Flags by what `torch.backends.cpu.get_cpu_capability` says of a processor."""


def library(kind: str, folder: Path = FOLDER) -> Path:
    """The library for a kind of processor; its name changes with the source and the flags."""
    made_of = SOURCE.read_bytes() + repr((FLAGS, X86)).encode()
    return folder / f"kernels-{kind.lower()}-{sha256(made_of).hexdigest()[:12]}.so"


def build(folder: Path = FOLDER) -> list[Path]:
    """Compile for every kind of processor; the libraries that could be made.

    The compiler is the one that the environment variable CXX names, else `c++`; with
    SYMCOMPILE_KERNELS=0 none is made.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None or os.environ.get("SYMCOMPILE_KERNELS") == "0" or os.name != "posix":
        return []
    kinds = X86 if platform.machine() in ("x86_64", "AMD64") else {"DEFAULT": ()}
    for old in folder.glob("kernels-*.so"):
        if old not in {library(kind, folder) for kind in kinds}:
            old.unlink(missing_ok=True)
    return [
        made for kind, flags in kinds.items() if (made := _compile(compiler, kind, flags, folder))
    ]


def _compile(compiler: str, kind: str, flags: tuple[str, ...], folder: Path) -> Path | None:
    target = library(kind, folder)
    half = target.with_suffix(f".{os.getpid()}")  # never a library half written
    command = [compiler, *FLAGS, *flags, str(SOURCE), "-o", str(half)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        half.replace(target)
    except (OSError, subprocess.SubprocessError):
        half.unlink(missing_ok=True)
        return None
    return target


if __name__ == "__main__":
    for made in build():
        print(made)
