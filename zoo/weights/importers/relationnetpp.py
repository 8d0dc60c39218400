"""Importer of RelationNet++ checkpoints (https://github.com/microsoft/RelationNet2, MIT, on mmdetection).

The head's arguments may be given as the authors' constructor takes them (``bbox_head_cfg``, ``keypoint_head_cfg``, ...)
or by the short names of its parts; a detector's as in their config files. The deformable convolutions of their ResNeXt
models are not supported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

HEAD = "BVRHead"
RETINANET = "mmdet.models.detectors.RetinaNet"
BVR = "code/models/detectors/bvr.py:BVR"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {RETINANET: ("Detector", "RelationNetPP"), BVR: ("Detector", "RelationNetPP")}

_ARGUMENTS: dict[str, Any] = dict(
    box_head="retina",
    channels=256,
    gn_groups=32,
    num_classes=80,
    strides=[8, 16, 32, 64, 128],
    stacked_convs=4,
    scales_per_octave=None,
    octave_base_scale=None,
    ratios=None,
    norm_on_bbox=True,
    centerness_on_reg=True,
    conv_bias=None,
    kpt_convs=2,
    kpt_shared_convs=0,
    kpt_logits_convs=1,
    kpt_gn_groups="same",
    head_types=["top_left_corner", "bottom_right_corner", "center"],
    corner_pooling=False,
    cls_keypoint_cfg=dict(keypoint_types=["center"], with_relation=True),
    reg_keypoint_cfg=dict(keypoint_types=["top_left_corner", "bottom_right_corner"], with_relation=True),
    keypoint_pos="input",
    max_keypoint_num=20,
    keypoint_score_thr=0.0,
    feature_selection_cfg=None,
    num_attn_heads=8,
    scale_position=True,
    scale_factor=1.0,
    with_relative_positional_encoding=True,
    with_appearance_relation=True,
    shared_positional_encoding_inter=True,
    shared_positional_encoding_outer=False,
    reg_cat_pos=False,
    pos_cfg=dict(base_size=[400, 400]),
    image_size=None,
)
_POSITIONS: dict[str, Any] = dict(
    base_size=None,
    log_scale=False,
    align_corners=False,
    normalized_interpolation=True,
    temperature=1000,
    scale=1.0,
    normalize=False,
    num_layers=1,
    out_relu=False,
    norm_cfg=None,
)
_SELECTION: dict[str, Any] = dict(selection_method="index", cross_level_topk=-1, cross_level_selection=False)
_KEYPOINTS: dict[str, Any] = dict(keypoint_types=None, with_key_score=False, with_relation=False)
_HEADS = {"RetinaHead": "retina", "FCOSHead": "fcos", "ATSSHead": "atss"}


def _types(entry: str, argument: str, given: Mapping[str, Any] | None) -> tuple[str, ...]:
    if given is None:
        return ()  # the authors' default has no relation
    found = official_arguments(f"{entry} {argument}", given, _KEYPOINTS)
    return tuple(found["keypoint_types"]) if found["with_relation"] else ()


def _groups(entry: str, norm: Mapping[str, Any] | None) -> int | None:
    """Groups of a norm as mmdetection's configs have it."""
    if norm is None:
        return None
    if norm.get("type") != "GN":
        raise refuse(entry, "norm_cfg", dict(norm), "dict(type='GN', num_groups=...) and None")
    return int(norm["num_groups"])


def flat_arguments(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The head's short arguments from those of the authors' constructor.

    Raises:
        ValueError: a box head, norm or convolution that is not supported.
    """
    found = {k: v for k, v in kwargs.items() if k in _ARGUMENTS}
    box, points = dict(kwargs["bbox_head_cfg"]), dict(kwargs["keypoint_head_cfg"])
    if box.get("type") not in _HEADS:
        raise refuse(entry, "bbox_head_cfg.type", box.get("type"), ", ".join(_HEADS))
    for where, part in (("bbox_head_cfg", box), ("keypoint_head_cfg", points)):
        for key in ("conv_cfg", "dcn_on_last_conv"):
            if part.get(key):
                raise refuse(entry, f"{where}.{key}", part[key], "none: deformable convolutions are not supported")
    # mmdetection's own defaults: ATSS normalises unless it is told not to, the others do not
    default_norm = dict(type="GN", num_groups=32) if box["type"] != "RetinaHead" else None
    groups = _groups(entry, box.get("norm_cfg", default_norm))
    anchors = box.get("anchor_generator", {})
    strides = box.get("strides", anchors.get("strides", [8, 16, 32, 64, 128]))
    found |= dict(
        box_head=_HEADS[box["type"]],
        channels=box.get("feat_channels", 256),
        gn_groups=groups,
        num_classes=box["num_classes"],
        strides=strides,
        stacked_convs=box.get("stacked_convs", 4),
        norm_on_bbox=box.get("norm_on_bbox", False),
        centerness_on_reg=box.get("centerness_on_reg", False),
        conv_bias=groups is None if box.get("conv_bias", "auto") == "auto" else box["conv_bias"],
        kpt_gn_groups=_groups(entry, points.get("norm_cfg")),
        kpt_convs=points.get("stacked_convs", 4),
        kpt_shared_convs=points.get("shared_stacked_convs", 0),
        kpt_logits_convs=points.get("logits_convs", 0),
        head_types=points.get("head_types") or _ARGUMENTS["head_types"],
        corner_pooling=points.get("corner_pooling", False),
        cls_keypoint_cfg=kwargs.get("cls_keypoint_cfg"),
        reg_keypoint_cfg=kwargs.get("reg_keypoint_cfg"),
        **{k: anchors[k] for k in ("scales_per_octave", "octave_base_scale", "ratios") if k in anchors},
        **{k: v for k, v in (kwargs.get("keypoint_cfg") or {}).items() if k in _ARGUMENTS},
    )
    return found


def head_options(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`zoo.detection.bvr_head.BVRHead`.

    Raises:
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    if "bbox_head_cfg" in kwargs:
        kwargs = flat_arguments(entry, kwargs)
    a = official_arguments(entry, kwargs, _ARGUMENTS)
    if a["corner_pooling"]:
        raise refuse(entry, "corner_pooling", True, "False")
    if a["box_head"] not in _HEADS.values():
        raise refuse(entry, "box_head", a["box_head"], ", ".join(_HEADS.values()))
    position = official_arguments(f"{entry} pos_cfg", a["pos_cfg"] or {}, _POSITIONS)
    if position.pop("norm_cfg") is not None:
        raise refuse(entry, "pos_cfg.norm_cfg", a["pos_cfg"]["norm_cfg"], "None")
    selection = official_arguments(f"{entry} feature_selection_cfg", a["feature_selection_cfg"] or {}, _SELECTION)
    if selection["selection_method"] not in ("index", "interpolation"):
        raise refuse(entry, "selection_method", selection["selection_method"], "'index' and 'interpolation'")
    across = selection["cross_level_topk"] > 0 and not selection["cross_level_selection"]
    if across and selection["selection_method"] == "index":
        raise refuse(entry, "selection_method", "index", "'interpolation' where maps read key points of other maps")
    kind = a["box_head"]
    anchors: dict[str, Any] = {}
    if kind == "retina":
        anchors = dict(
            scales_per_octave=a["scales_per_octave"] or 3,
            base_scale=a["octave_base_scale"] or 4,
            ratios=tuple(a["ratios"] or (0.5, 1.0, 2.0)),
        )
    elif kind == "atss":
        if (a["scales_per_octave"] or 1) != 1 or list(a["ratios"] or [1.0]) != [1.0]:
            raise refuse(entry, "scales_per_octave, ratios", (a["scales_per_octave"], a["ratios"]), "1 and [1.0]")
        anchors = dict(base_scale=a["octave_base_scale"] or 8)
    else:
        anchors = dict(norm_on_bbox=a["norm_on_bbox"])
    options = dict(norm_on_bbox=a["norm_on_bbox"], centerness_on_reg=a["centerness_on_reg"]) if kind == "fcos" else {}
    # By the short names it is the authors' FCOS, whose convolutions have a bias with and without norm.
    bias = True if a["conv_bias"] is None and kind == "fcos" else a["conv_bias"]
    return dict(
        num_classes=a["num_classes"],
        head=kind,
        dim=a["channels"],
        strides=tuple(a["strides"]),
        stacked_convs=a["stacked_convs"],
        groups=a["gn_groups"] or None,
        head_options={**options, **({} if bias is None else {"bias": bias})},
        task_options=anchors,
        keypoints=dict(
            types=tuple(a["head_types"]),
            shared_convs=a["kpt_shared_convs"],
            convs=a["kpt_convs"],
            logits_convs=a["kpt_logits_convs"],
            **({} if a["kpt_gn_groups"] == "same" else {"groups": a["kpt_gn_groups"] or None}),
        ),
        keypoint_pos=a["keypoint_pos"],
        cls_keypoints=_types(entry, "cls_keypoint_cfg", a["cls_keypoint_cfg"]),
        reg_keypoints=_types(entry, "reg_keypoint_cfg", a["reg_keypoint_cfg"]),
        max_keypoint_num=a["max_keypoint_num"],
        selection=dict(
            method=selection["selection_method"],
            cross_level_topk=selection["cross_level_topk"],
            cross_level_selection=selection["cross_level_selection"],
        ),
        num_heads=a["num_attn_heads"],
        scale_position=a["scale_position"],
        scale_factor=a["scale_factor"],
        location=position if a["with_relative_positional_encoding"] else None,
        appearance=a["with_appearance_relation"],
        shared_inter=a["shared_positional_encoding_inter"],
        shared_outer=a["shared_positional_encoding_outer"],
        reg_cat_pos=a["reg_cat_pos"],
    )


def _detector(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    from zoo.detection.detector import Detector
    from zoo.detection.relationnetpp import RelationNetPP
    from zoo.detection.resnet import ResNetBackbone

    accepted = dict(type=None, pretrained=None, backbone=None, neck=None, bbox_head=None, train_cfg=None, test_cfg=None)
    a = official_arguments(entry, kwargs, accepted)
    backbone, neck, head = (dict(a[k] or {}) for k in ("backbone", "neck", "bbox_head"))
    if backbone.get("type") != "ResNet" or backbone.get("depth") not in (18, 34, 50, 101) or backbone.get("dcn"):
        raise refuse(entry, "backbone", a["backbone"], "a ResNet of depth 18, 34, 50 or 101 without dcn")
    if backbone.get("style", "pytorch") != "pytorch":
        raise refuse(entry, "backbone.style", backbone["style"], "'pytorch'")
    extra = neck.get("add_extra_convs")
    if neck.get("type") != "FPN" or neck.get("start_level", 0) != 1 or extra not in ("on_input", "on_output"):
        raise refuse(entry, "neck", a["neck"], "an FPN from level 1 with add_extra_convs 'on_input' or 'on_output'")
    if neck.get("relu_before_extra_convs"):
        raise refuse(entry, "neck.relu_before_extra_convs", True, "False")
    if head.pop("type", HEAD) != HEAD:
        raise refuse(entry, "bbox_head.type", a["bbox_head"]["type"], repr(HEAD))
    network = dict(
        type=RelationNetPP,
        neck=dict(groups=_groups(entry, neck.get("norm_cfg")), extra=extra),
        **head_options(entry, head),
    )
    name = f"resnet{backbone['depth']}"
    return dict(
        type=Detector,
        backbone=dict(
            type=ResNetBackbone,
            name=name,
            out_indices=(1, 2, 3),
            frozen_stages=backbone.get("frozen_stages", -1),
        ),
        network=network,
    )


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments: of the head alone, or of a whole detector.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors do not have, or that is not supported.
    """
    from zoo.detection.bvr_head import BVRHead

    if entry in CHECKPOINTS:
        return _detector(entry, kwargs)
    if not re.fullmatch(rf"{HEAD}(\s.*)?", entry):
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(map(repr, (HEAD, *CHECKPOINTS)))}")
    return dict(type=BVRHead, **head_options(entry, kwargs))


_LOCATION = "relative_positional_encoding."
_CLS, _REG = f"cls_transformer.{_LOCATION}", f"reg_transformer.{_LOCATION}"
_NECK = KeyMap(
    [
        ("lateral_convs.{s}.conv.{p}", "inner_blocks.{s}.0.{p}"),
        ("lateral_convs.{s}.gn.{p}", "inner_blocks.{s}.1.{p}"),
        ("fpn_convs.{s}.conv.{p}", "layer_blocks.{s}.0.{p}"),
        ("fpn_convs.{s}.gn.{p}", "layer_blocks.{s}.1.{p}"),
        ("extra_convs.{s}.{part}", "extra_blocks.convs.{s}.{part}"),
    ]
)


def _head_from(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's state without the tables of sines; an embedding that both transformers share under both names."""
    found = {k: v for k, v in state.items() if not k.endswith(".base_embedding")}
    if not any(k.startswith(_REG) for k in found) and any(k.startswith("reg_transformer.") for k in found):
        found |= {_REG + k[len(_CLS) :]: v for k, v in found.items() if k.startswith(_CLS)}
    return found


def _neck_from(state: Mapping[str, Tensor], maps: int) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        match = re.fullmatch(r"fpn_convs\.(\d+)\.(.+)", key)
        if match and int(match[1]) >= maps:
            found[f"pyramid.extra_blocks.convs.{int(match[1]) - maps}.{match[2]}"] = value
        else:
            found |= {f"pyramid.{k}": v for k, v in _NECK.convert({key: value}).items()}
    return found


def _neck_to(state: Mapping[str, Tensor], maps: int) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        name = key.removeprefix("pyramid.")
        match = re.fullmatch(r"extra_blocks\.convs\.(\d+)\.(.+)", name)
        if match:
            found[f"fpn_convs.{int(match[1]) + maps}.{match[2]}"] = value
        else:
            found |= _NECK.revert({name: value})
    return found


def _parts(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours: tables of sines, which are computed here, and counts of batches are dropped.

    Raises:
        KeyError: a key of the neck that is not known.
        ValueError: keys besides backbone, neck and head.
    """
    if entry not in CHECKPOINTS:
        return _head_from(state)
    backbone, neck, head = (_parts(state, p) for p in ("backbone.", "neck.", "bbox_head."))
    if len(backbone) + len(neck) + len(head) < len(state):
        raise ValueError("the state dict has keys besides backbone.*, neck.* and bbox_head.*")
    maps = sum(k.startswith("lateral_convs.") and k.endswith("conv.weight") for k in neck)
    found = {f"backbone.{k}": v for k, v in backbone.items() if not k.endswith("num_batches_tracked")}
    found |= {f"network.neck.{k}": v for k, v in _neck_from(neck, maps).items()}
    return found | {f"network.head.{k}": v for k, v in _head_from(head).items()}


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors', without the tables of sines and the counts of batches.

    Raises:
        KeyError: a key that this model does not have.
    """
    if entry not in CHECKPOINTS:
        return _without_copies(state)
    if unknown := [k for k in state if not k.startswith(("backbone.", "network.neck.", "network.head."))]:
        raise KeyError(f"{len(unknown)} unexpected keys in the state dict: {', '.join(unknown[:8])}")
    neck = _parts(state, "network.neck.")
    maps = sum(re.fullmatch(r"pyramid\.inner_blocks\.\d+\.0\.weight", k) is not None for k in neck)
    found = {f"backbone.{k}": v for k, v in _parts(state, "backbone.").items()}
    found |= {f"neck.{k}": v for k, v in _neck_to(neck, maps).items()}
    return found | {f"bbox_head.{k}": v for k, v in _parts(state, "network.head.").items()}


def _without_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The second name of a location embedding that both transformers share is dropped."""
    first = {k[len(_CLS) :]: v for k, v in state.items() if k.startswith(_CLS)}
    second = {k[len(_REG) :]: v for k, v in state.items() if k.startswith(_REG)}
    same = set(first) == set(second) and all(first[k].data_ptr() == v.data_ptr() for k, v in second.items())
    if second and same:
        return {k: v for k, v in state.items() if not k.startswith(_REG)}
    return dict(state)
