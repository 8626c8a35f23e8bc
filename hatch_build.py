"""Compiles the CPU kernels when the package is built or installed; without a compiler it is pure
Python."""

from __future__ import annotations

import os
import platform
import re
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface[Any]):
    """Puts the libraries into wheels, and beside their source for an editable install."""

    def dependencies(self) -> list[str]:
        """jaxlib, for XLA's headers, where it has wheels; without it JAX goes without kernels."""
        wheels = {"Linux": ("x86_64", "aarch64"), "Darwin": ("arm64",)}
        known = platform.machine() in wheels.get(platform.system(), ())
        musl = platform.system() == "Linux" and platform.libc_ver()[0] != "glibc"
        wanted = os.environ.get("SYMCOMPILE_KERNELS") != "0"
        return ["jaxlib>=0.8"] if known and wanted and not musl else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "backends" / "symcompile_kernels"
        made = runpy.run_path(str(folder / "build.py"))["build"]()
        if made:
            build_data["pure_python"] = False
            # For one platform, but, as ctypes loads them, for any Python.
            here = re.sub(r"\W", "_", sysconfig.get_platform())
            build_data["tag"] = f"py3-none-{here}"
            build_data["artifacts"] += [path.relative_to(self.root).as_posix() for path in made]
