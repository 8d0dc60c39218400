"""The phantom as a data set of recipes: written once into a cache folder, then read like any other data."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.phantom import write_phantom
from zoo.data.volume_dataset import VolumeDataset

#: Part of a cache folder's name; counts up when other volumes are generated from the same arguments.
_VERSION = 1


def cached_phantom(
    volumes: int = 40, size: Sequence[int] = (96, 96, 48), seed: int = 0, folder: str | os.PathLike | None = None
) -> Path:
    """The folder of a phantom data set that is generated when it is first asked for.

    Args:
        volumes, size, seed: see :func:`write_phantom`.
        folder: where such folders are kept; None takes ``phantom`` below ``$ZOO_HOME``, else below
            ``~/.cache/attnzoo``.
    """
    if folder is None:
        from zoo.weights.index import home

        folder = home() / "phantom"
    parent = Path(folder)
    target = parent / f"v{_VERSION}-{volumes}x{'-'.join(str(int(n)) for n in size)}-seed{seed}"
    if (target / "dataset.json").is_file():
        return target
    parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=parent, prefix=".making-"))
    try:
        write_phantom(made, volumes, size, seed)
        made.chmod(0o755)
        os.replace(made, target)
    except OSError:
        # another process was faster: what it made is the same
        if not (target / "dataset.json").is_file():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


class PhantomDataset(VolumeDataset):
    """The phantom as a data set, generated once into a cache folder: no download, no preparation.

    Args:
        split: "train", "val" or "all"; see :class:`~zoo.data.volume_dataset.VolumeDataset`.
        fold: which of the folds is validated on.
        volumes: of all folds together.
        size: voxels along X, Y, Z.
        data_seed: which phantom.
        folder: of the cache; see :func:`cached_phantom`.
        **common: as of :class:`~zoo.data.volume_dataset.VolumeDataset`.
    """

    def __init__(
        self,
        split: str = "train",
        fold: int = 0,
        *,
        volumes: int = 40,
        size: Sequence[int] = (96, 96, 48),
        data_seed: int = 0,
        folder: str | os.PathLike | None = None,
        **common: Any,
    ):
        super().__init__(cached_phantom(volumes, size, data_seed, folder), split=split, fold=fold, **common)
