"""MaskFormer: a set of masks with one class each.

Per-Pixel Classification is Not All You Need for Semantic Segmentation (arXiv:2107.06278). Authors' code:
github.com/facebookresearch/MaskFormer (not read); this follows the paper and is compared
with Hugging Face transformers' model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.deformable_transformer import init_transformer
from zoo.detection.detr import Decoder, DecoderLayer, as_tokens
from zoo.detection.layers import MLP
from zoo.detection.positions import SinePositions
from zoo.layers.token_linear import TokenLinear
from zoo.segmentation.mask2former import MaskClassifier
from zoo.segmentation.pixel_decoder import FPNPixelDecoder, sine_positions


class MaskFormer(MaskClassifier):
    """From feature maps to classes and masks: an FPN for the pixels, DETR's decoder over the last map for the queries.

    Args:
        channels: channels of the backbone's maps, from fine (stride 4) to coarse.
        num_classes: classes without "no object".
        num_queries: masks that are predicted.
        dim: channels of the pyramid.
        mask_dim: channels of the pixel embeddings.
        d_model: channels of the queries.
        nhead: attention heads.
        num_decoder_layers: layers of the decoder.
        dim_feedforward: hidden channels of its feed-forward branches.
        dropout: of its branches and attention weights.
        activation: name of its activation.
        project: project the last map to ``d_model`` even where it has as many channels.
    """

    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.segmentation.mask_criterion.MaskCriterion",
        matcher=dict(cost_class=1.0, cost_mask=20.0, cost_dice=1.0, num_points=None, mask_cost="focal"),
        weights=dict(loss_ce=1.0, loss_mask=20.0, loss_dice=1.0),
        mask_loss="focal",
        num_points=None,
    )

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 150,
        num_queries: int = 100,
        dim: int = 256,
        mask_dim: int = 256,
        d_model: int = 256,
        nhead: int = 8,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        project: bool = False,
    ):
        super().__init__()
        if d_model % 2:
            raise ValueError(f"d_model={d_model}: accepted are even numbers")
        self.num_classes, self.num_queries = num_classes, num_queries
        self.pixel_decoder = FPNPixelDecoder(channels, dim, mask_dim)
        projected = project or channels[-1] != d_model
        self.input_proj = nn.Conv2d(channels[-1], d_model, 1) if projected else nn.Identity()
        self.position = SinePositions(d_model // 2)
        self.query_embed = nn.Embedding(num_queries, d_model)
        layers = [DecoderLayer(d_model, nhead, dim_feedforward, dropout, activation) for _ in range(num_decoder_layers)]
        self.decoder = Decoder(layers, d_model)
        self.class_embed = TokenLinear(d_model, num_classes + 1)
        self.mask_embed = MLP(d_model, d_model, mask_dim, 3)
        init_transformer(self.decoder)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``, from fine to coarse.

        Returns:
            ``class_logits [B, Q, classes + 1]``, ``mask_logits [B, Q, H_0, W_0]``, and in training ``aux_outputs``, the
            same of all layers but the last.
        """
        mask_features = self.pixel_decoder(features)
        x = self.input_proj(features[-1])
        pos = as_tokens(sine_positions(self.position, x))  # [1, S, d_model]
        hidden = self.decoder(as_tokens(x), None, pos, self.query_embed.weight.expand(x.shape[0], -1, -1))
        if not self.training:
            hidden = hidden[-1:]
        classes, embeddings = self.class_embed(hidden), self.mask_embed(hidden)  # [layers, B, Q, ...]
        masks = torch.einsum("lbqc,bchw->lbqhw", embeddings, mask_features)
        *others, last = [{"class_logits": c, "mask_logits": m} for c, m in zip(classes, masks)]
        return {**last, "aux_outputs": others} if others else last
