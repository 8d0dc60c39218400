"""RF-DETR: a real-time detector on windowed DINOv2.

RF-DETR: Neural Architecture Search for Real-Time Detection Transformers (arXiv:2511.09554), on LW-DETR
(arXiv:2406.03459). Authors' code: github.com/roboflow/rf-detr (Apache-2.0; its XL and 2XL detectors, which are under
another licence, are not covered); this follows the papers and recorded results. Nothing is between neck and decoder:
the first stage chooses among the neck's tokens, and the decoder reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.images import mask_at
from zoo.detection.layers import MLP, classifier_bias
from zoo.detection.projector import MultiScaleProjector
from zoo.detection.rfdetr_keypoints import CHANNELS, active_mask, by_class, class_boost, placed
from zoo.detection.rfdetr_masks import Factors, SegmentationHead, dense_masks
from zoo.detection.rfdetr_transformer import RFDETRTransformer, moved
from zoo.layers.token_linear import TokenLinear


class RFDETR(nn.Module):
    """From feature maps to classes and boxes, and masks or keypoints.

    Args:
        channels: channels of the backbone's maps, all of one stride.
        num_classes: outputs of the classifiers (the published models have one more than the largest category id).
        num_queries: queries of a group.
        groups: groups of queries in training; the first is left otherwise.
        stride: pixels a side of a position of the backbone's maps.
        levels: of the neck, see :class:`zoo.detection.projector.MultiScaleProjector`.
        layer_norm: norms of the neck's convolutions are over channels; over the batch otherwise.
        projector: further arguments of the neck.
        aux_loss: give the predictions of every layer.
        segmentation_head: also predict masks.
        mask_downsample_ratio: pixels of the image a side of a pixel of the masks.
        mask_hidden: see :class:`zoo.detection.rfdetr_masks.SegmentationHead`.
        keypoint_counts: keypoints of each class; empty for none.
        dual_projector: a second neck of the same kind, for the decoder.
        dual_projector_kp_only: only keypoints read the second neck.
        transformer: further arguments of :class:`zoo.detection.rfdetr_transformer.RFDETRTransformer`.

    Raises:
        ValueError: more classes of keypoints than outputs of the classifiers; see also the parts.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": RFDETRTransformer, "projector": MultiScaleProjector}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.rfdetr_criterion.RFDETRCriterion",
        matcher=dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
        weights=dict(loss_ce=1.0, loss_bbox=5.0, loss_giou=2.0),
    )
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.postprocess.best_of_pairs", count=300)

    keypoint_active: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 91,
        num_queries: int = 300,
        groups: int = 13,
        stride: int = 16,
        levels: Sequence[str] = ("P4",),
        layer_norm: bool = True,
        projector: Mapping[str, Any] | None = None,
        aux_loss: bool = True,
        segmentation_head: bool = False,
        mask_downsample_ratio: int = 4,
        mask_hidden: int | None = None,
        keypoint_counts: Sequence[int] = (),
        dual_projector: bool = False,
        dual_projector_kp_only: bool = False,
        transformer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if len(keypoint_counts) > num_classes:
            raise ValueError(
                f"keypoint_counts={tuple(keypoint_counts)}: at most one number for each of {num_classes} classes"
            )
        self.num_classes, self.num_queries, self.groups, self.stride = num_classes, num_queries, groups, stride
        self.aux_loss, self.cross_for_keypoints = aux_loss, dual_projector_kp_only
        self.transformer = RFDETRTransformer(
            num_queries=num_queries,
            groups=groups,
            n_levels=len(levels),
            keypoint_counts=keypoint_counts,
            **(transformer or {}),
        )
        dim = self.transformer.d_model
        options = dict(channels=channels, dim=dim, levels=levels, layer_norm=layer_norm, **(projector or {}))
        self.projector = MultiScaleProjector(**options)
        self.cross_attn_projector = MultiScaleProjector(**options) if dual_projector else None
        self.refpoint_embed = nn.Embedding(num_queries * groups, 4)
        self.query_feat = nn.Embedding(num_queries * groups, dim)
        nn.init.zeros_(self.refpoint_embed.weight)
        self.class_embed, self.bbox_embed = TokenLinear(dim, num_classes), MLP(dim, dim, 4, 3)
        nn.init.constant_(self.class_embed.bias, classifier_bias())
        self.keypoint_embed = self.segmentation_head = None
        if keypoint_counts:
            width = self.transformer.decoder.keypoint_pos_embed.shape[1]  # type: ignore[union-attr]
            self.keypoint_embed = MLP(width, width, CHANNELS, 3)
        for head in (self.bbox_embed, self.keypoint_embed):
            if head is not None:
                last: Any = head.layers[-1]
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        self.register_buffer("keypoint_active", active_mask(keypoint_counts))
        self.enc_out_class_embed = self.enc_out_bbox_embed = self.enc_out_keypoint_embed = None
        if self.transformer.two_stage:
            self.enc_out_class_embed = nn.ModuleList(copy.deepcopy(self.class_embed) for _ in range(groups))
            self.enc_out_bbox_embed = nn.ModuleList(copy.deepcopy(self.bbox_embed) for _ in range(groups))
            if self.keypoint_embed is not None:
                self.enc_out_keypoint_embed = nn.ModuleList(copy.deepcopy(self.keypoint_embed) for _ in range(groups))
        if segmentation_head:
            layers = len(self.transformer.decoder.layers)
            self.segmentation_head = SegmentationHead(dim, layers, mask_downsample_ratio, mask_hidden)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H, W]`` of one stride.
            mask: padding of the images, true where there is no image; where the maps reach further than the mask
                ``[B, height, width]``, because the backbone padded the images, that is padding too.
            targets: not read.

        Returns:
            ``pred_logits [B, Q, classes]``, ``pred_boxes [B, Q, 4]``, ``aux_outputs`` and ``enc_outputs`` (of the first
            stage), each of which also has ``pred_masks`` or ``pred_keypoints`` where there are any; ``groups``, of
            which the queries of the training mode consist; ``projector`` and ``cross_projector``, the levels. Masks
            are logits ``[B, Q, h, w]``, in training the factors that :func:`zoo.detection.rfdetr_masks.dense_masks`
            multiplies. Keypoints are ``[B, Q, classes * most keypoints of a class, 8]``: x, y, logits of being
            findable and visible, three numbers of the precision (its factor: log of the first diagonal number, the
            one below, log of the second), share of the class's logit.

        Raises:
            ValueError: maps of different sizes.
        """
        size = features[0].shape[-2:]
        if any(x.shape[-2:] != size for x in features):
            raise ValueError(f"maps have sizes {[tuple(x.shape[-2:]) for x in features]}: all must be of one size")
        height, width = int(size[0]) * self.stride, int(size[1]) * self.stride
        mask = F.pad(mask, (0, max(0, width - mask.shape[2]), 0, max(0, height - mask.shape[1])), value=True)
        levels = self.projector(features)
        cross = None if self.cross_attn_projector is None else self.cross_attn_projector(features)
        masks = [mask_at(mask, x.shape[-2:]) for x in levels]
        queries = self.num_queries * (self.groups if self.training else 1)
        found = self.transformer(
            levels,
            masks,
            self.refpoint_embed.weight[:queries],
            self.query_feat.weight[:queries],
            self.enc_out_class_embed,
            self.enc_out_bbox_embed,
            self.enc_out_keypoint_embed,
            self.bbox_embed,
            cross,
            self.cross_for_keypoints,
        )
        layers, first = self.predict(found)
        if self.segmentation_head is not None:
            self._add_masks(self.segmentation_head, layers, first, found, levels[0], (height, width))
        out: dict[str, Any] = {**layers[-1], "groups": self.groups if self.training else 1, "projector": levels}
        if cross is not None:
            out["cross_projector"] = cross
        if self.aux_loss:
            out["aux_outputs"] = layers[:-1]
        if first is not None:
            out["enc_outputs"] = first
        return out

    def predict(self, found: Mapping[str, Tensor]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Classes, boxes and keypoints of each layer and of the first stage."""
        hs, references = found["hs"], found["references"]  # [layers, B, Q, C], [layers or 1, B, Q, 4]
        boxes = self.transformer.as_boxes(moved(references, self.bbox_embed(hs), self.transformer.bbox_reparam))
        layers = [{"pred_logits": c, "pred_boxes": b} for c, b in zip(self.class_embed(hs), boxes)]
        first = None
        if "first_logits" in found:
            first = {"pred_logits": found["first_logits"], "pred_boxes": found["first_boxes"]}
        if self.keypoint_embed is not None:
            # As the authors have it: relative to the references as they are, logits where they are logits.
            keypoints = placed(self.keypoint_embed(found["keypoint_hs"]), references)
            for layer, points in zip(layers, keypoints):
                self._add_keypoints(layer, points)
            if first is not None:
                self._add_keypoints(first, found["first_keypoints"])
        return layers, first

    def _add_keypoints(self, layer: dict[str, Any], points: Tensor) -> None:
        layer["pred_keypoints"] = by_class(points, self.keypoint_active)
        boost = class_boost(layer["pred_keypoints"], self.keypoint_active, self.num_classes)
        layer["pred_logits"] = layer["pred_logits"] + boost

    def _add_masks(
        self,
        head: SegmentationHead,
        layers: list[dict[str, Any]],
        first: dict[str, Any] | None,
        found: Mapping[str, Tensor],
        level: Tensor,
        image_size: tuple[int, int],
    ) -> None:
        factors, start = head(level, list(found["hs"]), found.get("first_tokens"), image_size)
        for layer, f in zip(layers, factors):
            layer["pred_masks"] = self._masks(f)
        if first is not None and start is not None:
            first["pred_masks"] = self._masks(start)

    def _masks(self, factors: Factors) -> Factors | Tensor:
        return factors if self.training else dense_masks(factors)
