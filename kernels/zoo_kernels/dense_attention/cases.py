"""Small calls that every generic operator test runs."""

from __future__ import annotations

import torch

from zoo_kernels.dense_attention import SCORES, dense_attention
from zoo_kernels.testing import Case


def cases() -> dict[str, Case]:
    """Each score with and without a bias, odd sizes, values of another width than the keys, one token."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    found = {}
    for score in SCORES:
        # The kernels leave softmax to PyTorch.
        backends = ("reference", "eager") if score == "softmax" else None
        qkv = (randn(2, 3, 17, 12), randn(2, 3, 23, 12), randn(2, 3, 23, 20))
        found[f"{score}-bias"] = Case(
            dense_attention, qkv, {"score": score, "bias": randn(1, 3, 17, 23)}, batched=(0, 1, 2), backends=backends
        )
        qkv = (randn(2, 1, 9, 16), randn(2, 1, 40, 16), randn(2, 1, 40, 16))
        found[score] = Case(dense_attention, qkv, {"score": score, "scale": 0.3}, batched=(0, 1, 2), backends=backends)
        qkv = (randn(1, 2, 1, 8), randn(1, 2, 1, 8), randn(1, 2, 1, 8))
        found[f"{score}-one-token"] = Case(dense_attention, qkv, {"score": score}, batched=(0, 1, 2), backends=backends)
    return found
