"""MambaOut against the facts of the authors' models and against timm's implementation."""

import json

import pytest
import timm
import torch
from torch import nn

from zoo.backbones.mambaout import MambaOut
from zoo.registry import MODELS, build
from zoo.weights.importers import mambaout as importer
from zoo.weights.importers import timm_mambaout

TINY = dict(depths=(1, 2, 1), dims=(16, 24, 36), num_classes=5, kernel_size=3)


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "mambaout.json").read_text(encoding="utf-8"))["variants"]
    assert len(variants) == 5
    for name, facts in variants.items():
        with torch.device("meta"):
            model = MODELS.get(name)()
            imported = build(importer.config_from_official(importer.NETWORK, facts["kwargs"]), MODELS)
        assert sum(p.numel() for p in model.parameters()) == facts["params"], name
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in imported.state_dict().items()
        }
        assert MODELS.entry(name).meta["input_size"] == facts["input_size"]


@pytest.mark.parametrize("name", timm_mambaout.ENTRIES)
def test_sizes_equal_timm(name):
    with torch.device("meta"):
        ours = build(timm_mambaout.config_from_official(name, {}), MODELS)
        theirs = timm.create_model(name)
    expected = {k: v.shape for k, v in timm_mambaout.convert_state_dict(name, theirs.state_dict()).items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected


def test_same_logits_and_maps_as_timm_femto():
    theirs = randomised(timm.create_model("mambaout_femto", num_classes=11))
    ours = build(timm_mambaout.config_from_official("mambaout_femto", {"num_classes": 11}), MODELS).eval()
    state = theirs.state_dict()
    ours.load_state_dict(timm_mambaout.convert_state_dict("mambaout_femto", state))
    back = timm_mambaout.revert_state_dict("mambaout_femto", ours.state_dict())
    assert set(back) == set(state)
    assert all(torch.equal(back[k], state[k]) for k in state)
    x = torch.randn(1, 3, 75, 102, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = ours(x), theirs(x)
        assert (a - b).norm() < 1e-4 * b.norm()
        maps = theirs.forward_intermediates(x, intermediates_only=True)
        for m, want in zip(ours.forward_features(x), maps, strict=True):
            assert (m - want).norm() < 1e-4 * want.norm()
    assert ours.out_channels == tuple(i["num_chs"] for i in theirs.feature_info)
    assert ours.strides == tuple(i["reduction"] for i in theirs.feature_info)


@pytest.mark.parametrize("name", ["mambaout_small_rw", "mambaout_base_short_rw", "mambaout_base_plus_rw"])
def test_options_as_in_timm(name):
    sizes = dict(depths=(1, 2, 1, 1), dims=(16, 24, 32, 40), num_classes=5, ls_init_value=0.5)
    theirs = randomised(timm.create_model(name, **sizes))
    ours = build(timm_mambaout.config_from_official(name, sizes), MODELS).eval()
    ours.load_state_dict(timm_mambaout.convert_state_dict(name, theirs.state_dict()))
    x = torch.randn(2, 3, 50, 41, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, value", [("downsample", "pool"), ("global_pool", "max"), ("act_layer", "tanh")])
def test_timm_options_refused(name, value):
    with pytest.raises(ValueError, match=name):
        timm_mambaout.config_from_official("mambaout_tiny", {name: value})
    with pytest.raises(LookupError, match="mambaout_x"):
        timm_mambaout.config_from_official("mambaout_x", {})


@pytest.mark.parametrize("head", ["MlpHead", "Linear"])
def test_importer_is_strict_both_ways(head):
    kwargs = dict(depths=[1, 1], dims=[16, 24], num_classes=3, head_fn=head, conv_ratio=0.5, act_layer="SiLU")
    own = build(importer.config_from_official(importer.NETWORK, kwargs), MODELS).state_dict()
    official = importer.revert_state_dict(importer.NETWORK, own)
    assert ("head.fc2.weight" in official) == (head == "MlpHead")
    back = importer.convert_state_dict(importer.NETWORK, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(importer.NETWORK, {**official, "stages.0.0.extra.x.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(dim=[1]), TypeError, "dims"),
        (dict(num_classes=0), ValueError, "num_classes"),
        (dict(depths=[1] * 5, dims=[8] * 5), ValueError, "downsample_layers|one to four"),
        (dict(depths=[1, 1], dims=[8]), ValueError, "as many"),
        (dict(downsample_layers=["DownsampleLayer"] * 4), ValueError, "StemLayer"),
        (dict(norm_layer="BatchNorm2d"), ValueError, "BatchNorm2d"),
        (dict(act_layer="StarReLU"), ValueError, "StarReLU"),
        (dict(head_fn="Linear", head_dropout=0.1), ValueError, "head_dropout"),
    ],
)
def test_importer_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(importer.NETWORK, kwargs)


def test_unknown_entry():
    with pytest.raises(LookupError, match="Other"):
        importer.config_from_official("models/mambaout.py:Other", {})


@pytest.mark.parametrize("head", ["mlp", "mlp_plain", "linear"])
def test_reset_classifier_and_layer_groups(head):
    model = MambaOut(**TINY, head=head, layer_scale=0.5).eval()
    x = torch.randn(1, 3, 32, 32)
    groups = model.group_matcher()
    assert set(groups.values()) == set(range(model.num_layers()))
    assert groups["downsamples.1.conv.weight"] == groups["stages.2.0.gamma"] == 4
    maps = model.forward_features(x)
    model.reset_classifier(9)
    assert model(x).shape == (1, 9)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), maps)
    model.reset_classifier(5)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in MambaOut(**TINY, head=head, layer_scale=0.5).state_dict().items()
    }


def test_bad_arguments():
    with pytest.raises(ValueError, match="conv_ratio"):
        MambaOut(**{**TINY, "conv_ratio": 3.0})
    with pytest.raises(ValueError, match="kernel_size"):
        MambaOut(**{**TINY, "kernel_size": 4})
    with pytest.raises(ValueError, match="head"):
        MambaOut(**TINY, head="none")
    with pytest.raises(ValueError, match="depths"):
        MambaOut(**{**TINY, "depths": (1, 1)})
