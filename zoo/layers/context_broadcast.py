"""Context broadcasting: the mean over all tokens is added to each of them.

Scratching Visual Transformer's Back with Uniform Attention (ICCV 2023, arXiv 2210.08457).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MODES = ("cb", "cb_s")


class ContextBroadcast(nn.Module):
    """``(x + mean x) / 2``, or with a learned weight for each channel ``x + scale * mean x``.

    Args:
        dim: channels C.
        mode: "cb" (the paper's CB, no parameters) or "cb_s" (CB_S, dimension-scaled).
        initial_scale: where the weights of "cb_s" start.

    Raises:
        ValueError: ``mode`` is neither.
    """

    no_decay = ("scale",)

    def __init__(self, dim: int, mode: str = "cb", initial_scale: float = 0.5):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: accepted are {', '.join(map(repr, MODES))}")
        self.mode = mode
        self.scale = nn.Parameter(torch.full((dim,), float(initial_scale))) if mode == "cb_s" else None

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C]``, and ``[B, P, C]`` where there are prefix tokens, which count in the mean, to the same."""
        mean = x.flatten(1, 2).mean(1)  # [B, C]
        if prefix is None:
            return self._add(x, mean[:, None, None])
        positions, P = x.shape[1] * x.shape[2], prefix.shape[1]
        mean = (mean * positions + prefix.sum(1)) / (positions + P)
        return self._add(x, mean[:, None, None]), self._add(prefix, mean[:, None])

    def _add(self, x: Tensor, mean: Tensor) -> Tensor:
        return 0.5 * (x + mean) if self.scale is None else x + self.scale * mean

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"
