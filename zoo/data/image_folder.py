"""Folders of images: one folder a class (ImageNet's layout), or a list of paths and labels."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.base import ImageDataset, stratified_split
from zoo.data.loading import is_image_file, read_image
from zoo.registry import did_you_mean

_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation", "test")


def find_splits(root: str | os.PathLike) -> tuple[Path, Path | None]:
    """The training and the validation folder below ``root``.

    ``root/train`` with ``root/val`` (or valid, validation, test) where they exist; otherwise ``root`` itself and None.

    Raises:
        FileNotFoundError: ``root`` is no folder.
    """
    root = _folder(root)
    train = next((root / n for n in _TRAIN_NAMES if (root / n).is_dir()), None)
    if train is None:
        return root, None
    return train, next((root / n for n in _VAL_NAMES if (root / n).is_dir()), None)


def class_folders(root: str | os.PathLike) -> dict[str, list[str]]:
    """Class name -> image files below its folder, as sorted paths relative to ``root`` with forward slashes.

    Raises:
        FileNotFoundError: ``root`` is no folder.
    """
    root = _folder(root)
    names = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    return {name: sorted(filter(is_image_file, _files(root, name))) for name in names}


def read_annotations(path: str | os.PathLike) -> tuple[list[tuple[str, str | int]], list[str] | None]:
    """Read a list of images and labels.

    Formats by file name: ``.txt`` lines ``path label`` (the path may hold spaces); ``.csv`` rows ``path,label`` with an
    optional header line that names these columns in any order; ``.json`` a list of ``{"path":, "label":}`` or of pairs,
    a dict path -> label, or ``{"classes": [...], "samples": <one of these>}``.

    Returns:
        Pairs of path and label (an int class index, or a class name), and the class names if the file gives them.

    Raises:
        ValueError: the file is empty or a line is malformed; the message has the line.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix == ".csv":
        pairs = _read_csv(path)
    elif path.suffix == ".txt":
        pairs = [
            _split_line(path, n, line)
            for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if line.strip()
        ]
    else:
        raise ValueError(f"annotations {str(path)!r} has an unknown ending; accepted are .txt, .csv and .json")
    return _numbered(path, pairs), None


class ImageFolder(ImageDataset):
    """Images in class folders below ``root``, or listed with their labels in an annotation file.

    Args:
        root: the folder of class folders (searched at any depth), or what the listed paths are relative to.
        annotations: a ``.txt``, ``.csv`` or ``.json`` list; see :func:`read_annotations`.
        classes: class names in the order of their indices; by default the sorted names of folders or labels.
        part: "all", or "train" / "val" for the two parts of a stratified split of these images.
        val_fraction: share of every class that part "val" has.
        split_seed: which split; the same for both parts.
        transform, seed, on_error: see :class:`~zoo.data.base.ImageDataset`.

    Raises:
        FileNotFoundError: ``root`` or the list does not exist.
        ValueError: there are no images, a class folder has none, or a label is no class.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        annotations: str | os.PathLike | None = None,
        *,
        classes: Sequence[str] | None = None,
        part: str = "all",
        val_fraction: float = 0.2,
        split_seed: int = 0,
        **common: Any,
    ):
        if part not in ("all", "train", "val"):
            raise ValueError(f"part={part!r} is unknown; accepted are 'all', 'train' and 'val'")
        self.root = _folder(root)
        if annotations is None:
            paths, labels, names = _from_folders(self.root, classes)
        else:
            paths, labels, names = _from_list(annotations, classes)
        if part != "all":
            chosen = stratified_split(labels, val_fraction, split_seed)[part == "val"]
            if not chosen:
                raise ValueError(
                    f"the {part!r} part of {str(self.root)!r} is empty: no class has two images to split between "
                    f"'train' and 'val'"
                )
            paths, labels = [paths[i] for i in chosen], [labels[i] for i in chosen]
        self.part = part
        # One array instead of many str objects: reading a list of str from workers copies its memory page by page.
        self._paths = np.array(paths, dtype=np.bytes_ if all(p.isascii() for p in paths) else np.str_)
        super().__init__(names, labels, **common)

    def load_image(self, index: int) -> np.ndarray:
        return read_image(self.path_of(index))

    def path_of(self, index: int) -> str:
        path = self._paths[index]
        return os.path.join(self.root, path.decode() if isinstance(path, bytes) else str(path))


def _folder(root: str | os.PathLike) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}" + (" (it is a file)" if root.exists() else ""))
    return root


def _files(root: Path, folder: str) -> Iterator[str]:
    """Files below ``root / folder``, relative to ``root``, with forward slashes; hidden folders are left out."""
    for entry in os.scandir(root / folder):  # strings, not Path objects: ImageNet has 1.3 million files
        name = f"{folder}/{entry.name}"
        if not entry.is_dir():
            yield name
        elif not entry.name.startswith("."):
            yield from _files(root, name)


def _from_folders(root: Path, classes: Sequence[str] | None) -> tuple[list[str], list[int], list[str]]:
    found = class_folders(root)
    if not any(found.values()):
        loose = sum(is_image_file(p) for p in root.iterdir())
        hint = f"; {loose} images lie in it directly, without class folders" if loose else ""
        raise ValueError(f"no images in class folders below {str(root)!r}{hint}; expected {str(root)}/<class>/<image>")
    if classes is None:
        empty = [name for name, files in found.items() if not files]
        if empty:
            raise ValueError(
                f"class folders without images below {str(root)!r}: {', '.join(empty)}; "
                f"remove them or name the classes with classes="
            )
        classes = list(found)
    index = {name: i for i, name in enumerate(classes)}
    paths, labels = [], []
    for name, files in found.items():
        if name not in index:
            raise ValueError(f"folder {str(root / name)!r} is none of the classes{did_you_mean(name, index)}")
        paths += files
        labels += [index[name]] * len(files)
    return paths, labels, list(classes)


def _from_list(annotations: str | os.PathLike, classes: Sequence[str] | None) -> tuple[list[str], list[int], list[str]]:
    pairs, own_classes = read_annotations(annotations)
    if not pairs:
        raise ValueError(f"annotations {str(annotations)!r} has no samples")
    names = list(classes or own_classes or ())
    given = [label for _, label in pairs]
    if not names:
        numbers = [x for x in given if isinstance(x, int)]
        if len(numbers) == len(given):
            names = [str(i) for i in range(max(numbers) + 1)]
        else:
            names = sorted({str(x) for x in given})
    index = {name: i for i, name in enumerate(names)}
    labels = []
    for path, label in pairs:
        number = label if isinstance(label, int) else index.get(label, -1)
        if not 0 <= number < len(names):
            raise ValueError(
                f"annotations {str(annotations)!r}: label {label!r} of {path!r} is none of the {len(names)} classes"
                + (did_you_mean(label, names) if isinstance(label, str) else "")
            )
        labels.append(number)
    return [path for path, _ in pairs], labels, names


def _split_line(path: Path, number: int, line: str) -> tuple[str, str]:
    parts = line.strip().rsplit(None, 1)
    if len(parts) != 2:
        raise ValueError(f"{str(path)!r} line {number}: expected 'path label', got {line!r}")
    return parts[0], parts[1]


def _read_csv(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(n, [cell.strip() for cell in row]) for n, row in enumerate(csv.reader(file), 1) if any(row)]
    at_path, at_label = 0, 1
    if rows and {"path", "label"} <= {cell.lower() for cell in rows[0][1]}:
        header = [cell.lower() for cell in rows.pop(0)[1]]
        at_path, at_label = header.index("path"), header.index("label")
    pairs = []
    for number, row in rows:
        if len(row) <= max(at_path, at_label) or not row[at_path] or not row[at_label]:
            raise ValueError(f"{str(path)!r} line {number}: expected 'path,label', got {','.join(row)!r}")
        pairs.append((row[at_path], row[at_label]))
    return pairs


def _numbered(path: Path, pairs: list[tuple[str, str]]) -> list[tuple[str, str | int]]:
    """Labels of a text file are class indices if all of them are non-negative integers, otherwise names."""
    if not pairs:
        raise ValueError(f"annotations {str(path)!r} is empty")
    if all(label.isdecimal() for _, label in pairs):
        return [(p, int(label)) for p, label in pairs]
    return list(pairs)


def _read_json(path: Path) -> tuple[list[tuple[str, str | int]], list[str] | None]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"annotations {str(path)!r} is no JSON: {error}") from None
    classes = None
    if isinstance(content, dict) and isinstance(content.get("samples"), (list, dict)):
        classes = [str(c) for c in content["classes"]] if "classes" in content else None
        content = content["samples"]
    rows = list(content.items()) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError(f"annotations {str(path)!r} must hold a list of samples or a dict, not {content!r}")
    pairs: list[tuple[str, str | int]] = []
    for number, row in enumerate(rows):
        pair = (
            (row.get("path"), row.get("label"))
            if isinstance(row, dict)
            else tuple(row)
            if isinstance(row, (list, tuple))
            else ()
        )
        valid = len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], (int, str))
        if not valid or isinstance(pair[1], bool):
            raise ValueError(f"{str(path)!r} sample {number}: expected a path and a label, got {row!r}")
        pairs.append((pair[0], pair[1]))
    if not pairs:
        raise ValueError(f"annotations {str(path)!r} is empty")
    if len({type(label) for _, label in pairs}) > 1:
        raise ValueError(f"{str(path)!r}: labels must be all class indices or all class names")
    return pairs, classes
