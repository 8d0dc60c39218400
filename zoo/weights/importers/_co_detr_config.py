"""The ``model`` of Co-DETR's config files (mmdet 2's) as the flat arguments of the importer.

What only trains or picks detections (losses, ``train_cfg``, ``test_cfg``, files of trained weights, checkpointing) is
passed over, but for the numbers of proposals and of candidates. All else is read, or refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.weights.importers._official import refuse

_REQUIRED = object()


@dataclass(frozen=True)
class Read:
    """A value that is read as the argument ``name``; everywhere it is read it must be the same."""

    name: str
    default: Any = _REQUIRED


@dataclass(frozen=True)
class Fixed:
    """A value that may be missing, where it is the authors' default."""

    value: Any


#: a value that is passed over
SKIPPED = object()


def _coder(deviations: list[float]) -> dict[str, Any]:
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=deviations)


def _deformable(levels: str) -> dict[str, Any]:
    return dict(
        type="MultiScaleDeformableAttention",
        embed_dims=Read("embed_dims", 256),
        num_heads=Read("heads", 8),
        num_levels=Read(levels, 4),
        num_points=Read("num_points", 4),
        dropout=Read("dropout", 0.1),
    )


def _layer(kind: str, attention: Any, order: tuple[str, ...]) -> dict[str, Any]:
    return dict(
        type=kind,
        attn_cfgs=attention,
        feedforward_channels=Read("ffn"),
        ffn_dropout=Read("dropout", 0.0),
        operation_order=order,
    )


_LOSSES = dict(loss_cls=SKIPPED, loss_bbox=SKIPPED)


def _pattern(dino: bool) -> dict[str, Any]:
    attention = dict(
        type="MultiheadAttention",
        embed_dims=Read("embed_dims"),
        num_heads=Read("heads"),
        dropout=Read("dropout", 0.0),
    )
    decoder = dict(
        type="DinoTransformerDecoder" if dino else "CoDeformableDetrTransformerDecoder",
        num_layers=Read("dec_layers"),
        return_intermediate=True,
        transformerlayers=_layer(
            "DetrTransformerDecoderLayer",
            [attention, _deformable("num_levels")],
            ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
        ),
    )
    head: dict[str, Any] = dict(
        type="CoDINOHead" if dino else "CoDeformDETRHead",
        num_query=Read("num_query"),
        num_classes=Read("num_classes"),
        in_channels=SKIPPED,
        sync_cls_avg_factor=Read("sync_cls_avg_factor", False),
        with_box_refine=Read("with_box_refine", False),
        as_two_stage=Read("as_two_stage", False),
        mixed_selection=Read("mixed_selection", False),
        max_pos_coords=Read("max_pos_coords", 300),
        use_zero_padding=Read("use_zero_padding", False),
        lambda_1=Read("lambda_1", 1),
        transformer=dict(
            type="CoDinoTransformer" if dino else "CoDeformableDetrTransformer",
            num_co_heads=Read("num_co_heads", 1),
            num_feature_levels=Read("num_levels", 4),
            with_pos_coord=Read("with_pos_coord", True),
            with_coord_feat=Read("with_coord_feat", True),
            encoder=dict(
                type="DetrTransformerEncoder",
                num_layers=Read("enc_layers"),
                with_cp=SKIPPED,
                transformerlayers=_layer(
                    "BaseTransformerLayer", _deformable("num_levels"), ("self_attn", "norm", "ffn", "norm")
                ),
            ),
            decoder=decoder,
        ),
        positional_encoding=dict(
            type="SinePositionalEncoding",
            num_feats=Read("num_feats"),
            temperature=Read("temperature", 10000) if dino else Fixed(10000),
            normalize=True,
            **(dict(offset=Fixed(0.0)) if dino else dict(offset=-0.5)),
        ),
        **_LOSSES,
        loss_iou=SKIPPED,
    )
    if dino:
        head["num_feature_levels"] = Read("num_levels", 4)
        head["dn_cfg"] = dict(
            type="CdnQueryGenerator",
            noise_scale=dict(label=Read("dn_label_noise"), box=Read("dn_box_noise")),
            group_cfg=dict(dynamic=Read("dn_dynamic"), num_groups=Fixed(None), num_dn_queries=Read("num_dn")),
        )
    else:
        decoder["look_forward_twice"] = Read("look_forward_twice", False)
    return dict(
        type="CoDETR",
        backbone=Read("backbone"),
        neck=dict(
            type="ChannelMapper",
            in_channels=Read("in_channels"),
            kernel_size=1,
            out_channels=Read("embed_dims"),
            act_cfg=Fixed(None),
            norm_cfg=dict(type="GN", num_groups=Read("gn_groups")),
            num_outs=Read("num_levels"),
        ),
        rpn_head=dict(
            type="RPNHead",
            in_channels=Read("embed_dims"),
            feat_channels=Read("rpn_channels"),
            anchor_generator=dict(
                type="AnchorGenerator",
                octave_base_scale=4,
                scales_per_octave=Read("rpn_scales"),
                ratios=[0.5, 1.0, 2.0],
                strides=Read("anchor_strides"),
            ),
            bbox_coder=_coder([1.0] * 4),
            **_LOSSES,
        ),
        query_head=head,
        roi_head=[
            dict(
                type="CoStandardRoIHead",
                bbox_roi_extractor=dict(
                    type="SingleRoIExtractor",
                    roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
                    out_channels=Read("embed_dims"),
                    featmap_strides=Read("strides"),
                    finest_scale=Read("finest_scale", 56),
                ),
                bbox_head=dict(
                    type="Shared2FCBBoxHead",
                    in_channels=Read("embed_dims"),
                    fc_out_channels=Read("fc_channels"),
                    roi_feat_size=7,
                    num_classes=Read("num_classes"),
                    bbox_coder=_coder([0.1, 0.1, 0.2, 0.2]),
                    reg_class_agnostic=False,
                    reg_decoded_bbox=True,
                    **_LOSSES,
                ),
            )
        ],
        bbox_head=[
            dict(
                type="CoATSSHead",
                num_classes=Read("num_classes"),
                in_channels=Read("embed_dims"),
                feat_channels=Read("embed_dims"),
                stacked_convs=Read("stacked_convs"),
                anchor_generator=dict(
                    type="AnchorGenerator",
                    ratios=[1.0],
                    octave_base_scale=8,
                    scales_per_octave=1,
                    strides=Read("anchor_strides"),
                ),
                bbox_coder=_coder([0.1, 0.1, 0.2, 0.2]),
                **_LOSSES,
                loss_centerness=SKIPPED,
            )
        ],
        train_cfg=SKIPPED,
        test_cfg=SKIPPED,
        pretrained=SKIPPED,
        init_cfg=SKIPPED,
        with_attn_mask=Fixed(True),
        eval_module=Read("eval_module", "detr"),
        eval_index=Read("eval_index", 0),
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _same(a: Any, b: Any) -> bool:
    return list(a) == list(b) if _is_list(a) and _is_list(b) else a == b


class _Reader:
    def __init__(self, entry: str):
        self.entry = entry
        self.found: dict[str, Any] = {}

    def read(self, pattern: Any, given: Any, place: str) -> None:
        """Collect what ``given`` has at the places that ``pattern`` reads."""
        if pattern is SKIPPED:
            return
        if isinstance(pattern, Read):
            known = self.found.setdefault(pattern.name, given)
            if not _same(known, given):
                raise refuse(self.entry, place, given, f"{known!r}, as it is elsewhere in the config")
        elif isinstance(pattern, Mapping):
            if not isinstance(given, Mapping):
                raise refuse(self.entry, place, given, "a dict")
            self._fields(pattern, given, f"{place}." if place else "")
        elif isinstance(pattern, list) and isinstance(pattern[0], Mapping):
            if not _is_list(given) or len(given) != len(pattern):
                raise refuse(self.entry, place, given, f"a list of {len(pattern)}")
            for i, (p, g) in enumerate(zip(pattern, given)):
                self.read(p, g, f"{place}[{i}]")
        elif not _same(pattern.value if isinstance(pattern, Fixed) else pattern, given):
            raise refuse(self.entry, place, given, repr(pattern.value if isinstance(pattern, Fixed) else pattern))

    def _fields(self, pattern: Mapping[str, Any], given: Mapping[str, Any], place: str) -> None:
        for key, value in given.items():
            if key not in pattern:
                raise refuse(self.entry, place + key, value, f"configs without it; known are {', '.join(pattern)}")
        for key, part in pattern.items():
            if key in given:
                self.read(part, given[key], place + key)
            elif isinstance(part, Read) and part.default is not _REQUIRED:
                self.read(part, part.default, f"{place}{key} (the default)")
            elif part is not SKIPPED and not isinstance(part, Fixed):
                raise refuse(self.entry, place + key, None, "configs that have it")


def flat_arguments(entry: str, config: Mapping[str, Any], dino: bool) -> dict[str, Any]:
    """The importer's arguments, from a config's ``model``.

    Args:
        entry: for messages.
        config: ``dict(type="CoDETR", backbone=..., neck=..., query_head=..., ...)``, as the authors' files have it.
        dino: whether the entry's query head is ``CoDINOHead``.

    Raises:
        ValueError: what the published configs do not have; the message has its place in the config.
    """
    reader = _Reader(entry)
    reader.read(_pattern(dino), config, "")
    found = reader.found
    strides = tuple(found["strides"])
    if tuple(found.pop("anchor_strides")) != (*strides, 2 * strides[-1]):
        raise refuse(
            entry, "anchor_generator.strides", "others", f"{(*strides, 2 * strides[-1])}, after featmap_strides"
        )
    if found["num_levels"] != len(strides):
        raise refuse(entry, "neck.num_outs", found["num_levels"], f"{len(strides)}, one for each of featmap_strides")
    if 2 * found.pop("num_feats") != found["embed_dims"]:
        raise refuse(entry, "positional_encoding.num_feats", "another", f"half of embed_dims={found['embed_dims']}")
    # CoATSSHead and the query head have 32 groups wherever the config has no say.
    if found["gn_groups"] != 32:
        raise refuse(entry, "neck.norm_cfg.num_groups", found["gn_groups"], "32")
    _check_channels(entry, found["backbone"], tuple(found.pop("in_channels")))
    training: Sequence[Any] = config.get("train_cfg") or []
    if len(training) == 3:
        found["max_proposals"] = training[1].get("rpn_proposal", {}).get("max_per_img", 1000)
        found["atss_topk"] = training[2].get("assigner", {}).get("topk", 9)
    return found


def _check_channels(entry: str, backbone: Mapping[str, Any], given: tuple[int, ...]) -> None:
    """Refuse ``neck.in_channels`` that are not the backbone's."""
    if backbone.get("type") == "ResNet":
        width = 64 * (4 if backbone.get("depth", 50) >= 50 else 1)
    else:
        width = backbone.get("embed_dim", backbone.get("embed_dims", 96))
    expected = tuple(width * 2**i for i in backbone.get("out_indices", (0, 1, 2, 3)))
    if given != expected:
        raise refuse(entry, "neck.in_channels", given, f"{expected}, those of the backbone")
