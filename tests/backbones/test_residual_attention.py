"""Residual Attention Network: its equations in float64, depth, masks, sizes."""

import pytest
import torch

from zoo.backbones.residual_attention import AttentionModule, ResidualAttentionNetwork, ResidualUnit, SoftMask
from zoo.registry import MODELS

TINY = dict(width=4, last_units=1, levels=(2, 1, 1), stem_stride=1, num_classes=5)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for name, b in module.named_buffers():
            if "running" in name:
                b.copy_(0.5 + torch.rand_like(b))
    return module


def norm(bn: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    def each(v):
        return v[None, :, None, None]

    return (x - each(bn.running_mean)) / each(bn.running_var + bn.eps).sqrt() * each(bn.weight) + each(bn.bias)


def unit(m: ResidualUnit, x: torch.Tensor) -> torch.Tensor:
    """BN, ReLU, 1x1; BN, ReLU, 3x3; BN, ReLU, 1x1; and the sum."""
    y = norm(m.bn1, x).clamp(min=0)
    y = torch.einsum("oi,bihw->bohw", m.conv1.weight[:, :, 0, 0], y)
    y = torch.nn.functional.conv2d(norm(m.bn2, y).clamp(min=0), m.conv2.weight, padding=1)
    y = torch.einsum("oi,bihw->bohw", m.conv3.weight[:, :, 0, 0], norm(m.bn3, y).clamp(min=0))
    return x + y


def resize(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Bilinear, corners on corners, a place at a time."""
    out = torch.zeros(*x.shape[:2], *size, dtype=x.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            a = i * (x.shape[2] - 1) / max(1, size[0] - 1)
            b = j * (x.shape[3] - 1) / max(1, size[1] - 1)
            a0, b0 = min(int(a), x.shape[2] - 1), min(int(b), x.shape[3] - 1)
            a1, b1 = min(a0 + 1, x.shape[2] - 1), min(b0 + 1, x.shape[3] - 1)
            wa, wb = a - a0, b - b0
            top = (1 - wb) * x[:, :, a0, b0] + wb * x[:, :, a0, b1]
            out[:, :, i, j] = (1 - wa) * top + wa * ((1 - wb) * x[:, :, a1, b0] + wb * x[:, :, a1, b1])
    return out


def pooled(x: torch.Tensor) -> torch.Tensor:
    out = [
        [x[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].amax((2, 3)) for j in range(0, x.shape[3], 2)]
        for i in range(0, x.shape[2], 2)
    ]
    return torch.stack([torch.stack(row, -1) for row in out], -2)


def mask_of(m: SoftMask, x: torch.Tensor) -> torch.Tensor:
    """Two poolings: down, down, up, + skip, up; then the two convolutions."""
    first = unit(m.down[0][0], pooled(x))
    skip = unit(m.skips[0], first)
    second = unit(m.up[1][0], unit(m.down[1][0], pooled(first)))
    y = unit(m.up[0][0], resize(second, first.shape[2:]) + skip)
    y = resize(y, x.shape[2:])
    for bn, conv in ((m.out[0], m.out[2]), (m.out[3], m.out[5])):
        y = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], norm(bn, y).clamp(min=0))
    if m.activation == "channel":
        return y / y.square().sum(1, keepdim=True).sqrt()
    if m.activation == "spatial":
        mean = y.sum((2, 3), keepdim=True) / (y.shape[2] * y.shape[3])
        y = (y - mean) / ((y - mean).square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return 1 / (1 + torch.exp(-y))


@pytest.mark.parametrize("activation", ["mixed", "channel", "spatial"])
@pytest.mark.parametrize("residual", [True, False])
def test_attention_module_equals_the_equations(activation, residual):
    module = randomised(AttentionModule(8, levels=2, t=2, residual=residual, activation=activation))
    x = torch.randn(2, 8, 7, 10, dtype=torch.float64)
    with torch.no_grad():
        before = unit(module.before[0], x)
        trunk = unit(module.trunk[1], unit(module.trunk[0], before))
        mask = mask_of(module.mask, before)
        torch.testing.assert_close(module.mask(before), mask, rtol=1e-9, atol=1e-10)
        expected = unit(module.after[0], ((1 + mask) if residual else mask) * trunk)
        torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name, layers", [("residual_attention_56", 56), ("residual_attention_92", 92)])
def test_depth_of_the_trunk_is_the_name(name, layers):
    with torch.device("meta"):
        model = MODELS.get(name)()
    # what lies one behind the other outside the masks: three convolutions a unit, stem and classifier
    units = sum(1 for n, m in model.named_modules() if isinstance(m, ResidualUnit) and "mask" not in n)
    assert 3 * units + 2 == layers
    assert model.out_channels == (256, 512, 1024, 2048)
    assert model.strides == (4, 8, 16, 32)


def test_sizes_are_near_the_published():
    # the paper rounds and does not say what every unit is made of: 31.9 M and 51.3 M
    for name, published in (("residual_attention_56", 31.9e6), ("residual_attention_92", 51.3e6)):
        with torch.device("meta"):
            count = sum(p.numel() for p in MODELS.get(name)().parameters())
        assert abs(count / published - 1) < 0.03


def test_masks_are_of_the_modules():
    torch.manual_seed(0)
    model = ResidualAttentionNetwork(**TINY, modules=(1, 2, 0)).eval()
    with torch.no_grad():
        masks = model.masks(torch.randn(2, 3, 20, 13))
    assert [tuple(m.shape) for m in masks] == [(2, 16, 20, 13), (2, 32, 10, 7), (2, 32, 10, 7)]
    assert all(float(m.min()) > 0 and float(m.max()) < 1 for m in masks)


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (1, 1)])
def test_any_size(size):
    torch.manual_seed(0)
    model = ResidualAttentionNetwork(**{**TINY, "stem_stride": 4}).eval()
    with torch.no_grad():
        maps = model.forward_features(torch.randn(1, 3, *size))
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-n // s) for n in size) for s in model.strides]


def test_layer_groups():
    model = ResidualAttentionNetwork(**TINY)
    groups = model.group_matcher()
    assert set(groups.values()) == set(range(model.num_layers()))
    assert groups["stem.0.weight"] == 0
    assert groups["stages.1.0.conv1.weight"] == 3
    assert groups["norm.weight"] == groups["head.bias"] == model.num_layers() - 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(stem_stride=2), "stem_stride=2"),
        (dict(levels=(0, 1, 1)), "levels"),
        (dict(modules=(1, 1)), "modules"),
        (dict(activation="tanh"), "activation='tanh'"),
        (dict(p=0), "p=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResidualAttentionNetwork(**{**TINY, **arguments})
