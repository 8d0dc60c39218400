"""Pixel decoders: from the backbone's maps to pixel embeddings (and, for Mask2Former, to the maps that queries read).

:class:`FPNPixelDecoder` is MaskFormer's (arXiv:2107.06278, section 3.4), :class:`DeformablePixelDecoder` is
Mask2Former's (arXiv:2112.01527, section 3.2.2): the deformable encoder of Deformable DETR (arXiv:2010.04159) over the
three coarser maps. Authors' code: github.com/facebookresearch/MaskFormer, /Mask2Former (MIT); this follows the papers
and is compared with Hugging Face transformers' models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.deformable_transformer import (
    DeformableEncoder,
    DeformableEncoderLayer,
    encoder_reference_points,
    init_transformer,
)
from zoo.detection.positions import SinePositions
from zoo.layers.token_linear import Pointwise

#: groups of every normalisation
GROUPS = 32


def projection(channels: int, dim: int, bias: bool) -> nn.Sequential:
    """A 1x1 convolution and GroupNorm."""
    return nn.Sequential(Pointwise(channels, dim, bias), nn.GroupNorm(GROUPS, dim))


def smoothing(channels: int, dim: int) -> nn.Sequential:
    """A 3x3 convolution without bias, GroupNorm and ReLU."""
    return nn.Sequential(nn.Conv2d(channels, dim, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, dim), nn.ReLU())


def sine_positions(module: SinePositions, like: Tensor) -> Tensor:
    """Positions of a map ``[B, C, H, W]`` without padding, one for all images: ``[1, C', H, W]``."""
    mask = torch.zeros(1, like.shape[2], like.shape[3], dtype=torch.bool, device=like.device)
    return module(mask).to(like.dtype)


def check_maps(features: Sequence[Tensor], channels: Sequence[int]) -> None:
    """Raise ValueError unless the maps have the channels that a decoder was built for."""
    given = [f.shape[1] for f in features]
    if given != list(channels):
        raise ValueError(f"feature maps with {given} channels were given; the decoder was built for {list(channels)}")


class FPNPixelDecoder(nn.Module):
    """A feature pyramid: from the coarsest map upwards by nearest-neighbour enlargement.

    Args:
        channels: channels of the backbone's maps, from fine to coarse, two at least.
        dim: channels of the pyramid, a multiple of 32.
        mask_dim: channels of the pixel embeddings.

    Raises:
        ValueError: fewer than two maps, a width that the 32 groups do not divide; (at a call) other channels.
    """

    def __init__(self, channels: Sequence[int], dim: int = 256, mask_dim: int = 256):
        super().__init__()
        _check_width(dim, channels, 2)
        self.channels = tuple(channels)
        self.stem = smoothing(channels[-1], dim)
        self.laterals = nn.ModuleList(projection(c, dim, bias=False) for c in reversed(channels[:-1]))
        self.outputs = nn.ModuleList(smoothing(dim, dim) for _ in channels[:-1])
        self.mask_features = nn.Conv2d(dim, mask_dim, 3, padding=1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_uniform_(m.weight, a=1)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, C_i, H_i, W_i]`` from fine to coarse -> pixel embeddings ``[B, mask_dim, H_0, W_0]``."""
        check_maps(features, self.channels)
        x = self.stem(features[-1])
        for lateral, output, feature in zip(self.laterals, self.outputs, reversed(features[:-1])):
            left = lateral(feature)
            x = output(left + F.interpolate(x, size=left.shape[-2:], mode="nearest"))
        return self.mask_features(x)


class DeformablePixelDecoder(nn.Module):
    """Deformable self-attention over the coarser maps; finer ones join by a feature pyramid.

    Args:
        channels: channels of the backbone's maps, from fine to coarse; more than ``num_levels``.
        dim: channels of the encoder, a multiple of 32 and of ``num_heads``.
        mask_dim: channels of the pixel embeddings.
        num_levels: the coarsest maps that the encoder reads.
        num_layers: layers of the encoder.
        num_heads, num_points: of the deformable attention.
        d_ffn: hidden channels of the feed-forward branches.
        dropout: of the encoder's branches.

    Raises:
        ValueError: too few maps, a width that the 32 groups do not divide; (at a call) other channels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int = 256,
        mask_dim: int = 256,
        num_levels: int = 3,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        d_ffn: int = 1024,
        dropout: float = 0.0,
    ):
        super().__init__()
        _check_width(dim, channels, num_levels + 1)
        self.channels, self.num_levels = tuple(channels), num_levels
        self.input_proj = nn.ModuleList(projection(c, dim, bias=True) for c in reversed(channels[-num_levels:]))
        self.position = SinePositions(dim // 2)
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))
        self.encoder = DeformableEncoder(
            [
                DeformableEncoderLayer(dim, d_ffn, dropout, "relu", num_levels, num_heads, num_points)
                for _ in range(num_layers)
            ]
        )
        fine = channels[:-num_levels]
        self.laterals = nn.ModuleList(projection(c, dim, bias=False) for c in reversed(fine))
        self.outputs = nn.ModuleList(smoothing(dim, dim) for _ in fine)
        self.mask_features = Pointwise(dim, mask_dim)
        init_transformer(self.encoder)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``, from fine to coarse.

        Returns:
            Pixel embeddings ``[B, mask_dim, H_0, W_0]``, and the encoder's maps ``[B, dim, H_i, W_i]`` from coarse to
            fine.
        """
        check_maps(features, self.channels)
        levels = [p(f) for p, f in zip(self.input_proj, reversed(features[-self.num_levels :]))]
        shapes = [(x.shape[2], x.shape[3]) for x in levels]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)  # [B, S, dim]
        pos = torch.cat(
            [
                sine_positions(self.position, x).flatten(2).transpose(1, 2) + embed
                for x, embed in zip(levels, self.level_embed.to(tokens.dtype))
            ],
            dim=1,
        )  # [1, S, dim]
        whole = torch.ones(1, len(levels), 2, device=tokens.device)  # no level has padding
        reference = encoder_reference_points(shapes, whole).expand(tokens.shape[0], -1, -1, -1)
        for layer in self.encoder.layers:
            tokens = layer(tokens, pos, reference, shapes, None)
        maps = [
            part.transpose(1, 2).unflatten(2, shape)
            for part, shape in zip(tokens.split([h * w for h, w in shapes], dim=1), shapes)
        ]
        x = maps[-1]
        for lateral, output, feature in zip(self.laterals, self.outputs, reversed(features[: -self.num_levels])):
            left = lateral(feature)
            x = output(left + F.interpolate(x, size=left.shape[-2:], mode="bilinear", align_corners=False))
        return self.mask_features(x), maps


def _check_width(dim: int, channels: Sequence[int], least: int) -> None:
    if len(channels) < least:
        raise ValueError(f"channels={tuple(channels)}: the pixel decoder needs {least} maps at least")
    if dim % GROUPS:
        raise ValueError(f"dim={dim}: accepted are multiples of {GROUPS}, the groups of the normalisation")
