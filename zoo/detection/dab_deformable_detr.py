"""DAB-Deformable-DETR: Deformable DETR whose queries are boxes; with denoising queries, DN-Deformable-DETR.

DAB-DETR (arXiv:2201.12329), section 5; DN-DETR (arXiv:2203.01305), section 5. Authors' code:
github.com/IDEA-Research/DAB-DETR and DN-DETR (Apache-2.0); this follows the papers and recorded results.

What one might not expect: the sines of a box are those of the box times the valid share of the first level.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.boxes import inverse_sigmoid
from zoo.detection.dab_detr import EPS, scatter_centres, with_denoising
from zoo.detection.deformable_transformer import (
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    LayerStack,
    flatten_levels,
    init_transformer,
)
from zoo.detection.denoising import denoising
from zoo.detection.layers import MLP, InputProjection, classifier_bias, start_at_reference
from zoo.detection.positions import SinePositions, box_sines
from zoo.layers.token_linear import TokenLinear


class DABDeformableDecoder(LayerStack):
    """Deformable decoder layers around boxes.

    Args:
        layers: the layers.
        d_model: channels C.
    """

    def __init__(self, layers: Sequence[nn.Module], d_model: int):
        super().__init__(layers)
        self.query_scale = MLP(d_model, d_model, d_model, 2)
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)

    def forward(
        self,
        tgt: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        valid_ratios: Tensor,
        padding: Tensor,
        box_heads: Sequence[nn.Module],
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All layers' outputs ``[layers, B, Q, C]`` and the references after each ``[layers, B, Q, 4]``."""
        scale = torch.cat([valid_ratios, valid_ratios], -1)[:, None]  # [B, 1, L, 4]
        hidden, references = [], []
        for i, layer in enumerate(self.layers):
            scaled = reference[:, :, None] * scale
            query_pos = self.ref_point_head(box_sines(scaled[:, :, 0], tgt.shape[-1] // 2))
            if i > 0:
                query_pos = query_pos * self.query_scale(tgt)
            tgt = layer(tgt, query_pos, scaled, memory, shapes, padding, attn_mask)
            reference = (box_heads[i](tgt) + inverse_sigmoid(reference, EPS)).sigmoid().detach()
            hidden.append(tgt)
            references.append(reference)
        return torch.stack(hidden), torch.stack(references)


class DABDeformableTransformer(nn.Module):
    """Encoder and decoder.

    Args:
        d_model: channels C.
        nhead: attention heads.
        num_encoder_layers, num_decoder_layers: depth.
        dim_feedforward: hidden channels of the feed-forward branches.
        dropout: of all branches.
        activation: name of the activation.
        num_feature_levels: levels L.
        dec_n_points, enc_n_points: sampling points a head and level.
    """

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "relu",
        num_feature_levels: int = 4,
        dec_n_points: int = 4,
        enc_n_points: int = 4,
    ):
        super().__init__()
        self.d_model = d_model
        common = (d_model, dim_feedforward, dropout, activation, num_feature_levels, nhead)
        self.encoder = DeformableEncoder(
            [DeformableEncoderLayer(*common, enc_n_points) for _ in range(num_encoder_layers)]
        )
        self.decoder = DABDeformableDecoder(
            [DeformableDecoderLayer(*common, dec_n_points) for _ in range(num_decoder_layers)], d_model
        )
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, d_model))
        init_transformer(self)
        nn.init.normal_(self.level_embed)


class DABDeformableDETR(nn.Module):
    """From feature maps to classes and boxes.

    Args:
        channels: channels of the backbone's maps.
        num_classes: outputs of the classifier (with COCO's sparse ids 91).
        num_queries: boxes (before patterns).
        num_feature_levels: levels; those beyond the backbone's maps are made from the last one.
        num_patterns: every box is asked for that many times, with contents of its own; 0 for once.
        random_refpoints_xy: queries start anywhere in the image and the centres they start at stay.
        dn_groups: groups of denoising queries in training (DN-DETR), 0 for none; None for a model without the
            embedding that they need (DAB-DETR).
        dn_label_noise_scale, dn_box_noise_scale: see :func:`zoo.detection.denoising.denoising`.
        aux_loss: give the predictions of every layer.
        transformer: further arguments of :class:`DABDeformableTransformer`.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": DABDeformableTransformer}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.dn_criterion.DNCriterion",
        matcher=dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, eps=1e-6),
        weights=dict(loss_ce=1.0, loss_bbox=5.0, loss_giou=2.0),
    )
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.postprocess.best_of_pairs", count=300)

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 91,
        num_queries: int = 300,
        num_feature_levels: int = 4,
        num_patterns: int = 0,
        random_refpoints_xy: bool = False,
        dn_groups: int | None = None,
        dn_label_noise_scale: float = 0.2,
        dn_box_noise_scale: float = 0.4,
        aux_loss: bool = True,
        transformer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.num_classes, self.num_queries, self.num_patterns = num_classes, num_queries, num_patterns
        self.aux_loss = aux_loss
        self.transformer = DABDeformableTransformer(num_feature_levels=num_feature_levels, **(transformer or {}))
        dim, layers = self.transformer.d_model, len(self.transformer.decoder.layers)
        self.position = SinePositions(dim // 2, half_pixel=True)
        self.input_proj = InputProjection(channels, dim, num_feature_levels)
        self.tgt_embed = nn.Embedding(num_queries, dim if dn_groups is None else dim - 1)
        self.refpoint_embed = nn.Embedding(num_queries, 4)
        self.patterns_embed = nn.Embedding(num_patterns, dim) if num_patterns > 0 else None
        if random_refpoints_xy:
            scatter_centres(self.refpoint_embed)
        classify, locate = TokenLinear(dim, num_classes), MLP(dim, dim, 4, 3)
        nn.init.constant_(classify.bias, classifier_bias())
        start_at_reference(locate)
        self.class_embed = nn.ModuleList(copy.deepcopy(classify) for _ in range(layers))
        heads = [copy.deepcopy(locate) for _ in range(layers)]
        start_at_reference(heads[0], -2.0)
        self.bbox_embed = nn.ModuleList(heads)
        self.dn_groups = dn_groups
        self.dn_label_noise_scale, self.dn_box_noise_scale = dn_label_noise_scale, dn_box_noise_scale
        self.label_enc = None if dn_groups is None else nn.Embedding(num_classes + 1, dim - 1)

    def _queries(self, batch: int) -> tuple[Tensor, Tensor]:
        """Contents ``[B, Q, C]`` and logits of the boxes ``[B, Q, 4]`` of the matching queries, patterns outermost."""
        times = max(1, self.num_patterns)
        content = self.tgt_embed.weight
        if self.label_enc is not None:
            content = nn.functional.pad(content, (0, 1))
        content = content.repeat(times, 1)
        if self.patterns_embed is not None:
            content = content + self.patterns_embed.weight.repeat_interleave(self.num_queries, 0)
        boxes = self.refpoint_embed.weight.repeat(times, 1)
        return content.expand(batch, -1, -1), boxes.expand(batch, -1, -1)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict; arguments and result as :meth:`zoo.detection.dab_detr.DABDETR.forward`, over all maps.

        ``init_reference [B, Q, 4]`` and ``inter_references [layers, B, Q, 4]`` are the references before and after
        the layers.
        """
        levels, masks = self.input_proj(features, mask)
        positions = [self.position(m).to(x.dtype) for m, x in zip(masks, levels)]
        tokens, pos, padding, shapes, ratios = flatten_levels(levels, masks, positions, self.transformer.level_embed)
        memory = self.transformer.encoder(tokens, pos, shapes, ratios, padding)
        tgt, boxes = self._queries(len(tokens))
        queries = None
        if self.training and self.dn_groups and self.label_enc is not None and targets is not None:
            queries = denoising(
                targets,
                self.label_enc,
                tgt.shape[1],
                self.num_classes,
                self.dn_groups,
                self.dn_label_noise_scale,
                self.dn_box_noise_scale,
            )
            tgt, boxes = torch.cat([queries.content, tgt], dim=1), torch.cat([queries.boxes, boxes], dim=1)
        first = boxes.sigmoid()
        mask_QQ = None if queries is None else queries.attn_mask
        hidden, references = self.transformer.decoder(
            tgt, first, memory, shapes, ratios, padding, self.bbox_embed, mask_QQ
        )
        before = torch.cat([first[None], references[:-1]])
        logits = torch.stack([head(h) for head, h in zip(self.class_embed, hidden)])
        delta = torch.stack([head(h) for head, h in zip(self.bbox_embed, hidden)])
        located = (delta + inverse_sigmoid(before, EPS)).sigmoid()
        out: dict[str, Any] = {
            "memory": memory,
            "hs": hidden,
            "init_reference": first,
            "inter_references": references,
            "masks": masks,
        }
        return out | with_denoising(logits, located, queries, self.aux_loss)
