"""The contract of a backbone: an image in, a tuple of feature maps (or logits) out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Backbone(nn.Module):
    """Base of all backbones.

    A subclass builds its stages, calls :meth:`_describe`, and defines :meth:`forward_trunk`, :meth:`forward_head`,
    :meth:`_build_head`, :meth:`stage_modules` and :meth:`layer_id`.

    With ``num_classes == 0`` calling the backbone gives the tuple of maps of ``out_indices``; with more it gives
    logits ``[B, num_classes]``. :meth:`forward_features` and :meth:`forward_classifier` say which explicitly.
    """

    #: channels of the maps of ``out_indices``
    out_channels: tuple[int, ...]
    #: image pixels per position of the maps of ``out_indices``
    strides: tuple[int, ...]
    out_indices: tuple[int, ...]
    num_classes: int
    #: channels that the classifier reads
    num_features: int

    def _describe(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int,
        in_chans: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ) -> None:
        """Record the stages' channels and strides and check the arguments that all backbones share."""
        stages = len(channels)
        out_indices = tuple(range(stages)) if out_indices is None else tuple(out_indices)
        normal = tuple(i + stages if i < 0 else i for i in out_indices)
        if not normal or any(not 0 <= i < stages for i in normal) or list(normal) != sorted(set(normal)):
            raise ValueError(f"out_indices={out_indices}: accepted are increasing stage numbers from 0 to {stages - 1}")
        if not -1 <= frozen_stages <= stages:
            raise ValueError(f"frozen_stages={frozen_stages}: accepted are -1 (none) to {stages} (stem and all stages)")
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features) and above")
        self.stage_channels = tuple(channels)
        self.stage_strides = tuple(strides)
        self.out_indices = normal
        self.out_channels = tuple(channels[i] for i in normal)
        self.strides = tuple(strides[i] for i in normal)
        self.num_classes = num_classes
        self.num_features = channels[-1]
        self.in_chans = in_chans
        self.frozen_stages = frozen_stages
        self.grad_checkpointing = False

    # -- what a family defines ------------------------------------------------------------------------------------

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Any]:
        """Run stem and stages: the map ``[B, C_i, H/s_i, W/s_i]`` of **every** stage, and what the head reads."""
        raise NotImplementedError

    def forward_head(self, trunk: Any) -> Tensor:
        """Logits ``[B, num_classes]`` (pooled features ``[B, num_features]`` when ``num_classes`` is 0)."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layer by one for ``num_classes`` (0: none)."""
        raise NotImplementedError

    def stage_modules(self) -> list[list[nn.Module]]:
        """Modules of the stem (index 0) and of each stage (1 ...), which ``frozen_stages`` freezes from the front."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise decay: 0 for the stem, ``num_layers() - 1`` for the head."""
        raise NotImplementedError

    def num_layers(self) -> int:
        """Number of layer groups, stem and head included."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of parameters besides biases and norms that take no weight decay (position tables, tokens).

        A module lists its own in an attribute ``no_decay``.
        """
        found = set()
        for prefix, module in self.named_modules():
            found |= {f"{prefix}.{name}" if prefix else name for name in getattr(module, "no_decay", ())}
        return found & {name for name, _ in self.named_parameters()}  # a listed parameter may be switched off

    # -- what all families share ----------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits where there is a classifier, maps where there is none (see the class)."""
        return self.forward_classifier(x) if self.num_classes > 0 else self.forward_features(x)

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps ``[B, C_i, H/s_i, W/s_i]`` (sizes rounded up) of ``out_indices``."""
        self.check_image(x)
        maps, _ = self.forward_trunk(x)
        return tuple(maps[i] for i in self.out_indices)

    def forward_classifier(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` by the authors' own head."""
        self.check_image(x)
        _, trunk = self.forward_trunk(x)
        return self.forward_head(trunk)

    def check_image(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is a float image batch ``[B, in_chans, H >= 1, W >= 1]``."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"images have shape {tuple(x.shape)}; "
                f"{type(self).__name__} takes [batch, {self.in_chans}, height, width]"
            )
        if not x.is_floating_point():
            raise ValueError(f"images have dtype {x.dtype}; a floating dtype, normalised, is expected")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def run_block(self, block: nn.Module, *args: Any) -> Any:
        """Call a block, through gradient checkpointing when that is on."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def freeze(self) -> None:
        """Apply ``frozen_stages``: no gradients, and evaluation mode (BatchNorm statistics, drop path) for them."""
        for modules in self.stage_modules()[: self.frozen_stages + 1]:
            for m in modules:
                m.eval()
                m.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if mode and getattr(self, "frozen_stages", -1) >= 0:
            self.freeze()
        return self

    def group_matcher(self) -> dict[str, int]:
        """Layer number of every parameter, for layer-wise learning-rate decay."""
        return {name: self.layer_id(name) for name, _ in self.named_parameters()}
