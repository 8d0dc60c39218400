"""RF-DETR's segmentation head: masks as products of queries and a map.

RF-DETR: Neural Architecture Search for Real-Time Detection Transformers (arXiv:2511.09554), after YOLACT's prototypes
(arXiv:1904.02689).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear

Factors = dict[str, Tensor]


class DepthwiseBlock(nn.Module):
    """A 3x3 convolution of each channel, norm, linear layer and GELU, beside a residual.

    Args:
        dim: channels C.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = TokenLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``."""
        branch = self.dwconv(x).permute(0, 2, 3, 1)  # [B, H, W, C]
        return x + F.gelu(self.pwconv1(self.norm(branch))).permute(0, 3, 1, 2)


class QueryBlock(nn.Module):
    """Norm and perceptron beside a residual.

    Args:
        dim: channels C.
        hidden: of the perceptron.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.layers = nn.ModuleList([TokenLinear(dim, hidden), nn.GELU(), TokenLinear(hidden, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]``."""
        branch = self.norm_in(x)
        for layer in self.layers:
            branch = layer(branch)
        return x + branch


class SegmentationHead(nn.Module):
    """Masks of the queries of every decoder layer.

    Args:
        dim: channels C of map and queries.
        num_layers: decoder layers; each has a block of convolutions, which go on from those before it.
        downsample_ratio: pixels of the image a side of a pixel of the masks.
        hidden: of the queries' perceptron; four times ``dim`` unless given.
    """

    def __init__(self, dim: int, num_layers: int, downsample_ratio: int = 4, hidden: int | None = None):
        super().__init__()
        if downsample_ratio < 1:
            raise ValueError(f"mask_downsample_ratio={downsample_ratio}: accepted are whole numbers from 1")
        self.downsample_ratio = downsample_ratio
        self.blocks = nn.ModuleList(DepthwiseBlock(dim) for _ in range(num_layers))
        self.spatial_features_proj = nn.Conv2d(dim, dim, 1)
        self.query_features_block = QueryBlock(dim, 4 * dim if hidden is None else hidden)
        self.query_features_proj = TokenLinear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(1))

    def resized(self, x: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The map ``[B, C, h, w]`` at the size of the masks of an image."""
        size = tuple(s // self.downsample_ratio for s in image_size)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def factors(self, x: Tensor, queries: Tensor) -> Factors:
        """What a mask is the product of: map ``[B, C, H, W]``, queries ``[B, Q, C]`` and a bias ``[1]``."""
        return {
            "spatial_features": self.spatial_features_proj(x),
            "query_features": self.query_features_proj(self.query_features_block(queries)),
            "bias": self.bias,
        }

    def forward(
        self, x: Tensor, hidden: Sequence[Tensor], first: Tensor | None, image_size: tuple[int, int]
    ) -> tuple[list[Factors], Factors | None]:
        """Factors of the masks of all layers, and of the first stage, which reads the map before any block.

        Args:
            x: the first level of the neck, ``[B, C, h, w]``.
            hidden: queries of each decoder layer, ``[B, Q, C]``.
            first: queries of the first stage, ``[B, Q, C]``, or None.
            image_size: height and width of the batch.
        """
        x = self.resized(x, image_size)
        start = None if first is None else self.factors(x, first)
        found = []
        for block, queries in zip(self.blocks, hidden):
            x = block(x)
            found.append(self.factors(x, queries))
        return found, start


def dense_masks(factors: Factors) -> Tensor:
    """Logits of all masks, ``[B, Q, H, W]``."""
    return torch.einsum("bchw,bqc->bqhw", factors["spatial_features"], factors["query_features"]) + factors["bias"]
