"""The equation of multi-scale deformable attention, corner by corner; any dtype, differentiable by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

Levels = tuple[tuple[int, int], ...]


def forward(value: Tensor, shapes: Levels, locations: Tensor, weights: Tensor, points: tuple[int, ...]) -> Tensor:
    """Classic form: value [B,S,h,d], locations [B,Q,h,T,2], weights [B,Q,h,T] -> [B,Q,h*d]."""
    dtype = torch.promote_types(value.dtype, torch.promote_types(locations.dtype, weights.dtype))
    out_dtype, value, locations, weights = value.dtype, value.to(dtype), locations.to(dtype), weights.to(dtype)
    b, q, h, d = *locations.shape[:3], value.shape[3]
    out = value.new_zeros(b, q, h, d)
    start = first = 0
    for (height, width), n in zip(shapes, points):
        level = value[:, start : start + height * width]  # [B, H*W, h, d]
        x = locations[:, :, :, first : first + n, 0] * width - 0.5  # [B, Q, h, P], in pixels
        y = locations[:, :, :, first : first + n, 1] * height - 0.5
        for xi in (x.floor(), x.floor() + 1):
            for yi in (y.floor(), y.floor() + 1):
                inside = (xi >= 0) & (xi < width) & (yi >= 0) & (yi < height)
                bilinear = (1 - (x - xi).abs()) * (1 - (y - yi).abs())
                w = torch.where(inside, bilinear, 0) * weights[:, :, :, first : first + n]
                row = torch.where(inside, yi * width + xi, 0).long()  # [B, Q, h, P]
                index = row.permute(0, 1, 3, 2).reshape(b, q * n, h, 1).expand(-1, -1, -1, d)
                corner = level.gather(1, index).view(b, q, n, h, d)
                out = out + torch.einsum("bqhp,bqphd->bqhd", w, corner)
        start, first = start + height * width, first + n
    return out.reshape(b, q, h * d).to(out_dtype)


def forward_fused(
    value: Tensor, shapes: Levels, reference: Tensor, offsets: Tensor, logits: Tensor, points: tuple[int, ...]
) -> Tensor:
    """From raw offsets [B,Q,h,T,2], logits [B,Q,h,T] and references [B,Q,L,2|4]."""
    dtype = torch.promote_types(reference.dtype, offsets.dtype)
    reference, offsets = reference.to(dtype), offsets.to(dtype)
    locations = []
    for level, ((height, width), off) in enumerate(zip(shapes, offsets.split(points, dim=3))):
        xy = reference[:, :, None, level, None, :2]  # [B, Q, 1, 1, 2]
        if reference.shape[-1] == 2:
            step = off / off.new_tensor([width, height])
        else:
            step = off / points[level] * reference[:, :, None, level, None, 2:] * 0.5
        locations.append(xy + step)
    return forward(value, shapes, torch.cat(locations, dim=3), logits.softmax(-1), points)
