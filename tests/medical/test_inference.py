"""From volumes in files to label maps on the same grid: geometry, ids, resampling, clean-up, faults."""

import json

import numpy as np
import pytest
import torch
from torch import nn

nibabel = pytest.importorskip("nibabel")

from zoo.data.volume_grid import Preparation  # noqa: E402
from zoo.data.volumes import VolumeReadError, read_volume  # noqa: E402
from zoo.inference.load import load_predictor, untrained_predictor  # noqa: E402
from zoo.medical.cases import find_cases  # noqa: E402
from zoo.medical.inference import VolumePredictor  # noqa: E402
from zoo.medical.model import VolumeSegmenter  # noqa: E402

NAMES = ["background", "liver", "spleen"]
AFFINE = np.array([[-1.5, -0.1, 0.0, 40.0], [0.1, -1.5, 0.0, 30.0], [0.0, 0.0, 4.0, -20.0], [0, 0, 0, 1.0]])


class Bands(nn.Module):
    """Logits that make class 1 of intensities from 1 to 3 and class 2 of those above; sharp or soft."""

    num_classes = 3

    def __init__(self, dims=3, in_chans=1, sharp=50.0):
        super().__init__()
        self.dims, self.in_chans, self.seen = dims, in_chans, []
        self.sharp = nn.Parameter(torch.tensor(sharp))

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        x = x.mean(1, keepdim=True)
        return self.sharp * torch.cat([0 * x, x - 1, 2 * x - 4], 1)


def predictor(dims=3, in_chans=1, preparation=None, window=(16, 16, 8), sharp=50.0, **options):
    model = VolumeSegmenter(Bands(dims, in_chans, sharp), window=window)
    return VolumePredictor(
        model, preparation, **{"classes": NAMES, "label_ids": [0, 3, 200], "device": "cpu", **options}
    )


def boxes(shape=(30, 26, 12)):
    """An image of two boxes, and the class indices in it."""
    labels = np.zeros(shape, np.uint8)
    labels[4:16, 5:20, 2:8], labels[18:27, 8:17, 5:11] = 1, 2
    return np.array([0.0, 2.0, 5.0], np.float32)[labels], labels


def write(path, data, affine=AFFINE, edit=None):
    image = nibabel.Nifti1Image(data, affine)
    image.set_qform(None, 0)
    image.header.set_xyzt_units("mm", "sec")
    if edit is not None:
        edit(image.header)
    nibabel.save(image, path)
    return str(path)


def test_a_label_map_lies_where_the_image_lies(tmp_path):
    """Affine and zooms, indeed every field of the header that says where voxels are, are equal to the byte."""
    data, labels = boxes()

    def odd(header):
        header["qform_code"], header["sform_code"] = 0, 2
        header["pixdim"][1:4] = np.float32([1.503, 1.5029999, 4.0000001])
        header["descrip"] = b"from a scanner"

    source = write(tmp_path / "case 1.nii.gz", data.astype(np.int16), edit=odd)
    (result,) = predictor()([source])
    assert np.array_equal(result.labels, labels)
    path = result.save(tmp_path / "out" / "a.nii.gz")
    before, after = nibabel.load(source), nibabel.load(path)
    assert before.affine.tobytes() == after.affine.tobytes()
    assert np.array(before.header.get_zooms()).tobytes() == np.array(after.header.get_zooms()).tobytes()
    for name in ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z",
                 "xyzt_units", "descrip"):  # fmt: skip
        assert before.header[name].tobytes() == after.header[name].tobytes(), name
    assert after.get_data_dtype() == np.uint8
    found = np.asarray(after.dataobj)
    assert np.array_equal(found, np.array([0, 3, 200])[labels])  # the ids of the data
    assert read_volume(path, label=True).data.shape == data.shape
    plain = result.save(tmp_path / "b.nii")
    assert np.array_equal(np.asarray(nibabel.load(plain).dataobj), found)


def test_what_a_result_says(tmp_path):
    data, labels = boxes()
    source = write(tmp_path / "x.nii.gz", data)
    (result,) = predictor()(source)
    ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    counts = [int((labels == k).sum()) for k in (1, 2)]
    content = json.loads(result.to_json())
    assert content["case"] == "x"
    assert content["shape"] == [30, 26, 12]
    assert content["spacing_mm"] == pytest.approx(spacing.tolist())
    assert [(r["name"], r["label"], r["voxels"]) for r in content["classes"]] == [
        ("liver", 3, counts[0]), ("spleen", 200, counts[1])
    ]  # fmt: skip
    assert [r["ml"] for r in content["classes"]] == pytest.approx([c * ml for c in counts], abs=1e-4)
    assert result.volumes_ml["liver"] == pytest.approx(counts[0] * ml, abs=1e-4)
    assert np.array_equal(result.image, data)
    picture = result.draw()
    assert picture.size[0] > 300
    assert picture.getextrema() != ((255, 255),) * 3
    with pytest.raises(ValueError, match="no COCO form"):
        result.to_coco()
    with pytest.raises(ValueError, match="probabilities=True"):
        result.save_probabilities(tmp_path / "p.nii.gz")
    with pytest.raises(ValueError, match=r"\.json, \.png"):
        result.save(tmp_path / "x.nrrd")


def test_files_of_a_folder(tmp_path):
    data, labels = boxes()
    (tmp_path / "in").mkdir()
    for name in ("b", "a"):
        write(tmp_path / "in" / f"{name}.nii.gz", data)
    results = predictor()(tmp_path / "in", probabilities=True)
    out = results.save(tmp_path / "out")
    names = {"a.nii.gz", "a_probabilities.nii.gz", "a.png", "b.nii.gz", "b_probabilities.nii.gz", "b.png"}
    assert {p.name for p in out.iterdir()} == names | {"predictions.jsonl"}
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["case"] for line in lines] == ["a", "b"]
    shares = nibabel.load(out / "a_probabilities.nii.gz")
    assert shares.shape == (30, 26, 12, 3)
    assert shares.affine.tobytes() == nibabel.load(tmp_path / "in" / "a.nii.gz").affine.tobytes()
    values = np.asarray(shares.dataobj)
    assert values.sum(-1) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(values.argmax(-1), labels)


def test_one_volume_at_a_time(tmp_path):
    data, _ = boxes()
    paths = [write(tmp_path / f"{i}.nii.gz", data) for i in range(3)]
    own = predictor()
    stream = own(paths, stream=True)
    assert not own.model.network.seen
    first = next(iter(stream))
    windows = len(own.model.network.seen)
    assert windows > 0
    list(stream)
    assert len(own.model.network.seen) == 3 * windows
    assert first.case == "0"


@pytest.mark.parametrize("restore", ["probabilities", "labels"])
def test_another_spacing_and_back(tmp_path, restore):
    """The network gets voxels of 3 mm; the label map is on the file's grid of 1.5 x 1.5 x 4 mm."""
    data, labels = boxes()
    source = write(tmp_path / "x.nii.gz", data, np.diag([1.5, 1.5, 4.0, 1.0]))
    own = predictor(preparation=Preparation((3.0, 3.0, 3.0)), window=None, sharp=4.0)
    (result,) = own(source, restore=restore)
    assert own.model.network.seen == [(1, 1, 15, 13, 16)]
    assert result.labels.shape == labels.shape
    for k in (1, 2):
        overlap = 2 * ((result.labels == k) & (labels == k)).sum() / ((result.labels == k).sum() + (labels == k).sum())
        assert overlap > 0.8
    inside = labels.copy()
    inside[(labels > 0) & (np.abs(np.array(np.gradient(labels.astype(float)))).max(0) > 0)] = 0
    assert np.array_equal(result.labels[inside > 0], inside[inside > 0])


def test_probabilities_on_another_grid_decide_the_labels(tmp_path):
    data, _ = boxes()
    source = write(tmp_path / "x.nii.gz", data, np.diag([1.5, 1.5, 4.0, 1.0]))
    own = predictor(preparation=Preparation((2.5, 2.0, 3.0)), window=None, sharp=2.0)
    soft = own(source, probabilities=True)[0]
    coarse = own.model.whole(torch.from_numpy(own.preparation.image(read(source)).data)[None], output="probabilities")
    expected = torch.nn.functional.interpolate(coarse, size=data.shape, mode="trilinear", align_corners=False)[0]
    np.testing.assert_allclose(soft.probabilities, expected.numpy(), atol=1e-6)
    assert np.array_equal(soft.labels, expected.argmax(0).numpy())
    assert np.array_equal(own(source)[0].labels, soft.labels)


def read(path):
    from zoo.data.volumes import read_channels

    return read_channels([path])


def test_other_axes_and_back(tmp_path):
    data, labels = boxes()
    order = np.array([[0.0, 0, 2.0, 0], [-1.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])  # the axes go P, S, R
    source = write(tmp_path / "x.nii.gz", data, order)
    own = predictor(preparation=Preparation(orientation="RAS"), window=None)
    (result,) = own(source)
    assert own.model.network.seen == [(1, 1, 12, 30, 26)]
    assert np.array_equal(result.labels, labels)
    written = nibabel.load(result.save(tmp_path / "y.nii.gz"))
    assert np.array_equal(written.affine, order)
    (both,) = predictor(preparation=Preparation((2.0, 1.0, 3.0), "RAS", "none"), window=None)(source)
    assert np.array_equal(both.labels, labels)


def test_intensities_are_prepared_as_in_training(tmp_path):
    data, labels = boxes()
    source = write(tmp_path / "x.nii.gz", data * 100 - 1000)
    given = {"kind": "ct", "lower": -1000, "upper": 400, "mean": -1000, "std": 100}
    (result,) = predictor(preparation=Preparation(normalisation=given))(source)
    assert np.array_equal(result.labels, labels)
    assert not np.array_equal(predictor()(source)[0].labels, labels)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_dimensional_networks_get_slices(tmp_path, axis):
    data, labels = boxes()
    source = write(tmp_path / "x.nii.gz", data)
    own = predictor(dims=2, window=None)
    (result,) = own(source, axis=axis, batch_size=5)
    assert np.array_equal(result.labels, labels)
    sides = tuple(n for a, n in enumerate(data.shape) if a != axis)
    assert {s[2:] for s in own.model.network.seen} == {sides}
    assert sum(s[0] for s in own.model.network.seen) == data.shape[axis]
    assert max(s[0] for s in own.model.network.seen) == 5
    trained = predictor(dims=2, window=None, axis=axis)
    trained(source)
    assert {s[2:] for s in trained.model.network.seen} == {sides}


def test_volumes_smaller_than_the_window(tmp_path):
    data, labels = boxes()
    source = write(tmp_path / "x.nii.gz", data[:, :, 4:7])
    own = predictor(window=(64, 16, 8))
    (result,) = own(source, overlap=0.0)
    assert {s[2:] for s in own.model.network.seen} == {(64, 16, 8)}
    assert np.array_equal(result.labels, labels[:, :, 4:7])


def test_mirrored_copies_and_progress(tmp_path):
    data, labels = boxes()
    source = write(tmp_path / "x.nii.gz", data)
    own, seen = predictor(window=(30, 26, 12)), []
    (result,) = own(source, mirror_axes=(0, 1, 2), progress=lambda *at: seen.append(at))
    assert len(own.model.network.seen) == 8
    assert seen == [("x", 1, 1)]
    assert np.array_equal(result.labels, labels)


def test_largest_components(tmp_path):
    data, labels = boxes()
    specks = data.copy()
    specks[0, 0, 0], specks[29, 25, 0:2] = 2.0, 5.0
    source = write(tmp_path / "x.nii.gz", specks)
    assert (predictor()(source)[0].labels != labels).sum() == 3
    (clean,) = predictor()(source, largest_component=True)
    assert np.array_equal(clean.labels, labels)
    (half,) = predictor()(source, largest_component=["spleen"])
    assert (half.labels != labels).sum() == 1
    with pytest.raises(ValueError, match="no class 'lung'"):
        predictor()(source, largest_component="lung")


def test_channels_of_a_case(tmp_path):
    data, labels = boxes()
    parts = [write(tmp_path / f"case_000{i}.nii.gz", data * w) for i, w in enumerate((0.5, 1.5))]
    own = predictor(in_chans=2)
    for given in (tmp_path, parts, [tuple(parts)], str(tmp_path / "*.nii.gz")):
        (result,) = own(given)
        assert result.case == "case"
        assert np.array_equal(result.labels, labels)
    four = write(tmp_path / "four.nii", np.stack([data * 0.5, data * 1.5], -1))
    assert np.array_equal(own(four)[0].labels, labels)
    with pytest.raises(VolumeReadError, match=r"1 channel\(s\); 2 are needed"):
        own(parts[0])
    with pytest.raises(ValueError, match="has 3 files"):
        own([(*parts, four)])
    assert [c.name for c in find_cases([parts[0]], 1)] == ["case"]
    assert [c.name for c in find_cases(tmp_path / "case_0001.nii.gz", 1)] == ["case_0001"]


def test_sources(tmp_path):
    for folder, name in (("a", "x"), ("b", "x"), ("a", "w")):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder / f"{name}.nii.gz", boxes()[0])
    (tmp_path / "a" / "notes.txt").write_text("no volume")
    (tmp_path / "empty").mkdir()
    assert [c.name for c in find_cases(str(tmp_path / "a"))] == ["w", "x"]
    assert [c.name for c in find_cases([tmp_path / "a" / "x.nii.gz", tmp_path / "a" / "w.nii.gz"])] == ["x", "w"]
    with pytest.raises(ValueError, match="both the case 'x'"):
        find_cases([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(FileNotFoundError, match="no volume at"):
        find_cases(str(tmp_path / "c.nii.gz"))
    with pytest.raises(FileNotFoundError, match="no volume at"):
        find_cases(str(tmp_path / "a" / "*.nrrd"))
    with pytest.raises(FileNotFoundError, match="holds no volumes"):
        find_cases(tmp_path / "empty")
    with pytest.raises(TypeError, match="a int names no volume"):
        find_cases(3)


def test_volumes_that_cannot_be_read(tmp_path, caplog):
    data, _ = boxes()
    good = write(tmp_path / "good.nii.gz", data)
    broken = data.copy()
    broken[3, 4, 5] = np.nan
    bad = write(tmp_path / "nan.nii.gz", broken)
    with pytest.raises(VolumeReadError, match=r"nan\.nii\.gz: 1 of 9360 voxels are NaN"):
        predictor()([good, bad])
    assert np.array_equal(predictor()(bad, nan=float(data[3, 4, 5]))[0].labels, predictor()(good)[0].labels)
    time = write(tmp_path / "time.nii.gz", np.stack([data, data], -1))
    short = tmp_path / "short.nii.gz"
    whole = (tmp_path / "good.nii.gz").read_bytes()
    short.write_bytes(whole[: len(whole) // 2])
    results = predictor()([bad, good, time, str(short)], on_error="report")
    assert [r.error is None for r in results] == [False, True, False, False]
    assert "NaN" in results[0].error
    assert "time.nii.gz has 4 dimensions" in results[2].error
    assert "truncated" in results[3].error
    assert json.loads(results[0].to_json())["error"] == results[0].error
    with pytest.raises(ValueError, match="has no label map"):
        results[0].save(tmp_path / "x.nii.gz")
    with pytest.raises(ValueError, match="has no image"):
        results[0].draw()
    assert {p.name for p in results.save(tmp_path / "out").iterdir()} == {
        "good.nii.gz",
        "good.png",
        "predictions.jsonl",
    }
    assert [r.case for r in predictor()([bad, good], on_error="skip")] == ["good"]
    assert "nan.nii.gz" in caplog.text


def test_volumes_in_memory():
    from zoo.data.volumes import Volume

    data, labels = boxes()
    own = predictor()
    volume = Volume(data[None], AFFINE, (1.5, 1.5, 4.0))
    assert np.array_equal(own.predict_volume(volume, case="x").labels, labels)
    with pytest.raises(ValueError, match=r"x has shape \(30, 26, 12\); accepted is \[1, X, Y, Z\]"):
        own.predict_volume(Volume(data, AFFINE, (1.5, 1.5, 4.0)), case="x")
    with pytest.raises(ValueError, match="NaN or infinite"):
        own.predict_volume(Volume(np.full_like(data[None], np.inf), AFFINE, (1.5, 1.5, 4.0)))


def test_options_that_there_are_not(tmp_path):
    source = write(tmp_path / "x.nii.gz", boxes()[0])
    with pytest.raises(TypeError, match="no option 'overlp'.*overlap"):
        predictor()(source, overlp=0.5)
    with pytest.raises(ValueError, match="overlap=2"):
        predictor()(source, overlap=2)
    with pytest.raises(ValueError, match="restore='nearest'"):
        predictor()(source, restore="nearest")
    with pytest.raises(ValueError, match="batch_size=0"):
        predictor()(source, batch_size=0)
    with pytest.raises(ValueError, match="on_error='ignore'"):
        predictor()(source, on_error="ignore")
    with pytest.raises(ValueError, match="the model has 3 classes"):
        predictor(classes=["background", "liver"])
    with pytest.raises(ValueError, match="2 entries for 1 channel"):
        predictor(preparation=Preparation(normalisation=["none", "none"]))
    with pytest.raises(ValueError, match="not exported"):
        predictor().for_export()


def test_a_network_that_fails_names_the_volume(tmp_path):
    source = write(tmp_path / "x.nii.gz", boxes()[0])
    own = predictor()
    own.model.network.forward = lambda x: x @ x.new_zeros(3, 5)
    with pytest.raises(RuntimeError, match="the network failed on x: RuntimeError"):
        own(source)
    own = predictor()
    own.model.network.sharp.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the network failed on x: FloatingPointError.*not finite"):
        own(source)


CONFIG = """
from zoo.data.volume_dataset import VolumeDataset
from zoo.medical.model import VolumeSegmenter

model = dict(type=VolumeSegmenter, network=dict(type="wau_unet_nano_3d"), num_classes=3, window=(32, 32, 16))
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        type=VolumeDataset, source={source!r}, split="val", normalisation="percentiles", spacing=(2.0, 2.0, 4.0)
    ),
)
"""


def checkpoint(path, model, **data):
    meta = {"dataset_meta": data} if data else {}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)
    return str(path)


def test_predictors_by_config_name_and_model(tmp_path):
    config = tmp_path / "organs.py"
    config.write_text(CONFIG.format(source=str(tmp_path)))
    torch.manual_seed(0)
    trained = VolumeSegmenter("wau_unet_nano_3d", 3, window=(32, 32, 16))
    recorded = {
        "classes": NAMES, "label_ids": [0, 7, 9], "axis": None,
        "preparation": {"spacing": [3.0, 3.0, 4.0], "orientation": "RAS", "normalisation": [{"kind": "zscore"}]},
    }  # fmt: skip
    own = checkpoint(tmp_path / "own.pth", trained, **recorded)
    silent = checkpoint(tmp_path / "silent.pth", trained)
    source = write(tmp_path / "x.nii.gz", np.random.default_rng(0).normal(size=(40, 36, 16)).astype(np.float32))
    found = load_predictor(str(config), own, device="cpu")
    assert (found.names, found.label_ids) == (NAMES, [0, 7, 9])
    assert found.preparation.spacing == (3.0, 3.0, 4.0)
    assert found.model.window == (32, 32, 16)
    (result,) = found(source)
    assert set(np.unique(nibabel.load(result.save(tmp_path / "y.nii.gz")).dataobj).tolist()) <= {0, 7, 9}
    of_data = load_predictor(str(config), silent, device="cpu").preparation
    assert (of_data.spacing, of_data.normalisation) == ((2.0, 2.0, 4.0), "percentiles")
    given = load_predictor(str(config), own, device="cpu", preparation=Preparation(normalisation="none"))
    assert given.preparation == Preparation(normalisation="none")
    of_model = load_predictor(VolumeSegmenter("wau_unet_nano_3d", 3, window=(32, 32, 16)), own, device="cpu")
    assert of_model.names == NAMES
    assert np.array_equal(of_model(source)[0].labels, result.labels)
    with pytest.raises(ValueError, match="no weights of its own"):
        load_predictor(str(config))
    untrained = untrained_predictor(str(config))
    assert untrained.preparation.spacing == (2.0, 2.0, 4.0)
    again = untrained_predictor("wau_unet_nano_3d", num_classes=3)
    assert torch.equal(
        torch.cat([p.flatten() for p in untrained.model.parameters()]),
        torch.cat([p.flatten() for p in again.model.parameters()]),
    )
    with pytest.raises(ValueError, match="set window"):
        load_predictor(str(config), own, size=64)


def test_names_whose_weights_do_not_say_how_to_prepare(tmp_path, caplog):
    weights = checkpoint(tmp_path / "w.pth", VolumeSegmenter("wau_unet_nano_3d"))
    found = load_predictor("wau_unet_nano_3d", weights, device="cpu")
    assert found.preparation == Preparation(normalisation="zscore")
    assert "does not say how volumes are normalised" in caplog.text


def test_classifiers_of_volumes_say_what_to_use_instead():
    with pytest.raises(LookupError, match="ct_scroll_nano is a classifier.*zoo test"):
        load_predictor("ct_scroll_nano")


def test_autocast_and_half_precision(tmp_path):
    data, labels = boxes()
    source = write(tmp_path / "x.nii.gz", data)
    (result,) = predictor(amp=True)(source)
    assert np.array_equal(result.labels, labels)
