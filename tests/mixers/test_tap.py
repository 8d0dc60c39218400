"""Token-aware average pooling against its equation in float64, and the attention over it."""

import pytest
import torch
from torch.nn import functional as F

from zoo.layers.records import recording
from zoo.layers.token_pooling import TokenAwarePooling, dilated_mean
from zoo.mixers.tap import RecordedAttention, TapAttention


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_dilated_mean(dilation):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    kernel = torch.full((3, 1, 3, 3), 1 / 9, dtype=torch.float64)
    expected = F.conv2d(x, kernel, padding=dilation, dilation=dilation, groups=3)
    torch.testing.assert_close(dilated_mean(x, dilation), expected)


def test_pooling():
    torch.manual_seed(0)
    pool = TokenAwarePooling(6, 3).double().eval()
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    planes = x.permute(0, 3, 1, 2)
    share = F.conv2d(planes, pool.conv1.weight, padding=1)
    share = F.conv2d(share / (1 + pool.bn.eps) ** 0.5, pool.conv2.weight, padding=1).softmax(1)
    expected = torch.zeros_like(planes)
    for b in range(2):
        for i in range(5):
            for j in range(4):
                for scale in range(3):
                    steps = [(0, 0)] if scale == 0 else [(a * scale, c * scale) for a in (-1, 0, 1) for c in (-1, 0, 1)]
                    inside = [(i + a, j + c) for a, c in steps if 0 <= i + a < 5 and 0 <= j + c < 4]
                    mean = sum(planes[b, :, y, z] for y, z in inside) / len(steps)
                    expected[b, :, i, j] += share[b, scale, i, j] * mean
    torch.testing.assert_close(pool(x), expected.permute(0, 2, 3, 1))
    torch.testing.assert_close(pool.pooling_matrix(x) @ x.flatten(1, 2), pool(x).flatten(1, 2))
    with pytest.raises(ValueError, match="num_scales=0"):
        TokenAwarePooling(6, 0)


def test_recorded_attention_is_what_is_used():
    torch.manual_seed(0)
    for own in (dict(), dict(separate=True), dict(mask_size=12, qkv_bias=False)):
        attention = RecordedAttention(8, 2, **own).double()
        x = torch.randn(3, 10, 8, dtype=torch.float64)
        plain = attention(x)
        with recording(attention, "attention") as records:
            recorded = attention(x)
        torch.testing.assert_close(recorded, plain)
        (weights,) = records["attention"]
        assert weights.requires_grad
        q, k, v = attention.heads(x)
        logits = q @ k.transpose(-1, -2) / 2
        if attention.att_mask is not None:
            logits = logits * attention.att_mask[:, :10, :10].sigmoid()
        torch.testing.assert_close(weights, logits.softmax(-1))
        torch.testing.assert_close(plain, attention.proj((weights @ v).transpose(1, 2).flatten(2)))
    with pytest.raises(ValueError, match="20 tokens"):
        attention(torch.randn(1, 20, 8, dtype=torch.float64))
    assert attention._kept == {}


def test_mixer_is_attention_over_pooled_tokens():
    torch.manual_seed(0)
    mixer = TapAttention(8, 2).eval()
    x = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(mixer(x).flatten(1, 2), mixer.attn(mixer.pool(x).flatten(1, 2)))
