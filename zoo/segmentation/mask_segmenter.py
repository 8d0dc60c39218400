"""A network that classifies masks: a backbone, and MaskFormer or Mask2Former over its maps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.registry import MODELS, accepted_arguments, build, resolve


class MaskSegmenter(nn.Module):
    """Images in, classes and masks out.

    Args:
        backbone: spec of a backbone that gives maps of strides 4 to 32, from fine to coarse: one of the zoo's, timm's
            through :class:`zoo.backbones.timm.TimmBackbone`, or :class:`zoo.detection.resnet.ResNetBackbone`. It has
            ``out_channels`` and gives one map for each.
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
        self.backbone = build(_giving_maps(backbone), MODELS)
        if getattr(self.backbone, "num_classes", 0):
            raise ValueError("the backbone has a classifier; a segmenter's gives maps (num_classes=0)")
        if not isinstance(network, nn.Module):
            network = dict(network) if isinstance(network, Mapping) else {"type": network}
            network |= dict(network_options or {}) | ({} if num_classes is None else {"num_classes": num_classes})
        self.network = build(network, MODELS, channels=tuple(self.backbone.out_channels))
        self.num_classes: int = self.network.num_classes
        if num_classes not in (None, self.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the network has {self.num_classes}")
        if backbone_weights is not None:
            from zoo.weights.load import load_weights

            load_weights(self.backbone, backbone_weights, strict=False, adapt=True)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Images ``[B, 3, H, W]`` to ``class_logits``, ``mask_logits`` and, in training, ``aux_outputs``."""
        return self.network(list(self.backbone(images)))


def _giving_maps(spec: Any) -> Any:
    """A spec of one of the zoo's backbones without its classifier; others, and ready modules, stay as they are."""
    if isinstance(spec, nn.Module):
        return spec
    spec = dict(spec) if isinstance(spec, Mapping) else {"type": spec}
    takes, _ = accepted_arguments(resolve(spec["type"], MODELS))
    return {"num_classes": 0, **spec} if "num_classes" in takes else spec
