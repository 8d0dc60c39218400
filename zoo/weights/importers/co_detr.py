"""Importer of Co-DETR checkpoints (https://github.com/Sense-X/Co-DETR, MIT): on Deformable-DETR and on DINO."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._co_detr_config import flat_arguments
from zoo.weights.importers._detr import detector_config, joined, separated
from zoo.weights.importers._official import KeyMap, official_arguments, refuse
from zoo.weights.importers._swin import MICROSOFT, MMDET, is_own_swin, naming, official_swin, own_swin, swin_config

_HEADS = "RPNHead + CoStandardRoIHead, CoATSSHead"
DEFORMABLE = f"projects.models.CoDETR (CoDeformDETRHead, {_HEADS})"
DINO = f"projects.models.CoDETR (CoDINOHead, {_HEADS})"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {DEFORMABLE: ("Detector", "CoDeformableDETR"), DINO: ("Detector", "CoDINO")}

#: the authors' arguments by the names they have in CoDETR, its heads and their parts, with the values of the configs
_COMMON: dict[str, Any] = dict(
    kind="deformable",
    embed_dims=256,
    heads=8,
    ffn=2048,
    enc_layers=6,
    dec_layers=6,
    num_classes=80,
    in_channels=None,
    num_co_heads=2,
    num_points=4,
    dropout=0.0,
    rpn_channels=256,
    rpn_scales=3,
    fc_channels=1024,
    gn_groups=32,
    max_proposals=1000,
    stacked_convs=1,
    atss_topk=9,
    num_reg_fcs=2,
    lambda_1=1.0,
    lambda_2=2.0,
    max_pos_coords=300,
    use_zero_padding=False,
    with_pos_coord=True,
    with_box_refine=True,
    as_two_stage=True,
    mixed_selection=True,
    look_forward_twice=True,
    sync_cls_avg_factor=True,
    # of a run, not of the model
    image_sizes=None,
    num_targets=None,
    eval_module="detr",
    eval_index=0,
)
_OWN: dict[str, dict[str, Any]] = {
    DEFORMABLE: dict(num_query=300, num_levels=4, strides=(8, 16, 32, 64), finest_scale=112, with_coord_feat=True),
    DINO: dict(
        num_query=900,
        num_levels=5,
        strides=(4, 8, 16, 32, 64),
        finest_scale=56,
        with_coord_feat=False,
        num_dn=100,
        dn_label_noise=0.5,
        dn_box_noise=1.0,
        dn_dynamic=True,
        temperature=20,
    ),
}
_KINDS = {DEFORMABLE: "deformable", DINO: "dino"}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: a whole detector where they name a backbone, else the network over maps.

    Args:
        entry: one of ``CHECKPOINTS``.
        kwargs: arguments by the names that they have in the authors' classes, or the ``model`` of a config file of
            theirs: ``dict(type="CoDETR", backbone=dict(...), query_head=dict(...), ...)``.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' model does not have, or that is not supported.
    """
    from zoo.detection.co_detr import CoDeformableDETR, CoDINO

    if entry not in _KINDS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(map(repr, _KINDS))}")
    dino = entry == DINO
    if "query_head" in kwargs:
        kwargs = flat_arguments(entry, kwargs, dino)
    defaults = {**_COMMON, **_OWN[entry], "kind": _KINDS[entry]}
    args = official_arguments(entry, {k: v for k, v in kwargs.items() if k != "backbone"}, defaults)
    fixed: dict[str, Any] = dict(kind=_KINDS[entry], num_reg_fcs=2, eval_module="detr", eval_index=0)
    if dino:
        fixed |= dict(
            as_two_stage=True, with_box_refine=True, mixed_selection=True, look_forward_twice=True, dn_dynamic=True
        )
    elif args["as_two_stage"]:
        fixed |= dict(mixed_selection=True, with_box_refine=True)
    for key, value in fixed.items():
        if args[key] != value:
            raise refuse(entry, key, args[key], repr(value))
    if args["with_pos_coord"] and args["num_co_heads"] < 2:
        raise refuse(entry, "num_co_heads", args["num_co_heads"], "numbers from 2, one for each auxiliary head")
    network: dict[str, Any] = dict(
        type=CoDINO if dino else CoDeformableDETR,
        num_classes=args["num_classes"],
        num_queries=args["num_query"],
        num_feature_levels=args["num_levels"],
        norm_groups=args["gn_groups"],
        strides=tuple(args["strides"]),
        positive_heads=args["num_co_heads"] if args["with_pos_coord"] else 0,
        with_features=args["with_coord_feat"],
        auxiliary=dict(
            rpn_channels=args["rpn_channels"],
            rpn_octaves=args["rpn_scales"],
            proposals=args["max_proposals"],
            roi_channels=args["fc_channels"],
            roi_finest=args["finest_scale"],
            atss_convolutions=args["stacked_convs"],
            atss_groups=args["gn_groups"],
            atss_nearest=args["atss_topk"],
            max_queries=args["max_pos_coords"],
            zero_padding=args["use_zero_padding"],
        ),
        transformer=dict(
            d_model=args["embed_dims"],
            nhead=args["heads"],
            num_encoder_layers=args["enc_layers"],
            num_decoder_layers=args["dec_layers"],
            dim_feedforward=args["ffn"],
            dropout=args["dropout"],
            enc_n_points=args["num_points"],
            dec_n_points=args["num_points"],
        ),
    )
    if dino:
        network |= dict(
            temperature=float(args["temperature"]),
            dn_number=args["num_dn"],
            dn_label_noise_ratio=args["dn_label_noise"],
            dn_box_noise_scale=args["dn_box_noise"],
        )
    else:
        network |= dict(two_stage=args["as_two_stage"], with_box_refine=args["with_box_refine"])
        network["transformer"]["look_forward_twice"] = args["look_forward_twice"] and args["with_box_refine"]
    first = tuple(args["strides"])[0]
    if "backbone" in kwargs and first not in (4, 8):
        raise refuse(entry, "strides", args["strides"], "strides that begin with 4 or 8, those of a backbone's stages")
    stages = (0, 1, 2, 3) if first == 4 else (1, 2, 3)
    backbone = kwargs.get("backbone")
    if isinstance(backbone, Mapping):
        from zoo.detection.detector import Detector

        return dict(type=Detector, backbone=_backbone(entry, backbone, stages), network=network)
    maps = {"backbone_channels": args["in_channels"]}
    return detector_config(entry, {**kwargs, "return_interm_indices": stages}, maps, network, levels=args["num_levels"])


_RESNET: dict[str, Any] = dict(
    type="ResNet",
    depth=50,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    frozen_stages=-1,
    norm_cfg={"type": "BN", "requires_grad": True},
    norm_eval=True,
    style="pytorch",
    init_cfg=None,
)


def _backbone(entry: str, given: Mapping[str, Any], stages: tuple[int, ...]) -> dict[str, Any]:
    """Our spec for mmdet's ``backbone=dict(type=...)``, whose maps must be of ``stages``."""
    from zoo.detection.resnet import DEPTHS, ResNetBackbone

    kind = given.get("type")
    if kind in ("SwinTransformerV1", "SwinTransformer"):
        spec = swin_config(entry, given, MICROSOFT if kind == "SwinTransformerV1" else MMDET)
    elif kind == "ResNet":
        args = official_arguments(f"{entry} backbone", given, _RESNET)
        fixed = dict(num_stages=4, norm_eval=True, style="pytorch", norm_cfg={"type": "BN", "requires_grad": False})
        for key, value in fixed.items():
            if args[key] != value:
                raise refuse(entry, f"backbone.{key}", args[key], repr(value))
        if f"resnet{args['depth']}" not in DEPTHS:
            raise refuse(entry, "backbone.depth", args["depth"], ", ".join(n.removeprefix("resnet") for n in DEPTHS))
        spec = dict(
            type=ResNetBackbone,
            name=f"resnet{args['depth']}",
            out_indices=tuple(args["out_indices"]),
            frozen_stages=args["frozen_stages"],
        )
    else:
        raise refuse(entry, "backbone.type", kind, "'ResNet', 'SwinTransformerV1' and 'SwinTransformer'")
    if spec["out_indices"] != stages:
        raise refuse(entry, "backbone.out_indices", spec["out_indices"], f"{stages}, those of the strides")
    return spec


_ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_FEED_FORWARD = (("ffns.0.layers.0.0.{p}", "linear1.{p}"), ("ffns.0.layers.1.{p}", "linear2.{p}"))
_LAYERS = {
    "encoder": [
        *((f"attentions.0.{n}.{{p}}", f"self_attn.{n}.{{p}}") for n in _ATTENTION),
        ("norms.0.{p}", "norm1.{p}"),
        ("norms.1.{p}", "norm2.{p}"),
        *_FEED_FORWARD,
    ],
    "decoder": [
        ("attentions.0.attn.out_proj.{p}", "self_attn.out_proj.{p}"),
        ("attentions.0.attn.{p}", "self_attn.{p}"),
        *((f"attentions.1.{n}.{{p}}", f"cross_attn.{n}.{{p}}") for n in _ATTENTION),
        ("norms.0.{p}", "norm2.{p}"),
        ("norms.1.{p}", "norm1.{p}"),
        ("norms.2.{p}", "norm3.{p}"),
        *_FEED_FORWARD,
    ],
}
_T = "query_head.transformer."
_PAIRS: list[tuple[str, str]] = [
    *(
        (f"{_T}{part}.layers.{{i}}.{official}", f"transformer.{part}.layers.{{i}}.{own}")
        for part, names in _LAYERS.items()
        for official, own in names
    ),
    *(
        (f"{_T}{n}.{{p}}", f"transformer.{n}.{{p}}")
        for n in ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm", "reference_points", "decoder.norm")
    ),
    (f"{_T}level_embeds", "transformer.level_embed"),
    (f"{_T}query_embed.weight", "transformer.tgt_embed.weight"),
    (f"{_T}decoder.ref_point_head.0.{{p}}", "transformer.decoder.ref_point_head.layers.0.{p}"),
    (f"{_T}decoder.ref_point_head.2.{{p}}", "transformer.decoder.ref_point_head.layers.1.{p}"),
    (f"{_T}aux_pos_trans.{{i}}.{{p}}", "positive.boxes.{i}.{p}"),
    (f"{_T}aux_pos_trans_norm.{{i}}.{{p}}", "positive.boxes_norm.{i}.{p}"),
    (f"{_T}pos_feats_trans.{{i}}.{{p}}", "positive.features.{i}.{p}"),
    (f"{_T}pos_feats_norm.{{i}}.{{p}}", "positive.features_norm.{i}.{p}"),
    (f"{_T}head_pos_embed.weight", "positive.head_embed"),
    ("query_head.query_embedding.weight", "query_embed.weight"),
    ("query_head.label_embedding.weight", "label_enc.weight"),
    ("query_head.downsample.{i}.{p}", "downsample.{i}.{p}"),
    ("query_head.cls_branches.{i}.{p}", "class_embed.{i}.{p}"),
    *((f"query_head.reg_branches.{{i}}.{2 * j}.{{p}}", f"bbox_embed.{{i}}.layers.{j}.{{p}}") for j in range(3)),
    ("neck.convs.{i}.conv.{p}", "input_proj.{i}.0.{p}"),
    ("neck.convs.{i}.gn.{p}", "input_proj.{i}.1.{p}"),
    ("rpn_head.rpn_conv.{p}", "auxiliary.rpn.conv.{p}"),
    ("rpn_head.rpn_cls.{p}", "auxiliary.rpn.classify.{p}"),
    ("rpn_head.rpn_reg.{p}", "auxiliary.rpn.locate.{p}"),
    ("roi_head.0.bbox_head.shared_fcs.0.{p}", "auxiliary.roi.shared.fc6.{p}"),
    ("roi_head.0.bbox_head.shared_fcs.1.{p}", "auxiliary.roi.shared.fc7.{p}"),
    ("roi_head.0.bbox_head.fc_cls.{p}", "auxiliary.roi.classifier.{p}"),
    ("roi_head.0.bbox_head.fc_reg.{p}", "auxiliary.roi.locate.{p}"),
    ("bbox_head.0.cls_convs.{i}.conv.{p}", "auxiliary.atss.classes.{i}.0.{p}"),
    ("bbox_head.0.cls_convs.{i}.gn.{p}", "auxiliary.atss.classes.{i}.1.{p}"),
    ("bbox_head.0.reg_convs.{i}.conv.{p}", "auxiliary.atss.places.{i}.0.{p}"),
    ("bbox_head.0.reg_convs.{i}.gn.{p}", "auxiliary.atss.places.{i}.1.{p}"),
    ("bbox_head.0.atss_cls.{p}", "auxiliary.atss.classifier.{p}"),
    ("bbox_head.0.atss_reg.{p}", "auxiliary.atss.locate.{p}"),
    ("bbox_head.0.atss_centerness.{p}", "auxiliary.atss.centre.{p}"),
    ("bbox_head.0.scales.{i}.scale", "auxiliary.atss.scales.{i}"),
]
_MAP = KeyMap(_PAIRS)
_EXTRA = re.compile(r"neck\.extra_convs\.(\d+)\.(conv|gn)\.(\w+)")
_LEVEL = re.compile(r"input_proj\.(\d+)\.([01])\.(\w+)")
_BRANCH = re.compile(r"(class_embed|bbox_embed)\.(\d+)\.(.*)")
_KINDS_OF_LEVEL = ("conv", "gn")
_BACKBONE = "backbone."
_COUNTER = ".num_batches_tracked"


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; the backbone's counters of batches are dropped.

    Raises:
        KeyError: an unknown key.
    """
    backbone = {k[len(_BACKBONE) :]: v for k, v in state.items() if k.startswith(_BACKBONE)}
    swin = naming(backbone)
    if swin is not None:
        backbone = own_swin(backbone, swin)
    backbone = {k: v for k, v in backbone.items() if not k.endswith(_COUNTER)}
    rest = {k: v for k, v in state.items() if not k.startswith(_BACKBONE)}
    maps = 1 + max((int(k.split(".")[2]) for k in rest if k.startswith("neck.convs.")), default=-1)
    found = {}
    for key in [k for k in rest if _EXTRA.fullmatch(k)]:
        index, kind, name = _EXTRA.fullmatch(key).groups()  # type: ignore[union-attr]
        found[f"input_proj.{maps + int(index)}.{_KINDS_OF_LEVEL.index(kind)}.{name}"] = rest.pop(key)
    found |= _MAP.convert(rest)
    if entry == DINO:
        # The first stage's heads come behind the decoder's.
        last = str(_last(found))
        for key in [k for k in found if (m := _BRANCH.fullmatch(k)) and m[2] == last]:
            part, _, name = _BRANCH.fullmatch(key).groups()  # type: ignore[union-attr]
            found[f"first_{part}.{name}"] = found.pop(key)
    return joined(backbone, found)


def revert_state_dict(entry: str, state: Mapping[str, Tensor], swin: str = MICROSOFT) -> dict[str, Tensor]:
    """Our state dict to the authors'.

    Args:
        entry: the entry.
        state: our state dict.
        swin: the names that a Swin gets: those of the authors' class, ``"SwinTransformerV1"``, or those of
            ``"SwinTransformer of mmdet"``.

    Raises:
        KeyError: an unknown key.
    """
    backbone, network = separated(state)
    if is_own_swin(backbone):
        backbone = official_swin(backbone, swin)
    backbone = {_BACKBONE + k: v for k, v in backbone.items()}
    if entry == DINO:
        count = _last(network) + 1
        network = {re.sub(r"^first_(class_embed|bbox_embed)\.", rf"\g<1>.{count}.", k): v for k, v in network.items()}
    # What makes further levels is a 3x3 convolution.
    further = sorted(int(k.split(".")[1]) for k, v in network.items() if _LEVEL.fullmatch(k) and v.shape[-2:] == (3, 3))
    found = {}
    for key in [k for k in network if (m := _LEVEL.fullmatch(k)) and int(m[1]) in further]:
        index, kind, name = _LEVEL.fullmatch(key).groups()  # type: ignore[union-attr]
        place = further.index(int(index))
        found[f"neck.extra_convs.{place}.{_KINDS_OF_LEVEL[int(kind)]}.{name}"] = network.pop(key)
    return {**backbone, **_MAP.revert(network), **found}


def _last(state: Mapping[str, Tensor]) -> int:
    return max((int(m[2]) for k in state if (m := _BRANCH.fullmatch(k))), default=-1)
