"""The gated convolution against its definition, place by place, in float64."""

import math

import pytest
import torch

from zoo.mixers.gated_conv import GatedConv


def definition(mixer: GatedConv, x: torch.Tensor) -> torch.Tensor:
    """Eq. of a gated CNN block's mixing for one image [H, W, C]."""
    H, W, _ = x.shape
    gate, identity, convolved = (x @ mixer.fc1.weight.T + mixer.fc1.bias).split(mixer.sizes, dim=-1)
    k = mixer.conv.weight.shape[-1]
    out = torch.zeros_like(convolved)
    for i in range(H):
        for j in range(W):
            total = mixer.conv.bias.clone()
            for a in range(k):
                for b in range(k):
                    r, c = i + a - k // 2, j + b - k // 2
                    if 0 <= r < H and 0 <= c < W:
                        total = total + mixer.conv.weight[:, 0, a, b] * convolved[r, c]
            out[i, j] = total
    gate = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))
    return (gate * torch.cat([identity, out], dim=-1)) @ mixer.fc2.weight.T + mixer.fc2.bias


@pytest.mark.parametrize("conv_ratio", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("kernel_size", [1, 5])
def test_equals_the_definition(conv_ratio, kernel_size):
    torch.manual_seed(0)
    mixer = GatedConv(10, kernel_size=kernel_size, conv_ratio=conv_ratio).double()
    assert mixer.sizes == (26, 26 - int(10 * conv_ratio), int(10 * conv_ratio))
    x = torch.randn(2, 4, 6, 10, dtype=torch.float64)
    with torch.no_grad():
        out = mixer(x)
        for i in range(2):
            torch.testing.assert_close(out[i], definition(mixer, x[i]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conv_ratio", [0.05, 2.7])
def test_as_many_channels_as_there_are(conv_ratio):
    with pytest.raises(ValueError, match="conv_ratio"):
        GatedConv(10, conv_ratio=conv_ratio)
