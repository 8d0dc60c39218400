"""RF-DETR's decoder: groups of queries that start from the neck's own tokens.

LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection (arXiv:2406.03459); the groups are Group DETR's
(arXiv:2207.13085). Authors' code: github.com/roboflow/rf-detr (Apache-2.0); this follows the papers and recorded
results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.deformable_transformer import (
    Shapes,
    gather_tokens,
    init_transformer,
    proposal_boxes,
    valid_ratio,
)
from zoo.detection.layers import MLP
from zoo.detection.ms_deform import MSDeformAttn
from zoo.detection.positions import box_sines
from zoo.detection.rfdetr_keypoints import KeypointBranch, KeypointQueries, class_mask, placed
from zoo.layers.token_linear import TokenLinear


def moved(reference: Tensor, delta: Tensor, reparam: bool) -> Tensor:
    """A box from a reference ``[..., 4]`` and a change ``[..., 4]``.

    With ``reparam`` the reference is a box and the change is relative to its size (the size by its exponential);
    without, both are logits.
    """
    if not reparam:
        return reference + delta
    centre = delta[..., :2] * reference[..., 2:] + reference[..., :2]
    return torch.cat([centre, delta[..., 2:].exp() * reference[..., 2:]], dim=-1)


class GroupDecoderLayer(nn.Module):
    """Self-attention inside each group of queries, deformable cross-attention, feed-forward (all post-norm).

    Args:
        d_model: channels C.
        sa_heads, ca_heads: heads of self-attention and cross-attention.
        dim_feedforward: hidden channels of the feed-forward branch.
        dropout: of all branches and of the self-attention's weights.
        n_levels, n_points: see :class:`zoo.detection.ms_deform.MSDeformAttn`.
        keypoints: arguments of :class:`zoo.detection.rfdetr_keypoints.KeypointBranch`, or None.
    """

    def __init__(
        self,
        d_model: int,
        sa_heads: int,
        ca_heads: int,
        dim_feedforward: int,
        dropout: float,
        n_levels: int,
        n_points: int,
        keypoints: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, sa_heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(d_model)
        self.cross_attn = MSDeformAttn(d_model, n_levels, ca_heads, n_points)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = TokenLinear(d_model, dim_feedforward)
        self.linear2 = TokenLinear(dim_feedforward, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.keypoints = None
        if keypoints is not None:
            self.keypoints = KeypointBranch(
                d_model,
                sa_heads=sa_heads,
                ca_heads=ca_heads,
                n_levels=n_levels,
                n_points=n_points,
                dropout=dropout,
                **keypoints,
            )

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding_mask: Tensor,
        groups: int = 1,
    ) -> Tensor:
        """Refine the queries.

        Args:
            tgt, query_pos: ``[B, groups * Q, C]``.
            reference_points: ``[B, groups * Q, L, 4]``.
            memory: ``[B, S, C]``.
            shapes: (H, W) of each level.
            padding_mask: ``[B, S]``, true in the padding.
            groups: groups of queries that do not see each other.
        """
        B = tgt.shape[0]
        query, value = (x.unflatten(1, (groups, -1)).flatten(0, 1) for x in (tgt + query_pos, tgt))  # [B*groups, Q, C]
        attended = self.self_attn(query, query, value, need_weights=False)[0].unflatten(0, (B, groups)).flatten(1, 2)
        tgt = self.norm1(tgt + self.dropout(attended))
        attended = self.cross_attn(tgt + query_pos, reference_points, memory, shapes, padding_mask)
        tgt = self.norm2(tgt + self.dropout(attended))
        return self.norm3(tgt + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(tgt))))))


class GroupDecoder(nn.Module):
    """Decoder layers; what they need of boxes is in :class:`RFDETRTransformer`.

    Args:
        layers: the layers.
        d_model: channels C.
        norm: normalise what each layer gives.
        keypoint_counts: keypoints of each class.
        keypoint_dim: channels of their tokens.
    """

    def __init__(
        self,
        layers: Sequence[GroupDecoderLayer],
        d_model: int,
        norm: bool = True,
        keypoint_counts: Sequence[int] = (),
        keypoint_dim: int = 0,
    ):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm: nn.Module = nn.LayerNorm(d_model) if norm else nn.Identity()
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)
        self.keypoint_pos_embed = None
        if keypoint_counts:
            self.keypoint_pos_embed = nn.Parameter(torch.randn(sum(keypoint_counts), keypoint_dim))
            self.register_buffer("keypoint_class_mask", class_mask(keypoint_counts))


class RFDETRTransformer(nn.Module):
    """First stage and decoder.

    Args:
        d_model: channels C.
        sa_heads, ca_heads: heads of self-attention and cross-attention.
        num_queries: queries of a group.
        groups: groups of queries in training; one is left otherwise.
        num_layers: decoder layers.
        dim_feedforward, dropout: see :class:`GroupDecoderLayer`.
        n_levels, n_points: see :class:`zoo.detection.ms_deform.MSDeformAttn`.
        two_stage: queries start at the best of the neck's tokens.
        only_usable: a token in the padding or at the border is never chosen (transformers' implementation); otherwise
            it takes part with zeros for its features (the authors').
        bbox_reparam: see :func:`moved`.
        lite_refpoint_refine: all layers have the same references; otherwise each has the boxes of the one before.
        decoder_norm: normalise what each layer gives.
        registers: further queries of every group that predict nothing.
        keypoint_counts: keypoints of each class; empty for none.
        keypoint_dim_downscale, keypoint_cross_attn, inter_instance_kp_attn: see
            :class:`zoo.detection.rfdetr_keypoints.KeypointBranch`.

    Raises:
        ValueError: no layers, no groups, keypoints with references that move or without a first stage.
    """

    def __init__(
        self,
        d_model: int = 256,
        sa_heads: int = 8,
        ca_heads: int = 16,
        num_queries: int = 300,
        groups: int = 13,
        num_layers: int = 3,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        n_levels: int = 1,
        n_points: int = 2,
        two_stage: bool = True,
        only_usable: bool = False,
        bbox_reparam: bool = True,
        lite_refpoint_refine: bool = True,
        decoder_norm: bool = True,
        registers: int = 0,
        keypoint_counts: Sequence[int] = (),
        keypoint_dim_downscale: int = 1,
        keypoint_cross_attn: bool = True,
        inter_instance_kp_attn: bool = False,
    ):
        super().__init__()
        for name, value in (("num_layers", num_layers), ("groups", groups), ("num_queries", num_queries)):
            if value < 1:
                raise ValueError(f"{name}={value}: accepted are whole numbers from 1")
        if keypoint_counts and not (lite_refpoint_refine and two_stage and sum(keypoint_counts) > 0):
            raise ValueError(
                f"keypoint_counts={tuple(keypoint_counts)}: keypoints need at least one of them, "
                "lite_refpoint_refine=True and two_stage=True"
            )
        self.d_model, self.num_queries, self.groups = d_model, num_queries, groups
        self.two_stage, self.only_usable = two_stage, only_usable
        self.bbox_reparam, self.lite_refpoint_refine = bbox_reparam, lite_refpoint_refine
        keypoint_dim = d_model // keypoint_dim_downscale
        keypoints = None
        if keypoint_counts:
            keypoints = dict(
                downscale=keypoint_dim_downscale, cross_attn=keypoint_cross_attn, between=inter_instance_kp_attn
            )
        layers = [
            GroupDecoderLayer(d_model, sa_heads, ca_heads, dim_feedforward, dropout, n_levels, n_points, keypoints)
            for _ in range(num_layers)
        ]
        self.decoder = GroupDecoder(layers, d_model, decoder_norm, keypoint_counts, keypoint_dim)
        self.keypoint_query_initializer = self.keypoint_query_initializer_enc = None
        if two_stage:
            self.enc_output = nn.ModuleList(TokenLinear(d_model, d_model) for _ in range(groups))
            self.enc_output_norm = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(groups))
            if keypoint_counts:
                count = sum(keypoint_counts)
                self.keypoint_query_initializer = KeypointQueries(d_model, count, keypoint_dim)
                self.keypoint_query_initializer_enc = KeypointQueries(d_model, count, keypoint_dim)
        init_transformer(self)
        for m in self.modules():
            if isinstance(m, KeypointQueries):
                m.reset()
        self.register_tokens = self.register_ref_points = None
        if registers:
            self.register_tokens = nn.Parameter(torch.randn(registers, d_model))
            self.register_ref_points = nn.Parameter(torch.zeros(registers, 4))

    def first_stage(
        self,
        memory: Tensor,
        padding: Tensor,
        shapes: Shapes,
        groups: int,
        class_heads: Any,
        box_heads: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best tokens of each group, by the largest logit of any class.

        Args:
            memory: ``[B, S, C]``.
            padding: ``[B, S]``.
            shapes: (H, W) of each level.
            groups: groups that choose.
            class_heads, box_heads: one for each group.

        Returns:
            Tokens ``[B, groups * K, C]``, their references (boxes, or logits without ``bbox_reparam``)
            ``[B, groups * K, 4]`` and logits; K is the number of queries, or of tokens where there are fewer.
        """
        boxes, usable = proposal_boxes(padding, shapes, memory.dtype)
        if not self.bbox_reparam:
            boxes = torch.log(boxes / (1 - boxes)).masked_fill(~usable, float("inf"))
        else:
            boxes = boxes.masked_fill(~usable, 0.0)
        memory = memory.masked_fill(~usable, 0.0)
        tokens, references, logits = [], [], []
        for g in range(groups):
            seen = self.enc_output_norm[g](self.enc_output[g](memory))
            scores = class_heads[g](seen)  # [B, S, classes]
            if self.only_usable:
                scores = scores.masked_fill(~usable, float("-inf"))
            best = scores.amax(-1).topk(min(self.num_queries, memory.shape[1]), dim=1).indices
            chosen = gather_tokens(seen, best)
            tokens.append(chosen)
            references.append(moved(gather_tokens(boxes, best), box_heads[g](chosen), self.bbox_reparam))
            logits.append(class_heads[g](chosen))
        return torch.cat(tokens, dim=1), torch.cat(references, dim=1), torch.cat(logits, dim=1)

    def as_boxes(self, references: Tensor) -> Tensor:
        """References as boxes in 0 ... 1."""
        return references if self.bbox_reparam else references.sigmoid()

    def per_level(self, references: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        """References ``[B, Q, 4]`` on each level ``[B, Q, L, 4]``, and the positions of the queries ``[B, Q, C]``."""
        boxes = self.as_boxes(references)[:, :, None] * torch.cat([ratios, ratios], dim=-1)[:, None]
        return boxes, self.decoder.ref_point_head(box_sines(boxes[:, :, 0], self.d_model // 2))

    def forward(
        self,
        levels: Sequence[Tensor],
        masks: Sequence[Tensor],
        points: Tensor,
        content: Tensor,
        class_heads: Any,
        box_heads: Any,
        keypoint_heads: Any,
        box_head: nn.Module,
        cross_levels: Sequence[Tensor] | None = None,
        cross_for_keypoints: bool = False,
    ) -> dict[str, Any]:
        """Run first stage and decoder.

        Args:
            levels: each ``[B, C, H, W]``.
            masks: each ``[B, H, W]``, true in the padding.
            points: learned changes of the references, ``[groups * Q, 4]``.
            content: learned queries, ``[groups * Q, C]``.
            class_heads, box_heads, keypoint_heads: of the first stage, one for each group.
            box_head: of the decoder; it moves the references unless ``lite_refpoint_refine``.
            cross_levels: levels that the decoder reads instead of ``levels``.
            cross_for_keypoints: only keypoints read them.

        Returns:
            ``hs [layers, B, Q, C]``, ``references [layers or 1, B, Q, 4]``; with two stages ``first_tokens``,
            ``first_boxes`` and ``first_logits``; with keypoints ``keypoint_hs [layers, B, Q, K, D]`` and
            ``first_keypoints [B, Q, K, 8]``.
        """
        shapes = [(int(x.shape[2]), int(x.shape[3])) for x in levels]
        memory = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)  # [B, S, C]
        padding = torch.cat([m.flatten(1) for m in masks], dim=1)
        ratios = torch.stack([valid_ratio(m) for m in masks], dim=1).to(memory.dtype)
        B, groups = memory.shape[0], self.groups if self.training else 1
        out: dict[str, Any] = {}
        references, tgt = points.expand(B, -1, -1), content.expand(B, -1, -1)
        if self.two_stage:
            tokens, first, logits = self.first_stage(memory, padding, shapes, groups, class_heads, box_heads)
            out |= {"first_tokens": tokens, "first_boxes": self.as_boxes(first), "first_logits": logits}
            count = first.shape[1]
            # Where an image has fewer tokens than there are queries, the last queries keep what they learned.
            references = torch.cat(
                [moved(first.detach(), references[:, :count], self.bbox_reparam), references[:, count:]], dim=1
            )
            if self.keypoint_query_initializer_enc is not None:
                parts = self.keypoint_query_initializer_enc(tokens).chunk(groups, dim=1)
                delta = torch.cat([head(part) for head, part in zip(keypoint_heads, parts)], dim=1)
                out["first_keypoints"] = placed(delta, out["first_boxes"])
        per_group = tgt.shape[1] // groups
        if self.register_tokens is not None and self.register_ref_points is not None:
            tgt = self._with_registers(tgt, self.register_tokens, groups)
            references = self._with_registers(references, self.register_ref_points, groups)
        cross = memory if cross_levels is None else torch.cat([x.flatten(2).transpose(1, 2) for x in cross_levels], 1)
        seen = memory if cross_for_keypoints else cross
        key_tokens: Tensor | None = None
        if self.keypoint_query_initializer is not None:
            key_tokens = self.keypoint_query_initializer(tgt)
        hidden, all_references, all_tokens = [], [references], []
        boxes, pos = self.per_level(references, ratios)
        layers: Any = self.decoder.layers
        for i, layer in enumerate(layers):
            tgt = layer(tgt, pos, boxes, seen, shapes, padding, groups)
            if key_tokens is not None:
                place, mask = self.decoder.keypoint_pos_embed, self.decoder.keypoint_class_mask
                tgt, key_tokens = layer.keypoints(tgt, pos, key_tokens, place, mask, boxes, cross, shapes, padding)
                all_tokens.append(key_tokens)
            hidden.append(self.decoder.norm(tgt))
            if not self.lite_refpoint_refine and i + 1 < len(layers):
                references = moved(references.detach() if i else references, box_head(tgt), self.bbox_reparam)
                all_references.append(references)
                boxes, pos = self.per_level(references.detach(), ratios)
        out["hs"] = self._without_registers(torch.stack(hidden), groups, per_group)
        out["references"] = self._without_registers(torch.stack(all_references), groups, per_group)
        if all_tokens:
            out["keypoint_hs"] = self._without_registers(torch.stack(all_tokens), groups, per_group)
        return out

    def _with_registers(self, x: Tensor, extra: Tensor, groups: int) -> Tensor:
        """Registers at the end of each group: ``[B, groups * Q, D] -> [B, groups * (Q + registers), D]``."""
        x = x.unflatten(1, (groups, -1))
        return torch.cat([x, extra.expand(x.shape[0], groups, -1, -1)], dim=2).flatten(1, 2)

    def _without_registers(self, x: Tensor, groups: int, per_group: int) -> Tensor:
        """``[layers, B, groups * (Q + registers), ...] -> [layers, B, groups * Q, ...]``."""
        if self.register_tokens is None:
            return x
        return x.unflatten(2, (groups, -1))[:, :, :, :per_group].flatten(2, 3)
