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
    if os.path.exists(path) and not os.path.isfile(path):
        # Renaming over a device such as /dev/null would replace it, for root at least.
        raise ExportError(f"cannot write {str(path)!r}: it is not a file; give a file's path")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        target = os.path.realpath(path)  # a link keeps pointing at the file that is replaced
        folder, name = os.path.split(target)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, _mode(target))
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ExportError(
            f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}; "
            "give a path in a folder that exists and is writable"
        ) from error
    return path


def _mode(target: str) -> int:
    """The mode of the file that is replaced, or what the umask gives a new one."""
    if os.path.exists(target):
        return os.stat(target).st_mode & 0o7777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
