"""The typed sample of a segmented image: masks that are there, masks that were found, where the image came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor


class PanopticSegments(BaseDataElement):
    """A partition of an image into segments.

    Data fields:
        ids: int32 ``[H, W]``, the segment of each pixel; 0 where there is none (void).
        segments: a list with a dict a segment: ``id`` (from 1), ``label`` (class index), ``is_thing``, and, of what is
            there, ``is_crowd``, of what was found, ``score``.
    """


class SegDataSample(BaseDataElement):
    """One image's masks.

    Data fields (all optional):
        gt_sem_seg: ``[H, W]``, uint8 or int64, the class of each pixel of the image that the network gets, or the
            ignore index.
        gt_instances: ``InstanceData`` with ``labels`` int64 ``[N]``, ``masks`` bool ``[N, H, W]`` and ``boxes`` float
            ``[N, 4]`` (x0, y0, x1, y1), all in pixels of the image that the network gets.
        gt_panoptic: :class:`PanopticSegments` of the image that the network gets.
        pred_sem_seg: int64 ``[H, W]``, classes of the original image's pixels.
        pred_instances: ``InstanceData`` with ``labels``, ``scores`` and ``masks`` bool ``[N, H, W]`` of the original
            image, best first.
        pred_panoptic: :class:`PanopticSegments` of the original image.

    Meta information: ``img_id``, ``img_path``, ``sample_idx``, ``ori_shape`` (height, width of the original image),
    ``img_shape`` (of the image that the network gets, without padding), ``ground_truth`` (what the metrics read, at the
    original resolution).
    """

    def set_sem_seg(self, labels: Any) -> SegDataSample:
        """Set ``gt_sem_seg``.

        Raises:
            ValueError: not ``[H, W]`` of whole numbers.
        """
        self.gt_sem_seg = _label_map("gt_sem_seg", labels)
        return self

    def set_instances(self, masks: Any, labels: Any, boxes: Any = None) -> SegDataSample:
        """Set ``gt_instances``; boxes are those of the masks unless they are given.

        Raises:
            ValueError: masks that are not ``[N, H, W]``, or another number of labels or boxes.
        """
        fields = {"masks": torch.as_tensor(masks, dtype=torch.bool)}
        fields["labels"] = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
        if fields["masks"].ndim != 3:
            raise ValueError(f"masks have shape {tuple(fields['masks'].shape)}; accepted is [N, H, W]")
        if boxes is None:
            fields["boxes"] = boxes_of_masks(fields["masks"])
        else:
            fields["boxes"] = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        _same_length(fields)
        self.gt_instances = InstanceData(**fields)
        return self

    def set_panoptic(self, ids: Any, segments: Sequence[dict[str, Any]]) -> SegDataSample:
        """Set ``gt_panoptic``.

        Raises:
            ValueError: ids that are not ``[H, W]`` of whole numbers, or a segment without ``id`` or ``label``.
        """
        self.gt_panoptic = panoptic_segments(ids, segments)
        return self

    def set_pred(
        self,
        sem_seg: Tensor | None = None,
        instances: dict[str, Tensor] | None = None,
        panoptic: dict[str, Any] | None = None,
    ) -> SegDataSample:
        """Set what was found.

        Args:
            sem_seg: ``[H, W]``, whole numbers.
            instances: ``labels [N]``, ``scores [N]`` and ``masks [N, H, W]``; put in the order of falling scores.
            panoptic: ``ids [H, W]`` and ``segments``.

        Raises:
            ValueError: other shapes.
        """
        if sem_seg is not None:
            self.pred_sem_seg = _label_map("sem_seg", sem_seg).long()
        if instances is not None:
            fields = {k: torch.as_tensor(v) for k, v in instances.items()}
            _same_length(fields)
            order = fields["scores"].argsort(descending=True, stable=True)
            self.pred_instances = InstanceData(**{k: v[order] for k, v in fields.items()})
        if panoptic is not None:
            self.pred_panoptic = panoptic_segments(panoptic["ids"], panoptic["segments"])
        return self


def panoptic_segments(ids: Any, segments: Sequence[dict[str, Any]]) -> PanopticSegments:
    """:class:`PanopticSegments` of ids ``[H, W]`` and descriptions.

    Raises:
        ValueError: ids that are not ``[H, W]`` of whole numbers, a segment without ``id`` or ``label``, an id twice.
    """
    for segment in segments:
        if "id" not in segment or "label" not in segment:
            raise ValueError(f"segment {segment} lacks 'id' or 'label'")
    numbers = [int(s["id"]) for s in segments]
    if len(set(numbers)) < len(numbers) or any(n < 1 for n in numbers):
        raise ValueError(f"segments have the ids {numbers}: accepted are different numbers from 1 (0 is void)")
    return PanopticSegments(ids=_label_map("ids", ids).int(), segments=[dict(s) for s in segments])


def boxes_of_masks(masks: Tensor) -> Tensor:
    """The smallest boxes ``[N, 4]`` (x0, y0, x1, y1, ends exclusive) around masks ``[N, H, W]``; zeros where empty."""
    boxes = torch.zeros(len(masks), 4)
    for i, mask in enumerate(masks):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            boxes[i] = torch.tensor([int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1])
    return boxes.to(masks.device)


def sample_name(sample: BaseDataElement) -> str:
    """What messages call an image: its id and file."""
    return f"{sample.get('img_id', '?')} ({sample.get('img_path', 'no file')})"


def _label_map(name: str, value: Any) -> Tensor:
    labels = torch.as_tensor(value)
    if labels.ndim != 2 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)} and dtype {labels.dtype}; accepted is [H, W] of whole numbers"
        )
    return labels


def _same_length(fields: dict[str, Tensor]) -> None:
    if len({len(v) for v in fields.values()}) > 1:
        raise ValueError("rows differ: " + ", ".join(f"{len(v)} {k}" for k, v in fields.items()))
