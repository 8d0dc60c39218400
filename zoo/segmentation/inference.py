"""Predictions of a segmenter: the pipeline from a name, a config or a model to label maps, objects and segments."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.segmentation_transforms import build_segmentation_transforms, fitting_size
from zoo.inference.pipeline import Predictor, Sample
from zoo.inference.predictor_source import PredictorSource
from zoo.inference.results import Results
from zoo.segmentation.geometry import ImageSize, restore_map
from zoo.segmentation.palettes import palette_of
from zoo.segmentation.results import (
    MASK_FORMATS,
    SegmentationResult,
    instances_of,
    narrow_labels,
    segments_of,
)
from zoo.segmentation.sliding import checked_windows, sliding_window
from zoo.segmentation.tta import Augmentation, View, flip_averaged, mean_labels

Windows = tuple[tuple[int, int], tuple[int, int]]


class SegmentationPredictor(Predictor[SegmentationResult]):
    """A segmenter with its preprocessing.

    Args:
        model: the segmentation model.
        transform: arguments of :func:`zoo.data.segmentation_transforms.build_segmentation_transforms` (``size``,
            ``max_size``, ``square``).
        palette: a colour for each class, or the name of a public palette; by default that of the classes' names.
        category_ids: what the data calls the classes; their indices by default.
        name: of the model.
        native: with windows, images are read at their own resolution rather than at ``transform``'s.
        **options: of :class:`zoo.inference.pipeline.Predictor`.
    """

    task = "segmentation"
    #: ``sliding``: windows, as (crop, stride), one number or a dict of both; they see the image at its own resolution
    #: unless the predictor was made with a ``size``. ``tta``: see :meth:`zoo.segmentation.tta.Augmentation.of`. Both
    #: give label maps only. ``masks``: how masks go into JSON, see
    #: :data:`zoo.segmentation.results.MASK_FORMATS`. ``score_threshold``, ``max_detections``: of objects.
    options: ClassVar[dict[str, Any]] = {
        "sliding": None, "tta": None, "masks": "png", "score_threshold": 0.3, "max_detections": 100,
    }  # fmt: skip

    def __init__(
        self,
        model: Any,
        transform: Mapping[str, Any] | None = None,
        *,
        palette: Sequence[Sequence[int]] | str | None = None,
        category_ids: Sequence[int] | None = None,
        name: str = "",
        native: bool = True,
        **options: Any,
    ):
        normalise = model.data_preprocessor
        given = {k: [v / 255 for v in getattr(normalise, k).flatten().tolist()] for k in ("mean", "std")}
        super().__init__(_Raw(model.segmenter, normalise.divisor), **{**given, **options})
        self.model, self.divisor = model, int(normalise.divisor)
        self._describe(model.num_classes, model.kind, transform, palette, category_ids, name, native)
        own = model.test_cfg
        self.windows: Windows | None = (own["crop"], own["stride"]) if own["mode"] == "slide" else None
        self.postprocess: Callable[..., list[dict[str, Any]]] = model.postprocess

    def _describe(
        self,
        num_classes: int,
        kind: str,
        transform: Mapping[str, Any] | None,
        palette: Any,
        category_ids: Sequence[int] | None,
        name: str,
        native: bool,
    ) -> None:
        self.num_classes, self.kind, self.name, self.native = num_classes, kind, name, native
        self.transform_spec = {**(transform or {}), "train": False}
        self.transform = build_segmentation_transforms(**self.transform_spec)
        if self.classes is not None and len(self.classes) != num_classes:
            raise ValueError(f"classes has {len(self.classes)} names, but the model has {num_classes} classes")
        self.names = [self.class_name(k) for k in range(num_classes)]
        self.palette = palette_of(num_classes, self.classes, palette)
        self.category_ids = list(range(num_classes)) if category_ids is None else [int(c) for c in category_ids]
        if len(self.category_ids) != num_classes:
            raise ValueError(f"category_ids has {len(self.category_ids)} entries for {num_classes} classes")
        self._parts: _Parts | None = None

    def check_options(self, **options: Any) -> None:
        if options["masks"] not in MASK_FORMATS:
            raise ValueError(f"masks={options['masks']!r}: accepted are {', '.join(MASK_FORMATS)}")
        if not 0 <= options["score_threshold"] <= 1:
            raise ValueError(f"score_threshold={options['score_threshold']}: accepted are numbers from 0 to 1")
        if options["max_detections"] < 1:
            raise ValueError(f"max_detections={options['max_detections']}: accepted are 1 and above")
        windows_of(options["sliding"])
        Augmentation.of(options["tta"])

    def __call__(  # type: ignore[override]
        self, images: Any, *, batch_size: int | None = None, workers: int | None = None, **options: Any
    ) -> Results[SegmentationResult] | Iterator[SegmentationResult]:
        """Predict, one result an image, in order; see :meth:`zoo.inference.pipeline.Predictor.__call__`.

        Args:
            images: see :func:`zoo.inference.sources.expand`.
            batch_size: images of one size in a step (16 by default) or, with windows, windows (1 by default, 4 on a
                GPU); images come one by one then.
            workers: threads that decode and prepare; one by default with windows, since images may be large.
            **options: of the base class, and :attr:`options`.
        """
        sliding = windows_of(options.get("sliding"))
        windows = sliding or self.windows
        tta = Augmentation.of(options.get("tta"))
        if windows is None and tta is None:
            return super().__call__(images, batch_size=batch_size or 16, workers=workers, **options)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: accepted are 1 and above")
        if batch_size is None:
            batch_size = 1 if self.device.type == "cpu" else 4
        # images are brought to each of their sizes from the original
        spec = {} if sliding is not None and self.native else self.transform_spec
        other = copy.copy(self)
        other.windows, other._parts = windows, _Parts(spec, batch_size)
        return super(SegmentationPredictor, other).__call__(images, batch_size=1, workers=workers or 1, **options)

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, None]:
        if self._parts is not None:
            return image, None
        return np.ascontiguousarray(self.transform(image)[0]), None

    def forward(self, pixels: Sequence[np.ndarray]) -> Any:
        if self._parts is not None:
            return None  # windows and versions of the image are made where its result is
        return super().forward(pixels)

    @torch.inference_mode()
    def results(self, outputs: Any, samples: Sequence[Sample], **options: Any) -> list[SegmentationResult]:
        found: Sequence[Mapping[str, Any]]
        if self._parts is not None:
            found = [{"sem_seg": self._in_parts_of(sample, Augmentation.of(options["tta"]))} for sample in samples]
        else:
            from zoo.layers.precision import as_float

            named = as_float(self.named(outputs))
            for values in named.values():
                if isinstance(values, Tensor) and not values.isfinite().all():
                    names = ", ".join(s.item.source for s in samples)
                    raise FloatingPointError(f"the network gave numbers that are not finite for {names}")
            found = self.postprocess(named, [self._size_of(s) for s in samples])
        return [self.result(sample, f, **options) for sample, f in zip(samples, found)]

    def named(self, outputs: Any) -> dict[str, Tensor]:
        """What the network gives, by the names that post-processing knows."""
        return outputs

    def result(self, sample: Sample, found: Mapping[str, Any], **options: Any) -> SegmentationResult:
        """The result of one image, of what post-processing found."""
        made = SegmentationResult(
            sample.item.source,
            frame=sample.item.frame,
            size=sample.size,
            classes=self.names,
            palette=self.palette,
            category_ids=self.category_ids,
            mask_format=options["masks"],
        )
        if "sem_seg" in found:
            made.label_map = narrow_labels(found["sem_seg"].cpu().numpy(), self.num_classes)
        if "instances" in found:
            made.instances = instances_of(
                found["instances"], float(options["score_threshold"]), int(options["max_detections"])
            )
        if "panoptic" in found:
            made.segments = segments_of(found["panoptic"])
        return made

    def failed(self, sample: Sample) -> SegmentationResult:
        return SegmentationResult(sample.item.source, frame=sample.item.frame, error=str(sample.error))

    # -- windows and versions of an image ------------------------------------------------------------------------------

    def _in_parts_of(self, sample: Sample, tta: Augmentation | None) -> Tensor:
        """:meth:`_labels_in_parts`, with the image's name in errors."""
        try:
            return self._labels_in_parts(sample, tta)
        except Exception as error:
            source = sample.item.source
            raise RuntimeError(f"the network failed on {source}: {type(error).__name__}: {error}") from error

    def _labels_in_parts(self, sample: Sample, tta: Augmentation | None) -> Tensor:
        """Labels ``[H, W]`` of an image that is read by windows, or in several versions."""
        assert sample.pixels is not None
        assert sample.size is not None
        assert self._parts is not None
        image, original, parts = sample.pixels, sample.size, self._parts
        if self.windows is None:
            assert tta is not None
            views = [v for scale in tta.scales for v in self._views(_scaled(image, parts.spec, scale), original, tta)]
            return mean_labels(views, softmax=self.kind == "semantic")
        network: Callable[[Tensor], Tensor] = self.scores
        if tta is not None:
            network = self._probabilities
            network = flip_averaged(network) if tta.flip else network
        crop, stride = self.windows

        def windows(scale: float, output: str) -> Tensor:
            pixels = torch.from_numpy(_scaled(image, parts.spec, scale)).permute(2, 0, 1)[None]
            return sliding_window(
                network, pixels, crop, stride, self.num_classes, output=output, size=original,
                batch=parts.batch,
            )[0]  # fmt: skip

        if tta is None or len(tta.scales) == 1:
            return windows(tta.scales[0] if tta else 1.0, "labels")
        total = windows(tta.scales[0], "logits")
        for scale in tta.scales[1:]:
            total += windows(scale, "logits")
        return total.max(0).indices

    def _views(self, image: np.ndarray, original: tuple[int, int], tta: Augmentation) -> Iterator[View]:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        size = self._image_size(image.shape[:2], original)
        for mirrored in (False, True) if tta.flip else (False,):
            scores = self._class_scores(pixels.flip(-1) if mirrored else pixels)
            yield View(scores[0], size, mirrored)

    def _class_scores(self, pixels: Tensor) -> Tensor:
        """Logits, or scores of mask classification, ``[n, K, h, w]`` of uint8 images ``[n, 3, H, W]``, padding
        included."""
        from zoo.layers.precision import as_float

        x = (pixels.to(self.device).float() / 255 - self.mean) / self.std
        with torch.autocast(self.device.type, dtype=self.amp or torch.bfloat16, enabled=self.amp is not None):
            outputs = as_float(self.named(self._run(x)))
        return outputs["logits"] if self.kind == "semantic" else mask_scores(outputs)

    def scores(self, pixels: Tensor) -> Tensor:
        """Logits (or scores) ``[n, K, h, w]`` of uint8 images ``[n, 3, H, W]``; h, w cover the images alone."""
        scores = self._class_scores(pixels)
        size = self._image_size(pixels.shape[-2:], pixels.shape[-2:])
        if size.padded == size.image:
            return scores
        return torch.stack([restore_map(s, size) for s in scores])

    def _probabilities(self, pixels: Tensor) -> Tensor:
        scores = self.scores(pixels)
        return scores.softmax(1) if self.kind == "semantic" else scores

    def _size_of(self, sample: Sample) -> ImageSize:
        assert sample.pixels is not None
        assert sample.size is not None
        return self._image_size(sample.pixels.shape[:2], sample.size)

    def _image_size(self, image: Sequence[int], original: Sequence[int]) -> ImageSize:
        height, width = (-(-side // self.divisor) * self.divisor for side in image)
        return ImageSize((height, width), (image[0], image[1]), (original[0], original[1]))

    def for_export(self) -> SegmentationPredictor:
        """The same segmenter over squares: a file takes images of one size."""
        from zoo.segmentation.export import square_predictor

        return square_predictor(self)


@dataclass(frozen=True)
class _Parts:
    """How a call reads images by windows or in several versions: the transform's arguments, and windows at once."""

    spec: Mapping[str, Any]
    batch: int


class _Raw(nn.Module):
    """A segmenter as a map from normalised images of one size, which it pads to multiples, to its outputs."""

    def __init__(self, segmenter: nn.Module, divisor: int = 1):
        super().__init__()
        self.segmenter, self.divisor = segmenter, int(divisor)

    def forward(self, images: Tensor) -> dict[str, Any]:
        if self.divisor > 1:
            height, width = images.shape[-2:]
            images = F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor))
        return self.segmenter(images)


def windows_of(value: Any) -> Windows | None:
    """Height and width of windows and of their step, of what a user may give.

    Args:
        value: None, one number, (crop, stride), each one number or two, or a dict of ``crop`` and perhaps ``stride``.

    Raises:
        ValueError: something else, or a step that would leave pixels out.
    """
    if value is None or value is False:
        return None
    if isinstance(value, Mapping):
        if not {"crop"} <= set(value) <= {"crop", "stride"}:
            raise ValueError(f"sliding={dict(value)}: accepted are the keys crop and stride")
        return checked_windows(value["crop"], value.get("stride"))
    if isinstance(value, int) and not isinstance(value, bool):
        return checked_windows(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (1, 2):
        return checked_windows(*value)
    raise ValueError(f"sliding={value!r}: accepted are a window's size, (crop, stride), and a dict of both")


def mask_scores(outputs: Mapping[str, Tensor]) -> Tensor:
    """Scores of the classes ``[B, K, h, w]`` of a network that classifies masks."""
    from zoo.segmentation.mask2former import semantic_scores

    return semantic_scores(outputs)


def _scaled(image: np.ndarray, spec: Mapping[str, Any], factor: float) -> np.ndarray:
    """The image at the size that a transform would give it, times a factor."""
    height, width = image.shape[:2]
    size = spec.get("size")
    if size is not None and spec.get("square"):
        new = (max(1, round(size * factor)),) * 2
    elif size is not None:
        new = fitting_size(height, width, size, spec.get("max_size"), factor)
    else:
        new = (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))
    if new == (height, width):
        return image
    return cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)


def from_export(network: Any, facts: dict[str, Any], **options: Any) -> SegmentationPredictor:
    """A predictor around an exported segmenter; ``facts`` are what its file records."""
    from zoo.segmentation.export import ExportedSegmenter

    return ExportedSegmenter(network, facts, **options)


def load_predictor(model: Any, weights: str | os.PathLike[str] | None = None, **options: Any) -> SegmentationPredictor:
    """A :class:`SegmentationPredictor` of a segmenter's name, a config or a model.

    Raises:
        UnknownNameError, FileNotFoundError: no such model or config.
        CheckpointError, WeightsUnavailableError: the weights cannot be had or do not fit.
        ValueError: a config without weights.
    """
    return _source().load(model, weights, options)


def untrained_predictor(
    model: str | os.PathLike[str], *, num_classes: int | None = None, **options: Any
) -> SegmentationPredictor:
    """A :class:`SegmentationPredictor` as initialised with seed 0, on the CPU."""
    return _source().untrained(model, num_classes, options)


def _source() -> PredictorSource[SegmentationPredictor]:
    from zoo.segmentation.model import SegmentationModel

    return PredictorSource(SegmentationModel, _predictor, _transform, _config_transform, _recorded, input_size=512)


def _predictor(model: Any, transform: Mapping[str, Any], options: dict[str, Any]) -> SegmentationPredictor:
    options = dict(options)
    size = options.pop("size", None)
    if size is not None:
        ratio = transform["max_size"] / transform["size"] if {"size", "max_size"} <= set(transform) else 4
        transform = {**transform, "size": size, "max_size": round(size * ratio)}
        options = {"native": False, **options}
    return SegmentationPredictor(model, transform, **options)


def _transform(size: int) -> dict[str, Any]:
    """The family's evaluation: COCO's for models that are trained on large crops, ADE20K's for others."""
    return {"size": 800, "max_size": 1333} if size >= 1024 else {"size": size, "max_size": 4 * size}


def _config_transform(cfg: Any) -> dict[str, Any]:
    given = cfg.test_dataloader.dataset.get("transform")
    return {} if given is None else {k: v for k, v in given.to_dict().items() if k not in ("train", "recipe")}


def _recorded(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of ours says of its classes, as arguments of the predictor."""
    named = meta.get("dataset_meta") or {}
    if not named.get("classes"):
        return {}
    own = {"classes": list(named["classes"]), "category_ids": list(named.get("category_ids") or []) or None}
    palette = named.get("palette")
    return {**own, "palette": [tuple(c) for c in palette] if palette else None}
