"""The ways from a name, a config or a model to a predictor that detectors and segmenters share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from zoo.inference.recorded import checkpoint_meta, config_of, model_arguments, needs_weights

P = TypeVar("P")


@dataclass(frozen=True)
class PredictorSource(Generic[P]):
    """What a task makes its predictors of.

    Attributes:
        model: the class of the task's models; called with a network, or with a name and a number of classes.
        predictor: (model, transform, options) -> the predictor.
        transform: a model's ``input_size`` -> arguments of its transform.
        of_config: a config -> arguments of the transform of its test data.
        of_meta: what a checkpoint says about itself -> options of the predictor.
        input_size: of models that are registered without one.
    """

    model: Callable[..., nn.Module]
    predictor: Callable[[Any, Mapping[str, Any], dict[str, Any]], P]
    transform: Callable[[int], dict[str, Any]]
    of_config: Callable[[Any], dict[str, Any]]
    of_meta: Callable[[Mapping[str, Any]], dict[str, Any]]
    input_size: int

    def load(self, model: Any, weights: str | os.PathLike[str] | None, options: dict[str, Any]) -> P:
        """The predictor of a name, a config or a model.

        Raises:
            UnknownNameError, FileNotFoundError: no such model or config.
            CheckpointError, WeightsUnavailableError: the weights cannot be had or do not fit.
            ValueError: a config without weights.
        """
        from zoo.registry import MODELS
        from zoo.weights.load import load_weights

        if isinstance(model, nn.Module):
            wrapped = model if isinstance(model, self.model) else self.model(model)  # type: ignore[arg-type]
            if weights is not None:
                load_weights(wrapped, weights)
            return self.predictor(wrapped, {}, options)
        if str(model) in MODELS:
            return self._of_name(str(model), weights, options)
        from zoo.engine.config import load_config, require_known

        require_known(model)
        weights = needs_weights(model, weights)
        return self._of_config(load_config(model), weights, options)

    def untrained(self, model: str | os.PathLike[str], num_classes: int | None, options: dict[str, Any]) -> P:
        """The predictor of a name or a config as initialised with seed 0, on the CPU.

        Raises:
            UnknownNameError, FileNotFoundError: no such model or config.
            ValueError: a number of classes for a config.
        """
        from zoo.registry import MODELS

        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            if str(model) in MODELS:
                built = self.model(str(model), num_classes)
                own = {"name": str(model), "device": "cpu"}
                return self.predictor(built, self._transform_of(str(model)), {**own, **options})
            from zoo.engine.config import load_config, require_known

            require_known(Path(model))
            if num_classes is not None:
                raise ValueError(f"num_classes={num_classes}: a config has its own number")
            cfg = load_config(Path(model))
            built = self.model(**model_arguments(cfg))
            return self.predictor(built, self.of_config(cfg), {"device": "cpu", **options})

    def _of_name(self, name: str, weights: str | os.PathLike[str] | None, options: dict[str, Any]) -> P:
        from zoo.weights.hub import resolve_weights
        from zoo.weights.load import load_weights

        weights = resolve_weights(name) if weights is None else weights
        meta = checkpoint_meta(weights)
        recorded = config_of(meta)
        if recorded is not None:  # trained here: its own classes and preprocessing
            return self._of_config(recorded, weights, {"name": name, **options}, meta)
        model = self.model(name)
        load_weights(model, weights)
        return self.predictor(model, self._transform_of(name), {"name": name, **self.of_meta(meta), **options})

    def _of_config(
        self, cfg: Any, weights: str | os.PathLike[str], options: dict[str, Any], meta: Mapping[str, Any] | None = None
    ) -> P:
        from zoo.weights.load import load_weights

        model = self.model(**model_arguments(cfg))
        load_weights(model, weights)
        own = self.of_meta(checkpoint_meta(weights) if meta is None else meta)
        return self.predictor(model, self.of_config(cfg), {**own, **options})

    def _transform_of(self, name: str) -> dict[str, Any]:
        from zoo.registry import MODELS

        return self.transform(MODELS.entry(name).meta.get("input_size", self.input_size))
