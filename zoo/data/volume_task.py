"""Some of the classes of a volume data set as a task of their own: what serial training goes through one by one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.data.phantom_dataset import cached_phantom
from zoo.data.volume_dataset import VolumeDataset, ids_to_indices
from zoo.data.volume_folder import VolumeCase, VolumeFolder, find_volume_data
from zoo.data.volumes import Volume, read_volume
from zoo.registry import did_you_mean


class VolumeTask(VolumeDataset):
    """A volume data set in which only the named classes are left; all others are background.

    Args:
        organs: names of classes of the data, in the order in which the task numbers them from 1.
        source: see :class:`~zoo.data.volume_dataset.VolumeDataset`; None takes the generated phantom.
        phantom: arguments of :func:`zoo.data.phantom_dataset.cached_phantom`, where there is no ``source``.
        **common: see :class:`~zoo.data.volume_dataset.VolumeDataset`.

    Raises:
        ValueError: a name is no class of the data, or occurs twice.
    """

    def __init__(
        self,
        organs: Sequence[str],
        source: str | os.PathLike | VolumeFolder | None = None,
        *,
        phantom: dict[str, Any] | None = None,
        **common: Any,
    ):
        if source is None:
            source = cached_phantom(**(phantom or {}))
        elif phantom is not None:
            raise ValueError(f"source={str(source)!r} and phantom={phantom}: accepted is one of them")
        found = source if isinstance(source, VolumeFolder) else find_volume_data(source)
        known = list(found.classes)[1:]
        names = [organs] if isinstance(organs, str) else list(organs)
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known) or f"; accepted are {', '.join(known)}"
                raise ValueError(f"organs={names}: {name!r} is no class of {found.root}{hint}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"organs={names}: accepted are one or more names, each once")
        numbers = [found.classes.index(n) for n in names]
        ids = [found.label_ids[0], *(found.label_ids[n] for n in numbers)]
        self._all_classes, self._all_ids = tuple(found.classes), tuple(found.label_ids)
        self._numbers = np.zeros(len(found.classes), np.int32)  # class of the data -> class of the task
        self._numbers[numbers] = np.arange(1, len(names) + 1)
        task = dataclasses.replace(found, classes=[found.classes[0], *names], label_ids=ids)
        super().__init__(task, **common)

    def _read_label(self, case: VolumeCase) -> Volume:
        label = read_volume(case.label, label=True, **self._read_options)  # type: ignore[arg-type]
        whole = ids_to_indices(label.data, self._all_ids, label.path, self._all_classes)
        label.data = self._numbers[whole].astype(whole.dtype)
        return label
