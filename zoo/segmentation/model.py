"""The model that trains, predicts and is evaluated: a segmenter with its criterion and its way from outputs to masks.

A segmenter is a module ``images [B, 3, H, W] -> dict``, with ``num_classes``. Two kinds are known, by the attribute
``kind`` of the module (or of its ``network``):

- "semantic" (also where there is no such attribute): ``logits [B, K, h, w]`` and, in training, ``aux``, a list of
  further logits of the same form. Learned by :class:`zoo.segmentation.losses.SemanticCriterion`.
- "masks": mask classification, ``mask_logits [B, Q, h, w]``, ``class_logits [B, Q, K + 1]`` and ``aux_outputs``. Such a
  network names its ``default_criterion`` ((outputs, targets) -> losses, ``weight_of(name)``) and its
  ``default_postprocess`` ((outputs, sizes) -> a dict with ``sem_seg``, ``instances`` and ``panoptic``, or some of them,
  for each image), and has ``semantic_scores(outputs) -> [B, K, h, w]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from zoo.detection.model import DetPreprocessor, build_postprocess, weighted_losses
from zoo.layers.precision import as_float
from zoo.registry import MODELS, build
from zoo.segmentation.data_sample import SegDataSample, sample_name
from zoo.segmentation.geometry import ImageSize, semantic_postprocess
from zoo.segmentation.sliding import checked_windows, sliding_window
from zoo.segmentation.targets import MASK_SOURCES, mask_targets, semantic_targets

KINDS = ("semantic", "masks")


class SegPreprocessor(DetPreprocessor):
    """Images of any sizes to the device, normalised and then padded with zeros to one batch.

    The arguments are those of :class:`zoo.detection.model.DetPreprocessor`: ``mean`` and ``std`` of each channel for
    pixels in 0 ... 255, ``divisor`` of the batch's height and width, ``non_blocking``.
    """

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """``dict(inputs=images [3, h, w], data_samples=...)`` -> ``inputs [B, 3, H, W]`` and the samples, on the
        device."""
        batch = super().forward(data, training)
        del batch["mask"]  # padding is known by the samples' img_shape
        return batch


def inference_settings(
    mode: str = "whole", crop: int | Sequence[int] | None = None, stride: int | Sequence[int] | None = None
) -> dict[str, Any]:
    """How a model reads an image when it predicts.

    Args:
        mode: "whole", or "slide" for overlapping windows, whose logits are averaged (semantic results only).
        crop: height and width of a window.
        stride: from a window to the next; two thirds of the window by default.

    Raises:
        ValueError: another mode, windows without a size or with a larger stride, sizes that nothing reads.
    """
    if mode not in ("whole", "slide"):
        raise ValueError(f"test_cfg.mode={mode!r}: accepted are 'whole' and 'slide'")
    if mode == "whole":
        if crop is not None or stride is not None:
            raise ValueError(f"test_cfg.crop={crop}, stride={stride}: only mode='slide' has windows")
        return {"mode": mode}
    if crop is None:
        raise ValueError("test_cfg: mode='slide' needs crop, the size of a window")
    size, step = checked_windows(crop, stride, where="test_cfg.")
    return {"mode": mode, "crop": size, "stride": step}


class SegmentationModel(BaseModel):
    """A segmenter that can be trained.

    Args:
        segmenter: a model's name ("upernet_davit_tiny"), a ``dict(type=name or class, ...)`` or a module; what it gives
            is said in the module's docstring.
        num_classes: classes; None for the segmenter's own number.
        ignore_index: the label of pixels that do not count.
        loss: semantic networks: a name or ``dict(type=..., weight=...)`` of :data:`zoo.segmentation.losses.LOSSES`, or
            a list of them; cross-entropy by default.
        auxiliary_weight: semantic networks: weight of the auxiliary heads' losses, one number or one for each head.
        criterion: networks that classify masks: ``dict(type=..., ...)`` or a module; None for the network's own.
        postprocess: a function ``(outputs, sizes) -> [dict]`` or ``dict(type=function, ...)``; None for the network's.
        mask_source: networks that classify masks: what masks are learned, see
            :func:`zoo.segmentation.targets.mask_targets`.
        data_preprocessor: arguments of :class:`SegPreprocessor`, or a ready one.
        test_cfg: arguments of :func:`inference_settings`.

    Raises:
        ValueError: an argument outside what is accepted, or one that this kind of network does not read.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"data_preprocessor": SegPreprocessor, "test_cfg": inference_settings}

    def __init__(
        self,
        segmenter: Any,
        num_classes: int | None = None,
        ignore_index: int = 255,
        loss: Any = None,
        auxiliary_weight: float | Sequence[float] = 0.4,
        criterion: Any = None,
        postprocess: Any = None,
        mask_source: str | None = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
        test_cfg: Mapping[str, Any] | None = None,
    ):
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = build({"type": SegPreprocessor, **(data_preprocessor or {})}, MODELS)
        super().__init__(data_preprocessor)
        own = {} if num_classes is None else {"num_classes": num_classes}
        if isinstance(segmenter, nn.Module):
            self.segmenter = segmenter
        else:
            spec = dict(segmenter) if isinstance(segmenter, Mapping) else {"type": segmenter}
            self.segmenter = build(spec, MODELS, **own)
        network: Any = getattr(self.segmenter, "network", self.segmenter)
        self.num_classes = int(network.num_classes)
        if num_classes not in (None, self.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the segmenter has {self.num_classes}")
        if 0 <= ignore_index < self.num_classes:
            raise ValueError(f"ignore_index={ignore_index} is one of the {self.num_classes} classes")
        if mask_source not in (None, *MASK_SOURCES):
            raise ValueError(f"mask_source={mask_source!r}: accepted are {', '.join(MASK_SOURCES)} and None")
        self.ignore_index, self.mask_source = ignore_index, mask_source
        self.kind: str = getattr(network, "kind", "semantic")
        if self.kind not in KINDS:
            raise ValueError(f"{type(network).__name__}.kind={self.kind!r}: accepted are {', '.join(KINDS)}")
        self.test_cfg = inference_settings(**(test_cfg or {}))
        self.criterion: Any
        if self.kind == "semantic":
            from zoo.segmentation.losses import SemanticCriterion

            if criterion is not None:
                raise ValueError("criterion: networks with semantic logits take loss=")
            self.criterion = SemanticCriterion(self.num_classes, loss, ignore_index, auxiliary_weight)
        else:
            if loss is not None:
                raise ValueError("loss: networks that classify masks take criterion=")
            spec = network.default_criterion if criterion is None else criterion
            self.criterion = build(spec, MODELS, num_classes=self.num_classes)
        default = getattr(network, "default_postprocess", semantic_postprocess)
        self.postprocess: Any = build_postprocess(default if postprocess is None else postprocess)
        self._compiled: list[Callable[..., dict[str, Any]]] = []  # in a list, so that it is no second submodule

    def init_weights(self) -> None:
        """Nothing: backbone and heads initialise themselves as they are built."""

    def compile_network(self, **options: Any) -> None:
        """Compile the segmenter with ``torch.compile(**options)``; names of parameters stay."""
        self._compiled = [torch.compile(self.segmenter, **options)]

    def _network(self, images: Tensor) -> dict[str, Any]:
        return (self._compiled[0] if self._compiled else self.segmenter)(images)

    def semantic_logits(self, images: Tensor) -> Tensor:
        """Logits (or scores) of the classes ``[B, K, h, w]`` for normalised images ``[B, 3, H, W]``; h, w are the
        network's own."""
        outputs = self._network(images)
        if self.kind == "semantic":
            return outputs["logits"].float()
        network: Any = getattr(self.segmenter, "network", self.segmenter)
        return network.semantic_scores(as_float(outputs))

    def forward(
        self, inputs: Tensor, data_samples: list[SegDataSample] | None = None, mode: str = "tensor"
    ) -> dict[str, Any] | list[SegDataSample]:
        """Losses, predictions or raw outputs.

        Args:
            inputs: normalised images ``[B, 3, H, W]``.
            data_samples: one for each image; "loss" reads what is there (``gt_...``), "predict" ``img_shape`` and
                ``ori_shape``.
            mode: "loss" gives weighted losses by name (their sum is the loss) and, not named "loss", what is only
                logged; "predict" the samples with predictions; "tensor" what the segmenter gives.

        Raises:
            ValueError: unknown mode, a label that is no class, no samples where they are needed.
            FloatingPointError: a loss that is no finite number; the message names the images and the losses.
        """
        if mode == "tensor":
            return self._network(inputs)
        if mode == "predict":
            return self._predict(inputs, data_samples)
        if mode != "loss":
            raise ValueError(f"mode={mode!r}: accepted are 'loss', 'predict' and 'tensor'")
        if data_samples is None:
            raise ValueError("mode='loss' needs data_samples")
        targets = self.targets(data_samples, tuple(inputs.shape[-2:]), inputs.device)
        outputs = self._network(inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            losses = self.criterion(as_float(outputs), targets)
            return weighted_losses(self.criterion, losses, [sample_name(s) for s in data_samples])

    def targets(self, samples: Sequence[SegDataSample], size: tuple[int, ...], device: torch.device) -> Any:
        """What the criterion compares with: a label map of the batch, or masks and classes of each image."""
        shared = (samples, (size[0], size[1]), self.num_classes, self.ignore_index, device)
        return semantic_targets(*shared) if self.kind == "semantic" else mask_targets(*shared, self.mask_source)

    def _predict(self, inputs: Tensor, samples: list[SegDataSample] | None) -> list[SegDataSample]:
        padded = (inputs.shape[-2], inputs.shape[-1])
        if samples is None:
            samples = [SegDataSample(metainfo={"ori_shape": padded, "img_shape": padded}) for _ in inputs]
        sizes = [ImageSize(padded, tuple(s.img_shape), tuple(s.ori_shape)) for s in samples]
        if self.test_cfg["mode"] == "slide":
            found: list[dict[str, Any]] = [{"sem_seg": self._slide(image, size)} for image, size in zip(inputs, sizes)]
        else:
            found = self.postprocess(as_float(self._network(inputs)), sizes)
        for sample, result in zip(samples, found):
            sample.set_pred(**result)
        return samples

    def _slide(self, image: Tensor, size: ImageSize) -> Tensor:
        """Labels ``[H, W]`` of an image ``[3, h, w]`` by overlapping windows."""
        labels = sliding_window(
            self.semantic_logits,
            image[None, :, : size.image[0], : size.image[1]],
            self.test_cfg["crop"],
            self.test_cfg["stride"],
            self.num_classes,
            size=size.original,
        )
        return labels[0]
