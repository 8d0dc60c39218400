"""LKCA in its convolution view, to measure against: every channel of every image convolved as an image of its own."""

from __future__ import annotations

import copy

import torch
from peers.registry import Sides, pair
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.mixers.lkca import LargeKernelAttention
from zoo.registry import MODELS


class ConvolvedLKCA(nn.Module):
    """The convolution view on maps of the kernel's own size."""

    def __init__(self, mixer: LargeKernelAttention):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        v = self.mixer.v(x).permute(0, 3, 1, 2)
        out = F.conv2d(v.reshape(-1, 1, H, W), self.mixer.kernel[None, None], padding=(H - 1, W - 1))
        return self.mixer.proj(out.view(B, -1, H, W).permute(0, 2, 3, 1))


@pair("backbone", "lkca_largevit 4x3x64x64", "convolution", 1.0)
def lkca_largevit() -> Sides:
    torch.manual_seed(0)
    ours = MODELS.get("lkca_largevit")(kernel_std=0.1).eval()
    peer = copy.deepcopy(ours)
    for block in peer.layers:
        block.attn = ConvolvedLKCA(block.attn)
    x = torch.randn(4, 3, 64, 64)
    return (lambda: ours(x)), (lambda: peer(x))
