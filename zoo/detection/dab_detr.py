"""DAB-DETR: queries are boxes that every layer moves; DN-DETR: the same with denoising queries.

DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR (arXiv:2201.12329); DN-DETR: Accelerate DETR Training by
Introducing Query DeNoising (arXiv:2203.01305). Authors' code: github.com/IDEA-Research/DAB-DETR and DN-DETR
(Apache-2.0); this follows the papers and recorded results.

What one might not expect: references move by the head's answer to a layer's output as it is, predicted boxes by its
answer to the normalised output; the encoder scales positions in every layer, the first included.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.boxes import inverse_sigmoid
from zoo.detection.conditional_transformer import ConditionalDecoderLayer
from zoo.detection.deformable_transformer import LayerStack, init_transformer
from zoo.detection.denoising import Denoising, denoising
from zoo.detection.detr import EncoderLayer, as_tokens, layer_predictions
from zoo.detection.images import mask_at
from zoo.detection.layers import MLP, classifier_bias, start_at_reference
from zoo.detection.positions import SinePositions, box_sines
from zoo.layers.token_linear import TokenLinear

#: of inverse sigmoids in this family
EPS = 1e-3
QUERY_SCALES = ("cond_elewise", "cond_scalar", "fix_elewise")


class DABEncoder(LayerStack):
    """Encoder layers; the content scales the positions before each.

    Args:
        layers: the layers.
        d_model: channels C.
        normalize_before: a norm at the end (the layers are post-norm all the same, as the authors').
    """

    def __init__(self, layers: Sequence[nn.Module], d_model: int, normalize_before: bool = False):
        super().__init__(layers)
        self.query_scale = MLP(d_model, d_model, d_model, 2)
        self.norm = nn.LayerNorm(d_model) if normalize_before else None

    def forward(self, src: Tensor, padding: Tensor | None, pos: Tensor) -> Tensor:
        """Tokens ``[B, S, C]`` to the memory of the same shape."""
        for layer in self.layers:
            src = layer(src, padding, pos * self.query_scale(src))
        return src if self.norm is None else self.norm(src)


class DABDecoder(LayerStack):
    """Decoder layers around boxes.

    Args:
        layers: the layers.
        d_model: channels C.
        query_scale_type: how the sines of a box are scaled: "cond_elewise" (by channel, from the content),
            "cond_scalar" (by one number, from the content) or "fix_elewise" (by learned channels for each layer).
        modulate_hw_attn: the sines of x and y are also scaled by a learned width and height over the box's.

    Raises:
        ValueError: an unknown ``query_scale_type``.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        d_model: int,
        query_scale_type: str = "cond_elewise",
        modulate_hw_attn: bool = True,
    ):
        super().__init__(layers)
        if query_scale_type not in QUERY_SCALES:
            raise ValueError(f"query_scale_type={query_scale_type!r}: accepted are {', '.join(QUERY_SCALES)}")
        self.norm = nn.LayerNorm(d_model)
        self.query_scale: nn.Embedding | MLP
        if query_scale_type == "fix_elewise":
            self.query_scale = nn.Embedding(len(layers), d_model)
        else:
            self.query_scale = MLP(d_model, d_model, d_model if query_scale_type == "cond_elewise" else 1, 2)
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)
        self.ref_anchor_head = MLP(d_model, d_model, 2, 2) if modulate_hw_attn else None

    def forward(
        self,
        tgt: Tensor,
        reference: Tensor,
        memory: Tensor,
        padding: Tensor | None,
        pos: Tensor,
        box_heads: Sequence[nn.Module],
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            tgt: contents of the queries ``[B, Q, C]``.
            reference: their boxes in 0 ... 1, ``[B, Q, 4]``.
            memory, padding, pos: ``[B, S, C]``, ``[B, S]``, ``[B, S, C]``.
            box_heads: one a layer.
            attn_mask: ``[Q, Q]``, true where a query must not see another.

        Returns:
            The normalised outputs ``[layers, B, Q, C]`` and the references before each layer ``[layers, B, Q, 4]``.
        """
        dim = tgt.shape[-1]
        hidden, references = [], [reference]
        for i, layer in enumerate(self.layers):
            sines = box_sines(reference, dim // 2)  # [B, Q, 2C]
            query_pos, sine = self.ref_point_head(sines), sines[..., :dim]
            if isinstance(self.query_scale, nn.Embedding):
                sine = sine * self.query_scale.weight[i]
            elif i > 0:
                sine = sine * self.query_scale(tgt)
            if self.ref_anchor_head is not None:
                size = self.ref_anchor_head(tgt).sigmoid() / reference[..., 2:]  # [B, Q, 2] widths, heights
                # The first half of the sines is y's.
                sine = torch.cat([sine[..., : dim // 2] * size[..., 1:], sine[..., dim // 2 :] * size[..., :1]], dim=-1)
            tgt = layer(tgt, memory, padding, pos, query_pos, sine, attn_mask)
            hidden.append(self.norm(tgt))
            if i < len(self.layers) - 1:
                moved = (box_heads[i](tgt) + inverse_sigmoid(reference, EPS)).sigmoid()
                references.append(moved)
                reference = moved.detach()
        return torch.stack(hidden), torch.stack(references)


class DABTransformer(nn.Module):
    """Encoder and decoder.

    Args:
        d_model: channels C.
        nhead: attention heads.
        num_encoder_layers, num_decoder_layers: depth.
        dim_feedforward: hidden channels of the feed-forward branches.
        dropout: of all branches and of the attentions' weights.
        activation: name of the activation.
        normalize_before: a norm at the end of the encoder.
        num_patterns: every box is asked for that many times, with contents of its own; 0 for once, with none.
        query_scale_type, modulate_hw_attn: see :class:`DABDecoder`.
        keep_query_pos: positions are added to the contents in every cross-attention, not only in the first.
    """

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "prelu",
        normalize_before: bool = False,
        num_patterns: int = 0,
        query_scale_type: str = "cond_elewise",
        modulate_hw_attn: bool = True,
        keep_query_pos: bool = False,
    ):
        super().__init__()
        self.d_model, self.num_patterns = d_model, num_patterns
        common = (d_model, nhead, dim_feedforward, dropout, activation)
        encoder = [EncoderLayer(*common) for _ in range(num_encoder_layers)]
        decoder = [
            ConditionalDecoderLayer(*common, positions_in_content=keep_query_pos or i == 0)
            for i in range(num_decoder_layers)
        ]
        self.encoder = DABEncoder(encoder, d_model, normalize_before)
        self.decoder = DABDecoder(decoder, d_model, query_scale_type, modulate_hw_attn)
        init_transformer(self)
        self.patterns = nn.Embedding(num_patterns, d_model) if num_patterns > 0 else None

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        pos: Tensor,
        tgt: Tensor,
        reference: Tensor,
        box_heads: Sequence[nn.Module],
        attn_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Map, padding, positions, contents and boxes of the queries to ``memory``, ``hs`` and ``references``."""
        tokens, pos, padding = as_tokens(x), as_tokens(pos), mask.flatten(1)
        memory = self.encoder(tokens, padding, pos)
        hidden, references = self.decoder(tgt, reference, memory, padding, pos, box_heads, attn_mask)
        return {"memory": memory, "hs": hidden, "references": references}


class DABDETR(nn.Module):
    """From feature maps to classes and boxes.

    Args:
        channels: channels of the backbone's maps; the last map is used.
        num_classes: outputs of the classifier (with COCO's sparse ids 91).
        num_queries: boxes (before patterns).
        temperature: of the sines of the map.
        box_head_each_layer: a head for each layer rather than one for all.
        random_refpoints_xy: queries start anywhere in the image and the centres they start at stay.
        dn_groups: groups of denoising queries in training (DN-DETR), 0 for none; None for a model without the
            embedding that they need (DAB-DETR).
        dn_label_noise_scale, dn_box_noise_scale: see :func:`zoo.detection.denoising.denoising`.
        aux_loss: give the predictions of every layer.
        transformer: arguments of :class:`DABTransformer`.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": DABTransformer}

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
        temperature: float | tuple[float, float] = 20.0,
        box_head_each_layer: bool = False,
        random_refpoints_xy: bool = False,
        dn_groups: int | None = None,
        dn_label_noise_scale: float = 0.2,
        dn_box_noise_scale: float = 0.4,
        aux_loss: bool = True,
        transformer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.num_classes, self.num_queries, self.aux_loss = num_classes, num_queries, aux_loss
        self.transformer = DABTransformer(**(transformer or {}))
        dim, layers = self.transformer.d_model, len(self.transformer.decoder.layers)
        self.position = SinePositions(dim // 2, temperature)
        self.input_proj = nn.Conv2d(channels[-1], dim, 1)
        self.refpoint_embed = nn.Embedding(num_queries, 4)
        self.class_embed = TokenLinear(dim, num_classes)
        head = MLP(dim, dim, 4, 3)
        nn.init.constant_(self.class_embed.bias, classifier_bias())
        start_at_reference(head)
        self.bbox_embed = nn.ModuleList(copy.deepcopy(head) for _ in range(layers)) if box_head_each_layer else head
        if random_refpoints_xy:
            scatter_centres(self.refpoint_embed)
        self.dn_groups = dn_groups
        self.dn_label_noise_scale, self.dn_box_noise_scale = dn_label_noise_scale, dn_box_noise_scale
        self.label_enc = None if dn_groups is None else nn.Embedding(num_classes + 1, dim - 1)

    def _heads(self) -> list[nn.Module]:
        layers = len(self.transformer.decoder.layers)
        return list(self.bbox_embed) if isinstance(self.bbox_embed, nn.ModuleList) else [self.bbox_embed] * layers

    def _queries(self, batch: int) -> tuple[Tensor, Tensor]:
        """Contents ``[B, Q, C]`` and logits of the boxes ``[B, Q, 4]`` of the matching queries, patterns outermost."""
        times, boxes = max(1, self.transformer.num_patterns), self.refpoint_embed.weight
        content = boxes.new_zeros(self.num_queries * times, self.transformer.d_model)
        if self.label_enc is not None:
            # The last class means "to be matched", and so does a last channel of 0.
            unknown = nn.functional.pad(self.label_enc.weight[self.num_classes], (0, 1))
            content = content + unknown
        if self.transformer.patterns is not None:
            content = content + self.transformer.patterns.weight.repeat_interleave(self.num_queries, 0)
        return content.expand(batch, -1, -1), boxes.repeat(times, 1).expand(batch, -1, -1)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``; the last one is used.
            mask: padding of the images, ``[B, H, W]``, true where there is no image.
            targets: for each image ``labels`` and ``boxes``, read in training for the denoising queries.

        Returns:
            ``pred_logits [B, Q, classes]``, ``pred_boxes [B, Q, 4]``, ``aux_outputs``, in training with denoising
            ``dn_outputs`` and ``denoising``; ``hs``, ``references``, ``memory``.
        """
        x = self.input_proj(features[-1])
        own = mask_at(mask, x.shape[-2:])
        tgt, boxes = self._queries(len(x))
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
        heads = self._heads()
        out: dict[str, Any] = self.transformer(
            x,
            own,
            self.position(own).to(x.dtype),
            tgt,
            boxes.sigmoid(),
            heads,
            None if queries is None else queries.attn_mask,
        )
        delta = torch.stack([head(h) for head, h in zip(heads, out["hs"])])
        located = (delta + inverse_sigmoid(out["references"], EPS)).sigmoid()
        out |= with_denoising(self.class_embed(out["hs"]), located, queries, self.aux_loss)
        return out | {"masks": [own]}


def scatter_centres(embedding: nn.Embedding) -> None:
    """Boxes ``[Q, 4]`` as logits whose centres are anywhere in the image and take no gradient."""
    with torch.no_grad():
        embedding.weight[:, :2] = inverse_sigmoid(torch.rand_like(embedding.weight[:, :2]), EPS)
    embedding.weight.register_hook(lambda grad: torch.cat([torch.zeros_like(grad[:, :2]), grad[:, 2:]], dim=1))


def with_denoising(logits: Tensor, boxes: Tensor, queries: Denoising | None, aux_loss: bool) -> dict[str, Any]:
    """Predictions ``[layers, B, P + Q, ...]`` as the family gives them, those of denoising queries apart."""
    if queries is None:
        return layer_predictions(logits, boxes, aux_loss)
    P = queries.size
    found = layer_predictions(logits[:, :, P:], boxes[:, :, P:], aux_loss)
    if P == 0:
        # No object in the batch: the embedding still takes part, so that every process reduces the same gradients.
        found["pred_logits"] = found["pred_logits"] + 0.0 * queries.content.sum()
        return found
    restored = layer_predictions(logits[:, :, :P], boxes[:, :, :P], True)
    return found | {"dn_outputs": restored | {"groups": queries.groups, "size": P}, "denoising": queries}
