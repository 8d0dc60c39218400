"""Every small segmenter goes through predict, save, load and export; the registry alone says which there are."""

import numpy as np
import pytest
import torch

import zoo
from zoo.export import ExportError, export_model
from zoo.export.runtime import load_exported
from zoo.inference.load import load_predictor
from zoo.registry import MODELS
from zoo.segmentation.export import labels_differ
from zoo.segmentation.inference import untrained_predictor
from zoo.weights.checkpoint import save_safetensors

SEGMENTERS = [n for n in MODELS.names() if MODELS.entry(n).meta.get("task") == "segmentation"]
SMALL = [n for n in SEGMENTERS if n.endswith("_nano")]
SIZE = 64
#: One of each kind; `slow` tries all of them in all formats.
EXPORTED = [("fcn_davit_nano", ".onnx"), ("maskformer_nano", ".pt2")]


def predictor(name: str, seed: int = 0, **options):
    made = untrained_predictor(name, size=SIZE, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.model.parameters():  # some parts start at zero
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return made


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, np.uint8) for size in ((70, 90, 3), (1, 1, 3), (20, 300, 3))]


def test_there_are_small_segmenters():
    assert {"upernet_davit_nano", "mask2former_nano", "maskformer_nano"} <= set(SMALL)
    families = {MODELS.entry(n).meta["family"] for n in SEGMENTERS}
    assert {MODELS.entry(n).meta["family"] for n in SMALL} >= families - {"segformer"}  # B0 is small enough


@pytest.mark.parametrize("name", SMALL)
def test_predict_save_load(name, tmp_path):
    made, other = predictor(name), predictor(name, seed=1)
    options = {"score_threshold": 0.0, "max_detections": 5}
    before = made(images(), **options)
    assert [r.size for r in before] == [(70, 90), (1, 1), (20, 300)]
    for result in before:
        assert result.label_map.shape == result.size
        assert result.label_map.max() < made.num_classes
        if made.kind == "masks":
            assert result.segments.ids.shape == result.size
            assert len(result.instances) <= 5
            assert result.instances.scores == sorted(result.instances.scores, reverse=True)
            assert result.masks.shape == (len(result.instances), *result.size)
            assert all(m.any() for m in result.masks)
        else:
            assert result.instances is None
            assert result.segments is None
        assert result.draw().size > (0, 0)
    save_safetensors(tmp_path / "d.safetensors", made.model.segmenter.state_dict(), {})
    assert zoo.load_weights(other.model.segmenter, tmp_path / "d.safetensors").exact
    for a, b in zip(before, other(images(), **options), strict=True):
        np.testing.assert_array_equal(a.label_map, b.label_map)
        assert a.to_dict() == b.to_dict()


@pytest.mark.parametrize("name", ["upernet_davit_nano", "mask2former_nano"])
def test_parts_of_an_image(name):
    """Windows that hold the whole image are the image; a batch of windows is windows one by one."""
    made = predictor(name)
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    (whole,) = made([image])
    (window,) = made([image], sliding=SIZE)
    assert (whole.label_map == window.label_map).mean() > 0.99
    one, many = (made([image], sliding=(32, 24), batch_size=n)[0] for n in (1, 9))
    assert (one.label_map == many.label_map).mean() > 0.99
    assert window.instances is None  # windows give label maps alone


@pytest.mark.parametrize("name, suffix", EXPORTED)
def test_export(name, suffix, tmp_path, request):
    if suffix == ".onnx":
        request.getfixturevalue("onnx_exporter")
    made = predictor(name, classes=[f"class {k}" for k in range(6)], category_ids=range(1, 7))
    file = tmp_path / f"s{suffix}"
    report = export_model(made, file)
    assert report.max_error <= 1e-4
    assert report.dynamic == "batch"
    options = {"score_threshold": 0.0, "max_detections": 5}
    loaded = load_predictor(str(file))
    for found, expected in zip(loaded(images(), **options), made.for_export()(images(), **options), strict=True):
        assert found.size == expected.size
        assert (found.label_map == expected.label_map).mean() > 0.999
        assert (found.classes, found.palette, found.category_ids) == (
            expected.classes, expected.palette, expected.category_ids,
        )  # fmt: skip
        if made.kind == "masks":
            np.testing.assert_allclose(found.instances.scores, expected.instances.scores, rtol=1e-3)
            assert len(found.segments.infos) == len(expected.segments.infos)
    if made.kind == "semantic":
        (window,) = loaded(images()[:1], sliding=SIZE)  # windows of the size that the file takes
        assert window.label_map.shape == (70, 90)
        labels, logits = load_exported(file)(torch.zeros(2, 3, SIZE, SIZE))
        assert labels.shape == (2, SIZE, SIZE)
        assert logits.shape[:2] == (2, 6)
        with pytest.raises(RuntimeError, match="was exported for 64 x 64"):
            loaded(images()[:1], sliding=32)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", [*SMALL, "segformer_b0"])
def test_export_of_all(name, suffix, tmp_path):
    report = export_model(predictor(name), tmp_path / f"d{suffix}")
    assert report.max_error <= 1e-4
    assert report.dynamic == "batch"


def test_labels_may_differ_where_logits_are_equal():
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0] = 1.0
    labels = logits.argmax(1)
    flipped = labels.clone()
    flipped[0, 1] = 1  # both logits are 0 there
    assert labels_differ((flipped, logits), (labels, logits)) == 0
    assert labels_differ((1 - labels, logits), (labels, logits)) == float("inf")
    assert labels_differ((labels, logits + 0.1), (labels, logits)) > 0.1


def test_what_cannot_be_exported_says_why(tmp_path):
    made = predictor("mask2former_nano")
    made.model.postprocess = made.postprocess = lambda outputs, sizes: []
    with pytest.raises((ValueError, ExportError), match="cannot be recorded"):
        export_model(made, tmp_path / "x.pt2")
    assert list(tmp_path.iterdir()) == []
    native = untrained_predictor("upernet_davit_nano")
    native.transform_spec = {"train": False}
    with pytest.raises(ValueError, match="give size"):
        export_model(native, tmp_path / "x.pt2")
