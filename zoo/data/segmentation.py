"""What the segmentation datasets share: samples of images with semantic maps, instances and panoptic segments."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from zoo.data.base import EpochDataset, sample_seed, to_tensor
from zoo.data.coco import box_of_mask
from zoo.data.detection import split_indices
from zoo.data.label_maps import MaskError
from zoo.data.loading import ImageReadError, read_image
from zoo.data.masks import compress_masks
from zoo.data.segmentation_transforms import Maps, SegmentationPipeline
from zoo.segmentation.data_sample import SegDataSample

logger = logging.getLogger(__name__)

#: what a sample may have
TARGETS = ("semantic", "instance", "panoptic")


@dataclass
class Annotation:
    """What is known of one image, at its own size.

    Attributes:
        semantic: class indices or the ignore index ``[H, W]``, or None.
        segments: numbers of panoptic segments from 1, or 0 (void) ``[H, W]``, or None.
        infos: a dict for each segment: ``id``, ``label``, ``is_thing``, ``is_crowd``.
        masks: bool ``[N, H, W]`` of objects that may overlap, or None.
        labels: class of each mask.
        ground_truth: what metrics read besides.
    """

    semantic: np.ndarray | None = None
    segments: np.ndarray | None = None
    infos: list[dict[str, Any]] = field(default_factory=list)
    masks: np.ndarray | None = None
    labels: Sequence[int] = ()
    ground_truth: dict[str, Any] = field(default_factory=dict)


class SegmentationDataset(EpochDataset):
    """Base of the segmentation datasets; a subclass gives ``paths`` and :meth:`annotation`.

    A sample is ``dict(inputs=uint8 [3, h, w] RGB, data_samples=SegDataSample)``. Its targets are of the image that the
    network gets; only the transform of evaluation leaves them at the original size, where scores are taken. Its meta
    information has ``img_path``, ``img_id``, ``sample_idx``, ``ori_shape``, ``img_shape`` and ``ground_truth``.

    Args:
        paths: files of the images.
        classes: class names; a label is an index into them.
        things: whether each class is one of countable objects; None where the data does not say.
        palette: a colour (R, G, B) for each class, or None.
        image_ids: a number for each image; by default 0, 1, ...
        category_ids: the id of each class in files; by default 0, 1, ...
        ignore_index: what the semantic map has where no class counts.
        targets: which of "semantic", "instance" and "panoptic" samples have; None for all that the data has.
        transform: ``(image, Maps, seed, ignore_index=) -> (image, Maps)``, see
            :class:`zoo.data.segmentation_transforms.SegmentationPipeline`, or arguments of
            :func:`zoo.data.segmentation_transforms.build_segmentation_transforms` as a dict.
        seed: of the augmentation.
        on_error: an unreadable file is raised ("raise"), or reported once and replaced by the next one ("skip"); masks
            whose values are wrong are always raised.
        part: "all", or "train" / "val" for the two parts of a random split of the images.
        val_fraction: share of the images that part "val" has.
        split_seed: which split; the same for both parts.

    Raises:
        ValueError: there is no image, or an argument is unknown or does not fit.
    """

    #: What takes a ``transform`` given as a dict; a config's keys are checked by it.
    config_parts: ClassVar[dict[str, Any]] = {
        "transform": "zoo.data.segmentation_transforms.build_segmentation_transforms"
    }

    def __init__(
        self,
        paths: Sequence[str],
        classes: Sequence[str],
        *,
        things: Sequence[bool] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        image_ids: Sequence[int] | None = None,
        category_ids: Sequence[int] | None = None,
        ignore_index: int = 255,
        targets: Sequence[str] | None = None,
        transform: Callable[..., tuple[np.ndarray, Maps]] | dict[str, Any] | None = None,
        seed: int = 0,
        on_error: str = "raise",
        part: str = "all",
        val_fraction: float = 0.2,
        split_seed: int = 0,
    ):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} is unknown; accepted are 'raise' and 'skip'")
        if not len(paths):
            raise ValueError(f"{type(self).__name__} has no images")
        if not classes:
            raise ValueError(f"{type(self).__name__} has no classes")
        if not ignore_index >= len(classes):
            raise ValueError(f"ignore_index={ignore_index} is a class; accepted are {len(classes)} and above")
        for name, value in (("things", things), ("palette", palette), ("category_ids", category_ids)):
            if value is not None and len(value) != len(classes):
                raise ValueError(f"{name} has {len(value)} entries for {len(classes)} classes")
        unknown = [t for t in targets or () if t not in TARGETS]
        if unknown or targets == ():
            raise ValueError(f"targets={targets}: accepted are some of {', '.join(map(repr, TARGETS))}")
        if isinstance(transform, dict):
            from zoo.data.segmentation_transforms import build_segmentation_transforms

            transform = build_segmentation_transforms(**transform)
        self.paths = np.array(paths, dtype=np.str_)
        self.image_ids = np.arange(len(paths)) if image_ids is None else np.array(image_ids, np.int64)
        self.classes = tuple(str(c) for c in classes)
        self.things = None if things is None else tuple(bool(t) for t in things)
        self.palette = None if palette is None else [tuple(int(v) for v in c) for c in palette]
        self.category_ids = tuple(range(len(classes)) if category_ids is None else (int(c) for c in category_ids))
        self.ignore_index, self.targets = ignore_index, None if targets is None else tuple(targets)
        self.transform, self.seed, self.on_error = transform, seed, on_error
        super().__init__()
        self._unreadable = torch.zeros(len(paths), dtype=torch.uint8).share_memory_()
        self._indices = split_indices(len(paths), part, val_fraction, split_seed)

    def annotation(self, row: int, size: tuple[int, int]) -> Annotation:
        """What is known of the image ``self.paths[row]``, of ``size`` (height, width).

        Raises:
            ImageReadError: a file cannot be read.
            MaskError: a mask is of another size or has wrong values.
        """
        raise NotImplementedError

    # -- as the engine's loops and metrics expect -----------------------------------------------------------------

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the runner hands to metrics and writes into checkpoints."""
        return {
            "classes": self.classes,
            "palette": self.palette,
            "things": self.things,
            "category_ids": self.category_ids,
            "ignore_index": self.ignore_index,
        }

    def path_of(self, index: int) -> str:
        """The file of image ``index``."""
        return str(self.paths[self._indices[index]])

    def load_image(self, index: int) -> np.ndarray:
        """Image ``index`` as RGB uint8 ``[H, W, 3]``; raises ImageReadError, which names the file."""
        return read_image(self.path_of(index))

    def load_annotation(self, index: int, size: tuple[int, int]) -> Annotation:
        """:meth:`annotation` of image ``index`` of this part."""
        return self.annotation(int(self._indices[index]), size)

    def skipped_paths(self) -> list[str]:
        """Files that were found unreadable so far (``on_error="skip"``)."""
        return [str(self.paths[i]) for i in self._unreadable.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index %= len(self)
        for candidate in (*range(index, len(self)), *range(index)):
            row = int(self._indices[candidate])
            if self._unreadable[row]:
                continue
            try:
                image = self.load_image(candidate)
                annotation = self.annotation(row, image.shape[:2])
            except ImageReadError as error:
                if self.on_error == "raise":
                    raise
                self._unreadable[row] = 1
                logger.warning("skipped: %s", error)
                continue
            return self._sample(image, annotation, candidate)
        raise ImageReadError(f"none of the {len(self)} images of {type(self).__name__} can be read; see the log")

    def wants(self, target: str) -> bool:
        """Whether samples are to have a target."""
        return self.targets is None or target in self.targets

    def _sample(self, image: np.ndarray, known: Annotation, index: int) -> dict[str, Any]:
        height, width = image.shape[:2]
        maps = Maps(known.semantic, known.segments, known.masks)
        for name, value in (("semantic map", maps.semantic), ("panoptic map", maps.segments), ("mask", maps.masks)):
            check_size(value, (height, width), name, self.path_of(index))
        if self.transform is not None:
            seed = sample_seed(self.seed, self.epoch, index)
            try:
                image, maps = self.transform(image, maps, seed, ignore_index=self.ignore_index)
            except Exception as error:
                raise RuntimeError(
                    f"the transform failed on {self.path_of(index)!r} ({height} x {width} pixels): "
                    f"{type(error).__name__}: {error}"
                ) from error
        truth = known.ground_truth
        if not truth and maps.segments is not None and self.wants("instance") and pipeline_keeps_maps(self.transform):
            truth = instance_truth(maps.segments, known.infos)
        row = int(self._indices[index])
        sample = SegDataSample(
            metainfo={
                "img_path": self.path_of(index),
                "img_id": int(self.image_ids[row]),
                "sample_idx": index,
                "ori_shape": (height, width),
                "img_shape": image.shape[:2],
                "ground_truth": truth,
            }
        )
        if maps.semantic is not None and self.wants("semantic"):
            narrow = maps.semantic.dtype == np.uint8 and self.ignore_index < 256
            sample.set_sem_seg(torch.from_numpy(maps.semantic if narrow else maps.semantic.astype(np.int64)))
        if maps.segments is not None:
            self._set_segments(sample, maps.segments, known.infos)
        if maps.masks is not None and self.wants("instance"):
            there = maps.masks.any((1, 2))
            labels = np.asarray(known.labels, np.int64).reshape(-1)[there]
            sample.set_instances(torch.from_numpy(np.ascontiguousarray(maps.masks[there])), torch.from_numpy(labels))
        return {"inputs": to_tensor(image), "data_samples": sample}

    def _set_segments(self, sample: SegDataSample, ids: np.ndarray, infos: Sequence[dict[str, Any]]) -> None:
        counts = np.bincount(ids.ravel(), minlength=1 + max((int(i["id"]) for i in infos), default=0))
        left = [dict(i) for i in infos if counts[i["id"]]]  # a crop may have removed the others
        if self.wants("panoptic"):
            sample.set_panoptic(torch.from_numpy(ids.astype(np.int32)), left)
        if self.wants("instance"):
            objects = [i for i in left if i["is_thing"] and not i.get("is_crowd")]
            numbers = np.array([i["id"] for i in objects], np.int64).reshape(-1, 1, 1)
            labels = torch.tensor([i["label"] for i in objects], dtype=torch.int64)
            sample.set_instances(torch.from_numpy(ids[None] == numbers), labels)


def instance_truth(ids: np.ndarray, infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What :class:`zoo.metrics.coco_masks.CocoMasks` compares with: boxes (x, y, w, h), labels, areas, crowd and masks
    (run lengths) of the things among the segments ``[H, W]``."""
    things = [i for i in infos if i["is_thing"] and (ids == i["id"]).any()]
    masks = ids[None] == np.array([i["id"] for i in things], np.int64).reshape(-1, 1, 1)
    return {
        "boxes": [box_of_mask(m) for m in masks],
        "labels": [int(i["label"]) for i in things],
        "areas": [float(m.sum()) for m in masks],
        "crowd": [int(bool(i.get("is_crowd"))) for i in things],
        "segmentations": compress_masks(masks),
    }


def check_size(value: np.ndarray | None, size: tuple[int, int], name: str, image: str) -> None:
    """Refuse a map ``[..., H, W]`` of another size than its image.

    Raises:
        MaskError: names both.
    """
    if value is not None and tuple(value.shape[-2:]) != tuple(size):
        raise MaskError(
            f"the {name} of {image!r} is {value.shape[-2]} x {value.shape[-1]} pixels (height x width), but the image "
            f"{size[0]} x {size[1]}"
        )


def pipeline_keeps_maps(transform: Any) -> bool:
    """Whether a transform leaves label maps at the original size."""
    return transform is None or (isinstance(transform, SegmentationPipeline) and transform.keeps_maps)
