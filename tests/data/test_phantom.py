"""The generated abdomen: what is in it, and that it is the same every time."""

import json
import time

import nibabel as nib
import numpy as np
import pytest

from zoo.data.phantom import PHANTOM_CLASSES, Phantom, write_phantom
from zoo.data.phantom_dataset import PhantomDataset, cached_phantom
from zoo.data.volume_folder import find_volume_data
from zoo.data.volume_grid import axis_codes


def test_volumes_have_every_organ_and_follow_from_the_seed():
    phantom = Phantom(seed=3)
    start = time.process_time()
    volumes = [phantom.volume(i) for i in range(4)]
    assert (time.process_time() - start) / 4 < 0.3
    for image, label in volumes:
        assert image.data.shape == label.data.shape == (96, 96, 48)
        assert image.data.dtype == np.float32
        assert label.data.dtype == np.uint8
        assert axis_codes(image.affine) == "LPS"
        assert image.spacing[2] > 1.5 * image.spacing[0]
        counts = np.bincount(label.data.reshape(-1), minlength=5)
        assert len(counts) == 5
        assert (counts[1:] > 150).all()
        assert counts[4] < 0.1 * counts[1]  # one organ is small
        np.testing.assert_array_equal(image.data, np.round(image.data))
    again = Phantom(seed=3).volume(2)
    np.testing.assert_array_equal(again[0].data, volumes[2][0].data)
    np.testing.assert_array_equal(again[1].data, volumes[2][1].data)
    np.testing.assert_array_equal(again[0].affine, volumes[2][0].affine)
    assert not np.array_equal(Phantom(seed=4).volume(2)[1].data, volumes[2][1].data)


def test_brightness_alone_does_not_tell_the_organs():
    """Organs overlap in brightness across the data set, and with what is no organ."""
    phantom = Phantom()
    values = [[] for _ in PHANTOM_CLASSES]
    for i in range(6):
        image, label = phantom.volume(i)
        for k in range(5):
            values[k].append(image.data[label.data == k])
    quartiles = [np.percentile(np.concatenate(v), [5, 95]) for v in values]
    for a, b in ((1, 2), (2, 3), (1, 3), (0, 4), (0, 1)):
        assert quartiles[a][0] < quartiles[b][1]
        assert quartiles[b][0] < quartiles[a][1]


def test_places_and_sizes_vary():
    centres, sizes = [], []
    for i in range(6):
        label = Phantom().volume(i)[1].data
        centres.append([np.argwhere(label == k).mean(0) for k in range(1, 5)])
        sizes.append([np.count_nonzero(label == k) for k in range(1, 5)])
    assert (np.std(centres, axis=0)[:, :2] > 0.5).all()
    assert (np.std(sizes, axis=0) / np.mean(sizes, axis=0) > 0.1).all()


def test_noise_and_bias_are_what_they_say():
    plain, noisy = Phantom(noise=0, bias=0).volume(1), Phantom(noise=20, bias=0).volume(1)
    np.testing.assert_array_equal(plain[1].data, noisy[1].data)
    assert np.std(noisy[0].data - plain[0].data) == pytest.approx(20, rel=0.02)
    biased = Phantom(noise=0, bias=0.2).volume(1)
    ratio = (biased[0].data + 400) / np.maximum(plain[0].data + 400, 1)
    inside = plain[0].data > -50
    assert np.abs(ratio[inside] - 1).max() <= 0.21
    assert ratio[inside].max() - ratio[inside].min() > 0.05
    # partial volume: without noise there still are values between those of organs and tissue
    between = [np.count_nonzero((plain[0].data > a) & (plain[0].data < b)) for a, b in ((-395, -95), (-85, 30))]
    assert min(between) > 1000


def test_written_as_real_nifti_in_the_decathlons_layout(tmp_path):
    seen = []
    file = write_phantom(tmp_path, 3, (32, 28, 16), seed=5, test=1, progress=lambda *a: seen.append(a))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert json.loads(file.read_text(encoding="utf-8"))["numTraining"] == 3
    found = find_volume_data(tmp_path)
    assert found.format == "msd"
    assert found.classes == list(PHANTOM_CLASSES)
    assert found.missing_files() == []
    image, label = Phantom((32, 28, 16), seed=5).volume(1)
    written = nib.load(found.cases[1].images[0])
    np.testing.assert_array_equal(written.get_fdata(), image.data)
    np.testing.assert_array_equal(np.asarray(nib.load(found.cases[1].label).dataobj), label.data)
    np.testing.assert_array_equal(written.affine, image.affine)
    assert written.get_data_dtype() == np.int16
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    assert written.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(written.get_qform(), written.get_sform(), atol=1e-4)


def test_cached_once_and_used_as_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path))
    folder = cached_phantom(6, (32, 32, 16))
    assert folder.parent == tmp_path / "phantom"
    stamp = (folder / "dataset.json").stat().st_mtime_ns
    train = PhantomDataset("train", fold=1, volumes=6, size=(32, 32, 16), folds=3, patch_size=(16, 16, 8))
    val = PhantomDataset("val", fold=1, volumes=6, size=(32, 32, 16), folds=3)
    assert (folder / "dataset.json").stat().st_mtime_ns == stamp
    assert (len(train), len(val)) == (4, 2)
    assert {c.name for c in train.cases}.isdisjoint({c.name for c in val.cases})
    assert train[0]["inputs"].shape == (1, 16, 16, 8)
    assert val[0]["inputs"].shape == (1, 32, 32, 16)
    assert list(tmp_path.glob("phantom/.making*")) == []


@pytest.mark.parametrize(
    "options, message",
    [(dict(size=(8, 32, 32)), "at least 16"), (dict(noise=-1), "not be negative"), (dict(bias=1.0), "below 1")],
)
def test_arguments_are_checked(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Phantom(**options)
    with pytest.raises(ValueError, match="volumes=0"):
        write_phantom(tmp_path, 0)
