"""int8 files: smaller, measured on other images than those that calibrated them, and as good as they say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from zoo.classification.inference import Classifier
from zoo.cli import main
from zoo.export import ExportError
from zoo.export.quantize import dataset, export_int8, split

COLOURS = ["red", "green", "blue"]


class ByColour(nn.Module):
    """Tells images by their strongest channel: weights that are known to be right."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 1, bias=False)
        self.middle = nn.Linear(64, 64, bias=False)
        self.last = nn.Linear(64, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3).repeat(22, 1)[:64, :, None, None])
            self.middle.weight.copy_(torch.eye(64))
            self.last.weight.copy_(torch.eye(3).repeat(1, 22)[:, :64])

    def forward(self, x):  # [B, 3, h, w] -> [B, 3]
        return self.last(self.middle(self.conv(x).mean((2, 3))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for channel, name in enumerate(COLOURS):
        (root / name).mkdir()
        for i in range(12):
            image = rng.integers(0, 120, (20, 20, 3), dtype=np.uint8)
            image[:, :, channel] += 100
            Image.fromarray(image).save(root / name / f"{i}.png")
    return root


def classifier(network=None, classes=COLOURS):
    return Classifier(network or ByColour(), dict(size=16), classes=classes, name="by-colour", device="cpu")


def test_int8_is_measured(folder, tmp_path):
    path = tmp_path / "m.onnx"
    report = export_int8(classifier(), path, folder, images=9, max_drop=5)
    assert (report.calibrated_on, report.evaluated_on) == (9, 27)
    assert report.float_accuracy == 100
    assert report.int8_accuracy >= 95
    assert report.change == report.int8_accuracy - 100
    assert report.int8_bytes == path.stat().st_size
    assert "points" in report.summary()
    import onnx

    kinds = {n.op_type for n in onnx.load(path).graph.node}
    assert "DequantizeLinear" in kinds
    results = zoo.predict(path, folder / "blue", runtime="onnx")
    assert [r.name for r in results] == ["blue"] * 12
    exact = classifier()(folder / "blue")
    close = [float((a.scores - b.scores).abs().max()) for a, b in zip(exact, results, strict=True)]
    assert 0 < max(close) < 0.05


def test_too_large_a_loss_leaves_no_file(folder, tmp_path, monkeypatch):
    import zoo.export.quantize as module

    real = module._measure

    def worse(*args):
        report = real(*args)
        report.int8_accuracy = 80.0
        return report

    monkeypatch.setattr(module, "_measure", worse)
    with pytest.raises(ExportError, match="loses 20.00 points"):
        export_int8(classifier(), tmp_path / "m.onnx", folder, max_drop=1)
    assert list(tmp_path.iterdir()) == []


def test_calibration_and_measurement_share_no_image(folder):
    images, labels = dataset(folder, COLOURS)
    assert labels == [2] * 12 + [1] * 12 + [0] * 12  # by folder: blue, green, red
    first, second = split(images, labels, 10)
    assert (len(first), len(second)) == (10, 26)
    assert not {id(i) for i, _ in first} & {id(i) for i, _ in second}
    assert {label for _, label in first} == {0, 1, 2}
    assert [len(part) for part in split(images, labels, 500)] == [18, 18]
    assert dataset(folder, ["other"])[1] is None
    with pytest.raises(ValueError, match="too few"):
        split(images[:1], None, 1)
    with pytest.raises(ValueError, match="images=0"):
        split(images, None, 0)


def test_digits_have_labels_for_models_of_digits():
    images, labels = dataset("digits", [str(i) for i in range(10)])
    assert len(images) == len(labels) > 300
    assert images[0]().shape == (32, 32, 3)
    assert dataset("digits", COLOURS)[1] is None


def test_on_the_command_line(folder, tmp_path, capsys):
    out = str(tmp_path / "m.onnx")
    options = ["--random-weights", "--num-classes", "3", "--int8", "--calibration", str(folder), "--json"]
    assert main(["export", "vit_nano", out, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["float_accuracy"] is None  # the model does not name its classes
    assert 0 <= report["agreement"] <= 100
    assert report["int8_bytes"] < 0.6 * report["float_bytes"]
    assert main(["export", "vit_nano", str(tmp_path / "m.pt2"), *options]) == 1
    assert ".onnx" in capsys.readouterr().err
