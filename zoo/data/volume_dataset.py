"""Volumes as a data set: random patches or slices to train on, whole volumes to validate on, folds by a seed.

What is drawn for a training sample is a function of (seed, epoch, index) alone, so neither the number of workers nor a
restart changes it.
"""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from zoo.data.base import EpochDataset, sample_seed
from zoo.data.volume_folder import VolumeCase, VolumeFolder, find_volume_data, fold_cases
from zoo.data.volume_grid import Preparation
from zoo.data.volume_intensity import check_normalisation
from zoo.data.volumes import Volume, VolumeReadError, check_same_grid, read_channels, read_volume
from zoo.medical.data_sample import VolumeSample

logger = logging.getLogger(__name__)

_SPLITS = ("train", "val", "all", "test")
_PLACES = 10_000  # voxels of a class that are remembered of a volume, as places to put patches


class VolumeDataset(EpochDataset):
    """Volumes of a folder, see :func:`zoo.data.volume_folder.find_volume_data`.

    A sample is ``dict(inputs=float32 [C, ...], data_samples=VolumeSample)``. Splits "train" and "all" give random
    patches ``[C, x, y, z]``, or with ``axis`` random slices ``[C, h, w]``; "val" and "test" give whole volumes
    ``[C, X, Y, Z]`` in any case, for a sliding window or slice after slice.

    Args:
        source: a folder, or a ready :class:`~zoo.data.volume_folder.VolumeFolder`.
        split: "train" (all folds but one), "val" (that one), "all" (every case with labels), "test" (those without).
        fold: which fold is held out.
        folds: how many there are.
        split_seed: which folds; the same for "train" and "val".
        case_names: use these cases only, whatever ``fold`` says (a published split, for instance).
        spacing: mm along the axes, to which volumes are resampled; None keeps each volume's own.
        orientation: where the axes lead, such as "RAS"; None keeps each volume's own. Mixed ones need it.
        normalisation: see :func:`zoo.data.volume_intensity.normalise`.
        patch_size: voxels of a training sample: three numbers, two with ``axis``; None takes whole volumes (slices).
            Where a volume is smaller, it is padded on both sides with 0 (labels with the background).
        samples_per_volume: training samples that each volume gives an epoch.
        foreground: share of training samples that contain a random voxel of a random class of the volume.
        axis: 0, 1 or 2: training samples are slices across this axis; None: they are 3-D.
        augment: ``(image, label, seed) -> (image, label)``, see :mod:`zoo.data.volume_transforms`, or arguments of
            :func:`zoo.data.volume_transforms.build_volume_transforms` as a dict; of training samples only.
        seed: of patches and augmentation.
        cache: share of the volumes that is kept in memory after preparation (MONAI's CacheDataset); True is all.
        workers: threads that fill the cache.
        nan, allow_missing_affine: see :func:`zoo.data.volumes.read_volume`.
        on_missing_class: a class that occurs in no training volume is an error ("raise"), a warning ("warn"), or is not
            looked for ("ignore"), which saves reading all labels where they are not cached. In "val" it is a warning.

    Raises:
        FileNotFoundError: a file that the folder's layout names is not there.
        ValueError: an argument is out of range, there are no cases, or a class is missing (naming fold and class).
        VolumeReadError: a volume cannot be used: unreadable, other grid than its labels, a label of no class, NaN.
    """

    #: What takes ``augment`` given as a dict; a config's keys are checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"augment": "zoo.data.volume_transforms.build_volume_transforms"}

    def __init__(
        self,
        source: str | os.PathLike | VolumeFolder,
        *,
        split: str = "train",
        fold: int = 0,
        folds: int = 5,
        split_seed: int = 0,
        case_names: Sequence[str] | None = None,
        spacing: Sequence[float] | None = None,
        orientation: str | None = None,
        normalisation: Any = "zscore",
        patch_size: Sequence[int] | None = None,
        samples_per_volume: int = 1,
        foreground: float = 1 / 3,
        axis: int | None = None,
        augment: Any = None,
        seed: int = 0,
        cache: float | bool = True,
        workers: int = 4,
        nan: float | None = None,
        allow_missing_affine: bool = False,
        on_missing_class: str = "raise",
    ):
        _check_arguments(split, patch_size, samples_per_volume, foreground, axis, cache, on_missing_class)
        found = source if isinstance(source, VolumeFolder) else find_volume_data(source)
        self.folder, self.split, self.axis, self.seed = found, split, axis, seed
        self.fold = fold if split in ("train", "val") and case_names is None else None
        self.cases = _chosen_cases(found, split, fold, folds, split_seed, case_names)
        absent = [f for c in self.cases for f in c.files if not os.path.exists(f)]
        if absent:
            raise FileNotFoundError(f"{len(absent)} files of {found.root} are not there, the first is {absent[0]!r}")
        self.classes, self.label_ids = tuple(found.classes), tuple(found.label_ids)
        self.channels = tuple(found.channels)
        check_normalisation(normalisation, len(self.channels))
        self.preparation = Preparation(tuple(spacing) if spacing else None, orientation, normalisation)  # type: ignore[arg-type]
        self.patch_size = tuple(int(n) for n in patch_size) if patch_size else None
        self.training = split in ("train", "all")
        self.samples_per_volume = samples_per_volume if self.training else 1
        self.foreground = foreground
        self._read_options: dict[str, Any] = dict(allow_missing_affine=allow_missing_affine)
        self._nan = nan
        if isinstance(augment, dict):
            from zoo.data.volume_transforms import build_volume_transforms

            augment = build_volume_transforms(**augment)
        self.augment = augment if self.training else None
        super().__init__()
        from zoo.data.volume_cache import VolumeCache

        self._volumes = VolumeCache(len(self.cases), self.load, float(cache), workers)
        if on_missing_class != "ignore" and split != "test":
            self._check_classes(on_missing_class)

    # -- as the engine's loops and metrics expect -----------------------------------------------------------------

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the runner hands to metrics and writes into checkpoints: all that prediction on a new file needs."""
        return {
            "classes": self.classes,
            "label_ids": self.label_ids,
            "channels": self.channels,
            "preparation": self.preparation.to_dict(len(self.channels)),
            "axis": self.axis,
            "patch_size": self.patch_size,
        }

    def __len__(self) -> int:
        return len(self.cases) * self.samples_per_volume

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        index %= len(self)
        number = index % len(self.cases)
        entry = self._volumes[number]
        return self._patch(entry, number, index) if self.training else self._whole(entry, number, index)

    # -- reading --------------------------------------------------------------------------------------------------

    def load(self, number: int) -> dict[str, Any]:
        """Case ``number`` from its files, prepared: image float32 ``[C, X, Y, Z]``, label uint8 or int32 class indices
        ``[X, Y, Z]`` or None, affine, spacing, and places: class -> flat indices of some of its voxels."""
        case = self.cases[number]
        image = read_channels(case.images, len(self.channels), nan=self._nan, **self._read_options)
        label = self._read_label(case) if case.label else None
        if label is not None:
            check_same_grid(image, label)
        prepared = self.preparation.image(image)
        entry: dict[str, Any] = dict(image=prepared.data, affine=prepared.affine, spacing=prepared.spacing, label=None)
        if label is not None:
            entry["label"] = self.preparation.label(label).data
            entry["places"] = _places(entry["label"]) if self.training else {}
            entry["classes"] = np.unique(entry["label"])
        return entry

    def _read_label(self, case: VolumeCase) -> Volume:
        label = read_volume(case.label, label=True, **self._read_options)  # type: ignore[arg-type]
        label.data = ids_to_indices(label.data, self.label_ids, label.path, self.classes)
        return label

    def _check_classes(self, policy: str) -> None:
        """Which classes occur at all: from the cache where everything is there, otherwise from the labels' files."""
        present: set[int] = {0}
        for number, case in enumerate(self.cases):
            if number < self._volumes.kept:
                present.update(self._volumes[number]["classes"].tolist())
            else:
                present.update(np.unique(self._read_label(case).data).tolist())
            if len(present) == len(self.classes):
                return
        missing = ", ".join(repr(c) for i, c in enumerate(self.classes) if i not in present)
        where = f"fold {self.fold}" if self.fold is not None else f"these {len(self.cases)} cases"
        if self.split == "val":
            logger.warning("%s: no volume to validate on has class %s", where, missing)
            return
        message = f"{where}: no volume to train on has class {missing}"
        if policy == "raise":
            raise ValueError(
                f"{message}; take other folds (split_seed), remove the class, or go on with on_missing_class='warn'"
            )
        logger.warning(message)

    # -- samples --------------------------------------------------------------------------------------------------

    def _whole(self, entry: dict[str, Any], number: int, index: int) -> dict[str, Any]:
        # a copy: nothing that a model does in place may reach the cache
        sample = self._sample(number, index, entry["affine"], entry["spacing"])
        if entry["label"] is not None:
            sample.set_gt_label(torch.from_numpy(entry["label"].astype(np.int64)))
        return {"inputs": torch.from_numpy(entry["image"].copy()), "data_samples": sample}

    def _patch(self, entry: dict[str, Any], number: int, index: int) -> dict[str, Any]:
        drawn = sample_seed(self.seed, self.epoch, index)
        rng = np.random.default_rng(drawn)
        shape = entry["label"].shape
        size = list(shape) if self.patch_size is None else list(self.patch_size)
        if self.axis is not None:
            size = [n for i, n in enumerate(shape) if i != self.axis] if self.patch_size is None else size
            size.insert(self.axis, 1)
        start = _start(rng, entry["places"], shape, size, self.foreground)
        box = tuple(slice(max(s, 0), s + n) for s, n in zip(start, size))
        all_channels = (slice(None), *box)
        image, label = entry["image"][all_channels], entry["label"][box]
        short = [(-min(s, 0), n - have + min(s, 0)) for s, n, have in zip(start, size, label.shape)]
        if any(b or a for b, a in short):
            image, label = np.pad(image, [(0, 0), *short]), np.pad(label, short)
        spacing = entry["spacing"]
        if self.axis is not None:
            image, label = np.take(image, 0, self.axis + 1), np.take(label, 0, self.axis)
            spacing = tuple(s for i, s in enumerate(spacing) if i != self.axis)
        x = torch.from_numpy(np.array(image, np.float32))
        y = torch.from_numpy(np.array(label, np.int64))
        if self.augment is not None:
            x, y = self.augment(x, y, drawn)
        affine = entry["affine"].copy()
        affine[:3, 3] = (entry["affine"] @ np.array([*start, 1.0]))[:3]
        sample = self._sample(number, index, affine, spacing).set_gt_label(y)
        return {"inputs": x, "data_samples": sample}

    def _sample(self, number: int, index: int, affine: np.ndarray, spacing: Sequence[float]) -> VolumeSample:
        case = self.cases[number]
        return VolumeSample(
            metainfo={
                "case": case.name,
                "paths": {"images": case.images, "label": case.label},
                "spacing": tuple(spacing),
                "affine": affine,
                "sample_idx": index,
                "label_ids": self.label_ids,
            }
        )


def ids_to_indices(
    labels: np.ndarray, label_ids: Sequence[int], path: str = "", names: Sequence[str] | None = None
) -> np.ndarray:
    """Class indices of the ids in a file.

    Args:
        labels: ids, an integer array.
        label_ids: the id of each class.
        path: of the file, for messages.
        names: of the classes, for messages.

    Returns:
        uint8 (int32 of more than 256 classes) of the same shape.

    Raises:
        VolumeReadError: an id that is no class.
    """
    found, counts = np.unique(labels, return_counts=True)
    known = {int(v): i for i, v in enumerate(label_ids)}
    unknown = [(int(v), int(n)) for v, n in zip(found, counts) if int(v) not in known]
    if unknown:
        listed = ", ".join(f"{v} ({n} voxels)" for v, n in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        accepted = ", ".join(f"{v} {names[i]}" if names else str(v) for v, i in known.items())
        raise VolumeReadError(f"{path} has labels outside the class list: {listed}; accepted are {accepted}", path)
    kind = np.uint8 if len(label_ids) <= 256 else np.int32
    if all(int(v) == known[int(v)] for v in found):
        return labels.astype(kind)
    indices = np.zeros(labels.shape, kind)
    for value in found.tolist():
        if known[value]:
            indices[labels == value] = known[value]
    return indices


def indices_to_ids(indices: np.ndarray, label_ids: Sequence[int]) -> np.ndarray:
    """The ids that files have for class indices: what :func:`ids_to_indices` undoes.

    Raises:
        ValueError: an index that is no class.
    """
    indices = np.asarray(indices)
    if indices.size and not 0 <= indices.min() <= indices.max() < len(label_ids):
        raise ValueError(
            f"class indices are from {indices.min()} to {indices.max()}; accepted are 0 to {len(label_ids) - 1}"
        )
    table = np.asarray(label_ids, np.int64)
    kind = next(k for k in (np.uint8, np.int16, np.int32, np.int64) if table.max() <= np.iinfo(k).max)
    return table.astype(kind)[indices]


def _check_arguments(
    split: str, patch_size: Any, samples: int, foreground: float, axis: int | None, cache: float, missing: str
) -> None:
    if split not in _SPLITS:
        raise ValueError(f"split={split!r} is unknown; accepted are {', '.join(map(repr, _SPLITS))}")
    if axis not in (None, 0, 1, 2):
        raise ValueError(f"axis={axis!r} is unknown; accepted are 0, 1, 2 and None")
    needed = 3 if axis is None else 2
    if patch_size is not None and (len(patch_size) != needed or min(patch_size) < 1):
        raise ValueError(f"patch_size={tuple(patch_size)} must be {needed} numbers of at least 1")
    if samples < 1:
        raise ValueError(f"samples_per_volume={samples} must be at least 1")
    if not 0 <= foreground <= 1:
        raise ValueError(f"foreground={foreground} must be from 0 to 1")
    if not 0 <= float(cache) <= 1:
        raise ValueError(f"cache={cache} must be from 0 to 1, or True or False")
    if missing not in ("raise", "warn", "ignore"):
        raise ValueError(f"on_missing_class={missing!r} is unknown; accepted are 'raise', 'warn' and 'ignore'")


def _chosen_cases(
    found: VolumeFolder, split: str, fold: int, folds: int, split_seed: int, names: Sequence[str] | None
) -> list[VolumeCase]:
    pool = found.test_cases if split == "test" else found.cases
    if names is not None:
        by_name = {c.name: c for c in pool}
        unknown = [n for n in names if n not in by_name]
        if unknown:
            raise ValueError(f"case_names: {found.root} has no case {unknown[0]!r}")
        chosen = [by_name[n] for n in names]
    elif split in ("train", "val"):
        chosen = fold_cases(pool, fold, folds, split_seed)[split == "val"]
    else:
        chosen = list(pool)
    if not chosen:
        raise ValueError(f"{found.root} has no cases for split {split!r}")
    return chosen


def _places(label: np.ndarray) -> dict[int, np.ndarray]:
    """Flat indices of at most :data:`_PLACES` voxels of each class but the background, evenly taken."""
    foreground = np.flatnonzero(label)
    values = label.reshape(-1)[foreground]
    places = {}
    for k in np.unique(values).tolist():
        where = foreground[values == k]
        places[k] = where[:: -(-len(where) // _PLACES)]
    return places


def _start(
    rng: np.random.Generator, places: dict[int, np.ndarray], shape: Sequence[int], size: Sequence[int], share: float
) -> list[int]:
    """First voxel of a patch along each axis; negative where the volume is smaller and has to be padded."""
    low = np.array([min(0, (n - p) // 2) for n, p in zip(shape, size)])
    high = np.array([max(low[i], n - p) for i, (n, p) in enumerate(zip(shape, size))])
    if places and rng.random() < share:
        kinds = sorted(places)
        where = places[kinds[int(rng.integers(len(kinds)))]]
        voxel = np.array(np.unravel_index(int(where[int(rng.integers(len(where)))]), shape))
        first, last = np.clip(voxel - np.array(size) + 1, low, high), np.clip(voxel, low, high)
    else:
        first, last = low, high
    return rng.integers(first, last + 1).tolist()
