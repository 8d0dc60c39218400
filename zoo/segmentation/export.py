"""Segmenters as one graph, and predictions from such a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.inference.pipeline import Predictor
from zoo.segmentation.geometry import semantic_postprocess
from zoo.segmentation.inference import SegmentationPredictor, _Raw

#: Two logits nearer than this, of the largest one, may change places between two runtimes.
_TIE = 1e-3


class LabelGraph(nn.Module):
    """Normalised images to labels of their pixels, and to the logits.

    Args:
        network: normalised images to ``logits``.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[B, 3, H, W]`` to labels int64 ``[B, H, W]`` and logits ``[B, K, h, w]``."""
        logits = self.network(images)["logits"]
        size = (images.shape[2], images.shape[3])
        enlarged = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return enlarged.argmax(1), logits


class MaskGraph(nn.Module):
    """Normalised images to the probabilities of the queries' classes, and to their masks.

    How many objects or segments an image has depends on what is in it, so that the last step, from masks to results, is
    the reader's (:func:`zoo.segmentation.mask_postprocess.mask_postprocess`).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``[B, 3, H, W]`` to class logits ``[B, Q, K + 1]`` and mask logits ``[B, Q, h, w]``."""
        outputs = self.network(images)
        return outputs["class_logits"], outputs["mask_logits"]


def square_predictor(predictor: SegmentationPredictor) -> SegmentationPredictor:
    """The predictor of a segmenter that sees every image as a square.

    Its side is that of ``size``, or of the windows of a model that has them.

    Raises:
        ValueError: there is neither.
    """
    spec = predictor.transform_spec
    size = spec.get("size") or (predictor.windows and predictor.windows[0][0])
    if size is None:
        raise ValueError("the predictor leaves images at their own size, and a file takes one size: give size")
    return _Square(predictor, {"size": int(size), "square": True})


class _Square(SegmentationPredictor):
    def __init__(self, other: SegmentationPredictor, transform: Mapping[str, Any]):
        if transform["size"] % other.divisor:
            raise ValueError(f"size={transform['size']}: the model takes multiples of {other.divisor}")
        super().__init__(
            other.model,
            transform,
            palette=other.palette,
            category_ids=other.category_ids,
            name=other.name,
            classes=other.classes,
            device="cpu",
        )
        self.windows = None
        self.recorded = _recorded_options(self.postprocess) if self.kind == "masks" else None

    def export_network(self) -> nn.Module:
        network = _Raw(self.model.segmenter)
        return LabelGraph(network) if self.kind == "semantic" else MaskGraph(network)

    def export_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "kind": self.kind,
            "num_classes": self.num_classes,
            "palette": [list(c) for c in self.palette],
            "category_ids": self.category_ids,
        }
        return facts if self.recorded is None else {**facts, "postprocess": self.recorded}

    @staticmethod
    def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        if expected[0].dtype == torch.int64:
            return labels_differ(found, expected)
        return Predictor.difference(found, expected)


def _recorded_options(given: Any) -> dict[str, Any]:
    """The options of a post-processing of masks, which a file can record.

    Raises:
        ValueError: it is another function.
    """
    from zoo.segmentation.mask_postprocess import mask_postprocess

    function, options = (given.func, given.keywords) if isinstance(given, partial) else (given, {})
    if function is not mask_postprocess:
        raise ValueError(f"postprocess={getattr(function, '__name__', function)} cannot be recorded in a file")
    return {k: list(v) if isinstance(v, tuple | list) else v for k, v in options.items()}


class ExportedSegmenter(SegmentationPredictor):
    """Predictions of an exported segmenter.

    Args:
        network: images to labels and logits, as :class:`LabelGraph`, or to classes and masks, as :class:`MaskGraph`.
        facts: what its file records.
        **options: of :class:`zoo.inference.pipeline.Predictor`.
    """

    def __init__(self, network: Callable[[Tensor], Any], facts: Mapping[str, Any], **options: Any):
        own = {"mean": facts["mean"], "std": facts["std"], "classes": facts["classes"]}
        Predictor.__init__(self, network, **{**own, **options})
        self.divisor, self.windows = 1, None
        self._describe(
            int(facts["num_classes"]),
            facts["kind"],
            {k: v for k, v in facts["transform"].items() if k != "train"},
            facts["palette"],
            facts["category_ids"],
            facts["model"],
            True,
        )
        if self.kind == "semantic":
            self.postprocess = semantic_postprocess
        else:
            from zoo.segmentation.mask_postprocess import mask_postprocess

            self.postprocess = partial(mask_postprocess, **facts["postprocess"])

    def named(self, outputs: Any) -> dict[str, Tensor]:
        outputs = [o.to(self.device) for o in outputs]
        if self.kind == "semantic":
            return {"logits": outputs[1]}
        return {"class_logits": outputs[0], "mask_logits": outputs[1]}

    def for_export(self) -> SegmentationPredictor:
        return self

    def export_network(self) -> Any:
        return self.network


def labels_differ(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far labels and logits are apart: the logits' relative error, or infinity where a label is another one.

    Pixels whose two largest logits are as good as equal may have either label.
    """
    worst = float((found[1] - expected[1]).norm() / expected[1].norm().clamp_min(1e-12))
    for labels, labels_e, logits in zip(found[0], expected[0], expected[1]):
        wrong = labels != labels_e
        if not wrong.any() or len(logits) == 1:
            continue
        enlarged = F.interpolate(logits[None], size=labels.shape, mode="bilinear", align_corners=False)[0]
        best = enlarged.topk(2, dim=0).values
        if ((best[0] - best[1])[wrong] > _TIE * logits.abs().max()).any():
            return float("inf")
    return worst
