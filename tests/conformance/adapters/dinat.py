"""DiNAT's fixtures: the same classes as NAT's, with maps as [B, H, W, C]."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor


def _sibling(name: str) -> ModuleType:
    """Another adapter of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"conformance_adapter_{name}", Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_nat = _sibling("nat")
NETWORKS = _nat.NETWORKS


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs under the authors' names, computed by our model with the authors' weights."""
    return _nat.run(entry, kwargs, state, inputs)
