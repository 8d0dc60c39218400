"""Small calls that every generic operator test runs."""

from __future__ import annotations

import torch

from zoo_kernels.routed_attention import routed_attention
from zoo_kernels.testing import Case


def cases() -> dict[str, Case]:
    """Every eager form, weights, repeated regions, keys downsampled, values of another width, one token."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    def call(
        b: int, r: int, s: int, nq: int, nk: int, h: int, d: tuple[int, int], topk: int, *, soft: bool, scale=None
    ) -> Case:
        args = (randn(b, r, nq, h, d[0]), randn(b, s, nk, h, d[0]), randn(b, s, nk, h, d[1]))
        indices = torch.rand(b, r, s, generator=g).topk(topk, -1).indices
        weights = randn(b, r, topk).softmax(-1) if soft else None
        kwargs = {"weights": weights, "scale": scale} if soft else {"scale": scale}
        return Case(routed_attention, (*args, indices), kwargs, batched=(0, 1, 2, 3, *(["weights"] if soft else [])))

    repeated = call(1, 2, 3, 2, 2, 1, (8, 8), 3, soft=False)
    repeated.args[3][:, :, 1:3] = 2
    return {
        "rows": call(2, 3, 3, 15, 15, 1, (8, 8), 2, soft=False),
        "soft": call(1, 3, 3, 9, 9, 2, (8, 8), 2, soft=True),
        "dense": call(1, 3, 3, 4, 4, 2, (12, 12), 2, soft=False, scale=0.2),
        "few-queries": call(1, 4, 4, 3, 3, 1, (16, 16), 1, soft=False),
        "downsampled": call(1, 3, 3, 20, 5, 1, (16, 16), 2, soft=True, scale=0.1),
        "other-keys": call(1, 2, 4, 6, 18, 1, (12, 20), 3, soft=False),
        "repeated": repeated,
        "one-token": call(2, 1, 1, 1, 1, 1, (8, 8), 1, soft=True),
    }
