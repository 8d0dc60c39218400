"""Pictures of volumes: label maps on three planes, and scores as box plots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from zoo.viz.figures import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from zoo.metrics.volume import ClassScore

#: Planes of a volume in RAS+: name, fixed axis, what lies at the left, right, bottom and top of the picture.
_PLANES = (("axial", 2, "RLPA"), ("coronal", 1, "RLIS"), ("sagittal", 0, "APIS"))
#: Where those letters stand, and how they are aligned.
_RIM = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.02, "center", "bottom"),
        (0.5, 0.98, "center", "top"))  # fmt: skip


def to_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view of an array whose axes go right, anterior, superior: axes are swapped and turned, nothing is resampled."""
    goes, signs = _directions(affine)
    turned = array[tuple(slice(None, None, int(s)) for s in signs)]
    return turned.transpose(np.argsort(goes))


def _directions(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each axis of an array: the axis of RAS+ that it is closest to, each once, and 1 or -1 where it is turned."""
    from scipy.optimize import linear_sum_assignment

    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)  # [world, array]
    goes = linear_sum_assignment(-np.abs(axes.T))[1]
    return goes, np.where(axes[goes, range(3)] < 0, -1, 1)


def draw_overlay(
    image: np.ndarray,
    prediction: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    *,
    affine: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    at: Sequence[int] | None = None,
    window: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """An image with its labels: the prediction as areas, the truth as lines, a colour a class.

    A volume is shown in an axial, a coronal and a sagittal plane, the patient's right at the left as in radiology, with
    the letters of the directions at the rim; without an affine the axes are taken as right, anterior, superior.

    Args:
        image: ``[X, Y, Z]``, or ``[H, W]`` of a 2-D image.
        prediction, truth: integer class indices of the same shape.
        affine: ``[4, 4]``, voxel index -> mm in RAS+.
        spacing: mm along the array's axes; of the affine by default, else 1.
        classes: names, background first; numbers by default.
        at: voxel through which the planes go; by default where each class that is there has the most voxels on a plane.
        window: intensities that are black and white; by default 0.5 % are darker and 0.5 % brighter.
        title: above the picture.

    Raises:
        ValueError: shapes do not agree, or the array has neither two nor three axes.
    """
    labels = {"prediction": prediction, "truth": truth}
    if image.ndim not in (2, 3):
        raise ValueError(f"image has shape {image.shape}; accepted are [X, Y, Z] and [H, W]")
    for name, value in labels.items():
        if value is not None and value.shape != image.shape:
            raise ValueError(f"{name} has shape {value.shape}, the image {image.shape}")
    if spacing is None:
        spacing = [1.0] * image.ndim if affine is None else np.linalg.norm(affine[:3, :3], axis=0).tolist()
    if at is None:
        at = _middle([v for v in labels.values() if v is not None], image.shape)
    if len(at) != image.ndim or any(not 0 <= i < n for i, n in zip(at, image.shape)):
        raise ValueError(f"at={tuple(at)} is no voxel of an image of shape {image.shape}")
    low, high = _intensities(image) if window is None else window
    arrays = {"image": image, **{k: v for k, v in labels.items() if v is not None}}
    if image.ndim == 2:
        planes = [("", arrays, "", (float(spacing[0]), float(spacing[1])))]
    else:
        planes = _planes(arrays, affine, spacing, at)
    sides = [[n * s for n, s in zip(p["image"].shape, mm)] for _, p, _, mm in planes]  # height and width, mm
    tallest = max(h for h, _ in sides)
    figure = new_figure(1 + 4.2 * sum(w for _, w in sides) / tallest, 4.8)
    axes = figure.subplots(1, len(planes), squeeze=False, width_ratios=[w for _, w in sides])[0]
    shown: set[int] = set()
    for ax, (name, plane, letters, (dy, dx)) in zip(axes, planes):
        ax.imshow(plane["image"], cmap="gray", vmin=low, vmax=high, aspect=dy / dx, interpolation="nearest")
        if "prediction" in plane:
            ax.imshow(_colours(plane["prediction"]), aspect=dy / dx, interpolation="nearest")
            shown.update(np.unique(plane["prediction"]).tolist())
        if "truth" in plane:
            own = [int(k) for k in np.unique(plane["truth"]) if k > 0]
            for k in own:
                mask = np.pad(plane["truth"] == k, 1).astype(np.float32)  # lines are closed at the rim
                y, x = (np.arange(-1, n + 1) for n in plane["truth"].shape)
                ax.contour(x, y, mask, [0.5], colors=[_colour(k)], linewidths=1.3)
            shown.update(own)
        ax.set(xticks=[], yticks=[], title=name, xlim=(-0.5, plane["image"].shape[1] - 0.5),
               ylim=(plane["image"].shape[0] - 0.5, -0.5))  # fmt: skip
        for letter, (px, py, ha, va) in zip(letters, _RIM):
            ax.text(px, py, letter, color="#ffd54a", fontsize=9, transform=ax.transAxes, ha=ha, va=va)
    _legend(figure, sorted(shown - {0}), classes, prediction is not None, truth is not None)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save_overlay(path: str | os.PathLike[str], *args: Any, dpi: int = 100, **options: Any) -> Path:
    """Draw labels on an image (:func:`draw_overlay`) into a file."""
    return save_figure(draw_overlay(*args, **options), path, dpi)


def _planes(
    arrays: dict[str, np.ndarray], affine: np.ndarray | None, spacing: Sequence[float], at: Sequence[int]
) -> list[tuple[str, dict[str, np.ndarray], str, tuple[float, float]]]:
    """Name, pictures ``[rows, columns]`` from the top, letters, and mm a row and a column, of each plane."""
    affine = np.diag([*spacing, 1.0]) if affine is None else np.asarray(affine)
    mm = [0.0] * 3
    where = [0] * 3
    for a, (to, sign) in enumerate(zip(*_directions(affine))):
        mm[to] = float(spacing[a])
        where[to] = at[a] if sign > 0 else arrays["image"].shape[a] - 1 - at[a]
    turned = {k: to_ras(v, affine) for k, v in arrays.items()}
    found = []
    for name, axis, letters in _PLANES:
        across, up = (a for a in range(3) if a != axis)
        own = {}
        for k, v in turned.items():
            picture = v.take(where[axis], axis).T[::-1]  # rows from the top, columns left to right in RAS+
            own[k] = picture[:, ::-1]  # the right, and the front, at the left
        found.append((name, own, letters, (mm[up], mm[across])))
    return found


def _middle(labels: Sequence[np.ndarray], shape: Sequence[int]) -> list[int]:
    """For each axis the slice with the most classes, of those the one with the most labelled voxels."""
    if not any((v > 0).any() for v in labels):
        return [n // 2 for n in shape]
    at = []
    for a in range(len(shape)):
        rest = tuple(i for i in range(len(shape)) if i != a)
        score = np.zeros(shape[a])
        for v in labels:
            areas = np.stack([(v == k).sum(rest) for k in np.unique(v) if k > 0] or [np.zeros(shape[a])])
            score += (areas > 0).sum(0) + (areas / np.maximum(areas.max(1, keepdims=True), 1)).sum(0) / len(areas)
        at.append(int(score.argmax()))
    return at


def _intensities(image: np.ndarray) -> tuple[float, float]:
    sample = image[tuple(slice(None, None, max(1, n // 64)) for n in image.shape)]
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, (0.5, 99.5)))
    return low, high if high > low else low + 1


def _colour(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]


def _colours(labels: np.ndarray, opacity: int = 115) -> np.ndarray:
    """RGBA uint8 ``[rows, columns, 4]`` of label numbers; the background is clear."""
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS], np.uint8)
    picture = np.zeros((*labels.shape, 4), np.uint8)
    there = labels > 0
    picture[there, :3] = rgb[(labels[there].astype(np.int64) - 1) % len(COLOURS)]
    picture[there, 3] = opacity
    return picture


def _legend(figure: Figure, shown: Sequence[int], classes: Sequence[str] | None, areas: bool, lines: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = {k: str(classes[k]) if classes is not None and k < len(classes) else str(k) for k in shown}
    handles: list[Any] = [Patch(color=_colour(k), label=names[k]) for k in shown[:16]]
    if areas and lines:
        handles += [Patch(fc="#bbbbbb", label="area: prediction"), Line2D([], [], color="#444444", label="line: truth")]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8, frameon=False
        )


def draw_boxplot(scores: Sequence[ClassScore]) -> Figure:
    """Dice, HD95, ASSD and volume error of each class over the cases: box, median, mean (a diamond), each case a dot.

    Distances to nothing and the volume errors of objects that are not there are left out; under each class stands how
    many cases count.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("there are no scores to draw")
    names = list(dict.fromkeys(s.name for s in scores))
    panels = (
        ("Dice", lambda s: s.dice), ("HD95, mm", lambda s: s.hd95), ("ASSD, mm", lambda s: s.assd),
        ("volume error, ml", lambda s: s.error_ml if s.truth_ml or s.predicted_ml else float("nan")),
    )  # fmt: skip
    figure = new_figure(max(9.0, 1.6 + 1.1 * len(names)), 7.2)
    rng = np.random.default_rng(0)
    for ax, (title, of) in zip(figure.subplots(2, 2).flat, panels):
        values = [np.array([of(s) for s in scores if s.name == n], float) for n in names]
        values = [v[np.isfinite(v)] for v in values]
        places = np.arange(1, len(names) + 1)
        boxes = ax.boxplot(values, positions=places, widths=0.6, showfliers=False, showmeans=True, patch_artist=True,
                           medianprops={"color": "black"}, meanprops={"marker": "D", "markersize": 4,
                           "markerfacecolor": "white", "markeredgecolor": "black"})  # fmt: skip
        for k, (box, own) in enumerate(zip(boxes["boxes"], values)):
            colour = COLOURS[k % len(COLOURS)]
            box.set(facecolor=colour, alpha=0.35, edgecolor=colour)
            ax.scatter(k + 1 + rng.uniform(-0.15, 0.15, len(own)), own, s=8, color=colour, alpha=0.7, linewidths=0)
        ax.set_xticks(places, [f"{n}\n{len(v)}" for n, v in zip(names, values)], fontsize=8,
                      rotation=0 if len(names) <= 8 else 60)  # fmt: skip
        ax.set(title=title, xlim=(0.3, len(names) + 0.7))
        if title == "Dice":
            ax.set_ylim(-0.02, 1.02)
        ax.grid(axis="y", alpha=0.3)
    return figure


def save_boxplot(scores: Sequence[ClassScore], path: str | os.PathLike[str]) -> Path:
    """Draw scores (:func:`draw_boxplot`) into a file."""
    return save_figure(draw_boxplot(scores), path)
