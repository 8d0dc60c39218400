"""MoH-ViT: TransNeXt, a pyramid with aggregated attention, whose heads form a mixture.

MoH: Multi-Head Attention as Mixture-of-Head Attention (arXiv 2410.11842); TransNeXt: Robust Foveal Visual Perception
for Vision Transformers (CVPR 2024, arXiv 2311.17132). Authors' code: github.com/SkyworkAI/MoH (Apache-2.0). Difference:
any image size is accepted (pooled maps, masks and relative positions follow the map, in units of ``pretrain_size``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.backbones.hybrid_base import init_linear
from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.drop_path import DropPath
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.aggregated import AggregatedAttention
from zoo.mixers.moh import MoHAttention
from zoo.registry import register_model, variant


class ConvGLU(nn.Module):
    """Gated MLP whose gate sees a 3x3 neighbourhood: ``fc2(gelu(dwconv(a)) * b)``, ``a, b = fc1(x)``; ``[B, H, W, C]``.

    Args:
        dim: channels C.
        hidden: width of a plain MLP of the same size; the gated one has two thirds of it.
        drop: dropout in training.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0):
        super().__init__()
        hidden = int(2 * hidden / 3)
        self.fc1 = TokenLinear(dim, 2 * hidden)
        self.dwconv = DepthwiseConv(hidden, 3)
        self.act = nn.GELU()
        self.fc2 = TokenLinear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(self.drop(self.act(self.dwconv(gate)) * value)))


class MoHBlock(nn.Module):
    """Mixer and gated MLP, each normalised before and added to its input; ``[B, H, W, C]``."""

    def __init__(self, mixer: nn.Module, dim: int, mlp_ratio: float, norm_eps: float, drop: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = ConvGLU(dim, int(dim * mlp_ratio), drop)
        self.drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.drop(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OverlapEmbed(nn.Module):
    """Convolution that reaches past its stride, then LayerNorm: ``[B, C, H, W] -> [B, H', W', C']``."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class MoHTransNeXt(Backbone):
    """MoH-TransNeXt; the map of a stage is that after its norm, which also leads to the next stage.

    Args:
        img_size: image size that the model is for (relative positions of other sizes extrapolate).
        pretrain_size: image size that relative positions take as their unit; None for ``img_size``.
        window_size: odd side of the neighbourhood of each stage (not used where ``sr_ratios`` is 1).
        patch_size: stride of the first embedding, whose kernel is ``2 * patch_size - 1``.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        embed_dims, num_heads, mlp_ratios, depths: widths, heads, hidden widths and blocks of each stage.
        qkv_bias: bias of the projections to queries, keys and values.
        sr_ratios: side of the cells of the pooled map of each stage; 1 for full attention.
        fixed_pool_size: side of the pooled map, whatever the image.
        shared_head, routed_head: heads of each stage that are always on, and how many of the others are.
        norm_eps: epsilon of the norms of blocks and stages.
        drop_rate: dropout in MLPs and after attention.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: MoH section 4.1; TransNeXt section 3 and table 1.
    """

    def __init__(
        self,
        img_size: int = 224,
        pretrain_size: int | None = None,
        window_size: Sequence[int | None] = (3, 3, 3, None),
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (72, 144, 288, 576),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        depths: Sequence[int] = (5, 5, 22, 5),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        fixed_pool_size: int | None = None,
        shared_head: Sequence[int] = (3, 6, 3, 4),
        routed_head: Sequence[int] = (0, 0, 6, 12),
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(embed_dims)
        if patch_size < 2:
            raise ValueError(f"patch_size={patch_size}: accepted are numbers from 2, for the embeddings overlap")
        for name, value in (("num_heads", num_heads), ("depths", depths), ("sr_ratios", sr_ratios)):
            per_stage(name, value, n)
        windows, ratios = per_stage("window_size", window_size, n), per_stage("mlp_ratios", mlp_ratios, n)
        shared, routed = per_stage("shared_head", shared_head, n), per_stage("routed_head", routed_head, n)
        self._describe(
            embed_dims,
            [patch_size * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.depths = tuple(depths)
        self.norm_eps = norm_eps
        unit = pretrain_size or img_size

        def mixer(i: int) -> nn.Module:
            # The authors count the stages' strides from 4, whatever the patch size.
            common: dict[str, Any] = dict(
                shared_heads=shared[i],
                routed_heads=routed[i],
                input_size=max(1, unit // 2 ** (i + 2)),
                qkv_bias=qkv_bias,
            )
            if sr_ratios[i] == 1:
                return MoHAttention(embed_dims[i], num_heads[i], **common)
            if windows[i] is None:
                raise ValueError(f"window_size={windows}: stage {i} has sr_ratio {sr_ratios[i]} and needs a window")
            return AggregatedAttention(
                embed_dims[i],
                num_heads[i],
                window_size=windows[i],
                sr_ratio=sr_ratios[i],
                pool_size=fixed_pool_size,
                **common,
            )

        rates = drop_path_rates(drop_path_rate, list(depths))
        self.embeds = nn.ModuleList(
            OverlapEmbed(
                embed_dims[i - 1] if i else in_chans,
                embed_dims[i],
                3 if i else 2 * patch_size - 1,
                2 if i else patch_size,
            )
            for i in range(n)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                MoHBlock(mixer(i), embed_dims[i], ratios[i], norm_eps, drop_rate, rates[i][j]) for j in range(depths[i])
            )
            for i in range(n)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=norm_eps) for d in embed_dims)
        self.head = TokenLinear(embed_dims[-1], num_classes) if num_classes else nn.Identity()
        init_linear(self)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, 0, math.sqrt(2 * m.groups / (m.kernel_size[0] ** 2 * m.out_channels)))
                nn.init.zeros_(m.bias)  # type: ignore[arg-type]
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for embed, stage, norm in zip(self.embeds, self.stages, self.norms):
            y = embed(x)  # [B, H, W, C]
            for block in stage.children():
                y = self.run_block(block, y)
            y = norm(y)
            x = y.permute(0, 3, 1, 2)
            maps.append(x)
        return maps, y.mean((1, 2))

    def forward_head(self, trunk: Tensor) -> Tensor:
        return self.head(trunk)

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes:
            self.head = TokenLinear(self.num_features, num_classes).to(next(self.parameters()))
            init_linear(self.head)

    def stage_modules(self) -> list[list[nn.Module]]:
        later = [[self.embeds[i], self.stages[i], self.norms[i]] for i in range(1, len(self.stages))]
        return [[self.embeds[0]], [self.stages[0], self.norms[0]], *later]

    def num_layers(self) -> int:
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "embeds":
            return 0 if rest[0] == "0" else sum(self.depths[: int(rest[0])]) + 1
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        if part == "norms":
            return sum(self.depths[: int(rest[0]) + 1])
        return sum(self.depths) + 1


@register_model(task="classification", family="moh", input_size=224)
@variant(MoHTransNeXt)
def moh_transnext_small_75() -> dict[str, Any]:
    """MoH-ViT-S with about 75 % of the heads on, 49.9 M parameters."""
    return dict(shared_head=(3, 6, 3, 4), routed_head=(0, 0, 6, 12))


@register_model(task="classification", family="moh", input_size=224)
@variant(MoHTransNeXt)
def moh_transnext_small_80() -> dict[str, Any]:
    """MoH-ViT-S with about 80 % of the heads on, 49.9 M parameters."""
    return dict(shared_head=(3, 6, 3, 8), routed_head=(0, 0, 6, 12))


def _base(**heads: Any) -> dict[str, Any]:
    return dict(embed_dims=(96, 192, 384, 768), num_heads=(4, 8, 16, 32), depths=(5, 5, 23, 5), **heads)


@register_model(task="classification", family="moh", input_size=224)
@variant(MoHTransNeXt)
def moh_transnext_base_50() -> dict[str, Any]:
    """MoH-ViT-B with about 50 % of the heads on, 90.0 M parameters."""
    return _base(shared_head=(2, 2, 2, 4), routed_head=(2, 4, 6, 8))


@register_model(task="classification", family="moh", input_size=224)
@variant(MoHTransNeXt)
def moh_transnext_base_75() -> dict[str, Any]:
    """MoH-ViT-B with about 75 % of the heads on, 90.0 M parameters."""
    return _base(shared_head=(4, 8, 4, 5), routed_head=(0, 0, 8, 16))
