"""Multi-scale attention U-Net: the image at four scales goes in, predictions at four scales come out (2-D).

A Novel Focal Tversky Loss Function with Improved Attention U-Net (arXiv 1810.07842), section 3, as Turbolift trains it
serially over tasks (github.com/soumickmj/Turbolift). Written from recordings of what its network computes, without its
code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.layers import check_divisible
from zoo.medical.losses import deep_supervision_loss

ACTIVATIONS = ("sigmoid", "softmax", "none")


def _activation(channels: int, leaky: bool) -> nn.Module:
    return nn.PReLU(channels) if leaky else nn.ReLU()


def _unit(in_chans: int, out_chans: int, kernel: int, norm: bool, leaky: bool) -> list[nn.Module]:
    normal = nn.BatchNorm2d(out_chans) if norm else nn.Identity()
    return [nn.Conv2d(in_chans, out_chans, kernel, padding=kernel // 2), normal, _activation(out_chans, leaky)]


def _block(in_chans: int, out_chans: int, norm: bool, leaky: bool) -> nn.Sequential:
    return nn.Sequential(*_unit(in_chans, out_chans, 3, norm, leaky), *_unit(out_chans, out_chans, 3, norm, leaky))


class StridedGate(nn.Module):
    """BN(W (a x)), a = enlarged sigmoid(psi act(theta x + phi g)), theta of stride 2: g is half as high and wide.

    Args:
        in_chans: channels of the map x; the sum has half of them.
        gate_chans: channels of the gating map g.
        leaky: PReLU with a slope for each channel, else ReLU.
    """

    def __init__(self, in_chans: int, gate_chans: int, leaky: bool = True):
        super().__init__()
        inter = in_chans // 2
        self.theta = nn.Conv2d(in_chans, inter, 2, 2)
        self.phi = nn.Conv2d(gate_chans, inter, 1)
        self.act = _activation(inter, leaky)
        self.psi = nn.Conv2d(inter, 1, 1)
        self.W = nn.Sequential(nn.Conv2d(in_chans, in_chans, 1), nn.BatchNorm2d(in_chans))

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """Maps ``x [B, C, 2h, 2w]`` and ``g [B, G, h, w]`` to the gated map, shaped as x."""
        attention = self.psi(self.act(self.theta(x) + self.phi(g))).sigmoid()
        larger = F.interpolate(attention, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.W(larger * x)


class DeepSupervisedUNet(nn.Module):
    """Attention U-Net with an input pyramid and a prediction at every scale.

    The way up is linear in its depth: a level consumes the one below as it was joined; the convolution blocks of the
    decoder serve the predictions alone.

    Args:
        in_chans: channels of the image.
        num_classes: channels of a prediction.
        widths: channels of four levels and the centre, even numbers.
        norm: batch normalisation in blocks and gating signals (the gates always have it).
        leaky: PReLU with a slope for each channel, else ReLU.
        activation: of the predictions: "sigmoid", "softmax" over channels, or "none", logits.

    Raises:
        ValueError: an argument outside the above; an image whose sizes are no multiples of 16.
    """

    dims = 2
    size_multiple = 16

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        norm: bool = True,
        leaky: bool = True,
        activation: str = "sigmoid",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: accepted are {', '.join(map(repr, ACTIVATIONS))}")
        if len(widths) != 5 or any(w < 2 or w % 2 for w in widths):
            raise ValueError(f"widths={tuple(widths)}: accepted are five even numbers")
        self.in_chans, self.num_classes, self.activation = in_chans, num_classes, activation
        w1, w2, w3, w4, w5 = widths
        self.scales = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_chans, w, 3, padding=1), _activation(w, leaky)) for w in (w2, w3, w4)
        )
        chans = [in_chans, w2 + w1, w3 + w2, w4 + w3]
        self.encoder = nn.ModuleList(_block(c, w, norm, leaky) for c, w in zip(chans, widths[:4]))
        self.center = _block(w4, w5, norm, leaky)
        # from coarse to fine: channels that are enlarged, those they become, and those of the lateral map beside them
        ups, laterals = (w1, w2, w1, w1), (w4, w3, w2, w1)
        joined = [u + x for u, x in zip(ups, laterals)]
        below = [w5, *joined[:3]]
        self.signals = nn.ModuleList(nn.Sequential(*_unit(c, c, 1, norm, leaky)) for c in below[:3])
        self.gates = nn.ModuleList(StridedGate(x, c, leaky) for x, c in zip(laterals[:3], below))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(c, u, 2, 2), _activation(u, leaky)) for c, u in zip(below, ups)
        )
        self.decoder = nn.ModuleList(_block(c, x, norm, leaky) for c, x in zip(joined, laterals))
        self.heads = nn.ModuleList(nn.Conv2d(x, num_classes, 1) for x in laterals)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images ``[B, in_chans, H, W]`` to predictions of an eighth, a quarter, half and the whole of the size."""
        check_divisible(x, (16, 16), self.in_chans)
        levels = [self.encoder[0](x)]
        for block, scale in zip(list(self.encoder)[1:], self.scales):
            x = F.avg_pool2d(x, 2)
            levels.append(block(torch.cat([scale(x), F.max_pool2d(levels[-1], 2)], 1)))
        y = self.center(F.max_pool2d(levels[3], 2))
        predictions = []
        for i, (up, block, head) in enumerate(zip(self.up, self.decoder, self.heads)):
            lateral = levels[3 - i]
            if i < 3:
                lateral = self.gates[i](lateral, self.signals[i](y))
            y = torch.cat([up(y), lateral], 1)
            predictions.append(self._activate(head(block(y))))
        return predictions

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "none":
            return x
        return x.sigmoid() if self.activation == "sigmoid" else x.softmax(1)

    @staticmethod
    def logits_of(outputs: list[Tensor]) -> Tensor:
        """The prediction of the image's size."""
        return outputs[-1]

    @staticmethod
    def training_losses(
        outputs: list[Tensor], target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """A quarter of the loss of each scale; labels ``[B, H, W]`` are thinned out, as the authors do."""
        losses = deep_supervision_loss(lambda p, t: loss(p, t[:, 0]), outputs, target[:, None])[1]
        names = ("eighth", "quarter", "half", "whole")
        return {f"loss_{name}": value / len(losses) for name, value in zip(names, losses)}
