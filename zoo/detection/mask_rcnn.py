"""Mask R-CNN and Faster R-CNN over any backbone's maps, made of torchvision's parts.

Mask R-CNN (arXiv:1703.06870), Faster R-CNN (arXiv:1506.01497), Feature Pyramid Networks (arXiv:1612.03144). Proposals,
regions' features, heads, sampling and losses are torchvision's (BSD-3-Clause); on a ResNet with the same weights
outputs and losses are those of its ``maskrcnn_resnet50_fpn``. Here classes count from 0, without the background;
torchvision's are one higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork

from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.criterion import Targets
from zoo.detection.fpn import FPN
from zoo.detection.rcnn_parts import (
    Float32BoxPredictor,
    Float32RPNHead,
    PyramidAnchors,
    box_head,
    mask_parts,
    roi_align,
)

#: sides of the regions' features for boxes and for masks
BOX_SIDE, MASK_SIDE = 7, 14
#: masks that are pasted into the image at a time: as float32 they are 32 times as large as at last
_PASTED = 8


class MaskRCNN(nn.Module):
    """From a backbone's maps to boxes, classes and masks.

    Args:
        channels: channels of the backbone's maps.
        num_classes: classes, without the background.
        masks: predict masks (Mask R-CNN); otherwise boxes only (Faster R-CNN).
        dim: channels of pyramid and heads.
        strides: image pixels a pixel of each map, and of the pyramid's last level, which is one more than the maps.
        anchor_sizes: side of the anchors on each level, in pixels (or several).
        anchor_ratios: height over width.
        canonical_scale: regions of this side, in pixels, are read from the map of stride 16.
        neck: further arguments of :class:`zoo.detection.fpn.FPN`.
        rpn_convs: convolutions of the proposals' head.
        rpn_candidates, rpn_proposals: proposals of a level before, and of an image after suppression, in training and
            outside.
        rpn_samples, roi_samples: anchors and proposals of an image that the losses see.
        box_head: "mlp" or "conv", see :func:`zoo.detection.rcnn_parts.box_head`.
        box_channels: of its hidden layers.
        mask_convs: convolutions of the masks' head.
        mask_norm: batch normalisation in the masks' head.
        score_threshold: boxes are dropped unless their score exceeds it.
        nms_threshold: largest overlap of two boxes of a class.
        count: boxes of an image at most.

    Raises:
        ValueError: other numbers of maps, strides and sizes, strides that do not double, an unknown head.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"neck": FPN}

    default_criterion: ClassVar[dict[str, Any]] = dict(type="zoo.detection.mask_rcnn.RCNNCriterion")
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.mask_rcnn.rcnn_detections")

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 80,
        masks: bool = True,
        dim: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        anchor_sizes: Sequence[float | Sequence[float]] = (32, 64, 128, 256, 512),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        canonical_scale: int = 224,
        neck: Mapping[str, Any] | None = None,
        rpn_convs: int = 1,
        rpn_candidates: tuple[int, int] = (2000, 1000),
        rpn_proposals: tuple[int, int] = (2000, 1000),
        rpn_samples: int = 256,
        roi_samples: int = 512,
        box_head: str = "mlp",
        box_channels: int = 1024,
        mask_convs: int = 4,
        mask_norm: bool = False,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        count: int = 100,
    ):
        super().__init__()
        if len(strides) != len(channels) + 1:
            raise ValueError(f"strides={tuple(strides)}: {len(channels)} maps make {len(channels) + 1} levels")
        self.num_classes, self.has_masks = num_classes, masks
        self.neck = FPN(channels, dim, len(strides), **{"groups": None, "extra": "pool", **(neck or {})})
        anchors = PyramidAnchors(strides, anchor_sizes, anchor_ratios)
        numbers = anchors.num_anchors_per_location()
        if len(set(numbers)) > 1:
            raise ValueError(f"anchor_sizes={tuple(anchor_sizes)}: accepted is the same number of sizes for each level")
        self.rpn = RegionProposalNetwork(
            anchors,
            Float32RPNHead(dim, numbers[0], rpn_convs),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=rpn_samples,
            positive_fraction=0.5,
            pre_nms_top_n=dict(zip(("training", "testing"), rpn_candidates)),
            post_nms_top_n=dict(zip(("training", "testing"), rpn_proposals)),
            nms_thresh=0.7,
        )
        head, width = _box_head(box_head, dim, BOX_SIDE, box_channels)
        outputs = num_classes + 1  # the background is class 0 inside
        mask_head, mask_predictor = mask_parts(dim, mask_convs, outputs, mask_norm) if masks else (None, None)
        self.roi_heads = RoIHeads(
            roi_align(strides[:-1], BOX_SIDE, canonical_scale),
            head,
            Float32BoxPredictor(width, outputs),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=roi_samples,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=count,
            mask_roi_pool=roi_align(strides[:-1], MASK_SIDE, canonical_scale) if masks else None,
            mask_head=mask_head,
            mask_predictor=mask_predictor,
        )

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict, or learn.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``, from large to small.
            mask: padding of the images, ``[B, H, W]``, true where there is no image.
            targets: in training, for each image ``labels [N]``, ``boxes [N, 4]`` (cx, cy, w, h in 0 ... 1 of the image
                without padding) and ``masks`` bool ``[N, h, w]`` at its size without padding.

        Returns:
            In training ``losses``, by torchvision's names. Otherwise ``detections``, for each image ``boxes [N, 4]``
            (corners in pixels), ``labels [N]``, ``scores [N]``, best first, and ``masks [N, 1, 28, 28]``, probabilities
            inside the boxes; and ``image_sizes [B, 2]``, height and width without padding.

        Raises:
            ValueError: training without targets or without masks.
            FloatingPointError: the maps are not finite (outside training; in training the losses tell).
        """
        levels = self.neck(features)
        if levels[0].is_meta:
            return self._largest(levels)
        inside = ~mask
        sizes = torch.stack([inside[:, :, 0].sum(1), inside[:, 0, :].sum(1)], dim=1)
        shapes = [(int(h), int(w)) for h, w in sizes.tolist()]
        if self.training:
            if targets is None:
                raise ValueError("a region-based detector samples regions to learn from: training needs targets")
            targets = self._targets(targets, sizes)
        elif not bool(torch.isfinite(levels[-1]).all()):
            raise FloatingPointError("the pyramid's maps are not finite; the images are not, or the model has diverged")
        named = {str(i): x for i, x in enumerate(levels)}
        images = ImageList(mask, shapes)
        proposals, first = self.rpn(images, named, targets)
        found, second = self.roi_heads(named, proposals, shapes, targets)
        if self.training:
            return {"losses": {**second, **first}}
        for f in found:
            f["labels"] = f["labels"] - 1
        return {"detections": found, "image_sizes": sizes}

    def _targets(self, targets: Targets, sizes: Tensor) -> list[dict[str, Tensor]]:
        """As torchvision takes them: corners in pixels, labels from 1."""
        found = []
        for t, (h, w) in zip(targets, sizes.unbind()):
            scale = torch.stack([w, h, w, h]).to(torch.float32)
            one = {"boxes": cxcywh_to_xyxy(t["boxes"].float()) * scale, "labels": t["labels"] + 1}
            if self.has_masks:
                if "masks" not in t:
                    raise ValueError("targets have no masks to learn from; load the data with with_masks=True")
                one["masks"] = t["masks"]
            found.append(one)
        return found

    def _largest(self, levels: Sequence[Tensor]) -> dict[str, Any]:
        """What is computed where there are as many proposals and boxes as allowed; tensors without content have no
        scores to choose by, but operations can be counted."""
        images = len(levels[0])
        self.rpn.head(list(levels))
        heads = self.roi_heads
        regions = levels[0].new_empty(images * self.rpn.post_nms_top_n(), levels[0].shape[1], BOX_SIDE, BOX_SIDE)
        logits, _ = heads.box_predictor(heads.box_head(regions))
        out = {"logits": logits}
        if self.has_masks:
            regions = levels[0].new_empty(images * heads.detections_per_img, levels[0].shape[1], MASK_SIDE, MASK_SIDE)
            out["masks"] = heads.mask_predictor(heads.mask_head(regions))
        return out


_box_head = box_head  # an argument of the constructor has the function's name


class RCNNCriterion(nn.Module):
    """The losses that the network computed, weighted.

    Args:
        num_classes: not read.
        weights: of the losses by name (``loss_objectness``, ``loss_rpn_box_reg``, ``loss_classifier``,
            ``loss_box_reg``, ``loss_mask``); 1 by default.

    Raises:
        ValueError: an unknown loss.
    """

    names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")

    def __init__(self, num_classes: int, weights: Mapping[str, float] | None = None):
        super().__init__()
        unknown = sorted(set(weights or ()) - set(self.names))
        if unknown:
            raise ValueError(f"weights has {unknown}; accepted are {', '.join(self.names)}")
        self.weights = {**dict.fromkeys(self.names, 1.0), **(weights or {})}

    def weight_of(self, name: str) -> float | None:
        """The factor of a loss."""
        return self.weights[name]

    def forward(self, outputs: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """The losses of :class:`MaskRCNN` in training.

        Raises:
            ValueError: the outputs are of a network that is not in training.
        """
        if "losses" not in outputs:
            raise ValueError("the outputs have no losses: a region-based detector computes them in training only")
        return dict(outputs["losses"])


@torch.no_grad()
def rcnn_detections(outputs: Mapping[str, Any], sizes: Tensor, mask_threshold: float = 0.5) -> list[dict[str, Tensor]]:
    """Boxes and masks in the images as they were read.

    Args:
        outputs: of :class:`MaskRCNN` outside training.
        sizes: height and width of each image as it was read, ``[B, 2]``.
        mask_threshold: probability from which a pixel belongs to an object.

    Returns:
        For each image ``scores [N]``, ``labels [N]``, ``boxes [N, 4]`` (corners in its pixels), best first, and
        ``masks`` bool ``[N, H, W]`` where the network predicts them.
    """
    results = []
    for found, inner, outer in zip(outputs["detections"], outputs["image_sizes"], sizes):
        ratio = outer.to(torch.float32) / inner.to(torch.float32)
        boxes = found["boxes"] * ratio[[1, 0, 1, 0]]
        one = {"scores": found["scores"], "labels": found["labels"], "boxes": boxes}
        if "masks" in found:
            height, width = (int(v) for v in outer.tolist())
            pasted = [
                paste_masks_in_image(m, b, (height, width))[:, 0] >= mask_threshold
                for m, b in zip(found["masks"].split(_PASTED), boxes.split(_PASTED))
            ]
            one["masks"] = torch.cat(pasted) if pasted else boxes.new_zeros(0, height, width, dtype=torch.bool)
        results.append(one)
    return results
