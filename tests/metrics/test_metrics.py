"""Metrics against scikit-learn's."""

import csv
import json

import numpy as np
import pytest
import sklearn.metrics
import torch

from zoo.classification.data_sample import ClsDataSample
from zoo.metrics import Accuracy, ConfusionMatrix, PerClass, PredictionDump
from zoo.metrics.confusion import confusion_matrix
from zoo.metrics.per_class import format_table


def evaluated(metric, samples, batch=7, size=None):
    for start in range(0, len(samples), batch):
        metric.process(None, samples[start : start + batch])
    return metric.evaluate(len(samples) if size is None else size)


def arrays(samples):
    targets = np.array([int(s["gt_label"]) for s in samples])
    return targets, torch.stack([s["pred_score"] for s in samples]).numpy()


class TestAccuracy:
    @pytest.mark.parametrize(("count", "classes"), [(100, 10), (37, 6), (50, 20)])
    def test_is_scikit_learns(self, make_samples, count, classes):
        samples = make_samples(count, classes)
        targets, scores = arrays(samples)
        result = evaluated(Accuracy(topk=(1, 3, 5)), samples)
        assert set(result) == {"accuracy/top1", "accuracy/top3", "accuracy/top5"}
        for k in (1, 3, 5):
            expected = sklearn.metrics.top_k_accuracy_score(targets, scores, k=k, labels=range(classes))
            assert result[f"accuracy/top{k}"] == pytest.approx(100 * expected, abs=1e-9)

    @pytest.mark.parametrize("classes", [1, 2, 4])
    def test_k_is_clipped_to_the_classes(self, make_samples, classes):
        samples = make_samples(20, classes)
        targets, scores = arrays(samples)
        result = evaluated(Accuracy(), samples)
        assert result["accuracy/top5"] == 100
        assert result["accuracy/top1"] == pytest.approx(100 * (scores.argmax(1) == targets).mean())

    def test_evaluator_and_data_samples(self, make_samples):
        from mmengine.evaluator import Evaluator

        samples = make_samples(12, 5)
        evaluator = Evaluator([{"type": Accuracy, "topk": 1}])
        evaluator.dataset_meta = {"classes": tuple("abcde")}
        for s in samples:
            data = ClsDataSample(metainfo={"sample_idx": s["sample_idx"], "img_path": s["img_path"]})
            evaluator.process([data.set_gt_label(s["gt_label"]).set_pred_score(s["pred_score"])], None)
        targets, scores = arrays(samples)
        assert evaluator.evaluate(12) == {"accuracy/top1": pytest.approx(100 * (scores.argmax(1) == targets).mean())}

    def test_evaluating_twice_starts_anew(self, make_samples):
        metric = Accuracy(topk=1)
        evaluated(metric, make_samples(30, 5, seed=1))
        samples = make_samples(30, 5, seed=2)
        assert evaluated(metric, samples) == evaluated(Accuracy(topk=1), samples)

    @pytest.mark.parametrize("topk", [0, (), (1, -1)])
    def test_bad_k(self, topk):
        with pytest.raises(ValueError, match="topk="):
            Accuracy(topk=topk)


class TestSamplesCountOnce:
    def test_repeated_samples(self, make_samples):
        samples = make_samples(20, 5)
        assert evaluated(Accuracy(), samples + samples[:9], size=20) == evaluated(Accuracy(), samples)

    def test_padding_without_indices_is_cut(self, make_samples):
        samples = make_samples(20, 5, with_index=False)
        assert evaluated(Accuracy(), samples + samples[:9], size=20) == evaluated(Accuracy(), samples)


class TestBadSamples:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"pred_score": torch.tensor([0.1, float("nan")])}, "'images/0.png' are not finite"),
            ({"pred_score": None}, "'images/0.png' has no pred_score"),
            ({"gt_label": None}, "has no gt_label"),
            ({"gt_label": torch.tensor([7])}, "label 7, but the model scores 2"),
            ({"gt_label": torch.tensor([-1])}, "label -1"),
            ({"gt_label": torch.tensor([0, 1])}, "2 labels"),
        ],
    )
    def test_are_refused(self, make_samples, change, message):
        with pytest.raises(ValueError, match=message):
            Accuracy().process(None, [make_samples(1, 2)[0] | change])

    def test_no_samples(self):
        with pytest.raises(ValueError, match="no sample"):
            Accuracy().evaluate(0)

    def test_classes_that_do_not_fit(self, make_samples):
        metric = ConfusionMatrix()
        metric.dataset_meta = {"classes": ("a", "b", "c")}
        with pytest.raises(ValueError, match="3 classes, but the model scores 5"):
            evaluated(metric, make_samples(10, 5))


class TestConfusion:
    @pytest.mark.parametrize("classes", [2, 5, 12])
    def test_is_scikit_learns(self, make_samples, tmp_path, classes):
        samples = make_samples(60, classes)
        targets, scores = arrays(samples)
        metric = ConfusionMatrix(tmp_path / "out" / "confusion.json")
        assert evaluated(metric, samples) == {}
        expected = sklearn.metrics.confusion_matrix(targets, scores.argmax(1), labels=range(classes))
        assert np.array_equal(metric.matrix.numpy(), expected)
        written = json.loads((tmp_path / "out" / "confusion.json").read_text(encoding="utf-8"))
        assert written == {"classes": [str(i) for i in range(classes)], "matrix": expected.tolist()}

    def test_one_class(self):
        assert confusion_matrix(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), 1).tolist() == [[4]]


class TestPerClass:
    @pytest.mark.parametrize(("count", "classes"), [(80, 5), (12, 9)])  # of 9 classes some do not occur in 12 samples
    def test_is_scikit_learns(self, make_samples, tmp_path, count, classes):
        samples = make_samples(count, classes, seed=3)
        targets, scores = arrays(samples)
        metric = PerClass(tmp_path / "per_class.csv")
        metric.dataset_meta = {"classes": tuple(f"class {i}" for i in range(classes))}
        result = evaluated(metric, samples)
        expected = np.array(
            sklearn.metrics.precision_recall_fscore_support(
                targets, scores.argmax(1), labels=range(classes), zero_division=0
            )
        ).T
        found = np.array([[r.precision / 100, r.recall / 100, r.f1 / 100, r.support] for r in metric.rows])
        np.testing.assert_allclose(found, expected, atol=1e-6)
        present = expected[:, 3] > 0
        for name, mean in zip(("precision", "recall", "f1"), expected[present].mean(0)):
            assert result[f"macro/{name}"] == pytest.approx(100 * mean, abs=1e-4)
        with (tmp_path / "per_class.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [r["name"] for r in rows] == [f"class {i}" for i in range(classes)]
        assert [int(r["support"]) for r in rows] == expected[:, 3].tolist()

    def test_text(self, make_samples):
        metric = PerClass()
        evaluated(metric, make_samples(20, 3))
        lines = format_table(metric.rows).splitlines()
        assert lines[0].split() == ["class", "precision", "recall", "f1", "support"]
        assert len(lines) == 4
        assert len({len(line) for line in lines}) == 1


class TestDump:
    def test_every_sample_is_there_in_order(self, make_samples, tmp_path):
        samples = make_samples(9, 7)
        metric = PredictionDump(tmp_path / "predictions.json", topk=3)
        metric.dataset_meta = {"classes": tuple("abcdefg")}
        assert evaluated(metric, samples[::-1], batch=4) == {}
        content = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
        assert content["classes"] == list("abcdefg")
        assert [p["img_path"] for p in content["predictions"]] == [s["img_path"] for s in samples]
        for prediction, sample in zip(content["predictions"], samples):
            order = np.argsort(-sample["pred_score"].numpy())[:3]
            assert prediction["labels"] == order.tolist()
            assert prediction["pred_label"] == order[0]
            assert prediction["gt_label"] == int(sample["gt_label"])
            np.testing.assert_allclose(prediction["scores"], sample["pred_score"].numpy()[order], rtol=1e-6)

    def test_fewer_classes_than_k(self, make_samples, tmp_path):
        evaluated(PredictionDump(tmp_path / "p.json", topk=5), make_samples(2, 3))
        assert len(json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["predictions"][0]["labels"]) == 3

    def test_bad_k(self, tmp_path):
        with pytest.raises(ValueError, match="topk=0"):
            PredictionDump(tmp_path / "p.json", topk=0)
