"""Backbones as segmentation uses them: any of the zoo's, of timm's or of torchvision's ResNets, and their pyramid.

The pyramid for plain vision transformers: Exploring Plain Vision Transformer Backbones for Object Detection
(arXiv:2203.16527, section 3), with the norm between as in BEiT's (and mmsegmentation's) form of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.registry import MODELS, accepted_arguments, build, resolve
from zoo.segmentation.layers import make_norm

#: prefix of a backbone's name -> (class, its argument that takes the rest of the name, further arguments)
PREFIXES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "timm": ("zoo.backbones.timm.TimmBackbone", "model_name", {}),
    "torchvision": (
        "zoo.detection.resnet.ResNetBackbone",
        "name",
        {"out_indices": (0, 1, 2, 3), "frozen_norm": False, "frozen_stages": -1},
    ),
}


def build_backbone(spec: Any) -> nn.Module:
    """A backbone that gives maps: it has ``out_channels`` and ``strides``, and is called with ``[B, 3, H, W]``.

    Args:
        spec: a module; a name of the zoo ("davit_tiny"), of timm ("timm:convnext_tiny") or of torchvision
            ("torchvision:resnet50": resnet18, 34, 50, 101); or a ``dict(type=name or class, ...)``. Classifiers are
            left out (``num_classes=0``).

    Raises:
        ValueError: an unknown prefix, or what is built gives no maps.
    """
    if isinstance(spec, nn.Module):
        backbone = spec
    else:
        backbone = build(_giving_maps(spec), MODELS)
    if getattr(backbone, "num_classes", 0):
        raise ValueError("the backbone has a classifier; a segmenter's gives maps (num_classes=0)")
    for name in ("out_channels", "strides"):
        if not getattr(backbone, name, None):
            raise ValueError(f"{type(backbone).__name__} has no {name}: it is no backbone that gives maps")
    return backbone


def _giving_maps(spec: Any) -> dict[str, Any]:
    spec = dict(spec) if isinstance(spec, Mapping) else {"type": spec}
    kind = spec["type"]
    if isinstance(kind, str) and ":" in kind:
        prefix, _, name = kind.partition(":")
        if prefix not in PREFIXES:
            raise ValueError(f"backbone {kind!r}: accepted prefixes are {', '.join(PREFIXES)}")
        kind, argument, further = PREFIXES[prefix]
        spec = {**further, argument: name, **spec, "type": kind}
    takes, _ = accepted_arguments(resolve(kind, MODELS))
    return {"num_classes": 0, **spec} if "num_classes" in takes else spec


class SimplePyramid(nn.Module):
    """Maps of one stride to strides 4, 8, 16 and 32: transposed convolutions, the map itself, max pooling.

    Args:
        channels: channels of the maps, one for all levels or one for each.
        stride: of the maps, 4, 8, 16 or 32.
        norm: between two transposed convolutions: "bn", "sync_bn" or "gn".

    Raises:
        ValueError: another stride, neither one map nor four; (in ``forward``) another number of maps.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, channels: Sequence[int], stride: int = 16, norm: str = "bn"):
        super().__init__()
        if stride not in self.strides:
            raise ValueError(f"stride={stride} of the backbone's maps: accepted are 4, 8, 16 and 32")
        if len(channels) not in (1, 4):
            raise ValueError(f"{len(channels)} maps of one stride: accepted are 1 and 4 (choose them by out_indices)")
        self.maps = len(channels)
        self.out_channels = tuple(channels) if len(channels) == 4 else tuple(channels) * 4
        self.factors = tuple(stride / s for s in self.strides)
        self.levels = nn.ModuleList(_resize(c, f, norm) for c, f in zip(self.out_channels, self.factors))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[B, C_i, H, W]`` to four maps."""
        if len(maps) != self.maps:
            raise ValueError(f"{len(maps)} maps, but the pyramid was built for {self.maps}")
        given = list(maps) * 4 if len(maps) == 1 else maps
        return [
            F.max_pool2d(level(x), int(1 / f), ceil_mode=True) if f < 1 else level(x)
            for x, f, level in zip(given, self.factors, self.levels)
        ]


def _resize(dim: int, factor: float, norm: str) -> nn.Module:
    layers: list[nn.Module] = []
    while factor > 1:
        layers += [make_norm(norm, dim), nn.GELU()] if layers else []
        layers.append(nn.ConvTranspose2d(dim, dim, 2, 2))
        factor /= 2
    return nn.Sequential(*layers)


def build_pyramid(backbone: nn.Module, norm: str = "bn") -> nn.Module | None:
    """What makes maps of different strides of a backbone's that has them all at one; None where it has them already."""
    strides: Any = backbone.strides
    if len(set(strides)) > 1:
        return None
    channels: Any = backbone.out_channels
    return SimplePyramid(channels, strides[0], norm)
