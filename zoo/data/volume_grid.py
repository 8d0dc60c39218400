"""Volumes on other grids: other axes, other spacings, and back again to the grid of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.volume_intensity import check_normalisation, normalise
from zoo.data.volumes import Volume, spacing_of


def axis_codes(affine: np.ndarray) -> str:
    """Where the axes lead, such as "RAS" (right, anterior, superior) or "LPS", of an affine ``[4, 4]``."""
    import nibabel

    return "".join(nibabel.aff2axcodes(affine))


def reorient(volume: Volume, codes: str) -> Volume:
    """Flip and swap the axes so that they lead to ``codes``; no voxel changes its value.

    Raises:
        ValueError: no three letters of which one is R or L, one A or P, one S or I.
    """
    import nibabel.orientations as nio

    if sorted(codes.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise ValueError(f"orientation={codes!r} is unknown; accepted are three letters such as 'RAS' or 'LPS'")
    if axis_codes(volume.affine) == codes:
        return volume
    there = nio.ornt_transform(nio.io_orientation(volume.affine), nio.axcodes2ornt(codes))
    affine = volume.affine @ nio.inv_ornt_aff(there, volume.shape)
    return Volume(_turn(volume.data, there), affine, spacing_of(affine), None, volume.path)


def _turn(data: np.ndarray, transform: np.ndarray) -> np.ndarray:
    import nibabel.orientations as nio

    if data.ndim == 4:
        return np.stack([np.ascontiguousarray(nio.apply_orientation(d, transform)) for d in data])
    return np.ascontiguousarray(nio.apply_orientation(data, transform))


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, int, int]:
    """Voxels along each axis that fill the same space at another spacing."""
    x, y, z = (max(int(round(n * s / w)), 1) for n, s, w in zip(shape, spacing, wanted))
    return x, y, z


def resample(volume: Volume, spacing: Sequence[float], *, label: bool = False) -> Volume:
    """Another spacing: linear interpolation, of labels that of each class's share, of which the greatest wins.

    The volume fills the same space to the edge; since voxels are whole, its spacing is ``spacing`` only nearly.
    """
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing={tuple(spacing)} must be three numbers above 0, in mm")
    shape = resampled_shape(volume.shape, volume.spacing, spacing)
    if shape == volume.shape:
        return volume
    data = resize_labels(volume.data, shape) if label else resize(volume.data, shape)
    return Volume(data, _stretched(volume, shape), spacing_of(_stretched(volume, shape)), None, volume.path)


def _stretched(volume: Volume, shape: Sequence[int]) -> np.ndarray:
    factor = np.array(volume.shape) / np.array(shape)
    affine = volume.affine @ np.diag([*factor, 1.0])
    affine[:3, 3] = (volume.affine @ np.array([*(factor / 2 - 0.5), 1.0]))[:3]  # edges stay, centres move
    return affine


def resize(data: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """float32 ``[X, Y, Z]`` or ``[C, X, Y, Z]`` of another size, by linear interpolation."""
    channels = data if data.ndim == 4 else data[None]
    out = np.stack([_linear(torch.from_numpy(np.ascontiguousarray(c, np.float32)), shape).numpy() for c in channels])
    return out if data.ndim == 4 else out[0]


def resize_labels(labels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Labels ``[X, Y, Z]`` of another size: the class with the greatest interpolated share, of equals the smallest."""
    best = torch.zeros(tuple(shape))
    out = np.zeros(tuple(shape), labels.dtype)
    for value in np.unique(labels).tolist():
        share = _linear(torch.from_numpy((labels == value).astype(np.float32)), shape)
        better = share > best
        out[better.numpy()] = value
        best = torch.maximum(best, share)
    return out


def _linear(volume: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(volume[None, None], size=tuple(shape), mode="trilinear", align_corners=False)[0, 0]


@dataclass(frozen=True)
class Preparation:
    """What is done with a volume between its file and a network, and how a result gets back to the file's grid.

    Attributes:
        spacing: mm along the axes that the network gets; None keeps that of the file.
        orientation: where the axes lead that the network gets, such as "RAS"; None keeps those of the file.
        normalisation: see :func:`zoo.data.volume_intensity.normalise`.
    """

    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    normalisation: Any = None

    def image(self, volume: Volume) -> Volume:
        """An image ``[C, X, Y, Z]`` as networks get it."""
        turned = reorient(volume, self.orientation) if self.orientation else volume
        scaled = resample(turned, self.spacing) if self.spacing else turned
        header = volume.header if scaled is volume else None
        return Volume(normalise(scaled.data, self.normalisation), scaled.affine, scaled.spacing, header, volume.path)

    def label(self, volume: Volume) -> Volume:
        """Labels ``[X, Y, Z]`` on the same grid as the image."""
        turned = reorient(volume, self.orientation) if self.orientation else volume
        return resample(turned, self.spacing, label=True) if self.spacing else turned

    def restore(self, array: np.ndarray, original: Volume) -> np.ndarray:
        """A result on the grid of the file that it came from.

        Args:
            array: class indices ``[X, Y, Z]``, or floats ``[K, X, Y, Z]``, on the grid of :meth:`image`.
            original: the volume before :meth:`image`.

        Returns:
            the same with the axes and the shape of ``original``.
        """
        import nibabel.orientations as nio

        if self.orientation is None or axis_codes(original.affine) == self.orientation:
            back, shape = None, original.shape
        else:
            back = nio.ornt_transform(nio.axcodes2ornt(self.orientation), nio.io_orientation(original.affine))
            there = nio.ornt_transform(nio.io_orientation(original.affine), nio.axcodes2ornt(self.orientation))
            turned = [0, 0, 0]
            for axis, to in enumerate(there[:, 0].astype(int)):
                turned[to] = original.shape[axis]
            shape = (turned[0], turned[1], turned[2])
        if array.shape[-3:] != shape:
            array = resize(array, shape) if array.dtype.kind == "f" else resize_labels(array, shape)
        return array if back is None else _turn(array, back)

    def to_dict(self, channels: int | None = None) -> dict[str, Any]:
        """Plain numbers and strings; with ``channels`` the normalisation is written out in full."""
        content = asdict(self)
        if channels is not None:
            content["normalisation"] = check_normalisation(self.normalisation, channels)
        return content

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Preparation:
        """From :meth:`to_dict`."""
        spacing = content.get("spacing")
        return Preparation(
            tuple(spacing) if spacing else None,
            content.get("orientation"),
            content.get("normalisation"),
        )
