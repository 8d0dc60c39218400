"""COCO's instances as a segmentation data set, for models that classify masks."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from zoo.data.coco import CocoDetection, annotation_mask
from zoo.data.label_maps import MaskError
from zoo.data.segmentation import Annotation, SegmentationDataset


class CocoInstances(SegmentationDataset):
    """Images and masks of a COCO annotations file; samples have instance targets.

    Objects may overlap. Crowds and masks without a pixel are no targets; the metrics get the crowds.

    Args:
        annotations: the JSON file.
        images: folder of the images; by default the one of the usual places that has the first image.
        labels: how category ids become labels, see :func:`zoo.data.coco.label_table`.
        keep_empty: also give images without objects.
        **common: ``transform``, ``seed`` ...; see :class:`zoo.data.segmentation.SegmentationDataset`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        AnnotationError: the file is no such JSON; see :class:`zoo.data.coco.CocoDetection`.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike | None = None,
        *,
        labels: str = "contiguous",
        keep_empty: bool = True,
        **common: Any,
    ):
        self.source = CocoDetection(annotations, images, labels=labels, with_masks=True, keep_empty=keep_empty)
        rows = self.source._indices
        super().__init__(
            self.source.table.paths[rows].tolist(),
            self.source.classes,
            things=[True] * self.source.num_classes,
            image_ids=self.source.table.image_ids[rows].tolist(),
            category_ids=self.source.category_ids,
            ignore_index=max(255, self.source.num_classes),
            **common,
        )

    def annotation(self, row: int, size: tuple[int, int]) -> Annotation:
        table = self.source.table
        rows = table.rows(int(self.source._indices[row]))
        try:
            truth = self.source.ground_truth(row, size)
            # A list, for there may be none.
            masks = [annotation_mask(s, *size) for s in (table.segments or [])[rows]]
        except ValueError as error:
            raise MaskError(f"a mask of {str(self.paths[row])!r}: {error}") from error
        kept = [not crowd and bool(mask.any()) for crowd, mask in zip(table.crowd[rows], masks)]
        chosen = [m for m, keep in zip(masks, kept) if keep]
        return Annotation(
            masks=np.array(chosen, bool).reshape(-1, *size),
            labels=[int(c) for c, keep in zip(table.labels[rows], kept) if keep],
            ground_truth=truth,
        )
