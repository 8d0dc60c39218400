"""InLine's, MALA's and TaylorShift's networks written down plainly, to measure against.

The modules and weights are those of our model; what differs is how they are applied: the papers' equations by matrix
products in the order in which they are written, predicted convolutions as one grouped convolution of all images, window
attention by a bias table and a mask, MAViT on channels-first maps throughout.
"""

from __future__ import annotations

import copy
import math
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.backbones.mala import MAViT, MAViTBlock
from zoo.mixers.cross_shaped import SoftmaxCore
from zoo.mixers.inline import InLineAttention
from zoo.mixers.mala import MagnitudeAwareAttention
from zoo.mixers.taylorshift import TaylorShiftAttention, crossover
from zoo.mixers.window import WindowAttention


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] -> [B, heads, N, C/heads]"""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).permute(0, 2, 1, 3)


def inline_attention(
    m: InLineAttention, tokens: Tensor, size: tuple[int, int], prefix: int = 0, summary: Tensor | None = None
) -> Tensor:
    """Equation 5 of arXiv 2412.06590 on [B, P + H*W, C], without a feature map."""
    B, N, C = tokens.shape
    if m.qkv is not None:
        q, k, v = m.qkv(tokens).reshape(B, N, 3, C).permute(2, 0, 1, 3)
    else:
        q, (k, v) = m.q(tokens), m.kv(tokens).reshape(B, N, 2, C).permute(2, 0, 1, 3)
    q, k, v = (_heads(t, m.num_heads) for t in (q, k, v))
    scale = m.head_dim**-0.5
    mean = tokens.mean(1) if summary is None else summary
    taps = m.residual.fc2(m.residual.act(m.residual.fc1(mean.unsqueeze(-1)))).reshape(B * C, 1, 3, 3)
    kv = (k.transpose(-2, -1) * (scale / N) ** 0.5) @ (v * (scale / N) ** 0.5)
    out = q @ kv + (1 - q @ k.mean(2, keepdim=True).transpose(-2, -1) * scale) * v.mean(2, keepdim=True)
    out = out.transpose(1, 2).reshape(B, N, C)
    v_map = v[:, :, prefix:].transpose(1, 2).reshape(B, *size, C).permute(0, 3, 1, 2)  # [B, C, H, W]
    local = F.conv2d(v_map.reshape(1, B * C, *size), taps, padding=1, groups=B * C).reshape(B, C, N - prefix)
    if m.lepe is not None:
        local = local + F.conv2d(v_map.contiguous(), m.lepe.weight, m.lepe.bias, padding=1, groups=C).flatten(2)
    local = local.permute(0, 2, 1)
    return m.proj(torch.cat([out[:, :prefix], out[:, prefix:] + local], 1) if prefix else out + local)


def window_attention(m: WindowAttention, x: Tensor) -> Tensor:
    """Swin's shifted windows on [B, H, W, C] that the windows tile, with bias and mask written out."""
    B, H, W, C = x.shape
    (wh, ww), (sh, sw) = m.window, m.shift_for(H, W)
    if sh or sw:
        x = torch.roll(x, (-sh, -sw), (1, 2))
    windows = x.reshape(B, H // wh, wh, W // ww, ww, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, wh * ww, C)
    q, k, v = (_heads(t, m.num_heads) for t in m.qkv(windows).chunk(3, dim=-1))
    attention = (q * m.scale) @ k.transpose(-2, -1) + m.rel_pos_bias().unsqueeze(0)
    if sh or sw:
        rows, columns = torch.arange(H), torch.arange(W)
        part = 2 * (rows >= H - sh)[:, None] + (columns >= W - sw)
        part = part.reshape(H // wh, wh, W // ww, ww).permute(0, 2, 1, 3).reshape(-1, wh * ww)
        mask = (part[:, None] != part[:, :, None]) * -100.0  # [windows, n, n]
        attention = attention.reshape(B, len(mask), m.num_heads, *mask.shape[1:]) + mask[None, :, None]
        attention = attention.flatten(0, 1)
    out = (attention.softmax(-1) @ v).transpose(1, 2).reshape(-1, wh * ww, C)
    out = m.proj(out).reshape(B, H // wh, W // ww, wh, ww, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
    return torch.roll(out, (sh, sw), (1, 2)) if sh or sw else out


def strip_attention(m: SoftmaxCore, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
    """CSWin's attention within strips [B, H*W, C], with the convolution on channels-first copies."""
    qh, kh, vh = (_heads(t, m.num_heads) for t in (q, k, v))
    out = (((qh * m.scale) @ kh.transpose(-2, -1)).softmax(-1) @ vh).transpose(1, 2).reshape(q.shape)
    v_map = v.transpose(1, 2).reshape(v.shape[0], -1, *size).contiguous()
    local = F.conv2d(v_map, m.dwc.weight, m.dwc.bias, padding=1, groups=v_map.shape[1])
    return out + local.flatten(2).transpose(1, 2)


def taylor_attention(m: TaylorShiftAttention, tokens: Tensor) -> Tensor:
    """TaylorShift with unit lengths on [B, N, C]: section 3's direct form, or the one with boxed tensor products."""
    B, N, C = tokens.shape
    d, (a, b, c) = m.head_dim, m.coefficients
    q, k, v = (_heads(t, m.num_heads) for t in m.qkv(tokens).chunk(3, dim=-1))
    q = F.normalize(q, dim=-1) * m.temperature[:, None, None]
    k = F.normalize(k, dim=-1)
    if crossover(d) < N:
        scale = d**0.25
        q, k = q * scale, k * scale
        v = torch.cat([torch.full_like(v[..., :1], math.sqrt(d / N) if m.scale_output else 1.0), v], -1) / N
        qq, kk = ((t.unsqueeze(-1) * t.unsqueeze(-2)).flatten(-2) for t in (q, k))
        y = a * qq @ (kk.transpose(-1, -2) @ v) + scale**2 * b * q @ (k.transpose(-1, -2) @ v)
        y = y + scale**4 * c * v.sum(-2, keepdim=True)
        out = y[..., 1:] / y[..., :1]
    else:
        scores = q @ k.transpose(-2, -1)
        weights = a * scores.square() + b * scores + c
        out = (weights / weights.sum(-1, keepdim=True)) @ (v * math.sqrt(N / d) if m.scale_output else v)
    return m.proj(out.transpose(1, 2).reshape(B, N, C))


def with_plain_attention(model: nn.Module) -> nn.Module:
    """A copy of an InLine or TaylorShift network whose attentions are those above, for evaluation."""
    if isinstance(model, MAViT):
        return PlainMAViT(model).eval()
    plain = copy.deepcopy(model).eval()
    for m in plain.modules():
        if isinstance(m, InLineAttention):
            m.forward_tokens = MethodType(inline_attention, m)
        elif isinstance(m, TaylorShiftAttention):
            m.forward_tokens = MethodType(taylor_attention, m)
        elif isinstance(m, WindowAttention):
            m.forward = MethodType(window_attention, m)
        elif isinstance(m, SoftmaxCore):
            m.forward = MethodType(strip_attention, m)
    return plain


def _pointwise(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[..., None, None], layer.bias)


def _normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return norm(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)


def _rotated(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin


class PlainMAViT(nn.Module):
    """MAViT on channels-first maps: equations 8-10 of arXiv 2507.00698 as they are written."""

    def __init__(self, model: MAViT):
        super().__init__()
        self.model = copy.deepcopy(model)

    def attention(self, m: nn.Module, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """MALA or the softmax counterpart on [B, C, H, W]."""
        B, C, H, W = x.shape
        q, k, v, gate = _pointwise(m.qkvo, x).chunk(4, dim=1)
        local = _convolved(m.lepe, v)
        q, k, v = (t.reshape(B, m.num_heads, -1, H * W).transpose(2, 3) for t in (q, k, v))
        scale = m.head_dim**-0.5
        if isinstance(m, MagnitudeAwareAttention):
            q, k = F.elu(q) + 1, F.elu(k) + 1
            z = q @ k.mean(-2, keepdim=True).transpose(-2, -1) * scale
            q, k = _rotated(q, sin, cos), _rotated(k, sin, cos)
            kv = (k.transpose(-2, -1) * (scale / (H * W)) ** 0.5) @ (v * (scale / (H * W)) ** 0.5)
            out = q @ kv * (1 + 1 / (z + 1e-6)) - z * v.mean(2, keepdim=True)
        else:
            q, k = _rotated(q, sin, cos), _rotated(k, sin, cos)
            out = (scale * q @ k.transpose(-1, -2)).softmax(-1) @ v
        out = out.transpose(2, 3).reshape(B, C, H, W)
        return _pointwise(m.proj, (out + local) * gate)

    def block(self, m: MAViTBlock, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        x = x + _convolved(m.pos, x)
        gammas = [1.0 if g is None else g[:, None, None] for g in (m.gamma1, m.gamma2)]
        x = x + gammas[0] * self.attention(m.attn, _normalised(m.norm1, x), sin, cos)
        y = m.mlp.act(_pointwise(m.mlp.fc1, _normalised(m.norm2, x)))
        return x + gammas[1] * _pointwise(m.mlp.fc2, _convolved(m.mlp.dwconv, y) + y)

    def forward(self, x: Tensor) -> Tensor:
        net = self.model
        x = net.stem(x)
        for i, (rotation, stage) in enumerate(zip(net.rotations, net.stages)):
            if i:
                x = net.merges[i - 1](x)
            tables = rotation(x.shape[2], x.shape[3])
            for m in stage:
                x = self.block(m, x, *tables)
        return net.head(x)
