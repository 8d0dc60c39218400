"""Low-rank adapters on the projections of mixers."""

import sys

import pytest
import torch

from zoo.backbones.hosts import ViT
from zoo.layers.tuning import load_tuned_state_dict, tuned_state_dict
from zoo.mixers.lora import add_lora, merge_lora, projections
from zoo.registry import MIXERS
from zoo.weights.load import load_weights

HOST = dict(input_size=16, patch_size=4, dim=16, depth=2, num_heads=2, num_classes=3)


def vit(**own):
    torch.manual_seed(0)
    return ViT(**{**HOST, **own}).eval()


def grow(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)


@pytest.mark.parametrize("mixer", ["softmax", "agent", "moh", "sparsifiner", "window", "tap"])
def test_merging_gives_the_same_outputs_under_the_old_names(mixer):
    pytest.importorskip("peft")
    model, x = vit(mixer=mixer), torch.randn(2, 3, 16, 16)
    names, plain = list(model.state_dict()), model(x)
    adapted = add_lora(model, r=2, alpha=4)
    assert adapted == projections(vit(mixer=mixer))
    torch.testing.assert_close(model(x), plain)  # B starts at zero
    assert all(".lora_" in n for n in tuned_state_dict(model))
    grow(model)
    grown = model(x)
    assert (grown - plain).abs().max() > 1e-3
    torch.testing.assert_close(merge_lora(model)(x), grown, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match="no adapters"):
        merge_lora(model)


def test_equation_and_sizes():
    pytest.importorskip("peft")
    model = vit()
    assert add_lora(model, targets=["attn.qkv"], r=3, alpha=6) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    grow(model)
    tuned = tuned_state_dict(model)
    assert sum(v.numel() for v in tuned.values()) == 2 * 3 * (16 + 48)  # two layers, A [3, 16] and B [48, 3]
    layer, x = model.blocks[0].attn.qkv, torch.randn(5, 16)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    base = layer.base_layer
    torch.testing.assert_close(layer(x), x @ (base.weight + 2 * b @ a).T + base.bias)
    other = vit()
    add_lora(other, targets=["attn.qkv"], r=3, alpha=6)
    load_tuned_state_dict(other, tuned)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(other(images), model(images))
    with pytest.raises(KeyError, match="1 trainable"):
        load_tuned_state_dict(other, {**tuned, "more": torch.zeros(1)})


def test_weights_of_the_trunk_load_into_an_adapted_model():
    pytest.importorskip("peft")
    torch.manual_seed(1)
    source, model = ViT(**HOST).eval(), vit()
    add_lora(model, r=2)
    report = load_weights(model, source.state_dict())
    assert report.exact
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(model(x), source(x))
    with pytest.raises(Exception, match="of another model|nothing fits"):
        load_weights(model, {"other.weight": torch.zeros(1)}, strict=False)


def test_targets():
    for name in ("softmax", "agent"):
        assert name in MIXERS
    assert projections(vit(), ["fc1"]) == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]
    with pytest.raises(ValueError, match="did you mean qkv"):
        projections(vit(), ["qkvs"])
    with pytest.raises(ValueError, match="targets='qkv'"):
        projections(vit(), "qkv")
    with pytest.raises(ValueError, match="no mixer"):
        projections(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="r=0"):
        add_lora(vit(), r=0)


def test_says_that_peft_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"attnzoo\[lora\]"):
        add_lora(vit())
