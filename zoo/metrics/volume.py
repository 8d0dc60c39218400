"""Overlap, surface distances and volumes of label maps, per class and case, in millimetres and millilitres.

Definitions: Taha and Hanbury, "Metrics for evaluating 3D medical image segmentation" (BMC Medical Imaging 15:29, 2015);
surfaces and percentiles are MONAI's. A surface is the voxels of an object that have a voxel outside it (or the image's
end) as a neighbour across a face; distances are between the centres of surface voxels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmengine.dist as dist
import numpy as np

from zoo.metrics.base import SampleMetric


@dataclass(frozen=True)
class ClassScore:
    """One class of one case.

    Where the class is in neither label map, ``dice``, ``hd95`` and ``assd`` are NaN: there was nothing to find, and
    means leave the case out. Where it is in one of them only, ``dice`` is 0 and the distances are infinite.

    Attributes:
        case: name of the case.
        label: index of the class.
        name: of the class.
        dice: ``2 |P & T| / (|P| + |T|)``.
        hd95: the larger of the 95th percentiles (linear between ranks) of the distances from the prediction's surface
            to the truth's and back, mm.
        assd: mean of the distances of both directions together, mm.
        truth_ml, predicted_ml: volumes.
    """

    case: str
    label: int
    name: str
    dice: float
    hd95: float
    assd: float
    truth_ml: float
    predicted_ml: float

    @property
    def error_ml(self) -> float:
        """Predicted minus true volume."""
        return self.predicted_ml - self.truth_ml

    @property
    def error_percent(self) -> float:
        """The same as a share of the true volume; infinite where there is no such object, NaN where there is none in
        the prediction either."""
        if self.truth_ml > 0:
            return 100 * self.error_ml / self.truth_ml
        return float("inf") if self.predicted_ml > 0 else float("nan")

    @property
    def missed(self) -> bool:
        """The object is there and nothing of it was predicted."""
        return self.truth_ml > 0 and self.predicted_ml == 0

    @property
    def invented(self) -> bool:
        """There is no such object and something was predicted."""
        return self.truth_ml == 0 and self.predicted_ml > 0


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of the prediction to the truth's surface, and of the truth's back.

    Args:
        prediction, truth: bool arrays of one shape.
        spacing: mm along each axis.

    Returns:
        float64 ``[n]`` and ``[m]``; all infinite where the other object is empty, of length 0 where it is itself.
    """
    box = _bounds(prediction | truth)
    if box is None:
        return np.zeros(0), np.zeros(0)
    edges = [_edge(mask[box]) for mask in (prediction, truth)]
    scale = np.asarray(spacing, np.float64)
    points = [np.argwhere(edge) * scale for edge in edges]
    return _nearest(points[0], points[1], edges[1], edges[0]), _nearest(points[1], points[0], edges[0], edges[1])


def _bounds(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask."""
    box = []
    for a in range(mask.ndim):
        there = np.flatnonzero(mask.any(tuple(i for i in range(mask.ndim) if i != a)))
        if not there.size:
            return None
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(box)


def _edge(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def _nearest(points: np.ndarray, others: np.ndarray, other_edge: np.ndarray, own_edge: np.ndarray) -> np.ndarray:
    """Distance of each point ``[n, d]`` to the nearest of ``others [m, d]``."""
    from scipy.spatial import KDTree

    if not len(others):
        return np.full(len(points), np.inf)
    distances = np.zeros(len(points))
    apart = ~other_edge[own_edge]  # surfaces mostly lie on each other: those voxels need no search
    if apart.any():
        distances[apart] = KDTree(others, leafsize=32).query(points[apart])[0]
    return distances


def score_mask(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], *, surface: bool = True
) -> tuple[float, float, float]:
    """Dice, HD95 and ASSD of one object from bool arrays of one shape; see :class:`ClassScore`."""
    both = int(prediction.sum()) + int(truth.sum())
    dice = 2 * int((prediction & truth).sum()) / both if both else float("nan")
    if not surface:
        return dice, float("nan"), float("nan")
    forth, back = surface_distances(prediction, truth, spacing)
    if not both:
        return dice, float("nan"), float("nan")
    if not (len(forth) and len(back)):
        return dice, float("inf"), float("inf")
    hd95 = max(float(np.percentile(d, 95)) for d in (forth, back))
    return dice, hd95, float(np.concatenate([forth, back]).mean())


def score_labels(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    classes: Sequence[str],
    *,
    case: str = "",
    surface: bool = True,
) -> list[ClassScore]:
    """Scores of all classes but the background of one case.

    Args:
        prediction, truth: integer class indices of one shape, 2-D or 3-D.
        spacing: mm along each axis. A pixel of a 2-D image counts as 1 mm thick for its volume.
        classes: names, the background (index 0) first.
        case: name of the case.
        surface: measure surface distances too; they are NaN otherwise.

    Raises:
        ValueError: shapes differ, the spacing is not of positive numbers for each axis, or a label is no class.
        TypeError: labels are no integers.
    """
    where = f"case {case!r}: " if case else ""
    if prediction.shape != truth.shape:
        raise ValueError(f"{where}the prediction has shape {prediction.shape}, the truth {truth.shape}")
    spacing = tuple(float(s) for s in spacing)
    if len(spacing) != truth.ndim or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"{where}spacing={spacing}: {truth.ndim} positive numbers are needed, mm along each axis")
    for name, labels in (("prediction", prediction), ("truth", truth)):
        check_labels(labels, len(classes), f"{where}the {name}")
    counts = _joint_counts(prediction, truth, len(classes))
    own = [_objects(labels, len(classes)) for labels in (prediction, truth)]
    millilitres = float(np.prod(spacing)) / 1000
    scores = []
    for k in range(1, len(classes)):
        in_truth, found, right = int(counts[k].sum()), int(counts[:, k].sum()), int(counts[k, k])
        dice = 2 * right / (in_truth + found) if in_truth + found else float("nan")
        hd95 = assd = float("nan")
        if surface and in_truth and found:
            box = _around(own[0][k], own[1][k])
            _, hd95, assd = score_mask(prediction[box] == k, truth[box] == k, spacing)
        elif surface and (in_truth or found):
            hd95 = assd = float("inf")
        volumes = in_truth * millilitres, found * millilitres
        scores.append(ClassScore(case, k, str(classes[k]), dice, hd95, assd, *volumes))
    return scores


def check_labels(labels: np.ndarray, classes: int, what: str) -> None:
    """Refuse labels that are no class indices below ``classes``.

    Raises:
        TypeError: they are no integers.
        ValueError: some are out of range; the message has the values.
    """
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{what} is of {labels.dtype}; integer labels are needed")
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        values = np.unique(labels)
        wrong = [int(v) for v in values if not 0 <= v < classes]
        raise ValueError(f"{what} has the labels {wrong[:8]}, but there are {classes} classes (0 to {classes - 1})")


def _joint_counts(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Voxels ``[K, K]`` of each true (row) and predicted (column) class."""
    counts = np.zeros(classes * classes, np.int64)
    for p, t in zip(prediction, truth):  # slice by slice: the sums need eight bytes a voxel
        counts += np.bincount((t.astype(np.int64) * classes + p).ravel(), minlength=classes * classes)
    return counts.reshape(classes, classes)


def _objects(labels: np.ndarray, classes: int) -> list[tuple[slice, ...] | None]:
    """Bounding box of each class, index 0 being None."""
    from scipy.ndimage import find_objects

    return [None, *find_objects(labels, classes - 1)]


def _around(a: tuple[slice, ...] | None, b: tuple[slice, ...] | None) -> tuple[slice, ...]:
    assert a is not None
    assert b is not None
    return tuple(slice(min(i.start, j.start), max(i.stop, j.stop)) for i, j in zip(a, b))


class VolumeMetric(SampleMetric):
    """Dice, HD95, ASSD and volume errors of predicted volumes: ``volume/dice``, ``volume/hd95`` ...

    Scalars are means over the cases of a class and then over the classes, the background left out; ``volume/dice/NAME``
    is a class's own. Distances are means over the cases where the class is in both label maps; how often it is in one
    of them only is ``volume/missed`` and ``volume/invented``. After an evaluation :attr:`scores` has every case and
    class.

    Args:
        surface: measure surface distances; they take most of the time.
        out_dir: where to write ``cases.csv``, ``summary.csv``, ``summary.json`` and ``boxplot.png``
            (:func:`zoo.metrics.volume_report.write_report`); None: nowhere.
        prefix: of the metric names.
    """

    default_prefix = "volume"

    def __init__(self, surface: bool = True, out_dir: str | os.PathLike[str] | None = None, prefix: str | None = None):
        super().__init__(prefix)
        self.surface, self.out_dir = surface, None if out_dir is None else Path(out_dir)
        self.scores: list[ClassScore] = []

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Score a batch of predicted samples (dicts of ``VolumeSample``'s fields).

        Raises:
            ValueError: a sample lacks its truth, prediction or spacing, or see :func:`score_labels`.
        """
        for sample in data_samples:
            case = str(sample.get("case", sample.get("sample_idx", len(self.results))))
            missing = [k for k in ("gt_label", "pred_label", "spacing") if sample.get(k) is None]
            if missing:
                raise ValueError(f"case {case!r} has no {' and no '.join(missing)} to evaluate")
            said, true = (np.asarray(sample[k].detach().cpu()) for k in ("pred_label", "gt_label"))
            scores = score_labels(said, true, sample["spacing"], self._names(), case=case, surface=self.surface)
            self.results.append((sample.get("sample_idx"), scores))

    def _names(self) -> Sequence[str]:
        if not self.classes:
            raise ValueError("VolumeMetric needs a dataset whose metainfo has 'classes', the background first")
        return self.classes

    def summarise(self, results: list[list[ClassScore]]) -> dict[str, float]:
        from zoo.metrics.volume_report import mean_scores, write_report

        self.scores = [score for case in results for score in case]
        if self.out_dir is not None and dist.is_main_process():
            write_report(self.out_dir, self.scores)
        return mean_scores(self.scores, surface=self.surface)
