"""Keypoints beside the queries of RF-DETR's decoder: one token for each keypoint of each object.

GroupPose: A Simple Baseline for End-to-End Multi-person Pose Estimation (arXiv:2308.07313), as RF-DETR
(github.com/roboflow/rf-detr, Apache-2.0) has it in its keypoint models; this follows recorded results.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.deformable_transformer import Shapes
from zoo.detection.ms_deform import MSDeformAttn
from zoo.layers.token_linear import TokenLinear

#: numbers predicted for a keypoint: dx, dy, findable, visible, three of the precision, share of the class score
CHANNELS = 8


def class_mask(counts: Sequence[int]) -> Tensor:
    """Which tokens of an object must not see each other: keypoints of different classes, ``[1 + K, 1 + K]``.

    The first token, that of the object, sees all and is seen by all.
    """
    owner = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)  # [K]
    mask = torch.zeros(1 + len(owner), 1 + len(owner), dtype=torch.bool)
    mask[1:, 1:] = owner[:, None] != owner[None]
    return mask


def active_mask(counts: Sequence[int]) -> Tensor:
    """Which of the places of each class hold a keypoint, ``[classes, most keypoints of a class]``."""
    if not counts:
        return torch.zeros(0, 0, dtype=torch.bool)
    return torch.arange(max(counts))[None] < torch.tensor(list(counts))[:, None]


def by_class(keypoints: Tensor, active: Tensor) -> Tensor:
    """Keypoints ``[..., K, D]``, class after class, to ``[..., classes * most, D]``: zeros where a class has fewer."""
    padded = keypoints.new_zeros(*keypoints.shape[:-2], active.numel(), keypoints.shape[-1])
    padded[..., active.flatten(), :] = keypoints
    return padded


def class_boost(keypoints: Tensor, active: Tensor, classes: int) -> Tensor:
    """What the keypoints add to the logits of their classes: ``[..., classes * most, 8] -> [..., classes]``."""
    share = keypoints[..., 7].unflatten(-1, tuple(active.shape)) * active
    return F.pad(share.sum(-1), (0, classes - active.shape[0]))


def placed(delta: Tensor, boxes: Tensor) -> Tensor:
    """Keypoints ``[..., K, 8]`` whose offsets are over the size of a box ``[..., 4]``, from its centre, in the image.

    What is no finite number becomes 0, so that it spoils no gradient of the boxes.
    """
    delta = torch.nan_to_num(delta, nan=0.0, posinf=0.0, neginf=0.0)
    xy = delta[..., :2] * boxes[..., None, 2:] + boxes[..., None, :2]
    return torch.cat([xy, delta[..., 2:]], dim=-1)


class KeypointQueries(nn.Module):
    """Tokens of the keypoints of an object: learned ones, modulated by the object's query.

    Args:
        dim: channels of the object's query.
        count: keypoints K of all classes.
        out_dim: channels D of the tokens.
    """

    def __init__(self, dim: int, count: int, out_dim: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, out_dim))
        self.adaLN_modulation = nn.Sequential(TokenLinear(dim, dim), nn.GELU(), TokenLinear(dim, 3 * out_dim))
        self.out_proj = TokenLinear(out_dim, out_dim)

    def reset(self) -> None:
        """Start without modulation."""
        last = self.adaLN_modulation[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, query: Tensor) -> Tensor:
        """``[B, Q, C] -> [B, Q, K, D]``."""
        scale, shift, gate = self.adaLN_modulation(query[..., None, :]).chunk(3, dim=-1)
        normed = F.layer_norm(self.queries, self.queries.shape[-1:])
        return self.out_proj(normed * (1 + scale) + shift) * gate + self.queries


class KeypointBranch(nn.Module):
    """What a decoder layer does to the tokens of keypoints, after it is done with the query of the object.

    Args:
        d_model: channels C of queries and memory.
        downscale: C over the channels D of the tokens.
        sa_heads, ca_heads: attention heads of the object's layer; the tokens have ``downscale`` times fewer.
        n_levels, n_points: see :class:`zoo.detection.ms_deform.MSDeformAttn`.
        dropout: of all branches.
        cross_attn: tokens read the memory.
        between: the same keypoint of all objects attends to itself.
    """

    def __init__(
        self,
        d_model: int,
        downscale: int = 1,
        sa_heads: int = 8,
        ca_heads: int = 16,
        n_levels: int = 1,
        n_points: int = 2,
        dropout: float = 0.0,
        cross_attn: bool = True,
        between: bool = False,
    ):
        super().__init__()
        if downscale < 1 or d_model % downscale:
            raise ValueError(f"keypoint_dim_downscale={downscale}: accepted are whole numbers that divide {d_model}")
        dim = d_model // downscale
        narrow = downscale > 1

        def linear(a: int, b: int) -> nn.Module:
            return TokenLinear(a, b) if narrow else nn.Identity()

        self.inst_in_proj, self.inst_pos_in_proj = linear(d_model, dim), linear(d_model, dim)
        self.inst_out_proj, self.memory_in_proj = linear(dim, d_model), linear(d_model, dim)
        sa_heads, ca_heads = max(1, sa_heads // downscale), max(1, ca_heads // downscale)
        self.kp_inst_self_attn = nn.MultiheadAttention(dim, sa_heads, dropout=dropout, batch_first=True)
        self.kp_inst_norm = nn.LayerNorm(d_model)
        self.kp_norm = nn.LayerNorm(dim)
        self.inter_inst_kp_attn = self.kp_cross_attn = None
        if between:
            self.inter_inst_kp_attn = nn.MultiheadAttention(dim, ca_heads, dropout=dropout, batch_first=True)
            self.inter_inst_kp_norm = nn.LayerNorm(dim)
        if cross_attn:
            self.kp_cross_attn = MSDeformAttn(dim, n_levels, ca_heads, n_points)
            self.kp_cross_attn_norm = nn.LayerNorm(dim)
        self.kp_linear1 = TokenLinear(dim, d_model * 4 // downscale)
        self.kp_linear3 = TokenLinear(d_model * 4 // downscale, dim)
        self.kp_norm5 = nn.LayerNorm(dim)
        self.instance_kp_layer_scale = nn.Parameter(torch.full((1,), 1e-6))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        mask: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Refine object queries and keypoint tokens.

        Args:
            tgt, query_pos: ``[B, Q, C]``.
            tokens: ``[B, Q, K, D]``.
            tokens_pos: ``[K, D]``.
            mask: ``[1 + K, 1 + K]``, see :func:`class_mask`.
            reference_points: ``[B, Q, L, 4]``.
            memory: ``[B, S, C]``, read by the keypoints.
            shapes: (H, W) of each level.
            padding_mask: ``[B, S]``, true in the padding.

        Returns:
            ``tgt`` and ``tokens``, refined.
        """
        B, Q, K, _ = tokens.shape
        pos = self.inst_pos_in_proj(query_pos)  # [B, Q, D]
        # An object and its keypoints see each other; the object's token has no position here.
        group = torch.cat([self.inst_in_proj(tgt)[:, :, None], tokens], dim=2).flatten(0, 1)  # [B*Q, 1+K, D]
        query = group + F.pad(tokens_pos, (0, 0, 1, 0))
        seen = self.kp_inst_self_attn(query, query, group, attn_mask=mask, need_weights=False)[0].unflatten(0, (B, Q))
        tgt = tgt + self.dropout(self.inst_out_proj(seen[:, :, 0])) * self.instance_kp_layer_scale
        tgt = self.kp_inst_norm(tgt)
        tokens = self.kp_norm(tokens + self.dropout(seen[:, :, 1:]))
        if self.inter_inst_kp_attn is not None:
            same = tokens.transpose(1, 2).flatten(0, 1)  # [B*K, Q, D]
            query = same + pos.repeat_interleave(K, 0)
            seen = self.inter_inst_kp_attn(query, query, same, need_weights=False)[0]
            seen = seen.unflatten(0, (B, K)).transpose(1, 2)
            tokens = self.inter_inst_kp_norm(tokens + self.dropout(seen))
        if self.kp_cross_attn is not None:
            query = (tokens + pos[:, :, None]).flatten(1, 2)  # [B, Q*K, D]
            places = reference_points.repeat_interleave(K, 1)
            seen = self.kp_cross_attn(query, places, self.memory_in_proj(memory), shapes, padding_mask)
            tokens = self.kp_cross_attn_norm(tokens + self.dropout(seen.unflatten(1, (Q, K))))
        hidden = self.dropout(F.relu(self.kp_linear1(tokens)))
        return tgt, self.kp_norm5(tokens + self.dropout(self.kp_linear3(hidden)))
