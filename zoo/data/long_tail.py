"""A long-tailed subset of any dataset: each class has a fixed share fewer samples than the one before.

Class-Balanced Loss Based on Effective Number of Samples (CVPR 2019, arXiv 1901.05555, section 5.1); as used by LDAM
(arXiv 1906.07413) and DeiT-LT (arXiv 2404.02900).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from zoo.data.base import ImageDataset
from zoo.registry import Registry, build

DATASETS = Registry("dataset", ())


def long_tailed_counts(largest: int, classes: int, imbalance: float) -> list[int]:
    """Samples of each class: ``largest * imbalance ** (-c / (classes - 1))``, rounded down, at least 1.

    Raises:
        ValueError: no class or sample, or an imbalance below 1.
    """
    if largest < 1 or classes < 1 or imbalance < 1:
        raise ValueError(f"largest={largest}, classes={classes}, imbalance={imbalance}: accepted are numbers from 1")
    return [max(1, int(largest * imbalance ** (-c / max(1, classes - 1)))) for c in range(classes)]


class LongTailed(Dataset):
    """A subset of a dataset in which the first class has ``imbalance`` times as many samples as the last.

    The largest class keeps as many samples as the smallest class of the whole dataset has, so that every class can give
    its part. Which samples are kept is drawn once, by ``seed``; their augmentation is the dataset's own.

    Args:
        dataset: a ready :class:`~zoo.data.base.ImageDataset` or a ``dict(type=..., ...)`` for one.
        imbalance: samples of the first class over samples of the last; 1 for balanced classes.
        seed: which samples.

    Raises:
        ValueError: an imbalance below 1, or a class without samples.
    """

    def __init__(self, dataset: Any, imbalance: float = 10.0, seed: int = 0):
        self.dataset: ImageDataset = build(dataset, DATASETS)
        labels, classes = self.dataset.labels, self.dataset.num_classes
        sizes = np.bincount(labels, minlength=classes)
        if sizes.min() < 1:
            raise ValueError(
                f"class {self.dataset.classes[int(sizes.argmin())]!r} has no samples to draw a subset from"
            )
        self.class_counts = long_tailed_counts(int(sizes.min()), classes, imbalance)
        random = np.random.default_rng(seed)
        kept = [
            random.permutation(np.flatnonzero(labels == c))[:count].tolist()
            for c, count in enumerate(self.class_counts)
        ]
        self.indices = sorted(i for members in kept for i in members)
        self.labels = labels[self.indices]

    @property
    def classes(self) -> Sequence[str]:
        """Class names."""
        return self.dataset.classes

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.dataset.num_classes

    @property
    def metainfo(self) -> dict[str, Any]:
        """What mmengine's runner hands to metrics and visualizer."""
        return self.dataset.metainfo

    @property
    def epoch(self) -> int:
        """The epoch that the augmentation draws for."""
        return self.dataset.epoch

    def set_epoch(self, epoch: int) -> None:
        """Draw other augmentations from the next sample on."""
        self.dataset.set_epoch(epoch)

    @property
    def num_skipped(self) -> int:
        """How many samples of the dataset were found unreadable so far."""
        return self.dataset.num_skipped

    def skipped_paths(self) -> list[str]:
        """Paths of the samples that were found unreadable so far."""
        return self.dataset.skipped_paths()

    def path_of(self, index: int) -> str:
        """Where image ``index`` comes from."""
        return self.dataset.path_of(self.indices[index])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[self.indices[index]]
