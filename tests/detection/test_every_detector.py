"""Every family of detectors goes through predict, save, load and export; the registry alone says which there are."""

import numpy as np
import pytest
import torch

import zoo
from zoo.detection.inference import untrained_predictor
from zoo.export import export_model
from zoo.registry import MODELS
from zoo.weights.checkpoint import save_safetensors

DETECTORS = [n for n in MODELS.names() if MODELS.entry(n).meta.get("task") == "detection"]
SMALL = [n for n in DETECTORS if n.endswith("_nano")]
SIZE = 96


def predictor(name: str, seed: int = 0):
    made = untrained_predictor(name, size=SIZE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.model.parameters():  # heads start at zero, where all boxes are alike
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return made


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, np.uint8) for size in ((70, 90, 3), (96, 64, 3))]


def test_there_are_small_detectors():
    assert {"detr_nano", "deformable_detr_nano", "dino_nano"} <= set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_predict_save_load(name, tmp_path):
    made, other = predictor(name), predictor(name, seed=1)
    options = {"score_threshold": 0.0, "max_detections": 10}
    before = zoo.predict(made, images(), **options)
    assert [r.size for r in before] == [(70, 90), (96, 64)]
    for result in before:
        assert 0 < len(result) <= 10
        assert all(np.isfinite(result.boxes).all(1))
        assert result.boxes.min() >= 0
        assert (result.boxes[:, 2:] <= [result.size[1], result.size[0]]).all()
        assert result.scores == sorted(result.scores, reverse=True)
    save_safetensors(tmp_path / "d.safetensors", made.model.detector.state_dict(), {})
    assert zoo.load_weights(other.model.detector, tmp_path / "d.safetensors").exact
    after = zoo.predict(other, images(), **options)
    for a, b in zip(before, after, strict=True):
        assert a.labels == b.labels
        np.testing.assert_array_equal(a.boxes, b.boxes)


def has_fixed_outputs(name: str) -> bool:
    """Whether a detector gives the same number of boxes for every image, as an exported graph must."""
    return MODELS.entry(name).meta["family"] not in ("mask_rcnn", "faster_rcnn", "retinanet")


@pytest.mark.parametrize("name", [n for n in SMALL if not has_fixed_outputs(n)])
def test_what_cannot_be_exported_says_why(name, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported"):
        export_model(predictor(name), tmp_path / "d.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", [n for n in SMALL if has_fixed_outputs(n)])
def test_export(name, suffix, tmp_path):
    report = export_model(predictor(name), tmp_path / f"d{suffix}")
    assert report.max_error <= 1e-4
