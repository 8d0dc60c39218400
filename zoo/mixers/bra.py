"""Bi-level routing attention: regions choose regions, then tokens attend the tokens of the chosen regions.

BiFormer: Vision Transformer with Bi-Level Routing Attention (CVPR 2023, arXiv 2303.08810, eq. 3-8).
Authors' code: github.com/rayleizhu/BiFormer (MIT).

Two forms exist, equal on maps that the regions divide:

* :class:`BiLevelRoutingAttention` ("bra"), of the released BiFormer models: the map is zero-padded before the
  projection, so a padded position carries the projection's bias, counts in the region means and is attended.
* :class:`RegionRoutingAttention` ("bra_nchw"), of the revised models: the map is padded after the projection, region
  means leave padding out, and there may be more than ``n_win ** 2`` regions; padded keys and values are zero vectors,
  attended like others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.padding import pad_hwc
from zoo.layers.token_linear import TokenLinear
from zoo.layers.windows import window_partition, window_reverse
from zoo.mixers.base import Mixer, row_normalised
from zoo.mixers.sampling import Drawing, Routes, place, tiles
from zoo.registry import register_mixer
from zoo_kernels.routed_attention import attention_matrix, route_regions, routed_attention

POOLING = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool")


def to_regions(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut ``[B, H, W, C]`` into regions of ``size``, which divides it: ``[B, R, Nq, C]``, all orders row-major."""
    B, H, W, C = x.shape
    h, w = size
    return window_partition(x, size).reshape(B, (H // h) * (W // w), h * w, C)


def from_regions(x: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Undo :func:`to_regions`: ``[B, R, Nq, C]`` -> ``[B, *grid, C]``."""
    B, R, _, C = x.shape
    return window_reverse(x.reshape(B * R, *size, C), *grid)


class Routed(NamedTuple):
    """What a routing mixer decided: see :meth:`RoutedMixer.details`."""

    out: Tensor  # [B, H, W, C]
    weights: Tensor  # [B, R, topk], softmax of the chosen affinities
    indices: Tensor  # [B, R, topk]
    attention: Tensor  # [B, R, heads, Nq, topk * Nk]


class _Plan(NamedTuple):
    """Projected and routed tokens of one map."""

    q: Tensor  # [B, R, Nq, heads, qk_dim / heads]
    k: Tensor  # [B, R, Nk, heads, qk_dim / heads]
    v: Tensor  # [B, R, Nk, heads, dim / heads]
    indices: Tensor  # [B, R, topk]
    logits: Tensor  # [B, R, topk]
    local: Tensor | None  # LePE [B, H', W', C]
    size: tuple[int, int]  # tokens of a region, vertically and horizontally
    grid: tuple[int, int]  # H', W' of the padded map


class RoutedMixer(Mixer):
    """What both forms share: attention over the routed regions, LePE, output projection, maps and costs."""

    scale: float
    soft_routing: bool = False
    lepe: DepthwiseConv | None
    wo: nn.Module

    def _plan(self, x: Tensor) -> _Plan:
        raise NotImplementedError

    def _finish(self, plan: _Plan, out: Tensor, height: int, width: int) -> Tensor:
        """Regions [B, R, Nq, heads, d] back to the map [B, H, W, C], with LePE and the output projection."""
        out = from_regions(out.flatten(3), plan.size, plan.grid)[:, :height, :width]
        if plan.local is not None:
            out = out + plan.local[:, :height, :width]
        return self.wo(out)

    def _soft_weights(self, plan: _Plan) -> Tensor | None:
        return plan.logits.softmax(-1) if self.soft_routing else None

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        self._check(x, prefix)
        plan = self._plan(x)
        weights = self._soft_weights(plan)
        out = routed_attention(plan.q, plan.k, plan.v, plan.indices, weights=weights, scale=self.scale)
        return self._finish(plan, out, x.shape[1], x.shape[2])

    def details(self, x: Tensor) -> Routed:
        """The output together with routing weights, chosen regions and attention, by the reference path."""
        self._check(x)
        plan = self._plan(x)
        weights = self._soft_weights(plan)
        attention = attention_matrix(plan.q, plan.k, plan.indices, weights=weights, scale=self.scale)
        attention = attention.unflatten(0, plan.indices.shape[:2])  # [B, R, heads, Nq, topk * Nk]
        out = routed_attention(
            plan.q, plan.k, plan.v, plan.indices, weights=weights, scale=self.scale, backend="reference"
        )
        out = self._finish(plan, out, x.shape[1], x.shape[2])
        return Routed(out, plan.logits.softmax(-1), plan.indices, attention)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``, rows sum to 1; keys that were padding are left out and rows normalised again.

        Raises:
            TypeError: keys are pooled, so that they are no positions.
        """
        self._check(x)
        H, W = x.shape[1:3]
        plan = self._plan(x)
        if plan.k.shape[2] != plan.q.shape[2]:
            raise TypeError("keys are pooled (kv_downsample_mode): there is no attention map between positions")
        attention = attention_matrix(
            plan.q, plan.k, plan.indices, weights=self._soft_weights(plan), scale=self.scale
        )  # [B*R, heads, Nq, topk*Nk]
        B, R, topk = plan.indices.shape
        N, h = plan.q.shape[2], self.num_heads
        attention = attention.reshape(B, R, h, N, topk, N)
        index = plan.indices[:, :, None, None, :, None].expand(B, R, h, N, topk, N)
        full = attention.new_zeros(B, R, h, N, R, N).scatter_(4, index, attention)
        # keys, then queries, from regions to the grid, cropped to the map
        full = from_regions(full.permute(0, 4, 5, 2, 1, 3).reshape(B, R, N, h * R * N), plan.size, plan.grid)
        full = full[:, :H, :W].reshape(B, H * W, h, R, N).permute(0, 3, 4, 2, 1)  # [B, R, Nq, heads, HW keys]
        full = from_regions(full.reshape(B, R, N, h * H * W), plan.size, plan.grid)
        full = full[:, :H, :W].reshape(B, H * W, h, H * W).transpose(1, 2)
        return row_normalised(full)

    @torch.no_grad()
    def attention_values(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, d]``.

        Raises:
            TypeError: values are pooled, or weighted by the routing (``soft_routing``).
        """
        self._check(x)
        H, W = x.shape[1:3]
        plan = self._plan(x)
        if self.soft_routing or plan.v.shape[2] != plan.q.shape[2]:
            raise TypeError("values are pooled or weighted by the routing: the attention map does not weigh them alone")
        values = from_regions(plan.v.flatten(3), plan.size, plan.grid)[:, :H, :W]  # [B, H, W, C]
        return values.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    @torch.no_grad()
    def sampling(self, x: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> list[Drawing]:
        """The region of the query and the regions that it is routed to, with the routing weights."""
        self._check(x)
        H, W = x.shape[1:3]
        plan = self._plan(x)
        (h, w), (Hp, Wp) = plan.size, plan.grid
        row, column = place(query, H, W)
        source = row // h * (Wp // w) + column // w
        boxes = tiles(list(range(0, Hp + 1, h)), list(range(0, Wp + 1, w)), Hp, Wp)
        boxes = (boxes * boxes.new_tensor([Hp / H, Wp / W] * 2)).clamp(max=1)  # the padding lies outside
        indices, weights = plan.indices[0, source].cpu(), plan.logits[0, source].softmax(-1).cpu()
        return [Routes("routed regions", boxes[source], boxes[indices], weights)]

    def _attention_flops(self, regions: int, queries: int, keys: int, topk: int, qk_dim: int) -> int:
        routing = regions * regions * qk_dim
        return routing + regions * queries * topk * keys * (qk_dim + self.dim)


@register_mixer(name="bra")
class BiLevelRoutingAttention(RoutedMixer):
    """Bi-level routing attention of BiFormer's released models.

    Args:
        dim: channels C.
        num_heads: attention heads; divides ``dim`` and ``qk_dim``.
        n_win: regions a side; the map is cut into ``n_win x n_win`` regions.
        qk_dim: channels of queries and keys (``dim`` by default).
        qk_scale: factor of routing and attention logits; ``qk_dim ** -0.5`` (over all heads) by default.
        topk: regions that a region attends, 1 .. ``n_win ** 2``.
        kv_downsample_mode: "identity", or how keys and values of a region are pooled: "ada_avgpool" and "ada_maxpool"
            to ``kv_per_win`` a side, "avgpool" and "maxpool" by ``kv_downsample_ratio``.
        side_dwconv: kernel of the depth-wise convolution of the values that is added (LePE); 0 for none.
        param_attention: "qkvo", or "qkv" for no output projection.
        param_routing: a linear layer, shared by query and key regions, before routing; needs ``diff_routing``.
        diff_routing: let gradient pass to the router; needs ``soft_routing``, through which alone it can.
        soft_routing: multiply gathered keys and values by the softmax of the chosen affinities.
        auto_pad: pad maps that ``n_win`` does not divide; where false they raise.

    Raises:
        ValueError: settings that do not go together, or (in ``forward``) a map that ``n_win`` does not divide while
            ``auto_pad`` is false.

    Source: eq. 3-8; note that the softmax scale is that of all heads together.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        n_win: int = 7,
        qk_dim: int | None = None,
        qk_scale: float | None = None,
        topk: int = 4,
        kv_downsample_mode: str = "identity",
        kv_per_win: int = 4,
        kv_downsample_ratio: int = 4,
        side_dwconv: int = 3,
        param_attention: str = "qkvo",
        param_routing: bool = False,
        diff_routing: bool = False,
        soft_routing: bool = False,
        auto_pad: bool = True,
    ):
        super().__init__(dim, num_heads)
        qk_dim = qk_dim or dim
        if qk_dim % num_heads:
            raise ValueError(f"qk_dim={qk_dim} must be a multiple of num_heads={num_heads}")
        if n_win < 1:
            raise ValueError(f"n_win={n_win}: accepted are numbers of regions a side from 1")
        if not 1 <= topk <= n_win * n_win:
            raise ValueError(f"topk={topk}: accepted are 1 to n_win ** 2 = {n_win * n_win}")
        if param_attention not in ("qkvo", "qkv"):
            raise ValueError(f"param_attention={param_attention!r}: accepted are 'qkvo' and 'qkv'")
        if param_routing and not diff_routing:
            raise ValueError("param_routing=True needs diff_routing=True: the router's layer would never be trained")
        if diff_routing and not soft_routing:
            raise ValueError("diff_routing=True needs soft_routing=True: a hard choice of regions carries no gradient")
        self.n_win, self.qk_dim, self.topk = n_win, qk_dim, topk
        self.scale = qk_scale or qk_dim**-0.5
        self.diff_routing, self.soft_routing, self.auto_pad = diff_routing, soft_routing, auto_pad
        self.qkv_linear = TokenLinear(dim, 2 * qk_dim + dim)
        self.wo = TokenLinear(dim, dim) if param_attention == "qkvo" else nn.Identity()
        self.lepe = DepthwiseConv(dim, side_dwconv) if side_dwconv > 0 else None
        self.router = TokenLinear(qk_dim, qk_dim) if param_routing else None
        self.kv_pool = _kv_pool(kv_downsample_mode, kv_per_win, kv_downsample_ratio)
        self._pooled = (kv_downsample_mode, kv_per_win, kv_downsample_ratio)

    def _plan(self, x: Tensor) -> _Plan:
        B, H, W, _ = x.shape
        if not self.auto_pad and (H % self.n_win or W % self.n_win):
            raise ValueError(
                f"a map of {H} x {W} is not divided by n_win={self.n_win}; auto_pad=True accepts every size"
            )
        x = pad_hwc(x, (self.n_win, self.n_win))
        grid = (x.shape[1], x.shape[2])
        size = (grid[0] // self.n_win, grid[1] // self.n_win)
        # tokens are put in region order before the projection, when they are fewest
        q, k, v = self.qkv_linear(to_regions(x, size)).split(
            [self.qk_dim, self.qk_dim, self.dim], dim=-1
        )  # [B, R, N, .]
        local = None if self.lepe is None else self.lepe(from_regions(v, size, grid))
        q_region, k_region = q.mean(2), k.mean(2)  # [B, R, qk_dim]
        if not self.diff_routing:
            q_region, k_region = q_region.detach(), k_region.detach()
        if self.router is not None:
            q_region, k_region = self.router(q_region), self.router(k_region)
        indices, logits = route_regions(q_region, k_region, self.topk, scale=self.scale)
        if self.kv_pool is not None:
            kv = _pool(self.kv_pool, torch.cat([k, v], dim=-1), size)
            k, v = kv.split([self.qk_dim, self.dim], dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        return _Plan(q, k, v, indices, logits, local, size, grid)

    def flops(self, height: int, width: int) -> int:
        h, w = -(-height // self.n_win), -(-width // self.n_win)
        R, N = self.n_win**2, h * w
        mode, per_win, ratio = self._pooled
        if mode == "identity":
            keys = N
        else:
            keys = per_win**2 if mode.startswith("ada_") else (h // ratio) * (w // ratio)
        total = R * N * self.qkv_linear.weight.numel() + self._attention_flops(R, N, keys, self.topk, self.qk_dim)
        if self.router is not None:
            total += 2 * R * self.router.weight.numel()
        if self.lepe is not None:
            total += self.lepe.flops(R * N)
        return total + (height * width * self.dim**2 if isinstance(self.wo, nn.Linear) else 0)


def _pool(pool: nn.Module, kv: Tensor, size: tuple[int, int]) -> Tensor:
    """Pool keys and values [B, R, N, D] of each region to [B, R, Nk, D]."""
    B, R, _, D = kv.shape
    try:
        kv = pool(kv.reshape(B * R, *size, D).permute(0, 3, 1, 2))  # [B*R, D, h', w']
    except RuntimeError as e:
        raise ValueError(f"regions of {size[0]} x {size[1]} tokens are too small for {pool}") from e
    return kv.flatten(2).transpose(1, 2).reshape(B, R, -1, D)


def _kv_pool(mode: str, per_win: int, ratio: int) -> nn.Module | None:
    """The pooling of keys and values that ``kv_downsample_mode`` names; None for none."""
    if mode not in POOLING:
        raise ValueError(f"kv_downsample_mode={mode!r}: accepted are {', '.join(POOLING)}")
    if mode == "identity":
        return None
    if mode.startswith("ada_"):
        if not per_win or per_win < 1:
            raise ValueError(f"kv_per_win={per_win}: kv_downsample_mode={mode!r} needs a number from 1")
        return (nn.AdaptiveAvgPool2d if mode == "ada_avgpool" else nn.AdaptiveMaxPool2d)(per_win)
    if not ratio or ratio < 1:
        raise ValueError(f"kv_downsample_ratio={ratio}: kv_downsample_mode={mode!r} needs a number from 1")
    if ratio == 1:
        return None
    return (nn.AvgPool2d if mode == "avgpool" else nn.MaxPool2d)(ratio)


@register_mixer(name="bra_nchw")
class RegionRoutingAttention(RoutedMixer):
    """Bi-level routing attention of the revised models, whose regions at the border may be incomplete.

    Args:
        dim: channels C.
        num_heads: attention heads; divides ``dim``.
        n_win: the map is cut into regions of ``(H // n_win) x (W // n_win)`` tokens (at least one); with sizes that
            ``n_win`` does not divide there are more than ``n_win ** 2`` of them.
        qk_scale: factor of the attention logits; ``dim ** -0.5`` by default.
        topk: regions that a region attends; where a map has fewer, all of them.
        side_dwconv: kernel of the depth-wise convolution of the values that is added (LePE); 0 for none.

    Source: eq. 3-8, and appendix A for routing without gradient.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        n_win: int = 7,
        qk_scale: float | None = None,
        topk: int = 4,
        side_dwconv: int = 3,
    ):
        super().__init__(dim, num_heads)
        if n_win < 1:
            raise ValueError(f"n_win={n_win}: accepted are numbers of regions a side from 1")
        if topk < 1:
            raise ValueError(f"topk={topk}: accepted are numbers of regions from 1")
        self.n_win, self.topk = n_win, topk
        self.scale = qk_scale or dim**-0.5
        self.qkv_linear = TokenLinear(dim, 3 * dim)
        self.wo = TokenLinear(dim, dim)
        self.lepe = DepthwiseConv(dim, side_dwconv) if side_dwconv > 0 else None

    def _size(self, height: int, width: int) -> tuple[int, int]:
        return max(1, height // self.n_win), max(1, width // self.n_win)

    def _plan(self, x: Tensor) -> _Plan:
        B, H, W, _ = x.shape
        size = self._size(H, W)
        qkv = self.qkv_linear(x)  # [B, H, W, 3C]
        local = None if self.lepe is None else self.lepe(qkv[..., 2 * self.dim :])
        # means over the tokens that exist
        qk = qkv[..., : 2 * self.dim].detach().permute(0, 3, 1, 2)
        qk = F.avg_pool2d(qk, size, ceil_mode=True, count_include_pad=False)  # [B, 2C, rows, columns]
        q_region, k_region = qk.flatten(2).transpose(1, 2).chunk(2, dim=-1)  # [B, R, C]
        indices, logits = route_regions(q_region, k_region, min(self.topk, q_region.shape[1]), scale=1.0)
        qkv = pad_hwc(qkv, size)
        grid = (qkv.shape[1], qkv.shape[2])
        q, k, v = to_regions(qkv, size).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(3)
        return _Plan(q, k, v, indices, logits, local, size, grid)

    def flops(self, height: int, width: int) -> int:
        h, w = self._size(height, width)
        R, N = -(-height // h) * -(-width // w), h * w
        total = height * width * (self.qkv_linear.weight.numel() + self.dim**2)
        total += self._attention_flops(R, N, N, min(self.topk, R), self.dim)
        if self.lepe is not None:
            total += self.lepe.flops(height * width)
        return total
