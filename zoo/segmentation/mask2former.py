"""Mask2Former: mask classification with masked attention.

Masked-attention Mask Transformer for Universal Image Segmentation (arXiv:2112.01527). Authors' code:
github.com/facebookresearch/Mask2Former (MIT); this follows the paper and is compared with transformers' model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.segmentation.masked_attention_decoder import MaskedAttentionDecoder
from zoo.segmentation.pixel_decoder import DeformablePixelDecoder


def semantic_scores(outputs: Mapping[str, Tensor]) -> Tensor:
    """How much each class is there at each place: masks weighted by their classes, ``[B, K, h, w]``.

    Source: MaskFormer (arXiv:2107.06278), section 3.4, semantic inference.
    """
    classes = outputs["class_logits"].softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", classes, outputs["mask_logits"].sigmoid())


class MaskClassifier(nn.Module):
    """What MaskFormer and Mask2Former share as the model sees them."""

    kind = "masks"
    num_classes: int
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.segmentation.mask_postprocess.mask_postprocess")

    def semantic_scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """See :func:`semantic_scores`."""
        return semantic_scores(outputs)


class Mask2Former(MaskClassifier):
    """From feature maps to classes and masks.

    Args:
        channels: channels of the backbone's maps, from fine (stride 4) to coarse; the three coarsest (all but the
            first, if there are fewer than four) are read by the encoder and the queries.
        num_classes: classes without "no object".
        num_queries: masks that are predicted.
        dim: channels of pixel decoder and queries.
        mask_dim: channels of the pixel embeddings.
        pixel_decoder: further arguments of :class:`~zoo.segmentation.pixel_decoder.DeformablePixelDecoder`.
        decoder: further arguments of :class:`~zoo.segmentation.masked_attention_decoder.MaskedAttentionDecoder`.
        num_points: points at which the network's own criterion compares masks.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {
        "pixel_decoder": DeformablePixelDecoder,
        "decoder": MaskedAttentionDecoder,
    }

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 133,
        num_queries: int = 100,
        dim: int = 256,
        mask_dim: int = 256,
        pixel_decoder: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        num_points: int = 12544,
    ):
        super().__init__()
        self.num_classes, self.num_queries = num_classes, num_queries
        #: of :class:`zoo.segmentation.model.SegmentationModel`, unless it is given another
        self.default_criterion = dict(
            type="zoo.segmentation.mask_criterion.MaskCriterion",
            matcher=dict(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=num_points),
            weights=dict(loss_ce=2.0, loss_mask=5.0, loss_dice=5.0),
            num_points=num_points,
        )
        levels = {"num_levels": min(3, len(channels) - 1), **(pixel_decoder or {})}
        self.pixel_decoder = DeformablePixelDecoder(channels, dim, mask_dim, **levels)
        options = {"dim": dim, "num_levels": self.pixel_decoder.num_levels, **(decoder or {})}
        self.decoder = MaskedAttentionDecoder(dim, num_classes, mask_dim, num_queries=num_queries, **options)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``, from fine to coarse.

        Returns:
            ``class_logits [B, Q, classes + 1]``, ``mask_logits [B, Q, H_0, W_0]``, and in training ``aux_outputs``, the
            same of the start and of all layers but the last.
        """
        mask_features, maps = self.pixel_decoder(features)
        *others, last = self.decoder(maps, mask_features)
        return {**last, "aux_outputs": others} if others else last
