"""Reversed attention: each token shares itself out among the tokens that it depends on, rather than collecting.

Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention (CVPR 2023, arXiv 2304.03282). The
authors' repository has no code; this follows the paper's description.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import linear_flops
from zoo.mixers.sequence import SequenceMixer
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


@register_mixer(name="reversed")
class ReversedAttention(SequenceMixer):
    """``out_i = sum_j softmax_i(q_j k_i) p_j m_j v_j``: child j spreads its message over its parents i.

    The attention matrix of the queries of children and the keys of parents is normalised over the parents and used
    transposed. The head selector p gives a share of the message to each head, a softmax over the heads; the message
    controller m, between 0 and 1, says how much a child sends at all.

    Args:
        dim: channels C.
        num_heads: attention heads.
        qkv_bias: bias of the projection to queries, keys and values.
        temperature: of the softmax over the heads.

    Raises:
        ValueError: ``temperature`` not above 0.

    Source: the paper's reversed attention block (figure 2): reversed attention, head selector, message controller.
    """

    normalised_rows = False

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False, temperature: float = 0.1):
        super().__init__(dim, num_heads)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: accepted are numbers above 0")
        self.temperature = temperature
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.head_selector = TokenLinear(dim, num_heads, bias=False)
        hidden = max(1, dim // 2)
        self.message_controller = nn.Sequential(TokenLinear(dim, hidden), nn.GELU(), TokenLinear(hidden, 1))
        self.open_controller()
        self.proj = TokenLinear(dim, dim)

    def open_controller(self) -> None:
        """Start with nearly everything sent, so that what passes a stack of blocks does not vanish at first."""
        last = self.message_controller[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, 4.0)

    def messages(self, tokens: Tensor) -> Tensor:
        """How much each token sends, ``[B, N, 1]`` between 0 and 1."""
        return self.message_controller(tokens).sigmoid()

    def shares(self, tokens: Tensor, message: Tensor) -> Tensor:
        """What a token sends by each head, p m: ``[B, heads, N, 1]``; over the heads they sum to ``message``."""
        shares = (self.head_selector(tokens) / self.temperature).softmax(-1) * message  # [B, N, h]
        return shares.transpose(1, 2).unsqueeze(3)

    def mix(self, tokens: Tensor, message: Tensor | None = None) -> Tensor:
        """``[B, N, C] -> [B, N, C]``; ``message`` ``[B, N, 1]`` in place of this mixer's own (see the backbone)."""
        message = self.messages(tokens) if message is None else message
        q, k, v = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))  # [B, h, N, d]
        sent = v * self.shares(tokens, message).to(v.dtype)
        # Parents are the queries of the operator: its "reversed" score is normalised over them for each child.
        return self.proj(self.join(dense_attention(k, q, sent, score="reversed")))

    def weights(self, tokens: Tensor, message: Tensor | None = None) -> Tensor:
        """``[B, heads, N, N]``, row i what parent i receives; a column sums to what its child sends by the head."""
        message = self.messages(tokens) if message is None else message
        q, k, _ = (self.split(t) for t in self.qkv(tokens).chunk(3, dim=-1))
        forward = (self.head_dim**-0.5 * q @ k.transpose(-1, -2)).softmax(-1)  # child by parent
        return (forward * self.shares(tokens, message)).transpose(-1, -2)

    @torch.no_grad()
    def dependencies(self, tokens: Tensor, message: Tensor | None = None) -> Tensor:
        """The soft dependency mask, ``[B, N, N]``: the weights summed over the heads, row parent, column child."""
        return self.weights(tokens, message).sum(1)

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        layers = (self.qkv, self.proj, self.head_selector, *self.message_controller)
        return linear_flops(tokens, *layers) + 2 * tokens * tokens * self.dim

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"
