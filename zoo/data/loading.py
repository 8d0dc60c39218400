"""Decoding of image files to RGB uint8 arrays; a file that cannot be read raises an error that names it.

OpenCV decodes the common case (8-bit and 16-bit grey and RGB files). Pillow reads the headers of every file and decodes
what OpenCV gets wrong or not at all: CMYK, animated and palette images, TIFF, rarer containers, and files whose end is
missing (older OpenCV fills the missing part of a JPEG with grey and says nothing).
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

#: File name endings that are taken for images when a folder is searched.
IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Formats that OpenCV decodes like Pillow, apart from the modes excluded below.
_OPENCV_FORMATS = {"BMP", "JPEG", "MPO", "PNG", "PPM", "WEBP"}
_OPENCV_MODES = {"1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B"}
_ORIENTATION = 0x0112
# EXIF orientation -> the numpy operation that turns the stored image upright.
_UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x[::-1].transpose(1, 0, 2),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x[:, ::-1].transpose(1, 0, 2),
}


class ImageReadError(ValueError):
    """An image file that cannot be read; the message has its path and the reason.

    It has a single positional argument, so that a DataLoader can raise it again in the main process.
    """

    def __init__(self, message: str, path: str = ""):
        super().__init__(message)
        self.path = path

    def __reduce__(self):
        return type(self), (str(self), self.path)


def _error(path: str, reason: object) -> ImageReadError:
    return ImageReadError(f"cannot read image {path!r}: {reason}", path)


def is_image_file(path: str | os.PathLike) -> bool:
    """Whether the name ends like an image's and is not hidden."""
    name = os.path.basename(path)
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as RGB uint8 ``[H, W, 3]``, upright by its EXIF orientation; see :func:`decode_image`.

    Raises:
        ImageReadError: the file is missing, empty, truncated, corrupt or no image; the message has the path.
    """
    name = os.fspath(path)
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise _error(name, error.strerror or error) from error
    return decode_image(data, name)


def decode_image(data: bytes, path: str = "<bytes>") -> np.ndarray:
    """Decode an image file's content to RGB uint8 ``[H, W, 3]``.

    Grey becomes three equal channels, an alpha channel is dropped (as Pillow's ``convert("RGB")`` does), 16 bits keep
    their upper 8, an animation gives its first frame, EXIF orientation is applied.

    Args:
        data: the whole file.
        path: its name, for messages.

    Raises:
        ImageReadError: the bytes are no complete image, or floating-point pixels (their range is unknown).
    """
    if not data:
        raise _error(path, "the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about odd metadata is no reason to lose the image
            with Image.open(io.BytesIO(data)) as image:
                return _decode_opened(image, data, path)
    except ImageReadError:
        raise
    except Image.DecompressionBombError as error:
        raise _error(path, error) from error
    except Image.UnidentifiedImageError:
        raise _error(path, f"no known image format ({len(data)} bytes)") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError, zlib.error ...
        raise _error(path, f"{type(error).__name__}: {error}") from error


def _decode_opened(image: Image.Image, data: bytes, path: str) -> np.ndarray:
    if image.mode == "F":
        raise _error(path, "its pixels are floating-point numbers; accepted are integer images")
    array = None
    if image.format in _OPENCV_FORMATS and image.mode in _OPENCV_MODES and _is_plain(image) and _has_end(image, data):
        array = _opencv(data)
    if array is None:
        array = _pillow(image, path)
    upright = _UPRIGHT.get(_orientation(image, data), lambda x: x)
    return np.ascontiguousarray(upright(array))


def _pillow(image: Image.Image, path: str) -> np.ndarray:
    if not image.mode.startswith("I"):
        return np.array(image.convert("RGB"))
    # Pillow clips integers beyond 8 bits when it converts to RGB.
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise _error(path, f"its pixels are between {grey.min()} and {grey.max()}; accepted are 0 to 65535")
    return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)


def _is_plain(image: Image.Image) -> bool:
    return not getattr(image, "is_animated", False) or image.format == "MPO"


def _has_end(image: Image.Image, data: bytes) -> bool:
    """Whether the end mark of the format is where it should be; formats without one count as complete."""
    if image.format in ("JPEG", "MPO"):
        return b"\xff\xd9" in data[-4096:]
    if image.format == "PNG":
        return b"IEND" in data[-4096:]
    return True


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation that is still to be applied; 1 (upright) where there is none, or none that can be read."""
    if image.format == "TIFF":  # Pillow has turned it when it loaded it
        return 1
    # For a PNG without an early eXIf chunk, getexif() would decode the whole image first.
    if image.format == "PNG" and b"eXIf" not in data and "exif" not in image.info:
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (
        Exception
    ):  # damaged metadata raises SyntaxError, struct.error, OSError ...: the pixels are good all the same
        return 1


def _opencv(data: bytes) -> np.ndarray | None:
    """RGB ``[H, W, 3]`` as stored, or None where OpenCV cannot decode it (Pillow then says why)."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
