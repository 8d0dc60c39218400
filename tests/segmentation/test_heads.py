"""Heads of semantic networks: what they compute, and what they refuse."""

import pytest
import torch
from torch.nn import functional as F

from zoo.registry import UnknownNameError
from zoo.segmentation.fcn import FCNHead
from zoo.segmentation.layers import ConvNorm, conv_of_enlarged, make_norm
from zoo.segmentation.segformer import SegFormerHead
from zoo.segmentation.segmenter import Segmenter, head_class
from zoo.segmentation.semantic_fpn import SemanticFPNHead
from zoo.segmentation.upernet import UPerNetHead

CHANNELS = (6, 8, 10, 12)
HEADS = {
    "upernet": lambda **k: UPerNetHead(CHANNELS, 5, dim=16, **k),
    "semantic_fpn": lambda **k: SemanticFPNHead(CHANNELS, 5, pyramid_dim=16, dim=16, **k),
    "segformer": lambda **k: SegFormerHead(CHANNELS, 5, dim=16, **k),
    "fcn": lambda **k: FCNHead(CHANNELS, 5, in_index=0, dim=16, **k),
}


def pyramid(height, width, batch=2, dtype=torch.float32):
    return [
        torch.randn(batch, c, -(-height // 2**i), -(-width // 2**i), dtype=dtype, generator=torch.manual_seed(i))
        for i, c in enumerate(CHANNELS)
    ]


@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 24), (8, 12), (4, 6), (2, 3)],
        [(13, 7), (7, 4), (4, 2), (2, 1)],
        [(9, 9), (9, 9), (5, 5), (1, 1)],
        [(1, 1), (1, 1), (1, 1), (1, 1)],
        [(4, 6), (1, 1), (2, 3), (6, 6)],  # the last one is made smaller, as by pyramid pooling of a small map
    ],
)
@pytest.mark.parametrize("many", [10**9, 1])
def test_convolution_of_enlarged_maps(sizes, many, monkeypatch):
    monkeypatch.setattr("zoo.segmentation.layers._MANY", many)  # which maps are mixed while they are small
    generator = torch.manual_seed(0)
    maps = [
        torch.randn(2, c, *s, dtype=torch.float64, generator=generator, requires_grad=True)
        for c, s in zip(CHANNELS, sizes)
    ]
    weight = torch.randn(7, sum(CHANNELS), 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    whole = [F.interpolate(m, size=sizes[0], mode="bilinear", align_corners=False) for m in maps]
    expected = F.conv2d(torch.cat(whole, 1), weight, padding=1)
    found = conv_of_enlarged(maps, weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    up = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    grads = torch.autograd.grad(expected, [*maps, weight], up)
    for own, other in zip(torch.autograd.grad(found, [*maps, weight], up), grads):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_semantic_fpn_computes_what_the_paper_draws():
    """Levels enlarged by conv + norm + ReLU + 2x until they have the first one's size, then summed."""
    head = SemanticFPNHead(CHANNELS, 5, pyramid_dim=16, dim=12).eval()
    maps = pyramid(16, 24)
    inner = [b[0] for b in head.pyramid.inner_blocks]
    outer = [b[0] for b in head.pyramid.layer_blocks]
    with torch.no_grad():
        level = inner[3](maps[3])
        levels = [outer[3](level)]
        for i in (2, 1, 0):
            level = inner[i](maps[i]) + F.interpolate(level, size=maps[i].shape[-2:], mode="nearest")
            levels.insert(0, outer[i](level))
        total = torch.zeros(2, 12, 16, 24)
        for i, x in enumerate(levels):
            for conv in head.towers[i]:
                x = F.relu(conv.norm(conv.conv(x)))
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) if i else x
            total = total + x
        assert [len(t) for t in head.towers] == [1, 1, 2, 3]
        torch.testing.assert_close(head(maps), head.classifier(total))


def test_fcn_reads_one_map():
    head = FCNHead(CHANNELS, 5, in_index=1, dim=16, num_convs=1, dilation=2).eval()
    maps = pyramid(16, 24)
    with torch.no_grad():
        expected = head(maps)
        assert expected.shape == (2, 5, 8, 12)
        y = F.relu(head.convs[0].norm(F.conv2d(maps[1], head.convs[0].conv.weight, padding=2, dilation=2)))
        y = head.join(torch.cat([maps[1], y], 1))
        torch.testing.assert_close(expected, head.classifier(y))
        maps[0] = maps[0] + 1
        torch.testing.assert_close(head(maps), expected)
    bare = FCNHead(CHANNELS, 5, num_convs=0, concat_input=False).eval()
    assert bare(maps).shape == (2, 5, 2, 3)
    assert {n for n, _ in bare.named_parameters()} == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("size", [(16, 24), (13, 7), (1, 1)])
def test_logits_have_the_size_of_the_largest_map(name, size):
    head = HEADS[name]().eval()
    maps = pyramid(*size)
    logits = head(maps)
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()
    for i in range(2):  # an image alone is the image in a batch
        torch.testing.assert_close(head([m[i : i + 1] for m in maps]), logits[i : i + 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("norm", ["bn", "sync_bn", "gn"])
def test_every_parameter_learns_with_every_norm(name, norm):
    head = HEADS[name](norm=norm)
    head(pyramid(16, 24)).square().sum().backward()
    missing = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    assert all(p.grad.abs().sum() > 0 for n, p in head.named_parameters() if n.endswith("conv.weight"))
    kinds = {"bn": torch.nn.BatchNorm2d, "sync_bn": torch.nn.SyncBatchNorm, "gn": torch.nn.GroupNorm}
    assert any(type(m) is kinds[norm] for m in head.modules())


@pytest.mark.parametrize("name", HEADS)
def test_half_precision(name):
    head = HEADS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(pyramid(16, 24))
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_maps_of_other_channels_are_refused(name):
    head = HEADS[name]()
    maps = pyramid(16, 24)
    with pytest.raises(
        ValueError, match=r"built for maps of \(6, 8, 10, 12\) channels and got maps of \(8, 8, 10, 12\)"
    ):
        head([maps[1], *maps[1:]])
    with pytest.raises(ValueError, match="do not fit"):
        head(maps[:3])


def test_a_segmenter_with_a_head_for_other_channels():
    network = Segmenter("davit_nano", dict(type="upernet", channels=(1, 2, 3), dim=16), num_classes=3).eval()
    with pytest.raises(ValueError, match=r"built for maps of \(1, 2, 3\) channels and got maps of \(48, 96, 160\)"):
        network(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: UPerNetHead((), 5), "channels is empty"),
        (lambda: UPerNetHead(CHANNELS, 0), "num_classes=0"),
        (lambda: UPerNetHead(CHANNELS, 5, pool_scales=()), "pool_scales"),
        (lambda: UPerNetHead(CHANNELS, 5, norm="ln"), "norm='ln'"),
        (lambda: FCNHead(CHANNELS, 5, in_index=4), "in_index=4"),
        (lambda: FCNHead(CHANNELS, 5, kernel=2), "kernel=2"),
        (lambda: SemanticFPNHead(CHANNELS, 5, strides=(4, 8, 12, 32)), "strides"),
        (lambda: SemanticFPNHead(CHANNELS, 5, strides=(4, 8)), "2, 4"),
    ],
)
def test_arguments_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names():
    assert head_class("fcn") is FCNHead
    with pytest.raises(UnknownNameError, match="did you mean upernet"):
        head_class("uppernet")
    assert make_norm("gn", 48).num_groups == 24
    assert ConvNorm(3, 4).conv.bias is None
