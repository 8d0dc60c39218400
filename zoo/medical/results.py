"""What a segmentation model says of a volume: a label map on the volume's own grid."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data.volumes import Volume
from zoo.inference.results import Result, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_NIFTI = (".nii", ".nii.gz")


@dataclass
class VolumeResult(Result):
    """The label map of one volume; rows are classes, the background left out.

    Attributes:
        case: name of the case.
        labels: class indices ``[X, Y, Z]`` on the grid of the file, uint8 (int16 of more than 256 classes).
        names: of the classes, background first.
        label_ids: the id of each class in files of labels.
        spacing: mm along X, Y, Z.
        probabilities: float32 ``[K, X, Y, Z]``, where they were asked for.
    """

    case: str = ""
    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8), repr=False)
    names: list[str] = field(default_factory=list)
    label_ids: list[int] = field(default_factory=list)
    spacing: tuple[float, ...] = ()
    probabilities: np.ndarray | None = field(default=None, repr=False)
    _affine: np.ndarray | None = field(default=None, repr=False, compare=False)
    _header: Any = field(default=None, repr=False, compare=False)
    _read: Callable[[], np.ndarray] | None = field(default=None, repr=False, compare=False)

    @property
    def image(self) -> np.ndarray:
        """The first channel as it is in the file, float32 ``[X, Y, Z]``; read again where it was not kept.

        Raises:
            ValueError: the volume could not be read in the first place.
        """
        if self.error is not None or (self._image is None and self._read is None):
            raise ValueError(f"{self.source} has no image: {self.error or 'it was not kept'}")
        return self._image if self._image is not None else self._read()  # type: ignore[misc]

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Millilitres of each class, the background left out."""
        return {row["name"]: row["ml"] for row in self.rows()}

    def body(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "shape": list(self.labels.shape),
            "spacing_mm": [float(s) for s in self.spacing],
            "classes": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a class: ``name``, ``label`` (its id in files), ``voxels`` and ``ml``."""
        counts = _counts(self.labels, len(self.names))
        ml = float(np.prod(self.spacing)) / 1000
        return [
            {"name": name, "label": int(number), "voxels": int(count), "ml": round(int(count) * ml, 4)}
            for name, number, count in zip(self.names[1:], self.label_ids[1:], counts[1:])
        ]

    def coco_entries(self, image_id: int) -> list[dict[str, Any]]:
        """Refused: COCO results are of 2-D objects.

        Raises:
            ValueError: always.
        """
        raise ValueError("label maps of volumes have no COCO form; save them as NIfTI")

    def figure(self, truth: np.ndarray | None = None) -> Figure:
        """The label map on the image in three planes (:func:`zoo.viz.volumes.draw_overlay`); ``truth`` as lines."""
        from zoo.viz.volumes import draw_overlay

        return draw_overlay(
            self.image,
            self.labels,
            truth,
            affine=self._affine,
            spacing=self.spacing,
            classes=self.names,
            title=self.case,
        )

    def draw(self) -> Image:
        """:meth:`figure` as a PIL image."""
        import PIL.Image

        figure = self.figure()
        figure.canvas.draw()
        return PIL.Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the label map (``.nii``, ``.nii.gz``), the overlay (``.png`` ...) or :meth:`to_dict` (``.json``).

        A label map has the ids of the data the model was trained on, and affine, zooms and header of the input.

        Raises:
            ValueError: there is no label map, or another ending.
        """
        if not str(path).lower().endswith(_NIFTI):
            return super().save(path)
        from zoo.data.volume_dataset import indices_to_ids
        from zoo.data.volumes import write_volume

        like = self._like()
        return write_volume(path, indices_to_ids(self.labels, self.label_ids), like)

    def save_probabilities(self, path: str | os.PathLike[str]) -> Path:
        """Write the probabilities as 4-D NIfTI ``[X, Y, Z, K]``, float32.

        Raises:
            ValueError: they were not asked for (``probabilities=True``), or another ending than NIfTI's.
        """
        from zoo.data.volumes import write_volume

        if self.probabilities is None:
            raise ValueError(f"the probabilities of {self.source} were not kept; predict with probabilities=True")
        return write_volume(path, np.moveaxis(self.probabilities, 0, -1), self._like())

    def save_all(self, folder: str | os.PathLike[str], *, picture: bool = True) -> list[Path]:
        """Write ``CASE.nii.gz``, ``CASE_probabilities.nii.gz`` where there are any, and the overlay ``CASE.png``."""
        folder = Path(folder)
        written = [self.save(folder / f"{self.case}.nii.gz")]
        if self.probabilities is not None:
            written.append(self.save_probabilities(folder / f"{self.case}_probabilities.nii.gz"))
        if picture:
            written.append(self.save(folder / f"{self.case}.png"))
        return written

    def _like(self) -> Volume:
        if self.error is not None or self._affine is None:
            raise ValueError(f"{self.source} has no label map: {self.error or 'it has no place in space'}")
        return Volume(self.labels, self._affine, self.spacing, self._header, self.source)  # type: ignore[arg-type]


class VolumeResults(Results[VolumeResult]):
    """Results of several volumes."""

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``predictions.jsonl``, and the files of :meth:`VolumeResult.save_all` of each volume."""
        for result in self:
            if result.error is None:
                result.save_all(folder)
        self.to_json(Path(folder) / "predictions.jsonl")
        return Path(folder)


def _counts(labels: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros(classes, np.int64)
    for plane in labels:  # plane by plane: counting needs eight bytes a voxel
        counts += np.bincount(plane.ravel(), minlength=classes)
    return counts
