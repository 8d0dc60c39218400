"""COCO's average precision and recall of masks, through faster-coco-eval.

Protocol: https://cocodataset.org/#detection-eval, with the overlap of masks in the place of that of boxes. As in COCO's
own tools the size of a prediction, which decides whether it counts among small, medium or large ones, is its mask's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mmengine.dist as dist
import numpy as np

from zoo.data.coco import annotation_rle, has_segmentation
from zoo.data.masks import compress_masks
from zoo.metrics.coco import CocoBoxes, CocoResult, check_predictions, run_protocol, write_classes
from zoo.segmentation.data_sample import boxes_of_masks


def evaluate_masks(truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> CocoResult:
    """Evaluate masks by COCO's protocol.

    Args:
        truth: the content of an annotations file: ``images`` with ``height`` and ``width``, ``annotations`` with
            ``segmentation`` (polygons or run lengths), and ``categories``.
        predictions: the content of a results file: ``image_id``, ``category_id``, ``segmentation`` (run lengths or
            polygons) and ``score``.

    Raises:
        ValueError: a prediction is of an unknown image or category, has no mask or one of another size than its image,
            or no finite score; an annotation has no mask, or one of another size.
    """
    sizes = {i["id"]: (i.get("height"), i.get("width")) for i in truth["images"]}
    check_masks(predictions)
    check_predictions(truth, [{**p, "bbox": (0, 0, 0, 0)} for p in predictions])
    for number, size in sizes.items():
        if not all(size):
            raise ValueError(f"image {number!r} of the annotations has no height and width, which masks need")

    def in_runs(entry: Mapping[str, Any], what: str) -> dict[str, Any]:
        try:
            return annotation_rle(entry["segmentation"], *sizes[entry["image_id"]])
        except ValueError as error:
            raise ValueError(f"{what} of image {entry['image_id']!r}: {error}") from None

    annotations = []
    for a in truth["annotations"]:
        if not has_segmentation(a.get("segmentation")):
            raise ValueError(f"annotation {a.get('id')!r} has no segmentation to compare masks with")
        annotations.append({**a, "segmentation": in_runs(a, f"annotation {a.get('id')!r}")})
    found = [
        {**{k: v for k, v in p.items() if k != "bbox"}, "segmentation": in_runs(p, f"prediction {n}")}
        for n, p in enumerate(predictions)
    ]
    return run_protocol({**truth, "annotations": annotations}, found, "segm")


def check_masks(predictions: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError, with its number, for a prediction without a mask."""
    for number, p in enumerate(predictions):
        segmentation = p.get("segmentation") if isinstance(p, Mapping) else None
        if not isinstance(segmentation, Mapping | Sequence) or isinstance(segmentation, str):
            raise ValueError(f"prediction {number} has no segmentation: run lengths or polygons are needed")
        if isinstance(segmentation, Mapping) and not {"size", "counts"} <= set(segmentation):
            raise ValueError(
                f"prediction {number} has the segmentation {dict(segmentation)}: size and counts are needed"
            )


class CocoMasks(CocoBoxes):
    """COCO's AP and AR of boxes (``coco/AP`` ...) and of masks (``coco/mask_AP`` ...) of a model's instances.

    The dataset must give masks (``with_masks=True``), and the model predict them. After an evaluation :attr:`result`
    holds all about boxes and its ``masks`` all about masks. With ``out_dir`` there are ``per_class_masks.csv``
    and ``precision_recall_masks.png`` too, and the predictions have their masks as run lengths. Arguments are those of
    :class:`~zoo.metrics.coco.CocoBoxes`.
    """

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep truth and predictions of a batch; those of networks that find masks alone get their masks' boxes."""
        for sample in data_samples:
            found = sample["pred_instances"]
            if "boxes" not in found and "masks" in found:
                found["boxes"] = boxes_of_masks(found["masks"])
        super().process(data_batch, data_samples)

    def more_of(self, sample: Mapping[str, Any], count: int) -> tuple[Any, ...]:
        """Masks as run lengths; a bool mask of each prediction would not fit into memory."""
        found = sample["pred_instances"]
        if "masks" not in found or "segmentations" not in sample["ground_truth"]:
            who = "predictions" if "masks" not in found else "data"
            raise ValueError(f"CocoMasks compares masks, but the {who} for {sample.get('img_path')!r} have none")
        masks = found["masks"][:count]
        if tuple(masks.shape[1:]) != tuple(sample["ori_shape"]):
            raise ValueError(
                f"masks for {sample.get('img_path')!r} have size {tuple(masks.shape[1:])}, but the image is "
                f"{tuple(sample['ori_shape'])}"
            )
        return (compress_masks(np.asarray(masks.cpu(), bool)),)

    def evaluate_all(self, truth: dict[str, Any], predictions: list[dict[str, Any]]) -> dict[str, float]:
        super().evaluate_all(truth, predictions)
        assert self.result is not None
        self.result.masks = evaluate_masks(truth, predictions)
        if self.out_dir is not None and dist.is_main_process():
            write_classes(self.out_dir, self.result.masks, "_masks")
        return self.result.all_stats()


def with_boxes(predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Predictions of masks, each with the ``bbox`` (x, y, w, h) around its mask where it has none of its own."""
    from faster_coco_eval.core import mask as api

    found = []
    for number, p in enumerate(predictions):
        one = dict(p)
        if "bbox" not in one:
            runs = one["segmentation"]
            if not isinstance(runs, Mapping) or isinstance(runs["counts"], list):
                raise ValueError(f"prediction {number} has no bbox, and no compressed run lengths to make one of")
            one["bbox"] = [float(v) for v in api.toBbox(runs)]
        found.append(one)
    return found
