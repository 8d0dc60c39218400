"""Named detectors have the sizes of the authors' models."""

import json

import pytest
import torch

import zoo
from zoo.registry import MODELS

#: ours -> parameters of the authors' model (all, trained), counted from their code at 91 outputs
PARAMETERS = {
    "detr_resnet50": (41524768, 41302368),
    "detr_resnet50_dc5": (41524768, 41302368),
    "detr_resnet101": (60464672, 60242272),
    "detr_resnet101_dc5": (60464672, 60242272),
    "conditional_detr_r50": (43418401, 43196001),
    "conditional_detr_r50_dc5": (43418401, 43196001),
    "conditional_detr_r101": (62358305, 62135905),
    "conditional_detr_r101_dc5": (62358305, 62135905),
    "deformable_detr_r50_single_scale": (34066593, 33844193),
    "deformable_detr_r50_single_scale_dc5": (34066593, 33844193),
    "deformable_detr_r50": (40069665, 39847265),
    "deformable_detr_r50_refine": (40849660, 40627260),
    "deformable_detr_r50_two_stage": (41181529, 40959129),
    "dab_detr_r50": (43671517, 43449117),
    "dab_detr_r50_3pat": (43672285, 43449885),
    "dab_detr_r50_dc5": (43671517, 43449117),
    "dab_detr_r50_dc5_3pat": (43672285, 43449885),
    "dab_deformable_detr_r50": (47405994, 47183594),
    "dn_detr_r50": (43694977, 43472577),
    "dn_detr_r50_dc5": (43694977, 43472577),
    "dn_deformable_detr_r50": (47429154, 47206754),
    "dino_4scale_r50": (46893182, 46670782),
    "dino_5scale_r50": (47255806, 47033406),
    "dino_4scale_swin_l": (217230066, 217230066),
}
FAMILIES = ("detr", "conditional_detr", "deformable_detr", "dab_detr", "dn_detr", "dino")


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_authors(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
    own = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert own == PARAMETERS[name]


def test_the_table_above_is_the_recorded_one(conformance_dir):
    recorded = set()
    for family in FAMILIES:
        facts = json.loads((conformance_dir / "facts" / f"{family}.json").read_text(encoding="utf-8"))[
            "variants"
        ].values()
        recorded |= {(f["params"], f["params_trainable"]) for f in facts}
    assert set(PARAMETERS.values()) <= recorded


def test_every_published_name_is_listed():
    names = {n for f in FAMILIES for n in MODELS.names(family=f)}
    assert {n for n in names if not n.endswith("_nano")} == set(PARAMETERS)


def test_classes_and_backbone_can_be_chosen():
    model = zoo.create_model("deformable_detr_nano", num_classes=3)
    assert model.num_classes == 3
    with torch.no_grad():
        out = model.eval()(torch.randn(1, 3, 96, 96))
    assert out["pred_logits"].shape == (1, 30, 3)
    assert [f.shape[1] for f in out["features"]] == [64, 128, 256]
