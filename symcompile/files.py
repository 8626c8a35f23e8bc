"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from symcompile.errors import ExportError

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write beside `path`, then rename.

    Raises:
        ExportError: the folder is missing or not writable, or `path` is a folder or a device;
            `path` is as it was.
    """
    if path.exists() and not path.is_file():
        # Renaming over a device such as /dev/null would replace it, for root at least.
        raise ExportError(f"cannot write {str(path)!r}: it is not a file; give a file's path")
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise ExportError(
            f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}; "
            "give a path in a folder that exists and is writable"
        ) from error
    return path
