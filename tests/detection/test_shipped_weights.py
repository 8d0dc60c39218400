"""The detector whose weights come with the repository: found by its name, and as good as the index says."""

import pytest
import torch

import zoo
from zoo.data.shapes import SHAPE_CLASSES, Shapes
from zoo.data.shapes_detection import ShapesDetection
from zoo.detection.boxes import paired_iou
from zoo.detection.inference import load_predictor
from zoo.metrics.coco import CocoBoxes
from zoo.weights.hub import resolve_weights
from zoo.weights.index import model_info

PICTURES = 40


@pytest.fixture(scope="module")
def predictor():
    return load_predictor("dino_nano")


def test_it_finds_shapes_in_new_pictures(predictor):
    data = ShapesDetection(split="test", length=PICTURES, size=128, transform=dict(train=False, size=128))
    metric = CocoBoxes()
    metric.dataset_meta = data.metainfo
    for start in range(0, PICTURES, 20):
        samples = [data[i] for i in range(start, start + 20)]
        batch = {k: [s[k] for s in samples] for k in ("inputs", "data_samples")}
        found = predictor.model(**predictor.model.data_preprocessor(batch), mode="predict")
        metric.process(None, [f.to_dict() for f in found])
    stats = metric.evaluate(PICTURES)
    # The index has 0.65 for 300 pictures of another split.
    assert stats["coco/AP"] > 0.5, stats
    assert stats["coco/AP50"] > 0.6, stats


def test_it_knows_its_classes_and_its_size(predictor):
    assert predictor.classes == list(SHAPE_CLASSES)
    assert predictor.transform_spec["size"] == 128
    data = Shapes("test", 10, 128, objects=(1, 1), occluders=(0, 0))
    results = predictor([data.load_image(i) for i in range(len(data))], score_threshold=0.0)
    found = 0
    for index, result in enumerate(results):
        scene = data.scene(index)
        best = result.names.index(data.classes[scene.label])
        iou = paired_iou(torch.from_numpy(result.boxes[best : best + 1]), torch.from_numpy(scene.boxes[:1]))
        found += float(iou) > 0.7
    assert found >= 8


def test_it_starts_own_training():
    """`pretrained=True` with other classes keeps all but the tensors of classes."""
    whole, own = (zoo.create_model("dino_nano", pretrained=True, num_classes=n) for n in (None, 3))
    state, other = own.state_dict(), whole.state_dict()
    different = [k for k in state if state[k].shape != other[k].shape]
    assert different
    assert all("class_embed" in k or "label_enc" in k for k in different)
    assert all(torch.equal(state[k], other[k]) for k in state if k not in different)


def test_the_file_is_small():
    info = model_info("dino_nano")
    size = resolve_weights("dino_nano").stat().st_size
    assert size == info.weights["size"] < 8e6
