"""The multi-scale deformable attention module: projections around the operator.

Deformable DETR: Deformable Transformers for End-to-End Object Detection (arXiv:2010.04159), eq. 3 and appendix A.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear
from zoo_kernels.ms_deform_attention import ms_deform_attention_fused


def linear_class(d_model: int) -> type[nn.Linear]:
    """The class of linear layers over tokens of so many channels.

    oneDNN pays for wide ones. Narrow ones round as BLAS does, and thus as the recordings that this is tested against:
    Co-DETR normalises a map of one pixel by groups of one channel, which makes nothing of it but rounding, magnified.
    """
    return TokenLinear if d_model >= 96 else nn.Linear


class MSDeformAttn(nn.Module):
    """Each query reads a few points of several maps.

    Args:
        d_model: channels C.
        n_levels: maps L.
        n_heads: attention heads; must divide ``d_model``.
        n_points: points a head and map.
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
    ):
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model={d_model} must be a multiple of n_heads={n_heads}")
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        linear = linear_class(d_model)
        self.sampling_offsets = linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = linear(d_model, d_model)
        self.output_proj = linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look along different directions, their points further and further; attention is uniform."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * steps[:, None]  # [heads, 1, points, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: ``[B, Q, C]``, with its position.
            reference_points: ``[B, Q, L, 2]`` points or ``[B, Q, L, 4]`` boxes (centre, size), in 0 ... 1 of each map.
            value: ``[B, S, C]``, the maps row by row, one after the other.
            spatial_shapes: (H, W) of each map.
            padding_mask: ``[B, S]``, true where a value is zero whatever it is.

        Returns:
            ``[B, Q, C]``.
        """
        B, Q, _ = query.shape
        heads, levels, points = self.n_heads, self.n_levels, self.n_points
        v = self.value_proj(value)
        if padding_mask is not None:
            v = v.masked_fill(padding_mask[..., None], 0.0)
        out = ms_deform_attention_fused(
            v.unflatten(-1, (heads, -1)),
            tuple(spatial_shapes),
            reference_points,
            self.sampling_offsets(query).view(B, Q, heads, levels, points, 2),
            self.attention_weights(query).view(B, Q, heads, levels, points),
        )
        return self.output_proj(out)
