"""HS-FPN: a feature pyramid that selects channels of the finer maps by the coarsest one.

Accurate Leukocyte Detection Based on Deformable-DETR and Multi-Level Feature Fusion for Aiding Diagnosis of Blood
Diseases (arXiv:2401.00926), section III-B.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ChannelWeights(nn.Module):
    """Weights of the channels from their mean and maximum over the map.

    Args:
        channels: channels C.
        ratio: C over the hidden channels.
        multiply: give the map times the weights rather than the weights.
    """

    def __init__(self, channels: int, ratio: int = 4, multiply: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // ratio, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // ratio, channels, 1, bias=False)
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same, or to the weights ``[B, C, 1, 1]``."""
        pooled = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        weights = sum(self.conv2(F.relu(self.conv1(p))) for p in pooled).sigmoid()
        return x * weights if self.multiply else weights


class HSFPN(nn.Module):
    """Maps to levels of one width, coarse ones selecting what is added from fine ones.

    What guides a level is the coarsest map, upsampled once more for each; never a level that was fused already.

    Args:
        channels: channels of the backbone's maps, from fine to coarse.
        dim: channels of the levels; there is one more than maps.
        groups: groups of the normalisations.
    """

    def __init__(self, channels: Sequence[int], dim: int, groups: int = 32):
        super().__init__()
        last = channels[-1]
        # No activation in between, as in the authors' code.
        self.top_feature_proj = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(last, last // 2, 1),
                    nn.Conv2d(last // 2, last // 2, 3, 2, 1),
                    nn.Conv2d(last // 2, 2 * last, 1),
                    nn.GroupNorm(groups, 2 * last),
                )
            ]
        )
        widths = [*channels, 2 * last][::-1]  # coarse to fine
        self.upbottom_conv = nn.ModuleList(nn.Sequential(ChannelWeights(c), nn.Conv2d(c, dim, 1)) for c in widths)
        steps = len(widths) - 1
        self.weight_conv = nn.ModuleList(nn.Sequential(ChannelWeights(dim, multiply=False)) for _ in range(steps))
        self.up_sample_conv = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(dim, dim, 3, 2, 1, output_padding=1)) for _ in range(steps)
        )
        # Fine to coarse, unlike the others.
        self.lateral_conv = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1), nn.GroupNorm(groups, dim), nn.ReLU()) for _ in widths
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``[B, C_i, H_i, W_i]``, fine to coarse, to levels ``[B, dim, H_i, W_i]`` and one of half the size."""
        coarse_first = [self.top_feature_proj[0](maps[-1]), *maps[::-1]]
        levels: list[Tensor] = []
        guide = None
        for i, x in enumerate(coarse_first):
            lateral = self.upbottom_conv[i](x)
            if guide is None:
                guide, fused = lateral, lateral
            else:
                guide = self.up_sample_conv[i - 1](guide)
                fitted = guide
                if fitted.shape[-2:] != lateral.shape[-2:]:
                    size = lateral.shape[-2:]
                    fitted = F.interpolate(fitted, size=size, mode="bilinear", align_corners=False)
                fused = lateral * self.weight_conv[i - 1](fitted) + fitted
            levels.append(self.lateral_conv[-1 - i](fused))
        return levels[::-1]
