"""What the image datasets share: per-sample randomness, the policy for unreadable images, stratified splits.

The random numbers of a sample are a function of (seed, epoch, index) alone, so neither the number of workers nor a
restart changes them.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.classification.data_sample import ClsDataSample
from zoo.data.loading import ImageReadError

logger = logging.getLogger(__name__)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 64-bit seed that depends on each of (seed, epoch, index) and on nothing else."""
    low, high = np.random.SeedSequence((seed, epoch, index)).generate_state(2)
    return int(low) | int(high) << 32


def stratified_split(labels: Sequence[int], fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Split indices into two parts so that the second has ``fraction`` of every class, rounded.

    A class of two or more samples keeps at least one in each part; a single sample stays in the first.

    Args:
        labels: class index of each sample.
        fraction: between 0 and 1, exclusive.
        seed: which split; the same seed always gives the same one.

    Returns:
        Indices of the first and of the second part, each ascending.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction} must be between 0 and 1, exclusive")
    array = np.asarray(labels)
    second: list[int] = []
    for label in np.unique(array):
        members = np.flatnonzero(array == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        second.extend(np.random.default_rng((seed, int(label))).permutation(members)[:count].tolist())
    chosen = set(second)
    return [i for i in range(len(array)) if i not in chosen], sorted(chosen)


class EpochDataset(Dataset):
    """A data set with ``classes`` that draws anew in each epoch."""

    classes: tuple[str, ...]

    def __init__(self) -> None:
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def epoch(self) -> int:
        """The epoch that the augmentation draws for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other augmentations from the next sample on; running (persistent) workers follow."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative")
        self._epoch.fill_(epoch)


class ImageDataset(EpochDataset):
    """Base of the classification datasets: a subclass gives ``labels``, :meth:`load_image` and :meth:`path_of`.

    A sample is ``dict(inputs=uint8 [3, H, W] RGB, data_samples=ClsDataSample)``; the sample's meta information has
    ``img_path``, ``sample_idx`` and ``ori_shape`` (height, width before the transform).

    Args:
        classes: class names; a label is an index into them.
        labels: class index of each sample.
        transform: ``(image uint8 [H, W, 3], seed int) -> uint8 [h, w, 3]``, or arguments of
            :func:`zoo.data.transforms.build_transforms` as a dict; None leaves the image as it is.
        seed: of the augmentation.
        on_error: an unreadable image is raised as :class:`~zoo.data.loading.ImageReadError` ("raise"), or reported in
            the log once and replaced by the next readable sample ("skip").

    Raises:
        ValueError: there is no sample, a label is no class, or ``on_error`` is unknown.
    """

    #: What takes a ``transform`` given as a dict; a config's keys are checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transform": "zoo.data.transforms.build_transforms"}

    def __init__(
        self,
        classes: Sequence[str],
        labels: Sequence[int],
        *,
        transform: Callable[[np.ndarray, int], np.ndarray] | dict[str, Any] | None = None,
        seed: int = 0,
        on_error: str = "raise",
    ):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} is unknown; accepted are 'raise' and 'skip'")
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        if not len(labels):
            raise ValueError(f"{type(self).__name__} has no samples")
        self.classes = tuple(str(c) for c in classes)
        self.labels = np.asarray(labels, dtype=np.int64)
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(
                f"labels are between {self.labels.min()} and {self.labels.max()}, but there are "
                f"{len(self.classes)} classes"
            )
        if isinstance(transform, dict):
            from zoo.data.transforms import build_transforms

            transform = build_transforms(**transform)
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        # Shared memory, so that workers that are already running see a new epoch, and the main process what they skip.
        super().__init__()
        self._unreadable = torch.zeros(len(self.labels), dtype=torch.uint8).share_memory_()

    @property
    def metainfo(self) -> dict[str, Any]:
        """What mmengine's runner hands to metrics and visualizer."""
        return {"classes": self.classes}

    @property
    def num_skipped(self) -> int:
        """How many samples were found unreadable so far (``on_error="skip"``), by all workers together."""
        return int(self._unreadable.sum())

    def skipped_paths(self) -> list[str]:
        """Paths of the samples that were found unreadable so far."""
        return [self.path_of(i) for i in self._unreadable.nonzero().flatten().tolist()]

    def load_image(self, index: int) -> np.ndarray:
        """Image ``index`` as RGB uint8 ``[H, W, 3]``; raises ImageReadError."""
        raise NotImplementedError

    def path_of(self, index: int) -> str:
        """Where image ``index`` comes from, for messages and for lists of predictions."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        index %= len(self)
        for candidate in (*range(index, len(self)), *range(index)):
            if self._unreadable[candidate]:
                continue
            try:
                image = self.load_image(candidate)
            except ImageReadError as error:
                if self.on_error == "raise":
                    raise
                self._unreadable[candidate] = 1
                logger.warning("skipped: %s", error)
                continue
            return self._sample(image, candidate)
        raise ImageReadError(f"none of the {len(self)} images of {type(self).__name__} can be read; see the log")

    def _sample(self, image: np.ndarray, index: int) -> dict[str, Any]:
        height, width = image.shape[:2]
        if self.transform is not None:
            try:
                image = self.transform(image, sample_seed(self.seed, self.epoch, index))
            except Exception as error:
                raise RuntimeError(
                    f"the transform failed on {self.path_of(index)!r} ({height} x {width} pixels): "
                    f"{type(error).__name__}: {error}"
                ) from error
        sample = ClsDataSample(
            metainfo={"img_path": self.path_of(index), "sample_idx": index, "ori_shape": (height, width)}
        )
        sample.set_gt_label(int(self.labels[index]))
        return {"inputs": to_tensor(image), "data_samples": sample}


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 ``[H, W, 3]`` -> uint8 tensor ``[3, H, W]`` that owns contiguous memory."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
