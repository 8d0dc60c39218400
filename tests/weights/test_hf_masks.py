"""transformers' MaskFormer and Mask2Former with random weights: ours give the same outputs, and the weights return."""

import pytest
import torch

from zoo.registry import MODELS, build
from zoo.weights.importers import importer
from zoo.weights.load import load_weights

transformers = pytest.importorskip("transformers")

SWIN = dict(embed_dim=16, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, mlp_ratio=2.0, drop_path_rate=0.0)
SMALL = dict(
    feature_size=32,
    mask_feature_size=16,
    hidden_dim=32,
    encoder_feedforward_dim=48,
    dim_feedforward=40,
    encoder_layers=2,
    decoder_layers=5,
    num_attention_heads=4,
    num_queries=7,
    num_labels=5,
)
CASES = {
    "mask2former swin": ("mask2former", "swin", {}),
    "mask2former other widths": ("mask2former", "swin", dict(hidden_dim=48, pre_norm=True)),
    "mask2former projected": ("mask2former", "swin", dict(enforce_input_projection=True)),
    "mask2former resnet": ("mask2former", "resnet", {}),
    "maskformer swin": ("maskformer", "swin", {}),
    "maskformer resnet": ("maskformer", "resnet", {}),
}


def make(name):
    system, kind, more = CASES[name]
    if kind == "swin":
        backbone = transformers.SwinConfig(**SWIN, out_features=[f"stage{i}" for i in (1, 2, 3, 4)])
    else:
        backbone = transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[32, 64, 64, 96],
            depths=[1, 1, 1, 1],
            out_features=[f"stage{i}" for i in (1, 2, 3, 4)],
        )
    torch.manual_seed(0)
    if system == "mask2former":
        config = transformers.Mask2FormerConfig(backbone_config=backbone, **{**SMALL, **more})
        model = transformers.Mask2FormerForUniversalSegmentation(config)
    else:
        decoder = transformers.DetrConfig(
            d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=40, num_queries=7
        )
        config = transformers.MaskFormerConfig(
            backbone_config=backbone,
            decoder_config=decoder,
            fpn_feature_size=32,
            mask_feature_size=16,
            num_labels=5,
        )
        model = transformers.MaskFormerForInstanceSegmentation(config)
    with torch.no_grad():
        for key, value in model.state_dict().items():  # nothing is left at zero or one
            if "running_var" in key or key.endswith("normalization.weight"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point() and "sampling_offsets.bias" not in key and "empty_weight" not in key:
                value.add_(torch.randn_like(value) * 0.02)
    return importer(f"hf_{system}"), config, model.eval()


def ours_of(system, config, theirs):
    ours = build(system.config_from_official(system.ENTRY, config.to_dict()), MODELS)
    ours.load_state_dict(system.convert_state_dict(system.ENTRY, theirs.state_dict()))
    return ours.eval()


def relative(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-3
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def images():
    # neither side is a multiple of the strides or windows
    return torch.randn(2, 3, 97, 118, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_transformers(name, images):
    system, config, theirs = make(name)
    ours = ours_of(system, config, theirs)
    with torch.no_grad():
        expected, found = theirs(pixel_values=images), ours(images)
    assert relative(found["class_logits"], expected.class_queries_logits) <= 1e-4
    assert relative(found["mask_logits"], expected.masks_queries_logits) <= 1e-4


@pytest.mark.parametrize("name", ["mask2former swin", "mask2former other widths"])
def test_every_layer_is_transformers(name, images):
    system, config, theirs = make(name)
    ours = ours_of(system, config, theirs).train()  # nothing in it is random: all its dropout is 0
    with torch.no_grad():
        expected, found = theirs(pixel_values=images, output_auxiliary_logits=True), ours(images)
    assert len(found["aux_outputs"]) == len(expected.auxiliary_logits) == SMALL["decoder_layers"] - 1
    for mine, its in zip(found["aux_outputs"], expected.auxiliary_logits):
        assert relative(mine["class_logits"], its["class_queries_logits"]) <= 1e-4
        assert relative(mine["mask_logits"], its["masks_queries_logits"]) <= 1e-4
    assert relative(found["mask_logits"], expected.masks_queries_logits) <= 1e-4


@pytest.mark.parametrize("name", CASES)
def test_weights_go_back(name):
    system, config, theirs = make(name)
    ours = ours_of(system, config, theirs)
    back = system.revert_state_dict(system.ENTRY, ours.state_dict())
    left_out = ("num_batches_tracked", "relative_position_index", "criterion.empty_weight")
    expected = {
        k: v
        for k, v in theirs.state_dict().items()
        if not k.endswith(left_out) and ".encoder.swin.layernorm." not in k and ".encoder.model.layernorm." not in k
    }
    assert set(back) == set(expected)
    assert all(torch.equal(back[k], v) for k, v in expected.items())


def test_a_checkpoint_is_recognised():
    system, config, theirs = make("mask2former swin")
    ours = build(system.config_from_official(system.ENTRY, config.to_dict()), MODELS)
    assert load_weights(ours, theirs.state_dict()).fits


def test_a_named_model_is_found_for_a_file():
    from zoo.weights import convert as module

    ours = build(dict(type="mask2former_nano", num_classes=9), MODELS)
    assert module._find_model(("MaskSegmenter",), ours.state_dict()) == "mask2former_nano"
    other = {k: v for k, v in ours.state_dict().items() if "query_feat" not in k}
    assert module._find_model(("MaskSegmenter",), other) is None


def test_files_of_version_4_are_read():
    system, _, theirs = make("mask2former swin")
    old = {}
    for key, value in theirs.state_dict().items():
        key = key.replace("encoder.swin.", "encoder.")
        if ".blocks." in key:
            for now, before in (
                ("attention.q_proj", "attention.self.query"),
                ("attention.k_proj", "attention.self.key"),
                ("attention.v_proj", "attention.self.value"),
                ("attention.o_proj", "attention.output.dense"),
                ("attention.relative_position_bias.", "attention.self."),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):
                key = key.replace(now, before)
        old[key] = value
    assert set(old) != set(theirs.state_dict())
    found = system.convert_state_dict(system.ENTRY, old)
    expected = system.convert_state_dict(system.ENTRY, theirs.state_dict())
    assert set(found) == set(expected)
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_what_is_not_supported_is_refused():
    system = importer("hf_mask2former")
    with pytest.raises(ValueError, match=r"dropout=0\.1"):
        system.config_from_official(system.ENTRY, dict(dropout=0.1))
    with pytest.raises(ValueError, match="convnext"):
        system.config_from_official(system.ENTRY, dict(backbone_config=dict(model_type="convnext")))
    with pytest.raises(ValueError, match="use_absolute_embeddings"):
        system.config_from_official(
            system.ENTRY, dict(backbone_config=dict(model_type="swin", use_absolute_embeddings=True))
        )
    with pytest.raises(LookupError, match="not known"):
        system.config_from_official("transformers.Other", {})
    with pytest.raises(KeyError, match="unexpected keys"):
        system.convert_state_dict(system.ENTRY, {"model.transformer_module.strange.weight": torch.zeros(1)})
    other = importer("hf_maskformer")
    with pytest.raises(ValueError, match="auxiliary_loss"):
        other.config_from_official(other.ENTRY, dict(decoder_config=dict(auxiliary_loss=True)))


def test_the_pixel_decoder_alone():
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    from zoo.segmentation.pixel_decoder import DeformablePixelDecoder

    torch.manual_seed(0)
    channels = (8, 16, 24, 32)
    config = transformers.Mask2FormerConfig(feature_size=64, mask_feature_size=32, encoder_layers=2)
    theirs = Mask2FormerPixelDecoder(config, list(channels)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * 0.1)
    ours = DeformablePixelDecoder(channels, 64, 32, num_layers=2).eval()
    ours.load_state_dict(importer("hf_mask2former").pixel_decoder_names(theirs.state_dict()))
    maps = [torch.randn(2, c, s, s + 3) for c, s in zip(channels, (33, 17, 9, 5))]
    with torch.no_grad():
        found, levels = ours(maps)
        expected = theirs(maps)
    assert relative(found, expected.mask_features) <= 1e-4
    for mine, its in zip(levels, expected.multi_scale_features):
        assert relative(mine, its) <= 1e-4
