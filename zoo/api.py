"""The Python front door: models by name, lists by pattern, weights, predictions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo.registry import MIXERS, MODELS, accepted_arguments, check_arguments
from zoo.weights.load import LoadReport, load_weights

if TYPE_CHECKING:
    from zoo.backbones.base import Backbone
    from zoo.inference.results import Result, Results

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
        weights: a checkpoint file to load instead. Tables of positions, and an input layer, of another size are
            adapted; a classifier of another size is left as initialised.
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
        load_weights(model, weights, adapt=True)
    return model


def list_models(pattern: str = "*", **meta: Any) -> list[str]:
    """Names of the models that match a glob pattern; ``task=`` and ``family=`` filter further."""
    return MODELS.names(pattern, **meta)


def list_mixers(pattern: str = "*") -> list[str]:
    """Names of the token mixers that match a glob pattern; each fits the hosts ``vit_*`` and ``pyramid_*``."""
    return MIXERS.names(pattern)


def predict(
    model: Any, images: Any, *, weights: str | os.PathLike[str] | None = None, **options: Any
) -> Results[Any] | Iterator[Result]:
    """Predictions of a model on images: a list of the task's typed results, one an image, in order.

    Args:
        model: a model name, a config (name or file), a file that ``zoo export`` wrote, a model, or a predictor.
        images: a path of an image or a video, a folder, a glob pattern, an address (``allow_urls=True``), bytes of a
            file, a PIL image, an array ``[H, W, C]``, a tensor ``[C, H, W]``, batches of these, or an iterable of any
            of them (:mod:`zoo.inference.sources`, :mod:`zoo.inference.arrays`).
        weights: checkpoint file; for a name without it, the weights that the index knows.
        **options: of loading: ``device``, ``amp``, ``compile``, ``classes``, ``size``, ``runtime``
            (:func:`zoo.inference.load.load_predictor`); of the call: ``batch_size``, ``stream``, ``on_error``,
            ``keep_images``, ``workers`` (:meth:`zoo.inference.pipeline.Predictor.__call__`), ``allow_urls``,
            ``frames`` ... (:class:`zoo.inference.sources.SourceOptions`); of the task: ``topk``.

    Returns:
        A list of results; with ``stream=True`` an iterator that reads images as results are taken.
    """
    from zoo.inference.load import predict as run

    return run(model, images, weights=weights, **options)
