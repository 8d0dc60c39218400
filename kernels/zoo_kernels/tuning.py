"""Launch configurations of the Triton kernels, chosen by shape from a committed table per architecture.

A launch site passes the configuration it would take by its own rule; where the table of the device's architecture,
``tuning/<architecture>.json``, has an entry for the shape, the entry's values replace it. Nothing is searched for at
run time: ``kernels/benchmarks/tune.py`` measures and writes the tables. A table is

    {"window_forward": [{"exact": {"dim": 32, ...}, "near": {"windows": 24576}, "use": {"num_warps": 4, "BM": 64}}]}

``exact`` holds what must be equal, ``near`` sizes of which the nearest entry serves (by the sum of their distances in
log2), ``use`` the launch arguments that are replaced.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

#: Where the tables lie.
TABLES = Path(__file__).with_suffix("")

PARTS = ("exact", "near", "use")

Frozen = tuple[tuple[str, int], ...]

_trial: dict[str, Mapping[str, int]] = {}
_asked: list[Query] | None = None


class TuningError(ValueError):
    """A table holds what no launch can take; the message names the file and the key."""


@dataclass(frozen=True)
class Query:
    """What a launch site asked for: see :func:`config`."""

    kernel: str
    default: Mapping[str, int]
    exact: Mapping[str, int]
    near: Mapping[str, int]


@cache
def architecture(device: torch.device) -> str | None:
    """Name of a device's architecture, as ``sm_90`` or ``gfx942``; None for a device that is no GPU."""
    if device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def config(
    kernel: str,
    device: torch.device | str,
    default: Mapping[str, int],
    *,
    exact: Mapping[str, int],
    near: Mapping[str, int],
) -> dict[str, int]:
    """Launch arguments of a kernel for a shape: ``default`` with what the table of the architecture replaces.

    Args:
        kernel: the name under which the kernel stands in the tables.
        device: where it is launched, or the name of an architecture. Asking waits for nothing on the device.
        default: launch arguments (tile sizes, ``num_warps``, ``num_stages``) where no entry serves.
        exact: what the compiled kernel depends on (padded widths, bytes of an element): an entry must equal it.
        near: positive sizes, of which the nearest entry serves.

    Raises:
        TuningError: the table is not of the form above, or has other keys than the launch site.
    """
    if _asked is not None:
        _asked.append(Query(kernel, dict(default), dict(exact), dict(near)))
    if kernel in _trial:
        return {**default, **_trial[kernel]}
    name = device if isinstance(device, str) else architecture(device)
    entries = load(name).get(kernel) if name is not None else None
    if not entries:
        return dict(default)
    return {**default, **_nearest(str(name), kernel, frozenset(default), _frozen(exact), _frozen(near))}


def _frozen(values: Mapping[str, int]) -> Frozen:
    return tuple(values.items())


@lru_cache(maxsize=4096)
def _nearest(name: str, kernel: str, arguments: frozenset[str], exact: Frozen, near: Frozen) -> Mapping[str, int]:
    """The ``use`` of the entry that serves, or nothing."""
    own, sizes = dict(exact), dict(near)
    best: Mapping[str, int] = {}
    least = math.inf
    for i, entry in enumerate(load(name)[kernel]):
        for part, known in (("exact", own), ("near", sizes)):
            if entry[part].keys() != known.keys():
                raise TuningError(
                    f"{TABLES / name}.json: {kernel}[{i}].{part} has the keys {sorted(entry[part])}, "
                    f"the kernel's are {sorted(known)}"
                )
        for key in entry["use"]:
            if key not in arguments:
                raise TuningError(
                    f"{TABLES / name}.json: {kernel}[{i}].use.{key} is no launch argument of the kernel; "
                    f"accepted are {', '.join(sorted(arguments))}"
                )
        if entry["exact"] != own:
            continue
        distance = sum(abs(math.log2(entry["near"][key] / max(1, size))) for key, size in sizes.items())
        if distance < least:
            best, least = entry["use"], distance
    return best


@cache
def load(name: str) -> dict[str, list[dict[str, dict[str, int]]]]:
    """The checked table of an architecture; empty if there is none.

    Raises:
        TuningError: not JSON, or an entry that is not of the form in the module's description.
    """
    path = TABLES / f"{name}.json"
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TuningError(f"{path}: not JSON: {error}") from None
    if not isinstance(table, dict):
        raise TuningError(f"{path}: the table is {type(table).__name__}, accepted is an object of kernels")
    for kernel, entries in table.items():
        if not isinstance(entries, list):
            raise TuningError(f"{path}: {kernel} is {type(entries).__name__}, accepted is a list of entries")
        for i, entry in enumerate(entries):
            _check(entry, f"{path}: {kernel}[{i}]")
    return table


def _check(entry: Any, where: str) -> None:
    if not isinstance(entry, dict) or set(entry) != set(PARTS):
        raise TuningError(f"{where} = {entry!r}: accepted is an object of {', '.join(PARTS)}")
    for part in PARTS:
        if not isinstance(entry[part], dict):
            raise TuningError(f"{where}.{part} = {entry[part]!r}: accepted is an object of integers")
        for key, value in entry[part].items():
            accepted = _refusal(part, key, value)
            if accepted is not None:
                raise TuningError(f"{where}.{part}.{key} = {value!r}: accepted is {accepted}")


def _refusal(part: str, key: str, value: Any) -> str | None:
    """What a value may be, or None if it is that."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if part == "exact":
        return None if whole and value >= 0 else "an integer of at least 0"
    if part == "near":
        return None if whole and value >= 1 else "a positive integer"
    if key == "num_stages":
        return None if whole and 1 <= value <= 8 else "an integer from 1 to 8"
    low, high = (1, 32) if key == "num_warps" else (8, 1024)
    fits = whole and low <= value <= high and value & (value - 1) == 0
    return None if fits else f"a power of two from {low} to {high}"


@contextlib.contextmanager
def trial(kernel: str, use: Mapping[str, int]) -> Iterator[None]:
    """For measurements and tests: within the block the kernel is launched with ``use``, whatever shape and table."""
    before = _trial.get(kernel)
    _trial[kernel] = dict(use)
    try:
        yield
    finally:
        if before is None:
            del _trial[kernel]
        else:
            _trial[kernel] = before


@contextlib.contextmanager
def asked() -> Iterator[list[Query]]:
    """Within the block every question to :func:`config` is appended to the list."""
    global _asked
    before, _asked = _asked, []
    try:
        yield _asked
    finally:
        _asked = before


def forget() -> None:
    """Read the tables anew at the next launch."""
    load.cache_clear()
    _nearest.cache_clear()
