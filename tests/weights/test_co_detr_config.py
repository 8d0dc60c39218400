"""The ``model`` of Co-DETR's config files gives our models, or says which of its parts is not supported."""

import pytest
import torch

import zoo
from zoo.registry import MODELS, build
from zoo.weights.importers import co_detr

LAYER = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")


def coder(x, w):
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[x, x, w, w])


def config(dino, swin, layers=6, num_query=900, num_classes=80):
    """As the published files have it; ``swin`` is the width, depths, heads, window and rate of stochastic depth."""
    levels = 5 if dino else 4
    strides = [4, 8, 16, 32, 64][-levels:]
    anchors = [*strides, 128]
    width, depths, heads, window, drop = swin
    stages = (0, 1, 2, 3) if dino else (1, 2, 3)
    sampled = dict(type="MultiScaleDeformableAttention", embed_dims=256, dropout=0.0)
    if dino:
        sampled["num_levels"] = levels
    dense = dict(type="MultiheadAttention", embed_dims=256, num_heads=8, dropout=0.0)
    rest = dict(feedforward_channels=2048, ffn_dropout=0.0)
    encoder = dict(type="BaseTransformerLayer", attn_cfgs=sampled, operation_order=LAYER[:2] + LAYER[4:], **rest)
    decoder = dict(type="DetrTransformerDecoderLayer", attn_cfgs=[dense, sampled], operation_order=LAYER, **rest)
    transformer = dict(
        num_co_heads=2,
        encoder=dict(type="DetrTransformerEncoder", num_layers=layers, transformerlayers=encoder),
        decoder=dict(num_layers=layers, return_intermediate=True, transformerlayers=decoder),
    )
    head = dict(num_query=num_query, num_classes=num_classes, in_channels=2048, sync_cls_avg_factor=True)
    head |= dict(with_box_refine=True, as_two_stage=True, mixed_selection=True, transformer=transformer)
    position = dict(type="SinePositionalEncoding", num_feats=128, normalize=True)
    if dino:
        transformer |= dict(
            type="CoDinoTransformer", with_pos_coord=True, with_coord_feat=False, num_feature_levels=levels
        )
        transformer["encoder"]["with_cp"] = 6
        transformer["decoder"]["type"] = "DinoTransformerDecoder"
        group = dict(dynamic=True, num_groups=None, num_dn_queries=100)
        noise = dict(type="CdnQueryGenerator", noise_scale=dict(label=0.5, box=1.0), group_cfg=group)
        head |= dict(type="CoDINOHead", num_feature_levels=levels, dn_cfg=noise)
        head["positional_encoding"] = dict(position, temperature=20)
    else:
        transformer["type"] = "CoDeformableDetrTransformer"
        transformer["decoder"] |= dict(type="CoDeformableDetrTransformerDecoder", look_forward_twice=True)
        head |= dict(type="CoDeformDETRHead", positional_encoding=dict(position, offset=-0.5))
    backbone = dict(type="SwinTransformerV1", embed_dim=width, depths=depths, num_heads=heads, out_indices=stages)
    backbone |= dict(window_size=window, ape=False, drop_path_rate=drop, patch_norm=True, pretrained="models/x.pth")
    extractor = dict(type="SingleRoIExtractor", roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0))
    extractor |= dict(out_channels=256, featmap_strides=strides, finest_scale=56 if dino else 112)
    box = dict(type="Shared2FCBBoxHead", in_channels=256, fc_out_channels=1024, roi_feat_size=7)
    box |= dict(num_classes=num_classes, bbox_coder=coder(0.1, 0.2), reg_class_agnostic=False, reg_decoded_bbox=True)
    places = dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=anchors)
    atss = dict(type="CoATSSHead", num_classes=num_classes, in_channels=256, stacked_convs=1, feat_channels=256)
    atss |= dict(anchor_generator=places, bbox_coder=coder(0.1, 0.2), loss_cls=dict(type="FocalLoss"))
    places = dict(type="AnchorGenerator", octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0])
    rpn = dict(type="RPNHead", in_channels=256, feat_channels=256, anchor_generator=dict(places, strides=anchors))
    neck = dict(type="ChannelMapper", in_channels=[width * 2**i for i in stages], kernel_size=1, out_channels=256)
    return dict(
        type="CoDETR",
        backbone=backbone,
        neck=dict(neck, act_cfg=None, norm_cfg=dict(type="GN", num_groups=32), num_outs=levels),
        rpn_head=dict(rpn, bbox_coder=coder(1.0, 1.0), loss_bbox=dict(type="L1Loss", loss_weight=12.0)),
        query_head=head,
        roi_head=[dict(type="CoStandardRoIHead", bbox_roi_extractor=extractor, bbox_head=box)],
        bbox_head=[atss],
        train_cfg=[{}, dict(rpn_proposal=dict(nms_pre=4000, max_per_img=700)), dict(assigner=dict(topk=7))],
        test_cfg=[dict(max_per_img=100)],
    )


SWIN_T = (96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 0.2)
SWIN_L = (192, [2, 2, 18, 2], [6, 12, 24, 48], 12, 0.6)


@pytest.mark.parametrize(
    "entry, swin, more, named",
    [
        (co_detr.DEFORMABLE, SWIN_T, dict(num_query=300), "co_deformable_detr_swin_tiny"),
        (co_detr.DINO, SWIN_L, {}, "co_dino_5scale_swin_large"),
    ],
)
def test_the_published_configs_give_the_registered_models(entry, swin, more, named):
    spec = co_detr.config_from_official(entry, config(entry == co_detr.DINO, swin, **more))
    assert spec["backbone"]["drop_path_rate"] == swin[-1]
    with torch.device("meta"):
        model, registered = build(spec, MODELS), zoo.create_model(named)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert shapes == {k: v.shape for k, v in registered.state_dict().items()}


@pytest.mark.parametrize("entry", [co_detr.DEFORMABLE, co_detr.DINO])
def test_configs_are_the_flat_arguments(entry):
    dino = entry == co_detr.DINO
    given = config(dino, SWIN_T, layers=3, num_query=50, num_classes=7)
    flat = dict(num_query=50, num_classes=7, enc_layers=3, dec_layers=3, max_proposals=700, atss_topk=7)
    expected = co_detr.config_from_official(entry, {**flat, "backbone": given["backbone"]})
    assert co_detr.config_from_official(entry, given) == expected
    assert expected["network"]["num_queries"] == 50
    assert expected["network"]["auxiliary"]["proposals"] == 700


def test_resnets_of_configs_are_read():
    given = config(False, SWIN_T)
    frozen = dict(type="BN", requires_grad=False)
    given["backbone"] = dict(type="ResNet", depth=50, num_stages=4, out_indices=(1, 2, 3), frozen_stages=1)
    given["backbone"] |= dict(norm_cfg=frozen, norm_eval=True, style="pytorch", init_cfg=dict(type="Pretrained"))
    given["neck"]["in_channels"] = [512, 1024, 2048]
    backbone = co_detr.config_from_official(co_detr.DEFORMABLE, given)["backbone"]
    assert (backbone["name"], backbone["out_indices"], backbone["frozen_stages"]) == ("resnet50", (1, 2, 3), 1)
    given["backbone"]["norm_cfg"] = dict(type="SyncBN")
    with pytest.raises(ValueError, match="norm_cfg"):
        co_detr.config_from_official(co_detr.DEFORMABLE, given)


@pytest.mark.parametrize(
    "path, value, says",
    [
        ("with_attn_mask", False, "with_attn_mask=False"),
        ("mask_head", {}, "mask_head"),
        ("neck.num_outs", 5, "num_feature_levels.*=4.*accepted: 5"),
        ("neck.in_channels", [1, 2, 3], r"neck\.in_channels"),
        ("neck.norm_cfg.num_groups", 16, "num_groups=16"),
        ("query_head.num_classes", 3, "num_classes"),
        ("query_head.type", "DINOHead", r"query_head\.type='DINOHead'"),
        ("query_head.positional_encoding.num_feats", 64, "num_feats"),
        ("query_head.transformer.encoder.num_cp", 1, r"encoder\.num_cp"),
        ("query_head.transformer.decoder.transformerlayers.operation_order", ("norm",), "operation_order"),
        ("roi_head", [], "a list of 1"),
        ("roi_head", [{}], r"roi_head\[0\]\.type"),
        ("rpn_head.anchor_generator.ratios", [1.0], r"rpn_head\.anchor_generator\.ratios"),
        ("neck", None, "a dict"),
        ("backbone.type", "ViT", "ViT"),
    ],
)
def test_other_parts_are_refused_by_name(path, value, says):
    given = config(False, SWIN_T)
    place = given
    *parents, last = path.split(".")
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ValueError, match=says):
        co_detr.config_from_official(co_detr.DEFORMABLE, given)
