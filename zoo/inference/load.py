"""From whatever names a model to its task's predictor, and predictions in one call."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.inference.pipeline import Predictor
from zoo.inference.results import Result, Results

#: What runs a network: PyTorch, or a file that `zoo export` wrote.
RUNTIMES = ("auto", "eager", "onnx", "torch-export", "aoti")
_EXPORTED = (".onnx", ".pt2")


def predict(
    model: Any,
    images: Any,
    *,
    weights: str | os.PathLike[str] | None = None,
    runtime: str = "auto",
    **options: Any,
) -> Results[Any] | Iterator[Result]:
    """See :func:`zoo.api.predict`."""
    own = {k: options.pop(k) for k in ("device", "amp", "compile", "classes", "size", "threads") if k in options}
    if isinstance(model, Predictor):
        if own or weights is not None or runtime != "auto":
            given = [*own, *(["weights"] if weights is not None else []), *(["runtime"] if runtime != "auto" else [])]
            raise ValueError(f"a ready predictor takes no {', '.join(given)}: they are chosen when it is loaded")
        return model(images, **options)
    return load_predictor(model, weights, runtime=runtime, **own)(images, **options)


def load_predictor(
    model: Any, weights: str | os.PathLike[str] | None = None, *, runtime: str = "auto", **options: Any
) -> Predictor[Any]:
    """The predictor of a model: of the task that the model is for.

    Args:
        model: a model name, a config (name or file), a file that ``zoo export`` wrote, a model, or a predictor.
        weights: checkpoint file; for a name without it, the weights that the index knows.
        runtime: one of :data:`RUNTIMES`; "auto" follows from the model.
        **options: ``device``, ``amp``, ``compile``, ``classes`` of :class:`~zoo.inference.pipeline.Predictor`; ``size``
            of the images in pixels; ``threads`` of onnxruntime.

    Raises:
        ValueError: the runtime is unknown or not the model's, or weights are given with an exported file.
        UnknownNameError, FileNotFoundError: no such model, config or file.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r}: accepted are {', '.join(RUNTIMES)}")
    if isinstance(model, Predictor):
        return model
    if is_exported(model):
        return _of_export(Path(model), weights, runtime, options)
    if runtime not in ("auto", "eager"):
        raise ValueError(
            f"runtime={runtime!r} needs a file that zoo export wrote ({', '.join(_EXPORTED)}), not {model}"
        )
    if "threads" in options:
        raise ValueError("threads is for the runtime 'onnx'; PyTorch's are set with torch.set_num_threads")
    return _module(task_of(model)).load_predictor(model, weights, **options)


def is_exported(model: Any) -> bool:
    """Whether ``model`` names a file that ``zoo export`` wrote."""
    return isinstance(model, str | os.PathLike) and Path(model).suffix in _EXPORTED


def _of_export(path: Path, weights: Any, runtime: str, options: dict[str, Any]) -> Predictor[Any]:
    from zoo.export.runtime import load_exported

    if weights is not None:
        raise ValueError(f"{path} is an exported model, which has its weights inside; weights={weights} is not used")
    for name in ("compile", "size"):
        if options.get(name):
            raise ValueError(f"{name} cannot be changed in the exported model {path}; export it again")
    load = {k: options.pop(k) for k in ("device", "threads") if k in options}
    exported = load_exported(path, **load)
    if runtime not in ("auto", exported.runtime):
        raise ValueError(f"runtime={runtime!r}, but {path} is a file for {exported.runtime!r}")
    return _module(exported.facts["task"]).from_export(exported, exported.facts, device=exported.device, **options)


def untrained_predictor(model: str | os.PathLike[str], **options: Any) -> Predictor[Any]:
    """A predictor of a model with the weights that it is initialised with (seed 0): to measure or to try out.

    Args:
        model: a model name or a config.
        **options: ``num_classes`` and ``size``.
    """
    return _module(task_of(model)).untrained_predictor(model, **options)


def task_of(model: Any) -> str:
    """Task of a model name, a model or a config ("classification" ...)."""
    from zoo.registry import MODELS

    if isinstance(model, str) and model in MODELS:
        return MODELS.entry(model).meta.get("task", "classification")
    if isinstance(model, str | os.PathLike):
        from zoo.engine.config import load_config, require_known

        require_known(os.fspath(model))
        kind = load_config(os.fspath(model)).model.get("type")
        module = kind.rpartition(".")[0] if isinstance(kind, str) else kind.__module__
    else:
        module = type(model).__module__
    parts = module.split(".")
    # A model class lives in its task's package; a backbone is a classifier.
    return parts[1] if len(parts) > 2 and parts[0] == "zoo" and parts[1] != "backbones" else "classification"


def _module(task: str) -> Any:
    """The task's ``inference`` module, which defines ``load_predictor`` and ``from_export``."""
    name = f"zoo.{task}.inference"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise
        raise LookupError(f"models of the task {task!r} cannot predict: there is no {name}") from None
