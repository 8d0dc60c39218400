"""Reading checkpoint files without running anything in them, and finding the weights in what they hold.

A checkpoint is either safetensors or a torch file. Torch files are pickles, and a pickle may name any function to call;
:mod:`zoo.weights.unpickle` makes data of them instead: tensors, arrays, numbers and containers as they are, and objects
of every other class as :class:`zoo.weights.inert.Inert`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.files import write_file
from zoo.weights.errors import CheckpointError
from zoo.weights.inert import Inert, as_mapping

__all__ = ["CheckpointError", "read_checkpoint", "save_safetensors", "state_dict_of"]

#: Wrappers around a state dict in published files, outermost first.
_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "params",
    "weights",
)
#: Averaged copies, in the order in which they are looked for.
_AVERAGES = ("ema_state_dict", "state_dict_ema", "model_ema_state_dict", "model_ema", "ema_model", "ema", "params_ema")
#: Prefixes that wrappers of a model put before every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "ema.")
#: What stands beside the weights in the state dicts of averages.
_COUNTERS = ("steps", "n_averaged", "num_updates", "decay")


def read_checkpoint(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> Any:
    """Read a safetensors or torch file.

    Returns:
        What the file holds: for safetensors a dict of tensors, for torch files containers, numbers, arrays and tensors
        as they are, and :class:`zoo.weights.inert.Inert` for objects of every other class.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: truncated, no checkpoint at all, larger than it can be, or made to do harm (nothing of it has
            been run then).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        return _read_safetensors(path, map_location)
    from zoo.weights.torch_file import read_torch

    try:
        content = read_torch(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    return content if torch.device(map_location).type == "cpu" else _moved(content, map_location)


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(map_location))
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def _moved(content: Any, device: str | torch.device, depth: int = 8, _done: dict[int, Any] | None = None) -> Any:
    """Tensors of nested containers on another device; what is referred to several times is moved once."""
    done = {} if _done is None else _done
    if isinstance(content, Tensor):
        return content.to(device)
    if not depth or type(content) not in (dict, OrderedDict, list, tuple):
        return content
    if id(content) not in done:
        if isinstance(content, dict):
            moved: Any = type(content)((k, _moved(v, device, depth - 1, done)) for k, v in content.items())
        else:
            moved = type(content)(_moved(v, device, depth - 1, done) for v in content)
        done[id(content)] = moved
    return done[id(content)]


def state_dict_of(content: Any, *, prefer_ema: bool = True) -> dict[str, Tensor]:
    """The state dict within what a checkpoint file holds.

    Unwraps ``state_dict`` / ``model`` ... and the prefixes ``module.``, ``_orig_mod.``, ``model.``; takes the averaged
    copy when there is one and ``prefer_ema`` is set. Of a module that was saved whole, its parameters and buffers are
    taken; arrays of numpy become tensors.

    Raises:
        CheckpointError: no tensors under names are found, or two of them get one name.
    """
    mapping = as_mapping(content)
    for _ in range(4):
        if mapping is None:
            break
        inner = _inner(mapping, prefer_ema)
        if inner is None:
            break
        mapping = inner
    state = {} if mapping is None else _tensors(mapping)
    if not state and isinstance(content, Inert):
        state = _module_state(content)
    if not state:
        raise CheckpointError("the checkpoint holds no state dict (a mapping of names to tensors)")
    return _without_prefixes(state)


def _inner(mapping: Mapping[Any, Any], prefer_ema: bool) -> Mapping[Any, Any] | None:
    """The next mapping inwards that holds weights, or None where this one is it."""
    for key in (*(_AVERAGES if prefer_ema else ()), *_CONTAINERS):
        value = mapping.get(key)
        if isinstance(value, Inert) and "_parameters" in _attributes(value):
            return _module_state(value)
        inner = as_mapping(value)
        if inner and any(_is_tensor(v) or as_mapping(v) for v in inner.values()):
            return inner
    return None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in mapping.items():
        if not _is_tensor(value):
            continue
        if str(key) in found:
            raise CheckpointError(f"the checkpoint has two tensors named {str(key)!r}"[:300])
        if isinstance(value, Tensor):
            found[str(key)] = value
        else:
            found[str(key)] = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return found


def _attributes(value: Inert) -> Mapping[str, Any]:
    return value.state if isinstance(value.state, dict) else {}


def _module_state(module: Inert) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a module that was pickled whole, under their names."""
    found: dict[str, Tensor] = {}
    pending: list[tuple[str, Inert]] = [("", module)]
    for _ in range(100_000):  # more modules than any model has; a module within itself ends here
        if not pending:
            return found
        prefix, item = pending.pop()
        parts = _attributes(item)
        transient = parts.get("_non_persistent_buffers_set")
        transient = transient if isinstance(transient, set) else set()
        for kind in ("_parameters", "_buffers"):
            for name, value in (as_mapping(parts.get(kind)) or {}).items():
                if isinstance(value, Tensor) and not (kind == "_buffers" and name in transient):
                    found[f"{prefix}{name}"] = value
        for name, child in (as_mapping(parts.get("_modules")) or {}).items():
            if isinstance(child, Inert) and prefix.count(".") < 100:
                pending.append((f"{prefix}{name}.", child))
    raise CheckpointError("the module in the checkpoint contains itself")


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(4):
        for prefix in _PREFIXES:
            if all(k.startswith(prefix) or k in _COUNTERS for k in state) and any(k.startswith(prefix) for k in state):
                state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
                break
        else:
            return state
    return state


def save_safetensors(path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a state dict as safetensors, atomically."""
    from safetensors.torch import save

    # a tensor that shares memory with another is written by itself
    data = save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, metadata)
    write_file(path, data)
