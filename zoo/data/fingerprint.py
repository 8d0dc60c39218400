"""What a data set of volumes is like, and which spacing, patch, levels and normalisation follow from that.

The rules are those of nnU-Net (F. Isensee et al., "nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation", Nature Methods 18, 2021, "Automated method configuration"), with a number of voxels in
place of an estimate of GPU memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.volume_dataset import ids_to_indices
from zoo.data.volume_folder import VolumeCase, VolumeFolder, find_volume_data
from zoo.data.volume_grid import axis_codes
from zoo.data.volumes import check_same_grid, read_channels, read_volume
from zoo.files import write_file

#: Spacings that differ by more than this count as anisotropic.
ANISOTROPIC = 3.0
_SAMPLED = 50_000  # foreground voxels of a case that count in the intensities
_KEYS = ("mean", "std", "median", "min", "max", "percentile_00_5", "percentile_99_5")


@dataclass
class CaseFacts:
    """One case.

    Attributes:
        name: of the case.
        shape: voxels along X, Y, Z.
        spacing: mm.
        orientation: where the axes lead, such as "LPS".
        volumes: mm^3 of each class but the background.
        shear: see :attr:`zoo.data.volumes.Volume.shear`.
    """

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    volumes: dict[str, float]
    shear: float = 0.0


@dataclass
class Plan:
    """How to train on a data set.

    Attributes:
        spacing: mm along the axes that volumes are resampled to.
        orientation: where the axes are to lead; None where all cases agree.
        shape: voxels of the median case at that spacing.
        patch_size: voxels along three axes, or two of slices.
        strides: of each level of a U-Net, the first all 1.
        kernel_sizes: of each level.
        normalisation: of each channel, see :func:`zoo.data.volume_intensity.normalise`.
        batch_size: as many patches as fit the number of voxels, 2 at least.
        axis: across which slices are taken; None of a 3-D plan.
    """

    spacing: tuple[float, float, float]
    orientation: str | None
    shape: tuple[int, int, int]
    patch_size: tuple[int, ...]
    strides: list[tuple[int, ...]]
    kernel_sizes: list[tuple[int, ...]]
    normalisation: list[dict[str, Any]]
    batch_size: int
    axis: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return json.loads(json.dumps(asdict(self)))

    def dataset_arguments(self) -> dict[str, Any]:
        """Arguments of :class:`zoo.data.volume_dataset.VolumeDataset`."""
        return dict(
            spacing=self.spacing,
            orientation=self.orientation,
            normalisation=self.normalisation,
            patch_size=self.patch_size,
            axis=self.axis,
        )


@dataclass
class Fingerprint:
    """Facts of a data set.

    Attributes:
        cases: one entry a case.
        classes: names, the background first.
        channels: names.
        intensities: of each channel over the voxels of all classes but the background: mean, std, median, min, max,
            percentile_00_5, percentile_99_5.
    """

    cases: list[CaseFacts]
    classes: list[str]
    channels: list[str]
    intensities: list[dict[str, float]]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Median along each axis, in mm."""
        return _three(np.median([c.spacing for c in self.cases], axis=0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Median along each axis, in voxels."""
        x, y, z = np.median([c.shape for c in self.cases], axis=0).round().astype(int).tolist()
        return x, y, z

    def class_volumes(self) -> dict[str, dict[str, float]]:
        """Class -> in how many cases it occurs, and least, median and greatest volume there in ml."""
        found = {}
        for name in self.classes[1:]:
            values = [c.volumes[name] / 1000 for c in self.cases if c.volumes.get(name)]
            numbers = (min(values), float(np.median(values)), max(values)) if values else (0.0, 0.0, 0.0)
            found[name] = {"cases": len(values), **dict(zip(("min", "median", "max"), numbers))}
        return found

    def target_spacing(self) -> tuple[float, float, float]:
        """Median spacing; along an axis that is much coarser than the others, of few voxels, the 10th percentile."""
        spacings, target = np.array([c.spacing for c in self.cases]), np.array(self.spacing)
        worst = int(target.argmax())
        others = np.delete(target, worst)
        sizes = np.array(self.shape)
        if target[worst] > ANISOTROPIC * others.min() and ANISOTROPIC * sizes[worst] < np.delete(sizes, worst).max():
            target[worst] = max(np.percentile(spacings[:, worst], 10), others.max())
        return _three(target)

    def plan(
        self,
        *,
        max_voxels: int | None = None,
        axis: int | str | None = None,
        spacing: Sequence[float] | None = None,
        min_map: int = 4,
    ) -> Plan:
        """Spacing, patch, levels and normalisation for training.

        Args:
            max_voxels: of a batch of two patches together; by default 2 x 128^3, and 12 x 512^2 of slices.
            axis: 0, 1 or 2 plans slices across this axis; "auto" across the coarsest one; None plans in 3-D.
            spacing: in place of :meth:`target_spacing`.
            min_map: least side of the coarsest map in voxels.

        Raises:
            ValueError: an argument is out of range.
        """
        if axis not in (None, 0, 1, 2, "auto"):
            raise ValueError(f"axis={axis!r} is unknown; accepted are 0, 1, 2, 'auto' and None")
        if min_map < 1:
            raise ValueError(f"min_map={min_map} must be at least 1")
        codes = {c.orientation for c in self.cases}
        orientation = "RAS" if len(codes) > 1 else None
        facts = self if orientation is None else self._turned()
        target = _three(spacing) if spacing is not None else facts.target_spacing()
        shapes = [np.array(c.shape) * c.spacing / np.array(target) for c in facts.cases]
        x, y, z = np.median(shapes, axis=0).round().clip(1).astype(int).tolist()
        across = axis if axis is None or isinstance(axis, int) else int(np.argmax(target))
        kept = [i for i in range(3) if i != across]
        budget = max_voxels or (2 * 128**3 if across is None else 12 * 512**2)
        if budget < 2 * min_map ** len(kept):
            raise ValueError(f"max_voxels={max_voxels} must hold two patches of {min_map} voxels a side")
        shape = [(x, y, z)[i] for i in kept]
        patch, strides, kernels = plan_patch([target[i] for i in kept], shape, budget // 2, min_map)
        total = sum(float(np.prod(s)) for s in shapes)
        few = max(int(0.05 * total / np.prod(patch)), 2)  # a batch is not to hold more than a twentieth of the data
        batch = max(min(int(budget // np.prod(patch)), few if across is None else 64), 2)
        return Plan(
            target, orientation, (x, y, z), tuple(patch), strides, kernels, self.normalisation(), batch, across
        )  # fmt: skip

    def _turned(self) -> Fingerprint:
        """The same with the axes of every case leading to the right, front and head."""
        cases = []
        for c in self.cases:
            order = [next(i for i, a in enumerate(c.orientation) if a in pair) for pair in ("RL", "AP", "SI")]
            cases.append(
                CaseFacts(
                    c.name,
                    tuple(c.shape[i] for i in order),  # type: ignore[arg-type]
                    tuple(c.spacing[i] for i in order),  # type: ignore[arg-type]
                    "RAS",
                    c.volumes,
                    c.shear,
                )
            )
        return Fingerprint(cases, self.classes, self.channels, self.intensities)

    def normalisation(self) -> list[dict[str, Any]]:
        """Of channels named CT: clipping and scaling by the data set's numbers; others: each volume's own z-score."""
        specs: list[dict[str, Any]] = []
        for name, numbers in zip(self.channels, self.intensities):
            if (
                name.strip().lower() == "ct"
                and numbers["std"] > 0
                and numbers["percentile_99_5"] > numbers["percentile_00_5"]
            ):
                limits = {"lower": numbers["percentile_00_5"], "upper": numbers["percentile_99_5"]}
                specs.append({"kind": "ct", **limits, "mean": numbers["mean"], "std": numbers["std"]})
            else:
                specs.append({"kind": "zscore", "nonzero": False})
        return specs

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, path: str | os.PathLike) -> Path:
        """Write as JSON, atomically."""
        return write_file(path, json.dumps(self.to_dict(), indent=1))

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Fingerprint:
        """From :meth:`to_dict`; raises ValueError if that is not what it is."""
        try:
            cases = [
                CaseFacts(
                    c["name"],
                    tuple(c["shape"]),
                    tuple(c["spacing"]),
                    c["orientation"],
                    c["volumes"],
                    c.get("shear", 0.0),
                )
                for c in content["cases"]
            ]
            return Fingerprint(
                cases, list(content["classes"]), list(content["channels"]), [dict(i) for i in content["intensities"]]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no fingerprint of a data set: {type(error).__name__} {error}") from error

    @staticmethod
    def load(path: str | os.PathLike) -> Fingerprint:
        """From a file of :meth:`save`."""
        return Fingerprint.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def fingerprint(
    source: str | os.PathLike | VolumeFolder,
    *,
    cases: Sequence[VolumeCase] | None = None,
    workers: int = 4,
    nan: float | None = None,
    allow_missing_affine: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Fingerprint:
    """Read every case with labels once and note what it is like.

    Args:
        source: a folder, or a ready :class:`~zoo.data.volume_folder.VolumeFolder`.
        cases: use these only, those to train on, say.
        workers: threads.
        nan, allow_missing_affine: see :func:`zoo.data.volumes.read_volume`.
        progress: called with the number of read cases and of all.

    Raises:
        ValueError: there are no cases; VolumeReadError: one cannot be used.
    """
    found = source if isinstance(source, VolumeFolder) else find_volume_data(source)
    chosen = list(found.cases if cases is None else cases)
    if not chosen:
        raise ValueError(f"{found.root} has no cases with labels")
    facts: list[CaseFacts] = []
    samples: list[np.ndarray] = []

    def look(case: VolumeCase) -> tuple[CaseFacts, np.ndarray]:
        return _look(case, found, nan, allow_missing_affine)

    with ThreadPoolExecutor(workers) as pool:
        for fact, sample in pool.map(look, chosen):
            facts.append(fact)
            samples.append(sample)
            if progress:
                progress(len(facts), len(chosen))
    return Fingerprint(facts, list(found.classes), list(found.channels), _intensities(np.concatenate(samples, axis=1)))


def _look(case: VolumeCase, found: VolumeFolder, nan: float | None, missing: bool) -> tuple[CaseFacts, np.ndarray]:
    """Facts, and intensities ``[C, n]`` of foreground voxels."""
    if case.label is None:
        raise ValueError(f"case {case.name} has no labels")
    image = read_channels(case.images, len(found.channels), nan=nan, allow_missing_affine=missing)
    label = read_volume(case.label, label=True, allow_missing_affine=missing)
    check_same_grid(image, label)
    indices = ids_to_indices(label.data, found.label_ids, label.path, found.classes)
    counts = np.bincount(indices.reshape(-1), minlength=len(found.classes))
    voxel = abs(float(np.linalg.det(image.affine[:3, :3])))
    volumes = {name: float(n) * voxel for name, n in zip(found.classes[1:], counts[1:])}
    where = np.flatnonzero(indices)
    if len(where) > _SAMPLED:
        where = np.random.default_rng(len(where)).choice(where, _SAMPLED, replace=False)
    facts = CaseFacts(case.name, image.shape, image.spacing, axis_codes(image.affine), volumes, image.shear)
    return facts, image.data.reshape(len(image.data), -1)[:, where]


def _intensities(samples: np.ndarray) -> list[dict[str, float]]:
    found = []
    for values in samples.astype(np.float64):
        if not len(values):
            found.append(dict.fromkeys(_KEYS, 0.0))
            continue
        low, middle, high = np.percentile(values, [0.5, 50, 99.5])
        numbers = (values.mean(), values.std(), middle, values.min(), values.max(), low, high)
        found.append({k: float(v) for k, v in zip(_KEYS, numbers)})
    return found


def plan_patch(
    spacing: Sequence[float], shape: Sequence[int], max_voxels: int, min_map: int = 4
) -> tuple[list[int], list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Patch, strides and kernel sizes of a U-Net's levels.

    The patch starts as a box of equal sides in mm, no larger than the median case; the axis that covers most of its
    case is shortened until the voxels fit. Sides are multiples of what the levels halve.

    Args:
        spacing: mm along each axis.
        shape: voxels of the median case.
        max_voxels: of the patch.
        min_map: least side of the coarsest map.
    """
    n = len(spacing)
    side = np.array([1 / s for s in spacing])
    side *= ((4 * max_voxels) / side.prod()) ** (1 / n)
    patch = [max(min(int(round(p)), s), min(min_map, s), 1) for p, s in zip(side, shape)]
    while True:
        strides, kernels = plan_levels(spacing, patch, min_map)
        unit = np.prod(strides, axis=0).astype(int).tolist()
        rounded = [-(-p // u) * u for p, u in zip(patch, unit)]
        if np.prod(rounded, dtype=np.int64) <= max_voxels:
            return rounded, strides, kernels
        shrinkable = [i for i in range(n) if rounded[i] > max(unit[i], min_map)]
        if not shrinkable:
            return rounded, strides, kernels
        longest = max(shrinkable, key=lambda i: rounded[i] / shape[i])
        # shortened by one unit, or to what has one level less
        patch = list(rounded)
        patch[longest] -= unit[longest]


def plan_levels(
    spacing: Sequence[float], patch: Sequence[int], min_map: int = 4
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Strides and kernel sizes of the levels of a U-Net on a patch.

    An axis is halved while its map has at least twice ``min_map`` voxels and its spacing is below twice the finest of
    the axes that can be halved; its kernel is 1 until its spacing is below twice the finest.
    """
    spacings, sizes = [float(s) for s in spacing], [int(p) for p in patch]
    n = len(sizes)
    strides: list[tuple[int, ...]] = [(1,) * n]
    kernel = [3 if s < 2 * min(spacings) else 1 for s in spacings]
    kernels: list[tuple[int, ...]] = [tuple(kernel)]
    while True:
        open_axes = [i for i in range(n) if sizes[i] >= 2 * min_map]
        if not open_axes:
            return strides, kernels
        finest = min(spacings[i] for i in open_axes)
        stride = tuple(2 if i in open_axes and spacings[i] < 2 * finest else 1 for i in range(n))
        sizes = [-(-s // k) for s, k in zip(sizes, stride)]
        spacings = [s * k for s, k in zip(spacings, stride)]
        kernel = [3 if k == 3 or s < 2 * min(spacings) else 1 for k, s in zip(kernel, spacings)]
        strides.append(stride)
        kernels.append(tuple(kernel))


def _three(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    if len(values) != 3 or min(values) <= 0:
        raise ValueError(f"spacing={tuple(values)} must be three numbers above 0, in mm")
    x, y, z = (float(v) for v in values)
    return x, y, z
