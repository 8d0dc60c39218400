"""Another token mixer in the encoder of a detector: any of the zoo's, over the last map or over each level.

What is replaced is the self-attention of every encoder layer; feed-forward branches, norms and the decoder stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.deformable_transformer import DeformableEncoderLayer
from zoo.detection.detr import EncoderLayer
from zoo.mixers.base import Mixer
from zoo.registry import MIXERS, build


class LevelMixer(nn.Module):
    """A mixer in the place of :class:`zoo.detection.ms_deform.MSDeformAttn`: each level is mixed by itself.

    Args:
        mixer: one set of weights for all levels.
    """

    def __init__(self, mixer: Mixer):
        super().__init__()
        self.mixer = mixer

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Tokens of all levels ``[B, S, C]``; references and values are not used, padding is zero."""
        if padding_mask is not None:
            query = query.masked_fill(padding_mask[..., None], 0.0)
        levels = query.split([h * w for h, w in spatial_shapes], dim=1)
        mixed = [
            self.mixer(x.unflatten(1, (h, w))).flatten(1, 2)  # [B, H, W, C] in between
            for x, (h, w) in zip(levels, spatial_shapes)
        ]
        return torch.cat(mixed, dim=1)


class MapMixer(nn.Module):
    """A mixer in the place of ``nn.MultiheadAttention`` over the tokens of one map.

    Args:
        mixer: the mixer.
    """

    def __init__(self, mixer: Mixer):
        super().__init__()
        self.mixer = mixer
        #: height and width of the map; set before the encoder runs
        self.size: tuple[int, int] = (0, 0)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """Tokens ``[B, H*W, C]``; keys and values are not used, padding is zero."""
        if key_padding_mask is not None:
            query = query.masked_fill(key_padding_mask[..., None], 0.0)
        return self.mixer(query.unflatten(1, self.size)).flatten(1, 2), None


def replace_encoder_mixer(network: nn.Module, spec: Any) -> int:
    """Put a mixer into every encoder layer of a network.

    Args:
        network: of the DETR family: it has encoder layers of one of the two kinds.
        spec: the mixer's name or ``dict(type=name, ...)``; ``dim`` and ``num_heads`` are those of the layer.

    Returns:
        How many layers there are.

    Raises:
        ValueError: the network has no such layer.
        UnknownNameError: no such mixer.
    """
    count = 0
    maps: list[MapMixer] = []
    for module in list(network.modules()):
        if isinstance(module, DeformableEncoderLayer):
            old: Any = module.self_attn
            mixer = build(spec, MIXERS, dim=old.d_model, num_heads=old.n_heads)
            module.self_attn = LevelMixer(mixer)  # type: ignore[assignment]
            count += 1
        elif isinstance(module, EncoderLayer):
            old = module.self_attn
            mixer = build(spec, MIXERS, dim=old.embed_dim, num_heads=old.num_heads)
            maps.append(MapMixer(mixer))
            module.self_attn = maps[-1]  # type: ignore[assignment]
            count += 1
    if not count:
        raise ValueError(f"encoder_mixer={spec!r}: {type(network).__name__} has no encoder layer that takes a mixer")
    if maps:

        def remember(module: nn.Module, args: tuple[Any, ...]) -> None:
            for part in maps:
                part.size = (int(args[0].shape[-2]), int(args[0].shape[-1]))

        network.transformer.register_forward_pre_hook(remember)  # type: ignore[union-attr,operator]
    return count
