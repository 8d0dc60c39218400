"""A small folder of class folders."""

from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def make_folder():
    """Write ``counts`` of class -> number of random images below ``root``; returns it."""

    def make(root: Path, counts: dict[str, int], size: tuple[int, int] = (12, 16)) -> Path:
        for k, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng((k, i, len(str(root)))).integers(0, 256, (*size, 3), dtype=np.uint8)
                cv2.imwrite(str(root / name / f"{i}.png"), pixels)
        return root

    return make
