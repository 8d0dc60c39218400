"""TAP-FAN: fully attentional networks whose blocks attend to tokens pooled as wide as each asks for.

Robustifying Token Attention for Vision Transformers (ICCV 2023, arXiv 2303.11126); FAN: Understanding The Robustness in
Vision Transformers (ICML 2022, arXiv 2204.12451). Authors' code: github.com/guoyongcs/TAPADL (MIT). Difference: any map
is accepted, the authors' must be square. The attentions are recorded for the attention diversification loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.backbones.hybrid_base import init_linear
from zoo.layers.class_attention import ClassAttention
from zoo.layers.convnext_stem import ConvNeXtStem
from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.patch_conv import PatchConv
from zoo.layers.stages import per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.layers.token_pooling import TokenAwarePooling
from zoo.mixers.tap import RecordedAttention
from zoo.registry import register_model, variant


class FourierPositions(nn.Module):
    """Sines and cosines of both coordinates, projected and added to ``[B, H, W, C]``."""

    def __init__(self, dim: int, hidden: int = 32, temperature: float = 10000.0):
        super().__init__()
        self.hidden, self.temperature = hidden, temperature
        self.token_projection = TokenLinear(2 * hidden, dim)

    def _axis(self, size: int, like: Tensor) -> Tensor:
        """``[size, hidden]``: sine and cosine in turns, of coordinates 1 ... size in units of the whole axis."""
        place = torch.arange(1, size + 1, device=like.device, dtype=torch.float32) / (size + 1e-6) * (2 * math.pi)
        pairs = torch.arange(self.hidden // 2, device=like.device, dtype=torch.float32)
        angle = place[:, None] / self.temperature ** (2 * pairs / self.hidden)
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1], x.shape[2]
        weight = self.token_projection.weight
        rows, columns = self._axis(H, weight), self._axis(W, weight)
        table = torch.cat([rows[:, None].expand(-1, W, -1), columns[None].expand(H, -1, -1)], dim=-1)
        return x + self.token_projection(table)


class ConvEmbed(nn.Sequential):
    """3 x 3 convolutions of stride 2 with BatchNorm, GELU in between: ``[B, C, H, W] -> [B, H', W', dim]``."""

    def __init__(self, in_chans: int, dim: int, patch_size: int):
        shares = {16: (8, 4, 2, 1), 8: (4, 2, 1), 4: (4, 1)}
        if patch_size not in shares:
            raise ValueError(f"patch_size={patch_size}: accepted are 16, 8 and 4")
        layers: list[nn.Module] = []
        for share in shares[patch_size]:
            width = dim // share
            layers += [nn.GELU()] if layers else []
            layers += [nn.Conv2d(in_chans, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)]
            in_chans = width
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 2, 3, 1)


class HybridEmbed(nn.Module):
    """The first stages of a ConvNeXt, then patches of its map: ``[B, C, H, W] -> [B, H', W', dim]``."""

    def __init__(self, stem: ConvNeXtStem, dim: int, patch_size: int, drop_remainder: bool):
        super().__init__()
        self.backbone = stem
        self.proj = PatchConv(stem.out_dim, dim, patch_size, drop_remainder)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.backbone(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvMlp(nn.Module):
    """``fc2(gamma * dw(x) + x)`` with ``x = fc1(x)``, dw two depth-wise convolutions with GELU and BatchNorm
    between."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden)
        self.conv1 = DepthwiseConv(hidden, 3)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(hidden)
        self.conv2 = DepthwiseConv(hidden, 3)
        self.gamma = nn.Parameter(torch.ones(hidden))
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        y = self.bn(self.act(self.conv1(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.gamma * self.conv2(y) + x)


class ChannelProcessing(nn.Module):
    """FAN's channel attention: each channel of a convolutional MLP's result gets one weight; ``[B, H, W, C]``.

    The weight is ``temperature * sigmoid(softmax(q)^T mean(softmax(k)))``, softmaxes over the positions and the mean
    over the channels of a head (FAN, eq. 8-9).
    """

    def __init__(self, dim: int, num_heads: int, hidden: int, qkv_bias: bool, norm_eps: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of the channel attention's num_heads={num_heads}")
        self.num_heads = num_heads
        self.q = TokenLinear(dim, dim, bias=qkv_bias)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.mlp_v = ConvMlp(dim, hidden)
        self.norm_v = nn.LayerNorm(dim, eps=norm_eps)
        self.no_decay = ("temperature",)

    def forward(self, x: Tensor) -> Tensor:
        tokens, split = x.flatten(1, 2), (self.num_heads, -1)
        q = self.q(tokens).softmax(1).unflatten(2, split)  # [B, N, heads, d]
        k = tokens.softmax(1).unflatten(2, split).mean(-1)  # [B, N, heads]
        logits = (q * k[..., None]).sum(1)  # [B, heads, d]
        gate = (logits.sigmoid() * self.temperature[:, :, 0]).flatten(1)  # [B, C]
        return self.norm_v(self.mlp_v(x)) * gate[:, None, None]


class Downsample(nn.Module):
    """3 x 3 convolution of stride 2 and LayerNorm, between blocks of different width; ``[B, H, W, C]``."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, 3, 2, 1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class TapFanBlock(nn.Module):
    """Attention over pooled tokens, then channel attention, each with a factor a channel, added to ``[B, H, W, C]``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        channel_heads: int,
        num_scales: int,
        mlp_ratio: float,
        qkv_bias: bool,
        eta: float,
        norm_eps: float,
        drop_path: float,
        out_dim: int | None,
    ):
        super().__init__()
        self.pool = TokenAwarePooling(dim, num_scales)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = RecordedAttention(dim, num_heads, qkv_bias, separate=True)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = ChannelProcessing(dim, channel_heads, int(dim * mlp_ratio), qkv_bias, norm_eps)
        self.gamma1 = nn.Parameter(torch.full((dim,), float(eta)))
        self.gamma2 = nn.Parameter(torch.full((dim,), float(eta)))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.downsample = Downsample(dim, out_dim) if out_dim else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm1(self.pool(x)).flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))
        x = x + self.drop_path(self.gamma1 * y)
        x = x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))
        return x if self.downsample is None else self.downsample(x)


class ClassBlock(nn.Module):
    """A block that only works on the first of ``[B, 1 + N, C]`` tokens (CaiT, arXiv 2103.17239, in the form of FAN).

    As the authors have it, the other tokens get their normalised selves added and are doubled.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, eta: float, norm_eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = ClassAttention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma1 = nn.Parameter(torch.full((dim,), float(eta)))
        self.gamma2 = nn.Parameter(torch.full((dim,), float(eta)))

    def forward(self, x: Tensor, tokens_norm: bool) -> Tensor:
        y = self.norm1(x)
        read = self.attn(y[:, :1], y[:, None, 1:])
        x = x + self.gamma1 * torch.cat([read, y[:, 1:]], dim=1)
        first, others = self.norm2(x[:, :1]), self.norm2(x[:, 1:]) if tokens_norm else x[:, 1:]
        return torch.cat([first + self.gamma2 * self.mlp(first), 2 * others], dim=1)


class TapFan(Backbone):
    """TAP-FAN; every block is a stage.

    Args:
        patch_size: side of a token in pixels, 16, 8 or 4; of the convolutional embedding, and not used with ``hybrid``.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dim: width after the embedding.
        depth: blocks.
        channel_dims: width of each block; where it changes, the map is halved. None for ``embed_dim`` throughout.
        num_heads: heads of the attention, one number or one a block.
        c_head_num: heads of the channel attention of each block; None for ``num_heads``.
        mlp_ratio: hidden width of the MLPs over the block's.
        qkv_bias: bias of the projections.
        drop_path_rate: stochastic depth, the same in every block.
        num_scales: scales of token-aware pooling.
        hybrid: arguments of :class:`~zoo.layers.convnext_stem.ConvNeXtStem` for a ConvNeXt stem; None for convolutions.
        hybrid_patch_size: positions of the stem's map along the side of a token.
        cls_attn_layers: blocks of the class token.
        use_pos_embed: add Fourier positions.
        eta: initial factor of the residuals.
        tokens_norm: class blocks normalise all tokens and not only the class token.
        head_init_scale: factor on the classifier's initial weights.
        norm_eps: epsilon of the norms.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad (with ``hybrid``).
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: TAP-ADL section 3; FAN section 3 and table 1.
    """

    config_parts = {"hybrid": ConvNeXtStem}

    def __init__(
        self,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 12,
        channel_dims: Sequence[int] | None = None,
        num_heads: int | Sequence[int] = 8,
        c_head_num: Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        num_scales: int = 4,
        hybrid: Mapping[str, Any] | None = None,
        hybrid_patch_size: int = 2,
        cls_attn_layers: int = 2,
        use_pos_embed: bool = True,
        eta: float = 1.0,
        tokens_norm: bool = True,
        head_init_scale: float = 1.0,
        norm_eps: float = 1e-6,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        dims = per_stage("channel_dims", embed_dim if channel_dims is None else channel_dims, depth)
        heads = per_stage("num_heads", num_heads, depth)
        channel_heads = heads if c_head_num is None else per_stage("c_head_num", c_head_num, depth)
        if dims[0] != embed_dim:
            raise ValueError(f"channel_dims={dims} begins with another width than embed_dim={embed_dim}")
        for dim, n in zip(dims, heads):
            if dim % n:
                raise ValueError(f"num_heads={heads} must divide channel_dims={dims}, block by block")
        if hybrid is None:
            stem: nn.Module = ConvEmbed(in_chans, embed_dim, patch_size)
            stride = patch_size
        else:
            convnext = ConvNeXtStem(**{"in_chans": in_chans, "drop_remainder": drop_remainder, **hybrid})
            stem = HybridEmbed(convnext, embed_dim, hybrid_patch_size, drop_remainder)
            stride = convnext.stride * hybrid_patch_size
        # A block that changes the width gives the narrower map of the next one.
        given = [*dims[1:], dims[-1]]
        halvings = [sum(a != b for a, b in zip(dims[: i + 1], given[: i + 1])) for i in range(depth)]
        self._describe(
            given,
            [stride * 2**h for h in halvings],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        self.depth, self.tokens_norm, self.norm_eps = depth, tokens_norm, norm_eps
        self.patch_embed = stem
        self.pos_embed = FourierPositions(embed_dim) if use_pos_embed else None
        self.blocks = nn.ModuleList(
            TapFanBlock(
                dims[i],
                heads[i],
                channel_heads[i],
                num_scales,
                mlp_ratio,
                qkv_bias,
                eta,
                norm_eps,
                drop_path_rate,
                given[i] if given[i] != dims[i] else None,
            )
            for i in range(depth)
        )
        self._class_arguments = (dims[-1], heads[-1], mlp_ratio, qkv_bias, eta, norm_eps, cls_attn_layers)
        self._head_scale = head_init_scale
        self._make_head(num_classes)
        init_linear(self)
        self._scale_head()
        self.freeze()

    def _make_head(self, num_classes: int) -> None:
        """Class token, class blocks, norm and classifier; without classes there are none."""
        dim, heads, ratio, bias, eta, eps, layers = self._class_arguments
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if num_classes else None
        self.cls_attn_blocks = nn.ModuleList(
            ClassBlock(dim, heads, ratio, bias, eta, eps) for _ in range(layers if num_classes else 0)
        )
        self.norm = nn.LayerNorm(dim, eps=eps) if num_classes else None
        self.head = TokenLinear(dim, num_classes) if num_classes else None
        self.no_decay = ("cls_token",)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    @torch.no_grad()
    def _scale_head(self) -> None:
        if self.head is not None:
            self.head.weight.mul_(self._head_scale)
            self.head.bias.mul_(self._head_scale)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.patch_embed(x)  # [B, H, W, C] from here on
        if self.pos_embed is not None:
            x = self.pos_embed(x)
        maps = []
        for block in self.blocks:
            x = self.run_block(block, x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps, x

    def forward_head(self, trunk: Tensor) -> Tensor:
        if self.cls_token is None or self.norm is None or self.head is None:
            return trunk.mean((1, 2))
        tokens = torch.cat([self.cls_token.expand(trunk.shape[0], -1, -1), trunk.flatten(1, 2)], dim=1)
        for block in self.cls_attn_blocks:
            tokens = block(tokens, self.tokens_norm)
        return self.head(self.norm(tokens[:, 0]))

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        like, kept = next(self.parameters()), (self.cls_token, self.cls_attn_blocks, self.norm)
        self.num_classes = num_classes
        self._make_head(num_classes)
        if self.head is None:
            return
        init_linear(self.cls_attn_blocks)
        init_linear(self.head)
        self._scale_head()
        if kept[0] is not None:
            self.cls_token, self.cls_attn_blocks, self.norm = kept
        self.to(like.device, like.dtype)

    def stage_modules(self) -> list[list[nn.Module]]:
        stem: list[nn.Module] = [m for m in (self.patch_embed, self.pos_embed) if m is not None]
        return [stem, *([b] for b in self.blocks)]

    def num_layers(self) -> int:
        return self.depth + 2

    def layer_id(self, name: str) -> int:
        if name.startswith(("patch_embed", "pos_embed")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else self.depth + 1


def _plain(embed_dim: int, depth: int, num_heads: int) -> dict[str, Any]:
    return dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads)


def _hybrid(
    embed_dim: int, depth: int, num_heads: int | tuple[int, ...], blocks: int = 3, **more: Any
) -> dict[str, Any]:
    stem = dict(depths=(3, blocks), dims=(128, 256))
    return dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, hybrid=stem, **more)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_tiny_12_p16_224() -> dict[str, Any]:
    """TAP-FAN-T-ViT, 7.4 M parameters."""
    return _plain(192, 12, 4)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_small_12_p16_224() -> dict[str, Any]:
    """TAP-FAN-S-ViT, 28.5 M parameters."""
    return _plain(384, 12, 8)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_base_18_p16_224() -> dict[str, Any]:
    """TAP-FAN-B-ViT, 54.6 M parameters."""
    return _plain(448, 18, 8)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_large_24_p16_224() -> dict[str, Any]:
    """TAP-FAN-L-ViT, 81.0 M parameters."""
    return _plain(480, 24, 10)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_tiny_8_p4_hybrid() -> dict[str, Any]:
    """TAP-FAN-T-Hybrid, 7.5 M parameters."""
    return _hybrid(192, 8, 8)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_small_12_p4_hybrid() -> dict[str, Any]:
    """TAP-FAN-S-Hybrid, 26.3 M parameters."""
    return _hybrid(384, 10, 8)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_base_16_p4_hybrid() -> dict[str, Any]:
    """TAP-FAN-B-Hybrid, 50.7 M parameters."""
    return _hybrid(448, 16, 8)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_large_16_p4_hybrid() -> dict[str, Any]:
    """TAP-FAN-L-Hybrid, 77.2 M parameters."""
    return _hybrid(480, 22, 10, blocks=5, head_init_scale=0.001)


@register_model(task="classification", family="tapadl", input_size=224)
@variant(TapFan)
def tap_fan_xlarge_16_p4_hybrid() -> dict[str, Any]:
    """TAP-FAN-XL-Hybrid, 120.9 M parameters."""
    return _hybrid(528, 23, (11,) * 20 + (16,) * 3, blocks=7, channel_dims=(528,) * 20 + (768,) * 3)
