"""COCO's numbers equal pycocotools' on random and on hostile predictions; VOC's are those of its definition."""

import contextlib
import io
import json

import numpy as np
import pytest

from zoo.metrics.coco import STATS, CocoBoxes, confusion_counts, evaluate_boxes, write_report
from zoo.metrics.voc import average_precision, voc_ap

pycocotools = pytest.importorskip("pycocotools")


def scene(seed, images=12, classes=4, crowd=0.1):
    """Random annotations with sparse ids, empty images, a class without objects, and crowd regions."""
    rng = np.random.default_rng(seed)
    ids = [3, 7, 8, 20][:classes]
    annotations = []
    for i in range(images):
        for _ in range(int(rng.integers(0, 7)) if i % 5 else 0):
            w, h = np.exp(rng.uniform(1, 5.2, 2))
            x, y = rng.uniform(0, 200, 2)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=100 + i,
                    category_id=int(rng.choice(ids[:-1])),
                    bbox=[float(v) for v in (x, y, w, h)],
                    area=float(w * h * rng.uniform(0.4, 1)),
                    iscrowd=int(rng.random() < crowd),
                )
            )
    return dict(
        images=[dict(id=100 + i, height=300, width=400) for i in range(images)],
        annotations=annotations,
        categories=[dict(id=c, name=f"class {c}") for c in ids],
    )


def near(truth, seed, noise=0.1, extra=60, same_scores=False):
    """Noised objects, doubles, wrong classes and boxes out of nothing."""
    rng = np.random.default_rng(seed)
    ids = [c["id"] for c in truth["categories"]]
    found = []
    for a in truth["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            box = np.array(a["bbox"]) * (1 + rng.normal(0, noise, 4))
            category = a["category_id"] if rng.random() < 0.8 else int(rng.choice(ids))
            found.append((a["image_id"], category, box))
    for _ in range(extra):
        box = [*rng.uniform(0, 200, 2), *np.exp(rng.uniform(0, 5, 2))]
        found.append((int(rng.choice([i["id"] for i in truth["images"]])), int(rng.choice(ids)), np.array(box)))
    return [
        dict(
            image_id=i,
            category_id=c,
            bbox=[float(v) for v in np.maximum(b, 1e-3)],
            score=float(round(rng.random(), 1) if same_scores else rng.random()),
        )
        for i, c, b in found
    ]


def reference(truth, predictions):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = json.loads(json.dumps(truth))
        gt.createIndex()
        run = COCOeval(gt, gt.loadRes(json.loads(json.dumps(predictions))), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


CASES = {
    "random": lambda t, s: near(t, s, extra=200),
    "close": lambda t, s: near(t, s, noise=0.02, extra=10),
    "equal scores": lambda t, s: near(t, s, same_scores=True),
    "perfect": lambda t, s: [
        dict(image_id=a["image_id"], category_id=a["category_id"], bbox=a["bbox"], score=0.9) for a in t["annotations"]
    ],
    "one image, 300 boxes": lambda t, s: [
        {**p, "image_id": t["images"][1]["id"]} for p in near(t, s, extra=300) + near(t, s + 1, extra=100)
    ],
    "boxes without an area": lambda t, s: (
        [{**p, "bbox": [*p["bbox"][:2], 0.0, 0.0]} for p in near(t, s)] + near(t, s + 1)
    ),
    "one class only": lambda t, s: [{**p, "category_id": 20} for p in near(t, s)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools(case, seed):
    truth = scene(seed)
    predictions = CASES[case](truth, seed)
    expected = reference(truth, predictions)
    found = evaluate_boxes(truth, predictions)
    assert np.abs(np.array([found.stats[s] for s in STATS]) - expected.stats).max() <= 1e-6
    assert np.abs(found.precision - expected.eval["precision"][..., 0, -1]).max() <= 1e-6
    for k, row in enumerate(found.classes):
        values = expected.eval["precision"][:, :, k, 0, -1]
        wanted = values[values > -1].mean() if (values > -1).any() else -1
        assert abs(row.ap - wanted) <= 1e-6
        values = expected.eval["recall"][:, k, 0, -1]
        wanted = values[values > -1].mean() if (values > -1).any() else -1
        assert abs(row.ar100 - wanted) <= 1e-6


def test_no_predictions_and_nothing_to_find():
    truth = scene(0)
    assert evaluate_boxes(truth, []).stats["AP"] == 0
    only_crowd = {**truth, "annotations": [{**a, "iscrowd": 1} for a in truth["annotations"]]}
    assert evaluate_boxes(only_crowd, near(truth, 0)).stats["AP"] == -1
    none = {**truth, "annotations": []}
    assert evaluate_boxes(none, near(truth, 0)).stats["AP"] == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image_id=5), "prediction 1 is of image 5"),
        (dict(category_id=5), "prediction 1 is of category 5"),
        (dict(score=float("nan")), "finite"),
        (dict(bbox=[0, 0, 1]), "prediction 1 has bbox"),
    ],
)
def test_wrong_predictions_are_told(change, message):
    truth = scene(0)
    predictions = near(truth, 0)
    predictions[1] = {**predictions[1], **change}
    with pytest.raises(ValueError, match=message):
        evaluate_boxes(truth, predictions)
    with pytest.raises(ValueError, match="are needed"):
        evaluate_boxes(truth, [{"image_id": 100}])


def test_report_files(tmp_path):
    truth = scene(1)
    predictions = near(truth, 1)
    write_report(tmp_path, truth, predictions, evaluate_boxes(truth, predictions))
    assert {p.name for p in tmp_path.iterdir()} == {
        "predictions.json", "per_class.csv", "confusion.json", "confusion.png", "precision_recall.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8")) == predictions
    assert len((tmp_path / "per_class.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_confusion_of_a_known_scene():
    truth = dict(
        images=[dict(id=1, height=100, width=100)],
        categories=[dict(id=1, name="a"), dict(id=2, name="b")],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 10, 10], area=100, iscrowd=0),
            dict(id=2, image_id=1, category_id=2, bbox=[20, 20, 10, 10], area=100, iscrowd=0),
            dict(id=3, image_id=1, category_id=2, bbox=[40, 40, 10, 10], area=100, iscrowd=0),
            dict(id=4, image_id=1, category_id=2, bbox=[60, 60, 30, 30], area=900, iscrowd=1),
        ],
    )

    def box(x, category, score, size=10):
        return dict(image_id=1, category_id=category, bbox=[x, x, size, size], score=score)

    predictions = [
        box(0, 1, 0.9),
        box(0, 1, 0.5),
        box(20, 1, 0.8),
        box(40, 2, 0.1),
        box(65, 1, 0.9),
        box(80, 2, 0.9, 5),
    ]
    counts = confusion_counts(truth, predictions)
    assert counts.tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]


def test_metric_counts_an_image_once_and_needs_finite_numbers():
    import torch
    from mmengine.structures import InstanceData

    def sample(number, score=0.9):
        return dict(
            img_id=number, img_path="a", ori_shape=(20, 20),
            ground_truth=dict(boxes=[[2, 2, 10, 10]], labels=[1], areas=[100.0], crowd=[0]),
            pred_instances=InstanceData(
                boxes=torch.tensor([[2.0, 2, 12, 12]]), labels=torch.tensor([1]), scores=torch.tensor([score])
            ),
        )  # fmt: skip

    metric = CocoBoxes()
    metric.dataset_meta = dict(classes=("a", "b"), category_ids=(5, 9))
    metric.process(None, [sample(1), sample(2), sample(2)])
    assert metric.evaluate(2)["coco/AP"] == pytest.approx(1.0)
    assert [(r.category_id, r.objects, r.predictions) for r in metric.result.classes] == [(5, 0, 0), (9, 2, 2)]
    with pytest.raises(ValueError, match="not finite"):
        metric.process(None, [sample(1, float("nan"))])
    with pytest.raises(ValueError, match="seen no image"):
        metric.evaluate(0)


def test_voc_by_hand():
    hits = np.array([True, False, True])
    assert average_precision(hits, 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert average_precision(hits, 4, eleven_points=True) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert np.isnan(average_precision(np.zeros(0, bool), 0))
    truth = dict(
        images=[dict(id=1)],
        categories=[dict(id=0, name="a"), dict(id=1, name="b")],
        annotations=[
            dict(image_id=1, category_id=0, bbox=[0, 0, 10, 10], iscrowd=0),
            dict(image_id=1, category_id=0, bbox=[50, 50, 10, 10], iscrowd=1),
        ],
    )
    predictions = [
        dict(image_id=1, category_id=0, bbox=[50, 50, 10, 10], score=0.99),  # a difficult one: does not count
        dict(image_id=1, category_id=0, bbox=[0, 0, 10, 9], score=0.9),
        dict(image_id=1, category_id=0, bbox=[0, 0, 10, 10], score=0.8),  # a double
    ]
    assert voc_ap(truth, predictions) == {0: 1.0}
    assert voc_ap(truth, predictions[::2]) == {0: 1.0}
    assert voc_ap(truth, []) == {0: 0.0}


def test_voc_agrees_with_coco_where_the_definitions_do():
    """Without crowd the areas under both curves differ only by COCO's 101 recalls."""
    truth = scene(4, images=40, crowd=0)
    predictions = near(truth, 4, noise=0.03, extra=20)
    coco = {r.category_id: r.ap50 for r in evaluate_boxes(truth, predictions).classes if r.objects}
    voc = voc_ap(truth, predictions)
    assert set(coco) == set(voc)
    assert max(abs(coco[c] - voc[c]) for c in coco) < 0.02
