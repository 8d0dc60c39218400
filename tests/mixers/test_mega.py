"""Mega against the paper's recurrences and equations, in float64."""

import math

import pytest
import torch

from zoo.mixers.base import build_mixer
from zoo.mixers.mega import DampedEMA, Mega


def recurrence(ema: DampedEMA, x: torch.Tensor) -> torch.Tensor:
    """The moving average, a token and a channel at a time."""
    B, N, C = x.shape
    out = torch.zeros_like(x)
    for direction in range(ema.alpha.shape[0]):
        alpha, delta = 1 / (1 + torch.exp(-ema.alpha[direction])), 1 / (1 + torch.exp(-ema.delta[direction]))
        for c in range(C):
            hidden = torch.zeros(B, alpha.shape[1], dtype=x.dtype)
            order = range(N) if direction == 0 else reversed(range(N))
            for t in order:
                u = ema.beta[direction, c] * x[:, t, c : c + 1]
                hidden = alpha[c] * u + (1 - alpha[c] * delta[c]) * hidden
                out[:, t, c] += hidden @ ema.eta[direction, c]
    return out


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def definition(mixer: Mega, x: torch.Tensor) -> torch.Tensor:
    """Eq. 8-16, with the attention written out a query at a time."""
    B, N, C = x.shape
    averaged = recurrence(mixer.ema, x)
    w_z, w_g, w_p, w_h = mixer.averaged.weight.split(mixer.sizes)
    b_z, b_g, b_p, b_h = mixer.averaged.bias.split(mixer.sizes)
    z = silu(averaged @ w_z.T + b_z)
    q = z * mixer.scale[0] + mixer.offset[0]
    k = z * mixer.scale[1] + mixer.offset[1]
    v = silu(x @ mixer.v.weight.T + mixer.v.bias)
    read = torch.zeros_like(v)
    zero = len(mixer.distance_bias) // 2
    for b in range(B):
        for i in range(N):
            seen = [j for j in range(N) if mixer.chunk is None or j // mixer.chunk == i // mixer.chunk]
            scores = torch.stack(
                [q[b, i] @ k[b, j] / math.sqrt(z.shape[2]) + mixer.distance_bias[zero + i - j] for j in seen]
            )
            weights = scores.exp() / scores.exp().sum()
            read[b, i] = weights @ v[b, seen]
    gate = silu(averaged @ w_g.T + b_g)
    update = torch.sigmoid(averaged @ w_p.T + b_p)
    new = silu(averaged @ w_h.T + b_h + (gate * read) @ mixer.gated.weight.T)
    return update * new + (1 - update) * x


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 70])
def test_moving_average_equals_the_recurrence(tokens, bidirectional):
    torch.manual_seed(0)
    ema = DampedEMA(3, 4, bidirectional).double()
    x = torch.randn(2, tokens, 3, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ema(x), recurrence(ema, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 3, 4, 64])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_the_equations(chunk, bidirectional):
    torch.manual_seed(0)
    mixer = Mega(6, input_size=(3, 5), expansion=3, bidirectional=bidirectional, chunk=chunk).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
        x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
        expected = definition(mixer, x.flatten(1, 2)).unflatten(1, (3, 5))
        torch.testing.assert_close(mixer(x), expected, rtol=1e-9, atol=1e-11)


def test_attention_map_of_chunks():
    mixer = build_mixer({"type": "mega_chunk", "chunk": 4}, 8, 1, (3, 3))
    maps = mixer.attention_map(torch.randn(1, 3, 3, 8))[0, 0]
    torch.testing.assert_close(maps.sum(-1), torch.ones(9))
    assert (maps > 0).sum() == 4 * 4 * 2 + 1


def test_gradients():
    torch.manual_seed(0)
    mixer = Mega(2, input_size=(2, 2), expansion=2, chunk=3).double()
    x = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,), atol=1e-6)


@pytest.mark.parametrize("arguments, message", [(dict(chunk=0), "chunk=0"), (dict(expansion=0), "expansion=0")])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mega(8, **arguments)
