"""Mask AP equals pycocotools' on random and on hostile masks; what cannot be compared is refused."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

from zoo.data.masks import compress_masks, mask_to_polygons, mask_to_rle
from zoo.metrics.coco import STATS
from zoo.metrics.coco_masks import CocoMasks, evaluate_masks

pycocotools = pytest.importorskip("pycocotools")
IDS = [3, 7, 8, 20]
HEIGHT, WIDTH = 120, 160


def blob(rng):
    """A random mask: an ellipse, a rectangle, one pixel, two parts, or a ring."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cy, cx = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
    a, b = np.exp(rng.uniform(0.5, 4.2, 2))
    kind = rng.integers(5)
    inside = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2
    if kind == 0:
        return inside < 1
    if kind == 1:
        return (abs(y - cy) < a) & (abs(x - cx) < b)
    if kind == 2:
        return (y == int(cy)) & (x == int(cx))
    if kind == 3:
        return (inside < 1) | ((y - 10) ** 2 + (x - 10) ** 2 < 40)
    return (inside < 1) & (inside > 0.3)


def scene(seed, images=10, crowd=0.15):
    """Random annotations with sparse ids, empty images, a class without objects, crowd regions, all kinds of masks."""
    rng = np.random.default_rng(seed)
    annotations = []
    for i in range(images):
        for _ in range(int(rng.integers(0, 7)) if i % 5 else 0):
            mask = blob(rng)
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            size = [int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
            crowded = int(rng.random() < crowd)
            polygons = mask_to_polygons(mask) if rng.random() < 0.4 and not crowded and mask.sum() > 3 else None
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=100 + i,
                    category_id=int(rng.choice(IDS[:-1])),
                    bbox=[int(columns[0]), int(rows[0]), *size],
                    area=int(mask.sum()),
                    iscrowd=crowded,
                    segmentation=polygons or mask_to_rle(mask),
                )
            )
    return dict(
        images=[dict(id=100 + i, height=HEIGHT, width=WIDTH) for i in range(images)],
        annotations=annotations,
        categories=[dict(id=c, name=f"class {c}") for c in IDS],
    )


def masks_of(truth):
    from zoo.data.coco import annotation_mask

    return [annotation_mask(a["segmentation"], HEIGHT, WIDTH) for a in truth["annotations"]]


def near(truth, seed, extra=30, same_scores=False):
    """Shifted objects, doubles, wrong classes, masks out of nothing, empty masks."""
    rng = np.random.default_rng(seed)
    found = []
    for a, mask in zip(truth["annotations"], masks_of(truth)):
        for _ in range(int(rng.integers(0, 3))):
            moved = np.roll(mask, tuple(rng.integers(-3, 4, 2)), (0, 1))
            found.append((a["image_id"], a["category_id"] if rng.random() < 0.8 else int(rng.choice(IDS)), moved))
    for _ in range(extra):
        mask = blob(rng) if rng.random() < 0.9 else np.zeros((HEIGHT, WIDTH), bool)
        found.append((100 + int(rng.integers(len(truth["images"]))), int(rng.choice(IDS)), mask))
    return [
        dict(image_id=i, category_id=c, segmentation=compress_masks(m[None])[0],
             score=float(round(rng.random(), 1) if same_scores else rng.random()))
        for i, c, m in found
    ]  # fmt: skip


def reference(truth, predictions):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        run = COCOeval(gt, gt.loadRes(json.loads(json.dumps(predictions))), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def perfect(truth, seed):
    return [
        dict(image_id=a["image_id"], category_id=a["category_id"], segmentation=compress_masks(m[None])[0], score=0.9)
        for a, m in zip(truth["annotations"], masks_of(truth))
    ]


def one_pixel(truth, seed):
    """The first pixel of each object."""
    found = perfect(truth, seed)
    for entry, mask in zip(found, masks_of(truth)):
        single = np.zeros_like(mask)
        single.flat[np.flatnonzero(mask)[0]] = True
        entry["segmentation"] = compress_masks(single[None])[0]
    return found


CASES = {
    "random": near,
    "equal scores": lambda t, s: near(t, s, same_scores=True),
    "perfect": perfect,
    "one pixel": one_pixel,
    "one image, 200 masks": lambda t, s: [{**p, "image_id": 101} for p in near(t, s, 150) + near(t, s + 1, 50)],
    "one class only": lambda t, s: [{**p, "category_id": 20} for p in near(t, s)],
    "whole images": lambda t, s: [
        dict(image_id=i["id"], category_id=c, score=0.5 + c / 100,
             segmentation=compress_masks(np.ones((1, HEIGHT, WIDTH), bool))[0])
        for i in t["images"] for c in IDS
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools(case, seed):
    truth = scene(seed)
    predictions = CASES[case](truth, seed)
    expected = reference(truth, predictions)
    found = evaluate_masks(truth, predictions)
    assert np.abs(np.array([found.stats[s] for s in STATS]) - expected.stats).max() <= 1e-6
    assert np.abs(found.precision - expected.eval["precision"][..., 0, -1]).max() <= 1e-6


def test_boxes_beside_the_masks_change_nothing():
    truth = scene(0)
    plain = near(truth, 0)
    with_boxes = [{**p, "bbox": [0.0, 0.0, 500.0, 1.0]} for p in plain]
    assert evaluate_masks(truth, with_boxes).stats == evaluate_masks(truth, plain).stats


def test_polygons_and_uncompressed_runs_are_predictions_too():
    truth = scene(1)
    masks = [m for m in masks_of(truth) if m.sum() > 3]
    entries = dict(image_id=101, category_id=3, score=0.5)
    compressed = [{**entries, "segmentation": compress_masks(m[None])[0]} for m in masks]
    plain = [{**entries, "segmentation": mask_to_rle(m)} for m in masks]
    assert evaluate_masks(truth, plain).stats == evaluate_masks(truth, compressed).stats
    polygons = [{**entries, "segmentation": mask_to_polygons(m)} for m in masks]
    assert evaluate_masks(truth, polygons).stats["AP"] == pytest.approx(
        evaluate_masks(truth, plain).stats["AP"], abs=0.05
    )


def test_no_predictions_and_nothing_to_find():
    truth = scene(0)
    assert evaluate_masks(truth, []).stats["AP"] == 0
    only_crowd = {**truth, "annotations": [{**a, "iscrowd": 1} for a in truth["annotations"]]}
    assert evaluate_masks(only_crowd, near(truth, 0)).stats["AP"] == -1
    assert evaluate_masks({**truth, "annotations": []}, near(truth, 0)).stats["AP"] == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(segmentation=None), "prediction 1 has no segmentation"),
        (dict(segmentation=dict(size=[HEIGHT, WIDTH])), "size and counts are needed"),
        (dict(segmentation=dict(size=[HEIGHT + 1, WIDTH], counts="0")), "prediction 1 of image 10.: a mask of size"),
        (dict(segmentation=dict(size=[HEIGHT, WIDTH], counts=[5, 5])), "run lengths cover 10 pixels"),
        (dict(image_id=5), "of image 5, which the annotations do not list"),
        (dict(category_id=5), "of category 5, which there is not"),
        (dict(score=float("nan")), "finite numbers are needed"),
    ],
)
def test_refused_predictions(change, message):
    truth = scene(0)
    predictions = near(truth, 0)
    predictions[1] |= change
    with pytest.raises(ValueError, match=message):
        evaluate_masks(truth, predictions)


def test_refused_annotations():
    truth = scene(0)
    without = {**truth, "annotations": [{**truth["annotations"][0], "segmentation": [[]]}]}
    with pytest.raises(ValueError, match="annotation 1 has no segmentation"):
        evaluate_masks(without, [])
    with pytest.raises(ValueError, match="no height and width"):
        evaluate_masks({**truth, "images": [{"id": i["id"]} for i in truth["images"]]}, [])


def sample(image, masks, labels, scores, boxes):
    runs = compress_masks(masks)
    areas = masks.sum((1, 2)).tolist()
    truth = dict(boxes=boxes, labels=labels, areas=areas, crowd=[0] * len(runs), segmentations=runs)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return dict(
        img_id=image, img_path=f"{image}.png", ori_shape=(HEIGHT, WIDTH), ground_truth=truth,
        pred_instances=dict(boxes=corners, labels=torch.tensor(labels), scores=torch.tensor(scores),
                            masks=torch.from_numpy(masks)),
    )  # fmt: skip


def test_metric_of_perfect_predictions_and_its_files(tmp_path):
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, 10:50, 20:60], masks[1, 60:61, 5:6] = True, True
    samples = [
        sample(1, masks, [0, 1], [0.9, 0.8], [[20, 10, 40, 40], [5, 60, 1, 1]]),
        sample(2, masks[:0], [], [], []),
    ]
    metric = CocoMasks(out_dir=tmp_path)
    metric.dataset_meta = {"classes": ("a", "b"), "category_ids": (4, 9)}
    metric.process(None, samples)
    found = metric.evaluate(2)
    assert found["coco/AP"] == found["coco/mask_AP"] == pytest.approx(1.0)
    assert found["coco/mask_AP_small"] == pytest.approx(1.0)
    assert [r.objects for r in metric.result.masks.classes] == [1, 1]
    entries = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert [e["category_id"] for e in entries] == [4, 9]
    assert entries[0]["segmentation"] == compress_masks(masks[:1])[0]
    for name in ("per_class.csv", "per_class_masks.csv", "precision_recall_masks.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_metric_needs_masks_on_both_sides():
    masks = np.zeros((1, HEIGHT, WIDTH), bool)
    masks[0, 3, 3] = True
    for path, who in ((("pred_instances", "masks"), "predictions"), (("ground_truth", "segmentations"), "data")):
        one = sample(1, masks, [0], [0.5], [[3, 3, 1, 1]])
        del one[path[0]][path[1]]
        with pytest.raises(ValueError, match=f"but the {who} for '1.png' have none"):
            CocoMasks().process(None, [one])
    other = sample(1, masks, [0], [0.5], [[3, 3, 1, 1]])
    other["pred_instances"]["masks"] = torch.zeros(1, 4, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="have size"):
        CocoMasks().process(None, [other])
