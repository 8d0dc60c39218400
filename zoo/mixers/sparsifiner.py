"""Attention to the few keys that a low-rank predictor chooses for each query.

Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers (CVPR 2023, arXiv
2303.13755, eq. 3-8). Authors' code: github.com/lim142857/Sparsifiner (MIT). Differences: any map is accepted (the
projections over tokens are interpolated), the number of kept keys follows from arguments alone, and
``straight_through`` trains the predictor without a loss of its own. As in the authors' code, what is not chosen is
masked and not skipped.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.padding import to_pair
from zoo.layers.records import Recorder
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


class Connectivity(NamedTuple):
    """What the predictor says of the rows behind the class token (R of the N tokens)."""

    basis: Tensor  # [K, N], non-negative and sparse
    coefficients: Tensor  # [B, heads, R, K]
    approximation: Tensor  # [B, heads, R, N]: coefficients @ basis
    mask: Tensor  # [B, heads, R, N] bool: the keys that a query keeps


def zero_share(x: Tensor) -> Tensor:
    """Share of zeros among the entries, a number."""
    return (x == 0).float().mean()


def _keep_top(x: Tensor, count: int) -> Tensor:
    """Bool, True at the ``count`` largest entries of the last dimension."""
    index = x.topk(min(count, x.shape[-1]), dim=-1, sorted=False).indices
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, index, True)


@register_mixer(name="sparsifiner")
class SparsifinerAttention(Mixer, Recorder):
    """Softmax attention of each query to its predicted keys.

    Args:
        dim: channels C.
        num_heads: attention heads.
        input_size: map (H, W) that the projections over tokens are made for; interpolated for others.
        keep_rate: share of the keys that each query keeps.
        reduce_n_factor: tokens for one of the K basis vectors, K = N // this (N counts the class token).
        reduce_c_factor: channels of a head for one of the predictor's.
        share_inout_proj: one projection over tokens instead of two.
        basis_threshold: entries of the basis up to this become 0.
        coefficient_topk: coefficients that a query keeps; None to keep those above ``coefficient_threshold``.
        coefficient_threshold: see there; 0 or less keeps all.
        score_threshold: keep the keys whose predicted attention is above this, instead of a share; None for the share.
        prune_rows: pruned tokens attend to nothing, instead of to the kept keys (with a token mask).
        class_token: the first token is a class token: it keeps all keys.
        qkv_bias: bias of the projection to queries, keys and values.
        qk_scale: factor of the logits; None for ``head_dim ** -0.5``.
        straight_through: in training pass the logits' gradient on to the predicted attention. The authors train the
            predictor by a reconstruction loss instead, for which ``approximation`` can be recorded.

    Records ``approximation``, ``coefficients``, ``mask`` (see :class:`Connectivity`, with the class token's row of
    ones) and the shares of zeros ``basis_sparsity``, ``coefficient_sparsity``, ``mask_sparsity``.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 3.2-3.3, eq. 3-8.
    """

    records = (
        "approximation",
        "coefficients",
        "mask",
        "basis_sparsity",
        "coefficient_sparsity",
        "mask_sparsity",
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 6,
        input_size: int | tuple[int, int] = (14, 14),
        keep_rate: float = 0.25,
        reduce_n_factor: float = 6,
        reduce_c_factor: int = 2,
        share_inout_proj: bool = False,
        basis_threshold: float = 0.02,
        coefficient_topk: int | None = 8,
        coefficient_threshold: float = 0.05,
        score_threshold: float | None = None,
        prune_rows: bool = False,
        class_token: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        straight_through: bool = True,
    ):
        super().__init__(dim, num_heads)
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate={keep_rate}: accepted are shares above 0, up to 1")
        if score_threshold is not None and score_threshold <= 0:
            raise ValueError(f"score_threshold={score_threshold}: accepted are numbers above 0, or None")
        if coefficient_topk is not None and coefficient_topk < 1:
            raise ValueError(f"coefficient_topk={coefficient_topk}: accepted are numbers from 1, or None")
        reduced = self.head_dim // reduce_c_factor
        if reduced < 1:
            raise ValueError(
                f"reduce_c_factor={reduce_c_factor}: accepted are 1 to the head's {self.head_dim} channels"
            )
        self.grid = to_pair(input_size, "input_size")
        tokens = self.grid[0] * self.grid[1] + class_token
        rank = max(1, int(tokens // reduce_n_factor))
        self.keep_rate, self.score_threshold, self.prune_rows = keep_rate, score_threshold, prune_rows
        self.basis_threshold = basis_threshold
        self.coefficient_topk, self.coefficient_threshold = coefficient_topk, coefficient_threshold
        self.takes_prefix = class_token
        self.scale = qk_scale or self.head_dim**-0.5
        self.straight_through = straight_through
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj_c_q = TokenLinear(self.head_dim, reduced)
        self.proj_c_k = TokenLinear(self.head_dim, reduced)
        self.proj_n = nn.Parameter(torch.empty(tokens, rank))
        self.proj_back_n = self.proj_n if share_inout_proj else nn.Parameter(torch.empty(tokens, rank))
        self.proj = TokenLinear(dim, dim)
        for table in (self.proj_n, self.proj_back_n):
            nn.init.trunc_normal_(table, std=0.02)

    def _for_map(self, table: Tensor, size: tuple[int, int]) -> Tensor:
        """A projection over tokens ``[N, K]`` for a map of ``size``: bilinear, the class token's row as it is."""
        if size == self.grid:
            return table
        first = int(self.takes_prefix)
        planes = table[first:].T.unflatten(1, self.grid)[None]  # [1, K, H, W]
        planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
        return torch.cat([table[:first], planes[0].flatten(1).T])

    def connectivity(
        self, q: Tensor, k: Tensor, size: tuple[int, int], token_mask: Tensor | None = None, kept: int | None = None
    ) -> Connectivity:
        """Predict what each query attends to.

        Args:
            q, k: ``[B, heads, N, d]``.
            size: the map (H, W).
            token_mask: ``[B, H*W]`` bool, False where a token was pruned.
            kept: how many tokens of each image are not.
        """
        # A key is in or out, so the choice is made in full precision, under autocast too.
        q, k = q.to(self.proj_n.dtype), k.to(self.proj_n.dtype)
        if q.device.type == "meta":  # which knows no autocast
            return self._connectivity(q, k, size, token_mask, kept)
        with torch.autocast(q.device.type, enabled=False):
            return self._connectivity(q, k, size, token_mask, kept)

    def _connectivity(
        self, q: Tensor, k: Tensor, size: tuple[int, int], token_mask: Tensor | None, kept: int | None
    ) -> Connectivity:
        first = int(self.takes_prefix)
        q, k = self.proj_c_q(q), self.proj_c_k(k)
        if token_mask is not None:
            q, k = (without_pruned(t, token_mask, first) for t in (q, k))
        k = k.transpose(-1, -2) @ self._for_map(self.proj_n, size).to(k.dtype)  # [B, heads, c, K]
        basis = self._for_map(self.proj_back_n, size).T.abs()  # [K, N]
        basis = F.threshold(basis, self.basis_threshold, 0.0)
        coefficients = (self.num_heads**-0.5 * (q @ k))[..., first:, :].softmax(-1)
        if self.coefficient_topk is not None:
            coefficients = coefficients * _keep_top(coefficients, self.coefficient_topk)
        elif self.coefficient_threshold > 0:
            coefficients = F.threshold(coefficients, self.coefficient_threshold, 0.0)
        approximation = coefficients @ basis.to(coefficients.dtype)
        score = approximation.detach()
        if token_mask is not None:
            score = score.masked_fill(~F.pad(token_mask, (first, 0), value=True)[:, None, None], -math.inf)
        if self.score_threshold is not None:
            mask = score > self.score_threshold
        else:
            budget = math.ceil(self.keep_rate * score.shape[-1])
            mask = _keep_top(score, budget if kept is None else min(budget, kept))
        if token_mask is not None and self.prune_rows:
            mask = mask & token_mask[:, None, :, None]
        return Connectivity(basis, coefficients, approximation, mask)

    def _record(self, found: Connectivity, mask: Tensor) -> None:
        self.keep("approximation", found.approximation)
        self.keep("coefficients", found.coefficients)
        self.keep("mask", mask)
        if self.wants("basis_sparsity"):
            self.keep("basis_sparsity", zero_share(found.basis))
            self.keep("coefficient_sparsity", zero_share(found.coefficients))
            self.keep("mask_sparsity", zero_share(mask))

    def _qkv(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values ``[B, heads, N, d]``."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, self.head_dim))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[return-value]

    def _all_rows(self, rows: Tensor, value: float) -> Tensor:
        """Add the class token's row, of ``value``, in front of ``[B, heads, R, N]``."""
        return F.pad(rows, (0, 0, 1, 0), value=value) if self.takes_prefix else rows

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C] -> [B, H, W, C]``; with ``class_token``, and ``prefix`` ``[B, 1, C]``, the pair of both."""
        self._check(x, prefix)
        size = (x.shape[1], x.shape[2])
        if self.takes_prefix != (prefix is not None) or (prefix is not None and prefix.shape[1] != 1):
            raise ValueError(f"class_token={self.takes_prefix}: forward takes {int(self.takes_prefix)} prefix tokens")
        tokens = x.flatten(1, 2)
        out, _ = self.forward_tokens(tokens if prefix is None else torch.cat([prefix, tokens], dim=1), size)
        first = int(self.takes_prefix)
        found = out[:, first:].unflatten(1, size)
        return found if prefix is None else (found, out[:, :first])

    def forward_tokens(
        self,
        tokens: Tensor,
        size: tuple[int, int],
        token_mask: Tensor | None = None,
        kept: int | None = None,
        keep_tokens: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The same on ``[B, N, C]``, class token first where there is one.

        Args:
            tokens: the sequence.
            size: its map (H, W).
            token_mask, kept: see :meth:`connectivity`; queries, keys and values of pruned tokens are 0.
            keep_tokens: prune to so many tokens, by the class token's attention; None prunes none.

        Returns:
            ``[B, N, C]`` and the token mask for the next block.
        """
        first = int(self.takes_prefix)
        q, k, v = self._qkv(tokens)
        if token_mask is not None:
            q, k, v = (without_pruned(t, token_mask, first) for t in (q, k, v))
        found = self.connectivity(q, k, size, token_mask, kept)
        mask = self._all_rows(found.mask, True)
        self._record(found, mask)
        bias = mask
        if self.training and self.straight_through:
            # 0 in value; its gradient is that of the logits
            soft = self._all_rows(found.approximation - found.approximation.detach(), 0.0)
            bias = soft.to(q.dtype).masked_fill(~mask, -math.inf)
        out = dense_attention(q, k, v, bias=bias, scale=self.scale)
        out = self.proj(out.transpose(1, 2).flatten(2))
        if keep_tokens is None:
            return out, token_mask
        if not first:
            raise ValueError("keep_tokens needs class_token=True, whose attention ranks the tokens")
        attention = (self.scale * q[:, :, :1] @ k.transpose(-1, -2)).softmax(-1)  # the class token keeps all keys
        score = attention[:, :, 0, 1:].mean(1)  # [B, H*W]
        if token_mask is not None:
            score = score.masked_fill(~token_mask, -math.inf)
        return out, _keep_top(score, keep_tokens)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``, rows sum to 1 (without a class token)."""
        self._check(x)
        if self.takes_prefix:
            raise TypeError("class_token=True: the map of positions is part of a longer sequence")
        q, k, _ = self._qkv(x.flatten(1, 2))
        mask = self.connectivity(q, k, (x.shape[1], x.shape[2])).mask
        return (self.scale * q @ k.transpose(-1, -2)).masked_fill(~mask, -math.inf).softmax(-1)

    def flops(self, height: int, width: int) -> int:
        N, rank, reduced = height * width, self.proj_n.shape[1], self.proj_c_q.out_features
        predictor = self.num_heads * N * (2 * self.head_dim * reduced + 2 * reduced * rank + rank * N)
        return linear_flops(N, self.qkv, self.proj) + predictor + 2 * N * N * self.dim


def without_pruned(x: Tensor, token_mask: Tensor, first: int) -> Tensor:
    """``[B, heads, N, d]`` with zeros for pruned tokens; the first ``first`` tokens are never pruned."""
    return x * F.pad(token_mask, (first, 0), value=True)[:, None, :, None].to(x.dtype)
