"""DaViT: Dual Attention Vision Transformers (Ding et al., ECCV 2022), arXiv:2204.03645.

Authors' code: https://github.com/dingmyu/davit (MIT). Blocks with window attention and blocks with channel-group
attention alternate in four stages.

What differs here: tokens stay channels-last maps ``[B, H, W, C]`` throughout; parameters have timm's names (the
importer maps the authors' both ways); ``mixer`` puts any other mixer in the place of the window attention;
``norm_outputs`` and ``cpe_act`` are the authors' variations for detection and segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.layers.drop_path import DropPath
from zoo.layers.mlp import Mlp
from zoo.layers.padding import pad_chw, to_pair
from zoo.layers.position_encoding import ConvPositionEncoding
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import build_mixer
from zoo.registry import register_model, variant

ATTENTION_TYPES = ("spatial", "channel")


class DaViTBlock(nn.Module):
    """Position encoding, mixer, position encoding, MLP; each added to its input.

    Args:
        dim: channels C.
        num_heads: attention heads, or channel groups.
        mixer: spec of the token mixer.
        input_size: height and width of the map, for mixers with tables of that size.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability of dropping a branch for an image, in training.
        ffn: False leaves the MLP out.
        cpe_act: GELU after each position encoding's convolution.
        act_layer: activation of the MLP.
        norm_eps: epsilon of the LayerNorms.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mixer: Any,
        input_size: tuple[int, int] = (14, 14),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        ffn: bool = True,
        cpe_act: bool = False,
        act_layer: type[nn.Module] = nn.GELU,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.cpe1 = ConvPositionEncoding(dim, act=cpe_act)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = build_mixer(mixer, dim, num_heads, input_size)
        self.cpe2 = ConvPositionEncoding(dim, act=cpe_act)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps) if ffn else None
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer) if ffn else None
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        x = self.cpe1(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = self.cpe2(x)
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stem(nn.Module):
    """Image to tokens: convolution of stride 4, then LayerNorm; ``[B, 3, H, W] -> [B, H/4, W/4, C]``."""

    def __init__(self, in_chans: int, dim: int, stride: int = 4):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_chans, dim, 7, stride, padding=3)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        # Channels-last, so that the convolution writes tokens as the blocks read them.
        x = pad_chw(x, (self.stride, self.stride)).contiguous(memory_format=torch.channels_last)
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """LayerNorm, then convolution of stride 2: ``[B, H, W, C_in] -> [B, H/2, W/2, C_out]``."""

    def __init__(self, in_dim: int, dim: int, overlapped: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.conv = nn.Conv2d(in_dim, dim, 3 if overlapped else 2, 2, padding=1 if overlapped else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_chw(self.norm(x).permute(0, 3, 1, 2), (2, 2))).permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Downsampling (not in the first stage) and ``depth`` groups of one block for each attention type."""

    def __init__(self, downsample: nn.Module | None, groups: list[list[DaViTBlock]]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(nn.ModuleList(group) for group in groups)


class Head(nn.Module):
    """Mean over tokens, then LayerNorm, then a linear layer: ``[B, H, W, C] -> [B, classes]``."""

    def __init__(self, dim: int, num_classes: int, norm_eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.fc = TokenLinear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((1, 2))))


class DaViT(Backbone):
    """Dual-attention vision transformer.

    With ``num_classes=0`` it has no head, and :meth:`forward_head` gives the mean over tokens.

    Args:
        in_chans: image channels.
        num_classes: classes, or 0 for features.
        depths: block groups of each stage.
        embed_dims: channels of each stage.
        num_heads: heads (and channel groups) of each stage.
        window_size: window of the spatial attention, in tokens.
        mlp_ratio: hidden channels of the MLPs over the stage's.
        qkv_bias: whether the attention's first projection has a bias.
        drop_path_rate: stochastic depth of the last block; from 0 it grows linearly over the blocks.
        attention_types: the one or two blocks of a group, of "spatial" and "channel".
        ffn: False leaves the MLPs out.
        overlapped_patch: downsample by 3x3 convolutions rather than by 2x2.
        cpe_act: GELU after the position encodings' convolutions.
        patch_size: stride of the stem: 4, or less for small images.
        norm_outputs: LayerNorm on every map (the authors' form for detection and segmentation); needs num_classes=0.
        head_norm_eps: epsilon of the head's LayerNorm and of the maps'.
        mixer: spec of a mixer in the place of the window attention.
        input_size: image size that mixers with tables are made for; any other size runs too.
        weight_init: "" (truncated normal for linear layers) or "conv" (normal for convolutions too).
        out_indices: stages whose maps are given; all by default.
        frozen_stages: stem (0) and stages (1 ...) that are not trained; -1 for none.
    """

    stages: Any  # ModuleList of Stage

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (1, 1, 3, 1),
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        attention_types: Sequence[str] = ATTENTION_TYPES,
        ffn: bool = True,
        overlapped_patch: bool = False,
        cpe_act: bool = False,
        patch_size: int = 4,
        norm_outputs: bool = False,
        head_norm_eps: float = 1e-5,
        mixer: Any = None,
        input_size: int | tuple[int, int] = 224,
        weight_init: str = "",
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        if not len(depths) == len(embed_dims) == len(num_heads) >= 1:
            raise ValueError(
                f"depths={depths}, embed_dims={embed_dims} and num_heads={num_heads} must have one entry a stage"
            )
        if not 1 <= len(attention_types) <= 2 or any(t not in ATTENTION_TYPES for t in attention_types):
            raise ValueError(f"attention_types={attention_types!r}: accepted are one or two of {ATTENTION_TYPES}")
        if patch_size not in (1, 2, 4):
            raise ValueError(f"patch_size={patch_size!r}: accepted are 4, and 2 or 1 for small images")
        if weight_init not in ("", "conv"):
            raise ValueError(f"weight_init={weight_init!r}: accepted are '' and 'conv'")
        if norm_outputs and num_classes:
            raise ValueError(f"norm_outputs=True is for features; num_classes={num_classes} must be 0 with it")
        self._describe(
            embed_dims,
            [patch_size * 2**i for i in range(len(embed_dims))],
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.head_norm_eps = head_norm_eps
        spatial = (
            mixer
            if mixer is not None
            else dict(type="window", window_size=window_size, qkv_bias=qkv_bias, rel_pos_bias=False)
        )
        mixers = {"spatial": spatial, "channel": dict(type="channel", qkv_bias=qkv_bias)}
        # The authors count two rates a group, however many blocks it has.
        rates = torch.linspace(0, drop_path_rate, 2 * sum(depths), device="cpu").tolist()
        self.stem = Stem(in_chans, embed_dims[0], patch_size)
        self.stages = nn.ModuleList()
        height, width = to_pair(input_size, "input_size")
        for i, (depth, dim, heads, stride) in enumerate(zip(depths, embed_dims, num_heads, self.stage_strides)):
            first = sum(depths[:i])
            grid = (-(-height // stride), -(-width // stride))
            groups = [
                [
                    DaViTBlock(dim, heads, mixers[t], grid, mlp_ratio, rates[2 * (first + j) + k], ffn, cpe_act)
                    for k, t in enumerate(attention_types)
                ]
                for j in range(depth)
            ]
            self.stages.append(Stage(Downsample(embed_dims[i - 1], dim, overlapped_patch) if i else None, groups))
        self.output_norms = (
            nn.ModuleList(nn.LayerNorm(dim, eps=head_norm_eps) for dim in embed_dims) if norm_outputs else None
        )
        self.head = Head(self.num_features, num_classes, head_norm_eps) if num_classes else None
        self._init_weights(weight_init)
        self.freeze()

    def _init_weights(self, scheme: str) -> None:
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=0.02)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
            elif isinstance(m, nn.Conv2d) and scheme == "conv":
                nn.init.normal_(m.weight, std=0.02)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        x = self.stem(x)  # [B, H, W, C] from here on
        for i, stage in enumerate(self.stages):
            if stage.downsample is not None:
                x = stage.downsample(x)
            for group in stage.blocks:
                for block in group:
                    x = self.run_block(block, x)
            out = x if self.output_norms is None else self.output_norms[i](x)
            maps.append(out.permute(0, 3, 1, 2))
        return maps, x

    def forward_head(self, trunk: Tensor) -> Tensor:
        return trunk.mean((1, 2)) if self.head is None else self.head(trunk)

    def reset_classifier(self, num_classes: int) -> None:
        if self.output_norms is not None and num_classes:
            raise ValueError(f"num_classes={num_classes}: a model with norm_outputs has no classifier")
        self.num_classes = num_classes
        if not num_classes:
            self.head = None
            return
        like = next(self.parameters())
        if self.head is None:
            self.head = Head(self.num_features, num_classes, self.head_norm_eps)
        self.head.fc = TokenLinear(self.num_features, num_classes)
        self.head.to(like.device, like.dtype)
        nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
        nn.init.zeros_(self.head.fc.bias)

    def stage_modules(self) -> list[list[nn.Module]]:
        stages: list[list[nn.Module]] = [[self.stem]]
        for i, stage in enumerate(self.stages):
            stages.append([stage] if self.output_norms is None else [stage, self.output_norms[i]])
        return stages

    def layer_id(self, name: str) -> int:
        first = 1  # groups of blocks are numbered from 1 through all stages; a downsampling goes with the next group
        parts = name.split(".")
        if parts[0] == "stem":
            return 0
        if parts[0] != "stages":
            return self.num_layers() - 1
        first += sum(len(s.blocks) for s in self.stages[: int(parts[1])])
        return first + int(parts[3]) if parts[2] == "blocks" else first

    def num_layers(self) -> int:
        return sum(len(s.blocks) for s in self.stages) + 2


@register_model(task="classification", family="davit", input_size=32)
@variant(DaViT)
def davit_nano() -> dict[str, Any]:
    """For small images (32 x 32): three stages, windows of 4 x 4 tokens, 1.0 M parameters."""
    return dict(input_size=32, depths=(1, 1, 1), embed_dims=(48, 96, 160), num_heads=(3, 6, 10), window_size=4)


@register_model(task="classification", family="davit", input_size=224)
@variant(DaViT)
def davit_tiny() -> dict[str, Any]:
    """DaViT-Tiny, 28.4 M parameters."""
    return dict(depths=(1, 1, 3, 1), embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24))


@register_model(task="classification", family="davit", input_size=224)
@variant(DaViT)
def davit_small() -> dict[str, Any]:
    """DaViT-Small, 49.7 M parameters."""
    return dict(depths=(1, 1, 9, 1), embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24))


@register_model(task="classification", family="davit", input_size=224)
@variant(DaViT)
def davit_base() -> dict[str, Any]:
    """DaViT-Base, 88.0 M parameters."""
    return dict(depths=(1, 1, 9, 1), embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32))


@register_model(task="classification", family="davit", input_size=224)
@variant(DaViT)
def davit_large() -> dict[str, Any]:
    """DaViT-Large, 196.8 M parameters."""
    return dict(depths=(1, 1, 9, 1), embed_dims=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48))


@register_model(task="classification", family="davit", input_size=384)
@variant(DaViT)
def davit_large_window12_384() -> dict[str, Any]:
    """DaViT-Large with windows of 12 x 12 tokens, for images of 384 x 384."""
    return dict(depths=(1, 1, 9, 1), embed_dims=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48), window_size=12)


@register_model(task="classification", family="davit", input_size=224)
@variant(DaViT)
def davit_huge() -> dict[str, Any]:
    """DaViT-Huge (sizes of the paper's table 1), 348.9 M parameters."""
    return dict(depths=(1, 1, 9, 1), embed_dims=(256, 512, 1024, 2048), num_heads=(8, 16, 32, 64))


@register_model(task="classification", family="davit", input_size=224)
@variant(DaViT)
def davit_giant() -> dict[str, Any]:
    """DaViT-Giant (sizes of the paper's table 1), 1406 M parameters."""
    return dict(depths=(1, 1, 12, 3), embed_dims=(384, 768, 1536, 3072), num_heads=(12, 24, 48, 96))
