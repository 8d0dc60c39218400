"""Partial attention against its definition, in float64."""

import pytest
import torch

from zoo.mixers.base import build_mixer
from zoo.mixers.partial_attention import PartialAttention

NAMES = ("partial_channel", "partial_spatial", "partial_self")


def hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return ((x + 3) / 6).clamp(0, 1)


def attended(mixer: PartialAttention, x: torch.Tensor) -> torch.Tensor:
    """A of the untouched channels of one image [H, W, C_u]."""
    H, W, C = x.shape
    kind = type(mixer).__name__
    if kind == "PartialChannelAttention":
        out = torch.zeros_like(x)
        for c in range(C):
            mean = x[..., c].sum() / (H * W)
            std = (((x[..., c] - mean) ** 2).sum() / (H * W) + 1e-5).sqrt()
            out[..., c] = x[..., c] * hard_sigmoid(mixer.weight[0, c] * mean + mixer.weight[1, c] * std + mixer.bias[c])
        return out
    if kind == "PartialSpatialAttention":
        return x * hard_sigmoid(x @ mixer.score.weight[0] + mixer.score.bias)[..., None]
    q, k, v = (x.reshape(H * W, C) @ mixer.qkv.weight.T + mixer.qkv.bias).split(C, dim=1)
    d, out = C // mixer.num_heads, torch.zeros(H * W, C, dtype=x.dtype)
    for h in range(mixer.num_heads):
        part = slice(h * d, (h + 1) * d)
        for i in range(H * W):
            scores = k[:, part] @ q[i, part] / d**0.5
            for j in range(H * W):
                scores[j] += mixer.table[0, h, i // W - j // W + H - 1, i % W - j % W + W - 1]
            out[i, part] = (scores.exp() / scores.exp().sum()) @ v[:, part]
    return (out @ mixer.proj.weight.T + mixer.proj.bias).reshape(H, W, C)


@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definition(name, ratio):
    torch.manual_seed(0)
    mixer = build_mixer({"type": name, "ratio": ratio}, 16, 2, (3, 5)).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.5 * torch.randn_like(p))
        x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
        out = mixer(x)
        n = 16 // ratio
        padded = torch.zeros(2, 5, 7, n, dtype=torch.float64)
        padded[:, 1:4, 1:6] = x[..., :n]
        for i in range(3):
            for j in range(5):
                expected = torch.einsum("brcn,onrc->bo", padded[:, i : i + 3, j : j + 3], mixer.conv.weight)
                torch.testing.assert_close(out[:, i, j, :n], expected, rtol=1e-10, atol=1e-12)
        for b in range(2):
            torch.testing.assert_close(out[b, ..., n:], attended(mixer, x[b, ..., n:]), rtol=1e-10, atol=1e-12)


def test_gradients():
    torch.manual_seed(0)
    for name in NAMES:
        mixer = build_mixer(name, 4, 1, (2, 2)).double()
        x = torch.randn(1, 2, 2, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(mixer, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_bad_ratio(name):
    with pytest.raises(ValueError, match="ratio=1"):
        build_mixer({"type": name, "ratio": 1}, 8, 2, (3, 3))
    with pytest.raises(ValueError, match="ratio=0"):
        build_mixer({"type": name, "ratio": 0}, 8, 2, (3, 3))
