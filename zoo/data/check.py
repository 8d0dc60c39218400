"""What `zoo data check FOLDER` finds out: are these files a data set that can be trained on, and what is wrong with it.

Each data format has a checker, registered under the format's name; a format's own module may add one:

>>> @register_check(name="voc")
... class CheckVoc:
...     @staticmethod
...     def recognises(root): ...      # is the folder in this format?
...     @staticmethod
...     def check(root, **options): ...  # -> CheckReport
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.image_folder import class_folders, find_splits
from zoo.data.loading import ImageReadError, decode_image, is_image_file
from zoo.registry import Registry

#: Checkers by format name. A checker has ``recognises(root) -> bool`` and ``check(root, **options) -> CheckReport``.
CHECKS = Registry("data format", ("zoo.data",))
register_check = CHECKS.register

Progress = Callable[[int, int], None]
_CHUNK = 4096


@dataclass
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: "error" (training on it fails or learns something wrong) or "warning".
        kind: a short name: "broken", "empty_class", "duplicate", "leak", "conflict", ...
        message: a sentence.
        paths: the files it is about, relative to the folder.
    """

    severity: str
    kind: str
    message: str
    paths: list[str] = field(default_factory=list)


@dataclass
class CheckReport:
    """The result of a check.

    Attributes:
        root: the folder.
        format: what it was taken for.
        num_images: images found, the broken ones included.
        classes: class names in the order of their indices.
        histogram: split -> class -> number of images.
        sizes: "height" and "width", each min, median, max in pixels, of the readable images; empty if there is none.
        problems: what is wrong; :func:`check_folder` puts errors first.
        suggestions: sentences on what to do.
        details: what only this format has.
    """

    root: str
    format: str
    num_images: int = 0
    classes: list[str] = field(default_factory=list)
    histogram: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is no error (warnings there may be)."""
        return not any(p.severity == "error" for p in self.problems)

    def add(self, severity: str, kind: str, message: str, paths: Iterable[str] = ()) -> None:
        """Note a problem."""
        self.problems.append(Problem(severity, kind, message, list(paths)))

    def of_kind(self, kind: str) -> list[Problem]:
        """The problems of one kind."""
        return [p for p in self.problems if p.kind == kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for JSON."""
        return {"ok": self.ok, **asdict(self)}


def check_folder(root: str | os.PathLike, format: str | None = None, **options: Any) -> CheckReport:
    """Check a data set.

    Args:
        root: its folder.
        format: a name in :data:`CHECKS`; by default the first, by name, that recognises the folder, otherwise
            "image_folder".
        options: of the checker; all take ``progress(done, total)`` and ``workers``.

    Raises:
        FileNotFoundError: there is no such folder.
        LookupError: the format is unknown.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}" + (" (it is a file)" if root.exists() else ""))
    if format is None:
        others = (n for n in CHECKS.names() if n != "image_folder")
        format = next((n for n in others if CHECKS.get(n).recognises(root)), "image_folder")  # type: ignore[attr-defined]
    report = CHECKS.get(format).check(root, **options)  # type: ignore[attr-defined]
    report.problems.sort(key=lambda p: p.severity != "error")
    return report


@dataclass(frozen=True)
class ScannedImage:
    """What reading one file gave: its size if it can be decoded, otherwise the reason; a hash of its bytes."""

    path: str
    digest: str
    height: int = 0
    width: int = 0
    error: str | None = None


def scan_images(
    root: Path, paths: list[str], *, workers: int | None = None, progress: Progress | None = None
) -> list[ScannedImage]:
    """Decode every file ``root / path`` in threads; results in the order of ``paths``."""

    def scan(path: str) -> ScannedImage:
        try:
            data = (root / path).read_bytes()
        except OSError as error:
            return ScannedImage(path, "", error=error.strerror or str(error))
        digest = hashlib.blake2b(data, digest_size=16).hexdigest() if data else ""
        try:
            height, width = decode_image(data, path).shape[:2]
        except ImageReadError as error:
            return ScannedImage(path, digest, error=str(error).split(": ", 1)[-1])
        return ScannedImage(path, digest, height, width)

    results = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), _CHUNK):  # the pool holds one future for each file it was given
            for result in pool.map(scan, paths[start : start + _CHUNK]):
                results.append(result)
                if progress:
                    progress(len(results), len(paths))
    return results


def note_scan(report: CheckReport, scanned: list[ScannedImage]) -> None:
    """Put what every image format has in common into the report: broken files and sizes."""
    report.num_images = len(scanned)
    for image in scanned:
        if image.error:
            report.add("error", "broken", f"{image.path} cannot be read: {image.error}", [image.path])
    good = [image for image in scanned if not image.error]
    if good:
        for side in ("height", "width"):
            values = [getattr(image, side) for image in good]
            report.sizes[side] = {"min": min(values), "median": int(np.median(values)), "max": max(values)}
    broken = len(scanned) - len(good)
    if broken:
        report.suggestions.append(
            f"{broken} of {len(scanned)} images cannot be read: replace or delete them, or train with on_error='skip'"
        )
    tiny = [image.path for image in good if min(image.height, image.width) < 8]
    if tiny:
        report.add("warning", "tiny", f"{len(tiny)} images are less than 8 pixels high or wide", tiny)


def duplicate_groups(scanned: list[ScannedImage]) -> list[list[str]]:
    """Groups of paths whose files are the same, byte for byte; empty files are not compared."""
    groups = defaultdict(list)
    for image in scanned:
        if image.digest:
            groups[image.digest].append(image.path)
    return [paths for paths in groups.values() if len(paths) > 1]


@register_check(name="image_folder")
class CheckImageFolder:
    """Class folders below ROOT, or below ROOT/train and ROOT/val."""

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether there are images in class folders."""
        return any(files for split in find_splits(root) if split for files in class_folders(split).values())

    @staticmethod
    def check(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
        """Check every file; problems of kinds broken, empty_class, missing_class, duplicate, conflict, leak, ..."""
        report = CheckReport(str(root), "image_folder")
        train, val = find_splits(root)
        folders = {"train" if val or train != root else "all": train}
        if val:
            folders["val"] = val
        owners: dict[str, tuple[str, str]] = {}  # path relative to root -> (split, class)
        for split, folder in folders.items():
            found = class_folders(folder)
            report.histogram[split] = {name: len(files) for name, files in found.items()}
            for name, files in found.items():
                owners.update({(folder / f).relative_to(root).as_posix(): (split, name) for f in files})
        first = next(iter(folders))
        report.classes = list(report.histogram[first])
        if not owners:
            _note_nothing_found(report, root, folders)
            return report
        _note_classes(report, first)
        for split, folder in folders.items():
            loose = sorted(p.relative_to(root).as_posix() for p in folder.iterdir() if is_image_file(p) and p.is_file())
            if loose:
                report.add("warning", "loose", f"{len(loose)} images of {split} lie outside the class folders", loose)
        scanned = scan_images(root, list(owners), workers=workers, progress=progress)
        note_scan(report, scanned)
        _note_duplicates(report, duplicate_groups(scanned), owners)
        _suggest(report, first)
        return report


def _note_nothing_found(report: CheckReport, root: Path, folders: dict[str, Path]) -> None:
    loose = sorted(p.name for p in root.iterdir() if is_image_file(p) and p.is_file())
    names = " and ".join(str(f) for f in folders.values())
    report.add("error", "no_images", f"there are no images in class folders below {names}", loose)
    hint = f" ({len(loose)} images lie directly in it)" if loose else ""
    report.suggestions.append(f"make one folder a class and put its images in it: {root}/<class>/<image>{hint}")


def _note_classes(report: CheckReport, first: str) -> None:
    for split, counts in report.histogram.items():
        empty = [name for name, count in counts.items() if not count]
        if empty:
            report.add("error", "empty_class", f"class folders of {split} without images: {', '.join(empty)}", empty)
        if split == first:
            continue
        unknown = sorted(set(counts) - set(report.classes))
        if unknown:
            report.add("error", "unknown_class", f"classes only in {split}: {', '.join(unknown)}", unknown)
        missing = sorted(set(report.classes) - set(counts))
        if missing:
            report.add(
                "warning", "missing_class", f"classes without a folder in {split}: {', '.join(missing)}", missing
            )
    if len(report.classes) == 1:
        report.add("error", "one_class", f"there is only one class, {report.classes[0]!r}; nothing can be told apart")


def _note_duplicates(report: CheckReport, groups: list[list[str]], owners: dict[str, tuple[str, str]]) -> None:
    for group in groups:
        splits = {owners[path][0] for path in group}
        classes = {owners[path][1] for path in group}
        listed = ", ".join(group)
        if len(classes) > 1:
            report.add("error", "conflict", f"the same image in classes {', '.join(sorted(classes))}: {listed}", group)
        if len(splits) > 1:
            report.add("error", "leak", f"the same image in train and val: {listed}", group)
        if len(classes) == len(splits) == 1:
            report.add("warning", "duplicate", f"the same image {len(group)} times: {listed}", group)
    kinds = Counter(p.kind for p in report.problems)
    if kinds["leak"]:
        report.suggestions.append("remove the images that train and val share: validation would be too good")
    if kinds["conflict"]:
        report.suggestions.append("decide on one class for the images that lie in several")
    if kinds["duplicate"]:
        report.suggestions.append("remove duplicates, or a random split puts copies on both sides")


def _suggest(report: CheckReport, first: str) -> None:
    counts = {name: count for name, count in report.histogram[first].items() if count}
    if not counts:
        return
    rare, common = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[common] > 10 * counts[rare]:
        message = f"class {common!r} has {counts[common]} images, {rare!r} only {counts[rare]}"
        report.add("warning", "imbalance", message)
        report.suggestions.append("classes are very uneven: look at the per-class table, not at accuracy alone")
    few = [name for name, count in counts.items() if count < 10]
    if few:
        report.add("warning", "few", f"fewer than 10 images in {', '.join(few)}", few)
    if len(report.histogram) == 1:
        report.suggestions.append("there is no val folder: a part of the images will be held out for validation")
    if report.sizes:
        median = min(report.sizes["height"]["median"], report.sizes["width"]["median"])
        if median < 96:
            report.suggestions.append(
                f"images are small (median {median} pixels): the transforms 'light' and a small input size fit them"
            )
