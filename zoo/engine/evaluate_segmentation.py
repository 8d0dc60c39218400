"""Evaluation of masks in a folder, whichever program wrote them: label maps, or panoptic segments."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.coco_panoptic import numbered, read_ids
from zoo.data.label_maps import apply_lookup, read_mask
from zoo.data.mask_folder import MaskFolder, files_by_stem, guess_suffix
from zoo.data.segmentation import SegmentationDataset
from zoo.engine.config import ConfigError
from zoo.engine.config_data import evaluated_data
from zoo.metrics.boundary import boundary_counts, boundary_scores
from zoo.metrics.panoptic import PanopticResult, panoptic_counts, panoptic_result, write_panoptic_report
from zoo.metrics.semantic import PixelTotals, SemanticResult, count_pairs, write_semantic_report

#: what the numbers in a folder of label maps may mean
NUMBERS = ("classes", "masks")


def evaluate_mask_folder(
    config: str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    *,
    numbers: str = "classes",
    boundary: bool = False,
    out_dir: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | Iterable[str] | None = None,
) -> SemanticResult | PanopticResult:
    """The scores of a folder of masks on a config's test data.

    A folder with a JSON of ``annotations`` with ``segments_info`` is panoptic (COCO's format: the JSON and PNG files,
    in the folder or in one with the JSON's name); every other one holds a label map for each image, of the same
    relative name, apart from its ending and from a suffix that all have ("_pred"). Label maps are of the size of the
    original images.

    Args:
        config: a config whose test data has semantic or panoptic targets.
        predictions: the folder.
        numbers: of label maps: "classes" for class indices from 0, "masks" for the numbers that the true masks have
            (ADE20K's from 1, Cityscapes' ids); the ignore index says that nothing was predicted.
        boundary: label maps: the boundary score too.
        out_dir: where to write tables and plots; None: nowhere.
        options: overrides of the config's keys.

    Raises:
        FileNotFoundError: there is no such folder, or images have no prediction; the message names the first.
        ConfigError: the config's test data has no such targets.
        MaskError, ImageReadError, ValueError: a prediction cannot be read, is of another size, or has wrong numbers;
            the message names the file.
    """
    folder = Path(predictions)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of predictions {str(folder)!r}")
    dataset = data_to_test(config, options)
    content = _panoptic_content(folder)
    if content is not None:
        if boundary or numbers != "classes":
            raise ValueError(f"boundary={boundary}, numbers={numbers!r} go with label maps, but {folder} is panoptic")
        result: Any = _evaluate_panoptic(config, dataset, folder, content)
        if out_dir is not None:
            write_panoptic_report(Path(out_dir), result)
        return result
    result = _evaluate_semantic(config, dataset, folder, numbers, boundary)
    if out_dir is not None:
        write_semantic_report(Path(out_dir), result)
    return result


def data_to_test(
    config: str | os.PathLike[str], options: Mapping[str, Any] | Iterable[str] | None = None
) -> SegmentationDataset:
    """The test data of a config, without a transform.

    Raises:
        ConfigError: it is not of masks.
    """
    spec, kind = evaluated_data(config, options)
    if not (isinstance(kind, type) and issubclass(kind, SegmentationDataset)):
        raise ConfigError(f"the test data of {config} is {getattr(kind, '__name__', kind)}, which has no masks")
    own = {k: v for k, v in spec.items() if k not in ("type", "targets")}
    return kind(**{**own, "transform": None})


def _panoptic_content(folder: Path) -> dict[str, Any] | None:
    """The JSON of panoptic predictions in a folder, with the folder of its PNG files; None without one."""
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}") from None
        listed = content.get("annotations") if isinstance(content, dict) else None
        if isinstance(listed, list) and all("segments_info" in a and "file_name" in a for a in listed):
            own = file.with_suffix("")
            return {"file": file, "folder": own if own.is_dir() else folder, "annotations": listed}
    return None


def _size_of(dataset: SegmentationDataset, index: int) -> tuple[int, int]:
    height, width = dataset.load_image(index).shape[:2]
    return height, width


def _evaluate_semantic(
    config: Any, dataset: SegmentationDataset, folder: Path, numbers: str, boundary: bool
) -> SemanticResult:
    if numbers not in NUMBERS:
        raise ValueError(f"numbers={numbers!r}: accepted are {', '.join(map(repr, NUMBERS))}")
    if numbers == "masks" and not isinstance(dataset, MaskFolder):
        raise ConfigError(f"numbers='masks': the test data of {config} is {type(dataset).__name__}, not mask files")
    files = prediction_files(dataset, folder)
    count, ignore = dataset.num_classes, dataset.ignore_index
    totals, outlines = PixelTotals(count), []
    for index, path in enumerate(files):
        size = _size_of(dataset, index)
        truth = dataset.load_annotation(index, size).semantic
        if truth is None:
            raise ConfigError(f"the test data of {config} has no semantic maps to compare label maps with")
        found = read_mask(path)
        if numbers == "masks":
            found = apply_lookup(found, dataset.lookup, path)  # type: ignore[attr-defined]
        pairs = count_pairs(found, truth, count, ignore_index=ignore, name=f"prediction {path!r}")
        totals.add(pairs)
        if boundary:
            outlines.append(boundary_counts(found, truth, count, ignore_index=ignore))
    result = totals.result(dataset.classes)
    if boundary:
        scores = boundary_scores(outlines)
        good = scores[~np.isnan(scores)]
        result.stats["boundary_F"] = float(good.mean()) if len(good) else float("nan")
    return result


def prediction_files(dataset: SegmentationDataset, folder: Path) -> list[str]:
    """The label map of each image of a data set, in its order.

    The name of a prediction is that of the image relative to the folder that all images have in common, or its file's
    name alone, without endings.

    Raises:
        FileNotFoundError: images have none; the message names the first.
        ValueError: two images have one name.
    """
    files = files_by_stem(folder)
    images = [os.path.splitext(dataset.path_of(i))[0].replace(os.sep, "/") for i in range(len(dataset))]
    common = os.path.commonpath([os.path.dirname(i) or "." for i in images]) if images else ""
    relative = [os.path.relpath(i, common or ".").replace(os.sep, "/") for i in images]
    for names in (relative, [i.rsplit("/", 1)[-1] for i in images]):
        if len(set(names)) < len(names):
            continue
        suffix = guess_suffix(names, list(files))
        missing = [n for n in names if n + suffix not in files]
        if len(missing) < len(names):
            if missing:
                raise FileNotFoundError(
                    f"{len(missing)} of {len(names)} images have no prediction in {str(folder)!r}, such as "
                    f"{missing[0]!r}"
                )
            return [files[n + suffix] for n in names]
    raise FileNotFoundError(f"no image has a prediction of its name in {str(folder)!r}: expected is {relative[0]!r}")


def _evaluate_panoptic(
    config: Any, dataset: SegmentationDataset, folder: Path, content: Mapping[str, Any]
) -> PanopticResult:
    label_of = {c: k for k, c in enumerate(dataset.category_ids)}
    by_image: dict[int, Mapping[str, Any]] = {}
    for a in content["annotations"]:
        if a.get("image_id") in by_image:
            raise ValueError(f"{content['file']}: image {a['image_id']!r} has two predictions")
        by_image[a["image_id"]] = a
    ids = [int(dataset.image_ids[dataset._indices[i]]) for i in range(len(dataset))]
    missing = [i for i in ids if i not in by_image]
    if missing:
        raise FileNotFoundError(
            f"{content['file']}: {len(missing)} of {len(ids)} images have no prediction, such as image {missing[0]}"
        )
    unknown = sorted(set(by_image) - set(ids))
    if unknown:
        raise ValueError(f"{content['file']} has predictions of images {unknown[:5]}, which the test data lacks")
    counts = np.zeros((dataset.num_classes, 4))
    for index, number in enumerate(ids):
        annotation = by_image[number]
        path = content["folder"] / annotation["file_name"]
        segments = []
        for s in annotation["segments_info"]:
            if s.get("category_id") not in label_of:
                raise ValueError(
                    f"{content['file']}: segment {s.get('id')} of {annotation['file_name']!r} is of category "
                    f"{s.get('category_id')!r}, which there is not"
                )
            segments.append({"id": int(s["id"]), "label": label_of[s["category_id"]]})
        truth = dataset.load_annotation(index, _size_of(dataset, index))
        if truth.segments is None:
            raise ConfigError(f"the test data of {config} has no panoptic segments")
        found, kept = numbered(read_ids(path), segments, str(path))
        if len(kept) < len(segments):
            raise ValueError(f"{content['file']}: segments of {annotation['file_name']!r} have no pixel")
        counts += panoptic_counts(
            found, kept, truth.segments, truth.infos, dataset.num_classes, name=f"prediction {str(path)!r}"
        )
    return panoptic_result(counts, dataset.classes, dataset.things)
