"""RelationNet++: key points, relation attention, assignment, losses, boxes, checkpoints."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

import zoo
from zoo.data.shapes_detection import ShapesDetection
from zoo.detection.bvr_attention import BVRTransformer, LocationEmbedding, RelationAttention, offset_sines
from zoo.detection.bvr_head import BVRHead
from zoo.detection.bvr_keypoints import (
    best_keypoints,
    gaussian_radius,
    grid_points,
    keypoint_losses,
    keypoint_targets,
    sample_keys,
)
from zoo.detection.dense_tasks import Anchors, FCOSTask, assign_adaptively, assign_by_overlap, centerness
from zoo.detection.detector import Detector
from zoo.detection.model import DetectionModel
from zoo.detection.relationnetpp import BVRCriterion, RelationNetPP, dense_detections
from zoo.detection.resnet import ResNetBackbone
from zoo.metrics.coco import CocoBoxes
from zoo.registry import MODELS, build
from zoo.weights.importers import relationnetpp as importer

GN = dict(type="GN", num_groups=32, requires_grad=True)
STRIDES = [8, 16, 32, 64, 128]
RELATIONS = dict(
    cls_keypoint_cfg=dict(keypoint_types=["center"], with_key_score=False, with_relation=True),
    reg_keypoint_cfg=dict(
        keypoint_types=["top_left_corner", "bottom_right_corner"], with_key_score=False, with_relation=True
    ),
    keypoint_cfg=dict(max_keypoint_num=20, keypoint_score_thr=0.0),
    feature_selection_cfg=dict(selection_method="index", cross_level_topk=50, cross_level_selection=True),
    num_attn_heads=8,
    scale_position=False,
)


def official(kind: str) -> dict:
    """The head's arguments in the authors' config files, without deformable convolutions."""
    box = dict(num_classes=80, in_channels=256, stacked_convs=4, feat_channels=256)
    points = dict(
        type="KeypointHead", num_classes=80, in_channels=256, stacked_convs=2, strides=STRIDES,
        shared_stacked_convs=0, logits_convs=1, corner_pooling=False,
        head_types=["top_left_corner", "bottom_right_corner", "center"],
    )  # fmt: skip
    base = 300
    if kind == "retina":
        anchors = dict(octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0], strides=STRIDES)
        box |= dict(type="RetinaHead", anchor_generator=anchors, norm_cfg=GN)
        points |= dict(norm_cfg=GN)
        base = 400
    elif kind == "fcos":
        box |= dict(type="FCOSHead", strides=STRIDES, norm_cfg=None, norm_on_bbox=True, conv_bias=True)
        box |= dict(centerness_on_reg=True)
        points |= dict(logits_convs=0)
    else:
        anchors = dict(octave_base_scale=8, scales_per_octave=1, ratios=[1.0], strides=STRIDES)
        box |= dict(type="ATSSHead", anchor_generator=anchors)
    return dict(
        bbox_head_cfg=box,
        keypoint_head_cfg=points,
        pos_cfg=dict(base_size=[base, base], log_scale=True),
        shared_positional_encoding_outer=kind == "atss",
        **RELATIONS,
    )


def small(head: str = "retina", **options) -> BVRHead:
    torch.manual_seed(0)
    settings = dict(
        num_classes=3, dim=16, strides=(8, 16), stacked_convs=1, groups=4, num_heads=2, keypoints=dict(convs=1),
        location=dict(base_size=(20, 20)),
        selection=dict(method="index", cross_level_topk=6, cross_level_selection=True),
    )  # fmt: skip
    return BVRHead(head=head, **{**settings, **options})


def maps(batch: int = 2, dim: int = 16) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(batch, dim, s, s + 2, generator=g) for s in (6, 3)]


HEADS = [("retina", "retinanet_bvr_r50"), ("fcos", "fcos_bvr_x101_dcn"), ("atss", "atss_bvr_x101_dcn")]


@pytest.mark.parametrize(("kind", "fact"), HEADS)
def test_parameters_are_the_authors(kind, fact, conformance_dir):
    facts = json.loads((conformance_dir / "facts" / "relationnetpp.json").read_text(encoding="utf-8"))["variants"][fact]
    with torch.device("meta"):
        head = build(importer.config_from_official("BVRHead", official(kind)), MODELS)
        named = zoo.create_model(f"relationnetpp_{'retinanet' if kind == 'retina' else kind}_r50").network.head

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for m in modules for p in m.parameters())

    assert count(head) == facts.get("params_head", facts.get("params_head_without_dcn"))
    assert count(head.cls_transformer, head.reg_transformer) == facts["params_attention"]
    assert {k: v.shape for k, v in head.state_dict().items()} == {k: v.shape for k, v in named.state_dict().items()}
    assert (head.task_options | named.task_options) == head.task_options
    assert head.scale_position is named.scale_position is False
    assert head.selection == named.selection


@pytest.mark.parametrize("appearance", [True, False])
def test_attention_is_pytorchs_with_a_bias(appearance):
    torch.manual_seed(0)
    own, theirs = RelationAttention(12, 3, appearance), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(own.state_dict())
    if not appearance:
        with torch.no_grad():
            theirs.in_proj_weight[:12] = 0
            theirs.in_proj_bias[:12] = 0
    query, key, places = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.rand(2, 7, 2)
    bias = torch.randn(2, 3, 5, 7)
    out, mean = own(query, key, bias, places)
    wanted, weights = theirs(query, key, key, attn_mask=bias.flatten(0, 1))
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(mean, weights @ places)


def test_location_embedding_interpolates_a_map_of_whole_offsets():
    torch.manual_seed(0)
    layer = LocationEmbedding(8, 2, base_size=(6, 4), log_scale=True).double()
    layer.base = layer.base.double()
    with torch.no_grad():
        layer.embedding_transform[0].conv.weight.normal_()
        layer.embedding_transform[0].conv.bias.fill_(3.0)
        offsets = torch.tensor([[[[0.0, 0.0], [-2.0, 1.0], [50.0, -50.0]]]], dtype=torch.float64)
        found = layer(offsets, layer.map())
    weight, bias = layer.embedding_transform[0].conv.weight[:, :, 0, 0], layer.embedding_transform[0].conv.bias
    for k, (dx, dy) in enumerate(offsets[0, 0].tolist()):
        # the offset in pixels of a map of 7 x 5 whose borders are at -base / 2 and base / 2
        column = min(max(((dx / 3 + 1) * 7 - 1) / 2, 0), 6)
        row = min(max(((dy / 2 + 1) * 5 - 1) / 2, 0), 4)
        total = torch.zeros(2, dtype=torch.float64)
        for r in (math.floor(row), math.floor(row) + 1):
            for c in (math.floor(column), math.floor(column) + 1):
                part = max(0.0, 1 - abs(row - r)) * max(0.0, 1 - abs(column - c))
                if part:
                    sines = offset_sines(torch.tensor([c - 3.0, r - 2.0]).double(), 8)
                    total += part * (weight @ sines + bias)
        torch.testing.assert_close(found[0, :, 0, k], total.clamp(min=1e-6).log(), rtol=1e-5, atol=1e-6)
    assert offset_sines(torch.zeros(2), 8).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_every_offset_for_itself():
    layer = LocationEmbedding(8, 2, base_size=None, num_layers=2, out_relu=True, normalize=False)
    assert layer.map() is None
    assert layer(torch.randn(2, 5, 3, 2), None).shape == (2, 2, 5, 3)
    with pytest.raises(ValueError, match="multiple of 4"):
        LocationEmbedding(10, 2)


def test_transformer_adds_types_and_mixes_positions():
    torch.manual_seed(0)
    model = BVRTransformer(8, 2, 2, location=dict(base_size=(8, 8)), shared_location=False, cat_pos=True)
    assert len(model.relative_positional_encoding) == 2
    x = torch.randn(1, 8, 2, 3)
    points = grid_points((2, 3), 8, x)
    keys = [torch.randn(1, 4, 8), torch.randn(1, 4, 8)]
    places = [torch.rand(1, 4, 2) * 16 for _ in range(2)]
    (found,) = model([x], [points], [keys], [places], [8.0])
    tokens = x.flatten(2).transpose(1, 2)
    total, extra = tokens, []
    for attention, layer, key, place in zip(model.decoder, model.relative_positional_encoding, keys, places):
        offsets = (place[:, None] - points[None, :, None]) / 8
        location = layer(offsets, layer.map())
        total = total + attention(tokens, key, location)[0]
        wq, wk, _ = attention.in_proj_weight.chunk(3)
        bq, bk, _ = attention.in_proj_bias.chunk(3)
        q = F.linear(tokens, wq, bq).unflatten(-1, (2, 4)).transpose(1, 2)
        k = F.linear(key, wk, bk).unflatten(-1, (2, 4)).transpose(1, 2)
        weights = (q @ k.transpose(-1, -2) / 2 + location).softmax(-1).mean(1)
        extra.append(model.pos_trans((weights[..., None] * offsets).sum(2)))
    wanted = model.embed_trans(torch.cat([total.relu(), *extra], -1))
    torch.testing.assert_close(found, wanted.transpose(1, 2).unflatten(2, (2, 3)))
    with pytest.raises(ValueError, match="with_appearance_relation"):
        BVRTransformer(8, 2, 1, appearance=False)


def test_key_points_are_peaks_whatever_their_class():
    logits = torch.full((1, 2, 4, 5), -5.0)
    logits[0, 0, 1, 1], logits[0, 0, 1, 2], logits[0, 1, 3, 4] = 3.0, 2.0, 1.0  # the second is beside the first
    offsets = torch.zeros(1, 2, 4, 5)
    offsets[0, :, 1, 1] = torch.tensor([0.25, -0.5])
    found = best_keypoints(logits, offsets, 8, 2)
    assert found.indices.tolist() == [[6, 19]]
    assert found.positions.tolist() == [[[14.0, 8.0], [36.0, 28.0]]]
    torch.testing.assert_close(found.scores, torch.tensor([[3.0, 1.0]]).sigmoid())
    x = torch.arange(20.0).view(1, 1, 4, 5)
    keys, places = sample_keys([x], [found], 8)
    assert keys[0].flatten().tolist() == [6, 19]
    assert places[0] is found.positions
    (keys,), _ = sample_keys([x], [found], 8, method="interpolation")
    # position (14, 8) is column 1.25 and row 0.5 of the map
    torch.testing.assert_close(keys.flatten(), torch.tensor([5 * 0.5 + 1.25, 5 * 3 + 4]))
    shared, together = sample_keys([x, x], [found, found], 8, cross_level_topk=3, cross_level_selection=True)
    assert shared[0].flatten().tolist()[:2] == [6, 6]
    assert together[0] is together[1]


def test_targets_of_key_points():
    points = [grid_points((4, 4), 8, torch.zeros(1)), grid_points((2, 2), 16, torch.zeros(1))]
    boxes, labels = torch.tensor([[5.0, 3.0, 25.0, 27.0]]), torch.tensor([1])
    scores, offsets, positive = keypoint_targets(points, (8, 16), boxes[:, :2], boxes, labels, 3)
    assert positive.nonzero().flatten().tolist() == [0, 16]  # (4, 4) and (8, 8) are nearest to (5, 3)
    torch.testing.assert_close(offsets[[0, 16]], torch.tensor([[1 / 8, -1 / 8], [-3 / 16, -5 / 16]]))
    h, w, o = 24.0, 20.0, 0.7
    solutions = [
        (h + w - math.sqrt((h + w) ** 2 - 4 * w * h * (1 - o) / (1 + o))) / 2,
        (2 * (h + w) - math.sqrt(4 * (h + w) ** 2 - 16 * (1 - o) * w * h)) / 8,
        (-2 * o * (h + w) + math.sqrt(4 * o**2 * (h + w) ** 2 - 16 * o * (o - 1) * w * h)) / (8 * o),
    ]
    radius = float(gaussian_radius(torch.tensor(h), torch.tensor(w), o))
    assert radius == pytest.approx(min(solutions), rel=1e-5)
    sigma = (2 * radius + 1) / 6
    assert float(scores[1, 1]) == pytest.approx(math.exp(-0.5 * 64 / sigma**2), rel=1e-4)
    assert scores[:, [0, 2]].abs().sum() == 0
    assert all(t.abs().sum() == 0 for t in keypoint_targets(points, (8, 16), boxes[:0, :2], boxes[:0], labels[:0], 3))
    logits = {"center": [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)]}
    places = {"center": [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)]}
    losses, _ = keypoint_losses(logits, places, [boxes[:0]], [labels[:0]], (8, 16))
    assert float(losses["loss_point_cls"]) == pytest.approx(0.25 * 60 * 0.25 * math.log(2), rel=1e-5)
    assert losses["loss_point_offset"] == 0


def test_anchors_are_torchvisions_without_rounding():
    own = Anchors((8, 16), 4, 3, (0.5, 1.0, 2.0))
    whole = AnchorGenerator(own.sizes, own.aspect_ratios)
    whole.set_cell_anchors(torch.float32, torch.device("cpu"))
    for a, b in zip(own.of([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)]), whole.cell_anchors):
        torch.testing.assert_close(a[:9].round(), b)
    assert not torch.equal(own.cell_anchors[0], whole.cell_anchors[0])


def truth(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 40
    return torch.cat([corner, corner + 8 + 40 * torch.rand(count, 2, generator=g)], dim=1)


def test_assignment_by_overlap():
    anchors = torch.cat(Anchors((8, 16), 2, 2, (0.5, 1.0)).of([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)]))
    boxes = truth(4)
    overlap = box_iou(boxes, anchors)
    wanted = []
    for column in overlap.T:
        best = float(column.max())
        wanted.append(int(column.argmax()) if best >= 0.5 else (-1 if best < 0.4 else -2))
    for i, row in enumerate(overlap):
        for j in (row == row.max()).nonzero().flatten().tolist():
            wanted[j] = i
    assert assign_by_overlap(anchors, boxes).tolist() == wanted
    assert set(assign_by_overlap(anchors, boxes[:0]).tolist()) == {-1}


def test_adaptive_assignment():
    levels = Anchors((8, 16), 4, 1).of([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)])
    boxes = truth(5, seed=2)
    together = torch.cat(levels)
    overlap = box_iou(together, boxes)
    wanted, best = [-1] * len(together), [-1.0] * len(together)
    for i, box in enumerate(boxes):
        middle, candidates, first = (box[:2] + box[2:]) / 2, [], 0
        for level in levels:
            distance = ((level[:, :2] + level[:, 2:]) / 2 - middle).norm(dim=1)
            candidates += (distance.sort().indices[:9] + first).tolist()
            first += len(level)
        values = overlap[candidates, i]
        threshold = float(values.mean() + values.std())
        for c in candidates:
            x, y = ((together[c, :2] + together[c, 2:]) / 2).tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap[c, i] >= threshold and inside and overlap[c, i] > best[c]:
                wanted[c], best[c] = i, float(overlap[c, i])
    assert max(wanted) >= 0
    assert assign_adaptively(levels, boxes).tolist() == wanted


def test_points_of_fcos_and_its_losses():
    task = FCOSTask(3, (8, 16), smallest=24.0)
    shapes = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4)]
    points, boxes = task.points(shapes), truth(5, seed=3)
    wanted = []
    for level, (own, stride, (low, high)) in enumerate(zip(points, (8, 16), task.ranges)):
        assert own[1].tolist() == [1.5 * stride, 0.5 * stride], level
        for x, y in own.tolist():
            fits = []
            for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                sides = (x - x0, y - y0, x1 - x, y1 - y)
                near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < 1.5 * stride
                if near and min(sides) > 0 and low <= max(sides) <= high:
                    fits.append(((x1 - x0) * (y1 - y0), i))
            wanted.append(min(fits)[1] if fits else -1)
    owner = task.assign(points, boxes)
    assert max(wanted) >= 0
    assert owner.tolist() == wanted
    # Predictions that say what the targets are cost nothing but the entropy of the centerness.
    together, stride = torch.cat(points), torch.cat([torch.full((len(p),), float(s)) for p, s in zip(points, (8, 16))])
    goal = boxes[owner.clamp(min=0)]
    sides = torch.cat([together - goal[:, :2], goal[:, 2:] - together], dim=1)
    reg = (sides / stride[:, None]).clamp(min=0.0)
    central = centerness(sides.clamp(min=1e-3)).clamp(1e-4, 1 - 1e-4)
    labels = torch.tensor([0, 1, 2, 0, 1])
    cls = torch.full((len(owner), 3), -20.0)
    positive = owner >= 0
    cls[positive, labels[owner[positive]]] = 20.0

    def back(x: torch.Tensor) -> list[torch.Tensor]:
        parts = x.split([64, 16])
        return [p.T.reshape(1, -1, n, n) for p, n in zip(parts, (8, 4))]

    found = task.losses(
        {"cls": back(cls), "reg": back(reg), "centerness": back(torch.logit(central)[:, None])}, [boxes], [labels]
    )
    assert found["loss_cls"][0] < 1e-6
    assert found["loss_bbox"][0] < 1e-5
    p = central[positive]
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    torch.testing.assert_close(found["loss_centerness"][0], entropy, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", ["retina", "fcos", "atss"])
def test_gradient_reaches_every_parameter(head):
    model = small(head, reg_cat_pos=True, shared_inter=False).train()
    out = model(maps())
    boxes, labels = [truth(2) / 2, truth(1)], [torch.tensor([0, 2]), torch.tensor([1])]
    losses, _ = keypoint_losses(out["keypoint_logits"], out["keypoint_offsets"], boxes, labels, (8, 16))
    parts = [p for v in model.task.losses(out["predictions"], boxes, labels).values() for p in v]
    torch.stack([*losses.values(), *parts]).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_relations_can_be_left_out():
    model = small(cls_keypoints=(), reg_keypoints=())
    assert model.cls_transformer is None
    assert model(maps())["relations"] == {}
    with pytest.raises(ValueError, match="maps"):
        model(maps()[:1])
    for options, match in (
        (dict(head="yolo"), "head"),
        (dict(keypoint_pos="all"), "keypoint_pos"),
        (dict(reg_keypoints=("middle",)), "reg_keypoints"),
        (dict(shared_outer=True, shared_inter=False), "shared_outer"),
    ):
        with pytest.raises(ValueError, match=match):
            small(**options)


def test_boxes_are_of_the_original_image_and_do_not_overlap():
    boxes = torch.tensor([[0.0, 0, 20, 10], [1, 0, 21, 10], [30, 30, 90, 90]])
    logits = torch.logit(torch.tensor([[0.9, 0.01], [0.8, 0.7], [0.6, 0.01]]))
    outputs = {
        "candidates": [(logits[None], boxes[None], None), (logits[None, :0], boxes[None, :0], None)],
        "image_sizes": torch.tensor([[40, 80]]),
    }
    (found,) = dense_detections(outputs, torch.tensor([[80, 160]]), score_threshold=0.05)
    assert found["labels"].tolist() == [0, 1, 0]  # the second box of class 0 overlaps the first
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.6]))
    assert found["boxes"].tolist() == [[0, 0, 40, 20], [2, 0, 42, 20], [60, 60, 160, 80]]
    outputs["candidates"] = [(logits[None], boxes[None], torch.zeros(1, 3))]
    assert dense_detections(outputs, torch.tensor([[80, 160]]), count=1)[0]["scores"].tolist() == [pytest.approx(0.45)]


def detector_kwargs() -> dict:
    return dict(
        type="RetinaNet",
        pretrained="torchvision://resnet50",
        backbone=dict(type="ResNet", depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1),
        neck=dict(
            type="FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1,
            add_extra_convs="on_input", num_outs=5, norm_cfg=GN,
        ),
        bbox_head=dict(type="BVRHead", **official("retina")),
    )  # fmt: skip


def test_whole_checkpoints():
    spec = importer.config_from_official(importer.RETINANET, detector_kwargs())
    with torch.device("meta"):
        own, named = build(spec, MODELS), zoo.create_model("relationnetpp_retinanet_r50")
    state = own.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in named.state_dict().items()}
    theirs = importer.revert_state_dict(importer.RETINANET, state)
    for key in (
        "backbone.layer4.2.bn3.running_mean",
        "neck.lateral_convs.2.gn.weight",
        "neck.fpn_convs.4.conv.weight",
        "bbox_head.bbox_head.retina_cls.bias",
        "bbox_head.reg_transformer.decoder.1.in_proj_weight",
    ):
        assert key in theirs
    assert "bbox_head.keypoint_head.keypoint_layers.center.1.gn.bias" in theirs
    theirs["bbox_head.cls_transformer.relative_positional_encoding.base_embedding"] = torch.zeros(1)
    theirs["backbone.bn1.num_batches_tracked"] = torch.zeros(())
    again = importer.convert_state_dict(importer.RETINANET, theirs)
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in state.items()}
    with pytest.raises(ValueError, match="besides"):
        importer.convert_state_dict(importer.RETINANET, {**theirs, "roi_head.x": torch.zeros(1)})


def test_a_shared_embedding_is_kept_once():
    spec = importer.config_from_official("BVRHead", {**official("atss")})
    with torch.device("meta"):
        head = build(spec, MODELS)
    head = head.to_empty(device="cpu")
    state = {k: torch.zeros_like(v) for k, v in head.state_dict().items()}
    theirs = {k: v for k, v in state.items() if not k.startswith("reg_transformer.relative")}
    assert importer.convert_state_dict("BVRHead", theirs).keys() == state.keys()
    assert importer.revert_state_dict("BVRHead", head.state_dict()).keys() == theirs.keys()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(bbox_head_cfg=dict(official("fcos")["bbox_head_cfg"], dcn_on_last_conv=True)), "deformable"),
        (dict(bbox_head_cfg=dict(type="GFLHead", num_classes=3)), "GFLHead"),
        (dict(keypoint_head_cfg=dict(official("fcos")["keypoint_head_cfg"], corner_pooling=True)), "corner_pooling"),
        (dict(pos_cfg=dict(base_size=[4, 4], norm_cfg=GN)), "norm_cfg"),
        (dict(feature_selection_cfg=dict(cross_level_topk=4)), "selection_method"),
        (dict(feature_selection_cfg=dict(selection_method="best")), "selection_method"),
    ],
)
def test_what_the_importer_refuses(change, match):
    with pytest.raises(ValueError, match=match):
        importer.config_from_official("BVRHead", {**official("fcos"), **change})


def test_detectors_the_importer_refuses():
    kwargs = detector_kwargs()
    for key, value, match in (
        ("backbone", dict(type="ResNeXt", depth=101), "ResNet"),
        ("neck", dict(type="FPN", start_level=0, add_extra_convs="on_input"), "FPN"),
        ("bbox_head", dict(type="RetinaHead"), "BVRHead"),
    ):
        with pytest.raises(ValueError, match=match):
            importer.config_from_official(importer.BVR, {**kwargs, key: value})
    with pytest.raises(TypeError, match="neck"):
        importer.config_from_official(importer.BVR, {**kwargs, "nek": 1})
    with pytest.raises(LookupError):
        importer.config_from_official("FCOSHead", {})
    with pytest.raises(ValueError, match="head"):
        BVRCriterion(3, head="yolo")


def test_four_images_are_learnt():
    """AP of at least 0.6; about 8 s of one core."""
    torch.manual_seed(0)
    dataset = ShapesDetection("train", 4, 64, objects=(1, 3))
    network = dict(
        type=RelationNetPP, dim=32, strides=(8, 16, 32), stacked_convs=1, groups=8, neck=dict(groups=8), num_heads=4,
        keypoints=dict(convs=1), location=dict(base_size=(64, 64), log_scale=True), task_options=dict(base_scale=2),
        selection=dict(method="index", cross_level_topk=20, cross_level_selection=True),
    )  # fmt: skip
    backbone = dict(
        type=ResNetBackbone, name="resnet18", planes=(8, 16, 32, 64), stem=8, frozen_norm=False, frozen_stages=-1
    )
    model = DetectionModel(dict(type=Detector, backbone=backbone, network=network), 8).train()
    samples = [dataset[i] for i in range(4)]
    data = {k: [s[k] for s in samples] for k in ("inputs", "data_samples")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 2e-3 * (0.1 if step > 60 else 1)
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
