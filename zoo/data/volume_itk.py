"""NRRD, MetaImage and DICOM series, read by SimpleITK into nibabel's conventions."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from zoo.data.volumes import VOLUME_ENDINGS, VolumeReadError

#: ITK's axes are left, posterior, superior; those of an affine in RAS+ are right, anterior, superior
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_POSITION, _ORIENTATION = "0020|0032", "0020|0037"


def read_itk(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Array ``[X, Y, Z]`` (``[X, Y, Z, T]`` of a 4-D file) and affine ``[4, 4]`` in RAS+ of a file or a DICOM folder.

    Raises:
        VolumeReadError: it cannot be read, holds colours, or is a folder of no or several series, or of a series with
            slices missing or twice.
        ImportError: SimpleITK is not installed.
    """
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise ImportError("this format needs SimpleITK: pip install attnzoo[medical]") from error
    try:
        image = _read_series(sitk, path) if os.path.isdir(path) else _read_file(sitk, path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VolumeReadError(f"{path} cannot be read: {reason}", path) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise VolumeReadError(
            f"{path} holds colours or vectors ({image.GetNumberOfComponentsPerPixel()} numbers a voxel); accepted is "
            f"one number a voxel",
            path,
        )
    if image.GetDimension() not in (3, 4):
        raise VolumeReadError(f"{path} has {image.GetDimension()} dimensions; accepted is one volume of 3", path)
    array = sitk.GetArrayFromImage(image).T  # [Z, Y, X] -> [X, Y, Z]
    n = image.GetDimension()
    direction = np.array(image.GetDirection(), np.float64).reshape(n, n)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return array, _LPS_TO_RAS @ affine


def _read_file(sitk: Any, path: str) -> Any:
    if not path.lower().endswith(VOLUME_ENDINGS):
        hint = "; of a DICOM series give the folder" if path.lower().endswith((".dcm", ".ima")) else ""
        raise VolumeReadError(f"{path} has none of the known endings, {', '.join(VOLUME_ENDINGS)}{hint}", path)
    return sitk.ReadImage(path)


def _read_series(sitk: Any, folder: str) -> Any:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder)
    if len(series) != 1:
        found = f"{len(series)} DICOM series ({', '.join(series)})" if series else "no DICOM series"
        raise VolumeReadError(f"{folder} holds {found}; accepted is the folder of one", folder)
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, series[0])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if len(files) > 1:
        _check_slices(reader, len(files), folder)
    return image


def _check_slices(reader: Any, count: int, folder: str) -> None:
    """A series is one volume only if its slices follow at one distance; the reader itself would pretend that."""
    keys = (_POSITION, _ORIENTATION)
    if not all(reader.HasMetaDataKey(i, k) for i in range(count) for k in keys):
        raise VolumeReadError(f"{folder}: slices have no position or orientation", folder)
    positions, orientations = (
        np.array([[float(v) for v in reader.GetMetaData(i, k).split("\\")] for i in range(count)]) for k in keys
    )
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise VolumeReadError(f"{folder}: slices have different orientations", folder)
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    steps = np.diff(positions @ normal)
    usual = float(np.median(np.abs(steps)))
    wrong = np.flatnonzero(np.abs(np.abs(steps) - usual) > max(0.1 * usual, 1e-3))
    if usual < 1e-3 or len(wrong):
        at = int(wrong[0]) if len(wrong) else 0
        raise VolumeReadError(
            f"{folder}: slices lie {usual:.4g} mm apart, but number {at + 1} and {at + 2} {abs(steps[at]):.4g} mm: "
            f"slices are missing, or occur twice",
            folder,
        )
