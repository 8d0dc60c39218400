"""Writing a small file so that it is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: str | os.PathLike, content: bytes | str) -> Path:
    """Write ``content`` under a temporary name beside ``path``, then rename it; folders are made as needed.

    Raises:
        OSError: it cannot be written; what was at ``path`` is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
