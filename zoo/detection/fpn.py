"""A feature pyramid on torchvision's, with normalised further levels.

Feature Pyramid Networks for Object Detection (arXiv:1612.03144); further levels as RetinaNet's (arXiv:1708.02002), or
the last one at every second place, as Mask R-CNN's proposals read it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool

from zoo.detection.conv_tower import ConvGN


class ExtraLevels(ExtraFPNBlock):
    """Further levels, each half the size of the one before.

    Args:
        in_dim: channels of the map that the first one is made from.
        dim: channels of the levels.
        count: how many.
        groups: of the group normalisation; None for none.
        on_input: the first one is made from the backbone's last map; otherwise from the last level.
    """

    def __init__(self, in_dim: int, dim: int, count: int, groups: int | None, on_input: bool):
        super().__init__()
        self.on_input = on_input
        self.convs = nn.ModuleList(
            ConvGN(in_dim if i == 0 and on_input else dim, dim, groups=groups, act=False, stride=2)
            for i in range(count)
        )

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        last = x[-1] if self.on_input else results[-1]
        for i, conv in enumerate(self.convs):
            last = conv(last)
            results.append(last)
            names.append(f"extra{i}")
        return results, names


class FPN(nn.Module):
    """Levels of one width from a backbone's maps.

    Args:
        channels: channels of the maps.
        dim: channels of the levels.
        num_levels: levels in all.
        groups: of the group normalisation; None for none.
        extra: "on_input" or "on_output", see :class:`ExtraLevels`; "pool": one level more, without weights.
        batch_norm: batch normalisation instead of group normalisation.

    Raises:
        ValueError: fewer levels than maps, another ``extra``, more than one level made by "pool", two normalisations.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int = 256,
        num_levels: int = 5,
        groups: int | None = 32,
        extra: str = "on_input",
        batch_norm: bool = False,
    ):
        super().__init__()
        if num_levels < len(channels):
            raise ValueError(f"num_levels={num_levels}: the backbone gives {len(channels)} maps, at least that")
        if extra not in ("on_input", "on_output", "pool"):
            raise ValueError(f"extra={extra!r}: accepted are 'on_input', 'on_output' and 'pool'")
        if batch_norm and (groups is not None or extra != "pool"):
            raise ValueError(f"batch_norm=True: accepted with groups=None and extra='pool', not {groups} and {extra!r}")
        norm: Callable[..., nn.Module] | None = None if groups is None else partial(nn.GroupNorm, groups)
        norm = nn.BatchNorm2d if batch_norm else norm
        further: ExtraFPNBlock | None = None
        if num_levels > len(channels) and extra == "pool":
            if num_levels > len(channels) + 1:
                raise ValueError(f"num_levels={num_levels}: extra='pool' makes one of {len(channels)} maps' more")
            further = LastLevelMaxPool()
        elif num_levels > len(channels):
            further = ExtraLevels(channels[-1], dim, num_levels - len(channels), groups, extra == "on_input")
        self.pyramid = FeaturePyramidNetwork(list(channels), dim, further, norm)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``[B, C_i, H_i, W_i]`` to levels ``[B, dim, ...]``, from large to small."""
        return list(self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(maps))).values())
