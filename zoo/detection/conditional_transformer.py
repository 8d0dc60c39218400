"""Decoder layers whose attention keeps content and position apart.

Conditional DETR for Fast Training Convergence (arXiv:2108.06152), section 3.3. DAB-DETR and DN-DETR have the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.detection.layers import activation as build_activation
from zoo.layers.token_linear import TokenLinear
from zoo_kernels.dense_attention import dense_attention


class ProjectedAttention(nn.Module):
    """Attention over queries, keys and values that are projected already, with an output projection.

    Args:
        dim: channels of the values and of the output.
        num_heads: heads.
        dropout: of the attention's weights in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.out_proj = TokenLinear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            q: ``[B, Q, D]``; the logits are scaled by the square root of D over the heads.
            k: ``[B, M, D]``.
            v: ``[B, M, C]``.
            mask: true where a key must not be seen, broadcastable to ``[B, heads, Q, M]``.

        Returns:
            ``[B, Q, C]``.
        """
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        visible = None if mask is None else ~mask
        if self.training and self.dropout > 0:
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=self.dropout)
        else:
            out = dense_attention(q, k, v, bias=visible)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class ConditionalDecoderLayer(nn.Module):
    """Self-attention of the queries, conditional attention to the memory, feed-forward (all post-norm).

    Args:
        d_model: channels C.
        nhead: attention heads.
        dim_feedforward: hidden channels of the feed-forward branch.
        dropout: of all branches and of the attentions' weights.
        activation: name, see :data:`zoo.detection.layers.ACTIVATIONS`.
        positions_in_content: the cross-attention adds positions to the contents too (the first layer of a decoder).
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        positions_in_content: bool = False,
    ):
        super().__init__()
        self.nhead = nhead
        self.sa_qcontent_proj = TokenLinear(d_model, d_model)
        self.sa_qpos_proj = TokenLinear(d_model, d_model)
        self.sa_kcontent_proj = TokenLinear(d_model, d_model)
        self.sa_kpos_proj = TokenLinear(d_model, d_model)
        self.sa_v_proj = TokenLinear(d_model, d_model)
        self.ca_qcontent_proj = TokenLinear(d_model, d_model)
        self.ca_kcontent_proj = TokenLinear(d_model, d_model)
        self.ca_kpos_proj = TokenLinear(d_model, d_model)
        self.ca_v_proj = TokenLinear(d_model, d_model)
        self.ca_qpos_sine_proj = TokenLinear(d_model, d_model)
        self.ca_qpos_proj = TokenLinear(d_model, d_model) if positions_in_content else None
        self.self_attn = ProjectedAttention(d_model, nhead, dropout)
        self.cross_attn = ProjectedAttention(d_model, nhead, dropout)
        self.linear1 = TokenLinear(d_model, dim_feedforward)
        self.linear2 = TokenLinear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.activation = build_activation(activation)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        padding: Tensor | None,
        pos: Tensor,
        query_pos: Tensor,
        query_sine: Tensor,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Refine the queries.

        Args:
            tgt: contents of the queries ``[B, Q, C]``.
            memory: ``[B, S, C]``.
            padding: ``[B, S]``, true in the padding.
            pos: positions of the memory ``[B, S, C]``.
            query_pos: positions of the queries ``[B, Q, C]``.
            query_sine: sines of the queries' references, scaled, ``[B, Q, C]``.
            attn_mask: ``[Q, Q]``, true where a query must not see another.

        Returns:
            ``[B, Q, C]``.
        """
        q = self.sa_qcontent_proj(tgt) + self.sa_qpos_proj(query_pos)
        k = self.sa_kcontent_proj(tgt) + self.sa_kpos_proj(query_pos)
        tgt = self.norm1(tgt + self.dropout(self.self_attn(q, k, self.sa_v_proj(tgt), attn_mask)))

        q, k, k_pos = self.ca_qcontent_proj(tgt), self.ca_kcontent_proj(memory), self.ca_kpos_proj(pos)
        if self.ca_qpos_proj is not None:
            q, k = q + self.ca_qpos_proj(query_pos), k + k_pos
        q = self._beside(q, self.ca_qpos_sine_proj(query_sine))
        mask = None if padding is None else padding[:, None, None]
        attended = self.cross_attn(q, self._beside(k, k_pos), self.ca_v_proj(memory), mask)
        tgt = self.norm2(tgt + self.dropout(attended))
        hidden = self.dropout(self.activation(self.linear1(tgt)))
        return self.norm3(tgt + self.dropout(self.linear2(hidden)))

    def _beside(self, content: Tensor, position: Tensor) -> Tensor:
        """Content and position of each head side by side: twice ``[B, N, C]`` to ``[B, N, 2C]``."""
        parts = [x.unflatten(-1, (self.nhead, -1)) for x in (content, position)]
        return torch.cat(parts, dim=-1).flatten(-2)
