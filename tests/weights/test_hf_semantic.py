"""SegFormer and UperNet: transformers' models with random weights, loaded into ours, both ways."""

import re

import pytest
import torch

from zoo.registry import MODELS, build
from zoo.weights.importers import hf_segformer, hf_upernet

transformers = pytest.importorskip("transformers")

SWIN = dict(embed_dim=12, depths=[2, 1, 2, 1], num_heads=[1, 2, 3, 4], window_size=4)
CONVNEXT = dict(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], layer_scale_init_value=0.5)
STAGES = [f"stage{i}" for i in range(1, 5)]
SEGFORMER = dict(hidden_sizes=[8, 16, 20, 32], depths=[1, 2, 1, 1], decoder_hidden_size=24, num_labels=7)
SEGFORMER |= dict(num_attention_heads=[1, 2, 5, 4], patch_sizes=[7, 3, 5, 3], mlp_ratios=[4, 3, 2, 4])


def random_weights(model: torch.nn.Module) -> torch.nn.Module:
    """All parameters and statistics random, of a size at which every part counts."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith(("running_var", "norm.weight", "layernorm.weight")):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.normal_(0, 0.3 if value.ndim == 1 else value[0].numel() ** -0.5)
    return model.eval()


def upernet_config(kind: str, **options):
    make, given = {
        "swin": (transformers.SwinConfig, SWIN),
        "convnext": (transformers.ConvNextConfig, CONVNEXT),
    }[kind]
    backbone = make(**given, out_features=options.pop("out_features", STAGES))
    return transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, num_labels=7, **options)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def load(module, entry, config, theirs):
    """Our model with the weights, strictly, and the state dict back."""
    kwargs = config.to_dict()
    ours = build(module.config_from_official(entry, kwargs), MODELS).eval()
    state = theirs.state_dict()
    converted = module.convert_state_dict(entry, state)
    ours.load_state_dict(converted)
    back = module.revert_state_dict(entry, ours.state_dict())
    used = {k for k in state if k in back}
    assert used == set(back)
    for key, value in back.items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)
    return ours, set(state) - used


@pytest.mark.parametrize("kind", ["swin", "convnext"])
@pytest.mark.parametrize("size", [(64, 96), (70, 45)])
def test_upernet(kind, size):
    config = upernet_config(kind, auxiliary_channels=12, auxiliary_num_convs=2, auxiliary_concat_input=True)
    theirs = random_weights(transformers.UperNetForSemanticSegmentation(config))
    ours, left = load(hf_upernet, f"{hf_upernet.ENTRY}/{kind}", config, theirs)
    # what their backbone holds and does not call
    assert all(re.search(r"swin\.layernorm\.|relative_position_index", k) for k in left)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(images).logits
        maps = ours.forward_maps(images)
        found = ours(images)["logits"]
        aux = ours.auxiliary[0](maps)
        expected_aux = theirs.auxiliary_head(theirs.backbone(images).feature_maps)
    found = torch.nn.functional.interpolate(found, size=size, mode="bilinear", align_corners=False)
    assert relative(found, expected) <= 1e-4
    assert relative(aux, expected_aux) <= 1e-4


@pytest.mark.parametrize("size", [(64, 96), (70, 45)])
def test_segformer(size):
    config = transformers.SegformerConfig(**SEGFORMER)
    theirs = random_weights(transformers.SegformerForSemanticSegmentation(config))
    ours, left = load(hf_segformer, hf_segformer.SEGMENTER, config, theirs)
    assert left == set()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert relative(ours(images)["logits"], theirs(images).logits) <= 1e-4


def test_segformers_classifier():
    config = transformers.SegformerConfig(**SEGFORMER)
    theirs = random_weights(transformers.SegformerForImageClassification(config))
    ours, left = load(hf_segformer, hf_segformer.CLASSIFIER, config, theirs)
    assert left == set()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert relative(ours(images), theirs(images).logits) <= 1e-4


def old_name(key: str) -> str:
    """What transformers 4 called a tensor of SegFormer (and what its files on the Hub are called by)."""
    for new, old in (
        (r"stages\.(\d+)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
        (r"stages\.(\d+)\.blocks\.", r"encoder.block.\1."),
        (r"stages\.(\d+)\.layer_norm\.", r"encoder.layer_norm.\1."),
        (r"attention\.sequence_reduction\.sequence_reduction\.", "attention.self.sr."),
        (r"attention\.sequence_reduction\.layer_norm\.", "attention.self.layer_norm."),
        (r"attention\.q_proj\.", "attention.self.query."),
        (r"attention\.k_proj\.", "attention.self.key."),
        (r"attention\.v_proj\.", "attention.self.value."),
        (r"attention\.o_proj\.", "attention.output.dense."),
        (r"mlp\.fc([12])\.", r"mlp.dense\1."),
        (r"layernorm_before\.", "layer_norm_1."),
        (r"layernorm_after\.", "layer_norm_2."),
        (r"linear_projections\.", "linear_c."),
    ):
        key = re.sub(new, old, key)
    return key


def test_segformer_files_of_version_4():
    config = transformers.SegformerConfig(**SEGFORMER)
    state = transformers.SegformerForSemanticSegmentation(config).state_dict()
    old = {old_name(k): v for k, v in state.items()}
    assert not set(old) & {k for k in state if ".blocks." in k}
    new, same = (hf_segformer.convert_state_dict(hf_segformer.SEGMENTER, s) for s in (old, state))
    assert set(new) == set(same)
    assert all(torch.equal(new[k], same[k]) for k in new)


@pytest.mark.parametrize(
    "module, entry",
    [
        (hf_segformer, hf_segformer.SEGMENTER),
        (hf_segformer, hf_segformer.CLASSIFIER),
        (hf_upernet, hf_upernet.SWIN),
        (hf_upernet, hf_upernet.CONVNEXT),
    ],
)
@pytest.mark.parametrize("key", ["decode_head.no_such.weight", "backbone.no_such.weight", "segformer.no.weight"])
def test_unknown_keys_are_refused(module, entry, key):
    with pytest.raises(KeyError, match="unexpected"):
        module.convert_state_dict(entry, {key: torch.zeros(1)})


@pytest.mark.parametrize(
    "module, entry, kwargs, message",
    [
        (hf_segformer, hf_segformer.SEGMENTER, {"hidden_act": "relu"}, "hidden_act='relu'"),
        (hf_segformer, hf_segformer.SEGMENTER, {"num_encoder_blocks": 3}, "num_encoder_blocks=3"),
        (hf_upernet, hf_upernet.SWIN, {"backbone_config": {"model_type": "resnet"}}, "model_type='resnet'"),
        (hf_upernet, hf_upernet.SWIN, {"auxiliary_in_channels": 5}, "auxiliary_in_channels=5"),
        (hf_upernet, hf_upernet.CONVNEXT, {"backbone_config": {"hidden_act": "relu"}}, "hidden_act='relu'"),
    ],
)
def test_values_that_are_not_supported_are_refused(module, entry, kwargs, message):
    with pytest.raises(ValueError, match=message):
        module.config_from_official(entry, kwargs)
    with pytest.raises(LookupError, match="no_such"):
        module.config_from_official("no_such", {})
