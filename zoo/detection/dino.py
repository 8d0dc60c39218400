"""DINO: contrastive denoising, mixed query selection, look forward twice.

DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection (arXiv:2203.03605). Authors' code:
github.com/IDEA-Research/DINO (Apache-2.0); this follows the paper and recorded results.

What one might not expect: references move by the head's answer to the layer's output as it is, predicted boxes by its
answer to the normalised output; the reference that predictions start from is not detached, the next layer's is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
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
from zoo.detection.denoising import Denoising, contrastive_denoising
from zoo.detection.layers import MLP, InputProjection, classifier_bias, start_at_reference
from zoo.detection.positions import SinePositions, box_sines
from zoo.layers.token_linear import TokenLinear

#: of inverse sigmoids in this family
EPS = 1e-3


class DINODecoder(LayerStack):
    """Decoder layers, their common norm, and the perceptron that makes positions of boxes.

    Args:
        layers: the layers.
        d_model: channels C.
    """

    def __init__(self, layers: Sequence[nn.Module], d_model: int):
        super().__init__(layers)
        self.norm = nn.LayerNorm(d_model)
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
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Decode.

        Args:
            tgt: contents of the queries ``[B, Q, C]``.
            reference: their boxes in 0 ... 1, ``[B, Q, 4]``.
            memory: ``[B, S, C]``.
            shapes: (H, W) of each level.
            valid_ratios: ``[B, L, 2]``.
            padding: ``[B, S]``, true in the padding.
            box_heads: one a layer.
            attn_mask: ``[Q, Q]``, true where a query must not see another.

        Returns:
            The normalised output of each layer, and the references: the first, then one after each layer.
        """
        scale = torch.cat([valid_ratios, valid_ratios], -1)[:, None]  # [B, 1, L, 4]
        hidden, references = [], [reference]
        for layer, head in zip(self.layers, box_heads):
            scaled = reference[:, :, None] * scale
            query_pos = self.ref_point_head(box_sines(scaled[:, :, 0], tgt.shape[-1] // 2))
            tgt = layer(tgt, query_pos, scaled, memory, shapes, padding, attn_mask)
            moved = (head(tgt) + inverse_sigmoid(reference, EPS)).sigmoid()
            reference = moved.detach()
            references.append(moved)
            hidden.append(self.norm(tgt))
        return hidden, references


class DINOTransformer(nn.Module):
    """Encoder, query selection, decoder.

    Args:
        d_model: channels C.
        nhead: attention heads.
        num_queries: matching queries.
        num_encoder_layers, num_decoder_layers: depth.
        dim_feedforward: hidden channels of the feed-forward branches.
        dropout: of all branches.
        activation: name of the activation.
        num_feature_levels: levels L.
        enc_n_points, dec_n_points: sampling points a head and level.
        two_stage_type: "standard" (queries start at the encoder's best boxes) or "no" (at learned ones).
        embed_init_tgt: contents of the queries are learned rather than the encoder's tokens.
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
        activation: str = "relu",
        num_feature_levels: int = 4,
        enc_n_points: int = 4,
        dec_n_points: int = 4,
        two_stage_type: str = "standard",
        embed_init_tgt: bool = True,
    ):
        super().__init__()
        if two_stage_type not in ("standard", "no"):
            raise ValueError(f"two_stage_type={two_stage_type!r}: accepted are 'standard' and 'no'")
        self.d_model, self.num_queries, self.two_stage = d_model, num_queries, two_stage_type == "standard"
        common = (d_model, dim_feedforward, dropout, activation, num_feature_levels, nhead)
        self.encoder = DeformableEncoder(
            [DeformableEncoderLayer(*common, enc_n_points) for _ in range(num_encoder_layers)]
        )
        self.decoder = DINODecoder(
            [DeformableDecoderLayer(*common, dec_n_points) for _ in range(num_decoder_layers)], d_model
        )
        # With one level there is nothing to tell apart.
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, d_model)) if num_feature_levels > 1 else None
        self.tgt_embed = nn.Embedding(num_queries, d_model) if embed_init_tgt or not self.two_stage else None
        self.refpoint_embed = None
        if self.two_stage:
            self.enc_output = TokenLinear(d_model, d_model)
            self.enc_output_norm = nn.LayerNorm(d_model)
        else:
            self.refpoint_embed = nn.Embedding(num_queries, 4)
        init_transformer(self)
        if self.level_embed is not None:
            nn.init.normal_(self.level_embed)
        if self.tgt_embed is not None:
            nn.init.normal_(self.tgt_embed.weight)

    def forward(
        self,
        levels: Sequence[Tensor],
        masks: Sequence[Tensor],
        positions: Sequence[Tensor],
        box_heads: Sequence[nn.Module],
        first_class_head: nn.Module | None,
        first_box_head: nn.Module | None,
        denoising: Denoising | None,
    ) -> dict[str, Any]:
        """Encode, select, decode.

        Args:
            levels, masks, positions: each ``[B, C, H, W]``, ``[B, H, W]`` (true in the padding), ``[B, C, H, W]``.
            box_heads: one a decoder layer.
            first_class_head, first_box_head: of the first stage.
            denoising: queries that go before the matching ones.

        Returns:
            ``memory``, ``hs`` and ``references`` (lists), ``init_box_proposal [B, Q, 4]``, and with a first stage
            ``first_tokens [B, Q, C]`` and ``first_boxes [B, Q, 4]`` (in 0 ... 1) with gradient.
        """
        tokens, pos, padding, shapes, ratios = flatten_levels(levels, masks, positions, self.level_embed)
        memory = self.encoder(tokens, pos, shapes, ratios, padding)
        out: dict[str, Any] = {"memory": memory, "shapes": shapes, "valid_ratios": ratios, "padding": padding}
        B = memory.shape[0]
        learned = None if self.tgt_embed is None else self.tgt_embed.weight.expand(B, -1, -1)
        if self.two_stage:
            assert first_class_head is not None
            assert first_box_head is not None
            kept, proposals = encoder_proposals(memory, padding, shapes)
            kept = self.enc_output_norm(self.enc_output(kept))
            best = top_proposals(first_class_head(kept).amax(-1), self.num_queries)
            boxes = gather_tokens(first_box_head(kept) + proposals, best)
            selected = gather_tokens(kept, best)
            out |= {"first_tokens": selected, "first_boxes": boxes.sigmoid()}
            out["init_box_proposal"] = gather_tokens(proposals, best).sigmoid()
            reference = boxes.detach()
            tgt = selected.detach() if learned is None else learned
        else:
            assert self.refpoint_embed is not None
            assert learned is not None
            reference, tgt = self.refpoint_embed.weight.expand(B, -1, -1), learned
            out["init_box_proposal"] = reference.sigmoid()
        attn_mask = None
        if denoising is not None:
            tgt = torch.cat([denoising.content.to(tgt.dtype), tgt], dim=1)
            reference = torch.cat([denoising.boxes.to(reference.dtype), reference], dim=1)
            attn_mask = denoising.attn_mask
        out["hs"], out["references"] = self.decoder(
            tgt, reference.sigmoid(), memory, shapes, ratios, padding, box_heads, attn_mask
        )
        return out


class DINO(nn.Module):
    """From feature maps to classes and boxes.

    Args:
        channels: channels of the backbone's maps.
        num_classes: outputs of the classifier (with COCO's sparse ids 91).
        num_queries: boxes that are predicted.
        num_feature_levels: levels; those beyond the backbone's maps are made from the last one.
        temperature: of the sines of the maps.
        share_class_head, share_box_head: one head for all decoder layers.
        first_class_head_shared, first_box_head_shared: the first stage has the decoder's head.
        dn_number: see :func:`zoo.detection.denoising.contrastive_denoising`; 0 for no denoising.
        dn_label_noise_ratio, dn_box_noise_scale: see there.
        dn_always_share: as ``always_share`` there.
        dn_labelbook_size: rows of the embedding of classes less one; ``num_classes`` unless given.
        aux_loss: give the predictions of every layer.
        transformer: further arguments of :class:`DINOTransformer`.

    Raises:
        ValueError: sharing with a first stage that needs heads of its own, too small a ``dn_labelbook_size``.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": DINOTransformer}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.dino_criterion.DINOCriterion",
        matcher=dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, eps=1e-6),
        weights=dict(loss_ce=1.0, loss_bbox=5.0, loss_giou=2.0),
    )
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.postprocess.best_of_pairs", count=300)

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 91,
        num_queries: int = 900,
        num_feature_levels: int = 4,
        temperature: float | tuple[float, float] = 20.0,
        share_class_head: bool = True,
        share_box_head: bool = True,
        first_class_head_shared: bool = False,
        first_box_head_shared: bool = False,
        dn_number: int = 100,
        dn_label_noise_ratio: float = 0.5,
        dn_box_noise_scale: float = 0.4,
        dn_always_share: bool = False,
        dn_labelbook_size: int | None = None,
        aux_loss: bool = True,
        transformer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        book = num_classes if dn_labelbook_size is None else dn_labelbook_size
        if book < num_classes - 1:
            raise ValueError(f"dn_labelbook_size={book}: accepted are numbers from num_classes - 1 = {num_classes - 1}")
        if (first_class_head_shared and not share_class_head) or (first_box_head_shared and not share_box_head):
            raise ValueError("a first stage with the decoder's heads needs decoder layers that share one head")
        self.num_classes, self.num_queries, self.aux_loss = num_classes, num_queries, aux_loss
        self.dn_number, self.dn_always_share = dn_number, dn_always_share
        self.dn_label_noise_ratio, self.dn_box_noise_scale = dn_label_noise_ratio, dn_box_noise_scale
        self.transformer = DINOTransformer(
            num_queries=num_queries, num_feature_levels=num_feature_levels, **(transformer or {})
        )
        dim, layers = self.transformer.d_model, len(self.transformer.decoder.layers)
        self.position = SinePositions(dim // 2, temperature)
        self.input_proj = InputProjection(channels, dim, num_feature_levels)
        self.label_enc = nn.Embedding(book + 1, dim)
        classify, locate = TokenLinear(dim, num_classes), MLP(dim, dim, 4, 3)
        nn.init.constant_(classify.bias, classifier_bias())
        start_at_reference(locate)
        self.class_embed = nn.ModuleList(
            [classify] * layers if share_class_head else [copy.deepcopy(classify) for _ in range(layers)]
        )
        self.bbox_embed = nn.ModuleList(
            [locate] * layers if share_box_head else [copy.deepcopy(locate) for _ in range(layers)]
        )
        self.first_class_embed = self.first_bbox_embed = None
        if self.transformer.two_stage:
            self.first_class_embed = classify if first_class_head_shared else copy.deepcopy(classify)
            self.first_bbox_embed = locate if first_box_head_shared else copy.deepcopy(locate)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``.
            mask: padding of the images, ``[B, H, W]``, true where there is no image.
            targets: for each image ``labels`` and ``boxes``, read in training for the denoising queries.

        Returns:
            ``pred_logits [B, Q, classes]``, ``pred_boxes [B, Q, 4]``, ``aux_outputs``, ``interm_outputs`` (of the first
            stage), in training ``dn_outputs`` (the same for denoising queries, with ``groups`` and ``size``); and the
            transformer's intermediates.
        """
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
                always_share=self.dn_always_share,
            )
        out = self.transformer(
            levels, masks, positions, self.bbox_embed, self.first_class_embed, self.first_bbox_embed, denoising
        )
        predictions = self.predictions(out["hs"], out["references"])
        predictions, restored = without_denoising(predictions, denoising)
        out |= predictions[-1] | {"masks": masks}
        if self.aux_loss:
            out["aux_outputs"] = predictions[:-1]
        if self.first_class_embed is not None:
            logits = self.first_class_embed(out["first_tokens"])
            out["interm_outputs"] = {"pred_logits": logits, "pred_boxes": out["first_boxes"]}
        if restored is not None:
            out |= {"dn_outputs": restored, "denoising": denoising}
        elif denoising is not None:
            # No object in the batch: the embedding still takes part, so that every process reduces the same gradients.
            out["pred_logits"] = out["pred_logits"] + 0.0 * self.label_enc.weight.sum()
        return out

    def predictions(self, hidden: Sequence[Tensor], references: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Classes and boxes of each layer, from its normalised output and the reference before it."""
        return layer_predictions(self.class_embed, self.bbox_embed, hidden, references)


def layer_predictions(
    class_heads: Iterable[nn.Module],
    box_heads: Iterable[nn.Module],
    hidden: Sequence[Tensor],
    references: Sequence[Tensor],
) -> list[dict[str, Tensor]]:
    """Classes and boxes of each layer, from its heads, its normalised output and the reference before it."""
    found = []
    for classify, locate, h, reference in zip(class_heads, box_heads, hidden, references):
        boxes = (locate(h) + inverse_sigmoid(reference, EPS)).sigmoid()
        found.append({"pred_logits": classify(h), "pred_boxes": boxes})
    return found


def without_denoising(
    predictions: Sequence[dict[str, Tensor]], denoising: Denoising | None
) -> tuple[list[dict[str, Tensor]], dict[str, Any] | None]:
    """Predictions of the matching queries, layer by layer, and those of the denoising queries before them.

    The latter are None where there are no such queries, else the last layer's with ``aux_outputs`` (those of the
    others), ``groups`` and ``size``.
    """
    P = 0 if denoising is None else denoising.size
    rest = [{k: v[:, P:] for k, v in p.items()} for p in predictions]
    if denoising is None or P == 0:
        return rest, None
    *first, last = ({k: v[:, :P] for k, v in p.items()} for p in predictions)
    return rest, {**last, "aux_outputs": first, "groups": denoising.groups, "size": P}
