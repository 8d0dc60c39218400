"""The contract of a token mixer by itself, for every registered mixer; in hosts: test_every_mixer.py."""

import pytest
import torch

from zoo.backbones.hosts import ViT
from zoo.mixers.base import Mixer, build_mixer
from zoo.registry import MIXERS

NAMES = MIXERS.names()
DIM, HEADS = 32, 2
SIZES = [(7, 13), (1, 1), (12, 8)]


def make(name: str) -> Mixer:
    torch.manual_seed(0)
    mixer = build_mixer(name, DIM, HEADS, (12, 8))
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))  # tables start at or near zero
    return mixer.eval()


def tokens(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, height, width, DIM, generator=torch.Generator().manual_seed(1))


def test_the_basic_mixers_are_registered():
    assert {"softmax", "window", "channel"} <= set(NAMES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_shape_and_each_image_to_itself(name, size):
    mixer, x = make(name), tokens(*size)
    with torch.no_grad():
        out = mixer(x)
        assert out.shape == x.shape
        assert out.isfinite().all()
        torch.testing.assert_close(mixer(x[1:]), out[1:], rtol=1e-4, atol=1e-5)
        strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        torch.testing.assert_close(mixer(strided), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_input_and_every_parameter(name):
    mixer, x = make(name).train(), tokens(9, 14).requires_grad_()
    out = mixer(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert [n for n, p in mixer.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n, p in mixer.named_parameters() if p.grad.abs().max() == 0] == []
    assert x.grad.abs().amax(-1).min() > 0  # every position matters


@pytest.mark.parametrize("name", NAMES)
def test_states_its_cost(name):
    mixer = make(name)
    small, large = mixer.flops(8, 8), mixer.flops(16, 16)
    assert isinstance(small, int)
    # The projections alone cost a multiple of tokens * C; nothing here grows faster than tokens squared.
    assert 64 * DIM < small < large <= 16 * small
    assert mixer.growth in ("linear", "n log n", "quadratic")
    if mixer.growth == "linear":
        assert mixer.flops(64, 64) <= 4.4 * mixer.flops(32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_attention_map_is_of_positions_and_normalised_where_it_says_so(name):
    mixer, x = make(name), tokens(7, 10)
    if type(mixer).attention_map is Mixer.attention_map:
        with pytest.raises(TypeError, match="no attention map"):
            mixer.attention_map(x)
        return
    maps = mixer.attention_map(x)
    assert maps.shape[0] == 2
    assert maps.shape[2:] == (70, 70)
    assert maps.isfinite().all()
    if mixer.normalised_rows:
        assert maps.min() >= 0
        torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))


@pytest.mark.parametrize("name", NAMES)
def test_prefix_tokens_are_mixed_or_refused(name):
    mixer, x = make(name), tokens(5, 6)
    prefix = torch.randn(2, 3, DIM, generator=torch.Generator().manual_seed(3))
    if not mixer.takes_prefix:
        with pytest.raises(TypeError, match="prefix"):
            mixer(x, prefix)
        return
    with torch.no_grad():
        out, out_prefix = mixer(x, prefix)
        assert out.shape == x.shape
        assert out_prefix.shape == prefix.shape
        # The map reads the prefix and the prefix reads the map.
        assert (mixer(x, -prefix)[0] - out).abs().max() > 1e-4
        assert (mixer(-x, prefix)[1] - out_prefix).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_refuses_bad_input(name):
    with pytest.raises(ValueError, match="shape"):
        make(name)(torch.randn(1, 4, 4, DIM + 1))
    with pytest.raises(ValueError, match="shape"):
        make(name)(torch.randn(1, 16, DIM))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        build_mixer(name, DIM, 5, (8, 8))
    with pytest.raises(TypeError, match="num_headz"):
        build_mixer({"type": name, "num_headz": 2}, DIM, HEADS, (8, 8))


@pytest.mark.parametrize("name", NAMES)
def test_goes_into_a_host_by_name(name):
    torch.manual_seed(0)
    model = ViT(num_classes=5, input_size=32, patch_size=4, dim=DIM, depth=2, num_heads=HEADS, mixer=name)
    with_token = ViT(
        num_classes=5, input_size=32, patch_size=4, dim=DIM, depth=2, num_heads=HEADS, mixer=name, class_token=True
    )
    x = torch.randn(2, 3, 24, 37)
    for m in (model, with_token):
        m(x).square().sum().backward()
        assert [n for n, p in m.named_parameters() if p.grad is None] == []
