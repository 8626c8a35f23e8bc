"""Compiles the CPU kernels, where there is a C++ compiler.

In: the folder it is in. Out: libraries beside it, one for each kind of processor that may load
them and for each of `HOSTS`, whose threads they run on. The build backend runs this when the
package is installed; by hand, `python -m symcompile_kernels.build`. It uses the standard library
only, and fails by making nothing: the layers then run on the frameworks' own ops.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["build", "cores", "library", "runs_here"]

FOLDER = Path(__file__).parent
HEADERS = [FOLDER / f"{name}.hpp" for name in ("vectors", "kernels", "amx", "products")]
FLAGS = ("-O3", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fPIC", "-shared")
HOSTS = {"openmp": ("-fopenmp",), "xla": ("-pthread",)}
"""Sources and their own flags: for PyTorch, and for JAX, whose headers are in jaxlib."""

X86 = {
    "AVX512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""Flags by what `torch.backends.cpu.get_cpu_capability` says of a processor."""


def library(kind: str, folder: Path = FOLDER, host: str = "openmp") -> Path:
    """The library for a kind of processor; its name changes with all that it is made of."""
    source = FOLDER / f"{host}.cpp"
    made_of = b"".join(path.read_bytes() for path in (source, *HEADERS))
    made_of += repr((FLAGS, HOSTS[host], X86)).encode()
    if host == "xla":
        made_of += repr(_xla_version()).encode()
    return folder / f"{host}-{kind.lower()}-{sha256(made_of).hexdigest()[:12]}.so"


def build(folder: Path = FOLDER) -> list[Path]:
    """Compile for every kind of processor; the libraries that could be made.

    The compiler is the one that the environment variable CXX names, else `c++`; with
    SYMCOMPILE_KERNELS=0 none is made.
    """
    wanted = os.environ.get("SYMCOMPILE_KERNELS") != "0" and os.name == "posix"
    kinds = X86 if platform.machine() in ("x86_64", "AMD64") else {"DEFAULT": ()}
    hosts = [host for host in HOSTS if wanted and (host != "xla" or _xla_version())]
    keep = {library(kind, folder, host) for kind in kinds for host in hosts}
    for old in set(folder.glob("*.so")) - keep:
        with suppress(OSError):
            old.unlink()
    jobs = [(kind, kinds[kind], folder, host) for host in hosts for kind in kinds]
    with ThreadPoolExecutor(cores()) as pool:  # compilers are processes of their own
        # `map` gives up what has not begun when it is interrupted.
        return [path for path in pool.map(lambda job: _compile(*job), jobs) if path]


def cores() -> int:
    """Those that this process may use."""
    here = getattr(os, "sched_getaffinity", None)
    return len(here(0)) if here else os.cpu_count() or 1


def runs_here(kind: str) -> bool:
    """Whether this processor has the instructions of a kind of library, by what Linux says."""
    if kind not in X86:
        return platform.machine() not in ("x86_64", "AMD64")
    try:
        found = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and {flag[2:] for flag in X86[kind]} <= {*found[1].split()}


def _xla_headers() -> Path | None:
    """The folder of XLA's headers; jaxlib, which they come with, is not imported."""
    spec = find_spec("jaxlib")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0], "include") if folders else None


def _xla_version() -> list[str]:
    """Major and minor version of XLA's interface: XLA takes no library made for another one."""
    headers = _xla_headers()
    try:
        text = (headers / "xla/ffi/api/c_api.h").read_text("utf-8") if headers else ""
    except OSError:
        return []
    return re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) +(\d+)", text)


def _compile(kind: str, flags: tuple[str, ...], folder: Path, host: str) -> Path | None:
    target = library(kind, folder, host)
    headers = [f"-I{_xla_headers()}"] if host == "xla" else []
    try:
        compiler = shlex.split(os.environ.get("CXX") or "c++")
        # Moved into place when it is whole.
        with TemporaryDirectory(dir=folder, prefix="kernels-", suffix=".so") as place:
            made = Path(place) / target.name
            source = str(FOLDER / f"{host}.cpp")
            command = [*compiler, *FLAGS, *HOSTS[host], *flags, *headers, source, "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            made.replace(target)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return target


if __name__ == "__main__":
    for made in build():
        print(made)
