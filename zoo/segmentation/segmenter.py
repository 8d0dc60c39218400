"""A semantic network: a backbone, a head over its maps, and auxiliary heads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.registry import MODELS, UnknownNameError, build, did_you_mean, resolve
from zoo.segmentation.backbone import build_backbone, build_pyramid
from zoo.segmentation.layers import SegmentationHead

#: name -> class; a path, so that only the head is imported that is used
HEADS = {
    "upernet": "zoo.segmentation.upernet.UPerNetHead",
    "semantic_fpn": "zoo.segmentation.semantic_fpn.SemanticFPNHead",
    "segformer": "zoo.segmentation.segformer.SegFormerHead",
    "fcn": "zoo.segmentation.fcn.FCNHead",
}


class Segmenter(nn.Module):
    """Images in, logits out.

    Args:
        backbone: spec of a backbone, see :func:`zoo.segmentation.backbone.build_backbone`. Where all its maps have one
            stride (plain vision transformers), a :class:`~zoo.segmentation.backbone.SimplePyramid` makes four of them.
        head: a name or ``dict(type=..., ...)`` of :data:`HEADS`, or a class; built for the maps it gets.
        num_classes: classes.
        auxiliary: one or more further heads, which are trained too and otherwise not called.
        norm: of the heads and the pyramid that do not say it themselves: "bn", "sync_bn" or "gn".
        backbone_weights: checkpoint of the backbone alone, with or without its classifier.

    Raises:
        ValueError: the backbone gives no maps, or a head does not fit.
    """

    kind = "semantic"

    def __init__(
        self,
        backbone: Any,
        head: Any = "upernet",
        num_classes: int = 150,
        auxiliary: Any = (),
        norm: str = "bn",
        backbone_weights: str | os.PathLike[str] | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = build_backbone(backbone)
        self.pyramid = build_pyramid(self.backbone, norm)
        self.head = self._build_head(head, norm)
        specs = [auxiliary] if isinstance(auxiliary, str | Mapping | nn.Module) else list(auxiliary)
        self.auxiliary = nn.ModuleList(self._build_head(spec, norm) for spec in specs)
        if backbone_weights is not None:
            from zoo.weights.load import load_weights

            load_weights(self.backbone, backbone_weights, strict=False, adapt=True)

    def _build_head(self, spec: Any, norm: str) -> SegmentationHead:
        if isinstance(spec, nn.Module):
            return spec  # type: ignore[return-value]
        spec = dict(spec) if isinstance(spec, Mapping) else {"type": spec}
        source: Any = self.backbone if self.pyramid is None else self.pyramid
        known: dict[str, Any] = {"channels": tuple(source.out_channels), "strides": tuple(source.strides)}
        known["num_classes"] = self.num_classes
        kind: Any = head_class(spec.get("type"))
        given = {k: known[k] for k in getattr(kind, "takes", SegmentationHead.takes)}
        return build({**spec, "type": kind}, MODELS, norm=norm, **given)

    def forward_maps(self, images: Tensor) -> Sequence[Tensor]:
        """The maps that the heads read."""
        maps = self.backbone(images)
        return maps if self.pyramid is None else self.pyramid(maps)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Images ``[B, 3, H, W]`` to ``logits [B, num_classes, h, w]`` and, in training, ``aux``, a list of the same of
        the auxiliary heads."""
        maps = self.forward_maps(images)
        outputs: dict[str, Any] = {"logits": self.head(maps)}
        if self.training and len(self.auxiliary):
            outputs["aux"] = [head(maps) for head in self.auxiliary]
        return outputs


def head_class(kind: Any) -> Any:
    """The class of a head that a name of :data:`HEADS` or a path stands for; classes stay as they are.

    Raises:
        UnknownNameError: with the nearest names.
    """
    if isinstance(kind, str) and "." not in kind and kind not in HEADS:
        hint = did_you_mean(kind, HEADS) or f"; there are {', '.join(HEADS)}"
        raise UnknownNameError(f"unknown segmentation head {kind!r}{hint}")
    return resolve(HEADS.get(kind, kind), MODELS) if isinstance(kind, str) else kind
