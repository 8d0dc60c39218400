"""Attention U-Net: grid attention gates on the lateral connections of a U-Net.

Attention U-Net: Learning Where to Look for the Pancreas (arXiv 1804.03999); Attention Gated Networks (arXiv
1808.08114). Authors' code: github.com/ozan-oktay/Attention-Gated-Networks (MIT). Here: in two dimensions too; inputs
whose sizes do not halve four times are refused, where the authors' padding shifts the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical.grid_attention import GridGate
from zoo.medical.layers import (
    CONV,
    LINEAR,
    POOL,
    TRANSPOSED,
    check_dims,
    check_divisible,
    conv_block,
    conv_unit,
    init_kaiming,
)

WIDTHS = (16, 32, 64, 128, 256)


def _check_widths(widths: Sequence[int]) -> None:
    if len(widths) != 5 or min(widths) < 1:
        raise ValueError(f"widths={tuple(widths)}: accepted are five positive numbers, of four levels and the centre")


class CombinedGates(nn.Module):
    """Gates beside each other, their outputs joined by a 1x1 convolution unit.

    Args:
        in_chans: channels of the lateral map.
        gate_chans: channels of the gating map.
        dims, mode, stride: see :class:`zoo.medical.grid_attention.GridGate`.
        count: gates.
    """

    def __init__(self, in_chans: int, gate_chans: int, dims: int, mode: str, stride: int | Sequence[int], count: int):
        super().__init__()
        self.gates = nn.ModuleList(GridGate(in_chans, gate_chans, in_chans, dims, mode, stride) for _ in range(count))
        self.combine = conv_unit(dims, count * in_chans, in_chans, 1)

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The gated map, of x's shape, and attention ``[B, count, ...]``."""
        maps, attention = zip(*(gate(x, g) for gate in self.gates))
        return self.combine(torch.cat(maps, 1)), torch.cat(attention, 1)


class UpBlock(nn.Module):
    """Decoder step: the coarse map enlarged, joined behind the lateral one, and convolved.

    Args:
        in_chans: channels of the coarse map.
        out_chans: channels of the lateral map and of the output.
        dims: 2 or 3.
        factors: enlargement by dimension.
        kernel: of the convolutions.
        norm: batch normalisation.
        transposed: enlarge by a transposed convolution to ``out_chans`` channels instead of interpolation.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        dims: int,
        factors: Sequence[int],
        kernel: Sequence[int],
        norm: bool = True,
        transposed: bool = False,
    ):
        super().__init__()
        self.factors = tuple(float(f) for f in factors)
        self.mode = LINEAR[dims]
        self.up: Any = None
        if transposed:
            # a kernel of 4 and padding 1 doubles a dimension; a kernel of 1 keeps it
            sizes = [4 if f == 2 else 1 for f in factors]
            make = TRANSPOSED[dims]
            self.up = make(in_chans, out_chans, sizes, tuple(factors), [1 if s == 4 else 0 for s in sizes])
            nn.init.kaiming_normal_(self.up.weight)
        joined = out_chans + (out_chans if transposed else in_chans)
        self.conv = conv_block(dims, joined, out_chans, kernel, norm)

    def forward(self, lateral: Tensor, coarse: Tensor) -> Tensor:
        """``[B, out, ...]`` at the size of the lateral map."""
        if self.up is not None:
            larger = self.up(coarse)
        else:
            larger = F.interpolate(coarse, scale_factor=self.factors, mode=self.mode, align_corners=False)
        return self.conv(torch.cat([lateral, larger], 1))


class _Encoder(nn.Module):
    """Four convolution blocks with pooling between them, and the centre."""

    def __init__(
        self, in_chans: int, widths: Sequence[int], dims: int, kernel: Sequence[int], factors: Sequence[int], norm: bool
    ):
        super().__init__()
        chans = [in_chans, *widths]
        self.blocks = nn.ModuleList(conv_block(dims, a, b, kernel, norm) for a, b in zip(chans[:-2], chans[1:-1]))
        self.center = conv_block(dims, widths[3], widths[4], kernel, norm)
        self.pool = POOL[dims](tuple(factors))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
            x = self.pool(x)
        return levels, self.center(x)


class AttentionUNet(nn.Module):
    """U-Net with gates on levels 2 to 4 and deep supervision inside: all levels' predictions make the logits.

    The gate of level 4 is steered by the projected centre, those of 3 and 2 by the decoder's map below.

    Args:
        in_chans: channels of the input.
        num_classes: classes, background included.
        dims: 2 or 3.
        widths: channels of the four levels and of the centre.
        gates: gates of a level beside each other: 2 (the authors' ``multi``), 1 (``single``) or 0, a plain U-Net.
        mode: see :class:`zoo.medical.grid_attention.GridGate`.
        stride: of the gates' grid.
        norm: batch normalisation in the convolution blocks (the gates always have it).

    Raises:
        ValueError: an argument outside the above; an input whose sizes are no multiples of 16.
    """

    #: what the sizes of an input have to be multiples of
    size_multiple = 16

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        dims: int = 3,
        widths: Sequence[int] = WIDTHS,
        gates: int = 2,
        mode: str = "sigmoid",
        stride: int | Sequence[int] = 2,
        norm: bool = True,
    ):
        super().__init__()
        check_dims(dims)
        _check_widths(widths)
        if gates < 0:
            raise ValueError(f"gates={gates}: accepted are 0, 1, 2, ...")
        self.in_chans, self.num_classes, self.dims = in_chans, num_classes, dims
        kernel, factors = (3,) * dims, (2,) * dims
        self.encoder = _Encoder(in_chans, widths, dims, kernel, factors, norm)
        self.gating = conv_unit(dims, widths[4], widths[4], 1, norm) if gates else None
        pairs = list(zip(widths[:-1], widths[1:]))
        self.gates = nn.ModuleList(CombinedGates(a, b, dims, mode, stride, gates) for a, b in pairs[1:] if gates)
        self.up = nn.ModuleList(UpBlock(b, a, dims, factors, kernel, norm) for a, b in pairs)
        heads = [CONV[dims](w, num_classes, 1) for w in widths[:-1]]
        larger = [nn.Upsample(scale_factor=2**i, mode=LINEAR[dims], align_corners=False) for i in range(4)]
        self.heads = nn.ModuleList(nn.Sequential(*pair) if i else pair[0] for i, pair in enumerate(zip(heads, larger)))
        self.final = CONV[dims](4 * num_classes, num_classes, 1)
        init_kaiming(self)

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits ``[B, num_classes, ...]`` of ``x [B, in_chans, ...]``; on demand attention of levels 2 to 4 too."""
        check_divisible(x, (16,) * self.dims, self.in_chans)
        levels, y = self.encoder(x)
        gate = self.gating(y) if self.gating is not None else y
        attention: list[Tensor] = []
        predictions: list[Tensor] = []
        for i in (3, 2, 1, 0):
            lateral = levels[i]
            if self.gating is not None and i > 0:
                lateral, weights = self.gates[i - 1](lateral, gate)
                attention.insert(0, weights)
            y = gate = self.up[i](lateral, y)
            predictions.insert(0, self.heads[i](y))
        logits = self.final(torch.cat(predictions, 1))
        return (logits, attention) if return_attention else logits


class GridAttentionUNet(nn.Module):
    """U-Net with one gate a level, all of them steered by the centre; in 3-D it works on slices, the last axis stays.

    Args:
        in_chans: channels of the input.
        num_classes: classes, background included.
        dims: 2, or 3 with kernels and pooling that leave the last axis alone.
        widths: channels of the four levels and of the centre.
        mode, stride: see :class:`zoo.medical.grid_attention.GridGate`.
        norm: batch normalisation in the convolution blocks.
        transposed: enlarge by transposed convolutions.

    Raises:
        ValueError: an argument outside the above; an input whose first two sizes are no multiples of 16.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        dims: int = 3,
        widths: Sequence[int] = WIDTHS,
        mode: str = "sigmoid",
        stride: int | Sequence[int] = 2,
        norm: bool = True,
        transposed: bool = False,
    ):
        super().__init__()
        check_dims(dims)
        _check_widths(widths)
        self.in_chans, self.num_classes, self.dims = in_chans, num_classes, dims
        kernel, factors = (3, 3, 1)[:dims], (2, 2, 1)[:dims]
        self.size_multiple = (16, 16, 1)[:dims]
        self.encoder = _Encoder(in_chans, widths, dims, kernel, factors, norm)
        self.gating = conv_unit(dims, widths[4], widths[3], 1, norm)
        self.gates = nn.ModuleList(GridGate(w, widths[3], w, dims, mode, stride) for w in widths[1:4])
        pairs = zip(widths[:-1], widths[1:])
        self.up = nn.ModuleList(UpBlock(b, a, dims, factors, kernel, norm, transposed) for a, b in pairs)
        self.final = CONV[dims](widths[0], num_classes, 1)
        init_kaiming(self)

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits ``[B, num_classes, ...]`` of ``x [B, in_chans, ...]``; on demand attention of levels 2 to 4 too."""
        check_divisible(x, self.size_multiple, self.in_chans)
        levels, y = self.encoder(x)
        gate = self.gating(y)
        attention = []
        for i, module in enumerate(self.gates, 1):
            levels[i], weights = module(levels[i], gate)
            attention.append(weights)
        for i in (3, 2, 1, 0):
            y = self.up[i](levels[i], y)
        logits = self.final(y)
        return (logits, attention) if return_attention else logits
