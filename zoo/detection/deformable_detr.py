"""Deformable DETR: single stage, with iterative box refinement, and two-stage.

Deformable DETR: Deformable Transformers for End-to-End Object Detection (arXiv:2010.04159). Authors' code:
github.com/fundamentalvision/Deformable-DETR (Apache-2.0); this follows the paper and recorded results.

What the authors' code does and one might not expect: two-stage selection looks at class 0 only; boxes of a layer are
added to the reference *before* that layer; without refinement all layers share one head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.boxes import inverse_sigmoid
from zoo.detection.deformable_transformer import (
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    LayerStack,
    encoder_proposals,
    flatten_levels,
    gather_tokens,
    init_transformer,
    top_proposals,
)
from zoo.detection.layers import MLP, InputProjection, classifier_bias, shared, start_at_reference
from zoo.detection.positions import build_positions, coordinate_sines
from zoo.layers.token_linear import TokenLinear


class DeformableTransformer(nn.Module):
    """Encoder, decoder, and what starts the queries.

    Args:
        d_model: channels C.
        nhead: attention heads.
        num_encoder_layers, num_decoder_layers: depth.
        dim_feedforward: hidden channels of the feed-forward branches.
        dropout: of all branches.
        activation: name of the activation.
        num_feature_levels: levels L.
        dec_n_points, enc_n_points: sampling points a head and level.
        two_stage: queries start at the encoder's best proposals.
        two_stage_num_proposals: how many.
        mixed_selection: of the proposals, queries take the position only; their contents are learned.
        look_forward_twice: boxes of a layer also teach the layer before it, whose references they start from.
    """

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        num_feature_levels: int = 4,
        dec_n_points: int = 4,
        enc_n_points: int = 4,
        two_stage: bool = False,
        two_stage_num_proposals: int = 300,
        mixed_selection: bool = False,
        look_forward_twice: bool = False,
    ):
        super().__init__()
        self.d_model = d_model
        self.mixed_selection, self.look_forward_twice = mixed_selection, look_forward_twice
        self.two_stage = two_stage
        self.two_stage_num_proposals = two_stage_num_proposals
        common = (d_model, dim_feedforward, dropout, activation, num_feature_levels, nhead)
        self.encoder = DeformableEncoder(
            [DeformableEncoderLayer(*common, enc_n_points) for _ in range(num_encoder_layers)]
        )
        self.decoder = LayerStack([DeformableDecoderLayer(*common, dec_n_points) for _ in range(num_decoder_layers)])
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, d_model))
        if two_stage:
            self.enc_output = TokenLinear(d_model, d_model)
            self.enc_output_norm = nn.LayerNorm(d_model)
            self.pos_trans = TokenLinear(d_model * 2, d_model * 2)
            self.pos_trans_norm = nn.LayerNorm(d_model * 2)
        else:
            self.reference_points = TokenLinear(d_model, 2)
        init_transformer(self)
        if not two_stage:
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def forward(
        self,
        levels: Sequence[Tensor],
        masks: Sequence[Tensor],
        positions: Sequence[Tensor],
        query_embed: Tensor | None,
        class_heads: nn.ModuleList,
        box_heads: nn.ModuleList,
        refine: bool,
    ) -> dict[str, Any]:
        """Encode the levels and decode the queries.

        Args:
            levels: each ``[B, C, H, W]``.
            masks: each ``[B, H, W]``, true in the padding.
            positions: each ``[B, C, H, W]``.
            query_embed: ``[Q, 2C]`` position and content of the queries, with mixed selection ``[Q, C]`` content; None
                in two stages without it.
            class_heads, box_heads: one a decoder layer, in two stages another one for the proposals.
            refine: move the references from layer to layer.

        Returns:
            ``memory [B, S, C]``, ``padding [B, S]``, ``hs [layers, B, Q, C]``, ``init_reference [B, Q, 2 or 4]``,
            ``inter_references [layers, B, Q, 2 or 4]``, in two stages ``enc_logits [B, S, classes]`` and ``enc_boxes
            [B, S, 4]`` (logits).
        """
        tokens, pos, padding, shapes, ratios = flatten_levels(levels, masks, positions, self.level_embed)
        memory = self.encoder(tokens, pos, shapes, ratios, padding)
        out: dict[str, Any] = {"memory": memory, "shapes": shapes, "valid_ratios": ratios, "padding": padding}
        B = memory.shape[0]
        if self.two_stage:
            kept, proposals = encoder_proposals(memory, padding, shapes)
            kept = self.enc_output_norm(self.enc_output(kept))
            logits = class_heads[-1](kept)
            boxes = box_heads[-1](kept) + proposals
            best = top_proposals(logits[..., 0], self.two_stage_num_proposals)
            selected = gather_tokens(boxes, best).detach()  # [B, Q, 4] logits
            reference = selected.sigmoid()
            sines = coordinate_sines(reference * (2 * math.pi), self.d_model // 2)
            query_pos, tgt = self.pos_trans_norm(self.pos_trans(sines)).chunk(2, dim=-1)
            if self.mixed_selection:
                assert query_embed is not None
                tgt = query_embed.expand(B, -1, -1)
            out |= {"enc_logits": logits, "enc_boxes": boxes}
        else:
            assert query_embed is not None
            query_pos, tgt = (x.expand(B, -1, -1) for x in query_embed.chunk(2, dim=-1))
            reference = self.reference_points(query_pos).sigmoid()
        out["init_reference"] = reference
        hidden, references = self.decode(
            tgt, query_pos, reference, memory, shapes, ratios, padding, box_heads if refine else None
        )
        return out | {"hs": torch.stack(hidden), "inter_references": torch.stack(references)}

    def decode(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        ratios: Tensor,
        padding: Tensor,
        box_heads: nn.ModuleList | None,
        attn_mask: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the decoder.

        Args:
            tgt, query_pos: contents and positions of the queries, each ``[B, Q, C]``.
            reference: their points or boxes in 0 ... 1, ``[B, Q, 2 or 4]``.
            memory: ``[B, S, C]``.
            shapes: (H, W) of each level.
            ratios: valid share of each level, ``[B, L, 2]``.
            padding: ``[B, S]``, true in the padding.
            box_heads: one a layer, which move the references; None to leave them.
            attn_mask: ``[Q, Q]`` or ``[B * heads, Q, Q]``, true where a query must not see another.

        Returns:
            The output of each layer, and the references after it.
        """
        hidden, references = [], []
        for i, layer in enumerate(self.decoder.layers):
            scale = torch.cat([ratios, ratios], -1) if reference.shape[-1] == 4 else ratios
            tgt = layer(tgt, query_pos, reference[:, :, None] * scale[:, None], memory, shapes, padding, attn_mask)
            moved = reference
            if box_heads is not None:
                delta = box_heads[i](tgt)
                start = inverse_sigmoid(reference)
                if reference.shape[-1] == 4:
                    moved = (delta + start).sigmoid()
                else:
                    moved = torch.cat([delta[..., :2] + start, delta[..., 2:]], dim=-1).sigmoid()
                reference = moved.detach()
            hidden.append(tgt)
            references.append(moved if self.look_forward_twice else reference)
        return hidden, references


class DeformableDETR(nn.Module):
    """From feature maps to classes and boxes.

    Args:
        channels: channels of the backbone's maps.
        num_classes: outputs of the classifier (with COCO's sparse ids 91).
        num_queries: boxes that are predicted.
        num_feature_levels: levels; those beyond the backbone's maps are made from the last one.
        with_box_refine: move the references from layer to layer, with a head for each.
        two_stage: queries start at the encoder's best proposals (needs ``with_box_refine``).
        aux_loss: give the predictions of every layer.
        position: "sine" or "learned".
        transformer: further arguments of :class:`DeformableTransformer`.

    Raises:
        ValueError: two stages without box refinement.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": DeformableTransformer}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.criterion.SetCriterion",
        matcher=dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
        weights=dict(loss_ce=2.0, loss_bbox=5.0, loss_giou=2.0),
    )
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.postprocess.best_of_pairs", count=100)

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 91,
        num_queries: int = 300,
        num_feature_levels: int = 4,
        with_box_refine: bool = False,
        two_stage: bool = False,
        aux_loss: bool = True,
        position: str = "sine",
        transformer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if two_stage and not with_box_refine:
            raise ValueError("two_stage=True needs with_box_refine=True: proposals are boxes, which refinement moves")
        self.num_classes, self.num_queries = num_classes, num_queries
        self.with_box_refine, self.two_stage, self.aux_loss = with_box_refine, two_stage, aux_loss
        self.transformer = DeformableTransformer(
            num_feature_levels=num_feature_levels,
            two_stage=two_stage,
            two_stage_num_proposals=num_queries,
            **(transformer or {}),
        )
        dim = self.transformer.d_model
        options = {"half_pixel": True} if position == "sine" else {}
        self.position = build_positions(position, dim, **options)
        self.input_proj = InputProjection(channels, dim, num_feature_levels)
        self.query_embed = None
        if not two_stage or self.transformer.mixed_selection:
            self.query_embed = nn.Embedding(num_queries, dim if two_stage else dim * 2)
        self._make_heads(dim, len(self.transformer.decoder.layers))

    def _make_heads(self, dim: int, layers: int) -> None:
        classify, locate = TokenLinear(dim, self.num_classes), MLP(dim, dim, 4, 3)
        nn.init.constant_(classify.bias, classifier_bias())
        start_at_reference(locate)
        count = layers + self.two_stage
        if not self.with_box_refine:
            # Without refinement the head alone says how large a box is; boxes start small.
            start_at_reference(locate, -2.0)
            self.class_embed, self.bbox_embed = shared(classify, count), shared(locate, count)
            return
        self.class_embed = nn.ModuleList(copy.deepcopy(classify) for _ in range(count))
        heads = [copy.deepcopy(locate) for _ in range(count)]
        if not self.two_stage:
            start_at_reference(heads[0], -2.0)
        self.bbox_embed = nn.ModuleList(heads)

    def make_levels(self, features: Sequence[Tensor], mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The backbone's maps and the images' padding to the transformer's levels and their padding."""
        return self.input_proj(features, mask)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``.
            mask: padding of the images, ``[B, H, W]``, true where there is no image.
            targets: not used.

        Returns:
            ``pred_logits [B, Q, classes]``, ``pred_boxes [B, Q, 4]`` (cx, cy, w, h in 0 ... 1), ``aux_outputs`` (the
            same of all layers but the last), in two stages ``enc_outputs``; and the transformer's intermediates.
        """
        levels, masks = self.make_levels(features, mask)
        positions = [self.position(m).to(x.dtype) for m, x in zip(masks, levels)]
        query_embed = None if self.query_embed is None else self.query_embed.weight
        out = self.transformer(
            levels, masks, positions, query_embed, self.class_embed, self.bbox_embed, self.with_box_refine
        )
        predictions = self.predictions(out["hs"], out["init_reference"], out["inter_references"])
        out |= predictions[-1] | {"masks": masks, "levels": levels}
        if self.aux_loss:
            out["aux_outputs"] = predictions[:-1]
        if self.two_stage:
            out["enc_outputs"] = {"pred_logits": out.pop("enc_logits"), "pred_boxes": out.pop("enc_boxes").sigmoid()}
        return out

    def predictions(
        self, hidden: Sequence[Tensor], reference: Tensor, references: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """Classes and boxes of each layer, from its output, the first reference and the reference after each layer."""
        found = []
        for i, h in enumerate(hidden):
            start = inverse_sigmoid(reference if i == 0 else references[i - 1])
            delta = self.bbox_embed[i](h)
            if start.shape[-1] == 2:
                start = torch.cat([start, torch.zeros_like(start)], dim=-1)
            found.append({"pred_logits": self.class_embed[i](h), "pred_boxes": (delta + start).sigmoid()})
        return found
