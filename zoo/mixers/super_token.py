"""Super token attention: attention between a coarse grid of tokens that pixels are softly associated with.

Vision Transformer with Super Token Sampling (CVPR 2023, arXiv 2211.11167, eq. 3-9). Authors' code:
github.com/hhb072/STViT (MIT by the header of its files).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.depthwise import DepthwiseConv
from zoo.layers.padding import to_pair
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops, row_normalised
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention
from zoo_kernels.super_token import back_project, super_token

REFINEMENTS = ("attention", "conv", "none")


class TokenAttention(nn.Module):
    """Full attention between the tokens of a map ``[B, h, w, C]``; the projection is ordered head by head (q, k, v)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, qk_scale: float | None):
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.proj = TokenLinear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, heads, h*w, d]``."""
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        out = dense_attention(*self.heads(x), scale=self.scale)  # [B, heads, h*w, d]
        return self.proj(out.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3]))


@register_mixer(name="super_token")
class SuperTokenAttention(Mixer):
    """Pixels are gathered into super tokens, the tokens attend each other, and pixels read from the tokens around them.

    A map that the cells do not divide is padded with zeros at the bottom and right, which count in the tokens as in the
    authors' model.

    Args:
        dim: channels C.
        num_heads: heads of the attention between super tokens.
        token_size: pixels of a cell, one number or (height, width); 1 is plain attention between all pixels.
        iterations: rounds of association and update.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: factor of the logits between tokens; ``head_dim ** -0.5`` by default.
        refine: what happens to the tokens before pixels read from them: "attention", "conv" (1x1, depth-wise 5x5, 1x1)
            or "none".
        affinity_grad: whether gradients pass through the association; the authors hold it constant (False).

    Raises:
        ValueError: ``refine`` or ``iterations`` is not supported.

    Source: eq. 3-6 (sampling), eq. 7-8 (attention), eq. 9 (upsampling).
    """

    growth = "quadratic"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        token_size: int | tuple[int, int] = 4,
        iterations: int = 1,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        refine: str = "attention",
        affinity_grad: bool = True,
    ):
        super().__init__(dim, num_heads)
        if refine not in REFINEMENTS:
            raise ValueError(f"refine={refine!r}: accepted are {', '.join(map(repr, REFINEMENTS))}")
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: accepted are numbers from 1")
        self.cell = to_pair(token_size, "token_size")
        self.iterations = iterations
        self.affinity_grad = affinity_grad
        self.refine: nn.Module = nn.Identity()
        if refine == "attention":
            self.refine = TokenAttention(dim, num_heads, qkv_bias, qk_scale)
        elif refine == "conv":
            self.refine = nn.Sequential(TokenLinear(dim, dim), DepthwiseConv(dim, 5), TokenLinear(dim, dim))

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        if self.cell == (1, 1):
            return self.refine(x)
        tokens, affinity = super_token(x, cell=self.cell, iterations=self.iterations, affinity_grad=self.affinity_grad)
        return back_project(self.refine(tokens), affinity, cell=self.cell, size=(x.shape[1], x.shape[2]))

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: reading, attention between tokens and gathering in one.

        What padding and tokens beyond the map's edge took is shared out over the row.

        Raises:
            TypeError: ``refine="conv"``, which mixes tokens by a convolution.
        """
        self._check(x)
        if isinstance(self.refine, nn.Sequential):
            raise TypeError("refine='conv': tokens are mixed by a convolution, there is no attention map")
        B, H, W, _ = x.shape
        if self.cell == (1, 1):
            tokens = x
        else:
            tokens, affinity = super_token(x, cell=self.cell, iterations=self.iterations, backend="reference")
        h, w = tokens.shape[1:3]
        between = torch.eye(h * w, dtype=x.dtype, device=x.device).expand(B, 1, -1, -1)
        if isinstance(self.refine, TokenAttention):
            q, k, _ = self.refine.heads(tokens)
            between = (self.refine.scale * q @ k.transpose(-1, -2)).softmax(-1)  # [B, heads, T, T]
        if self.cell == (1, 1):
            return between
        # With one-hot tokens the projection back is the affinity of every pixel (of the padded map) to every token.
        one_hot = torch.eye(h * w, dtype=x.dtype, device=x.device).view(1, h, w, h * w).expand(B, -1, -1, -1)
        padded = (h * self.cell[0], w * self.cell[1])
        share = back_project(one_hot, affinity, cell=self.cell, size=padded, backend="reference")  # [B, Hp, Wp, T]
        total = share.sum((1, 2)).clamp_min(torch.finfo(x.dtype).tiny)  # [B, T]
        share = share[:, :H, :W].flatten(1, 2)[:, None]  # [B, 1, N, T]
        gather = (share / total[:, None, None, :]).transpose(-1, -2)
        return row_normalised(share @ between @ gather)

    def flops(self, height: int, width: int) -> int:
        (ch, cw), C = self.cell, self.dim
        h, w = -(-height // ch), -(-width // cw)
        tokens = h * w
        refine = 0
        if isinstance(self.refine, TokenAttention):
            refine = linear_flops(tokens, self.refine.qkv, self.refine.proj) + 2 * tokens * tokens * C
        elif isinstance(self.refine, nn.Sequential):
            refine = tokens * sum(p.numel() for p in self.refine.parameters() if p.ndim > 1)
        if self.cell == (1, 1):
            return refine
        # Association and gathering in every round, and reading: nine tokens a pixel each.
        return refine + (2 * self.iterations + 1) * 9 * tokens * ch * cw * C

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cell={self.cell}, iterations={self.iterations}"
