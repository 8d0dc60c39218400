"""What the families of the neighbourhood, super token and large-kernel mixers share.

:class:`LevelTrunk` is a pyramid (NAT, DiNAT, STViT), :class:`LayerTrunk` a stack of blocks of one width (isotropic NAT,
LKCA): the loop over the blocks, the classifier's parts, the layer groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from zoo.backbones.base import Backbone


class Level(nn.Module):
    """The blocks of a stage, and the downsampling to the next (None after the last)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class LevelTrunk(Backbone):
    """A patch embedding, then levels of blocks on maps ``[B, H, W, C]``.

    A subclass sets ``patch_embed`` and ``levels``, calls :meth:`_finish`, and defines :meth:`_make_head`,
    :meth:`forward_head` and :meth:`init_weights`. ``head_parts`` names the modules of the classifier, the last linear
    layer last; all are None where ``num_classes`` is 0.
    """

    head_parts: tuple[str, ...] = ("norm", "head")
    patch_embed: nn.Module
    levels: Any  # ModuleList of Level

    def _finish(self, depths: Sequence[int]) -> None:
        """Add the head, initialise, freeze."""
        self.depths = tuple(depths)
        self._make_head()
        self.apply(self.init_weights)
        self.freeze()

    def _make_head(self) -> None:
        """Set the modules of ``head_parts``."""
        raise NotImplementedError

    @staticmethod
    def init_weights(m: nn.Module) -> None:
        """Initialise a module's own parameters: linear layers from a truncated normal distribution."""
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        x = self.patch_embed(x)  # [B, H, W, C] from here on
        for level in self.levels:
            for block in level.blocks:
                x = self.run_block(block, x)
            maps.append(x.permute(0, 3, 1, 2))
            if level.downsample is not None:
                x = level.downsample(x)
        return maps, x

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        like = next(self.parameters())
        old = {name: getattr(self, name) for name in self.head_parts}
        self.num_classes = num_classes
        self._make_head()
        if not num_classes:
            return
        for name in self.head_parts:
            part = getattr(self, name)
            if name != self.head_parts[-1] and old[name] is not None:
                setattr(self, name, old[name])
            else:
                part.apply(self.init_weights)
                part.to(like.device, like.dtype).train(self.training)

    def stage_modules(self) -> list[list[nn.Module]]:
        stages: list[list[nn.Module]] = [[self.patch_embed]]
        before: list[nn.Module] = []  # a downsampling belongs to the stage that it leads to
        for level in self.levels:
            stages.append([*before, level.blocks])
            before = [] if level.downsample is None else [level.downsample]
        return stages

    def num_layers(self) -> int:
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "patch_embed":
            return 0
        if part != "levels":
            return self.num_layers() - 1
        level = int(rest[0])
        if rest[1] == "downsample":
            return sum(self.depths[: level + 1]) + 1
        return sum(self.depths[:level]) + int(rest[2]) + 1


class LayerTrunk(LevelTrunk):
    """A patch embedding, then ``layers`` of one width; every block is a stage."""

    layers: Any  # ModuleList of blocks

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        x = self.patch_embed(x)  # [B, H, W, C] from here on
        for block in self.layers:
            x = self.run_block(block, x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps, x

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.patch_embed], *([block] for block in self.layers)]

    def layer_id(self, name: str) -> int:
        if name.startswith("patch_embed"):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("layers") else self.num_layers() - 1
