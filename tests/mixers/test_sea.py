"""SEA in float64: the paper's equations with dense matrices."""

import pytest
import torch
from torch.nn import functional as F

from zoo.mixers import sea
from zoo.mixers.sea import SparseEstimatedAttention


def make(size, **options):
    generator = torch.Generator().manual_seed(0)
    mixer = SparseEstimatedAttention(8, 2, **{**dict(hidden=6), **options}).double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return mixer, torch.randn(2, *size, 8, generator=generator, dtype=torch.float64)


def dense(mixer, x):
    """The equations of the module's docstring, with [N, N] matrices."""
    B, H, W, C = x.shape
    N, K, d, h = H * W, mixer.columns, mixer.head_dim, mixer.num_heads
    q, k, v = mixer.qkv(x.reshape(B, N, C)).reshape(B, N, 3, h, d).permute(2, 0, 3, 1, 4)

    def phi(t):
        t = t / d**0.25
        return torch.exp(t @ mixer.omega.double().T - (t**2).sum(-1, keepdim=True) / 2)

    kernel = phi(q) @ phi(k).transpose(-1, -2)
    favor = kernel / kernel.sum(-1, keepdim=True)
    rows = torch.floor(torch.arange(N) * d / N).long()
    v_i = torch.eye(d, dtype=x.dtype)[rows].expand(B, h, N, d)
    z = F.gelu(mixer.encode(torch.cat([favor @ v_i, favor @ v, v], -1)))
    maps = mixer.decode(z)
    maps = maps + mixer.conv2(mixer.conv1(maps).relu())
    column = torch.floor(torch.arange(N) * K / N).long()  # of each key
    present = torch.zeros(K, dtype=torch.bool)
    present[column] = True
    estimate = maps.masked_fill(~present, float("-inf")).softmax(-1)
    count = min(max(1, round(mixer.top_k * K / N)), K, N)
    kept = torch.zeros_like(estimate).scatter(-1, estimate.topk(count).indices, 1.0)[..., column] > 0
    logits = q @ k.transpose(-1, -2) / d**0.5
    if mixer.estimate_bias:
        logits = logits + estimate[..., column].log()
    attention = logits.masked_fill(~kept, float("-inf")).softmax(-1)
    prob, mix = mixer.mix(z).sigmoid().split(1, -1)
    out = mix * prob * (attention @ v) + (1 - mix) * v.mean(2, keepdim=True)
    return mixer.proj(out.transpose(1, 2).reshape(B, H, W, C)), estimate[..., column], logits


@pytest.mark.parametrize(
    "size, options",
    [
        ((4, 6), dict(columns=8, top_k=6)),
        ((5, 5), dict(columns=8, top_k=9, estimate_bias=False)),  # columns of three and of four keys
        ((2, 3), dict(columns=16, top_k=2)),  # more columns than keys
        ((3, 3), dict(columns=4, top_k=64, features=5, qkv_bias=False)),  # all keys
        ((1, 1), dict(columns=4)),
    ],
)
def test_equals_the_equations(monkeypatch, size, options):
    mixer, x = make(size, **options)
    with torch.no_grad():
        want = dense(mixer, x)[0]
        torch.testing.assert_close(mixer(x), want, rtol=1e-9, atol=1e-9)
        monkeypatch.setattr(sea, "CHUNK", 1)  # one query at a time
        torch.testing.assert_close(mixer(x), want, rtol=1e-9, atol=1e-9)


def test_attention_map_weighs_the_values():
    mixer, x = make((5, 5), columns=8, top_k=6)
    with torch.no_grad():
        maps = mixer.attention_map(x)
        v = mixer._heads(x)[2]
        out = mixer.proj((maps @ v).transpose(1, 2).reshape(x.shape))
        torch.testing.assert_close(out, mixer(x), rtol=1e-9, atol=1e-9)


def test_distillation_of_the_estimate():
    mixer, x = make((5, 5), columns=8, estimate_bias=False)
    _, estimate, logits = dense(mixer, x)
    sizes = torch.bincount(torch.floor(torch.arange(25) * 8 / 25).long())
    share = estimate / sizes[torch.floor(torch.arange(25) * 8 / 25).long()]
    full = logits.softmax(-1)
    want = (full * (full / share).log()).sum(-1).mean()
    loss = mixer.estimation_loss(x)
    torch.testing.assert_close(loss, want)
    assert want > 0
    grads = torch.autograd.grad(loss, [mixer.conv1.weight, mixer.decode.weight])
    assert all(g.abs().max() > 0 for g in grads)


def test_cost_is_linear_up_to_its_limit():
    mixer = SparseEstimatedAttention(32, 2)
    assert mixer.flops(128, 128) <= 4.2 * mixer.flops(64, 64)
    with pytest.raises(ValueError, match="top_k=0"):
        SparseEstimatedAttention(8, 2, top_k=0)
