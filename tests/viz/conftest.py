"""Logs of training and pictures read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """Read a written picture as RGB ``[H, W, 3]``."""
    return lambda path: np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def write_log():
    """Write records as one run's scalars below a work directory."""

    def write(work_dir: Path, records: list[dict], run: str = "20260101_000000") -> Path:
        folder = work_dir / run / "vis_data"
        folder.mkdir(parents=True)
        (folder / "scalars.json").write_text("".join(json.dumps(r) + "\n" for r in records))
        return work_dir

    return write
