"""MoH-ViT, TAP-FAN, TAP-RVT, Sparsifiner, GLSim and the distilled ViT as backbones: sizes, heads, export, gradients."""

import pytest
import torch

from zoo.backbones.deit_lt import DistilledViT
from zoo.backbones.glsim import GLSim, similarity, similarity_crops
from zoo.backbones.moh import MoHTransNeXt
from zoo.backbones.sparsifiner import Sparsifiner
from zoo.backbones.tap_fan import TapFan
from zoo.backbones.tap_rvt import TapRvt
from zoo.registry import MODELS

MOH = dict(
    img_size=32,
    patch_size=2,
    embed_dims=(8, 12, 16, 24),
    num_heads=(2, 3, 4, 4),
    mlp_ratios=2,
    depths=(1, 1, 2, 1),
    shared_head=(2, 1, 1, 0),
    routed_head=(0, 2, 2, 3),
)
PLAIN = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2)
SMALL = {
    "moh": (MoHTransNeXt, MOH),
    "fan": (TapFan, dict(patch_size=4, embed_dim=16, depth=2, num_heads=2, num_scales=3, c_head_num=(4, 2))),
    "fan_hybrid": (
        TapFan,
        dict(embed_dim=16, depth=2, channel_dims=(16, 24), num_heads=(2, 4), hybrid=dict(depths=(1, 1), dims=(8, 12))),
    ),
    "rvt": (TapRvt, dict(base_dims=(4, 8), depth=(2, 1), heads=(2, 3), patch_size=4, use_mask=True, masked_block=1)),
    "sparsifiner": (Sparsifiner, dict(PLAIN, token_keep_rates=(0.6, None), representation_size=16, reduce_n_factor=3)),
    "glsim": (GLSim, dict(PLAIN, mlp_dim=96, dynamic_top=3)),
    "deit_lt": (DistilledViT, dict(PLAIN, layer_scale=0.1)),
}
SMALL["rvt"][1].update(base_dims=(4, 8), heads=(3, 3))


def make(name, **own):
    torch.manual_seed(0)
    cls, arguments = SMALL[name]
    return cls(**{**arguments, "num_classes": 5, **own})


def image(height=32, width=32, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SMALL)
def test_any_size_and_each_image_for_itself(name):
    model = make(name).eval()
    with torch.no_grad():
        for x in (image(), image(41, 56)):
            maps, logits = model.forward_features(x), model(x)
            assert logits.shape == (2, 5)
            assert [m.shape[1] for m in maps] == list(model.out_channels)
            for m, stride in zip(maps, model.strides):
                expected = (-(-x.shape[2] // stride), -(-x.shape[3] // stride))
                assert abs(m.shape[2] - expected[0]) <= (name == "rvt")
                assert abs(m.shape[3] - expected[1]) <= (name == "rvt")
            torch.testing.assert_close(model(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter(name):
    model = make(name).train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # GLSim's classifier starts at zero
    # the maps, too: of its last block Sparsifiner's class token, which keeps all keys, reads no prediction
    maps, trunk = model.forward_trunk(image(40, 32))
    sum((out * torch.randn(out.shape)).sum() for out in (*maps, model.forward_head(trunk))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize("name", SMALL)
def test_classifier_is_replaced(name):
    model, x = make(name).eval(), image()
    model.reset_classifier(9)
    assert model(x).shape == (2, 9)
    model.reset_classifier(0)
    assert isinstance(model(x), tuple)
    assert model.forward_classifier(x).shape == (2, model.num_features)
    features = make(name, num_classes=0).eval()
    features.reset_classifier(7)
    assert features.state_dict().keys() == make(name).state_dict().keys()
    assert features(x).shape == (2, 7)
    with pytest.raises(ValueError, match="num_classes=-1"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("name", ["sparsifiner", "glsim"])
def test_exports(name):
    model, x = make(name).eval(), image(36, 40)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_frozen_stages_and_checkpointing(name):
    model = make(name, frozen_stages=1).train()
    frozen = {id(p) for part in model.stage_modules()[:2] for m in part for p in m.parameters()}
    assert frozen
    assert all(p.requires_grad != (id(p) in frozen) for p in model.parameters())
    model = make(name).eval()
    x = image()
    plain = model(x)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), plain)
    layers = model.group_matcher()
    assert (min(layers.values()), max(layers.values())) == (0, model.num_layers() - 1)


COUNTS = {
    "moh_transnext_base_75": 90020632,
    "moh_transnext_base_50": 90023512,
    "moh_transnext_small_80": 49910548,
    "moh_transnext_small_75": 49910548,
    "tap_rvt_tiny": 8744968,
    "tap_rvt_small": 22316104,
    "tap_rvt_base": 87091912,
    "tap_rvt_tiny_plus": 11049928,
    "tap_rvt_small_plus": 23468584,
    "tap_rvt_base_plus": 89396872,
    "tap_fan_tiny_12_p16_224": 7404688,
    "tap_fan_small_12_p16_224": 28513048,
    "tap_fan_base_18_p16_224": 54643360,
    "tap_fan_large_24_p16_224": 80992468,
    "tap_fan_tiny_8_p4_hybrid": 7523752,
    "tap_fan_small_12_p4_hybrid": 26257704,
    "tap_fan_base_16_p4_hybrid": 50735528,
    "tap_fan_large_16_p4_hybrid": 77238644,
    "tap_fan_xlarge_16_p4_hybrid": 120873916,
    "sparsifiner_s": 22251880,
    "glsim_vit_b16": 93657832,
    "glsim_vit_s16": 23826280,
    "glsim_vit_t16": 6162856,
    "deit_base_distilled_patch16_224": 87338192,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    with torch.device("meta"):
        model = MODELS.get(name)()
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("metric", ["cos", "l1", "l2"])
def test_crops_are_what_cutting_and_resizing_gives(metric):
    torch.manual_seed(0)
    images, tokens = torch.randn(3, 2, 24, 32), torch.randn(3, 1 + 12, 6)
    whole, parts = tokens[:, :1], tokens[:, 1:]
    crops = similarity_crops(images, similarity(whole, parts, metric), (3, 4), 8, 3)
    for b in range(3):
        if metric == "cos":
            near = torch.stack([torch.cosine_similarity(whole[b, 0], p, dim=0) for p in parts[b]]).topk(3).indices
        else:
            power = 1 if metric == "l1" else 2
            far = ((whole[b] - parts[b]).abs() ** power).mean(-1)
            near = far.topk(3, largest=False).indices
        rows, columns = near // 4, near % 4
        y, x = 8 * int(rows.min()), 8 * int(columns.min())
        bottom = min(max(8 * int(rows.max()), y + 8), 24)
        right = min(max(8 * int(columns.max()), x + 8), 32)
        cut = images[b : b + 1, :, y:bottom, x:right]
        expected = torch.nn.functional.interpolate(cut, size=(24, 32), mode="bilinear", align_corners=True)
        torch.testing.assert_close(crops[b : b + 1], expected, rtol=1e-4, atol=1e-5)


def test_glsim_without_crops_is_a_vit_and_classifies_as_asked():
    x = image()
    model = make("glsim", crops=False, aggregator=0, aggregator_norm=False, classifier="avg_cls", reducer=False).eval()
    torch.nn.init.normal_(model.head.weight)
    tokens, _ = model.block_tokens(x)
    expected = model.head(model.norm(tokens[-1])).mean(1)
    torch.testing.assert_close(model(x), expected)
    largest = make("glsim", classifier="max_cls", representation_size=128).eval()
    assert largest(x).shape == (2, 5)
    assert largest.num_features == 128


def test_logits_of_the_distilled_model_are_the_mean_of_both_heads():
    model, x = make("deit_lt").eval(), image(40, 24)
    cls, dist = model.forward_both(x)
    torch.testing.assert_close(model(x), (cls + dist) / 2)
    with pytest.raises(TypeError, match="no heads"):
        make("deit_lt", num_classes=0).forward_both(x)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("moh", dict(patch_size=1)),
        ("moh", dict(window_size=(3, 3, None, None))),
        ("moh", dict(depths=(1, 1))),
        ("fan", dict(patch_size=32)),
        ("fan", dict(channel_dims=(8, 16))),
        ("fan", dict(num_heads=3)),
        ("rvt", dict(masked_block=None)),
        ("rvt", dict(heads=(2,))),
        ("sparsifiner", dict(token_keep_rates=0)),
        ("glsim", dict(sim_metric="dot")),
        ("glsim", dict(classifier="pool")),
        ("glsim", dict(dynamic_top=0)),
        ("deit_lt", dict(img_size=0)),
    ],
)
def test_bad_arguments(name, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make(name, **arguments)


def test_a_mask_of_positions_has_its_limit():
    with pytest.raises(ValueError, match="256 tokens"):
        make("rvt").eval()(image(64, 64))
