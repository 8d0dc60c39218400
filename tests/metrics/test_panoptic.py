"""Panoptic quality against the definition over sets of pixels and against torchmetrics."""

import csv
import math

import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality as TorchmetricsQuality

from zoo.metrics.panoptic import PanopticQuality, panoptic_counts, panoptic_result


def scene(seed, *, classes=4, segments=6, crowds=0, size=(18, 22), void=True, single=False):
    """Numbers of segments and their descriptions: rectangles over each other, some void, some crowds."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(size, np.int64)
    numbers = rng.choice(np.arange(1, 1 << 24), segments, replace=False)
    for number in numbers:
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        ids[y : y + rng.integers(2, 14), x : x + rng.integers(2, 14)] = number
    if not void:
        ids[ids == 0] = numbers[0]
    if single:
        ids[0, 0], ids[-1, -1] = numbers[1], numbers[2]  # segments of one pixel
        ids[1:, 1:][ids[1:, 1:] == numbers[1]] = numbers[0]
    infos = [
        {"id": int(n), "label": int(rng.integers(classes)), "is_crowd": i < crowds}
        for i, n in enumerate(numbers)
        if (ids == n).any()
    ]
    return ids, infos


def moved(ids, infos, seed, classes=4):
    """A prediction: the same, moved by a pixel, with some other classes and no crowds."""
    rng = np.random.default_rng(seed)
    found = np.roll(ids, tuple(rng.integers(-1, 2, 2)), (0, 1))
    wrong = rng.random(len(infos)) < 0.2
    listed = [{"id": i["id"], "label": int(rng.integers(classes)) if w else i["label"]} for i, w in zip(infos, wrong)]
    return found, [i for i in listed if (found == i["id"]).any()]


def brute_force(found, found_infos, truth, infos, classes):
    """The definition with sets of pixels, void and crowds included."""
    pixels = {i["id"]: set(zip(*np.nonzero(truth == i["id"]))) for i in infos}
    seen = {i["id"]: set(zip(*np.nonzero(found == i["id"]))) for i in found_infos}
    void = set(zip(*np.nonzero(truth == 0)))
    counts = np.zeros((classes, 4))
    used_true, used_found = set(), set()
    for a in infos:
        for b in found_infos:
            if a["is_crowd"] or a["label"] != b["label"]:
                continue
            inner = len(pixels[a["id"]] & seen[b["id"]])
            union = len(pixels[a["id"]] | (seen[b["id"]] - void))
            if union and inner / union > 0.5:
                counts[a["label"], 0] += inner / union
                counts[a["label"], 1] += 1
                used_true.add(a["id"])
                used_found.add(b["id"])
    crowd = {}
    for a in infos:
        if a["is_crowd"]:
            crowd[a["label"]] = pixels[a["id"]]
        elif a["id"] not in used_true:
            counts[a["label"], 3] += 1
    for b in found_infos:
        if b["id"] not in used_found:
            outside = len(seen[b["id"]] & void) + len(seen[b["id"]] & crowd.get(b["label"], set()))
            counts[b["label"], 2] += outside / len(seen[b["id"]]) <= 0.5
    return counts


@pytest.mark.parametrize("crowds", [0, 1, 3])
@pytest.mark.parametrize("void", [True, False])
@pytest.mark.parametrize("single", [True, False])
def test_equals_brute_force(crowds, void, single):
    found_any = np.zeros(4)
    for seed in range(4):
        truth, infos = scene(seed, crowds=crowds, void=void, single=single)
        found, found_infos = moved(truth, infos, seed)
        if seed % 3 == 2:
            found, found_infos = scene(seed + 100, void=False)  # another scene altogether
        counts = panoptic_counts(found, found_infos, truth, infos, 4)
        np.testing.assert_allclose(counts, brute_force(found, found_infos, truth, infos, 4), atol=1e-9)
        found_any += counts.sum(0)
    assert (found_any > 0).all()


def test_equals_torchmetrics():
    """Classes 0 to 2 are things, 3 and 4 stuff, one segment each; no crowds."""
    rng = np.random.default_rng(1)
    theirs = TorchmetricsQuality(
        things={0, 1, 2}, stuffs={3, 4}, return_per_class=True, return_sq_and_rq=True, allow_unknown_preds_category=True
    )
    counts = np.zeros((5, 4))
    for seed in range(8):
        truth, infos = scene(seed, classes=5, segments=8)
        used = set()
        for info in infos:  # stuff has one segment a class at most
            if info["label"] >= 3 and info["label"] in used:
                info["label"] = int(rng.integers(3))
            used.add(info["label"])
        found, found_infos = moved(truth, infos, seed, classes=3)
        found[found == 0] = found_infos[0]["id"]  # theirs takes predicted void out of true segments, too
        counts += panoptic_counts(found, found_infos, truth, infos, 5)
        pair = []
        for ids, listed in ((found, found_infos), (truth, infos)):
            image = np.zeros((*ids.shape, 2), np.int64)
            image[..., 0] = 99  # a category that there is not: void
            for n, info in enumerate(listed):
                image[ids == info["id"]] = (info["label"], n)
            pair.append(torch.from_numpy(image)[None])
        theirs.update(*pair)
    result = panoptic_result(counts, list("abcde"))
    expected = theirs.compute().numpy()
    expected = expected.reshape(-1, 3) if expected.ndim > 1 else expected
    for row, (pq, sq, rq) in zip(result.classes, expected):
        assert (row.pq, row.sq, row.rq) == pytest.approx((pq, sq, rq), abs=1e-6)
    assert result.stats["PQ"] == pytest.approx(float(expected[:, 0].mean()), abs=1e-6)


def test_65535_segments():
    """As many segments as a map of 256 x 256 pixels has: each of one pixel."""
    truth = np.arange(256 * 256).reshape(256, 256)  # 0 is void
    infos = [{"id": i, "label": i % 7, "is_crowd": False} for i in range(1, 256 * 256)]
    found = truth.copy()
    found[0, :11] = 0  # ten segments are missed
    small = [i for i in infos if i["id"] > 10]
    counts = panoptic_counts(found, small, truth, infos, 7)
    assert counts[:, 1].sum() == counts[:, 0].sum() == 65535 - 10
    assert counts[:, 3].sum() == 10
    assert counts[:, 2].sum() == 0


def test_means_leave_out_classes_that_do_not_occur():
    counts = np.array([[1.6, 2, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0.9, 1, 1, 0]])
    result = panoptic_result(counts, list("abcd"), [True, True, True, False])
    assert [row.pq for row in result.classes[:2]] == [0.8, 0.0]
    assert math.isnan(result.classes[2].pq)
    assert result.stats["PQ"] == pytest.approx((0.8 + 0 + 0.6) / 3)
    assert result.stats["PQ_things"] == pytest.approx(0.4)
    assert (result.stats["SQ_stuff"], result.stats["RQ_stuff"]) == (0.9, pytest.approx(1 / 1.5))
    nothing = panoptic_result(np.zeros((2, 4)), ["a", "b"], [True, False])
    assert all(math.isnan(v) for v in nothing.stats.values())


@pytest.mark.parametrize(
    "found, infos, message",
    [
        (np.ones((2, 3), int), [], "pixels of the segments"),
        (np.ones((2, 3), int), [{"id": 1, "label": 9}], "segment 1 of class 9; accepted are 0 to 3"),
        (np.zeros((2, 3), int), [{"id": 4, "label": 0}], r"the segments \[4\], which have no pixel"),
        (np.ones((2, 3), int), [{"id": 1, "label": 0}] * 2, "segment 1 twice"),
        (np.ones((3, 3), int), [{"id": 1, "label": 0}], "the same .H, W. is needed"),
    ],
)
def test_wrong_predictions_are_refused(found, infos, message):
    with pytest.raises(ValueError, match=f"'x'.*{message}"):
        panoptic_counts(found, infos, np.zeros((2, 3), int), [], 4, name="'x'")


def test_metric_sums_images_once(tmp_path):
    metric = PanopticQuality(out_dir=tmp_path)
    metric.dataset_meta = {"classes": list("abcd"), "things": [True, True, False, False]}
    samples, counts = [], np.zeros((4, 4))
    for seed in range(3):
        truth, infos = scene(seed, crowds=1)
        found, found_infos = moved(truth, infos, seed)
        counts += panoptic_counts(found, found_infos, truth, infos, 4)
        samples.append(
            {
                "sample_idx": seed,
                "gt_panoptic": {"ids": torch.from_numpy(truth), "segments": infos},
                "pred_panoptic": {"ids": torch.from_numpy(found), "segments": found_infos},
            }
        )
    metric.process(None, samples)
    metric.process(None, samples[:1])
    values = metric.evaluate(3)
    expected = panoptic_result(counts, list("abcd"), [True, True, False, False]).stats
    assert values == {f"panoptic/{k}": pytest.approx(v) for k, v in expected.items()}
    assert {"panoptic/PQ_things", "panoptic/RQ_stuff"} < set(values)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert [(r["name"], r["thing"]) for r in csv.DictReader(file)][2] == ("c", "False")
    with pytest.raises(ValueError, match="no pred_panoptic"):
        metric.process(None, [{"gt_panoptic": samples[0]["gt_panoptic"]}])
