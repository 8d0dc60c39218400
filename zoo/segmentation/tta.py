"""Test-time augmentation: an image at several sizes and mirrored, the mean of the probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.segmentation.bands import BUDGET, band_rows, restored_bands
from zoo.segmentation.geometry import ImageSize

#: The scales that published scores "with several scales and flips" were measured with.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class Augmentation:
    """What an image is turned into.

    Attributes:
        scales: factors on the size that the network gets.
        flip: mirror each (left and right) as well.

    Raises:
        ValueError: no scale, one that is not above 0, or one twice.
    """

    scales: tuple[float, ...] = SCALES
    flip: bool = True

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales={self.scales}: accepted are different numbers above 0, at least one")

    @classmethod
    def of(cls, value: Any) -> Augmentation | None:
        """An augmentation of what a user may give: None or False (none), True (:data:`SCALES` and mirrored), "flip"
        (mirrored only), scales, a dict of the arguments, or an augmentation.

        Raises:
            ValueError: something else.
        """
        if value is None or value is False or isinstance(value, cls):
            return value or None
        if value is True:
            return cls()
        if value == "flip":
            return cls((1.0,))
        if isinstance(value, Mapping) and set(value) <= {"scales", "flip"}:
            scales = value.get("scales", SCALES)
            return cls(tuple(float(s) for s in scales), bool(value.get("flip", True)))
        if isinstance(value, Sequence) and not isinstance(value, str) and all(_is_number(v) for v in value):
            return cls(tuple(float(s) for s in value))
        raise ValueError(
            f"tta={value!r}: accepted are True, False, 'flip', a list of scales, and a dict of scales and flip"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def flip_averaged(probabilities: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function ``images [n, 3, H, W] -> [n, K, h, w]`` as the mean over images and mirrored images."""

    def both(images: Tensor) -> Tensor:
        return (probabilities(images) + probabilities(images.flip(-1)).flip(-1)) / 2

    return both


@dataclass(frozen=True)
class View:
    """What the network said of one version of an image.

    Attributes:
        scores: ``[K, h, w]``, of the version as it was given.
        size: of that version.
        mirrored: whether it was.
    """

    scores: Tensor
    size: ImageSize
    mirrored: bool


def mean_labels(views: Sequence[View], softmax: bool = True, budget: int = BUDGET) -> Tensor:
    """The class with the largest mean probability at each pixel of the original image.

    Scores are enlarged to the original image, made probabilities, mirrored back and averaged, band by band, so that
    memory grows with the network's own maps only.

    Args:
        views: all of one original size.
        softmax: scores are logits; otherwise they are averaged as they are.
        budget: numbers of a band.

    Returns:
        int64 ``[H, W]``.

    Raises:
        ValueError: no views, or views of several images.
    """
    if not views or len({v.size.original for v in views}) > 1 or len({len(v.scores) for v in views}) > 1:
        raise ValueError(f"{len(views)} views of one image with the same classes are needed, at least one")
    height, width = views[0].size.original
    # Bands hold rows of the version that is cut to the image before it is resized, hence the wider of the two.
    rows = band_rows(len(views[0].scores), max(width, *(v.size.image[1] for v in views)), budget)
    bands = [restored_bands(v.scores, v.size, rows=rows) for v in views]
    labels = torch.empty(height, width, dtype=torch.int64, device=views[0].scores.device)
    for parts in zip(*bands):
        total: Any = 0.0
        for view, (_, band) in zip(views, parts):
            band = band.softmax(0) if softmax else band
            total = total + (band.flip(-1) if view.mirrored else band)
        first = parts[0][0]
        labels[first : first + rows] = total.max(0).indices
    return labels
