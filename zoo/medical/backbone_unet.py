"""Segmentation of images by any backbone of the zoo and a decoder with lateral connections of a chosen enlargement.

The decoder is a feature pyramid (arXiv 1612.03144): a 1x1 convolution on each of the backbone's maps, and from the
coarsest on a map is enlarged, joined to the next lateral one and convolved. Enlargement is window attention upsampling
(arXiv 2106.10637), linear interpolation or a transposed convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.layers import resize
from zoo.medical.unet import upsample_block
from zoo.registry import MODELS, accepted_arguments, build, resolve


class BackboneUNet(nn.Module):
    """Two or more maps of a backbone, from coarse to fine; the finest one's prediction is enlarged to the image.

    Args:
        backbone: a name ("davit_tiny"), a ``dict(type=..., ...)``, or a module with ``out_channels`` and ``strides``;
            its maps halve from one to the next; ``in_chans`` is passed.
        in_chans: channels of the image.
        num_classes: classes, background included.
        dim: channels of the decoder; a multiple of the window attention's heads.
        upsample: "wau", "linear" or "transposed", or a dict with options, as in :class:`zoo.medical.unet.UNet`.

    Raises:
        ValueError: a backbone with fewer than two maps, or whose strides do not double.
    """

    dims = 2

    def __init__(
        self,
        backbone: Any = "davit_tiny",
        in_chans: int = 1,
        num_classes: int = 2,
        dim: int = 64,
        upsample: str | Mapping[str, Any] = "wau",
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        maps: Any = _maps_of(backbone, in_chans)
        self.backbone = maps
        channels, strides = tuple(maps.out_channels), tuple(maps.strides)
        if len(channels) < 2 or any(b != 2 * a for a, b in zip(strides[:-1], strides[1:])):
            raise ValueError(f"the backbone's maps have strides {strides}: accepted are two or more that double")
        self.stride = strides[-1]
        self.lateral = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in channels)
        self.up = nn.ModuleList(upsample_block(upsample, dim, dim, (2, 2), 2) for _ in channels[:-1])
        self.decoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * dim, dim, 3, padding=1, bias=False),
                nn.InstanceNorm2d(dim, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            )
            for _ in channels[:-1]
        )
        self.head = nn.Conv2d(dim, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes, H, W]`` of images ``[B, in_chans, H, W]`` of any size."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"the input has shape {tuple(x.shape)}: accepted is [B, {self.in_chans}, H, W]")
        height, width = x.shape[2:]
        # filled up, so that each map is half as high and wide as the one before
        right, below = -width % self.stride, -height % self.stride
        padded = F.pad(x, [0, right, 0, below]) if right or below else x
        maps = [project(m) for project, m in zip(self.lateral, self.backbone(padded))]
        y = maps[-1]
        for i in reversed(range(len(self.up))):
            y = self.decoder[i](torch.cat([maps[i], self.up[i](maps[i], y)], 1))
        return resize(self.head(y), padded.shape[2:])[..., :height, :width]


def _maps_of(spec: Any, in_chans: int) -> nn.Module:
    """A spec of a backbone, built without classifier and for so many channels where it takes these arguments."""
    if isinstance(spec, nn.Module):
        return spec
    spec = dict(spec) if isinstance(spec, Mapping) else {"type": spec}
    takes, _ = accepted_arguments(resolve(spec["type"], MODELS))
    own = {k: v for k, v in (("num_classes", 0), ("in_chans", in_chans)) if k in takes}
    return build({**own, **spec}, MODELS)
