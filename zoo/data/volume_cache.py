"""Keeping prepared volumes in memory: MONAI's CacheDataset around a function that reads one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class VolumeCache:
    """What ``load(number)`` gives for each number, kept for a share of them from the start on.

    Args:
        count: numbers are 0 to ``count - 1``.
        load: reads one; what it raises (OSError, ValueError, ImportError) comes out as it was raised.
        share: of the numbers, the first ones, from 0 to 1.
        workers: threads that read them.

    Raises:
        ImportError: MONAI is not installed.
    """

    def __init__(self, count: int, load: Callable[[int], dict[str, Any]], share: float, workers: int):
        try:
            from monai.data import CacheDataset
            from monai.transforms import Lambda
        except ImportError as error:
            raise ImportError("volumes need MONAI: pip install attnzoo[medical]") from error
        self.load = load
        self._cache = CacheDataset(
            list(range(count)),
            Lambda(self._try_load, track_meta=False),  # it keeps what a transform of its own makes, of others nothing
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

    def _try_load(self, number: int) -> dict[str, Any]:
        """An error handed on as a value: the cache would hide it behind one of its own."""
        try:
            return self.load(number)
        except (OSError, ValueError, ImportError) as error:
            return {"error": error}
