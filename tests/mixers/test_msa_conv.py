"""MSA-Conv against its unfold formulation in float64."""

import pytest
import torch
from torch.nn import functional as F

from zoo.mixers.msa_conv import MSAConv2d, MSAConvAttention
from zoo.registry import MODELS, build
from zoo.weights.importers import tic as importer


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unfolded(mixer: MSAConvAttention, x: torch.Tensor) -> torch.Tensor:
    """Zero-padded windows of keys and values written out, softmax over the places of the window."""
    B, H, W, C = x.shape
    q, k, v = mixer.qkv(x).permute(0, 3, 1, 2).chunk(3, 1)
    size, d = mixer.kernel_size, mixer.dilation
    k, v = (
        F.unfold(t, size, d, d * (size - 1) // 2).reshape(B, mixer.num_heads, -1, size * size, H * W) for t in (k, v)
    )
    q = q.reshape(B, mixer.num_heads, -1, 1, H * W)
    weights = ((q * k).sum(2, keepdim=True) * mixer.scale).softmax(3)
    return mixer.proj((weights * v).sum(3).reshape(B, C, H, W).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    "size, options",
    [
        ((7, 9), dict(kernel_size=3)),
        ((5, 8), dict(kernel_size=5, dilation=2, qkv_bias=False)),
        ((2, 3), dict(kernel_size=3, dilation=4, qk_scale=0.4)),  # smaller than the dilation
        ((1, 1), dict(kernel_size=7, dilation=3)),
        ((4, 6), dict(kernel_size=1, proj=False)),
    ],
)
def test_equals_the_unfold_formulation(size, options):
    mixer = randomised(MSAConvAttention(8, 2, **options))
    x = image(2, *size, 8)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), unfolded(mixer, x), rtol=1e-10, atol=1e-10)


def test_window_weights_and_attention_map_agree():
    mixer = randomised(MSAConvAttention(8, 2, kernel_size=3, dilation=2))
    x = image(2, 6, 7, 8)
    weights, maps = mixer.window_weights(x), mixer.attention_map(x)
    assert weights.shape == (2, 2, 6, 7, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    # far from the border nothing is padded: the same numbers, at their places in the map
    row = maps[:, :, 2 * 7 + 3].unflatten(-1, (6, 7))
    torch.testing.assert_close(row[:, :, 0:5:2, 1:6:2].flatten(-2), weights[:, :, 2, 3])


def test_the_layer_of_the_authors():
    layer = randomised(MSAConv2d(6, 10, 5, stride=2, padding=1, dilation=2, bias=True))
    x = image(2, 9, 12, 6)
    with torch.no_grad():
        y = (x + unfolded(layer.attn, x)).permute(0, 3, 1, 2)
        want = F.conv2d(y, layer.conv.weight, layer.conv.bias, 2, 1).clamp(min=0).permute(0, 2, 3, 1)
        torch.testing.assert_close(layer(x), want, rtol=1e-10, atol=1e-10)


def test_refused():
    with pytest.raises(ValueError, match="kernel_size=4"):
        MSAConvAttention(8, 2, kernel_size=4)
    with pytest.raises(ValueError, match="dilation=0"):
        MSAConvAttention(8, 2, dilation=0)


def test_importer_is_strict_both_ways():
    kwargs = dict(input_channel=6, output_channel=8, kernel_size=3, bias=True)
    layer = build(importer.config_from_official(importer.LAYER, kwargs), MODELS)
    own = layer.state_dict()
    official = importer.revert_state_dict(importer.LAYER, own)
    assert set(official) == {"qkv_conv.weight", "qkv_conv.bias", "mlp.weight", "mlp.bias"}
    assert official["qkv_conv.weight"].shape == (18, 6, 1, 1)
    back = importer.convert_state_dict(importer.LAYER, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(importer.LAYER, {**official, "extra": torch.zeros(1)})


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(input_channel=6, output_channel=8), TypeError, "kernel_size"),
        (dict(input_channel=6, output_channel=8, kernel_size=4), ValueError, "kernel_size=4"),
        (dict(input_channels=6), TypeError, "input_channel"),
    ],
)
def test_importer_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(importer.LAYER, kwargs)
    with pytest.raises(LookupError, match="Other"):
        importer.config_from_official("core/op/Other.py:Other", kwargs)
