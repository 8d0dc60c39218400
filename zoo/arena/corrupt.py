"""Corruptions of images at five severities, in the manner of ImageNet-C.

D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019, arXiv:1903.12261, section 3. The kinds are the paper's (without snow and frost, which need pictures); strengths
are this project's: lengths are shares of the image's side, so that a corruption is as strong on a small image as on a
large one. Numbers are therefore not comparable with published ImageNet-C errors.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

_Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
_KINDS: dict[str, _Corruption] = {}


def _register(function: _Corruption) -> _Corruption:
    _KINDS[function.__name__.lstrip("_")] = function
    return function


def corruption_names() -> list[str]:
    """Names of all corruptions, in a fixed order."""
    return list(_KINDS)


def corrupt(image: np.ndarray, name: str, severity: int = 3, seed: int = 0) -> np.ndarray:
    """Corrupt an image.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        name: one of :func:`corruption_names`.
        severity: 1 (weak) to 5 (strong).
        seed: of what is random; the same seed gives the same image.

    Returns:
        RGB uint8 ``[H, W, 3]``.

    Raises:
        ValueError: an unknown name, a severity outside 1 ... 5, an image of another kind.
    """
    if name not in _KINDS:
        raise ValueError(f"corruption {name!r} is unknown; accepted are {', '.join(_KINDS)}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity={severity!r}: accepted are 1, 2, 3, 4 and 5")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {image.shape}; accepted is uint8 [H, W, 3]")
    rng = np.random.default_rng((seed, list(_KINDS).index(name), severity))
    out = _KINDS[name](image.astype(np.float32) / 255, severity / 5, rng)
    return np.round(np.clip(out, 0, 1) * 255).astype(np.uint8)


# Each takes x float32 [H, W, 3] in 0 ... 1, a strength s of 0.2 to 1, and random numbers.


@_register
def _gaussian_noise(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    return x + rng.normal(0, 0.35 * s, x.shape)


@_register
def _shot_noise(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    photons = 3 / s**1.8
    return rng.poisson(np.clip(x, 0, 1) * photons) / photons


@_register
def _impulse_noise(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    hit = rng.random(x.shape) < 0.25 * s
    return np.where(hit, rng.integers(0, 2, x.shape), x)


@_register
def _defocus_blur(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    radius = 0.06 * s * min(x.shape[:2])
    reach = int(np.ceil(radius))
    y, z = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(radius + 0.5 - np.hypot(y, z), 0, 1).astype(np.float32)  # its edge is anti-aliased
    return cv2.filter2D(x, -1, disk / disk.sum(), borderType=cv2.BORDER_REFLECT)


@_register
def _glass_blur(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape[:2]
    reach = 0.035 * s * min(height, width)
    y, z = np.mgrid[:height, :width].astype(np.float32)
    move = rng.uniform(-reach, reach, (2, height, width)).astype(np.float32)
    moved = cv2.remap(x, z + move[0], y + move[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return cv2.GaussianBlur(moved, (0, 0), max(0.3, 0.01 * s * min(height, width)))


@_register
def _motion_blur(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    length = max(2, round(0.18 * s * min(x.shape[:2])))
    side = 2 * length + 1
    angle = rng.uniform(0, np.pi)
    kernel = np.zeros((side, side), np.float32)
    for t in np.linspace(-length / 2, length / 2, 8 * length):
        kernel[round(length + t * np.sin(angle)), round(length + t * np.cos(angle))] += 1
    return cv2.filter2D(x, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


@_register
def _zoom_blur(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape[:2]
    zooms = np.linspace(1, 1 + 0.35 * s, 8)
    total = np.zeros_like(x)
    for zoom in zooms:
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, float(zoom))
        total += cv2.warpAffine(x, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return total / len(zooms)


@_register
def _fog(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape[:2]
    fog = np.zeros((height, width), np.float32)
    for octave in range(4):  # each twice as fine and half as strong
        cells = rng.random((2 ** (octave + 1) + 1, 2 ** (octave + 1) + 1)).astype(np.float32)
        fog += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    fog = (fog - fog.min()) / max(float(np.ptp(fog)), 1e-6)
    share = 0.75 * s
    return (1 - share) * x + share * (0.5 + 0.5 * fog[:, :, None])


@_register
def _brightness(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    return x + 0.5 * s


@_register
def _contrast(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    mean = x.mean((0, 1), keepdims=True)
    return mean + (1 - 0.9 * s) * (x - mean)


@_register
def _elastic_transform(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape[:2]
    side = min(height, width)
    field = rng.uniform(-1, 1, (height, width, 2)).astype(np.float32)
    smooth = np.asarray(cv2.GaussianBlur(field, (0, 0), 0.06 * side))
    smooth *= 0.06 * s * side / max(float(np.abs(smooth).max()), 1e-6)
    y, z = np.mgrid[:height, :width].astype(np.float32)
    return cv2.remap(x, z + smooth[..., 0], y + smooth[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


@_register
def _pixelate(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape[:2]
    share = 1 - 0.7 * s
    small = (max(1, round(width * share)), max(1, round(height * share)))
    coarse = cv2.resize(x, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


@_register
def _jpeg_compression(x: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    quality = round(30 - 24 * s)
    pixels = cv2.cvtColor(np.round(np.clip(x, 0, 1) * 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if written else None
    if decoded is None:
        raise RuntimeError(f"OpenCV could not write and read an image of shape {x.shape} as JPEG")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.float32) / 255
