"""Guided context gating: a map gated by itself after a global context was added to it (retinal images).

Guided Context Gating: Learning to Leverage Salient Lesions in Retinal Fundus Images (arXiv 2406.13126). Authors' code:
github.com/TejaCherukuri/Guided-Context-Gating (MIT), Keras. Here channels come first, and ``normalised_context`` has
the softmax that the paper describes; the authors' code takes it over one element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.registry import MODELS, build

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
}


class GlobalContext(nn.Module):
    """x + T(sum over places of w x), T a bottleneck of two 1x1 convolutions without bias.

    Args:
        dim: channels.
        reduction: the bottleneck has ``dim // reduction`` channels.
        activation: of T, one of :data:`ACTIVATIONS`.
        normalised_context: w is the softmax over places of a 1x1 convolution; else w is 1 everywhere, as the authors
            compute it, and the convolution has no influence.

    Raises:
        ValueError: an unknown activation, or a bottleneck without channels.
    """

    def __init__(self, dim: int, reduction: int = 8, activation: str = "linear", normalised_context: bool = False):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: accepted are {', '.join(map(repr, ACTIVATIONS))}")
        if reduction < 1 or dim // reduction < 1:
            raise ValueError(f"reduction={reduction}: accepted is 1 to dim={dim}")
        self.normalised_context = normalised_context
        self.context = nn.Conv2d(dim, 1, 1, bias=False)
        self.context.requires_grad_(normalised_context)
        self.squeeze = nn.Conv2d(dim, dim // reduction, 1, bias=False)
        self.expand = nn.Conv2d(dim // reduction, dim, 1, bias=False)
        self.activation = ACTIVATIONS[activation]()
        for layer in (self.context, self.squeeze, self.expand):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, dim, H, W]`` to the same shape."""
        if self.normalised_context:
            weights = self.context(x).flatten(2).softmax(-1)  # [B, 1, H*W]
            context = (x.flatten(2) * weights).sum(-1)[..., None, None]
        else:
            context = x.sum((2, 3), keepdim=True)
        return x + self.activation(self.expand(self.squeeze(context).relu()))


class ContextGate(nn.Module):
    """x sigmoid(psi LayerNorm(relu(relu(W_x x) + relu(W_g g) + b)) + b'), place by place.

    Args:
        dim: channels of both maps.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.W_x, self.W_g = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.norm = nn.LayerNorm(dim, eps=1e-3)
        self.psi = nn.Conv2d(dim, 1, 1)
        self.psi_bias = nn.Parameter(torch.zeros(1))

    def attention(self, x: Tensor, g: Tensor) -> Tensor:
        """``[B, 1, H, W]`` between 0 and 1."""
        total = (self.W_x(x).relu() + self.W_g(g).relu() + self.bias[:, None, None]).relu()
        total = self.norm(total.movedim(1, -1)).movedim(-1, 1)  # over the channels
        return (self.psi(total) + self.psi_bias).sigmoid()

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """Maps ``[B, dim, H, W]`` to the gated x."""
        return self.attention(x, g) * x


class GuidedContextGating(nn.Module):
    """Global context, a gate that it steers, and the mean over places; what gives maps is before it.

    Args:
        dim, reduction, activation, normalised_context: see :class:`GlobalContext`.
    """

    def __init__(self, dim: int, reduction: int = 8, activation: str = "linear", normalised_context: bool = False):
        super().__init__()
        self.context = GlobalContext(dim, reduction, activation, normalised_context)
        self.gate = ContextGate(dim)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, dim, H, W]`` to the map with its context and the gated map, of the same shape."""
        context = self.context(x)
        return context, self.gate(x, context)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, dim, H, W]`` to ``[B, dim]``."""
        return self.maps(x)[1].mean((2, 3))


class GuidedContextClassifier(nn.Module):
    """Classifier of images: a backbone's last map, gated, and two hidden layers.

    Args:
        backbone: a registered backbone's name, a spec, or a module that gives maps and has ``out_channels``.
        num_classes: classes.
        reduction, activation, normalised_context: see :class:`GlobalContext`.
    """

    def __init__(
        self,
        backbone: str | Mapping[str, Any] | nn.Module,
        num_classes: int,
        reduction: int = 8,
        activation: str = "linear",
        normalised_context: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = build(dict(backbone) if isinstance(backbone, Mapping) else backbone, MODELS, num_classes=0)
        dim = self.backbone.out_channels[-1]
        self.gating = GuidedContextGating(dim, reduction, activation, normalised_context)
        layers: list[nn.Module] = []
        for width, dropout in ((512, 0.3), (256, 0.2)):
            layers += [nn.Linear(dim, width), nn.ReLU(), nn.BatchNorm1d(width, eps=1e-3), nn.Dropout(dropout)]
            dim = width
        self.head = nn.Sequential(*layers, nn.Linear(dim, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of images; their softmax is what the authors' model gives."""
        return self.head(self.gating(self.backbone(x)[-1]))
