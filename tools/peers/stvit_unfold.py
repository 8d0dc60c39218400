"""STViT written down plainly, to measure against: channels-first maps, fold and unfold by unit-kernel convolutions.

The weights are those of our model; the formulation is the one of the paper's figure 3 and its pseudo-code: a neighbour
is fetched by a convolution with nine unit kernels, and given back by its transpose.
"""

from __future__ import annotations

import copy

import torch
from peers.registry import Sides, pair
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.stvit import STViT, STViTBlock
from zoo.mixers.super_token import SuperTokenAttention, TokenAttention
from zoo.registry import MODELS


def _pointwise(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[..., None, None], layer.bias)


class PlainSuperTokens(nn.Module):
    """Super token attention of channels-first maps ``[B, C, H, W]``."""

    def __init__(self, mixer: SuperTokenAttention):
        super().__init__()
        self.mixer = mixer
        self.register_buffer("kernels", torch.eye(9).view(9, 1, 3, 3))

    def unfold(self, t: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, h*w, C, 9]"""
        B, C, h, w = t.shape
        near = F.conv2d(t.reshape(B * C, 1, h, w), self.kernels, padding=1)
        return near.reshape(B, C * 9, h * w).transpose(1, 2).reshape(B, h * w, C, 9)

    def fold(self, t: Tensor, B: int) -> Tensor:
        """[B*C, 9, h, w] -> [B, C, h, w]"""
        return F.conv_transpose2d(t, self.kernels, padding=1).reshape(B, -1, *t.shape[2:])

    def refine(self, x: Tensor) -> Tensor:
        layer = self.mixer.refine
        if not isinstance(layer, TokenAttention):
            raise TypeError(f"the plain form has attention between tokens only, not {type(layer).__name__}")
        B, C, H, W = x.shape
        q, k, v = _pointwise(layer.qkv, x).reshape(B, layer.num_heads, -1, H * W).chunk(3, dim=2)  # [B, heads, d, N]
        weights = (k.transpose(-1, -2) @ q * layer.scale).softmax(-2)
        return _pointwise(layer.proj, (v @ weights).reshape(B, C, H, W))

    def forward(self, x: Tensor) -> Tensor:
        ch, cw = self.mixer.cell
        if (ch, cw) == (1, 1):
            return self.refine(x)
        H, W = x.shape[2:]
        x = F.pad(x, (0, -W % cw, 0, -H % ch))
        B, C, h, w = x.shape[0], x.shape[1], x.shape[2] // ch, x.shape[3] // cw
        tokens = F.adaptive_avg_pool2d(x, (h, w))
        pixels = x.reshape(B, C, h, ch, w, cw).permute(0, 2, 4, 3, 5, 1).reshape(B, h * w, ch * cw, C)
        for _ in range(self.mixer.iterations):
            affinity = (pixels @ self.unfold(tokens) * C**-0.5).softmax(-1)  # [B, cells, P, 9]
            total = self.fold(affinity.sum(2).transpose(1, 2).reshape(B, 9, h, w), B) + 1e-12
            gathered = pixels.transpose(-1, -2) @ affinity  # [B, cells, C, 9]
            tokens = self.fold(gathered.permute(0, 2, 3, 1).reshape(B * C, 9, h, w), B) / total
        out = self.unfold(self.refine(tokens)) @ affinity.transpose(-1, -2)  # [B, cells, C, P]
        out = out.reshape(B, h, w, C, ch, cw).permute(0, 3, 1, 4, 2, 5).reshape(B, C, h * ch, w * cw)
        return out[:, :, :H, :W]


class PlainBlock(nn.Module):
    """A block on channels-first maps."""

    def __init__(self, block: STViTBlock):
        super().__init__()
        self.block = block
        self.attn = PlainSuperTokens(block.attn)

    @staticmethod
    def residual_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
        return x + F.conv2d(x, conv.weight, conv.bias, padding=1, groups=conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        b = self.block
        x = self.residual_conv(b.pos_embed.proj, x)
        y = self.attn(b.norm1(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous())
        x = x + (y if b.gamma1 is None else b.gamma1[:, None, None] * y)
        norm = b.norm2
        y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        y = self.residual_conv(b.mlp.conv.proj, F.gelu(_pointwise(b.mlp.fc1, y)))
        y = _pointwise(b.mlp.fc2, y)
        return x + (y if b.gamma2 is None else b.gamma2[:, None, None] * y)


class PlainSTViT(nn.Module):
    """The whole network on channels-first maps, in evaluation."""

    def __init__(self, model: STViT):
        super().__init__()
        model = copy.deepcopy(model)
        self.stem, self.levels = model.patch_embed.proj, model.levels
        self.blocks = nn.ModuleList(nn.ModuleList(PlainBlock(b) for b in level.blocks) for level in model.levels)
        self.proj, self.norm, self.head = model.proj, model.norm, model.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for blocks, level in zip(self.blocks, self.levels):
            for block in blocks:
                x = block(x)
            if level.downsample is not None:
                x = level.downsample.proj(x)
        norm = self.norm
        x = F.batch_norm(_pointwise(self.proj, x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return self.head(F.silu(x).mean((2, 3)))


def _mixer(side: int, dim: int, heads: int, cell: int) -> Sides:
    torch.manual_seed(0)
    ours = SuperTokenAttention(dim, heads, cell).eval()
    peer = PlainSuperTokens(copy.deepcopy(ours)).eval()
    x = torch.randn(4, side, side, dim)
    first = x.permute(0, 3, 1, 2).contiguous()  # the peer's own layout
    return (lambda: ours(x)), (lambda: peer(first).permute(0, 2, 3, 1))


@pair("mixer", "super tokens of 8x8, 4x56x56x64, 1 head", "unfold", 2.0)
def super_token_stage_1() -> Sides:
    return _mixer(56, 64, 1, 8)


@pair("mixer", "super tokens of 4x4, 4x28x28x128, 2 heads", "unfold", 2.0)
def super_token_stage_2() -> Sides:
    return _mixer(28, 128, 2, 4)


@pair("backbone", "stvit_small 1x3x224x224", "unfold, channels first", 1.0)
def stvit_small() -> Sides:
    torch.manual_seed(0)
    ours = MODELS.get("stvit_small_224")().eval()
    peer = PlainSTViT(ours).eval()
    x = torch.randn(1, 3, 224, 224)
    return (lambda: ours(x)), (lambda: peer(x))
