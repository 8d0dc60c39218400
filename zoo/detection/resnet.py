"""ResNets as the DETR family has them: torchvision's, with frozen batch normalisation and chosen outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

#: name -> block and blocks of each stage
DEPTHS: dict[str, tuple[type[resnet.BasicBlock | resnet.Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (resnet.BasicBlock, (2, 2, 2, 2)),
    "resnet34": (resnet.BasicBlock, (3, 4, 6, 3)),
    "resnet50": (resnet.Bottleneck, (3, 4, 6, 3)),
    "resnet101": (resnet.Bottleneck, (3, 4, 23, 3)),
}


class ResNetBackbone(nn.Module):
    """Maps of the stages of a ResNet.

    Args:
        name: "resnet18", "resnet34", "resnet50" or "resnet101".
        out_indices: stages whose maps are given, 0 (stride 4) to 3 (stride 32).
        dilation: the last stage keeps stride 16 and is dilated instead (DC5).
        planes: inner channels of the four stages, where they differ from 64, 128, 256, 512.
        layers: blocks of the four stages, where they differ from ``name``'s.
        stem: channels of the stem.
        frozen_norm: batch normalisation with fixed statistics and weights (as all of the family has it).
        frozen_stages: stem (0) and stages (1 ...) that are not trained; -1 for none. The authors freeze 1.
        norm_eps: epsilon of the batch normalisations.

    Raises:
        ValueError: an unknown name, an index outside 0 ... 3.
    """

    def __init__(
        self,
        name: str = "resnet50",
        out_indices: Sequence[int] = (1, 2, 3),
        dilation: bool = False,
        planes: Sequence[int] = (64, 128, 256, 512),
        layers: Sequence[int] | None = None,
        stem: int = 64,
        frozen_norm: bool = True,
        frozen_stages: int = 1,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        if name not in DEPTHS:
            raise ValueError(f"name={name!r}: accepted are {', '.join(DEPTHS)}")
        if not out_indices or not set(out_indices) <= {0, 1, 2, 3}:
            raise ValueError(f"out_indices={tuple(out_indices)}: accepted are stages 0 to 3")
        block, depths = DEPTHS[name]
        norm = partial(FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d, eps=norm_eps)
        # torchvision's constructor fixes the widths; its own method makes stages of any.
        whole = resnet.ResNet(block, [1, 1, 1, 1], norm_layer=norm)
        whole.inplanes, whole.dilation = stem, 1
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = norm(stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, (width, count) in enumerate(zip(planes, layers or depths)):
            stage = whole._make_layer(block, width, count, stride=1 if i == 0 else 2, dilate=dilation and i == 3)
            setattr(self, f"layer{i + 1}", stage)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.out_indices = tuple(out_indices)
        self.out_channels = tuple(planes[i] * block.expansion for i in self.out_indices)
        strides = (4, 8, 16, 16 if dilation else 32)
        self.strides = tuple(strides[i] for i in self.out_indices)
        self.frozen_stages = frozen_stages
        frozen = [self.conv1, self.bn1] if frozen_stages >= 0 else []
        frozen += [getattr(self, f"layer{i}") for i in range(1, frozen_stages + 1)]
        for part in frozen:
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images ``[B, 3, H, W]`` to maps ``[B, C_i, H_i, W_i]``."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        maps = []
        for i in range(max(self.out_indices) + 1):
            x = getattr(self, f"layer{i + 1}")(x)
            if i in self.out_indices:
                maps.append(x)
        return maps
