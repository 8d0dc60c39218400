"""BiFormer: a four-stage pyramid with bi-level routing attention.

BiFormer: Vision Transformer with Bi-Level Routing Attention (CVPR 2023, arXiv 2303.08810).
Authors' code: github.com/rayleizhu/BiFormer (MIT). Differences: every image size is accepted (``auto_pad`` is on by
default, and does nothing where sizes divide), ``qk_dims`` default to the widths, and maps stay channels-last inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.drop_path import DropPath
from zoo.layers.layer_norm_2d import LayerNorm2d
from zoo.layers.position_encoding import ConvPositionEncoding
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.bra import BiLevelRoutingAttention
from zoo.mixers.lepe import LePEAttention
from zoo.registry import register_model, variant


class ConvMixer(nn.Module):
    """The convolution branch of ``topk = 0``: 1x1, 5x5 depth-wise, 1x1, nothing in between; ``[B, H, W, C]``."""

    def __init__(self, dim: int):
        super().__init__()
        self.value = TokenLinear(dim, dim)
        self.dwconv = DepthwiseConv(dim, 5)
        self.out = TokenLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dwconv(self.value(x)))


class Mlp(nn.Module):
    """Linear, optional 3x3 depth-wise convolution, GELU, linear, on ``[B, H, W, C]``."""

    def __init__(self, dim: int, hidden: int, dwconv: bool = False):
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden, 3) if dwconv else nn.Identity()
        self.act = nn.GELU()
        self.fc2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x))))


class BiFormerBlock(nn.Module):
    """Position convolution, mixer and MLP, each a residual, on ``[B, H, W, C]``.

    Args:
        dim: channels C.
        mixer: the token mixer.
        mlp_ratio: hidden width of the MLP over ``dim``.
        mlp_dwconv: a depth-wise convolution inside the MLP.
        position_kernel: kernel of the depth-wise position convolution; 0 for none.
        drop_path: rate of stochastic depth.
        layer_scale: initial value of a learned factor a channel of both residuals; 0 or less for none.
        pre_norm: normalise before mixer and MLP, otherwise after their residual sums.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float = 4.0,
        mlp_dwconv: bool = False,
        position_kernel: int = 0,
        drop_path: float = 0.0,
        layer_scale: float = -1.0,
        pre_norm: bool = True,
    ):
        super().__init__()
        self.pos_embed = ConvPositionEncoding(dim, position_kernel) if position_kernel > 0 else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), mlp_dwconv)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale > 0 else None
        self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale))) if layer_scale > 0 else None
        self.pre_norm = pre_norm

    def _branch(self, module: nn.Module, gamma: Tensor | None, x: Tensor) -> Tensor:
        x = module(x)
        return self.drop_path(x if gamma is None else gamma * x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_embed(x)
        if self.pre_norm:
            x = x + self._branch(self.attn, self.gamma1, self.norm1(x))
            return x + self._branch(self.mlp, self.gamma2, self.norm2(x))
        x = self.norm1(x + self._branch(self.attn, self.gamma1, x))
        return self.norm2(x + self._branch(self.mlp, self.gamma2, x))


class BiFormerTrunk(Backbone):
    """What BiFormer and its Swin-layout form share: the loop over the stages, the head, the layer groups.

    ``downsample_layers[i]`` leads to ``stages[i]``; ``norm`` and ``head`` make the classifier (both identities when
    ``num_classes`` is 0). With ``extra_norms`` the map of each stage goes through a norm when it is put out, and only
    then.
    """

    downsample_layers: nn.ModuleList
    stages: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    extra_norms: nn.ModuleList | None

    def _finish(self, depth: Sequence[int], head_norm: Callable[[int], nn.Module], extra_norms: bool) -> None:
        """Add the head, or the norms of a dense-prediction model, and initialise as the authors do."""
        if extra_norms and self.num_classes:
            raise ValueError(
                f"extra_norms=True is for dense prediction, without a classifier: num_classes={self.num_classes} "
                "must be 0"
            )
        self.depth = tuple(depth)
        self.head_norm = head_norm
        self.norm = self.head = nn.Identity()
        self.extra_norms = None
        if extra_norms:
            self.extra_norms = nn.ModuleList(LayerNorm2d(c, eps=1e-6) for c in self.stage_channels)
        elif self.num_classes:
            self.norm = head_norm(self.num_features)
            self.head = TokenLinear(self.num_features, self.num_classes)
        self.apply(_init_weights)
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        # channels-last throughout: convolutions and linear layers then share one layout
        x = x.contiguous(memory_format=torch.channels_last)
        maps = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = downsample(x).permute(0, 2, 3, 1)  # [B, H, W, C]
            for block in stage.children():
                x = self.run_block(block, x)
            x = x.permute(0, 3, 1, 2)  # [B, C, H, W]
            maps.append(x if self.extra_norms is None else self.extra_norms[i](x))
        return maps, x

    def forward_head(self, trunk: Tensor) -> Tensor:
        return self.head(self.norm(trunk).mean((2, 3)))

    def reset_classifier(self, num_classes: int) -> None:
        if self.extra_norms is not None:
            raise TypeError("a model with extra_norms=True has no classifier to replace")
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        self.num_classes = num_classes
        if not num_classes:
            self.norm = self.head = nn.Identity()
            return
        like = next(self.stages[-1].parameters())
        if isinstance(self.norm, nn.Identity):
            self.norm = self.head_norm(self.num_features).to(like).train(self.training)
        self.head = TokenLinear(self.num_features, num_classes).to(like)
        _init_weights(self.head)

    def stage_modules(self) -> list[list[nn.Module]]:
        later = [[self.downsample_layers[i], self.stages[i]] for i in range(1, len(self.stages))]
        return [[self.downsample_layers[0]], [self.stages[0]], *later]

    def num_layers(self) -> int:
        return sum(self.depth) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "downsample_layers":
            return 0 if rest[0] == "0" else sum(self.depth[: int(rest[0])]) + 1
        if part == "stages":
            return sum(self.depth[: int(rest[0])]) + int(rest[1]) + 1
        if part == "extra_norms":
            return sum(self.depth[: int(rest[0]) + 1])
        return sum(self.depth) + 1


def _init_weights(m: nn.Module) -> None:
    if isinstance(m, nn.Linear):
        nn.init.trunc_normal_(m.weight, std=0.02)
        if m.bias is not None:
            nn.init.zeros_(m.bias)


def heads_of(dim: int, head_dim: int) -> int:
    """Number of heads ``dim // head_dim``.

    Raises:
        ValueError: there would be none.
    """
    if head_dim < 1 or dim < head_dim:
        raise ValueError(f"head_dim={head_dim}: accepted are 1 to the width {dim}")
    return dim // head_dim


class BiFormer(BiFormerTrunk):
    """BiFormer.

    Args:
        depth: blocks of each stage.
        embed_dim: width of each stage.
        num_classes: classes; 0 for features.
        in_chans: channels of the image.
        head_dim: channels of a head of queries and keys in routing stages; the number of heads follows.
        qk_scale, n_win, kv_downsample_mode, param_attention, param_routing, diff_routing, soft_routing, auto_pad: see
            :class:`~zoo.mixers.bra.BiLevelRoutingAttention`.
        kv_per_wins, kv_downsample_ratios, qk_dims: the same, one for each stage.
        topks: for each stage the regions that a region attends; or 0 for a convolution, -1 for full attention, -2 for
            full attention with LePE (both of 8 heads).
        side_dwconv: kernel of LePE; 0 for none.
        before_attn_dwconv: 3 for a position convolution at the start of each block, 0 for none.
        layer_scale_init_value: start of the residuals' learned factors; 0 or less for none.
        pre_norm: normalise before mixer and MLP rather than after.
        mlp_ratios, mlp_dwconv: hidden width of the MLPs, and a depth-wise convolution in them.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        extra_norms: the dense-prediction form: a norm on the map of each stage, no classifier.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 3.4, table 1, and the authors' ``models/biformer.py``.
    """

    def __init__(
        self,
        depth: Sequence[int] = (2, 2, 8, 2),
        embed_dim: Sequence[int] = (64, 128, 256, 512),
        num_classes: int = 1000,
        in_chans: int = 3,
        head_dim: int = 32,
        qk_scale: float | None = None,
        n_win: int = 7,
        topks: Sequence[int] = (1, 4, 16, -2),
        qk_dims: Sequence[int | None] | None = None,
        kv_downsample_mode: str = "identity",
        kv_per_wins: Sequence[int] | int = -1,
        kv_downsample_ratios: Sequence[int] | int = (4, 2, 1, 1),
        side_dwconv: int = 5,
        before_attn_dwconv: int = 3,
        layer_scale_init_value: float = -1.0,
        param_attention: str = "qkvo",
        param_routing: bool = False,
        diff_routing: bool = False,
        soft_routing: bool = False,
        pre_norm: bool = True,
        mlp_ratios: Sequence[float] | float = 3.0,
        mlp_dwconv: bool = False,
        auto_pad: bool = True,
        drop_path_rate: float = 0.0,
        extra_norms: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        n = len(embed_dim)
        depth = per_stage("depth", depth, n)
        topks = per_stage("topks", topks, n)
        qk_widths: list[int] = [q or d for q, d in zip(per_stage("qk_dims", qk_dims, n), embed_dim)]
        kv_per_wins = per_stage("kv_per_wins", kv_per_wins, n)
        kv_downsample_ratios = per_stage("kv_downsample_ratios", kv_downsample_ratios, n)
        mlp_ratios = per_stage("mlp_ratios", mlp_ratios, n)
        if before_attn_dwconv > 0 and before_attn_dwconv != 3:
            # the authors pad by 1 whatever the kernel, so that no other size keeps the map
            raise ValueError(f"before_attn_dwconv={before_attn_dwconv}: accepted are 3 and 0 (none)")
        self._describe(
            embed_dim,
            [4 * 2**i for i in range(n)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )

        def mixer(i: int) -> nn.Module:
            dim, topk = embed_dim[i], topks[i]
            if topk > 0:
                return BiLevelRoutingAttention(
                    dim,
                    heads_of(qk_widths[i], head_dim),
                    n_win=n_win,
                    qk_dim=qk_widths[i],
                    qk_scale=qk_scale,
                    topk=topk,
                    kv_downsample_mode=kv_downsample_mode,
                    kv_per_win=kv_per_wins[i],
                    kv_downsample_ratio=kv_downsample_ratios[i],
                    side_dwconv=side_dwconv,
                    param_attention=param_attention,
                    param_routing=param_routing,
                    diff_routing=diff_routing,
                    soft_routing=soft_routing,
                    auto_pad=auto_pad,
                )
            return full_mixer(dim, topk, side_dwconv)

        def downsample(i: int) -> nn.Sequential:
            if i == 0:
                half, full = embed_dim[0] // 2, embed_dim[0]
                stem = [nn.Conv2d(in_chans, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU()]
                return nn.Sequential(*stem, nn.Conv2d(half, full, 3, 2, 1), nn.BatchNorm2d(full))
            return nn.Sequential(nn.Conv2d(embed_dim[i - 1], embed_dim[i], 3, 2, 1), nn.BatchNorm2d(embed_dim[i]))

        rates = drop_path_rates(drop_path_rate, depth)
        self.downsample_layers = nn.ModuleList(downsample(i) for i in range(n))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                BiFormerBlock(
                    embed_dim[i],
                    mixer(i),
                    mlp_ratio=mlp_ratios[i],
                    mlp_dwconv=mlp_dwconv,
                    position_kernel=before_attn_dwconv,
                    drop_path=rates[i][j],
                    layer_scale=layer_scale_init_value,
                    pre_norm=pre_norm,
                )
                for j in range(depth[i])
            )
            for i in range(n)
        )
        self._finish(depth, nn.BatchNorm2d, extra_norms)


def full_mixer(dim: int, topk: int, side_dwconv: int) -> nn.Module:
    """The mixer of a stage without routing, that is with ``topk`` 0, -1 or -2."""
    if topk == 0:
        return ConvMixer(dim)
    if topk in (-1, -2):
        return LePEAttention(dim, side_dwconv=side_dwconv if topk == -2 else 0, lepe_input="x")
    raise ValueError(f"topk={topk}: accepted are positive numbers, 0 (convolution), -1 and -2 (full attention)")


@register_model(task="classification", family="biformer", input_size=32)
@variant(BiFormer)
def biformer_nano() -> dict[str, Any]:
    """For small images (32 x 32): 2 x 2 regions, of which 1, then 2, then all are attended."""
    return dict(depth=(1, 1, 2, 1), embed_dim=(32, 64, 128, 192), head_dim=16, n_win=2, topks=(1, 2, 4, -2))


@register_model(task="classification", family="biformer", input_size=224)
@variant(BiFormer)
def biformer_tiny() -> dict[str, Any]:
    """BiFormer-T, 13.1 M parameters."""
    return dict(depth=(2, 2, 8, 2), embed_dim=(64, 128, 256, 512))


@register_model(task="classification", family="biformer", input_size=224)
@variant(BiFormer)
def biformer_small() -> dict[str, Any]:
    """BiFormer-S, 25.5 M parameters."""
    return dict(depth=(4, 4, 18, 4), embed_dim=(64, 128, 256, 512))


@register_model(task="classification", family="biformer", input_size=224)
@variant(BiFormer)
def biformer_base() -> dict[str, Any]:
    """BiFormer-B, 56.8 M parameters."""
    return dict(depth=(4, 4, 18, 4), embed_dim=(96, 192, 384, 768))
