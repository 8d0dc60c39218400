"""Outputs of a network in full precision: losses and results are not computed in half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def as_float(outputs: Any) -> Any:
    """The same, with half-precision tensors as float32, however they are nested."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if isinstance(outputs, Mapping):
        return {k: as_float(v) for k, v in outputs.items()}
    if isinstance(outputs, list | tuple) and not hasattr(outputs, "_fields"):
        return type(outputs)(as_float(v) for v in outputs)
    return outputs
