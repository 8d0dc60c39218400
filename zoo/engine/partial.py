"""Parts of a model: those that are not trained, and those that begin anew although a checkpoint has them.

Parts are named by patterns: ``backbone.stages.0`` is everything in that module, ``*.norm.*`` whatever matches.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from zoo.registry import did_you_mean
from zoo.weights.errors import CheckpointError
from zoo.weights.load import LoadReport, load_weights


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is, lies in, or looks like one of the patterns."""
    return any(name == p or name.startswith(f"{p}.") or fnmatch.fnmatchcase(name, p) for p in patterns)


def _patterns(key: str, given: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The patterns of a config's key.

    Raises:
        ValueError: they are no texts, or one of them fits no name.
    """
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"{key}={given!r}: accepted are patterns of names, such as 'backbone.stages.0'")
        if not any(matches(n, (pattern,)) for n in names):
            modules = {n[:i] for n in names for i, c in enumerate(n) if c == "."}
            raise ValueError(f"{key}: nothing in the model is named {pattern!r}{did_you_mean(pattern, modules)}")
    return patterns


def freeze(model: nn.Module, patterns: str | Sequence[str]) -> list[str]:
    """Train the named parameters no more; gives their names.

    Raises:
        ValueError: a pattern fits no parameter, or nothing would be left to train.
    """
    parameters = dict(model.named_parameters())
    chosen = _patterns("freeze", patterns, list(parameters))
    frozen = [n for n in parameters if matches(n, chosen)]
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"freeze={patterns!r} leaves no parameter to train")
    return frozen


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Modules with statistics of their own (batch norms), all of whose parameters are frozen."""
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    own = [(m, list(m.parameters(recurse=False))) for m in norms]
    return [m for m, parameters in own if parameters and not any(p.requires_grad for p in parameters)]


class KeepFrozen(Hook):
    """Keeps frozen normalisations in evaluation mode, so that their statistics do not move.

    Args:
        modules: see :func:`frozen_norms`.
    """

    priority = "VERY_HIGH"

    def __init__(self, modules: Sequence[nn.Module]):
        self.modules = list(modules)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """The loop has put the whole model into training mode."""
        for module in self.modules:
            module.eval()


@torch.no_grad()
def load_except(
    model: nn.Module, source: str | os.PathLike[str], patterns: str | Sequence[str] = (), *, strict: bool = True
) -> LoadReport:
    """Load a checkpoint, but for the parts that are to begin anew; these the report lists as dropped.

    Args:
        model: the model.
        source: see :func:`zoo.weights.load.load_weights`.
        patterns: of names of parameters and buffers that stay as they are.
        strict: everything else has to fit.

    Raises:
        ValueError: a pattern fits no name.
        CheckpointError: see :func:`zoo.weights.load.load_weights`.
    """
    if not patterns:
        return load_weights(model, source, strict=strict)
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    chosen = _patterns("load_except", patterns, list(own))
    kept = {k: v.clone() for k, v in own.items() if matches(k, chosen)}
    report = load_weights(model, source, strict=False)
    for key, value in kept.items():
        own[key].copy_(value)
    report.loaded = [k for k in report.loaded if k not in kept]
    report.missing = [k for k in report.missing if k not in kept]
    report.unexpected = [k for k in report.unexpected if not matches(k, chosen)]
    report.mismatched = {k: v for k, v in report.mismatched.items() if k not in kept}
    report.other_dtype = {k: v for k, v in report.other_dtype.items() if k not in kept}
    report.dropped |= dict.fromkeys(kept, "as initialised, by load_except")
    if strict and not report.fits:
        raise CheckpointError(f"the checkpoint is of another model than {type(model).__name__}\n{report}")
    return report
