"""Agent attention and its relatives against independent float64 formulations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zoo.mixers.agent import AgentAttention, AgentBias
from zoo.mixers.agent_window import AgentWindowAttention
from zoo.mixers.cross_shaped import CrossShapedAttention
from zoo.mixers.spatial_reduction import SpatialReductionAttention
from zoo.registry import MIXERS, build
from zoo_kernels.dispatch import use_backend


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights well away from their start, so that attention is not uniform; float64, evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bilinear_axis(length: int, target: int) -> torch.Tensor:
    """Weights [target, length] of linear interpolation with pixel centres at half integers, clamped at the ends."""
    places = ((torch.arange(target, dtype=torch.float64) + 0.5) * length / target - 0.5).clamp(0, length - 1)
    low = places.floor().long().clamp(max=max(0, length - 2))
    weights = torch.zeros(target, length, dtype=torch.float64)
    for row, (a, place) in enumerate(zip(low.tolist(), places.tolist())):
        b = min(a + 1, length - 1)
        weights[row, a] += 1 - (place - a)
        weights[row, b] += place - a
    return weights


def pool_axis(length: int, bins: int) -> torch.Tensor:
    """Weights [bins, length] of adaptive average pooling: bin i covers floor(i L / b) to ceil((i + 1) L / b)."""
    weights = torch.zeros(bins, length, dtype=torch.float64)
    for i in range(bins):
        first, end = i * length // bins, -(-(i + 1) * length // bins)
        weights[i, first:end] = 1 / (end - first)
    return weights


def expected(core: nn.Module, q, k, v, size, kv_size, prefix: int) -> torch.Tensor:
    """Equations 5-8, position by position, on [B, P + N, C]; nothing of torch's pooling or interpolation is used."""
    (H, W), (Hk, Wk) = size, kv_size
    p, h, side = core.position, core.num_heads, core.side
    d = q.shape[-1] // h
    pooled = torch.einsum(
        "ih,jw,bhwc->bijc", pool_axis(H, side), pool_axis(W, side), q[:, prefix:].unflatten(1, size)
    ).flatten(1, 2)

    def table(coarse, rows, columns, height, width):
        """[h, n, a, a], [h, n, H0], [h, n, W0] -> [h, n, height, width]"""
        y, x = bilinear_axis(coarse.shape[2], height), bilinear_axis(coarse.shape[3], width)
        total = torch.einsum("ia,jb,hnab->hnij", y, x, coarse)
        total = total + torch.einsum("ia,hna->hni", bilinear_axis(rows.shape[2], height), rows)[..., None]
        return total + torch.einsum("jb,hnb->hnj", bilinear_axis(columns.shape[2], width), columns)[:, :, None]

    b1 = table(p.an_bias, p.ah_bias[0, ..., 0], p.aw_bias[0, :, :, 0], Hk, Wk).flatten(2)
    b2 = table(p.na_bias, p.ha_bias[0, :, :, 0].mT, p.wa_bias[0, :, 0].mT, H, W).flatten(2)
    if prefix:
        b1 = torch.cat([p.ac_bias[0].expand(-1, -1, prefix), b1], 2)
        b2 = torch.cat([p.ca_bias[0].mT.expand(-1, -1, prefix), b2], 2)
    # the tables' square of agents, brought to the square of those that are pooled
    axis = bilinear_axis(p.side, side)
    b1, b2 = (torch.einsum("mn,hnx->hmx", torch.kron(axis, axis), b) for b in (b1, b2))
    out = torch.zeros_like(q)
    for head in range(h):
        part = slice(head * d, (head + 1) * d)
        agents = pooled[..., part]
        agent_v = (agents @ k[..., part].mT * d**-0.5 + b1[head]).softmax(-1) @ v[..., part]
        out[..., part] = (q[..., part] @ agents.mT * d**-0.5 + b2[head].mT).softmax(-1) @ agent_v
    v_map = v[:, prefix:].unflatten(1, kv_size)
    v_map = torch.einsum("ia,jb,zabc->zcij", bilinear_axis(Hk, H), bilinear_axis(Wk, W), v_map)
    local = F.conv2d(v_map, core.dwc.weight, core.dwc.bias, padding=1, groups=v.shape[-1])
    out[:, prefix:] += local.flatten(2).mT
    return out


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("size", [(6, 5), (9, 4), (3, 11), (1, 1)])
@pytest.mark.parametrize("num_agents, pool_side", [(4, None), (49, None), (9, 5), (16, 2)])
def test_agent_attention_equals_formula(size, prefix, num_agents, pool_side):
    m = randomised(AgentAttention(12, 3, num_agents, input_size=(6, 5), takes_prefix=prefix > 0, pool_side=pool_side))
    assert m.core.position.an_bias.shape[1] == num_agents
    x = image(2, *size, 12)
    first = image(2, prefix, 12, seed=2)
    tokens = torch.cat([first, x.flatten(1, 2)], 1)
    q, k, v = m.qkv(tokens).chunk(3, -1)
    want = m.proj(expected(m.core, q, k, v, size, size, prefix))
    if prefix:
        got, got_first = m(x, first)
        torch.testing.assert_close(got_first, want[:, :prefix], rtol=1e-9, atol=1e-9)
    else:
        got = m(x)
    torch.testing.assert_close(got.flatten(1, 2), want[:, prefix:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 3)])
def test_reduced_keys_equal_formula(size):
    m = randomised(AgentAttention(12, 3, 9, input_size=(8, 6), sr_ratio=2))
    x = image(2, *size, 12)
    kv_size = tuple(max(1, n // 2) for n in size)
    padded = F.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2)) if 1 in size else x
    reduced = F.conv2d(padded.permute(0, 3, 1, 2), m.reduction.conv.weight, m.reduction.conv.bias, stride=2)
    reduced = m.reduction.norm(reduced.flatten(2).mT)
    if 1 in size:
        kv_size = tuple(-(-n // 2) for n in size)
    k, v = m.kv(reduced).chunk(2, -1)
    want = m.proj(expected(m.core, m.q(x.flatten(1, 2)), k, v, size, kv_size, 0))
    torch.testing.assert_close(m(x).flatten(1, 2), want, rtol=1e-9, atol=1e-9)
    with pytest.raises(TypeError, match="sr_ratio=2"):
        m.attention_map(x)


def test_attention_map_is_the_product_of_both_softmaxes():
    m = randomised(AgentAttention(8, 2, 4, input_size=(4, 5)))
    x = image(2, 4, 5, 8)
    attention = m.attention_map(x)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 20, dtype=torch.float64))
    v = m.qkv(x).chunk(3, -1)[2]
    out = (attention @ v.flatten(1, 2).unflatten(2, (2, 4)).transpose(1, 2)).transpose(1, 2).reshape(2, 4, 5, 8)
    torch.testing.assert_close(m.proj(out + m.core.dwc(v)), m(x), rtol=1e-9, atol=1e-9)


def test_biases_are_exact_at_the_size_they_were_made_for():
    p = AgentBias(2, 4, (5, 7), (3, 2)).double()
    agent, query = p((5, 7), (3, 2))
    coarse = F.interpolate(p.an_bias, size=(3, 2), mode="bilinear")
    torch.testing.assert_close(agent, (coarse + p.ah_bias + p.aw_bias).flatten(3), rtol=0, atol=1e-12)
    coarse = F.interpolate(p.na_bias, size=(5, 7), mode="bilinear").flatten(2).mT
    torch.testing.assert_close(query, coarse + (p.ha_bias + p.wa_bias).flatten(2, 3), rtol=0, atol=1e-12)


def test_shifted_windows_wrap_without_mask():
    m = randomised(AgentWindowAttention(8, 2, window_size=4, shift_size=2, num_agents=4))
    x = image(1, 8, 12, 8)
    rolled = x.roll((-2, -2), (1, 2))
    want = torch.zeros_like(x)
    for i in range(0, 8, 4):
        for j in range(0, 12, 4):
            part = rolled[:, i : i + 4, j : j + 4]
            q, k, v = m.qkv(part.flatten(1, 2)).chunk(3, -1)
            out = m.proj(expected(m.core, q, k, v, (4, 4), (4, 4), 0))
            want[:, i : i + 4, j : j + 4] = out.unflatten(1, (4, 4))
    torch.testing.assert_close(m(x), want.roll((2, 2), (1, 2)), rtol=1e-9, atol=1e-9)
    # a map of one window is neither shifted nor padded
    small = image(1, 4, 3, 8)
    q, k, v = m.qkv(small.flatten(1, 2)).chunk(3, -1)
    want = m.proj(expected(m.core, q, k, v, (4, 3), (4, 3), 0)).unflatten(1, (4, 3))
    torch.testing.assert_close(m(small), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("agents", [None, 4])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2)])
def test_cross_shaped_strips(agents, size):
    m = randomised(CrossShapedAttention(8, 2, split_size=2, num_agents=agents, input_size=(6, 8)))
    x = image(1, *size, 8)
    H, W = (n if n == 1 else n + n % 2 for n in size)
    padded = F.pad(x, (0, 0, 0, W - size[1], 0, H - size[0]))
    qkv = m.qkv(padded).chunk(3, -1)
    want = torch.zeros_like(padded)
    strips = [(0, slice(0, H), slice(j, j + 2)) for j in range(0, W, 2)]
    strips += [(1, slice(i, i + min(2, H)), slice(0, W)) for i in range(0, H, min(2, H))]
    for branch, rows, columns in strips:
        core, channels = m.branches[branch], slice(4 * branch, 4 * branch + 4)
        part = [t[:, rows, columns, channels] for t in qkv]
        shape = part[0].shape[1:3]
        q, k, v = (t.flatten(1, 2) for t in part)
        if agents:
            out = expected(core, q, k, v, tuple(shape), tuple(shape), 0)
        else:
            out = (q @ k.mT * 4**-0.5).softmax(-1) @ v
            out = (
                out
                + F.conv2d(part[2].permute(0, 3, 1, 2), core.dwc.weight, core.dwc.bias, padding=1, groups=4)
                .flatten(2)
                .mT
            )
        want[:, rows, columns, channels] = out.unflatten(1, shape)
    want = m.proj(want[:, : size[0], : size[1]])
    torch.testing.assert_close(m(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ratio", [1, 2])
def test_spatial_reduction_attention(ratio):
    m = randomised(SpatialReductionAttention(8, 2, sr_ratio=ratio, qk_scale=0.3))
    x = image(2, 5, 6, 8)
    source = x
    if ratio == 2:
        source = F.conv2d(x.permute(0, 3, 1, 2), m.reduction.conv.weight, m.reduction.conv.bias, stride=2)
        source = m.reduction.norm(source.permute(0, 2, 3, 1))
    q, (k, v) = m.q(x).flatten(1, 2), m.kv(source).flatten(1, 2).chunk(2, -1)
    heads = [(q[..., s] @ k[..., s].mT * 0.3).softmax(-1) @ v[..., s] for s in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(m(x).flatten(1, 2), m.proj(torch.cat(heads, -1)), rtol=1e-9, atol=1e-9)


SPECS = [
    dict(type="agent", num_agents=9),
    dict(type="agent", num_agents=9, pool_side=4),
    dict(type="agent", num_agents=4, sr_ratio=2),
    dict(type="agent_window", window_size=4, num_agents=4),
    dict(type="cross_shaped", split_size=4, num_agents=4),
    dict(type="cross_shaped", split_size=4),
    dict(type="spatial_reduction", sr_ratio=2),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_flops_are_those_that_run(spec):
    m = build(spec, MIXERS, dim=16, num_heads=4).eval()
    with use_backend("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
        m(torch.randn(1, 8, 12, 16))
    assert m.flops(8, 12) * 2 == counter.get_total_flops()


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (AgentAttention, dict(num_agents=8), "num_agents=8"),
        (AgentAttention, dict(num_agents=0), "num_agents=0"),
        (AgentAttention, dict(pool_side=0), "pool_side=0"),
        (AgentAttention, dict(sr_ratio=0), "sr_ratio=0"),
        (AgentAttention, dict(input_size=(0, 3)), "input_size"),
        (AgentWindowAttention, dict(window_size=0), "window_size=0"),
        (AgentWindowAttention, dict(window_size=4, shift_size=4), "shift_size=4"),
        (CrossShapedAttention, dict(split_size=0), "split_size=0"),
        (CrossShapedAttention, dict(num_heads=1), "must be even"),
        (SpatialReductionAttention, dict(sr_ratio=0), "sr_ratio=0"),
    ],
)
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"dim": 16, "num_heads": 4, **arguments})


def test_prefix_needs_a_mixer_that_takes_it():
    with pytest.raises(TypeError, match="prefix"):
        AgentAttention(16, 4)(torch.randn(1, 4, 4, 16), torch.randn(1, 1, 16))
