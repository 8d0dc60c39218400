"""Detectors as one graph, post-processing included, and predictions from such a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.inference import DetectionPredictor
from zoo.detection.postprocess import best_of_pairs, best_of_queries, best_pairs
from zoo.inference.pipeline import Predictor

#: Two scores nearer than this may change places, or the last one kept its, between two runtimes.
_TIE = 1e-5


class DetectorGraph(nn.Module):
    """Normalised images to scores, labels and boxes, best first.

    Args:
        model: a :class:`zoo.detection.model.DetectionModel`.

    Raises:
        ValueError: its post-processing is not one of the family's, or drops overlapping boxes, which leaves another
            number of boxes for each image.
    """

    def __init__(self, model: Any):
        super().__init__()
        given = model.postprocess
        function, options = (given.func, given.keywords) if isinstance(given, partial) else (given, {})
        if function not in (best_of_pairs, best_of_queries):
            raise ValueError(f"postprocess={getattr(function, '__name__', function)} cannot be exported")
        if options.get("nms_threshold") is not None:
            raise ValueError("nms_threshold cannot be exported: it leaves another number of boxes for each image")
        self.detector = model.detector
        self.softmax = function is best_of_queries
        self.count = options.get("count", 100)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images ``[B, 3, h, w]`` to scores ``[B, K]``, labels ``[B, K]`` and corners in 0 ... 1 ``[B, K, 4]``."""
        outputs = self.detector(images)
        corners = cxcywh_to_xyxy(outputs["pred_boxes"])
        if self.softmax:
            scores, labels = outputs["pred_logits"].softmax(-1)[..., :-1].max(-1)
            scores, query = scores.sort(dim=1, descending=True)
            labels = labels.gather(1, query)
        else:
            scores, labels, query = best_pairs(outputs["pred_logits"], self.count)
        return scores, labels, corners.gather(1, query[..., None].expand(-1, -1, 4)).clamp(0, 1)


def square_predictor(predictor: DetectionPredictor) -> DetectionPredictor:
    """The predictor of a detector that sees every image as a square of the size of its shorter side."""
    spec = predictor.transform_spec
    if spec.get("square"):
        return _Square(predictor, spec)
    size = spec.get("size", 800)
    return _Square(predictor, {"size": size if isinstance(size, int) else min(size), "square": True})


class _Square(DetectionPredictor):
    def __init__(self, other: DetectionPredictor, transform: Mapping[str, Any]):
        super().__init__(
            other.model,
            {k: v for k, v in transform.items() if k != "train"},
            category_ids=other.category_ids,
            name=other.name,
            classes=other.classes,
            device="cpu",
        )

    def export_network(self) -> nn.Module:
        return DetectorGraph(self.model)

    def export_facts(self) -> dict[str, Any]:
        return {"category_ids": self.category_ids}

    @staticmethod
    def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        return detections_differ(found, expected)


class ExportedDetector(DetectionPredictor):
    """Predictions of an exported detector.

    Args:
        network: images to scores, labels and boxes, as :class:`DetectorGraph`.
        facts: what its file records.
        **options: of :class:`zoo.inference.pipeline.Predictor`.
    """

    def __init__(self, network: Callable[[Tensor], Any], facts: Mapping[str, Any], **options: Any):
        from zoo.data.detection_transforms import build_detection_transforms

        own = {"mean": facts["mean"], "std": facts["std"], "classes": facts["classes"]}
        Predictor.__init__(self, network, **{**own, **options})
        self.name = facts["model"]
        self.transform_spec = dict(facts["transform"])
        self.transform = build_detection_transforms(**self.transform_spec)
        self.category_ids = [int(c) for c in facts.get("category_ids") or range(len(facts["classes"] or ()))]

    def postprocess(self, outputs: Any, sizes: Tensor) -> list[dict[str, Tensor]]:
        scale = sizes.flip(1).repeat(1, 2)  # width, height, width, height
        return [
            {"scores": s, "labels": c, "boxes": b * wh.to(b.dtype)}
            for s, c, b, wh in zip(*(o.to(sizes.device) for o in outputs), scale)
        ]

    def draw_attention(self, *args: Any, **options: Any) -> Any:
        raise ValueError("an exported file gives boxes only; draw attention with the model it was made of")


def detections_differ(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far two lists of detections are apart: relative error of the scores, or largest shift of a box.

    Detections whose scores are as good as equal may change places, and the last ones may be others.
    """
    worst = float((found[0] - expected[0]).norm() / expected[0].norm().clamp_min(1e-12))
    for scores, labels, boxes, scores_e, labels_e, boxes_e in zip(*found, *expected):
        same = (labels[:, None] == labels_e) & ((scores[:, None] - scores_e).abs() <= _TIE)
        shift = (boxes[:, None] - boxes_e).abs().amax(-1).masked_fill(~same, float("inf")).amin(1)
        shift = torch.where(scores <= scores_e[-1] + _TIE, shift.nan_to_num(posinf=0.0), shift)
        worst = max(worst, float(shift.max()) if len(shift) else 0.0)
    return worst
