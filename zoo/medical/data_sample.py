"""The typed sample of a volume or of a patch or slice of one: labels that are there, labels that were found."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


class VolumeSample(BaseDataElement):
    """One volume (3-D) or one slice or image (2-D).

    Data fields (all optional), of the shape of the sample's space ``[X, Y, Z]`` or ``[H, W]``:
        gt_label: int64 class indices, 0 is the background.
        pred_label: int64 class indices.
        pred_score: float ``[K, X, Y, Z]`` or ``[K, H, W]``, a probability a class.

    Meta information of the samples that :class:`zoo.data.volume_dataset.VolumeDataset` gives:
        case: name of the case.
        paths: dict of ``images`` (tuple of str) and ``label`` (str or None).
        spacing: mm along the axes of the labels.
        affine: float64 ``[4, 4]`` array, voxel index of the labels -> mm in RAS+; of a patch, of the patch itself.
        sample_idx: index in the data set.
        label_ids: the id that each class index has in files.
    """

    def set_gt_label(self, value: Any) -> VolumeSample:
        """Set ``gt_label`` from an integer tensor or array.

        Raises:
            TypeError: the values are no integers.
            ValueError: neither two nor three dimensions.
        """
        self.set_field(_labels("gt_label", value), "gt_label", dtype=Tensor)
        return self

    def set_pred_label(self, value: Any) -> VolumeSample:
        """Set ``pred_label`` from an integer tensor or array; raises as :meth:`set_gt_label`."""
        self.set_field(_labels("pred_label", value), "pred_label", dtype=Tensor)
        return self

    def set_pred_score(self, value: Tensor) -> VolumeSample:
        """Set ``pred_score`` from a float tensor ``[K, ...]``.

        Raises:
            ValueError: no float tensor of three or four dimensions.
        """
        if not value.is_floating_point() or value.ndim not in (3, 4):
            raise ValueError(
                f"pred_score is {value.dtype} of shape {tuple(value.shape)}; accepted is float "
                f"[K, H, W] or [K, X, Y, Z]"
            )
        self.set_field(value, "pred_score", dtype=Tensor)
        return self


def _labels(name: str, value: Any) -> Tensor:
    labels = torch.as_tensor(value)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} is {labels.dtype}; accepted are integer class indices")
    if labels.ndim not in (2, 3):
        raise ValueError(f"{name} has shape {tuple(labels.shape)}; accepted is [H, W] or [X, Y, Z]")
    return labels.to(torch.int64)
