"""Local attentions written down with unfolded windows, to measure against: every window's keys and values copied out.

The modules and weights are ours; what differs is how they are applied.
"""

from __future__ import annotations

import copy

import torch
from peers.registry import Sides, pair
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.mixers.halo import HaloAttention
from zoo.mixers.msa_conv import MSAConvAttention
from zoo.mixers.neighborhood import NeighborhoodAttention
from zoo.registry import MODELS


class UnfoldedNeighborhood(nn.Module):
    """Neighborhood attention on one dilation group at a time: windows unfolded, border windows repeated."""

    def __init__(self, mixer: NeighborhoodAttention):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        m, (H, W) = self.mixer, x.shape[1:3]
        q, k, v = m.qkv(m._padded(x)).unflatten(-1, (3, m.num_heads, m.head_dim)).unbind(3)
        (dh, dw), out = m.dilation, torch.empty_like(q)
        for i in range(dh):
            for j in range(dw):
                group = slice(None), slice(i, None, dh), slice(j, None, dw)
                out[group] = self.attend(q[group], k[group], v[group])
        return m.proj(out[:, :H, :W].flatten(3))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, W, heads, d] each; one group."""
        (kh, kw), (H, W) = self.mixer.kernel, q.shape[1:3]
        rows, columns = torch.arange(H), torch.arange(W)
        top, left = (rows - kh // 2).clamp(0, H - kh), (columns - kw // 2).clamp(0, W - kw)
        # [B, H-kh+1, W-kw+1, heads, d, kh, kw], then a window for each query
        k, v = (t.unfold(1, kh, 1).unfold(2, kw, 1)[:, top][:, :, left].flatten(-2) for t in (k, v))
        logits = torch.einsum("byxhd,byxhdn->byxhn", q * self.mixer.scale, k)
        if self.mixer.rpb is not None:
            dy = top[:, None] + torch.arange(kh) - rows[:, None] + kh - 1  # [H, kh]
            dx = left[:, None] + torch.arange(kw) - columns[:, None] + kw - 1
            bias = self.mixer.rpb[:, dy[:, None, :, None], dx[None, :, None, :]]  # [heads, H, W, kh, kw]
            logits = logits + bias.flatten(-2).permute(1, 2, 0, 3)
        return torch.einsum("byxhn,byxhdn->byxhd", logits.softmax(-1), v)


class UnfoldedHalo(nn.Module):
    """Blocked local attention by im2col: the window of every block as columns, relative positions gathered."""

    def __init__(self, mixer: HaloAttention):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """Maps that whole blocks tile, stride 1."""
        m, (B, H, W, _) = self.mixer, x.shape
        b, win, h = m.block_size, m.block_size + 2 * m.halo_size, m.num_heads
        q = m.q(x).reshape(B, H // b, b, W // b, b, h, -1).permute(0, 1, 3, 5, 2, 4, 6)  # [B, ny, nx, h, y, x, d]
        kv = F.unfold(m.kv(x).permute(0, 3, 1, 2), win, padding=m.halo_size, stride=b)  # [B, C * win * win, blocks]
        kv = kv.reshape(B, h, -1, win * win, H // b, W // b).permute(0, 4, 5, 1, 3, 2)  # [B, ny, nx, h, window, d]
        k, v = kv.split([m.qk_head_dim, m.head_dim], dim=-1)
        offset = torch.arange(win) - torch.arange(b)[:, None] + win - 1  # [y, Y]
        down = torch.einsum("bijhyxd,yYd->bijhyxY", q, m.rel_height[offset])[..., None]
        across = torch.einsum("bijhyxd,xXd->bijhyxX", q, m.rel_width[offset])[..., None, :]
        logits = q.flatten(4, 5) @ k.transpose(-1, -2) * m.qk_head_dim**-0.5
        logits = logits + (down + across).flatten(-2).flatten(4, 5)
        out = (logits.softmax(-1) @ v).unflatten(4, (b, b))  # [B, ny, nx, h, y, x, d]
        return m.proj(out.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, H, W, -1))


class UnfoldedMSAConv(nn.Module):
    """MSA-Conv by im2col of keys and values."""

    def __init__(self, mixer: MSAConvAttention):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        m, (B, H, W, C) = self.mixer, x.shape
        q, k, v = m.qkv(x).permute(0, 3, 1, 2).chunk(3, 1)
        n, reach = m.kernel_size, m.dilation * (m.kernel_size - 1) // 2
        k, v = (F.unfold(t, n, m.dilation, reach).view(B, m.num_heads, -1, n * n, H * W) for t in (k, v))
        weights = ((q.reshape(B, m.num_heads, -1, 1, H * W) * k).sum(2, keepdim=True) * m.scale).softmax(3)
        return m.proj((weights * v).sum(3).view(B, C, H, W).permute(0, 2, 3, 1))


_UNFOLDED = {
    NeighborhoodAttention: UnfoldedNeighborhood,
    HaloAttention: UnfoldedHalo,
    MSAConvAttention: UnfoldedMSAConv,
}


def with_unfolded_windows(model: nn.Module) -> nn.Module:
    """A copy of a model whose local attentions are applied by unfolding; weights are the same."""
    if type(model) in _UNFOLDED:
        return _UNFOLDED[type(model)](copy.deepcopy(model))
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in _UNFOLDED:
                setattr(parent, name, _UNFOLDED[type(child)](child))
    return model


def _sides(ours: nn.Module, x: Tensor) -> Sides:
    peer = with_unfolded_windows(ours).eval()
    return (lambda: ours(x)), (lambda: peer(x))


def _maps(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape)


@pair("mixer", "neighborhood 7x7, 2x56x56x64, 2 heads", "unfold", 2.0)
def nat_stage_1() -> Sides:
    x = _maps(2, 56, 56, 64)
    return _sides(NeighborhoodAttention(64, 2).eval(), x)


@pair("mixer", "neighborhood 7x7 dilated by 2, 2x28x28x128, 4 heads", "unfold", 2.0)
def dinat_stage_2() -> Sides:
    x = _maps(2, 28, 28, 128)
    return _sides(NeighborhoodAttention(128, 4, dilation=2).eval(), x)


@pair("mixer", "halo 8+3, 2x64x64x64, 8 heads", "unfold", 2.0)
def halo_stage_1() -> Sides:
    x = _maps(2, 64, 64, 64)
    return _sides(HaloAttention(64, 8).eval(), x)


@pair("mixer", "halo 8+3, 2x32x32x128, 8 heads", "unfold", 2.0)
def halo_stage_2() -> Sides:
    x = _maps(2, 32, 32, 128)
    return _sides(HaloAttention(128, 8).eval(), x)


@pair("mixer", "MSA-Conv 5x5, 2x28x28x128, 1 head", "unfold (the authors' comparison)", 1.0)
def msa_conv() -> Sides:
    x = _maps(2, 28, 28, 128)
    return _sides(MSAConvAttention(128, 1, kernel_size=5).eval(), x)


def _backbone(name: str) -> Sides:
    torch.manual_seed(0)
    size = MODELS.entry(name).meta["input_size"]
    return _sides(MODELS.get(name)().eval(), torch.randn(1, 3, size, size))


@pair("backbone", "nat_mini 1x3x224x224", "unfold", 1.0)
def nat_mini() -> Sides:
    return _backbone("nat_mini")


@pair("backbone", "dinat_mini 1x3x224x224", "unfold", 1.0)
def dinat_mini() -> Sides:
    return _backbone("dinat_mini")
