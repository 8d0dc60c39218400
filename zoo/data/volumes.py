"""Volumes as arrays with their place in the world: NIfTI, NRRD, MetaImage and DICOM series are read, NIfTI is written.

Arrays are ``[X, Y, Z]`` as nibabel gives them, affines lead from voxel indices to mm in RAS+, spacings are mm in the
order of the array's axes. nibabel reads NIfTI, SimpleITK the other formats.
"""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.files import save_atomically

logger = logging.getLogger(__name__)

#: Endings of the files that :func:`read_volume` reads; a DICOM series is a folder.
VOLUME_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")

_INSTALL = "medical volumes need nibabel and SimpleITK: pip install attnzoo[medical]"
_HEADER_SIZES = {348: "Nifti1Image", 540: "Nifti2Image"}
_LABEL_TOLERANCE = 0.05  # of an integer; one of 14 classes in bytes with a slope is off by up to 0.03
_SHEAR_TOLERANCE = 1e-3  # cosine of the angle between two axes; float32 affines reach about 1e-6


class VolumeReadError(ValueError):
    """A volume that cannot be read or used; the message has its path and the reason."""

    def __init__(self, message: str, path: str = ""):
        super().__init__(message)
        self.path = path


@dataclass
class Volume:
    """One image or label map.

    Attributes:
        data: ``[X, Y, Z]``, float32 of an image, uint8 or int32 of labels; ``[C, X, Y, Z]`` of stacked channels.
        affine: float64 ``[4, 4]``, voxel index -> mm in RAS+.
        spacing: mm between voxels along X, Y, Z: the lengths of the affine's columns.
        header: the NIfTI header (a private copy), None for other formats.
        path: where it was read.
    """

    data: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float, float]
    header: Any = None
    path: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z."""
        return self.data.shape[-3:]  # type: ignore[return-value]

    @property
    def shear(self) -> float:
        """Largest cosine between two axes: 0 where they stand at right angles."""
        return shear_of(self.affine)


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """mm between neighbouring voxels along each axis of an affine ``[4, 4]``."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def shear_of(affine: np.ndarray) -> float:
    """Largest cosine of the angle between two axes of an affine ``[4, 4]``."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def is_volume_file(path: str | os.PathLike) -> bool:
    """Whether a file's name has one of :data:`VOLUME_ENDINGS`; hidden files have not."""
    name = Path(path).name.lower()
    return name.endswith(VOLUME_ENDINGS) and not name.startswith(".")


def strip_ending(path: str | os.PathLike) -> str:
    """A file's name without its folder and without its ending."""
    name = Path(path).name
    ending = next((e for e in sorted(VOLUME_ENDINGS, key=len, reverse=True) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def read_volume(
    path: str | os.PathLike,
    *,
    label: bool = False,
    channel: int | None = None,
    nan: float | None = None,
    allow_missing_affine: bool = False,
) -> Volume:
    """Read one image, or one label map.

    Args:
        path: a file with one of :data:`VOLUME_ENDINGS`, or the folder of one DICOM series.
        label: the voxels are class ids; floats and scaled integers are rounded, but not by more than 0.05.
        channel: which of a 4-D file's volumes; without it a 4-D file is an error.
        nan: replaces voxels that are NaN or infinite; None makes them an error.
        allow_missing_affine: take a NIfTI file whose sform and qform codes are both 0 (it doesn't say where it lies)
            with the spacing in its pixdim, axes taken for those of RAS+; otherwise an error.

    Where affine and pixdim disagree on the spacing, the affine's is taken, with a warning.

    Axes that do not stand at right angles (a tilted gantry) are accepted with a warning: labels are right, distances in
    mm along the axes are not those in the patient; see :attr:`Volume.shear`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        VolumeReadError: it cannot be read, or is no 3-D volume of numbers; see above.
        ImportError: nibabel or SimpleITK is not installed.
    """
    where = str(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {where!r}")
    if where.lower().endswith((".nii", ".nii.gz")) and not os.path.isdir(path):
        data, affine, header = _read_nifti(where, label, allow_missing_affine)
    else:
        from zoo.data.volume_itk import read_itk

        data, affine, header = *read_itk(where), None
    if channel is not None:
        count = data.shape[3] if data.ndim == 4 else 1
        if not 0 <= channel < count:
            raise VolumeReadError(f"{where} has {count} channel(s); there is no channel {channel}", where)
        data = data[..., channel] if data.ndim == 4 else data
    if data.ndim == 4:
        raise VolumeReadError(
            f"{where} has 4 dimensions, {_times(data.shape)}; accepted is one volume of 3: write one file a volume, "
            f"or name the channel",
            where,
        )
    _check_affine(affine, where)
    data = _as_labels(data, where) if label else _as_image(data, where, nan)
    return Volume(data, affine, spacing_of(affine), header, where)


def read_channels(
    paths: Sequence[str | os.PathLike],
    count: int | None = None,
    *,
    nan: float | None = None,
    allow_missing_affine: bool = False,
) -> Volume:
    """Read the channels of one case as ``[C, X, Y, Z]`` float32.

    Args:
        paths: one file a channel, all on the same grid; or a single 4-D file that has all of them.
        count: how many channels there must be; None takes what there are.
        nan, allow_missing_affine: see :func:`read_volume`.

    Raises:
        VolumeReadError: also for files on different grids (naming both) and for another number of channels.
    """
    options: dict[str, Any] = dict(nan=nan, allow_missing_affine=allow_missing_affine)
    if not paths:
        raise ValueError("paths is empty; accepted is at least one file")
    first = str(paths[0])
    if len(paths) == 1 and count != 1 and first.lower().endswith((".nii", ".nii.gz")) and os.path.isfile(first):
        data, affine, header = _read_nifti(first, False, allow_missing_affine)
        _check_affine(affine, first)
        data = data[None] if data.ndim == 3 else np.moveaxis(data, 3, 0)
        volume = Volume(_as_image(data, first, nan), affine, spacing_of(affine), header, first)
    else:
        volumes = [read_volume(p, **options) for p in paths]
        for other in volumes[1:]:
            check_same_grid(volumes[0], other)
        volume = volumes[0]
        volume.data = np.stack([v.data for v in volumes]) if len(volumes) > 1 else volume.data[None]
    if count is not None and len(volume.data) != count:
        raise VolumeReadError(f"{first} has {len(volume.data)} channel(s); {count} are needed", first)
    return volume


def check_same_grid(a: Volume, b: Volume) -> None:
    """Raise VolumeReadError, naming both files, unless two volumes have the same shape and place.

    Their corners may lie apart by a twentieth of the smallest voxel side, which is what rounded headers give.
    """
    if a.shape != b.shape:
        raise VolumeReadError(
            f"{a.path} and {b.path} have different shapes, {_times(a.shape)} and {_times(b.shape)}", b.path
        )
    last = np.array(a.shape) - 1
    corners = np.array(np.meshgrid(*[(0, n) for n in last], indexing="ij")).reshape(3, 8)
    difference = (a.affine - b.affine)[:3]
    apart = np.linalg.norm(difference[:, :3] @ corners + difference[:, 3:], axis=0).max()
    if not apart <= min(a.spacing) / 20:
        raise VolumeReadError(
            f"{a.path} and {b.path} have different affines: their corners lie up to {apart:.4g} mm apart "
            f"(spacings {_mm(a.spacing)} and {_mm(b.spacing)})",
            b.path,
        )


def write_volume(
    path: str | os.PathLike, array: np.ndarray, like: Volume, *, dtype: str | np.dtype | type | None = None
) -> Path:
    """Write an array as NIfTI on the grid of another volume, whole or not at all.

    Of a NIfTI ``like`` the header is copied: sform, qform, their codes, pixdim, dim, units and byte order stay equal to
    the byte. Data type, scaling, display range and intent are those of the array; header extensions, which may tell of
    the patient or of the image's values, are left out. Other formats get a new NIfTI-1 header with their affine.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        array: ``[X, Y, Z]`` as ``like``, or ``[X, Y, Z, K]``, several volumes in one 4-D file.
        dtype: of the file; None takes for integers the first of uint8, int16, int32 that holds them, for floats
            float32.

    Raises:
        ValueError: another ending or shape, or values that the data type does not hold.
    """
    target = Path(path)
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"path={str(path)!r} must end in .nii or .nii.gz")
    array = np.asarray(array)
    if array.shape[:3] != like.shape or array.ndim not in (3, 4):
        raise ValueError(
            f"array has shape {_times(array.shape)}; accepted is that of {like.path or 'the volume'}, "
            f"{_times(like.shape)}, and one more axis for several volumes"
        )
    header = _header_like(like)
    kind = _file_dtype(array, dtype)
    _set_dimensions(header, array.shape)
    header.set_data_dtype(kind)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"] = header["cal_max"] = 0
    header.set_intent("none")
    header["magic"] = header.single_magic
    header["vox_offset"] = offset = int(header["sizeof_hdr"]) + 4  # four bytes say that there are no extensions
    stored = kind.newbyteorder(header.endianness)

    def write(file: Any) -> None:
        file.write(header.binaryblock.ljust(offset, b"\0"))
        for z in range(array.shape[2]) if array.ndim == 3 else ():
            file.write(array[:, :, z].astype(stored).tobytes(order="F"))
        for k in range(array.shape[3]) if array.ndim == 4 else ():
            file.write(array[..., k].astype(stored).tobytes(order="F"))

    if not target.name.lower().endswith(".gz"):
        return save_atomically(target, write)

    def compress(file: Any) -> None:
        # without name and time, so that the same labels give the same file
        with gzip.GzipFile(
            fileobj=file, mode="wb", filename="", mtime=0, compresslevel=1 if kind.kind == "f" else 6
        ) as f:
            write(f)

    return save_atomically(target, compress)


def _read_nifti(path: str, label: bool, allow_missing_affine: bool) -> tuple[np.ndarray, np.ndarray, Any]:
    """Array of 3 or 4 dimensions, affine and header of a file; labels keep their type, images are float32."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)  # to the end, which checks the length and the checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VolumeReadError(f"{path} is truncated or damaged: {error}", path) from error
    size = content[:4]
    kind = _HEADER_SIZES.get(int.from_bytes(size, "little")) or _HEADER_SIZES.get(int.from_bytes(size, "big"))
    if kind is None:
        raise VolumeReadError(f"{path} is no NIfTI file: its first bytes are {content[:8]!r}", path)
    cls = getattr(nibabel, kind)
    try:
        image = cls.from_bytes(content)
        header = image.header.copy()
        _check_dimensions(image, path)
        data = np.asanyarray(image.dataobj) if label else image.get_fdata(dtype=np.float32, caching="unchanged")
    except VolumeReadError:
        raise
    except (ValueError, OSError, EOFError, nibabel.spatialimages.HeaderDataError) as error:
        reason = "its end is missing" if _is_short(error) else str(error)
        raise VolumeReadError(f"{path} cannot be read: {reason}", path) from error
    header.extensions.clear()
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        spacing = np.asarray(header.get_zooms()[:3], np.float64)
        if not allow_missing_affine:
            raise VolumeReadError(
                f"{path} has no affine (its sform and qform codes are 0), so that its orientation is unknown; "
                f"set them, or accept its axes as right, anterior, superior with allow_missing_affine=True",
                path,
            )
        logger.warning("%s has no affine: axes are taken for right, anterior, superior, spacing %s", path, _mm(spacing))
        affine = np.diag([*spacing, 1.0])
    else:
        affine = np.array(image.affine, np.float64)
        zooms = np.asarray(header.get_zooms()[:3], np.float64)
        if np.abs(zooms - spacing_of(affine)).max() > 0.01 * zooms.max():
            logger.warning(
                "%s: the affine's spacing, %s, is taken; pixdim is %s", path, _mm(spacing_of(affine)), _mm(zooms)
            )
    if data.ndim > 3 and data.size == np.prod(data.shape[:3]):
        data = data.reshape(data.shape[:3])
    return data.reshape(data.shape[:4]), affine, header


def _check_dimensions(image: Any, path: str) -> None:
    kind, shape = image.get_data_dtype(), image.shape
    if kind.fields is not None:
        raise VolumeReadError(
            f"{path} holds colours ({len(kind.fields)} bytes a voxel); accepted is one number a voxel", path
        )
    if kind.kind not in "iuf":
        raise VolumeReadError(f"{path} holds values of type {kind}; accepted are integers and floats", path)
    if len(shape) < 3 or any(n > 1 for n in shape[4:]) or min(shape) < 1:
        raise VolumeReadError(f"{path} has the dimensions {_times(shape)}; accepted is one volume of 3", path)


def _is_short(error: Exception) -> bool:
    return isinstance(error, EOFError) or "expected" in str(error).lower() or "buffer" in str(error).lower()


def _check_affine(affine: np.ndarray, path: str) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9 * np.prod(spacing_of(affine)):
        raise VolumeReadError(f"{path} has an affine that is no map of space: {affine[:3].round(4).tolist()}", path)
    if min(spacing_of(affine)) <= 0:
        raise VolumeReadError(f"{path} has a spacing of {_mm(spacing_of(affine))}", path)
    shear = shear_of(affine)
    if shear > _SHEAR_TOLERANCE:
        logger.warning(
            "%s has axes that are not at right angles (up to %.2f degrees off): distances in mm are along the axes",
            path,
            np.degrees(np.arcsin(min(shear, 1.0))),
        )


def _as_image(data: np.ndarray, path: str, nan: float | None) -> np.ndarray:
    data = np.ascontiguousarray(data, dtype=np.float32)
    finite = np.isfinite(data)
    bad = data.size - int(np.count_nonzero(finite))
    if bad and nan is None:
        raise VolumeReadError(
            f"{path}: {bad} of {data.size} voxels are NaN or infinite; correct the file or replace them by nan=VALUE",
            path,
        )
    return np.where(finite, data, np.float32(nan)) if bad else data


def _as_labels(data: np.ndarray, path: str) -> np.ndarray:
    if data.dtype.kind == "f":
        rounded = np.round(data)
        wrong = ~(np.abs(data - rounded) <= _LABEL_TOLERANCE)  # true of NaN, too
        if wrong.any():
            found = np.unique(data[wrong])[:5].tolist()
            raise VolumeReadError(
                f"{path}: {int(wrong.sum())} voxels are no class ids but {found}; accepted are integers "
                f"(were labels resampled by interpolation?)",
                path,
            )
        data = rounded
    low, high = (data.min(), data.max()) if data.size else (0, 0)
    if low < -(2**31) or high >= 2**31:
        raise VolumeReadError(f"{path} has labels from {low} to {high}; accepted are those of 32 bits", path)
    return np.ascontiguousarray(data, dtype=np.uint8 if low >= 0 and high <= 255 else np.int32)


def _header_like(like: Volume) -> Any:
    if like.header is not None:
        return like.header.copy()
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), like.affine).header.copy()
    header.set_xyzt_units("mm")
    header.set_sform(like.affine, 1)
    header.set_qform(like.affine, 1, strip_shears=True)
    return header


def _set_dimensions(header: Any, shape: tuple[int, ...]) -> None:
    """dim and pixdim for an array; what is right already stays as it is, unused entries too."""
    dim = header["dim"]
    same = dim[1:4].tolist() == list(shape[:3])
    if len(shape) == 3 and same and all(n <= 1 for n in dim[4 : int(dim[0]) + 1].tolist()):
        return
    dim[0], dim[1 : len(shape) + 1], dim[len(shape) + 1 :] = len(shape), shape, 1
    if len(shape) == 4:
        header["pixdim"][4] = 1


def _file_dtype(array: np.ndarray, dtype: Any) -> np.dtype:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"array has type {array.dtype}; accepted are integers and floats")
    integer = array.dtype.kind in "biu"
    low, high = (int(array.min()), int(array.max())) if integer and array.size else (0, 0)
    if dtype is None:
        if not integer:
            return np.dtype(np.float32)
        fitting = [k for k in (np.uint8, np.int16, np.int32) if np.iinfo(k).min <= low and high <= np.iinfo(k).max]
        if not fitting:
            raise ValueError(f"array has values from {low} to {high}; accepted are those of 32 bits")
        return np.dtype(fitting[0])
    kind = np.dtype(dtype)
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise ValueError(f"dtype={dtype!r} is unknown; accepted are integers and floats such as 'uint8' and 'float32'")
    if kind.kind in "iu":
        if not integer:
            raise ValueError(f"array of type {array.dtype} does not go into dtype={kind.name} without rounding")
        if low < np.iinfo(kind).min or high > np.iinfo(kind).max:
            raise ValueError(f"array has values from {low} to {high}, which dtype={kind.name} does not hold")
    return kind


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(int(n)) for n in shape)


def _mm(spacing: Any) -> str:
    return " x ".join(f"{float(s):.4g}" for s in spacing) + " mm"
