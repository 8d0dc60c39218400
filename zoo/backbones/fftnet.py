"""FFTNet: a plain vision transformer whose tokens mix in the frequency domain.

The FFT Strikes Back: An Efficient Alternative to Self-Attention (arXiv 2502.18394). Authors' code:
github.com/jacobfa/fft (``imgnet/``, in its history; no licence; this follows the paper and recorded results).
Differences: every image size is accepted, with position table and filters interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.layers.drop_path import DropPath
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv, patches
from zoo.layers.position_table import PositionTable
from zoo.layers.stages import drop_path_rates
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.fft import FFTMixer
from zoo.registry import register_model, variant


class FFTNetBlock(nn.Module):
    """``x + (x + mixer(norm1(x)))``, then ``x + mlp(norm2(x))`` on prefix and map.

    The authors' spectral attention has a residual sum of its own, and their block has another around it.

    Args:
        mixer: the spectral mixer.
        hidden: width of the MLP.
        dropout: after both layers of the MLP.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, mixer: FFTMixer, hidden: int, dropout: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        dim = mixer.dim
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            TokenLinear(dim, hidden), nn.GELU(), nn.Dropout(dropout), TokenLinear(hidden, dim), nn.Dropout(dropout)
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, 1 + N, C] -> [B, 1 + N, C]``, the class token first."""
        tokens = tokens + self.drop_path(tokens + self.mixer.forward_tokens(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class FFTNet(Backbone):
    """FFTNet for images; every block is a stage of stride ``patch_size``.

    Args:
        input_size: image size that position table and filters are made for; any other size runs too.
        patch_size: pixels along the side of a token.
        in_chans: channels of the image.
        num_classes: classes; 0 for features. The class token stays, as the map reads it.
        dim: channels.
        depth: blocks.
        num_heads: groups of channels that share a filter.
        mlp_ratio: hidden channels of the MLPs over ``dim``.
        dropout: of the embedded tokens, of the mixers' results and in the MLPs.
        adaptive: whether the filters follow the image.
        token_std: standard deviation that the class token starts with; the authors' small one makes its first steps
            large, as every block normalises it.
        drop_remainder: leave out the pixels that make no whole patch, as the authors do, rather than pad.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: embedding (0) and blocks (1 ...) that are not trained; -1 for none.

    Source: section 3 and the authors' ``imgnet/fftnet_vit.py``.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        adaptive: bool = True,
        token_std: float = 0.02,
        drop_remainder: bool = False,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        self._describe(
            [dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        height, width = (patches(n, patch_size, drop_remainder) for n in to_pair(input_size, "input_size"))
        self.patch_embed = PatchConv(in_chans, dim, patch_size, drop_remainder)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_decay = ("cls_token", "cls_pos")
        self.pos_embed = PositionTable((height, width), dim)
        self.dropout = nn.Dropout(dropout)
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        self.blocks = nn.ModuleList(
            FFTNetBlock(
                FFTMixer(dim, num_heads, (height, width), num_prefix=1, adaptive=adaptive, dropout=dropout),
                int(dim * mlp_ratio),
                dropout,
                rate,
            )
            for rate in rates
        )
        self._make_head(num_classes)
        nn.init.normal_(self.cls_token, std=token_std)
        nn.init.trunc_normal_(self.cls_pos, std=0.02)
        self.apply(_init_weights)
        self.freeze()

    def _make_head(self, num_classes: int) -> None:
        self.norm = nn.LayerNorm(self.num_features) if num_classes else None
        self.head = TokenLinear(self.num_features, num_classes) if num_classes else None

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``[B, 1 + H*W, C]`` of images, the class token first, and (H, W)."""
        grid = self.pos_embed(self.patch_embed(x).permute(0, 2, 3, 1))  # [B, H, W, C]
        token = (self.cls_token + self.cls_pos).expand(grid.shape[0], -1, -1)
        tokens = torch.cat([token, grid.flatten(1, 2)], dim=1)
        return self.dropout(tokens), (grid.shape[1], grid.shape[2])

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        tokens, size = self.embed(x)
        maps = []
        for block in self.blocks:
            tokens = self.run_block(block, tokens)
            maps.append(tokens[:, 1:].unflatten(1, size).permute(0, 3, 1, 2))
        return maps, tokens

    def forward_head(self, trunk: Tensor) -> Tensor:
        token = trunk[:, 0]
        return token if self.head is None or self.norm is None else self.head(self.norm(token))

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        norm, like = self.norm, self.cls_token
        self.num_classes = num_classes
        self._make_head(num_classes)
        if self.head is None or self.norm is None:
            return
        self.norm = norm if norm is not None else self.norm.to(like.device, like.dtype).train(self.training)
        self.head.to(like.device, like.dtype).apply(_init_weights)

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed, self.pos_embed], *([b] for b in self.blocks)]

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed", "pos_embed", "cls_")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.num_layers() - 1

    def num_layers(self) -> int:
        return len(self.blocks) + 2


def _init_weights(m: nn.Module) -> None:
    if isinstance(m, nn.Linear):
        nn.init.xavier_uniform_(m.weight)
        if m.bias is not None:
            nn.init.zeros_(m.bias)


@register_model(task="classification", family="fftnet", input_size=32)
@variant(FFTNet)
def fftnet_nano() -> dict[str, Any]:
    """For small images (32 x 32): patches of 4 x 4, no dropout."""
    return dict(input_size=32, patch_size=4, dim=96, depth=4, num_heads=4, mlp_ratio=2.0, dropout=0.0, token_std=1.0)


@register_model(task="classification", family="fftnet", input_size=224)
@variant(FFTNet)
def fftnet_vit_default() -> dict[str, Any]:
    """The authors' size for ImageNet, 87.3 M parameters."""
    return dict(input_size=224, patch_size=16, dim=768, depth=12, num_heads=12)
