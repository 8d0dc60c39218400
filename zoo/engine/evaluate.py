"""Evaluation of predictions that are in a file, whichever program wrote them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS
from PIL import Image

from zoo.data.coco import has_segmentation, read_coco
from zoo.data.detection import DetectionDataset
from zoo.engine.config import ConfigError
from zoo.engine.config_data import evaluated_data
from zoo.metrics.coco import CocoResult, coco_truth, evaluate_boxes, write_classes, write_report
from zoo.metrics.coco_masks import check_masks, evaluate_masks, with_boxes
from zoo.registry import accepted_arguments


def evaluate_predictions(
    config: str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    *,
    out_dir: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | Iterable[str] | None = None,
) -> CocoResult:
    """COCO's numbers for a results file.

    Where the predictions have a ``segmentation`` and the annotations too, masks are evaluated beside the boxes
    (:attr:`zoo.metrics.coco.CocoResult.masks`); a prediction without a box gets the one around its mask.

    Args:
        config: a config whose test data is of boxes, or a COCO annotations file (``.json``).
        predictions: JSON list of ``image_id``, ``category_id``, ``bbox`` (x, y, w, h) and ``score``, or, with masks,
            ``segmentation`` (compressed run lengths; with a ``bbox`` beside it also polygons or plain run lengths).
        out_dir: where to write tables and plots; None: nowhere.
        options: overrides of the config's keys.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the config's test data is not of boxes.
        ValueError: the file is no JSON, or a prediction is of an unknown image or category or not finite, or only
            some predictions have a mask, or masks are of another size than their image.
    """
    file = Path(predictions)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of predictions {str(file)!r}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    masks = isinstance(found, list) and any(isinstance(p, dict) and "segmentation" in p for p in found)
    if str(config).endswith(".json"):
        truth: dict[str, Any] = read_coco(config)
    else:
        truth = truth_of_config(config, options, masks=masks)
    masks = masks and any(has_segmentation(a.get("segmentation")) for a in truth["annotations"])
    try:
        if masks:
            check_masks(found)
            found = with_boxes(found)
        result = evaluate_boxes(truth, found)
        if masks:
            result.masks = evaluate_masks(truth, found)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if out_dir is not None:
        write_report(Path(out_dir), truth, found, result)
        if result.masks is not None:
            write_classes(Path(out_dir), result.masks, "_masks")
    return result


def truth_of_config(
    config: str | os.PathLike[str],
    options: Mapping[str, Any] | Iterable[str] | None = None,
    *,
    masks: bool = False,
) -> dict[str, Any]:
    """The annotations of a config's test data, as a COCO annotations file has them.

    With ``masks`` the objects have those too, where the data can give them.

    Raises:
        ConfigError: the test data is not of boxes.
    """
    spec, kind = evaluated_data(config, options)
    if masks and kind is not None and "with_masks" in accepted_arguments(kind)[0]:
        spec["with_masks"] = True
    dataset = DATASETS.build(spec)
    if not isinstance(dataset, DetectionDataset):
        raise ConfigError(f"the test data of {config} is {type(dataset).__name__}, which has no boxes")
    return truth_of_dataset(dataset)


def truth_of_dataset(dataset: DetectionDataset) -> dict[str, Any]:
    """The annotations of a dataset; sizes of images that are not annotated are read from the files' headers."""
    pairs = []
    for index in range(len(dataset)):
        row = int(dataset._indices[index])
        height, width = (int(v) for v in dataset.table.sizes[row])
        if not (height and width):
            with Image.open(dataset.path_of(index)) as image:
                width, height = image.size
        head = {"id": int(dataset.table.image_ids[row]), "height": height, "width": width}
        pairs.append(({**head, "file_name": dataset.path_of(index)}, dataset.ground_truth(index, (height, width))))
    return coco_truth(pairs, dataset.classes, dataset.category_ids)
