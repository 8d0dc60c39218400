"""Arguments given once or for each stage, and the schedule of stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def per_stage(name: str, value: Any, stages: int) -> list[Any]:
    """``value`` for every stage: a list or tuple of ``stages`` entries stays, anything else is repeated.

    Raises:
        ValueError: a sequence of another length.
    """
    if not isinstance(value, (list, tuple)):
        return [value] * stages
    if len(value) != stages:
        raise ValueError(f"{name}={value!r} has {len(value)} entries; the model has {stages} stages")
    return list(value)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of stochastic depth growing linearly with the block, from 0 to ``rate``, split by stage."""
    total = sum(depths)
    rates = [rate * i / max(1, total - 1) for i in range(total)]
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]
