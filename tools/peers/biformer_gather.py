"""BiFormer written down plainly, to measure against: keys and values gathered for every region, then matrix products.

The modules and weights are those of our model; what differs is how they are applied: equation 6 of arXiv 2303.08810 by
``torch.gather`` over an expanded tensor, equation 7 by two matrix products and a softmax, and maps channels-first
between the blocks, as the paper's pseudo-code has it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from zoo.backbones.biformer import BiFormer, BiFormerBlock
from zoo.mixers.bra import BiLevelRoutingAttention
from zoo.mixers.lepe import LePEAttention


def _grid_to_windows(x: Tensor, n: int) -> Tensor:
    """[B, H, W, C] -> [B, n*n, H/n * W/n, C]"""
    B, H, W, C = x.shape
    return x.reshape(B, n, H // n, n, W // n, C).permute(0, 1, 3, 2, 4, 5).reshape(B, n * n, -1, C)


def _windows_to_grid(x: Tensor, n: int, H: int, W: int) -> Tensor:
    """[B, n*n, H/n * W/n, C] -> [B, H, W, C]"""
    B, C = x.shape[0], x.shape[-1]
    return x.reshape(B, n, n, H // n, W // n, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)


def _depthwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A depth-wise convolution of [B, H, W, C] through a channels-first copy."""
    x = x.permute(0, 3, 1, 2).contiguous()
    x = nn.functional.conv2d(x, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)
    return x.permute(0, 2, 3, 1)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[N, L, C] -> [N, heads, L, C/heads]"""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def routing_attention(m: BiLevelRoutingAttention, x: Tensor) -> Tensor:
    """Bi-level routing attention of [B, H, W, C] for maps that ``n_win`` divides, without pooling of keys."""
    B, H, W, _ = x.shape
    n, R, h = m.n_win, m.n_win**2, m.num_heads
    windows = _grid_to_windows(x, n)
    q, kv = m.qkv_linear(windows).split([m.qk_dim, m.qk_dim + m.dim], dim=-1)
    local = _depthwise(m.lepe, _windows_to_grid(kv[..., m.qk_dim :], n, H, W))
    affinity = (q.mean(2) * m.scale) @ kv[..., : m.qk_dim].mean(2).transpose(1, 2)
    index = affinity.topk(m.topk, dim=-1).indices  # [B, R, k]
    N, D = kv.shape[2:]
    gathered = torch.gather(
        kv[:, None].expand(B, R, R, N, D), 2, index[..., None, None].expand(B, R, m.topk, N, D)
    )  # [B, R, k, N, D]
    k, v = gathered.reshape(B * R, m.topk * N, D).split([m.qk_dim, m.dim], dim=-1)
    attention = (_heads(q.flatten(0, 1), h) * m.scale) @ _heads(k, h).transpose(-2, -1)
    out = attention.softmax(-1) @ _heads(v, h)  # [B*R, heads, N, d]
    out = _windows_to_grid(out.transpose(1, 2).reshape(B, R, N, m.dim), n, H, W)
    return m.wo(out + local)


def full_attention(m: LePEAttention, x: Tensor) -> Tensor:
    """Full attention of [B, H, W, C] with the convolution of its input."""
    B, H, W, C = x.shape
    q, k, v = m.qkv(x.reshape(B, H * W, C)).reshape(B, H * W, 3, m.num_heads, -1).permute(2, 0, 3, 1, 4)
    attention = ((q @ k.transpose(-2, -1)) * m.scale).softmax(-1)
    out = (attention @ v).transpose(1, 2).reshape(B, H, W, C)
    return m.proj(out + _depthwise(m.lepe, x))


def block(m: BiFormerBlock, x: Tensor) -> Tensor:
    """A pre-norm block on channels-first maps."""
    conv = m.pos_embed.proj
    x = x + nn.functional.conv2d(x, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)
    x = x.permute(0, 2, 3, 1)
    attention = routing_attention if isinstance(m.attn, BiLevelRoutingAttention) else full_attention
    x = x + attention(m.attn, m.norm1(x))
    x = x + m.mlp(m.norm2(x))
    return x.permute(0, 3, 1, 2)


class GatherBiFormer(nn.Module):
    """The network of :func:`with_gather_attention`."""

    def __init__(self, model: BiFormer):
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.model.downsample_layers, self.model.stages):
            x = downsample(x)
            for m in stage:
                x = block(m, x)
        return self.model.head(self.model.norm(x).flatten(2).mean(-1))


def with_gather_attention(model: BiFormer) -> GatherBiFormer:
    """A copy of one of the released BiFormer models (tiny, small, base) that computes by gathering, for evaluation."""
    return GatherBiFormer(model).train(model.training)
