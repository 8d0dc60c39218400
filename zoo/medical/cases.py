"""From what a user may give to cases: files, folders, DICOM series, and several files that are channels of one case."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.volume_folder import VolumeCase
from zoo.data.volumes import is_volume_file, strip_ending

#: How nnU-Net numbers the channels of a case.
_CHANNEL = re.compile(r"^(.+)_(\d{4})$")


def find_cases(volumes: Any, channels: int = 1) -> list[VolumeCase]:
    """Cases of what a user may give, in order.

    Accepts a path or a glob pattern of volumes, the folder of a DICOM series, a folder of volumes (sorted, without its
    sub-folders), a :class:`~zoo.data.volume_folder.VolumeCase`, a tuple of files (the channels of one case), and lists
    of these. Files ``name_0000``, ``name_0001`` ... next to each other are channels of the case ``name``, as nnU-Net
    writes them; with one channel ``name_0000`` is the case ``name``.

    Args:
        volumes: see above.
        channels: how many a case has.

    Raises:
        FileNotFoundError: a path or pattern matches nothing, or a folder holds no volumes.
        ValueError: a case has another number of channels, or two cases have the same name.
        TypeError: something that names no volume.
    """
    cases = _expand(volumes, channels)
    seen: dict[str, VolumeCase] = {}
    for case in cases:
        if case.name in seen:
            raise ValueError(
                f"{case.images[0]} and {seen[case.name].images[0]} are both the case {case.name!r}; predict them into "
                f"different folders"
            )
        seen[case.name] = case
    return cases


def _expand(value: Any, channels: int) -> list[VolumeCase]:
    if isinstance(value, VolumeCase):
        return [value]
    if isinstance(value, str | os.PathLike):
        return _of_path(os.fspath(value), channels)
    if isinstance(value, tuple) and value and all(isinstance(v, str | os.PathLike) for v in value):
        return [_case([os.fspath(v) for v in value], channels)]
    if isinstance(value, Sequence):
        files = [os.fspath(v) for v in value if isinstance(v, str | os.PathLike) and is_volume_file(v)]
        if len(files) == len(value):  # so that channels given one by one are one case
            return [case for text in _grouped(files, channels) for case in _of_group(text, channels)]
        return [case for v in value for case in _expand(v, channels)]
    raise TypeError(
        f"a {type(value).__name__} names no volume; accepted are paths, folders, patterns, tuples of the channels of a "
        f"case, and lists of these"
    )


def _of_path(text: str, channels: int) -> list[VolumeCase]:
    path = Path(text)
    if path.is_dir():
        files = sorted(str(p) for p in path.iterdir() if p.is_file() and is_volume_file(p))
        if files:
            return [_case(group, channels) for group in _grouped(files, channels)]
        if any(p.is_file() and not p.name.startswith(".") for p in path.iterdir()):
            return [_case([text], channels)]  # a DICOM series, or the reader says what it is
        raise FileNotFoundError(f"the folder {text!r} holds no volumes")
    if path.exists():
        return [_case([text], channels)]
    found = sorted(glob.glob(text)) if glob.has_magic(text) else []
    if not found:
        raise FileNotFoundError(f"there is no volume at {text!r}")
    return _expand(found, channels)


def _of_group(group: list[str], channels: int) -> list[VolumeCase]:
    if len(group) == 1:
        return _of_path(group[0], channels)
    return [_case(group, channels)]


def _grouped(files: Sequence[str], channels: int) -> list[list[str]]:
    """Files in groups of a case each: those of one folder that differ in their channel's number alone."""
    groups: dict[tuple[str, str], list[str]] = {}
    for file in files:
        match = _CHANNEL.match(strip_ending(file))
        alone = match is None or channels == 1
        key = (file, "") if alone else (os.path.dirname(file), match.group(1))  # type: ignore[union-attr]
        groups.setdefault(key, []).append(file)
    return [sorted(group) for group in groups.values()]


def _case(files: Sequence[str], channels: int) -> VolumeCase:
    name = strip_ending(files[0].rstrip("/")) or os.path.basename(os.path.abspath(files[0]))
    match = _CHANNEL.match(name)
    if match is not None and int(match.group(2)) < channels:
        name = match.group(1)
    if len(files) > 1 and len(files) != channels:
        raise ValueError(
            f"the case {name!r} has {len(files)} files ({', '.join(files)}), the model {channels} channels"
        )
    return VolumeCase(name, tuple(files))
