"""Neighborhood attention as tiles: gather each tile's halo of keys once, then masked SDPA over the tiles.

A naive gather copies every key kernel_size^D times; a tile of T queries copies its halo of S keys once, and the
softmax runs in one fused call. The masks are a handful of [T, S] tables that all tiles of a class share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch._guards import detect_fake_mode

from zoo_kernels.dispatch import constant_result
from zoo_kernels.neighborhood_attention.tiles import Plan, make_plan

#: Without autograd, tiles go in chunks whose gathered keys and values take about this much: they stay in cache.
CHUNK_BYTES = 2**20

#: Tensor forms of the plans by geometry, device and dtype, oldest first; at most CACHED of them.
_tables: dict[Any, list[torch.Tensor]] = {}
CACHED = 64


def _to_tensors(plan: Plan, device: torch.device, dtype: torch.dtype | None) -> list[torch.Tensor]:
    """query_index, key_index, inverse, and per class its additive mask in ``dtype``, or its bias index if None."""
    tables = [plan.query_index, plan.key_index, plan.inverse]
    if dtype is None:
        return [torch.from_numpy(t).to(device) for t in (*tables, *plan.relative)]
    masks = [np.where(rel == plan.hidden, -np.inf, 0.0) for rel in plan.relative]
    return [
        *(torch.from_numpy(t).to(device) for t in tables),
        *(torch.from_numpy(m).to(device=device, dtype=dtype) for m in masks),
    ]


@constant_result
def _constant_tables(
    spatial: Any, kernel_size: Any, dilation: Any, stride: Any, causal: Any, device: str, dtype: torch.dtype | None
) -> list[torch.Tensor]:
    return _to_tensors(make_plan(spatial, kernel_size, dilation, stride, causal), torch.device(device), dtype)


@constant_result
def _layout(spatial: Any, kernel_size: Any, dilation: Any, stride: Any, causal: Any) -> tuple[Any, int, int]:
    """Tiles per class, queries and keys per tile."""
    plan = make_plan(spatial, kernel_size, dilation, stride, causal)
    return plan.counts, plan.T, plan.S


def tables(geometry: tuple[Any, ...], device: torch.device, dtype: torch.dtype | None) -> list[torch.Tensor]:
    """The plan's tensors, cached; constants of the graph under torch.compile and torch.export."""
    if torch.compiler.is_compiling():
        return _constant_tables(*geometry, str(device), dtype)
    if detect_fake_mode() is not None:  # a mode that takes no real tensor, and whose own must not outlive it
        return _to_tensors(make_plan(*geometry), device, dtype)
    key = (*geometry, device, dtype)
    found = _tables.get(key)
    if found is None:
        # Not inference tensors, which a later training step could not save for its backward.
        with torch.inference_mode(False):
            found = _to_tensors(make_plan(*geometry), device, dtype)
        if len(_tables) >= CACHED:
            _tables.pop(next(iter(_tables)))
        _tables[key] = found
    return found


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    kernel_size: tuple[int, ...],
    dilation: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Tiles, halo gather, SDPA a class of tiles, gather back."""
    spatial = tuple(int(n) for n in q.shape[1:-2])
    geometry = (spatial, kernel_size, dilation, stride, causal)
    counts, T, S = _layout(*geometry)
    query_index, key_index, inverse, *masks = tables(geometry, q.device, None if bias is not None else q.dtype)
    B, (heads, dv), dims = q.shape[0], v.shape[-2:], len(spatial)
    if bias is not None:
        # One entry more, for hidden keys: the bias and the mask are the same look-up.
        table_hR = F.pad(bias.flatten(1), (0, 1), value=float("-inf"))
        masks = [table_hR.index_select(1, rel.flatten()).view(1, heads, *rel.shape) for rel in masks]
    # Contiguous once: index_select copies all of a strided map, and is called for every piece of the tiles.
    q_BNC, k_BNC, v_BNC = (t.flatten(-2).flatten(1, dims).contiguous() for t in (q, k, v))

    def attend(q_t: torch.Tensor, k_t: torch.Tensor, v_t: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, tiles * T, C], [B, tiles * S, C], [B, tiles * S, h * dv] -> [B, tiles * T, h * dv], one class."""
        tokens = q_t.shape[1]
        q_t, k_t, v_t = (
            t.reshape(B * (tokens // T), size, heads, t.shape[-1] // heads).transpose(1, 2)  # [B * tiles, h, T or S, d]
            for t, size in ((q_t, T), (k_t, S), (v_t, S))
        )
        out = F.scaled_dot_product_attention(q_t, k_t, v_t, attn_mask=mask, scale=scale)
        return out.transpose(1, 2).reshape(B, tokens, heads * dv)

    q_sizes, k_sizes = [n * T for n in counts], [n * S for n in counts]
    outs = []
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        # One gather for all classes: its backward is one scatter, and that of split one concatenation.
        q_t, k_t, v_t = (
            x.index_select(1, i) for x, i in ((q_BNC, query_index), (k_BNC, key_index), (v_BNC, key_index))
        )
        for part in zip(q_t.split(q_sizes, 1), k_t.split(k_sizes, 1), v_t.split(k_sizes, 1), masks):
            outs.append(attend(*part))
    else:
        step = max(1, CHUNK_BYTES // max(1, B * S * (k_BNC.shape[-1] + v_BNC.shape[-1]) * q.element_size()))
        for q_ids, k_ids, mask in zip(query_index.split(q_sizes), key_index.split(k_sizes), masks):
            for q_id, k_id in zip(q_ids.split(step * T), k_ids.split(step * S)):
                chunk = q_BNC.index_select(1, q_id), k_BNC.index_select(1, k_id), v_BNC.index_select(1, k_id)
                outs.append(attend(*chunk, mask))
    out_BNC = torch.cat(outs, 1).index_select(1, inverse)
    return out_BNC.reshape(*q.shape[:-1], dv)


def halo(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    block_size: int,
    halo_size: int,
    rel_height: torch.Tensor | None,
    rel_width: torch.Tensor | None,
    scale: float,
    scale_position: bool,
) -> torch.Tensor:
    """Blocks as a view of q, halos as an unfolded view of the padded map, one SDPA with the relative logits as mask."""
    B, height, width, heads, d = k.shape
    dv = v.shape[-1]
    ny, nx = height // block_size, width // block_size
    by, win = q.shape[1] // ny, block_size + 2 * halo_size
    pad = (0, 0, 0, 0, halo_size, halo_size, halo_size, halo_size)

    def halos(x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, pad).unfold(1, win, block_size).unfold(2, win, block_size)  # [B, ny, nx, h, d, Y, X]
        return x.permute(0, 1, 2, 3, 5, 6, 4).reshape(B * ny * nx, heads, win * win, x.shape[4])

    q_t = q.reshape(B, ny, by, nx, by, heads, d).permute(0, 1, 3, 5, 2, 4, 6)  # [B, ny, nx, h, y, x, d]
    q_t = q_t.reshape(B * ny * nx, heads, by, by, d)
    # Relative logits in float32 at least: what half precision loses on a logit, the softmax multiplies.
    wide = torch.promote_types(q.dtype, torch.float32)
    q_w = q_t.to(wide)
    rel = torch.arange(win, device=q.device) - torch.arange(by, device=q.device)[:, None] + win - 1  # [y, Y]
    factor = scale if scale_position else 1.0
    # Contiguous, so that their sum, which is large, is and need not be copied.
    down = across = None
    if rel_height is not None:
        down = torch.einsum("thyxd,yYd->thyxY", q_w, rel_height.to(wide)[rel] * factor).contiguous()[..., None]
    if rel_width is not None:
        across = torch.einsum("thyxd,xXd->thyxX", q_w, rel_width.to(wide)[rel] * factor).contiguous()[..., None, :]
    q_t, k_t, v_t = q_t.flatten(2, 3), halos(k), halos(v)

    def attend(blocks: slice) -> torch.Tensor:
        parts = [t[blocks] for t in (down, across) if t is not None]
        mask = None
        if parts:
            mask = parts[0] + parts[1] if len(parts) == 2 else parts[0]
            mask = mask.expand(-1, -1, -1, -1, win, win).reshape(-1, heads, by * by, win * win)
        return F.scaled_dot_product_attention(q_t[blocks], k_t[blocks], v_t[blocks], attn_mask=mask, scale=scale)

    tiles = B * ny * nx
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or (down is None and across is None):
        out = attend(slice(None))
    else:
        # The relative logits of all blocks are far larger than everything else: some blocks at a time stay in cache.
        step = max(1, CHUNK_BYTES // (heads * by * by * win * win * wide.itemsize))
        out = torch.cat([attend(slice(i, i + step)) for i in range(0, tiles, step)]) if tiles else attend(slice(None))
    out = out.view(B, ny, nx, heads, by, by, dv).permute(0, 1, 4, 2, 5, 3, 6)  # [B, ny, y, nx, x, h, dv]
    return out.reshape(*q.shape[:-1], dv)
