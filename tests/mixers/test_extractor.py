"""Extractors against their sums written out token by token, in float64."""

import pytest
import torch

from zoo.mixers.base import build_mixer
from zoo.mixers.extractor import Extractor, distance_sum

NAMES = ("extractor_she", "extractor_he", "extractor_we", "extractor_me")


def definition(mixer: Extractor, tokens: torch.Tensor) -> torch.Tensor:
    B, N, C = tokens.shape
    zero = 0 if mixer.causal else N - 1
    weight = mixer.weight
    out = torch.zeros_like(tokens)
    for t in range(N):
        total = mixer.bias.expand(B, C).clone()
        for s in range(N):
            if mixer.causal and s > t:
                continue
            w = weight[:, t - s + zero]
            x = tokens[:, s]
            if mixer.weight_kind == "matrix":
                total = total + x @ w.reshape(C, C).T
                continue
            x = x if mixer.extract is None else x @ mixer.extract.weight.T
            factor = w if mixer.weight_kind == "channel" else w.repeat_interleave(C // mixer.num_heads)
            total = total + factor * x
        out[:, t] = total * (tokens[:, t] @ mixer.adjust.weight.T + mixer.adjust.bias)
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (1, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_sums(name, size, causal):
    torch.manual_seed(0)
    mixer = build_mixer({"type": name, "causal": causal}, 6, 2, size).double()
    torch.nn.init.normal_(mixer.bias)
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = definition(mixer, x.flatten(1, 2)).unflatten(1, size)
        torch.testing.assert_close(mixer(x), expected, rtol=1e-9, atol=1e-11)


def test_types_get_smaller():
    sizes = [sum(p.numel() for p in build_mixer(n, 16, 2, (7, 7)).parameters()) for n in NAMES]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


@pytest.mark.parametrize("causal", [False, True])
def test_other_sizes_keep_the_distance_zero(causal):
    mixer = build_mixer({"type": "extractor_me", "causal": causal}, 4, 2, (3, 3))
    middle = mixer.weight[:, 0 if causal else 8]
    for tokens in (1, 4, 25):
        weight = mixer.distance_weight(tokens)
        assert weight.shape == (2, tokens if causal else 2 * tokens - 1)
        torch.testing.assert_close(weight[:, 0 if causal else tokens - 1], middle)


def test_gradients():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: distance_sum(a, b, False), (x, weight))
