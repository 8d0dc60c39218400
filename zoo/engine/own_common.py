"""What the configs for a user's own data share, whatever their task: names, defaults, the runner's part, the file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.loading import read_image
from zoo.engine.config import ConfigError, config_roots, config_text, load_config
from zoo.files import write_file
from zoo.registry import MODELS, UnknownNameError, did_you_mean

# isort: split
from mmengine.config import Config

_LOOKED_AT = 100


def is_of(model: str, **meta: str) -> bool:
    """Whether a name is that of a model with these facts (``task="detection"`` ...), or of a family of them."""
    if model in MODELS:
        own = MODELS.entry(model).meta
        return all(own.get(k) == v for k, v in meta.items())
    return bool(MODELS.names(family=model, **meta))


def candidates(model: str, what: str, **meta: str) -> list[str]:
    """The registered models that a name stands for: itself, or all of the family of that name.

    Raises:
        UnknownNameError: there is neither such a model nor such a family; ``what`` is what the message calls it.
    """
    if model in MODELS and is_of(model, **meta):
        return [model]
    names = MODELS.names(family=model, **meta)
    if not names:
        known = MODELS.names(**meta)
        families = {MODELS.entry(n).meta["family"] for n in known}
        raise UnknownNameError(f"no {what} {model!r}{did_you_mean(model, [*known, *families])}")
    return names


def check_positive(**numbers: int | None) -> None:
    """Refuse numbers below 1; None is a default.

    Raises:
        ValueError: one is.
    """
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: accepted are 1 and above")


def worker_count(workers: int | None) -> int:
    """``workers``, or by default the cores but one, at most 4."""
    return min(4, max(0, (os.cpu_count() or 1) - 1)) if workers is None else workers


def run_name(model: str, data: str | os.PathLike[str]) -> str:
    """What a training of ``model`` on a folder is called."""
    return f"{model}_{Path(data).resolve().name}"


def median_side(dataset: Any) -> float:
    """Median of the shorter sides of a sample of a data set's images, in pixels.

    Raises:
        ValueError: none of the sampled images can be read.
    """
    sides = []
    for index in range(0, len(dataset), max(1, len(dataset) // _LOOKED_AT)):
        try:
            sides.append(min(read_image(dataset.path_of(index)).shape[:2]))
        except ValueError:  # reported by `zoo data check`, and when it is trained on
            continue
    if not sides:
        raise ValueError(f"none of the images can be read, such as {dataset.path_of(0)!r}")
    return float(np.median(sides))


def runner_values(
    train: Mapping[str, Any],
    val: Mapping[str, Any],
    evaluator: Sequence[Mapping[str, Any]],
    *,
    epochs: int,
    seed: int,
    weights: str | os.PathLike[str] | None,
    work_dir: Path,
    save_best: str | None = None,
) -> dict[str, Any]:
    """All of a config but model, optimizer and schedule.

    Args:
        train, val: the loaders; that of validation is the test's too.
        evaluator: metrics of validation and test.
        epochs: of the training; about twenty of them end with a validation.
        seed: of everything.
        weights: a checkpoint to start from; what does not fit is left as initialised.
        work_dir: where the runner writes.
        save_best: the metric whose best checkpoint is kept, instead of the default.
    """
    values = {
        **runtime(),
        "train_dataloader": train,
        "val_dataloader": val,
        "test_dataloader": val,
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
        "train_cfg": dict(by_epoch=True, max_epochs=epochs, val_interval=max(1, epochs // 20)),
        "val_cfg": dict(),
        "test_cfg": dict(),
        "randomness": dict(seed=seed),
        "work_dir": str(work_dir),
        "load_from": None if weights is None else str(weights),
        "load_strict": False,
    }
    if save_best is not None:
        hooks = values["default_hooks"]
        values["default_hooks"] = {**hooks, "checkpoint": {**hooks["checkpoint"], "save_best": save_best}}
    return values


def runtime() -> dict[str, Any]:
    """What ``configs/_base_/default_runtime.py`` sets: hooks, logging, visualizer."""
    for root in config_roots():
        file = root / "_base_" / "default_runtime.py"
        if file.is_file():
            return dict(load_config(file, check=False).to_dict())
    raise ConfigError("configs/_base_/default_runtime.py is neither in the checkout nor in the installed package")


def written(values: dict[str, Any], file: Path, about: str) -> Config:
    """A config, written to ``file`` below a line about it and read back."""
    text = config_text(Config(values, format_python_code=False))
    write_file(file, f'"""{about}"""\n\n{text}')
    return load_config(file)
