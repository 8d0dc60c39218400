"""The vision transformer with TaylorShift attention.

TaylorShift (Nauen et al., ICPR 2024, arXiv 2403.02920); ViT (arXiv 2010.11929); convolutional patches as XCiT's (arXiv
2106.09681). Authors' code: github.com/tobna/TaylorShift (MIT), on timm's vision transformer. Difference: every image
size is accepted; the table of positions is interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.backbones.hybrid_base import init_linear, patch_chain
from zoo.layers.mlp import Mlp
from zoo.layers.padding import to_pair
from zoo.layers.patch_conv import PatchConv
from zoo.layers.pre_norm_block import PreNormBlock
from zoo.layers.stages import drop_path_rates
from zoo.layers.token_linear import TokenLinear
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.taylorshift import TaylorShiftAttention
from zoo.registry import register_model, variant

POOLS = ("token", "avg", "avgmax", "max")


class TaylorShiftBlock(PreNormBlock):
    """A block over ``[B, N, C]`` whose branches may have a learned factor for each channel (layer scale)."""

    attn: TaylorShiftAttention

    def __init__(
        self,
        dim: int,
        mixer: TaylorShiftAttention,
        mlp_ratio: float,
        drop_path: float,
        norm_eps: float,
        init_values: float | None,
        act_layer: type[nn.Module],
    ):
        super().__init__(dim, mixer, mlp_ratio, drop_path, norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer)
        scaled = init_values is not None
        self.gamma1 = nn.Parameter(torch.full((dim,), float(init_values))) if scaled else None  # type: ignore[arg-type]
        self.gamma2 = nn.Parameter(torch.full((dim,), float(init_values))) if scaled else None  # type: ignore[arg-type]
        self.no_decay = ("gamma1", "gamma2") if scaled else ()

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        y = self.attn.forward_tokens(self.norm1(x))
        x = x + self.drop_path(y if self.gamma1 is None else y * self.gamma1)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.gamma2 is None else y * self.gamma2)


class TaylorShiftTrunk(nn.Module):
    """Class token and blocks, for images and other sequences.

    Args:
        embed_dim: channels C.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLPs over the width.
        qkv_bias: bias of the projections to queries, keys and values.
        init_values: start of the learned factors of the branches; None for none.
        class_token: have a class token.
        pre_norm: normalise before the blocks.
        normalize_input, scale_output: see :class:`~zoo.mixers.taylorshift.TaylorShiftAttention`.
        norm_eps: epsilon of all norms.
        act_layer: activation of the MLPs.
        drop_path_rate: stochastic depth of the last block, growing linearly.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        class_token: bool = True,
        pre_norm: bool = False,
        normalize_input: bool = True,
        scale_output: bool = True,
        norm_eps: float = 1e-6,
        act_layer: type[nn.Module] = nn.GELU,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.no_decay = ("cls_token",) if class_token else ()
        self.norm_pre = nn.LayerNorm(embed_dim, eps=norm_eps) if pre_norm else nn.Identity()
        rates = drop_path_rates(drop_path_rate, [depth])[0]
        self.blocks = nn.ModuleList(
            TaylorShiftBlock(
                embed_dim,
                TaylorShiftAttention(
                    embed_dim, num_heads, qkv_bias, normalize_input=normalize_input, scale_output=scale_output
                ),
                mlp_ratio,
                rate,
                norm_eps,
                init_values,
                act_layer,
            )
            for rate in rates
        )
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)

    def prepend(self, tokens: Tensor) -> Tensor:
        """``[B, N, C]`` with the class token, if there is one, in front."""
        if self.cls_token is None:
            return tokens
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def forward(self, tokens: Tensor, run: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """Tokens ``[B, N, C]`` after every block; ``run(block, tokens)`` calls a block in another way."""
        x = self.norm_pre(tokens)
        found = []
        for block in self.blocks:
            x = block(x) if run is None else run(block, x)
            found.append(x)
        return found


class TokenHead(nn.Module):
    """Norm, pooling, norm, linear layer: logits of ``[B, P + N, C]``, P tokens in front that only "token" reads.

    Args:
        dim: channels C.
        num_classes: classes.
        pool: "token" (the first), "avg", "max" or their mean, "avgmax".
        prefix: P.
        fc_norm: normalise after the pooling instead of before; None for every pooling but "token".
        norm_eps: epsilon of the norm.

    Raises:
        ValueError: another pooling, or "token" without one.
    """

    def __init__(self, dim: int, num_classes: int, pool: str, prefix: int, fc_norm: bool | None, norm_eps: float):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"global_pool={pool!r}: accepted are {', '.join(map(repr, POOLS))}")
        if pool == "token" and not prefix:
            raise ValueError("global_pool='token' with class_token=False: there is no token to read")
        after = pool != "token" if fc_norm is None else fc_norm
        self.pool, self.prefix = pool, prefix
        self.norm = nn.Identity() if after else nn.LayerNorm(dim, eps=norm_eps)
        self.fc_norm = nn.LayerNorm(dim, eps=norm_eps) if after else nn.Identity()
        self.fc = TokenLinear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        if self.pool == "token":
            return self.fc(self.fc_norm(x[:, 0]))
        x = x[:, self.prefix :]
        if self.pool == "avg":
            x = x.mean(1)
        else:
            x = x.amax(1) if self.pool == "max" else 0.5 * (x.amax(1) + x.mean(1))
        return self.fc(self.fc_norm(x))


def conv_patches(in_chans: int, dim: int, patch_size: int) -> nn.Sequential:
    """Convolutions of stride 2 with BatchNorm, GELU between them, to a map of stride ``patch_size`` and C channels.

    Raises:
        ValueError: ``patch_size`` is neither 8 nor 16.
    """
    if patch_size not in (8, 16):
        raise ValueError(f"patch_size={patch_size} with conv_embed=True: accepted are 8 and 16")
    steps = patch_size.bit_length() - 1
    widths = [in_chans, *(dim // 2 ** (steps - 1 - i) for i in range(steps))]
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:]):
        conv = nn.Conv2d(before, after, 3, 2, padding=1, bias=False)
        layers += [nn.Sequential(conv, nn.BatchNorm2d(after)), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class TaylorShiftViT(Backbone):
    """TaylorShift's vision transformer; every block is a stage of stride ``patch_size``.

    Args:
        img_size: image size that positions are made for, a number or (height, width).
        patch_size: pixels along the side of a token.
        in_chans: channels of the image.
        num_classes: classes; 0 for features.
        global_pool, fc_norm: see :class:`TokenHead`.
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias, init_values, class_token, normalize_input, scale_output,
            norm_eps, act_layer, drop_path_rate: see :class:`TaylorShiftTrunk`.
        no_embed_class: the class token has no position.
        pre_norm: normalise before the blocks; patches then have no bias.
        conv_embed: patches by several convolutions, see :func:`conv_patches`.
        drop_remainder: leave out rows and columns that make no whole patch rather than pad with zeros.
        out_indices: blocks whose maps are given; the last by default.
        frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        fc_norm: bool | None = None,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        class_token: bool = True,
        no_embed_class: bool = True,
        pre_norm: bool = False,
        normalize_input: bool = True,
        scale_output: bool = True,
        conv_embed: bool = False,
        norm_eps: float = 1e-6,
        act_layer: type[nn.Module] = nn.GELU,
        drop_path_rate: float = 0.0,
        drop_remainder: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        self._describe(
            [embed_dim] * depth,
            [patch_size] * depth,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=(depth - 1,) if out_indices is None else out_indices,
            frozen_stages=frozen_stages,
        )
        self.prefix = int(class_token)
        self.no_embed_class = no_embed_class
        self.grid = patch_chain(to_pair(img_size, "img_size"), [patch_size], drop_remainder)[0]
        if conv_embed:
            self.patch_embed: nn.Module = conv_patches(in_chans, embed_dim, patch_size)
        else:
            self.patch_embed = PatchConv(in_chans, embed_dim, patch_size, drop_remainder)
            if pre_norm:
                self.patch_embed.register_parameter("bias", None)
        self.pos_embed = TokenPositions(self.grid, embed_dim, prefix=0 if no_embed_class else self.prefix)
        self.trunk = TaylorShiftTrunk(
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            qkv_bias,
            init_values,
            class_token,
            pre_norm,
            normalize_input,
            scale_output,
            norm_eps,
            act_layer,
            drop_path_rate,
        )
        self._head_arguments = (global_pool, self.prefix, fc_norm, norm_eps)
        TokenHead(embed_dim, 1, *self._head_arguments)  # checks them even where there is no classifier
        self.head = TokenHead(embed_dim, num_classes, *self._head_arguments) if num_classes else None
        init_linear(self)
        self.freeze()

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``[B, P + H*W, C]`` with their positions, class token first, and the size (H, W) of their map."""
        x = self.patch_embed(x)  # [B, C, H, W]
        size = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)
        if self.no_embed_class:
            return self.trunk.prepend(self.pos_embed(tokens, size)), size
        return self.pos_embed(self.trunk.prepend(tokens), size), size

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        tokens, size = self.embed(x)
        found = self.trunk(tokens, self.run_block)
        return [t[:, self.prefix :].transpose(1, 2).unflatten(2, size) for t in found], found[-1]

    def forward_head(self, trunk: Tensor) -> Tensor:
        if self.head is not None:
            return self.head(trunk)
        return trunk[:, 0] if self.prefix else trunk.mean(1)

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        old, self.head, self.num_classes = self.head, None, num_classes
        if not num_classes:
            return
        head = TokenHead(self.num_features, num_classes, *self._head_arguments)
        init_linear(head)
        head.to(next(self.parameters())).train(self.training)
        if old is not None:
            head.norm, head.fc_norm = old.norm, old.fc_norm
        self.head = head

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed, self.pos_embed], *([b] for b in self.trunk.blocks)]

    def num_layers(self) -> int:
        return len(self.trunk.blocks) + 2

    def layer_id(self, name: str) -> int:
        if name.startswith("trunk.blocks."):
            return int(name.split(".")[2]) + 1
        return self.num_layers() - 1 if name.startswith("head") else 0


@register_model(task="classification", family="taylorshift", input_size=224)
@variant(TaylorShiftViT)
def taylorshift_vit_nano() -> dict[str, Any]:
    """TaylorShiftViT-na, 0.4 M parameters."""
    return dict(embed_dim=96, depth=2, num_heads=2)


@register_model(task="classification", family="taylorshift", input_size=224)
@variant(TaylorShiftViT)
def taylorshift_vit_micro() -> dict[str, Any]:
    """TaylorShiftViT-mu, 1.8 M parameters."""
    return dict(embed_dim=144, depth=6, num_heads=3)


@register_model(task="classification", family="taylorshift", input_size=224)
@variant(TaylorShiftViT)
def taylorshift_vit_tiny() -> dict[str, Any]:
    """TaylorShiftViT-Ti, 5.7 M parameters."""
    return dict(embed_dim=192, depth=12, num_heads=3)


@register_model(task="classification", family="taylorshift", input_size=224)
@variant(TaylorShiftViT)
def taylorshift_vit_small() -> dict[str, Any]:
    """TaylorShiftViT-S, 22.1 M parameters."""
    return dict(embed_dim=384, depth=12, num_heads=6)


@register_model(task="classification", family="taylorshift", input_size=224)
@variant(TaylorShiftViT)
def taylorshift_vit_small_conv() -> dict[str, Any]:
    """TaylorShiftViT-S with convolutional patches, 22.6 M parameters."""
    return dict(embed_dim=384, depth=12, num_heads=6, conv_embed=True)


@register_model(task="classification", family="taylorshift", input_size=224)
@variant(TaylorShiftViT)
def taylorshift_vit_base() -> dict[str, Any]:
    """TaylorShiftViT-B, 86.6 M parameters."""
    return dict(embed_dim=768, depth=12, num_heads=12)


@register_model(task="classification", family="taylorshift", input_size=224)
@variant(TaylorShiftViT)
def taylorshift_vit_large() -> dict[str, Any]:
    """TaylorShiftViT-L, 304.3 M parameters."""
    return dict(embed_dim=1024, depth=24, num_heads=16)
