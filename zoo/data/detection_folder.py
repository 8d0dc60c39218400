"""A folder of images with boxes in whatever of the known formats: which one it is, its splits, its classes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data.coco import AnnotationError, CocoDetection, read_coco
from zoo.data.detection import DetectionDataset
from zoo.data.voc import VocDetection, voc_files
from zoo.data.yolo import YoloDetection, yolo_folders, yolo_names, yolo_pairs

#: words in a file's or folder's name that say which split it is
_SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class FoundSplits:
    """What a folder holds.

    Attributes:
        format: of the annotations.
        splits: "train", "val", "test" or "all" -> the dataset's class and arguments, as a config has them.
    """

    format: str
    splits: dict[str, dict[str, Any]]

    def training(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Specs of the data to train on and to validate on; without a val split a fifth is held out.

        Raises:
            ValueError: there is nothing to train on.
        """
        train = self.splits.get("train") or self.splits.get("all")
        if train is None:
            raise ValueError(f"there are splits {', '.join(self.splits)}, but none to train on")
        val = self.splits.get("val") or self.splits.get("test")
        return (train, val) if val else ({**train, "part": "train"}, {**train, "part": "val"})


class FoundData(FoundSplits):
    """What a folder of images with boxes holds; the format is "coco", "voc" or "yolo"."""


def coco_files(root: Path) -> dict[str, Path]:
    """Split -> annotations file of a COCO-style folder: ``annotations/*.json``, ``*.json``, ``<split>/*.json``.

    Only files with images, annotations and categories count (COCO's captions and key points of people are left out).
    """
    files = [f for pattern in ("annotations/*.json", "*.json", "*/*.json") for f in sorted(root.glob(pattern))]
    found: dict[str, Path] = {}
    for file in dict.fromkeys(files):
        if not _looks_like_coco(file):
            continue
        words = f"{file.parent.name if file.parent != root else ''} {file.stem}".lower()
        split = next((s for s, names in _SPLIT_WORDS.items() if any(n in words for n in names)), "all")
        found.setdefault(split, file)
    return found


def _looks_like_coco(file: Path) -> bool:
    if file.stem.startswith(("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")):
        return False
    try:
        with file.open(encoding="utf-8") as opened:
            start = opened.read(1 << 16)
            if "{" not in start[:64]:
                return False
            content = json.loads(start + opened.read())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content)


def is_voc(root: Path) -> bool:
    """Whether there are XML files of objects."""
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    first = next(iter(sorted(folder.glob("*.xml"))), None)
    return first is not None and b"<annotation" in first.read_bytes()[:2048]


def is_yolo(root: Path) -> bool:
    """Whether images have texts of boxes."""
    for images, texts in yolo_folders(root).values():
        if images.is_dir() and texts.is_dir() and any(t.is_file() for _, t in yolo_pairs(images, texts)[:200]):
            return True
    return False


def find_detection_data(root: str | os.PathLike) -> FoundData:
    """What format a folder is in, and its splits.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is in none of the formats.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}" + (" (it is a file)" if root.exists() else ""))
    root = root.resolve()
    files = coco_files(root)
    if files:
        return FoundData("coco", {s: dict(type=CocoDetection, annotations=str(f)) for s, f in files.items()})
    if is_voc(root):
        lists = root / "ImageSets" / "Main"
        splits = [s for s in ("train", "val", "test") if (lists / f"{s}.txt").is_file()]
        classes = list(VocDetection(root).classes)  # of all splits together
        spec = dict(type=VocDetection, root=str(root), classes=classes)
        voc_files(root)
        return FoundData("voc", {s: {**spec, "split": s} for s in splits} or {"all": spec})
    if is_yolo(root):
        names = yolo_names(root)
        if names is None:
            sets = [YoloDetection(root, s) for s in yolo_folders(root)]
            longest: tuple[str, ...] = max((d.classes for d in sets), key=len)
            names = list(longest)
        spec = dict(type=YoloDetection, root=str(root), classes=names)
        return FoundData("yolo", {s: {**spec, "split": s} for s in yolo_folders(root)})
    raise ValueError(
        f"{root} is in none of the formats of detection: COCO (a JSON with images, annotations and categories), VOC "
        f"(XML files) or YOLO (texts of 'class cx cy w h' for images)"
    )


def build_dataset(spec: dict[str, Any], **more: Any) -> DetectionDataset:
    """The dataset of a spec of :class:`FoundData`."""
    arguments = {k: v for k, v in {**spec, **more}.items() if k != "type"}
    return spec["type"](**arguments)


def same_categories(a: DetectionDataset, b: DetectionDataset) -> None:
    """Raise AnnotationError unless two splits number the same classes alike."""
    if a.classes != b.classes or a.category_ids != b.category_ids:
        raise AnnotationError(
            f"the splits have other categories: {dict(zip(a.category_ids, a.classes))} to train on, "
            f"{dict(zip(b.category_ids, b.classes))} to validate on"
        )


__all__ = ["FoundData", "build_dataset", "coco_files", "find_detection_data", "is_voc", "is_yolo", "read_coco"]
