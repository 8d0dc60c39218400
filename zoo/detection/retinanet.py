"""RetinaNet over any backbone's maps: a pyramid, anchors everywhere, focal loss.

Focal Loss for Dense Object Detection (arXiv:1708.02002). Head, anchors, assignment and losses are those that
RelationNet++ here builds on, in the settings of mmdetection, with which the published backbones were trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.criterion import Targets
from zoo.detection.dense_heads import RetinaHead
from zoo.detection.dense_tasks import RetinaTask, tokens
from zoo.detection.fpn import FPN


class RetinaNet(nn.Module):
    """From a backbone's maps to boxes.

    Args:
        channels: channels of the maps.
        num_classes: classes.
        dim: channels of pyramid and head.
        strides: of the levels of the pyramid; the first is that of the first map.
        neck: further arguments of :class:`zoo.detection.fpn.FPN`.
        stacked_convs: convolutions of each of the head's two towers.
        base_scale, scales_per_octave, ratios: of the anchors, see :class:`zoo.detection.dense_tasks.RetinaTask`.

    Raises:
        ValueError: fewer strides than maps.
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
        stacked_convs: int = 4,
        base_scale: float = 4.0,
        scales_per_octave: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ):
        super().__init__()
        self.num_classes = num_classes
        anchors: dict[str, Any] = dict(base_scale=base_scale, scales_per_octave=scales_per_octave, ratios=tuple(ratios))
        self.neck = FPN(channels, dim, len(strides), **{"groups": None, **(neck or {})})
        self.head = RetinaHead(
            num_classes,
            dim,
            num_anchors=scales_per_octave * len(ratios),
            strides=strides,
            stacked_convs=stacked_convs,
            groups=None,
        )
        self.task = RetinaTask(num_classes, strides, **anchors)
        #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
        self.default_criterion: dict[str, Any] = dict(type=RetinaCriterion, strides=tuple(strides), **anchors)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``, from large to small.
            mask: padding of the images, ``[B, H, W]``, true where there is no image.
            targets: not read.

        Returns:
            ``predictions`` of the head for each level, ``image_sizes [B, 2]`` (height and width without padding), and
            outside training ``candidates``, see :class:`zoo.detection.relationnetpp.RelationNetPP`.
        """
        inside = ~mask
        found = self.head.predict(*self.head.features(self.neck(features)))
        sizes = torch.stack([inside[:, :, 0].sum(1), inside[:, 0, :].sum(1)], dim=1)
        out: dict[str, Any] = {"predictions": found, "image_sizes": sizes}
        if not self.training:
            logits = [tokens(x, self.num_classes) for x in found["cls"]]
            out["candidates"] = list(zip(logits, self.task.boxes(found), [None] * len(logits)))
        return out


class RetinaCriterion(nn.Module):
    """RetinaNet's losses: focal over classes, L1 over boxes, both over the number of positive anchors.

    Args:
        num_classes: classes.
        strides, base_scale, scales_per_octave, ratios: as the network's.
    """

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        base_scale: float = 4.0,
        scales_per_octave: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ):
        super().__init__()
        self.task = RetinaTask(num_classes, strides, base_scale, scales_per_octave, ratios)

    def weight_of(self, name: str) -> float | None:
        """Every loss counts once."""
        return 1.0

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_bbox``.

        Args:
            outputs: of :class:`RetinaNet`.
            targets: for each image ``labels [N]`` and ``boxes [N, 4]`` (cx, cy, w, h in 0 ... 1 of the image).
        """
        sizes = outputs["image_sizes"]
        scale = torch.stack([sizes[:, 1], sizes[:, 0], sizes[:, 1], sizes[:, 0]], dim=1).to(torch.float32)
        boxes = [cxcywh_to_xyxy(t["boxes"].float()) * s for t, s in zip(targets, scale)]
        found = self.task.losses(outputs["predictions"], boxes, [t["labels"] for t in targets])
        return {name: torch.stack(parts).sum() for name, parts in found.items()}
