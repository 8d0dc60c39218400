"""The typed sample of a classified image: label, scores, prediction and where the image came from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


class ClsDataSample(BaseDataElement):
    """One image's ground truth and prediction.

    Data fields (all optional):
        gt_label: int64 ``[1]`` class index, or ``[n]`` class indices of a multi-label image.
        pred_score: float ``[num_classes]`` probabilities.
        pred_label: int64 ``[1]`` most probable class.

    Anything else that belongs to the image (``img_path``, ``ori_shape`` ...) is meta information:
    ``ClsDataSample(metainfo=dict(img_path=...))``.
    """

    def set_gt_label(self, value: int | Iterable[int] | Tensor) -> ClsDataSample:
        """Set ``gt_label`` from an int, ints or an integer tensor.

        Raises:
            TypeError: the value is no integer.
        """
        self.set_field(_label_tensor("gt_label", value), "gt_label", dtype=Tensor)
        return self

    def set_pred_label(self, value: int | Iterable[int] | Tensor) -> ClsDataSample:
        """Set ``pred_label`` from an int, ints or an integer tensor.

        Raises:
            TypeError: the value is no integer.
        """
        self.set_field(_label_tensor("pred_label", value), "pred_label", dtype=Tensor)
        return self

    def set_pred_score(self, value: Tensor) -> ClsDataSample:
        """Set ``pred_score`` from a float tensor ``[num_classes]``.

        Raises:
            ValueError: the tensor has another shape.
        """
        value = torch.as_tensor(value)
        if value.ndim != 1:
            raise ValueError(f"pred_score has shape {tuple(value.shape)}; accepted is [num_classes]")
        self.set_field(value, "pred_score", dtype=Tensor)
        return self


def _label_tensor(name: str, value: Any) -> Tensor:
    """An int64 tensor ``[n]`` of class indices."""
    label = torch.as_tensor(value) if isinstance(value, Tensor) else torch.as_tensor(_as_list(value))
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"{name}={value!r} is not an integer class index")
    return label.reshape(-1).to(torch.int64)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) else [value]
