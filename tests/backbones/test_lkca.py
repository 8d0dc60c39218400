"""LKCA's vision transformers: sizes, options, importer."""

import json

import pytest
import torch

from zoo.backbones.lkca import LKCAViT
from zoo.registry import MODELS, build
from zoo.weights.importers import lkca as importer

OFFICIAL = dict(img_size=32, patch_size=8, num_classes=5, dim=16, depth=2, heads=4, mlp_dim_ratio=2)


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "lkca.json").read_text(encoding="utf-8"))["variants"]
    names = {"vit-8m-lkca": "lkca_vit_8m", "vit-12m-lkca": "lkca_vit_12m", "largevit-cnn": "lkca_largevit"}
    assert set(variants) == set(names)
    for official, name in names.items():
        with torch.device("meta"):
            model = MODELS.get(name)()
            theirs = build(importer.config_from_official(importer.VIT, variants[official]["kwargs"]), MODELS)
        assert sum(p.numel() for p in model.parameters()) == variants[official]["params"], name
        assert repr(model) == repr(theirs)
        assert MODELS.entry(name).meta["input_size"] == variants[official]["input_size"]


@pytest.mark.parametrize("size", [(32, 32), (41, 70), (1, 1)])
def test_any_size(size):
    torch.manual_seed(0)
    model = LKCAViT(img_size=32, patch_size=(8, 4), dim=16, depth=2, num_classes=3, kernel_std=0.1, out_indices=(0, 1))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = model.eval().forward_features(x)
        assert model(x).shape == (2, 3)
    assert [tuple(m.shape) for m in maps] == [(2, 16, -(-size[0] // 8), -(-size[1] // 4))] * 2
    assert all(m.isfinite().all() for m in maps)
    with pytest.raises(ValueError, match="img_size=4"):
        LKCAViT(img_size=4, patch_size=8)


@pytest.mark.parametrize(
    "entry, kwargs",
    [
        (importer.CNN, OFFICIAL),
        (f"{importer.VIT} (as recorded)", dict(OFFICIAL, heads=1, dim_head=16, channels=4)),
        (importer.VIT, dict(OFFICIAL, img_size=(32, 16), patch_size=(8, 4), dim_head=3, stochastic_depth=0.1)),
    ],
)
def test_importer_is_strict_both_ways(entry, kwargs):
    model = build(importer.config_from_official(entry, kwargs), MODELS)
    own = model.state_dict()
    official = importer.revert_state_dict(entry, own)
    assert official["transformer.layers.1.0.fn.dynamicqk"].shape == (1, 1, 7, 7)
    back = importer.convert_state_dict(entry, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(entry, {**official, "attn.extra.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(OFFICIAL, dropout=0.1), ValueError, "dropout=0.1"),
        (dict(OFFICIAL, img_size=(32, 64)), ValueError, "square number of patches"),
        (dict(OFFICIAL, num_classes=0), ValueError, "num_classes=0"),
        (dict(OFFICIAL, pool="cls"), TypeError, "pool"),
        (dict(img_size=32), TypeError, "patch_size"),
    ],
)
def test_importer_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(importer.CNN, kwargs)
    with pytest.raises(LookupError, match="Other"):
        importer.convert_state_dict("models/other.py:Other", {})
