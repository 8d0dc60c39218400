"""Handwritten digits: the 1,797 scans of 8 x 8 pixels that scikit-learn ships.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI machine learning repository, 1998,
https://archive.ics.uci.edu/dataset/80 (its test part).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from zoo.data.base import ImageDataset, stratified_split

_SPLITS = ("train", "test", "all")


class Digits(ImageDataset):
    """scikit-learn's handwritten digits as RGB images.

    Args:
        split: "train", "test" or "all".
        size: side of the images in pixels; the scans are enlarged from 8 x 8 by cubic interpolation.
        test_fraction: share of every class that is the test split.
        split_seed: which split; the same for "train" and "test".
        transform, seed, on_error: see :class:`~zoo.data.base.ImageDataset`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, split: str = "train", size: int = 32, *, test_fraction: float = 0.2, split_seed: int = 0, **common: Any
    ):
        if split not in _SPLITS:
            raise ValueError(f"split={split!r} is unknown; accepted are {', '.join(map(repr, _SPLITS))}")
        if size < 1:
            raise ValueError(f"size={size} must be at least 1 pixel")
        from sklearn.datasets import load_digits

        scans, labels = load_digits(return_X_y=True)
        if split == "all":
            chosen = list(range(len(labels)))
        else:
            chosen = stratified_split(labels.tolist(), test_fraction, split_seed)[split == "test"]
        # The scans count 0 to 16 black pixels in blocks of 4 x 4.
        self._scans = (scans[chosen].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
        self._original = chosen
        self.split = split
        self.size = size
        super().__init__([str(d) for d in range(10)], labels[chosen], **common)

    def load_image(self, index: int) -> np.ndarray:
        scan = self._scans[index]
        if self.size != scan.shape[0]:
            scan = cv2.resize(scan, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        return np.repeat(scan[:, :, None], 3, axis=2)

    def path_of(self, index: int) -> str:
        return f"digits/{self._original[index]:04d}"
