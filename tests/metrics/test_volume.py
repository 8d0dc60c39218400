"""Scores of label maps: against MONAI, against all pairs of surface voxels, and what is said of empty ones."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import torch

from zoo.metrics.volume import ClassScore, VolumeMetric, score_labels, score_mask, surface_distances
from zoo.metrics.volume_report import ALL, MEASURES, format_summary, mean_scores, summarise, write_report

CLASSES = ("background", "liver", "spleen", "gland")


def blob(rng, shape, smooth=2.0, share=0.2):
    """A random object of several parts."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.normal(size=shape), smooth)
    return field > np.quantile(field, 1 - share)


def surface_of(mask):
    """Voxels of the mask with a neighbour across a face that is not of it, found one by one."""
    found = []
    for at in np.argwhere(mask):
        for a, step in itertools.product(range(mask.ndim), (-1, 1)):
            to = at.copy()
            to[a] += step
            if not 0 <= to[a] < mask.shape[a] or not mask[tuple(to)]:
                found.append(at)
                break
    return np.array(found, float).reshape(-1, mask.ndim)


def brute_force(prediction, truth, spacing):
    """Dice, HD95 and ASSD from all pairs of surface voxels."""
    dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    p, t = (surface_of(m) * np.array(spacing) for m in (prediction, truth))
    pairs = np.sqrt(((p[:, None] - t[None]) ** 2).sum(-1))
    forth, back = pairs.min(1), pairs.min(0)
    hd95 = max(np.quantile(forth, 0.95), np.quantile(back, 0.95))
    return dice, hd95, (forth.sum() + back.sum()) / (len(forth) + len(back))


def monai_scores(prediction, truth, spacing):
    metrics = pytest.importorskip("monai.metrics")
    p, t = (torch.from_numpy(m)[None, None].float() for m in (prediction, truth))
    dice = metrics.DiceMetric(include_background=True, ignore_empty=False)(p, t)
    hd95 = metrics.compute_hausdorff_distance(p, t, include_background=True, percentile=95, spacing=spacing)
    assd = metrics.compute_average_surface_distance(p, t, include_background=True, symmetric=True, spacing=spacing)
    return float(dice), float(hd95), float(assd)


@pytest.mark.parametrize("shape, spacing", [
    ((14, 12, 10), (1.0, 1.0, 1.0)), ((16, 9, 7), (0.7, 1.3, 5.0)), ((8, 15, 11), (3.0, 0.5, 0.5)),
    ((24, 31), (0.4, 2.5)),
])  # fmt: skip
def test_equals_monai_and_all_pairs(shape, spacing):
    rng = np.random.default_rng(1)
    for share in (0.05, 0.3, 0.9):
        prediction, truth = blob(rng, shape, share=share), blob(rng, shape, share=share)
        found = score_mask(prediction, truth, spacing)
        assert found == pytest.approx(brute_force(prediction, truth, spacing), rel=1e-9)
        assert found == pytest.approx(monai_scores(prediction, truth, spacing), rel=1e-5)


def test_one_voxel_objects():
    prediction, truth = np.zeros((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    prediction[1, 2, 3] = truth[3, 2, 4] = True
    spacing = (0.5, 1.0, 4.0)
    apart = math.sqrt(1.0**2 + 4.0**2)
    assert score_mask(prediction, truth, spacing) == pytest.approx((0.0, apart, apart))
    assert score_mask(prediction, truth, spacing) == pytest.approx(monai_scores(prediction, truth, spacing))
    assert score_mask(truth, truth, spacing) == (1.0, 0.0, 0.0)
    prediction[3, 2, 4] = True
    expected = brute_force(prediction, truth, spacing)
    assert score_mask(prediction, truth, spacing) == pytest.approx(expected)
    assert expected[0] == pytest.approx(2 / 3)


def test_objects_at_the_rim_have_a_surface_there():
    prediction, truth = np.ones((4, 5, 6), bool), np.ones((4, 5, 6), bool)
    truth[:2] = False
    spacing = (2.0, 1.0, 1.0)
    assert score_mask(prediction, truth, spacing) == pytest.approx(brute_force(prediction, truth, spacing))
    assert score_mask(prediction, truth, spacing) == pytest.approx(monai_scores(prediction, truth, spacing), rel=1e-6)


@pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class")
def test_empty_label_maps():
    """In one map only: Dice 0 and infinite distances (MONAI's ASSD); in neither: NaN (nnU-Net's, MONAI's distances)."""
    nothing, something = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    something[1:3, 2:4, 2:5] = True
    for prediction, truth in ((nothing, something), (something, nothing)):
        assert score_mask(prediction, truth, (1, 2, 3)) == (0.0, math.inf, math.inf)
        dice, _, assd = monai_scores(prediction, truth, (1, 2, 3))
        assert (dice, assd) == (0.0, math.inf)
        forth, back = surface_distances(prediction, truth, (1, 2, 3))
        assert {len(forth), len(back)} == {0, 12}
        assert np.isinf(np.concatenate([forth, back])).all()
    assert np.isnan(score_mask(nothing, nothing, (1, 2, 3))).all()
    assert np.isnan(monai_scores(nothing, nothing, (1, 2, 3))[1:]).all()
    whole = np.where(something, 2, 0)
    liver, spleen, gland = score_labels(np.where(something, 3, 0), whole, (1, 2, 3), CLASSES)
    assert (spleen.missed, spleen.invented, gland.missed, gland.invented) == (True, False, False, True)
    assert (spleen.dice, spleen.hd95, gland.dice, gland.assd) == (0, math.inf, 0, math.inf)
    assert np.isnan([liver.dice, liver.hd95, liver.assd, liver.error_percent]).all()
    assert (spleen.truth_ml, spleen.predicted_ml) == pytest.approx((12 * 6 / 1000, 0))
    assert (spleen.error_percent, gland.error_percent) == (-100.0, math.inf)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_classes_of_a_case_are_scored_one_by_one(dtype):
    rng = np.random.default_rng(2)
    truth, prediction = np.zeros((20, 17, 13), dtype), np.zeros((20, 17, 13), dtype)
    for k in (1, 2, 3):
        truth[blob(rng, truth.shape)] = k
        prediction[blob(rng, truth.shape)] = k
    spacing = (0.8, 0.8, 2.5)
    scores = score_labels(prediction, truth, spacing, CLASSES, case="a")
    assert [(s.case, s.label, s.name) for s in scores] == [("a", 1, "liver"), ("a", 2, "spleen"), ("a", 3, "gland")]
    for s in scores:
        own = score_mask(prediction == s.label, truth == s.label, spacing)
        assert (s.dice, s.hd95, s.assd) == pytest.approx(own)
        assert s.truth_ml == pytest.approx((truth == s.label).sum() * 0.8 * 0.8 * 2.5 / 1000)
        assert s.error_ml == pytest.approx(s.predicted_ml - s.truth_ml)
        assert s.error_percent == pytest.approx(100 * (s.predicted_ml / s.truth_ml - 1))
    fast = score_labels(prediction, truth, spacing, CLASSES, surface=False)
    assert [s.dice for s in fast] == [s.dice for s in scores]
    assert np.isnan([s.hd95 for s in fast]).all()


def test_what_cannot_be_scored():
    good = np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(ValueError, match=r"case 'x': the prediction has shape \(3, 4, 4\), the truth \(3, 4, 5\)"):
        score_labels(good[..., :4], good, (1, 1, 1), CLASSES, case="x")
    with pytest.raises(ValueError, match=r"the prediction has the labels \[7\], but there are 4 classes"):
        score_labels(good + np.uint8(7), good, (1, 1, 1), CLASSES)
    with pytest.raises(ValueError, match=r"the truth has the labels \[-1\]"):
        score_labels(good, good.astype(int) - 1, (1, 1, 1), CLASSES)
    with pytest.raises(TypeError, match="the prediction is of float32"):
        score_labels(good.astype(np.float32), good, (1, 1, 1), CLASSES)
    for spacing in ((1, 1), (1, 1, 0), (1, 1, float("nan"))):
        with pytest.raises(ValueError, match="positive numbers are needed"):
            score_labels(good, good, spacing, CLASSES)


def score(case, name, dice, hd95=1.0, truth=2.0, predicted=3.0):
    return ClassScore(case, CLASSES.index(name), name, dice, hd95, hd95 / 2, truth, predicted)


def test_summary_and_its_intervals():
    rng = np.random.default_rng(3)
    dice = rng.uniform(0.5, 1, (30, 2))
    scores = [score(f"c{i}", n, float(d)) for i in range(30) for n, d in zip(("liver", "spleen"), dice[i])]
    rows = {(r.name, r.measure): r for r in summarise(scores, resamples=500, seed=4)}
    assert set(rows) == {(n, m) for n in ("liver", "spleen", ALL) for m in MEASURES}
    liver, whole = rows["liver", "dice"], rows[ALL, "dice"]
    assert (liver.mean, liver.std) == pytest.approx((dice[:, 0].mean(), dice[:, 0].std(ddof=1)))
    assert (liver.median, liver.cases) == (pytest.approx(np.median(dice[:, 0])), 30)
    assert whole.mean == pytest.approx(dice.mean())
    draws = np.random.default_rng(4).integers(0, 30, (500, 30))
    expected = np.percentile(dice[draws].mean((1, 2)), (2.5, 97.5))
    assert (whole.low, whole.high) == pytest.approx(tuple(expected))
    assert np.percentile(dice[draws, 0].mean(1), (2.5, 97.5)) == pytest.approx((liver.low, liver.high))
    normal = 1.96 * liver.std / math.sqrt(30)  # the bootstrap is near the normal interval of a mean
    assert liver.mean - liver.low == pytest.approx(normal, rel=0.15)
    assert summarise(scores, seed=1) == summarise(scores, seed=1) != summarise(scores, seed=2)
    narrow = {(r.name, r.measure): r for r in summarise(scores, confidence=0.5, seed=4)}["liver", "dice"]
    assert liver.low < narrow.low < narrow.high < liver.high
    assert rows["liver", "volume_error_ml"].mean == pytest.approx(1.0)
    assert rows["liver", "volume_error_percent"].mean == pytest.approx(50.0)


def test_summary_leaves_out_and_counts_what_there_is_no_value_of():
    inf, nan = math.inf, math.nan
    scores = [
        score("a", "liver", 0.5, 4.0), score("b", "liver", 0.7, 2.0), score("c", "liver", 0.0, inf, 5.0, 0.0),
        score("d", "liver", 0.0, inf, 0.0, 1.0), score("e", "liver", nan, nan, 0.0, 0.0),
        *(score(c, "gland", nan, nan, 0.0, 0.0) for c in "abcde"),
    ]  # fmt: skip
    rows = {(r.name, r.measure): r for r in summarise(scores)}
    dice, hd95 = rows["liver", "dice"], rows["liver", "hd95_mm"]
    assert (dice.cases, dice.mean) == (4, pytest.approx(0.3))
    assert (hd95.cases, hd95.mean) == (2, pytest.approx(3.0))
    assert (hd95.missed, hd95.invented, hd95.absent) == (1, 1, 1)
    gland = rows["gland", "dice"]
    assert (gland.cases, gland.absent) == (0, 5)
    assert np.isnan([gland.mean, gland.low, gland.high]).all()
    assert (rows[ALL, "dice"].mean, rows[ALL, "dice"].absent) == (pytest.approx(0.3), 6)  # of the class that is there
    assert mean_scores(scores) == pytest.approx(
        {"dice": 0.3, "hd95": 3.0, "assd": 1.5, "volume_error_ml": 8 / 4, "volume_error_percent": (50 + 50 + 100) / 3,
         "missed": 1, "invented": 1, "dice/liver": 0.3, "dice/gland": nan}, nan_ok=True
    )  # fmt: skip
    assert mean_scores([scores[2]])["hd95"] == inf
    one = {r.measure: r for r in summarise(scores[:1]) if r.name == "liver"}["dice"]
    assert one.mean == 0.5
    assert np.isnan([one.low, one.high, one.std]).all()
    with pytest.raises(ValueError, match="two scores of class 'liver'"):
        summarise([scores[0], scores[0]])
    with pytest.raises(ValueError, match="no scores"):
        summarise([])
    with pytest.raises(ValueError, match="confidence=95"):
        summarise(scores, confidence=95)


def test_report(tmp_path):
    scores = [score("a", "liver", 0.5), score("b", "liver", math.nan, math.nan, 0.0, 0.0),
              score("a", "gland", 0.0, math.inf, 1.0, 0.0), score("b", "gland", 0.25)]  # fmt: skip
    rows = write_report(tmp_path, scores)
    table = list(csv.DictReader((tmp_path / "cases.csv").open()))
    assert [r["case"] for r in table] == ["a", "b", "a", "b"]
    assert table[0] == {
        "case": "a", "class": "liver", "label": "1", "dice": "0.5", "hd95_mm": "1", "assd_mm": "0.5", "truth_ml": "2",
        "predicted_ml": "3", "error_ml": "1", "error_percent": "50",
    }  # fmt: skip
    assert (table[1]["dice"], table[2]["hd95_mm"], table[2]["error_percent"]) == ("", "inf", "-100")
    summary = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [(r["class"], r["measure"]) for r in summary] == [(r.name, r.measure) for r in rows]
    content = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (content["cases"], content["confidence"], len(content["rows"])) == (2, 0.95, len(rows))
    picture = (tmp_path / "boxplot.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    header, body = format_summary(rows)
    assert [row[0] for row in body] == ["liver", "gland", ALL]
    assert body[0][1] == "0.500"
    assert len(body[0]) == len(header)


def sample(case, index, truth, prediction, spacing=(1.0, 1.0, 2.0)):
    from zoo.medical.data_sample import VolumeSample

    own = VolumeSample(metainfo={"case": case, "sample_idx": index, "spacing": spacing})
    return own.set_gt_label(truth).set_pred_label(prediction).to_dict()


def test_metric_of_the_runner(tmp_path):
    rng = np.random.default_rng(5)
    cases = [rng.integers(0, 4, (2, 6, 5, 4)) for _ in range(3)]
    metric = VolumeMetric(out_dir=tmp_path)
    metric.dataset_meta = {"classes": CLASSES}
    for i, (truth, prediction) in enumerate(cases):
        metric.process({}, [sample(f"c{i}", i, torch.from_numpy(truth), torch.from_numpy(prediction))])
    metric.process({}, [sample("c0", 0, *map(torch.from_numpy, cases[0]))])  # a sampler gives the first once more
    found = metric.evaluate(3)
    expected = [s for i, (t, p) in enumerate(cases) for s in score_labels(p, t, (1, 1, 2), CLASSES, case=f"c{i}")]
    assert metric.scores == expected
    assert found["volume/dice"] == pytest.approx(np.mean([s.dice for s in expected]))
    assert found["volume/hd95"] == pytest.approx(np.mean([s.hd95 for s in expected]))
    assert found["volume/dice/gland"] == pytest.approx(np.mean([s.dice for s in expected if s.name == "gland"]))
    assert {p.name for p in tmp_path.iterdir()} == {"cases.csv", "summary.csv", "summary.json", "boxplot.png"}
    fast = VolumeMetric(surface=False)
    fast.dataset_meta = {"classes": CLASSES}
    fast.process({}, [sample("c0", 0, *map(torch.from_numpy, cases[0]))])
    assert not {"volume/hd95", "volume/assd"} & set(fast.evaluate(1))


def test_metric_refuses_what_it_cannot_measure():
    metric = VolumeMetric()
    zeros = torch.zeros(3, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="classes"):
        metric.process({}, [sample("c", 0, zeros, zeros)])
    metric.dataset_meta = {"classes": CLASSES}
    with pytest.raises(ValueError, match="case 'c' has no spacing"):
        metric.process({}, [{**sample("c", 0, zeros, zeros), "spacing": None}])
    with pytest.raises(ValueError, match="case 'c': the prediction has shape"):
        metric.process({}, [sample("c", 0, zeros, zeros[:2])])
    with pytest.raises(ValueError, match=r"the prediction has the labels \[9\]"):
        metric.process({}, [sample("c", 0, zeros, zeros + 9)])
    with pytest.raises(ValueError, match="seen no sample"):
        metric.evaluate(0)
