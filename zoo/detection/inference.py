"""Predictions of a detector: its typed result, and the pipeline from a name, a config or a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from zoo.data.masks import compress_masks, decode_masks, mask_to_polygons
from zoo.inference.pipeline import Predictor, Sample
from zoo.inference.predictor_source import PredictorSource
from zoo.inference.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


@dataclass
class DetectionResult(Result):
    """What a detector says of one image; rows are objects, best first.

    Attributes:
        boxes: float ``[N, 4]`` corners (x0, y0, x1, y1) in pixels of the image.
        labels: class index of each.
        names: class name of each.
        scores: float ``[N]`` between 0 and 1.
        category_ids: what the data calls the classes.
        segmentations: the masks as COCO's compressed run lengths; None where the model predicts boxes only.
        with_polygons: outlines rather than run lengths go into JSON (run lengths are exact, outlines to a quarter of
            a pixel).
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    segmentations: list[dict[str, Any]] | None = None
    with_polygons: bool = False

    @property
    def masks(self) -> np.ndarray | None:
        """Bool ``[N, H, W]`` of the image's size; None where the model predicts boxes only."""
        if self.segmentations is None or self.size is None:
            return None
        return decode_masks(self.segmentations, *self.size)

    def polygons(self) -> list[list[list[float]]]:
        """The outlines of each object, ``[[x0, y0, x1, y1, ...], ...]`` in pixels: one for each connected part.

        Raises:
            ValueError: the model predicts boxes only.
        """
        masks = self.masks
        if masks is None:
            raise ValueError(f"{self.source} has no masks: the model predicts boxes only")
        return [mask_to_polygons(mask) for mask in masks]

    def _shapes(self) -> list[dict[str, Any]]:
        """``segmentation`` of each object as it goes into JSON, or nothing."""
        if self.segmentations is None:
            return [{}] * len(self)
        return [{"segmentation": s} for s in (self.polygons() if self.with_polygons else self.segmentations)]

    def __len__(self) -> int:
        return len(self.labels)

    def body(self) -> dict[str, Any]:
        return {"size": None if self.size is None else list(self.size), "objects": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One row an object: ``box`` (corners), ``label``, ``name``, ``score``, and ``segmentation`` with masks."""
        boxes = [[round(float(v), 2) for v in box] for box in self.boxes]
        return [
            {"box": box, "label": label, "name": name, "score": score, **shape}
            for box, label, name, score, shape in zip(boxes, self.labels, self.names, self.scores, self._shapes())
        ]

    def coco_entries(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file, with the category ids that the detector was trained with."""
        entries = []
        rows = zip(self.boxes.tolist(), self.category_ids, self.scores, self._shapes())
        for (x0, y0, x1, y1), category, score, shape in rows:
            box = [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)]
            entries.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score, **shape})
        return entries

    def draw(self) -> Image:
        """The image with its masks, boxes, names and scores."""
        import PIL.Image

        from zoo.viz.detection import draw_boxes

        boxes = self.boxes.tolist()
        return PIL.Image.fromarray(draw_boxes(self.image, boxes, self.labels, self.names, self.scores, self.masks))


class DetectionPredictor(Predictor[DetectionResult]):
    """A detector with its preprocessing.

    Args:
        model: the detection model.
        transform: arguments of :func:`zoo.data.detection_transforms.build_detection_transforms` (``size``,
            ``max_size``, ``square``).
        category_ids: what the data calls the classes; their indices by default.
        **options: of :class:`zoo.inference.pipeline.Predictor`.
    """

    task = "detection"
    options: ClassVar[dict[str, Any]] = {"score_threshold": 0.3, "max_detections": 100, "polygons": False}

    def __init__(
        self,
        model: Any,
        transform: Mapping[str, Any] | None = None,
        *,
        category_ids: Sequence[int] | None = None,
        name: str = "",
        **options: Any,
    ):
        from zoo.data.detection_transforms import build_detection_transforms

        normalise = model.data_preprocessor
        given = {k: [v / 255 for v in getattr(normalise, k).flatten().tolist()] for k in ("mean", "std")}
        super().__init__(_Raw(model.detector), **{**given, **options})
        self.model, self.name = model, name
        self.transform_spec = {**(transform or {}), "train": False}
        self.transform = build_detection_transforms(**self.transform_spec)
        self.category_ids = list(range(model.num_classes)) if category_ids is None else [int(c) for c in category_ids]

    def check_options(self, **options: Any) -> None:
        if not 0 <= options["score_threshold"] <= 1:
            raise ValueError(f"score_threshold={options['score_threshold']}: accepted are numbers from 0 to 1")
        if options["max_detections"] < 1:
            raise ValueError(f"max_detections={options['max_detections']}: accepted are 1 and above")

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, None]:
        return np.ascontiguousarray(self.transform(image)["image"]), None

    def results(self, outputs: Any, samples: Sequence[Sample], **options: Any) -> list[DetectionResult]:
        from zoo.layers.precision import as_float

        sizes = torch.tensor([s.size for s in samples], device=self.device)
        return [self.result(s, f, **options) for s, f in zip(samples, self.postprocess(as_float(outputs), sizes))]

    def postprocess(self, outputs: Any, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Boxes as corners in pixels, labels, scores and masks of each image, from what the network gave."""
        return self.model.postprocess(outputs, sizes)

    def result(self, sample: Sample, found: Mapping[str, Tensor], **options: Any) -> DetectionResult:
        """The result of one image: clipped boxes above the threshold, best first."""
        assert sample.size is not None
        height, width = sample.size
        boxes = torch.minimum(found["boxes"].clamp(min=0), found["boxes"].new_tensor([width, height, width, height]))
        kept = (found["scores"] >= options["score_threshold"]) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        order = found["scores"][kept].argsort(descending=True, stable=True)[: options["max_detections"]]
        masks = found["masks"][kept][order].cpu().numpy() if "masks" in found else None
        boxes, scores, labels = (v[kept][order].cpu() for v in (boxes, found["scores"], found["labels"]))
        indices = labels.tolist()
        return DetectionResult(
            sample.item.source,
            frame=sample.item.frame,
            size=sample.size,
            boxes=boxes.numpy(),
            labels=indices,
            names=[self.class_name(i) for i in indices],
            scores=scores.tolist(),
            category_ids=[self.category_ids[i] if i < len(self.category_ids) else i for i in indices],
            segmentations=None if masks is None else compress_masks(masks),
            with_polygons=bool(options.get("polygons")),
        )

    def failed(self, sample: Sample) -> DetectionResult:
        return DetectionResult(sample.item.source, frame=sample.item.frame, error=str(sample.error))

    def for_export(self) -> DetectionPredictor:
        """The same detector over squares: a file takes images of one size."""
        from zoo.detection.export import square_predictor

        return square_predictor(self)

    def draw_attention(self, image: np.ndarray, *, most: int = 6, layer: int = -1) -> Figure:
        """Where the best queries look in a decoder layer: sampling points, or the attention over the last map as heat.

        Args:
            image: RGB uint8 ``[H, W, 3]``.
            most: queries to draw.
            layer: number of the decoder layer.

        Raises:
            ValueError: the network has no such layer, or none whose attention can be read.
        """
        from zoo.detection.attention import recording
        from zoo.detection.boxes import cxcywh_to_xyxy
        from zoo.viz.detection import draw_query_attention

        with recording(self.model.detector.network) as recorded:
            outputs = self.forward([self.prepare(image)[0]])
        if not -len(recorded.layers) <= layer < len(recorded.layers):
            raise ValueError(f"layer={layer}: the decoder has {len(recorded.layers)} layers")
        seen = recorded.layers[layer]
        logits = outputs["pred_logits"][0].float()
        softmax = logits.shape[-1] == self.model.num_classes + 1  # the last class is "no object"
        scores, labels = (logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()).max(-1)
        best = scores.topk(min(most, len(scores))).indices
        height, width = image.shape[:2]
        corners = cxcywh_to_xyxy(outputs["pred_boxes"][0].float()[best])
        boxes = (corners * corners.new_tensor([width, height, width, height])).cpu().numpy()
        names = [f"{self.class_name(int(labels[q]))} {float(scores[q]):.2f}" for q in best]
        weights = seen.weights[0].float()[best].cpu().numpy()
        if seen.points is not None:
            points = seen.points[0].float()[best].cpu().numpy()
            return draw_query_attention(image, boxes, names, points=points, weights=weights)
        maps = weights.reshape(len(best), *outputs["masks"][-1].shape[-2:])
        return draw_query_attention(image, boxes, names, maps=maps)


class _Raw(nn.Module):
    """A detector as a map from normalised images of one size to its outputs."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> dict[str, Any]:
        return self.detector(images)


def from_export(network: Any, facts: dict[str, Any], **options: Any) -> DetectionPredictor:
    """A predictor around an exported detector; ``facts`` are what its file records."""
    from zoo.detection.export import ExportedDetector

    return ExportedDetector(network, facts, **options)


def load_predictor(model: Any, weights: str | os.PathLike[str] | None = None, **options: Any) -> DetectionPredictor:
    """A :class:`DetectionPredictor` of a detector's name, a config or a model.

    Raises:
        UnknownNameError, FileNotFoundError: no such model or config.
        CheckpointError, WeightsUnavailableError: the weights cannot be had or do not fit.
        ValueError: a config without weights.
    """
    return _source().load(model, weights, options)


def untrained_predictor(
    model: str | os.PathLike[str], *, num_classes: int | None = None, **options: Any
) -> DetectionPredictor:
    """A :class:`DetectionPredictor` as initialised with seed 0, on the CPU."""
    return _source().untrained(model, num_classes, options)


def _source() -> PredictorSource[DetectionPredictor]:
    from zoo.detection.model import DetectionModel

    return PredictorSource(DetectionModel, _predictor, _transform, _config_transform, _recorded, input_size=800)


def _predictor(model: Any, transform: Mapping[str, Any], options: dict[str, Any]) -> DetectionPredictor:
    options = dict(options)
    size = options.pop("size", None)
    if size is not None:
        transform = {**transform, **_transform(size)}
    return DetectionPredictor(model, transform, **options)


def _transform(size: int) -> dict[str, Any]:
    """The family's evaluation at another shorter side."""
    return {"size": size, "max_size": round(size * 1333 / 800)}


def _config_transform(cfg: Any) -> dict[str, Any]:
    given = cfg.test_dataloader.dataset.get("transform")
    return {} if given is None else {k: v for k, v in given.to_dict().items() if k != "train"}


def _recorded(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of ours says of its classes, as arguments of the predictor."""
    named = meta.get("dataset_meta") or {}
    if not named.get("classes"):
        return {}
    return {"classes": list(named["classes"]), "category_ids": list(named.get("category_ids") or []) or None}
