"""Text files with an entry a line: lists of names, of classes, of a split."""

from __future__ import annotations

import os
from pathlib import Path


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 text file that are not blank, without the space around them.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is no UTF-8.
    """
    return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
