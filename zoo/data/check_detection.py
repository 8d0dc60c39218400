"""What `zoo data check FOLDER` finds out about images with boxes: ids, boxes, classes, missing and broken files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.check import CheckReport, Progress, duplicate_groups, note_scan, register_check, scan_images
from zoo.data.coco import AnnotationError, annotation_mask, box_of_mask, find_image_folder, read_coco
from zoo.data.detection_folder import coco_files, is_voc, is_yolo
from zoo.data.text_lines import read_lines
from zoo.data.voc import read_voc, voc_files, voc_image
from zoo.data.yolo import read_yolo, yolo_folders, yolo_names, yolo_pairs


class _Findings:
    """Objects of a data set as they are checked: what is wrong is counted by kind, and the first are named."""

    def __init__(self, report: CheckReport, root: Path):
        self.report, self.root = report, root
        self.images: dict[str, tuple[str, tuple[int, int] | None]] = {}  # file -> split, annotated size
        self.boxes: dict[str, list[Any]] = {}  # file -> boxes x, y, w, h
        self.relative = False
        self.with_objects: set[str] = set()
        self.named: dict[tuple[str, str], list[str]] = {}

    def note(self, severity: str, kind: str, where: str) -> None:
        self.named.setdefault((severity, kind), []).append(where)

    def image(self, path: Path, split: str, size: tuple[int, int] | None) -> str:
        name = self.name(path)
        if name in self.images:
            self.note("error" if self.images[name][0] != split else "warning", "image listed twice", name)
        self.images[name] = (split, size)
        return name

    def name(self, path: Path) -> str:
        try:
            return path.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            return str(path)

    def object(self, image: str, where: str, box: Iterable[float], label: str, *, crowd: bool = False) -> None:
        split, size = self.images[image]
        counts = self.report.histogram.setdefault(split, {})
        counts[label] = counts.get(label, 0) + 1
        x, y, w, h = (float(v) for v in box)
        if not np.isfinite([x, y, w, h]).all():
            self.note("error", "box not finite", where)
            return
        self.with_objects.add(image)
        if crowd:
            return
        self.boxes.setdefault(image, []).append((x, y, w, h))
        if w <= 0 or h <= 0:
            self.note("error", "degenerate box", where)
            return
        height, width = (1, 1) if self.relative else size or (0, 0)
        if not height or not width:
            return
        slack = 1e-4 if self.relative else 0.51
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            self.note("error", "box outside the image", where)
        elif min(x, y) < -slack or x + w > width + slack or y + h > height + slack:
            self.note("warning", "box beyond the border", where)

    def finish(self, *, workers: int | None, progress: Progress | None) -> None:
        """Read the images, then put everything into the report."""
        report = self.report
        missing = [n for n in self.images if not (self.root / n).is_file()]
        for name in missing:
            report.add("error", "missing", f"{name} is listed but there is no such file", [name])
        there = [n for n in self.images if n not in set(missing)]
        scanned = scan_images(self.root, there, workers=workers, progress=progress)
        note_scan(report, scanned)
        report.num_images = len(self.images)
        for image in scanned:
            size = self.images[image.path][1]
            if not image.error and size and min(size) > 0 and size != (image.height, image.width):
                where = f"{image.path} ({image.height} x {image.width} pixels, annotated {size[0]} x {size[1]})"
                self.note("error", "wrong image size", where)
        for group in duplicate_groups(scanned):
            if len({self.images[p][0] for p in group}) > 1:
                report.add("error", "leak", f"the same image in two splits: {', '.join(group)}", group)
        for (severity, kind), wheres in self.named.items():
            shown = ", ".join(wheres[:5]) + (f" and {len(wheres) - 5} more" if len(wheres) > 5 else "")
            report.add(severity, kind, f"{kind}, {len(wheres)} times: {shown}", wheres)
        empty = [n for n in self.images if n not in self.with_objects]
        if empty:
            message = f"{len(empty)} of {len(self.images)} images have no objects; they train the background"
            report.add("warning" if len(empty) < len(self.images) else "error", "no objects", message, empty)
        self._classes()
        self._details()

    def _classes(self) -> None:
        report = self.report
        for split, counts in report.histogram.items():
            rare = [c for c in report.classes if not counts.get(c)]
            if rare:
                listed = ", ".join(rare[:10]) + (" ..." if len(rare) > 10 else "")
                report.add("warning", "empty class", f"classes without an object in {split}: {listed}", rare)
        if not report.classes:
            report.add("error", "no classes", "there are no classes")

    def _details(self) -> None:
        report = self.report
        sides = [max(w, h) for boxes in self.boxes.values() for _, _, w, h in boxes]
        per_image = [len(b) for b in self.boxes.values()]
        report.details["objects"] = int(sum(per_image))
        if per_image:
            report.details["objects per image"] = {"median": int(np.median(per_image)), "max": int(max(per_image))}
            unit = "longer side as a share" if self.relative else "longer side in pixels"
            report.details[unit] = {"min": min(sides), "median": float(np.median(sides)), "max": max(sides)}


@register_check(name="coco")
class CheckCoco:
    """A COCO JSON beside its images, one for each split."""

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether there is a JSON with images, annotations and categories."""
        return bool(coco_files(root))

    @staticmethod
    def check(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
        """Check annotations and files of every split."""
        report = CheckReport(str(root), "coco")
        findings = _Findings(report, root)
        files = coco_files(root)
        if not files:
            report.add("error", "no_images", f"there is no COCO annotations file in {root}")
        for split, file in files.items():
            try:
                _check_coco_file(findings, split, file)
            except (AnnotationError, FileNotFoundError) as error:
                report.add("error", "annotations", str(error), [findings.name(file)])
        findings.finish(workers=workers, progress=progress)
        return report


def _check_coco_file(findings: _Findings, split: str, file: Path) -> None:
    report, content = findings.report, read_coco(file)
    where = findings.name(file)
    names = {c.get("id"): str(c.get("name", c.get("id"))) for c in content["categories"]}
    _check_ids(report, where, [c.get("id") for c in content["categories"]])
    if report.classes and report.classes != list(names.values()):
        report.add("error", "categories differ", f"{where} has other categories than the first file", [where])
    report.classes = report.classes or list(names.values())
    report.histogram.setdefault(split, dict.fromkeys(names.values(), 0))
    for what in ("images", "annotations"):
        double = [i for i, n in Counter(x.get("id") for x in content[what]).items() if n > 1]
        if double:
            severity = "error" if what == "images" else "warning"
            message = f"{where}: {len(double)} ids of {what} occur more than once: {double[:5]}"
            report.add(severity, f"duplicate {what} ids", message, [where])
    folder = find_image_folder(file, content["images"][0]["file_name"]) if content["images"] else file.parent
    images = {}
    for image in content["images"]:
        size = (image.get("height") or 0, image.get("width") or 0)
        images[image.get("id")] = (findings.image(folder / str(image.get("file_name")), split, size), size)
    crowds = 0
    for a in content["annotations"]:
        at = f"annotation {a.get('id')} of {where}"
        if a.get("image_id") not in images or a.get("category_id") not in names:
            kind = "unknown image id" if a.get("image_id") not in images else "unknown category id"
            findings.note("error", kind, at)
            continue
        image, size = images[a["image_id"]]
        box, segmentation = a.get("bbox"), a.get("segmentation")
        if not box and segmentation and min(size) > 0:
            box = box_of_mask(annotation_mask(segmentation, *size))
        if not box or len(box) != 4:
            findings.note("error", "no box", at)
            continue
        crowds += bool(a.get("iscrowd"))
        findings.object(image, at, box, names[a["category_id"]], crowd=bool(a.get("iscrowd")))
    if crowds:
        report.details[f"crowd regions in {split}"] = crowds


def _check_ids(report: CheckReport, where: str, ids: list[Any]) -> None:
    double = sorted(i for i, n in Counter(ids).items() if n > 1)
    if double:
        report.add("error", "duplicate category ids", f"{where}: category ids occur twice: {double}", [where])
    numbers = sorted(i for i in set(ids) if isinstance(i, int))
    report.details["category ids"] = numbers
    if not numbers:
        return
    gaps = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if gaps:
        report.details["gaps in category ids"] = gaps
        report.suggestions.append(
            f"category ids have {len(gaps)} gap(s); training numbers the classes 0 to {len(numbers) - 1} and writes "
            f"the file's ids into predictions, so that nothing has to be changed"
        )
    if numbers[0] == 0:
        message = f"{where}: a category has id 0; fine here, but other programs may take it for the background"
        report.add("warning", "label 0", message, [where])


@register_check(name="voc")
class CheckVoc:
    """Pascal VOC's folders, or XML files beside their images."""

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether there are XML files of objects."""
        return is_voc(root)

    @staticmethod
    def check(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
        """Check every XML file and its image."""
        report = CheckReport(str(root), "voc")
        findings = _Findings(report, root)
        splits = _voc_splits(findings, root)
        difficult = 0
        for file in voc_files(root):
            where, split = findings.name(file), splits.get(file.stem, "all")
            try:
                content = read_voc(file)
            except AnnotationError as error:
                report.add("error", "annotations", str(error), [where])
                continue
            image = findings.image(voc_image(root, file, content["filename"]), split, content["size"])
            for n, o in enumerate(content["objects"]):
                difficult += o["difficult"]
                findings.object(image, f"object {n} of {where}", o["box"], o["name"], crowd=o["difficult"])
        report.classes = sorted({c for counts in report.histogram.values() for c in counts})
        if difficult:
            report.details["difficult objects"] = difficult
        findings.finish(workers=workers, progress=progress)
        return report


def _voc_splits(findings: _Findings, root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for split in ("train", "val", "test"):
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            continue
        for line in read_lines(listed):
            stem = line.split()[0]
            if not ((root / "Annotations" / f"{stem}.xml").is_file() or (root / f"{stem}.xml").is_file()):
                findings.note("error", "missing annotation", f"{stem} of {split}.txt")
            if stem in found:
                findings.note("error", "image in two splits", stem)
            found[stem] = split
    return found


@register_check(name="yolo")
class CheckYolo:
    """YOLO's folders of images and texts."""

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether images have texts of boxes."""
        return is_yolo(root)

    @staticmethod
    def check(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
        """Check every image and its text."""
        report = CheckReport(str(root), "yolo")
        findings = _Findings(report, root)
        findings.relative = True
        names, numbers = yolo_names(root), set()
        if names is None:
            report.suggestions.append("there are no class names; put them into classes.txt, one a line, or data.yaml")
        for split, (images, texts) in yolo_folders(root).items():
            if names:
                report.histogram.setdefault(split, dict.fromkeys(names, 0))
            pairs = yolo_pairs(images, texts)
            known = {text for _, text in pairs}
            for path, text in pairs:
                image = findings.image(path, split, None)
                where = findings.name(text)
                if not text.is_file():
                    findings.note("warning", "no text", where)
                    continue
                try:
                    lines = read_yolo(text)
                except (AnnotationError, UnicodeDecodeError) as error:
                    report.add("error", "annotations", str(error), [where])
                    continue
                for n, (label, box) in enumerate(lines, 1):
                    numbers.add(label)
                    if names and label >= len(names):
                        findings.note("error", "unknown class", f"class {label} in line {n} of {where}")
                        continue
                    findings.object(image, f"line {n} of {where}", box, names[label] if names else str(label))
            for text in sorted(texts.rglob("*.txt")) if texts.is_dir() else ():
                if text not in known and text.stem not in ("classes", "train", "val", "test", "README"):
                    findings.note("warning", "text without an image", findings.name(text))
        report.classes = names or [str(i) for i in range(max(numbers, default=-1) + 1)]
        report.details["class numbers"] = sorted(numbers)
        if numbers and 0 not in numbers:
            report.add(
                "warning", "label 0", "class 0 does not occur: YOLO counts classes from 0, the file may count from 1"
            )
        findings.finish(workers=workers, progress=progress)
        return report
