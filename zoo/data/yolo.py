"""YOLO's folders: a text file of ``class cx cy w h`` lines (shares of the image's sides) for each image.

Layouts: ``images/train`` beside ``labels/train``, or ``train/images`` beside ``train/labels``, or texts beside images;
class names from ``data.yaml`` (``names:``) or ``classes.txt``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from zoo.data.coco import AnnotationError
from zoo.data.detection import DetectionDataset, ObjectTable
from zoo.data.loading import is_image_file
from zoo.data.text_lines import read_lines


def read_yolo(path: str | os.PathLike) -> list[tuple[int, list[float]]]:
    """Class number and box (x, y, w, h in shares of the sides) of each line; a polygon gives the box around it.

    Raises:
        AnnotationError: a line is malformed; the message names file and line.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            label, values = int(float(parts[0])), [float(v) for v in parts[1:]]
            if label != float(parts[0]) or label < 0:
                raise ValueError
        except ValueError:
            raise AnnotationError(
                f"{path} line {number}: expected 'class cx cy w h' in numbers, got {line!r}"
            ) from None
        if len(values) == 4:
            cx, cy, w, h = values
            found.append((label, [cx - w / 2, cy - h / 2, w, h]))
        elif len(values) >= 6 and len(values) % 2 == 0:
            points = np.array(values).reshape(-1, 2)
            low, high = points.min(0), points.max(0)
            found.append((label, [*low.tolist(), *(high - low).tolist()]))
        else:
            raise AnnotationError(
                f"{path} line {number}: expected 4 numbers or a polygon after the class, got {line!r}"
            )
    return found


def yolo_names(root: Path) -> list[str] | None:
    """Class names of ``data.yaml`` (or another YAML with ``names:``) or ``classes.txt``; None where there are none."""
    for file in [root / "data.yaml", *sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))]:
        if not file.is_file():
            continue
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise AnnotationError(f"{file} is no YAML: {error}") from None
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            return [str(names.get(i, f"(no class {i})")) for i in range(max(names, default=-1) + 1)]
        if isinstance(names, list):
            return [str(n) for n in names]
    file = root / "classes.txt"
    return read_lines(file) if file.is_file() else None


def yolo_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Split ("train", "val", ... or "all") -> folders of its images and of its texts."""
    found: dict[str, tuple[Path, Path]] = {}
    for split, names in (("train", ("train",)), ("val", ("val", "valid", "validation")), ("test", ("test",))):
        for name in names:
            if (root / "images" / name).is_dir():
                found.setdefault(split, (root / "images" / name, root / "labels" / name))
            elif (root / name / "images").is_dir():
                found.setdefault(split, (root / name / "images", root / name / "labels"))
    if not found and (root / "images").is_dir():
        found["all"] = (root / "images", root / "labels" if (root / "labels").is_dir() else root / "images")
    elif not found:
        found["all"] = (root, root)
    return found


def yolo_pairs(images: Path, texts: Path) -> list[tuple[Path, Path]]:
    """Each image with its text, which need not be there (an image without objects)."""
    files = sorted(p for p in images.rglob("*") if is_image_file(p))
    return [(p, texts / p.relative_to(images).with_suffix(".txt")) for p in files]


class YoloDetection(DetectionDataset):
    """Images and boxes of a folder in YOLO's layout; an image without a text has no objects.

    Args:
        root: the folder, with ``data.yaml`` or ``classes.txt`` and the splits.
        split: "train", "val" or "test"; None for a folder without splits.
        classes: class names, instead of those of the folder.
        **common: ``transform``, ``seed``, ``on_error``, ``keep_empty``; see
            :class:`zoo.data.detection.DetectionDataset`.

    Raises:
        FileNotFoundError: there is no such folder or split.
        AnnotationError: a line is malformed, or names a class that there is not.
    """

    def __init__(
        self, root: str | os.PathLike, split: str | None = None, *, classes: Sequence[str] | None = None, **common: Any
    ):
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {str(root)!r}")
        folders = yolo_folders(root)
        split = split or ("all" if "all" in folders else "train")
        if split not in folders:
            raise FileNotFoundError(f"{root} has no split {split!r}; it has {', '.join(folders)}")
        records, largest = [], -1
        names = list(classes) if classes is not None else yolo_names(root)
        for number, (image, text) in enumerate(yolo_pairs(*folders[split])):
            objects = []
            for label, box in read_yolo(text) if text.is_file() else ():
                largest = max(largest, label)
                if names is not None and label >= len(names):
                    raise AnnotationError(f"{text}: class {label} is none of the {len(names)} classes")
                objects.append({"box": box, "label": label})
            records.append({"path": str(image), "id": number + 1, "objects": objects})
        names = [str(i) for i in range(largest + 1)] if names is None else names
        super().__init__(ObjectTable.build(records, relative=True), names, range(len(names)), **common)
