"""Generated shapes as a detection data set: the scenes of :class:`zoo.data.shapes.Shapes`, without files."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.data.detection import DetectionDataset, ObjectTable
from zoo.data.masks import compress_masks
from zoo.data.shapes import SHAPE_CLASSES, Shapes


class ShapesDetection(DetectionDataset):
    """Images of generated shapes with their boxes; equal to what :meth:`zoo.data.shapes.Shapes.write_coco` writes.

    The scenes are drawn once and kept (48 kB each at 128 pixels).

    Args:
        split: "train", "val" or "test".
        length: number of images.
        size: side in pixels.
        objects: least and greatest number of objects in an image.
        data_seed: which data set.
        with_masks: give ``masks`` too: the visible part of each object.
        **common: ``transform``, ``seed``, ``on_error``, ``keep_empty``; see
            :class:`zoo.data.detection.DetectionDataset`.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 600,
        size: int = 128,
        *,
        objects: tuple[int, int] = (1, 5),
        data_seed: int = 0,
        with_masks: bool = False,
        **common: Any,
    ):
        shapes = Shapes(split, length, size, objects=objects, data_seed=data_seed)
        records, images = [], []
        for i in range(length):
            scene = shapes.scene(i)
            images.append(scene.image)
            x0, y0, x1, y1 = scene.boxes.T.tolist()
            runs = compress_masks(scene.masks) if with_masks else [None] * len(scene.masks)
            objects_ = [
                {"box": [a, b, c - a, d - b], "label": label, "area": int(mask.sum()), "segmentation": run}
                for a, b, c, d, label, mask, run in zip(x0, y0, x1, y1, scene.labels.tolist(), scene.masks, runs)
            ]
            records.append({"path": shapes.path_of(i), "id": i + 1, "size": (size, size), "objects": objects_})
        self.images = np.stack(images)
        table = ObjectTable.build(records, with_masks=with_masks)
        super().__init__(table, SHAPE_CLASSES, range(1, len(SHAPE_CLASSES) + 1), **common)

    def load_image(self, index: int) -> np.ndarray:
        return self.images[self._indices[index]]
