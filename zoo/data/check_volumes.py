"""What ``zoo data check`` finds out about volumes: files, grids, labels, classes, orientations, folds."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.check import CheckReport, Progress, register_check
from zoo.data.volume_folder import VolumeCase, VolumeFolder, find_volume_data, is_volume_folder, split_folds

_SHEAR = 1e-3
_FOLDS = 5


@dataclass
class _Looked:
    """What reading one case gave."""

    case: VolumeCase
    problems: list[tuple[str, str, str]] = field(default_factory=list)  # severity, kind, message
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    voxels: dict[int, int] = field(default_factory=dict)  # id in the file -> voxels
    digest: str = ""


@register_check(name="volumes")
class CheckVolumes:
    """Volumes in any layout of :mod:`zoo.data.volume_folder`."""

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether the folder has one of the layouts."""
        return is_volume_folder(root)

    @staticmethod
    def check(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> CheckReport:
        """Read every image and label; problems of kinds broken, missing, different_grid, unknown_label, ..."""
        report = CheckReport(str(root), "volumes")
        try:
            found = find_volume_data(root)
        except (ValueError, OSError) as error:
            report.add("error", "layout", str(error))
            return report
        report.classes, report.details["layout"] = list(found.classes), found.format
        report.details["channels"] = list(found.channels)
        if found.label_ids != list(range(len(found.classes))):
            report.details["ids of classes in files"] = dict(zip(found.classes, found.label_ids))
            report.suggestions.append(
                "ids of classes have gaps: training numbers the classes from 0, and writes the ids of the files into "
                "predictions, so that nothing has to be changed"
            )
        missing = set(found.missing_files())
        for name in sorted(missing):
            report.add("error", "missing", f"{_name(root, name)} is named but there is no such file", [name])
        cases = [c for c in (*found.cases, *found.test_cases) if not missing.intersection(c.files)]
        looked = []
        with ThreadPoolExecutor(workers or 4) as pool:
            for one in pool.map(lambda c: _look(c, found), cases):
                looked.append(one)
                if progress:
                    progress(len(looked), len(cases))
        for one in looked:
            for severity, kind, message in one.problems:
                report.add(severity, kind, message, [_name(root, f) for f in one.case.files])
        report.num_images = len(found.cases) + len(found.test_cases)
        if not report.num_images:
            report.add("error", "no_images", f"there are no cases in {root}")
        _note_geometry(report, looked)
        _note_classes(report, found, looked)
        _note_duplicates(report, found, looked)
        return report


def _look(case: VolumeCase, found: VolumeFolder) -> _Looked:
    from zoo.data.volume_grid import axis_codes
    from zoo.data.volumes import VolumeReadError, check_same_grid, read_channels, read_volume

    looked = _Looked(case)

    def add(severity: str, kind: str, message: str) -> None:
        looked.problems.append((severity, kind, message))

    image = label = None
    try:
        image = read_channels(case.images, len(found.channels), nan=np.nan, allow_missing_affine=True)
    except (VolumeReadError, OSError) as error:
        add("error", "broken", str(error))
    if case.label:
        try:
            label = read_volume(case.label, label=True, allow_missing_affine=True)
        except (VolumeReadError, OSError) as error:
            add("error", "broken", str(error))
    if image is not None:
        looked.shape, looked.spacing = image.shape, image.spacing
        looked.orientation = axis_codes(image.affine)
        looked.digest = hashlib.blake2b(image.data.tobytes(), digest_size=16).hexdigest()
        bad = image.data.size - int(np.count_nonzero(np.isfinite(image.data)))
        if bad:
            add("error", "nan", f"{image.path}: {bad} of {image.data.size} voxels are NaN or infinite")
        elif all(c.min() == c.max() for c in image.data):
            add("warning", "constant", f"{image.path} has the value {float(image.data.flat[0]):g} everywhere")
        if image.shear > _SHEAR:
            add(
                "warning",
                "sheared",
                f"{image.path} has axes that are not at right angles; distances in mm are not exact",
            )
    for volume in (image, label):
        if volume is not None and _has_no_affine(volume.header):
            add(
                "error",
                "no_affine",
                f"{volume.path} has no affine (sform and qform codes are 0); set it, or train with "
                f"allow_missing_affine=True",
            )
    if image is not None and label is not None:
        try:
            check_same_grid(image, label)
        except VolumeReadError as error:
            add("error", "different_grid", str(error))
    if label is not None:
        values, counts = np.unique(label.data, return_counts=True)
        looked.voxels = {int(v): int(n) for v, n in zip(values, counts)}
        unknown = {v: n for v, n in looked.voxels.items() if v not in found.label_ids}
        if unknown:
            listed = ", ".join(f"{v} ({n} voxels)" for v, n in list(unknown.items())[:5])
            add("error", "unknown_label", f"{label.path} has labels outside the class list: {listed}")
        if not any(v in found.label_ids[1:] for v in looked.voxels):
            add("warning", "empty_label", f"{label.path} has no voxel of any class")
    return looked


def _has_no_affine(header: Any) -> bool:
    return header is not None and int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0


def _note_geometry(report: CheckReport, looked: list[_Looked]) -> None:
    good = [one for one in looked if one.shape]
    if not good:
        return
    for i, axis in enumerate("xyz"):
        values = [int(one.shape[i]) for one in good]
        report.sizes[axis] = {"min": min(values), "median": int(np.median(values)), "max": max(values)}
    spacings = np.array([one.spacing for one in good])
    report.details["spacing in mm"] = {
        name: [round(float(v), 4) for v in values]
        for name, values in (
            ("min", spacings.min(0)),
            ("median", np.median(spacings, axis=0)),
            ("max", spacings.max(0)),
        )
    }
    codes = Counter(one.orientation for one in good)
    report.details["orientations"] = dict(codes)
    if len(codes) > 1:
        few = [one.case.name for one in good if one.orientation != codes.most_common(1)[0][0]]
        report.add("warning", "orientations", f"axes lead to different directions: {dict(codes)}", few)
        report.suggestions.append("turn all volumes to the same axes while they are read: orientation='RAS'")
    if (spacings.max(0) > 2 * spacings.min(0)).any():
        report.suggestions.append(
            "spacings differ by more than a factor of 2: resample while reading, spacing=(x, y, z); the data set's "
            "fingerprint plans one"
        )


def _note_classes(report: CheckReport, found: VolumeFolder, looked: list[_Looked]) -> None:
    """Histogram of the cases that have each class, and folds that have not all of them."""
    with_labels = [one for one in looked if one.case.label]
    held = {c.name for c in found.test_cases}
    for split, ones in (
        ("train", [o for o in with_labels if o.case.name not in held]),
        ("test", [o for o in with_labels if o.case.name in held]),
    ):
        if ones:
            report.histogram[split] = {
                name: sum(value in one.voxels for one in ones)
                for name, value in zip(found.classes[1:], found.label_ids[1:])
            }
    for name, count in report.histogram.get("train", {}).items():
        if not count:
            report.add("error", "empty_class", f"no case has class {name!r}", [name])
    if len(found.classes) < 2:
        report.add("error", "one_class", f"the only class is {found.classes[0]!r}; nothing can be told apart")
    if not found.cases:
        report.add("error", "no_labels", "no case has labels; nothing can be trained")
        return
    groups = len({c.group or c.name for c in found.cases})
    folds = min(_FOLDS, groups)
    report.details["cases"] = {"with labels": len(found.cases), "without": len(found.test_cases), "groups": groups}
    if folds < 2:
        report.add("warning", "few", "there is only one case (or patient); it cannot be trained on and validated on")
        return
    if groups < 2 * _FOLDS:
        report.add("warning", "few", f"there are only {groups} cases (or patients) to train on")
    voxels = {one.case.name: one.voxels for one in with_labels}
    for k, cases in enumerate(split_folds(found.cases, folds)):
        inside = {c.name for c in cases}
        for name, value in zip(found.classes[1:], found.label_ids[1:]):
            holders = [c.name for c in found.cases if value in voxels.get(c.name, ())]
            if not holders:
                continue
            if all(h in inside for h in holders):
                message = f"fold {k} of {folds} (seed 0) holds all cases of class {name!r}: none is left to train on"
                report.add("warning", "fold_without_class", message, holders)
            elif not inside.intersection(holders):
                message = f"fold {k} of {folds} (seed 0) has no case of class {name!r}: it is not validated there"
                report.add("warning", "fold_without_class", message)


def _note_duplicates(report: CheckReport, found: VolumeFolder, looked: list[_Looked]) -> None:
    groups = defaultdict(list)
    for one in looked:
        if one.digest:
            groups[one.digest].append(one.case)
    held = {c.name for c in found.test_cases}
    for cases in groups.values():
        if len(cases) < 2:
            continue
        names = [c.name for c in cases]
        leak = len({c.name in held for c in cases}) > 1 or len({c.group or c.name for c in cases}) > 1
        kind = "leak" if leak and any(n in held for n in names) else "duplicate"
        report.add(
            "error" if kind == "leak" else "warning",
            kind,
            f"the same image in cases {', '.join(names)}",
            [f for c in cases for f in c.images],
        )


def _name(root: Path, file: str) -> str:
    try:
        return Path(file).resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return file
