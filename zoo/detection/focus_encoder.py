"""An encoder that only works on tokens of the foreground, fewer from layer to layer.

Less is More: Focus Attention for Efficient DETR (arXiv:2307.12612), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.deformable_transformer import DeformableEncoderLayer, LayerStack, Shapes, gather_tokens
from zoo.layers.token_linear import TokenLinear


class ScorePredictor(nn.Module):
    """How likely a token belongs to an object, from the token and the mean over the level.

    Args:
        dim: channels C, a multiple of 4.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.layer1 = nn.Sequential(nn.LayerNorm(dim), TokenLinear(dim, dim), nn.GELU())
        self.layer2 = nn.Sequential(
            TokenLinear(dim, dim // 2), nn.GELU(), TokenLinear(dim // 2, dim // 4), nn.GELU(), TokenLinear(dim // 4, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, 1]`` logits; the mean includes padding."""
        local, common = self.layer1(x).chunk(2, dim=-1)
        return self.layer2(torch.cat([local, common.mean(1, keepdim=True).expand_as(local)], dim=-1))


class ForegroundSelector(nn.Module):
    """Scores of all tokens, from the coarsest level down: a coarse score raises or lowers the tokens below it.

    Args:
        dim: channels C.
        num_levels: levels.
    """

    def __init__(self, dim: int, num_levels: int):
        super().__init__()
        self.predictor = ScorePredictor(dim)
        self.alpha = nn.Parameter(torch.empty(num_levels - 1).uniform_(-0.3, 0.3))

    def forward(self, memory: Tensor, shapes: Shapes) -> Tensor:
        """Tokens ``[B, S, C]`` to logits ``[B, S, 1]``."""
        sizes = [h * w for h, w in shapes]
        scores: list[Tensor] = []
        for i, (tokens, (h, w)) in enumerate(zip(memory.split(sizes, 1)[::-1], list(shapes)[::-1])):
            if scores:
                above = scores[-1].transpose(1, 2).unflatten(2, shapes[len(shapes) - i])  # [B, 1, h', w']
                raised = F.interpolate(above, size=(h, w), mode="bilinear", align_corners=True)
                tokens = tokens + tokens * raised.flatten(2).transpose(1, 2) * self.alpha[i - 1]
            scores.append(self.predictor(tokens))
        return torch.cat(scores[::-1], dim=1)


class FocusEncoderLayer(DeformableEncoderLayer):
    """Attention among the best tokens, then a deformable layer for all selected ones.

    Args:
        d_model: channels C.
        d_ffn: hidden channels of the feed-forward branch.
        dropout: of all branches.
        activation: name of the activation.
        n_levels, n_heads, n_points: see :class:`zoo.detection.ms_deform.MSDeformAttn`.
        num_best: tokens that attend each other.
    """

    def __init__(
        self,
        d_model: int = 256,
        d_ffn: int = 2048,
        dropout: float = 0.0,
        activation: str = "relu",
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
        num_best: int = 300,
    ):
        super().__init__(d_model, d_ffn, dropout, activation, n_levels, n_heads, n_points)
        self.num_best = num_best
        self.token_attn = nn.MultiheadAttention(d_model, n_heads, dropout=dropout, batch_first=True)
        self.token_norm = nn.LayerNorm(d_model)

    def attend_best(self, query: Tensor, pos: Tensor, scores: Tensor) -> Tensor:
        """The ``num_best`` tokens by score ``[B, K]`` attend each other; ``[B, K, C]``.

        Raises:
            ValueError: fewer tokens than ``num_best``.
        """
        if self.num_best > query.shape[1]:
            raise ValueError(
                f"{self.num_best} best tokens are wanted of {query.shape[1]}; take larger images, a larger share of "
                "tokens (focus_rho, cascade) or a smaller num_best"
            )
        best = scores.topk(self.num_best, dim=1).indices
        tokens = gather_tokens(query, best)
        q = tokens + gather_tokens(pos, best)
        attended = self.token_attn(q, q, tokens, need_weights=False)[0]
        tokens = self.token_norm(tokens + self.dropout(attended))
        return query.scatter(1, best[..., None].expand_as(tokens), tokens.to(query.dtype))

    def refine(
        self,
        query: Tensor,
        pos: Tensor,
        scores: Tensor,
        reference_points: Tensor,
        value: Tensor,
        shapes: Shapes,
        padding: Tensor,
    ) -> Tensor:
        """Selected tokens ``[B, K, C]`` with positions, scores ``[B, K]``, references; values ``[B, S, C]``."""
        query = self.attend_best(query, pos, scores)
        attended = self.self_attn(query + pos, reference_points, value, shapes, padding)
        return self.feed_forward(self.norm1(query + self.dropout(attended)))


class FocusEncoder(LayerStack):
    """Layers over fewer and fewer tokens; all others stay as they came.

    Args:
        layers: the layers.
        cascade: the share of the foreground tokens that each layer works on.

    Raises:
        ValueError: fewer shares than layers.
    """

    def __init__(self, layers: Sequence[nn.Module], cascade: Sequence[float]):
        super().__init__(layers)
        if len(cascade) < len(layers):
            raise ValueError(f"cascade={tuple(cascade)}: one share for each of the {len(layers)} layers is needed")
        self.cascade = tuple(cascade[: len(layers)])

    def forward(
        self,
        src: Tensor,
        pos: Tensor,
        shapes: Shapes,
        reference_points: Tensor,
        padding: Tensor,
        scores: Tensor,
        counts: Tensor,
        most: int,
        class_head: nn.Module,
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode.

        Args:
            src: tokens ``[B, S, C]``, which are also the values of every layer.
            pos: ``[B, S, C]``.
            shapes: (H, W) of each level.
            reference_points: ``[B, S, L, 2]``.
            padding: ``[B, S]``, true in the padding.
            scores: of the foreground, ``[B, S]``, lowest in the padding.
            counts: how many tokens count as foreground in each image, ``[B]``.
            most: the largest of these.
            class_head: tells classes of tokens apart, for the score of the best.

        Returns:
            ``[B, S, C]``, and for each layer which tokens it worked on ``[B, K]``.
        """
        output, worked_on = src, []
        for layer, share in zip(self.layers, self.cascade):
            assert isinstance(layer, FocusEncoderLayer)
            chosen = scores.topk(int(np.float32(share) * np.float32(most)), dim=1).indices  # [B, K]
            query = gather_tokens(output, chosen)
            foreground = scores.gather(1, chosen)
            classes = class_head(query).amax(-1)
            query = layer.refine(
                query,
                gather_tokens(pos, chosen),
                classes * foreground,
                reference_points.gather(1, chosen[..., None, None].expand(-1, -1, *reference_points.shape[2:])),
                src,
                shapes,
                padding,
            )
            # An image with fewer foreground tokens than the batch's fullest keeps the rest as they are.
            own = torch.arange(chosen.shape[1], device=chosen.device) < counts[:, None]
            query = torch.where(own[..., None], query, gather_tokens(output, chosen))
            output = output.scatter(1, chosen[..., None].expand_as(query), query.to(output.dtype))
            worked_on.append(chosen)
        return output, worked_on
