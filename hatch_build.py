"""Compiles the CPU kernels when the package is built or installed; without a compiler it is pure
Python."""

from __future__ import annotations

import re
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface[Any]):
    """Puts the libraries into wheels, and beside their source for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "backends" / "symcompile_kernels"
        made = runpy.run_path(str(folder / "build.py"))["build"]()
        if made:
            build_data["pure_python"] = False
            # For one platform, but, as ctypes loads them, for any Python.
            platform = re.sub(r"\W", "_", sysconfig.get_platform())
            build_data["tag"] = f"py3-none-{platform}"
            build_data["artifacts"] += [path.relative_to(self.root).as_posix() for path in made]
