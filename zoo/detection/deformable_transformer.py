"""The deformable transformer: encoder, decoder layer, and the proposals of two-stage detectors.

Deformable DETR: Deformable Transformers for End-to-End Object Detection (arXiv:2010.04159). Authors' code:
github.com/fundamentalvision/Deformable-DETR (Apache-2.0); this follows the paper and recorded results. DAB-, DN-,
Co-DETR and DINO build on the same layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.detection.layers import activation as build_activation
from zoo.detection.ms_deform import MSDeformAttn, linear_class
from zoo.layers.token_linear import TokenLinear

Shapes = Sequence[tuple[int, int]]


class LayerStack(nn.Module):
    """Layers under the name that checkpoints have for them; the model runs them.

    Args:
        layers: the layers.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then the feed-forward branch (both post-norm).

    Args:
        d_model: channels C.
        d_ffn: hidden channels of the feed-forward branch.
        dropout: of both branches.
        activation: name, see :data:`zoo.detection.layers.ACTIVATIONS`.
        n_levels, n_heads, n_points: see :class:`zoo.detection.ms_deform.MSDeformAttn`.
    """

    def __init__(
        self,
        d_model: int = 256,
        d_ffn: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
    ):
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.norm1 = nn.LayerNorm(d_model)
        linear = linear_class(d_model)
        self.linear1 = linear(d_model, d_ffn)
        self.activation = build_activation(activation)
        self.linear2 = linear(d_ffn, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, src: Tensor, pos: Tensor, reference_points: Tensor, shapes: Shapes, padding_mask: Tensor | None
    ) -> Tensor:
        """Tokens ``[B, S, C]`` with positions ``[B, S, C]`` and references ``[B, S, L, 2]`` to tokens."""
        attended = self.self_attn(src + pos, reference_points, src, shapes, padding_mask)
        return self.feed_forward(self.norm1(src + self.dropout(attended)))

    def feed_forward(self, src: Tensor) -> Tensor:
        """The second branch, ``[B, S, C]``."""
        hidden = self.dropout(self.activation(self.linear1(src)))
        return self.norm2(src + self.dropout(self.linear2(hidden)))


class DeformableEncoder(LayerStack):
    """A stack of encoder layers."""

    def forward(
        self, src: Tensor, pos: Tensor, shapes: Shapes, valid_ratios: Tensor, padding_mask: Tensor | None
    ) -> Tensor:
        """Tokens ``[B, S, C]`` of all levels to the memory of the same shape."""
        reference_points = encoder_reference_points(shapes, valid_ratios)
        for layer in self.layers:
            src = layer(src, pos, reference_points, shapes, padding_mask)
        return src


class DeformableDecoderLayer(nn.Module):
    """Self-attention of the queries, deformable cross-attention, feed-forward (all post-norm).

    The norms' names do not follow their order: self-attention has ``norm2``, cross-attention ``norm1``.

    Args:
        d_model: channels C.
        d_ffn: hidden channels of the feed-forward branch.
        dropout: of all branches and of the self-attention's weights.
        activation: name, see :data:`zoo.detection.layers.ACTIVATIONS`.
        n_levels, n_heads, n_points: see :class:`zoo.detection.ms_deform.MSDeformAttn`.
    """

    def __init__(
        self,
        d_model: int = 256,
        d_ffn: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
    ):
        super().__init__()
        self.cross_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = nn.MultiheadAttention(d_model, n_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = TokenLinear(d_model, d_ffn)
        self.activation = build_activation(activation)
        self.linear2 = TokenLinear(d_ffn, d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor | None,
        reference_points: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Refine the queries.

        Args:
            tgt: ``[B, Q, C]``.
            query_pos: ``[B, Q, C]``, added to queries and keys, not to values.
            reference_points: ``[B, Q, L, 2 or 4]``.
            memory: ``[B, S, C]``.
            shapes: (H, W) of each level.
            padding_mask: ``[B, S]``, true in the padding.
            attn_mask: ``[Q, Q]``, true where a query must not see another.

        Returns:
            ``[B, Q, C]``.
        """
        tgt = self.attend_queries(tgt, query_pos, attn_mask)
        query = tgt if query_pos is None else tgt + query_pos
        attended = self.cross_attn(query, reference_points, memory, shapes, padding_mask)
        return self.feed_forward(self.norm1(tgt + self.dropout(attended)))

    def attend_queries(self, tgt: Tensor, query_pos: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        """The self-attention branch, ``[B, Q, C]``."""
        query = tgt if query_pos is None else tgt + query_pos
        attended = self.self_attn(query, query, tgt, attn_mask=attn_mask, need_weights=False)[0]
        return self.norm2(tgt + self.dropout(attended))

    def feed_forward(self, tgt: Tensor) -> Tensor:
        """The feed-forward branch, ``[B, Q, C]``."""
        hidden = self.dropout(self.activation(self.linear1(tgt)))
        return self.norm3(tgt + self.dropout(self.linear2(hidden)))


def init_transformer(model: nn.Module) -> None:
    """Glorot-uniform matrices, and deformable attentions as they set themselves."""
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.xavier_uniform_(p)
    for m in model.modules():
        if isinstance(m, MSDeformAttn):
            m.reset_parameters()


def flatten_levels(
    levels: Sequence[Tensor], masks: Sequence[Tensor], positions: Sequence[Tensor], level_embed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, int]], Tensor]:
    """All levels as one sequence of tokens, row by row, one level after the other.

    Args:
        levels: each ``[B, C, H, W]``.
        masks: each ``[B, H, W]``, true in the padding.
        positions: each ``[B, C, H, W]``.
        level_embed: ``[L, C]``, added to the positions, or None.

    Returns:
        tokens ``[B, S, C]``, positions ``[B, S, C]``, padding ``[B, S]``, shapes of the levels, and the share of each
        level that is no padding, ``[B, L, 2]`` as (width, height).
    """
    shapes = [(int(x.shape[2]), int(x.shape[3])) for x in levels]
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
    pos = [p.flatten(2).transpose(1, 2) for p in positions]
    if level_embed is not None:
        pos = [p + e for p, e in zip(pos, level_embed)]
    padding = torch.cat([m.flatten(1) for m in masks], dim=1)
    return tokens, torch.cat(pos, dim=1), padding, shapes, torch.stack([valid_ratio(m) for m in masks], dim=1)


def valid_ratio(mask: Tensor) -> Tensor:
    """The share of the first row and first column of a mask ``[B, H, W]`` that is no padding: ``[B, 2]`` (w, h)."""
    height, width = mask.shape[1:]
    inside = (~mask).float()
    return torch.stack([inside[:, 0, :].sum(1) / width, inside[:, :, 0].sum(1) / height], dim=-1)


def _centres(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the middles of all pixels, each ``[H * W]``."""
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return y[:, None].expand(-1, width).flatten(), x[None].expand(height, -1).flatten()


def encoder_reference_points(shapes: Shapes, valid_ratios: Tensor) -> Tensor:
    """Where each token is in every level.

    Args:
        shapes: (H, W) of each level.
        valid_ratios: ``[B, L, 2]``.

    Returns:
        ``[B, S, L, 2]``: the middle of the token's pixel over the valid part of its own level, times the valid part of
        each level.
    """
    points = []
    for level, (height, width) in enumerate(shapes):
        y, x = _centres(height, width, valid_ratios)
        ratio = valid_ratios[:, level]  # [B, 2]
        points.append(torch.stack([x / (ratio[:, :1] * width), y / (ratio[:, 1:] * height)], dim=-1))
    return torch.cat(points, dim=1)[:, :, None] * valid_ratios[:, None]


def proposal_boxes(
    padding_mask: Tensor, shapes: Shapes, dtype: torch.dtype = torch.float32, learned_wh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A box around every token, larger from level to level.

    Args:
        padding_mask: ``[B, S]``, true in the padding.
        shapes: (H, W) of each level.
        dtype: of the boxes.
        learned_wh: logits of the size at the first level, ``[2]``; 0.05 without them.

    Returns:
        Boxes (cx, cy, w, h) over the valid part of each level, ``[B, S, 4]``, and which of them can be used,
        ``[B, S, 1]``: not in the padding nor too near the border (outside 0.01 ... 0.99).
    """
    B = padding_mask.shape[0]
    boxes, first = [], 0
    for level, (height, width) in enumerate(shapes):
        mask = padding_mask[:, first : first + height * width].view(B, height, width)
        first += height * width
        inside = (~mask).to(dtype)
        valid_h, valid_w = inside[:, :, 0].sum(1, keepdim=True), inside[:, 0, :].sum(1, keepdim=True)  # [B, 1]
        y, x = _centres(height, width, inside)
        centre = torch.stack([x / valid_w, y / valid_h], dim=-1)  # [B, H*W, 2]
        size = centre.new_full((2,), 0.05) if learned_wh is None else learned_wh.sigmoid()
        boxes.append(torch.cat([centre, (size * 2.0**level).expand_as(centre)], dim=-1))
    proposals = torch.cat(boxes, dim=1)  # [B, S, 4]
    usable = ((proposals > 0.01) & (proposals < 0.99)).all(-1, keepdim=True) & ~padding_mask[..., None]
    return proposals, usable


def encoder_proposals(
    memory: Tensor, padding_mask: Tensor, shapes: Shapes, learned_wh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A box around every token (:func:`proposal_boxes`), as the start of the first stage.

    Args:
        memory: ``[B, S, C]``.
        padding_mask, shapes, learned_wh: see :func:`proposal_boxes`.

    Returns:
        The memory with tokens whose box cannot be used set to zero, and logits of the boxes (cx, cy, w, h),
        ``[B, S, 4]``, infinite for these tokens.
    """
    proposals, usable = proposal_boxes(padding_mask, shapes, memory.dtype, learned_wh)
    logits = torch.log(proposals / (1 - proposals)).masked_fill(~usable, math.inf)
    return memory.masked_fill(~usable, 0.0), logits


def top_proposals(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` tokens with the largest score, ``[B, S] -> [B, count]``.

    Raises:
        ValueError: more proposals than tokens.
    """
    if count > scores.shape[1]:
        raise ValueError(f"{count} proposals are wanted of {scores.shape[1]} tokens; take a larger image or fewer")
    return scores.topk(count, dim=1).indices


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """``[B, S, D]`` at ``[B, K]`` -> ``[B, K, D]``."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))
