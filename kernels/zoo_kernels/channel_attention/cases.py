"""Small calls that every generic operator test runs."""

from __future__ import annotations

import torch

from zoo_kernels.channel_attention import channel_attention
from zoo_kernels.testing import Case


def cases() -> dict[str, Case]:
    """Both forms, with and without biases, odd widths, one token."""
    g = torch.Generator().manual_seed(0)

    def call(b: int, n: int, c: int, heads: int, *, bias: bool) -> Case:
        x = torch.randn(b, n, c, generator=g)
        qkv_weight, proj_weight = (torch.randn(m * c, c, generator=g) * c**-0.5 for m in (3, 1))
        qkv_bias, proj_bias = (torch.randn(m * c, generator=g) for m in (3, 1))
        args = (x, qkv_weight, qkv_bias if bias else None, proj_weight, proj_bias if bias else None)
        kwargs = {"num_heads": heads, "scale": n**-0.5 * (c // heads) ** -0.5}
        # The kernels serve the Gram form only.
        return Case(channel_attention, args, kwargs, backends=None if n >= 2 * c else ("reference", "eager"))

    return {
        "gram": call(2, 150, 48, 3, bias=True),
        "gram-no-bias": call(1, 91, 36, 3, bias=False),
        "ordinary": call(2, 40, 48, 2, bias=True),
        "one-token": call(2, 1, 12, 3, bias=True),
    }
