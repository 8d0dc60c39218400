"""Bridging visual representations: grid points attend to key points by appearance and by where they are.

RelationNet++: Bridging Visual Representations for Object Detection via Transformer Decoder (arXiv:2010.15831), section
3.1, eq. 1 and 2, and section 3.3 (shared location embedding). Authors' code: github.com/microsoft/RelationNet2 (MIT);
this follows the paper and recorded results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.conv_tower import ConvGN
from zoo.layers.token_linear import TokenLinear
from zoo_kernels.dense_attention import dense_attention


def offset_sines(offsets: Tensor, dim: int, temperature: float = 1000.0, scale: float = 1.0) -> Tensor:
    """Sines of offsets, then their cosines, for x and then y: ``[..., 2] -> [..., dim]``."""
    quarter = dim // 4
    steps = torch.arange(quarter, device=offsets.device, dtype=torch.float32)
    phase = scale * offsets[..., None] / temperature ** (4.0 / dim * steps)  # [..., 2, dim / 4]
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)


class LocationEmbedding(nn.Module):
    """What an offset from a grid point to a key point adds to the logits of each head.

    The embedding is computed once on a map of whole offsets around 0 and interpolated at the offsets that occur.

    Args:
        dim: channels of the sines, a multiple of 4.
        num_heads: attention heads.
        base_size: width and height of the map; None computes the embedding of every offset.
        log_scale: take the logarithm of what was interpolated (not below 1e-6).
        align_corners: of the interpolation.
        normalized_interpolation: offsets are divided by half of ``base_size``; otherwise they are in -1 ... 1 as given.
        temperature, scale: of the sines.
        normalize: offsets of the map are divided by their range first.
        num_layers: 1x1 convolutions.
        out_relu: end with a ReLU.

    Raises:
        ValueError: a ``dim`` that is no multiple of 4.
    """

    base: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        base_size: Sequence[int] | None = (400, 400),
        log_scale: bool = False,
        align_corners: bool = False,
        normalized_interpolation: bool = True,
        temperature: float = 1000.0,
        scale: float = 1.0,
        normalize: bool = False,
        num_layers: int = 1,
        out_relu: bool = False,
    ):
        super().__init__()
        if dim % 4:
            raise ValueError(f"channels={dim}: the location embedding needs a multiple of 4")
        self.dim, self.log_scale, self.align_corners = dim, log_scale, align_corners
        self.temperature, self.scale, self.normalize = temperature, scale, normalize
        self.base_size = None if base_size is None else (int(base_size[0]), int(base_size[1]))
        self.divide = normalized_interpolation
        layers: list[nn.Module] = [ConvGN(dim, dim, kernel=1, groups=None) for _ in range(num_layers - 1)]
        layers.append(ConvGN(dim, num_heads, kernel=1, groups=None, act=False))
        if out_relu:
            layers.append(nn.ReLU())
        self.embedding_transform = nn.Sequential(*layers)
        if self.base_size is not None:
            half_w, half_h = (s // 2 for s in self.base_size)
            x = torch.arange(-half_w, half_w + 1, dtype=torch.float32).expand(2 * half_h + 1, -1)
            y = torch.arange(-half_h, half_h + 1, dtype=torch.float32)[:, None].expand(-1, 2 * half_w + 1)
            self.register_buffer("base", self._sines(torch.stack([x, y], dim=-1))[None], persistent=False)

    def _sines(self, offsets: Tensor) -> Tensor:
        if self.normalize:
            offsets = offsets / (offsets.max() - offsets.min())
        return offset_sines(offsets, self.dim, self.temperature, self.scale)

    def map(self) -> Tensor | None:
        """The embedding of all whole offsets, ``[1, heads, H, W]``; None where every offset has its own."""
        if self.base_size is None:
            return None
        return self.embedding_transform(self.base.permute(0, 3, 1, 2))

    def forward(self, offsets: Tensor, whole: Tensor | None) -> Tensor:
        """Offsets ``[B, N, K, 2]`` (x, y) and :meth:`map` to logits ``[B, heads, N, K]``."""
        if whole is None or self.base_size is None:
            found = self.embedding_transform(self._sines(offsets).permute(0, 3, 1, 2))
        else:
            if self.divide:
                offsets = offsets / (0.5 * offsets.new_tensor(self.base_size))
            whole = whole.to(offsets.dtype).expand(offsets.shape[0], -1, -1, -1)
            found = F.grid_sample(whole, offsets, padding_mode="border", align_corners=self.align_corners)
        return found.clamp(min=1e-6).log() if self.log_scale else found


class RelationAttention(nn.Module):
    """Attention of grid points to key points of one type.

    Args:
        dim: channels C.
        num_heads: attention heads.
        appearance: queries and keys are compared; otherwise only the location counts.
    """

    def __init__(self, dim: int, num_heads: int, appearance: bool = True):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"channels={dim} must be a multiple of num_heads={num_heads}")
        self.num_heads, self.appearance = num_heads, appearance
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = TokenLinear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, location: Tensor | None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: ``[B, N, C]``.
            key: ``[B, K, C]``, also the values.
            location: ``[B, heads, N, K]``, added to the logits.
            places: ``[B, K, 2]``.

        Returns:
            ``[B, N, C]``, and the mean of ``places`` under the weights of all heads, ``[B, N, 2]``.
        """
        wq, wkv = self.in_proj_weight.split([query.shape[-1], 2 * query.shape[-1]])
        bq, bkv = self.in_proj_bias.split([query.shape[-1], 2 * query.shape[-1]])
        q = F.linear(query, wq, bq).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, h, N, d]
        kv = F.linear(key, wkv, bkv).unflatten(-1, (2, self.num_heads, -1))  # [B, K, 2, h, d]
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, h, K, d]
        scale = None if self.appearance else 0.0
        bias = None if location is None else location.to(q.dtype)
        out = self.out_proj(dense_attention(q, k, v, bias=bias, scale=scale).transpose(1, 2).flatten(2))
        if places is None:
            return out, None
        spread = places[:, None].to(q.dtype).expand(-1, self.num_heads, -1, -1).contiguous()
        return out, dense_attention(q, k, spread, bias=bias, scale=scale).mean(1)


class BVRTransformer(nn.Module):
    """Features of all grid points, with what key points of several types add.

    Args:
        dim: channels C.
        num_heads: attention heads.
        num_types: types of key points; each has an attention of its own.
        location: arguments of :class:`LocationEmbedding`; None for attention without a location.
        shared_location: one embedding for all types.
        location_embedding: an embedding that is shared with another transformer.
        appearance: see :class:`RelationAttention`.
        cat_pos: the mean offset to the key points is mixed into the features.

    Raises:
        ValueError: neither location nor appearance.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_types: int,
        location: Mapping[str, Any] | None = None,
        shared_location: bool = True,
        location_embedding: nn.Module | None = None,
        appearance: bool = True,
        cat_pos: bool = False,
    ):
        super().__init__()
        if location is None and not appearance:
            raise ValueError("attention needs with_relative_positional_encoding or with_appearance_relation")
        self.decoder = nn.ModuleList(RelationAttention(dim, num_heads, appearance) for _ in range(num_types))
        self.relative_positional_encoding: nn.Module | None = None
        if location is not None and location_embedding is not None:
            self.relative_positional_encoding = location_embedding
        elif location is not None and shared_location:
            self.relative_positional_encoding = LocationEmbedding(dim, num_heads, **location)
        elif location is not None:
            self.relative_positional_encoding = nn.ModuleList(
                LocationEmbedding(dim, num_heads, **location) for _ in range(num_types)
            )
        self.cat_pos = cat_pos
        if cat_pos:
            self.embed_trans = nn.Sequential(TokenLinear(dim + 2 * num_types, dim), nn.ReLU())
            self.pos_trans = TokenLinear(2, 2, bias=False)

    def embeddings(self) -> list[Any]:
        """The location embedding of each type; None without location."""
        found = self.relative_positional_encoding
        return list(found) if isinstance(found, nn.ModuleList) else [found] * len(self.decoder)

    def forward(
        self,
        maps: Sequence[Tensor],
        positions: Sequence[Tensor],
        key_features: Sequence[Sequence[Tensor]],
        key_positions: Sequence[Sequence[Tensor]],
        scales: Sequence[float],
    ) -> list[Tensor]:
        """Refine the maps.

        Args:
            maps: each ``[B, C, H, W]``.
            positions: of their points in pixels of the image, each ``[H * W, 2]`` (x, y).
            key_features: for each map and type ``[B, K, C]``.
            key_positions: for each map and type ``[B, K, 2]``.
            scales: pixels that count as an offset of 1, for each map.
        """
        layers = self.embeddings()
        whole: dict[int, Tensor | None] = {}
        for layer in layers:
            if layer is not None and id(layer) not in whole:
                whole[id(layer)] = layer.map()
        found = []
        for x, points, features, keys, scale in zip(maps, positions, key_features, key_positions, scales):
            tokens = x.flatten(2).transpose(1, 2)  # [B, N, C]
            query_place = (points / scale)[None, :, None]  # [1, N, 1, 2]
            out, extra = tokens, []
            for attention, layer, feature, key in zip(self.decoder, layers, features, keys):
                place = key / scale  # [B, K, 2]
                offsets = place[:, None] - query_place  # [B, N, K, 2]
                location = None if layer is None else layer(offsets, whole[id(layer)])
                added, mean = attention(tokens, feature, location, place.detach() if self.cat_pos else None)
                out = out + added
                if mean is not None:
                    extra.append(self.pos_trans(mean - query_place[:, :, 0]))
            out = F.relu(out)
            if extra:
                out = self.embed_trans(torch.cat([out, *extra], dim=-1))
            found.append(out.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return found
