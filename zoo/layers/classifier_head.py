"""Norm, mean over the tokens, linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear


class ClassifierHead(nn.Module):
    """Logits ``[B, num_classes]`` of tokens ``[B, N, C]``.

    Args:
        dim: channels C.
        num_classes: classes.
        norm_eps: epsilon of a LayerNorm before the mean; None for no norm.
    """

    def __init__(self, dim: int, num_classes: int, norm_eps: float | None = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm_eps is not None else nn.Identity()
        self.fc = TokenLinear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.norm(tokens).mean(1))
