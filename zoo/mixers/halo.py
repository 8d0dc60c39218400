"""Blocked local attention: each block of queries attends to its block and a halo of positions around it.

HaloNet: Scaling Local Self-Attention for Parameter Efficient Visual Backbones (CVPR 2021, arXiv 2103.12731, section 3).
The authors published no code; the implementation that is compared with is timm's (Apache-2.0).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.padding import remainder
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops, row_normalised
from zoo.registry import register_mixer
from zoo_kernels.neighborhood_attention import halo_attention


@register_mixer(name="halo")
class HaloAttention(Mixer):
    """Multi-head attention of blocks of positions to themselves and a halo, with content-based relative positions.

    Positions outside the map are keys and values of zero that take part in the softmax; a map that the blocks do not
    tile is continued by them at the bottom and right.

    Args:
        dim: channels C.
        num_heads: attention heads.
        block_size: side of a block of queries.
        halo_size: positions around the block that it sees, too.
        qk_head_dim: channels of a head of queries and keys; ``dim // num_heads`` by default, as the values have.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        stride: take every so many-th query along each axis, which makes the map smaller.
        avg_down: with a stride, keep all queries and average the result; always so where the stride does not divide
            the block.
        scale_position: whether the relative logits are scaled as the others are.
        proj: whether a linear layer follows; HaloNet's blocks have a 1x1 convolution there.

    Raises:
        ValueError: an argument below its least value.
    """

    growth = "linear"

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        qk_head_dim: int | None = None,
        qkv_bias: bool = False,
        stride: int = 1,
        avg_down: bool = False,
        scale_position: bool = False,
        proj: bool = True,
    ):
        super().__init__(dim, num_heads)
        least = dict(block_size=1, halo_size=0, stride=1, qk_head_dim=1)
        given = dict(
            block_size=block_size, halo_size=halo_size, stride=stride, qk_head_dim=qk_head_dim or self.head_dim
        )
        for name, value in given.items():
            if value < least[name]:
                raise ValueError(f"{name}={value}: accepted are numbers from {least[name]}")
        self.block_size = block_size
        self.halo_size = halo_size
        self.qk_head_dim = given["qk_head_dim"]
        self.stride = stride
        self.pooled = stride > 1 and (avg_down or block_size % stride != 0)
        self.query_step = 1 if self.pooled else stride
        self.scale_position = scale_position
        self.q = TokenLinear(dim, num_heads * self.qk_head_dim, bias=qkv_bias)
        self.kv = TokenLinear(dim, num_heads * (self.qk_head_dim + self.head_dim), bias=qkv_bias)
        window = block_size + 2 * halo_size
        self.rel_height = nn.Parameter(torch.empty(2 * window - 1, self.qk_head_dim))
        self.rel_width = nn.Parameter(torch.empty(2 * window - 1, self.qk_head_dim))
        self.no_decay = ("rel_height", "rel_width")
        self.proj = TokenLinear(dim, dim) if proj else nn.Identity()
        for layer in (self.q, self.kv):
            nn.init.trunc_normal_(layer.weight, std=dim**-0.5)
        for table in (self.rel_height, self.rel_width):
            nn.init.trunc_normal_(table, std=self.qk_head_dim**-0.5)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, Hp/step, Wp/step, heads, dqk]``, keys and values ``[B, Hp, Wp, heads, d]`` on whole blocks."""
        step, H, W = self.query_step, x.shape[1], x.shape[2]
        bottom, right = remainder(H, self.block_size), remainder(W, self.block_size)
        q, kv = self.q(x[:, ::step, ::step] if step > 1 else x), self.kv(x)
        if bottom or right:
            # Zeros after the projection: the map's continuation is no different from what is outside anyway.
            kv = F.pad(kv, (0, 0, 0, right, 0, bottom))
            q = F.pad(q, (0, 0, 0, (W + right) // step - q.shape[2], 0, (H + bottom) // step - q.shape[1]))
        q, kv = q.unflatten(-1, (self.num_heads, -1)), kv.unflatten(-1, (self.num_heads, -1))
        k, v = kv.split([self.qk_head_dim, self.head_dim], dim=-1)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
        return halo_attention(
            q,
            k,
            v,
            block_size=self.block_size,
            halo_size=self.halo_size,
            rel_height=self.rel_height,
            rel_width=self.rel_width,
            scale_position=self.scale_position,
            backend=backend,
        )

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H/stride, W/stride, C]`` (rounded up); raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        rows, columns = (-(-n // self.query_step) for n in x.shape[1:3])
        out = self._attend(*self._qkv(x))[:, :rows, :columns].flatten(3)  # [B, rows, columns, C]
        if self.pooled:
            out = F.avg_pool2d(out.permute(0, 3, 1, 2), self.stride, ceil_mode=True).permute(0, 2, 3, 1)
        return self.proj(out)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: zero outside the window; what lies outside the map is shared out over the row.

        Raises:
            TypeError: ``stride`` above 1, where queries and keys are not the same positions.
        """
        self._check(x)
        if self.stride > 1:
            raise TypeError(
                f"stride={self.stride}: queries are not the positions of the map, there is no attention map"
            )
        B, H, W, _ = x.shape
        q, k, _ = self._qkv(x)
        Hp, Wp = k.shape[1:3]
        # With the values one-hot by position the output is the attention itself.
        places = torch.eye(Hp * Wp, dtype=q.dtype, device=q.device).view(1, Hp, Wp, 1, Hp * Wp)
        maps = self._attend(q, k, places.expand(B, -1, -1, self.num_heads, -1), backend="reference")
        maps = maps.permute(0, 3, 1, 2, 4).unflatten(-1, (Hp, Wp))[:, :, :H, :W, :H, :W]
        return row_normalised(maps.reshape(B, self.num_heads, H * W, H * W))

    def flops(self, height: int, width: int) -> int:
        window = self.block_size + 2 * self.halo_size
        padded = (height + remainder(height, self.block_size)) * (width + remainder(width, self.block_size))
        queries = padded // self.query_step**2
        given = -(-height // self.query_step) * -(-width // self.query_step)
        logits = self.num_heads * (self.qk_head_dim + self.head_dim) * window**2
        relative = 2 * self.num_heads * self.qk_head_dim * window
        out = -(-height // self.stride) * -(-width // self.stride)
        projections = linear_flops(given, self.q) + linear_flops(height * width, self.kv) + linear_flops(out, self.proj)
        return projections + queries * (logits + relative)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block_size={self.block_size}, halo_size={self.halo_size}, stride={self.stride}"
