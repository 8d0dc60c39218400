"""Public data sets of semantic segmentation as they are downloaded: ADE20K, Cityscapes, Pascal VOC, COCO-Stuff."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zoo.data.mask_folder import MaskFolder
from zoo.data.segmentation_classes import (
    ADE_CLASSES,
    ADE_COLOURS,
    CITYSCAPES_CLASSES,
    CITYSCAPES_COLOURS,
    CITYSCAPES_IDS,
    COCO_STUFF_CLASSES,
    COCO_STUFF_IDS,
    VOC_CLASSES,
    voc_colours,
)


class Ade20k(MaskFolder):
    """ADE20K's scene parsing (ADEChallengeData2016): ``images/training``, ``annotations/training`` and validation.

    Masks number the 150 classes from 1; 0 (other) is ignored: ``reduce_zero_label``.

    Args:
        root: the folder with ``images`` and ``annotations``.
        split: "train" or "val".
        **common: ``transform``, ``seed``, ``on_error`` ...; see :class:`zoo.data.mask_folder.MaskFolder`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an unknown split.
    """

    def __init__(self, root: str | os.PathLike, split: str = "train", **common: Any):
        super().__init__(**self.arguments(root, split), **common)

    @staticmethod
    def arguments(root: str | os.PathLike, split: str) -> dict[str, Any]:
        """What a :class:`MaskFolder` of this split is made with."""
        name, root = _split(split, {"train": "training", "val": "validation"}), Path(root)
        return dict(
            images=root / "images" / name,
            masks=root / "annotations" / name,
            classes=ADE_CLASSES,
            palette=ADE_COLOURS,
            reduce_zero_label=True,
            mask_suffix="",
        )


class Cityscapes(MaskFolder):
    """Cityscapes: ``leftImg8bit/<split>/<city>/*_leftImg8bit.png``, ``gtFine/<split>/<city>/*_gtFine_labelIds.png``.

    The 34 numbers of the masks become the 19 classes of evaluation; all others are ignored.

    Args:
        root: the folder with ``leftImg8bit`` and ``gtFine``.
        split: "train" or "val" ("test" has no true masks).
        **common: see :class:`zoo.data.mask_folder.MaskFolder`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an unknown split.
    """

    def __init__(self, root: str | os.PathLike, split: str = "train", **common: Any):
        super().__init__(**self.arguments(root, split), **common)

    @staticmethod
    def arguments(root: str | os.PathLike, split: str) -> dict[str, Any]:
        """What a :class:`MaskFolder` of this split is made with."""
        name, root = _split(split, {"train": "train", "val": "val"}), Path(root)
        return dict(
            images=root / "leftImg8bit" / name,
            masks=root / "gtFine" / name,
            classes=CITYSCAPES_CLASSES,
            palette=CITYSCAPES_COLOURS,
            label_map={number: CITYSCAPES_IDS.get(number, 255) for number in range(34)},
            image_suffix="_leftImg8bit",
            mask_suffix="_gtFine_labelIds",
        )


class VocSegmentation(MaskFolder):
    """Pascal VOC 2012: ``JPEGImages``, ``SegmentationClass`` and the lists of ``ImageSets/Segmentation``.

    Masks are palette images, or RGB images in VOC's colours; 255, the void around objects, is ignored.

    Args:
        root: the folder ``VOC2012``.
        split: "train", "val" or "trainval", or another list's name, such as "trainaug".
        masks: the folder of masks in ``root``, such as "SegmentationClassAug".
        **common: see :class:`zoo.data.mask_folder.MaskFolder`.

    Raises:
        FileNotFoundError: there is no such folder or list, or it names images that are not there.
    """

    def __init__(
        self, root: str | os.PathLike, split: str = "train", *, masks: str = "SegmentationClass", **common: Any
    ):
        super().__init__(**{**self.arguments(root, split), "masks": Path(root) / masks}, **common)

    @staticmethod
    def arguments(root: str | os.PathLike, split: str) -> dict[str, Any]:
        """What a :class:`MaskFolder` of this split is made with."""
        root = Path(root)
        listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listed.is_file():
            raise FileNotFoundError(f"there is no list {str(listed)!r} of split={split!r}")
        return dict(
            images=root / "JPEGImages",
            masks=root / "SegmentationClass",
            classes=VOC_CLASSES,
            names=listed,
            palette=voc_colours(len(VOC_CLASSES)),
            mask_palette=voc_colours(),
            mask_suffix="",
        )


class CocoStuff(MaskFolder):
    """COCO-Stuff's pixel maps (``stuffthingmaps_trainval2017``): 80 classes of things and 91 of stuff.

    Maps hold category ids less one, 0 to 181; the 171 ids that occur become the classes, and 255 is ignored.

    Args:
        images: such as ``train2017``.
        masks: such as ``stuffthingmaps/train2017``.
        **common: see :class:`zoo.data.mask_folder.MaskFolder`.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, images: str | os.PathLike, masks: str | os.PathLike, **common: Any):
        super().__init__(
            images,
            masks,
            COCO_STUFF_CLASSES,
            things=[i <= 91 for i in COCO_STUFF_IDS],
            category_ids=COCO_STUFF_IDS,
            label_map={i - 1: k for k, i in enumerate(COCO_STUFF_IDS)},
            mask_suffix="",
            **common,
        )


def _split(split: str, folders: dict[str, str]) -> str:
    if split not in folders:
        raise ValueError(f"split={split!r} is unknown; accepted are {', '.join(map(repr, folders))}")
    return folders[split]
