"""Hooks of the runner: saving, averaging, refusing a diverged loss, drawing the curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor

from zoo.engine.checkpoint import checkpoint_files, like, plain


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message names the iteration and the last good checkpoint."""


class CheckpointHook(Hook):
    """Saves every ``interval`` epochs or iterations, at the end, and whenever a metric is the best so far.

    Files in the work directory: ``epoch_N.pth`` or ``iter_N.pth``; ``best_METRIC.pth``; ``last_checkpoint``, the name
    of the newest. An old file is deleted only after a newer one is on the disk.

    Args:
        interval: epochs (``by_epoch``) or iterations between savings.
        by_epoch: what ``interval`` counts.
        max_keep: how many resumable checkpoints to keep; 0 or less keeps all.
        save_best: a metric, such as "accuracy/top1"; None saves no best.
        rule: "greater" or "less" is better; None guesses by the metric's name.
        save_last: save at the end of training as well.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        max_keep: int = 2,
        save_best: str | None = None,
        rule: str | None = None,
        save_last: bool = True,
    ):
        if interval < 1:
            raise ValueError(f"interval={interval}: accepted are 1 and above")
        if rule not in (None, "greater", "less"):
            raise ValueError(f"rule={rule!r}: accepted are 'greater', 'less' and None")
        self.interval, self.by_epoch, self.max_keep, self.save_last = interval, by_epoch, max_keep, save_last
        self.save_best = save_best
        small_is_good = save_best is not None and any(w in save_best.lower() for w in ("loss", "error", "mae", "mse"))
        self.less = rule == "less" if rule else small_is_good

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save after iterations."""
        if not self.by_epoch and (
            self.every_n_train_iters(runner, self.interval) or (self.save_last and self.is_last_train_iter(runner))
        ):
            self._save(runner, f"iter_{runner.iter + 1}.pth", runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Any) -> None:
        """Save after epochs."""
        if self.by_epoch and (
            self.every_n_epochs(runner, self.interval) or (self.save_last and self.is_last_train_epoch(runner))
        ):
            self._save(runner, f"epoch_{runner.epoch + 1}.pth", runner.epoch + 1, runner.iter)

    def _save(self, runner: Any, name: str, epoch: int, iteration: int) -> None:
        runner.save_resumable(name, epoch=epoch, iteration=iteration, validated=False)
        if self.max_keep > 0 and is_main_process():
            for file in checkpoint_files(runner.work_dir)[self.max_keep :]:
                file.unlink(missing_ok=True)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Save the best."""
        if self.save_best is None or metrics is None or runner.train_loop is None:
            return
        if self.save_best not in metrics:
            raise KeyError(f"save_best={self.save_best!r} is no metric; there are {', '.join(sorted(metrics))}")
        score = float(metrics[self.save_best])
        best = runner.message_hub.get_info("best_score")
        if best is not None and (score >= best if self.less else score <= best):
            return
        runner.message_hub.update_info("best_score", score)
        name = f"best_{self.save_best.replace('/', '_')}.pth"
        runner.save_weights(name, metrics={k: float(v) for k, v in metrics.items() if isinstance(v, int | float)})
        runner.logger.info(f"{self.save_best} is {score:.4f}, the best so far; saved as {name}")


class EMAHook(Hook):
    """Keeps an exponential moving average of the parameters, validates with it and saves it beside them.

    After optimizer step t the average becomes ``d * average + (1 - d) * parameters`` with d = ``decay``, or with
    ``warmup`` d = min(``decay``, (1 + t) / (10 + t)), t from 0. Buffers are the model's own.

    Args:
        decay: between 0 and 1.
        warmup: average over a shorter past at first.
        validate: use the average in validation and test.
    """

    priority = "NORMAL"

    def __init__(self, decay: float = 0.9998, warmup: bool = True, validate: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: accepted are numbers from 0 up to (not including) 1")
        self.decay, self.warmup, self.validate = decay, warmup, validate
        self.average: dict[str, Tensor] | None = None
        self.steps = 0
        self._swapped = False

    def before_train(self, runner: Any) -> None:
        """Begin with the model's parameters, unless an average was resumed."""
        if self.average is None:
            self.average = {n: p.detach().clone() for n, p in _bare(runner.model).named_parameters()}

    @torch.no_grad()
    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Move the average after a step of the optimizer."""
        if self.average is None or not runner.optim_wrapper.should_update():
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warmup else self.decay
        self.steps += 1
        for name, parameter in _bare(runner.model).named_parameters():
            self.average[name].lerp_(parameter.detach().to(self.average[name].dtype), 1 - decay)

    def before_val_epoch(self, runner: Any) -> None:
        """Put the average into the model."""
        self._swap(runner, into=True)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Put the parameters back."""
        self._swap(runner, into=False)

    before_test_epoch = before_val_epoch
    after_test_epoch = after_val_epoch

    @torch.no_grad()
    def _swap(self, runner: Any, *, into: bool) -> None:
        if self.average is None or not self.validate or self._swapped == into:
            return
        for name, parameter in _bare(runner.model).named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)
        self._swapped = into

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Write the averaged model and the number of steps."""
        if self.average is None:
            return
        average = plain(self.average)
        # A parameter that two modules share has one average and several names.
        bare = _bare(runner.model)
        first = {id(p): n for n, p in bare.named_parameters()}
        average = {n: average[first[id(p)]] for n, p in bare.named_parameters(remove_duplicate=False)}
        checkpoint["ema_state_dict"] = {k: average.get(k, v) for k, v in checkpoint["state_dict"].items()}
        checkpoint["ema_steps"] = self.steps

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with a resumed average."""
        if "ema_state_dict" not in checkpoint:
            runner.logger.warning("the checkpoint holds no moving average; it begins with the resumed parameters")
            return
        self.average = {
            n: like(p.detach(), checkpoint["ema_state_dict"][n]).clone()
            for n, p in _bare(runner.model).named_parameters()
        }
        self.steps = checkpoint["ema_steps"]


class FiniteLossHook(Hook):
    """Stops the training when the loss is NaN or infinite, before anything of that model is saved."""

    priority = "VERY_HIGH"

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the losses of the iteration.

        Raises:
            NonFiniteLossError: one of them is not finite.
        """
        losses = {k: float(torch.as_tensor(v).detach()) for k, v in (outputs or {}).items() if "loss" in k}
        bad = {k: v for k, v in losses.items() if not math.isfinite(v)}
        if bad:
            raise diverged(runner, ", ".join(f"{k}={v}" for k, v in bad.items()))


def diverged(runner: Any, what: str) -> NonFiniteLossError:
    """The error for an iteration whose losses, or whose predictions, are no finite numbers."""
    files = checkpoint_files(runner.work_dir)
    kept = f"the last good checkpoint is {files[0]}" if files else "no checkpoint was saved before"
    return NonFiniteLossError(
        f"{what} at iteration {runner.iter + 1} (epoch {runner.epoch + 1}); {kept}. "
        f"A lower learning rate, clip_grad or bfloat16 instead of float16 may help"
    )


class CurveHook(Hook):
    """Draws the training curves into the work directory when the training ends."""

    priority = "LOWEST"

    def after_run(self, runner: Any) -> None:
        """Draw, on the main process."""
        if is_main_process() and runner.has_trained:
            from zoo.viz.curves import plot_curves

            runner.logger.info(f"curves: {plot_curves(Path(runner.work_dir))}")


def _bare(model: Any) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model
