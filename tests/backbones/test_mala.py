"""MAViT: sizes, options, importer."""

import json

import pytest
import torch

from zoo.backbones.mala import MAViT
from zoo.mixers.mala import MagnitudeAwareAttention, RotatedSoftmaxAttention
from zoo.registry import MIXERS, MODELS, build
from zoo.weights.importers import efficient_attention
from zoo.weights.importers import mala as importer

SMALL = dict(
    flags=("l", "lvl", "v"),
    embed_dims=(8, 16, 24),
    depths=(1, 2, 1),
    num_heads=(1, 2, 2),
    mlp_ratios=(2, 3.5, 2),
    projection=20,
    layer_scale=(None, 0.5, 1.0),
    num_classes=5,
)
OFFICIAL = dict(
    flagss=[["l"] * 4, ["l", "v", "l"], ["v"]],
    embed_dims=[8, 16, 24],
    depths=[1, 2, 1],
    num_heads=[1, 2, 2],
    mlp_ratios=[2, 3.5, 2],
    projection=20,
    layerscales=[False, True, True],
    layer_init_values=[1, 0.5, 1],
)


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "mala.json").read_text(encoding="utf-8"))["variants"]
    names = dict(MALA_T="mavit_tiny", MALA_S="mavit_small", MALA_B="mavit_base", MALA_L="mavit_large")
    assert set(variants) == set(names)
    for name, facts in variants.items():
        with torch.device("meta"):
            model = MODELS.get(names[name])()
            official = build(importer.config_from_official(importer.NETWORK, facts["kwargs"]), MODELS)
        assert sum(p.numel() for p in model.parameters()) == facts["params"], name
        assert model.state_dict().keys() == official.state_dict().keys()
        assert [type(b.attn) for s in model.stages for b in s] == [type(b.attn) for s in official.stages for b in s]


@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 1)])
def test_any_size(size):
    torch.manual_seed(0)
    model = MAViT(**SMALL).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = model.forward_features(x)
        logits = model(x)
        torch.testing.assert_close(model(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(model.out_channels, model.strides)]
    assert [tuple(m.shape) for m in maps] == expected
    assert logits.shape == (2, 5)


def test_attention_of_each_block():
    kinds = [[type(b.attn) for b in stage] for stage in MAViT(**SMALL).stages]
    linear, softmax = MagnitudeAwareAttention, RotatedSoftmaxAttention
    assert kinds == [[linear], [linear, softmax], [softmax]]


def test_layer_groups_and_classifier():
    model = MAViT(**SMALL).eval()
    groups = model.group_matcher()
    assert set(groups.values()) == set(range(6))
    assert groups["merges.0.conv.weight"] == groups["stages.1.0.mlp.fc1.weight"] == 2
    assert "stages.1.0.gamma1" in model.no_weight_decay()
    norm = model.head.norm
    model.reset_classifier(9)
    assert model.head.norm is norm
    with pytest.raises(ValueError, match="num_classes=-1"):
        model.reset_classifier(-1)


def test_importer_is_strict_both_ways():
    model = build(importer.config_from_official(importer.NETWORK, {**OFFICIAL, "num_classes": 3}), MODELS)
    own = model.state_dict()
    official = importer.revert_state_dict(importer.NETWORK, own)
    assert official["layers.1.RoPE.angle"].shape == (4,)
    assert official["layers.1.blocks.1.attn.qkvo.weight"].shape == (64, 16, 1, 1)
    assert official["layers.1.blocks.0.gamma_1"].shape == (1, 16, 1, 1)
    assert official["head.weight"].shape == (3, 20, 1, 1)
    back = importer.convert_state_dict(importer.NETWORK, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(importer.NETWORK, {**official, "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="1x1 convolution"):
        importer.convert_state_dict(importer.NETWORK, {**official, "head.weight": torch.zeros(3, 20, 3, 3)})


@pytest.mark.parametrize(
    "module, entry, kwargs, error, message",
    [
        (importer, importer.NETWORK, dict(flags=["l"]), TypeError, "flagss"),
        (importer, importer.NETWORK, dict(flagss=[["l"], ["v"], ["v"]]), ValueError, "at least 2 letters for stage 1"),
        (importer, importer.NETWORK, dict(num_classes=0), ValueError, "num_classes"),
        (importer, importer.LINEAR, dict(dim=8), TypeError, "num_heads"),
        (importer, "other", {}, LookupError, "other"),
        (efficient_attention, efficient_attention.ATTENTION, dict(in_channels=8), TypeError, "key_channels"),
        (efficient_attention, "other", {}, LookupError, "other"),
    ],
)
def test_importers_refuse(module, entry, kwargs, error, message):
    base = OFFICIAL if entry == importer.NETWORK else {}
    with pytest.raises(error, match=message):
        module.config_from_official(entry, {**base, **kwargs})


def test_efficient_attention_importer_is_strict_both_ways():
    entry = efficient_attention.ATTENTION
    kwargs = dict(in_channels=10, key_channels=6, head_count=2, value_channels=8)
    module = build(efficient_attention.config_from_official(entry, kwargs), MIXERS)
    own = module.state_dict()
    official = efficient_attention.revert_state_dict(entry, own)
    assert official["reprojection.weight"].shape == (10, 8, 1, 1)
    back = efficient_attention.convert_state_dict(entry, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        efficient_attention.convert_state_dict(entry, {**official, "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="1x1 convolution"):
        efficient_attention.convert_state_dict(entry, {**official, "keys.weight": torch.zeros(6, 10)})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(flags=("l", "lv", "x")), "flags"),
        (dict(depths=(1, 3, 1), flags=("l", "lv", "v")), "stage 1"),
        (dict(num_heads=(1, 2, 4)), "head_dim=6"),
        (dict(embed_dims=(8, 16)), "embed_dims"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        MAViT(**{**SMALL, **change})
