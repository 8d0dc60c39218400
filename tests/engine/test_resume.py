"""A resumed run ends exactly as an uninterrupted one, from whichever iteration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.weights.checkpoint import CheckpointError, read_checkpoint

BY_ITERATION = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.max_keep": 0}


class _Interrupted(Exception):
    pass


def _trace(runner: Any) -> Any:
    from toy_engine_parts import TraceHook

    hook = TraceHook()
    runner.register_hook(hook)
    return hook


def _interrupt(runner: Any, after: int) -> None:
    """Let the run end with an exception after iteration ``after``, when its checkpoint has been written."""
    from mmengine.hooks import Hook

    class Stop(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            if runner.iter + 1 == after:
                raise _Interrupted

    runner.register_hook(Stop())


def _same(a: Any, b: Any, path: str = "") -> None:
    """Assert bit-for-bit equality of nested values; the clock's numbers aside."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b) or (a.isnan().any() and torch.equal(a.nan_to_num(), b.nan_to_num())), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if not any(word in str(key) for word in ("time", "experiment_name", "cfg")):
                _same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            _same(x, y, f"{path}.{i}")
    else:
        assert a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)), f"{path}: {a} {b}"


def _check_every_resume(toy: Any, tmp_path: Path, options: dict[str, Any], stops: list[int], last: str) -> None:
    whole = toy(options, name="whole")
    expected = _trace(whole)
    whole.train()
    reference = read_checkpoint(tmp_path / "whole" / last)
    assert len(reference["state_dict"]) > 5
    assert len(expected.lines) == whole.iter
    for stop in stops:
        first = toy(options, name=f"stop{stop}")
        _interrupt(first, stop)
        with pytest.raises(_Interrupted):
            first.train()
        again = toy(options, name=f"stop{stop}", resume=True)
        trace = _trace(again)
        torch.manual_seed(stop)  # whatever the new process drew before must not matter
        again.train()
        begin = again._resumed_file
        assert begin is not None
        assert trace.lines == expected.lines[-len(trace.lines) :]
        assert len(trace.lines) == len(expected.lines) - read_checkpoint(begin)["meta"]["iter"] if begin.exists() else 1
        _same(read_checkpoint(tmp_path / f"stop{stop}" / last), reference, f"stopped at {stop}")


def test_from_every_iteration(toy: Any, tmp_path: Path) -> None:
    """Model, averaged model, optimizer, schedule, logs and random numbers, with a checkpoint every iteration."""
    _check_every_resume(toy, tmp_path, BY_ITERATION, list(range(1, 15)), "iter_15.pth")


def test_from_the_last_epoch(toy: Any, tmp_path: Path) -> None:
    """Checkpoints every epoch: the iterations after it are repeated."""
    _check_every_resume(toy, tmp_path, {}, [6, 8, 10, 11], "epoch_3.pth")


def test_within_an_accumulation(toy: Any, tmp_path: Path) -> None:
    """A checkpoint between two optimizer steps holds the gradients accumulated so far."""
    options = {**BY_ITERATION, "optim_wrapper.accumulative_counts": 4}
    _check_every_resume(toy, tmp_path, options, [1, 2, 3, 4, 6, 13], "iter_15.pth")


def test_iteration_based_loop(toy: Any, tmp_path: Path) -> None:
    """Passes over the data that end between checkpoints."""
    options = {
        **BY_ITERATION,
        "default_hooks.checkpoint.interval": 3,
        "train_cfg": {"by_epoch": False, "max_iters": 14, "val_interval": 6},
        "log_processor": {"by_epoch": False},
    }
    _check_every_resume(toy, tmp_path, options, [4, 6, 11, 12, 13], "iter_14.pth")


def test_with_workers(toy: Any, tmp_path: Path) -> None:
    """Workers load ahead of the training; the resumed run loads the same."""
    options = {**BY_ITERATION, "train_dataloader.num_workers": 2, "train_cfg.max_epochs": 2}
    _check_every_resume(toy, tmp_path, options, [3, 5, 7], "iter_10.pth")


def test_other_schedules_resume(toy: Any, tmp_path: Path) -> None:
    """mmengine's own schedulers, by epoch and by iteration."""
    options = {
        **BY_ITERATION,
        "param_scheduler": [
            {"type": "mmengine.optim.LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 4},
            {"type": "mmengine.optim.CosineAnnealingLR", "T_max": 2, "by_epoch": True, "begin": 1, "end": 3},
        ],
    }
    _check_every_resume(toy, tmp_path, options, [2, 5, 9], "iter_15.pth")


def test_validation_that_was_missed_is_made_up_for(toy: Any, tmp_path: Path) -> None:
    """A run killed between an epoch's checkpoint and its validation validates first when it is resumed."""
    from mmengine.hooks import Hook

    class Validations(Hook):
        def __init__(self, fail: bool):
            self.fail, self.epochs = fail, []

        def before_val(self, runner: Any) -> None:
            if self.fail:
                raise _Interrupted
            self.epochs.append(runner.epoch)

    options = {"default_hooks.checkpoint.save_best": "toy/accuracy"}
    runner = toy(options)
    runner.register_hook(Validations(fail=True))
    with pytest.raises(_Interrupted):
        runner.train()
    assert not (tmp_path / "run" / "best_toy_accuracy.pth").exists()
    runner = toy(options, resume=True)
    seen = Validations(fail=False)
    runner.register_hook(seen)
    runner.train()
    assert seen.epochs == [1, 2, 3]
    assert (tmp_path / "run" / "best_toy_accuracy.pth").exists()


def test_nothing_to_resume_starts_from_the_beginning(toy: Any) -> None:
    runner = toy({"train_cfg.max_epochs": 1}, resume=True)
    runner.train()
    assert runner.iter == 5


def test_another_seed_is_refused(toy: Any) -> None:
    toy({"train_cfg.max_epochs": 1}).train()
    with pytest.raises(CheckpointError, match="with seed 3, this run has 4"):
        toy({"train_cfg.max_epochs": 2}, resume=True, seed=4).train()


def test_another_batch_size_is_refused(toy: Any) -> None:
    toy({"train_cfg.max_epochs": 2}).train()
    with pytest.raises(CheckpointError, match="batch size"):
        toy({"train_dataloader.batch_size": 10}, resume=True).train()


def test_another_model_is_refused(toy: Any) -> None:
    toy({"train_cfg.max_epochs": 1}).train()
    with pytest.raises(CheckpointError, match=r"another model.*backbone\.bn"):
        toy({"model.backbone.batch_norm": False}, resume=True).train()


def test_a_longer_run_goes_on(toy: Any) -> None:
    """A finished run can be prolonged; the schedule has the new length."""
    toy({"train_cfg.max_epochs": 1}).train()
    runner = toy({"train_cfg.max_epochs": 4}, resume=True)
    trace = _trace(runner)
    runner.train()
    assert [line[0] for line in trace.lines] == list(range(5, 20))
    assert trace.lines[0][3] == pytest.approx(0.01 * (1 + math.cos(math.pi * 2 / 17)) / 2)
