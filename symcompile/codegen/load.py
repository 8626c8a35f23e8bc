"""Loading generated source as a normal module.

In: source text. Out: an imported module with a real file behind it, so that tracebacks show its
lines and `inspect.getsource` works. Files live in one private directory per process that is
removed at exit; layers carry their source, so pickles do not depend on it.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

from symcompile.errors import ShapeError

__all__ = ["load_module"]

_LOADING = threading.RLock()


@cache
def _directory() -> Path:
    folder = tempfile.mkdtemp(prefix="symcompile-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child leaves its parent's files alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def load_module(source: str, kind: str) -> ModuleType:
    """Import `source`; equal source is imported once.

    Args:
        kind: the backend's name, part of the module's name.
    """
    name = f"symcompile_generated_{kind}_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    with _LOADING:  # else a second thread could see a module half loaded
        return sys.modules[name] if name in sys.modules else _load(source, name)


def _load(source: str, name: str) -> ModuleType:
    path = _directory() / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file always has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    # Standalone files raise a ShapeError of their own; inside symcompile it is the public one.
    vars(module)["ShapeError"] = ShapeError
    return module
