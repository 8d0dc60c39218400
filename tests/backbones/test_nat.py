"""NAT, DiNAT, DiNAT-s and the isotropic models: sizes, options, importers."""

import json

import pytest
import torch
from torch import nn

from zoo.backbones.dinat import DiNAT, alternating
from zoo.backbones.dinat_s import DiNATs
from zoo.backbones.nat import NAT
from zoo.backbones.nat_isotropic import NATIsotropic
from zoo.registry import MODELS, build
from zoo.weights.importers import nat as importer
from zoo.weights.importers import transformers_dinat as hub_importer

TINY = dict(depths=(1, 2), num_heads=(2, 4), embed_dim=16, kernel_size=3, num_classes=5, drop_path_rate=0.0)
MODELS_UNDER_TEST = {
    "nat": lambda **k: NAT(**{**TINY, "layer_scale": 0.3, **k}),
    "dinat": lambda **k: DiNAT(**{**TINY, "dilations": ((2,), (1, 2)), **k}),
    "dinat_s": lambda **k: DiNATs(**{**TINY, "dilations": ((2,), (1, 2)), **k}),
    "isotropic": lambda **k: NATIsotropic(
        **{**dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, kernel_size=3, dilation=2), **k}
    ),
}


@pytest.mark.parametrize("system", ["nat", "dinat"])
def test_parameter_counts(conformance_dir, system):
    variants = json.loads((conformance_dir / "facts" / f"{system}.json").read_text(encoding="utf-8"))["variants"]
    assert len(variants) == {"nat": 4, "dinat": 18}[system]
    kinds = {"vitrpb": importer.ISOTROPIC, "dinat_s_": importer.DINAT_S, "dinat_": importer.DINAT, "nat_": importer.NAT}
    for name, facts in variants.items():
        with torch.device("meta"):
            model = MODELS.get(name)()
            kind = next(e for start, e in kinds.items() if name.startswith(start))
            entry = importer.ISOTROPIC if "isotropic" in name else kind
            official = build(importer.config_from_official(entry, facts["kwargs"]), MODELS)
        assert sum(p.numel() for p in model.parameters()) == facts["params"], name
        assert MODELS.entry(name).meta["input_size"] == facts["input_size"]
        # the named model is the one that the authors' arguments give, dilations included
        assert repr(model) == repr(official), name


@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 1)])
@pytest.mark.parametrize("name", MODELS_UNDER_TEST)
def test_any_size(name, size):
    torch.manual_seed(0)
    model = MODELS_UNDER_TEST[name](num_classes=3).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert model(x).shape == (2, 3)
    expected = [(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(model.out_channels, model.strides)]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(bool(torch.isfinite(m).all()) for m in maps)


@pytest.mark.parametrize("name", MODELS_UNDER_TEST)
def test_classifier_layers_freezing_and_gradients(name):
    torch.manual_seed(0)
    model = MODELS_UNDER_TEST[name](num_classes=5, frozen_stages=1).train()
    groups = model.group_matcher()
    assert set(groups.values()) == set(range(model.num_layers()))
    x = torch.randn(2, 3, 40, 48)
    model(x).square().sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without
    assert max(groups[n] for n in without) == 1 + (name != "isotropic" and 0)
    assert all(p.requires_grad == (n not in without) for n, p in model.named_parameters())
    model.eval()
    model.reset_classifier(9)
    assert model(x).shape == (2, 9)
    model.reset_classifier(0)
    assert set(model.state_dict()) == set(MODELS_UNDER_TEST[name](num_classes=0).state_dict())
    assert model.forward_classifier(x).shape == (2, model.num_features)
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    with pytest.raises(ValueError, match="num_classes=-1"):
        model.reset_classifier(-1)


def test_dilations():
    assert alternating((3, 4), (8, 2)) == ((1, 8, 1), (1, 2, 1, 2))
    used = [[b.attn.dilation[0] for b in level.blocks] for level in MODELS_UNDER_TEST["dinat"]().levels]
    assert used == [[2], [1, 2]]
    assert [b.attn.dilation[0] for b in MODELS_UNDER_TEST["isotropic"]().layers] == [1, 2, 1]
    with pytest.raises(ValueError, match="dilations"):
        NAT(**TINY, dilations=((1,), (1,)))
    with pytest.raises(ValueError, match="dilation=2"):
        NATIsotropic(kernel_size=None, dilation=2)
    with pytest.raises(ValueError, match="depths"):
        NAT(depths=(1, 1), num_heads=(2,))


@pytest.mark.parametrize("name", MODELS_UNDER_TEST)
def test_exports(name):
    model = MODELS_UNDER_TEST[name]().eval()
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x), rtol=1e-4, atol=1e-5)


OFFICIAL = dict(embed_dim=16, mlp_ratio=2, depths=[1, 2], num_heads=[2, 4], kernel_size=3, num_classes=5)
ISOTROPIC = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)


@pytest.mark.parametrize(
    "entry, kwargs",
    [
        (importer.NAT, dict(OFFICIAL, layer_scale=0.5, qkv_bias=False)),
        (importer.DINAT, dict(OFFICIAL, dilations=[[2], [1, 3]], norm_layer="LayerNorm(eps=1e-3)")),
        (importer.DINAT_S, dict(OFFICIAL, dilations=[[2], [1, 3]], patch_size=2, qk_scale=0.3)),
        (importer.DINAT_S, dict(OFFICIAL, patch_norm=False)),
        (importer.ISOTROPIC, dict(ISOTROPIC, kernel_size=3, dilation=None, layer="NATransformerLayer")),
        (importer.ISOTROPIC, dict(ISOTROPIC, kernel_size=None, dilation=None, layer="VisionTransformerLayer")),
    ],
)
def test_importer_is_strict_both_ways(entry, kwargs):
    model = build(importer.config_from_official(entry, kwargs), MODELS)
    own = model.state_dict()
    full = kwargs.get("layer") == "VisionTransformerLayer"
    official = importer.revert_state_dict(entry, own, full)
    assert len(official) == len(own) + (2 if full else 0)
    back = importer.convert_state_dict(entry, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(entry, {**official, "attn.extra.weight": torch.zeros(1)})
    if full:
        official["layers.1.attn.relative_position_index"] += 1
        with pytest.raises(ValueError, match="relative_position_index"):
            importer.convert_state_dict(entry, official)


@pytest.mark.parametrize(
    "entry, kwargs, error, message",
    [
        (importer.NAT, dict(OFFICIAL, embed_dims=16), TypeError, "embed_dim"),
        (importer.NAT, dict(depths=[1], num_heads=[1], mlp_ratio=2), TypeError, "embed_dim"),
        (importer.NAT, dict(OFFICIAL, drop_rate=0.1), ValueError, "drop_rate=0.1"),
        (importer.DINAT_S, dict(attn_drop_rate=0.1), ValueError, "attn_drop_rate"),
        (importer.DINAT, dict(OFFICIAL, norm_layer="BatchNorm2d"), ValueError, "BatchNorm2d"),
        (importer.ISOTROPIC, dict(layer="Other"), ValueError, "layer='Other'"),
        (importer.ISOTROPIC, dict(kernel_size=None), ValueError, "kernel_size=None"),
        ("classification/nat.py:Other", {}, LookupError, "Other"),
    ],
)
def test_importer_refuses(entry, kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(entry, kwargs)
    if error is LookupError:
        with pytest.raises(LookupError):
            importer.convert_state_dict(entry, {})


def plain_neighborhood(self, hidden_states, output_attentions=False):
    """What transformers' attention layer computes, with its parameters, by a dense mask (natten is not needed)."""
    B, H, W, C = hidden_states.shape
    heads, k, d = self.rpb.shape[0], self.kernel_size, self.dilation

    def axis(length):
        ranks = torch.arange(length) // d
        group = torch.arange(length) % d
        members = (length - group + d - 1) // d
        start = torch.minimum((ranks - k // 2).clamp(min=0), members - k)
        seen = (group[:, None] == group) & (ranks >= start[:, None]) & (ranks < start[:, None] + k)
        return seen, (ranks - ranks[:, None] + k - 1).clamp(0, 2 * k - 2)  # [query, key] each

    (seen_y, rel_y), (seen_x, rel_x) = axis(H), axis(W)
    seen = (seen_y[:, None, :, None] & seen_x[None, :, None, :]).reshape(H * W, H * W)
    bias = self.rpb[:, rel_y[:, None, :, None], rel_x[None, :, None, :]].reshape(heads, H * W, H * W)
    q, key, v = (
        layer(hidden_states).view(B, H * W, heads, C // heads).transpose(1, 2)
        for layer in (self.query, self.key, self.value)
    )
    logits = q @ key.transpose(-1, -2) * (C // heads) ** -0.5 + bias
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    return ((weights @ v).transpose(1, 2).reshape(B, H, W, C),)


@pytest.mark.parametrize("scale", [0.0, 0.4])
def test_transformers_model_gives_the_same_logits(monkeypatch, scale):
    modeling = pytest.importorskip("transformers.models.dinat.modeling_dinat")
    monkeypatch.setattr(modeling, "requires_backends", lambda *_: None)
    monkeypatch.setattr(modeling.NeighborhoodAttention, "forward", plain_neighborhood)
    arguments = dict(
        embed_dim=16,
        depths=[1, 2, 1],
        num_heads=[1, 2, 4],
        kernel_size=3,
        dilations=[[3], [1, 2], [1]],
        mlp_ratio=2.0,
        layer_scale_init_value=scale,
        num_labels=5,
    )
    torch.manual_seed(0)
    theirs = modeling.DinatForImageClassification(modeling.DinatConfig(**arguments)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.5))
    ours = build(hub_importer.config_from_official(hub_importer.DINAT, arguments), MODELS).eval()
    state = theirs.state_dict()
    ours.load_state_dict(hub_importer.convert_state_dict(hub_importer.DINAT, state))
    x = torch.randn(2, 3, 58, 45)  # the last map, 4 x 3, is smaller than some windows before it: padding counts, too
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-4)
    back = hub_importer.revert_state_dict(hub_importer.DINAT, ours.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_transformers_nat_keys_and_config():
    spec = hub_importer.config_from_official(
        hub_importer.NAT,
        dict(model_type="nat", id2label={"0": "a", "1": "b", "2": "c"}, embed_dim=16, depths=[1], num_heads=[2]),
    )
    model = build({**spec, "kernel_size": 3}, MODELS)
    assert isinstance(model, NAT)
    assert model.num_classes == 3
    state = hub_importer.revert_state_dict(hub_importer.NAT, model.state_dict())
    assert "nat.encoder.levels.0.layers.0.attention.self.query.weight" in state
    assert hub_importer.convert_state_dict(hub_importer.NAT, state).keys() == model.state_dict().keys()
    del state["nat.encoder.levels.0.layers.0.attention.self.key.weight"]
    with pytest.raises(KeyError, match="key.weight"):
        hub_importer.convert_state_dict(hub_importer.NAT, state)
    with pytest.raises(KeyError, match="unexpected"):
        hub_importer.convert_state_dict(hub_importer.DINAT, {"nat.layernorm.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(dilations=[[1]]), TypeError, "dilations"),
        (dict(hidden_act="relu"), ValueError, "relu"),
        (dict(layer_norm_eps=1e-6), ValueError, "layer_norm_eps"),
        (dict(patch_size=8), ValueError, "patch_size"),
        (dict(num_labels=0), ValueError, "num_labels"),
    ],
)
def test_transformers_importer_refuses(kwargs, error, message):
    with pytest.raises(error, match=message):
        hub_importer.config_from_official(hub_importer.NAT, kwargs)
    with pytest.raises(LookupError, match="BertModel"):
        hub_importer.config_from_official("transformers.BertModel", {})


def test_layer_scale_weighs_the_branches():
    torch.manual_seed(0)
    model = MODELS_UNDER_TEST["nat"](layer_scale=0.0).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        block = model.levels[0].blocks[0]
        embedded = model.patch_embed(x)
        assert torch.equal(block(embedded), embedded)
        block.gamma1.fill_(1.0)
        torch.testing.assert_close(block(embedded), embedded + block.attn(block.norm1(embedded)))
    assert isinstance(block.drop_path, nn.Identity)
