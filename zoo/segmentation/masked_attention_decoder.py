"""The decoder of Mask2Former: queries that look only where their mask is.

Masked-attention Mask Transformer for Universal Image Segmentation (arXiv:2112.01527), section 3.2.1 and eq. 2. Authors'
code: github.com/facebookresearch/Mask2Former (MIT); this follows the paper and is compared with transformers' model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.layers import MLP
from zoo.detection.layers import activation as build_activation
from zoo.detection.positions import SinePositions
from zoo.layers.token_linear import TokenLinear
from zoo.segmentation.pixel_decoder import sine_positions
from zoo_kernels.dense_attention import dense_attention


class MaskedAttention(nn.Module):
    """Multi-head attention whose queries see some of the keys.

    Args:
        dim: channels C.
        num_heads: heads; must divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.q_proj = TokenLinear(dim, dim)
        self.k_proj = TokenLinear(dim, dim)
        self.v_proj = TokenLinear(dim, dim)
        self.out_proj = TokenLinear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
        """``[B, Q, C]``, ``[B, S, C]``, ``[B, S, C]`` and which keys each query sees, ``[B, Q, S]``, to
        ``[B, Q, C]``."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, tokens, C / heads]
            for x in (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        )
        out = dense_attention(q, k, v, bias=None if seen is None else seen[:, None])
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MaskedDecoderLayer(nn.Module):
    """Masked attention to a map, self-attention of the queries, feed-forward.

    Args:
        dim: channels C.
        num_heads: attention heads.
        d_ffn: hidden channels of the feed-forward branch.
        dropout: of the branches (not of the attentions' weights).
        activation: name, see :data:`zoo.detection.layers.ACTIVATIONS`.
        pre_norm: normalise before a branch rather than after it.
    """

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        d_ffn: int = 2048,
        dropout: float = 0.0,
        activation: str = "relu",
        pre_norm: bool = False,
    ):
        super().__init__()
        self.cross_attn = MaskedAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = MaskedAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = TokenLinear(dim, d_ffn)
        self.linear2 = TokenLinear(d_ffn, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.activation = build_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor, seen: Tensor | None) -> Tensor:
        """Refine the queries.

        Args:
            x: ``[B, Q, C]``.
            query_pos: ``[Q, C]``, added to queries (and keys among the queries), not to values.
            memory: ``[B, S, C]``, with positions ``pos [1, S, C]`` for the keys.
            seen: ``[B, Q, S]``, true where a query may look.

        Returns:
            ``[B, Q, C]``.
        """
        if self.pre_norm:
            x = x + self._attend_memory(self.norm1(x), query_pos, memory, pos, seen)
            x = x + self._attend_queries(self.norm2(x), query_pos)
            return x + self._feed_forward(self.norm3(x))
        x = self.norm1(x + self._attend_memory(x, query_pos, memory, pos, seen))
        x = self.norm2(x + self._attend_queries(x, query_pos))
        return self.norm3(x + self._feed_forward(x))

    def _attend_memory(self, x: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor, seen: Tensor | None) -> Tensor:
        return self.dropout(self.cross_attn(x + query_pos, memory + pos, memory, seen))

    def _attend_queries(self, x: Tensor, query_pos: Tensor) -> Tensor:
        query = x + query_pos
        return self.dropout(self.self_attn(query, query, x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class MaskedAttentionDecoder(nn.Module):
    """Layers that read one map after the other, and the predictions of each.

    Args:
        in_dim: channels of the maps.
        num_classes: classes without "no object".
        mask_dim: channels of the pixel embeddings.
        dim: channels of the queries.
        num_queries: masks that are predicted.
        num_layers: layers; the queries as they start make a further prediction, which is trained too.
        num_levels: maps.
        num_heads, d_ffn, dropout, activation, pre_norm: see :class:`MaskedDecoderLayer`.
        project: project the maps to ``dim`` even where they have as many channels.

    Raises:
        ValueError: an odd ``dim``, or no multiple of the heads; (at a call) another number of maps.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        mask_dim: int = 256,
        dim: int = 256,
        num_queries: int = 100,
        num_layers: int = 9,
        num_levels: int = 3,
        num_heads: int = 8,
        d_ffn: int = 2048,
        dropout: float = 0.0,
        activation: str = "relu",
        pre_norm: bool = False,
        project: bool = False,
    ):
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim={dim}: accepted are even numbers")
        self.num_levels, self.num_queries = num_levels, num_queries
        self.position = SinePositions(dim // 2)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(num_levels, dim)
        projected = project or in_dim != dim
        self.input_proj = nn.ModuleList(
            nn.Conv2d(in_dim, dim, 1) if projected else nn.Identity() for _ in range(num_levels)
        )
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(dim, num_heads, d_ffn, dropout, activation, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.class_embed = TokenLinear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)
        for p in self.layers.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)
        for layer in self.layers.modules():
            if isinstance(layer, MaskedAttention):
                for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj):
                    nn.init.zeros_(linear.bias)
        for m in self.input_proj:
            if isinstance(m, nn.Conv2d):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor) -> list[dict[str, Tensor]]:
        """Predict.

        Args:
            maps: ``[B, in_dim, H_i, W_i]``, from coarse to fine; layer l reads map l modulo their number.
            mask_features: pixel embeddings ``[B, mask_dim, H, W]``.

        Returns:
            ``class_logits [B, Q, classes + 1]`` and ``mask_logits [B, Q, H, W]`` of the start and of every layer in
            training, of the last layer otherwise.
        """
        if len(maps) != self.num_levels:
            raise ValueError(f"{len(maps)} maps were given; this decoder takes {self.num_levels}")
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        memory, pos = [], []
        for i, (m, proj) in enumerate(zip(maps, self.input_proj)):
            pos.append(sine_positions(self.position, m).flatten(2).transpose(1, 2))  # [1, S, dim]
            memory.append(proj(m).flatten(2).transpose(1, 2) + self.level_embed.weight[i])  # [B, S, dim]
        # What a query sees depends on its mask at the map's size alone. Without gradients the full mask is not needed,
        # and it is cheaper to bring the embeddings to that size once.
        small = None
        if not self.training:
            small = [F.interpolate(mask_features, size=s, mode="bilinear", align_corners=False) for s in sizes]
        x = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        found = []
        for i, layer in enumerate(self.layers):
            level = i % self.num_levels
            embedding = self._embedding(x)
            if small is None:
                found.append(self._predict(embedding, mask_features))
                masks = found[-1]["mask_logits"].detach()
                masks = F.interpolate(masks, size=sizes[level], mode="bilinear", align_corners=False)
            else:
                masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(embedding), small[level])
            x = layer(x, self.query_embed.weight, memory[level], pos[level], visible(masks))
        found.append(self._predict(self._embedding(x), mask_features))
        return found

    def _embedding(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def _predict(self, embedding: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(embedding), mask_features)
        return {"class_logits": self.class_embed(embedding), "mask_logits": masks}


def visible(masks: Tensor) -> Tensor:
    """Where each query looks: in its mask, or everywhere if that is empty; logits ``[B, Q, H, W]`` -> ``[B, Q, H*W]``.

    A sigmoid of exactly one half counts as inside.
    """
    inside = masks.flatten(2) >= 0
    return inside | ~inside.any(-1, keepdim=True)
