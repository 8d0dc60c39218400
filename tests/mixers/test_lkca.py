"""Large-kernel attention: both views of the paper and the Fourier form in float64."""

import pytest
import torch
from torch.nn import functional as F

from zoo.mixers import lkca
from zoo.mixers.lkca import LargeKernelAttention


def mixer_and_image(size, table, **options):
    generator = torch.Generator().manual_seed(0)
    mixer = LargeKernelAttention(6, 2, input_size=table, **options).double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return mixer, torch.randn(2, *size, 6, generator=generator, dtype=torch.float64)


def convolved(mixer, x):
    """The convolution view: the kernel over every channel of the values, zeros around the map."""
    v = mixer.v(x).permute(0, 3, 1, 2)
    channels, kernel = v.shape[1], mixer.kernel
    pad = [n // 2 for n in kernel.shape]
    out = F.conv2d(v, kernel.expand(channels, 1, -1, -1), padding=pad, groups=channels)
    return mixer.proj(out.permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [(4, 5), (3, 5), (6, 2), (1, 1), (9, 11)])
@pytest.mark.parametrize("fourier", [False, True])
def test_views_agree(monkeypatch, size, fourier):
    monkeypatch.setattr(lkca, "MATRIX_POSITIONS", 0 if fourier else 10**6)
    mixer, x = mixer_and_image(size, (4, 5), value_dim=8)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), convolved(mixer, x), rtol=1e-9, atol=1e-9)


def test_attention_map_weighs_the_values():
    mixer, x = mixer_and_image((4, 5), (4, 5), proj=False)
    maps = mixer.attention_map(x)
    assert maps.shape == (2, 1, 20, 20)
    with torch.no_grad():
        torch.testing.assert_close((maps[:, 0] @ mixer.v(x).flatten(1, 2)).unflatten(1, (4, 5)), mixer(x))
    # the row of position (i, j) is the window of the kernel that starts at (H-1-i, W-1-j)
    i, j = 2, 1
    assert torch.equal(maps[0, 0, i * 5 + j], mixer.kernel[3 - i : 7 - i, 4 - j : 9 - j].flatten())


def test_starts_without_neighbours_unless_told():
    assert not LargeKernelAttention(8, 2).kernel.any()
    assert LargeKernelAttention(8, 2, init_std=0.02).kernel.std() > 0.01
    with pytest.raises(ValueError, match="value_dim=12"):
        LargeKernelAttention(8, 2, value_dim=12, proj=False)


def test_cost_grows_slower_than_quadratically():
    mixer = LargeKernelAttention(32, 2)
    assert mixer.flops(64, 64) < 6 * mixer.flops(40, 40)
    assert mixer.flops(256, 256) < 4.6 * mixer.flops(128, 128)
