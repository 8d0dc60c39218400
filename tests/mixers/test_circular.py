"""Circular-convolutional attention against the circulant matrix of the paper, in float64."""

import pytest
import torch

from zoo.mixers.circular import CircularAttention, circular_attention


def definition(mixer: CircularAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Roll(softmax(z)) V with the matrix written out, an image, a head and a row at a time."""
    B, N, C = tokens.shape
    heads, d = mixer.num_heads, C // mixer.num_heads
    out = torch.zeros_like(tokens)
    for b in range(B):
        values = tokens[b] @ mixer.v.weight.T + mixer.v.bias
        for h in range(heads):
            columns = slice(h * d, (h + 1) * d)
            if mixer.score is not None:
                z = tokens[b] @ mixer.score.weight[h]
            else:
                qk = tokens[b] @ mixer.qk.weight.T + mixer.qk.bias
                q, k = qk[:, :C][:, columns], qk[:, C:][:, columns]
                z = q @ (k.sum(0) / N) / d**0.5
            a = z.exp() / z.exp().sum()
            for i in range(N):
                rolled = torch.roll(a, i)  # the first row, shifted by i
                out[b, i, columns] = rolled @ values[:, columns]
    return out @ mixer.proj.weight.T + mixer.proj.bias


@pytest.mark.parametrize("averaged_key", [False, True])
@pytest.mark.parametrize("size", [(3, 5), (4, 4), (1, 1)])
def test_equals_the_circulant_matrix(size, averaged_key):
    torch.manual_seed(0)
    mixer = CircularAttention(12, 3, averaged_key=averaged_key).double()
    x, prefix = torch.randn(2, *size, 12, dtype=torch.float64), torch.randn(2, 2, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = definition(mixer, x.flatten(1, 2)).unflatten(1, size)
        torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-12)
        out, token = mixer(x, prefix)
        expected = definition(mixer, torch.cat([prefix, x.flatten(1, 2)], 1))
    torch.testing.assert_close(torch.cat([token, out.flatten(1, 2)], 1), expected, rtol=1e-10, atol=1e-12)


def test_attention_map_is_what_is_applied():
    torch.manual_seed(0)
    mixer = CircularAttention(8, 2).double()
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        v = mixer.v(x.flatten(1, 2)).unflatten(2, (2, 4)).transpose(1, 2)
        out = mixer.proj((mixer.attention_map(x) @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out.unflatten(1, (3, 4)), mixer(x), rtol=1e-10, atol=1e-12)


def test_gradients():
    torch.manual_seed(0)
    weights = torch.rand(1, 2, 5, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(circular_attention, (weights, v))
