"""What networks share that have linear attention in some blocks and softmax in the others (Agent, InLine).

Embeddings, stages, classifier, layer groups; the DeiT, PVT, Swin and CSWin forms are in ``hybrid_deit.py`` and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.layers.classifier_head import ClassifierHead
from zoo.layers.padding import pad_chw
from zoo.layers.token_positions import TokenPositions


class ConvEmbed(nn.Module):
    """Convolution, norm, positions: ``[B, C, H, W] -> [B, H', W', C']``.

    Args:
        conv: the convolution.
        norm: a norm over C', or None.
        positions: a table of positions, or None.
        pad_to: the map is first zero-padded at the bottom and right to a multiple of this.
    """

    def __init__(
        self, conv: nn.Module, norm: nn.Module | None = None, positions: TokenPositions | None = None, pad_to: int = 1
    ):
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.positions = positions
        self.pad_to = pad_to

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(pad_chw(x, (self.pad_to, self.pad_to))).permute(0, 2, 3, 1)  # [B, H', W', C']
        if self.norm is not None:
            x = self.norm(x)
        if self.positions is not None:
            size = (x.shape[1], x.shape[2])
            x = self.positions(x.flatten(1, 2), size).unflatten(1, size)
        return x


class HybridPyramid(Backbone):
    """A pyramid whose ``embeds[i]`` (``[B, C, H, W]`` to channels-last) leads to the blocks ``stages[i]``."""

    embeds: nn.ModuleList
    stages: nn.ModuleList
    head: ClassifierHead | None
    output_norms: nn.ModuleList | None

    def _finish(self, depths: list[int], head_norm_eps: float | None, norm_outputs: bool = False) -> None:
        """Add the classifier, or with ``norm_outputs`` a norm on each map, and initialise."""
        if norm_outputs and self.num_classes:
            raise ValueError(f"norm_outputs=True is for features; num_classes={self.num_classes} must be 0 with it")
        self.output_norms = None
        if norm_outputs:
            self.output_norms = nn.ModuleList(nn.LayerNorm(c, eps=head_norm_eps or 1e-5) for c in self.stage_channels)
        self.depths = tuple(depths)
        self.head_norm_eps = head_norm_eps
        self.head = ClassifierHead(self.num_features, self.num_classes, head_norm_eps) if self.num_classes else None
        init_linear(self)
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for i, (embed, stage) in enumerate(zip(self.embeds, self.stages)):
            y = embed(x)  # [B, H, W, C]
            for block in stage.children():
                y = self.run_block(block, y)
            x = y.permute(0, 3, 1, 2)
            maps.append(x if self.output_norms is None else self.output_norms[i](y).permute(0, 3, 1, 2))
        return maps, y.flatten(1, 2)

    def forward_head(self, trunk: Tensor) -> Tensor:
        return trunk.mean(1) if self.head is None else self.head(trunk)

    def reset_classifier(self, num_classes: int) -> None:
        if self.output_norms is not None and num_classes:
            raise ValueError(f"num_classes={num_classes}: a model with norm_outputs has no classifier")
        self.head = replaced_head(self, self.head, num_classes, self.head_norm_eps)
        self.num_classes = num_classes

    def stage_modules(self) -> list[list[nn.Module]]:
        later = [[self.embeds[i], self.stages[i]] for i in range(1, len(self.stages))]
        return [[self.embeds[0]], [self.stages[0]], *later]

    def num_layers(self) -> int:
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "embeds":
            return 0 if rest[0] == "0" else sum(self.depths[: int(rest[0])]) + 1
        if part == "stages":
            return sum(self.depths[: int(rest[0])]) + int(rest[1]) + 1
        return sum(self.depths) + 1


def replaced_head(
    model: Backbone, head: ClassifierHead | None, num_classes: int, norm_eps: float | None
) -> ClassifierHead | None:
    """A head for ``num_classes`` (None for 0) that keeps the norm of ``head``.

    Raises:
        ValueError: a negative number of classes.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
    if not num_classes:
        return None
    new = ClassifierHead(model.num_features, num_classes, norm_eps)
    init_linear(new)
    new.to(next(model.parameters())).train(model.training)
    if head is not None:
        new.norm = head.norm
    return new


def init_linear(model: nn.Module) -> None:
    """Linear layers start at a truncated normal of 0.02, their biases at 0."""
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def block_kinds(attn_type: str, depths: Sequence[int], letters: str = "AB") -> list[str]:
    """The kind of each block of each stage: the first letter for linear attention, the second for softmax.

    Args:
        attn_type: a letter a stage, one of ``letters`` or M; behind them, for M, how many blocks of that stage are of
            the first kind, before the others.
        depths: blocks of each stage.
        letters: the two kinds.

    Raises:
        ValueError: anything else.
    """
    n, linear, softmax = len(depths), letters[0], letters[1]
    kinds, count = attn_type[:n], attn_type[n:]
    if len(kinds) != n or set(kinds) - {linear, softmax, "M"} or ("M" in kinds and not count.isdecimal()):
        raise ValueError(
            f"attn_type={attn_type!r}: accepted are {n} letters {linear} (linear), {softmax} (softmax) or M (mixed), "
            f"and behind them, where there is an M, how many of the stage's blocks are {linear}"
        )
    first = int(count) if "M" in kinds else 0
    return [(linear * first + softmax * depth)[:depth] if a == "M" else a * depth for a, depth in zip(kinds, depths)]


def patch_chain(pixels: tuple[int, int], sizes: list[int], drop_remainder: bool) -> list[tuple[int, int]]:
    """Height and width of the map after each of several patch layers of the given sizes."""
    grids = []
    height, width = pixels
    for size in sizes:
        height, width = (n // size if drop_remainder else -(-n // size) for n in (height, width))
        if not height or not width:
            raise ValueError(f"img_size={pixels} is smaller than the strides {sizes} of the network")
        grids.append((height, width))
    return grids
