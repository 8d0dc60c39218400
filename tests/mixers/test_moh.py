"""Mixture of heads and aggregated attention against their equations in float64, written as plainly as can be."""

import math

import pytest
import torch
from torch.nn import functional as F

from zoo.layers.records import recording
from zoo.layers.relative_mlp import axis_offsets
from zoo.mixers.aggregated import AggregatedAttention
from zoo.mixers.moh import HeadGates, MoHAttention, default_heads


def moved(module):
    torch.manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


@pytest.mark.parametrize("shared, routed", [(2, 2), (1, 3), (0, 2), (6, 0), (3, 3)])
def test_gates(shared, routed):
    gates = moved(HeadGates(8, 6, shared, routed))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with recording(gates, "balance") as records:
        out = gates(x)
    for b in range(2):
        for n in range(5):
            token, expected = x[b, n], [0.0] * 6
            kinds = (1.0, 1.0)
            if shared and routed:
                kinds = (2 * (gates.balance_gate.weight @ token).softmax(0)).tolist()
            first = (gates.shared_gate.weight @ token).softmax(0) * shared if shared > 1 else torch.ones(shared)
            expected[:shared] = [kinds[0] * g.item() for g in first]
            if routed:
                p = (gates.routed_gate.weight @ token).softmax(0)
                best = p.topk(routed).indices.tolist()
                for i in best:
                    expected[shared + i] = kinds[1] * routed * (p[i] / p[best].sum()).item()
            torch.testing.assert_close(out[b, n], torch.tensor(expected, dtype=torch.float64))
    if routed:
        p = (x @ gates.routed_gate.weight.T).softmax(-1).flatten(0, 1)
        chosen = torch.zeros_like(p).scatter(1, p.topk(routed).indices, 1.0)
        expected = (p.mean(0) * chosen.mean(0)).mean() * p.shape[1] ** 2
        torch.testing.assert_close(records["balance"][0], expected)
    else:
        assert records["balance"] == []


def test_numbers_of_heads():
    for heads in range(1, 33):
        shared, routed = default_heads(heads)
        HeadGates(8, heads, shared, routed)
        assert routed != 1
        assert heads < 3 or 0.5 <= (shared + routed) / heads <= 1
    for shared, routed in [(3, 0), (5, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="num_heads"):
            HeadGates(8, 6, shared, routed)


@pytest.mark.parametrize("size, pooled", [(7, 7), (8, 2), (7, 2), (9, 4), (5, 1), (1, 1)])
def test_offsets_are_those_of_pooled_coordinates(size, pooled):
    offsets, rows = axis_offsets(size, pooled)
    place = torch.arange(size, dtype=torch.float32)
    keys = F.adaptive_avg_pool1d(place[None, None], pooled)[0, 0]
    torch.testing.assert_close(offsets[rows], place[:, None] - keys)


def bias_of(position, size, pooled):
    """[heads, N, M], a pair at a time."""
    centres = [
        F.adaptive_avg_pool1d(torch.arange(n, dtype=torch.float64)[None, None], m)[0, 0] for n, m in zip(size, pooled)
    ]
    rows = []
    for qy in range(size[0]):
        for qx in range(size[1]):
            for ky in centres[0]:
                for kx in centres[1]:
                    pair = [
                        8 * (qy - ky) / (position.trained_size[0] - 1),
                        8 * (qx - kx) / (position.trained_size[1] - 1),
                    ]
                    pair = torch.stack([p.sign() * torch.log2(p.abs() + 1) / math.log2(8) for p in pair])
                    rows.append(position.fc2(position.fc1(pair).relu()))
    return torch.stack(rows).T.reshape(-1, size[0] * size[1], pooled[0] * pooled[1])


def test_moh_attention():
    mixer = moved(MoHAttention(12, 3, shared_heads=1, routed_heads=2, input_size=(4, 5)))
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    q, k, v = mixer.qkv(x).reshape(2, 12, 3, 3, 4).permute(2, 0, 3, 1, 4)
    scale = torch.log1p(mixer.temperature.exp()) * math.log(12)
    q = (q / q.norm(dim=-1, keepdim=True) + mixer.query_embedding) * scale
    logits = q @ (k / k.norm(dim=-1, keepdim=True)).transpose(-1, -2) + bias_of(mixer.position, (3, 4), (3, 4))
    heads = (logits.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(2, 3, 4, 3, 4)
    out = mixer.proj((heads * mixer.gates(x)[..., None]).flatten(3))
    torch.testing.assert_close(mixer(x), out)
    torch.testing.assert_close(mixer.attention_map(x), logits.softmax(-1))


@pytest.mark.parametrize("own", [dict(sr_ratio=2), dict(pool_size=2, window_size=5), dict(sr_ratio=3, window_size=1)])
def test_aggregated_attention(own):
    mixer = moved(AggregatedAttention(8, 2, input_size=(6, 5), **own))
    H, W = 5, 4
    x = torch.randn(1, H, W, 8, dtype=torch.float64)
    Hk, Wk = mixer.pooled_size(H, W)
    pooled = F.adaptive_avg_pool2d(F.gelu(mixer.sr(x)).permute(0, 3, 1, 2), (Hk, Wk)).flatten(2).transpose(1, 2)
    pooled = F.layer_norm(pooled, (8,), mixer.norm.weight, mixer.norm.bias)
    far_k, far_v = mixer.kv(pooled)[0].chunk(2, -1)
    near_k, near_v = mixer.kv(x)[0].chunk(2, -1)
    bias, side = bias_of(mixer.position, (H, W), (Hk, Wk)), mixer.window_size
    out = torch.zeros(H, W, 2, 4, dtype=torch.float64)
    for h in range(2):
        own_head = slice(4 * h, 4 * h + 4)
        for i in range(H):
            for j in range(W):
                q = F.normalize(mixer.q(x)[0, i, j, own_head], dim=0)
                cells = [(a, b) for a in range(side) for b in range(side)]
                places = [(i + a - side // 2, j + b - side // 2) for a, b in cells]
                inside = [n for n, (y, z) in enumerate(places) if 0 <= y < H and 0 <= z < W]
                scale = F.softplus(mixer.temperature[h, 0, 0]) * math.log(len(inside) + Hk * Wk)
                scaled = (q + mixer.query_embedding[h, 0]) * scale
                near = [
                    scaled @ F.normalize(near_k[places[n]][own_head], dim=0) + mixer.local_bias[h, n] for n in inside
                ]
                far = far_k[:, own_head]
                far = F.normalize(far, dim=-1) @ scaled + bias[h, i * W + j]
                weights = torch.cat([torch.stack(near), far]).softmax(0)
                place = q @ mixer.learnable_tokens[h] + mixer.learnable_bias[h, 0]
                for w, n in zip(weights, inside):
                    out[i, j, h] += (w + place[n]) * near_v[places[n]][own_head]
                out[i, j, h] += weights[len(inside) :] @ far_v[:, own_head]
    expected = mixer.proj((out * mixer.gates(x)[0][..., None]).flatten(2))
    torch.testing.assert_close(mixer(x)[0], expected)


def test_bad_arguments():
    for bad in (dict(window_size=4), dict(sr_ratio=0), dict(pool_size=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            AggregatedAttention(8, 2, **bad)
    with pytest.raises(ValueError, match="records no 'nothing'"), recording(MoHAttention(8, 2), "nothing"):
        pass
