"""From a config to a finished run: what the command line, the tools and notebooks call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

from zoo.engine.config import ConfigError, apply_options, check_config, load_config

if TYPE_CHECKING:
    from zoo.engine.runner import Runner


def prepare(
    config: str | Path | Config,
    *,
    work_dir: str | Path | None = None,
    options: Mapping[str, Any] | Iterable[str] | None = None,
    resume: bool = False,
    load_from: str | Path | None = None,
    amp: bool | str = False,
    compile: bool | Mapping[str, Any] = False,
    seed: int | None = None,
) -> Config:
    """A checked config with the choices of a command line in it.

    Args:
        config: a file, a name, or a ready config.
        work_dir: where checkpoints and logs go; ``work_dirs/NAME`` unless the config or this says otherwise.
        options: overrides of single keys; see :func:`zoo.engine.config.apply_options`.
        resume: go on from the last good checkpoint of the work directory.
        load_from: a checkpoint to start from (or, with ``resume``, to resume).
        amp: mixed precision: True for bfloat16, or "bfloat16" / "float16".
        compile: torch.compile the network; a dict gives its arguments.
        seed: of everything random.

    Raises:
        UnknownNameError, ConfigError: see :func:`zoo.engine.config.load_config`.
    """
    cfg = config if isinstance(config, Config) else load_config(config, check=False)
    if options:
        apply_options(cfg, options)
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / (Path(cfg.filename).stem if cfg.filename else "run"))
    if resume:
        cfg.resume = True
    if load_from is not None:
        cfg.load_from = str(load_from)
    if amp:
        _set_amp(cfg, "bfloat16" if amp is True else amp)
    if compile:
        cfg.compile = True if compile is True else dict(compile)
    if seed is not None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": seed}
    if under_torchrun():
        cfg.launcher = "pytorch"
    check_config(cfg)
    return cfg


def _set_amp(cfg: Config, dtype: str) -> None:
    from zoo.engine.compat import AmpOptimWrapper

    if dtype not in ("bfloat16", "float16"):
        raise ConfigError(f"amp={dtype!r}: accepted are 'bfloat16' and 'float16'")
    if cfg.get("optim_wrapper") is None:
        raise ConfigError("amp is for training, and the config has no optim_wrapper")
    cfg.optim_wrapper.type = AmpOptimWrapper
    cfg.optim_wrapper.dtype = dtype


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return all(key in os.environ for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"))


def train(config: str | Path | Config, **choices: Any) -> Runner:
    """Train; the runner that did it is returned, its work directory holds the rest.

    A config with ``stages`` is trained stage by stage (:mod:`zoo.engine.staged`); the last one's runner is returned.

    Args:
        config: a file, a name, or a ready config.
        **choices: of :func:`prepare`.
    """
    cfg = prepare(config, **choices)
    if cfg.get("stages") is not None:
        from zoo.engine.staged import StagedTraining

        return StagedTraining(cfg, resume=bool(cfg.get("resume"))).run()
    from zoo.engine.runner import Runner

    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test(config: str | Path | Config, checkpoint: str | Path, **choices: Any) -> dict[str, float]:
    """Metrics of a checkpoint on the config's test data; of a config with ``stages``, those of the checkpoint's stage
    (known by its folder), or of the last one.

    Args:
        config: a file, a name, or a ready config; also one that a run wrote into its work directory.
        checkpoint: any file that :func:`zoo.weights.load.load_weights` reads; the averaged weights where it has both.
        **choices: of :func:`prepare`.

    Raises:
        CheckpointError: the checkpoint is damaged, refused or of another model.
        ConfigError: the config has no test data.
    """
    cfg = prepare(config, load_from=checkpoint, **choices)
    if cfg.get("stages") is not None:
        from zoo.engine.staged import config_of_stage

        cfg = config_of_stage(cfg, checkpoint)
    cfg.resume = False
    if cfg.get("test_dataloader") is None or cfg.get("test_evaluator") is None:
        raise ConfigError(f"{cfg.filename or 'the config'} has no test_dataloader and test_evaluator")
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
        cfg.pop(key, None)
    from zoo.engine.runner import Runner

    return Runner.from_cfg(cfg).test()
