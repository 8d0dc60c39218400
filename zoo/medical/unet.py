"""A plain U-Net in 2-D or 3-D whose enlargement of maps is an argument: window attention, linear, or transposed.

U-Net (arXiv 1505.04597), with the strided convolutions, instance normalisation and anisotropic strides that nnU-Net
(arXiv 1904.08128) gives it. It is the ground on which upsampling methods are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.medical.layers import CONV, NORM, TRANSPOSED, check_dims, resize, to_tuple
from zoo.medical.wau import LinearUpsample, WindowAttentionUpsample

UPSAMPLES = ("wau", "linear", "transposed")
INSTANCE: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class TransposedUpsample(nn.Module):
    """Transposed convolution whose kernel is its stride, cut to the size of the lateral map."""

    def __init__(self, coarse_dim: int, dim: int, stride: Sequence[int], dims: int = 2):
        super().__init__()
        self.up = TRANSPOSED[dims](coarse_dim, dim, tuple(stride), tuple(stride))

    def forward(self, lateral: Tensor, coarse: Tensor) -> Tensor:
        """``[B, C, ...]`` and ``[B, coarse_dim, ...]`` to ``[B, dim, ...]`` at the size of the lateral map."""
        x = self.up(coarse)
        for axis, size in enumerate(lateral.shape[2:], 2):
            x = x.narrow(axis, 0, size)
        return x


def upsample_block(spec: str | Mapping[str, Any], coarse: int, dim: int, stride: Sequence[int], dims: int) -> nn.Module:
    """The block that a name or a dict names: a lateral map ``[B, dim, ...]`` and a coarse one to ``[B, dim, ...]``.

    Raises:
        ValueError: an unknown name, or options that it does not take.
    """
    name = spec if isinstance(spec, str) else spec.get("type", "wau")
    options = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "type"}
    if name not in UPSAMPLES:
        raise ValueError(f"upsample={spec!r}: accepted are {', '.join(map(repr, UPSAMPLES))}")
    if name == "wau":
        return WindowAttentionUpsample(dim, coarse, dim, stride=stride, dims=dims, **options)
    if options:
        raise ValueError(f"upsample={spec!r}: {name!r} takes no options")
    return LinearUpsample(coarse, dim, dims) if name == "linear" else TransposedUpsample(coarse, dim, stride, dims)


class UNet(nn.Module):
    """U-Net of any depth; a level's lateral map and the enlarged map from below are joined and convolved.

    Args:
        in_chans: channels of the input.
        num_classes: classes, background included.
        dims: 2 or 3.
        widths: channels of the levels, from fine to coarse.
        strides: from each level to the next, a number or one for each dimension; 2 everywhere by default.
        upsample: "wau", "linear" or "transposed"; or a dict with "type" and options of
            :class:`zoo.medical.wau.WindowAttentionUpsample` (``num_heads``, ``window``, ``mlp_ratio``).
        norm: "instance" or "batch".
        predictions: levels, from the finest on, that predict; a 1x1 convolution makes the logits of all of them, as in
            Attention U-Net (arXiv 1804.03999). It brings small objects a short way to the coarse levels.

    Raises:
        ValueError: an argument outside the above. Inputs of any size run.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        dims: int = 2,
        widths: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int | Sequence[int]] | None = None,
        upsample: str | Mapping[str, Any] = "wau",
        norm: str = "instance",
        predictions: int = 1,
    ):
        super().__init__()
        check_dims(dims)
        if norm not in ("instance", "batch"):
            raise ValueError(f"norm={norm!r}: accepted are 'instance' and 'batch'")
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths={tuple(widths)}: accepted are two or more positive numbers")
        given = [2] * (len(widths) - 1) if strides is None else list(strides)
        if len(given) != len(widths) - 1:
            raise ValueError(f"strides={given}: accepted are {len(widths) - 1}, one between two levels")
        steps = [to_tuple(s, dims, "strides") for s in given]
        self.in_chans, self.num_classes, self.dims = in_chans, num_classes, dims
        self.norm = norm
        chans = [in_chans, *widths]
        starts = [(1,) * dims, *steps]
        self.encoder = nn.ModuleList(self._block(a, b, s) for a, b, s in zip(chans[:-1], chans[1:], starts))
        pairs = list(zip(widths[:-1], widths[1:], steps))
        self.up = nn.ModuleList(upsample_block(upsample, below, w, s, dims) for w, below, s in pairs)
        self.decoder = nn.ModuleList(self._block(2 * w, w, (1,) * dims) for w, _, _ in pairs)
        self.head = CONV[dims](widths[0], num_classes, 1)
        if not 1 <= predictions < len(widths):
            raise ValueError(f"predictions={predictions}: accepted are 1 to {len(widths) - 1}")
        self.coarse_heads = nn.ModuleList(CONV[dims](w, num_classes, 1) for w in widths[1:predictions])
        self.final = CONV[dims](predictions * num_classes, num_classes, 1) if predictions > 1 else None
        for name, part in self.named_modules():
            if isinstance(part, (nn.Conv2d, nn.Conv3d)) and not name.startswith("up."):
                nn.init.kaiming_normal_(part.weight, a=0.01)  # nnU-Net's
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def _block(self, in_chans: int, out_chans: int, stride: Sequence[int]) -> nn.Sequential:
        parts: list[nn.Module] = []
        for a, s in ((in_chans, tuple(stride)), (out_chans, (1,) * self.dims)):
            parts.append(CONV[self.dims](a, out_chans, 3, s, 1, bias=False))
            if self.norm == "instance":
                parts.append(INSTANCE[self.dims](out_chans, affine=True))
            else:
                parts.append(NORM[self.dims](out_chans))
            parts.append(nn.LeakyReLU(0.01, inplace=True))
        return nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes, ...]`` of ``x [B, in_chans, ...]``."""
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}: accepted is [B, {self.in_chans}] and {self.dims} sizes"
            )
        levels = []
        for block in self.encoder:
            x = block(x)
            levels.append(x)
        coarse: list[Tensor] = []
        for i in reversed(range(len(self.up))):
            x = self.decoder[i](torch.cat([levels[i], self.up[i](levels[i], x)], 1))
            if 0 < i <= len(self.coarse_heads):
                coarse.append(resize(self.coarse_heads[i - 1](x), levels[0].shape[2:]))
        logits = self.head(x)
        return logits if self.final is None else self.final(torch.cat([logits, *coarse[::-1]], 1))
