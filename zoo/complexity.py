"""Parameters and FLOPs of a model, counted without computing anything (on the ``meta`` device)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, image_size: int | Sequence[int], in_chans: int = 3) -> int:
    """Multiply-accumulates of one image ("FLOPs" as papers give them): matrix products, convolutions, attention.

    Args:
        model: takes ``[1, in_chans, H, W]``, or volumes ``[1, in_chans, X, Y, Z]``, or bags ``[1, N, D]``.
        image_size: pixels, one number of a square, (H, W), or (X, Y, Z) of a volume, or (N, D) of a bag.
        in_chans: channels; 0 for an input without that axis.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    device = next(model.parameters()).device
    training = model.training
    trainable = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in trainable:  # the counter watches gradients of modules' inputs, and a parameter can be one
        p.requires_grad_(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *([in_chans] if in_chans else []), *size, device=device))
    finally:
        for p in trainable:
            p.requires_grad_(True)
        model.train(training)
    return counter.get_total_flops() // 2  # torch counts a multiply and an add as two


M = TypeVar("M", bound=nn.Module)


def on_meta(build: Callable[[], M]) -> M:
    """Build a model without memory for its weights."""
    with torch.device("meta"):
        return build()
