"""Volumes with labels of the whole: chest CTs and their findings, several of which may be present."""

from __future__ import annotations

import csv
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.classification.data_sample import ClsDataSample
from zoo.data.volume_grid import Preparation
from zoo.data.volumes import is_volume_file, read_channels, strip_ending
from zoo.medical.ct_scroll import prepare_chest_ct

_SPLITS = ("train", "val", "all")
_ABSENT, _PRESENT = ("0", "0.0", ""), ("1", "1.0")


def read_findings(path: str | os.PathLike) -> tuple[list[str], dict[str, list[int]]]:
    """Labels and, for each volume, the indices of those that are present.

    The table has a column ``volume`` (a file's name, with or without its ending) and one for each label, of 0 and 1.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a column is missing, a cell is neither 0 nor 1, or a volume occurs twice.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no table of labels {str(path)!r}")
    found: dict[str, list[int]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        names = [n for n in rows.fieldnames or () if n != "volume"]
        if "volume" not in (rows.fieldnames or ()) or not names:
            raise ValueError(f"{path} has the columns {rows.fieldnames}: 'volume' and one for each label are needed")
        for line, row in enumerate(rows, 2):
            volume = strip_ending((row["volume"] or "").strip())
            if not volume or volume in found:
                raise ValueError(f"{path}, line {line}: volume {volume!r} is empty or occurs twice")
            cells = [(row[n] or "").strip() for n in names]
            for name, cell in zip(names, cells):
                if cell not in _ABSENT + _PRESENT:
                    raise ValueError(f"{path}, line {line}: {name} is {cell!r}; accepted are 0 and 1")
            found[volume] = [i for i, cell in enumerate(cells) if cell in _PRESENT]
    if not found:
        raise ValueError(f"{path} has no volumes")
    return names, found


class VolumeLabels(Dataset):
    """Volumes of a folder with a table of labels, prepared for CT-Scroll.

    A sample is ``dict(inputs=float32 [1, D, H, W], data_samples=ClsDataSample)``, whose ``gt_label`` has the indices of
    the labels that are present. D counts along the volume's third axis, H along its second, W along its first.

    Args:
        root: folder of the volumes, see :func:`zoo.data.volumes.read_volume`.
        labels: CSV, see :func:`read_findings`; a relative path begins at ``root``.
        size: slices, rows and columns that volumes are cropped and padded to.
        spacing: mm along the volume's axes to which it is resampled before; None keeps its own.
        orientation: where its axes lead, such as "RAS"; None keeps its own. Mixed ones need it.
        split: "train" (all folds but one), "val" (that one), or "all".
        fold: which fold is held out.
        folds: how many there are.
        split_seed: which folds.

    Raises:
        FileNotFoundError: the table, or a volume in it, is not there.
        ValueError: the table is wrong, or an argument is out of range.
        VolumeReadError: a volume cannot be used.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        labels: str | os.PathLike = "labels.csv",
        *,
        size: Sequence[int] = (240, 480, 480),
        spacing: Sequence[float] | None = None,
        orientation: str | None = None,
        split: str = "train",
        fold: int = 0,
        folds: int = 5,
        split_seed: int = 0,
    ):
        if split not in _SPLITS:
            raise ValueError(f"split={split!r}: accepted are {', '.join(map(repr, _SPLITS))}")
        if folds < 2 or not 0 <= fold < folds:
            raise ValueError(f"fold={fold}, folds={folds}: accepted are at least 2 folds, numbered from 0")
        self.root, self.size = Path(root), tuple(int(n) for n in size)
        names, found = read_findings(self.root / labels)
        self.classes = tuple(names)
        files = {strip_ending(p.name): p for p in sorted(self.root.iterdir()) if is_volume_file(p)}
        missing = [v for v in found if v not in files]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} volumes of the table are not in {root}, the first is {missing[0]!r}"
            )
        order = np.random.default_rng((split_seed, 7)).permutation(len(found))
        inside = np.zeros(len(found), bool)
        inside[order[fold::folds]] = True
        chosen = np.flatnonzero({"train": ~inside, "val": inside, "all": inside | True}[split])
        if not len(chosen):
            raise ValueError(f"fold {fold} of {folds} has no volumes: there are {len(found)}")
        volumes = list(found)
        self.paths = [files[volumes[i]] for i in chosen]
        self.labels = [found[volumes[i]] for i in chosen]
        self.preparation = Preparation(tuple(spacing) if spacing else None, orientation, None)  # type: ignore[arg-type]

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.classes)

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the runner hands to metrics and writes into checkpoints."""
        return {"classes": self.classes, "size": self.size, "preparation": self.preparation.to_dict(1)}

    def pos_weight(self) -> list[float]:
        """Absent over present volumes of each label, for the model's argument of that name; 1 where one is none."""
        counts = np.bincount([i for labels in self.labels for i in labels], minlength=self.num_classes)
        return [float((len(self.labels) - n) / n) if 0 < n < len(self.labels) else 1.0 for n in counts]

    def volume(self, index: int) -> Tensor:
        """Volume ``index``, prepared: float32 ``[1, D, H, W]``."""
        volume = self.preparation.image(read_channels([self.paths[index]], 1))
        slices = np.ascontiguousarray(volume.data[0].transpose(2, 1, 0))  # [X, Y, Z] -> [D, H, W]
        return prepare_chest_ct(torch.from_numpy(slices), self.size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} volumes")
        index %= len(self)
        sample = ClsDataSample(metainfo={"img_path": str(self.paths[index]), "sample_idx": index})
        sample.set_gt_label(torch.tensor(self.labels[index], dtype=torch.int64))
        return {"inputs": self.volume(index), "data_samples": sample}


class GeneratedScans(VolumeLabels):
    """Generated chest CTs of three findings, in memory: the embedded default.

    Lungs of -800 HU in a body of 40 HU, with noise; a nodule is a bright ball in a lung, an effusion fills the lungs'
    back, emphysema makes them darker. Each is there in half of the volumes, independently.

    Args:
        split: "train" (four of five), "val" (the others) or "all".
        volumes: of all splits together.
        size: slices (a multiple of 3), rows and columns.
        data_seed: which data set.
    """

    def __init__(
        self, split: str = "train", *, volumes: int = 100, size: Sequence[int] = (12, 32, 32), data_seed: int = 0
    ):
        if split not in _SPLITS:
            raise ValueError(f"split={split!r}: accepted are {', '.join(map(repr, _SPLITS))}")
        if volumes < 10 or len(size) != 3 or min(size) < 12 or size[0] % 3:
            raise ValueError(f"volumes={volumes}, size={tuple(size)}: accepted are at least 10, and sizes from 12 on")
        inside = np.arange(volumes) % 5 == 4
        chosen = np.flatnonzero({"train": ~inside, "val": inside, "all": inside | True}[split])
        self.classes, self.size = ("nodule", "effusion", "emphysema"), tuple(int(n) for n in size)
        self.preparation = Preparation()
        made = [generated_scan(data_seed, int(i), self.size) for i in chosen]
        self.paths = [Path(f"generated/{i:04d}") for i in chosen]
        self.labels = [labels for _, labels in made]
        self._volumes = [prepare_chest_ct(torch.from_numpy(v), self.size) for v, _ in made]

    def volume(self, index: int) -> Tensor:
        return self._volumes[index]


def generated_scan(seed: int, index: int, size: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Hounsfield units float32 ``[D, H, W]`` of scan ``index`` of a data set, and the findings in it."""
    rng = np.random.default_rng((seed, index))
    present = [i for i in range(3) if rng.random() < 0.5]
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    body = (x / 0.95) ** 2 + (y / 0.8) ** 2 < 1
    side = rng.uniform(0.38, 0.46)
    lungs = np.minimum(((x - side) / 0.33) ** 2, ((x + side) / 0.33) ** 2) + (y / 0.6) ** 2 + (z / 1.1) ** 2 < 1
    volume = np.where(body, 40.0, -1000.0)
    volume[lungs] = -930 if 2 in present else -800
    if 1 in present:
        volume[lungs & (y > 0.25)] = 20
    if 0 in present:
        centre = np.array([rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.0), rng.choice([-side, side])])
        volume[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 0.4**2] = 180
    return (volume + rng.normal(0, 25, volume.shape)).astype(np.float32), present
