"""Co-DETR: auxiliary heads with one-to-many assignment teach the encoder, and their positives the decoder.

DETRs with Collaborative Hybrid Assignments Training (arXiv:2211.12860). Authors' code: github.com/Sense-X/Co-DETR
(MIT); this follows the paper, that code's behaviour and recorded results.

What one might not expect: auxiliary heads see the encoder's maps, never the neck's, and one further map made of the
last; their positives' boxes are the queries' boxes as they are; queries that fill an image up are negatives, which
learn to be background; in Deformable DETR the best of the first stage is chosen by class 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.co_auxiliary import AuxiliaryHeads
from zoo.detection.co_queries import PositiveQueries, padding_mask
from zoo.detection.deformable_detr import DeformableDETR, DeformableTransformer
from zoo.detection.dino import DINO, DINOTransformer
from zoo.detection.layers import InputProjection

#: groups of the normalisation behind the further map
GROUPS = 32


class Collaborative(nn.Module):
    """What both networks share; their ``decode_positives`` runs their decoder."""

    num_classes: int
    auxiliary: AuxiliaryHeads | None
    downsample: nn.Sequential | None
    positive: PositiveQueries | None

    def _add_auxiliary(self, dim: int, num_levels: int, strides: Sequence[int], options: Mapping[str, Any]) -> None:
        if len(strides) != num_levels:
            raise ValueError(f"strides={tuple(strides)}: as many as num_feature_levels={num_levels} needed")
        if dim % GROUPS:
            raise ValueError(f"d_model={dim}: accepted are multiples of {GROUPS}")
        self.auxiliary = AuxiliaryHeads(dim, self.num_classes, strides, **options)
        self.downsample = nn.Sequential(nn.Conv2d(dim, dim, 3, 2, 1), nn.GroupNorm(GROUPS, dim))

    def drop_auxiliary(self) -> None:
        """Take the auxiliary heads and what belongs to them out; predictions stay, training is an ordinary DETR's."""
        self.auxiliary = self.downsample = self.positive = None

    def encoder_maps(self, out: Mapping[str, Any]) -> list[Tensor]:
        """The memory as maps ``[B, C, H, W]``, and one further map of twice the last one's stride."""
        assert self.downsample is not None
        parts = out["memory"].split([h * w for h, w in out["shapes"]], dim=1)
        maps = [p.transpose(1, 2).unflatten(2, s).contiguous() for p, s in zip(parts, out["shapes"])]
        return [*maps, self.downsample(maps[-1])]

    def collaborate(self, out: dict[str, Any], mask: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """The outputs of the network with those of the auxiliary heads and of the queries that come of them."""
        assert self.auxiliary is not None
        sizes, maps = image_sizes(mask), self.encoder_maps(out)
        heads, queries = self.auxiliary(maps, sizes, targets)
        found = out | {"auxiliary": heads, "encoder_maps": maps}
        if self.positive is None:
            return found
        found["positive_queries"] = queries
        found["positive_outputs"] = [self.decode_positives(out, q, i) for i, q in enumerate(queries)]
        return found

    def decode_positives(
        self, out: Mapping[str, Any], queries: Mapping[str, Tensor], head: int
    ) -> list[dict[str, Tensor]]:
        """Predictions of each layer for the queries of an auxiliary head."""
        raise NotImplementedError

    @torch.no_grad()
    def detect(self, features: Sequence[Tensor], mask: Tensor, head: str, count: int = 100) -> list[dict[str, Tensor]]:
        """What an auxiliary head finds by itself; arguments as of ``forward``, and of
        :meth:`zoo.detection.co_auxiliary.AuxiliaryHeads.detect`.

        Raises:
            ValueError: there are no auxiliary heads, or none of this name.
        """
        if self.auxiliary is None:
            raise ValueError("this network has no auxiliary heads (with_auxiliary=False)")
        return self.auxiliary.detect(self.encoder_maps(self(features, mask)), image_sizes(mask), head, count)


class CoDeformableDETR(Collaborative, DeformableDETR):
    """Deformable DETR with auxiliary heads.

    Args:
        channels, num_classes, num_queries, num_feature_levels, with_box_refine, two_stage, aux_loss: see
            :class:`zoo.detection.deformable_detr.DeformableDETR`.
        norm_groups: groups of the input projection's normalisation.
        strides: image pixels a pixel of each level.
        with_auxiliary: build what only training needs (the auxiliary heads and the queries that come of them).
        auxiliary: further arguments of :class:`zoo.detection.co_auxiliary.AuxiliaryHeads`.
        positive_heads: auxiliary heads that there are weights for; 0 for no customised positive queries.
        with_features: customised positive queries have the auxiliary head's features in them.
        transformer: further arguments of :class:`zoo.detection.deformable_detr.DeformableTransformer`.

    Raises:
        ValueError: another number of strides than levels, weights for one of the two heads only.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": DeformableTransformer, "auxiliary": AuxiliaryHeads}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.co_criterion.CoCriterion", matcher=dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0)
    )

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 80,
        num_queries: int = 300,
        num_feature_levels: int = 4,
        norm_groups: int = 32,
        strides: Sequence[int] = (8, 16, 32, 64),
        with_box_refine: bool = True,
        two_stage: bool = True,
        aux_loss: bool = True,
        with_auxiliary: bool = True,
        auxiliary: Mapping[str, Any] | None = None,
        positive_heads: int = 2,
        with_features: bool = True,
        transformer: Mapping[str, Any] | None = None,
    ):
        _check_heads(positive_heads)
        common = dict(mixed_selection=two_stage, look_forward_twice=True, dim_feedforward=2048, dropout=0.0)
        super().__init__(
            channels,
            num_classes,
            num_queries,
            num_feature_levels,
            with_box_refine,
            two_stage,
            aux_loss,
            transformer={**common, **(transformer or {})},
        )
        self.num_heads: int = (transformer or {}).get("nhead", 8)
        dim = self.transformer.d_model
        self.input_proj = InputProjection(channels, dim, num_feature_levels, norm_groups, bias=False)
        self.drop_auxiliary()
        if with_auxiliary:
            self._add_auxiliary(dim, num_feature_levels, strides, auxiliary or {})
            if positive_heads:
                self.positive = PositiveQueries(dim, positive_heads, True, with_features)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict; arguments and result as :meth:`zoo.detection.deformable_detr.DeformableDETR.forward`.

        In training with ``targets`` (for each image ``labels`` and ``boxes``) also ``auxiliary`` (predictions of the
        auxiliary heads and what they shall be), ``positive_queries`` and ``positive_outputs`` (of each head, of each
        layer), ``encoder_maps``.
        """
        out = super().forward(features, mask)
        if self.training and targets is not None and self.auxiliary is not None:
            return self.collaborate(out, mask, targets)
        return out

    def decode_positives(
        self, out: Mapping[str, Any], queries: Mapping[str, Tensor], head: int
    ) -> list[dict[str, Tensor]]:
        """Predictions ``pred_logits [B, P, classes]`` and ``pred_boxes [B, P, 4]`` of each layer."""
        assert self.positive is not None
        boxes = queries["boxes"]
        content, position = self.positive(boxes, queries["features"], head)
        assert position is not None
        hidden, references = self.transformer.decode(
            content,
            position,
            boxes,
            out["memory"],
            out["shapes"],
            out["valid_ratios"],
            out["padding"],
            self.bbox_embed if self.with_box_refine else None,
            padding_mask(queries["positive"], self.num_heads) if "positive" in queries else None,
        )
        return self.predictions(hidden, boxes, references)


class CoDINO(Collaborative, DINO):
    """DINO with auxiliary heads.

    Args:
        channels, num_classes, num_queries, num_feature_levels, temperature, dn_number, dn_label_noise_ratio,
            dn_box_noise_scale, aux_loss: see :class:`zoo.detection.dino.DINO`.
        norm_groups: groups of the input projection's normalisation.
        strides: image pixels a pixel of each level.
        with_auxiliary, auxiliary, positive_heads, with_features: see :class:`CoDeformableDETR`.
        transformer: further arguments of :class:`zoo.detection.dino.DINOTransformer`.

    Raises:
        ValueError: another number of strides than levels, weights for one of the two heads only.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": DINOTransformer, "auxiliary": AuxiliaryHeads}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.co_criterion.CoDINOCriterion",
        matcher=dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
    )
    #: without the soft suppression of the authors' evaluation, so that a graph can hold it; the recipes have it
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.postprocess.best_of_pairs", count=300)

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 80,
        num_queries: int = 900,
        num_feature_levels: int = 5,
        norm_groups: int = 32,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        temperature: float | tuple[float, float] = 20.0,
        dn_number: int = 100,
        dn_label_noise_ratio: float = 0.5,
        dn_box_noise_scale: float = 1.0,
        aux_loss: bool = True,
        with_auxiliary: bool = True,
        auxiliary: Mapping[str, Any] | None = None,
        positive_heads: int = 2,
        with_features: bool = False,
        transformer: Mapping[str, Any] | None = None,
    ):
        _check_heads(positive_heads)
        super().__init__(
            channels,
            num_classes,
            num_queries,
            num_feature_levels,
            temperature,
            share_class_head=False,
            share_box_head=False,
            dn_number=dn_number,
            dn_label_noise_ratio=dn_label_noise_ratio,
            dn_box_noise_scale=dn_box_noise_scale,
            dn_always_share=True,
            dn_labelbook_size=num_classes - 1,
            aux_loss=aux_loss,
            transformer=transformer,
        )
        dim = self.transformer.d_model
        self.input_proj = InputProjection(channels, dim, num_feature_levels, norm_groups, bias=False)
        self.drop_auxiliary()
        if with_auxiliary:
            self._add_auxiliary(dim, num_feature_levels, strides, {"roi_finest": 56, **(auxiliary or {})})
            if positive_heads:
                self.positive = PositiveQueries(dim, positive_heads, False, with_features)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict; arguments and result as :meth:`zoo.detection.dino.DINO.forward`, in training with ``targets`` also
        what :meth:`CoDeformableDETR.forward` gives."""
        out = super().forward(features, mask, targets)
        if self.training and targets is not None and self.auxiliary is not None:
            return self.collaborate(out, mask, targets)
        return out

    def decode_positives(
        self, out: Mapping[str, Any], queries: Mapping[str, Tensor], head: int
    ) -> list[dict[str, Tensor]]:
        """Predictions of each layer; queries that only fill up are seen by all, as in the authors' code."""
        assert self.positive is not None
        content, _ = self.positive(queries["boxes"], queries["features"], head)
        hidden, references = self.transformer.decoder(
            content,
            queries["boxes"],
            out["memory"],
            out["shapes"],
            out["valid_ratios"],
            out["padding"],
            self.bbox_embed,
        )
        return self.predictions(hidden, references)


def image_sizes(mask: Tensor) -> Tensor:
    """Height and width ``[B, 2]`` of what is no padding in masks ``[B, H, W]`` (true in the padding)."""
    inside = ~mask
    return torch.stack([inside[:, :, 0].sum(1), inside[:, 0, :].sum(1)], dim=1)


def _check_heads(count: int) -> None:
    if count != 0 and count < 2:
        raise ValueError(f"positive_heads={count}: accepted are 0 (no such queries) and numbers from 2 (RoI and ATSS)")
