"""Generated shapes as a segmentation data set: semantic, instance and panoptic targets, without files."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.data.segmentation import Annotation, SegmentationDataset
from zoo.data.shapes import SHAPE_CLASSES, Shapes

#: a colour for the background and for each of eight shapes
SHAPE_PALETTE = (
    (0, 0, 0), (230, 25, 75), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (210, 245, 60),
)  # fmt: skip


class ShapesSegmentation(SegmentationDataset):
    """Images of five kinds of shapes that hide parts of each other, before textures and behind bars.

    Semantic classes are "background" (0) and the shapes (from 1); each shape is an instance, and the panoptic map has
    the background as a segment of stuff. The scenes are drawn once and kept (about 0.1 MB each at 128 pixels).

    Args:
        split: "train", "val" or "test".
        length: number of images; by default 600 to train on, 150 otherwise.
        size: side in pixels.
        num_shapes: how many kinds of shapes, the first of :data:`zoo.data.shapes.SHAPE_CLASSES`.
        objects: least and greatest number of objects in an image.
        background: whether the background is a class; if not, its pixels are ignored, and shapes count from 0.
        data_seed: which data set.
        **common: ``targets``, ``transform``, ``seed`` ...; see :class:`zoo.data.segmentation.SegmentationDataset`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        split: str = "train",
        length: int | None = None,
        size: int = 128,
        *,
        num_shapes: int = 5,
        objects: tuple[int, int] = (1, 5),
        background: bool = True,
        data_seed: int = 0,
        **common: Any,
    ):
        length = (600 if split == "train" else 150) if length is None else length
        if not 1 <= num_shapes <= len(SHAPE_CLASSES):
            raise ValueError(f"num_shapes={num_shapes}: accepted are 1 to {len(SHAPE_CLASSES)}")
        names = SHAPE_CLASSES[:num_shapes]
        shapes = Shapes(split, length, size, objects=objects, data_seed=data_seed, classes=names)
        scenes = [shapes.scene(i) for i in range(length)]
        self.images = np.stack([s.image for s in scenes])
        self.segments = np.stack([_segments(s.masks) for s in scenes])  # uint8 [N, H, W]: 0 background, then objects
        self.labels = [s.labels for s in scenes]
        self.background = background
        first = int(background)
        super().__init__(
            [shapes.path_of(i) for i in range(length)],
            (*(("background",) if background else ()), *names),
            things=[False] * first + [True] * num_shapes,
            palette=SHAPE_PALETTE[1 - first : 1 + num_shapes],
            image_ids=range(1, length + 1),
            **common,
        )

    def load_image(self, index: int) -> np.ndarray:
        return self.images[self._indices[index]]

    def annotation(self, row: int, size: tuple[int, int]) -> Annotation:
        first = int(self.background)
        segments, labels = self.segments[row], self.labels[row] + first
        semantic = np.concatenate([[0 if self.background else self.ignore_index], labels])[segments]
        infos = [
            {"id": i + 1 + first, "label": int(c), "is_thing": True, "is_crowd": False} for i, c in enumerate(labels)
        ]
        ids = segments.astype(np.int32)
        if self.background:
            infos.insert(0, {"id": 1, "label": 0, "is_thing": False, "is_crowd": False})
            ids += 1
        semantic = semantic.astype(np.uint8 if self.ignore_index < 256 else np.int64)
        return Annotation(semantic=semantic, segments=ids, infos=infos)


def _segments(masks: np.ndarray) -> np.ndarray:
    """Number of the object of each pixel from 1, or 0, uint8 ``[H, W]``, of masks ``[n, H, W]`` that do not overlap."""
    return (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(0).astype(np.uint8)
