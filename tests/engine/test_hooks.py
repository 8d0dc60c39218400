"""The moving average by its formula and against timm's; best and last checkpoints; logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from timm.utils import ModelEmaV2

from zoo.engine.hooks import CheckpointHook, EMAHook
from zoo.weights.checkpoint import read_checkpoint

LOGGER = {"type": "mmengine.hooks.LoggerHook", "interval": 1}


class _Snapshots(Hook):
    """The parameters after every iteration, in double precision."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def before_train(self, runner: Any) -> None:
        self.after_train_iter(runner, 0)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.seen.append({k: v.detach().double().clone() for k, v in runner.bare_model.named_parameters()})


@pytest.mark.parametrize("warmup", [False, True])
def test_average_is_the_formula(toy: Any, tmp_path: Path, warmup: bool) -> None:
    runner = toy({"custom_hooks.0.warmup": warmup})
    snapshots = _Snapshots()
    runner.register_hook(snapshots)
    runner.train()
    average = snapshots.seen[0]
    for t, parameters in enumerate(snapshots.seen[1:]):
        d = min(0.9, (1 + t) / (10 + t)) if warmup else 0.9
        average = {k: d * average[k] + (1 - d) * v for k, v in parameters.items()}
    saved = read_checkpoint(tmp_path / "run" / "epoch_3.pth")
    assert saved["ema_steps"] == 15
    for key, value in average.items():
        torch.testing.assert_close(saved["ema_state_dict"][key].double(), value, rtol=1e-5, atol=1e-7)
        assert torch.equal(saved["state_dict"][key].double(), snapshots.seen[-1][key])
    for key in saved["state_dict"].keys() - average.keys():  # buffers are the model's own
        assert torch.equal(saved["ema_state_dict"][key], saved["state_dict"][key])


def test_average_is_timms(toy: Any) -> None:
    """Without warm-up, and with a model that has no buffers (timm averages those too)."""

    class Timms(Hook):
        def before_train(self, runner: Any) -> None:
            self.average = ModelEmaV2(runner.bare_model, decay=0.9)

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            self.average.update(runner.bare_model)

    runner = toy({"custom_hooks.0.warmup": False, "model.backbone.batch_norm": False})
    timms = Timms()
    runner.register_hook(timms)
    runner.train()
    ours = next(h for h in runner.hooks if isinstance(h, EMAHook))
    for key, value in timms.average.module.named_parameters():
        torch.testing.assert_close(ours.average[key], value, rtol=1e-5, atol=1e-7)


def test_average_moves_with_the_optimizer_only(toy: Any) -> None:
    runner = toy({"optim_wrapper.accumulative_counts": 5})
    runner.train()
    assert next(h for h in runner.hooks if isinstance(h, EMAHook)).steps == 3


def test_validation_uses_the_average_and_gives_the_parameters_back(toy: Any) -> None:
    class Look(Hook):
        priority = "LOWEST"

        def after_train_epoch(self, runner: Any) -> None:
            self.trained = runner.bare_model.backbone.fc.weight.detach().clone()

        def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            self.validated = runner.bare_model.backbone.fc.weight.detach().clone()

        def after_val(self, runner: Any) -> None:
            self.after = runner.bare_model.backbone.fc.weight.detach().clone()

    runner = toy({"train_cfg.max_epochs": 1})
    look = Look()
    runner.register_hook(look)
    runner.train()
    average = next(h for h in runner.hooks if isinstance(h, EMAHook)).average["backbone.fc.weight"]
    assert torch.equal(look.validated, average)
    assert torch.equal(look.after, look.trained)
    assert not torch.equal(look.trained, average)


def test_testing_a_checkpoint_uses_the_average(toy: Any, toy_config: Path, tmp_path: Path) -> None:
    """And works with the config that the run wrote into its work directory."""
    from zoo.engine.launch import test

    runner = toy()
    runner.train()
    expected = runner.val_loop.run()
    dumped, file = tmp_path / "run" / "toy_config.py", tmp_path / "run" / "epoch_3.pth"
    assert test(dumped, file, work_dir=tmp_path / "test") == expected
    assert test(toy_config, file, work_dir=tmp_path / "test") == expected


@pytest.mark.parametrize(("rule", "expected"), [(None, 0.9), ("less", 0.2)])
def test_best_is_kept(toy: Any, tmp_path: Path, rule: str | None, expected: float) -> None:
    runner = toy({"train_cfg.max_epochs": 1})
    runner.train()
    hook = CheckpointHook(save_best="score", rule=rule)
    for i, score in enumerate((0.5, 0.9, 0.2, 0.7)):
        runner.bare_model.backbone.table.data.fill_(i)
        hook.after_val_epoch(runner, {"score": score})
    best = read_checkpoint(tmp_path / "run" / "best_score.pth")
    assert best["meta"]["metrics"] == {"score": expected}
    assert best["state_dict"]["backbone.table"].unique().item() == (1 if expected == 0.9 else 2)
    assert best["meta"]["dataset_meta"]["classes"] == ("red", "green", "blue")


def test_small_losses_are_good() -> None:
    assert CheckpointHook(save_best="val/loss").less
    assert not CheckpointHook(save_best="accuracy/top1").less


def test_unknown_best_metric_is_told(toy: Any) -> None:
    with pytest.raises(KeyError, match="save_best='acc' is no metric; there are toy/accuracy"):
        toy({"default_hooks.checkpoint.save_best": "acc"}).train()


@pytest.mark.parametrize(
    "make", [lambda: EMAHook(decay=1.0), lambda: CheckpointHook(interval=0), lambda: CheckpointHook(rule="more")]
)
def test_wrong_arguments_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="accepted are"):
        make()


def test_logs_are_json_lines_and_tensorboard(toy: Any, tmp_path: Path) -> None:
    backends = [
        {"type": "mmengine.visualization.LocalVisBackend"},
        {"type": "mmengine.visualization.TensorboardVisBackend"},
    ]
    visualizer = {"type": "mmengine.visualization.Visualizer", "vis_backends": backends}
    runner = toy({"visualizer": visualizer, "default_hooks.logger": LOGGER})
    runner.train()
    folder = next((tmp_path / "run").glob("*/vis_data"))
    lines = [json.loads(line) for line in (folder / "scalars.json").read_text(encoding="utf-8").splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["iter"] for line in losses] == list(range(1, 16))
    assert [line["step"] for line in lines if "toy/accuracy" in line] == [1, 2, 3]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 16))
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([line["loss"] for line in losses], rel=1e-5)
