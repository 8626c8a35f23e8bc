"""Compiles the CPU kernels, where there is a C++ compiler.

In: the folder it is in. Out: libraries beside it, one for each kind of processor that may load
them. The build backend runs this when the package is installed; by hand, `python -m
symcompile_kernels.build`. It uses the standard library only, and fails by making nothing: the
layers then run on PyTorch's own ops.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["build", "library"]

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "openmp.cpp"
HEADER = FOLDER / "kernels.hpp"
FLAGS = ("-O3", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fopenmp", "-fPIC", "-shared")
X86 = {
    "AVX512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""Flags by what `torch.backends.cpu.get_cpu_capability` says of a processor."""


def library(kind: str, folder: Path = FOLDER) -> Path:
    """The library for a kind of processor; its name changes with the source and the flags."""
    made_of = SOURCE.read_bytes() + HEADER.read_bytes() + repr((FLAGS, X86)).encode()
    return folder / f"{SOURCE.stem}-{kind.lower()}-{sha256(made_of).hexdigest()[:12]}.so"


def build(folder: Path = FOLDER) -> list[Path]:
    """Compile for every kind of processor; the libraries that could be made.

    The compiler is the one that the environment variable CXX names, else `c++`; with
    SYMCOMPILE_KERNELS=0 none is made.
    """
    wanted = os.environ.get("SYMCOMPILE_KERNELS") != "0" and os.name == "posix"
    kinds = X86 if platform.machine() in ("x86_64", "AMD64") else {"DEFAULT": ()}
    keep = {library(kind, folder) for kind in kinds if wanted}
    for old in set(folder.glob("*.so")) - keep:
        with suppress(OSError):
            old.unlink()
    if not wanted:
        return []
    made = [_compile(kind, flags, folder) for kind, flags in kinds.items()]
    return [path for path in made if path]


def _compile(kind: str, flags: tuple[str, ...], folder: Path) -> Path | None:
    target = library(kind, folder)
    try:
        compiler = shlex.split(os.environ.get("CXX") or "c++")
        # Moved into place when it is whole.
        with TemporaryDirectory(dir=folder, prefix="kernels-", suffix=".so") as place:
            made = Path(place) / target.name
            command = [*compiler, *FLAGS, *flags, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            made.replace(target)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return target


if __name__ == "__main__":
    for made in build():
        print(made)
