"""SEA: a linear attention estimates a compressed attention matrix, whose largest entries say where to attend exactly.

SEA: Sparse Linear Attention with Estimated Attention Mask (ICLR 2024, arXiv 2310.01777, section 3). This follows the
paper; the authors' implementation was not compared.

    C_perf = FAVOR+(Q, K, [V_I, V])             V_I: the identity stretched over the tokens, which tells positions
    Z      = MLP([C_perf, V])
    A_est  = softmax(CNN(MLP(Z)))               [N, K] columns, each standing for N/K keys
    A      = softmax of Q K^T over the keys of the k K/N largest columns of a row
    C      = S_mix S_prob A V + (1 - S_mix) mean(V),   S_mix, S_prob = sigmoid(linear(Z))

What is this project's choice: the estimate adds its logarithm to the exact logits (``estimate_bias=False`` leaves it
out), so that the estimator has a gradient without a teacher; the paper trains it by distillation, for which
:meth:`SparseEstimatedAttention.estimation_loss` is there. Tokens are read row by row, and nothing is causal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.token_linear import TokenLinear
from zoo.mixers.base import Mixer, linear_flops
from zoo.registry import register_mixer
from zoo_kernels.linear_attention import linear_attention

#: numbers of keys and values gathered at a time without gradients
CHUNK = 1 << 22


@register_mixer(name="sea")
class SparseEstimatedAttention(Mixer):
    """Exact attention on the few keys that an estimate of the attention matrix names.

    Args:
        dim: channels C.
        num_heads: attention heads.
        top_k: keys that a query attends to (about: whole columns are taken).
        columns: width K of the estimate. Cost is linear up to ``top_k * columns`` tokens; beyond, a column is more than
            ``top_k`` keys.
        features: random features of FAVOR+; the head's channels by default.
        hidden: channels of Z and of the decoder's convolutions.
        estimate_bias: whether the estimate's logarithm is added to the logits.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    Raises:
        ValueError: ``top_k``, ``columns`` or ``hidden`` below 1.
    """

    growth = "linear"
    normalised_rows = False
    omega: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        top_k: int = 64,
        columns: int = 256,
        features: int | None = None,
        hidden: int = 16,
        estimate_bias: bool = True,
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads)
        for name, value in dict(top_k=top_k, columns=columns, hidden=hidden).items():
            if value < 1:
                raise ValueError(f"{name}={value}: accepted are numbers from 1")
        d = self.head_dim
        self.top_k, self.columns, self.estimate_bias = top_k, columns, estimate_bias
        self.qkv = TokenLinear(dim, 3 * dim, bias=qkv_bias)
        # Fixed, but part of a checkpoint: the estimator is trained for these features.
        self.register_buffer("omega", torch.randn(features or d, d))
        self.encode = TokenLinear(3 * d, hidden)
        self.decode = TokenLinear(hidden, columns)
        self.conv1 = nn.Conv2d(num_heads, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, num_heads, 3, padding=1)
        self.mix = TokenLinear(hidden, 2)  # logits of S_prob and S_mix
        self.proj = TokenLinear(dim, dim)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, heads, N, d]``."""
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _features(self, t: Tensor) -> Tensor:
        """Exponents of FAVOR+'s positive features of ``[B, heads, N, d]`` (Performer, arXiv 2009.14794, lemma 1)."""
        t = t * self.head_dim**-0.25
        return t @ self.omega.to(t.dtype).t() - t.square().sum(-1, keepdim=True) / 2

    def column_starts(self, tokens: int) -> Tensor:
        """First key of each column, and the number of keys at the end, ``[K + 1]``: nearest interpolation to N keys."""
        c = torch.arange(self.columns + 1, device=self.omega.device)
        return (c * tokens + self.columns - 1) // self.columns

    def estimate(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Z ``[B, heads, N, hidden]`` and logarithms of the estimated attention ``[B, heads, N, K]``."""
        N, d = q.shape[2:]
        place = torch.arange(N, device=q.device) * d // N
        identity = (place[:, None] == torch.arange(d, device=q.device)).to(v.dtype)  # [N, d], rows one-hot
        cat = torch.cat([identity.expand_as(v), v], dim=-1)
        context = linear_attention(self._features(q), self._features(k), cat, feature_map="exp")
        z = F.gelu(self.encode(torch.cat([context, v], dim=-1)))
        maps = self.decode(z)  # [B, heads, N, K]
        maps = maps + self.conv2(F.relu(self.conv1(maps)))
        starts = self.column_starts(N)
        empty = starts[1:] == starts[:-1]  # more columns than keys
        wide = torch.promote_types(maps.dtype, torch.float32)
        return z, maps.to(wide).masked_fill(empty, float("-inf")).log_softmax(-1)

    def _chosen(self, log_estimate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of the largest columns, ``[B, heads, N, M]``, whether each is one, and its column's logarithm."""
        N = log_estimate.shape[2]
        starts, width = self.column_starts(N), -(-N // self.columns)
        count = min(max(1, round(self.top_k * self.columns / N)), self.columns, N)
        values, chosen = log_estimate.topk(count, dim=-1)  # [B, heads, N, count]
        keys = starts[chosen][..., None] + torch.arange(width, device=chosen.device)
        valid = keys < starts[chosen + 1][..., None]
        values = values[..., None].expand(*values.shape, width)
        return keys.clamp(max=N - 1).flatten(-2), valid.flatten(-2), values.flatten(-2)

    def _sparse(self, q: Tensor, k: Tensor, v: Tensor, log_estimate: Tensor) -> Tensor:
        """Attention of each query to its chosen keys, ``[B, heads, N, d]``."""
        B, h, N, d = q.shape
        keys, valid, values = self._chosen(log_estimate)
        M = keys.shape[-1]
        offset = torch.arange(B * h, device=q.device).view(B, h, 1, 1) * N
        k, v = k.reshape(B * h * N, d), v.reshape(B * h * N, d)

        def attend(rows: slice) -> Tensor:
            index = (keys[:, :, rows] + offset).flatten()
            near_k, near_v = (t.index_select(0, index).view(B, h, -1, M, d) for t in (k, v))
            logits = (near_k @ q[:, :, rows, :, None])[..., 0] * d**-0.5  # [B, h, rows, M]
            if self.estimate_bias:
                logits = logits + values[:, :, rows].to(logits.dtype)
            weights = logits.masked_fill(~valid[:, :, rows], float("-inf")).softmax(-1)
            return (weights[..., None, :].to(near_v.dtype) @ near_v)[..., 0, :]

        step = N
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            step = max(1, CHUNK // max(1, B * h * M * d))
        return torch.cat([attend(slice(i, min(i + step, N))) for i in range(0, N, step)], dim=2)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``; raises TypeError if ``prefix`` is given."""
        self._check(x, prefix)
        q, k, v = self._heads(x)
        z, log_estimate = self.estimate(q, k, v)
        prob, mix = self.mix(z).sigmoid().split(1, dim=-1)
        out = mix * prob * self._sparse(q, k, v, log_estimate) + (1 - mix) * v.mean(2, keepdim=True)
        return self.proj(out.transpose(1, 2).flatten(2)).unflatten(1, x.shape[1:3])

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """``[B, heads, H*W, H*W]``: the weights of all values in the result, sparse attention and mean together."""
        self._check(x)
        q, k, v = self._heads(x)
        z, log_estimate = self.estimate(q, k, v)
        prob, mix = self.mix(z).sigmoid().split(1, dim=-1)
        keys, valid, values = self._chosen(log_estimate)
        logits = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        near = logits.gather(-1, keys)
        if self.estimate_bias:
            near = near + values.to(near.dtype)
        weights = near.masked_fill(~valid, float("-inf")).softmax(-1)
        sparse = torch.zeros_like(logits).scatter_add(-1, keys, weights)
        return mix * prob * sparse + (1 - mix) / logits.shape[-1]

    def estimation_loss(self, x: Tensor) -> Tensor:
        """Mean over queries of KL(full attention | estimate), by which the paper trains the estimator.

        The estimate of a column is shared out evenly over its keys. Costs what full attention costs.
        """
        self._check(x)
        q, k, v = self._heads(x)
        _, log_estimate = self.estimate(q, k, v)
        starts = self.column_starts(q.shape[2])
        sizes = starts[1:] - starts[:-1]
        column = torch.arange(self.columns, device=x.device).repeat_interleave(sizes, output_size=q.shape[2])
        spread = log_estimate[..., column] - sizes[column].to(log_estimate.dtype).log()  # [B, heads, N, N]
        full = (q.detach() @ k.detach().transpose(-1, -2) * self.head_dim**-0.5).log_softmax(-1).to(spread.dtype)
        return (full.exp() * (full - spread)).sum(-1).mean()

    def flops(self, height: int, width: int) -> int:
        N, h, d, m = height * width, self.num_heads, self.head_dim, self.omega.shape[0]
        count = min(max(1, round(self.top_k * self.columns / N)), self.columns, N)
        keys = count * -(-N // self.columns)
        favor = h * N * (2 * m * d + 2 * m * 2 * d)
        decoder = linear_flops(N * h, self.encode, self.decode, self.mix)
        convolutions = N * self.columns * (self.conv1.weight.numel() + self.conv2.weight.numel())
        return linear_flops(N, self.qkv, self.proj) + favor + decoder + convolutions + 2 * N * keys * self.dim
