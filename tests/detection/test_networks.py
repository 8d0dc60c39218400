"""What every network of the family keeps to, whatever its transformer."""

import pytest
import torch

from zoo.detection.conditional_detr import ConditionalDETR
from zoo.detection.dab_deformable_detr import DABDeformableDETR
from zoo.detection.dab_detr import DABDETR
from zoo.detection.deformable_detr import DeformableDETR
from zoo.detection.detr import DETR
from zoo.detection.dino import DINO
from zoo.detection.focus_detr import FocusDETR

CHANNELS = (8, 12)
SMALL = dict(d_model=32, nhead=4, num_encoder_layers=1, num_decoder_layers=2, dim_feedforward=32, dropout=0.0)
LEVELS = dict(num_feature_levels=2, transformer=SMALL)
FOCUS = dict(num_best=4, cascade=(1.0,), focus_rho=0.9)
NETWORKS = {
    "detr": (DETR, dict(transformer=SMALL)),
    "conditional": (ConditionalDETR, dict(transformer=SMALL)),
    "dab": (DABDETR, dict(transformer=SMALL)),
    "dn": (DABDETR, dict(transformer=SMALL, dn_groups=2)),
    "deformable": (DeformableDETR, LEVELS),
    "refined": (DeformableDETR, dict(**LEVELS, with_box_refine=True)),
    "two_stage": (DeformableDETR, dict(**LEVELS, with_box_refine=True, two_stage=True)),
    "dab_deformable": (DABDeformableDETR, LEVELS),
    "dn_deformable": (DABDeformableDETR, dict(**LEVELS, dn_groups=2)),
    "dino": (DINO, LEVELS),
    "dino_one_stage": (DINO, dict(num_feature_levels=2, transformer={**SMALL, "two_stage_type": "no"})),
    "focus": (FocusDETR, dict(num_feature_levels=2, strides=(8, 16), transformer={**SMALL, **FOCUS})),
}


def make(name: str):
    torch.manual_seed(0)
    kind, options = NETWORKS[name]
    network = kind(CHANNELS, num_classes=3, num_queries=6, **options)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))  # heads start at zero
    return network


def maps(height: int, width: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, c, height // s, width // s, generator=g) for c, s in zip(CHANNELS, (8, 16))]


def targets(*counts: int) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        {"labels": torch.randint(0, 3, (n,), generator=g), "boxes": torch.rand(n, 4, generator=g) * 0.4 + 0.2}
        for n in counts
    ]


# The others see it by their authors' design: positions of boxes times the valid share of the first level, scores that
# average over a level with its padding.
@pytest.mark.parametrize("name", ["detr", "conditional", "dab", "dn", "deformable", "refined", "two_stage"])
def test_padding_is_not_seen(name):
    network = make(name).eval()
    small = maps(96, 64)
    mask = torch.ones(1, 128, 96, dtype=torch.bool)
    mask[:, :96, :64] = False
    padded = []
    for x, garbage in zip(small, maps(128, 96, seed=1)):
        garbage = 10 * garbage
        garbage[..., : x.shape[2], : x.shape[3]] = x
        padded.append(garbage)
    if hasattr(network, "input_proj") and isinstance(network.input_proj, torch.nn.ModuleList):
        for layer in network.input_proj:
            layer[1] = torch.nn.Identity()  # group normalisation takes its statistics over the padding too
    with torch.no_grad():
        alone = network(small, torch.zeros(1, 96, 64, dtype=torch.bool))
        beside = network(padded, mask)
    for key in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(beside[key], alone[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_reaches_every_parameter(name):
    network = make(name).train()
    features = [torch.cat([x, x.flip(3)]) for x in maps(128, 128)]
    out = network(features, torch.zeros(2, 128, 128, dtype=torch.bool), targets=targets(2, 1))
    layers = [out, *out["aux_outputs"]]
    layers += [out[k] for k in ("enc_outputs", "interm_outputs", "dn_outputs") if k in out]
    loss = sum(p[k].square().mean() for p in layers for k in ("pred_logits", "pred_boxes"))
    if "foreground_logits" in out:
        loss = loss + out["foreground_logits"].square().mean()
    loss.backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None]
    assert idle == []


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith(("dn", "dino", "focus"))])
def test_a_batch_without_objects_still_reduces_every_gradient(name):
    network = make(name).train()
    out = network(maps(128, 128), torch.zeros(1, 128, 128, dtype=torch.bool), targets=targets(0))
    assert "dn_outputs" not in out
    out["pred_logits"].sum().backward()
    assert network.label_enc.weight.grad is not None


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_are_boxes_in_the_image_and_the_same_again(name):
    network = make(name).eval()
    features, mask = maps(128, 128), torch.zeros(1, 128, 128, dtype=torch.bool)
    with torch.no_grad():
        out, again = network(features, mask), network(features, mask)
    assert out["pred_boxes"].shape == (1, 6, 4)
    assert out["pred_logits"].shape == (1, 6, 4 if name == "detr" else 3)
    assert 0 < out["pred_boxes"].min() <= out["pred_boxes"].max() < 1
    assert torch.equal(out["pred_logits"], again["pred_logits"])
    assert len(out["aux_outputs"]) == 1


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="with_box_refine"):
        DeformableDETR(CHANNELS, two_stage=True)
    with pytest.raises(ValueError, match="num_feature_levels"):
        DINO(CHANNELS, num_feature_levels=1, transformer=SMALL)
    with pytest.raises(ValueError, match="feature maps"):
        make("dino")(maps(64, 64)[:1], torch.zeros(1, 64, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match="proposals"):
        make("two_stage").eval()([torch.cat([x, x]) for x in maps(16, 16)], torch.zeros(2, 16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_encoder_layers"):
        FocusDETR(CHANNELS, transformer={**SMALL, "num_encoder_layers": 3})
