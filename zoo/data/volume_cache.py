"""Keeping prepared volumes in memory: MONAI's CacheDataset around a function that reads one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from monai.data import CacheDataset
    from monai.transforms import Transform
except ImportError as error:
    raise ImportError("volumes need MONAI: pip install attnzoo[medical]") from error


class VolumeCache:
    """What ``load(number)`` gives for each number, kept for a share of them from the start on.

    Args:
        count: numbers are 0 to ``count - 1``.
        load: reads one; what it raises (OSError, ValueError, ImportError) comes out as it was raised.
        share: of the numbers, the first ones, from 0 to 1.
        workers: threads that read them.
    """

    def __init__(self, count: int, load: Callable[[int], dict[str, Any]], share: float, workers: int):
        self.load = load
        self._cache = CacheDataset(
            list(range(count)),
            _Loading(load),
            cache_num=round(count * share),
            num_workers=workers,
            progress=False,
            copy_cache=False,
        )
        for number in range(self.kept):
            self[number]

    @property
    def kept(self) -> int:
        """How many are kept, counted from number 0."""
        return self._cache.cache_num

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number >= self.kept:
            return self.load(number)
        entry = self._cache[number]
        if "error" in entry:
            raise entry["error"]
        return entry


class _Loading(Transform):
    """MONAI keeps only what a Transform of its own made, and hides errors behind its own; these are handed on."""

    def __init__(self, load: Callable[[int], dict[str, Any]]):
        self.load = load

    def __call__(self, number: int) -> dict[str, Any]:
        try:
            return self.load(number)
        except (OSError, ValueError, ImportError) as error:
            return {"error": error}
