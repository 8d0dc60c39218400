"""Small parts of detection transformers: the box perceptron, activations, the feed-forward branch, the input neck."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.images import mask_at
from zoo.layers.token_linear import TokenLinear


class MLP(nn.Module):
    """Linear layers with ReLU in between, as heads for boxes and scales.

    Args:
        in_dim: channels in.
        hidden: channels between layers.
        out_dim: channels out.
        num_layers: linear layers.
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int, num_layers: int):
        super().__init__()
        dims = [in_dim, *[hidden] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(TokenLinear(a, b) for a, b in zip(dims[:-1], dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_dim] -> [..., out_dim]``."""
        *inner, last = self.layers  # no slice: torch 2.6 cannot export one of a list of modules
        for layer in inner:
            x = F.relu(layer(x))
        return last(x)


class GLU(nn.Module):
    """Gated linear unit over the last dimension (without parameters)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "glu": GLU,
    "prelu": nn.PReLU,
    "selu": nn.SELU,
}


def activation(name: str) -> nn.Module:
    """An activation by its name in the DETR family's configs.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}: accepted are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class InputProjection(nn.ModuleList):
    """Feature maps to one width, and further levels from the last map.

    A 1x1 convolution with GroupNorm for each map; the first further level comes from the last map as it was given,
    each next one from the level before it, by 3x3 convolutions of stride 2.

    Args:
        channels: channels of the maps.
        dim: channels of every level.
        num_levels: levels in all, at least as many as maps.
        groups: groups of the normalisation.
        bias: the convolutions have one.

    Raises:
        ValueError: fewer levels than maps.
    """

    def __init__(self, channels: Sequence[int], dim: int, num_levels: int, groups: int = 32, bias: bool = True):
        if num_levels < len(channels):
            raise ValueError(f"num_feature_levels={num_levels}: the backbone gives {len(channels)} maps, at least that")
        layers = [nn.Sequential(nn.Conv2d(c, dim, 1, bias=bias), nn.GroupNorm(groups, dim)) for c in channels]
        previous = channels[-1]
        for _ in range(num_levels - len(channels)):
            layers.append(nn.Sequential(nn.Conv2d(previous, dim, 3, 2, 1, bias=bias), nn.GroupNorm(groups, dim)))
            previous = dim
        super().__init__(layers)
        self.num_maps = len(channels)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, maps: Sequence[Tensor], mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps ``[B, C_i, H_i, W_i]`` and the images' padding ``[B, H, W]`` to levels and their padding."""
        if len(maps) != self.num_maps:
            raise ValueError(f"{len(maps)} feature maps were given; this detector takes {self.num_maps}")
        levels = [layer(x) for layer, x in zip(self, maps)]
        last = maps[-1]
        for layer in list(self)[len(maps) :]:
            last = layer(last)
            levels.append(last)
        return levels, [mask_at(mask, x.shape[-2:]) for x in levels]


def classifier_bias(prior: float = 0.01) -> float:
    """The bias that makes a sigmoid classifier start at this probability."""
    return -math.log((1 - prior) / prior)


def start_at_reference(head: MLP, size: float = 0.0) -> None:
    """Let a box head start by giving the reference; ``size`` is the logit of a width and height without one."""
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    nn.init.constant_(last.bias[2:], size)


def shared(module: nn.Module, count: int) -> nn.ModuleList:
    """The same module ``count`` times: one set of weights, under ``count`` names."""
    return nn.ModuleList([module] * count)
