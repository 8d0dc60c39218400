"""A detector: a backbone, and a network of the DETR family over its maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.images import pad_images
from zoo.registry import MODELS, accepted_arguments, build, resolve


class Detector(nn.Module):
    """Images in, raw predictions out.

    Args:
        backbone: spec of a backbone that gives maps: one of the zoo's, or
            :class:`zoo.detection.resnet.ResNetBackbone`. It has ``out_channels`` and gives one map for each.
        network: spec of a network over them, such as :class:`zoo.detection.deformable_detr.DeformableDETR`; it is built
            with ``channels=`` those of the backbone.
        num_classes: classes, in the place of the network's own number.
        encoder_mixer: one of the zoo's mixers in the place of the encoder's self-attention; see
            :func:`zoo.detection.encoder_mixer.replace_encoder_mixer`.
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
        encoder_mixer: Any = None,
        network_options: Mapping[str, Any] | None = None,
        backbone_weights: str | os.PathLike[str] | None = None,
    ):
        super().__init__()
        self.backbone = build(_giving_maps(backbone), MODELS)
        if getattr(self.backbone, "num_classes", 0):
            raise ValueError("the backbone has a classifier; a detector's gives maps (num_classes=0)")
        if not isinstance(network, nn.Module):
            network = dict(network) if isinstance(network, Mapping) else {"type": network}
            network |= dict(network_options or {}) | ({} if num_classes is None else {"num_classes": num_classes})
        self.network = build(network, MODELS, channels=tuple(self.backbone.out_channels))
        self.num_classes: int = self.network.num_classes
        if num_classes not in (None, self.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the network has {self.num_classes}")
        if encoder_mixer is not None:
            from zoo.detection.encoder_mixer import replace_encoder_mixer

            replace_encoder_mixer(self.network, encoder_mixer)
        if backbone_weights is not None:
            from zoo.weights.load import load_weights

            load_weights(self.backbone, backbone_weights, strict=False, adapt=True)

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


def _giving_maps(spec: Any) -> Any:
    """A spec of one of the zoo's backbones without its classifier; others, and ready modules, stay as they are."""
    if isinstance(spec, nn.Module):
        return spec
    spec = dict(spec) if isinstance(spec, Mapping) else {"type": spec}
    kind = resolve(spec["type"], MODELS)
    takes, _ = accepted_arguments(kind)
    return {"num_classes": 0, **spec} if "num_classes" in takes else spec
