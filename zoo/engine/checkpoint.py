"""Checkpoint files: written whole or not at all, checked before they are believed."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from zoo.files import save_atomically, write_file
from zoo.weights.checkpoint import CheckpointError
from zoo.weights.inert import Inert

#: Values of a logged quantity that a checkpoint keeps; the longest smoothing windows are far shorter.
LOGGED = 10_000
#: The file in a work directory that holds the name of the newest checkpoint.
POINTER = "last_checkpoint"


def write_checkpoint(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        CheckpointError: it could not be written (no space, no permission); an earlier file of that name still stands.
    """
    path = Path(path)
    try:
        save_atomically(path, lambda file: torch.save(dict(checkpoint), file))
    except (OSError, RuntimeError) as e:  # torch reports some failures to write as RuntimeError
        free = shutil.disk_usage(path.parent).free / 2**20
        raise CheckpointError(
            f"{path} could not be written ({e}; {free:.0f} MiB are free); earlier checkpoints are untouched"
        ) from e


def write_pointer(work_dir: str | Path, name: str) -> None:
    """Record the newest checkpoint's file name (relative, so that the directory can be moved)."""
    write_file(Path(work_dir) / POINTER, name)


def remove_leftovers(work_dir: str | Path) -> None:
    """Delete what a killed writer left unfinished; to be called while nothing writes to the directory."""
    for pattern in (".*.pth.*.tmp", f".{POINTER}.*.tmp"):
        for file in Path(work_dir).glob(pattern):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def what_is_wrong(path: str | Path) -> str | None:
    """Why a checkpoint file cannot be used (truncated, damaged bytes), or None when it is whole.

    Reads the file once: torch's container is a zip archive with a checksum for every tensor.
    """
    path = Path(path)
    if not path.is_file():
        return "it does not exist"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as e:
        return f"it is truncated or no torch checkpoint ({e})"
    return f"its part {damaged} is damaged" if damaged else None


def checkpoint_files(work_dir: str | Path) -> list[Path]:
    """Resumable checkpoints of a work directory, the one that the pointer names first, then newest first."""
    work_dir = Path(work_dir)
    files = [f for pattern in ("epoch_*.pth", "iter_*.pth") for f in work_dir.glob(pattern)]
    files.sort(key=lambda f: f.stat().st_mtime_ns, reverse=True)
    pointer = work_dir / POINTER
    if pointer.is_file():
        named = work_dir / Path(pointer.read_text(encoding="utf-8").strip()).name
        files.sort(key=lambda f: f != named)
    return files


def find_last_good(work_dir: str | Path, report: Callable[[str], None] | None = None) -> Path | None:
    """The newest checkpoint of a work directory that is whole; None where there is no checkpoint at all.

    Args:
        work_dir: where the checkpoints are.
        report: called with a sentence for every damaged file that is passed over.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    files = checkpoint_files(work_dir)
    for file in files:
        wrong = what_is_wrong(file)
        if wrong is None:
            return file
        if report is not None:
            report(f"checkpoint {file} is passed over: {wrong}")
    if files:
        raise CheckpointError(f"all {len(files)} checkpoints in {work_dir} are damaged; the newest is {files[0]}")
    return None


def restore_weights(model: nn.Module, state_dict: Mapping[str, Tensor], name: str) -> None:
    """Copy a checkpoint of this very model back into it; its parameters may be sharded.

    Raises:
        CheckpointError: names or shapes differ; the message has the first ones, and the model is unchanged.
    """
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    differences = (
        ("missing in the file", [k for k in own if k not in state_dict]),
        ("not in the model", [k for k in state_dict if k not in own]),
        (
            "of another shape",
            [
                f"{k} is {tuple(state_dict[k].shape)}, the model has {tuple(v.shape)}"
                for k, v in own.items()
                if k in state_dict and state_dict[k].shape != v.shape
            ],
        ),
    )
    problems = [
        f"{len(items)} {what}: {', '.join(items[:3])}{', ...' if len(items) > 3 else ''}"
        for what, items in differences
        if items
    ]
    if problems:
        raise CheckpointError(f"{name} is a checkpoint of another model: {'; '.join(problems)}")
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(like(value, state_dict[key]))


def like(target: Tensor, full: Tensor) -> Tensor:
    """``full`` on the target's device, sharded as the target is."""
    full = full.to(target.device, copy=False)
    if not hasattr(target, "device_mesh"):
        return full
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = target
    return distribute_tensor(full.to(target.dtype), sharded.device_mesh, sharded.placements)


def plain(value: Any) -> Any:
    """A copy of nested containers with CPU tensors only: sharded tensors are gathered (on all ranks together)."""
    if isinstance(value, Tensor):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        return value.detach().cpu().clone()
    if isinstance(value, HistoryBuffer):
        log, count = (torch.as_tensor(h[-LOGGED:].astype("float64")) for h in value.data)
        return {
            "log_history": log,
            "count_history": count,
            "max_length": value.max_length,
        }
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(plain(v) for v in value) if type(value) in (list, tuple) else [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "size", None) == 1:  # a number of numpy's
        return value.item()
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # an array of numpy's
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return str(value)


def history_buffer(value: Any) -> HistoryBuffer:
    """The log history that :func:`plain` wrote down, or a ready one from a checkpoint of mmengine's."""
    if isinstance(value, HistoryBuffer):
        return value
    if isinstance(value, Inert):  # as mmengine pickles it, read without importing it
        log, count, length = value._log_history, value._count_history, value.max_length
    else:
        log, count, length = value["log_history"].numpy(), value["count_history"].numpy(), value["max_length"]
    buffer = HistoryBuffer(max_length=int(length))
    buffer._log_history, buffer._count_history = np.asarray(log), np.asarray(count)
    return buffer
