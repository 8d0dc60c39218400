"""Intensities of volumes: windows and normalisations, the same in training and in inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Kinds of normalisation and their arguments with defaults; None must be given.
NORMALISATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "zscore": {"nonzero": False},
    "ct": {"lower": None, "upper": None, "mean": None, "std": None},
    "window": {"level": None, "width": None},
    "percentiles": {"low": 0.5, "high": 99.5},
}


def check_normalisation(spec: Any, channels: int) -> list[dict[str, Any]]:
    """The normalisation of each channel, complete with defaults.

    Args:
        spec: None, a name of :data:`NORMALISATIONS`, a dict of ``kind`` and its arguments, or a list of these, one a
            channel.
        channels: how many there are.

    Raises:
        ValueError: an unknown kind or argument, a missing one, or another number of channels.
    """
    specs = list(spec) if isinstance(spec, list | tuple) else [spec] * channels
    if len(specs) != channels:
        raise ValueError(f"normalisation has {len(specs)} entries for {channels} channel(s)")
    return [_check_one(s) for s in specs]


def _check_one(spec: Any) -> dict[str, Any]:
    given = {"kind": spec or "none"} if spec is None or isinstance(spec, str) else dict(spec)
    kind = given.pop("kind", None)
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalisation {kind!r} is unknown; accepted are {', '.join(map(repr, NORMALISATIONS))}")
    known = NORMALISATIONS[kind]
    unknown = set(given) - set(known)
    if unknown:
        raise ValueError(f"normalisation {kind!r} has no argument {sorted(unknown)[0]!r}; accepted are {list(known)}")
    full = {"kind": kind, **known, **given}
    missing = [k for k, v in full.items() if v is None]
    if missing:
        raise ValueError(f"normalisation {kind!r} needs {', '.join(missing)}")
    for name in ("width", "std"):
        if full.get(name, 1) <= 0:
            raise ValueError(f"normalisation {kind!r}: {name}={full[name]} must be above 0")
    for a, b in (("lower", "upper"), ("low", "high")):
        if a in full and not full[a] < full[b]:
            raise ValueError(f"normalisation {kind!r}: {a}={full[a]} must be below {b}={full[b]}")
    return full


def normalise(image: np.ndarray, spec: Any) -> np.ndarray:
    """Normalise a whole volume, channel by channel.

    - "zscore": minus the mean, over the standard deviation (of the voxels that are not 0, with ``nonzero=True``, where
      zeros stay 0); what is constant becomes 0.
    - "ct": clip to ``lower`` and ``upper``, minus ``mean``, over ``std``: numbers of the whole data set.
    - "window": ``level`` - ``width`` / 2 to ``level`` + ``width`` / 2 become 0 to 1, what is beyond is clipped.
    - "percentiles": the volume's percentiles ``low`` and ``high`` become 0 and 1, what is beyond is clipped.

    Args:
        image: ``[C, X, Y, Z]``.
        spec: see :func:`check_normalisation`.

    Returns:
        float32 of the same shape; a new array.
    """
    specs: Sequence[dict[str, Any]] = check_normalisation(spec, len(image))
    return np.stack([_one(channel, s) for channel, s in zip(image, specs)])


def _one(x: np.ndarray, spec: dict[str, Any]) -> np.ndarray:
    kind = spec["kind"]
    if kind == "none":
        return x.astype(np.float32)
    if kind == "zscore":
        counted = x[x != 0] if spec["nonzero"] else x
        mean, std = (
            (float(counted.mean(dtype=np.float64)), float(counted.std(dtype=np.float64))) if counted.size else (0, 0)
        )
        scaled = ((x - np.float32(mean)) / np.float32(max(std, 1e-8))).astype(np.float32)
        if std <= 1e-6 * max(abs(mean), 1e-6):
            scaled = np.zeros_like(scaled)
        return np.where(x != 0, scaled, np.float32(0)) if spec["nonzero"] else scaled
    if kind == "ct":
        clipped = np.clip(x, spec["lower"], spec["upper"])
        return ((clipped - np.float32(spec["mean"])) / np.float32(spec["std"])).astype(np.float32)
    if kind == "window":
        low, high = spec["level"] - spec["width"] / 2, spec["level"] + spec["width"] / 2
    else:
        low, high = np.percentile(x, [spec["low"], spec["high"]]).tolist()
    if high <= low:
        return np.zeros(x.shape, np.float32)
    return ((np.clip(x, low, high) - np.float32(low)) / np.float32(high - low)).astype(np.float32)
