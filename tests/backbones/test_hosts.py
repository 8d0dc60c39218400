"""The hosts and the adapter of timm's models."""

import pytest
import timm
import torch

from zoo.backbones.hosts import HostBlock, Pyramid, ViT
from zoo.backbones.timm import TimmBackbone
from zoo.layers.drop_path import DropPath
from zoo.registry import MODELS

TINY = dict(num_classes=5, input_size=32, patch_size=8, dim=24, depth=3, num_heads=3)
PYRAMID = dict(
    num_classes=5, input_size=64, depths=(1, 1, 2, 1), dims=(16, 24, 32, 48), num_heads=(1, 2, 2, 4), mixer="softmax"
)


def image(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("class_token", [False, True])
def test_vit_with_softmax_is_timms_vit(class_token):
    torch.manual_seed(0)
    ours = ViT(**TINY, class_token=class_token).eval()
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        num_classes=5,
        embed_dim=24,
        depth=3,
        num_heads=3,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
        fc_norm=False,
        no_embed_class=True,
    ).eval()
    state = {}
    for key, value in ours.state_dict().items():
        key = key.replace("patch_embed.", "patch_embed.proj.").replace("pos_embed.table", "pos_embed")
        state[key] = value.flatten(1, 2) if key == "pos_embed" else value
    theirs.load_state_dict(state)
    with torch.no_grad():
        x = image(32, 32)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base"])
def test_vit_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        ours = MODELS.get(name)(class_token=True)
        theirs = timm.create_model(f"{name}_patch16_224")
    # timm's position table has a row for the class token; here the token holds it.
    width = ours.num_features
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - width


def test_position_table_is_interpolated_like_timms():
    model = ViT(**TINY)
    x = torch.zeros(1, 6, 9, 24)
    with torch.no_grad():
        expected = timm.layers.resample_abs_pos_embed(
            model.pos_embed.table.flatten(1, 2), [6, 9], old_size=[4, 4], num_prefix_tokens=0
        )
        torch.testing.assert_close(model.pos_embed(x).flatten(1, 2), expected)


def test_class_token_with_a_mixer_that_knows_none():
    torch.manual_seed(0)
    model = ViT(**TINY, mixer="channel", class_token=True).eval()
    assert all(b.class_attn is not None for b in model.blocks)
    with torch.no_grad():
        # The token reads the image, and the image does not read the token.
        assert not torch.equal(model(image(32, 32)), model(-image(32, 32)))
        maps = model.forward_features(image(32, 32))[0]
        model.cls_token.add_(1.0)
        assert torch.equal(model.forward_features(image(32, 32))[0], maps)
    assert "cls_token" in model.no_weight_decay()
    assert "pos_embed.table" in model.no_weight_decay()
    assert ViT(**{**TINY, "num_classes": 0}, class_token=True).cls_token is None


def test_pyramid_takes_one_mixer_or_one_for_each_stage():
    mixers = ["channel", dict(type="window", window_size=4, shift_size=2), "softmax", "softmax"]
    model = Pyramid(**{**PYRAMID, "mixer": mixers})
    kinds = [[type(b.attn).__name__ for b in stage] for stage in model.stages]
    softmax = "SoftmaxAttention"
    assert kinds == [["ChannelAttention"], ["WindowAttention"], [softmax, softmax], [softmax]]
    assert model.stages[1][0].attn.shift == (2, 2)
    assert "stages.1.0.attn.rel_pos_bias.table" in model.no_weight_decay()
    assert {b.attn.num_heads for s in Pyramid(**PYRAMID).stages for b in s} == {1, 2, 4}
    with pytest.raises(ValueError, match="one entry a stage"):
        Pyramid(**{**PYRAMID, "mixer": mixers[:3]})
    with pytest.raises(TypeError, match="window_sise"):
        Pyramid(**{**PYRAMID, "mixer": dict(type="window", window_sise=4)})
    with pytest.raises(TypeError, match="built module"):
        Pyramid(**{**PYRAMID, "mixer": model.stages[0][0].attn})
    with pytest.raises(LookupError, match="did you mean"):
        Pyramid(**{**PYRAMID, "mixer": "windo"})


def test_pyramid_layer_numbers_follow_the_depth():
    layers = Pyramid(**PYRAMID).group_matcher()
    assert layers["stem.convs.0.weight"] == 0
    assert layers["stages.0.0.cpe.proj.weight"] == 1
    assert layers["downsamples.1.conv.weight"] == layers["stages.2.0.norm1.weight"] == 3
    assert layers["stages.2.1.norm1.weight"] == 4
    assert layers["head.weight"] == layers["norm.weight"] == 6
    with pytest.raises(ValueError, match="stem_stride=3"):
        Pyramid(**PYRAMID, stem_stride=3)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    out = drop(x)
    kept = out[:, 0, 0] > 0
    assert torch.equal(out, torch.where(kept[:, None, None], x / 0.75, torch.zeros(())))
    assert abs(kept.float().mean() - 0.75) < 0.03
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match="p=1.0"):
        DropPath(1.0)


def test_drop_path_treats_map_and_prefix_alike():
    torch.manual_seed(0)
    block = HostBlock(8, 2, "softmax", (3, 3), drop_path=0.5, prefix=True).train()
    x, prefix = torch.randn(64, 3, 3, 8), torch.randn(64, 1, 8)
    out, out_prefix = block(x, prefix)
    unchanged = (out == x).flatten(1).all(1)
    assert torch.equal(unchanged, (out_prefix == prefix).flatten(1).all(1))
    assert 4 <= unchanged.sum() <= 32  # both branches dropped: a quarter of 64 is expected


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("resnet18", {}),
        ("swin_tiny_patch4_window7_224", dict(strict_img_size=False, depths=(1, 1, 1, 1))),
        ("vit_tiny_patch16_224", dict(dynamic_img_size=True, depth=2)),
    ],
)
def test_timm_adapter_keeps_the_contract(name, kwargs):
    torch.manual_seed(0)
    model = TimmBackbone(name, **kwargs)
    maps = model(image(64, 96))
    for m, channels, stride in zip(maps, model.out_channels, model.strides, strict=True):
        assert m.shape == (2, channels, 64 // stride, 96 // stride)
    sum(m.square().sum() for m in maps).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    classifier = TimmBackbone(name, num_classes=7, out_indices=(1,), frozen_stages=0, **kwargs).train()
    assert classifier(image(64, 96)).shape == (2, 7)
    assert len(classifier.forward_features(image(64, 96))) == 1
    assert any(not p.requires_grad for p in classifier.parameters())
    layers = classifier.group_matcher()
    assert set(layers.values()) == set(range(classifier.num_layers()))
    classifier.reset_classifier(3)
    assert classifier(image(64, 96)).shape == (2, 3)


def test_timm_adapter_gives_timms_own_logits_and_maps():
    torch.manual_seed(0)
    model = TimmBackbone("resnet18", num_classes=7).eval()
    features = timm.create_model("resnet18", features_only=True).eval()
    features.load_state_dict({k: v for k, v in model.model.state_dict().items() if not k.startswith("fc")})
    with torch.no_grad():
        x = image(64, 64)
        torch.testing.assert_close(model(x), model.model(x))
        torch.testing.assert_close(list(model.forward_features(x)), features(x))
    with pytest.raises(ValueError, match="built without a classifier"):
        TimmBackbone("resnet18").reset_classifier(3)
