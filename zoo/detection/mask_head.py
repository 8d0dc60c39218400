"""Masks for the queries of DETR: attention maps over the memory, refined through the backbone's maps.

End-to-End Object Detection with Transformers (arXiv:2005.12872), section 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear


class AttentionMaps(nn.Module):
    """How much each query attends to each place, by head; the softmax is over heads and places together.

    Args:
        query_dim: channels of queries and memory.
        hidden_dim: channels of the products, over all heads.
        num_heads: heads.
        dropout: of the maps.
    """

    def __init__(self, query_dim: int, hidden_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (hidden_dim / num_heads) ** -0.5
        self.q_linear = TokenLinear(query_dim, hidden_dim)
        self.k_linear = TokenLinear(query_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries ``[B, Q, C]``, memory ``[B, C, H, W]``, padding ``[B, H, W]`` to ``[B, Q, heads, H, W]``."""
        H, W = memory.shape[-2:]
        q = self.q_linear(queries).unflatten(-1, (self.num_heads, -1))  # [B, Q, h, d]
        k = self.k_linear(memory.flatten(2).transpose(1, 2)).unflatten(-1, (self.num_heads, -1))  # [B, H*W, h, d]
        logits = torch.einsum("bqhd,bnhd->bqhn", q * self.scale, k)
        if mask is not None:
            logits = logits.masked_fill(mask.flatten(1)[:, None, None], float("-inf"))
        maps = logits.flatten(2).softmax(-1).view_as(logits)
        return self.dropout(maps).unflatten(-1, (H, W))


class MaskHead(nn.Module):
    """Convolutions from attention maps to masks, upwards through the backbone's maps.

    Args:
        dim: channels of the projected last map and of the attention maps together, a multiple of 8.
        fpn_dims: channels of the backbone's maps, from coarse to fine.
        context_dim: channels of the transformer.

    Raises:
        ValueError: ``dim`` is no multiple of the 8 groups of the normalisation.
    """

    def __init__(self, dim: int, fpn_dims: Sequence[int], context_dim: int):
        super().__init__()
        if dim % 8:
            raise ValueError(f"dim={dim}: accepted are multiples of 8, the groups of the normalisation")
        widths = [dim, dim, *(context_dim // 2**i for i in range(1, 5))]
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:]), 1):
            setattr(self, f"lay{i}", nn.Conv2d(a, b, 3, padding=1))
            setattr(self, f"gn{i}", nn.GroupNorm(8, b))
        for i, channels in enumerate(fpn_dims, 1):
            setattr(self, f"adapter{i}", nn.Conv2d(channels, widths[i + 1], 1))
        self.out_lay = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_uniform_(m.weight, a=1)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def _layer(self, i: int, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"gn{i}")(getattr(self, f"lay{i}")(x)))

    def forward(self, x: Tensor, maps: Tensor, fpn: Sequence[Tensor]) -> Tensor:
        """Logits of the masks, ``[B*Q, 1, h, w]``, at the size of the last of ``fpn``.

        Args:
            x: the projected last map ``[B, C, H, W]``.
            maps: attention maps ``[B, Q, heads, H, W]``.
            fpn: the backbone's maps, from coarse to fine.
        """
        Q = maps.shape[1]
        x = torch.cat([x.repeat_interleave(Q, 0), maps.flatten(0, 1)], dim=1)
        x = self._layer(2, self._layer(1, x))
        for i, level in enumerate(fpn, 1):
            finer = getattr(self, f"adapter{i}")(level).repeat_interleave(Q, 0)
            x = self._layer(i + 2, finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest"))
        return self.out_lay(x)


@torch.no_grad()
def masks_at_original_size(
    masks: Tensor, sizes: Tensor, original_sizes: Tensor, threshold: float = 0.5
) -> list[Tensor]:
    """Binary masks at the size of the images as they were read.

    Args:
        masks: logits ``[B, Q, h, w]``.
        sizes: height and width of the images in the batch, without padding, ``[B, 2]``.
        original_sizes: height and width of the images as they were read, ``[B, 2]``.
        threshold: probability from which a pixel belongs to the mask.

    Returns:
        For each image ``[Q, 1, H, W]`` of 0 and 1 (uint8).
    """
    height, width = sizes.amax(0).tolist()
    masks = F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False).sigmoid() > threshold
    found = []
    for mask, (h, w), original in zip(masks, sizes.tolist(), original_sizes.tolist()):
        found.append(F.interpolate(mask[:, None, :h, :w].float(), size=tuple(original), mode="nearest").byte())
    return found
