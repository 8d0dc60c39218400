"""Mask R-CNN equals torchvision's; anchors and regions at any size; RetinaNet's losses; masks in results."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

import zoo
from zoo.complexity import count_parameters, on_meta
from zoo.data.masks import compress_masks, decode_masks, mask_to_polygons
from zoo.data.shapes_detection import ShapesDetection
from zoo.detection.boxes import xyxy_to_cxcywh
from zoo.detection.images import pad_images
from zoo.detection.inference import DetectionResult, untrained_predictor
from zoo.detection.mask_rcnn import MaskRCNN, RCNNCriterion, rcnn_detections
from zoo.detection.model import DetectionModel
from zoo.detection.rcnn_parts import PyramidAnchors, roi_align
from zoo.detection.retinanet import RetinaCriterion, RetinaNet
from zoo.metrics.coco_masks import CocoMasks
from zoo.registry import MODELS, build
from zoo.viz.detection import colour_of, tint
from zoo.weights.importers import torchvision_mask_rcnn as importer

ENTRIES = {
    importer.MASK: torchvision.models.detection.maskrcnn_resnet50_fpn,
    importer.MASK_V2: torchvision.models.detection.maskrcnn_resnet50_fpn_v2,
}
SIZES = [(96, 128), (96, 110)]


def pair(entry):
    """torchvision's model with random weights and ours with the same."""
    torch.manual_seed(0)
    options = dict(
        num_classes=7, box_score_thresh=0.0, rpn_pre_nms_top_n_test=300, rpn_post_nms_top_n_test=100,
        rpn_post_nms_top_n_train=200, box_batch_size_per_image=64, box_detections_per_img=20,
    )  # fmt: skip
    theirs = ENTRIES[entry](weights=None, weights_backbone=None, min_size=96, max_size=160, **options)
    ours = build(importer.config_from_official(entry, options), MODELS)
    theirs.transform._skip_resize = True  # in training; it draws a random number for the size
    ours.load_state_dict(importer.convert_state_dict(entry, theirs.state_dict()))
    return theirs, ours


def images():
    generator = torch.Generator().manual_seed(0)
    found = [torch.rand(3, *size, generator=generator) for size in SIZES]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return found, pad_images([(x - mean) / std for x in found], 32)


@pytest.mark.parametrize("entry", ENTRIES)
def test_equal_to_torchvision(entry):
    """Detections and masks in the image, and every loss with the same seed."""
    theirs, ours = pair(entry)
    raw, (batch, mask) = images()
    theirs.eval(), ours.eval()
    with torch.no_grad():
        expected = theirs(raw)
        found = rcnn_detections(ours(batch, mask), torch.tensor(SIZES))
    for a, b in zip(expected, found, strict=True):
        assert len(a["boxes"]) == len(b["boxes"]) > 0
        assert torch.equal(a["labels"] - 1, b["labels"])
        for k in ("boxes", "scores"):
            assert (a[k] - b[k]).abs().max() <= 1e-4 * a[k].abs().max()
        assert ("masks" in a) == ("masks" in b)
        if "masks" in a:
            assert ((a["masks"][:, 0] >= 0.5) != b["masks"]).float().mean() <= 1e-4
            assert 0.0005 < b["masks"].float().mean() < 0.99
    generator, targets, own = torch.Generator().manual_seed(1), [], []
    for h, w in SIZES:
        low = torch.rand(4, 2, generator=generator) * torch.tensor([0.6 * w, 0.6 * h])
        high = torch.minimum(low + 5 + 40 * torch.rand(4, 2, generator=generator), torch.tensor([w, h]).float())
        boxes, masks = torch.cat([low, high], 1), torch.rand(4, h, w, generator=generator) > 0.5
        labels = torch.randint(0, 6, (4,), generator=generator)
        targets.append(dict(boxes=boxes, labels=labels + 1, masks=masks.to(torch.uint8)))
        own.append(dict(boxes=xyxy_to_cxcywh(boxes / torch.tensor([w, h, w, h])), labels=labels, masks=masks))
    theirs.train(), ours.train()
    torch.manual_seed(3)
    expected = theirs(raw, copy.deepcopy(targets))
    torch.manual_seed(3)
    found = ours(batch, mask, own)["losses"]
    assert set(expected) == set(found)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("entry", importer.ENTRIES)
def test_importer_is_strict_both_ways(entry):
    make = getattr(torchvision.models.detection, entry.rpartition(".")[2])
    with torch.device("meta"):
        theirs = make(weights=None, weights_backbone=None).state_dict()
        ours = build(importer.config_from_official(entry, {}), MODELS)
    converted = importer.convert_state_dict(entry, theirs)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert list(importer.revert_state_dict(entry, converted)) == list(theirs)
    with pytest.raises(KeyError, match="no_such"):
        importer.convert_state_dict(entry, {**theirs, "no_such.weight": torch.zeros(1)})
    with pytest.raises(KeyError, match="no_such"):
        importer.revert_state_dict(entry, {"no_such.weight": torch.zeros(1)})


def test_importer_reads_older_names_and_refuses_others():
    entry = importer.MASK
    with torch.device("meta"):
        theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    older = {}
    for key, value in theirs.items():
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for i in range(4):
            key = key.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
            key = key.replace(f"_blocks.{i}.0.", f"_blocks.{i}.")
        older[key] = value
    assert set(older) != set(theirs)
    assert set(importer.convert_state_dict(entry, older)) == set(importer.convert_state_dict(entry, theirs))
    with pytest.raises(ValueError, match="has no head of masks"):
        importer.convert_state_dict(importer.FASTER, theirs)
    with pytest.raises(LookupError, match="not known"):
        importer.config_from_official("torchvision.other", {})
    with pytest.raises(TypeError, match="no argument"):
        importer.config_from_official(entry, {"box_score_tresh": 0.1})
    with pytest.raises(ValueError, match="weights='x'"):
        importer.config_from_official(entry, {"weights": "x"})
    published = importer.config_from_official(entry, {"weights": "COCO_V1"})
    assert published["backbone"]["norm_eps"] == 0.0
    assert published["backbone"]["frozen_norm"] is True
    assert published["network"]["num_classes"] == 90


def test_sizes_are_the_published_ones():
    """torchvision's numbers of parameters are exact, the others are rounded to 0.1 million or to a million."""
    millions = dict(
        mask_rcnn_davit_tiny=(47.8, 0.1), mask_rcnn_davit_small=(69.2, 0.1), mask_rcnn_davit_base=(107.3, 0.1),
        mask_rcnn_agent_pvt_tiny=(31, 0.6), mask_rcnn_agent_pvt_small=(40, 0.6), mask_rcnn_agent_pvt_medium=(56, 0.6),
        mask_rcnn_agent_pvt_large=(68, 0.6), mask_rcnn_agent_swin_tiny=(48, 0.6), mask_rcnn_agent_swin_small=(69, 0.6),
        retinanet_davit_tiny=(38.5, 0.1), retinanet_davit_small=(59.9, 0.1), retinanet_davit_base=(98.5, 0.1),
        retinanet_agent_pvt_tiny=(21, 0.6), retinanet_agent_pvt_small=(30, 0.6), retinanet_agent_pvt_medium=(46, 0.6),
        retinanet_agent_pvt_large=(58, 0.6),
    )  # fmt: skip
    for name, (expected, slack) in millions.items():
        assert abs(count_parameters(on_meta(MODELS.entry(name).builder)) / 1e6 - expected) <= slack, name
    exact = dict(mask_rcnn_r50=44401393, mask_rcnn_r50_v2=46359409, faster_rcnn_r50=41755286)
    for name, expected in exact.items():
        assert count_parameters(on_meta(MODELS.entry(name).builder)) == expected, name


@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 64), (101, 37)])
def test_anchors_and_regions_keep_their_strides_at_any_size(size):
    """Where a map's size was rounded up torchvision would guess another stride from it."""
    strides, maps = (4, 8, 16), [torch.zeros(1, 2, *(-(-n // s) for n in size)) for s in (4, 8, 16)]
    anchors = PyramidAnchors(strides, (8, 16, 32), (1.0,))(
        torchvision.models.detection.image_list.ImageList(torch.zeros(1, *size), [size]), maps
    )[0]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    wanted = []
    for x, s in zip(maps, strides):
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        wanted.append(torch.stack([columns, rows], -1).flatten(0, 1) * s)
    assert torch.equal(centres, torch.cat(wanted).float())
    # A ramp is read as itself: the mean over a region is the value at its middle.
    ramp = {str(i): torch.arange(40.0).expand(1, 1, 40, 40) * s for i, s in enumerate(strides)}
    pool = roi_align(strides, 7, 56)
    for box in ([8.0, 8.0, 24.0, 20.0], [16.0, 8.0, 56.0, 60.0], [20.0, 20.0, 100.0, 100.0]):
        found = pool(ramp, [torch.tensor([box])], [size])
        assert found.mean().item() == pytest.approx((box[0] + box[2]) / 2, abs=1e-3)


def test_refused_arguments():
    with pytest.raises(ValueError, match="4 maps make 5 levels"):
        MaskRCNN((8, 8, 8, 8), strides=(4, 8, 16, 32))
    with pytest.raises(ValueError, match="anchor_sizes has 4 entries for 5"):
        MaskRCNN((8, 8, 8, 8), anchor_sizes=(8, 16, 32, 64))
    with pytest.raises(ValueError, match="same number of sizes"):
        MaskRCNN((8,), strides=(4, 8), anchor_sizes=((8, 12), 16))
    with pytest.raises(ValueError, match="each twice the one before"):
        MaskRCNN((8, 8), strides=(4, 12, 16), anchor_sizes=(8, 16, 32))
    with pytest.raises(ValueError, match="'mlp' and 'conv'"):
        MaskRCNN((8,), strides=(4, 8), anchor_sizes=(8, 16), box_head="other")
    with pytest.raises(ValueError, match="accepted are loss_objectness"):
        RCNNCriterion(3, {"loss_masks": 1.0})
    with pytest.raises(ValueError, match="in training only"):
        RCNNCriterion(3)({"detections": []}, [])


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return DetectionModel("mask_rcnn_nano", 4)


def losses_of(model, data):
    model.train()
    return model(**model.data_preprocessor(data, True), mode="loss")


def test_faults_of_targets_and_images(nano, batch):
    box = ((4, 4, 20, 20), 1)
    data = batch([(40, 40)], [[box]])
    del data["data_samples"][0].gt_instances.masks
    with pytest.raises(ValueError, match="with_masks=True"):
        losses_of(nano, data)
    data = batch([(40, 40)], [[box]])
    data["data_samples"][0].gt_instances.masks = torch.zeros(1, 30, 40, dtype=torch.bool)
    with pytest.raises(ValueError, match="image 100 .* of 40 x 40 pixels has masks of 30 x 40"):
        losses_of(nano, data)
    nano.train()
    with pytest.raises(ValueError, match="training needs targets"):
        nano(torch.zeros(1, 3, 64, 64), mode="tensor")
    nano.eval()
    with pytest.raises(FloatingPointError, match="not finite"), torch.no_grad():
        nano(torch.full((1, 3, 32, 32), float("nan")), mode="predict")


def test_images_of_one_pixel_and_without_objects(batch):
    nano = DetectionModel("mask_rcnn_davit_nano", 4)  # without batch normalisation, which needs two pixels to learn
    sizes, objects = [(1, 1), (30, 90)], [[((0, 0, 1, 1), 0)], []]
    losses = losses_of(nano, batch(sizes, objects))
    assert all(torch.isfinite(v) for v in losses.values())
    assert losses_of(nano, batch([(1, 1)], [[]]))["loss_mask"] == 0
    nano.eval()
    with torch.no_grad():
        found = nano(**nano.data_preprocessor(batch(sizes, objects)), mode="predict")
    for sample, size in zip(found, sizes):
        assert tuple(sample.pred_instances.masks.shape[1:]) == size
        assert len(sample.pred_instances.masks) == len(sample.pred_instances.scores)


def test_an_image_alone_equals_the_image_in_a_batch(nano, batch):
    data = batch([(48, 64), (80, 70)], [[], []])
    nano.eval()
    with torch.no_grad():
        together = nano(**nano.data_preprocessor(data), mode="predict")
        single = {k: v[:1] for k, v in batch([(48, 64), (80, 70)], [[], []]).items()}
        prepared = nano.data_preprocessor(single)
        # Padding reaches into the convolutions at the border; here both are padded to one size.
        padding = (0, 70 - 64, 0, 80 - 48)
        prepared["inputs"] = F.pad(prepared["inputs"], padding)
        prepared["mask"] = F.pad(prepared["mask"], padding, value=True)
        alone = nano(**prepared, mode="predict")
    a, b = together[0].pred_instances, alone[0].pred_instances
    assert len(a) == len(b) > 0
    assert torch.allclose(a.boxes, b.boxes, atol=1e-3)
    assert torch.equal(a.masks, b.masks)


def test_half_precision_keeps_boxes_and_losses_in_single(nano, batch):
    data = batch([(64, 64)], [[((10, 10, 30, 40), 2)]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(nano, data)
        nano.eval()
        with torch.no_grad():
            prepared = nano.data_preprocessor(data)
            found = nano.detector(prepared["inputs"], prepared["mask"])
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in losses.values())
    one = found["detections"][0]
    assert {v.dtype for k, v in one.items() if k != "labels"} == {torch.float32}


def test_four_images_are_learnt():
    """Mask AP of at least 0.6 within 60 s; about 20 s of one core."""
    torch.manual_seed(0)
    dataset = ShapesDetection("train", 4, 64, objects=(1, 3), with_masks=True)
    model = DetectionModel("mask_rcnn_nano", 8)
    data = {k: [dataset[i][k] for i in range(4)] for k in ("inputs", "data_samples")}
    steps = 90
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 10) * (0.1 if i > 0.8 * steps else 1)
    )
    model.train()
    for _ in range(steps):
        losses = model(**model.data_preprocessor(data, True), mode="loss")
        optimizer.zero_grad()
        sum(v for k, v in losses.items() if "loss" in k).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(data), mode="predict")
    metric = CocoMasks()
    metric.dataset_meta = dataset.metainfo
    metric.process(None, [s.to_dict() for s in found])
    assert metric.evaluate(4)["coco/mask_AP"] >= 0.6


def slow_retina_losses(network, outputs, boxes, labels, classes):
    """RetinaNet's losses anchor by anchor in double precision, from the paper's section 4."""
    maps, focal, distance, positives = outputs["predictions"], 0.0, 0.0, 0
    for b, (own, kinds) in enumerate(zip(boxes, labels)):
        anchors, logits, offsets = [], [], []
        for level, (cls, reg) in enumerate(zip(maps["cls"], maps["reg"])):
            stride = network.head.strides[level]
            for y in range(cls.shape[2]):
                for x in range(cls.shape[3]):
                    for a in range(9):
                        side = 4.0 * stride * 2 ** ((a % 3) / 3)
                        ratio = (0.5, 1.0, 2.0)[a // 3]
                        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        anchors.append((x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2))
                        logits.append(cls[b, a * classes : (a + 1) * classes, y, x].detach().double())
                        offsets.append(reg[b, a * 4 : (a + 1) * 4, y, x].detach().double())
        table = torchvision.ops.box_iou(own.double(), torch.tensor(anchors, dtype=torch.float64))
        found = 0
        for i, anchor in enumerate(anchors):
            best = int(table[:, i].argmax())
            overlap = float(table[best, i])
            chosen = best if overlap >= 0.5 else -1 if overlap < 0.4 else -2
            for g in range(len(own)):
                if table[g, i] == table[g].max() and table[g, i] > 0:
                    chosen = g
            if chosen == -2:
                continue
            p = logits[i].sigmoid()
            target = torch.zeros(classes, dtype=torch.float64)
            if chosen >= 0:
                target[kinds[chosen]] = 1
                found += 1
                w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
                x0, y0, x1, y1 = own[chosen].double().tolist()
                goal = torch.tensor([
                    ((x0 + x1) - (anchor[0] + anchor[2])) / 2 / w, ((y0 + y1) - (anchor[1] + anchor[3])) / 2 / h,
                    math.log((x1 - x0) / w), math.log((y1 - y0) / h),
                ], dtype=torch.float64)  # fmt: skip
                distance += float((offsets[i] - goal).abs().sum())
            right = torch.where(target > 0, p, 1 - p)
            weight = torch.where(target > 0, 0.25, 0.75)
            focal += float((-weight * (1 - right) ** 2 * right.log()).sum())
        positives += max(1, found)
    return focal / positives, distance / positives


def test_retinanet_losses_are_those_of_the_paper():
    torch.manual_seed(0)
    network = RetinaNet((8, 12), num_classes=3, dim=16, strides=(8, 16, 32), stacked_convs=1)
    for p in network.head.parameters():
        torch.nn.init.normal_(p, std=0.1)
    features = [torch.randn(2, 8, 6, 8), torch.randn(2, 12, 3, 4)]
    mask = torch.zeros(2, 48, 64, dtype=torch.bool)
    outputs = network.train()(features, mask)
    boxes = [torch.tensor([[4.1, 6.3, 40.7, 40.2], [20.3, 5.9, 60.1, 38.8]]), torch.tensor([[10.2, 8.1, 47.3, 41.9]])]
    # of sizes between those of the anchors: an object inside of many anchors would overlap all of them alike
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    scale = torch.tensor([64.0, 48.0, 64.0, 48.0])
    targets = [dict(boxes=xyxy_to_cxcywh(b / scale), labels=c) for b, c in zip(boxes, labels)]
    found = RetinaCriterion(3, (8, 16, 32))(outputs, targets)
    focal, distance = slow_retina_losses(network, outputs, boxes, labels, 3)
    assert found["loss_cls"].item() == pytest.approx(focal, rel=1e-4)
    assert found["loss_bbox"].item() == pytest.approx(distance, rel=1e-4)


def test_results_with_masks(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, size, np.uint8) for size in ((70, 90, 3), (96, 64, 3))]
    predictor = untrained_predictor("mask_rcnn_nano", size=96)
    found = zoo.predict(predictor, pictures, score_threshold=0.0, max_detections=4)
    for result, picture in zip(found, pictures):
        assert result.masks.shape == (len(result), *picture.shape[:2])
        assert len(result) == 4
        rows = result.rows()
        assert [r["segmentation"] for r in rows] == compress_masks(result.masks)
        entries = json.loads(json.dumps(result.to_coco(5)))
        assert (decode_masks([e["segmentation"] for e in entries], *result.size) == result.masks).all()
        drawn = np.asarray(result.draw())
        assert drawn.shape[0] >= picture.shape[0]
        result.save(tmp_path / "a.png")
    outlines = zoo.predict(predictor, pictures, score_threshold=0.0, max_detections=4, polygons=True)
    for plain, result in zip(found, outlines):
        assert [r["segmentation"] for r in result.rows()] == [mask_to_polygons(m) for m in plain.masks]
        assert result.polygons() == [e["segmentation"] for e in result.to_coco()]
    boxes_only = DetectionResult("x", size=(4, 4))
    assert boxes_only.masks is None
    with pytest.raises(ValueError, match="boxes only"):
        boxes_only.polygons()


def test_masks_are_drawn_in_translucent_colour():
    image = np.full((20, 30, 3), 100, np.uint8)
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 2:12, 3:13], masks[1, 5:15, 8:25] = True, True
    drawn = tint(image, masks, [0, 3], opacity=0.5)
    assert (drawn[0, 0] == 100).all()
    assert drawn[7, 6].tolist() == [round(50 + c / 2) for c in colour_of(0)]
    assert drawn[10, 20].tolist() == pytest.approx([50 + c / 2 for c in colour_of(3)], abs=1)
    assert tuple(drawn[2, 3]) == colour_of(0)  # the outline
    assert (image == 100).all()
    with pytest.raises(ValueError, match="masks have shape"):
        tint(image, masks[:1], [0, 3])
