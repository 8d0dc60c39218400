"""Grid attention gates: a coarse map says where a finer one matters.

Attention U-Net: Learning Where to Look for the Pancreas (arXiv 1804.03999), eq. 1-2; Attention Gated Networks (arXiv
1808.08114). Authors' code: github.com/ozan-oktay/Attention-Gated-Networks (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.layers import CONV, NORM, check_dims, init_kaiming, resize, to_tuple

SEGMENTATION_MODES = ("sigmoid", "softplus", "softmax")
SCORE_MODES = ("softmax", "mean", "mean_flow", "range_normalise", "sigmoid")


def normalise_scores(scores: Tensor, mode: str) -> Tensor:
    """Scores of places as attention, each map by itself.

    ``softmax``: over all places. ``mean``: s / sum s. ``mean_flow``: (s - min) / sum (s - min). ``range_normalise``:
    (s - min) / (max - min). ``sigmoid``: place by place. The quotients have no epsilon, so a constant map gives NaN
    under ``mean_flow`` and ``range_normalise``.

    Args:
        scores: ``[B, 1, ...]``.
        mode: one of the five.
    """
    if mode == "sigmoid":
        return scores.sigmoid()
    flat = scores.flatten(2)  # [B, 1, places]
    if mode == "softmax":
        flat = flat.softmax(-1)
    elif mode == "mean":
        flat = flat / flat.sum(-1, keepdim=True)
    else:
        flat = flat - flat.amin(-1, keepdim=True)
        total = flat.sum(-1, keepdim=True) if mode == "mean_flow" else flat.amax(-1, keepdim=True)
        flat = flat / total
    return flat.view_as(scores)


class GridGate(nn.Module):
    """Gate of a segmentation network: BN(W (a x)), a = resized sigmoid(psi relu(theta x + resized phi g)).

    Args:
        in_chans: channels of the map x.
        gate_chans: channels of the gating map g.
        inter_chans: channels of the sum; half of ``in_chans`` if None.
        dims: 2 or 3.
        mode: "sigmoid" (``concatenation`` of the authors), "softplus" (``_debug``: it stands in for the ReLU) or
            "softmax" (``_residual``: the attention is a softmax over all places).
        stride: kernel and stride of theta; a map that it does not divide loses its rest.

    Raises:
        ValueError: an unknown number of dimensions, mode or stride.
    """

    def __init__(
        self,
        in_chans: int,
        gate_chans: int,
        inter_chans: int | None = None,
        dims: int = 3,
        mode: str = "sigmoid",
        stride: int | Sequence[int] = 2,
    ):
        super().__init__()
        check_dims(dims)
        if mode not in SEGMENTATION_MODES:
            raise ValueError(f"mode={mode!r}: accepted are {', '.join(map(repr, SEGMENTATION_MODES))}")
        steps = to_tuple(stride, dims, "stride")
        inter = inter_chans if inter_chans is not None else max(in_chans // 2, 1)
        conv = CONV[dims]
        self.mode = mode
        self.theta = conv(in_chans, inter, steps, steps, bias=False)
        self.phi = conv(gate_chans, inter, 1)
        self.psi = conv(inter, 1, 1)
        self.W = nn.Sequential(conv(in_chans, in_chans, 1), NORM[dims](in_chans))
        init_kaiming(self)

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``x [B, C, ...]`` and ``g [B, G, ...]`` to the gated map, shaped as x, and attention ``[B, 1, ...]``."""
        theta = self.theta(x)
        total = theta + resize(self.phi(g), theta.shape[2:])
        scores = self.psi(F.softplus(total) if self.mode == "softplus" else F.relu(total))
        attention = normalise_scores(scores, "softmax" if self.mode == "softmax" else "sigmoid")
        attention = resize(attention, x.shape[2:])
        return self.W(attention * x), attention


class ScoreGate(nn.Module):
    """Gate of a classification network: attention by normalised compatibility scores (the authors' ``_TORR``).

    Args:
        in_chans: channels of the map x.
        gate_chans: channels of the gating map g.
        inter_chans: channels of the sum; half of ``in_chans`` if None.
        dims: 2 or 3.
        mode: how scores become attention, see :func:`normalise_scores`.
        stride: kernel and stride of theta and phi.
        norm: batch normalisation after the output convolution.
        output: an output convolution (W); else the gated map is the output.
        theta, phi, psi: these convolutions; a map takes the place of its image where one is left out. Without psi,
            ``inter_chans`` has to be 1, or the channels of x under ``sigmoid``.
        relu: ReLU on the sum.

    Raises:
        ValueError: an unknown number of dimensions, mode or stride; left-out parts whose channels do not fit.
    """

    def __init__(
        self,
        in_chans: int,
        gate_chans: int,
        inter_chans: int | None = None,
        dims: int = 2,
        mode: str = "softmax",
        stride: int | Sequence[int] = 1,
        norm: bool = True,
        output: bool = True,
        theta: bool = True,
        phi: bool = True,
        psi: bool = True,
        relu: bool = True,
    ):
        super().__init__()
        check_dims(dims)
        if mode not in SCORE_MODES:
            raise ValueError(f"mode={mode!r}: accepted are {', '.join(map(repr, SCORE_MODES))}")
        steps = to_tuple(stride, dims, "stride")
        inter = inter_chans if inter_chans is not None else max(in_chans // 2, 1)
        widths = {inter if theta else in_chans, inter if phi else gate_chans}
        if len(widths - {1}) > 1 or (psi and max(widths) != inter):
            raise ValueError(f"theta={theta}, phi={phi}: without them {in_chans} and {gate_chans} channels do not add")
        if not psi and max(widths) != 1 and (mode != "sigmoid" or max(widths) != in_chans):
            raise ValueError(
                f"psi=False: accepted is a sum of one channel (or, under sigmoid, of {in_chans}), not {max(widths)}"
            )
        conv = CONV[dims]
        self.mode, self.relu = mode, relu
        self.theta = conv(in_chans, inter, steps, steps, bias=False) if theta else nn.Identity()
        self.phi = conv(gate_chans, inter, steps, steps, bias=False) if phi else nn.Identity()
        score = conv(inter, 1, 1) if psi else None
        self.psi: nn.Module = nn.Identity() if score is None else score
        self.W: nn.Module = nn.Identity()
        if output:
            self.W = conv(in_chans, in_chans, 1)
            if norm:
                self.W = nn.Sequential(self.W, NORM[dims](in_chans))
        init_kaiming(self)
        if score is not None and mode in ("sigmoid", "softmax"):
            nn.init.constant_(score.bias, 3.0 if mode == "sigmoid" else 10.0)

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``x [B, C, ...]`` and ``g [B, G, ...]`` to the gated map, shaped as x, and attention ``[B, 1, ...]``."""
        theta = self.theta(x)
        total = theta + resize(self.phi(g), theta.shape[2:])
        attention = normalise_scores(self.psi(F.relu(total) if self.relu else total), self.mode)
        attention = resize(attention, x.shape[2:])
        return self.W(attention * x), attention
