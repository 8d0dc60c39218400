"""Importers of the medical systems without recordings: keys both ways, and arguments honoured or refused."""

import pytest
import torch

from zoo.registry import MODELS, build
from zoo.weights.importers import importer

AGN = "models/networks/"
GATES = "models/layers/grid_attention_layer.py:"
DAF = "src/models/my_stacked_danet.py:DAF_stack"
SMALL_DAF = dict(
    channels=8, num_classes=3, backbone=dict(stem=4, planes=[2, 2, 4, 4], layers=[1, 2, 1, 1], groups=1, base_width=64)
)
CONF = dict(D_feat=10, D_inner=16, n_class=3)
CASES = [
    ("attention_unet", f"{AGN}unet_CT_dsv_3D.py:unet_CT_dsv_3D", dict(feature_scale=32, is_batchnorm=False)),
    ("attention_unet", f"{AGN}unet_CT_single_att_dsv_3D.py:unet_CT_single_att_dsv_3D", dict(feature_scale=32)),
    ("attention_unet", f"{AGN}unet_CT_multi_att_dsv_3D.py:unet_CT_multi_att_dsv_3D", dict(feature_scale=32)),
    ("attention_unet", f"{AGN}unet_grid_attention_3D.py:unet_grid_attention_3D", dict(feature_scale=32)),
    (
        "attention_unet",
        f"{AGN}sononet_grid_attention.py:sononet_grid_attention",
        dict(
            feature_scale=16, nonlocal_mode="concatenation_mean", aggregation_mode="deep_sup", n_convs=[1, 2, 1, 2, 1]
        ),
    ),
    ("attention_unet", f"{GATES}GridAttentionBlock2D", dict(in_channels=4, gating_channels=3)),
    (
        "attention_unet",
        f"{GATES}GridAttentionBlock2D_TORR",
        dict(in_channels=4, gating_channels=4, inter_channels=4, mode="concatenation_mean", use_theta=False),
    ),
    ("ms_dual_guided", DAF, SMALL_DAF),
    ("ms_dual_guided", "src/models/attention.py:PAM_CAM_Layer", dict(in_ch=8, use_pam=True)),
    ("turbolift", "Models/attentionunet3d.py:AttU_Net", dict(base_channels=2, output_ch=3)),
    (
        "turbolift",
        "Models/DeepSupAttUNet2D.py:DeepSupAttentionUnet",
        dict(channels=[2, 4, 6, 8, 10], finalact="logits", is_batchnorm=False),
    ),
    (
        "ct_scroll",
        "src/model.py:CT_Scroll",
        dict(
            embed_dim=16, depth=2, window_size=[3, 2], backbone=dict(stem=4, planes=[4, 4, 8, 16], layers=[1, 1, 2, 1])
        ),
    ),
    ("ct_scroll", "src/attention.py:CranialCaudalBlock", dict(embed_dim=16)),
    ("acmil", "architecture/transformer.py:ACMIL_GA", dict(conf=CONF, n_token=4, D=8)),
    ("acmil", "architecture/transformer.py:ACMIL_MHA", dict(conf=CONF, n_token=2)),
    ("acmil", "architecture/network.py:DimReduction", dict(n_channels=6, m_dim=8, numLayer_Res=3)),
    ("aem", "architecture/transformer.py:ABMIL", dict(conf=CONF, D=8)),
    ("aem", "architecture/transformer.py:MHA", dict(conf=CONF)),
    ("aem", "architecture/dsmil.py:MILNet(FCLayer,BClassifier)", dict(conf=CONF, passing_v=True)),
    ("guided_context_gating", "gcg/components/model.py:GlobalContextAttention + AttentionGate", dict(filters=16)),
]
IDS = [f"{s}: {e.rpartition(':')[2]}" for s, e, _ in CASES]


@pytest.mark.parametrize("system, entry, kwargs", CASES, ids=IDS)
def test_state_dicts_go_both_ways(system, entry, kwargs):
    module = importer(system)
    torch.manual_seed(0)
    model = build(module.config_from_official(entry, kwargs), MODELS)
    own = model.state_dict()
    official = module.revert_state_dict(entry, own)
    assert len(official) == len(own)
    back = module.convert_state_dict(entry, official)
    assert set(back) == set(own)
    assert all(torch.equal(back[k], own[k]) for k in own)
    model.load_state_dict(back)
    for translate, state in ((module.convert_state_dict, official), (module.revert_state_dict, own)):
        found = {}
        refused = ""
        try:
            found = translate(entry, {**state, "no_such.part.weight": torch.zeros(1)})
        except KeyError as error:
            refused = str(error)
        # parts that keep all names leave it to the model to refuse
        assert "no_such.part.weight" in refused or any(k.endswith("no_such.part.weight") for k in found)


@pytest.mark.parametrize("system, entry, kwargs", CASES, ids=IDS)
def test_unknown_arguments_and_entries_are_refused(system, entry, kwargs):
    module = importer(system)
    with pytest.raises(TypeError, match="has no argument 'no_such_argument'"):
        module.config_from_official(entry, {**kwargs, "no_such_argument": 1})
    for call in (module.config_from_official, module.convert_state_dict, module.revert_state_dict):
        with pytest.raises(LookupError, match="is not known"):
            call("models/other.py:Other", {})


@pytest.mark.parametrize(
    "system, entry, kwargs, words",
    [
        ("attention_unet", CASES[1][1], dict(nonlocal_mode="dot"), "nonlocal_mode='dot'"),
        ("attention_unet", CASES[4][1], dict(), "nonlocal_mode='concatenation'"),
        ("attention_unet", CASES[6][1], dict(CASES[6][2], nonlinearity1="elu"), "nonlinearity1='elu'"),
        ("ms_dual_guided", DAF, dict(SMALL_DAF, backbone_channels=[1, 2, 3, 4]), "backbone_channels"),
        ("ms_dual_guided", DAF, dict(backbone=dict(type="vgg")), "backbone"),
        ("turbolift", CASES[10][1], dict(finalact=3), "finalact=3"),
        ("ct_scroll", "src/model.py:CT_Scroll", dict(embed_dim=256), "embed_dim=256"),
        ("ct_scroll", "src/model.py:CT_Scroll", dict(depth=2), "window_size"),
        ("ct_scroll", "src/model.py:CT_Scroll", dict(path_resnet="x.pth"), "path_resnet"),
        ("acmil", CASES[13][1], dict(conf={**CONF, "n_token": 2}, n_token=3), "n_token=2"),
        ("aem", CASES[16][1], dict(conf=CONF, arch="mha"), "arch='mha'"),
        ("aem", CASES[18][1], dict(conf=CONF, confounder_path="x"), "confounder_path"),
        ("guided_context_gating", CASES[19][1], dict(channels=8, filters=4), "filters=4"),
        ("guided_context_gating", CASES[19][1], dict(channels=8, transform_activation="cubic"), "cubic"),
    ],
)
def test_values_that_are_not_supported_are_refused(system, entry, kwargs, words):
    with pytest.raises(ValueError, match=words):
        importer(system).config_from_official(entry, kwargs)


@pytest.mark.parametrize("entry, words", [(CASES[13], "D_feat"), (CASES[16], "D_feat"), (CASES[5], "in_channels")])
def test_missing_arguments_are_named(entry, words):
    with pytest.raises(TypeError, match=words):
        importer(entry[0]).config_from_official(entry[1], {})
