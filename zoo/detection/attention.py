"""Where the queries of a detector look: sampling points of deformable decoders, attention maps of dense ones.

Forward hooks read what the decoder's attentions are given, so that any network of the family can be asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.conditional_transformer import ProjectedAttention
from zoo.detection.ms_deform import MSDeformAttn


@dataclass
class LayerAttention:
    """What one decoder layer reads, of either kind.

    Attributes:
        name: of the module.
        points: ``[B, Q, N, 2]`` x, y in 0 ... 1 of the padded image; None for dense attention.
        weights: of the points ``[B, Q, N]``, which add up to the number of heads; or of the tokens of the last map
            ``[B, Q, H*W]``, which add up to 1.
        references: ``[B, Q, 2 or 4]`` points or boxes that the points lie around.
    """

    name: str
    weights: Tensor
    points: Tensor | None = None
    references: Tensor | None = None


@dataclass
class Recorded:
    """What a forward pass recorded.

    Attributes:
        layers: decoder layers in their order.
    """

    layers: list[LayerAttention] = field(default_factory=list)


def sampling_points(
    attention: MSDeformAttn, query: Tensor, reference_points: Tensor, shapes: Any
) -> tuple[Tensor, Tensor]:
    """Points ``[B, Q, heads * L * P, 2]`` (x, y in 0 ... 1) and weights ``[B, Q, heads * L * P]`` that it reads.

    Source: Deformable DETR (arXiv:2010.04159), appendix A.3 (points) and A.4 (boxes).
    """
    B, Q, _ = query.shape
    heads, levels, count = attention.n_heads, attention.n_levels, attention.n_points
    offsets = attention.sampling_offsets(query).view(B, Q, heads, levels, count, 2)
    weights = attention.attention_weights(query).view(B, Q, heads, levels * count).softmax(-1)
    centres = reference_points[:, :, None, :, None, :2]  # [B, Q, 1, L, 1, 2]
    if reference_points.shape[-1] == 2:
        size = torch.tensor([[w, h] for h, w in shapes], dtype=query.dtype, device=query.device)  # [L, 2]
        points = centres + offsets / size[:, None]
    else:
        points = centres + offsets / count * reference_points[:, :, None, :, None, 2:] * 0.5
    return points.flatten(2, 4), weights.flatten(2)


@contextmanager
def recording(network: nn.Module) -> Iterator[Recorded]:
    """Record the cross-attention of every decoder layer during the forward passes inside.

    Raises:
        ValueError: the network has no decoder whose attention can be read.
    """
    recorded, handles = Recorded(), []

    def deformable(name: str) -> Any:
        def hook(module: MSDeformAttn, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            names = ("query", "reference_points", "value", "spatial_shapes")
            given = {**dict(zip(names, args)), **kwargs}
            reference = given["reference_points"]
            points, weights = sampling_points(module, given["query"], reference, given["spatial_shapes"])
            recorded.layers.append(LayerAttention(name, weights, points, reference[:, :, 0]))

        return hook

    def dense(name: str) -> Any:
        def hook(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            given = {**dict(zip(("query", "key", "value"), args)), **kwargs, "need_weights": True}
            weights = module.forward(**given)[1]  # forward itself: hooks are not called again
            assert weights is not None
            recorded.layers.append(LayerAttention(name, weights))

        return hook

    def projected(name: str) -> Any:
        def hook(module: ProjectedAttention, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            given = {**dict(zip(("q", "k", "v", "mask"), args)), **kwargs}
            q, k = (given[x].unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in "qk")
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # [B, heads, Q, S]
            if given.get("mask") is not None:
                logits = logits.masked_fill(given["mask"], float("-inf"))
            recorded.layers.append(LayerAttention(name, logits.softmax(-1).mean(1)))

        return hook

    for name, module in network.named_modules():
        if "decoder" not in name:
            continue
        if isinstance(module, MSDeformAttn):
            handles.append(module.register_forward_hook(deformable(name), with_kwargs=True))
        elif isinstance(module, nn.MultiheadAttention) and name.endswith("multihead_attn"):
            handles.append(module.register_forward_hook(dense(name), with_kwargs=True))
        elif isinstance(module, ProjectedAttention) and name.endswith("cross_attn"):
            handles.append(module.register_forward_hook(projected(name), with_kwargs=True))
    if not handles:
        raise ValueError(f"{type(network).__name__} has no decoder whose attention can be drawn")
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
