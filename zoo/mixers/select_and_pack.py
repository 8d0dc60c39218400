"""Select and Pack Attention (SPA): a gate selects tokens, and the selected ones of an image attend each other.

Context-Aware Token Selection and Packing for Enhanced Vision Transformer (arXiv 2410.23608). There is no public code of
the authors; this follows the paper's description: a low-cost gate scores tokens, those above a threshold are packed
with those of other images into packs of one length, attention stays inside the image, and the gate learns from labels
of what is worth selecting.

What is this project's choice: a token that is not selected attends to itself only (``pass_unselected=False`` gives it
zero instead), and what a token receives is weighed by the probability of the decision taken about it, so that the gate
has a gradient without labels, too. ``forward`` masks, which has one graph for every input; ``forward_packed`` packs and
gives the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


@register_mixer(name="select_and_pack")
class SelectAndPackAttention(Mixer):
    """Softmax attention between the tokens that a gate selects.

    Args:
        dim: channels C.
        num_heads: attention heads.
        threshold: score, between 0 and 1, above which a token is selected.
        pass_unselected: tokens that are not selected keep their own value; otherwise they get zero.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: factor of the logits; ``head_dim ** -0.5`` by default.

    Raises:
        ValueError: ``threshold`` is not between 0 and 1.
    """

    growth = "quadratic"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        threshold: float = 0.5,
        pass_unselected: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
    ):
        super().__init__(dim, num_heads)
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"threshold={threshold}: accepted are numbers between 0 and 1")
        self.threshold = threshold
        self.pass_unselected = pass_unselected
        self.normalised_rows = pass_unselected
        self.scale = qk_scale or self.head_dim**-0.5
        self.gate = TokenLinear(dim, 1)
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)

    def scores(self, tokens: Tensor) -> Tensor:
        """Logits of the gate, ``[..., C] -> [...]``, in float32 at least: a rounded score selects other tokens."""
        wide = torch.promote_types(tokens.dtype, torch.float32)
        return (tokens.to(wide) * self.gate.weight[0].to(wide)).sum(-1) + self.gate.bias.to(wide)

    def select(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens of ``[B, N, C]`` are selected, ``[B, N]`` bool, and the probability of each decision."""
        score = self.scores(tokens).sigmoid()
        selected = score > self.threshold
        return selected, torch.where(selected, score, 1 - score)

    def _visible(self, selected: Tensor) -> Tensor:
        """Who may see whom, ``[B, 1, N, N]``."""
        visible = selected[:, :, None] & selected[:, None, :]
        if self.pass_unselected:
            visible = visible | torch.eye(selected.shape[1], dtype=torch.bool, device=selected.device)
        return visible[:, None]

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v  # [B, heads, N, d] each

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        tokens = x.flatten(1, 2)
        selected, weight = self.select(tokens)
        out = dense_attention(*self._heads(tokens), bias=self._visible(selected), scale=self.scale)
        out = out.transpose(1, 2).flatten(2)  # [B, N, C]
        return self.proj(out * weight[..., None].to(out.dtype)).unflatten(1, x.shape[1:3])

    def forward_packed(self, x: Tensor) -> Tensor:
        """The same by packs: whole images share packs as long as the largest selection (first fit, largest first).

        Only selected tokens are projected to queries and keys. The number of packs depends on the data, which costs a
        synchronisation with the device and cannot be exported.
        """
        self._check(x)
        tokens = x.flatten(1, 2)  # [B, N, C]
        B, N, C = tokens.shape
        selected, weight = self.select(tokens)
        counts = selected.sum(1).tolist()
        length = max(1, *counts)
        free: list[int] = []  # what is left of each pack
        base = [0] * B
        for b in sorted(range(B), key=lambda i: -counts[i]):
            pack = next((i for i, room in enumerate(free) if room >= counts[b]), len(free))
            if pack == len(free):
                free.append(length)
            base[b] = pack * length + length - free[pack]
            free[pack] -= counts[b]
        rank = selected.cumsum(1) - 1 + torch.tensor(base, device=x.device)[:, None]
        place = rank[selected]  # [S]: slot of each selected token
        owner = torch.full((len(free) * length,), -1, device=x.device)
        owner[place] = torch.arange(B, device=x.device)[:, None].expand(B, N)[selected]
        packs = tokens.new_zeros(len(free) * length, C).index_copy(0, place, tokens[selected])
        owner = owner.view(-1, length)
        same = (owner[:, :, None] == owner[:, None, :])[:, None]  # free slots see each other only
        attended = dense_attention(*self._heads(packs.view(-1, length, C)), bias=same, scale=self.scale)
        attended = attended.transpose(1, 2).flatten(2).flatten(0, 1)  # [slots, C]
        out = tokens.new_zeros(B, N, C, dtype=attended.dtype)
        out[selected] = attended[place]
        if self.pass_unselected:
            rest = tokens[~selected]
            values = slice(2 * C, 3 * C)
            bias = None if self.qkv.bias is None else self.qkv.bias[values]
            out[~selected] = F.linear(rest, self.qkv.weight[values], bias)
        return self.proj(out * weight[..., None].to(out.dtype)).unflatten(1, x.shape[1:3])

    def selection_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy between the gate's scores of ``x`` ``[B, H, W, C]`` and labels ``[B, H', W']`` (0 to 1).

        Labels of another size (an object mask, say) are reduced by their maximum over what a token covers.
        """
        self._check(x)
        if labels.ndim != 3 or labels.shape[0] != x.shape[0]:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; accepted is [{x.shape[0]}, height, width]")
        scores = self.scores(x)
        target = F.adaptive_max_pool2d(labels[:, None].to(scores.dtype), x.shape[1:3])[:, 0]
        return F.binary_cross_entropy_with_logits(scores, target)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``, before what a token receives is weighed by its decision."""
        self._check(x)
        tokens = x.flatten(1, 2)
        q, k, _ = self._heads(tokens)
        visible = self._visible(self.select(tokens)[0])
        logits = (self.scale * q @ k.transpose(-1, -2)).masked_fill(~visible, float("-inf"))
        return logits.softmax(-1).nan_to_num(0.0)  # a row that sees nothing

    def flops(self, height: int, width: int) -> int:
        """Of the masked form, or of the packed one where every token is selected."""
        N = height * width
        return linear_flops(N, self.gate, self.qkv, self.proj) + 2 * N * N * self.dim
