"""Importer of Focus-DETR checkpoints (https://github.com/IDEA-Research/detrex projects/focus_detr, Apache-2.0)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._detr import detector_config, joined, separated, split_backbone, without_copies
from zoo.weights.importers._official import KeyMap, official_arguments
from zoo.weights.importers._swin import MICROSOFT, is_own_swin, naming, official_swin, own_swin

NETWORK = "projects.focus_detr.modeling.FOCUS_DETR"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "FocusDETR")}

_ARGUMENTS: dict[str, Any] = dict(
    embed_dim=256,
    heads=8,
    ffn=2048,
    enc_layers=6,
    dec_layers=6,
    num_queries=900,
    num_classes=80,
    num_feature_levels=4,
    in_channels=None,
    gn_groups=32,
    dn_number=100,
    focus_rho=0.5,
    cascade_set=(1.0, 0.8, 0.6, 0.6, 0.4, 0.2),
    topk_sa=300,
    learnt_init_query=True,
    label_noise_ratio=0.5,
    box_noise_scale=1.0,
    padded_size=None,
    image_sizes=None,
    num_targets=None,
    resnet=None,
)
_NAMES = {"num_heads": "heads", "feedforward_dim": "ffn"}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: a whole detector where they name a backbone, else the network over maps.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' model does not have, or that is not supported.
    """
    from zoo.detection.focus_detr import FocusDETR

    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted is {NETWORK!r}")
    given = {_NAMES.get(k, k): v for k, v in kwargs.items() if k not in ("backbone", "dilation")}
    args = official_arguments(entry, given, _ARGUMENTS)
    network = dict(
        type=FocusDETR,
        num_classes=args["num_classes"],
        num_queries=args["num_queries"],
        num_feature_levels=args["num_feature_levels"],
        norm_groups=args["gn_groups"],
        dn_number=args["dn_number"],
        dn_label_noise_ratio=args["label_noise_ratio"],
        dn_box_noise_scale=args["box_noise_scale"],
        transformer=dict(
            d_model=args["embed_dim"],
            nhead=args["heads"],
            num_encoder_layers=args["enc_layers"],
            num_decoder_layers=args["dec_layers"],
            dim_feedforward=args["ffn"],
            focus_rho=args["focus_rho"],
            cascade=tuple(args["cascade_set"]),
            num_best=args["topk_sa"],
            learnt_init_query=args["learnt_init_query"],
        ),
    )
    return detector_config(
        entry, kwargs, {"backbone_channels": args["in_channels"]}, network, args["num_feature_levels"], swins=True
    )


_ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_MAP = KeyMap(
    [
        ("label_enc.weight", "label_enc.weight"),
        ("class_embed.{i}.{p}", "class_embed.{i}.{p}"),
        ("bbox_embed.{i}.layers.{j}.{p}", "bbox_embed.{i}.layers.{j}.{p}"),
        ("neck.convs.{i}.conv.{p}", "input_proj.{i}.0.{p}"),
        ("neck.convs.{i}.norm.{p}", "input_proj.{i}.1.{p}"),
        ("transformer.alpha", "transformer.selector.alpha"),
        ("transformer.enc_mask_predictor.layer1.{i}.{p}", "transformer.selector.predictor.layer1.{i}.{p}"),
        ("transformer.enc_mask_predictor.layer2.{i}.{p}", "transformer.selector.predictor.layer2.{i}.{p}"),
        ("transformer.enc_output.{p}", "transformer.enc_output.{p}"),
        ("transformer.enc_output_norm.{p}", "transformer.enc_output_norm.{p}"),
        ("transformer.level_embeds", "transformer.level_embed"),
        ("transformer.tgt_embed.weight", "transformer.tgt_embed.weight"),
        ("transformer.decoder.norm.{p}", "transformer.decoder.norm.{p}"),
        ("transformer.decoder.ref_point_head.layers.{j}.{p}", "transformer.decoder.ref_point_head.layers.{j}.{p}"),
        *(
            (f"transformer.{part}.layers.{{i}}.{official}", f"transformer.{part}.layers.{{i}}.{own}")
            for part, names in {
                "encoder": [
                    ("attentions.0.attn.out_proj.{p}", "token_attn.out_proj.{p}"),
                    ("attentions.0.attn.{p}", "token_attn.{p}"),
                    *((f"attentions.1.{n}.{{p}}", f"self_attn.{n}.{{p}}") for n in _ATTENTION),
                    ("norms.0.{p}", "norm1.{p}"),
                    ("norms.1.{p}", "norm2.{p}"),
                    ("norm2.{p}", "token_norm.{p}"),
                ],
                "decoder": [
                    ("attentions.0.attn.out_proj.{p}", "self_attn.out_proj.{p}"),
                    ("attentions.0.attn.{p}", "self_attn.{p}"),
                    *((f"attentions.1.{n}.{{p}}", f"cross_attn.{n}.{{p}}") for n in _ATTENTION),
                    ("norms.0.{p}", "norm2.{p}"),
                    ("norms.1.{p}", "norm1.{p}"),
                    ("norms.2.{p}", "norm3.{p}"),
                ],
            }.items()
            for official, own in [
                *names,
                ("ffns.0.layers.0.0.{p}", "linear1.{p}"),
                ("ffns.0.layers.1.{p}", "linear2.{p}"),
            ]
        ),
    ]
)
_BACKBONE = "backbone."
#: detectron2's ResNet, and torchvision's
_RESNET = KeyMap(
    [
        ("stem.conv1.norm.{p}", "bn1.{p}"),
        ("stem.conv1.{p}", "conv1.{p}"),
        *(
            (f"res{i + 1}.{{b}}.{official}", f"layer{i}.{{b}}.{own}")
            for i in range(1, 5)
            for official, own in (
                ("conv{n}.norm.{p}", "bn{n}.{p}"),
                ("conv{n}.{p}", "conv{n}.{p}"),
                ("shortcut.norm.{p}", "downsample.1.{p}"),
                ("shortcut.{p}", "downsample.0.{p}"),
            )
        ),
    ]
)
_EXTRA = re.compile(r"neck\.extra_convs\.(\d+)\.(conv|norm)\.(\w+)")
_LEVEL = re.compile(r"input_proj\.(\d+)\.([01])\.(\w+)")
_ALIAS = re.compile(r"transformer\.decoder\.((?:class|bbox)_embed\..*)")
_ENCODER_HEAD = re.compile(
    r"transformer\.(?:encoder\.enhance_MCSP|enhance_MCSP_layerlist\.\d+|encoder\.enhance_MCSP\.\d+)\.(\w+)"
)


def _layers(state: Mapping[str, Tensor], part: str) -> int:
    return 1 + max(int(k.split(".")[3]) for k in state if k.startswith(f"transformer.{part}.layers."))


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone under our names, and the rest: detectron2's ResNet or Swin, or a ResNet as in DETR's files."""
    inside = {k[len(_BACKBONE) :]: v for k, v in state.items() if k.startswith(_BACKBONE)}
    rest = {k: v for k, v in state.items() if not k.startswith(_BACKBONE)}
    if naming(inside) == MICROSOFT:
        return own_swin(inside, MICROSOFT), rest
    if any(k.startswith("stem.") for k in inside):
        return _RESNET.convert({k: v for k, v in inside.items() if not k.endswith("num_batches_tracked")}), rest
    return split_backbone(state)


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; second names of the heads are dropped.

    Raises:
        KeyError: an unknown key.
        ValueError: two names of a head hold different numbers.
    """
    backbone, network = _split(state)
    depth = _layers(network, "encoder")

    def same(key: str) -> str | None:
        alias, head = _ALIAS.fullmatch(key), _ENCODER_HEAD.fullmatch(key)
        return alias[1] if alias else f"class_embed.{depth}.{head[1]}" if head else None

    network = without_copies(network, same)
    maps = 1 + max(int(k.split(".")[2]) for k in network if k.startswith("neck.convs."))
    extra = {}
    for key in [k for k in network if _EXTRA.fullmatch(k)]:
        index, kind, name = _EXTRA.fullmatch(key).groups()  # type: ignore[union-attr]
        extra[f"input_proj.{maps + int(index)}.{('conv', 'norm').index(kind)}.{name}"] = network.pop(key)
    return joined(backbone, {**_MAP.convert(network), **extra})


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors', second names of the decoder's heads included; backbones are detectron2's."""
    backbone, network = separated(state)
    backbone = official_swin(backbone, MICROSOFT) if is_own_swin(backbone) else _RESNET.revert(backbone)
    backbone = {_BACKBONE + k: v for k, v in backbone.items()}
    # What makes further levels is a 3x3 convolution.
    further = sorted(
        int(k.split(".")[1])
        for k, v in network.items()
        if k.startswith("input_proj.") and v.ndim == 4 and v.shape[-1] == 3
    )
    extra = {}
    for key in [k for k in network if _LEVEL.fullmatch(k)]:
        index, kind, name = _LEVEL.fullmatch(key).groups()  # type: ignore[union-attr]
        if int(index) in further:
            kinds = ("conv", "norm")
            extra[f"neck.extra_convs.{further.index(int(index))}.{kinds[int(kind)]}.{name}"] = network.pop(key)
    own = {**_MAP.revert(network), **extra}
    aliases = {f"transformer.decoder.{k}": v for k, v in own.items() if k.startswith(("class_embed.", "bbox_embed."))}
    return {**backbone, **own, **aliases}
