"""Dual attention: some heads send features, the others relations tagged with symbols.

Disentangling and Integrating Relational and Sensory Information in Transformer Architectures (ICML 2025, arXiv
2405.16727). Authors' code: github.com/Awni00/dual-attention (MIT; read for facts). Not the dual attention of DaViT.

A relational head sends from j to i not the features of j but how i and j relate, and a symbol that says who j is:
``sum_j a_ij (W_r r_ij + W_s s_j)``, ``r_ij = (<W_q^l x_i, W_k^l x_j>)_l``. As r is linear in the keys,
``sum_j a_ij r_ij`` is a query times the attended relation keys, so no relation of a pair is stored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention

SYMBOLS = ("symbolic", "positional", "relative")


class SymbolicAttention(nn.Module):
    """A symbol for each token, read by attention from a library of learned templates and symbols.

    Args:
        dim: channels C of tokens and symbols.
        num_heads: heads of the retrieval.
        num_symbols: entries of the library.

    Source: the paper's symbolic attention, ``softmax(W_q x F^T / sqrt(d)) S``.
    """

    no_decay = ("templates", "symbols")

    def __init__(self, dim: int, num_heads: int, num_symbols: int):
        super().__init__()
        self.q = TokenLinear(dim, dim)
        self.templates = nn.Parameter(torch.randn(num_heads, num_symbols, dim // num_heads))
        self.symbols = nn.Parameter(torch.randn(num_heads, num_symbols, dim // num_heads))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, C] -> [B, N, C]``."""
        heads, _, d = self.templates.shape
        q = self.q(tokens).unflatten(2, (heads, d)).transpose(1, 2)  # [B, h, N, d]
        k, v = (t.to(q.dtype).expand(q.shape[0], -1, -1, -1) for t in (self.templates, self.symbols))
        return dense_attention(q, k, v).transpose(1, 2).flatten(2)


@register_mixer(name="relational")
class RelationalAttention(Mixer):
    """Dual attention: sensory heads (softmax attention) beside relational heads, concatenated and projected.

    Args:
        dim: channels C.
        num_heads: all heads.
        num_relational: heads that are relational; half of them by default (at least one), the rest are sensory.
        num_relations: relations r_ij of a pair; as many as relational heads by default.
        symbols: "symbolic" (read from a library by attention), "positional" (one for each place; a learned table that
            is interpolated to other maps) or "relative" (one for each distance in rows and one in columns, added;
            distances beyond ``max_distance`` count as that).
        num_symbols: entries of the library.
        max_distance: largest distance with a symbol of its own.
        symmetric: relation queries and keys share their projection.
        input_size: map (H, W) of the table of positional symbols.
        qkv_bias: bias of the projections to queries, keys and values.

    Raises:
        ValueError: a count outside what is accepted, or another word for the symbols.

    Source: the paper's definitions of relational attention, of its three symbol assignments and of dual attention.
    Relations are scaled by 1 / sqrt of their projection's width, as scores are.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_relational: int | None = None,
        num_relations: int | None = None,
        symbols: str = "symbolic",
        num_symbols: int = 16,
        max_distance: int = 14,
        symmetric: bool = False,
        input_size: int | tuple[int, int] = (14, 14),
        qkv_bias: bool = False,
    ):
        super().__init__(dim, num_heads)
        relational = max(1, num_heads // 2) if num_relational is None else num_relational
        if not 1 <= relational <= num_heads:
            raise ValueError(f"num_relational={relational}: accepted are 1 to num_heads={num_heads}")
        relations = relational if num_relations is None else num_relations
        for name, count in (("num_relations", relations), ("num_symbols", num_symbols), ("max_distance", max_distance)):
            if count < 1:
                raise ValueError(f"{name}={count}: accepted are numbers from 1")
        if symbols not in SYMBOLS:
            raise ValueError(f"symbols={symbols!r}: accepted are {', '.join(map(repr, SYMBOLS))}")
        self.num_relational, self.num_sensory, self.num_relations = relational, num_heads - relational, relations
        self.kind = symbols
        self.max_distance = max_distance
        size = to_pair(input_size, "input_size")
        d, width = self.head_dim, relational * self.head_dim
        self.qkv = TokenLinear(dim, 3 * self.num_sensory * d, bias=qkv_bias) if self.num_sensory else None
        self.qk = TokenLinear(dim, 2 * width, bias=qkv_bias)
        self.relation_q = TokenLinear(dim, relations * d, bias=False)
        self.relation_k = None if symmetric else TokenLinear(dim, relations * d, bias=False)
        self.relation_out = nn.Parameter(torch.empty(relational, relations, d))  # W_r of each head
        self.symbol_out = TokenLinear(dim, width, bias=False)  # W_s of each head
        self.library = SymbolicAttention(dim, num_heads, num_symbols) if symbols == "symbolic" else None
        self.table = nn.Parameter(torch.empty(1, dim, *size)) if symbols == "positional" else None
        shape = (2, 2 * max_distance + 1, dim)  # along rows and along columns
        self.distances = nn.Parameter(torch.empty(shape)) if symbols == "relative" else None
        self.no_decay = ("table", "distances")
        self.proj = TokenLinear(dim, dim)
        nn.init.kaiming_uniform_(self.relation_out, a=math.sqrt(5))
        for table in (self.table, self.distances):
            if table is not None:
                nn.init.normal_(table)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[B, H, W, C] -> [B, H, W, C]``; prefix tokens are not defined, as most symbols are of positions."""
        self._check(x, prefix)
        size = (x.shape[1], x.shape[2])
        tokens = x.flatten(1, 2)
        heads = [] if self.qkv is None else [self._sensory(tokens)]
        heads.append(self._relational(tokens, size))
        out = torch.cat(heads, dim=1)  # [B, h, N, d]
        return self.proj(out.transpose(1, 2).flatten(2)).unflatten(1, size)

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, N, h * d] -> [B, h, N, d]``."""
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

    def _sensory(self, tokens: Tensor) -> Tensor:
        assert self.qkv is not None
        q, k, v = (self._heads(t) for t in self.qkv(tokens).chunk(3, dim=-1))
        return dense_attention(q, k, v)

    def _relational(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """The relational heads ``[B, h_r, N, d]``."""
        q, k = (self._heads(t) for t in self.qk(tokens).chunk(2, dim=-1))  # [B, h_r, N, d]
        relation_q = self._heads(self.relation_q(tokens))  # [B, R, N, d]
        relation_k = relation_q if self.relation_k is None else self._heads(self.relation_k(tokens))
        keys = relation_k.transpose(1, 2).flatten(2)  # [B, N, R * d], which every head attends
        keys = keys.unsqueeze(1).expand(-1, self.num_relational, -1, -1)
        if self.kind == "relative":
            weights = (self.head_dim**-0.5 * q @ k.transpose(-1, -2)).softmax(-1).to(keys.dtype)
            attended, symbols = weights @ keys, self._relative_symbols(weights, size)
        else:
            values = torch.cat([keys, self._heads(self._symbols(tokens, size)).to(keys.dtype)], dim=-1)
            attended, symbols = dense_attention(q, k, values).split([keys.shape[-1], self.head_dim], dim=-1)
        attended = attended.unflatten(3, (self.num_relations, self.head_dim))  # [B, h_r, N, R, d]
        relations = torch.einsum("brnd,bhnrd->bhnr", relation_q, attended) * self.head_dim**-0.5
        return torch.einsum("bhnr,hrd->bhnd", relations, self.relation_out.to(relations.dtype)) + symbols

    def _symbols(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """W_s times the symbol of each token, ``[B, N, h_r * d]``."""
        if self.library is not None:
            return self.symbol_out(self.library(tokens))
        assert self.table is not None
        table: Tensor = self.table
        if table.shape[2:] != size:
            table = F.interpolate(table, size=size, mode="bilinear", align_corners=False)
        return self.symbol_out(table.flatten(2).transpose(1, 2)).expand(tokens.shape[0], -1, -1)

    def _relative_symbols(self, weights: Tensor, size: tuple[int, int]) -> Tensor:
        """``sum_j a_ij W_s (s_rows(j - i) + s_columns(j - i))`` of weights ``[B, h_r, N, N]``: ``[B, h_r, N, d]``."""
        assert self.distances is not None
        H, W = size
        weights = weights.unflatten(3, size).unflatten(2, size)  # [B, h, H, W, H, W]
        table = self.symbol_out(self.distances)  # [2, distances, h * d]
        total = None
        # Distances along an axis see the weights summed over the other axis.
        for axis, (length, equation) in enumerate(((H, "bhxyu,xuhd->bhxyd"), (W, "bhxyu,yuhd->bhxyd"))):
            places = torch.arange(length, device=weights.device)
            index = (places[None] - places[:, None]).clamp(-self.max_distance, self.max_distance) + self.max_distance
            symbols = table[axis][index]  # [length, length, h * d]
            symbols = symbols.unflatten(2, (self.num_relational, self.head_dim)).to(weights.dtype)
            part = torch.einsum(equation, weights.sum(5 - axis), symbols)
            total = part if total is None else total + part
        assert total is not None
        return total.flatten(2, 3)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``, sensory heads first; rows sum to 1."""
        self._check(x)
        tokens = x.flatten(1, 2)
        pairs = [] if self.qkv is None else [self.qkv(tokens).chunk(3, dim=-1)[:2]]
        pairs.append(self.qk(tokens).chunk(2, dim=-1))
        maps = [(self.head_dim**-0.5 * self._heads(q) @ self._heads(k).transpose(-1, -2)).softmax(-1) for q, k in pairs]
        return torch.cat(maps, dim=1)

    def flops(self, height: int, width: int) -> int:
        tokens, d, r = height * width, self.head_dim, self.num_relational
        total = linear_flops(tokens, self.qkv, self.qk, self.relation_q, self.relation_k, self.proj)
        total += 2 * tokens * tokens * self.num_sensory * d  # sensory heads
        total += tokens * tokens * r * d * (1 + self.num_relations)  # relational: scores, relation keys
        total += 2 * tokens * r * self.num_relations * d  # relations, W_r
        if self.library is not None:
            total += linear_flops(tokens, self.library.q, self.symbol_out)
            total += 2 * tokens * self.library.templates.shape[1] * self.dim + tokens * tokens * r * d
        elif self.distances is not None:
            total += 2 * linear_flops(self.distances.shape[1], self.symbol_out) + tokens * r * d * (height + width)
        else:
            total += linear_flops(tokens, self.symbol_out) + tokens * tokens * r * d
        return total

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_relational={self.num_relational}, symbols={self.kind!r}"
