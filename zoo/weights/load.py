"""Loading weights into a model, with a report of what fitted and what did not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from zoo.weights.checkpoint import CheckpointError, read_checkpoint, state_dict_of


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

    @property
    def exact(self) -> bool:
        """Whether every key fitted."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        if self.converted_by:
            lines[0] += f", keys translated from {self.converted_by}"
        for what, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
                lines.append(f"  {what}: {', '.join(keys[:5])}{more}")
        shown = [f"{k} is {c}, the model has {m}" for k, (m, c) in list(self.mismatched.items())[:5]]
        if shown:
            more = f" and {len(self.mismatched) - 5} more" if len(self.mismatched) > 5 else ""
            lines.append(f"  another shape: {'; '.join(shown)}{more}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    strict: bool = True,
    prefer_ema: bool = True,
) -> LoadReport:
    """Load a checkpoint into a model.

    Accepts this project's files, the authors' (where the model's family has an importer) and state dicts. Prefixes
    ``module.`` and ``backbone.`` are understood on either side.

    Args:
        model: a backbone, or a task model around one.
        source: safetensors or torch file, or a state dict.
        strict: raise unless every key fits; otherwise load what fits and report the rest.
        prefer_ema: take the averaged weights of a file that has both.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, refused (see :mod:`zoo.weights.checkpoint`) or, with ``strict``, of another model;
            the message lists the first keys that differ. The model is unchanged then.
    """
    name = "the state dict" if isinstance(source, Mapping) else os.fspath(source)
    state = state_dict_of(source if isinstance(source, Mapping) else read_checkpoint(source), prefer_ema=prefer_ema)
    report, fitting = _match(model, state, name)
    if strict and not report.exact:
        raise CheckpointError(f"the checkpoint is of another model than {type(model).__name__}\n{report}")
    if not fitting:
        raise CheckpointError(f"nothing fits: the checkpoint is of another model than {type(model).__name__}\n{report}")
    model.load_state_dict(fitting, strict=False)
    return report


def _match(model: nn.Module, state: Mapping[str, Tensor], name: str) -> tuple[LoadReport, dict[str, Tensor]]:
    """The best reading of ``state`` for ``model``: as it is, with a prefix moved, or through an importer."""
    own = model.state_dict()
    best: tuple[LoadReport, dict[str, Tensor]] | None = None
    for entry, candidate in _readings(model, state):
        fitting = {k: v for k, v in candidate.items() if k in own and own[k].shape == v.shape}
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
        )
        if report.exact:
            return report, fitting
        if best is None or len(fitting) > len(best[1]):
            best = report, fitting
    assert best is not None
    return best


def _readings(model: nn.Module, state: Mapping[str, Tensor]):
    """Ways to read the keys of a checkpoint, most literal first; each with the importer entry it used, if any."""
    yield None, dict(state)
    inner = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    if inner:
        yield None, inner
    if hasattr(model, "backbone"):
        yield None, {f"backbone.{k}": v for k, v in state.items()}
    from zoo.weights.importers import readings

    backbone = getattr(model, "backbone", model)
    prefix = "backbone." if backbone is not model else ""
    for entry, converted in readings(backbone, state):
        yield entry, {f"{prefix}{k}": v for k, v in converted.items()}
