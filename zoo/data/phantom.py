"""A generated abdomen: volumes with four organs, written as real NIfTI, so that medical recipes run without a download.

Each volume is a function of (seed, index). Organs are ellipsoids with smooth, random dents and bulges, whose size,
place, tilt and brightness vary; neighbouring organs overlap in brightness, so that they are told apart by place and
shape, too. The image has partial volume (edges are computed on a finer grid along the thick slices), a smooth bias
field, noise and anisotropic, slightly oblique voxels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from zoo.data.volumes import Volume, spacing_of, write_volume
from zoo.files import write_file

#: Background first.
PHANTOM_CLASSES = ("background", "liver", "spleen", "kidney", "gallbladder")

#: centre and radii as shares of the body's (x to the left, y to the back, z to the head), brightness in HU
_ORGANS = (
    ((-0.42, -0.05, 0.15), (0.40, 0.52, 0.52), 105.0),
    ((0.56, 0.28, 0.22), (0.20, 0.30, 0.40), 120.0),
    ((0.40, 0.42, -0.42), (0.17, 0.20, 0.36), 135.0),
    ((-0.22, -0.50, -0.36), (0.105, 0.13, 0.20), 0.0),
)
_AIR, _FAT, _TISSUE, _BONE = -400.0, -90.0, 45.0, 300.0


class Phantom:
    """Generated volumes; :meth:`volume` makes one.

    Args:
        size: voxels along X, Y, Z; at least 16.
        seed: which data set.
        noise: standard deviation in HU.
        bias: largest share by which the bias field brightens or darkens.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, size: Sequence[int] = (96, 96, 48), *, seed: int = 0, noise: float = 18.0, bias: float = 0.12):
        if len(size) != 3 or min(size) < 16:
            raise ValueError(f"size={tuple(size)} must be three numbers of at least 16 voxels")
        if seed < 0 or noise < 0 or not 0 <= bias < 1:
            raise ValueError(f"seed={seed}, noise={noise} must not be negative, bias={bias} must be from 0 to below 1")
        self.size = (int(size[0]), int(size[1]), int(size[2]))
        self.seed, self.noise, self.bias = seed, noise, bias

    def volume(self, index: int) -> tuple[Volume, Volume]:
        """Image (int16 values in HU, as float32) and labels (uint8) of volume ``index``."""
        rng = np.random.default_rng((self.seed, index))
        affine = self._affine(rng)
        nx, ny, nz = self.size
        # coordinates as shares of the body's half axes; z is sampled more finely
        body = rng.uniform(0.82, 0.94, 3) * (1.0, 0.86, 1.15)
        shift = rng.uniform(-0.06, 0.06, 3)
        x = (((np.arange(nx) + 0.5) / nx * 2 - 1 - shift[0]) / body[0])[:, None, None].astype(np.float32)
        y = (((np.arange(ny) + 0.5) / ny * 2 - 1 - shift[1]) / body[1])[None, :, None].astype(np.float32)
        fine = 2 * nz
        z = (((np.arange(fine) + 0.5) / fine * 2 - 1 - shift[2]) / body[2])[None, None, :].astype(np.float32)
        voxel = 2 / (nx * body[0])  # side of a voxel in these coordinates
        image: np.ndarray = np.full((nx, ny, fine), _AIR, np.float32)
        whole = (slice(None),) * 3
        _lay(image, whole, np.sqrt(x**2 + y**2) + 0 * z, 1.0, voxel, _FAT)
        _lay(image, whole, np.sqrt(x**2 + y**2) + 0 * z, rng.uniform(0.88, 0.94), voxel, _TISSUE + rng.normal(0, 5))
        spine = np.sqrt((x / 0.13) ** 2 + ((y - 0.62) / 0.16) ** 2) + 0 * z
        _lay(image, whole, spine, 1.0, voxel / 0.13, _BONE + rng.normal(0, 40))
        labels = np.zeros((nx, ny, fine), np.uint8)
        contrast = rng.normal(1.0, 0.08)
        for k, (centre, radii, brightness) in enumerate(_ORGANS):
            level = brightness * contrast + rng.normal(0, 5)
            radii_ = np.array(radii) * rng.uniform(0.85, 1.15) * rng.uniform(0.9, 1.1, 3)
            box, distance = _organ(rng, (x, y, z), np.array(centre) + rng.uniform(-0.07, 0.07, 3), radii_)
            inside = _lay(image, box, distance, 1.0, voxel / float(radii_.min()), level)
            # an organ hides those before it
            labels[box][inside > 0.5] = k + 1
        # of the two samples along z the image is the mean; where their labels differ, an organ wins over the background
        image = (image[..., 0::2] + image[..., 1::2]) / 2
        label = np.maximum(labels[..., 0::2], labels[..., 1::2])
        image = (image - _AIR) * self._bias_field(rng) + _AIR
        image += rng.normal(0, self.noise, image.shape).astype(np.float32)
        image = np.round(image).astype(np.float32)
        spacing = spacing_of(affine)
        name = f"phantom_{index:03d}"
        return Volume(image, affine, spacing, None, name), Volume(label, affine, spacing, None, name)

    def _affine(self, rng: np.random.Generator) -> np.ndarray:
        """Voxels of about 1.6 x 1.6 x 3.2 mm, axes to the left, the back and the head, turned by up to 4 degrees."""
        angle = np.radians(rng.uniform(-4, 4))
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        plane = rng.uniform(1.45, 1.75)
        scale = np.array([plane, plane, rng.uniform(2.9, 3.5)]) * (
            96 / self.size[0],
            96 / self.size[1],
            48 / self.size[2],
        )
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag(scale * (-1, -1, 1))
        affine[:3, 3] = -affine[:3, :3] @ (np.array(self.size) - 1) / 2 + rng.uniform(-20, 20, 3)
        return affine.astype(np.float32).astype(np.float64)  # what a header can hold

    def _bias_field(self, rng: np.random.Generator) -> np.ndarray:
        """Float32 ``[X, Y, Z]`` around 1: products of a few long waves."""
        field: np.ndarray = np.zeros(self.size, np.float32)
        for _ in range(3):
            waves = [
                np.sin(np.linspace(0, 1, n) * rng.uniform(1, 3) + rng.uniform(0, 2 * np.pi)).astype(np.float32)
                for n in self.size
            ]
            field = field + waves[0][:, None, None] * waves[1][None, :, None] * waves[2][None, None, :]
        return 1 + self.bias * field / max(float(np.abs(field).max()), 1e-6)


def _organ(
    rng: np.random.Generator, axes: tuple[np.ndarray, ...], centre: np.ndarray, radii: np.ndarray
) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box around an organ, and in it the distance from the centre as a share of the radius in that direction."""
    turn, _ = np.linalg.qr(np.eye(3) + rng.uniform(-0.25, 0.25, (3, 3)))
    turn = turn * np.sign(np.diag(turn))
    reach = 1.35 * np.sqrt((turn**2) @ (radii**2))  # of the turned ellipsoid along the axes
    box, local = [], []
    for axis, c, r in zip(axes, centre, reach):
        values = axis.ravel()
        start, stop = np.searchsorted(values, (c - r, c + r))
        box.append(slice(int(start), int(stop)))
        local.append(values[start:stop] - c)
    u, v, w = np.meshgrid(*local, indexing="ij", sparse=True)
    p = [(turn[0, i] * u + turn[1, i] * v + turn[2, i] * w) / np.float32(radii[i]) for i in range(3)]
    distance = np.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2)
    bumps = np.zeros_like(distance)
    for _ in range(3):
        k = rng.normal(0, 1.6, 3).astype(np.float32)
        bumps += np.sin(k[0] * p[0] + k[1] * p[1] + k[2] * p[2] + np.float32(rng.uniform(0, 2 * np.pi)))
    return tuple(box), distance / (1 + np.float32(0.07) * bumps)


def _lay(
    image: np.ndarray, box: tuple[slice, ...], distance: np.ndarray, edge: float, width: float, level: float
) -> np.ndarray:
    """Lay a structure over an image, mixing over ``width`` about its edge; returns the share it has in each voxel."""
    share = np.clip((edge - distance) / np.float32(width) + np.float32(0.5), 0, 1)
    part = image[box]
    part += share * (np.float32(level) - part)
    return share


def write_phantom(
    folder: str | os.PathLike,
    volumes: int = 40,
    size: Sequence[int] = (96, 96, 48),
    seed: int = 0,
    *,
    test: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a phantom data set in the layout of the Medical Segmentation Decathlon.

    ``folder/imagesTr``, ``folder/labelsTr``, with ``test`` also ``folder/imagesTs`` (volumes without labels), and
    ``folder/dataset.json``, which is written last.

    Args:
        folder: made if missing.
        volumes: with labels.
        size, seed: see :class:`Phantom`.
        test: further volumes, without labels.
        progress: called with the number of written volumes and of all.

    Returns:
        The path of ``dataset.json``.
    """
    if volumes < 1 or test < 0:
        raise ValueError(f"volumes={volumes} must be at least 1 and test={test} must not be negative")
    phantom, root = Phantom(size, seed=seed), Path(folder)
    training, tests = [], []
    for i in range(volumes + test):
        image, label = phantom.volume(i)
        name = f"{image.path}.nii.gz"
        part = "Tr" if i < volumes else "Ts"
        write_volume(root / f"images{part}" / name, image.data.astype(np.int16), image)
        if i < volumes:
            write_volume(root / "labelsTr" / name, label.data, label)
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        else:
            tests.append(f"./imagesTs/{name}")
        if progress:
            progress(i + 1, volumes + test)
    content = {
        "name": "phantom",
        "description": f"generated abdomens, seed={seed}",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(i): name for i, name in enumerate(PHANTOM_CLASSES)},
        "numTraining": volumes,
        "numTest": test,
        "training": training,
        "test": tests,
    }
    return write_file(root / "dataset.json", json.dumps(content, indent=1))
