"""What `zoo data check FOLDER` finds out about images with masks: values, histogram in pixels, sizes, palettes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from zoo.data.check import CheckReport, Progress, duplicate_groups, note_scan, register_check, scan_images
from zoo.data.coco import AnnotationError
from zoo.data.coco_panoptic import CocoPanoptic, read_ids
from zoo.data.detection_folder import is_voc
from zoo.data.label_maps import MAX_VALUES, MaskError, describe, label_lookup, read_classes, read_mask
from zoo.data.loading import ImageReadError
from zoo.data.mask_folder import files_by_stem, guess_suffix, pair_masks
from zoo.data.segmentation_folder import MASK_FORMATS, FoundMasks, find_mask_data, mask_arguments, panoptic_files
from zoo.data.text_lines import read_lines

T = TypeVar("T")
R = TypeVar("R")

#: more different values than this, without a list of classes, are no class indices
MANY_VALUES = 200
_NAMED = 5


@dataclass(frozen=True)
class ScannedMask:
    """What reading one mask gave: its size and how often each value occurs, or the reason why not."""

    path: str
    height: int = 0
    width: int = 0
    values: np.ndarray | None = None
    counts: np.ndarray | None = None
    palette: bytes | None = None
    fault: str = ""
    error: str = ""


def scan_mask(path: str, palette: Sequence[Sequence[int]] | None = None) -> ScannedMask:
    """Read a mask and count its values."""
    try:
        numbers = read_mask(path, palette)
    except MaskError as error:
        kind = "rgb_mask" if "RGB" in str(error) or "palette" in str(error) else "mask"
        return ScannedMask(path, fault=kind, error=str(error))
    except ImageReadError as error:
        return ScannedMask(path, fault="broken", error=str(error))
    with Image.open(path) as image:
        own = image.palette.tobytes() if image.mode == "P" and image.palette is not None else None
    counts = np.bincount(numbers.ravel())
    values = np.flatnonzero(counts)
    return ScannedMask(path, numbers.shape[0], numbers.shape[1], values, counts[values], own)


def in_threads(function: Callable[[T], R], items: Sequence[T], workers: int | None = None) -> Iterable[R]:
    """``function`` of each item, in their order, by threads."""
    with ThreadPoolExecutor(workers or 4) as pool:
        for start in range(0, len(items), 1024):  # the pool holds one future for each item it was given
            yield from pool.map(function, items[start : start + 1024])


def classes_of_values(values: np.ndarray, ignore_index: int = 255) -> dict[str, Any]:
    """Arguments of a mask folder that has no list of classes, from the values that occur in its masks.

    Values other than 255 are classes, named by their value, in ascending order. Masks of 0 and 255 alone have two
    classes.

    Returns:
        ``classes``, and ``label_map`` or ``ignore_index`` where the values are not 0, 1, ... already.

    Raises:
        ValueError: the values are too many for class indices, or there is only one.
    """
    found = [int(v) for v in np.sort(values)]
    if found == [0, ignore_index]:
        return {"classes": ["0", str(ignore_index)], "label_map": {0: 0, ignore_index: 1}}
    wide = bool(found) and found[-1] > 255
    classes = [v for v in found if wide or v != ignore_index]
    if len(classes) > MANY_VALUES:
        raise ValueError(
            f"the masks have {len(classes)} different values, too many to be taken for classes without a list of them; "
            f"write their names into classes.txt, one a line"
        )
    if len(classes) < 2:
        raise ValueError(f"the masks have the values {found} only; two classes are needed")
    more: dict[str, Any] = {} if not wide else {"ignore_index": MAX_VALUES - 1}
    if classes != list(range(len(classes))):
        more["label_map"] = {v: k for k, v in enumerate(classes)}
    return {"classes": [str(v) for v in classes], **more}


def mask_values(found: FoundMasks, workers: int | None = None) -> np.ndarray:
    """The values that occur in any mask of a folder.

    Raises:
        MaskError: a mask cannot be read, or is none.
        FileNotFoundError: images have no masks.
    """
    seen = np.zeros(MAX_VALUES, bool)
    for spec in found.splits.values():
        arguments = mask_arguments(spec)
        pairs = pair_masks(arguments["images"], arguments["masks"])
        missing = [image for image, mask in pairs if mask is None]
        if missing:
            raise FileNotFoundError(f"{len(missing)} images have no mask, such as {missing[0]!r}")
        for mask in in_threads(scan_mask, [str(m) for _, m in pairs], workers):
            if mask.values is None:
                raise MaskError(mask.error)
            seen[mask.values] = True
    return np.flatnonzero(seen)


@register_check(name="masks")
class CheckMasks:
    """Images with a mask file each: generic folders, ADE20K, Cityscapes, Pascal VOC."""

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether there are folders of images and of masks (folders that have boxes too are taken for those)."""
        if is_voc(root) or panoptic_files(root):
            return False
        try:
            return find_mask_data(root).format in MASK_FORMATS
        except (ValueError, FileNotFoundError):
            return False

    @staticmethod
    def check(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
        """Check every image and its mask; problems of kinds missing_mask, size_mismatch, values, rgb_mask, broken,
        all_ignored, palette, binary, leak, ..."""
        report = CheckReport(str(root), "masks")
        try:
            found = find_mask_data(root)
        except ValueError as error:
            report.add("error", "no_images", str(error))
            return report
        if found.format not in MASK_FORMATS:
            report.add("error", "no_images", f"{root} holds data of format {found.format}, not images with mask files")
            return report
        report.format = found.format
        _Check(report, root, found).run(workers, progress)
        return report


class _Check:
    """One check of a folder of masks."""

    def __init__(self, report: CheckReport, root: Path, found: FoundMasks):
        self.report, self.root, self.found = report, root.resolve(), found
        self.masks: dict[str, list[ScannedMask]] = {}
        self.images: dict[str, dict[str, str]] = {}  # split -> mask -> image
        self.splits: dict[str, str] = {}  # image -> split

    def name(self, path: str | Path) -> str:
        try:
            return Path(path).resolve().relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def run(self, workers: int | None, progress: Progress | None) -> None:
        report, arguments = self.report, mask_arguments(next(iter(self.found.splits.values())))
        classes, palette = arguments.get("classes"), arguments.get("mask_palette")
        if isinstance(classes, str):
            classes, colours = read_classes(classes)
            palette = colours if palette is True else palette
        for split, spec in self.found.splits.items():
            self._scan(split, mask_arguments(spec), palette, workers)
        scanned = scan_images(self.root, [self.name(i) for i in self.splits], workers=workers, progress=progress)
        note_scan(report, scanned)
        sizes = {s.path: (s.height, s.width) for s in scanned if not s.error}
        for split, masks in self.masks.items():
            for mask in masks:
                image = self.name(self.images[split][mask.path])
                if mask.error:
                    report.add("error", mask.fault, mask.error, [self.name(mask.path)])
                elif image in sizes and sizes[image] != (mask.height, mask.width):
                    height, width = sizes[image]
                    message = (
                        f"mask {self.name(mask.path)} is {mask.height} x {mask.width} pixels (height x width), "
                        f"its image {image} {height} x {width}"
                    )
                    report.add("error", "size_mismatch", message, [self.name(mask.path)])
        for group in duplicate_groups(scanned):
            splits = {self.splits[str(self.root / p)] for p in group if str(self.root / p) in self.splits}
            if len(splits) > 1:
                report.add(
                    "error", "leak", f"the same image in {' and '.join(sorted(splits))}: {', '.join(group)}", group
                )
        self._values(arguments, None if classes is None else list(classes))
        self._palettes()

    def _scan(
        self, split: str, arguments: dict[str, Any], palette: Sequence[Sequence[int]] | None, workers: int | None
    ) -> None:
        report = self.report
        names = arguments.get("names")
        listed = read_lines(names) if names else None
        suffixes = {k: arguments[k] for k in ("image_suffix", "mask_suffix") if k in arguments}
        try:
            pairs = pair_masks(arguments["images"], arguments["masks"], names=listed, **suffixes)
        except (FileNotFoundError, ValueError) as error:
            report.add("error", "no_images", f"{split}: {error}")
            return
        for image, mask in pairs:
            if image in self.splits:
                report.add("error", "leak", f"{self.name(image)} is in {self.splits[image]} and {split}", [image])
            self.splits[str(Path(image).resolve())] = split
            if mask is None:
                report.add("error", "missing_mask", f"image {self.name(image)} has no mask", [self.name(image)])
        self.images[split] = {mask: image for image, mask in pairs if mask is not None}
        known = set(self.images[split])
        if listed is None:
            suffix = suffixes.get("mask_suffix")
            everything = files_by_stem(arguments["masks"])
            if suffix is None:
                suffix = guess_suffix(list(files_by_stem(arguments["images"])), list(everything))
            alone = [self.name(p) for s, p in everything.items() if s.endswith(suffix) and p not in known]
            if alone:
                shown = ", ".join(alone[:_NAMED])
                report.add("warning", "mask_without_image", f"{len(alone)} masks have no image: {shown}", alone)
        self.masks[split] = list(in_threads(lambda p: scan_mask(p, palette), sorted(known), workers))

    def _values(self, arguments: dict[str, Any], classes: list[str] | None) -> None:
        report = self.report
        totals = np.zeros(MAX_VALUES, np.int64)
        for mask in (m for masks in self.masks.values() for m in masks):
            if mask.values is not None:
                totals[mask.values] += mask.counts
        values = np.flatnonzero(totals)
        options: dict[str, Any] = {
            k: arguments[k] for k in ("reduce_zero_label", "label_map", "ignore_index") if k in arguments
        }
        if classes is None:
            if not len(values):
                report.add("error", "no_images", "there is no mask that can be read")
                return
            try:
                inferred = classes_of_values(values)
            except ValueError as error:
                report.add("error", "values", str(error))
                return
            classes = inferred.pop("classes")
            options |= inferred
            report.suggestions.append(
                f"there is no classes.txt: the values {', '.join(map(str, classes[:20]))} are taken for the classes; "
                f"name them there, one a line"
            )
            if values.tolist() == [0, 255]:
                message = (
                    "masks have the values 0 and 255 only: 255 is taken for a class here, and elsewhere for 'ignored'"
                )
                report.add("warning", "binary", message)
        report.classes = list(classes)
        lookup = label_lookup(len(classes), **options)
        ignore = options.get("ignore_index", 255)
        for split, masks in self.masks.items():
            self._split_values(split, masks, lookup, ignore, totals)

    def _split_values(
        self, split: str, masks: list[ScannedMask], lookup: np.ndarray, ignore: int, totals: np.ndarray
    ) -> None:
        report = self.report
        pixels, ignored = np.zeros(len(report.classes), np.int64), 0
        for mask in masks:
            if mask.values is None or mask.counts is None:
                continue
            labels, where = lookup[mask.values], self.name(mask.path)
            wrong = mask.values[labels < 0]
            if len(wrong):
                shown = ", ".join(map(str, wrong[:10])) + (" ..." if len(wrong) > 10 else "")
                message = f"mask {where} has the values {shown}, which are no class; accepted are {describe(lookup)}"
                report.add("error", "values", message, [where])
            there = (labels >= 0) & (labels != ignore)
            np.add.at(pixels, labels[there], mask.counts[there])
            ignored += int(mask.counts[labels == ignore].sum())
            if not there.any() and not len(wrong):
                report.add(
                    "warning", "all_ignored", f"mask {where} has no pixel of a class: it teaches nothing", [where]
                )
        report.histogram[split] = dict(zip(report.classes, pixels.tolist()))
        report.details["numbers in the table"] = "pixels"
        total = int(pixels.sum()) + ignored
        if total:
            report.details[f"ignored pixels in {split}"] = f"{100 * ignored / total:.1f} %"
        empty = [c for c, n in zip(report.classes, pixels) if not n]
        if empty:
            listed = ", ".join(empty[:10]) + (" ..." if len(empty) > 10 else "")
            report.add("warning", "empty_class", f"classes without a pixel in {split}: {listed}", empty)
        rare = [c for c, n in zip(report.classes, pixels) if 0 < n < 1e-4 * pixels.sum()]
        if rare:
            listed = ", ".join(rare[:10]) + (" ..." if len(rare) > 10 else "")
            report.add(
                "warning", "rare_class", f"classes with less than 0.01 % of the pixels of {split}: {listed}", rare
            )

    def _palettes(self) -> None:
        """Palette images whose palettes differ were perhaps numbered differently."""
        own = Counter(m.palette for masks in self.masks.values() for m in masks if m.palette is not None)
        if len(own) > 1:
            usual = own.most_common(1)[0][0]
            odd = [
                self.name(m.path)
                for masks in self.masks.values()
                for m in masks
                if m.palette is not None and m.palette[: len(usual)] != usual[: len(m.palette)]
            ]
            if odd:
                shown = ", ".join(odd[:_NAMED])
                message = f"{len(odd)} masks have another palette than most; do their numbers mean the same? {shown}"
                self.report.add("warning", "palette", message, odd)


@register_check(name="coco_panoptic")
class CheckPanoptic:
    """COCO's panoptic JSON with its folder of PNG files."""

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether there is a JSON of panoptic segments."""
        return bool(panoptic_files(root))

    @staticmethod
    def check(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
        """Check every image and its segments."""
        report, root = CheckReport(str(root), "coco_panoptic"), root.resolve()
        owners: dict[str, str] = {}
        sizes: dict[str, tuple[int, int]] = {}
        try:
            splits = find_mask_data(root).splits
            datasets = {s: CocoPanoptic(**{k: v for k, v in d.items() if k != "type"}) for s, d in splits.items()}
        except (AnnotationError, FileNotFoundError, ValueError) as error:
            report.add("error", "annotations", str(error))
            return report
        for split, data in datasets.items():
            if report.classes and list(data.classes) != report.classes:
                report.add("error", "categories differ", f"{split} has other categories than the first split")
            report.classes = report.classes or list(data.classes)
            report.histogram[split] = dict.fromkeys(data.classes, 0)
            for row in range(len(data.paths)):
                image = _relative(str(data.paths[row]), root)
                if owners.get(image, split) != split:
                    report.add("error", "leak", f"{image} is in {owners[image]} and {split}", [image])
                owners[image] = split
                size = _check_segments(report, data, row, split, root)
                if size is not None:
                    sizes[image] = size
        missing = [p for p in owners if not (root / p).is_file()]
        for path in missing:
            report.add("error", "missing", f"{path} is listed but there is no such file", [path])
        scanned = scan_images(root, [p for p in owners if p not in set(missing)], workers=workers, progress=progress)
        note_scan(report, scanned)
        for one in scanned:
            size = sizes.get(one.path, (one.height, one.width))
            if not one.error and size != (one.height, one.width):
                message = (
                    f"the segments of {one.path} are {size[0]} x {size[1]} pixels, the image {one.height} x {one.width}"
                )
                report.add("error", "size_mismatch", message, [one.path])
        report.details["numbers in the table"] = "segments"
        return report


def _check_segments(
    report: CheckReport, data: CocoPanoptic, row: int, split: str, root: Path
) -> tuple[int, int] | None:
    """Note what is wrong with an image's segments; their size, where they can be read."""
    path = data.segments_of(row)
    where = _relative(str(path), root)
    try:
        ids = read_ids(path)
    except (ImageReadError, MaskError) as error:
        kind = "broken" if path.is_file() else "missing_mask"
        report.add("error", kind, str(error), [where])
        return None
    described = {i: data.classes[label] for i, label, _ in data._infos[row]}
    for name in described.values():
        report.histogram[split][name] += 1
    present = set(np.unique(ids).tolist()) - {0}
    strange, empty = sorted(present - set(described)), sorted(set(described) - present)
    if strange:
        report.add(
            "error", "unknown_segment", f"{where} has pixels of segments {strange[:5]} that the JSON lacks", [where]
        )
    if empty:
        report.add("warning", "empty_segment", f"{where} has no pixel of the segments {empty[:5]} of the JSON", [where])
    if not present:
        report.add("warning", "all_ignored", f"{where} has no segment", [where])
    return ids.shape[0], ids.shape[1]


def _relative(path: str, root: Path) -> str:
    try:
        return Path(path).resolve().relative_to(root).as_posix()
    except ValueError:
        return path
