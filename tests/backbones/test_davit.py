"""DaViT against the facts of the authors' models and against timm's implementation."""

import json

import pytest
import timm
import torch

from zoo.backbones.davit import DaViT, DaViTBlock
from zoo.registry import MODELS, build
from zoo.weights.importers import davit, timm_davit

SMALL = dict(depths=(1, 1, 2), embed_dims=(16, 24, 32), num_heads=(2, 2, 4), window_size=5, num_classes=6)
OFFICIAL = {
    "DaViT_tiny": "davit_tiny",
    "DaViT_small": "davit_small",
    "DaViT_base": "davit_base",
    "DaViT_large_window12_384": "davit_large_window12_384",
}


@pytest.fixture(scope="module")
def variants(conformance_dir):
    return json.loads((conformance_dir / "facts" / "davit.json").read_text(encoding="utf-8"))["variants"]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights away from their initial values, so that biases, norms and encodings count."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model.eval()


def test_every_official_variant_is_here(variants):
    assert set(variants) == set(OFFICIAL)


@pytest.mark.parametrize("official", OFFICIAL)
def test_named_variants_are_the_official_ones(variants, official):
    facts, entry = variants[official], MODELS.entry(OFFICIAL[official])
    with torch.device("meta"):
        named = entry.builder()
        imported = build(davit.config_from_official(davit.NETWORK, facts["kwargs"]), MODELS)
    assert sum(p.numel() for p in named.parameters()) == facts["params"]
    assert {k: v.shape for k, v in named.state_dict().items()} == {k: v.shape for k, v in imported.state_dict().items()}
    assert entry.meta["input_size"] == facts["input_size"]
    window = {m.window for m in named.modules() if hasattr(m, "window")}
    assert window == {(facts["kwargs"]["window_size"],) * 2}


@pytest.mark.parametrize("name", timm_davit.ENTRIES)
def test_sizes_equal_timm(name):
    with torch.device("meta"):
        ours, theirs = MODELS.get(name)(), timm.create_model(name)
    expected = {k: v.shape for k, v in timm_davit.convert_state_dict(name, theirs.state_dict()).items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected


def test_same_logits_and_maps_as_timm_tiny():
    theirs = randomised(timm.create_model("davit_tiny", num_classes=11))
    ours = build(timm_davit.config_from_official("davit_tiny", {"num_classes": 11}), MODELS).eval()
    state = theirs.state_dict()
    ours.load_state_dict(timm_davit.convert_state_dict("davit_tiny", state))
    back = timm_davit.revert_state_dict("davit_tiny", ours.state_dict())
    assert list(back) == list(ours.state_dict())
    assert set(back) == set(state)
    assert all(torch.equal(back[k], state[k]) for k in state)
    features = timm.create_model("davit_tiny", features_only=True).eval()
    features.load_state_dict({k.replace("stages.", "stages_"): v for k, v in state.items() if "head" not in k})
    with torch.no_grad():
        for size in ((224, 224), (75, 102)):
            x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
            for a, b in zip(ours.forward_features(x), features(x), strict=True):
                assert (a - b).norm() < 1e-5 * b.norm()
    assert ours.out_channels == tuple(features.feature_info.channels())
    assert ours.strides == tuple(features.feature_info.reduction())


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(qkv_bias=False),
        dict(cpe_act=True, down_kernel_size=3, mlp_ratio=2.5),
        dict(attn_types=("channel", "spatial")),
        dict(attn_types=("channel",), window_size=3),
        dict(named_blocks=True),
    ],
)
def test_options_as_in_timm(kwargs):
    sizes = dict(depths=(1, 2), embed_dims=(16, 24), num_heads=(2, 4), num_classes=5, **kwargs)
    theirs = randomised(timm.models.davit.DaVit(**sizes))
    named = sizes.pop("named_blocks", False)
    ours = build(timm_davit.config_from_official("davit_tiny", sizes), MODELS).eval()
    state = timm_davit.convert_state_dict("davit_tiny", theirs.state_dict())
    ours.load_state_dict(state)
    assert named == any("spatial_block" in k for k in theirs.state_dict())
    x = torch.randn(2, 3, 50, 41, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_official_state_dict_maps_both_ways(conformance_dir):
    from safetensors import safe_open

    for path in sorted((conformance_dir / "davit").glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            entry = f.metadata()["entry"]
            state = {k.removeprefix("state/"): f.get_tensor(k) for k in f.keys() if k.startswith("state/")}  # noqa: SIM118
            model = build(davit.config_from_official(entry, json.loads(f.metadata()["kwargs"])), MODELS)
        ours = davit.convert_state_dict(entry, state)
        model.load_state_dict(ours)  # strict
        back = davit.revert_state_dict(entry, model.state_dict())
        assert set(back) == set(state)
        assert all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.parametrize("entry", davit.DENSE_NETWORKS)
def test_dense_prediction_form(entry):
    # norm_i on every map and GELU in the position encodings; the maps before them are those of the plain model.
    config = davit.config_from_official(entry, dict(embed_dims=(12, 24, 48, 96), cpe_act=True))
    model = randomised(build(config, MODELS))
    names = set(davit.revert_state_dict(entry, model.state_dict()))
    assert {"norm0.weight", "norm3.bias", "main_blocks.0.0.1.cpe.1.proj.weight"} <= names
    assert not any(n.startswith(("head", "norms")) for n in names)
    plain = DaViT(**{k: v for k, v in config.items() if k not in ("type", "norm_outputs")}).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "output_norms" not in k})
    x = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for i, (a, b) in enumerate(zip(model(x), plain(x), strict=True)):
            norm = model.output_norms[i]
            b = torch.nn.functional.layer_norm(b.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias)
            torch.testing.assert_close(a, b.permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match="norm_outputs"):
        DaViT(norm_outputs=True, num_classes=3)
    with pytest.raises(ValueError, match="norm_outputs"):
        model.reset_classifier(3)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(patch_size=2), "patch_size=2"),
        (dict(num_classes=0), "num_classes=0"),
        (dict(norm_layer="BatchNorm1d"), "norm_layer='BatchNorm1d'"),
        (dict(norm_layer="LayerNorm(1e-6)"), "keyword"),
        (dict(attention_types=("spatial", "channel", "spatial")), "at most two"),
        (dict(attention_types=("spacial",)), "attention_types"),
        (dict(embed_dims=(64, 128)), "one entry a stage"),
    ],
)
def test_unsupported_official_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(davit.config_from_official(davit.NETWORK, {"embed_dims": (48, 96, 192, 384), **kwargs}), MODELS)


def test_unknown_official_arguments_and_keys_are_refused():
    with pytest.raises(TypeError, match="did you mean depths"):
        davit.config_from_official(davit.NETWORK, {"depth": (1, 1, 1, 1)})
    with pytest.raises(TypeError, match="cpe_act"):
        davit.config_from_official(davit.NETWORK, {"cpe_act": True})  # only the dense form has it
    with pytest.raises(LookupError, match="no entry"):
        davit.config_from_official("timm.models.davit.Nothing", {})
    with pytest.raises(KeyError, match="main_blocks.0.0.0.attn.qkv.scale"):
        davit.convert_state_dict(davit.NETWORK, {"main_blocks.0.0.0.attn.qkv.scale.x": torch.zeros(1)})
    for name, value in {"channel_attn_v2": True, "global_pool": "max", "norm_eps": 1e-6}.items():
        with pytest.raises(ValueError, match=name):
            timm_davit.config_from_official("davit_tiny", {name: value})


@pytest.mark.parametrize(
    "official, ours",
    [
        (dict(norm_layer="LayerNorm(eps=1e-3)"), dict(head_norm_eps=1e-3)),
        (dict(weight_init="conv"), dict(weight_init="conv")),
        (dict(img_size=384, drop_rate=0.1, attn_drop_rate=0.2), {}),
        (dict(ffn=False, qkv_bias=False), dict(ffn=False, qkv_bias=False)),
    ],
)
def test_official_arguments_are_honoured(official, ours):
    config = davit.config_from_official(davit.NETWORK, {"embed_dims": (12, 24, 48, 96), **official})
    assert {k: config[k] for k in ours} == ours
    build(config, MODELS)


def test_blocks_take_the_authors_arguments():
    config = davit.config_from_official(
        davit.CHANNEL_BLOCK, dict(dim=8, num_heads=2, act_layer="ReLU", norm_layer="LayerNorm(eps=0.5)", ffn=True)
    )
    block = build(config, MODELS)
    assert isinstance(block, DaViTBlock)
    assert isinstance(block.mlp.act, torch.nn.ReLU)
    assert block.norm1.eps == block.norm2.eps == 0.5
    assert block.attn.qkv.bias is None  # the authors' default for this block
    with pytest.raises(TypeError, match="dim"):
        davit.config_from_official(davit.CHANNEL_BLOCK, dict(num_heads=2))


def test_without_ffn_a_block_is_attention_and_encodings():
    block = randomised(DaViTBlock(16, 2, dict(type="channel"), ffn=False))
    x = torch.randn(2, 5, 6, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = block.cpe1(x)
        y = block.cpe2(y + block.attn(block.norm1(y)))
        torch.testing.assert_close(block(x), y)
    assert not any("mlp" in k or "norm2" in k for k in block.state_dict())


def test_another_mixer_in_the_spatial_blocks():
    model = DaViT(**SMALL, mixer=dict(type="softmax", qk_norm=True))
    kinds = [type(b.attn).__name__ for s in model.stages for g in s.blocks for b in g]
    assert kinds == ["SoftmaxAttention", "ChannelAttention"] * 4
    assert model(torch.randn(1, 3, 40, 32)).shape == (1, 6)
    with pytest.raises(TypeError, match="qk_norms"):
        DaViT(**SMALL, mixer=dict(type="softmax", qk_norms=True))


def test_drop_path_rates_grow_over_the_blocks():
    model = DaViT(**SMALL, drop_path_rate=0.7)
    rates = [getattr(b.drop_path, "p", 0.0) for s in model.stages for g in s.blocks for b in g]
    torch.testing.assert_close(rates, torch.linspace(0, 0.7, 8).tolist())


def test_layer_numbers_follow_the_depth():
    layers = DaViT(**SMALL).group_matcher()
    assert layers["stem.conv.weight"] == 0
    assert layers["stages.0.blocks.0.1.mlp.fc1.weight"] == 1
    assert layers["stages.1.downsample.conv.weight"] == layers["stages.1.blocks.0.0.attn.qkv.weight"] == 2
    assert layers["stages.2.blocks.1.0.norm1.weight"] == 4
    assert layers["head.fc.weight"] == 5


def test_bad_arguments():
    for kwargs, message in (
        (dict(patch_size=3), "patch_size=3"),
        (dict(weight_init="xavier"), "weight_init='xavier'"),
        (dict(num_heads=(3, 2, 4)), "num_heads=3"),
        (dict(frozen_stages=9), "frozen_stages=9"),
        (dict(num_classes=-1), "num_classes=-1"),
        (dict(window_size=0), "window_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            DaViT(**{**SMALL, **kwargs})
