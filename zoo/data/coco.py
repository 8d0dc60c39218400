"""COCO's annotations: boxes, masks as polygons and run lengths, crowd regions; sparse category ids.

Format: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.detection import DetectionDataset, ObjectTable
from zoo.data.masks import as_text, compress_masks


class AnnotationError(ValueError):
    """A file of annotations that cannot be used; the message names the file and what is wrong in it."""


def read_coco(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a COCO annotations file, with the parts that detection needs.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: it is no JSON, or has no images, annotations and categories.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no annotations file {str(path)!r}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path} is no JSON: {error}") from None
    missing = (
        [k for k in ("images", "annotations", "categories") if not isinstance(content.get(k), list)]
        if isinstance(content, dict)
        else ["images"]
    )
    if missing:
        raise AnnotationError(f"{path} is no COCO annotations file: it has no list {', '.join(map(repr, missing))}")
    return content


def annotation_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation (polygons, run lengths, or compressed run lengths) as compressed run lengths, ``counts`` as
    text; without a polygon of three points they are of an empty mask.

    Raises:
        ValueError: run lengths of another size than the image, or that do not cover it.
    """
    from faster_coco_eval.core import mask as api

    if isinstance(segmentation, Mapping):
        if tuple(segmentation["size"]) != (height, width):
            raise ValueError(f"a mask of size {segmentation['size']} belongs to an image of {height} x {width} pixels")
        counts = segmentation["counts"]
        if not isinstance(counts, list):
            return {"size": [height, width], "counts": as_text(counts)}
        if sum(counts) != height * width or min(counts, default=0) < 0:
            raise ValueError(f"run lengths cover {sum(counts)} pixels, but the image has {height} x {width}")
        rle = api.frPyObjects(segmentation, height, width)
    else:
        polygons = [p for p in segmentation or () if len(p) >= 6]
        if not polygons:
            return compress_masks(np.zeros((1, height, width), bool))[0]
        rle = api.merge(api.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": as_text(rle["counts"])}


def annotation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask bool ``[height, width]`` of a COCO segmentation: polygons, run lengths, or compressed run lengths.

    Raises:
        ValueError: run lengths of another size than the image, or that do not cover it.
    """
    from faster_coco_eval.core import mask as api

    return api.decode(annotation_rle(segmentation, height, width)).astype(bool)


def has_segmentation(segmentation: Any) -> bool:
    """Whether an annotation says where the object is: run lengths, or at least one polygon of three points."""
    if isinstance(segmentation, Mapping):
        return bool(segmentation.get("counts")) and len(segmentation.get("size") or ()) == 2
    return isinstance(segmentation, Sequence) and any(
        isinstance(p, Sequence) and len(p) >= 6 and len(p) % 2 == 0 for p in segmentation
    )


def label_table(
    categories: Sequence[Mapping[str, Any]], labels: str = "contiguous"
) -> tuple[list[str], list[int], dict[int, int]]:
    """Class names, the category id of each label, and the label of each category id.

    Args:
        categories: COCO's.
        labels: "contiguous" numbers the categories 0, 1, ... in the order of their ids; "category_id" takes the ids
            themselves, with unused classes in the gaps, as the checkpoints of the DETR family do; "category_id - 1"
            begins with id 1, as torchvision's checkpoints do, whose class 0 is the background.

    Raises:
        ValueError: an unknown ``labels``, an id that occurs twice or is no number from 0.
    """
    ids = [c["id"] for c in categories]
    double = sorted(i for i, n in Counter(ids).items() if n > 1)
    if double:
        raise ValueError(f"category ids occur more than once: {double[:10]}")
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise ValueError(f"category ids {[i for i in ids if not isinstance(i, int) or i < 0][:5]} are no whole numbers")
    names = {c["id"]: str(c.get("name", c["id"])) for c in categories}
    if labels == "contiguous":
        order = sorted(ids)
    elif labels == "category_id":
        order = list(range(max(ids, default=-1) + 1))
    elif labels == "category_id - 1":
        if 0 in ids:
            raise ValueError("labels='category_id - 1': there is a category of id 0")
        order = list(range(1, max(ids, default=0) + 1))
    else:
        raise ValueError(f"labels={labels!r}: accepted are 'contiguous', 'category_id' and 'category_id - 1'")
    return [names.get(i, f"(no class {i})") for i in order], order, {c: k for k, c in enumerate(order) if c in names}


def find_image_folder(annotations: Path, first: str) -> Path:
    """The folder that a name of the annotations is relative to, looked for where COCO and its exporters put it.

    Raises:
        FileNotFoundError: the first image is in none of the usual places; the message lists them.
    """
    split = annotations.stem.removeprefix("instances_").removeprefix("_annotations.coco")
    above, here = annotations.parent.parent, annotations.parent
    places = [above / split, above / "images" / split, above / "images", here, here / "images", here / split, above]
    for place in places:
        if (place / first).is_file():
            return place
    listed = ", ".join(dict.fromkeys(str(p) for p in places))
    raise FileNotFoundError(f"image {first!r} of {annotations} is in none of {listed}; name the folder with images=")


class CocoDetection(DetectionDataset):
    """Images and boxes of a COCO annotations file.

    Args:
        annotations: the JSON file.
        images: folder of the images; by default the one of the usual places that has the first image.
        labels: how category ids become labels, see :func:`label_table`.
        with_masks: give ``masks`` too; every object that is no crowd region must have a segmentation then. Objects
            whose mask has no pixel (polygons thinner than one) are no targets.
        **common: ``transform``, ``seed``, ``on_error``, ``keep_empty``; see
            :class:`zoo.data.detection.DetectionDataset`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        AnnotationError: the file is no such JSON, image ids occur twice, an annotation is of an unknown image or
            category, or has no box; with masks also: annotations without a segmentation, or with run lengths of another
            size than their image.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike | None = None,
        *,
        labels: str = "contiguous",
        with_masks: bool = False,
        **common: Any,
    ):
        path = Path(annotations)
        content = read_coco(path)
        try:
            classes, category_ids, label_of = label_table(content["categories"], labels)
        except ValueError as error:
            raise AnnotationError(f"{path}: {error}") from None
        by_id = _images_by_id(path, content["images"])
        if images is None:
            images = find_image_folder(path, content["images"][0]["file_name"]) if content["images"] else path.parent
        if not Path(images).is_dir():
            raise FileNotFoundError(f"there is no folder {str(images)!r} of images")
        objects: dict[int, list[dict[str, Any]]] = {i: [] for i in by_id}
        for annotation in content["annotations"]:
            entry = _object(path, annotation, by_id, label_of)
            objects[annotation["image_id"]].append(entry)
        if with_masks:
            _check_segmentations(path, content["annotations"], by_id)
        records = [
            {
                "path": os.path.join(images, image["file_name"]),
                "id": number,
                "size": (image.get("height") or 0, image.get("width") or 0),
                "objects": objects[number],
            }
            for number, image in by_id.items()
        ]
        self.annotations = path
        super().__init__(ObjectTable.build(records, with_masks=with_masks), classes, category_ids, **common)


def _check_segmentations(path: Path, annotations: Sequence[Mapping[str, Any]], images: Mapping[int, Any]) -> None:
    without = [a.get("id") for a in annotations if not has_segmentation(a.get("segmentation"))]
    if without:
        raise AnnotationError(
            f"{path}: masks are wanted, but {len(without)} of {len(annotations)} annotations have no segmentation "
            f"(none, or no polygon of three points): ids {', '.join(map(repr, without[:10]))}"
            f"{' ...' if without[10:] else ''}"
        )
    for a in annotations:
        size = (images[a["image_id"]].get("height"), images[a["image_id"]].get("width"))
        if isinstance(a["segmentation"], Mapping) and all(size) and tuple(a["segmentation"]["size"]) != size:
            raise AnnotationError(
                f"{path}: annotation {a.get('id')!r} has a mask of size {list(a['segmentation']['size'])}, but image "
                f"{a['image_id']!r} is {list(size)} (height, width)"
            )


def _images_by_id(path: Path, images: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    double = [i for i, n in Counter(i.get("id") for i in images).items() if n > 1]
    if double:
        raise AnnotationError(f"{path}: image ids occur more than once: {double[:10]} ({len(double)} in all)")
    for image in images:
        if not isinstance(image.get("id"), int) or not image.get("file_name"):
            raise AnnotationError(f"{path}: image {dict(image)} needs a whole number 'id' and a 'file_name'")
    return {i["id"]: i for i in images}


def _object(
    path: Path, annotation: Mapping[str, Any], images: Mapping[int, Any], label_of: Mapping[int, int]
) -> dict[str, Any]:
    where = f"{path}: annotation {annotation.get('id')!r}"
    if annotation.get("image_id") not in images:
        raise AnnotationError(f"{where} is of image {annotation.get('image_id')!r}, which is not listed")
    if annotation.get("category_id") not in label_of:
        raise AnnotationError(f"{where} is of category {annotation.get('category_id')!r}, which is not listed")
    box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    if not box:
        image = images[annotation["image_id"]]
        if not segmentation or not image.get("height") or not image.get("width"):
            raise AnnotationError(f"{where} has neither a bbox nor a segmentation of an image of known size")
        box = box_of_mask(annotation_mask(segmentation, image["height"], image["width"]))
    if len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise AnnotationError(f"{where} has the bbox {box!r}; accepted is [x, y, width, height]")
    return {
        "box": box,
        "label": label_of[annotation["category_id"]],
        "crowd": bool(annotation.get("iscrowd", 0)),
        "area": annotation.get("area") if annotation.get("area") is not None else _mask_area(annotation, images),
        "segmentation": segmentation,
    }


def _mask_area(annotation: Mapping[str, Any], images: Mapping[int, Any]) -> float | None:
    """Pixels of an annotation's mask; None where there is none, or the image's size is not annotated."""
    from faster_coco_eval.core import mask as api

    image = images[annotation["image_id"]]
    size = (image.get("height"), image.get("width"))
    if not has_segmentation(annotation.get("segmentation")) or not all(size):
        return None
    try:
        return float(api.area(annotation_rle(annotation["segmentation"], *size)))
    except ValueError:  # reported where masks are wanted
        return None


def box_of_mask(mask: np.ndarray) -> list[float]:
    """x, y, width, height around a mask ``[H, W]``; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    x, y = int(columns[0]), int(rows[0])
    return [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)]
