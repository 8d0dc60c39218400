"""Clean-up of predicted label maps: of each class only its largest connected part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def keep_largest_components(
    labels: np.ndarray, classes: Sequence[int] | None = None, *, connectivity: int | None = None
) -> np.ndarray:
    """A copy in which each class is its largest connected part alone; the rest of it becomes background.

    Classes are treated one by one, as by :class:`monai.transforms.KeepLargestConnectedComponent`. Of parts of one size
    the first in the array's order stays.

    Args:
        labels: integer class indices, 0 the background, 2-D or 3-D.
        classes: which classes; all but the background by default.
        connectivity: 1 joins voxels across faces only, 2 across edges too, 3 (of volumes) across corners too, which
            is the default (2 of images).

    Raises:
        ValueError: the connectivity is not from 1 to the number of axes, or a class is 0 or negative.
        TypeError: labels are no integers.
    """
    from scipy.ndimage import find_objects, generate_binary_structure, label

    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels are of {labels.dtype}; integer class indices are needed")
    connectivity = labels.ndim if connectivity is None else connectivity
    if not 1 <= connectivity <= labels.ndim:
        raise ValueError(f"connectivity={connectivity}: accepted are 1 to {labels.ndim}")
    if classes is not None and any(k < 1 for k in classes):
        raise ValueError(f"classes={list(classes)}: accepted are class indices from 1, the background has no parts")
    result = labels.copy()
    structure = generate_binary_structure(labels.ndim, connectivity)
    for k, box in enumerate(find_objects(labels), 1):
        if box is None or (classes is not None and k not in classes):
            continue
        parts, count = label(labels[box] == k, structure)
        if count > 1:
            largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
            result[box][(parts > 0) & (parts != largest)] = 0
    return result
