"""The linear attentions against their equations, written token by token in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zoo.mixers.efficient import EfficientAttention
from zoo.mixers.inline import InLineAttention
from zoo.mixers.inline_window import InLineWindowAttention
from zoo.mixers.latte import LatteAttention
from zoo.mixers.lightning import LightningAttention
from zoo.mixers.linear import LinearAttention
from zoo.mixers.mala import MagnitudeAwareAttention, RotatedSoftmaxAttention, Rotation, rotate
from zoo.mixers.taylorshift import TaylorShiftAttention, crossover
from zoo.registry import MIXERS, build
from zoo_kernels.dispatch import use_backend

SIZES = [(6, 7), (1, 1), (11, 13)]  # 143 tokens are more than one tile of the causal forms


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


def heads(x: torch.Tensor, n: int) -> torch.Tensor:
    """[B, N, C] -> [B, n, N, C / n], channel by channel"""
    return torch.stack(x.chunk(n, dim=-1), dim=1)


def joined(x: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`heads`."""
    return torch.cat(list(x.unbind(1)), dim=-1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("feature_map", ["elu+1", "relu", "exp"])
def test_linear(feature_map, size):
    m = randomised(LinearAttention(12, 3, feature_map))
    x = image(2, *size, 12)
    phi = {"elu+1": lambda t: torch.where(t > 0, t + 1, t.exp()), "relu": lambda t: t.clamp(min=0), "exp": torch.exp}
    q, k, v = (heads(t, 3) for t in m.qkv(x.flatten(1, 2)).chunk(3, -1))
    weights = torch.einsum("bhid,bhjd->bhij", phi[feature_map](q), phi[feature_map](k))
    weights = weights / (weights.sum(-1, keepdim=True) + (0 if feature_map == "exp" else 1e-6))
    close(m(x).flatten(1, 2), m.proj(joined(weights @ v)))
    close(m.attention_map(x), weights)


@pytest.mark.parametrize("kind", [LinearAttention, TaylorShiftAttention, InLineAttention])
def test_prefix_tokens_are_tokens(kind):
    """They attend and are attended as positions do; only InLine's convolution leaves them out."""
    m = randomised(kind(12, 3, **(dict(takes_prefix=True) if kind is InLineAttention else {})))
    x, prefix = image(2, 3, 4, 12), image(2, 2, 12, seed=2)
    tokens = torch.cat([prefix, x.flatten(1, 2)], 1)
    row = tokens[:, None]  # a map of one row, whose order none of the attentions sees
    got, got_prefix = m(x, prefix)
    if kind is InLineAttention:
        local = m.residual(m.qkv(row)[..., 24:], tokens.mean(1))
        v_map = m.qkv(x)[..., 24:]
        want = m(row)[:, 0] - F.linear(local[:, 0], m.proj.weight)
        own = F.linear(m.residual(v_map, tokens.mean(1)), m.proj.weight).flatten(1, 2)
        want = torch.cat([want[:, :2], want[:, 2:] + own], 1)
    else:
        want = m(row)[:, 0]
    close(torch.cat([got_prefix, got.flatten(1, 2)], 1), want)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("residual", [False, True])
def test_efficient(residual, size):
    m = randomised(EfficientAttention(10, 2, key_dim=6, value_dim=8, residual=residual))
    x = image(2, *size, 10)
    q, k, v = (heads(layer(x.flatten(1, 2)), 2) for layer in (m.queries, m.keys, m.values))
    q = q.exp() / q.exp().sum(-1, keepdim=True)  # over the channels of a head
    k = k.exp() / k.exp().sum(-2, keepdim=True)  # over the map
    weights = torch.einsum("bhid,bhjd->bhij", q, k)
    close(m(x).flatten(1, 2), m.proj(joined(weights @ v)) + (x.flatten(1, 2) if residual else 0))
    close(m.attention_map(x), weights)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_latents", [None, 5])
def test_latte(num_latents, causal, size):
    m = randomised(LatteAttention(12, 3, num_latents, causal))
    x = image(2, *size, 12)
    N = size[0] * size[1]
    choice, logits, v = (heads(layer(x.flatten(1, 2)), 3) for layer in (m.to_latents, m.of_latents, m.values))
    latents = choice.shape[-1]
    assert latents == (num_latents or 4)
    p_l_t = choice.exp() / choice.exp().sum(-1, keepdim=True)
    weights = torch.zeros(2, 3, N, N, dtype=torch.float64)
    for t in range(N):
        seen = t + 1 if causal else N
        for latent in range(latents):
            p_s_l = logits[:, :, :seen, latent].exp()
            p_s_l = p_s_l / p_s_l.sum(-1, keepdim=True)
            weights[:, :, t, :seen] += p_l_t[:, :, t, latent, None] * p_s_l
    close(m(x).flatten(1, 2), m.proj(joined(weights @ v)))
    close(m.attention_map(x), weights)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decay", [None, 0.9, (0.5, 0.99, 1.0)])
@pytest.mark.parametrize("gate", [False, True])
def test_lightning_is_the_recurrence(gate, decay, size):
    m = randomised(LightningAttention(12, 3, causal=True, decay=decay, gate=gate))
    x = image(2, *size, 12)
    rates = decay or tuple(math.exp(-(2 ** (-8 * h / 3))) for h in (1, 2, 3))
    rates = torch.tensor([rates] * 3 if isinstance(rates, float) else rates, dtype=torch.float64)
    torch.testing.assert_close(m.decay.double(), rates, rtol=1e-6, atol=0)
    rates = m.decay.double()[:, None, None]  # what float32 holds of them
    q, k, v = (heads(t, 3) for t in m.qkv(x.flatten(1, 2)).chunk(3, -1))
    q, k = q * q.sigmoid(), k * k.sigmoid()
    state = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    rows = []
    for t in range(size[0] * size[1]):
        state = rates * state + torch.einsum("bhd,bhe->bhde", k[:, :, t], v[:, :, t])
        rows.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], state))
    out = joined(torch.stack(rows, 2))
    close(joined(m.attention_map(x) @ v), out)
    out = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    close(m(x).flatten(1, 2), m.proj(out * m.gate(x.flatten(1, 2)) if gate else out))


@pytest.mark.parametrize("size", SIZES)
def test_lightning_in_both_directions(size):
    m = randomised(LightningAttention(12, 3))
    x = image(2, *size, 12)
    q, k, v = (heads(t, 3) for t in m.qkv(x.flatten(1, 2)).chunk(3, -1))
    weights = F.silu(q) @ F.silu(k).mT
    close(m.attention_map(x), weights)
    out = joined(weights @ v)
    close(m(x).flatten(1, 2), m.proj(out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt()))


def test_lightning_keeps_to_float16s_range():
    m = LightningAttention(8, 2).eval()
    with torch.no_grad():
        for p in m.parameters():
            p.mul_(8)
    x = torch.randn(1, 40, 40, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = m(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = m(x)
    assert (got.float() - want).norm() < 0.05 * want.norm()


def rotated(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Each pair of channels as a complex number times e^(i angle): rows in the first half, columns in the second."""
    d = x.shape[-1]
    rates = [10000.0 ** (-(i / (d // 4 - 1)) if d > 4 else 0.0) for i in range(d // 4)]
    out = torch.empty_like(x)
    for n in range(height * width):
        for half, place in enumerate((n // width, n % width)):
            for i, rate in enumerate(rates):
                c = half * d // 2 + 2 * i
                pair = torch.complex(x[..., n, c], x[..., n, c + 1]) * complex(
                    math.cos(place * rate), math.sin(place * rate)
                )
                out[..., n, c], out[..., n, c + 1] = pair.real, pair.imag
    return out


@pytest.mark.parametrize("size", [(4, 5), (1, 1)])
@pytest.mark.parametrize("kind", [MagnitudeAwareAttention, RotatedSoftmaxAttention])
def test_mala_and_its_softmax_counterpart(kind, size):
    m = randomised(kind(24, 2))
    m.rotation.angles.copy_(
        (10000.0 ** -torch.linspace(0, 1, 3, dtype=torch.float64)).repeat_interleave(2)
    )  # not rounded to float32
    x = image(2, *size, 24)
    N, scale = size[0] * size[1], 12**-0.5
    q, k, v, gate = m.qkvo(x.flatten(1, 2)).chunk(4, -1)
    qh, kh, vh = heads(q, 2), heads(k, 2), heads(v, 2)
    if kind is MagnitudeAwareAttention:
        qh, kh = (torch.where(t > 0, t + 1, t.exp()) for t in (qh, kh))
        z = scale * (qh @ kh.mT).mean(-1, keepdim=True)
        beta, gamma = 1 + 1 / (z + 1e-6), z
        weights = (beta * scale * rotated(qh, *size) @ rotated(kh, *size).mT - gamma) / N
    else:
        weights = (scale * rotated(qh, *size) @ rotated(kh, *size).mT).softmax(-1)
    close(m.attention_map(x), weights)
    v_map = v.mT.unflatten(2, size)
    local = F.conv2d(v_map, m.lepe.weight, m.lepe.bias, padding=2, groups=24).flatten(2).mT
    close(m(x).flatten(1, 2), m.proj((joined(weights @ vh) + local) * gate))
    close(m(x, tables=m.rotation(*size)), m(x))


def test_rotation_tells_offsets_only():
    turn = Rotation(8).double()
    q, k = image(1, 1, 30, 8), image(1, 1, 30, 8, seed=2)
    sin, cos = turn(5, 6)
    same = q[:, :, :1].expand(-1, -1, 30, -1), k[:, :, :1].expand(-1, -1, 30, -1)
    scores = (rotate(same[0], sin, cos) @ rotate(same[1], sin, cos).mT).reshape(5, 6, 5, 6)
    close(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1])
    assert (scores[0, 0, 0, 1] - scores[0, 0, 1, 0]).abs() > 1e-3  # rows and columns differ


@pytest.mark.parametrize("form", ["direct", "linear", "auto"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("size", [(6, 7), (1, 1)])
def test_taylorshift(size, scaled, normalize, form):
    a, b, c = 0.7, 0.8, 1.3
    m = randomised(
        TaylorShiftAttention(12, 3, coefficients=(a, b, c), normalize_input=normalize, scale_output=scaled, form=form)
    )
    x = image(2, *size, 12)
    q, k, v = (heads(t, 3) for t in m.qkv(x.flatten(1, 2)).chunk(3, -1))
    if normalize:
        q = q / q.square().sum(-1, keepdim=True).sqrt() * m.temperature[:, None, None]
        k = k / k.square().sum(-1, keepdim=True).sqrt()
    else:
        q = q * 12**-0.5
    scores = q @ k.mT
    weights = a * scores**2 + b * scores + c
    weights = weights / weights.sum(-1, keepdim=True) * (math.sqrt(size[0] * size[1] / 4) if scaled else 1)
    close(m(x).flatten(1, 2), m.proj(joined(weights @ v)))
    close(m.attention_map(x), weights)


def test_taylorshift_switches_at_the_crossover(monkeypatch):
    """d^2 + d + 1 tokens, beyond which the linear form has fewer multiplications."""
    from zoo_kernels import linear_attention as operator

    taken = []
    run = operator.TAYLOR
    monkeypatch.setattr(operator, "TAYLOR", lambda *a, **k: (taken.append(k["linear"]), run(*a, **k))[1])
    m = randomised(TaylorShiftAttention(8, 2))
    assert crossover(4) == 21
    for width in (21, 22):
        m(image(1, 1, width, 8))
    assert taken == [False, True]
    d, direct, linear = 16, TaylorShiftAttention(16, 1, form="direct"), TaylorShiftAttention(16, 1, form="linear")
    assert direct.flops(1, d * d) < linear.flops(1, d * d)
    assert direct.flops(1, (d + 1) ** 2) >= linear.flops(1, (d + 1) ** 2)


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (3, 8)])
@pytest.mark.parametrize("feature_map", ["identity", "relu", "leaky_relu", "exp"])
@pytest.mark.parametrize("lepe", [False, True])
def test_inline(lepe, feature_map, size):
    m = randomised(InLineAttention(12, 3, feature_map, lepe=lepe, separate_projections=lepe))
    x = image(2, *size, 12)
    tokens, N = x.flatten(1, 2), size[0] * size[1]
    if lepe:
        q, (k, v) = m.q(tokens), m.kv(tokens).chunk(2, -1)
    else:
        q, k, v = m.qkv(tokens).chunk(3, -1)
    phi = {
        "identity": lambda t: t,
        "relu": lambda t: t.clamp(min=0),
        "leaky_relu": lambda t: torch.where(t > 0, t, 0.01 * t),
        "exp": lambda t: (t / 5).exp(),
    }[feature_map]
    scores = heads(phi(q), 3) @ heads(phi(k), 3).mT * 4**-0.5
    weights = (scores - scores.mean(-1, keepdim=True) + 1) / N
    close(weights.sum(-1), torch.ones(2, 3, N, dtype=torch.float64))
    close(m.attention_map(x), weights)
    # every image has a convolution of its own, predicted head by head
    local = []
    for i in range(2):
        mean = tokens[i].mean(0)
        first = torch.cat([m.residual.fc1.weight[4 * h : 4 * h + 4, :, 0] @ mean[4 * h : 4 * h + 4] for h in range(3)])
        first = F.gelu(first + m.residual.fc1.bias)
        second = torch.cat(
            [m.residual.fc2.weight[36 * h : 36 * h + 36, :, 0] @ first[4 * h : 4 * h + 4] for h in range(3)]
        )
        taps = (second + m.residual.fc2.bias).reshape(12, 3, 3)
        padded = F.pad(v[i].T.reshape(12, *size), (1, 1, 1, 1))
        out = torch.zeros(12, *size, dtype=torch.float64)
        for row in range(3):
            for column in range(3):
                shifted = padded[:, row : row + size[0], column : column + size[1]]
                out += taps[:, row, column, None, None] * shifted
        local.append(out.flatten(1).T)
    want = joined(weights @ heads(v, 3)) + torch.stack(local)
    if lepe:
        maps = v.mT.unflatten(2, size)
        want = want + F.conv2d(maps, m.lepe.weight, m.lepe.bias, padding=1, groups=12).flatten(2).mT
    close(m(x).flatten(1, 2), m.proj(want))


def test_predicted_convolution_is_the_same_for_a_compiler(monkeypatch):
    m = randomised(InLineAttention(12, 3))
    x = image(3, 17, 19, 12)  # large enough for a CPU to go image by image
    want = m(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    close(m(x), want)


def test_inline_windows_wrap_without_mask():
    m = randomised(InLineWindowAttention(12, 3, window_size=4, shift_size=2))
    whole = randomised(InLineAttention(12, 3))
    whole.load_state_dict(m.state_dict())
    x = image(1, 8, 12, 12)
    rolled, want = x.roll((-2, -2), (1, 2)), torch.zeros_like(x)
    for i in range(0, 8, 4):
        for j in range(0, 12, 4):
            want[:, i : i + 4, j : j + 4] = whole(rolled[:, i : i + 4, j : j + 4])
    close(m(x), want.roll((2, 2), (1, 2)))
    close(m(x[:, :4, :3]), whole(x[:, :4, :3]))  # one window: neither shifted nor padded
    x = image(1, 5, 6, 12)
    maps = m.attention_map(x)
    assert maps.shape == (1, 3, 30, 30)
    assert (maps == 0).any()


SPECS = [
    dict(type="linear"),
    dict(type="linear", feature_map="exp"),
    dict(type="efficient", key_dim=8, value_dim=12),
    dict(type="latte", num_latents=3),
    dict(type="lightning", gate=True),
    dict(type="mala"),
    dict(type="rotated_softmax"),
    dict(type="taylorshift"),
    dict(type="taylorshift", form="direct"),
    dict(type="inline", lepe=True),
    dict(type="inline", separate_projections=True),
    dict(type="inline_window", window_size=4),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_flops_are_those_that_run(spec):
    m = build(spec, MIXERS, dim=16, num_heads=4).eval()
    backend = "reference" if spec["type"] == "rotated_softmax" else "eager"
    with use_backend(backend), FlopCounterMode(display=False) as counter, torch.no_grad():
        m(torch.randn(1, 8, 12, 16))
    assert m.flops(8, 12) * 2 == counter.get_total_flops()


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (LinearAttention, dict(feature_map="elu"), "feature_map='elu'"),
        (EfficientAttention, dict(key_dim=6), "key_dim=6"),
        (EfficientAttention, dict(value_dim=6), "value_dim=6"),
        (LatteAttention, dict(num_latents=0), "num_latents=0"),
        (LightningAttention, dict(decay=0.5), "without causal=True"),
        (LightningAttention, dict(causal=True, decay=1.5), "decay=1.5"),
        (LightningAttention, dict(causal=True, decay=(0.5, 0.5)), "4 of them"),
        (MagnitudeAwareAttention, dict(dim=24), "head_dim=6"),
        (TaylorShiftAttention, dict(coefficients=(0.5, 2.0, 1.0)), "negative for some x"),
        (TaylorShiftAttention, dict(coefficients=(0.0, 1.0, 1.0)), "a > 0"),
        (TaylorShiftAttention, dict(form="fast"), "form='fast'"),
        (InLineAttention, dict(feature_map="elu+1"), "feature_map='elu\\+1'"),
        (InLineWindowAttention, dict(window_size=4, shift_size=4), "shift_size=4"),
    ],
)
def test_bad_arguments(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"dim": 16, "num_heads": 4, **arguments})
