"""Loading weights into a model, with a report of what fitted, what was adapted and what did not fit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.weights.checkpoint import read_checkpoint, state_dict_of
from zoo.weights.errors import CheckpointError

OnNaN = Literal["error", "warn", "ignore"]


@dataclass
class LoadReport:
    """What :func:`load_weights` did, by key of the model."""

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    #: key -> (shape in the model, shape in the checkpoint)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    #: the importer entry that translated the keys, if any
    converted_by: str | None = None
    #: key -> how its tensor was made to fit
    adapted: dict[str, str] = field(default_factory=dict)
    #: key -> why the checkpoint's tensor was left out, as adapting allows
    dropped: dict[str, str] = field(default_factory=dict)
    #: key -> (element type in the model, in the checkpoint), where one is a number of another kind
    other_dtype: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every key fitted as it is."""
        return self.fits and not (self.adapted or self.dropped)

    @property
    def fits(self) -> bool:
        """Whether every key fitted, or was adapted or dropped by a rule."""
        return not (self.missing or self.unexpected or self.mismatched or self.other_dtype)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        if self.converted_by:
            lines[0] += f", keys translated from {self.converted_by}"
        wrong = {k: f"{k} is {c}, the model has {m}" for k, (m, c) in self.mismatched.items()}
        types = {k: f"{k} is {c}, the model has {m}" for k, (m, c) in self.other_dtype.items()}
        for what, items, separator in (
            ("missing", self.missing, ", "),
            ("unexpected", self.unexpected, ", "),
            ("another shape", list(wrong.values()), "; "),
            ("another kind of number", list(types.values()), "; "),
            ("adapted", [f"{k} {v}" for k, v in self.adapted.items()], "; "),
            ("dropped", [f"{k} ({v})" for k, v in self.dropped.items()], "; "),
        ):
            if items:
                more = f" and {len(items) - 5} more" if len(items) > 5 else ""
                lines.append(f"  {what}: {separator.join(items[:5])}{more}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    strict: bool = True,
    prefer_ema: bool = True,
    adapt: bool = False,
    on_nan: OnNaN = "error",
) -> LoadReport:
    """Load a checkpoint into a model.

    Accepts this project's files, the authors' (where the model's family has an importer) and state dicts. Prefixes
    ``module.`` and ``backbone.`` are understood on either side.

    Args:
        model: a backbone, or a task model around one.
        source: safetensors or torch file, or a state dict.
        strict: raise unless every key fits; otherwise load what fits and report the rest.
        prefer_ema: take the averaged weights of a file that has both.
        adapt: make tables of positions and of biases, and input layers, of another size fit (see
            :mod:`zoo.weights.adapt`), and leave a classifier of other classes as it is initialised; the report says
            what was done. All else is as ``strict`` says.
        on_nan: what to do about weights that are NaN: ``"error"``, ``"warn"`` or ``"ignore"``.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, refused (see :mod:`zoo.weights.checkpoint`), NaN in it or, with ``strict``, of another
            model; the message lists the first keys that differ. The model is unchanged then.
    """
    name = "the state dict" if isinstance(source, Mapping) else os.fspath(source)
    state = state_dict_of(source if isinstance(source, Mapping) else read_checkpoint(source), prefer_ema=prefer_ema)
    check_numbers(state, name, on_nan)
    report, fitting, reading = _match(model, state, name)
    if adapt and not report.exact:
        fitting |= _adapt(model, report, reading)
    if strict and not report.fits:
        raise CheckpointError(f"the checkpoint is of another model than {type(model).__name__}\n{report}")
    if not fitting:
        raise CheckpointError(f"nothing fits: the checkpoint is of another model than {type(model).__name__}\n{report}")
    model.load_state_dict(fitting, strict=False)
    return report


def check_numbers(state: Mapping[str, Tensor], name: str, on_nan: OnNaN = "error") -> None:
    """Raise CheckpointError, or warn, if a tensor of a state dict has NaN in it; the message names the first ones."""
    if on_nan not in ("error", "warn", "ignore"):
        raise ValueError(f"on_nan={on_nan!r}: accepted are 'error', 'warn' and 'ignore'")
    if on_nan == "ignore":
        return
    bad = [k for k, v in state.items() if (v.is_floating_point() or v.is_complex()) and _has_nan(v)]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        message = f"{name} has NaN in {', '.join(bad[:5])}{more}"
        if on_nan == "error":
            raise CheckpointError(f"{message}; it is of a training that failed (on_nan='warn' loads it all the same)")
        warnings.warn(message, stacklevel=3)


def _has_nan(value: Tensor) -> bool:
    if value.dtype.itemsize == 1:  # float8 knows few operations
        value = value.float()
    return bool(torch.isnan(value).any())


def _match(
    model: nn.Module, state: Mapping[str, Tensor], name: str
) -> tuple[LoadReport, dict[str, Tensor], dict[str, Tensor]]:
    """The best reading of ``state`` for ``model``: as it is, with a prefix moved, or through an importer.

    Returns:
        The report, what fits, and the whole reading.
    """
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    best: tuple[LoadReport, dict[str, Tensor], dict[str, Tensor]] | None = None
    for entry, reading in _readings(model, state):
        candidate = _with_added(model, own, reading)
        fitting = {k: v for k, v in candidate.items() if k in own and own[k].shape == v.shape and _like(own[k], v)}
        report = LoadReport(
            source=name,
            loaded=sorted(fitting),
            missing=[k for k in own if k not in candidate],
            unexpected=[k for k in candidate if k not in own],
            mismatched={
                k: (tuple(own[k].shape), tuple(v.shape))
                for k, v in candidate.items()
                if k in own and own[k].shape != v.shape
            },
            converted_by=entry,
            other_dtype={
                k: (str(own[k].dtype), str(v.dtype))
                for k, v in candidate.items()
                if k in own and own[k].shape == v.shape and not _like(own[k], v)
            },
        )
        if report.exact:
            return report, fitting, candidate
        if best is None or len(fitting) > len(best[1]):
            best = report, fitting, candidate
    assert best is not None
    return best


def _like(own: Tensor, value: Tensor) -> bool:
    """Whether one may be copied to the other: both real numbers, both integers, ..."""
    return (own.is_floating_point(), own.is_complex()) == (value.is_floating_point(), value.is_complex())


def _adapt(model: nn.Module, report: LoadReport, candidate: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move what can be adapted, or may be left out, from the report's problems to what was done about them."""
    from zoo.weights.adapt import adapt_tensor, is_head, is_other_classifier

    own, made = model.state_dict(), {}
    for key in list(report.mismatched):
        value, target = candidate[key], own[key]
        found = adapt_tensor(model, key, value, target)
        if found is not None:
            made[key], report.adapted[key] = found
            report.loaded.append(key)
        elif is_other_classifier(model, key, value, target):
            report.dropped[key] = f"of {value.shape[0]} classes, the model has {target.shape[0]}, as initialised"
        else:
            continue
        del report.mismatched[key]
    if getattr(getattr(model, "backbone", model), "num_classes", None) == 0:
        for key in [k for k in report.unexpected if is_head(model, k)]:
            report.unexpected.remove(key)
            report.dropped[key] = "the model has no classifier"
    elif report.dropped or not report.unexpected:
        # a classifier that is built otherwise, or that the checkpoint lacks
        for key in [k for k in report.missing if is_head(model, k)]:
            report.missing.remove(key)
            report.dropped[key] = "not in the checkpoint, as initialised"
    return made


def _with_added(model: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of the network that a model was made of by adapters or prompts: what was added keeps its values.

    Low-rank adapters call a layer's weight ``<name>.base_layer.weight``; a module lists the beginnings of names of what
    it adds as ``added_parameters``. A checkpoint that has these itself, or nothing of the model, is left as it is.
    """
    wrapped = {k.replace(".base_layer.", "."): k for k in own if ".base_layer." in k}
    starts = tuple(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "added_parameters", ())
    )
    added = {k: v for k, v in own.items() if ".lora_" in k or (starts and k.startswith(starts))}
    if not added or added.keys() & state.keys():
        return state
    renamed = {wrapped.get(k, k): v for k, v in state.items()}
    return renamed | added if renamed.keys() & own.keys() else state


def _readings(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """Ways to read the keys of a checkpoint, most literal first; each with the importer entry it used, if any."""
    yield None, dict(state)
    inner = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    if inner:
        yield None, inner
    outer = {k.partition(".")[0] for k in model.state_dict()}
    for prefix in sorted({"backbone"} if hasattr(model, "backbone") else outer if len(outer) == 1 else set()):
        yield None, {f"{prefix}.{k}": v for k, v in state.items()}
    from zoo.weights.importers import readings

    parts = [(model, "")] + [(getattr(model, name, None), f"{name}.") for name in ("backbone", "detector")]
    for part, prefix in parts:
        if not isinstance(part, nn.Module):
            continue
        for keys in (state, inner):
            for entry, converted in readings(part, keys) if keys else ():
                yield entry, {f"{prefix}{k}": v for k, v in converted.items()}
