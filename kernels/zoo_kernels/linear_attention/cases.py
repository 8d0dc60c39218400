"""Small calls that every generic operator test runs."""

from __future__ import annotations

import torch

from zoo_kernels.linear_attention import inline_attention, linear_attention, mala_attention, taylor_attention
from zoo_kernels.testing import Case


def cases() -> dict[str, Case]:
    """Every feature map and every form, token counts that no block divides, cross lengths, one token."""
    g = torch.Generator().manual_seed(0)

    def qkv(b: int, h: int, n: int, d: int, dv: int, m: int | None = None) -> tuple[torch.Tensor, ...]:
        sizes = ((n, d), (m or n, d), (m or n, dv))
        return tuple(torch.randn(b, h, *s, generator=g) for s in sizes)

    def case(function: object, shape: tuple[int, ...], **kwargs: object) -> Case:
        on_cpu = bool(kwargs.get("causal")) and kwargs.get("feature_map") in ("exp", "softmax")
        backends = ("reference", "eager") if on_cpu else None
        return Case(function, qkv(*shape), kwargs, batched=(0, 1, 2), backends=backends)  # type: ignore[arg-type]

    def rotated_mala(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        # The position tables are made here: they are constants, of which no gradient is asked.
        position = torch.arange(q.shape[2], device=q.device, dtype=torch.float32)
        angle = position[:, None] * 0.7 ** torch.arange(q.shape[3] // 2, device=q.device).repeat_interleave(2)
        return mala_attention(q, k, v, sin=angle.sin(), cos=angle.cos(), backend=backend)

    return {
        "elu": case(linear_attention, (2, 3, 37, 16, 12, 50)),
        "relu": case(linear_attention, (1, 2, 70, 8, 16), feature_map="relu"),
        "identity": case(linear_attention, (2, 1, 20, 12, 12), feature_map="identity"),
        "exp": case(linear_attention, (2, 2, 33, 16, 16, 20), feature_map="exp"),
        "softmax": case(linear_attention, (2, 2, 45, 12, 20), feature_map="softmax"),
        "causal-elu": case(linear_attention, (2, 2, 75, 16, 12), causal=True),
        "causal-decay": case(
            linear_attention,
            (1, 3, 70, 8, 16),
            feature_map="identity",
            causal=True,
            decay=torch.tensor([0.9, 0.97, 1.0]),
        ),
        "causal-exp": case(linear_attention, (1, 2, 40, 8, 8), feature_map="exp", causal=True),
        "causal-softmax": case(linear_attention, (1, 2, 40, 8, 6), feature_map="softmax", causal=True),
        "one-token": case(linear_attention, (1, 1, 1, 4, 4), causal=True, normalize=False),
        "inline": case(inline_attention, (2, 2, 49, 16, 8)),
        "mala-rotated": case(rotated_mala, (2, 2, 39, 16, 16)),
        "mala-plain": case(mala_attention, (1, 2, 20, 6, 8)),
        "taylor-direct": case(taylor_attention, (1, 3, 30, 8, 8), temperature=torch.rand(3, generator=g) + 0.5),
        "taylor-linear": case(
            taylor_attention,
            (1, 2, 40, 6, 8),
            form="linear",
            scale_output=True,
            coefficients=(0.7, 0.8, 1.3),
        ),
    }
