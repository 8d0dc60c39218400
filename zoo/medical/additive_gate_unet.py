"""U-Net whose lateral connections pass additive attention gates at full resolution, in 3-D as Turbolift uses it.

Attention U-Net (arXiv 1804.03999), eq. 1-2, with the gate at the size of the lateral map and nearest-neighbour
enlargement; used by Turbolift (volumetric liver segmentation, github.com/soumickmj/Turbolift). Written from recordings
of what its network computes, without its code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.medical.layers import CONV, NORM, POOL, check_dims, check_divisible, conv_block, conv_unit


class AdditiveGate(nn.Module):
    """x sigmoid(BN(psi relu(BN(W_g g) + BN(W_x x)))) for maps of one size.

    Args:
        gate_chans: channels of the gating map g.
        in_chans: channels of the lateral map x.
        inter_chans: channels of the sum.
        dims: 2 or 3.
    """

    def __init__(self, gate_chans: int, in_chans: int, inter_chans: int, dims: int = 3):
        super().__init__()
        conv, norm = CONV[dims], NORM[dims]
        self.W_g = nn.Sequential(conv(gate_chans, inter_chans, 1), norm(inter_chans))
        self.W_x = nn.Sequential(conv(in_chans, inter_chans, 1), norm(inter_chans))
        self.psi = nn.Sequential(conv(inter_chans, 1, 1), norm(1))

    def attention(self, g: Tensor, x: Tensor) -> Tensor:
        """``[B, 1, ...]`` between 0 and 1."""
        return self.psi(torch.relu(self.W_g(g) + self.W_x(x))).sigmoid()

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        """Maps ``g [B, G, ...]`` and ``x [B, C, ...]`` of one size to the gated map, shaped as x."""
        return x * self.attention(g, x)


class AdditiveGateUNet(nn.Module):
    """Five levels of convolution blocks, each lateral map gated by the enlarged decoder map below it.

    Args:
        in_chans: channels of the input.
        num_classes: channels of the logits.
        dims: 2 or 3.
        widths: channels of the five levels, from fine to coarse.
        inter_chans: channels of the gates of the four lateral maps, from fine to coarse; half of theirs if None.

    Raises:
        ValueError: an argument outside the above; an input whose sizes are no multiples of 16.
    """

    size_multiple = 16

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 1,
        dims: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        inter_chans: Sequence[int] | None = None,
    ):
        super().__init__()
        check_dims(dims)
        inter = [max(w // 2, 1) for w in widths[:-1]] if inter_chans is None else list(inter_chans)
        if len(widths) != 5 or len(inter) != 4 or min(*widths, *inter) < 1:
            raise ValueError(
                f"widths={tuple(widths)}, inter_chans={inter}: accepted are five and four positive numbers"
            )
        self.in_chans, self.num_classes, self.dims = in_chans, num_classes, dims
        chans = [in_chans, *widths]
        self.encoder = nn.ModuleList(conv_block(dims, a, b) for a, b in zip(chans[:-1], chans[1:]))
        self.pool = POOL[dims](2)
        self.enlarge = nn.Upsample(scale_factor=2)
        pairs = list(zip(widths[:-1], widths[1:]))
        self.up = nn.ModuleList(conv_unit(dims, b, a) for a, b in pairs)
        self.gates = nn.ModuleList(AdditiveGate(a, a, n, dims) for (a, _), n in zip(pairs, inter))
        self.decoder = nn.ModuleList(conv_block(dims, 2 * a, a) for a, _ in pairs)
        self.head = CONV[dims](widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes, ...]`` of ``x [B, in_chans, ...]``."""
        check_divisible(x, (16,) * self.dims, self.in_chans)
        levels: list[Tensor] = []
        for i, block in enumerate(self.encoder):
            x = block(x if i == 0 else self.pool(x))
            levels.append(x)
        for i in (3, 2, 1, 0):
            x = self.up[i](self.enlarge(x))
            x = self.decoder[i](torch.cat([self.gates[i](x, levels[i]), x], 1))
        return self.head(x)
