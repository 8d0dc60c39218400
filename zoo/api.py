"""The Python front door: models by name, lists by pattern, weights, predictions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.registry import MIXERS, MODELS, accepted_arguments, check_arguments
from zoo.weights.load import LoadReport, load_weights

if TYPE_CHECKING:
    from zoo.backbones.base import Backbone
    from zoo.classification.inference import Prediction

__all__ = ["LoadReport", "create_model", "list_mixers", "list_models", "load_weights", "predict"]


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    mixer: Any = None,
    **kwargs: Any,
) -> Backbone:
    """Build a model by name.

    Args:
        name: one of :func:`list_models`.
        pretrained: load the weights that the index knows for this model.
        weights: a checkpoint file to load instead; a classifier of another size is then left as initialised.
        num_classes: size of the classifier; 0 for none (calling the model gives maps); None for the model's own.
        features_only: give a tuple of maps ``[B, C_i, H/s_i, W/s_i]``; ``out_channels`` and ``strides`` describe them.
        out_indices: which stages those maps are of; all by default.
        mixer: for the hosts (``vit_*``, ``pyramid_*``): a mixer's name, or ``dict(type=name, **arguments)``.
        **kwargs: further arguments of the model's class.

    Raises:
        UnknownNameError: no such model; the nearest names are given.
        TypeError: the model takes no such argument; the nearest is given.
        WeightsUnavailableError, CheckpointError: the weights cannot be had or do not fit.
    """
    builder = MODELS.get(name)
    if mixer is not None:
        if "mixer" not in accepted_arguments(builder)[0]:
            hosts = [n for n in MODELS.names() if "mixer" in accepted_arguments(MODELS.get(n))[0]]
            raise TypeError(f"{name} has a mixer of its own; models that take any mixer are {', '.join(hosts)}")
        kwargs["mixer"] = mixer
    if features_only:
        if num_classes:
            raise ValueError(f"num_classes={num_classes} with features_only=True: feature maps have no classifier")
        num_classes = 0
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    if out_indices is not None:
        kwargs["out_indices"] = tuple(out_indices)
    check_arguments(builder, kwargs, where=name)
    model = builder(**kwargs)
    if weights is None and pretrained:
        from zoo.weights.hub import resolve_weights

        weights = resolve_weights(name)
    if weights is not None:
        _load_adapted(model, weights)
    return model


def _load_adapted(model: Backbone, weights: str | os.PathLike[str]) -> None:
    """Load weights of which only the classifier may differ."""
    from zoo.weights.checkpoint import CheckpointError

    report = load_weights(model, weights, strict=False)
    head = {n for n, _ in model.named_parameters() if model.layer_id(n) == model.num_layers() - 1}
    left = [k for k in (*report.missing, *report.mismatched) if k not in head]
    # A model without a classifier leaves the checkpoint's unused; no other key may be left over.
    left += [] if model.num_classes == 0 else report.unexpected
    if left:
        raise CheckpointError(f"the checkpoint is of another model than {type(model).__name__}\n{report}")


def list_models(pattern: str = "*", **meta: Any) -> list[str]:
    """Names of the models that match a glob pattern; ``task=`` and ``family=`` filter further."""
    return MODELS.names(pattern, **meta)


def list_mixers(pattern: str = "*") -> list[str]:
    """Names of the token mixers that match a glob pattern; each fits the hosts ``vit_*`` and ``pyramid_*``."""
    return MIXERS.names(pattern)


def predict(model: Any, images: Any, **kwargs: Any) -> Iterator[Prediction]:
    """Predictions of a model on images; see :func:`zoo.classification.inference.predict`."""
    from zoo.classification.inference import predict as run

    return run(model, images, **kwargs)
