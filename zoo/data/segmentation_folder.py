"""A folder of images with masks in whatever of the known layouts: which one it is, its splits, its classes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.data.coco import AnnotationError
from zoo.data.coco_instances import CocoInstances
from zoo.data.coco_panoptic import CocoPanoptic, panoptic_images
from zoo.data.detection_folder import FoundSplits, coco_files
from zoo.data.label_maps import read_classes
from zoo.data.loading import is_image_file
from zoo.data.mask_folder import MaskFolder
from zoo.data.segmentation import SegmentationDataset
from zoo.data.segmentation_layouts import Ade20k, Cityscapes, VocSegmentation

_IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
_MASKS = ("masks", "mask", "annotations", "labels", "label", "ann_dir", "segmentations", "labelmaps")
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
#: files in which a folder of masks names its classes
CLASS_FILES = ("classes.txt", "labels.txt", "class_names.txt")


#: formats whose data are masks in files of their own, as :class:`zoo.data.mask_folder.MaskFolder` reads them
MASK_FORMATS = ("masks", "ade20k", "cityscapes", "voc_segmentation")


class FoundMasks(FoundSplits):
    """What a folder holds.

    Attributes:
        format: "masks", "ade20k", "cityscapes", "voc_segmentation", "coco_panoptic" or "coco".
        splits: "train", "val", "test" or "all" -> the dataset's class and arguments, as a config has them; those of
            format "masks" lack ``classes`` where no file names them.
    """

    @property
    def targets(self) -> tuple[str, ...]:
        """What there is to learn."""
        return {"coco_panoptic": ("panoptic",), "coco": ("instance",)}.get(self.format, ("semantic",))


def mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> folders of images and of masks, of the generic layouts.

    ``images/train`` with ``masks/train``, ``train/images`` with ``train/masks``, or ``images`` with ``masks`` (split
    "all"); the folders may also have the names in use elsewhere ("annotations", "labels", "ann_dir", "img_dir" ...).
    """
    found: dict[str, tuple[Path, Path]] = {}
    pairs = [(root / i, root / m) for i in _IMAGES for m in _MASKS if (root / i).is_dir() and (root / m).is_dir()]
    for images, masks in pairs:
        for split, names in _SPLITS.items():
            for name in names:
                if has_images(images / name) and has_images(masks / name):
                    found.setdefault(split, (images / name, masks / name))
    for split, names in _SPLITS.items():
        for name in names:
            for i in _IMAGES:
                for m in _MASKS:
                    if has_images(root / name / i) and has_images(root / name / m):
                        found.setdefault(split, (root / name / i, root / name / m))
    if not found:
        whole = next((pair for pair in pairs if has_images(pair[0]) and has_images(pair[1])), None)
        found = {} if whole is None else {"all": whole}
    return found


def has_images(folder: Path) -> bool:
    """Whether there is an image file at any depth."""
    return any(is_image_file(name) for _, _, files in os.walk(folder, followlinks=True) for name in files)


def panoptic_files(root: Path) -> dict[str, Path]:
    """Split -> panoptic JSON of a folder: ``annotations/panoptic_*.json``, ``panoptic*.json``, ``*.json``."""
    found: dict[str, Path] = {}
    for file in dict.fromkeys(f for p in ("annotations/*.json", "*.json") for f in sorted(root.glob(p))):
        if "panoptic" not in file.name and not file.with_suffix("").is_dir():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        listed = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(listed, list) or not listed or "segments_info" not in listed[0]:
            continue
        split = next((s for s, names in _SPLITS.items() if any(n in file.stem.lower() for n in names)), "all")
        found.setdefault(split, file)
    return found


def find_mask_data(root: str | os.PathLike) -> FoundMasks:
    """What layout a folder is in, and its splits.

    Known are Cityscapes, Pascal VOC, ADE20K, COCO panoptic, generic folders of images and masks, and COCO instances;
    the first that fits is taken.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is in none of the layouts.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}" + (" (it is a file)" if root.exists() else ""))
    root = root.resolve()
    for finder in (_cityscapes, _voc, _panoptic, _ade, _generic, _coco):
        found = finder(root)
        if found is not None and found.splits:
            return found
    raise ValueError(
        f"{root} is in none of the layouts of segmentation: folders 'images' and 'masks' (with 'train' and 'val' in "
        f"them or around them), ADE20K, Cityscapes, Pascal VOC, COCO panoptic (a JSON and a folder of PNG) or COCO "
        f"instances with masks"
    )


def _cityscapes(root: Path) -> FoundMasks | None:
    splits = [s for s in ("train", "val") if (root / "leftImg8bit" / s).is_dir() and (root / "gtFine" / s).is_dir()]
    return FoundMasks("cityscapes", {s: dict(type=Cityscapes, root=str(root), split=s) for s in splits})


def _voc(root: Path) -> FoundMasks | None:
    lists, masks = root / "ImageSets" / "Segmentation", root / "SegmentationClass"
    if not masks.is_dir() or not (root / "JPEGImages").is_dir():
        return None
    splits = [s for s in ("train", "val") if (lists / f"{s}.txt").is_file()]
    return FoundMasks("voc_segmentation", {s: dict(type=VocSegmentation, root=str(root), split=s) for s in splits})


def _ade(root: Path) -> FoundMasks | None:
    folders = {"train": "training", "val": "validation"}
    if not is_ade(root):
        return None
    splits = [s for s, n in folders.items() if (root / "images" / n).is_dir() and (root / "annotations" / n).is_dir()]
    return FoundMasks("ade20k", {s: dict(type=Ade20k, root=str(root), split=s) for s in splits})


def is_ade(root: Path) -> bool:
    """Whether it is ADE20K's scene parsing: by its folders and its files' names."""
    first = next(iter(sorted((root / "annotations" / "training").glob("*.png"))), None)
    return first is not None and first.name.startswith("ADE_")


def _panoptic(root: Path) -> FoundMasks | None:
    splits = {}
    for split, file in panoptic_files(root).items():
        spec = dict(type=CocoPanoptic, annotations=str(file))
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("images"):
            spec["images"] = str(panoptic_images(file, content["images"][0]["file_name"]))
        splits[split] = spec
    return FoundMasks("coco_panoptic", splits)


def _generic(root: Path) -> FoundMasks | None:
    named = next((root / n for n in CLASS_FILES if (root / n).is_file()), None)
    splits = {}
    for split, (images, masks) in mask_folders(root).items():
        spec: dict[str, Any] = dict(type=MaskFolder, images=str(images), masks=str(masks))
        if named is not None:
            spec["classes"] = str(named)
            if read_classes(named)[1] is not None:
                spec["mask_palette"] = True  # so that RGB masks in these colours are read, too
        splits[split] = spec
    return FoundMasks("masks", splits)


def _coco(root: Path) -> FoundMasks | None:
    splits = {s: dict(type=CocoInstances, annotations=str(f)) for s, f in coco_files(root).items()}
    for spec in splits.values():
        file = str(spec["annotations"])
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if not any(a.get("segmentation") for a in content["annotations"]):
            raise AnnotationError(f"{file} has boxes, but no masks ('segmentation')")
    return FoundMasks("coco", splits)


def mask_arguments(spec: dict[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`zoo.data.mask_folder.MaskFolder` that a spec of a mask format stands for."""
    kind = spec["type"]
    rest = {k: v for k, v in spec.items() if k not in ("type", "transform", "root", "split")}
    return rest if kind is MaskFolder else {**kind.arguments(spec["root"], spec["split"]), **rest}


def build_dataset(spec: dict[str, Any]) -> SegmentationDataset:
    """The dataset of a spec, without augmentation."""
    kind: Callable[..., SegmentationDataset] = spec["type"]
    return kind(**{k: v for k, v in spec.items() if k not in ("type", "transform")})
