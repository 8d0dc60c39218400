"""Focus-DETR: DINO whose encoder works on the foreground only.

Less is More: Focus Attention for Efficient DETR (arXiv:2307.12612). Authors' code:
github.com/huawei-noah/noah-research and IDEA-Research/detrex (Apache-2.0); this follows the paper and recorded results.

What one might not expect: the values of all encoder layers are the tokens as they came; the head that scores tokens in
the encoder is the one behind as many decoder layers as the encoder has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.deformable_transformer import (
    DeformableDecoderLayer,
    encoder_proposals,
    encoder_reference_points,
    flatten_levels,
    gather_tokens,
    init_transformer,
    top_proposals,
)
from zoo.detection.denoising import Denoising, contrastive_denoising
from zoo.detection.dino import DINODecoder, layer_predictions, without_denoising
from zoo.detection.focus_encoder import FocusEncoder, FocusEncoderLayer, ForegroundSelector
from zoo.detection.layers import MLP, InputProjection, classifier_bias, start_at_reference
from zoo.detection.positions import SinePositions
from zoo.layers.token_linear import TokenLinear
from zoo_kernels.dispatch import exporting

CASCADE = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)


class FocusTransformer(nn.Module):
    """Selection of foreground tokens, encoder, query selection, decoder.

    Args:
        d_model: channels C.
        nhead: attention heads.
        num_queries: matching queries.
        num_encoder_layers, num_decoder_layers: depth; at least as many decoder as encoder layers.
        dim_feedforward: hidden channels of the feed-forward branches.
        dropout: of all branches.
        num_feature_levels: levels L.
        n_points: sampling points a head and level.
        focus_rho: share of an image's tokens that are foreground.
        cascade: shares of these for each encoder layer.
        num_best: tokens that attend each other in each encoder layer.
        learnt_init_query: contents of the queries are learned rather than the encoder's tokens.

    Raises:
        ValueError: fewer decoder than encoder layers (there would be no head for the encoder).
    """

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_queries: int = 900,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        num_feature_levels: int = 4,
        n_points: int = 4,
        focus_rho: float = 0.5,
        cascade: Sequence[float] = CASCADE,
        num_best: int = 300,
        learnt_init_query: bool = True,
    ):
        super().__init__()
        if num_encoder_layers > num_decoder_layers:
            raise ValueError(
                f"num_encoder_layers={num_encoder_layers}: accepted are at most num_decoder_layers={num_decoder_layers}"
            )
        self.d_model, self.num_queries, self.focus_rho = d_model, num_queries, focus_rho
        common = (d_model, dim_feedforward, dropout, "relu", num_feature_levels, nhead, n_points)
        encoder = [FocusEncoderLayer(*common, num_best=num_best) for _ in range(num_encoder_layers)]
        self.encoder = FocusEncoder(encoder, cascade)
        self.decoder = DINODecoder([DeformableDecoderLayer(*common) for _ in range(num_decoder_layers)], d_model)
        self.selector = ForegroundSelector(d_model, num_feature_levels)
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, d_model))
        self.tgt_embed = nn.Embedding(num_queries, d_model) if learnt_init_query else None
        self.enc_output = TokenLinear(d_model, d_model)
        self.enc_output_norm = nn.LayerNorm(d_model)
        init_transformer(self)
        nn.init.normal_(self.level_embed)
        if self.tgt_embed is not None:
            nn.init.normal_(self.tgt_embed.weight)

    def forward(
        self,
        levels: Sequence[Tensor],
        masks: Sequence[Tensor],
        positions: Sequence[Tensor],
        class_heads: nn.ModuleList,
        box_heads: nn.ModuleList,
        denoising: Denoising | None,
    ) -> dict[str, Any]:
        """Select, encode, select queries, decode; the last heads are the first stage's.

        Returns:
            As :meth:`zoo.detection.dino.DINOTransformer.forward`, and ``foreground_logits [B, S, 1]``,
            ``foreground_counts [B]``, ``foreground_indices`` (a list), ``shapes``.
        """
        tokens, pos, padding, shapes, ratios = flatten_levels(levels, masks, positions, self.level_embed)
        kept, proposals = encoder_proposals(tokens + pos, padding, shapes)
        logits = self.selector(self.enc_output_norm(self.enc_output(kept)), shapes)  # [B, S, 1]
        scores = torch.where(padding, logits.flatten().amin(0), logits[..., 0])
        counts = ((~padding).sum(1) * self.focus_rho).to(torch.int32) + 1
        # A graph that is made once knows no padding, nor does a model without numbers.
        static = exporting() or counts.is_meta
        most = int(scores.shape[1] * self.focus_rho) + 1 if static else int(counts.amax())
        reference_points = encoder_reference_points(shapes, ratios)
        memory, worked_on = self.encoder(
            tokens, pos, shapes, reference_points, padding, scores, counts, most, class_heads[len(self.encoder.layers)]
        )
        kept, proposals = encoder_proposals(memory, padding, shapes)
        kept = self.enc_output_norm(self.enc_output(kept))
        best = top_proposals(class_heads[-1](kept).amax(-1), self.num_queries)
        boxes = gather_tokens(box_heads[-1](kept) + proposals, best)
        selected = gather_tokens(kept, best)
        tgt = selected.detach() if self.tgt_embed is None else self.tgt_embed.weight.expand(len(memory), -1, -1)
        reference, attn_mask = boxes.detach(), None
        if denoising is not None:
            tgt = torch.cat([denoising.content.to(tgt.dtype), tgt], dim=1)
            reference = torch.cat([denoising.boxes.to(reference.dtype), reference], dim=1)
            attn_mask = denoising.attn_mask
        hidden, references = self.decoder(
            tgt, reference.sigmoid(), memory, shapes, ratios, padding, box_heads, attn_mask
        )
        return {
            "memory": memory,
            "hs": hidden,
            "references": references,
            "first_tokens": selected,
            "first_boxes": boxes.sigmoid(),
            "foreground_logits": logits,
            "foreground_counts": counts,
            "foreground_indices": worked_on,
            "shapes": shapes,
        }


class FocusDETR(nn.Module):
    """From feature maps to classes and boxes.

    Args:
        channels: channels of the backbone's maps.
        num_classes: classes.
        num_queries: boxes that are predicted.
        num_feature_levels: levels; those beyond the backbone's maps are made from the last one.
        norm_groups: groups of the input projection's normalisation.
        strides: image pixels a token of each level, for the targets of the scores.
        dn_number, dn_label_noise_ratio, dn_box_noise_scale: see
            :func:`zoo.detection.denoising.contrastive_denoising`; 0 for no denoising.
        aux_loss: give the predictions of every layer.
        transformer: further arguments of :class:`FocusTransformer`.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": FocusTransformer}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.focus_criterion.FocusCriterion",
        matcher=dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, eps=1e-6),
        weights=dict(loss_ce=1.0, loss_bbox=5.0, loss_giou=2.0),
    )
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.postprocess.best_of_pairs", count=300)

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 80,
        num_queries: int = 900,
        num_feature_levels: int = 4,
        norm_groups: int = 32,
        strides: Sequence[int] = (8, 16, 32, 64),
        dn_number: int = 100,
        dn_label_noise_ratio: float = 0.5,
        dn_box_noise_scale: float = 1.0,
        aux_loss: bool = True,
        transformer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.num_classes, self.num_queries, self.aux_loss = num_classes, num_queries, aux_loss
        self.strides, self.dn_number = tuple(strides), dn_number
        self.dn_label_noise_ratio, self.dn_box_noise_scale = dn_label_noise_ratio, dn_box_noise_scale
        self.transformer = FocusTransformer(
            num_queries=num_queries, num_feature_levels=num_feature_levels, **(transformer or {})
        )
        dim, layers = self.transformer.d_model, len(self.transformer.decoder.layers)
        self.position = SinePositions(dim // 2, half_pixel=True)
        self.input_proj = InputProjection(channels, dim, num_feature_levels, norm_groups)
        self.label_enc = nn.Embedding(num_classes, dim)
        classify, locate = TokenLinear(dim, num_classes), MLP(dim, dim, 4, 3)
        nn.init.constant_(classify.bias, classifier_bias())
        start_at_reference(locate)
        self.class_embed = nn.ModuleList(copy.deepcopy(classify) for _ in range(layers + 1))
        heads = [copy.deepcopy(locate) for _ in range(layers + 1)]
        start_at_reference(heads[0], -2.0)
        self.bbox_embed = nn.ModuleList(heads)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict; arguments and result as :meth:`zoo.detection.dino.DINO.forward`, and the foreground's scores."""
        levels, masks = self.input_proj(features, mask)
        positions = [self.position(m).to(x.dtype) for m, x in zip(masks, levels)]
        denoising = None
        if self.training and self.dn_number > 0 and targets is not None:
            denoising = contrastive_denoising(
                targets,
                self.label_enc,
                self.num_queries,
                self.num_classes,
                self.dn_number,
                self.dn_label_noise_ratio,
                self.dn_box_noise_scale,
                always_share=True,
            )
        out = self.transformer(levels, masks, positions, self.class_embed, self.bbox_embed, denoising)
        predictions = layer_predictions(self.class_embed, self.bbox_embed, out["hs"], out["references"])
        predictions, restored = without_denoising(predictions, denoising)
        inside = ~mask
        out |= predictions[-1] | {
            "masks": masks,
            "strides": self.strides,
            "image_sizes": torch.stack([inside[:, :, 0].sum(1), inside[:, 0, :].sum(1)], dim=1),
        }
        if self.aux_loss:
            out["aux_outputs"] = predictions[:-1]
        logits = self.class_embed[-1](out["first_tokens"])
        out["interm_outputs"] = {"pred_logits": logits, "pred_boxes": out["first_boxes"]}
        if restored is not None:
            out["dn_outputs"] = restored
        elif self.training:
            # The embedding takes part in every step, so that all processes reduce the same gradients.
            out["pred_logits"] = out["pred_logits"] + 0.0 * self.label_enc.weight.sum()
        return out
