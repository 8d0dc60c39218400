"""Named models: UPerNet (arXiv:1807.10221) over transformers; sizes and scores in ``weights/index/upernet.yaml``."""

from __future__ import annotations

from typing import Any

from zoo.registry import register_model, variant
from zoo.segmentation.segmenter import Segmenter

#: the crops that the published models are trained on
ADE_SIZE = 512
#: of the nano models
NANO_SIZE = 128
#: of the generated shapes: five shapes and the background
NANO_CLASSES = 6
#: for generated shapes: some are wider than those for digits, and windows are as large as what shows one shape
NANO_BACKBONES: dict[str, dict[str, Any]] = {
    "davit_nano": dict(type="davit_nano", embed_dims=(64, 128, 256), num_heads=(4, 8, 16)),
    "biformer_nano": dict(type="biformer_nano"),
    "agent_swin_nano": dict(
        type="agent_swin_nano", img_size=64, embed_dim=64, window_size=16, agent_num=16, min_softmax_window=4
    ),
}


def upernet(backbone: dict[str, Any], drop_path_rate: float = 0.0) -> dict[str, Any]:
    """The published form: 512 channels, and beside it FCN on the third map."""
    auxiliary = dict(type="fcn", in_index=2, dim=256, num_convs=1, concat_input=False)
    return dict(
        backbone=dict(backbone, drop_path_rate=drop_path_rate),
        head=dict(type="upernet", dim=512),
        auxiliary=(auxiliary,),
    )


def nano(backbone: dict[str, Any]) -> dict[str, Any]:
    """Small maps and few channels, for images of generated shapes."""
    auxiliary = dict(type="fcn", in_index=1, dim=32, num_convs=1, concat_input=False)
    head = dict(type="upernet", dim=64, pool_scales=(1, 2, 4))
    return dict(backbone=backbone, head=head, auxiliary=(auxiliary,), num_classes=NANO_CLASSES)


def swin(width: int, depth: int, heads: int, window: int) -> dict[str, Any]:
    """A Swin whose third stage has ``depth`` blocks."""
    return dict(
        type="zoo.backbones.swin.Swin",
        embed_dim=width,
        depths=(2, 2, depth, 2),
        num_heads=tuple(heads * 2**i for i in range(4)),
        window_size=window,
    )


def convnext(width: int, depth: int) -> dict[str, Any]:
    """A ConvNeXt whose third stage has ``depth`` blocks; maps are cut as the authors'."""
    widths = tuple(width * 2**i for i in range(4))
    return dict(type="zoo.backbones.convnext.ConvNeXt", embed_dims=widths, depths=(3, 3, depth, 3), drop_remainder=True)


def agent_swin(name: str) -> dict[str, Any]:
    """An Agent-Swin as its authors have it for large images: more agents, normalised maps."""
    return dict(type=name, pool_sides=(9, 12, 14, 7), norm_outputs=True)


@register_model(task="segmentation", family="upernet", input_size=NANO_SIZE)
@variant(Segmenter)
def upernet_davit_nano() -> dict[str, Any]:
    """A wider DaViT-nano, for generated shapes."""
    return nano(NANO_BACKBONES["davit_nano"])


@register_model(task="segmentation", family="upernet", input_size=NANO_SIZE)
@variant(Segmenter)
def upernet_biformer_nano() -> dict[str, Any]:
    """BiFormer-nano, for generated shapes."""
    return nano(NANO_BACKBONES["biformer_nano"])


@register_model(task="segmentation", family="upernet", input_size=NANO_SIZE)
@variant(Segmenter)
def upernet_agent_swin_nano() -> dict[str, Any]:
    """A wider Agent-Swin-nano, for generated shapes."""
    return nano(NANO_BACKBONES["agent_swin_nano"])


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_davit_tiny() -> dict[str, Any]:
    """DaViT-T with normalised maps (arXiv:2204.03645)."""
    return upernet(dict(type="davit_tiny", norm_outputs=True), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_davit_small() -> dict[str, Any]:
    """DaViT-S with normalised maps (arXiv:2204.03645)."""
    return upernet(dict(type="davit_small", norm_outputs=True), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_davit_base() -> dict[str, Any]:
    """DaViT-B with normalised maps (arXiv:2204.03645)."""
    return upernet(dict(type="davit_base", norm_outputs=True), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_biformer_small() -> dict[str, Any]:
    """BiFormer-S with 8 x 8 regions and normalised maps (arXiv:2303.08810)."""
    return upernet(dict(type="biformer_small", n_win=8, extra_norms=True), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_biformer_base() -> dict[str, Any]:
    """BiFormer-B with 8 x 8 regions and normalised maps (arXiv:2303.08810)."""
    return upernet(dict(type="biformer_base", n_win=8, extra_norms=True), drop_path_rate=0.4)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_agent_swin_tiny() -> dict[str, Any]:
    """Agent-Swin-T (arXiv:2312.08874)."""
    return upernet(agent_swin("agent_swin_tiny"), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_agent_swin_small() -> dict[str, Any]:
    """Agent-Swin-S (arXiv:2312.08874)."""
    return upernet(agent_swin("agent_swin_small"), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_agent_swin_base() -> dict[str, Any]:
    """Agent-Swin-B (arXiv:2312.08874)."""
    return upernet(agent_swin("agent_swin_base"), drop_path_rate=0.5)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_swin_tiny() -> dict[str, Any]:
    """Swin-T (arXiv:2103.14030)."""
    return upernet(swin(96, 6, 3, 7), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_swin_small() -> dict[str, Any]:
    """Swin-S (arXiv:2103.14030)."""
    return upernet(swin(96, 18, 3, 7), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_swin_base() -> dict[str, Any]:
    """Swin-B (arXiv:2103.14030)."""
    return upernet(swin(128, 18, 4, 12), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_swin_large() -> dict[str, Any]:
    """Swin-L (arXiv:2103.14030)."""
    return upernet(swin(192, 18, 6, 12), drop_path_rate=0.3)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_convnext_tiny() -> dict[str, Any]:
    """ConvNeXt-T (arXiv:2201.03545)."""
    return upernet(convnext(96, 9), drop_path_rate=0.4)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_convnext_small() -> dict[str, Any]:
    """ConvNeXt-S (arXiv:2201.03545)."""
    return upernet(convnext(96, 27), drop_path_rate=0.4)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_convnext_base() -> dict[str, Any]:
    """ConvNeXt-B (arXiv:2201.03545)."""
    return upernet(convnext(128, 27), drop_path_rate=0.4)


@register_model(task="segmentation", family="upernet", input_size=ADE_SIZE)
@variant(Segmenter)
def upernet_convnext_large() -> dict[str, Any]:
    """ConvNeXt-L (arXiv:2201.03545)."""
    return upernet(convnext(192, 27), drop_path_rate=0.4)
