"""The adapter: every backbone of the zoo, host x mixer, timm's and torchvision's under a segmenter."""

import pytest
import torch
from torch import nn

from zoo.backbones.base import Backbone
from zoo.registry import MIXERS, MODELS
from zoo.segmentation.backbone import SimplePyramid, build_backbone, build_pyramid
from zoo.segmentation.segmenter import Segmenter


def families():
    """The smallest model of each family of image classifiers that are backbones of the zoo."""
    found = {}
    for name in MODELS.names(task="classification"):
        entry = MODELS.entry(name)
        builds = getattr(entry.builder, "builds", None)
        if isinstance(builds, type) and issubclass(builds, Backbone):
            key = (entry.meta["family"], builds.__name__)
            better = "nano" in name or "tiny" in name
            if key not in found or better:
                found[key] = name if "nano" in name or "nano" not in found.get(key, "") else found[key]
    return sorted(found.values())


#: the others are tested with ``slow``
QUICK = ("davit_", "biformer_", "agent_swin_", "mit_", "pyramid_", "vit_", "nat_", "dinat_", "mala_")


@pytest.mark.parametrize(
    "name", [n if n.startswith(QUICK) else pytest.param(n, marks=pytest.mark.slow) for n in families()]
)
def test_every_family_gives_maps_for_a_head(name):
    """The channels and strides that a head is built for are those of the maps (without weights: on the meta device)."""
    with torch.device("meta"):
        network = Segmenter(name, dict(type="upernet", dim=8), num_classes=3).eval()
        image = torch.zeros(1, network.backbone.in_chans, 32, 64)
        try:
            maps = network.forward_maps(image)
        except (NotImplementedError, RuntimeError):
            maps = None  # computes with numbers
    if maps is None:
        network = Segmenter(name, dict(type="upernet", dim=8), num_classes=3).eval()
        with torch.no_grad():
            maps = network.forward_maps(torch.zeros(image.shape))
    source = network.backbone if network.pyramid is None else network.pyramid
    assert tuple(m.shape[1] for m in maps) == tuple(source.out_channels) == network.head.channels
    for m, stride in zip(maps, source.strides):
        assert abs(m.shape[2] - image.shape[2] / stride) <= 1
        assert abs(m.shape[3] - image.shape[3] / stride) <= 1


@pytest.mark.parametrize("mixer", ["agent", "channel", "mala", "softmax"])
@pytest.mark.parametrize("host", ["pyramid_nano", "vit_nano"])
def test_hosts_with_any_mixer(host, mixer):
    assert mixer in MIXERS
    backbone = {
        "pyramid_nano": dict(
            type="zoo.backbones.hosts.Pyramid", mixer=mixer, dims=(16, 24, 32, 48), depths=(1, 1, 1, 1)
        ),
        "vit_nano": dict(type="zoo.backbones.hosts.ViT", mixer=mixer, dim=32, depth=2, num_heads=2, out_indices=(1,)),
    }[host]
    if host == "pyramid_nano":
        backbone |= dict(num_heads=(1, 2, 2, 4))
    network = Segmenter(backbone, dict(type="upernet", dim=8), num_classes=3)
    logits = network(torch.randn(2, 3, 70, 90))["logits"]
    assert logits.shape[:2] == (2, 3)
    assert (network.pyramid is not None) == (host == "vit_nano")
    logits.square().sum().backward()
    assert all(p.grad is not None for p in network.backbone.parameters())


@pytest.mark.parametrize(
    "spec",
    [
        "timm:resnet10t",
        dict(type="timm:resnet10t", out_indices=(1, 2, 3, 4)),
        "torchvision:resnet18",
        dict(type="torchvision:resnet18", out_indices=(1, 3), frozen_norm=True),
        dict(type="zoo.backbones.timm.TimmBackbone", model_name="convnext_atto"),
    ],
)
def test_timm_and_torchvision(spec):
    network = Segmenter(spec, dict(type="fcn", dim=8), num_classes=3).eval()
    with torch.no_grad():
        maps = network.forward_maps(torch.zeros(1, 3, 64, 96))
        assert network(torch.zeros(1, 3, 64, 96))["logits"].shape == (1, 3, 2, 3)
    assert [64 // m.shape[2] for m in maps] == list(network.backbone.strides)
    if spec == "torchvision:resnet18":
        assert network.backbone.strides == (4, 8, 16, 32)
        assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("count", [1, 4])
def test_simple_pyramid(stride, count):
    pyramid = SimplePyramid((6,) * count, stride)
    size = 64 // stride
    given = [torch.randn(2, 6, size, size, requires_grad=True) for _ in range(count)]
    maps = pyramid(given)
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    assert pyramid.out_channels == (6, 6, 6, 6)
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in [*given, *pyramid.parameters()])
    with pytest.raises(ValueError, match=f"was built for {count}"):
        pyramid([torch.randn(2, 6, size, size)] * 2)


def test_a_map_of_one_position():
    maps = SimplePyramid((6,), 16).eval()([torch.randn(1, 6, 1, 1)])
    assert [tuple(m.shape[-2:]) for m in maps] == [(4, 4), (2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SimplePyramid((6,), 14), "stride=14"),
        (lambda: SimplePyramid((6, 6), 16), "2 maps"),
        (lambda: build_backbone("keras:resnet50"), "accepted prefixes are timm, torchvision"),
        (lambda: build_backbone(dict(type="davit_nano", num_classes=5)), "has a classifier"),
        (lambda: build_backbone(nn.Conv2d(3, 3, 1)), "Conv2d has no out_channels|Conv2d has no strides"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pyramid_is_made_only_where_it_is_needed():
    assert build_pyramid(build_backbone("davit_nano")) is None


def test_backbone_weights(tmp_path):
    torch.manual_seed(0)
    source = MODELS.get("davit_nano")(num_classes=4)
    torch.save(source.state_dict(), tmp_path / "backbone.pth")
    network = Segmenter("davit_nano", "fcn", num_classes=3, backbone_weights=tmp_path / "backbone.pth")
    own = network.backbone.state_dict()
    assert own
    assert all(torch.equal(own[k], source.state_dict()[k]) for k in own)
