"""Bags of patch features of whole-slide images: a file a slide, coordinates beside the features, labels in a table.

A bag's file is HDF5 (``.h5``, ``.hdf5``) or safetensors, with ``features [N, D]`` and ``coords [N, 2]`` (x and y of a
patch's upper left corner, in pixels of the slide). HDF5 may have a leading axis of one (``[1, N, D]``), as some
extractors write it.
"""

from __future__ import annotations

import csv
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from zoo.classification.data_sample import ClsDataSample
from zoo.files import save_atomically
from zoo.registry import did_you_mean

#: Endings of files of bags.
BAG_ENDINGS = (".h5", ".hdf5", ".safetensors")
_SPLITS = ("train", "val", "all")


class BagError(ValueError):
    """A bag that cannot be used; the message names the file."""


@dataclass
class Bag:
    """The patches of one slide.

    Attributes:
        features: float32 ``[N, D]``.
        coords: float32 ``[N, 2]``, x and y in pixels of the slide.
        path: where it was read.
    """

    features: np.ndarray
    coords: np.ndarray
    path: str = ""


def is_bag_file(path: str | os.PathLike) -> bool:
    """Whether a file's name ends as one of a bag."""
    return str(path).lower().endswith(BAG_ENDINGS)


def read_bag(path: str | os.PathLike, dim: int | None = None) -> Bag:
    """Read a bag and check it.

    Args:
        path: of the file.
        dim: D that is expected; None takes any.

    Raises:
        FileNotFoundError: there is no such file.
        BagError: it cannot be read, lacks features or coordinates, has no patches, another width, or numbers that are
            not finite.
        ImportError: h5py is not installed.
    """
    where = str(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no bag {where!r}")
    if not is_bag_file(path):
        raise BagError(f"{where} is no bag: accepted are {', '.join(BAG_ENDINGS)}")
    content = _read_safetensors(where) if where.lower().endswith(".safetensors") else _read_hdf5(where)
    for name in ("features", "coords"):
        if name not in content:
            raise BagError(f"{where} has no {name!r}{did_you_mean(name, content)}; it has {', '.join(content)}")
    features, coords = (np.asarray(content[n]) for n in ("features", "coords"))
    if features.ndim == 3 and features.shape[0] == 1:
        features = features[0]
    if features.ndim != 2 or coords.ndim != 2 or coords.shape[1] != 2:
        raise BagError(
            f"{where} has features {list(features.shape)} and coords {list(coords.shape)}: accepted are [N, D] and "
            "[N, 2]"
        )
    if len(features) != len(coords):
        raise BagError(f"{where} has {len(features)} patches and {len(coords)} coordinates")
    if not len(features):
        raise BagError(f"{where} has no patches")
    if dim is not None and features.shape[1] != dim:
        raise BagError(f"{where} has features of width {features.shape[1]}, {dim} is expected")
    features, coords = features.astype(np.float32), coords.astype(np.float32)
    bad = int((~np.isfinite(features)).any(1).sum())
    if bad or not np.isfinite(coords).all():
        raise BagError(f"{where}: {bad} of {len(features)} patches have features that are not finite numbers"
                       if bad else f"{where} has coordinates that are not finite numbers")  # fmt: skip
    return Bag(features, coords, where)


def _read_hdf5(path: str) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("bags in HDF5 need h5py: pip install attnzoo[medical]") from error
    try:
        with h5py.File(path, "r") as file:
            return {k: v[()] for k, v in file.items() if isinstance(v, h5py.Dataset)}
    except OSError as error:
        raise BagError(f"{path} cannot be read as HDF5: {error}") from error


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            # numpy has no bfloat16, which features are often kept in
            return {k: file.get_tensor(k).float().numpy() for k in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise BagError(f"{path} cannot be read as safetensors: {error}") from error


def write_bag(path: str | os.PathLike, features: np.ndarray, coords: np.ndarray) -> Path:
    """Write a bag, atomically, in the format that the name's ending says.

    Raises:
        BagError: another ending.
        ImportError: h5py is not installed.
    """
    where = str(path).lower()
    if not is_bag_file(path):
        raise BagError(f"{path}: accepted are names that end in {', '.join(BAG_ENDINGS)}")
    content = {"features": np.asarray(features, np.float32), "coords": np.asarray(coords, np.float32)}
    if where.endswith(".safetensors"):
        from safetensors.numpy import save

        return save_atomically(path, lambda file: file.write(save(content)))
    try:
        import h5py
    except ImportError as error:
        raise ImportError("bags in HDF5 need h5py: pip install attnzoo[medical]") from error

    def write(file: Any) -> None:
        with h5py.File(file, "w") as target:
            for name, value in content.items():
                target.create_dataset(name, data=value)

    return save_atomically(path, write)


def read_slide_labels(path: str | os.PathLike) -> dict[str, str]:
    """Slide -> label of a CSV with the columns ``slide`` and ``label``, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        BagError: a column is missing, or a slide occurs twice or without a label.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no table of labels {str(path)!r}")
    found: dict[str, str] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"slide", "label"} - set(rows.fieldnames or ())
        if missing:
            raise BagError(f"{path} has the columns {rows.fieldnames}: 'slide' and 'label' are needed")
        for line, row in enumerate(rows, 2):
            slide, label = (row["slide"] or "").strip(), (row["label"] or "").strip()
            if not slide or not label:
                raise BagError(f"{path}, line {line}: a slide and its label are needed, got {dict(row)}")
            if slide in found:
                raise BagError(f"{path}, line {line}: slide {slide!r} occurs twice")
            found[slide] = label
    return found


def fold_of(labels: Sequence[int], folds: int, seed: int) -> np.ndarray:
    """Fold ``[n]`` of each sample: every class is spread evenly, and the same seed always gives the same folds."""
    array, found = np.asarray(labels), np.zeros(len(labels), np.int64)
    offset = 0
    for label in np.unique(array):
        members = np.random.default_rng((seed, int(label))).permutation(np.flatnonzero(array == label))
        found[members] = (np.arange(len(members)) + offset) % folds
        offset += len(members)  # classes of few samples do not all begin with fold 0
    return found


class BagDataset(Dataset):
    """Bags of a folder with a table of labels.

    A sample is ``dict(inputs=float32 [N, D], data_samples=ClsDataSample)``, whose meta information has ``coords``
    (float32 ``[N, 2]``), ``img_path`` and ``sample_idx``.

    Args:
        root: folder of the bags, ``<slide>.h5``, ``.hdf5`` or ``.safetensors``.
        labels: CSV with the columns ``slide`` and ``label``; a relative path begins at ``root``.
        classes: names, in the order of the indices; None: those in the table, sorted.
        split: "train" (all folds but one), "val" (that one), or "all".
        fold: which fold is held out.
        folds: how many there are.
        split_seed: which folds.
        dim: width of the features; None takes that of the first bag for all.
        cache: keep bags in memory once they were read.

    Raises:
        FileNotFoundError: the table, or the bag of a slide in it, is not there.
        BagError: the table or a bag is wrong, or a label is no class; the message names the file.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        labels: str | os.PathLike = "labels.csv",
        classes: Sequence[str] | None = None,
        *,
        split: str = "train",
        fold: int = 0,
        folds: int = 5,
        split_seed: int = 0,
        dim: int | None = None,
        cache: bool = True,
    ):
        if split not in _SPLITS:
            raise ValueError(f"split={split!r}: accepted are {', '.join(map(repr, _SPLITS))}")
        if folds < 2 or not 0 <= fold < folds:
            raise ValueError(f"fold={fold}, folds={folds}: accepted are at least 2 folds, numbered from 0")
        self.root = Path(root)
        table = self.root / labels
        named = read_slide_labels(table)
        self.classes = tuple(sorted(set(named.values())) if classes is None else map(str, classes))
        for slide, label in named.items():
            if label not in self.classes:
                raise BagError(f"{table}: slide {slide!r} has label {label!r}; classes are {', '.join(self.classes)}")
        if len(self.classes) < 2:
            raise BagError(f"{table} has the class {self.classes[0]!r} alone: two or more are needed" if self.classes
                           else f"{table} has no slides")  # fmt: skip
        indices = np.array([self.classes.index(label) for label in named.values()])
        inside = fold_of(indices.tolist(), folds, split_seed) == fold
        chosen = np.flatnonzero({"train": ~inside, "val": inside, "all": inside | True}[split])
        if not len(chosen):
            raise ValueError(f"fold {fold} of {folds} has no slides: {table} has {len(named)}")
        slides = list(named)
        self.paths = [self._file(slides[i]) for i in chosen]
        self.labels = indices[chosen]
        self.dim = dim if dim is not None else read_bag(self.paths[0]).features.shape[1]
        self._kept: dict[int, Bag] | None = {} if cache else None

    def _file(self, slide: str) -> Path:
        found = [self.root / f"{slide}{ending}" for ending in BAG_ENDINGS]
        for path in found:
            if path.is_file():
                return path
        raise FileNotFoundError(f"slide {slide!r} has no bag: there is none of {', '.join(map(str, found))}")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the runner hands to metrics and writes into checkpoints."""
        return {"classes": self.classes, "dim": self.dim}

    def bag(self, index: int) -> Bag:
        """Bag ``index``, checked."""
        if self._kept is None:
            return read_bag(self.paths[index], self.dim)
        if index not in self._kept:
            self._kept[index] = read_bag(self.paths[index], self.dim)
        return self._kept[index]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} bags")
        index %= len(self)
        bag = self.bag(index)
        return bag_sample(bag, {"sample_idx": index}, int(self.labels[index]))


def bag_sample(bag: Bag, meta: Mapping[str, Any], label: int | None = None) -> dict[str, Any]:
    """A bag as the runner's data loaders give it."""
    sample = ClsDataSample(metainfo={"img_path": bag.path, "coords": bag.coords, **meta})
    if label is not None:
        sample.set_gt_label(label)
    return {"inputs": torch.from_numpy(bag.features), "data_samples": sample}
