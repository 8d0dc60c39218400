"""Detectors as files of other runtimes: boxes come out, the same as from PyTorch."""

import numpy as np
import pytest
import torch

from zoo.detection.export import detections_differ
from zoo.detection.inference import untrained_predictor
from zoo.export import export_model
from zoo.inference.load import predict


def detections(*rows) -> list[torch.Tensor]:
    """Scores, labels and boxes of one image from (score, label, x0) rows."""
    scores, labels, x0 = zip(*rows)
    boxes = torch.tensor([[x, 0.1, x + 0.2, 0.5] for x in x0])
    return [torch.tensor([scores]), torch.tensor([labels]), boxes[None]]


def test_equal_scores_may_change_places_and_nothing_else():
    a = detections((0.9, 1, 0.1), (0.5, 2, 0.2), (0.5, 3, 0.4), (0.2, 1, 0.6))
    assert detections_differ(detections((0.9, 1, 0.1), (0.5, 3, 0.4), (0.5, 2, 0.2), (0.2, 1, 0.6)), a) == 0
    # The last ones may be others of the same score.
    assert detections_differ(detections((0.9, 1, 0.1), (0.5, 2, 0.2), (0.5, 3, 0.4), (0.2, 2, 0.1)), a) == 0
    moved = detections((0.9, 1, 0.1), (0.5, 2, 0.25), (0.5, 3, 0.4), (0.2, 1, 0.6))
    assert detections_differ(moved, a) == pytest.approx(0.05, abs=1e-6)
    assert detections_differ(detections((0.9, 2, 0.1), (0.5, 2, 0.2), (0.5, 3, 0.4), (0.2, 1, 0.6)), a) == float("inf")
    assert detections_differ(detections((0.8, 1, 0.1), (0.5, 2, 0.2), (0.5, 3, 0.4), (0.2, 1, 0.6)), a) > 0.05


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("detr_nano", ".pt2"), ("dino_nano", ".pt2"), ("deformable_detr_nano", ".onnx")],
)
def test_files_give_the_same_boxes(tmp_path, name, suffix, request):
    if suffix == ".onnx":
        request.getfixturevalue("onnx_exporter")
    predictor = untrained_predictor(name, size=96)
    with torch.no_grad():
        for p in predictor.model.parameters():  # heads start at zero, where all boxes are alike
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    file = tmp_path / f"detector{suffix}"
    report = export_model(predictor, file)
    assert report.max_error <= 1e-4
    assert len(report.checked) == 3
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    expected = predictor.for_export()([image], score_threshold=0.0, max_detections=20)[0]
    found = predict(str(file), [image], score_threshold=0.0, max_detections=20)[0]
    assert len(found) == len(expected) == 20
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    assert sorted(found.labels) == sorted(expected.labels)
    np.testing.assert_allclose(np.sort(found.boxes, 0), np.sort(expected.boxes, 0), atol=0.05)


def test_dropping_overlaps_cannot_be_exported(tmp_path):
    from functools import partial

    from zoo.detection.postprocess import best_of_pairs

    predictor = untrained_predictor("deformable_detr_nano", size=64)
    predictor.model.postprocess = partial(best_of_pairs, nms_threshold=0.5)
    with pytest.raises(ValueError, match="nms_threshold"):
        export_model(predictor, tmp_path / "x.pt2")
    assert list(tmp_path.iterdir()) == []
