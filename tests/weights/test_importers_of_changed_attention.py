"""Importers of MoH, TAP-ADL, Sparsifiner, GLSim and DeiT-LT: strict both ways, every argument honoured or refused."""

import pytest
import torch

from zoo.registry import MODELS, build
from zoo.weights.importers import deit_lt, glsim, moh, sparsifiner, tapadl

MOH = dict(
    img_size=64,
    patch_size=4,
    num_classes=3,
    embed_dims=[8, 16, 24, 32],
    num_heads=[2, 4, 4, 8],
    depths=[1, 1, 1, 1],
    shared_head=[2, 1, 0, 3],
    routed_head=[0, 2, 3, 2],
    norm_layer="LayerNorm(eps=1e-6)",
)
MOH_ATTENTION = dict(dim=12, input_resolution=[4, 6], num_heads=4, shared_head=2, routed_head=1)
FAN = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, num_scales=2)
HYBRID = dict(FAN, backbone_kwargs=dict(depths=[1, 2], dims=[8, 12], use_head=False))
CHANGING = dict(FAN, channel_dims=[16, 24], num_heads=[2, 4], c_head_num=[4, 2], use_pos_embed=False)
RVT = dict(
    image_size=64, patch_size=16, stride=16, base_dims=[4, 8], depth=[2, 1], heads=[2, 4], mlp_ratio=2, num_classes=3
)
SPARSIFINER = dict(
    img_size=32,
    patch_size=8,
    embed_dim=16,
    depth=2,
    num_heads=2,
    num_classes=3,
    attn_keep_rate_list=[0.5, 0.5],
    token_keep_rate_list=[1.0, 0.5],
    token_pruning_loc_indicator=[False, True],
)
GLSIM = dict(
    image_size=32,
    patch_size=[8, 8],
    hidden_size=48,
    intermediate_size=96,
    num_attention_heads=3,
    num_hidden_layers=2,
    representation_size=64,
    num_classes=3,
    reducer="cls",
    dynamic_anchor=True,
    anchor_class_token=True,
    aggregator=True,
    aggregator_norm=True,
)
DEIT = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, init_values=0.1)

CASES = [
    (moh, moh.NETWORK, MOH),
    (moh, moh.ATTENTION, MOH_ATTENTION),
    (moh, moh.AGGREGATED, dict(MOH_ATTENTION, sr_ratio=2, window_size=5)),
    (tapadl, tapadl.FAN, FAN),
    (tapadl, tapadl.FAN, HYBRID),
    (tapadl, tapadl.FAN, CHANGING),
    (tapadl, tapadl.RVT, dict(RVT, use_mask=True, masked_block=1)),
    (sparsifiner, sparsifiner.NETWORK, dict(SPARSIFINER, representation_size=8, share_inout_proj=True)),
    (glsim, glsim.NETWORK, GLSIM),
    (glsim, glsim.NETWORK, {"model_name": "vit_t32", "num_hidden_layers": 1, "num_classes": 3}),
    (deit_lt, deit_lt.NETWORK, DEIT),
]


@pytest.mark.parametrize("importer, entry, kwargs", CASES)
def test_strict_both_ways(importer, entry, kwargs):
    model = build(importer.config_from_official(entry, kwargs), MODELS)
    own = model.state_dict()
    official = importer.revert_state_dict(entry, own)
    back = importer.convert_state_dict(entry, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(entry, {**official, "extra.weight": torch.zeros(1)})
    with pytest.raises(TypeError, match="no_such_argument"):
        importer.config_from_official(entry, dict(kwargs, no_such_argument=1))
    for call in (importer.config_from_official, importer.convert_state_dict, importer.revert_state_dict):
        with pytest.raises(LookupError, match="other.Class"):
            call("other.Class", {})


@pytest.mark.parametrize(
    "importer, entry, kwargs, error, message",
    [
        (moh, moh.NETWORK, dict(MOH, attn_drop_rate=0.1), ValueError, "attn_drop_rate"),
        (moh, moh.NETWORK, dict(MOH, num_stages=3), ValueError, "num_stages"),
        (moh, moh.NETWORK, dict(MOH, norm_eps=1e-5), ValueError, "norm_eps"),
        (moh, moh.NETWORK, dict(MOH, norm_layer="BatchNorm2d"), ValueError, "norm_layer"),
        (moh, moh.NETWORK, dict(MOH, shared_head=[1, 1, 0, 3]), ValueError, "shared_head"),
        (moh, moh.NETWORK, dict(MOH, fixed_pool_size=4), ValueError, "fixed_pool_size"),
        (moh, moh.ATTENTION, dict(MOH_ATTENTION, H=5), ValueError, "input_resolution"),
        (moh, moh.ATTENTION, {"dim": 12}, TypeError, "input_resolution"),
        (tapadl, tapadl.FAN, dict(FAN, se_mlp=True), ValueError, "se_mlp"),
        (tapadl, tapadl.FAN, dict(FAN, act_layer="ReLU"), ValueError, "act_layer"),
        (tapadl, tapadl.FAN, dict(FAN, img_size=30), ValueError, "img_size"),
        (tapadl, tapadl.FAN, dict(FAN, backbone="resnet"), ValueError, "backbone"),
        (tapadl, tapadl.FAN, dict(FAN, backbone_kwargs=dict(use_head=True)), ValueError, "use_head"),
        (tapadl, tapadl.FAN, dict(FAN, backbone_kwargs=dict(num_scales=2, use_head=False)), ValueError, "num_scales"),
        (tapadl, tapadl.RVT, dict(RVT, drop_rate=0.1), ValueError, "drop_rate"),
        (tapadl, tapadl.RVT, dict(RVT, base_dims=[221, 8], heads=[8, 221]), ValueError, "1768"),
        (tapadl, tapadl.RVT, {"image_size": 64}, TypeError, "patch_size"),
        (sparsifiner, sparsifiner.NETWORK, dict(SPARSIFINER, cfg=dict(USE_ATTN_RECON=True)), ValueError, "RECON"),
        (sparsifiner, sparsifiner.NETWORK, dict(SPARSIFINER, cfg=dict(TOPK=3)), TypeError, "TOPK"),
        (sparsifiner, sparsifiner.NETWORK, dict(SPARSIFINER, hybrid_backbone="x"), ValueError, "hybrid_backbone"),
        (sparsifiner, sparsifiner.NETWORK, dict(SPARSIFINER, attn_keep_rate_list=[0.5]), ValueError, "attn_keep"),
        (glsim, glsim.NETWORK, dict(GLSIM, classifier="pool"), ValueError, "classifier"),
        (glsim, glsim.NETWORK, dict(GLSIM, anchor_random=True), ValueError, "anchor_random"),
        (glsim, glsim.NETWORK, dict(GLSIM, reducer="linear"), ValueError, "reducer"),
        (glsim, glsim.NETWORK, dict(GLSIM, model_name="resnet50"), ValueError, "resnet50"),
        (glsim, glsim.NETWORK, dict(GLSIM, sim_metric="dot"), ValueError, "dot"),
        (deit_lt, deit_lt.NETWORK, dict(DEIT, global_pool="avg"), ValueError, "global_pool"),
        (deit_lt, deit_lt.NETWORK, dict(DEIT, pre_norm=True), ValueError, "pre_norm"),
        (deit_lt, deit_lt.NETWORK, dict(DEIT, class_token=False), ValueError, "class_token"),
    ],
)
def test_refuses(importer, entry, kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(entry, kwargs)


def test_damaged_state_dicts():
    state = {"block1.0.attn.sr.weight": torch.zeros(4, 4, 3, 3)}
    with pytest.raises(ValueError, match="1x1"):
        moh.convert_state_dict(moh.NETWORK, state)
    with pytest.raises(KeyError, match="attn.v.weight"):
        tapadl.convert_state_dict(tapadl.FAN, {"cls_attn_blocks.0.attn.k.weight": torch.zeros(4, 4)})
    with pytest.raises(KeyError, match="proj_k"):
        glsim.convert_state_dict(glsim.NETWORK, {"encoder.blocks.0.attn.proj_q.weight": torch.zeros(4, 4)})


def test_mean_of_logits_registers_the_classifier_twice():
    model = build(glsim.config_from_official(glsim.NETWORK, dict(GLSIM, classifier="avg_cls")), MODELS).eval()
    official = glsim.revert_state_dict(glsim.NETWORK, model.state_dict())
    official |= {f"head_reducer.0.{n}": official[f"head.{n}"] for n in ("weight", "bias")}
    model.load_state_dict(glsim.convert_state_dict(glsim.NETWORK, official))
    with pytest.raises(ValueError, match="head_reducer"):
        glsim.convert_state_dict(glsim.NETWORK, {**official, "head_reducer.0.bias": torch.ones(3)})
