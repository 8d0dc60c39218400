"""The model that trains, predicts and is evaluated: a detector with its criterion and its way from outputs to boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from zoo.detection.boxes import xyxy_to_cxcywh
from zoo.detection.data_sample import DetDataSample
from zoo.detection.images import pad_images
from zoo.layers.precision import as_float
from zoo.registry import MODELS, build, check_arguments, resolve

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

Predictions = list[dict[str, Tensor]]


class DetPreprocessor(BaseDataPreprocessor):
    """Images of any sizes to the device, normalised and then padded to one batch, with a mask of the padding.

    Args:
        mean, std: of each channel, for pixels in 0 ... 255.
        divisor: height and width of the batch are rounded up to multiples of this.
        non_blocking: copy to the device without waiting (pinned memory).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        divisor: int = 1,
        non_blocking: bool = False,
    ):
        super().__init__(non_blocking=non_blocking)
        if min(std) <= 0:
            raise ValueError(f"std={tuple(std)}: accepted are positive numbers")
        if divisor < 1:
            raise ValueError(f"divisor={divisor}: accepted are whole numbers from 1")
        self.divisor = divisor
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(-1, 1, 1), persistent=False)

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """``dict(inputs=images [3, h, w], data_samples=...)`` -> ``inputs [B, 3, H, W]``, ``mask [B, H, W]`` (true in
        the padding) and the samples on the device."""
        images = [
            (i.to(self.device, non_blocking=self._non_blocking).float() - self.mean) / self.std for i in data["inputs"]
        ]
        batch, mask = pad_images(images, self.divisor)
        samples = data.get("data_samples")
        return {
            "inputs": batch,
            "mask": mask,
            "data_samples": None if samples is None else self.cast_data(list(samples)),
        }


class DetectionModel(BaseModel):
    """A detector that can be trained.

    Args:
        detector: a model's name ("dino_4scale_r50"), a ``dict(type=name or class, ...)`` or a module: images and mask
            (and targets) in, a dict with ``pred_logits`` and ``pred_boxes`` out.
        num_classes: classes; None for the detector's own number.
        criterion: ``dict(type=..., matcher=dict(...), ...)`` or a module ``(outputs, targets) -> losses`` with
            ``weight_of(name)``; ``num_classes`` is passed. None for the one that the network's class names
            (``default_criterion``).
        postprocess: a function ``(outputs, sizes [B, 2]) -> [dict(scores, labels, boxes)]`` (and ``masks`` bool
            ``[N, H, W]``), or a ``dict(type=function, ...)``; None for the network's ``default_postprocess``.
        data_preprocessor: arguments of :class:`DetPreprocessor`, or a ready one.
        score_threshold: predictions below it are dropped; the metrics want all, so that 0 is the default.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"data_preprocessor": DetPreprocessor}

    def __init__(
        self,
        detector: Any,
        num_classes: int | None = None,
        criterion: Any = None,
        postprocess: Any = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
        score_threshold: float = 0.0,
    ):
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = build({"type": DetPreprocessor, **(data_preprocessor or {})}, MODELS)
        super().__init__(data_preprocessor)
        own = {} if num_classes is None else {"num_classes": num_classes}
        if isinstance(detector, nn.Module):
            self.detector = detector
        else:
            self.detector = build(
                {"type": detector} if not isinstance(detector, Mapping) else dict(detector), MODELS, **own
            )
        network = getattr(self.detector, "network", self.detector)
        self.num_classes = int(network.num_classes)  # type: ignore[arg-type]
        if num_classes not in (None, self.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the detector has {self.num_classes}")
        self.criterion: Any = build_criterion(_default(network, "criterion", criterion), self.num_classes)
        self.postprocess = build_postprocess(_default(network, "postprocess", postprocess))
        if not 0 <= score_threshold < 1:
            raise ValueError(f"score_threshold={score_threshold}: accepted are numbers from 0 up to (not including) 1")
        self.score_threshold = score_threshold
        self._compiled: list[Callable[..., dict[str, Any]]] = []  # in a list, so that it is no second submodule

    def init_weights(self) -> None:
        """Nothing: backbone and network initialise themselves as they are built."""

    def compile_network(self, **options: Any) -> None:
        """Compile the detector with ``torch.compile(**options)``; names of parameters stay."""
        self._compiled = [torch.compile(self.detector, **options)]

    def _network(self, *args: Any) -> dict[str, Any]:
        return (self._compiled[0] if self._compiled else self.detector)(*args)

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DetDataSample] | None = None,
        mask: Tensor | None = None,
        mode: str = "tensor",
    ) -> dict[str, Any] | list[DetDataSample]:
        """Losses, predictions or raw outputs.

        Args:
            inputs: normalised images ``[B, 3, H, W]``.
            data_samples: one for each image; "loss" reads ``gt_instances`` and ``img_shape``, "predict" ``ori_shape``.
            mask: ``[B, H, W]``, true in the padding; None for none.
            mode: "loss" gives weighted losses by name (their sum is the loss) and, not named "loss", what is only
                logged; "predict" the samples with ``pred_instances``; "tensor" what the detector gives.

        Raises:
            ValueError: unknown mode, a label that is no class, no samples where they are needed.
            FloatingPointError: a loss that is no finite number, or predictions that cannot be matched; the message
                names the images of the batch and the losses.
        """
        if mode == "tensor":
            return self._network(inputs, mask)
        if mode not in ("loss", "predict"):
            raise ValueError(f"mode={mode!r}: accepted are 'loss', 'predict' and 'tensor'")
        if mode == "predict":
            return self._predict(self._network(inputs, mask), inputs, data_samples)
        if data_samples is None:
            raise ValueError("mode='loss' needs data_samples")
        targets = self.targets(data_samples, inputs.device)
        outputs = self._network(inputs, mask, targets)
        with torch.autocast(inputs.device.type, enabled=False):  # small boxes do not survive half precision
            return self._losses(as_float(outputs), targets, data_samples)

    def targets(self, samples: Sequence[DetDataSample], device: torch.device) -> list[dict[str, Tensor]]:
        """``labels [N]`` and ``boxes [N, 4]`` (cx, cy, w, h in 0 ... 1 of the image without padding) of each image.

        With masks, ``masks`` bool ``[N, h, w]`` too.

        Raises:
            ValueError: a label is no class, or masks are of another size than the image; the message names the image.
        """
        found = []
        for sample in samples:
            gt = sample.gt_instances
            labels = gt.labels.to(device)
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise ValueError(
                    f"image {_name(sample)} has labels between {int(labels.min())} and {int(labels.max())}, but the "
                    f"model has {self.num_classes} classes (0 to {self.num_classes - 1})"
                )
            height, width = sample.img_shape
            scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=device)
            target = {"labels": labels, "boxes": xyxy_to_cxcywh(gt.boxes.to(device).float() / scale)}
            if "masks" in gt:
                if tuple(gt.masks.shape[1:]) != (height, width):
                    raise ValueError(
                        f"image {_name(sample)} of {height} x {width} pixels has masks of "
                        f"{' x '.join(str(n) for n in gt.masks.shape[1:])}"
                    )
                target["masks"] = gt.masks.to(device)
            found.append(target)
        return found

    def _losses(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]], samples: Sequence[DetDataSample]
    ) -> dict[str, Tensor]:
        try:
            raw = self.criterion(outputs, targets)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; the batch is {_names(samples)}") from error
        return weighted_losses(self.criterion, raw, [_name(s) for s in samples])

    def _predict(
        self, outputs: Mapping[str, Any], inputs: Tensor, samples: list[DetDataSample] | None
    ) -> list[DetDataSample]:
        if samples is None:
            size = tuple(inputs.shape[-2:])
            samples = [DetDataSample(metainfo={"ori_shape": size, "img_shape": size}) for _ in inputs]
        sizes = torch.tensor([s.ori_shape for s in samples], device=inputs.device)
        for sample, found in zip(samples, self.postprocess(as_float(outputs), sizes)):
            height, width = sample.ori_shape
            boxes = found["boxes"].clamp(min=0)
            boxes = torch.minimum(boxes, boxes.new_tensor([width, height, width, height]))
            kept = (found["scores"] >= self.score_threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            masks = found["masks"][kept] if "masks" in found else None
            sample.set_pred(boxes[kept], found["labels"][kept], found["scores"][kept], masks)
        return samples


def build_criterion(spec: Any, num_classes: int) -> nn.Module:
    """A criterion of a ``dict(type=..., matcher=dict(...), ...)``; a matcher without ``type`` is the Hungarian one."""
    if isinstance(spec, nn.Module):
        return spec
    from zoo.detection.matcher import HungarianMatcher

    spec = dict(spec)
    if isinstance(spec.get("matcher"), Mapping):
        spec["matcher"] = build({"type": HungarianMatcher, **spec["matcher"]}, MODELS)
    return build(spec, MODELS, num_classes=num_classes)


def build_postprocess(spec: Any) -> Callable[[Mapping[str, Any], Tensor], Predictions]:
    """A function of a ``dict(type=function, **arguments)`` or a name; functions stay as they are."""
    if not isinstance(spec, Mapping | str):
        return spec
    spec = {"type": spec} if isinstance(spec, str) else dict(spec)
    function = resolve(spec.pop("type"), MODELS)
    check_arguments(function, spec, where="postprocess")
    return partial(function, **spec)


def _default(network: nn.Module, kind: str, given: Any) -> Any:
    if given is not None:
        return given
    found = getattr(network, f"default_{kind}", None)
    if found is None:
        raise ValueError(f"{type(network).__name__} names no {kind} of its own: {kind}= is needed")
    return found


def _name(sample: DetDataSample) -> str:
    return f"{sample.get('img_id', '?')} ({sample.get('img_path', 'no file')})"


def weighted_losses(criterion: Any, raw: Mapping[str, Tensor], images: Sequence[str]) -> dict[str, Tensor]:
    """The losses of a criterion times their weights; those without one, named "unweighted", carry no gradient.

    Raises:
        FloatingPointError: a loss is not finite; the message names the ``images`` of the batch.
    """
    losses: dict[str, Tensor] = {}
    for name, value in raw.items():
        weight = criterion.weight_of(name)
        if weight is None:
            losses[name.replace("loss", "unweighted")] = value.detach()
        else:
            losses[name] = value * weight
    counted = [k for k in losses if "loss" in k]
    finite = torch.stack([losses[k].detach() for k in counted]).isfinite().tolist()  # one wait for the device
    bad = [k for k, good in zip(counted, finite) if not good]
    if bad:
        values = ", ".join(f"{k}={float(losses[k].detach())}" for k in bad[:4])
        raise FloatingPointError(
            f"{values} ({len(bad)} losses are not finite); the batch is images {', '.join(images)}"
        )
    return losses


def _names(samples: Sequence[DetDataSample]) -> str:
    return "images " + ", ".join(_name(s) for s in samples)
