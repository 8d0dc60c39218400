"""Calls of super tokens that the tests of all operators run."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.super_token import back_project, super_token
from zoo_kernels.testing import Case


def normal(*shape: int, seed: int) -> Tensor:
    """Normal numbers from a fixed seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cases() -> dict[str, Case]:
    """Whole and cut cells, several iterations, both gradient rules, one pixel, large features, the way back."""
    affinity = normal(2, 3, 4, 9, 6, seed=2).softmax(3)
    return {
        "one-iteration": Case(super_token, (normal(2, 6, 8, 16, seed=3),), {"cell": (3, 4)}),
        "cut-cells": Case(super_token, (normal(2, 7, 5, 12, seed=4),), {"cell": 3, "iterations": 2}),
        "affinity-grad": Case(
            super_token, (normal(1, 7, 5, 12, seed=5),), {"cell": (4, 3), "iterations": 2, "affinity_grad": True}
        ),
        "one-pixel": Case(super_token, (normal(1, 1, 1, 3, seed=6),), {"cell": 1}),
        "large": Case(super_token, (100 * normal(1, 4, 4, 8, seed=7),), {"cell": 2}),
        "back": Case(
            back_project, (normal(2, 3, 4, 10, seed=8), affinity), {"cell": (2, 3), "size": (5, 11)}, batched=(0, 1)
        ),
    }
