"""Translations between the authors' checkpoints and ours, one module a system.

A module defines ``CHECKPOINTS`` (entry -> names of our backbone classes whose checkpoints it reads),
``config_from_official``, ``convert_state_dict`` and ``revert_state_dict``. All are strict: a key that is missing or
left over is an error.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping

from torch import Tensor, nn


def systems() -> list[str]:
    """Names of the systems that have an importer."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def importer(system: str):
    """The importer module of a system.

    Raises:
        LookupError: the system has none.
    """
    if system not in systems():
        raise LookupError(f"no importer for system {system!r}; there are {', '.join(systems())}")
    return importlib.import_module(f"{__name__}.{system}")


def readings(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dict translated by every importer entry that serves this class of model and accepts its keys."""
    for system in systems():
        module = importer(system)
        for entry, names in getattr(module, "CHECKPOINTS", {}).items():
            if type(model).__name__ not in names:
                continue
            try:
                yield entry, module.convert_state_dict(entry, dict(state))
            except (KeyError, ValueError):
                continue  # not a checkpoint of this entry
