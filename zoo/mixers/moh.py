"""Mixture-of-Head attention: each token weighs its heads, some of which are always on and some chosen by a router.

MoH: Multi-Head Attention as Mixture-of-Head Attention (arXiv 2410.11842, eq. 4-8). Authors' code:
github.com/SkyworkAI/MoH (Apache-2.0). :class:`MoHAttention` is the full attention of their vision models (TransNeXt's,
arXiv 2311.17132, section 3.1): queries and keys of unit length, a query embedding, a temperature that follows the
number of keys, a position bias from a small network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.padding import to_pair
from zoo.layers.records import Recorder
from zoo.layers.relative_mlp import RelativeMlp
from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.dense_attention import dense_attention


def default_heads(num_heads: int) -> tuple[int, int]:
    """(shared, routed) heads of which about three quarters are on: the share of the paper's MoH-ViT-75.

    A single routed head would always have the gate 1 and could not be learned, so small numbers only have shared ones.
    """
    if num_heads < 3:
        return num_heads, 0
    shared = max(1, num_heads // 4)
    return shared, min(num_heads - shared, max(2, round(0.75 * num_heads) - shared))


class HeadGates(Recorder):
    """Weight of each head for each token: ``[..., C] -> [..., heads]``, shared heads first.

    Shared heads get ``shared * softmax(W_s x)``; of the others the ``routed`` with the highest ``softmax(W_r x)`` get
    ``routed`` times their share among the chosen, the rest 0. With both kinds each is multiplied by twice the softmax
    of ``W_h x`` that balances them (eq. 5-7).

    Args:
        dim: channels C.
        num_heads: attention heads.
        shared: heads that are always on.
        routed: how many of the others are on.

    Records ``balance``, the load-balancing loss (eq. 8), a number: the mean over the routed heads of (mean probability
    * mean choice), times their number squared.

    Raises:
        ValueError: numbers of heads that do not fit.
    """

    records = ("balance",)

    def __init__(self, dim: int, num_heads: int, shared: int, routed: int):
        super().__init__()
        if shared < 0 or routed < 0 or shared + routed > num_heads:
            raise ValueError(
                f"shared_heads={shared}, routed_heads={routed}: accepted are numbers from 0 whose sum is at most "
                f"num_heads={num_heads}"
            )
        if not routed and shared != num_heads:
            raise ValueError(
                f"routed_heads=0 leaves shared_heads={shared} of num_heads={num_heads}: all must be shared"
            )
        self.num_heads, self.shared, self.routed = num_heads, shared, routed
        self.shared_gate = TokenLinear(dim, shared, bias=False) if shared > 1 else None
        self.routed_gate = TokenLinear(dim, num_heads - shared, bias=False) if routed else None
        self.balance_gate = TokenLinear(dim, 2, bias=False) if routed and shared else None

    def forward(self, x: Tensor) -> Tensor:
        if self.shared_gate is not None:
            shared = self.shared * self.shared_gate(x).softmax(-1)
        else:
            shared = x.new_ones(*x.shape[:-1], self.shared)
        if self.routed_gate is None:
            return shared
        probability = self.routed_gate(x).softmax(-1)  # [..., heads - shared]
        chosen = probability.topk(self.routed, dim=-1).indices
        mask = torch.zeros_like(probability).scatter(-1, chosen, 1.0)
        if self.wants("balance"):
            experts = probability.shape[-1]
            load = probability.flatten(0, -2).mean(0) * mask.flatten(0, -2).mean(0)
            self.keep("balance", load.mean() * experts**2)
        routed = probability * mask
        tiny = torch.finfo(routed.dtype).eps
        routed = self.routed * routed / routed.sum(-1, keepdim=True).clamp_min(tiny)
        if self.balance_gate is None:
            return routed
        kinds = 2 * self.balance_gate(x).softmax(-1)  # [..., 2]
        return torch.cat([kinds[..., :1] * shared, kinds[..., 1:] * routed], dim=-1)

    def flops(self, tokens: int) -> int:
        """Multiply-accumulates for so many tokens."""
        return linear_flops(tokens, self.shared_gate, self.routed_gate, self.balance_gate)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, shared={self.shared}, routed={self.routed}"


def initial_temperature(num_heads: int) -> nn.Parameter:
    """``[heads, 1, 1]`` whose softplus is 1 / 0.24."""
    return nn.Parameter(torch.full((num_heads, 1, 1), math.log(math.expm1(1 / 0.24))))


@register_mixer(name="moh")
class MoHAttention(Mixer):
    """Full attention with cosine similarities, whose heads are weighed for each token.

    Args:
        dim: channels C.
        num_heads: attention heads.
        shared_heads, routed_heads: see :class:`HeadGates`; None for about three quarters of the heads on.
        input_size: map (H, W) that the relative positions take as their unit.
        qkv_bias: bias of the projection to queries, keys and values.

    Raises:
        ValueError: numbers of heads that do not fit.

    Source: MoH eq. 4-8; TransNeXt eq. 6-9.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        shared_heads: int | None = None,
        routed_heads: int | None = None,
        input_size: int | tuple[int, int] = (14, 14),
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads)
        shared, routed = default_heads(num_heads)
        shared = shared if shared_heads is None else shared_heads
        routed = routed if routed_heads is None else routed_heads
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        self.query_embedding = nn.Parameter(torch.empty(num_heads, 1, self.head_dim))
        self.temperature = initial_temperature(num_heads)
        self.position = RelativeMlp(num_heads, to_pair(input_size, "input_size"))
        self.gates = HeadGates(dim, num_heads, shared, routed)
        self.proj = TokenLinear(dim, dim)
        self.no_decay = ("query_embedding", "temperature")
        nn.init.trunc_normal_(self.query_embedding, std=0.02)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        self._check(x, prefix)
        B, H, W, C = x.shape
        q, k, v, bias = self._heads(x)
        out_BHND = dense_attention(q, k, v, bias=bias[None].to(q.dtype), scale=1.0)
        out = out_BHND.transpose(1, 2) * self.gates(x).reshape(B, H * W, -1, 1)  # [B, N, heads, d]
        return self.proj(out.reshape(B, H, W, C))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values ``[B, heads, N, d]`` and bias ``[heads, N, N]``."""
        B, H, W, _ = x.shape
        qkv = self.qkv(x).reshape(B, H * W, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scale = F.softplus(self.temperature) * math.log(H * W)
        q = ((F.normalize(q, dim=-1) + self.query_embedding) * scale).to(v.dtype)
        return q, F.normalize(k, dim=-1).to(v.dtype), v, self.position((H, W), (H, W))

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]`` before the gates; rows sum to 1."""
        self._check(x)
        q, k, _, bias = self._heads(x)
        return (q @ k.transpose(-1, -2) + bias).softmax(-1)

    def flops(self, height: int, width: int) -> int:
        N = height * width
        table = linear_flops((2 * height - 1) * (2 * width - 1), self.position.fc1, self.position.fc2)
        return linear_flops(N, self.qkv, self.proj) + 2 * N * N * self.dim + self.gates.flops(N) + table
