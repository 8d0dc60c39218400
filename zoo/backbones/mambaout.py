"""MambaOut: a four-stage pyramid of gated CNN blocks; Mamba without its state space model.

MambaOut: Do We Really Need Mamba for Vision? (CVPR 2025, arXiv 2405.07992).
Authors' code: github.com/yuweihao/MambaOut (Apache-2.0). Differences: the options that timm's models of this family
have besides (:class:`MambaOut`), and that downsampling belongs to the stage that it leads to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.layers.drop_path import DropPath
from zoo.layers.stages import drop_path_rates, per_stage
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.gated_conv import GatedConv
from zoo.registry import register_model, variant

EPS = 1e-6


class MambaOutStem(nn.Module):
    """Two 3x3 convolutions of stride 2: ``[B, in_chans, H, W] -> [B, H/4, W/4, C]``, rounded up.

    Args:
        in_chans, dim: channels.
        mid_norm: normalise between the convolutions.
        act_layer: class of the activation between them.
    """

    def __init__(self, in_chans: int, dim: int, mid_norm: bool = True, act_layer: type[nn.Module] = nn.GELU):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, 2, 1)
        self.norm1 = nn.LayerNorm(dim // 2, eps=EPS) if mid_norm else nn.Identity()
        self.act = act_layer()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, 2, 1)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)  # [B, H, W, C]
        x = self.act(self.norm1(x)).permute(0, 3, 1, 2)  # [B, C, H, W]
        return self.norm2(self.conv2(x).permute(0, 2, 3, 1))


class MambaOutDownsample(nn.Module):
    """3x3 convolution of stride 2 with a norm behind or before it: ``[B, H, W, C] -> [B, H/2, W/2, D]``, rounded up."""

    def __init__(self, in_dim: int, dim: int, norm_first: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, 2, 1)
        self.norm = nn.LayerNorm(in_dim if norm_first else dim, eps=EPS)
        self.norm_first = norm_first

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = self.norm(x)
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x if self.norm_first else self.norm(x)


class GatedConvBlock(nn.Module):
    """``x + mixer(norm(x))`` on ``[B, H, W, C]``; there is no MLP beside it.

    Args:
        mixer: the gated convolution.
        norm_eps: epsilon of the norm.
        drop_path: rate of stochastic depth.
        layer_scale: initial value of a learned factor a channel of the branch; None for none.
    """

    def __init__(
        self, mixer: GatedConv, norm_eps: float = EPS, drop_path: float = 0.0, layer_scale: float | None = None
    ):
        super().__init__()
        self.norm = nn.LayerNorm(mixer.dim, eps=norm_eps)
        self.mixer = mixer
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((mixer.dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.norm(x))
        return x + self.drop_path(y if self.gamma is None else y * self.gamma)


class MlpHead(nn.Module):
    """Linear to four times the width, GELU, norm, dropout, linear: ``[B, C] -> [B, num_classes]``."""

    def __init__(self, dim: int, num_classes: int, norm: bool = True, dropout: float = 0.0):
        super().__init__()
        self.fc1 = TokenLinear(dim, 4 * dim)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(4 * dim, eps=EPS) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = TokenLinear(4 * dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.norm(self.act(self.fc1(x)))))


class LinearHead(nn.Module):
    """Dropout and a linear layer: ``[B, C] -> [B, num_classes]``."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = TokenLinear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(x))


class MambaOut(Backbone):
    """MambaOut.

    Args:
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        depths: blocks of each stage.
        dims: width of each stage.
        conv_ratio, kernel_size, expansion_ratio, act_layer: of :class:`~zoo.mixers.gated_conv.GatedConv`.
        norm_eps: epsilon of the norms in the blocks.
        head_norm_eps: epsilon of the norm of the pooled features.
        head: "mlp" (the authors'), "mlp_plain" (no norm inside) or "linear".
        head_dropout: dropout before the last layer.
        stem_norm: normalise between the convolutions of the stem.
        stem_act_layer: class of the activation between them.
        norm_first: downsampling normalises before its convolution rather than behind it.
        layer_scale: initial value of a learned factor a channel of each block's branch; None for none.
        drop_path_rate: stochastic depth of the last block, growing linearly.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 4.1, table 1 and the authors' ``models/mambaout.py``; ``expansion_ratio``, ``stem_norm``,
    ``norm_first``, ``layer_scale`` and "mlp_plain" are timm's.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 576),
        conv_ratio: float = 1.0,
        kernel_size: int = 7,
        expansion_ratio: float = 8 / 3,
        act_layer: type[nn.Module] = nn.GELU,
        norm_eps: float = EPS,
        head_norm_eps: float = EPS,
        head: str = "mlp",
        head_dropout: float = 0.0,
        stem_norm: bool = True,
        stem_act_layer: type[nn.Module] = nn.GELU,
        norm_first: bool = False,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if head not in ("mlp", "mlp_plain", "linear"):
            raise ValueError(f"head={head!r}: accepted are 'mlp', 'mlp_plain' and 'linear'")
        stages = len(dims)
        depths = per_stage("depths", depths, stages)
        self._describe(
            dims,
            [4 * 2**i for i in range(stages)],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.depths = tuple(depths)
        self.head_kind, self.head_dropout, self.head_norm_eps = head, head_dropout, head_norm_eps
        rates = drop_path_rates(drop_path_rate, depths)

        def block(i: int, j: int) -> GatedConvBlock:
            mixer = GatedConv(
                dims[i],
                expansion_ratio=expansion_ratio,
                kernel_size=kernel_size,
                conv_ratio=conv_ratio,
                act_layer=act_layer,
            )
            return GatedConvBlock(mixer, norm_eps, rates[i][j], layer_scale)

        self.stem = MambaOutStem(in_chans, dims[0], stem_norm, stem_act_layer)
        self.downsamples = nn.ModuleList(MambaOutDownsample(a, b, norm_first) for a, b in zip(dims, dims[1:]))
        self.stages = nn.ModuleList(nn.ModuleList(block(i, j) for j in range(depth)) for i, depth in enumerate(depths))
        self._make_head(num_classes)
        self.apply(_init_weights)
        self.freeze()

    def _make_head(self, num_classes: int) -> None:
        self.norm: nn.Module | None = None
        self.head: MlpHead | LinearHead | None = None
        if not num_classes:
            return
        self.norm = nn.LayerNorm(self.num_features, eps=self.head_norm_eps)
        if self.head_kind == "linear":
            self.head = LinearHead(self.num_features, num_classes, self.head_dropout)
        else:
            self.head = MlpHead(self.num_features, num_classes, self.head_kind == "mlp", self.head_dropout)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.stem(x)  # [B, H, W, C] from here on
        maps = []
        for i, blocks in enumerate(self.stages):
            if i:
                x = self.downsamples[i - 1](x)
            for block in blocks.children():
                x = self.run_block(block, x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps, x

    def forward_head(self, trunk: Tensor) -> Tensor:
        pooled = self.pool(trunk)
        return pooled if self.head is None else self.head(pooled)

    def pool(self, trunk: Tensor) -> Tensor:
        """Features ``[B, C]``: the mean over the map, then the norm (where there is a classifier)."""
        pooled = trunk.mean((1, 2))
        return pooled if self.norm is None else self.norm(pooled)

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        like, head = self.stem.conv1.weight, self.head
        self.num_classes = num_classes
        if not num_classes or head is None:
            self._make_head(num_classes)
            for part in (self.norm, self.head):
                if part is not None:
                    part.to(like.device, like.dtype).train(self.training).apply(_init_weights)
            return
        head.fc2 = TokenLinear(head.fc2.in_features, num_classes).to(like.device, like.dtype)
        _init_weights(head.fc2)

    def stage_modules(self) -> list[list[nn.Module]]:
        later = [[d, s] for d, s in zip(self.downsamples, self.stages[1:])]
        return [[self.stem], [self.stages[0]], *later]

    def num_layers(self) -> int:
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "stem":
            return 0
        if part == "downsamples":  # with the first block after it
            return sum(self.depths[: int(rest[0]) + 1]) + 1
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        return self.num_layers() - 1


def _init_weights(m: nn.Module) -> None:
    if isinstance(m, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(m.weight, std=0.02)
        if m.bias is not None:
            nn.init.zeros_(m.bias)


@register_model(task="classification", family="mambaout", input_size=32)
@variant(MambaOut)
def mambaout_nano() -> dict[str, Any]:
    """For small images (32 x 32)."""
    return dict(depths=(1, 1, 2, 1), dims=(32, 64, 96, 128), kernel_size=5)


@register_model(task="classification", family="mambaout", input_size=224)
@variant(MambaOut)
def mambaout_femto() -> dict[str, Any]:
    """MambaOut-Femto, 7.3 M parameters."""
    return dict(depths=(3, 3, 9, 3), dims=(48, 96, 192, 288))


@register_model(task="classification", family="mambaout", input_size=224)
@variant(MambaOut)
def mambaout_kobe() -> dict[str, Any]:
    """MambaOut-Kobe, 9.1 M parameters: Femto with 24 blocks."""
    return dict(depths=(3, 3, 15, 3), dims=(48, 96, 192, 288))


@register_model(task="classification", family="mambaout", input_size=224)
@variant(MambaOut)
def mambaout_tiny() -> dict[str, Any]:
    """MambaOut-Tiny, 26.5 M parameters."""
    return dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 576))


@register_model(task="classification", family="mambaout", input_size=224)
@variant(MambaOut)
def mambaout_small() -> dict[str, Any]:
    """MambaOut-Small, 48.5 M parameters."""
    return dict(depths=(3, 4, 27, 3), dims=(96, 192, 384, 576))


@register_model(task="classification", family="mambaout", input_size=224)
@variant(MambaOut)
def mambaout_base() -> dict[str, Any]:
    """MambaOut-Base, 84.8 M parameters."""
    return dict(depths=(3, 4, 27, 3), dims=(128, 256, 512, 768))
