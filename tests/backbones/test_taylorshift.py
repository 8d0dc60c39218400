"""TaylorShift's networks: sizes, options, importer."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.backbones.taylorshift import TaylorShiftViT, TokenHead
from zoo.backbones.taylorshift_sequence import SequenceConv, TaylorShiftTransformer, sinusoids
from zoo.registry import MODELS, build
from zoo.weights.importers import taylorshift as importer

VIT = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=4, num_classes=5)
NAMES = dict(na="nano", mu="micro", Ti="tiny", S="small", B="base", L="large")


def test_parameter_counts(conformance_dir):
    variants = json.loads((conformance_dir / "facts" / "taylorshift.json").read_text(encoding="utf-8"))["variants"]
    assert len(variants) == 7
    for name, facts in variants.items():
        size, _, conv = name.removeprefix("TaylorShiftViT-").partition("-")
        with torch.device("meta"):
            model = MODELS.get(f"taylorshift_vit_{NAMES[size]}{'_conv' if conv else ''}")()
        assert sum(p.numel() for p in model.parameters()) == facts["params"], name


OPTIONS = [
    {},
    dict(global_pool="avg", no_embed_class=False),
    dict(class_token=False, global_pool="max", pre_norm=True, init_values=0.1),
    dict(conv_embed=True, global_pool="avgmax", fc_norm=False, scale_output=False, normalize_input=False),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 1)])
def test_any_size(options, size):
    torch.manual_seed(0)
    model = TaylorShiftViT(**VIT, **options).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        (last,), logits = model.forward_features(x), model(x)
        torch.testing.assert_close(model(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)
        assert last.shape == (2, 16, -(-size[0] // 8), -(-size[1] // 8))
        assert logits.shape == (2, 5)
        model.reset_classifier(0)
        assert model.forward_classifier(x).shape == (2, 16)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer_groups_and_gradients(options):
    torch.manual_seed(0)
    model = TaylorShiftViT(**VIT, **options).train()
    assert set(model.group_matcher().values()) == {0, 1, 2, 3}
    assert "trunk.blocks.0.attn.temperature" in model.no_weight_decay() or not options.get("normalize_input", True)
    model(torch.randn(2, 3, 32, 48)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_heads_pool_what_they_say():
    torch.manual_seed(0)
    tokens = torch.randn(2, 7, 8, dtype=torch.float64)
    for pool, pooled in {
        "avg": lambda t: t[:, 2:].mean(1),
        "max": lambda t: t[:, 2:].max(1).values,
        "avgmax": lambda t: (t[:, 2:].mean(1) + t[:, 2:].max(1).values) / 2,
        "token": lambda t: t[:, 0],
    }.items():
        for fc_norm in (None, True, False):
            head = TokenHead(8, 3, pool, 2, fc_norm, 1e-6).double()
            after = pool != "token" if fc_norm is None else fc_norm

            def norm(x):
                return F.layer_norm(x, (8,), eps=1e-6)

            want = head.fc(norm(pooled(tokens)) if after else pooled(norm(tokens)))
            torch.testing.assert_close(head(tokens), want)


def test_sequences():
    torch.manual_seed(0)
    arguments = dict(max_seq_len=30, input_dim=6, num_classes=5, embed_dim=16, depth=2, num_heads=4)
    for options in ({}, dict(conv_embed=True, global_pool="avg"), dict(no_embed_class=False)):
        model = TaylorShiftTransformer(**arguments, **options).eval()
        x = torch.randn(2, 29, 6)
        with torch.no_grad():
            logits = model(x)
            torch.testing.assert_close(model(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)
            program = torch.export.export(model, (x,), strict=False)
            torch.testing.assert_close(program.module()(x), logits, rtol=1e-4, atol=1e-5)
        assert logits.shape == (2, 5)
        with pytest.raises(ValueError, match="max_seq_len=30"):
            model(torch.randn(1, 31, 6))
        with pytest.raises(ValueError, match="shape"):
            model(torch.randn(1, 3, 5))
    table = sinusoids(30, 16).double()
    place, channel = torch.arange(30.0).double()[:, None], torch.arange(8).double()
    torch.testing.assert_close(table[0, :, 0::2], (place / 10000 ** (channel / 8)).sin(), rtol=0, atol=1e-5)
    torch.testing.assert_close(table[0, :, 1::2], (place / 10000 ** (channel / 8)).cos(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="embed_dim=5"):
        sinusoids(4, 5)


def test_convolutions_along_a_sequence():
    torch.manual_seed(0)
    m = SequenceConv(6, 16).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    want = x.mT
    for conv in m.convs:
        want = F.conv1d(want, conv.weight, padding=1)
        flat = want.flatten(1)
        mean, var = flat.mean(1)[:, None, None], flat.var(1, unbiased=False)[:, None, None]
        want = F.gelu((want - mean) / (var + 1e-5).sqrt())
    torch.testing.assert_close(m(x), want.mT)


OFFICIAL = [
    (importer.VIT, dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=4)),
    (importer.VIT, dict(img_size=[32, 64], patch_size=[8, 8], embed_dim=16, depth=1, num_heads=4, pre_norm=True)),
    (
        importer.VIT,
        dict(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, conv_embed=True, global_pool="avg"),
    ),
    (
        importer.VIT,
        dict(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, init_values=0.1, act_layer="SiLU", a=9.0),
    ),
    (importer.SEQUENCE, dict(max_seq_len=20, input_dim=6, embed_dim=16, depth=1, num_heads=4)),
    (importer.SEQUENCE, dict(max_seq_len=20, input_dim=6, embed_dim=16, depth=1, num_heads=4, conv_embed=True)),
]


@pytest.mark.parametrize("entry, kwargs", OFFICIAL)
def test_importer_is_strict_both_ways(entry, kwargs):
    model = build(importer.config_from_official(entry, {**kwargs, "num_classes": 3}), MODELS)
    own = model.state_dict()
    official = importer.revert_state_dict(entry, own)
    assert official["blocks.0.attn.temperature"].shape == (1, kwargs["num_heads"], 1, 1)
    assert ("patch_embed.proj.bias" in official) == (
        entry == importer.VIT and not {"pre_norm", "conv_embed"} & {*kwargs}
    )
    back = importer.convert_state_dict(entry, official)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[k], own[k]) for k in own)
    assert type(model).__name__ in importer.CHECKPOINTS[entry]
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(entry, {**official, "extra.weight.1": torch.zeros(1)})
    if kwargs.get("act_layer"):
        assert isinstance(model.trunk.blocks[0].mlp.act, nn.SiLU)
        assert model.trunk.blocks[0].attn.coefficients == (0.5, 1.0, 1.0)


@pytest.mark.parametrize(
    "entry, kwargs, error, message",
    [
        (importer.VIT, dict(weight_init="jax"), ValueError, "weight_init"),
        (importer.VIT, dict(save_attention_maps=True), ValueError, "save_attention_maps"),
        (importer.VIT, dict(embed_layer="HybridEmbed"), ValueError, "embed_layer"),
        (importer.VIT, dict(patch_size=[8, 4]), ValueError, "patch_size"),
        (importer.VIT, dict(conv_embed=True, conv_norm="GroupNorm"), ValueError, "conv_norm"),
        (importer.VIT, dict(act_layer="Tanh"), ValueError, "act_layer"),
        (importer.VIT, dict(drop_rate=0.1), ValueError, "drop_rate"),
        (importer.VIT, dict(num_classes=0), ValueError, "num_classes"),
        (importer.VIT, dict(block_fn="Block"), TypeError, "block_fn"),
        (importer.SEQUENCE, dict(input_dim=4), TypeError, "max_seq_len"),
        (importer.ATTENTION, dict(dim=16, num_heads=4, head_dim=8), ValueError, "head_dim"),
        (importer.ATTENTION, dict(num_heads=4), TypeError, "dim"),
        ("other", {}, LookupError, "other"),
    ],
)
def test_importer_refuses(entry, kwargs, error, message):
    with pytest.raises(error, match=message):
        importer.config_from_official(entry, kwargs)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(global_pool="map"), "global_pool='map'"),
        (dict(class_token=False), "no token to read"),
        (dict(class_token=False, num_classes=0), "no token to read"),
        (dict(patch_size=4, conv_embed=True), "patch_size=4"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        TaylorShiftViT(**{**VIT, **change})
