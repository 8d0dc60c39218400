"""CT-Scroll: many labels of a 3-D chest CT, by global and local attention over slabs of three slices.

Imitating Radiological Scrolling: A Global-Local Attention Model for 3D Chest CT Volumes Multi-Label Anomaly
Classification (arXiv 2503.20652). Authors' code: github.com/theodpzz/ct-scroll (no licence file). Here sizes, widths
and the number of slabs are free, where theirs are fixed at 480 x 480, 512 and 80.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.resnet import BasicBlock
from zoo_kernels.dense_attention import dense_attention

DIRECTIONS = ("global", "caudal_cranial", "cranial_caudal")


def visible_slabs(count: int, direction: str, window: int, device: torch.device | None = None) -> Tensor:
    """Which slabs (columns) a slab (row) may see, bool ``[count, count]``.

    Args:
        count: slabs.
        direction: "caudal_cranial", itself and the ``window - 1`` before it, or "cranial_caudal", those after it.
        window: slabs that are seen, itself included.
    """
    place = torch.arange(count, device=device)
    offset = place[None] - place[:, None]  # key - query
    if direction == "caudal_cranial":
        offset = -offset
    return (offset >= 0) & (offset < window)


class ScrollBlock(nn.Module):
    """Pre-norm attention between slabs, and a gated linear unit without a projection back.

    Args:
        dim: channels.
        num_heads: divides ``dim``.
        direction: "global" (all slabs), "caudal_cranial" or "cranial_caudal", see :func:`visible_slabs`.
        window: slabs that a local block sees.
        dropout: of the attention's weights in training.

    Raises:
        ValueError: an unknown direction, heads that do not divide the channels, or a window below 1.
    """

    def __init__(self, dim: int, num_heads: int = 8, direction: str = "global", window: int = 16, dropout: float = 0.1):
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction!r}: accepted are {', '.join(map(repr, DIRECTIONS))}")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: accepted is what divides dim={dim}")
        if window < 1:
            raise ValueError(f"window={window}: accepted is 1 or more")
        self.num_heads, self.direction, self.window, self.dropout = num_heads, direction, window, dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.gated = nn.Linear(dim, 2 * dim, bias=False)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def attend(self, x: Tensor) -> Tensor:
        """Attention between the slabs of ``[B, N, dim]``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, h, N, d]
        visible = None
        if self.direction != "global":
            visible = visible_slabs(x.shape[1], self.direction, self.window, x.device)[None, None]
        if self.training and self.dropout > 0:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=self.dropout)
        else:
            out = dense_attention(q, k, v, bias=visible)
        return self.proj(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, dim]`` to the same shape."""
        x = x + self.attend(self.norm1(x))
        hidden, gate = self.gated(self.norm2(x)).chunk(2, -1)
        return x + hidden * F.gelu(gate)


class SlabEncoder(nn.Sequential):
    """A ResNet of basic blocks from images ``[B, 3, H, W]`` to their last map, of stride 32.

    Args:
        stem: channels of the first convolution.
        planes: channels of the stages.
        layers: blocks of the stages.
    """

    def __init__(
        self, stem: int = 64, planes: Sequence[int] = (64, 128, 256, 512), layers: Sequence[int] = (2, 2, 2, 2)
    ):
        if len(planes) != 4 or len(layers) != 4:
            raise ValueError(f"planes={tuple(planes)}, layers={tuple(layers)}: accepted are four of each")
        parts: list[nn.Module] = [nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)]
        parts.append(nn.MaxPool2d(3, 2, 1))
        chans = stem
        for i, (width, count) in enumerate(zip(planes, layers)):
            stage = []
            for n in range(count):
                stage.append(BasicBlock(chans, width, 2 if i > 0 and n == 0 else 1))
                chans = width
            parts.append(nn.Sequential(*stage))
        super().__init__(*parts)
        self.out_channels = chans


class CTScroll(nn.Module):
    """Classifier of volumes: slabs of three slices are encoded as images, scrolled through and averaged.

    Args:
        num_classes: labels, each of which may be present.
        windows: slabs that the local attention of each block sees; there are as many blocks.
        num_heads: heads.
        stem, planes, layers: see :class:`SlabEncoder`; the last of ``planes`` is the width of the tokens.

    Raises:
        ValueError: an argument outside the above; a volume whose slices are no multiple of 3.
    """

    in_chans = 1

    def __init__(
        self,
        num_classes: int = 18,
        windows: Sequence[int] = (16,),
        num_heads: int = 8,
        stem: int = 64,
        planes: Sequence[int] = (64, 128, 256, 512),
        layers: Sequence[int] = (2, 2, 2, 2),
    ):
        super().__init__()
        self.num_classes = num_classes
        self.features = SlabEncoder(stem, planes, layers)
        dim = self.features.out_channels
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Dropout(0.2))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ScrollBlock(dim, num_heads, direction, window) for direction in DIRECTIONS))
            for window in windows
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(
            nn.Linear(dim, 128), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(128, num_classes)
        )

    def tokens(self, x: Tensor) -> Tensor:
        """Volumes ``[B, 1, 3N, H, W]`` to tokens of their slabs ``[B, N, dim]``, in the order of the slices."""
        if x.dim() != 5 or x.shape[1] != 1 or x.shape[2] < 3 or x.shape[2] % 3:
            raise ValueError(f"the volumes have shape {tuple(x.shape)}: accepted is [B, 1, a multiple of 3, H, W]")
        B, _, D, H, W = x.shape
        maps = self.features(x.reshape(B * (D // 3), 3, H, W))
        y = self.project(maps.mean((2, 3)).view(B, D // 3, -1))
        for block in self.blocks:
            y = block(y)
        return self.norm(y)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of volumes ``[B, 1, 3N, H, W]``; their sigmoids are the probabilities."""
        return self.head(self.tokens(x).mean(1))


def prepare_chest_ct(volume: Tensor, size: Sequence[int] = (240, 480, 480)) -> Tensor:
    """Hounsfield units to the network's range, cropped and padded around the centre.

    Args:
        volume: ``[D, H, W]`` in Hounsfield units, clipped to -1000 ... 200.
        size: slices, rows and columns of the result.

    Returns:
        ``[1, *size]``, float32, from -0.449 (air, and what is padded) to 0.551. An odd voxel is padded at the end.
    """
    if volume.dim() != 3 or len(size) != 3 or min(size) < 1:
        raise ValueError(f"volume of shape {tuple(volume.shape)}, size={tuple(size)}: accepted are three dimensions")
    x = (volume.float().clamp(-1000, 200) + 1000) / 1200 - 0.449
    padding: list[int] = []
    for axis, (have, want) in enumerate(zip(x.shape, size)):
        x = x.narrow(axis, max((have - want) // 2, 0), min(have, want))
        before = max(want - have, 0) // 2
        padding = [before, max(want - have, 0) - before, *padding]
    return F.pad(x, padding, value=-0.449)[None]
