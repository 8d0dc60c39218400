"""The spectral mixer against its definition by a Fourier matrix, in float64."""

import math

import pytest
import torch

from zoo.mixers.fft import FFTMixer, resized_bins


def definition(mixer: FFTMixer, tokens: torch.Tensor) -> torch.Tensor:
    """The same by the full transform as a matrix product, frequency by frequency and head by head."""
    B, N, C = tokens.shape
    n = torch.arange(N, dtype=torch.float64)
    turn = torch.exp(-2j * math.pi * n[:, None] * n[None, :] / N) / math.sqrt(N)  # [N, N]
    change = torch.zeros(B, mixer.num_heads, N // 2 + 1, 2, dtype=torch.float64)
    if mixer.adapt1 is not None:
        hidden = torch.nn.functional.gelu(tokens.mean(1) @ mixer.adapt1.weight.T + mixer.adapt1.bias)
        change = (hidden @ mixer.adapt2.weight.T + mixer.adapt2.bias).reshape(B, mixer.num_heads, -1, 2)
    out = torch.zeros_like(tokens)
    d = C // mixer.num_heads
    for b in range(B):
        for h in range(mixer.num_heads):
            spectrum = turn @ tokens[b, :, h * d : (h + 1) * d].to(torch.complex128)  # [N, d]
            full = torch.zeros_like(spectrum)
            for f in range(N // 2 + 1):
                z = spectrum[f] * mixer.base_filter[h, f, 0] * (1 + change[b, h, f, 0])
                z = z + mixer.base_bias[h, f, 0] + change[b, h, f, 1]
                m = z.abs()
                z = z * (0.5 * m * (1 + torch.erf(m / math.sqrt(2)))) / (m + 1e-6)
                if f in (0, N / 2):  # a real signal has real parts only there
                    full[f] = z.real.to(full.dtype)
                else:
                    full[f], full[N - f] = z, z.conj()
            out[b, :, h * d : (h + 1) * d] = (turn.conj() @ full).real
    return out


@pytest.mark.parametrize("size", [(3, 5), (4, 4), (1, 1), (1, 2)])
@pytest.mark.parametrize("adaptive", [True, False])
def test_equals_the_definition(size, adaptive):
    torch.manual_seed(0)
    mixer = FFTMixer(12, 3, input_size=size, adaptive=adaptive).double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
        x = torch.randn(2, *size, 12, dtype=torch.float64)
        expected = definition(mixer, x.flatten(1, 2)).unflatten(1, size)
        torch.testing.assert_close(mixer(x), expected, rtol=1e-10, atol=1e-10)


def test_prefix_goes_first():
    torch.manual_seed(0)
    mixer = FFTMixer(8, 2, input_size=(3, 4), num_prefix=2).double().eval()
    x, prefix = torch.randn(2, 3, 4, 8, dtype=torch.float64), torch.randn(2, 2, 8, dtype=torch.float64)
    with torch.no_grad():
        out, token = mixer(x, prefix)
        expected = definition(mixer, torch.cat([prefix, x.flatten(1, 2)], 1))
    torch.testing.assert_close(torch.cat([token, out.flatten(1, 2)], 1), expected, rtol=1e-10, atol=1e-10)


def test_filters_of_other_sizes_are_interpolated_over_frequency():
    table = torch.linspace(0, 1, 9).reshape(1, 9, 1).expand(2, 9, 1)
    torch.testing.assert_close(resized_bins(table, 5)[1, :, 0], torch.linspace(0, 1, 5))
    torch.testing.assert_close(resized_bins(table[None], 17)[0, 0, :, 0], torch.linspace(0, 1, 17))
    assert resized_bins(table, 1).shape == (2, 1, 1)
    assert resized_bins(table, 9) is table


def test_gradients():
    torch.manual_seed(0)
    mixer = FFTMixer(4, 2, input_size=(2, 3)).double()
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,), atol=1e-6)
