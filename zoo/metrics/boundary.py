"""The boundary score of semantic segmentation: how well the outlines of each class are met.

Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013, section 2.2: precision is the
share of predicted boundary pixels within a distance d of the true boundary, recall the share of true ones within d of
the predicted boundary, and the score their harmonic mean 2 P R / (P + R). Distances are Euclidean, d is a share of the
image's diagonal. Counts are summed over the images, class by class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np


def boundary_of(mask: np.ndarray) -> np.ndarray:
    """The pixels of a bool mask ``[H, W]`` with a neighbour above, below, left or right that is not in it.

    The image's edge is no boundary.
    """
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def boundary_counts(
    predicted: np.ndarray, truth: np.ndarray, num_classes: int, *, ignore_index: int = 255, width: float = 0.0075
) -> np.ndarray:
    """Boundary pixels of each class in an image, int64 ``[K, 4]``: predicted ones that are met, predicted ones, true
    ones that are met, true ones.

    Pixels that the truth ignores are in no mask, neither true nor predicted; nor do pixels beside them make a boundary.

    Args:
        predicted, truth: class indices ``[H, W]``.
        num_classes: how many classes.
        ignore_index: of pixels that do not count.
        width: distance in which a boundary is met, as a share of the image's diagonal; at least 1 pixel is taken.

    Raises:
        ValueError: the sizes differ, or the width is not above 0.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"the prediction has shape {predicted.shape}, the truth {truth.shape}; the same is needed")
    if not width > 0:
        raise ValueError(f"width={width}: accepted are numbers above 0")
    reach = max(1.0, width * math.hypot(*truth.shape))
    counts = np.zeros((num_classes, 4), np.int64)
    ignored = truth == ignore_index
    beside = cv2.dilate(ignored.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) if ignored.any() else ignored
    present = np.union1d(np.unique(truth), np.unique(predicted[~ignored]))
    for k in present[(present >= 0) & (present < num_classes)].tolist():
        real = boundary_of(truth == k) & ~beside
        found = boundary_of((predicted == k) & ~ignored) & ~beside
        counts[k] = (_near(found, real, reach), found.sum(), _near(real, found, reach), real.sum())
    return counts


def boundary_scores(counts: Iterable[np.ndarray]) -> np.ndarray:
    """The score of each class ``[K]`` from the counts of images; NaN for classes that have no boundary in any."""
    met_found, found, met_real, real = np.sum(list(counts), axis=0).astype(np.float64).T
    precision = np.divide(met_found, found, out=np.zeros_like(found), where=found > 0)
    recall = np.divide(met_real, real, out=np.zeros_like(real), where=real > 0)
    both = precision + recall
    scores = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return np.where(found + real > 0, scores, np.nan)


def _near(points: np.ndarray, others: np.ndarray, reach: float) -> int:
    """How many true pixels of ``points`` have one of ``others`` within ``reach``."""
    if not points.any() or not others.any():
        return 0
    # The transform gives the distance to the nearest zero.
    distance = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return int((distance[points] <= reach + 1e-4).sum())
