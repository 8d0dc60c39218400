"""A folder of volumes in whatever of the known layouts: its cases, classes, channels, and folds by a seed.

Layouts: Medical Segmentation Decathlon ("msd"), nnU-Net's raw data ("nnunet"), Synapse / BTCV ("synapse"), ACDC
("acdc") and ``images/`` beside ``labels/`` ("plain").
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.text_lines import read_lines
from zoo.data.volumes import is_volume_file, read_volume, strip_ending

#: What labels 1 to 13 of the BTCV / Synapse abdomens are.
BTCV_CLASSES = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
#: What labels 1 to 3 of ACDC are.
ACDC_CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")

_LABEL_SUFFIXES = ("", "_label", "_labels", "_seg", "_segmentation", "_mask", "_gt")


@dataclass(frozen=True)
class VolumeCase:
    """One case: its images (one a channel, or one 4-D file of all channels) and its labels.

    Attributes:
        name: unique in the data set.
        images: files, or folders of DICOM series.
        label: file; None where there are no labels.
        group: cases of one group (a patient) go into the same fold; "" is a group of its own.
    """

    name: str
    images: tuple[str, ...]
    label: str | None = None
    group: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Images and label."""
        return (*self.images, self.label) if self.label else self.images


@dataclass
class VolumeFolder:
    """What a folder holds.

    Attributes:
        format: "msd", "nnunet", "synapse", "acdc" or "plain".
        cases: those with labels, by name.
        test_cases: those without, or that the layout sets apart.
        classes: names; a class index of this zoo is a position in it, and 0 is the background.
        label_ids: the id that each class has in files of labels; they need not be contiguous.
        channels: names of the images of a case.
        root: the folder.
    """

    format: str
    cases: list[VolumeCase]
    test_cases: list[VolumeCase]
    classes: list[str]
    label_ids: list[int]
    channels: list[str] = field(default_factory=lambda: ["image"])
    root: str = ""

    def missing_files(self) -> list[str]:
        """Files that are named but not there."""
        return [f for c in (*self.cases, *self.test_cases) for f in c.files if not os.path.exists(f)]


def find_volume_data(folder: str | os.PathLike, format: str | None = None) -> VolumeFolder:
    """What a folder of volumes holds, by its layout; the volumes themselves are not read.

    A "plain" folder without class names is the exception: its labels are read for the ids that occur. Its names come
    from ``classes.json`` (``{"0": "background", "1": "liver"}`` or the other way round), ``classes.txt`` (id 0 first, a
    line a class) or the ``labels`` of ``dataset.json``; the first two serve "synapse", too.

    Args:
        folder: its root.
        format: a layout's name; None tries them in the order of :data:`LAYOUTS`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has none of the layouts, no cases, or a dataset.json that says nothing usable.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}" + (" (it is a file)" if root.exists() else ""))
    root = root.resolve()
    if format is not None and format not in LAYOUTS:
        raise ValueError(f"format={format!r} is unknown; accepted are {', '.join(map(repr, LAYOUTS))}")
    for name, read in LAYOUTS.items():
        if format not in (None, name):
            continue
        found = read(root)
        if found is not None:
            found.root = str(root)
            found.cases.sort(key=lambda c: c.name)
            found.test_cases.sort(key=lambda c: c.name)
            names = [c.name for c in found.cases]
            if len(set(names)) < len(names):
                double = sorted({n for n in names if names.count(n) > 1})
                raise ValueError(f"{root}: several cases have the name {', '.join(double[:5])}")
            return found
    raise ValueError(
        f"{root} is in none of the layouts of volumes: dataset.json with a training list (MSD) or with imagesTr/*_0000 "
        f"(nnU-Net), img/ beside label/ (Synapse, BTCV), patientNNN/ (ACDC), images/ beside labels/"
    )


def is_volume_folder(folder: str | os.PathLike) -> bool:
    """Whether :func:`find_volume_data` would find volumes; labels are not read."""
    root = Path(folder)
    if (root / "dataset.json").is_file():
        return _has_volumes(root / "imagesTr") or _has_volumes(root / "images")
    pairs = [(p / "img", p / "label") for p in _synapse_roots(root)] + [_plain_folders(root)]
    return any(a is not None and b is not None and _has_volumes(b) for a, b in pairs) or bool(_acdc_patients(root))


def split_folds(cases: Sequence[VolumeCase], folds: int = 5, seed: int = 0) -> list[list[VolumeCase]]:
    """The cases of each fold; which is in which depends on the groups' names and the seed alone.

    Raises:
        ValueError: fewer than two folds, or fewer groups than folds.
    """
    groups = sorted({c.group or c.name for c in cases})
    if not 2 <= folds <= len(groups):
        raise ValueError(f"folds={folds} must be from 2 to the number of groups of cases, {len(groups)}")
    order = np.random.default_rng(seed).permutation(len(groups))
    fold_of = {groups[g]: i % folds for i, g in enumerate(order.tolist())}
    return [[c for c in cases if fold_of[c.group or c.name] == k] for k in range(folds)]


def fold_cases(
    cases: Sequence[VolumeCase], fold: int, folds: int = 5, seed: int = 0
) -> tuple[list[VolumeCase], list[VolumeCase]]:
    """The cases to train on and those of fold ``fold`` to validate on.

    Raises:
        ValueError: there is no such fold; also as :func:`split_folds`.
    """
    parts = split_folds(cases, folds, seed)
    if not 0 <= fold < folds:
        raise ValueError(f"fold={fold} must be from 0 to {folds - 1}")
    held = {c.name for c in parts[fold]}
    return [c for c in cases if c.name not in held], parts[fold]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; an object is expected")
    return content


def _classes(labels: Any, file: Path) -> tuple[list[str], list[int]]:
    """Names and ids of ``{"0": "background", ...}`` or ``{"background": 0, ...}``, by id, background first."""
    pairs: list[tuple[int, str]] = []
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"{file}: 'labels' is {labels!r}; expected are ids and names of classes")
    by_id = all(str(k).lstrip("-").isdigit() for k in labels)
    for key, value in labels.items():
        if isinstance(value, list | tuple):
            raise ValueError(f"{file}: class {key!r} is a region of several ids; only one id a class is supported")
        if key == "ignore" and not by_id:
            raise ValueError(f"{file}: an 'ignore' label is not supported; label every voxel or leave the case out")
        try:
            pairs.append((int(key), str(value)) if by_id else (int(value), str(key)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: label {key!r}: {value!r} has no integer id") from error
    pairs.sort()
    if len({i for i, _ in pairs}) < len(pairs) or len({n for _, n in pairs}) < len(pairs):
        raise ValueError(f"{file}: ids and names of classes must be different: {labels}")
    if pairs[0][0] < 0:
        raise ValueError(f"{file}: class id {pairs[0][0]} is negative")
    if pairs[0][0] != 0:
        pairs.insert(0, (0, "background"))
    return [n for _, n in pairs], [i for i, _ in pairs]


def _channels(content: dict[str, Any]) -> list[str]:
    named = content.get("channel_names") or content.get("modality") or {"0": "image"}
    if not isinstance(named, dict):
        return [str(n) for n in named]
    return [str(named[k]) for k in sorted(named, key=lambda k: int(k) if str(k).isdigit() else 0)]


def _msd(root: Path) -> VolumeFolder | None:
    file = root / "dataset.json"
    if not file.is_file():
        return None
    content = _read_json(file)
    training = content.get("training")
    if not isinstance(training, list):
        return None
    entries = [e for e in training if isinstance(e, dict) and {"image", "label"} <= set(e)]
    if len(entries) < len(training):
        raise ValueError(f"{file}: an entry of 'training' has no image or no label")
    if entries and not (root / entries[0]["image"]).exists() and _nnunet_files(root / "imagesTr", _ending(content)):
        return None  # an older nnU-Net's dataset.json lists names without the channel's number
    classes, ids = _classes(content.get("labels"), file)

    def case(image: str, label: str | None) -> VolumeCase:
        return VolumeCase(strip_ending(image), (str(root / image),), str(root / label) if label is not None else None)

    tests = [t if isinstance(t, str) else t["image"] for t in content.get("test") or []]
    return VolumeFolder(
        "msd", [case(e["image"], e["label"]) for e in entries], [case(t, None) for t in tests], classes, ids,
        _channels(content),
    )  # fmt: skip


def _ending(content: dict[str, Any]) -> str:
    return str(content.get("file_ending") or ".nii.gz")


def _nnunet_files(folder: Path, ending: str) -> dict[str, list[str]]:
    """Case -> files of its channels in order."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")) if folder.is_dir() else ():
        found.setdefault(file.name[: -len(ending) - 5], []).append(str(file))
    return found


def _nnunet(root: Path) -> VolumeFolder | None:
    file = root / "dataset.json"
    if not file.is_file():
        return None
    content = _read_json(file)
    ending = _ending(content)
    images = _nnunet_files(root / "imagesTr", ending)
    if not images:
        return None
    classes, ids = _classes(content.get("labels"), file)
    channels = _channels(content)
    cases, tests = [], []
    for name, files in images.items():
        if len(files) != len(channels):
            raise ValueError(f"{root}: case {name} has {len(files)} channel(s), dataset.json names {channels}")
        label = root / "labelsTr" / f"{name}{ending}"
        if label.exists():
            cases.append(VolumeCase(name, tuple(files), str(label)))
        else:
            tests.append(VolumeCase(name, tuple(files)))
    tests += [VolumeCase(n, tuple(f)) for n, f in _nnunet_files(root / "imagesTs", ending).items()]
    return VolumeFolder("nnunet", cases, tests, classes, ids, channels)


def _synapse_roots(root: Path) -> list[Path]:
    return [root, root / "Training", root / "RawData" / "Training", root / "Abdomen" / "RawData" / "Training"]


def _synapse(root: Path) -> VolumeFolder | None:
    base = next((p for p in _synapse_roots(root) if (p / "img").is_dir() and (p / "label").is_dir()), None)
    if base is None:
        return None

    def numbered(folder: Path) -> dict[str, str]:
        found = {}
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            number = re.search(r"(\d+)", file.name)
            if is_volume_file(file) and number:
                found[number[1]] = str(file)
        return found

    images, labels = numbered(base / "img"), numbered(base / "label")
    if not images:
        return None
    tests = {**{n: f for n, f in images.items() if n not in labels}, **numbered(base.parent / "Testing" / "img")}
    named = _class_file(root)
    classes, ids = named or (list(BTCV_CLASSES), list(range(len(BTCV_CLASSES))))
    return VolumeFolder(
        "synapse",
        [VolumeCase(strip_ending(f), (f,), labels[n]) for n, f in images.items() if n in labels],
        [VolumeCase(strip_ending(f), (f,)) for f in tests.values()],
        classes,
        ids,
        ["CT"],
    )


def _acdc_patients(root: Path) -> list[Path]:
    places = (root, root / "training", root / "database" / "training")
    return next((p for p in (sorted(q.glob("patient[0-9]*")) for q in places) if p), [])


def _acdc(root: Path) -> VolumeFolder | None:
    patients = _acdc_patients(root)
    if not patients:
        return None

    def frames(folders: list[Path]) -> list[VolumeCase]:
        cases = []
        for folder in folders:
            for file in sorted(folder.glob("*_frame[0-9][0-9].nii*")):
                label = file.with_name(file.name.replace(".nii", "_gt.nii", 1))
                cases.append(
                    VolumeCase(strip_ending(file), (str(file),), str(label) if label.exists() else None, folder.name)
                )
        return cases

    found = frames(patients)
    held = sorted((patients[0].parent.parent / "testing").glob("patient[0-9]*"))
    tests = [c for c in found if c.label is None] + (frames(held) if held and held[0] not in patients else [])
    cases = [c for c in found if c.label is not None]
    if not cases:
        return None
    return VolumeFolder("acdc", cases, tests, list(ACDC_CLASSES), list(range(4)), ["cine MRI"])


def _plain_folders(root: Path) -> tuple[Path | None, Path | None]:
    images = next((root / n for n in ("images", "imagesTr", "image") if (root / n).is_dir()), None)
    labels = next((root / n for n in ("labels", "labelsTr", "label", "masks") if (root / n).is_dir()), None)
    return images, labels


def _plain(root: Path) -> VolumeFolder | None:
    image_folder, label_folder = _plain_folders(root)
    if image_folder is None or label_folder is None:
        return None
    labels = {strip_ending(f): str(f) for f in sorted(label_folder.iterdir()) if is_volume_file(f)}
    images: dict[str, list[str]] = {}
    for file in sorted(image_folder.iterdir()):
        if not is_volume_file(file) and not _is_series(file):
            continue
        name = strip_ending(file) if file.is_file() else file.name
        numbered = re.fullmatch(r"(.+)_(\d{4})", name)
        if numbered and name not in labels:  # channels, as nnU-Net numbers them
            name = numbered[1]
        images.setdefault(name, []).append(str(file))
    if not images or not labels:
        return None
    cases: list[VolumeCase] = []
    tests: list[VolumeCase] = []
    for name, files in images.items():
        label = next((labels[name + s] for s in _LABEL_SUFFIXES if name + s in labels), None)
        (tests if label is None else cases).append(VolumeCase(name, tuple(files), label))
    counts = {len(files) for files in images.values()}
    if len(counts) > 1:
        raise ValueError(f"{root}: cases have different numbers of channels, {sorted(counts)}")
    file = root / "dataset.json"
    named = _class_file(root) or (_classes(_read_json(file).get("labels"), file) if file.is_file() else None)
    classes, ids = named or _found_classes(cases)
    count = counts.pop()
    channels = ["image"] if count == 1 else [f"image {i}" for i in range(count)]
    if file.is_file() and len(_channels(_read_json(file))) == count:
        channels = _channels(_read_json(file))
    return VolumeFolder("plain", cases, tests, classes, ids, channels)


def _class_file(root: Path) -> tuple[list[str], list[int]] | None:
    if (root / "classes.json").is_file():
        return _classes(_read_json(root / "classes.json"), root / "classes.json")
    if (root / "classes.txt").is_file():
        names = read_lines(root / "classes.txt")
        return _classes({str(i): n for i, n in enumerate(names)}, root / "classes.txt")
    return None


def _found_classes(cases: Sequence[VolumeCase]) -> tuple[list[str], list[int]]:
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda c: np.unique(read_volume(c.label, label=True, allow_missing_affine=True).data), cases)
        ids = sorted({0, *(int(i) for values in found for i in values)})
    return ["background", *(f"class {i}" for i in ids[1:])], ids


def _is_series(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    first = next((f for f in sorted(folder.iterdir()) if f.is_file() and not f.name.startswith(".")), None)
    if first is None:
        return False
    with first.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def _has_volumes(folder: Path) -> bool:
    return folder.is_dir() and any(is_volume_file(f) for f in folder.iterdir())


#: Readers of the layouts, in the order in which they are tried.
LAYOUTS: dict[str, Callable[[Path], VolumeFolder | None]] = {
    "msd": _msd,
    "nnunet": _nnunet,
    "synapse": _synapse,
    "acdc": _acdc,
    "plain": _plain,
}
