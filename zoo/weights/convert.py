"""The authors' checkpoints as safetensors under our names, and back."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import __version__
from zoo.complexity import on_meta
from zoo.files import save_atomically
from zoo.registry import MODELS, build
from zoo.weights.checkpoint import read_checkpoint, save_safetensors, state_dict_of
from zoo.weights.download import sha256_of
from zoo.weights.errors import CheckpointError
from zoo.weights.importers import importer
from zoo.weights.inert import as_mapping, plain
from zoo.weights.load import LoadReport, OnNaN, check_numbers

#: bytes that a converted file may have more than its source: tensors that share memory are written one by one
_GROWTH = 4


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did."""

    entry: str
    #: a registered model that the weights are of, where one was given or found
    model: str | None
    tensors: int
    parameters: int
    path: Path


def convert(
    system: str,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    entry: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    model: str | None = None,
    prefer_ema: bool = True,
    on_nan: OnNaN = "error",
) -> Conversion:
    """Write a checkpoint of a system's authors as safetensors under our names.

    Every key has to be known to the importer and, where a model is given or found, every key and shape of the model has
    to be there. The file's metadata says where it comes from.

    Args:
        system: name of the importer.
        source: the authors' file.
        target: the safetensors file, written as a whole or not at all.
        entry: the authors' class; by default each is tried that the importer has.
        kwargs: arguments of the authors' class that the checkpoint is of.
        model: instead, the name of our model that it is of; by default the registered ones are compared.
        prefer_ema: take the averaged weights of a file that has both.
        on_nan: see :func:`zoo.weights.load.load_weights`.

    Raises:
        LookupError: no such system, entry or model.
        ValueError: ``entry`` is needed with ``kwargs``; or the target is no ``.safetensors``.
        CheckpointError: damaged, refused, or not of this system (entry, model); the message says what differs.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: converted weights are written as .safetensors")
    module = importer(system)
    entries = _entries(system, module, entry)
    if kwargs is not None and len(entries) != 1:
        raise ValueError(f"arguments are of one of the authors' classes; say which as entry: {', '.join(entries)}")
    content = read_checkpoint(source)
    state = state_dict_of(content, prefer_ema=prefer_ema)
    check_numbers(state, os.fspath(source), on_nan)
    _check_size(state, source)
    candidates = _convert(module, entries, state, os.fspath(source))
    chosen, converted, name = _choose(module, candidates, kwargs, model, source)
    notes = {
        "system": system,
        "entry": chosen,
        "kwargs": None if kwargs is None else dict(kwargs),
        "model": name,
        "source_file": source.name,
        "source_sha256": sha256_of(source),
        "attnzoo": __version__,
    }
    meta: dict[str, Any] = {"converted_from": notes}
    if classes := _class_names(content):
        meta["dataset_meta"] = {"classes": classes}
    save_safetensors(target, converted, {"format": "pt", "attnzoo_meta": json.dumps(meta)})
    return Conversion(chosen, name, len(converted), sum(v.numel() for v in converted.values()), target)


def revert(
    system: str,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    entry: str | None = None,
) -> Conversion:
    """Write weights of ours under the authors' names, as ``.pth`` (``{"model": state dict}``) or ``.safetensors``.

    Args:
        entry: the authors' class; by default the one that the file's metadata names, or the importer's only one.

    Raises:
        LookupError: no such system or entry.
        ValueError: the target has another suffix, or the entry is not known.
        CheckpointError: the file is damaged, or has keys that the authors' class has not.
    """
    source, target = Path(source), Path(target)
    if target.suffix not in (".pth", ".pt", ".safetensors"):
        raise ValueError(f"{target}: the authors' format is written as .pth, .pt or .safetensors")
    module = importer(system)
    entries = _entries(system, module, entry or metadata(source).get("converted_from", {}).get("entry"))
    if len(entries) > 1:
        raise ValueError(f"{source} does not say of which class it is; give one as entry: {', '.join(entries)}")
    state = state_dict_of(read_checkpoint(source))
    try:
        official = module.revert_state_dict(entries[0], state)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source} is not of {entries[0]}: {error.args[0] if error.args else error}") from error
    if target.suffix == ".safetensors":
        save_safetensors(target, official, {"format": "pt"})
    else:
        copies: dict[Any, Tensor] = {}  # several names of one tensor stay one
        owned = {k: copies.setdefault((v.data_ptr(), v.shape, v.stride()), v.clone()) for k, v in official.items()}
        save_atomically(target, lambda file: torch.save({"model": owned}, file))
    return Conversion(entries[0], None, len(official), sum(v.numel() for v in official.values()), target)


def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a safetensors file of ours says about itself; empty for other files."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get("attnzoo_meta", "{}"))
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    return meta if isinstance(meta, dict) else {}


def _entries(system: str, module: Any, entry: str | None) -> list[str]:
    known = list(getattr(module, "CHECKPOINTS", {}))
    if not known:
        raise LookupError(f"the importer of {system!r} has no networks, so there are no checkpoints to convert")
    if entry is None:
        return known
    if entry not in known:
        raise LookupError(f"{system} has no checkpoints of {entry!r}; there are {', '.join(known)}")
    return [entry]


def official_spec(module: Any, entry: str, kwargs: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What an importer builds for the authors' class and arguments; some read sizes from the state dict, too."""
    accepts = inspect.signature(module.config_from_official).parameters
    more = (state,) if len(accepts) > 2 else ()
    return dict(module.config_from_official(entry, dict(kwargs), *more))


_Candidate = tuple[str, dict[str, Tensor], dict[str, Tensor]]


def _convert(module: Any, entries: list[str], state: dict[str, Tensor], source: str) -> list[_Candidate]:
    """The entries that accept the keys: (entry, the authors' state dict, ours)."""
    found, problems = [], []
    for reading in _readings(state):
        for entry in entries:
            try:
                found.append((entry, reading, module.convert_state_dict(entry, dict(reading))))
            except (KeyError, ValueError) as error:
                problems.append(f"  {entry}: {error.args[0] if error.args else error}")
    if not found:
        raise CheckpointError(f"{source} is of none of these classes:\n" + "\n".join(problems[: len(entries)]))
    return found


def _choose(
    module: Any, candidates: list[_Candidate], kwargs: Mapping[str, Any] | None, model: str | None, source: Path
) -> tuple[str, dict[str, Tensor], str | None]:
    """The candidate that fits the model that is given or found; (entry, our state dict, our model's name).

    Raises:
        CheckpointError: a model is given, and none fits.
    """
    problem: CheckpointError | None = None
    for entry, official, converted in candidates:
        name = model
        try:
            if kwargs is not None:
                spec = official_spec(module, entry, kwargs, official)
                built = _without_memory(partial(build, spec, MODELS))
                _require(built, converted, f"{entry} with these arguments", source)
            elif name is None:
                name = _find_model(module.CHECKPOINTS[entry], converted)
                if name is None and len(candidates) > 1:
                    continue
            else:
                _require(_meta_model(name, converted), converted, name, source)
            return entry, converted, name
        except CheckpointError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    entry, _, converted = candidates[0]
    if not _checks_keys(module, entry):
        raise CheckpointError(
            f"{source} fits no registered model; say which it is of: arguments of {entry}, or a model's name"
        )
    return entry, converted, None


def _checks_keys(module: Any, entry: str) -> bool:
    """Whether an importer refuses unknown keys by itself; some leave that to the model."""
    try:
        module.convert_state_dict(entry, {"no_such.part.weight": torch.zeros(1)})
    except (KeyError, ValueError):
        return True
    return False


def _readings(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The state dict, and its backbone alone (detectors, segmentors and encoders of the authors)."""
    found = [state]
    for prefix in ("backbone.", "encoder."):
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if inner:
            found.append(inner)
    return found


def _without_memory(make: Callable[[], nn.Module]) -> nn.Module:
    """A model on the meta device, or an ordinary one of a class that computes with numbers as it is built."""
    try:
        return on_meta(make)
    except (RuntimeError, NotImplementedError):
        return make()


def _meta_model(name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """A registered model, without memory, with as many classes as the weights have."""
    builder: Callable[..., nn.Module] = MODELS.get(name)
    made = _without_memory(builder)
    own = getattr(made, "num_classes", 0)
    for key, value in made.state_dict().items():
        # Networks with a class "no object" have one output more.
        if key in state and value.ndim == 2 and own and value.shape[0] - own in (0, 1):
            classes = state[key].shape[0] - (value.shape[0] - own)
            if state[key].shape != value.shape and state[key].shape[1:] == value.shape[1:]:
                return _without_memory(partial(builder, num_classes=classes))
    if own and hasattr(made, "reset_classifier") and not any(k.startswith("head") for k in state):
        return _without_memory(partial(builder, num_classes=0))
    return made


def _difference(model: nn.Module, state: Mapping[str, Tensor], name: str) -> LoadReport:
    own = model.state_dict()
    shapes = {k: (tuple(own[k].shape), tuple(v.shape)) for k, v in state.items() if k in own}
    return LoadReport(
        source=name,
        missing=[k for k in own if k not in state],
        unexpected=[k for k in state if k not in own],
        mismatched={k: s for k, s in shapes.items() if s[0] != s[1]},
    )


def _require(model: nn.Module, state: Mapping[str, Tensor], what: str, source: Path) -> None:
    report = _difference(model, state, os.fspath(source))
    if not report.exact:
        text = "\n".join(str(report).splitlines()[1:])
        raise CheckpointError(f"{source} is of another model than {what}\n{text}")


def _find_model(classes: tuple[str, ...], state: Mapping[str, Tensor]) -> str | None:
    """The first registered model of these classes that has just these keys and shapes."""
    for name in MODELS.names():
        builds = getattr(MODELS.get(name), "builds", None)
        if getattr(builds, "__name__", None) in classes:
            try:
                if _difference(_meta_model(name, state), state, name).exact:
                    return name
            except (TypeError, ValueError):  # a model that takes no such number of classes
                continue
    return None


def _check_size(state: Mapping[str, Tensor], source: Path) -> None:
    size = sum(v.numel() * v.element_size() for v in state.values())
    if size > _GROWTH * source.stat().st_size + (1 << 24):
        raise CheckpointError(f"{source} would become {size:,} bytes: its tensors share their memory too often")


def _class_names(content: Any) -> list[str] | None:
    """Class names that mmcv and mmengine write beside the weights."""
    meta = as_mapping((as_mapping(content) or {}).get("meta"))
    if not meta:
        return None
    names = meta.get("CLASSES") or (as_mapping(meta.get("dataset_meta")) or {}).get("classes")
    names = plain(names)
    return [str(n) for n in names] if isinstance(names, list) and names else None
