"""RF-DETR: sizes, groups, padding, windows, losses, checkpoints of the authors and of transformers."""

import json

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

import zoo
from zoo.backbones.dinov2_windowed import WindowedDINOv2
from zoo.data.shapes_detection import ShapesDetection
from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.detector import Detector
from zoo.detection.matcher import HungarianMatcher
from zoo.detection.model import DetectionModel
from zoo.detection.projector import MultiScaleProjector
from zoo.detection.rfdetr import RFDETR
from zoo.detection.rfdetr_criterion import RFDETRCriterion, paired_iou
from zoo.detection.rfdetr_keypoints import active_mask, by_class, class_boost, class_mask
from zoo.detection.rfdetr_masks import dense_masks
from zoo.detection.rfdetr_transformer import moved
from zoo.metrics.coco import CocoBoxes
from zoo.registry import MODELS, build
from zoo.weights.importers import rfdetr as importer

#: ours -> the authors' class and its parameters, all groups included
PARAMETERS = {
    "rfdetr_nano_384": ("RFDETRNano", 30467298),
    "rfdetr_small_512": ("RFDETRSmall", 32111170),
    "rfdetr_medium_576": ("RFDETRMedium", 33687458),
    "rfdetr_large_704": ("RFDETRLarge", 33933218),
    "rfdetr_base_560": ("RFDETRBase", 32174530),
    "rfdetr_large_560": ("RFDETRLargeDeprecated", 135637474),
    "rfdetr_seg_nano_312": ("RFDETRSegNano", 33577475),
    "rfdetr_seg_small_384": ("RFDETRSegSmall", 33711107),
    "rfdetr_seg_medium_432": ("RFDETRSegMedium", 35694259),
    "rfdetr_seg_large_504": ("RFDETRSegLarge", 35873971),
    "rfdetr_seg_xlarge_624": ("RFDETRSegXLarge", 38113635),
    "rfdetr_seg_2xlarge_768": ("RFDETRSeg2XLarge", 38648163),
    "rfdetr_keypoint_576": ("RFDETRKeypointPreview", 41044470),
}
VIT = dict(embed_dim=32, depth=4, num_heads=2, patch_size=8, table_size=4, num_windows=2, global_blocks=(2,))
SMALL = dict(d_model=32, sa_heads=4, ca_heads=4, num_layers=2, dim_feedforward=48)
OFFICIAL = dict(
    vit=dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2),
    out_feature_indexes=[2, 4],
    patch_size=8,
    num_windows=2,
    positional_encoding_size=4,
    hidden_dim=32,
    dim_feedforward=48,
    sa_nheads=4,
    ca_nheads=4,
    dec_layers=2,
    num_queries=6,
    group_detr=2,
    num_classes=3,
)


def make(**options) -> Detector:
    torch.manual_seed(0)
    network = dict(type=RFDETR, num_classes=4, num_queries=6, groups=2, stride=8, transformer=SMALL)
    model = Detector(dict(type=WindowedDINOv2, out_indices=(1, 3), **VIT), {**network, **options})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_authors(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name][1]


def test_named_models_are_those_of_the_authors_arguments(conformance_dir):
    facts = json.loads((conformance_dir / "facts" / "rfdetr.json").read_text(encoding="utf-8"))["variants"]
    assert {k: f["params"] for k, f in facts.items()} == dict(PARAMETERS.values())
    for name, (official, _) in PARAMETERS.items():
        spec = importer.config_from_official(importer.NETWORK, facts[official]["kwargs"])
        with torch.device("meta"):
            own, theirs = zoo.create_model(name), build(spec, MODELS)
        assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
        run = own.backbone.out_indices[-1] + 1
        assert {b for b in theirs.backbone.global_blocks if b < run} == {
            b for b in own.backbone.global_blocks if b < run
        }
        assert own.backbone.out_indices == theirs.backbone.out_indices
        assert own.network.stride == theirs.network.stride == facts[official]["kwargs"]["patch_size"]
        assert facts[official]["input_size"] == MODELS.entry(name).meta["input_size"]


def test_windows_are_what_attention_in_each_quarter_of_the_image_gives():
    torch.manual_seed(0)
    model = WindowedDINOv2(**{**VIT, "global_blocks": ()}, out_indices=(1,)).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        (whole,) = model(x)
        alone = WindowedDINOv2(**{**VIT, "num_windows": 1, "global_blocks": ()}, out_indices=(1,)).eval()
        state = model.state_dict()
        table = state["position"][:, 1:].unflatten(1, (4, 4))
        for row in range(2):
            for column in range(2):
                part = {**state}
                quarter = table[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1, 2)
                part["position"] = torch.cat([state["position"][:, :1], quarter], dim=1)
                small = WindowedDINOv2(
                    **{**VIT, "num_windows": 1, "global_blocks": (), "table_size": 2}, out_indices=(1,)
                ).eval()
                small.load_state_dict(part)
                (got,) = small(x[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16])
                torch.testing.assert_close(whole[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2], got)
        alone.load_state_dict(state)
        assert not torch.allclose(alone(x)[0], whole, atol=1e-3)


def test_without_windows_it_is_transformers_dinov2():
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
        out_indices=[1, 3],
    )  # fmt: skip
    theirs = transformers.Dinov2Backbone(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    own = WindowedDINOv2(32, 3, 2, 8, 4, out_indices=(0, 2)).eval()
    names = {}
    for key, value in theirs.state_dict().items():
        for old, new in (
            (".attention.q_proj.", ".attention.attention.query."),
            (".attention.k_proj.", ".attention.attention.key."),
            (".attention.v_proj.", ".attention.attention.value."),
            (".attention.o_proj.", ".attention.output.dense."),
        ):
            key = key.replace(old, new)
        names[importer._VIT_PREFIX + key] = value
    found = importer.convert_state_dict(importer.NETWORK, names)
    own.load_state_dict({k.removeprefix("backbone."): v for k, v in found.items()})
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for a, b in zip(own(x), theirs(x).feature_maps):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_any_size_is_padded_and_the_padding_is_masked():
    model = make().eval()
    x = torch.randn(1, 3, 21, 30)
    with torch.no_grad():
        out = model(x)
        mask = torch.ones(1, 32, 32, dtype=torch.bool)
        mask[:, :21, :30] = False
        same = model(F.pad(x, (0, 2, 0, 11)), mask)
    assert [tuple(f.shape) for f in out["features"]] == [(1, 32, 4, 4)] * 2
    torch.testing.assert_close(out["pred_logits"], same["pred_logits"])
    torch.testing.assert_close(out["pred_boxes"], same["pred_boxes"])


def test_the_classifier_and_what_is_not_run():
    model = WindowedDINOv2(**VIT, out_indices=(0, 1))
    assert all(not p.requires_grad for p in model.blocks[2:].parameters())
    assert all(p.requires_grad for p in model.blocks[:2].parameters())
    model.reset_classifier(5)
    assert all(p.requires_grad for p in model.blocks.parameters())
    assert model(torch.randn(2, 3, 40, 24)).shape == (2, 5)
    assert set(model.group_matcher().values()) == set(range(model.num_layers()))
    frozen = WindowedDINOv2(**VIT, out_indices=(3,), frozen_stages=1).train()
    assert not frozen.position.requires_grad
    assert not frozen.blocks[0].qkv.weight.requires_grad
    assert frozen.blocks[1].qkv.weight.requires_grad


def test_groups_do_not_see_each_other_and_the_first_is_what_remains():
    model = make().train()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        out = model(x)
        assert out["groups"] == 2
        assert out["pred_logits"].shape == (2, 12, 4)
        model.network.query_feat.weight[6:] += 1.0
        moved_second = model(x)
        torch.testing.assert_close(moved_second["pred_logits"][:, :6], out["pred_logits"][:, :6])
        assert not torch.allclose(moved_second["pred_logits"][:, 6:], out["pred_logits"][:, 6:])
        alone = model.eval()(x)
    assert alone["groups"] == 1
    for key in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(alone[key], out[key][:, :6])
        torch.testing.assert_close(alone["enc_outputs"][key], out["enc_outputs"][key][:, :6])


def test_gradient_reaches_every_parameter_that_is_trained():
    model = make(
        levels=("P3", "P4", "P5"),
        segmentation_head=True,
        keypoint_counts=(2, 1),
        dual_projector=True,
        dual_projector_kp_only=True,
        transformer={**SMALL, "registers": 2, "inter_instance_kp_attn": True, "keypoint_dim_downscale": 2},
    ).train()
    out = model(torch.randn(2, 3, 32, 32))
    layers = [out, *out["aux_outputs"], out["enc_outputs"]]
    loss = sum(p[k].square().mean() for p in layers for k in ("pred_logits", "pred_boxes", "pred_keypoints"))
    loss = loss + sum(dense_masks(p["pred_masks"]).square().mean() for p in layers)
    loss.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_fewer_tokens_than_queries():
    model = make(num_queries=30).eval()
    with torch.no_grad():
        out = model(torch.randn(1, 3, 32, 32))
    assert out["pred_logits"].shape == (1, 30, 4)
    assert out["enc_outputs"]["pred_logits"].shape == (1, 16, 4)


def test_boxes_from_references():
    reference, delta = torch.tensor([0.5, 0.4, 0.2, 0.1]), torch.tensor([0.5, -1.0, 0.0, 2.0])
    torch.testing.assert_close(
        moved(reference, delta, True), torch.tensor([0.6, 0.3, 0.2, 0.1 * 7.38905609893065]), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(moved(reference, delta, False), reference + delta)


def test_keypoints_of_classes():
    assert class_mask((2, 0, 1)).tolist() == [
        [False] * 4,
        [False, False, False, True],
        [False, False, False, True],
        [False, True, True, False],
    ]
    active = active_mask((2, 0, 1))
    assert active.tolist() == [[True, True], [False, False], [True, False]]
    points = torch.arange(3.0)[:, None].expand(3, 8) + 1
    padded = by_class(points[None], active)
    assert padded[0, :, 0].tolist() == [1, 2, 0, 0, 3, 0]
    assert class_boost(padded, active, 4).tolist() == [[3, 0, 3, 0]]


def test_projector_refuses_levels_it_does_not_know():
    for levels in ((), ("P2",), ("P5", "P3")):
        with pytest.raises(ValueError, match="levels"):
            MultiScaleProjector((8,), 8, levels)


def objects(*counts: int) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        {"labels": torch.randint(0, 4, (n,), generator=g), "boxes": torch.rand(n, 4, generator=g) * 0.4 + 0.2}
        for n in counts
    ]


def criterion(**options) -> RFDETRCriterion:
    return RFDETRCriterion(4, HungarianMatcher(), **options).double()


@pytest.mark.parametrize("kind", ["iou_bce", "position", "varifocal", "focal"])
def test_class_losses_are_the_papers(kind):
    """The equations, pair by pair, in float64."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    boxes = torch.rand(2, 6, 4, generator=g, dtype=torch.float64) * 0.4 + 0.2
    targets = [{**t, "boxes": t["boxes"].double()} for t in objects(2, 3)]
    made, outputs = criterion(classification=kind), {"pred_logits": logits, "pred_boxes": boxes}
    pairs = made.match(outputs, targets, 1)
    p, quality = logits.sigmoid(), torch.zeros_like(logits)
    hit = torch.zeros_like(logits)
    for i, (queries, found) in enumerate(pairs):
        for q, t in zip(queries.tolist(), found.tolist()):
            label = int(targets[i]["labels"][t])
            hit[i, q, label] = 1
            quality[i, q, label] = paired_iou(boxes[i, q][None], targets[i]["boxes"][t][None])
    if kind == "iou_bce":
        t = (p**0.25 * quality**0.75).clamp(min=0.01) * hit
        negative = torch.where(hit > 0, 1 - t, p**2)
        loss = -(t * p.log() + negative * (1 - p).log())
    elif kind == "varifocal":
        weight = torch.where(quality > 0, quality, 0.75 * p**2)
        loss = -weight * (quality * p.log() + (1 - quality) * (1 - p).log())
    elif kind == "position":
        s = quality / (quality.flatten(1).amax(1)[:, None, None] + 1e-8)
        weight = torch.where(s > 0, 0.25, 0.75) * (s - p).abs() ** 2
        loss = -weight * (s * p.log() + (1 - s) * (1 - p).log())
    else:
        loss = torch.where(hit > 0, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    torch.testing.assert_close(made(outputs, targets)["loss_ce"], loss.sum() / 5)


def test_groups_are_matched_alone_and_averaged():
    g = torch.Generator().manual_seed(1)
    one = {"pred_logits": torch.randn(2, 6, 4, generator=g), "pred_boxes": torch.rand(2, 6, 4, generator=g) * 0.4 + 0.2}
    twice = {k: torch.cat([v, v], 1) for k, v in one.items()} | {"groups": 2}
    targets = objects(2, 0)
    made = RFDETRCriterion(4, HungarianMatcher())
    a, b = made({**one, "enc_outputs": one, "aux_outputs": [one]}, targets), made(twice, targets)
    for key in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(a[key], b[key])
        torch.testing.assert_close(a[key], a[f"{key}_enc"])
        torch.testing.assert_close(a[key], a[f"{key}_0"])
    summed = RFDETRCriterion(4, HungarianMatcher(), sum_group_losses=True)(twice, targets)
    torch.testing.assert_close(summed["loss_ce"], 2 * a["loss_ce"])
    queries, found = made.match(one, targets, 1)[0]
    boxes, wanted = one["pred_boxes"][0, queries], targets[0]["boxes"][found]
    giou = generalized_box_iou_loss(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted), reduction="sum", eps=0.0)
    torch.testing.assert_close(a["loss_giou"], giou / 2)
    torch.testing.assert_close(a["loss_bbox"], (boxes - wanted).abs().sum() / 2)
    nothing = made({**one}, objects(0, 0))
    assert nothing["loss_bbox"] == 0
    assert nothing["loss_ce"] > 0


def test_what_the_criterion_refuses():
    with pytest.raises(ValueError, match="classification"):
        criterion(classification="softmax")
    with pytest.raises(ValueError, match="losses"):
        criterion(losses=("masks",))
    out = {
        "pred_logits": torch.zeros(1, 2, 4),
        "pred_boxes": torch.rand(1, 2, 4),
        "pred_masks": torch.zeros(1, 2, 4, 4),
    }
    with pytest.raises(ValueError, match="pred_masks"):
        RFDETRCriterion(4, HungarianMatcher())(out, objects(1))


@pytest.mark.parametrize(
    "change",
    [
        {},
        dict(encoder="dinov2_registers_windowed_small"),
        dict(vit={**OFFICIAL["vit"], "use_swiglu_ffn": True}),
        dict(layer_norm=False, projector_scale=["P3", "P4", "P5"], decoder_norm="Identity"),
        dict(two_stage=False, lite_refpoint_refine=False, bbox_reparam=False),
        dict(window_block_indexes=[0, 3], segmentation_head=True, num_decoder_registers=2),
        dict(
            use_grouppose_keypoints=True,
            num_keypoints_per_class=[2, 0, 1],
            dual_projector=True,
            grouppose_keypoint_dim_downscale=2,
            inter_instance_kp_attn=True,
        ),
    ],
)
def test_state_goes_there_and_back(change):
    model = build(importer.config_from_official(importer.NETWORK, {**OFFICIAL, **change}), MODELS).eval()
    state = model.state_dict()
    official = importer.revert_state_dict(importer.NETWORK, state)
    assert "_kp_active_mask" in official
    assert "backbone.0.encoder.encoder.embeddings.cls_token" in official
    again = importer.convert_state_dict(importer.NETWORK, official)
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(again[k], v) for k, v in state.items())
    with torch.no_grad():
        out = model(torch.randn(2, 3, 32, 48))
    assert out["pred_logits"].isfinite().all()
    assert len(out["aux_outputs"]) == 1
    assert ("enc_outputs" in out) == (change.get("two_stage", True))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(rms_norm=True), "rms_norm"),
        (dict(backbone_lora=True), "backbone_lora"),
        (dict(encoder="dinov2_small"), "encoder"),
        (dict(encoder_only=True), "encoder_only"),
        (dict(decoder_norm="BN"), "decoder_norm"),
        (dict(dec_layers=0), "dec_layers"),
        (dict(out_feature_indexes=[4, 2]), "out_feature_indexes"),
        (dict(window_block_indexes=[0, 9]), "window_block_indexes"),
        (dict(num_keypoints_per_class=[3]), "num_keypoints_per_class"),
        (dict(use_grouppose_keypoints=True), "num_keypoints_per_class"),
        (
            dict(use_grouppose_keypoints=True, num_keypoints_per_class=[3], lite_refpoint_refine=False),
            "lite_refpoint_refine",
        ),
        (dict(vit=dict(hidden_act="relu")), "hidden_act"),
    ],
)
def test_what_the_importer_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        importer.config_from_official(importer.NETWORK, {**OFFICIAL, **change})
    with pytest.raises(TypeError, match="hidden_dim"):
        importer.config_from_official(importer.NETWORK, {"hiden_dim": 3})
    with pytest.raises(LookupError):
        importer.config_from_official("rfdetr.other", {})


def test_two_names_of_the_box_head_must_agree():
    model = build(importer.config_from_official(importer.NETWORK, OFFICIAL), MODELS)
    state = importer.revert_state_dict(importer.NETWORK, model.state_dict())
    head = {f"transformer.decoder.{k}": v for k, v in state.items() if k.startswith("bbox_embed.")}
    importer.convert_state_dict(importer.NETWORK, {**state, **head})
    with pytest.raises(ValueError, match="hold two"):
        importer.convert_state_dict(importer.NETWORK, {**state, **{k: v + 1 for k, v in head.items()}})


@pytest.mark.parametrize("masks", [False, True])
def test_transformers_checkpoints_give_its_outputs(masks):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "RfDetrConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no RfDetr")
    from zoo.weights.importers import hf_rfdetr as hf

    backbone = transformers.RfDetrDinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=8, image_size=48, num_windows=2,
        out_indices=[2, 4],
    )  # fmt: skip
    config = transformers.RfDetrConfig(
        backbone_config=backbone, d_model=32, decoder_ffn_dim=64, decoder_layers=2, decoder_self_attention_heads=4,
        decoder_cross_attention_heads=8, decoder_n_points=2, num_queries=10, group_detr=2, num_labels=5,
        intermediate_size=48,
    )  # fmt: skip
    torch.manual_seed(0)
    kind, entry = (
        (transformers.RfDetrForInstanceSegmentation, hf.SEGMENTATION)
        if masks
        else (transformers.RfDetrForObjectDetection, hf.DETECTION)
    )
    theirs = kind(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    own = build(hf.config_from_official(entry, config.to_dict()), MODELS).eval()
    state = theirs.state_dict()
    own.load_state_dict(hf.convert_state_dict(entry, state))
    back = hf.revert_state_dict(entry, own.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], v) for k, v in state.items())
    x = torch.randn(2, 3, 64, 64)
    pixels = torch.ones(2, 64, 64, dtype=torch.long)
    pixels[1, 48:] = 0
    x[1, :, 48:] = 0
    with torch.no_grad():
        a, b = theirs(x, pixel_mask=pixels), own(x, pixels == 0)
    names = {"logits": "pred_logits", "pred_boxes": "pred_boxes"} | ({"pred_masks": "pred_masks"} if masks else {})
    for theirs_name, own_name in names.items():
        wanted = getattr(a, theirs_name)
        assert (b[own_name] - wanted).norm() <= 1e-4 * wanted.norm()
    with pytest.raises(ValueError, match="num_feature_levels"):
        hf.config_from_official(entry, {"num_feature_levels": 2})
    with pytest.raises(LookupError):
        hf.config_from_official("transformers.RfDetr", {})


def test_four_images_are_learnt():
    """AP of at least 0.6; about 15 s of one core."""
    torch.manual_seed(0)
    dataset = ShapesDetection("train", 4, 64, objects=(1, 3))
    model = DetectionModel("rfdetr_nano", 8).train()
    samples = [dataset[i] for i in range(4)]
    data = {k: [s[k] for s in samples] for k in ("inputs", "data_samples")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=1e-4)
    for step in range(70):
        optimizer.param_groups[0]["lr"] = 6e-4 * min(1, (step + 1) / 10) * (0.1 if step > 55 else 1)
        losses = model(**model.data_preprocessor(data, True), mode="loss")
        optimizer.zero_grad()
        sum(v for k, v in losses.items() if "loss" in k).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(data), mode="predict")
    metric = CocoBoxes()
    metric.dataset_meta = dataset.metainfo
    metric.process(None, [s.to_dict() for s in found])
    assert metric.evaluate(4)["coco/AP"] >= 0.6
