"""FFTNet: size, importer, any image size."""

import json

import pytest
import torch

from zoo.backbones.fftnet import FFTNet
from zoo.registry import MODELS, build
from zoo.weights.importers import fftnet as importer

TINY = dict(input_size=32, patch_size=8, dim=16, depth=2, num_heads=2, num_classes=5)


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "fftnet.json").read_text(encoding="utf-8"))["variants"]
    assert set(variants) == {"fftnet_vit_default"}
    facts = variants["fftnet_vit_default"]
    with torch.device("meta"):
        named = MODELS.get("fftnet_vit_default")()
        imported = build(importer.config_from_official(importer.NETWORK, facts["kwargs"]), MODELS)
    assert sum(p.numel() for p in named.parameters()) == facts["params"]
    assert {k: v.shape for k, v in named.state_dict().items()} == {k: v.shape for k, v in imported.state_dict().items()}


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (1, 1)])
def test_any_size(size):
    torch.manual_seed(0)
    model = FFTNet(**TINY, out_indices=(0, 1)).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert model(x).isfinite().all()
    assert [m.shape for m in maps] == [(2, 16, -(-size[0] // 8), -(-size[1] // 8))] * 2


def test_block_doubles_its_input():
    torch.manual_seed(0)
    block = FFTNet(**TINY).eval().blocks[0]
    with torch.no_grad():
        block.mlp[3].weight.zero_()
        block.mlp[3].bias.zero_()
        block.mixer.base_filter.zero_()
        block.mixer.base_bias.zero_()
        block.mixer.adapt2.weight.zero_()
        block.mixer.adapt2.bias.zero_()
        x = torch.randn(1, 17, 16)
        torch.testing.assert_close(block(x), 2 * x)


@pytest.mark.parametrize("adaptive", [True, False])
def test_importer_is_strict_both_ways(adaptive):
    kwargs = dict(img_size=40, patch_size=8, embed_dim=16, depth=2, num_heads=2, adaptive_spectral=adaptive)
    own = build(importer.config_from_official(importer.NETWORK, kwargs), MODELS).state_dict()
    official = importer.revert_state_dict(importer.NETWORK, own)
    back = importer.convert_state_dict(importer.NETWORK, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(importer.NETWORK, {**official, "blocks.0.attention.extra": torch.zeros(1)})
    with pytest.raises(KeyError, match="pos_embed"):
        importer.convert_state_dict(importer.NETWORK, {k: v for k, v in official.items() if k != "pos_embed"})
    with pytest.raises(ValueError, match="square"):
        importer.convert_state_dict(importer.NETWORK, {**official, "pos_embed": torch.zeros(1, 8, 16)})


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(embed_dims=3), TypeError, "embed_dim"),
        (dict(num_classes=0), ValueError, "num_classes"),
        (dict(img_size=[32, 64]), ValueError, "img_size"),
    ],
)
def test_importer_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(importer.NETWORK, kwargs)
    with pytest.raises(LookupError, match="Other"):
        importer.config_from_official("Other", {})
