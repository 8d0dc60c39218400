"""STViT: sizes, options, importer."""

import json

import pytest
import torch

from zoo.backbones.stvit import STViT
from zoo.registry import MODELS, build
from zoo.weights.importers import stvit as importer

TINY = dict(
    embed_dim=(16, 24, 32),
    depths=(1, 2, 1),
    num_heads=(2, 2, 4),
    stoken_size=(4, (2, 3), 1),
    projection=20,
    num_classes=5,
)


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "stvit.json").read_text(encoding="utf-8"))["variants"]
    assert len(variants) == 6
    for name, facts in variants.items():
        with torch.device("meta"):
            model = MODELS.get(name)()
            official = build(importer.config_from_official(importer.NETWORK, facts["kwargs"]), MODELS)
        assert sum(p.numel() for p in model.parameters()) == facts["params"], name
        assert repr(model) == repr(official), name
        assert MODELS.entry(name).meta["input_size"] == facts["input_size"]


@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 1)])
def test_any_size(size):
    torch.manual_seed(0)
    model = STViT(**TINY).eval()
    with torch.no_grad():
        x = torch.randn(2, 3, *size)
        maps = model.forward_features(x)
        assert model(x).shape == (2, 5)
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(model.out_channels, model.strides)]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(bool(torch.isfinite(m).all()) for m in maps)


def test_classifier_can_be_taken_off_and_put_on():
    model = STViT(**TINY).eval()
    x = torch.randn(1, 3, 32, 32)
    proj = model.proj.weight.clone()
    model.reset_classifier(9)
    assert model(x).shape == (1, 9)
    assert torch.equal(model.proj.weight, proj)
    model.reset_classifier(0)
    assert model.state_dict().keys() == STViT(**{**TINY, "num_classes": 0}).state_dict().keys()
    assert model.forward_classifier(x).shape == (1, 32)
    model.reset_classifier(4)
    assert model.state_dict().keys() == STViT(**TINY).state_dict().keys()
    assert model(x).shape == (1, 4)


def test_constants_are_not_trained():
    model = STViT(**TINY).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    without = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.grad is None}
    assert without == {"fold", "unfold"}


OFFICIAL = dict(
    embed_dim=[16, 24],
    depths=[1, 2],
    num_heads=[2, 3],
    n_iter=[2, 1],
    stoken_size=[4, 1],
    projection=20,
    num_classes=5,
    layerscale=[True, False],
    init_values=0.1,
)


@pytest.mark.parametrize(
    "entry, kwargs",
    [
        (importer.NETWORK, OFFICIAL),
        (importer.NETWORK, dict(OFFICIAL, qkv_bias=False, qk_scale=0.3, freeze_bn=True)),
        (importer.ATTENTION, dict(dim=16, stoken_size=[2, 3], qkv_bias=True)),
        (importer.ATTENTION, dict(dim=12, stoken_size=[2, 2], refine_attention=False)),
        (importer.ATTENTION, dict(dim=12, stoken_size=[2, 2], refine=False)),
    ],
)
def test_importer_is_strict_both_ways(entry, kwargs):
    model = build(importer.config_from_official(entry, kwargs), MODELS)
    own = model.state_dict()
    official = importer.revert_state_dict(entry, own)
    back = importer.convert_state_dict(entry, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(entry, {**official, "attn.extra.weight": torch.zeros(1)})
    key = next(k for k in official if k.endswith("unfold.weights"))
    with pytest.raises(ValueError, match="identity"):
        importer.convert_state_dict(entry, {**official, key: torch.zeros(9, 1, 3, 3)})
    if entry == importer.ATTENTION:
        del official[key]
        with pytest.raises(KeyError, match="unfold"):
            importer.convert_state_dict(entry, official)


@pytest.mark.parametrize(
    "entry, kwargs, error, message",
    [
        (importer.NETWORK, dict(OFFICIAL, projection=None), ValueError, "projection"),
        (importer.NETWORK, dict(OFFICIAL, drop_rate=0.1), ValueError, "drop_rate"),
        (importer.NETWORK, dict(OFFICIAL, use_checkpoint=True), ValueError, "use_checkpoint"),
        (importer.NETWORK, dict(OFFICIAL, num_classes=0), ValueError, "num_classes"),
        (importer.NETWORK, dict(OFFICIAL, stoken_sizes=[1]), TypeError, "stoken_size"),
        (importer.ATTENTION, dict(dim=8), TypeError, "stoken_size"),
        (importer.ATTENTION, dict(dim=8, stoken_size=[2, 2], attn_drop=0.1), ValueError, "attn_drop"),
        ("models.stvit.Other", {}, LookupError, "Other"),
    ],
)
def test_importer_refuses(entry, kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(entry, kwargs)


def test_bad_arguments():
    with pytest.raises(ValueError, match="one entry a stage"):
        STViT(**{**TINY, "depths": (1, 1)})
    with pytest.raises(ValueError, match="projection=None"):
        STViT(**{**TINY, "projection": None})
    with pytest.raises(ValueError, match="n_iter"):
        STViT(**{**TINY, "n_iter": (1, 1)})
