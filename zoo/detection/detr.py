"""DETR: a transformer over the last map, queries that answer for one object each.

End-to-End Object Detection with Transformers (arXiv:2005.12872). Authors' code: github.com/facebookresearch/detr
(Apache-2.0); this follows the paper and recorded results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.deformable_transformer import LayerStack, init_transformer
from zoo.detection.images import mask_at
from zoo.detection.layers import MLP
from zoo.detection.layers import activation as build_activation
from zoo.detection.positions import build_positions
from zoo.layers.token_linear import TokenLinear


class EncoderLayer(nn.Module):
    """Self-attention, feed-forward; positions are added to queries and keys.

    Args:
        d_model: channels C.
        nhead: attention heads.
        dim_feedforward: hidden channels of the feed-forward branch.
        dropout: of both branches and of the attention's weights.
        activation: name, see :data:`zoo.detection.layers.ACTIVATIONS`.
        normalize_before: normalise before a branch rather than after it.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout, batch_first=True)
        self.linear1 = TokenLinear(d_model, dim_feedforward)
        self.linear2 = TokenLinear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.activation = build_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.normalize_before = normalize_before

    def forward(self, src: Tensor, padding: Tensor | None, pos: Tensor) -> Tensor:
        """Tokens ``[B, S, C]`` with positions ``[B, S, C]`` and padding ``[B, S]`` to tokens."""
        if self.normalize_before:
            src = src + self._attend(self.norm1(src), padding, pos)
            return src + self._feed_forward(self.norm2(src))
        src = self.norm1(src + self._attend(src, padding, pos))
        return self.norm2(src + self._feed_forward(src))

    def _attend(self, x: Tensor, padding: Tensor | None, pos: Tensor) -> Tensor:
        q = x + pos
        return self.dropout(self.self_attn(q, q, x, key_padding_mask=padding, need_weights=False)[0])

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the memory, feed-forward; arguments as :class:`EncoderLayer`."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(d_model, nhead, dropout=dropout, batch_first=True)
        self.linear1 = TokenLinear(d_model, dim_feedforward)
        self.linear2 = TokenLinear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.activation = build_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.normalize_before = normalize_before

    def forward(self, tgt: Tensor, memory: Tensor, padding: Tensor | None, pos: Tensor, query_pos: Tensor) -> Tensor:
        """Queries ``[B, Q, C]`` with positions, memory ``[B, S, C]`` with padding and positions, to queries."""
        if self.normalize_before:
            tgt = tgt + self._attend_queries(self.norm1(tgt), query_pos)
            tgt = tgt + self._attend_memory(self.norm2(tgt), memory, padding, pos, query_pos)
            return tgt + self._feed_forward(self.norm3(tgt))
        tgt = self.norm1(tgt + self._attend_queries(tgt, query_pos))
        tgt = self.norm2(tgt + self._attend_memory(tgt, memory, padding, pos, query_pos))
        return self.norm3(tgt + self._feed_forward(tgt))

    def _attend_queries(self, x: Tensor, query_pos: Tensor) -> Tensor:
        q = x + query_pos
        return self.dropout(self.self_attn(q, q, x, need_weights=False)[0])

    def _attend_memory(
        self, x: Tensor, memory: Tensor, padding: Tensor | None, pos: Tensor, query_pos: Tensor
    ) -> Tensor:
        attended = self.multihead_attn(
            x + query_pos, memory + pos, memory, key_padding_mask=padding, need_weights=False
        )
        return self.dropout(attended[0])

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class Encoder(LayerStack):
    """A stack of encoder layers, with a norm at the end where they normalise before their branches.

    Args:
        layers: the layers.
        d_model: channels C.
        normalize_before: whether there is the norm.
    """

    def __init__(self, layers: Sequence[nn.Module], d_model: int, normalize_before: bool):
        super().__init__(layers)
        self.norm = nn.LayerNorm(d_model) if normalize_before else None

    def forward(self, src: Tensor, padding: Tensor | None, pos: Tensor) -> Tensor:
        """Tokens ``[B, S, C]`` to the memory of the same shape."""
        for layer in self.layers:
            src = layer(src, padding, pos)
        return src if self.norm is None else self.norm(src)


class Decoder(LayerStack):
    """A stack of decoder layers; one norm is applied to the output of each.

    Args:
        layers: the layers.
        d_model: channels C.
    """

    def __init__(self, layers: Sequence[nn.Module], d_model: int):
        super().__init__(layers)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, memory: Tensor, padding: Tensor | None, pos: Tensor, query_pos: Tensor) -> Tensor:
        """All layers' outputs, ``[layers, B, Q, C]``; contents of the queries start at zero."""
        tgt, hidden = torch.zeros_like(query_pos), []
        for layer in self.layers:
            tgt = layer(tgt, memory, padding, pos, query_pos)
            hidden.append(self.norm(tgt))
        return torch.stack(hidden)


class DETRTransformer(nn.Module):
    """Encoder and decoder.

    Args:
        d_model: channels C.
        nhead: attention heads.
        num_encoder_layers, num_decoder_layers: depth.
        dim_feedforward: hidden channels of the feed-forward branches.
        dropout: of all branches and of the attentions' weights.
        activation: name of the activation.
        normalize_before: normalise before the branches; the encoder then ends with a norm.
    """

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        normalize_before: bool = False,
    ):
        super().__init__()
        self.d_model = d_model
        common = (d_model, nhead, dim_feedforward, dropout, activation, normalize_before)
        self.encoder = Encoder([EncoderLayer(*common) for _ in range(num_encoder_layers)], d_model, normalize_before)
        self.decoder = Decoder([DecoderLayer(*common) for _ in range(num_decoder_layers)], d_model)
        init_transformer(self)

    def forward(self, x: Tensor, mask: Tensor, pos: Tensor, query_pos: Tensor) -> dict[str, Tensor]:
        """The map ``[B, C, H, W]``, its padding ``[B, H, W]``, positions like the map, and ``[Q, C]`` of the queries.

        Returns:
            ``memory [B, H*W, C]`` and ``hs [layers, B, Q, C]``.
        """
        tokens, pos, padding = as_tokens(x), as_tokens(pos), mask.flatten(1)
        memory = self.encoder(tokens, padding, pos)
        return {"memory": memory, "hs": self.decoder(memory, padding, pos, query_pos.expand(len(x), -1, -1))}


def as_tokens(x: Tensor) -> Tensor:
    """``[B, C, H, W] -> [B, H*W, C]``."""
    return x.flatten(2).transpose(1, 2)


def layer_predictions(logits: Tensor, boxes: Tensor, aux_loss: bool) -> dict[str, Any]:
    """Predictions of the last layer, and of the others as ``aux_outputs``, from ``[layers, B, Q, ...]``."""
    found: dict[str, Any] = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
    if aux_loss:
        found["aux_outputs"] = [{"pred_logits": c, "pred_boxes": b} for c, b in zip(logits[:-1], boxes[:-1])]
    return found


class DETR(nn.Module):
    """From feature maps to classes and boxes; the last class is "no object".

    Args:
        channels: channels of the backbone's maps; the last map is used.
        num_classes: classes without "no object".
        num_queries: boxes that are predicted.
        position: "sine" or "learned".
        aux_loss: give the predictions of every layer.
        transformer: arguments of :class:`DETRTransformer`.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": DETRTransformer}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.criterion.SetCriterion",
        matcher=dict(cost_class=1.0, cost_bbox=5.0, cost_giou=2.0, classification="softmax"),
        weights=dict(loss_ce=1.0, loss_bbox=5.0, loss_giou=2.0),
        classification="softmax",
        eos_coef=0.1,
    )
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.postprocess.best_of_queries")

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 91,
        num_queries: int = 100,
        position: str = "sine",
        aux_loss: bool = True,
        transformer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.num_classes, self.num_queries, self.aux_loss = num_classes, num_queries, aux_loss
        self.transformer = DETRTransformer(**(transformer or {}))
        dim = self.transformer.d_model
        self.position = build_positions(position, dim)
        self.input_proj = nn.Conv2d(channels[-1], dim, 1)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.class_embed = TokenLinear(dim, num_classes + 1)
        self.bbox_embed = MLP(dim, dim, 4, 3)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict.

        Args:
            features: maps ``[B, C_i, H_i, W_i]``; the last one is used.
            mask: padding of the images, ``[B, H, W]``, true where there is no image.
            targets: not used.

        Returns:
            ``pred_logits [B, Q, classes + 1]``, ``pred_boxes [B, Q, 4]``, ``aux_outputs``; ``hs``, ``memory``.
        """
        x = self.input_proj(features[-1])
        own = mask_at(mask, x.shape[-2:])
        out: dict[str, Any] = self.transformer(x, own, self.position(own).to(x.dtype), self.query_embed.weight)
        out |= layer_predictions(self.class_embed(out["hs"]), self.bbox_embed(out["hs"]).sigmoid(), self.aux_loss)
        return out | {"masks": [own]}
