"""Named semantic networks: as many parameters as the papers say, and as transformers' models have."""

import pytest
import torch

from zoo.registry import MODELS, build
from zoo.weights.importers import hf_segformer, hf_upernet


def parameters(spec, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in build(spec, MODELS, **options).parameters())


@pytest.mark.parametrize(
    "name, millions",
    [
        # DaViT, table 8; with the auxiliary head
        ("upernet_davit_tiny", 60),
        ("upernet_davit_small", 81),
        ("upernet_davit_base", 121),
        # Agent attention's page on segmentation
        ("upernet_agent_swin_tiny", 61),
        ("upernet_agent_swin_small", 81),
        ("upernet_agent_swin_base", 121),
        ("semantic_fpn_agent_pvt_tiny", 15),
        ("semantic_fpn_agent_pvt_small", 24),
        ("semantic_fpn_agent_pvt_medium", 40),
        ("semantic_fpn_agent_pvt_large", 52),
        # Swin, table 3; ConvNeXt, table 4
        ("upernet_swin_tiny", 60),
        ("upernet_swin_small", 81),
        ("upernet_swin_base", 121),
        ("upernet_swin_large", 234),
        ("upernet_convnext_tiny", 60),
        ("upernet_convnext_small", 82),
        ("upernet_convnext_base", 122),
        ("upernet_convnext_large", 235),
    ],
)
def test_parameters_of_the_papers(name, millions):
    assert parameters(name) / 1e6 == pytest.approx(millions, abs=0.7)


#: nvidia/segformer-b?-finetuned-ade-512-512
SEGFORMER = {
    "b0": dict(hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2], decoder_hidden_size=256),
    "b1": dict(depths=[2, 2, 2, 2], decoder_hidden_size=256),
    "b2": dict(depths=[3, 4, 6, 3]),
    "b3": dict(depths=[3, 4, 18, 3]),
    "b4": dict(depths=[3, 8, 27, 3]),
    "b5": dict(depths=[3, 6, 40, 3]),
}


@pytest.mark.parametrize("size", SEGFORMER)
def test_segformer_is_transformers(size):
    """Names and shapes of every tensor."""
    transformers = pytest.importorskip("transformers")
    given = {"hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768, **SEGFORMER[size], "num_labels": 150}
    with torch.device("meta"):
        theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**given)).state_dict()
        ours = build(f"segformer_{size}", MODELS).state_dict()
    back = hf_segformer.revert_state_dict(hf_segformer.SEGMENTER, ours)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_upernet_is_transformers(kind):
    transformers = pytest.importorskip("transformers")
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = {
        "swin": lambda: transformers.SwinConfig(out_features=stages),
        "convnext": lambda: transformers.ConvNextConfig(
            out_features=stages, hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3]
        ),
    }[kind]()
    config = transformers.UperNetConfig(backbone_config=backbone, num_labels=150)
    with torch.device("meta"):
        theirs = transformers.UperNetForSemanticSegmentation(config).state_dict()
        ours = build(f"upernet_{kind}_tiny", MODELS).state_dict()
    back = hf_upernet.revert_state_dict(f"{hf_upernet.ENTRY}/{kind}", ours)
    left = {k for k in theirs if "relative_position_index" in k or ".layernorm." in k} - set(back)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in theirs.items() if k not in left}


@pytest.mark.parametrize("name", [n for n in MODELS.names(task="segmentation") if n.endswith("nano")])
def test_nano_models_are_small(name):
    assert parameters(name) < 5e6
