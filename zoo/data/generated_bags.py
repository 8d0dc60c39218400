"""Generated slides: bags whose class shows in a few patches of one region. The embedded default of slides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.bags import Bag, BagDataset, write_bag
from zoo.files import write_file

CLASSES = ("normal", "tumour")


def generated_bag(seed: int, index: int, dim: int = 32, patches: tuple[int, int] = (60, 160)) -> tuple[Bag, int]:
    """Bag ``index`` of a data set and its class; a function of the arguments alone.

    Patches lie on a grid of 256 pixels inside an ellipse of tissue. Their features are noise around one of three kinds
    of tissue; in a tumour (every second bag) those within a disc have a fourth direction added, and in all bags a few
    scattered ones have it at half the strength, which the sum over a bag does not tell from a small tumour.
    """
    directions = np.random.default_rng((seed, 1)).normal(size=(4, dim))
    directions *= 2.5 / np.linalg.norm(directions, axis=1, keepdims=True)
    rng, label = np.random.default_rng((seed, 2, index)), index % 2
    count = int(rng.integers(*patches))
    side = int(np.ceil(np.sqrt(count * 2)))
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    distance = ((x - side / 2) / (side / 2)) ** 2 + ((y - side / 2) / (side / 2.6)) ** 2
    chosen = np.sort(np.argsort(distance + rng.normal(0, 0.05, distance.shape))[:count])
    coords = np.stack([x[chosen], y[chosen]], 1)
    features = directions[rng.integers(0, 3, count)] + rng.normal(0, 0.7, (count, dim))
    scattered = rng.choice(count, max(count // 12, 1), replace=False)
    features[scattered] += 0.5 * directions[3]
    if label:
        centre = coords[rng.integers(count)]
        near = np.argsort(((coords - centre) ** 2).sum(1))[: max(count // 10, 4)]
        features[near] += directions[3] * 1.5
    return Bag(features.astype(np.float32), (256 * coords).astype(np.float32), f"generated/{index:04d}"), label


def write_generated_bags(
    folder: str | os.PathLike, bags: int = 60, seed: int = 0, dim: int = 32, ending: str = ".h5"
) -> Path:
    """Write generated bags and their ``labels.csv`` as files, such as ``slide_0007.h5``."""
    folder = Path(folder)
    rows = ["slide,label"]
    for index in range(bags):
        bag, label = generated_bag(seed, index, dim)
        write_bag(folder / f"slide_{index:04d}{ending}", bag.features, bag.coords)
        rows.append(f"slide_{index:04d},{CLASSES[label]}")
    write_file(folder / "labels.csv", "\n".join(rows) + "\n")
    return folder


class GeneratedBags(BagDataset):
    """Generated bags in memory, no files; see :func:`generated_bag`.

    Args:
        split: "train" (four of five bags), "val" (the others) or "all".
        bags: of all splits together.
        data_seed: which data set.
        dim: width of the features.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, split: str = "train", *, bags: int = 100, data_seed: int = 0, dim: int = 32):
        if split not in ("train", "val", "all"):
            raise ValueError(f"split={split!r}: accepted are 'train', 'val', 'all'")
        if bags < 20 or dim < 4:
            raise ValueError(f"bags={bags}, dim={dim}: accepted are at least 20 and 4")
        inside = np.arange(bags) % 10 >= 8
        chosen = np.flatnonzero({"train": ~inside, "val": inside, "all": inside | True}[split])
        made: list[Any] = [generated_bag(data_seed, int(i), dim) for i in chosen]
        self.classes, self.dim = CLASSES, dim
        self.labels = np.array([label for _, label in made])
        self.paths = [Path(bag.path) for bag, _ in made]
        self._kept = {n: bag for n, (bag, _) in enumerate(made)}
