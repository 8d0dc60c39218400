"""Conditional DETR: queries look where their reference point and their content say.

Conditional DETR for Fast Training Convergence (arXiv:2108.06152). Authors' code: github.com/Atten4Vis/ConditionalDETR
(Apache-2.0); this follows the paper and recorded results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.detection.boxes import inverse_sigmoid
from zoo.detection.conditional_transformer import ConditionalDecoderLayer
from zoo.detection.deformable_transformer import LayerStack, init_transformer
from zoo.detection.detr import Encoder, EncoderLayer, as_tokens, layer_predictions
from zoo.detection.images import mask_at
from zoo.detection.layers import MLP, classifier_bias, start_at_reference
from zoo.detection.positions import box_sines, build_positions
from zoo.layers.token_linear import TokenLinear


class ConditionalDecoder(LayerStack):
    """Decoder layers around fixed reference points.

    Args:
        layers: the layers.
        d_model: channels C.
    """

    def __init__(self, layers: Sequence[nn.Module], d_model: int):
        super().__init__(layers)
        self.norm = nn.LayerNorm(d_model)
        self.query_scale = MLP(d_model, d_model, d_model, 2)
        self.ref_point_head = MLP(d_model, d_model, 2, 2)

    def forward(self, memory: Tensor, padding: Tensor | None, pos: Tensor, query_pos: Tensor) -> tuple[Tensor, Tensor]:
        """All layers' normalised outputs ``[layers, B, Q, C]`` and the reference points ``[B, Q, 2]``."""
        reference = self.ref_point_head(query_pos).sigmoid()
        sine = box_sines(reference, query_pos.shape[-1] // 2)
        tgt, hidden = torch.zeros_like(query_pos), []
        for i, layer in enumerate(self.layers):
            scaled = sine if i == 0 else sine * self.query_scale(tgt)
            tgt = layer(tgt, memory, padding, pos, query_pos, scaled)
            hidden.append(self.norm(tgt))
        return torch.stack(hidden), reference


class ConditionalTransformer(nn.Module):
    """Encoder and conditional decoder (post-norm).

    Args:
        d_model: channels C.
        nhead: attention heads.
        num_encoder_layers, num_decoder_layers: depth.
        dim_feedforward: hidden channels of the feed-forward branches.
        dropout: of all branches and of the attentions' weights.
        activation: name of the activation.
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
    ):
        super().__init__()
        self.d_model = d_model
        common = (d_model, nhead, dim_feedforward, dropout, activation)
        self.encoder = Encoder([EncoderLayer(*common) for _ in range(num_encoder_layers)], d_model, False)
        self.decoder = ConditionalDecoder(
            [ConditionalDecoderLayer(*common, positions_in_content=i == 0) for i in range(num_decoder_layers)], d_model
        )
        init_transformer(self)

    def forward(self, x: Tensor, mask: Tensor, pos: Tensor, query_pos: Tensor) -> dict[str, Tensor]:
        """As :class:`zoo.detection.detr.DETRTransformer`'s, and ``reference [B, Q, 2]``."""
        tokens, pos, padding = as_tokens(x), as_tokens(pos), mask.flatten(1)
        memory = self.encoder(tokens, padding, pos)
        hidden, reference = self.decoder(memory, padding, pos, query_pos.expand(len(x), -1, -1))
        return {"memory": memory, "hs": hidden, "reference": reference}


class ConditionalDETR(nn.Module):
    """From feature maps to classes and boxes.

    Args:
        channels: channels of the backbone's maps; the last map is used.
        num_classes: outputs of the classifier (with COCO's sparse ids 91).
        num_queries: boxes that are predicted.
        position: "sine" or "learned".
        aux_loss: give the predictions of every layer.
        transformer: arguments of :class:`ConditionalTransformer`.
    """

    #: What takes the dict among the arguments that has no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"transformer": ConditionalTransformer}

    #: of :class:`zoo.detection.model.DetectionModel`, unless it is given others
    default_criterion: ClassVar[dict[str, Any]] = dict(
        type="zoo.detection.criterion.SetCriterion",
        matcher=dict(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
        weights=dict(loss_ce=2.0, loss_bbox=5.0, loss_giou=2.0),
    )
    default_postprocess: ClassVar[dict[str, Any]] = dict(type="zoo.detection.postprocess.best_of_pairs", count=100)

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int = 91,
        num_queries: int = 300,
        position: str = "sine",
        aux_loss: bool = True,
        transformer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.num_classes, self.num_queries, self.aux_loss = num_classes, num_queries, aux_loss
        self.transformer = ConditionalTransformer(**(transformer or {}))
        dim = self.transformer.d_model
        self.position = build_positions(position, dim)
        self.input_proj = nn.Conv2d(channels[-1], dim, 1)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.class_embed = TokenLinear(dim, num_classes)
        self.bbox_embed = MLP(dim, dim, 4, 3)
        nn.init.constant_(self.class_embed.bias, classifier_bias())
        start_at_reference(self.bbox_embed)

    def forward(self, features: Sequence[Tensor], mask: Tensor, targets: Any = None) -> dict[str, Any]:
        """Predict; arguments and result as :meth:`zoo.detection.detr.DETR.forward`, ``classes`` without "no object"."""
        x = self.input_proj(features[-1])
        own = mask_at(mask, x.shape[-2:])
        out: dict[str, Any] = self.transformer(x, own, self.position(own).to(x.dtype), self.query_embed.weight)
        delta, start = self.bbox_embed(out["hs"]), inverse_sigmoid(out["reference"])
        boxes = torch.cat([delta[..., :2] + start, delta[..., 2:]], dim=-1).sigmoid()
        out |= layer_predictions(self.class_embed(out["hs"]), boxes, self.aux_loss)
        return out | {"masks": [own]}
