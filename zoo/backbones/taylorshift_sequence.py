"""The classifier of sequences with TaylorShift attention.

TaylorShift (Nauen et al., ICPR 2024, arXiv 2403.02920, Long Range Arena experiments). Authors' code:
github.com/tobna/TaylorShift (MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.backbones.hybrid_base import init_linear
from zoo.backbones.taylorshift import TaylorShiftTrunk, TokenHead
from zoo.layers.token_linear import TokenLinear


def sinusoids(length: int, dim: int) -> Tensor:
    """Positions ``[1, length, dim]`` (arXiv 1706.03762, section 3.5): sines in even channels, cosines in odd ones.

    Raises:
        ValueError: an odd ``dim``.
    """
    if dim % 2:
        raise ValueError(f"embed_dim={dim}: sinusoidal positions take even numbers")
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)  # [length, dim / 2]
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None]


class SequenceConv(nn.Module):
    """Three convolutions of width 3 along a sequence, each normalised over it (one group) and activated by GELU.

    Args:
        input_dim: channels in.
        dim: channels out; a quarter after the first convolution, half after the second.
    """

    def __init__(self, input_dim: int, dim: int):
        super().__init__()
        widths = [input_dim, dim // 4, dim // 2, dim]
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1, bias=False) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.GroupNorm(1, b) for b in widths[1:])
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, input_dim] -> [B, N, dim]``."""
        x = x.transpose(1, 2)
        for conv, norm in zip(self.convs, self.norms):
            x = self.act(norm(conv(x)))
        return x.transpose(1, 2)


class TaylorShiftTransformer(nn.Module):
    """A transformer with TaylorShift attention that classifies sequences ``[B, N, input_dim]``.

    Args:
        max_seq_len: longest sequence (with the class token, where it has a position).
        input_dim: channels of the sequence.
        conv_embed: embed by convolutions along the sequence instead of token by token.
        num_classes: classes.
        global_pool, fc_norm: see :class:`~zoo.backbones.taylorshift.TokenHead`.
        no_embed_class: the class token has no position.
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias, init_values, class_token, pre_norm, normalize_input,
            scale_output, norm_eps, act_layer, drop_path_rate: see
            :class:`~zoo.backbones.taylorshift.TaylorShiftTrunk`.

    Raises:
        ValueError: an argument outside what is accepted.
    """

    positions: Tensor

    def __init__(
        self,
        max_seq_len: int,
        input_dim: int,
        conv_embed: bool = False,
        num_classes: int = 1000,
        global_pool: str = "token",
        fc_norm: bool | None = None,
        no_embed_class: bool = True,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        class_token: bool = True,
        pre_norm: bool = False,
        normalize_input: bool = True,
        scale_output: bool = True,
        norm_eps: float = 1e-6,
        act_layer: type[nn.Module] = nn.GELU,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.max_seq_len, self.input_dim, self.no_embed_class = max_seq_len, input_dim, no_embed_class
        self.embedding = SequenceConv(input_dim, embed_dim) if conv_embed else TokenLinear(input_dim, embed_dim)
        self.register_buffer("positions", sinusoids(max_seq_len, embed_dim))
        self.trunk = TaylorShiftTrunk(
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            qkv_bias,
            init_values,
            class_token,
            pre_norm,
            normalize_input,
            scale_output,
            norm_eps,
            act_layer,
            drop_path_rate,
        )
        self.head = TokenHead(embed_dim, num_classes, global_pool, int(class_token), fc_norm, norm_eps)
        init_linear(self)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens ``[B, P + N, C]`` with their positions, class token first."""
        tokens = self.embedding(x)
        if self.no_embed_class:
            return self.trunk.prepend(tokens + self._table(tokens))
        tokens = self.trunk.prepend(tokens)
        return tokens + self._table(tokens)

    def _table(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(f"x has {tokens.shape[1]} tokens; max_seq_len={self.max_seq_len} positions were made")
        return self.positions[:, : tokens.shape[1]]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of ``[B, N, input_dim]``.

        Raises:
            ValueError: another shape, or more tokens than there are positions.
        """
        if x.ndim != 3 or x.shape[2] != self.input_dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; [batch, tokens, {self.input_dim}] is accepted")
        return self.head(self.trunk(self.embed(x))[-1])
