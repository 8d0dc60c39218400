"""A network that classifies masks: a backbone, and MaskFormer or Mask2Former over its maps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.registry import MODELS, build
from zoo.segmentation.backbone import build_backbone, build_pyramid


class MaskSegmenter(nn.Module):
    """Images in, classes and masks out.

    Args:
        backbone: spec of a backbone, see :func:`zoo.segmentation.backbone.build_backbone`; its maps go from fine to
            coarse. Where all have one stride (plain vision transformers), a
            :class:`~zoo.segmentation.backbone.SimplePyramid` makes four of them.
        network: spec of a network over them, such as :class:`zoo.segmentation.mask2former.Mask2Former`; it is built
            with ``channels=`` those of the backbone.
        num_classes: classes, in the place of the network's own number.
        network_options: arguments of the network that win over those in ``network``.
        backbone_weights: checkpoint of the backbone alone, with or without its classifier.

    Raises:
        ValueError: the backbone gives no maps.
    """

    def __init__(
        self,
        backbone: Any,
        network: Any,
        num_classes: int | None = None,
        network_options: Mapping[str, Any] | None = None,
        backbone_weights: str | os.PathLike[str] | None = None,
    ):
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.pyramid = build_pyramid(self.backbone, "gn")
        source: Any = self.backbone if self.pyramid is None else self.pyramid
        if not isinstance(network, nn.Module):
            network = dict(network) if isinstance(network, Mapping) else {"type": network}
            network |= dict(network_options or {}) | ({} if num_classes is None else {"num_classes": num_classes})
        self.network = build(network, MODELS, channels=tuple(source.out_channels))
        self.num_classes: int = self.network.num_classes
        if num_classes not in (None, self.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the network has {self.num_classes}")
        if backbone_weights is not None:
            from zoo.weights.load import load_weights

            load_weights(self.backbone, backbone_weights, strict=False, adapt=True)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Images ``[B, 3, H, W]`` to ``class_logits``, ``mask_logits`` and, in training, ``aux_outputs``."""
        maps = self.backbone(images)
        return self.network(list(maps if self.pyramid is None else self.pyramid(maps)))
