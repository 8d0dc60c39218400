"""What heads of semantic networks consist of: convolution with a chosen norm, and convolutions of enlarged maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.token_linear import Pointwise, token_linear

#: From so many channels on a convolution at full size is slower than moving nine times the channels of a map that is
#: half as high and wide.
_MANY = 256
NORMS = ("bn", "sync_bn", "gn")


def make_norm(norm: str, dim: int) -> nn.Module:
    """A norm over ``dim`` channels.

    Args:
        norm: "bn" (batch), "sync_bn" (batch, over all processes) or "gn" (groups of channels: 32, or as many as divide
            ``dim`` below that).

    Raises:
        ValueError: another name.
    """
    if norm == "bn":
        return nn.BatchNorm2d(dim)
    if norm == "sync_bn":
        return nn.SyncBatchNorm(dim)
    if norm == "gn":
        return nn.GroupNorm(next(g for g in range(min(32, dim), 0, -1) if dim % g == 0), dim)
    raise ValueError(f"norm={norm!r}: accepted are {', '.join(NORMS)}")


class ConvNorm(nn.Module):
    """Convolution without bias, norm, ReLU: ``[B, dim, H, W] -> [B, out_dim, H, W]``.

    Args:
        dim, out_dim: channels.
        kernel: pixels a side, odd.
        norm: see :func:`make_norm`.
        dilation: of the convolution.
    """

    def __init__(self, dim: int, out_dim: int, kernel: int = 1, norm: str = "bn", dilation: int = 1):
        super().__init__()
        padding = kernel // 2 * dilation
        if kernel == 1:
            self.conv: nn.Conv2d = Pointwise(dim, out_dim, bias=False)
        else:
            self.conv = nn.Conv2d(dim, out_dim, kernel, padding=padding, dilation=dilation, bias=False)
        self.norm = make_norm(norm, out_dim)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)

    def of_enlarged(self, maps: Sequence[Tensor]) -> Tensor:
        """The same of the concatenation of maps that are first enlarged to the first one's size."""
        return F.relu(self.norm(conv_of_enlarged(maps, self.conv.weight)), inplace=True)


class SegmentationHead(nn.Module):
    """Base of the heads: maps ``[B, C_i, H_i, W_i]`` to logits ``[B, num_classes, h, w]``.

    Args:
        channels: channels C_i of the maps.
        num_classes: classes.
        dim: channels that the classifier reads.
        dropout: probability of dropping one of them, for an image, in training.

    Raises:
        ValueError: no maps, no classes.
    """

    #: arguments that a head takes of the network around it
    takes: ClassVar[tuple[str, ...]] = ("channels", "num_classes")

    def __init__(self, channels: Sequence[int], num_classes: int, dim: int, dropout: float = 0.0):
        super().__init__()
        if not channels:
            raise ValueError("channels is empty: at least one map is needed")
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: accepted are whole numbers from 1")
        self.channels, self.num_classes = tuple(channels), num_classes
        self.dropout = nn.Dropout2d(dropout) if dropout > 0 else None
        self.classifier = Pointwise(dim, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def check_maps(self, maps: Sequence[Tensor]) -> None:
        """Raise ValueError unless the maps have the channels that the head was built for."""
        found = tuple(m.shape[1] for m in maps)
        if found != self.channels:
            raise ValueError(
                f"{type(self).__name__} was built for maps of {self.channels} channels and got maps of {found}: "
                f"backbone and head do not fit"
            )

    def classify(self, x: Tensor) -> Tensor:
        """Logits of the last map."""
        return self.classifier(x if self.dropout is None else self.dropout(x))


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, half-pixel centres; the map itself where it has the size."""
    if x.shape[2] == size[0] and x.shape[3] == size[1]:
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def conv_of_enlarged(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Convolution (3x3, zero padding, no bias) of the concatenation of maps that are first enlarged to one size.

    For maps that are much smaller than the first the sum runs in another order than in
    ``conv(cat([enlarge(m) for m in maps]))``: channels are mixed on the small map, for each of the nine positions of
    the kernel, and what comes out is enlarged and shifted, along the columns and then along the rows. A map of a
    quarter of the height and width costs a sixteenth of the multiplications.

    Args:
        maps: ``[B, C_i, h_i, w_i]``; the first has the size of the result.
        weight: ``[K, sum of C_i, 3, 3]``.

    Returns:
        ``[B, K, h_0, w_0]``.
    """
    size = maps[0].shape[-2:]
    weights = weight.split([m.shape[1] for m in maps], dim=1)
    small = [i for i, m in enumerate(maps) if _pays(m, size)]
    large = [i for i in range(len(maps)) if i not in small]
    joined = torch.cat([enlarge(maps[i], size) for i in large], 1)
    result = F.conv2d(joined, torch.cat([weights[i] for i in large], 1), padding=1)
    for i in small:
        result = result + _conv_of_one(maps[i], weights[i], size)
    return result


def _pays(x: Tensor, size: Sequence[int]) -> bool:
    """Whether mixing the channels on the small map is faster: what is saved grows with the square of the channels."""
    _, C, h, w = x.shape
    return size[0] * size[1] >= (4 if C >= _MANY else 9) * h * w


def _conv_of_one(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    (B, C, h, w), (H, W), K = x.shape, size, weight.shape[0]
    tokens = x.permute(0, 2, 3, 1).reshape(B, h * w, C)
    down, right = _shifted(x, h, H), _shifted(x, w, W)
    total = None  # [B, H, w * 3 columns of the kernel * K]
    for i in range(3):
        mixed = token_linear(tokens, weight[:, :, i].permute(2, 0, 1).reshape(3 * K, C)).view(B, h, w * 3 * K)
        rows = down[i].mT.expand(B, H, h)
        total = torch.bmm(rows, mixed) if total is None else torch.baddbmm(total, rows, mixed)
    assert total is not None
    wide = right.permute(2, 1, 0).reshape(W, w * 3) @ total.reshape(B * H, w * 3, K)
    return wide.reshape(B, H, W, K).permute(0, 3, 1, 2)


def _shifted(like: Tensor, short: int, long: int) -> Tensor:
    """``[3, short, long]``: linear interpolation of ``short`` values to ``long``, read one to the left, in place, one
    to the right; 0 beyond the ends."""
    exact = torch.float64 if like.dtype == torch.float64 else torch.float32
    eye = torch.eye(short, dtype=exact, device=like.device)
    matrix = F.interpolate(eye[None], size=long, mode="linear", align_corners=False)[0]
    matrix = F.pad(matrix, (1, 1)).to(like.dtype)
    return torch.stack([matrix[:, i : i + long] for i in range(3)])
