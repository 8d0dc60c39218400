"""Co-DETR's parts against plain loops and torchvision, and what training and inference keep to."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

import zoo
from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.co_anchors import Anchors, Offsets
from zoo.detection.co_assign import BACKGROUND, NEITHER, assign_atss, assign_by_overlap, sample
from zoo.detection.co_atss import centre_ness
from zoo.detection.co_criterion import CoCriterion, CoDINOCriterion, quality_focal_loss
from zoo.detection.co_detr import CoDeformableDETR, CoDINO
from zoo.detection.co_postprocess import best_of_pairs_clipped, soft_nms
from zoo.detection.co_queries import padding_mask, positive_queries
from zoo.detection.matcher import HungarianMatcher
from zoo.registry import MODELS, build
from zoo.weights.importers import co_detr as importer

SMALL = dict(d_model=32, nhead=4, num_encoder_layers=1, num_decoder_layers=2, dim_feedforward=32)
HEADS = dict(rpn_channels=8, rpn_octaves=1, proposals=30, roi_channels=16, max_queries=20)
COMMON = dict(num_classes=3, num_queries=6, num_feature_levels=2, strides=(8, 16), transformer=SMALL)
CHANNELS = (8, 12)
KINDS = {"deformable": (CoDeformableDETR, CoCriterion), "dino": (CoDINO, CoDINOCriterion)}


def boxes(count: int, seed: int, extent: float = 100.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=g) * extent * 0.7
    return torch.cat([low, low + 5 + torch.rand(count, 2, generator=g) * extent * 0.3], dim=1)


def make(kind: str, **options):
    torch.manual_seed(0)
    auxiliary = HEADS | options.pop("auxiliary", {})
    model = KINDS[kind][0](CHANNELS, **COMMON, auxiliary=auxiliary, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def batch(*counts: int):
    g = torch.Generator().manual_seed(1)
    features = [torch.randn(len(counts), c, 128 // s, 128 // s, generator=g) for c, s in zip(CHANNELS, (8, 16))]
    mask = torch.zeros(len(counts), 128, 128, dtype=torch.bool)
    mask[-1, :, 96:] = True
    targets = [
        {"labels": torch.randint(0, 3, (n,), generator=g), "boxes": torch.rand(n, 4, generator=g) * 0.4 + 0.2}
        for n in counts
    ]
    return features, mask, targets


def loss_of(kind: str, model, *counts: int):
    features, mask, targets = batch(*counts)
    out = model(features, mask, targets)
    criterion = KINDS[kind][1](3, HungarianMatcher()).train()
    return out, criterion, criterion(out, targets)


@pytest.mark.parametrize("least", [None, 0.3])
def test_assignment_by_overlap_is_the_plain_loop(least):
    found = boxes(60, 0)
    # Objects near some boxes; the last one has no box near it.
    objects = torch.cat([found[:4] + torch.tensor([2.0, 1, 5, 4]), torch.tensor([[200.0, 200, 210, 210]])])
    overlaps = box_iou(objects, found)
    expected = []
    for n in range(60):
        best = int(overlaps[:, n].argmax())
        value = float(overlaps[best, n])
        expected.append(best if value >= 0.5 else BACKGROUND if value < 0.4 else NEITHER)
    if least is not None:
        for g in range(5):
            if overlaps[g].max() >= least:
                for n in range(60):
                    if overlaps[g, n] == overlaps[g].max():
                        expected[n] = g
    assert len(set(expected)) > 3
    assert assign_by_overlap(found, objects, 0.5, 0.4, least).tolist() == expected
    assert set(assign_by_overlap(found, objects[:0], 0.5, 0.4, least).tolist()) == {BACKGROUND}
    assert assign_by_overlap(found[:0], objects, 0.5, 0.4, least).shape == (0,)


def test_atss_is_the_plain_loop():
    maps = [torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 1, 1)]
    levels = Anchors((8, 16, 96), 3, 1, (1.0,)).of(maps)
    anchors, objects = torch.cat(levels), boxes(5, 2)
    overlaps = box_iou(anchors, objects)
    best = {}
    for g, box in enumerate(objects):
        middle, candidates, first = (box[:2] + box[2:]) / 2, [], 0
        for level in levels:
            centre = (level[:, :2] + level[:, 2:]) / 2
            order = sorted(range(len(level)), key=lambda i: float((centre[i] - middle).norm()))
            candidates += [first + i for i in order[:9]]
            first += len(level)
        values = torch.tensor([float(overlaps[i, g]) for i in candidates])
        for i in candidates:
            x, y = ((anchors[i, :2] + anchors[i, 2:]) / 2).tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if inside and overlaps[i, g] >= values.mean() + values.std() and overlaps[i, g] > best.get(i, (-1, 0))[0]:
                best[i] = (float(overlaps[i, g]), g)
    expected = [best.get(i, (0, BACKGROUND))[1] for i in range(len(anchors))]
    assert set(expected) > {BACKGROUND}
    assert assign_atss(anchors, [len(a) for a in levels], objects).tolist() == expected


def test_sampling_keeps_the_share_and_fills_up_with_negatives():
    assigned = torch.tensor([0] * 20 + [BACKGROUND] * 30 + [NEITHER] * 10)
    yes, no = sample(assigned, 16, 0.5, torch.randperm)
    assert (len(yes), len(no)) == (8, 8)
    assert yes.max() < 20 <= no.min() <= no.max() < 50
    assert yes.equal(yes.sort().values)
    yes, no = sample(assigned[18:], 16, 0.5, torch.randperm)
    assert (yes.tolist(), len(no)) == ([0, 1], 14)


def test_offsets_there_and_back_and_their_bound():
    anchors, wanted = boxes(9, 3), boxes(9, 4)
    coder = Offsets((0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(coder.apply(coder.encode_single(wanted, anchors), anchors), wanted)
    extreme = torch.tensor([[0.0, 0, -100, 100]])
    (x0, y0, x1, y1), side = coder.apply(extreme, torch.tensor([[0.0, 0, 10, 10]]))[0].tolist(), 1000 / 16
    assert math.isclose(x1 - x0, 10 / side, rel_tol=1e-4)
    assert math.isclose(y1 - y0, 10 * side, rel_tol=1e-4)


def test_anchors_are_centred_on_pixels_corners_and_count_only_on_the_image():
    made = Anchors((8, 16), 4, 3, (0.5, 1.0, 2.0))
    maps = [torch.zeros(2, 1, 4, 6), torch.zeros(2, 1, 2, 3)]
    first, second = made.of(maps)
    assert (len(first), len(second)) == (4 * 6 * 9, 2 * 3 * 9)
    centre = (first[9 * 7] + first[9 * 7].roll(2))[:2] / 2  # row 1, column 1
    assert centre.tolist() == [8.0, 8.0]
    size = first[3, 2:] - first[3, :2]  # the first square one
    torch.testing.assert_close(size, torch.tensor([32.0, 32.0]))
    inside = made.inside(maps, torch.tensor([[32, 48], [17, 24]])).split([216, 54], dim=1)
    assert bool(inside[0][0].all())
    assert inside[0][1].view(4, 6, 9).sum((0, 1, 2)).item() == 3 * 3 * 9
    assert inside[1][1].view(2, 3, 9).sum((0, 1, 2)).item() == 2 * 2 * 9


def candidates(labels: torch.Tensor):
    count = labels.shape[1]
    found = torch.stack([boxes(count, i, 64) for i in range(len(labels))])
    features = torch.arange(labels.numel(), dtype=torch.float32).view(*labels.shape, 1)
    return {"boxes": found, "targets": found + 1, "labels": labels, "features": features}


def test_queries_are_the_positives_and_then_negatives():
    labels = torch.full((2, 40), 3)
    labels[0, ::3], labels[1, 5] = 1, 2  # 14 positives and one
    sizes = torch.tensor([[64, 128], [64, 64]])
    given = candidates(labels)
    found = positive_queries(given, sizes, 3, permutation=torch.arange)
    assert found["labels"][0].tolist() == [1] * 14
    assert found["labels"][1].tolist() == [2] + [3] * 13
    assert found["features"][1, :, 0].tolist() == [45, *range(40, 45), *range(46, 54)]
    assert found["label_weights"].min() == 1
    assert found["box_weights"].sum((1, 2)).tolist() == [56, 4]
    pixels = cxcywh_to_xyxy(found["boxes"][0]) * torch.tensor([128.0, 64, 128, 64])
    torch.testing.assert_close(pixels, given["boxes"][0, ::3])
    assert positive_queries(given, sizes, 3, most=10)["labels"].shape == (2, 10)
    assert positive_queries(given, sizes, 3, most=2)["labels"].shape == (2, 9)


def test_zero_padding_and_scarcity_are_not_seen_by_losses():
    labels = torch.full((2, 40), 3)
    labels[0, :12], labels[1, 5] = 1, 2
    sizes = torch.tensor([[64, 64]] * 2)
    found = positive_queries(candidates(labels), sizes, 3, zero_padding=True)
    assert found["label_weights"].sum(1).tolist() == [12, 1]
    assert not found["boxes"][1, 1:].any()
    hidden = padding_mask(found["positive"], 4)
    assert hidden.shape == (8, 12, 12)
    assert not hidden[:4].any()
    assert hidden[4].sum() == 143
    few = positive_queries(candidates(labels[:, :6]), sizes, 3)
    assert few["labels"].shape == (2, 6)
    assert not few["label_weights"].any()


def test_losses_against_torchvision():
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 3), torch.tensor([0, 3, 2, 1, 3, 3, 0])
    hot = F.one_hot(labels, 4)[:, :3].float()
    # With every quality 1 and two for beta it is the focal loss without weights of the classes.
    ours = quality_focal_loss(logits, labels, torch.ones(7)).sum()
    torch.testing.assert_close(ours, sigmoid_focal_loss(logits, hot, alpha=-1, gamma=2, reduction="sum"))
    quality = torch.rand(7)
    p, loss = logits.double().sigmoid(), 0.0
    for i in range(7):
        for c in range(3):
            y = float(quality[i]) if labels[i] == c else 0.0
            ce = -(y * p[i, c].log() + (1 - y) * (1 - p[i, c]).log())
            loss += (y - p[i, c]).abs() ** 2 * ce
    torch.testing.assert_close(quality_focal_loss(logits, labels, quality).sum(), loss.float())

    criterion = CoCriterion(3, HungarianMatcher())
    queries = {
        "labels": labels[None],
        "targets": torch.rand(1, 7, 4) * 0.3 + 0.3,
        "label_weights": torch.ones(1, 7),
        "box_weights": (labels < 3).float()[None, :, None].expand(1, 7, 4),
    }
    outputs = {"pred_logits": logits[None], "pred_boxes": torch.rand(1, 7, 4) * 0.3 + 0.3}
    found, yes = criterion.positive_losses(outputs, queries), labels < 3
    a, b = (cxcywh_to_xyxy(x[0, yes]) for x in (outputs["pred_boxes"], queries["targets"]))
    torch.testing.assert_close(found["loss_giou"], generalized_box_iou_loss(a, b, reduction="sum") / 4)
    torch.testing.assert_close(found["loss_ce"], sigmoid_focal_loss(logits, hot, reduction="sum") / 4)
    l1 = (outputs["pred_boxes"] - queries["targets"])[0, yes].abs().sum()
    torch.testing.assert_close(found["loss_bbox"], l1 / 4)
    assert criterion.weight_of("loss_roi_bbox") == 20
    assert CoCriterion(3, HungarianMatcher(), lambda_1=3.0).weight_of("loss_giou_aux1_0") == 6
    assert criterion.weight_of("loss_atss_bbox_4") == 4
    assert criterion.weight_of("roi_accuracy") is None


def test_centre_ness_is_one_in_the_middle():
    box = torch.tensor([[0.0, 0, 8, 4], [0, 0, 8, 4]])
    anchor = torch.tensor([[3.0, 1, 5, 3], [1, 1, 3, 3]])
    torch.testing.assert_close(centre_ness(anchor, box), torch.tensor([1.0, math.sqrt(2 / 6)]))


def test_soft_nms_is_the_plain_loop():
    found, scores = boxes(30, 5, 40), torch.rand(30, generator=torch.Generator().manual_seed(0))
    scores[:3] = 5e-4
    left, expected = dict(enumerate(scores.tolist())), []
    while left:
        i = max(left, key=left.__getitem__)
        expected.append((i, left.pop(i)))
        for j in list(left):
            overlap = float(box_iou(found[i : i + 1], found[j : j + 1]))
            left[j] *= 1 - overlap if overlap >= 0.3 else 1
            if left[j] < 1e-3:
                del left[j]
    order, lowered = soft_nms(found, scores, 0.3)
    assert order.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(lowered, torch.tensor([s for _, s in expected]))


def test_soft_nms_keeps_classes_apart():
    logits = torch.tensor([[[2.0, -9.0], [1.0, -9.0], [-9.0, 1.5]]])
    same = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.39], [0.5, 0.5, 0.4, 0.4]]])
    outputs, sizes = {"pred_logits": logits, "pred_boxes": same}, torch.tensor([[100, 100]])
    plain = best_of_pairs_clipped(outputs, sizes, 3)[0]
    soft = best_of_pairs_clipped(outputs, sizes, 3, soft_threshold=0.8)[0]
    assert plain["labels"].tolist() == [0, 1, 0]
    assert soft["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(soft["scores"][:2], plain["scores"][:2])
    torch.testing.assert_close(soft["scores"][2], plain["scores"][2] * (1 - 0.39 / 0.4), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_parameter(kind):
    model = make(kind, with_features=True).train()
    out, criterion, losses = loss_of(kind, model, 3, 2)
    assert all(bool(v.isfinite().all()) for v in losses.values())
    assert {"loss_rpn_ce_2", "loss_atss_centre_0", "loss_roi_bbox", "loss_ce_aux0", "loss_giou_aux1_0"} <= set(losses)
    criterion.total(losses).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert len(out["positive_outputs"]) == 2
    assert out["positive_outputs"][1][0]["pred_boxes"].shape == out["positive_queries"][1]["boxes"].shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_objects(kind, counts):
    model = make(kind).train()
    out, criterion, losses = loss_of(kind, model, *counts)
    assert all(bool(v.isfinite().all()) for v in losses.values())
    criterion.total(losses).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []  # processes reduce the same gradients
    assert int((out["auxiliary"]["atss"]["wanted"]["labels"][0] < 3).sum()) == 0


def test_zero_padded_queries_do_not_disturb_the_others():
    model = make("deformable", auxiliary={"zero_padding": True}).train()
    out, _, losses = loss_of("deformable", model, 3, 1)
    assert all(bool(v.isfinite().all()) for v in losses.values())
    queries, first = out["positive_queries"][0], out["positive_outputs"][0]
    assert queries["positive"].sum(1).min() < queries["positive"].shape[1]
    changed = {k: v.clone() for k, v in queries.items()}
    changed["features"][~queries["positive"]] = 7.0
    again = model.decode_positives(out, changed, 0)
    for a, b in zip(first, again):
        torch.testing.assert_close(a["pred_logits"][queries["positive"]], b["pred_logits"][queries["positive"]])


@pytest.mark.parametrize("kind", KINDS)
def test_auxiliary_heads_are_dropped_at_inference(kind):
    model = make(kind).eval()
    features, mask, targets = batch(2, 1)
    with torch.no_grad():
        whole = model(features, mask, targets)
        found = {h: model.detect(features, mask, h, 5) for h in ("roi", "atss")}
        model.drop_auxiliary()
        alone = model(features, mask)
    assert "auxiliary" not in whole
    assert torch.equal(whole["pred_boxes"], alone["pred_boxes"])
    assert not any(k.startswith(("auxiliary", "downsample", "positive")) for k in model.state_dict())
    for results in found.values():
        for r, width in zip(results, (128, 96)):
            assert len(r["scores"]) == len(r["boxes"]) == len(r["labels"]) <= 5
            assert r["boxes"].max() <= 128
            assert r["boxes"][:, 2].max() <= width
    with pytest.raises(ValueError, match="with_auxiliary"):
        model.detect(features, mask, "roi")
    assert KINDS[kind][0](CHANNELS, **COMMON, with_auxiliary=False).state_dict().keys() == model.state_dict().keys()


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="strides"):
        CoDINO(CHANNELS, **{**COMMON, "strides": (8, 16, 32)})
    with pytest.raises(ValueError, match="positive_heads"):
        CoDINO(CHANNELS, **COMMON, positive_heads=1)
    with pytest.raises(ValueError, match="max_queries"):
        make("dino", auxiliary={"max_queries": 0})
    with pytest.raises(ValueError, match="'roi' and 'atss'"):
        make("dino").eval().detect(*batch(1)[:2], "rpn")


@pytest.mark.parametrize(("entry", "kind"), [(importer.DEFORMABLE, "deformable"), (importer.DINO, "dino")])
def test_state_dict_there_and_back(entry, kind):
    model = make(kind, with_features=True)
    state = model.state_dict()
    official = importer.revert_state_dict(entry, state)
    assert "query_head.cls_branches.2.weight" in official
    back = importer.convert_state_dict(entry, official)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)
    with pytest.raises(KeyError, match="unexpected"):
        importer.convert_state_dict(entry, {**official, "query_head.other.weight": torch.zeros(1)})


def test_whole_detectors_there_and_back():
    spec = importer.config_from_official(importer.DINO, {"backbone": "resnet18", "enc_layers": 1, "dec_layers": 1})
    with torch.device("meta"):
        state = build(spec, MODELS).state_dict()
    official = importer.revert_state_dict(importer.DINO, state)
    assert {"backbone.layer1.0.conv1.weight", "neck.convs.3.gn.bias", "neck.extra_convs.0.conv.weight"} <= set(official)
    official["backbone.bn1.num_batches_tracked"] = torch.zeros(())
    assert importer.convert_state_dict(importer.DINO, official).keys() == state.keys()


@pytest.mark.parametrize("refine", [True, False])
def test_one_stage_with_auxiliary_heads(refine):
    arguments = dict(embed_dims=32, heads=4, ffn=32, enc_layers=1, dec_layers=2, num_query=6, num_classes=3)
    arguments |= dict(num_levels=2, strides=(8, 16), in_channels=CHANNELS, gn_groups=8, fc_channels=8)
    arguments |= dict(as_two_stage=False, with_box_refine=refine, look_forward_twice=False, max_proposals=20)
    spec = importer.config_from_official(importer.DEFORMABLE, arguments)
    model = build(spec, MODELS).train()
    out, criterion, losses = loss_of("deformable", model, 2, 1)
    assert "enc_outputs" not in out
    assert all(bool(v.isfinite().all()) for v in losses.values())
    assert out["pred_boxes"].shape == (2, 6, 4)
    criterion.total(losses).backward()
    official = importer.revert_state_dict(importer.DEFORMABLE, model.state_dict())
    assert official["query_head.transformer.reference_points.weight"].shape == (2, 32)


def test_importer_refuses_by_name():
    with pytest.raises(LookupError, match="CoDINOHead"):
        importer.config_from_official("projects.models.Other", {})
    with pytest.raises(TypeError, match="num_query"):
        importer.config_from_official(importer.DINO, {"num_querys": 3, "in_channels": [8]})
    with pytest.raises(ValueError, match="mixed_selection"):
        importer.config_from_official(importer.DEFORMABLE, {"mixed_selection": False, "in_channels": [8]})


#: parameters of the authors' models without the backbone: in training, and of what the query head needs
PARAMETERS = {
    "co_deformable_detr_r50": (41621862, 25336910),
    "co_deformable_detr_swin_large_900q": (235567258 - 195200820, 219282306 - 195200820),
    "co_dino_5scale_r50": (41695973, 25411020),
    "co_dino_5scale_9encoder_r50": (45616517, 29331564),
    "co_dino_5scale_swin_large": (235471769 - 195201204, 219186816 - 195201204),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_authors(name):
    with torch.device("meta"):
        network = zoo.create_model(name).network
    whole = sum(p.numel() for p in network.parameters())
    assert (whole, whole - sum(p.numel() for p in network.auxiliary.parameters())) == PARAMETERS[name]
