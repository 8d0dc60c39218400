"""mIoU, accuracy and Dice against torchmetrics and against counting pixel by pixel; the boundary score by hand."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score, multiclass_jaccard_index

from zoo.metrics.boundary import boundary_counts, boundary_of, boundary_scores
from zoo.metrics.semantic import MAX_MATRIX, PixelTotals, SemanticSegmentation, count_pairs


def maps(classes: int, seed: int, *, size=(13, 17), ignore=255, used=None, right=0.6, dtype=np.int64):
    """A true map with ignored pixels and a prediction that is right in part; ``used`` are the classes that occur."""
    rng = np.random.default_rng(seed)
    used = np.arange(classes) if used is None else np.array(used)
    truth = rng.choice(used, size)
    found = np.where(rng.random(size) < right, truth, rng.choice(used, size))
    truth[rng.random(size) < 0.1] = ignore
    return found.astype(dtype), truth.astype(dtype)


def brute_force(pairs, ignore: int) -> dict[str, float]:
    """The definitions, with sets of pixels."""
    iou, accuracy, dice, right, total = [], [], [], 0, 0
    pixels = [(i, y, x, int(t[y, x]), int(p[y, x])) for i, (p, t) in enumerate(pairs) for y, x in np.ndindex(*t.shape)]
    pixels = [p for p in pixels if p[3] != ignore]
    for k in {c for p in pixels for c in p[3:]}:
        real = {p[:3] for p in pixels if p[3] == k}
        found = {p[:3] for p in pixels if p[4] == k}
        both = len(real & found)
        right, total = right + both, total + len(real)
        if real | found:
            iou.append(both / len(real | found))
            dice.append(2 * both / (len(real) + len(found)))
        if real:
            accuracy.append(both / len(real))
    mean = {n: float(np.mean(v)) for n, v in (("mIoU", iou), ("mAcc", accuracy), ("mDice", dice))}
    return {**mean, "aAcc": right / total}


@pytest.mark.parametrize(
    "classes, ignore, used, dtype",
    [
        (2, 255, None, np.uint8),
        (5, 255, [0, 1, 4], np.uint8),  # classes that never occur
        (7, 255, [3], np.int64),  # one class alone
        (255, 255, None, np.uint8),
        (300, 65535, None, np.int32),
        (19, 1000, None, np.uint16),
    ],
)
def test_equals_torchmetrics_and_brute_force(classes, ignore, used, dtype):
    pairs = [maps(classes, i, ignore=ignore, used=used, dtype=dtype) for i in range(3)]
    totals = PixelTotals(classes)
    for found, truth in pairs:
        totals.add(count_pairs(found, truth, classes, ignore_index=ignore))
    result = totals.result()
    expected = brute_force(pairs, ignore)
    for name, value in expected.items():
        assert result.stats[name] == pytest.approx(value, abs=1e-9), name
    if classes == 255:
        return  # torchmetrics would count the ignored pixels as one more class
    found = torch.from_numpy(np.stack([p for p, _ in pairs]).astype(np.int64)).flatten()
    truth = torch.from_numpy(np.stack([t for _, t in pairs]).astype(np.int64)).flatten()
    options = dict(num_classes=classes, ignore_index=ignore)
    jaccard = float(multiclass_jaccard_index(found, truth, average="macro", **options))
    assert result.stats["mIoU"] == pytest.approx(jaccard, abs=1e-6)
    each = multiclass_jaccard_index(found, truth, average="none", **options).numpy()
    f1 = multiclass_f1_score(found, truth, average="none", **options).numpy()
    for row, value, dice in zip(result.classes, each, f1):
        if row.pixels + row.predicted_pixels:
            assert row.iou == pytest.approx(float(value), abs=1e-6)
            assert row.dice == pytest.approx(float(dice), abs=1e-6)
        else:
            assert math.isnan(row.iou)
            assert math.isnan(row.dice)
    micro = float(multiclass_accuracy(found, truth, average="micro", **options))
    assert result.stats["aAcc"] == pytest.approx(micro, abs=1e-6)


def test_65535_labels():
    """As many classes as 16 bits have numbers, but for the ignored one: no matrix, the same scores."""
    classes = 65535
    pairs = [maps(classes, i, ignore=65535, size=(40, 50), dtype=np.uint16) for i in range(2)]
    truth = pairs[0][1]
    truth[0, :3] = (0, 65534, 65533)  # segments of one pixel, at both ends of the range
    totals = PixelTotals(classes)
    for found, real in pairs:
        totals.add(count_pairs(found, real, classes, ignore_index=65535))
    result = totals.result()
    assert totals.matrix is None
    assert classes > MAX_MATRIX
    found = np.concatenate([p.ravel() for p, _ in pairs]).astype(np.int64)
    real = np.concatenate([t.ravel() for _, t in pairs]).astype(np.int64)
    found, real = found[real != 65535], real[real != 65535]
    both = np.bincount(real[real == found], minlength=classes)
    union = np.bincount(real, minlength=classes) + np.bincount(found, minlength=classes) - both
    assert result.stats["mIoU"] == pytest.approx((both[union > 0] / union[union > 0]).mean(), abs=1e-9)


def test_pixels_that_are_not_predicted_are_missed():
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    found = np.array([[0, 255, 1, 255]], np.uint8)
    result = PixelTotals(2).add(count_pairs(found, truth, 2)).result(["a", "b"])
    assert [row.iou for row in result.classes] == [0.5, 1.0]
    assert result.matrix.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_nothing_to_measure():
    for shape in ((1, 1), (3, 4)):
        ignored = np.full(shape, 255, np.uint8)
        result = PixelTotals(3).add(count_pairs(np.zeros(shape, np.uint8), ignored, 3)).result()
        assert all(math.isnan(v) for v in result.stats.values())
    one = np.zeros((1, 1), np.uint8)
    assert PixelTotals(3).add(count_pairs(one, one, 3)).result().stats["mIoU"] == 1.0


def test_counts_beyond_float32():
    """OpenCV counts in float32: an image with more pixels than that holds is counted in parts."""
    truth = np.zeros((4200, 4100), np.uint8)
    truth[0, 0] = 1
    pairs = count_pairs(np.zeros_like(truth), truth, 2)
    assert dict(zip(pairs.truth.tolist(), pairs.counts.tolist())) == {0: 4200 * 4100 - 1, 1: 1}


@pytest.mark.parametrize(
    "found, truth, message",
    [
        (
            np.zeros((2, 3), np.uint8),
            np.zeros((3, 2), np.uint8),
            r"'x': the prediction is 2 x 3 pixels, the truth 3 x 2",
        ),
        (
            np.full((2, 2), 9, np.uint8),
            np.zeros((2, 2), np.uint8),
            r"the prediction has the values 9; .* 0 to 3 and 255",
        ),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 77, np.uint8), r"the truth has the values 77"),
        (np.full((2, 2), -1), np.zeros((2, 2), int), r"the prediction has the values -1"),
    ],
)
def test_wrong_maps_are_refused(found, truth, message):
    with pytest.raises(ValueError, match=message):
        count_pairs(found, truth, 4, name="'x'")


def sample(index, found, truth):
    return {
        "sample_idx": index,
        "img_path": f"{index}.png",
        "gt_sem_seg": torch.from_numpy(truth),
        "pred_sem_seg": torch.from_numpy(found.astype(np.int64)),
    }


def test_metric_counts_an_image_once(tmp_path):
    pairs = [maps(4, i, dtype=np.uint8) for i in range(3)]
    metric = SemanticSegmentation(out_dir=tmp_path, boundary=True)
    metric.dataset_meta = {"classes": list("abcd"), "ignore_index": 255}
    samples = [sample(i, *pair) for i, pair in enumerate(pairs)]
    metric.process(None, samples)
    metric.process(None, samples[1:2])  # a sampler that pads gives one again
    values = metric.evaluate(3)
    expected = brute_force(pairs, 255)
    assert {k: pytest.approx(v, abs=1e-9) for k, v in expected.items()} == {
        k.partition("/")[2]: v for k, v in values.items() if not k.endswith("boundary_F")
    }
    counts = [boundary_counts(p, t, 4) for p, t in pairs]
    assert values["semantic/boundary_F"] == pytest.approx(np.mean(boundary_scores(counts)))
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list("abcd")
    assert float(rows[2]["iou"]) == pytest.approx(metric.result.classes[2].iou)
    matrix = json.loads((tmp_path / "confusion.json").read_text(encoding="utf-8"))
    assert matrix["matrix"] == metric.result.matrix[:, :-1].tolist()
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_metric_without_predictions():
    metric = SemanticSegmentation()
    with pytest.raises(ValueError, match="metainfo has 'classes'"):
        metric.process(None, [])
    metric.dataset_meta = {"classes": ["a", "b"]}
    with pytest.raises(ValueError, match="'x.png' has no pred_sem_seg"):
        metric.process(None, [{"img_path": "x.png", "gt_sem_seg": torch.zeros(2, 2)}])
    with pytest.raises(ValueError, match="seen no image"):
        metric.evaluate(0)


def boundary_by_hand(mask):
    height, width = mask.shape
    return [
        (y, x)
        for y, x in np.argwhere(mask)
        if any(
            0 <= y + a < height and 0 <= x + b < width and not mask[y + a, x + b]
            for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))
        )
    ]


@pytest.mark.parametrize("reach", [1, 2.5])
def test_boundary_score_by_hand(reach):
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (4, 5)), np.ones((5, 5), int)).astype(np.uint8)
    found = np.roll(truth, (1, 2), (0, 1))
    counts = boundary_counts(found, truth, 4, width=reach / math.hypot(*truth.shape))
    for k in range(3):
        real, seen = boundary_by_hand(truth == k), boundary_by_hand(found == k)

        def met(points, others):
            return sum(any(math.dist(p, q) <= reach for q in others) for p in points)

        assert counts[k].tolist() == [met(seen, real), len(seen), met(real, seen), len(real)]
        precision, recall = counts[k, 0] / counts[k, 1], counts[k, 2] / counts[k, 3]
        assert boundary_scores([counts])[k] == pytest.approx(2 * precision * recall / (precision + recall))
    assert math.isnan(boundary_scores([counts])[3])


def test_boundary_leaves_out_what_is_ignored():
    truth = np.zeros((9, 9), np.uint8)
    truth[:, 5:] = 1
    ignored = truth.copy()
    ignored[:, 4:6] = 255  # the only boundary
    assert boundary_of(truth == 1).sum() == 9
    assert boundary_counts(truth, truth, 2)[1].tolist() == [9, 9, 9, 9]
    assert boundary_counts(truth, ignored, 2).sum() == 0
