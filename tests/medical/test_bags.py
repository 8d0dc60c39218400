"""Bags: files, folds, classifiers that learn, heat maps and the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.data.bags import Bag, BagDataset, BagError, fold_of, read_bag, read_slide_labels, write_bag
from zoo.data.generated_bags import GeneratedBags, generated_bag, write_generated_bags
from zoo.medical.acmil import GatedACMIL, QueryACMIL, acmil_losses
from zoo.medical.aem import ABMIL, DSMIL, QueryMIL, aem_losses, bag_probabilities
from zoo.medical.bag_classifier import BagClassifier, attention_of
from zoo.medical.bag_inference import BagPredictor, find_bags, load_bag_predictor

HEADS = {
    "acmil": lambda: GatedACMIL(8, 8, 3, hidden=4, branches=2, masked_patches=0),
    "acmil-mha": lambda: QueryACMIL(8, 8, 3, branches=2, num_heads=2, masked_patches=0),
    "abmil": lambda: ABMIL(8, 8, 3, hidden=4),
    "mha": lambda: QueryMIL(8, 8, 3, num_heads=2),
    "dsmil": lambda: DSMIL(8, 8, 3),
}


def bags(*counts: int, dim: int = 8) -> list[torch.Tensor]:
    return [torch.randn(n, dim, generator=torch.Generator().manual_seed(n)) for n in counts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_generated_bags(tmp_path_factory.mktemp("slides"), 20, dim=8)


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".h5", ".hdf5", ".safetensors"])
def test_written_bags_are_read(tmp_path: Path, ending: str) -> None:
    made, _ = generated_bag(0, 1, 8)
    read = read_bag(write_bag(tmp_path / f"a{ending}", made.features, made.coords), dim=8)
    assert np.array_equal(read.features, made.features)
    assert np.array_equal(read.coords, made.coords)


def test_leading_axis_and_half_precision(tmp_path: Path) -> None:
    import h5py
    from safetensors.torch import save_file

    made, _ = generated_bag(0, 1, 8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = made.features[None].astype(np.float16), made.coords.astype(np.int32)
    read = read_bag(tmp_path / "a.h5")
    assert read.features.dtype == np.float32
    assert np.allclose(read.features, made.features, atol=1e-2)
    save_file({"features": torch.from_numpy(made.features).bfloat16(), "coords": torch.from_numpy(made.coords).int()},
              tmp_path / "b.safetensors")  # fmt: skip
    assert np.allclose(read_bag(tmp_path / "b.safetensors").features, made.features, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(features=np.full((4, 8), np.nan)), "4 of 4 patches have features that are not finite"),
        (dict(coords=np.full((4, 2), np.inf)), "coordinates that are not finite"),
        (dict(features=np.zeros((0, 8)), coords=np.zeros((0, 2))), "has no patches"),
        (dict(coords=np.zeros((3, 2))), "4 patches and 3 coordinates"),
        (dict(features=np.zeros((4, 9))), "width 9, 8 is expected"),
        (dict(coords=np.zeros((4, 3))), r"coords \[4, 3\]"),
        (dict(features=None), "has no 'features'"),
        (dict(features=None, feats=np.zeros((4, 8))), "did you mean feats"),
    ],
)
@pytest.mark.parametrize("ending", [".h5", ".safetensors"])
def test_bad_bags_are_named(tmp_path: Path, change: dict, message: str, ending: str) -> None:
    content = {"features": np.zeros((4, 8)), "coords": np.zeros((4, 2)), **change}
    content = {k: np.asarray(v, np.float32) for k, v in content.items() if v is not None}
    path = tmp_path / f"slide{ending}"
    if ending == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            for name, value in content.items():
                file[name] = value
    else:
        from safetensors.numpy import save_file

        save_file(content, path)
    with pytest.raises(BagError, match=message) as error:
        read_bag(path, dim=8)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("ending", [".h5", ".safetensors"])
def test_unreadable_bags_are_named(tmp_path: Path, ending: str) -> None:
    path = write_bag(tmp_path / f"a{ending}", np.zeros((50, 8)), np.zeros((50, 2)))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BagError, match="cannot be read as"):
        read_bag(path)
    with pytest.raises(FileNotFoundError, match="there is no bag"):
        read_bag(tmp_path / f"b{ending}")


# -- data sets ----------------------------------------------------------------------------------------------------


def test_folds_are_a_partition_of_every_class() -> None:
    labels = [0] * 13 + [1] * 7 + [2]
    folds = fold_of(labels, 5, seed=3)
    assert np.array_equal(folds, fold_of(labels, 5, seed=3))
    assert not np.array_equal(folds, fold_of(labels, 5, seed=4))
    for label in (0, 1):
        counts = np.bincount(folds[np.array(labels) == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_splits_of_a_folder(folder: Path) -> None:
    every = BagDataset(folder, split="all")
    parts = [BagDataset(folder, split=s, fold=2) for s in ("train", "val")]
    assert len(every) == 20
    assert sorted(p.name for d in parts for p in d.paths) == sorted(p.name for p in every.paths)
    assert every.metainfo == {"classes": ("normal", "tumour"), "dim": 8}
    sample = every[3]
    assert sample["inputs"].shape == (len(sample["data_samples"].coords), 8)
    assert sample["data_samples"].gt_label.tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "arguments", "error", "message"),
    [
        ("slide,label\nslide_0000,a\nslide_9999,b\n", {}, FileNotFoundError, "slide 'slide_9999' has no bag"),
        ("slide,label\nslide_0000,a\nslide_0000,b\n", {}, BagError, "line 3: slide 'slide_0000' occurs twice"),
        ("slide,label\nslide_0000,\n", {}, BagError, "line 2: a slide and its label"),
        ("name,label\nslide_0000,a\n", {}, BagError, "'slide' and 'label' are needed"),
        ("slide,label\nslide_0000,a\n", {}, BagError, "the class 'a' alone"),
        ("slide,label\nslide_0000,c\n", {"classes": ["a", "b"]}, BagError, "label 'c'; classes are a, b"),
        ("slide,label\nslide_0000,a\nslide_0001,b\n", {"split": "test"}, ValueError, "split='test'"),
        ("slide,label\nslide_0000,a\nslide_0001,b\n", {"fold": 5}, ValueError, "fold=5"),
        ("slide,label\nslide_0000,a\nslide_0001,b\n", {"split": "val", "fold": 4}, ValueError, "fold 4 of 5 has no"),
    ],
)
def test_wrong_tables_are_refused(folder: Path, tmp_path: Path, rows: str, arguments: dict, error, message) -> None:
    (tmp_path / "l.csv").write_text(rows)
    with pytest.raises(error, match=message):
        BagDataset(folder, tmp_path / "l.csv", **{"split": "all", **arguments})
    with pytest.raises(FileNotFoundError, match="no table"):
        read_slide_labels(tmp_path / "m.csv")


# -- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_loss_is_the_mean_over_bags(name: str) -> None:
    from zoo.classification.data_sample import ClsDataSample

    model = BagClassifier(HEADS[name]()).eval()
    inputs = bags(5, 9)
    samples = [ClsDataSample().set_gt_label(i) for i in (2, 0)]
    losses = model(inputs, samples, mode="loss")
    compute = acmil_losses if "acmil" in name else aem_losses
    expected = [compute(model.head(b[None]), torch.tensor([i]))["total"] for b, i in zip(inputs, (2, 0))]
    torch.testing.assert_close(losses["loss"], torch.stack(expected).mean())
    assert [k for k in losses if "loss" in k] == ["loss"]
    assert all(not v.requires_grad for k, v in losses.items() if k != "loss")
    # a bag alone is predicted as in a batch
    together, alone = model(inputs, mode="predict"), model(inputs[1:], mode="predict")
    assert torch.equal(together[1].pred_score, alone[0].pred_score)
    assert together[0].attention.shape == (5,)
    for sample in together:
        torch.testing.assert_close(sample.pred_score.sum(), torch.tensor(1.0))
        torch.testing.assert_close(sample.attention.sum(), torch.tensor(1.0))
        assert sample.attention.min() >= 0


def test_two_streams_are_averaged() -> None:
    model = BagClassifier(HEADS["dsmil"]()).eval()
    output = model(bags(6), mode="tensor")[0]
    assert torch.equal(model.probabilities(output), bag_probabilities(output)[0])
    assert torch.equal(attention_of(output, 2), output.scores.softmax(-1)[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(head="abmil", loss="acmil"), "'acmil' is not for ABMIL"),
        (dict(head="acmil", loss="aem"), "'aem' is not for GatedACMIL"),
        (dict(head="abmil", loss="focal"), "loss='focal'"),
        (dict(head="abmil", num_classes=4), "num_classes=4, but the head has 3"),
    ],
)
def test_wrong_models_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BagClassifier(**{**arguments, "head": HEADS[arguments["head"]]()})
    with pytest.raises(TypeError, match="weigth"):
        BagClassifier(HEADS["abmil"](), loss_options=dict(weigth=1))


def test_wrong_labels_are_refused() -> None:
    from zoo.classification.data_sample import ClsDataSample

    model = BagClassifier(HEADS["abmil"]())
    with pytest.raises(ValueError, match="between 3 and 3, but the model has 3 classes"):
        model(bags(4), [ClsDataSample().set_gt_label(3)], mode="loss")
    with pytest.raises(ValueError, match="several labels"):
        model(bags(4), [ClsDataSample().set_gt_label([0, 1])], mode="loss")
    with pytest.raises(ValueError, match="needs data_samples"):
        model(bags(4), mode="loss")
    with pytest.raises(ValueError, match="mode='train'"):
        model(bags(4), mode="train")


@pytest.fixture(scope="module", params=["acmil-ga-nano_cls_20e_bags", "abmil-aem-nano_cls_20e_bags"])
def trained(request, tmp_path_factory):
    """A recipe's name and its work directory; trained in seconds."""
    from zoo.engine.launch import train

    work_dir = tmp_path_factory.mktemp("bags")
    train(request.param, work_dir=work_dir, options={"log_level": "WARNING", "visualizer": None})
    return request.param, work_dir


def test_it_learns_and_looks_at_the_tumour(trained) -> None:
    config, work_dir = trained
    from zoo.engine.launch import test as evaluate

    metrics = evaluate(config, work_dir / "epoch_20.pth", work_dir=work_dir / "test")
    assert metrics["slide/auc"] >= 0.95
    assert metrics["accuracy/top1"] >= 85
    predictor = load_bag_predictor(config, work_dir / "epoch_20.pth")
    data = GeneratedBags("val")
    directions = np.random.default_rng((0, 1)).normal(size=(4, 32))
    share = []
    for index in np.flatnonzero(data.labels == 1):
        bag = data.bag(int(index))
        result = predictor.predict_bag(bag)
        shown = bag.features @ directions[3] / np.linalg.norm(directions[3])
        best = np.argsort(-result.attention)[:4]
        share.append(shown[best].mean() > np.median(shown))
    assert np.mean(share) >= 0.8
    assert result.names == ["normal", "tumour"]


# -- predictions --------------------------------------------------------------------------------------------------


@pytest.fixture
def predictor() -> BagPredictor:
    return BagPredictor(BagClassifier(HEADS["abmil"]()), classes=["a", "b", "c"], device="cpu")


def test_results_and_their_files(predictor: BagPredictor, folder: Path, tmp_path: Path) -> None:
    results = predictor(folder)
    assert len(results) == 20
    first = results[0]
    assert [r["name"] for r in first.rows()] == [n for _, n in sorted(zip([-s for s in first.scores], "abc"))]
    assert json.loads(first.to_json())["patches"] == len(first.attention)
    first.save(tmp_path / "a.png")
    from PIL import Image

    assert min(Image.open(tmp_path / "a.png").size) > 300
    first.save_attention(tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert np.allclose([float(r["attention"]) for r in rows], first.attention)
    assert np.allclose([float(r["x"]) for r in rows], first.coords[:, 0])


def test_bags_that_cannot_be_used(predictor: BagPredictor, folder: Path, tmp_path: Path) -> None:
    wide = write_bag(tmp_path / "wide.h5", np.zeros((3, 9)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="wide.h5 has features of width 9, the model takes 8"):
        predictor([wide])
    found = predictor([wide, folder / "slide_0000.h5"], on_error="report")
    assert ["width 9" in (r.error or "") for r in found] == [True, False]
    assert len(predictor([wide, folder / "slide_0000.h5"], on_error="skip")) == 1
    with pytest.raises(TypeError, match="no option 'batchsize'; did you mean batch_size"):
        predictor(folder, batchsize=3)
    with pytest.raises(FileNotFoundError, match="nothing matches"):
        find_bags(str(tmp_path / "*.hdf5"))
    with pytest.raises(ValueError, match="there are no bags"):
        find_bags(tmp_path.parent / folder.name / "..")
    assert find_bags([str(folder / "slide_000*.h5")]) == sorted(folder.glob("slide_000*.h5"))


def test_command_line(tmp_path: Path, capsys) -> None:
    from zoo.cli import main

    made, _ = generated_bag(0, 1)
    write_bag(tmp_path / "bag.h5", made.features, made.coords)
    model = BagClassifier("acmil_ga_nano", num_classes=2)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "w.pth")
    out = tmp_path / "out"
    argv = [
        "predict",
        "acmil_ga_nano",
        str(tmp_path / "bag.h5"),
        "--weights",
        str(tmp_path / "w.pth"),
        "--out",
        str(out),
    ]
    assert main(argv) == 0
    assert sorted(p.name for p in out.iterdir()) == ["00000_bag.png", "00000_bag_attention.csv", "predictions.jsonl"]
    line = json.loads((out / "predictions.jsonl").read_text(encoding="utf-8"))
    assert line["patches"] == len(made.features)
    assert Path(capsys.readouterr().out.split("\t")[0]).name == "bag.h5"


def test_the_general_loader_knows_bags(tmp_path: Path) -> None:
    from zoo.inference.load import load_predictor

    model = BagClassifier("abmil_aem_nano")
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "w.pth")
    predictor = load_predictor("abmil_aem_nano", tmp_path / "w.pth")
    bag = Bag(np.zeros((3, 32), np.float32), np.zeros((3, 2), np.float32), "x")
    assert abs(sum(predictor(bag)[0].scores) - 1) < 1e-5
    assert isinstance(load_predictor(model), BagPredictor)


# -- pictures and metrics -----------------------------------------------------------------------------------------


def test_slides_are_drawn_as_they_lie() -> None:
    from zoo.viz.slides import draw_slide, patch_size, ranks

    coords = np.array([[0, 0], [512, 0], [512, 768.0]])
    assert patch_size(coords) == 512
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [1.0, 0.0, 1.0]
    figure = draw_slide(np.array([0.1, 0.2, 0.7]), coords, size=256)
    squares = figure.axes[0].collections[0]
    assert squares.get_array().tolist() == [0.0, 0.5, 1.0]
    assert len(squares.get_paths()) == 3
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # the first row is above
    with pytest.raises(ValueError, match=r"accepted are \[N\]"):
        draw_slide(np.zeros(2), coords)
    with pytest.raises(ValueError, match="not finite"):
        draw_slide(np.array([0, np.nan, 1]), coords)


def test_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    from zoo.metrics.multi_label import MultiLabel

    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, (40, 4)), rng.random((40, 4)).astype(np.float32)
    targets[:, 3] = 0  # a label that nobody has
    metric = MultiLabel()
    metric.dataset_meta = {"classes": tuple("abcd")}
    for i in range(0, 40, 7):
        metric.process(None, [
            {"gt_label": torch.from_numpy(np.flatnonzero(t)), "pred_score": torch.from_numpy(s), "sample_idx": i + k}
            for k, (t, s) in enumerate(zip(targets[i : i + 7], scores[i : i + 7]))
        ])  # fmt: skip
    found = metric.evaluate(40)
    aucs = [roc_auc_score(targets[:, c], scores[:, c]) for c in range(3)]
    assert found["labels/auc"] == pytest.approx(np.mean(aucs))
    assert [found[f"labels/auc_{n}"] for n in "abc"] == pytest.approx(aucs)
    assert np.isnan(found["labels/auc_d"])
    precision = [average_precision_score(targets[:, c], scores[:, c]) for c in range(3)]
    assert found["labels/mAP"] == pytest.approx(np.mean(precision))
    assert found["labels/f1"] == pytest.approx(f1_score(targets, scores >= 0.5, average="macro", zero_division=0))


def test_metrics_refuse_what_is_no_score() -> None:
    from zoo.metrics.multi_label import MultiLabel

    with pytest.raises(ValueError, match="has label 2, but the model scores 2 classes"):
        MultiLabel().process(None, [{"gt_label": torch.tensor([2]), "pred_score": torch.zeros(2)}])
    with pytest.raises(ValueError, match="not finite"):
        MultiLabel().process(None, [{"gt_label": torch.tensor([1]), "pred_score": torch.tensor([0.0, float("nan")])}])
    with pytest.raises(ValueError, match="no pred_score"):
        MultiLabel().process(None, [{"gt_label": torch.tensor([1])}])
    with pytest.raises(ValueError, match="threshold=1"):
        MultiLabel(threshold=1)
