"""Small calls that every generic operator test runs."""

from __future__ import annotations

import torch

from zoo_kernels.testing import Case
from zoo_kernels.window_attention import window_attention, window_cross_attention


def cases() -> dict[str, Case]:
    """Odd maps, shifts, stripes, both kinds of padding, one token, and the cross form."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    def own(
        b: int, h: int, w: int, c: int, *, window: tuple[int, int], bias: bool, pad: bool, **kwargs: object
    ) -> Case:
        n, heads = window[0] * window[1], 3
        return Case(
            window_attention,
            (randn(b, h, w, 3 * c),),
            {
                "num_heads": heads,
                "window": window,
                "bias": randn(heads, n, n) if bias else None,
                "pad_value": randn(3 * c) if pad else None,
                **kwargs,
            },
        )

    return {
        "swin-shift-pad": own(2, 7, 13, 36, window=(7, 7), shift=(3, 3), bias=True, pad=True),
        "shift-hidden-pad": own(1, 5, 6, 24, window=(4, 4), shift=(2, 1), bias=True, pad=False),
        "whole-windows": own(1, 8, 8, 48, window=(4, 4), bias=True, pad=False),
        "stripes": own(1, 6, 8, 24, window=(6, 2), bias=False, pad=False),
        "one-token": own(1, 1, 1, 6, window=(1, 1), bias=True, pad=False),
        "window-larger-than-map": own(1, 2, 3, 12, window=(4, 5), bias=True, pad=False, scale=0.5),
        "cross": Case(
            window_cross_attention,
            (randn(2, 7, 4, 36), randn(2, 4, 2, 72)),
            {"num_heads": 3, "window": (4, 4), "kv_window": (2, 2), "bias": randn(3, 16, 4)},
            batched=(0, 1),
        ),
    }
