"""Heads that predict classes and boxes at every point of every map: RetinaNet's, FCOS's and ATSS's.

Focal Loss for Dense Object Detection (arXiv:1708.02002), FCOS (arXiv:1904.01355), ATSS (arXiv:1912.02424). A head gives
the features of its two branches first and predicts from features, so that something can come in between; what
predictions mean and learn is in :mod:`zoo.detection.dense_tasks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.conv_tower import prediction, tower
from zoo.detection.layers import classifier_bias

#: for each map: ``cls [B, anchors * classes, H, W]``, ``reg [B, anchors * 4, H, W]``, ``centerness [B, 1, H, W]``
Predictions = dict[str, list[Tensor]]


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class DenseHead(nn.Module):
    """Two towers of convolutions, for classes and for boxes.

    Args:
        num_classes: classes.
        dim: channels C.
        strides: of the maps.
        stacked_convs: convolutions of a tower.
        groups: of the group normalisation; None for none.
        bias: convolutions of the towers have a bias; None for one only without norm.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        stacked_convs: int = 4,
        groups: int | None = 32,
        bias: bool | None = None,
    ):
        super().__init__()
        self.num_classes, self.strides = num_classes, tuple(strides)
        self.cls_convs = tower(dim, stacked_convs, groups, bias)
        self.reg_convs = tower(dim, stacked_convs, groups, bias)

    def features(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps ``[B, C, H, W]`` to the features of both branches."""
        return [self.cls_convs(x) for x in maps], [self.reg_convs(x) for x in maps]

    def predict(self, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> Predictions:
        """Features of both branches to predictions."""
        raise NotImplementedError


class RetinaHead(DenseHead):
    """RetinaNet's head; further arguments as :class:`DenseHead`.

    Args:
        num_anchors: anchors at a point.
    """

    def __init__(self, num_classes: int, dim: int = 256, *, num_anchors: int = 9, **options: object):
        super().__init__(num_classes, dim, **options)  # type: ignore[arg-type]
        self.retina_cls = prediction(dim, num_anchors * num_classes, classifier_bias())
        self.retina_reg = prediction(dim, num_anchors * 4)

    def predict(self, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> Predictions:
        return {"cls": [self.retina_cls(x) for x in cls], "reg": [self.retina_reg(x) for x in reg]}


class FCOSHead(DenseHead):
    """FCOS's head; further arguments as :class:`DenseHead`.

    Args:
        norm_on_bbox: distances are counted in strides, and times the stride outside training; otherwise they are
            exponentials of what is predicted.
        centerness_on_reg: the branch of boxes predicts the centerness; otherwise that of classes does.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        *,
        norm_on_bbox: bool = True,
        centerness_on_reg: bool = True,
        **options: object,
    ):
        super().__init__(num_classes, dim, **options)  # type: ignore[arg-type]
        self.norm_on_bbox, self.centerness_on_reg = norm_on_bbox, centerness_on_reg
        self.conv_cls = prediction(dim, num_classes, classifier_bias())
        self.conv_reg = prediction(dim, 4)
        self.conv_centerness = prediction(dim, 1)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)

    def predict(self, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> Predictions:
        distances = []
        for x, scale, stride in zip(reg, self.scales, self.strides):
            d = scale(self.conv_reg(x))
            d = F.relu(d) if self.norm_on_bbox else d.exp()
            distances.append(d * stride if self.norm_on_bbox and not self.training else d)
        centred = reg if self.centerness_on_reg else cls
        return {
            "cls": [self.conv_cls(x) for x in cls],
            "reg": distances,
            "centerness": [self.conv_centerness(x) for x in centred],
        }


class ATSSHead(DenseHead):
    """ATSS's head, with one anchor at a point; arguments as :class:`DenseHead`."""

    def __init__(self, num_classes: int, dim: int = 256, **options: object):
        super().__init__(num_classes, dim, **options)  # type: ignore[arg-type]
        self.atss_cls = prediction(dim, num_classes, classifier_bias())
        self.atss_reg = prediction(dim, 4)
        self.atss_centerness = prediction(dim, 1)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)

    def predict(self, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> Predictions:
        return {
            "cls": [self.atss_cls(x) for x in cls],
            "reg": [scale(self.atss_reg(x)) for x, scale in zip(reg, self.scales)],
            "centerness": [self.atss_centerness(x) for x in reg],
        }
