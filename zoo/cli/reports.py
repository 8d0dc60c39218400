"""Metrics that write tables and plots beside their numbers, in a config that is tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def add_reports(config: Any, out: Path, *kinds: type) -> bool:
    """Have the test metrics of these classes write to ``out``, where they have no folder yet; whether there are any."""
    own = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    names = [k.__name__ for k in kinds]
    found = False
    for metric in own:
        kind = metric.get("type") if isinstance(metric, dict) else None
        if kind in kinds or str(kind).rpartition(".")[2] in names:
            metric["out_dir"], found = str(metric.get("out_dir") or out), True
    return found
