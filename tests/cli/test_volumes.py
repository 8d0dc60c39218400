"""`zoo predict` on volumes and `zoo test` on label maps that other programs wrote."""

import csv
import json

import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel")

from zoo.cli import main  # noqa: E402
from zoo.data.phantom import write_phantom  # noqa: E402
from zoo.data.volumes import VolumeReadError, read_volume, write_volume  # noqa: E402
from zoo.engine.config import ConfigError  # noqa: E402
from zoo.engine.evaluate_volumes import evaluate_label_maps, match_predictions  # noqa: E402
from zoo.medical.model import VolumeSegmenter  # noqa: E402
from zoo.metrics.volume import score_labels  # noqa: E402

CONFIG = """
from zoo.data.volume_dataset import VolumeDataset
from zoo.medical.model import VolumeSegmenter
from zoo.metrics import VolumeMetric

model = dict(type=VolumeSegmenter, network=dict(type="wau_unet_nano_3d"), num_classes=5, window=(32, 32, 16))
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=VolumeDataset, source={source!r}, split="val", fold=1, folds=2, cache=0),
)
test_evaluator = dict(type=VolumeMetric)
test_cfg = dict()
"""


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    """A phantom of four volumes in the layout of MSD, and a config whose test data is two of them."""
    root = tmp_path_factory.mktemp("organs")
    write_phantom(root / "data", 4, (40, 40, 20), seed=1)
    (root / "organs.py").write_text(CONFIG.format(source=str(root / "data")))
    torch.manual_seed(0)
    model = VolumeSegmenter("wau_unet_nano_3d", 5, window=(32, 32, 16))
    meta = {
        "classes": ["background", "liver", "spleen", "kidney", "gallbladder"], "label_ids": [0, 1, 2, 3, 4],
        "preparation": {"spacing": None, "orientation": None, "normalisation": [{"kind": "zscore"}]},
    }  # fmt: skip
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": meta}}, root / "w.pth")
    return root


def labels_of(organs):
    return sorted((organs / "data" / "labelsTr").glob("*.nii.gz"))


def shifted(organs, folder, ending=".nii.gz"):
    """Predictions for all cases: the truth, moved by one voxel along x."""
    folder.mkdir()
    for file in labels_of(organs):
        truth = read_volume(file, label=True)
        write_volume(folder / (file.name.removesuffix(".nii.gz") + ending), np.roll(truth.data, 1, 0), truth)
    return folder


def test_predict_writes_label_maps(organs, tmp_path, capsys):
    images = sorted((organs / "data" / "imagesTr").glob("*.nii.gz"))
    argv = ["predict", str(organs / "organs.py"), str(images[0]), str(images[1]), "--weights", str(organs / "w.pth")]
    assert (
        main([*argv, "--out", str(tmp_path / "out"), "--device", "cpu", "--probabilities", "--largest-component"]) == 0
    )
    shown = capsys.readouterr()
    names = [i.name.removesuffix(".nii.gz") for i in images[:2]]
    assert [line.split("\t")[0] for line in shown.out.splitlines()] == [str(i) for i in images[:2]]
    assert "liver" in shown.out
    assert "2 label maps are in" in shown.err
    files = {f"{n}{e}" for n in names for e in (".nii.gz", ".png", "_probabilities.nii.gz")} | {"predictions.jsonl"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == files
    before, after = nibabel.load(images[0]), nibabel.load(tmp_path / "out" / images[0].name)
    assert before.affine.tobytes() == after.affine.tobytes()
    assert np.array(before.header.get_zooms()).tobytes() == np.array(after.header.get_zooms()).tobytes()
    assert before.shape == after.shape
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert line["case"] == names[1]
    counts = np.bincount(np.asarray(nibabel.load(tmp_path / "out" / images[1].name).dataobj).ravel(), minlength=5)
    assert [c["voxels"] for c in line["classes"]] == counts[1:].tolist()


def test_predict_options_and_faults(organs, tmp_path, capsys):
    image = next((organs / "data" / "imagesTr").glob("*.nii.gz"))
    argv = ["predict", str(organs / "organs.py"), "--weights", str(organs / "w.pth"), "--device", "cpu"]
    more = ["--mirror-axes", "0", "--overlap", "0.25", "--window", "16", "--json", "--no-pictures"]
    assert main([*argv, str(image), *more, "--largest-component", "liver"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [40, 40, 20]
    (tmp_path / "bad.nii.gz").write_bytes(image.read_bytes()[:500])
    assert main([*argv, str(tmp_path / "bad.nii.gz"), str(image), "--out", str(tmp_path / "out"), "--no-pictures"]) == 1
    assert "1 of 2 volumes could not be read" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 2
    for given, message in (
        (["--score-threshold", "0.5"], "--score-threshold is for models of images"),
        (["--probabilities"], "--probabilities needs --out"),
        (["--largest-component", "lung"], "no class 'lung'"),
        (["--mirror-axes", "3"], "mirror_axes=(3,)"),
    ):
        assert main([*argv, str(image), *given]) == 1
        assert message in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "none.nii.gz")]) == 1
    assert "there is no volume at" in capsys.readouterr().err
    assert main(["predict", "davit_nano", "x.png", "--overlap", "0.3"]) == 1
    assert "--overlap is for models of volumes" in capsys.readouterr().err


def test_test_of_a_folder_of_predictions(organs, tmp_path, capsys):
    """A config's test data is one fold; scores are of the label maps on the files' grid."""
    predictions = shifted(organs, tmp_path / "other")
    argv = ["test", str(organs / "organs.py"), "--predictions", str(predictions), "--work-dir", str(tmp_path / "out")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split("\t")[:2] == ["class", "dice"]
    assert [line.split("\t")[0] for line in shown.splitlines()[1:6]][:2] == ["liver", "spleen"]
    assert "2 cases" in shown
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    assert len(rows) == 8
    for row in rows:
        truth = read_volume(organs / "data" / "labelsTr" / f"{row['case']}.nii.gz", label=True)
        names = ["background", "liver", "spleen", "kidney", "gallbladder"]
        own = score_labels(np.roll(truth.data, 1, 0), truth.data, truth.spacing, names)[int(row["label"]) - 1]
        assert row["class"] == own.name
        assert [float(row[k]) for k in ("dice", "hd95_mm", "assd_mm")] == pytest.approx(
            [own.dice, own.hd95, own.assd], rel=1e-4
        )
    cases = {row["case"] for row in rows}
    assert {p.name for p in (tmp_path / "out" / "overlays").iterdir()} == {f"{c}.png" for c in cases}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "cases.csv", "summary.csv", "summary.json", "boxplot.png", "overlays"
    }  # fmt: skip
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["volume/dice"] == pytest.approx(np.mean([float(r["dice"]) for r in rows]), abs=1e-4)


def test_truth_in_folders(organs, tmp_path):
    predictions = shifted(organs, tmp_path / "other", ".nii")
    data = evaluate_label_maps(organs / "data", predictions)
    assert len({s.case for s in data.scores}) == 4
    assert data.classes[1] == "liver"
    beside = evaluate_label_maps(organs / "data" / "labelsTr", predictions, surface=False)  # names of ../dataset.json
    assert [(s.case, s.name, s.dice) for s in beside.scores] == [(s.case, s.name, s.dice) for s in data.scores]
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in labels_of(organs):
        truth = read_volume(file, label=True)
        write_volume(alone / file.name, np.where(truth.data == 2, 200, 0), truth)
        moved = read_volume(predictions / file.name.removesuffix(".gz"), label=True)
        write_volume(predictions / file.name.removesuffix(".gz"), np.where(moved.data == 2, 200, 0), moved)
    found = evaluate_label_maps(alone, predictions, out_dir=tmp_path / "out")
    assert found.classes == ["background", "class 200"]
    assert [s.dice for s in found.scores] == [s.dice for s in data.scores if s.name == "spleen"]
    assert not (tmp_path / "out" / "overlays").exists()  # there are no images


def test_predictions_that_do_not_fit(organs, tmp_path, caplog):
    folder = shifted(organs, tmp_path / "other")
    files = sorted(folder.iterdir())
    first = labels_of(organs)[0]
    truth = read_volume(first, label=True)
    kept = files[0].read_bytes()

    def refused(message):
        with pytest.raises(ValueError, match=message):
            evaluate_label_maps(organs / "data", folder)

    write_volume(files[0], np.where(truth.data == 1, 9, 0), truth)
    refused(rf"{files[0].name} has labels outside the class list: 9 \(\d+ voxels\); accepted are 0 background, 1 liver")
    half = read_volume(first, label=True)
    half.data, half.header = half.data[:-1], None
    write_volume(files[0], half.data, half)
    refused(rf"other.{files[0].name} and .*labelsTr.{first.name} have different shapes, 39 x 40 x 20 and 40 x 40 x 20")
    moved = read_volume(first, label=True)
    moved.affine, moved.header = moved.affine.copy(), None
    moved.affine[0, 3] += 10
    write_volume(files[0], moved.data, moved)
    refused(rf"other.{files[0].name} and .*labelsTr.{first.name} have different affines")
    image = nibabel.Nifti1Image(np.full(truth.data.shape, 0.5, np.float32), truth.affine)
    nibabel.save(image, files[0])
    refused(rf"{files[0].name}: \d+ voxels are no class ids but \[0\.5\]")
    nibabel.save(nibabel.Nifti1Image(np.full(truth.data.shape, np.nan, np.float32), truth.affine), files[0])
    refused(rf"{files[0].name}: \d+ voxels are no class ids but \[nan")
    files[0].write_bytes(kept[: len(kept) // 2])
    with pytest.raises(VolumeReadError, match="truncated"):
        evaluate_label_maps(organs / "data", folder)
    files[0].unlink()
    refused(rf"has no prediction of 1 of 4 cases: {first.name.removesuffix('.nii.gz')}")
    files[0].write_bytes(kept)
    (folder / files[0].name.removesuffix(".gz")).write_bytes(b"x")
    refused("are both label maps of")
    (folder / files[0].name.removesuffix(".gz")).unlink()
    (folder / "stranger.nii.gz").write_bytes(kept)
    assert evaluate_label_maps(organs / "data", folder, surface=False).unused == [str(folder / "stranger.nii.gz")]
    assert "stranger.nii.gz belongs to no case" in caplog.text


def test_what_has_no_truth(organs, tmp_path, capsys):
    folder = shifted(organs, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no folder of predictions"):
        evaluate_label_maps(organs / "data", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no label maps"):
        evaluate_label_maps(tmp_path / "empty", folder)
    images = (organs / "organs.py").read_text(encoding="utf-8").replace("VolumeDataset,", "DigitsDataset,").replace(
        "zoo.data.volume_dataset import VolumeDataset", "zoo.data.digits import DigitsDataset"
    )  # fmt: skip
    (tmp_path / "digits.py").write_text(images)
    with pytest.raises(ConfigError, match="which has no volumes"):
        evaluate_label_maps(tmp_path / "digits.py", folder)
    assert main(["test", str(tmp_path / "digits.py"), "--predictions", str(folder)]) == 1
    assert "which has no volumes" in capsys.readouterr().err


def test_files_are_matched_by_case_label_or_image():
    from zoo.data.volume_folder import VolumeCase

    cases = [
        VolumeCase("0001", ("/d/img0001.nii.gz",), "/d/label0001.nii.gz"),
        VolumeCase("b", ("/d/b_0000.nrrd",), "/d/b_seg.nii"),
    ]
    files = {"label0001": "/p/label0001.nii.gz", "b": "/p/b.nrrd", "c": "/p/c.nii"}
    pairs, unused = match_predictions(cases, files, "/p")
    assert [(c.name, f) for c, f in pairs] == [("0001", "/p/label0001.nii.gz"), ("b", "/p/b.nrrd")]
    assert unused == ["/p/c.nii"]
    with pytest.raises(ValueError, match="'0001' has several predictions: /p/0001.nii, /p/label0001"):
        match_predictions(cases, {**files, "0001": "/p/0001.nii"}, "/p")


def test_test_of_a_checkpoint_writes_the_tables(organs, tmp_path, capsys):
    argv = ["test", str(organs / "organs.py"), str(organs / "w.pth"), "--work-dir", str(tmp_path / "out")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "volume/dice" in shown
    assert "boxplot.png are in" in shown
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    assert len(rows) == 8
    mean = np.mean([float(r["dice"]) for r in rows])
    assert f"volume/dice\t{round(float(mean), 4)}" in shown
