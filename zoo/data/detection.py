"""What the detection datasets share: a table of objects, what is wrong with boxes, and samples for detectors."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from zoo.data.base import EpochDataset, sample_seed, to_tensor
from zoo.data.loading import ImageReadError, read_image
from zoo.data.masks import decode_masks
from zoo.detection.data_sample import DetDataSample

logger = logging.getLogger(__name__)


@dataclass
class ObjectTable:
    """All objects of a data set, image after image, in few arrays (worker processes then share their memory).

    Attributes:
        paths: file of each image, ``[I]``.
        image_ids: int64 ``[I]``.
        sizes: int64 ``[I, 2]`` height and width as annotated; 0 where that is not known.
        offsets: int64 ``[I + 1]``; the objects of image i are rows ``offsets[i]`` to ``offsets[i + 1]``.
        boxes: float64 ``[N, 4]`` x, y, width, height as annotated, in pixels (of sides, where ``relative``).
        labels: int64 ``[N]``.
        crowd: bool ``[N]``: a region of many objects, or one that is not to be counted.
        areas: float64 ``[N]``, of masks where there are any.
        segments: what the annotations say of the masks (COCO's polygons or run lengths), a list of N; None without
            masks.
        relative: boxes and areas are shares of the image's sides and of its area.
    """

    paths: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segments: list[Any] | None = None
    relative: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, index: int) -> slice:
        """The objects of an image."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def in_pixels(self, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``[n, 4]`` and areas ``[n]`` of an image, in pixels of its size."""
        rows = self.rows(index)
        if not self.relative:
            return self.boxes[rows], self.areas[rows]
        return self.boxes[rows] * [width, height, width, height], self.areas[rows] * height * width

    @staticmethod
    def build(images: Sequence[dict[str, Any]], *, relative: bool = False, with_masks: bool = False) -> ObjectTable:
        """From images as dicts ``path``, ``id``, ``size`` and ``objects``: dicts ``box``, ``label``, ``crowd``,
        ``area``, ``segmentation``."""
        objects = [o for image in images for o in image["objects"]]
        boxes = np.array([o["box"] for o in objects], np.float64).reshape(-1, 4)
        areas = [o["area"] if o.get("area") is not None else b[2] * b[3] for o, b in zip(objects, boxes)]
        return ObjectTable(
            np.array([i["path"] for i in images], dtype=np.str_),
            np.array([i["id"] for i in images], np.int64),
            np.array([i.get("size") or (0, 0) for i in images], np.int64).reshape(-1, 2),
            np.cumsum([0, *(len(i["objects"]) for i in images)]),
            boxes,
            np.array([o["label"] for o in objects], np.int64),
            np.array([o.get("crowd", False) for o in objects], bool),
            np.array(areas, np.float64),
            [o.get("segmentation") for o in objects] if with_masks else None,
            relative,
        )


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners ``[n, 4]`` of boxes x, y, w, h inside the image, and which of them are boxes then (``[n]`` bool).

    A box that is empty, not finite or wholly outside is none.
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    finite = np.isfinite(corners).all(1)
    corners = np.clip(np.nan_to_num(corners), 0, [width, height, width, height])
    return corners, finite & (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1]) & (boxes[:, 2:] > 0).all(
        1
    )


def split_indices(count: int, part: str, val_fraction: float, seed: int) -> np.ndarray:
    """Indices of the images of a part, ascending.

    Raises:
        ValueError: an unknown part, a fraction outside of 0 ... 1, or an empty part.
    """
    if part not in ("all", "train", "val"):
        raise ValueError(f"part={part!r} is unknown; accepted are 'all', 'train' and 'val'")
    if part == "all":
        return np.arange(count)
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction} must be between 0 and 1, exclusive")
    if count < 2:
        raise ValueError(f"{count} image(s) cannot be split into 'train' and 'val'")
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(round(count * val_fraction), 1), count - 1)
    return np.sort(order[:held] if part == "val" else order[held:])


class DetectionDataset(EpochDataset):
    """Base of the detection datasets; a subclass reads a format and hands its table over.

    A sample is ``dict(inputs=uint8 [3, h, w] RGB, data_samples=DetDataSample)``. Crowd regions are no targets, but the
    metrics get them. Boxes are clipped to the image; those that are none then are left out, and :attr:`dropped` counts
    them.

    Args:
        table: the objects.
        classes: class names; a label is an index into them.
        category_ids: the id that each label has in the annotations and in files of predictions.
        transform: ``(image, boxes, labels, masks, seed) -> dict``, see
            :class:`zoo.data.detection_transforms.DetectionPipeline`, or arguments of
            :func:`zoo.data.detection_transforms.build_detection_transforms` as a dict; None leaves the image as it is.
        seed: of the augmentation.
        on_error: an unreadable image is raised ("raise"), or reported once and replaced by the next one ("skip").
        keep_empty: also give images without objects.
        part: "all", or "train" / "val" for the two parts of a random split of the images.
        val_fraction: share of the images that part "val" has.
        split_seed: which split; the same for both parts.

    Raises:
        ValueError: there is no image, a label is no class, or an argument is unknown.
    """

    #: What takes a ``transform`` given as a dict; a config's keys are checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transform": "zoo.data.detection_transforms.build_detection_transforms"}

    def __init__(
        self,
        table: ObjectTable,
        classes: Sequence[str],
        category_ids: Sequence[int],
        *,
        transform: Callable[..., dict[str, Any]] | dict[str, Any] | None = None,
        seed: int = 0,
        on_error: str = "raise",
        keep_empty: bool = True,
        part: str = "all",
        val_fraction: float = 0.2,
        split_seed: int = 0,
    ):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} is unknown; accepted are 'raise' and 'skip'")
        if len(category_ids) != len(classes) or len(set(category_ids)) != len(classes):
            raise ValueError(f"category_ids has {len(set(category_ids))} different ids for {len(classes)} classes")
        if not len(table):
            raise ValueError(f"{type(self).__name__} has no images")
        if len(table.labels) and not 0 <= table.labels.min() <= table.labels.max() < len(classes):
            raise ValueError(
                f"labels are between {table.labels.min()} and {table.labels.max()}, "
                f"but there are {len(classes)} classes"
            )
        if isinstance(transform, dict):
            from zoo.data.detection_transforms import build_detection_transforms

            transform = build_detection_transforms(**transform)
        self.table, self.transform, self.seed, self.on_error = table, transform, seed, on_error
        self.classes = tuple(str(c) for c in classes)
        self.category_ids = tuple(int(c) for c in category_ids)
        super().__init__()
        self._unreadable = torch.zeros(len(table), dtype=torch.uint8).share_memory_()
        #: boxes that are no targets, by reason, as far as image sizes are annotated
        self.dropped = self._count_dropped()
        self._indices = split_indices(len(table), part, val_fraction, split_seed)
        if not keep_empty:
            counts = np.diff(np.concatenate([[0], np.cumsum(~table.crowd)])[table.offsets])
            self._indices = self._indices[counts[self._indices] > 0]
            if not len(self._indices):
                raise ValueError(f"{type(self).__name__}: no image has an object, and keep_empty=False")
        if any(self.dropped.values()):
            logger.warning(
                "%s: boxes left out of training: %s",
                type(self).__name__,
                ", ".join(f"{n} {k}" for k, n in self.dropped.items() if n),
            )

    def _count_dropped(self) -> dict[str, int]:
        """Crowd regions, degenerate boxes and boxes outside of their image; clipped ones stay."""
        table = self.table
        found = {"crowd": int(table.crowd.sum()), "degenerate": 0, "outside": 0, "clipped (kept)": 0}
        image = np.repeat(np.arange(len(table)), np.diff(table.offsets))
        sizes = np.ones((len(table), 2)) if table.relative else table.sizes
        height, width = sizes[image].T if len(image) else (np.zeros(0), np.zeros(0))
        known = (height > 0) & ~table.crowd
        boxes = table.boxes
        good = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1)
        x1, y1 = boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
        outside = (boxes[:, 0] >= width) | (boxes[:, 1] >= height) | (x1 <= 0) | (y1 <= 0)
        slack = 1e-6 if table.relative else 1e-3  # decimals of the annotations
        over = (boxes[:, :2] < -slack).any(1) | (x1 > width + slack) | (y1 > height + slack)
        found["degenerate"] = int((~good & ~table.crowd).sum())
        found["outside"] = int((good & known & outside).sum())
        found["clipped (kept)"] = int((good & known & over & ~outside).sum())
        return found

    # -- as the engine's loops and metrics expect -----------------------------------------------------------------

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the runner hands to metrics and writes into checkpoints."""
        return {"classes": self.classes, "category_ids": self.category_ids}

    def path_of(self, index: int) -> str:
        """The file of image ``index``."""
        return str(self.table.paths[self._indices[index]])

    def load_image(self, index: int) -> np.ndarray:
        """Image ``index`` as RGB uint8 ``[H, W, 3]``; raises ImageReadError, which names the file."""
        return read_image(self.path_of(index))

    def skipped_paths(self) -> list[str]:
        """Files that were found unreadable so far (``on_error="skip"``)."""
        return [str(self.table.paths[i]) for i in self._unreadable.nonzero().flatten().tolist()]

    def ground_truth(self, index: int, size: tuple[int, int]) -> dict[str, Any]:
        """What metrics compare with: boxes (x, y, w, h), labels, areas and crowd of image ``index``, as annotated, and
        with masks their ``segmentations`` as compressed run lengths.

        Raises:
            ValueError: run lengths of another size than the image; the message names the file.
        """
        i = int(self._indices[index])
        rows = self.table.rows(i)
        boxes, areas = self.table.in_pixels(i, *size)
        masks: dict[str, Any] = {}
        if self.table.segments is not None:
            masks["segmentations"] = [self._run_lengths(index, s, size) for s in self.table.segments[rows]]
        return {
            **masks,
            "boxes": boxes.tolist(),
            "labels": self.table.labels[rows].tolist(),
            "areas": areas.tolist(),
            "crowd": self.table.crowd[rows].astype(int).tolist(),
        }

    def _run_lengths(self, index: int, segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
        from zoo.data.coco import annotation_rle

        try:
            return annotation_rle(segmentation, *size)
        except ValueError as error:
            raise ValueError(f"{self.path_of(index)!r}: {error}") from None

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index %= len(self)
        for candidate in (*range(index, len(self)), *range(index)):
            if self._unreadable[self._indices[candidate]]:
                continue
            try:
                image = self.load_image(candidate)
            except ImageReadError as error:
                if self.on_error == "raise":
                    raise
                self._unreadable[self._indices[candidate]] = 1
                logger.warning("skipped: %s", error)
                continue
            return self._sample(image, candidate)
        raise ImageReadError(f"none of the {len(self)} images of {type(self).__name__} can be read; see the log")

    def _sample(self, image: np.ndarray, index: int) -> dict[str, Any]:
        i = int(self._indices[index])
        height, width = image.shape[:2]
        rows = self.table.rows(i)
        raw, _ = self.table.in_pixels(i, height, width)
        boxes, usable = clip_boxes(raw, height, width)
        usable &= ~self.table.crowd[rows]
        truth = self.ground_truth(index, (height, width))
        masks: np.ndarray | None = None
        if self.table.segments is not None:
            masks = decode_masks([s for s, use in zip(truth["segmentations"], usable) if use], height, width)
            seen = masks.any((1, 2))  # a polygon thinner than a pixel has none
            usable[np.flatnonzero(usable)[~seen]] = False
            masks = masks[seen]
        boxes, labels = boxes[usable], self.table.labels[rows][usable]
        if self.transform is not None:
            seed = sample_seed(self.seed, self.epoch, index)
            try:
                done = self.transform(image, boxes, labels, masks, seed)
            except Exception as error:
                raise RuntimeError(
                    f"the transform failed on {self.path_of(index)!r} ({height} x {width} pixels): "
                    f"{type(error).__name__}: {error}"
                ) from error
            image, boxes, labels, masks = (done[k] for k in ("image", "boxes", "labels", "masks"))
            if masks is not None:  # a crop may leave a corner of a box, and nothing of the object
                seen = masks.any((1, 2))
                boxes, labels, masks = boxes[seen], labels[seen], masks[seen]
        sample = DetDataSample(
            metainfo={
                "img_path": self.path_of(index),
                "img_id": int(self.table.image_ids[i]),
                "sample_idx": index,
                "ori_shape": (height, width),
                "img_shape": image.shape[:2],
                "scale_factor": (image.shape[1] / width, image.shape[0] / height),
                "ground_truth": truth,
            }
        )
        sample.set_gt(boxes.astype(np.float32), labels, masks)
        return {"inputs": to_tensor(image), "data_samples": sample}
