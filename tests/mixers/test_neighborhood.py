"""Neighborhood attention as a mixer against a dense float64 form of its definition."""

import pytest
import torch

from zoo.mixers.neighborhood import NeighborhoodAttention
from zoo.mixers.softmax import SoftmaxAttention


def randomised(mixer: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    mixer = mixer.double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return mixer


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def window(length: int, kernel: int, dilation: int, i: int) -> dict[int, int]:
    """Keys of position ``i`` along an axis, each with its offset in steps of the dilation."""
    group, rank = i % dilation, i // dilation
    members = len(range(group, length, dilation))
    start = min(max(rank - kernel // 2, 0), members - kernel)
    return {group + r * dilation: r - rank for r in range(start, start + kernel)}


def dense(mixer: NeighborhoodAttention, x: torch.Tensor) -> torch.Tensor:
    """Query by query, as the definition says."""
    (kh, kw), (dh, dw) = mixer.kernel, mixer.dilation
    H, W = x.shape[1:3]
    x = torch.nn.functional.pad(x, (0, 0, 0, max(0, kw * dw - W), 0, max(0, kh * dh - H)))
    B, Hp, Wp, C = x.shape
    q, k, v = mixer.qkv(x).reshape(B, Hp, Wp, 3, mixer.num_heads, -1).unbind(3)
    out = torch.zeros(B, H, W, C, dtype=x.dtype)
    for y in range(H):
        rows = window(Hp, kh, dh, y)
        for z in range(W):
            columns = window(Wp, kw, dw, z)
            for h in range(mixer.num_heads):
                at = [(r, c) for r in rows for c in columns]
                keys = torch.stack([k[:, r, c, h] for r, c in at], 1)
                values = torch.stack([v[:, r, c, h] for r, c in at], 1)
                logits = mixer.scale * (q[:, y, z, h, None] * keys).sum(-1)
                if mixer.rpb is not None:
                    logits = logits + torch.stack([mixer.rpb[h, rows[r] + kh - 1, columns[c] + kw - 1] for r, c in at])
                d = mixer.head_dim
                out[:, y, z, h * d : (h + 1) * d] = (logits.softmax(-1)[..., None] * values).sum(1)
    return mixer.proj(out)


@pytest.mark.parametrize(
    "size, options",
    [
        ((7, 9), dict(kernel_size=3)),
        ((9, 7), dict(kernel_size=3, dilation=2, qk_scale=0.7)),
        ((6, 8), dict(kernel_size=(3, 5), dilation=(2, 1), qkv_bias=False)),
        ((3, 8), dict(kernel_size=5, rel_pos_bias=False)),
        ((1, 1), dict(kernel_size=3)),
    ],
)
def test_equals_the_definition(size, options):
    mixer = randomised(NeighborhoodAttention(8, 2, **options))
    x = image(2, *size, 8)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), dense(mixer, x), rtol=1e-10, atol=1e-10)


def test_the_whole_map_as_window_is_full_attention():
    mixer = randomised(NeighborhoodAttention(8, 2, kernel_size=(4, 5), rel_pos_bias=False))
    full = SoftmaxAttention(8, 2).double()
    full.load_state_dict(mixer.state_dict())
    x = image(2, 4, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), full(x), rtol=1e-10, atol=1e-10)


def test_attention_map_weighs_the_values():
    mixer = randomised(NeighborhoodAttention(8, 2, kernel_size=3, dilation=2))
    x = image(2, 7, 6, 8)
    with torch.no_grad():
        maps = mixer.attention_map(x)
        v = mixer.qkv(x)[..., 16:].reshape(2, 42, 2, 4).transpose(1, 2)
        out = mixer.proj((maps @ v).transpose(1, 2).reshape(2, 7, 6, 8))
        torch.testing.assert_close(out, mixer(x), rtol=1e-10, atol=1e-10)
    assert int((maps > 0).sum(-1).max()) == 9


def test_counts_what_it_computes():
    mixer = NeighborhoodAttention(16, 2, kernel_size=5)
    projections = 4 * 16 * 16
    assert mixer.flops(10, 12) == 120 * (projections + 2 * 25 * 16)
    assert mixer.flops(3, 12) == 60 * (3 * 16 * 16 + 2 * 25 * 16) + 36 * 16 * 16


@pytest.mark.parametrize(
    "options, message", [(dict(kernel_size=0), "kernel_size=0"), (dict(dilation=(1,)), "dilation")]
)
def test_refuses_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodAttention(8, 2, **options)
