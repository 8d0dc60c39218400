"""What can be exported: the smallest model of every class in the registry, tried with every format."""

from __future__ import annotations

import inspect
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.export.capture import ExportError
from zoo.export.model import export_model
from zoo.registry import MODELS, accepted_arguments

#: Arguments that say how deep a model is; one block a stage has all the operators that more blocks have.
_DEPTHS = ("depth", "depths", "num_layers", "layers")
#: Side of the images that models for larger ones are tried with.
_SIDE = 64


@dataclass(frozen=True)
class Representative:
    """A class of models, stood for by its smallest named model.

    Attributes:
        kind: name of the class.
        name: of the model.
        family, task: of the model.
        parameters: their number.
    """

    kind: str
    name: str
    family: str
    task: str
    parameters: int


@dataclass(frozen=True)
class Finding:
    """Whether a class of models goes into a format.

    Attributes:
        representative: the model that was tried.
        format: of the file.
        dynamic: what could be left open: "all", "batch" or "none"; None where the export failed.
        error: the largest relative error against PyTorch.
        seconds: that the export took.
        reason: why it failed, or why less was left open than asked for.
    """

    representative: Representative
    format: str
    dynamic: str | None
    error: float | None
    seconds: float
    reason: str = ""


def representatives(task: str | None = None) -> list[Representative]:
    """The smallest model of each class, by family and class; of all tasks or of one."""
    from zoo.complexity import count_parameters, on_meta
    from zoo.weights.index import load_index

    index = load_index()  # knows most sizes; building every model takes seconds
    smallest: dict[str, Representative] = {}
    for name in MODELS.names():
        entry = MODELS.entry(name)
        if task not in (None, entry.meta.get("task")):
            continue
        kind = getattr(entry.builder, "builds", entry.builder).__name__
        count = index[name].params if name in index else count_parameters(on_meta(entry.builder))
        if kind not in smallest or count < smallest[kind].parameters:
            meta = entry.meta
            smallest[kind] = Representative(kind, name, meta.get("family", ""), meta.get("task", ""), count)
    return sorted(smallest.values(), key=lambda r: (r.task, r.family, r.kind))


def build_small(name: str, num_classes: int = 5) -> tuple[nn.Module, int]:
    """A named model with seed 0, with one block a stage where its depth can be chosen, and a side of its images."""
    entry = MODELS.entry(name)
    known = accepted_arguments(entry.builder)[0]
    side = entry.meta.get("input_size", 224)
    side = side if side <= _SIDE else _SIDE
    arguments: dict[str, Any] = {"num_classes": num_classes}
    for key in _DEPTHS:
        depth = _default(entry.builder, key) if key in known else None
        if isinstance(depth, int):
            arguments[key] = 1
        elif isinstance(depth, list | tuple) and all(isinstance(d, int) for d in depth):
            arguments[key] = (1,) * len(depth)
    # Fewer blocks first; a class that has its reasons for more is taken as it is.
    for attempt in (arguments, {"num_classes": num_classes}):
        try:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                model = entry.builder(**attempt).eval()
            with torch.inference_mode():
                model(torch.zeros(1, 3, side, side))
            return model, side
        except (ValueError, RuntimeError, TypeError, IndexError):
            if len(attempt) == 1:
                raise
    raise AssertionError("not reached")


def _default(builder: Any, name: str) -> Any:
    preset = getattr(builder, "preset", {})
    if name in preset:
        return preset[name]
    for cls in inspect.getmro(getattr(builder, "builds", object)):
        if "__init__" in cls.__dict__:
            found = inspect.signature(cls.__dict__["__init__"]).parameters.get(name)
            if found is not None:
                return None if found.default is inspect.Parameter.empty else found.default
    return None


def try_export(representative: Representative, format: str, dynamic: str = "batch") -> Finding:
    """Export a small model of a class into a folder that is removed, and say how it went."""
    from zoo.classification.inference import Classifier

    model, side = build_small(representative.name)
    predictor = Classifier(model, dict(size=side), name=representative.name, device="cpu")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("m.onnx" if format == "onnx" else "m.pt2")
        try:
            report = export_model(predictor, file, format=format, dynamic=dynamic)
        except ExportError as error:
            return Finding(representative, format, None, None, time.perf_counter() - started, str(error))
    seconds = time.perf_counter() - started
    return Finding(representative, format, report.dynamic, report.max_error, seconds, " ".join(report.notes))
