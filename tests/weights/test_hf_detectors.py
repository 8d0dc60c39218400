"""transformers' detectors with random weights: ours give the same outputs, and the weights go there and back."""

import pytest
import torch

from zoo.registry import MODELS, build
from zoo.weights.importers import importer
from zoo.weights.load import load_weights

transformers = pytest.importorskip("transformers")

SMALL = dict(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=11, num_labels=5)
CASES = {
    "detr": ("hf_detr", "Detr", {}),
    "conditional": ("hf_conditional_detr", "ConditionalDetr", {}),
    "dab": ("hf_dab_detr", "DabDetr", {}),
    "deformable": ("hf_deformable_detr", "DeformableDetr", {}),
    "deformable refined": ("hf_deformable_detr", "DeformableDetr", {"with_box_refine": True}),
    "deformable one level": ("hf_deformable_detr", "DeformableDetr", {"num_feature_levels": 1}),
    "deformable two stages": (
        "hf_deformable_detr",
        "DeformableDetr",
        {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 13},
    ),
}


def make(name):
    system, stem, more = CASES[name]
    levels = more.get("num_feature_levels", 4) if stem == "DeformableDetr" else 1
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[32, 64, 64, 96],
        depths=[1, 1, 2, 1],
        out_features=["stage4"] if levels == 1 else ["stage2", "stage3", "stage4"],
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{stem}Config")(
        backbone_config=backbone, use_timm_backbone=False, **{**SMALL, **more}
    )
    model = getattr(transformers, f"{stem}ForObjectDetection")(config).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():  # nothing is left at zero or one
            if "running_var" in key or key.endswith("normalization.weight"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point() and "sampling_offsets.bias" not in key:
                value.add_(torch.randn_like(value) * 0.02)
    return importer(system), config, model


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_transformers(name):
    system, config, theirs = make(name)
    ours = build(system.config_from_official(system.ENTRY, config.to_dict()), MODELS).eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.fits
    images = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 128, 160, dtype=torch.bool)
    mask[1, 96:], mask[1, :, 128:] = True, True
    images[1, :, 96:], images[1, :, :, 128:] = 0, 0
    with torch.no_grad():
        expected = theirs(pixel_values=images, pixel_mask=(~mask).long())
        found = ours(images, mask)
    assert relative(found["pred_logits"], expected.logits) <= 1e-4
    assert relative(found["pred_boxes"], expected.pred_boxes) <= 1e-4


@pytest.mark.parametrize("name", CASES)
def test_weights_go_back(name):
    system, config, theirs = make(name)
    ours = build(system.config_from_official(system.ENTRY, config.to_dict()), MODELS)
    ours.load_state_dict(system.convert_state_dict(system.ENTRY, theirs.state_dict()))
    back = system.revert_state_dict(system.ENTRY, ours.state_dict())
    expected = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert set(back) == set(expected)
    assert all(torch.equal(back[k], v) for k, v in expected.items())


def test_files_of_version_4_are_read():
    system, _, theirs = make("conditional")
    old = {}
    for key, value in theirs.state_dict().items():
        key = key.replace("model.backbone.", "model.backbone.conv_encoder.").replace(".mlp.fc", ".fc")
        key = key.replace("attn.o_proj", "attn.out_proj")
        for now, before in (("self_attn", "sa"), ("encoder_attn", "ca")):
            for part in ("q_content", "q_pos", "k_content", "k_pos", "q_pos_sine", "v"):
                if ".decoder." in key:
                    key = key.replace(f"{now}.{part}_proj", f"{before}_{part.replace('_', '', 1)}_proj")
        old[key] = value
    assert set(old) != set(theirs.state_dict())
    found = system.convert_state_dict(system.ENTRY, old)
    expected = system.convert_state_dict(system.ENTRY, theirs.state_dict())
    assert set(found) == set(expected)
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_what_is_not_supported_is_refused():
    system = importer("hf_deformable_detr")
    with pytest.raises(ValueError, match="encoder_attention_heads=8"):
        system.config_from_official(system.ENTRY, dict(decoder_attention_heads=4))
    with pytest.raises(ValueError, match="swin"):
        system.config_from_official(system.ENTRY, dict(backbone_config=dict(model_type="swin")))
    with pytest.raises(LookupError, match="not known"):
        system.config_from_official("transformers.Other", {})
    with pytest.raises(KeyError, match="unexpected keys"):
        system.convert_state_dict(system.ENTRY, {"model.encoder.strange.weight": torch.zeros(1)})
