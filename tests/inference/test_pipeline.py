"""The pipeline around a network: order, batches, overlap, errors, options, and what results can do."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.classification.inference import Classifier
from zoo.data.loading import ImageReadError
from zoo.inference.load import load_predictor
from zoo.inference.pipeline import Sample, by_size, ordered_map
from zoo.inference.results import Result, Results
from zoo.inference.sources import Item

CLASSES = [f"level {i}" for i in range(8)]


class Brightness(torch.nn.Module):
    """Names the eighth of 0 ... 255 in which an image's mean lies, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):  # [B, 3, h, w], not normalised
        self.batches.append(tuple(x.shape))
        levels = torch.arange(8) * 32 + 16
        return -(x.mean((1, 2, 3))[:, None] * 255 - levels).abs()  # [B, 8]


@pytest.fixture
def classifier():
    return Classifier(
        Brightness(), dict(size=8), mean=(0, 0, 0), std=(1, 1, 1), classes=CLASSES, device="cpu", name="b"
    )


def flat(level, size=(10, 14)):
    return np.full((*size, 3), 32 * level + 16, np.uint8)


def test_results_are_in_order_and_batches_full(classifier):
    levels = [i % 8 for i in range(21)]
    results = classifier([flat(i) for i in levels], batch_size=8, topk=2)
    assert isinstance(results, Results)
    assert [r.label for r in results] == levels
    assert [r.name for r in results] == [CLASSES[i] for i in levels]
    assert [r.source for r in results] == [f"image {i}" for i in range(21)]
    assert [b[0] for b in classifier.network.batches] == [8, 8, 5]
    first = results[1]
    assert first.size == (10, 14)
    assert [n for n, _ in first.top] in (["level 1", "level 0"], ["level 1", "level 2"])
    expected = classifier.logits([flat(1)])[0].softmax(0)
    assert torch.equal(first.scores, expected)
    assert first.score == expected.max().item()


def test_sigmoid_scores():
    classifier = Classifier(Brightness(), dict(size=8), score="sigmoid", device="cpu")
    (result,) = classifier(flat(3))
    assert torch.equal(result.scores, classifier.logits([flat(3)])[0].sigmoid())
    with pytest.raises(ValueError, match="score="):
        Classifier(Brightness(), dict(size=8), score="none")


def test_streaming_reads_no_further_than_two_batches(classifier):
    taken = []

    def images():
        for i in range(100):
            taken.append(i)
            yield flat(i % 8)

    stream = classifier(images(), batch_size=4, workers=2, stream=True)
    assert taken == []
    assert next(stream).label == 0
    assert len(taken) <= 2 * 4 + 2 + 4
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("zoo-prepare")]


def test_preparation_overlaps_with_the_network(classifier):
    """Sleeping stands for work: 12 images that take 30 ms to prepare, 12 steps of 30 ms."""

    def slow(image):
        time.sleep(0.03)
        return np.zeros((4, 4, 3), np.uint8)

    class Slow(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.03 * len(x))
            return x.mean((2, 3))

    overlapped = Classifier(Slow(), slow, device="cpu")
    started = time.perf_counter()
    assert len(overlapped([flat(0)] * 12, batch_size=2, workers=2)) == 12
    assert time.perf_counter() - started < 0.65  # one after the other: 0.72 s at least; overlapped: 0.4 s


def test_ordered_map_keeps_order_and_bounds():
    running, most, taken = [], [], []

    def work(i):
        running.append(i)
        time.sleep(0.002 * (i % 3))
        running.remove(i)
        return i * i

    def items():
        for i in range(40):
            taken.append(i)
            most.append(len(taken) - len(given))
            yield i

    given = []
    for value in ordered_map(work, items(), workers=4, ahead=6):
        given.append(value)
    assert given == [i * i for i in range(40)]
    assert max(most) <= 7


def test_ordered_map_raises_in_its_place():
    def work(i):
        if i == 5:
            raise KeyError("five")
        return i

    stream = ordered_map(work, range(10), workers=3, ahead=4)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="five"):
        next(stream)


def test_batches_by_size():
    sizes = [4, 8, 4, 4, 8, 2, 4, 8, 4, 4]
    samples = [Sample(Item(str(i), lambda: None), pixels=np.zeros((s, s, 3), np.uint8)) for i, s in enumerate(sizes)]
    samples.insert(3, Sample(Item("bad", lambda: None), error=ValueError("bad")))
    batches = []

    def run(batch):
        batches.append([s.pixels.shape[0] for s in batch])
        return [s.item.source for s in batch]

    found = list(by_size(samples, 3, run))
    assert [s.item.source for s, _ in found] == ["0", "1", "2", "bad", *(str(i) for i in range(3, 10))]
    assert all(result == (None if s.error else s.item.source) for s, result in found)
    assert sorted(batches) == sorted([[4, 4, 4], [8, 8, 8], [4, 4, 4], [2]])


def test_an_odd_size_does_not_wait_for_ever():
    sizes = [2] + [4] * 30
    samples = (Sample(Item(str(i), lambda: None), pixels=np.zeros((s, s, 3), np.uint8)) for i, s in enumerate(sizes))
    seen = []
    stream = by_size((seen.append(s) or s for s in samples), 4, lambda batch: [None] * len(batch))
    next(stream)
    assert len(seen) <= 31
    many = [Sample(Item(str(i), lambda: None), pixels=np.zeros((i + 1, 4, 3), np.uint8)) for i in range(40)]
    seen = []
    next(by_size((seen.append(s) or s for s in many), 4, lambda batch: [None] * len(batch)))
    assert len(seen) == 16  # four batches' worth of images wait at most


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        Image.fromarray(flat(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    return tmp_path


def test_unreadable_images(classifier, folder, caplog):
    with pytest.raises(ImageReadError, match=r"3\.png"):
        classifier(folder)
    skipped = classifier(folder, on_error="skip")
    assert [r.label for r in skipped] == [0, 1, 2, 4, 5]
    assert "3.png" in caplog.text
    reported = classifier(folder, on_error="report", batch_size=2)
    assert [r.label for r in reported] == [0, 1, 2, -1, 4, 5]
    (bad,) = reported.errors
    assert bad.to_dict().keys() == {"source", "error"}
    assert bad.to_coco() == []
    with pytest.raises(ValueError, match="3.png"):
        bad.draw()


def test_failures_of_transform_and_network_name_the_images(folder):
    def transform(image):
        raise ZeroDivisionError("oops")

    with pytest.raises(ValueError, match=r"0\.png.*ZeroDivisionError: oops"):
        Classifier(Brightness(), transform, device="cpu")(folder / "0.png")

    class Broken(torch.nn.Module):
        def forward(self, x):
            raise IndexError("inside")

    with pytest.raises(RuntimeError, match=r"0\.png.*IndexError: inside"):
        Classifier(Broken(), dict(size=8), device="cpu")(folder / "0.png")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(batch_size=0), ValueError, "batch_size=0"),
        (dict(topk=0), ValueError, "topk=0"),
        (dict(on_error="ignore"), ValueError, "'skip'"),
        (dict(workers=0), ValueError, "workers=0"),
        (dict(top_k=3), TypeError, "topk"),
        (dict(frames="none"), ValueError, "frames="),
        (dict(device="cpu"), ValueError, "device"),
        (dict(runtime="onnx"), ValueError, "runtime"),
    ],
)
def test_wrong_options(classifier, options, error, words):
    with pytest.raises(error, match=words):
        zoo.predict(classifier, [], **options)


def test_wrong_loading_options():
    with pytest.raises(ValueError, match="runtime='tensorrt'"):
        load_predictor("davit_nano", runtime="tensorrt")
    with pytest.raises(ValueError, match="zoo export"):
        load_predictor("davit_nano", runtime="onnx")
    with pytest.raises(ValueError, match="amp='int8'"):
        Classifier(Brightness(), dict(size=8), amp="int8")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        load_predictor("none.onnx")


def test_amp_and_compile():
    torch.manual_seed(0)
    model = zoo.create_model("vit_nano", num_classes=4, depth=1).eval()
    plain = zoo.predict(model, flat(3, (40, 40)), size=32, device="cpu")[0]
    half = zoo.predict(model, flat(3, (40, 40)), size=32, device="cpu", amp=True)[0]
    assert 0 < (half.scores - plain.scores).abs().max() < 0.05
    compiled = zoo.predict(model, flat(3, (40, 40)), size=32, device="cpu", compile={"backend": "eager"})[0]
    assert torch.allclose(compiled.scores, plain.scores, atol=1e-6)


def test_what_results_can_do(classifier, folder, tmp_path, monkeypatch):
    results = classifier([folder / "1.png", flat(5)], topk=3)
    lines = [json.loads(line) for line in results.to_json(tmp_path / "out.jsonl").splitlines()]
    assert lines == results.to_dicts()
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == results.to_json()
    assert lines[1]["name"] == "level 5"
    assert len(lines[0]["top"]) == 3
    entries = results.to_coco(path=tmp_path / "coco.json")
    assert json.loads((tmp_path / "coco.json").read_text(encoding="utf-8")) == entries
    assert [e["image_id"] for e in entries] == [0, 0, 0, 1, 1, 1]
    assert [entries[0]["category_id"], entries[3]["category_id"]] == [1, 5]
    assert entries[0]["score"] == results[0].score
    ids = {str(folder / "1.png"): 17, "image 1": 4}
    assert {e["image_id"] for e in results.to_coco(ids)} == {17, 4}
    with pytest.raises(KeyError, match="image 1"):
        results.to_coco({str(folder / "1.png"): 1})
    saved = results.save(tmp_path / "pictures")
    assert sorted(p.name for p in saved.iterdir()) == ["00000_1.png", "00001_image_1.png", "predictions.jsonl"]
    assert Image.open(saved / "00000_1.png").size[0] > 100
    assert json.loads(results[0].save(tmp_path / "one.json").read_text(encoding="utf-8")) == lines[0]
    with pytest.raises(ValueError, match=r"\.xyz"):
        results[0].save(tmp_path / "a.xyz")
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self: shown.append(self.size))
    results[0].show()
    assert shown
    assert results[0]._repr_png_().startswith(b"\x89PNG")


def test_dataframes(classifier, monkeypatch):
    results = classifier([flat(1), flat(5)], topk=2)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        results.to_dataframe()
    monkeypatch.undo()
    pytest.importorskip("pandas")
    frame = results.to_dataframe()
    assert list(frame.columns) == ["source", "frame", "error", "rank", "label", "name", "score"]
    assert frame["label"].tolist()[::2] == [1, 5]


def test_images_are_read_again_or_kept(classifier, folder):
    (again,) = classifier(folder / "1.png")
    assert again._image is None
    assert np.array_equal(again.image, flat(1))
    (gone,) = classifier(flat(i) for i in (2,))
    with pytest.raises(ValueError, match="keep_images=True"):
        gone.draw()
    assert gone._repr_png_() is None
    (kept,) = classifier((flat(i) for i in (2,)), keep_images=True)
    assert np.array_equal(kept.image, flat(2))


def test_a_task_must_define_its_result():
    for method in ("body", "rows", "draw"):
        with pytest.raises(NotImplementedError):
            getattr(Result("a"), method)()


def test_tasks_of_models(monkeypatch):
    from zoo.inference.load import task_of, untrained_predictor

    assert task_of("davit_nano") == task_of("davit-nano_cls_12e_digits") == "classification"
    assert task_of(zoo.create_model("vit_nano", depth=1)) == "classification"
    predictor = untrained_predictor("davit-nano_cls_12e_digits")
    assert predictor.name == ""
    assert predictor.transform_spec["size"] == 32
    assert len(predictor(flat(2))[0].scores) == 10
    first, second = (untrained_predictor("vit_nano", num_classes=3)(flat(2))[0].scores for _ in range(2))
    assert torch.equal(first, second)
    for config in ("davit-nano_cls_12e_digits", "dab-detr-nano_det_60e_shapes"):
        with pytest.raises(ValueError, match="num_classes=4"):
            untrained_predictor(config, num_classes=4)
    monkeypatch.setattr("zoo.inference.load.task_of", lambda model: "cooking")
    with pytest.raises(LookupError, match="'cooking' cannot predict"):
        load_predictor("davit_nano")
