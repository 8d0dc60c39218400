"""Customised positive queries: what an auxiliary head takes for objects becomes queries of the decoder.

DETRs with Collaborative Hybrid Assignments Training (arXiv:2211.12860), section 3.3, eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.boxes import inverse_sigmoid, xyxy_to_cxcywh
from zoo.detection.co_assign import Permutation
from zoo.detection.positions import coordinate_sines
from zoo.layers.token_linear import TokenLinear

#: queries of an image at least
LEAST = 9


def positive_queries(
    candidates: Mapping[str, Any],
    sizes: Tensor,
    num_classes: int,
    most: int = 300,
    zero_padding: bool = False,
    permutation: Permutation = torch.randperm,
) -> dict[str, Tensor]:
    """As many queries for each image as the image with most positives has, at least 9.

    Args:
        candidates: ``boxes [B, N, 4]`` and ``targets [B, N, 4]`` (corners in pixels), ``labels [B, N]``
            (``num_classes`` for background), ``features [B, N, C]``.
        sizes: height and width of each image without padding, ``[B, 2]``.
        num_classes: classes.
        most: queries at most; of more positives some are drawn.
        zero_padding: fill up with zeros, which no loss sees, rather than with negatives.
        permutation: a permutation of so many numbers.

    Returns:
        ``boxes [B, P, 4]`` and ``targets [B, P, 4]`` (cx, cy, w, h in 0 ... 1; targets of negatives are what the head
        gave, zeros), ``labels [B, P]``, ``label_weights [B, P]``, ``box_weights [B, P, 4]`` (1 for positives),
        ``features [B, P, C]``; with ``zero_padding`` also ``positive [B, P]``. Where a head has too few candidates for
        that many queries, all of them become queries that no loss sees.
    """
    labels = candidates["labels"]
    count = max(LEAST, min(most, int((labels < num_classes).sum(1).max())))
    scarce = not zero_padding and labels.shape[1] < count
    scale = sizes.flip(1).repeat(1, 2)[:, None].float()  # [B, 1, 4]
    boxes, targets = (xyxy_to_cxcywh(candidates[k] / scale) for k in ("boxes", "targets"))
    found: dict[str, list[Tensor]] = {k: [] for k in ("boxes", "labels", "targets", "features", "positive")}
    for b, t, c, f in zip(boxes, targets, labels, candidates["features"]):
        yes, no = (c < num_classes).nonzero()[:, 0], (c == num_classes).nonzero()[:, 0]
        if len(yes) > count:
            yes = yes[permutation(len(yes))[:count].to(yes.device)]
        rest = count - len(yes)
        where = yes
        if not zero_padding and rest:
            where = torch.cat([yes, no[permutation(len(no))[:rest].to(no.device)]])
        rows = [b[where], c[where], t[where], f[where], torch.ones_like(where, dtype=torch.bool)]
        rows[4][len(yes) :] = False
        if zero_padding and rest:
            fills = (0, num_classes, 0, 0, False)
            rows = [torch.cat([r, r.new_full((rest, *r.shape[1:]), v)]) for r, v in zip(rows, fills)]
        for key, row in zip(found, rows):
            found[key].append(row)
    out = {k: torch.stack(v) for k, v in found.items()}
    positive = out.pop("positive")
    seen = positive if zero_padding else torch.ones_like(positive)
    seen, positive = (torch.zeros_like(x) if scarce else x for x in (seen, positive))
    out["label_weights"] = seen.to(out["boxes"])
    out["box_weights"] = positive[..., None].expand(-1, -1, 4).to(out["boxes"])
    return out | ({"positive": positive} if zero_padding else {})


def padding_mask(positive: Tensor, heads: int) -> Tensor:
    """Who must not see whom where queries are filled up with zeros: nobody sees these, and these see nobody.

    Args:
        positive: ``[B, P]``.
        heads: attention heads.

    Returns:
        ``[B * heads, P, P]``, true where a query must not see another.
    """
    return ~(positive[:, :, None] & positive[:, None]).repeat_interleave(heads, dim=0)


class PositiveQueries(nn.Module):
    """Contents and positions of customised positive queries, with weights for each auxiliary head.

    Args:
        dim: channels C.
        num_heads: auxiliary heads.
        with_positions: give positions too (Deformable DETR; DINO makes them of the boxes in each layer).
        with_features: contents have the head's features in them.
    """

    def __init__(self, dim: int, num_heads: int = 2, with_positions: bool = True, with_features: bool = True):
        super().__init__()
        self.dim, self.with_positions, self.with_features = dim, with_positions, with_features
        out = dim * 2 if with_positions else dim
        self.boxes = nn.ModuleList(TokenLinear(dim * 2, out) for _ in range(num_heads))
        self.boxes_norm = nn.ModuleList(nn.LayerNorm(out) for _ in range(num_heads))
        if with_features:
            self.features = nn.ModuleList(TokenLinear(dim, dim) for _ in range(num_heads))
            self.features_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_heads))
        # One number a head, as the authors' checkpoints have it; it was meant to be a vector.
        self.head_embed = nn.Parameter(torch.empty(num_heads, 1)) if with_positions else None
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, boxes: Tensor, features: Tensor, head: int) -> tuple[Tensor, Tensor | None]:
        """Contents and positions ``[B, P, C]`` of boxes ``[B, P, 4]`` (0 ... 1) with features ``[B, P, C]``."""
        sines = coordinate_sines(inverse_sigmoid(boxes).sigmoid() * (2 * math.pi), self.dim // 2)
        content: Tensor = self.boxes_norm[head](self.boxes[head](sines))
        position = None
        if self.with_positions:
            position, content = content.chunk(2, dim=-1)
        if self.with_features:
            content = content + self.features_norm[head](self.features[head](features))
            if position is not None:
                assert self.head_embed is not None
                position = position + self.head_embed[head]
        return content, position
