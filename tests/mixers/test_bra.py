"""Bi-level routing attention and LePE attention against dense float64 formulations of their equations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zoo.mixers.bra import BiLevelRoutingAttention, RegionRoutingAttention
from zoo.mixers.lepe import LePEAttention
from zoo.registry import MIXERS, build
from zoo_kernels.dispatch import use_backend


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights well away from their start, so that attention is not uniform; float64, evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.5 if p.ndim > 1 else 0.2))
    return module


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def region_of(height: int, width: int, size: tuple[int, int]) -> torch.Tensor:
    """Number of the region of every position, [height * width]."""
    rows, columns = torch.arange(height) // size[0], torch.arange(width) // size[1]
    return (rows[:, None] * (-(-width // size[1])) + columns).flatten()


def dense_routing(q, k, v, region, valid, topk, heads, scale, soft):
    """Equations 3-7 over all positions at once, [B, L, C] each: a weight for every pair of positions."""
    R = int(region.max()) + 1
    member = F.one_hot(region, R).to(q)  # [L, R]
    counted = member * valid[:, None]
    means = [torch.einsum("blc,lr->brc", t, counted) / counted.sum(0)[:, None] for t in (q, k)]
    affinity = means[0] @ means[1].transpose(1, 2) * scale  # [B, R, R]
    chosen = torch.zeros_like(affinity, dtype=torch.bool)
    chosen.scatter_(2, affinity.argsort(-1, descending=True)[..., :topk], True)
    weight = affinity.masked_fill(~chosen, -torch.inf).softmax(-1) if soft else chosen.to(q)
    pair = weight[:, region][:, :, region][:, None]  # [B, 1, L, L]
    seen = chosen[:, region][:, :, region][:, None]
    qh, kh, vh = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    logits = (qh @ kh.transpose(-1, -2)) * scale * pair
    attention = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return ((attention * pair) @ vh).transpose(1, 2).flatten(2), attention


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("size", [(8, 12), (7, 13), (3, 2)])
def test_bra_equals_dense(size, soft):
    H, W = size
    m = randomised(
        BiLevelRoutingAttention(
            24, 3, n_win=4, qk_dim=12, topk=5, side_dwconv=3, soft_routing=soft, diff_routing=soft, param_routing=False
        )
    )
    x = image(2, H, W, 24)
    padded = F.pad(x, (0, 0, 0, -W % 4, 0, -H % 4))
    Hp, Wp = padded.shape[1:3]
    q, k, v = m.qkv_linear(padded).flatten(1, 2).split([12, 12, 24], -1)
    region = region_of(Hp, Wp, (Hp // 4, Wp // 4))
    out, attention = dense_routing(q, k, v, region, torch.ones(Hp * Wp), 5, 3, 12**-0.5, soft)
    local = m.lepe(v.reshape(2, Hp, Wp, 24))
    want = m.wo(out.reshape(2, Hp, Wp, 24) + local)[:, :H, :W]
    torch.testing.assert_close(m(x), want, rtol=1e-10, atol=1e-10)
    inside = F.pad(torch.ones(H, W), (0, Wp - W, 0, Hp - H)).flatten().bool()
    attention = attention[:, :, inside][..., inside]
    attention = attention / attention.sum(-1, keepdim=True)
    torch.testing.assert_close(m.attention_map(x), attention, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (3, 2), (1, 1)])
def test_bra_nchw_equals_dense(size):
    H, W = size
    m = randomised(RegionRoutingAttention(24, 3, n_win=4, topk=5, side_dwconv=5))
    x = image(2, H, W, 24)
    rh, rw = max(1, H // 4), max(1, W // 4)
    qkv = F.pad(m.qkv_linear(x), (0, 0, 0, -W % rw, 0, -H % rh))
    Hp, Wp = qkv.shape[1:3]
    inside = F.pad(torch.ones(H, W), (0, Wp - W, 0, Hp - H)).flatten()
    q, k, v = qkv.flatten(1, 2).chunk(3, -1)
    region = region_of(Hp, Wp, (rh, rw))
    topk = min(5, int(region.max()) + 1)
    out, _ = dense_routing(q, k, v, region, inside.double(), topk, 3, 24**-0.5, False)
    out = out.reshape(2, Hp, Wp, 24)[:, :H, :W] + m.lepe(v.reshape(2, Hp, Wp, 24)[:, :H, :W])
    torch.testing.assert_close(m(x), m.wo(out), rtol=1e-10, atol=1e-10)


def test_both_forms_agree_where_regions_divide():
    a = randomised(BiLevelRoutingAttention(16, 2, n_win=4, topk=3))
    b = RegionRoutingAttention(16, 2, n_win=4, topk=3).double().eval()
    b.load_state_dict(a.state_dict())
    x = image(2, 8, 12, 16)
    torch.testing.assert_close(a(x), b(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["ada_avgpool", "ada_maxpool", "avgpool", "maxpool"])
def test_pooled_keys(mode):
    m = randomised(
        BiLevelRoutingAttention(8, 2, n_win=2, topk=4, kv_downsample_mode=mode, kv_per_win=2, kv_downsample_ratio=2)
    )
    x = image(2, 8, 8, 8)
    # with every region chosen, routing only orders the keys: attention over the pooled map
    q, k, v = m.qkv_linear(x).split(8, -1)
    local = m.lepe(v)
    pool = F.avg_pool2d if "avg" in mode else F.max_pool2d
    k, v = (pool(t.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2) for t in (k, v))
    qh, kh, vh = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q.flatten(1, 2), k, v))
    out = (qh @ kh.transpose(-1, -2) * 8**-0.5).softmax(-1) @ vh
    want = m.wo(out.transpose(1, 2).reshape(2, 8, 8, 8) + local)
    torch.testing.assert_close(m(x), want, rtol=1e-10, atol=1e-10)
    with pytest.raises(TypeError, match="pooled"):
        m.attention_map(x)


def test_pool_larger_than_a_region_is_an_error():
    m = BiLevelRoutingAttention(8, 2, n_win=4, topk=4, kv_downsample_mode="maxpool", kv_downsample_ratio=4)
    with pytest.raises(ValueError, match="too small"):
        m(torch.randn(1, 8, 8, 8))


def test_gradient_reaches_the_router_only_where_asked():
    x = image(2, 8, 8, 8)
    m = randomised(BiLevelRoutingAttention(8, 2, 4, topk=3, param_routing=True, diff_routing=True, soft_routing=True))
    m(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    hard = randomised(BiLevelRoutingAttention(8, 2, 4, topk=3, soft_routing=True))
    assert hard._plan(x).logits.requires_grad is False


@pytest.mark.parametrize("lepe_input", ["v", "x"])
@pytest.mark.parametrize("kernel", [0, 3])
def test_lepe_attention_equals_formula(lepe_input, kernel):
    m = randomised(LePEAttention(16, 4, side_dwconv=kernel, lepe_input=lepe_input))
    x = image(2, 5, 7, 16)
    q, k, v = m.qkv(x).flatten(1, 2).chunk(3, -1)
    qh, kh, vh = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in (q, k, v))
    attention = (qh @ kh.transpose(-1, -2) / 2).softmax(-1)
    out = (attention @ vh).transpose(1, 2).reshape(2, 5, 7, 16)
    if kernel:
        out = out + m.lepe(x if lepe_input == "x" else v.reshape(2, 5, 7, 16))
    torch.testing.assert_close(m(x), m.proj(out), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(m.attention_map(x), attention, rtol=1e-10, atol=1e-12)


MIXER_SPECS = [
    dict(type="bra", n_win=2, topk=2),
    dict(type="bra", n_win=3, topk=4, qk_dim=8, side_dwconv=0, param_attention="qkv"),
    dict(
        type="bra",
        n_win=2,
        topk=2,
        kv_downsample_mode="ada_avgpool",
        kv_per_win=2,
        param_routing=True,
        diff_routing=True,
        soft_routing=True,
    ),
    dict(type="bra_nchw", n_win=2, topk=3),
    dict(type="lepe_attention"),
]


@pytest.mark.parametrize("spec", MIXER_SPECS, ids=str)
def test_flops_are_those_that_run(spec):
    m = build(spec, MIXERS, dim=16, num_heads=4).eval()
    for size in ((8, 12), (7, 5)):
        with use_backend("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
            m(torch.randn(1, *size, 16))
        assert m.flops(*size) * 2 == counter.get_total_flops()


@pytest.mark.parametrize("spec", MIXER_SPECS, ids=str)
def test_export_and_fullgraph(spec):
    m = build(spec, MIXERS, dim=16, num_heads=4).eval()
    x = torch.randn(2, 7, 5, 16)
    with torch.no_grad():
        want = m(x)
        assert want.shape == x.shape
        torch.testing.assert_close(torch.export.export(m, (x,)).module()(x), want)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(m, backend="eager", fullgraph=True)(x), want)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(topk=17, n_win=4), "topk=17"),
        (dict(topk=0), "topk=0"),
        (dict(qk_dim=6), "qk_dim=6"),
        (dict(n_win=0), "n_win=0"),
        (dict(side_dwconv=4), "kernel_size=4"),
        (dict(param_attention="none"), "param_attention='none'"),
        (dict(param_routing=True), "diff_routing"),
        (dict(diff_routing=True), "soft_routing"),
        (dict(kv_downsample_mode="fracpool"), "fracpool"),
        (dict(kv_downsample_mode="ada_avgpool", kv_per_win=-1), "kv_per_win=-1"),
        (dict(kv_downsample_mode="avgpool", kv_downsample_ratio=0), "kv_downsample_ratio=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(16, 4, **arguments)


def test_bad_input():
    m = BiLevelRoutingAttention(16, 4, n_win=4, auto_pad=False)
    with pytest.raises(ValueError, match="not divided by n_win=4"):
        m(torch.randn(1, 8, 9, 16))
    with pytest.raises(ValueError, match="takes"):
        m(torch.randn(1, 8, 8, 12))
    with pytest.raises(TypeError, match="prefix"):
        m(torch.randn(1, 8, 8, 16), torch.randn(1, 1, 16))
    with pytest.raises(ValueError, match="lepe_input"):
        LePEAttention(16, lepe_input="k")
