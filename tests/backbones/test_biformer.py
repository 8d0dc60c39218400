"""BiFormer backbones: sizes, options, importer, and agreement of the channels-last form with a plain one."""

import json
import sys

import pytest
import torch
from torch import nn

from zoo.backbones.biformer import BiFormer
from zoo.backbones.biformer_stl import BiFormerSTL
from zoo.registry import MODELS, build
from zoo.weights.importers import biformer as importer

TINY = dict(depth=(1, 1, 2, 1), embed_dim=(16, 24, 32, 48), head_dim=8, n_win=2, topks=(1, 2, 4, -2), num_classes=5)
STL = dict(depth=(1, 1, 1, 1), embed_dim=(16, 24, 32, 48), head_dim=8, n_wins=2, topks=(1, 2, 4, -2), num_classes=5)


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "biformer.json").read_text(encoding="utf-8"))["variants"]
    assert len(variants) == 5
    for name, facts in variants.items():
        with torch.device("meta"):
            model = MODELS.get(name)()
        assert sum(p.numel() for p in model.parameters()) == facts["params"], name
        assert MODELS.entry(name).meta["input_size"] == facts["input_size"]


@pytest.mark.parametrize("name", ["biformer_tiny", "biformer_stl", "biformer_stl_nchw", "biformer_nano"])
@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 1)])
def test_any_size(name, size):
    torch.manual_seed(0)
    model = MODELS.get(name)(num_classes=3, depth=(1, 1, 1, 1)).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert model(x).shape == (2, 3)
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(model.out_channels, model.strides)]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(bool(torch.isfinite(m).all()) for m in maps)


def test_network_equals_plain_gather_form(repo_root):
    sys.path.insert(0, str(repo_root / "tools"))
    try:
        from peers.biformer_gather import with_gather_attention
    finally:
        sys.path.pop(0)
    torch.manual_seed(0)
    model = BiFormer(**TINY).double().eval()
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.2)
    x = torch.randn(2, 3, 64, 128, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), with_gather_attention(model)(x), rtol=1e-9, atol=1e-9)


def test_layer_groups():
    model = BiFormer(**TINY, layer_scale_init_value=0.1)
    groups = model.group_matcher()
    assert set(groups.values()) == set(range(model.num_layers()))
    assert model.num_layers() == 7
    assert groups["downsample_layers.0.0.weight"] == 0
    assert groups["downsample_layers.2.0.weight"] == groups["stages.2.0.gamma1"] == 3
    assert groups["head.weight"] == groups["norm.weight"] == 6
    assert set(BiFormer(**{**TINY, "num_classes": 0}, extra_norms=True).group_matcher().values()) == set(range(6))


def test_dense_prediction_form_norms_only_the_output():
    torch.manual_seed(0)
    plain = BiFormer(**{**TINY, "num_classes": 0}).eval()
    dense = BiFormer(**{**TINY, "num_classes": 0}, extra_norms=True).eval()
    missing, unexpected = dense.load_state_dict(plain.state_dict(), strict=False)
    assert all(k.startswith("extra_norms.") for k in missing)
    assert unexpected == []
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(plain(x), dense(x)):
            want = nn.functional.layer_norm(a.permute(0, 2, 3, 1), a.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
            torch.testing.assert_close(b, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="no classifier"):
        dense.reset_classifier(3)


def test_freezing_and_checkpointing():
    torch.manual_seed(0)
    model = BiFormer(**TINY, frozen_stages=1).train()
    x = torch.randn(2, 3, 32, 32)
    model(x).sum().backward()
    frozen = {n.split(".")[0] + n.split(".")[1] for n, p in model.named_parameters() if p.grad is None}
    assert frozen == {"downsample_layers0", "stages0"}
    assert not model.downsample_layers[0][1].training
    assert model.downsample_layers[1][1].training
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    model.set_grad_checkpointing()
    model(x).sum().backward()
    again = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(grads, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_reset_classifier():
    model = BiFormer(**TINY).eval()
    x = torch.randn(1, 3, 32, 32)
    model.reset_classifier(9)
    assert model(x).shape == (1, 9)
    model.reset_classifier(0)
    assert isinstance(model(x), tuple)
    assert model.forward_classifier(x).shape == (1, 48)
    features = BiFormer(**{**TINY, "num_classes": 0}).eval()
    assert {k.split(".")[0] for k in features.state_dict()} == {"downsample_layers", "stages"}
    features.reset_classifier(5)
    assert features.state_dict().keys() == BiFormer(**TINY).state_dict().keys()
    assert features(x).shape == (1, 5)


@pytest.mark.parametrize("model", [BiFormer(**TINY), BiFormerSTL(**STL)], ids=["biformer", "stl"])
def test_export_and_fullgraph(model):
    model = model.eval()
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), want)


def test_remainder_is_padded_or_dropped():
    torch.manual_seed(0)
    padding = BiFormerSTL(**STL).eval()
    cut = BiFormerSTL(**STL, drop_remainder=True).eval()
    cut.load_state_dict(padding.state_dict())
    x = torch.randn(1, 3, 70, 100)
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in padding.forward_features(x)] == [(18, 25), (9, 13), (5, 7), (3, 4)]
        assert [tuple(m.shape[2:]) for m in cut.forward_features(x)] == [(17, 25), (8, 12), (4, 6), (2, 3)]
        with pytest.raises(ValueError, match="no patch"):
            cut(x[..., :3, :])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(topks=(1, 2, 4, -3)), "topk=-3"),
        (dict(topks=(1, 2, 5, -2)), "topk=5"),
        (dict(head_dim=64), "head_dim=64"),
        (dict(before_attn_dwconv=5), "before_attn_dwconv=5"),
        (dict(depth=(1, 1)), "depth"),
        (dict(extra_norms=True), "num_classes=5"),
        (dict(out_indices=(4,)), "out_indices"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiFormer(**{**TINY, **arguments})


def test_bad_arguments_stl():
    with pytest.raises(ValueError, match="routing='x'"):
        BiFormerSTL(**{**STL, "routing": "x"})
    with pytest.raises(ValueError, match="topk=-2"):
        BiFormerSTL(**{**STL, "routing": "bra_nchw"})
    with pytest.raises(ValueError, match="norm='GroupNorm'"):
        BiFormerSTL(**{**STL, "norm": "GroupNorm"})


OFFICIAL = dict(
    depth=[1, 1, 1, 1],
    embed_dim=[16, 24, 32, 48],
    head_dim=8,
    n_win=2,
    topks=[2, 0, -1, -2],
    kv_downsample_mode="identity",
    kv_per_wins=[-1] * 4,
    qk_dims=[16, 24, 32, 48],
    num_classes=3,
    mlp_dwconv=True,
    layer_scale_init_value=0.5,
)
OFFICIAL_STL = dict(depth=[1, 1, 1, 1], embed_dim=[16, 24, 32, 48], head_dim=8, n_wins=[2] * 4, num_classes=3)


@pytest.mark.parametrize(
    "entry, kwargs",
    [
        (importer.NETWORK, OFFICIAL),
        (importer.DENSE_NETWORK, OFFICIAL),
        (importer.STL, {**OFFICIAL_STL, "topks": [1, 2, 0, -2], "pre_head_norm_layer": "LayerNorm2d(eps=1e-3)"}),
        (importer.STL_NCHW, {**OFFICIAL_STL, "topks": [1, 2, 4, -1], "norm_layer": "BatchNorm2d"}),
        (importer.BRA, dict(dim=16, num_heads=2, param_routing=True, diff_routing=True, soft_routing=True)),
        (importer.BRA_NCHW, dict(dim=16, num_heads=2)),
    ],
)
def test_importer_is_strict_both_ways(entry, kwargs):
    model = build(importer.config_from_official(entry, kwargs), MODELS)
    own = model.state_dict()
    official = importer.revert_state_dict(entry, own)
    assert len(official) == len(own)
    back = importer.convert_state_dict(entry, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(entry, {**official, "attn.extra.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "entry, kwargs, error, message",
    [
        (importer.NETWORK, dict(OFFICIAL, embed_dims=[1]), TypeError, "embed_dims"),
        (importer.NETWORK, dict(OFFICIAL, representation_size=8), ValueError, "representation_size"),
        (importer.NETWORK, dict(OFFICIAL, num_classes=0), ValueError, "num_classes"),
        (importer.NETWORK, dict(OFFICIAL, pe="npe.sin"), ValueError, "npe.sin"),
        (importer.NETWORK, dict(OFFICIAL, use_checkpoint_stages=[0]), ValueError, "use_checkpoint_stages"),
        (importer.NETWORK, {k: v for k, v in OFFICIAL.items() if k != "qk_dims"}, ValueError, "qk_dims"),
        (importer.STL, dict(OFFICIAL_STL, norm_layer="InstanceNorm2d"), ValueError, "InstanceNorm2d"),
        (importer.BRA, {}, TypeError, "dim"),
        (importer.BRA_NCHW, dict(dim=8, attn_backend="cuda"), ValueError, "attn_backend"),
        ("models.other.Other", {}, LookupError, "models.other.Other"),
    ],
)
def test_importer_refuses(entry, kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(entry, kwargs)
