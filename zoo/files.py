"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def save_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> Path:
    """Write a file under a temporary name in the same folder, flush it to the disk, and rename it.

    A crash or a full disk leaves what was at ``path`` before, and no temporary file where the process survives. Folders
    are made as needed.

    Raises:
        OSError: it cannot be written; so does whatever ``write`` raises. What was at ``path`` is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are readable by their owner alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_file(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write ``content`` atomically, see :func:`save_atomically`."""
    data = content.encode() if isinstance(content, str) else content
    return save_atomically(path, lambda file: file.write(data))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
