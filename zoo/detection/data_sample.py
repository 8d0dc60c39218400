"""The typed sample of a detected image: objects that are there, objects that were found, where the image came from."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor


class DetDataSample(BaseDataElement):
    """One image's objects.

    Data fields (all optional), each an ``InstanceData`` with a row an object:
        gt_instances: ``boxes`` float ``[N, 4]`` (x0, y0, x1, y1) in pixels of the image that the network gets,
            ``labels`` int64 ``[N]``, and ``masks`` bool ``[N, h, w]`` where they are loaded.
        pred_instances: ``boxes`` float ``[N, 4]`` in pixels of the original image, ``labels``, ``scores``, best first,
            and ``masks`` bool ``[N, H, W]`` of the original image's size where the model predicts them.

    Meta information: ``img_path``, ``img_id``, ``sample_idx``, ``ori_shape`` (height, width of the original image),
    ``img_shape`` (of the image that the network gets, without padding), ``scale_factor`` (width, height: network's
    over original's; only where the image was resized as a whole), ``ground_truth`` (what the metrics read).
    """

    def set_gt(self, boxes: Any, labels: Any, masks: Any = None) -> DetDataSample:
        """Set ``gt_instances``.

        Raises:
            ValueError: other shapes than ``[N, 4]``, ``[N]`` and ``[N, h, w]``.
        """
        fields = {"boxes": _boxes("boxes", boxes), "labels": torch.as_tensor(labels, dtype=torch.int64).reshape(-1)}
        if len(fields["boxes"]) != len(fields["labels"]):
            raise ValueError(f"{len(fields['boxes'])} boxes have {len(fields['labels'])} labels")
        if masks is not None:
            fields["masks"] = _masks(masks, len(fields["boxes"]))
        self.gt_instances = InstanceData(**fields)
        return self

    def set_pred(self, boxes: Tensor, labels: Tensor, scores: Tensor, masks: Tensor | None = None) -> DetDataSample:
        """Set ``pred_instances``; the rows are put in the order of falling scores.

        Raises:
            ValueError: other shapes than ``[N, 4]``, ``[N]``, ``[N]`` and ``[N, H, W]``.
        """
        boxes = _boxes("boxes", boxes)
        if not len(boxes) == len(labels) == len(scores):
            raise ValueError(f"{len(boxes)} boxes have {len(labels)} labels and {len(scores)} scores")
        order = scores.argsort(descending=True, stable=True)
        fields = {"boxes": boxes[order], "labels": labels[order], "scores": scores[order]}
        if masks is not None:
            fields["masks"] = _masks(masks, len(boxes))[order]
        self.pred_instances = InstanceData(**fields)
        return self


def _masks(value: Any, count: int) -> Tensor:
    masks = torch.as_tensor(value, dtype=torch.bool)
    if masks.ndim != 3 or len(masks) != count:
        raise ValueError(f"masks have shape {tuple(masks.shape)}; accepted is [{count}, h, w], a mask a box")
    return masks


def _boxes(name: str, value: Any) -> Tensor:
    boxes = torch.as_tensor(value)
    boxes = boxes if boxes.is_floating_point() else boxes.float()
    if boxes.numel() == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} has shape {tuple(boxes.shape)}; accepted is [N, 4]")
    return boxes
