"""RelationNet++: RetinaNet, FCOS or ATSS whose features attend to key points.

RelationNet++: Bridging Visual Representations for Object Detection via Transformer Decoder (arXiv:2010.15831). Authors'
code: github.com/microsoft/RelationNet2 (MIT); this follows the paper and recorded results. Pyramid, anchors, box coder,
losses and suppression are torchvision's. The authors' deformable convolutions (their ResNeXt models) are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.bvr_head import BVRHead
from zoo.detection.bvr_keypoints import keypoint_losses
from zoo.detection.criterion import Targets
from zoo.detection.dense_tasks import TASKS, tokens
from zoo.detection.fpn import FPN


class RelationNetPP(nn.Module):
    """From a backbone's maps to boxes.

    Args:
        channels: channels of the maps.
        num_classes: classes.
        dim: channels of pyramid and head.
        strides: of the levels of the pyramid; the first is that of the first map.
        neck: further arguments of :class:`zoo.detection.fpn.FPN`.
        head: "retina", "fcos" or "atss".
        **options: further arguments of :class:`zoo.detection.bvr_head.BVRHead`.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"neck": FPN}

    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.relationnetpp.dense_detections")

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 80,
        dim: int = 256,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        neck: Mapping[str, Any] | None = None,
        head: str = "retina",
        **options: Any,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.neck = FPN(channels, dim, len(strides), **(neck or {}))
        self.head = BVRHead(num_classes, head, dim, strides, **options)
        #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
        self.default_criterion: dict[str, Any] = dict(
            type=BVRCriterion, head=head, strides=tuple(strides), task_options=self.head.task_options
        )

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``, from large to small.
            mask: padding of the images, ``[B, H, W]``, true where there is no image.
            targets: not read.

        Returns:
            What :class:`zoo.detection.bvr_head.BVRHead` gives, ``image_sizes [B, 2]`` (height and width without
            padding), and outside training ``candidates``: for each level logits ``[B, N, classes]``, boxes
            ``[B, N, 4]`` (corners in pixels) and logits of the centerness ``[B, N]`` or None.
        """
        inside = ~mask
        out = self.head(self.neck(features))
        out["image_sizes"] = torch.stack([inside[:, :, 0].sum(1), inside[:, 0, :].sum(1)], dim=1)
        if not self.training:
            found = out["predictions"]
            logits = [tokens(x, self.num_classes) for x in found["cls"]]
            central = (
                [tokens(x, 1)[..., 0] for x in found["centerness"]] if "centerness" in found else [None] * len(logits)
            )
            out["candidates"] = list(zip(logits, self.head.task.boxes(found), central))
        return out


class BVRCriterion(nn.Module):
    """Losses of boxes and of key points.

    Args:
        num_classes: classes.
        head, strides, task_options: as the network's, see :class:`zoo.detection.bvr_head.BVRHead`.
        keypoint_class_weight, keypoint_offset_weight: weights of the losses of key points.
        overlap: see :func:`zoo.detection.bvr_keypoints.gaussian_radius`.
    """

    def __init__(
        self,
        num_classes: int,
        head: str = "retina",
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        task_options: Mapping[str, Any] | None = None,
        keypoint_class_weight: float = 0.25,
        keypoint_offset_weight: float = 1.0,
        overlap: float = 0.7,
    ):
        super().__init__()
        if head not in TASKS:
            raise ValueError(f"head={head!r}: accepted are {', '.join(TASKS)}")
        self.task = TASKS[head](num_classes, strides, **(task_options or {}))
        self.strides, self.overlap = tuple(strides), overlap
        self.keypoint_weights = (keypoint_class_weight, keypoint_offset_weight)

    def weight_of(self, name: str) -> float | None:
        """Every loss counts once: weights are inside."""
        return 1.0

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """``bbox_loss_*`` and ``kpt_loss_*``, each a scalar.

        Args:
            outputs: of :class:`RelationNetPP` in training.
            targets: for each image ``labels [N]`` and ``boxes [N, 4]`` (cx, cy, w, h in 0 ... 1 of the image).
        """
        sizes = outputs["image_sizes"]
        scale = torch.stack([sizes[:, 1], sizes[:, 0], sizes[:, 1], sizes[:, 0]], dim=1)
        boxes = [cxcywh_to_xyxy(t["boxes"].float()) * s for t, s in zip(targets, scale.to(torch.float32))]
        labels = [t["labels"] for t in targets]
        found, _ = keypoint_losses(
            outputs["keypoint_logits"],
            outputs["keypoint_offsets"],
            boxes,
            labels,
            self.strides,
            self.overlap,
            *self.keypoint_weights,
        )
        losses = {f"kpt_{k}": v for k, v in found.items()}
        for name, parts in self.task.losses(outputs["predictions"], boxes, labels).items():
            losses[f"bbox_{name}"] = torch.stack(parts).sum()
        return losses


@torch.no_grad()
def dense_detections(
    outputs: Mapping[str, Any],
    sizes: Tensor,
    score_threshold: float = 0.0,
    nms_threshold: float = 0.5,
    per_level: int = 1000,
    count: int = 100,
) -> list[dict[str, Tensor]]:
    """The best boxes of dense heads, of which none overlaps a better one of its class too much.

    Args:
        outputs: with ``candidates`` and ``image_sizes``, see :class:`RelationNetPP`.
        sizes: height and width of each image as it was read, ``[B, 2]``.
        score_threshold: pairs of point and class that do not exceed it are dropped (the authors: 0.05).
        nms_threshold: the largest overlap (the authors: 0.5 for RetinaNet, 0.6 for FCOS and ATSS).
        per_level: pairs of a level that are looked at.
        count: boxes of an image at most.

    Returns:
        For each image ``scores``, ``labels`` and ``boxes`` (corners in its pixels), best first.
    """
    found = []
    for i, (inner, outer) in enumerate(zip(outputs["image_sizes"], sizes)):
        boxes, scores, labels = [], [], []
        for logits, candidates, central in outputs["candidates"]:
            p = logits[i].float().sigmoid()  # [N, classes]
            best, pairs = p.flatten().topk(min(per_level, p.numel()))
            kept = best > score_threshold
            best, pairs = best[kept], pairs[kept]
            point = torch.div(pairs, p.shape[1], rounding_mode="floor")
            boxes.append(candidates[i][point])
            labels.append(pairs % p.shape[1])
            scores.append(best if central is None else best * central[i][point].float().sigmoid())
        all_boxes, all_scores, all_labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        inner = inner.to(all_boxes)
        all_boxes = torch.minimum(all_boxes.clamp(min=0), inner[[1, 0, 1, 0]])
        kept = batched_nms(all_boxes, all_scores, all_labels, nms_threshold)[:count]
        ratio = (outer.to(all_boxes) / inner)[[1, 0, 1, 0]]
        found.append({"scores": all_scores[kept], "labels": all_labels[kept], "boxes": all_boxes[kept] * ratio})
    return found
