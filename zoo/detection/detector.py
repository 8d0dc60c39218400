"""A detector: a backbone, and a network of the DETR family over its maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.images import pad_images
from zoo.registry import MODELS, build


class Detector(nn.Module):
    """Images in, raw predictions out.

    Args:
        backbone: spec of a backbone that gives maps: one of the zoo's, or
            :class:`zoo.detection.resnet.ResNetBackbone`. It has ``out_channels`` and gives one map for each.
        network: spec of a network over them, such as :class:`zoo.detection.deformable_detr.DeformableDETR`; it is built
            with ``channels=`` those of the backbone.
    """

    def __init__(self, backbone: Any, network: Any):
        super().__init__()
        self.backbone = build(backbone, MODELS)
        self.network = build(network, MODELS, channels=tuple(self.backbone.out_channels))

    def forward(
        self, images: Tensor | Sequence[Tensor], mask: Tensor | None = None, targets: Any = None
    ) -> dict[str, Any]:
        """Predict.

        Args:
            images: ``[B, 3, H, W]``, or a list of ``[3, H_i, W_i]`` that is padded here.
            mask: ``[B, H, W]``, true in the padding; None for none (images in a list bring their own).
            targets: for each image ``labels`` and ``boxes``; networks with denoising queries read them in training.

        Returns:
            What the network gives, with ``features``, the backbone's maps.
        """
        if not isinstance(images, Tensor):
            images, mask = pad_images(images)
        if mask is None:
            mask = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool, device=images.device)
        features = list(self.backbone(images))
        return {**self.network(features, mask, targets=targets), "features": features}
