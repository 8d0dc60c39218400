"""Reading checkpoint files without running anything in them.

A checkpoint is either safetensors or a torch file. Torch files are pickles, and a pickle may name any function to
call; so the names that a file uses are listed first, compared with :data:`ALLOWED`, and only then is it read with
``torch.load(weights_only=True)``, whose unpickler knows nothing but tensors, containers and those names.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.files import write_file

#: Names, besides torch's own, that a checkpoint may use: plain containers of numbers and options
#: that mmengine, numpy and training scripts write.
ALLOWED = frozenset(
    {
        "mmengine.logging.history_buffer.HistoryBuffer",
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.ndarray",
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.bytes",
        "builtins.getattr",  # stands for _history_method only, see _resolve
    }
)

#: Wrappers around a state dict in published files, outermost first.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "net")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, refused, or of another model. The message says which and why."""


def read_checkpoint(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> Any:
    """Read a safetensors or torch file.

    Returns:
        What the file holds; for safetensors a dict of tensors.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: truncated, no checkpoint at all, or it names something outside :data:`ALLOWED` (nothing of
            it has been run then).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, map_location)
    return _read_torch(path, map_location)


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(map_location))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_torch(path: Path, map_location: str | torch.device) -> Any:
    refused, allowed = _globals_of(path)
    if refused:
        raise CheckpointError(
            f"{path} is refused: it asks for {', '.join(sorted(refused))}, which a checkpoint has no need of; "
            f"nothing of it was run. If you trust its author, save its state dict as safetensors where it was made"
        )
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        # torch raises RuntimeError, UnpicklingError, EOFError or KeyError for the many ways a file can be damaged
        raise CheckpointError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from error


def _globals_of(path: Path) -> tuple[set[str], list[Callable[..., Any] | tuple[Callable[..., Any], str]]]:
    """Names the pickle uses that are refused, and the objects of those that are allowed."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:
        # Files of torch < 1.6 are no zip archives and cannot be listed; weights_only refuses by itself there.
        return set(), []
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint: {_first_line(error)}") from error
    refused = set(names) - ALLOWED
    if refused:
        return refused, []
    objects: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(_resolve(n), n) for n in names]
    if "numpy.dtype" in names:
        objects += [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return refused, objects


def _history_method(owner: Any, name: str) -> Any:
    """What ``getattr`` means in a checkpoint: mmengine's HistoryBuffer pickles its statistics methods through it."""
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ("min", "max", "mean", "current", "statistics"):
        return getattr(owner, name)
    raise CheckpointError(f"the checkpoint asks for attribute {name!r} of {owner!r}, which it has no need of")


def _resolve(name: str) -> Any:
    if name == "builtins.getattr":
        return _history_method
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _first_line(error: BaseException) -> str:
    # torch's unpickler says what it stumbled over after a paragraph of advice
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no details'}"


def state_dict_of(content: Any, *, prefer_ema: bool = True) -> dict[str, Tensor]:
    """The state dict within what a checkpoint file holds.

    Unwraps ``state_dict`` / ``model`` ... and the prefixes ``module.`` and ``_orig_mod.``; takes the averaged copy
    (``ema_state_dict``, mmengine's averaged model) when there is one and ``prefer_ema`` is set.

    Raises:
        CheckpointError: no tensors under names are found.
    """
    if prefer_ema and isinstance(content, Mapping) and isinstance(content.get("ema_state_dict"), Mapping):
        content = content["ema_state_dict"]
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((k for k in _CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError("the checkpoint holds no state dict (a mapping of names to tensors)")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        if all(k.startswith(prefix) or k in ("steps", "n_averaged") for k in state):
            state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    return state


def save_safetensors(path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors, atomically."""
    from safetensors.torch import save

    data = save({k: v.detach().cpu().contiguous() for k, v in state.items()}, metadata)
    write_file(path, data)
