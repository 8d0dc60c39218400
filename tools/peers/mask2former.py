"""Mask2Former's pixel decoder and Hugging Face transformers', with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: of Swin-T
CHANNELS = (96, 192, 384, 768)


def pixel_decoders(
    size: int = 512, channels: Sequence[int] = CHANNELS
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Calls of both pixel decoders on the maps of one image, without gradients; each gives the pixel embeddings.

    Args:
        size: side of the image; maps have strides 4 to 32.
        channels: of the maps.
    """
    import transformers
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    from zoo.segmentation.pixel_decoder import DeformablePixelDecoder
    from zoo.weights.importers.hf_mask2former import pixel_decoder_names

    torch.manual_seed(0)
    peer = Mask2FormerPixelDecoder(transformers.Mask2FormerConfig(), list(channels)).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.copy_(torch.randn_like(p) * 0.03)
    ours = DeformablePixelDecoder(channels).eval()
    ours.load_state_dict(pixel_decoder_names(peer.state_dict()))
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(1, c, size // stride, size // stride, generator=generator)
        for c, stride in zip(channels, (4, 8, 16, 32))
    ]

    @torch.no_grad()
    def run_ours() -> Tensor:
        return ours(maps)[0]

    @torch.no_grad()
    def run_peer() -> Tensor:
        return peer(maps).mask_features

    return run_ours, run_peer
