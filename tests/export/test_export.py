"""Exported files: what is in them, that they compute the same, and that nothing wrong gets a name."""

import json
import os
import zipfile

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from zoo.classification.inference import Classifier
from zoo.cli import main
from zoo.export import ExportError, export_model, load_exported
from zoo.export import capture as capture_module
from zoo.export import model as model_module
from zoo.export.facts import KEY

CLASSES = ["cat", "dog", "\u00fcber"]
RNG = np.random.default_rng(0)


class Net(nn.Module):
    """A small classifier with what real ones have: convolution, normalisation, attention."""

    strides = (4,)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 3)

    def forward(self, x):  # [B, 3, h, w] -> [B, 3]
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2))  # [B, N, C]
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d] each
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x.mean(1))


class Constant(nn.Module):
    """Gives the same whatever it is asked; a file of it cannot agree with another network."""

    def forward(self, x):
        return torch.ones(x.shape[0], 3) * x.mean((1, 2, 3))[:, None]


def classifier(network=None, size=(16, 20)):
    torch.manual_seed(0)
    return Classifier(
        network or Net(), dict(size=size), classes=CLASSES, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), name="net",
        device="cpu",
    )  # fmt: skip


def images(count=5, size=(23, 31)):
    return [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
@pytest.mark.parametrize("dynamic", ["all", "batch", "none"])
def test_a_file_predicts_as_the_model(tmp_path, format, dynamic):
    own = classifier()
    path = tmp_path / ("m.onnx" if format == "onnx" else "m.pt2")
    report = export_model(own, path, format=format, dynamic=dynamic, batch=2)
    assert (report.dynamic, report.notes) == (dynamic, [])
    assert report.max_error <= 1e-5
    assert len(report.checked) == 3
    assert len({shape for shape, _ in report.checked}) == (1 if dynamic == "none" else 3)
    assert len({shape[2:] for shape, _ in report.checked}) == (3 if dynamic == "all" else 1)
    given = images()
    expected = own(given, batch_size=3)
    found = zoo.predict(path, given, batch_size=3, runtime=format)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-6)
        assert a.name == b.name in CLASSES
        assert a.to_dict().keys() == b.to_dict().keys()
    assert os.listdir(tmp_path) == [path.name]


def test_sizes_that_a_file_does_not_take(tmp_path):
    export_model(classifier(), tmp_path / "fixed.pt2")
    export_model(classifier(), tmp_path / "free.pt2", dynamic="all")
    with pytest.raises(ValueError, match="exported for 16 x 20"):
        load_exported(tmp_path / "fixed.pt2")(torch.zeros(1, 3, 16, 16))
    free = load_exported(tmp_path / "free.pt2")
    assert free.facts["multiple"] == 4
    network = classifier().network
    x = torch.randn(3, 3, 36, 8)
    with torch.no_grad():
        torch.testing.assert_close(free(x), network(x))
    with pytest.raises(ValueError, match="multiples of 4"):
        free(torch.zeros(1, 3, 18, 16))


def test_metadata_is_inside(tmp_path):
    export_model(classifier(), tmp_path / "m.onnx")
    export_model(classifier(), tmp_path / "m.pt2")
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model)
    facts = json.loads({p.key: p.value for p in model.metadata_props}[KEY])
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        (entry,) = [n for n in archive.namelist() if n.endswith("attnzoo.json")]
        assert {**json.loads(archive.read(entry)), "format": "onnx"} == facts
    assert facts["classes"] == CLASSES
    assert facts["size"] == [16, 20]
    assert facts["model"] == "net"
    assert facts["mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert facts["std"] == pytest.approx([0.2, 0.3, 0.4])
    assert [i.name for i in model.graph.input] == ["images"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_file_that_differs_gets_no_name(tmp_path, monkeypatch, format):
    path = tmp_path / ("m.onnx" if format == "onnx" else "m.pt2")
    path.write_bytes(b"what was here before")
    real = model_module.capture
    monkeypatch.setattr(model_module, "capture", lambda network, *rest: real(Constant(), *rest))
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export_model(classifier(), path, format=format)
    assert path.read_bytes() == b"what was here before"
    assert os.listdir(tmp_path) == [path.name]


class OneImage(nn.Module):
    """A network for one image only: what torch.export calls a specialised dimension."""

    def forward(self, x):
        assert x.shape[0] == 1
        return x.mean((2, 3))


def test_less_is_left_open_where_the_model_needs_it(tmp_path):
    report = export_model(classifier(OneImage()), tmp_path / "m.pt2", dynamic="all")
    assert report.dynamic == "none"
    assert [n.split(" could")[0] for n in report.notes] == ["the size", "the number of images"]
    assert len(zoo.predict(tmp_path / "m.pt2", images(3))) == 3
    assert "1 image(s) of 16 x 20" in report.summary()


class Branch(nn.Module):
    """A network whose course depends on what it sees."""

    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_models_that_cannot_be_captured(tmp_path):
    with pytest.raises(ExportError, match=r"torch\.export with dynamic='none'"):
        export_model(classifier(Branch()), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(path="m.txt"), "format=None"),
        (dict(path="m.onnx", format="tensorrt"), "format='tensorrt'"),
        (dict(path="m.onnx", format="aoti"), r"ending \.pt2"),
        (dict(path="m.onnx", dynamic="size"), "dynamic='size'"),
        (dict(path="m.onnx", size=32), "weights and size"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        export_model(classifier(), **{**arguments, "path": tmp_path / arguments["path"]})


def test_a_transform_that_cannot_be_recorded(tmp_path):
    with pytest.raises(ValueError, match="transform is a function"):
        export_model(Classifier(Net(), lambda image: image[:16, :16], device="cpu"), tmp_path / "m.onnx")


def test_weights_beyond_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "_ONNX_LIMIT", 100)
    with pytest.raises(ExportError, match="2 GiB"):
        export_model(classifier(), tmp_path / "m.onnx")


def test_aoti_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(capture_module.shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match=r"install g\+\+ or clang"):
        export_model(classifier(), tmp_path / "m.pt2", format="aoti")


@pytest.mark.slow
def test_aoti(tmp_path):
    if capture_module.compiler() is None:
        pytest.skip("there is no C++ compiler")
    own = classifier()
    report = export_model(own, tmp_path / "m.pt2", format="aoti")
    assert report.max_error <= 1e-5
    given = images()
    for a, b in zip(own(given), zoo.predict(tmp_path / "m.pt2", given, runtime="aoti"), strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-6)
    with pytest.raises(ValueError, match="compiled for the CPU"):
        load_exported(tmp_path / "m.pt2", device="cuda")


def test_files_of_others_and_damaged_ones(tmp_path):
    export_model(classifier(), tmp_path / "m.onnx")
    export_model(classifier(), tmp_path / "m.pt2")
    model = onnx.load(tmp_path / "m.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "w") as archive:
        archive.writestr("a/b", "c")
    for name in ("m.onnx", "m.pt2"):
        (tmp_path / f"cut_{name}").write_bytes((tmp_path / name).read_bytes()[:2000])
    for name, words in (
        ("foreign.onnx", "was not written by zoo export"),
        ("foreign.pt2", "was not written by zoo export"),
        ("cut_m.onnx", "damaged"),
        ("cut_m.pt2", "damaged"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{words}"):
            zoo.predict(tmp_path / name, images(1))
    for options, words in (
        (dict(runtime="aoti"), "a file for 'onnx'"),
        (dict(weights="w.pth"), "weights inside"),
        (dict(size=64), "export it again"),
        (dict(device="cuda"), "CPU only|CUDA"),
    ):
        with pytest.raises(ValueError, match=words):
            zoo.predict(tmp_path / "m.onnx", images(1), **options)


def test_export_and_predict_on_the_command_line(tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.fromarray(images(1)[0]).save(picture)
    out = str(tmp_path / "vit.onnx")
    command = ["export", "vit_nano", "--format", "onnx", out, "--random-weights", "--num-classes", "4", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["facts"]["model"] == "vit_nano"
    assert report["max_error"] < 1e-4
    coco = tmp_path / "coco.json"
    argv = ["predict", out, str(picture), "--runtime", "onnx", "--json", "--topk", "2", "--coco", str(coco)]
    assert main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert [t["name"] for t in said["top"]] == [
        str(e["category_id"]) for e in json.loads(coco.read_text(encoding="utf-8"))
    ]
    assert main(["predict", out, str(picture), "--runtime", "eager"]) == 1
    assert "onnx" in capsys.readouterr().err
    for wrong, words in (
        (["--int8"], "--calibration"),
        (["--dynamic", "--static"], "exclude"),
        (["--num-classes", "3"], "--random-weights"),
        (["--format", "aoti"], ".pt2"),
    ):
        extra = [] if "--num-classes" in wrong else ["--random-weights"]
        assert main(["export", "vit_nano", out, *wrong, *extra]) == 1
        assert words in capsys.readouterr().err
