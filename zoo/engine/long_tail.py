"""Hooks for recipes that weigh classes later, or that train a part of a network and save it by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from zoo.layers.tuning import tuned_state_dict
from zoo.weights.checkpoint import save_safetensors


def _bare(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


class DeferredReweightingHook(Hook):
    """Weighs classes in the model's loss from an epoch on (deferred re-weighting, arXiv 1906.07413, section 3.3).

    The loss (:class:`~zoo.classification.distillation.DistillationLoss`, or another with ``set_class_counts`` and
    ``weighted``) is told how many samples of each class the training data has.

    Args:
        start_epoch: first epoch, counted from 0, in which classes are weighed; 0 for all.

    Raises:
        ValueError: a negative epoch.
        TypeError: (before training) the model's loss cannot weigh classes, or the data do not say their labels.
    """

    priority = "NORMAL"

    def __init__(self, start_epoch: int):
        if start_epoch < 0:
            raise ValueError(f"start_epoch={start_epoch}: accepted are epochs from 0")
        self.start_epoch = start_epoch

    def before_train(self, runner: Any) -> None:
        """Count the classes."""
        model, dataset = _bare(runner.model), runner.train_dataloader.dataset
        loss: Any = getattr(model, "loss", None)
        if not hasattr(loss, "set_class_counts"):
            raise TypeError(f"{type(model).__name__}'s loss, {type(loss).__name__}, weighs no classes")
        if not hasattr(dataset, "labels"):
            raise TypeError(f"{type(dataset).__name__} has no labels, by which classes would be counted")
        loss.set_class_counts(np.bincount(dataset.labels, minlength=model.num_classes))

    def before_train_epoch(self, runner: Any) -> None:
        """Turn the weights on or off, which a resumed run needs too."""
        _bare(runner.model).loss.weighted = runner.epoch >= self.start_epoch


class TunedWeightsHook(Hook):
    """Saves what was trained of a partly frozen model (prompts, adapters, classifier) when the training ends.

    Args:
        filename: a safetensors file in the work directory; :func:`zoo.layers.tuning.load_tuned_state_dict` reads it.
    """

    priority = "LOWEST"

    def __init__(self, filename: str = "tuned.safetensors"):
        self.filename = filename

    def after_run(self, runner: Any) -> None:
        """Write, on the main process."""
        if not is_main_process() or not runner.has_trained:
            return
        state = tuned_state_dict(_bare(runner.model))
        file = Path(runner.work_dir) / self.filename
        save_safetensors(file, state, {"format": "pt"})
        runner.logger.info(f"{sum(v.numel() for v in state.values()):,} trained parameters saved as {file}")
