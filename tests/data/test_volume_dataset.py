"""Patches, slices and whole volumes of a data set of volumes."""

import json
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from zoo.data.phantom import PHANTOM_CLASSES, write_phantom
from zoo.data.volume_dataset import VolumeDataset, ids_to_indices, indices_to_ids
from zoo.data.volume_folder import find_volume_data
from zoo.data.volume_transforms import build_volume_transforms
from zoo.data.volumes import VolumeReadError, read_volume, write_volume
from zoo.engine.config import check_config
from zoo.engine.dataloader import build_dataloader
from zoo.medical.data_sample import VolumeSample

SIZE = (28, 24, 16)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    write_phantom(root, 10, SIZE, test=1)
    return root


@pytest.fixture
def own(phantom, tmp_path):
    """A copy whose files a test may change."""
    return shutil.copytree(phantom, tmp_path / "own")


def dataset(root, split="train", **options):
    return VolumeDataset(root, split=split, **{"on_missing_class": "warn", "workers": 1, **options})


def replace(path, change):
    """Write a file of the data set anew with changed voxels."""
    volume = read_volume(path, label="labels" in str(path))
    image = nib.Nifti1Image(change(volume.data), volume.affine)
    nib.save(image, path)


# -- whole volumes --------------------------------------------------------------------------------------------------


def test_validation_gives_whole_volumes_as_they_are_in_the_files(phantom):
    data = dataset(phantom, "val", fold=2, normalisation=None)
    assert len(data) == 2
    assert data.num_classes == 5
    for i in range(2):
        sample = data[i]
        case = data.cases[i]
        x, y = sample["inputs"], sample["data_samples"]
        np.testing.assert_array_equal(x[0].numpy(), nib.load(case.images[0]).get_fdata())
        np.testing.assert_array_equal(y.gt_label.numpy(), np.asarray(nib.load(case.label).dataobj))
        assert x.dtype == torch.float32
        assert y.gt_label.dtype == torch.int64
        assert isinstance(y, VolumeSample)
        np.testing.assert_array_equal(y.affine, nib.load(case.images[0]).affine)
        assert y.case == case.name
        assert y.paths == {"images": case.images, "label": case.label}
        assert y.spacing == pytest.approx(nib.load(case.images[0]).header.get_zooms())
    x.zero_()  # what is done to a sample does not reach the cache
    assert data[1]["inputs"].abs().sum() > 0
    meta = data.metainfo
    assert meta["classes"] == PHANTOM_CLASSES
    assert meta["label_ids"] == (0, 1, 2, 3, 4)
    assert meta["preparation"]["normalisation"] == [{"kind": "none"}]


def test_splits_share_no_case_and_cover_all(phantom):
    parts = [{c.name for c in dataset(phantom, "val", fold=k, split_seed=7).cases} for k in range(5)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 10
    train = {c.name for c in dataset(phantom, "train", fold=3, split_seed=7).cases}
    assert train == set.union(*(p for k, p in enumerate(parts) if k != 3))
    assert len(dataset(phantom, "all")) == 10
    test = dataset(phantom, "test")
    assert len(test) == 1
    assert "gt_label" not in test[0]["data_samples"]
    named = dataset(phantom, "val", case_names=["phantom_004", "phantom_001"])
    assert [c.name for c in named.cases] == ["phantom_004", "phantom_001"]
    with pytest.raises(ValueError, match="has no case 'x'"):
        dataset(phantom, case_names=["x"])


def test_spacing_orientation_and_normalisation(phantom):
    data = dataset(phantom, "val", spacing=(5, 5, 5), orientation="RAS", normalisation="zscore")
    sample = data[0]
    x, y = sample["inputs"], sample["data_samples"]
    assert x.shape[1:] == y.gt_label.shape
    assert y.spacing == pytest.approx((5, 5, 5), rel=0.1)
    assert nib.aff2axcodes(y.affine) == ("R", "A", "S")
    assert abs(float(x.mean())) < 1e-4
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    whole = dataset(phantom, "val")[0]["data_samples"].gt_label
    shares = torch.bincount(y.gt_label.flatten(), minlength=5) / y.gt_label.numel()
    expected = torch.bincount(whole.flatten(), minlength=5) / whole.numel()
    torch.testing.assert_close(shares[:4], expected[:4], rtol=0.25, atol=0.002)


# -- patches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, 0.5, False])
def test_patches_are_parts_of_the_volumes(phantom, cache):
    data = dataset(phantom, patch_size=(10, 12, 6), samples_per_volume=5, normalisation=None, cache=cache)
    assert len(data) == 40
    seen = set()
    for i in range(0, 40, 3):
        sample = data[i]
        x, y = sample["inputs"], sample["data_samples"]
        assert x.shape == (1, 10, 12, 6)
        assert x.is_contiguous()
        case = next(c for c in data.cases if c.name == y.case)
        image, label = nib.load(case.images[0]), np.asarray(nib.load(case.label).dataobj)
        start = np.linalg.solve(image.affine, y.affine[:, 3])[:3].round().astype(int)  # the patch's own affine
        box = tuple(slice(s, s + n) for s, n in zip(start, (10, 12, 6)))
        np.testing.assert_array_equal(x[0].numpy(), image.get_fdata()[box])
        np.testing.assert_array_equal(y.gt_label.numpy(), label[box])
        seen.add((y.case, *start))
    assert len(seen) > 10


def test_samples_follow_from_seed_epoch_and_index_alone(phantom):
    def draw(data):
        return [data[i]["inputs"] for i in range(len(data))]

    options = dict(patch_size=(8, 8, 8), augment=dict(recipe="full", flip_axes=(0,), probability=0.9))
    a, b = dataset(phantom, **options), dataset(phantom, **options, cache=False)
    first = draw(a)
    for x, y in zip(first, draw(b)[::1]):
        assert torch.equal(x, y)
    assert torch.equal(a[3]["inputs"], first[3])
    a.set_epoch(1)
    assert not any(torch.equal(x, y) for x, y in zip(first, draw(a)))
    a.set_epoch(0)
    assert torch.equal(a[5]["inputs"], first[5])
    other = dataset(phantom, **options, seed=1)
    assert not any(torch.equal(x, y) for x, y in zip(first, draw(other)))
    with pytest.raises(ValueError, match="epoch=-1"):
        a.set_epoch(-1)


def test_workers_give_the_same_batches(phantom):
    def batches(workers):
        spec = dict(
            batch_size=4,
            num_workers=workers,
            dataset=dict(
                type=VolumeDataset, source=str(phantom), split="train", patch_size=(8, 8, 8), on_missing_class="warn"
            ),
        )
        loader = build_dataloader(spec, seed=3)
        assert loader.dataset.seed == 3
        return [torch.stack(b["inputs"]) for b in loader]

    for x, y in zip(batches(0), batches(2), strict=True):
        assert torch.equal(x, y)


def test_foreground_is_oversampled_evenly_over_classes(phantom):
    def shares(foreground):
        data = dataset(phantom, patch_size=(4, 4, 4), samples_per_volume=60, foreground=foreground)
        labels = [data[i]["data_samples"].gt_label for i in range(len(data))]
        return np.mean([bool(y.any()) for y in labels]), [
            np.mean([bool((y == k).any()) for y in labels]) for k in range(5)
        ]

    never, _ = shares(0.0)
    always, classes = shares(1.0)
    half, _ = shares(0.5)
    assert always == 1.0
    assert never < 0.3
    assert half == pytest.approx((1 + never) / 2, abs=0.08)
    assert min(classes[1:]) > 0.2  # the small organ, too


def test_foreground_voxels_lie_anywhere_in_the_patch(phantom):
    data = dataset(phantom, case_names=["phantom_001"], patch_size=(9, 9, 9), samples_per_volume=200, foreground=1.0)
    small = [y for y in (data[i]["data_samples"].gt_label for i in range(200)) if (y == 4).any()]
    centres = torch.stack([(y == 4).nonzero().float().mean(0) for y in small])
    assert len(small) > 30
    assert (centres.std(0) > 1).all()


def test_a_volume_smaller_than_the_patch_is_padded(phantom):
    data = dataset(phantom, patch_size=(40, 16, 20), normalisation=None)
    sample = data[0]
    x, y = sample["inputs"][0], sample["data_samples"].gt_label
    assert x.shape == y.shape == (40, 16, 20)
    volume = nib.load(sample["data_samples"].paths["images"][0])
    start = np.linalg.solve(volume.affine, sample["data_samples"].affine[:, 3])[:3].round().astype(int)
    assert start[0] == -6
    assert start[2] == -2
    np.testing.assert_array_equal(x[6:34, :, 2:18], volume.get_fdata()[:, start[1] : start[1] + 16])
    outside = torch.ones_like(x, dtype=torch.bool)
    outside[6:34, :, 2:18] = False
    assert (x[outside] == 0).all()
    assert (y[outside] == 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_an_axis(phantom, axis):
    data = dataset(phantom, axis=axis, normalisation=None, samples_per_volume=3, foreground=0.5)
    kept = [n for i, n in enumerate(SIZE) if i != axis]
    for i in range(0, 24, 5):
        sample = data[i]
        x, y = sample["inputs"], sample["data_samples"]
        assert x.shape == (1, *kept)
        volume = nib.load(y.paths["images"][0])
        where = np.linalg.solve(volume.affine, y.affine[:, 3])[:3].round().astype(int)
        np.testing.assert_array_equal(x[0], volume.get_fdata().take(where[axis], axis))
        np.testing.assert_array_equal(
            y.gt_label, np.asarray(nib.load(y.paths["label"]).dataobj).take(where[axis], axis)
        )
        assert y.spacing == pytest.approx([s for i, s in enumerate(volume.header.get_zooms()) if i != axis])
    cut = dataset(phantom, axis=axis, patch_size=(12, 40))[0]
    assert cut["inputs"].shape == (1, 12, 40)
    assert dataset(phantom, "val", axis=axis)[0]["inputs"].shape == (1, *SIZE)
    only = dataset(phantom, axis=axis, foreground=1.0, samples_per_volume=4)
    assert all(bool(only[i]["data_samples"].gt_label.any()) for i in range(len(only)))


def test_several_channels_of_one_file(phantom, own):
    """The Decathlon's modalities lie in one 4-D file; each is normalised by itself."""
    found = find_volume_data(own)
    for case in found.cases:
        image = nib.load(case.images[0])
        array = image.get_fdata()
        nib.save(nib.Nifti1Image(np.stack([array, 1000 - array], -1).astype(np.int16), image.affine), case.images[0])
    content = json.loads((own / "dataset.json").read_text(encoding="utf-8"))
    (own / "dataset.json").write_text(json.dumps({**content, "modality": {"0": "CT", "1": "negative"}}))
    data = dataset(own, patch_size=(8, 8, 8), normalisation=["zscore", "none"])
    x = data[0]["inputs"]
    assert x.shape == (2, 8, 8, 8)
    assert data.channels == ("CT", "negative")
    one = dataset(phantom, patch_size=(8, 8, 8), normalisation="none")[0]["inputs"]
    assert torch.equal(x[1], 1000 - one[0])
    assert torch.equal(x[0], dataset(phantom, patch_size=(8, 8, 8))[0]["inputs"][0])


# -- faults ---------------------------------------------------------------------------------------------------------


def test_labels_outside_the_class_list(own):
    path = find_volume_data(own).cases[0].label
    replace(path, lambda y: np.where(y == 4, 9, y))
    with pytest.raises(
        VolumeReadError, match=r"phantom_000\.nii\.gz has labels outside the class list: 9 \(\d+ voxels"
    ):
        dataset(own, "all")
    with pytest.raises(VolumeReadError, match="accepted are 0 background, 1 liver, 2 spleen, 3 kidney, 4 gallbladder"):
        dataset(own, "all", cache=False, on_missing_class="ignore")[0]


def test_label_ids_with_gaps_are_mapped_and_mapped_back(own, tmp_path):
    ids = {"background": 0, "liver": 2, "spleen": 5, "kidney": 200, "gallbladder": 1000}
    table = np.array(list(ids.values()), np.int16)
    found = find_volume_data(own)
    truth = {c.name: np.asarray(nib.load(c.label).dataobj) for c in found.cases}
    for case in found.cases:
        replace(case.label, lambda y: table[y])
    found.classes, found.label_ids = list(ids), list(ids.values())
    data = dataset(found, "val")
    sample = data[0]["data_samples"]
    np.testing.assert_array_equal(sample.gt_label, truth[sample.case])
    assert data.metainfo["label_ids"] == sample.label_ids == (0, 2, 5, 200, 1000)
    written = indices_to_ids(sample.gt_label.numpy(), sample.label_ids)
    like = read_volume(sample.paths["images"][0])
    path = write_volume(tmp_path / "p.nii.gz", written, like)
    np.testing.assert_array_equal(
        np.asarray(nib.load(path).dataobj), np.asarray(nib.load(sample.paths["label"]).dataobj)
    )


def test_ids_and_indices():
    ids = [0, 4, 300]
    labels = np.array([[0, 300], [4, 4]], np.int32)
    indices = ids_to_indices(labels, ids)
    np.testing.assert_array_equal(indices, [[0, 2], [1, 1]])
    assert indices.dtype == np.uint8
    np.testing.assert_array_equal(indices_to_ids(indices, ids), labels)
    with pytest.raises(ValueError, match="class indices are from 0 to 3; accepted are 0 to 2"):
        indices_to_ids(np.array([0, 3]), ids)


@pytest.mark.parametrize("fault", ["shape", "affine", "nan", "truncated", "4d", "missing"])
def test_a_case_that_cannot_be_used_names_its_files(own, fault):
    case = find_volume_data(own).cases[1]
    image = nib.load(case.images[0])
    array, affine = image.get_fdata(dtype=np.float32), image.affine.copy()
    error, message = (
        VolumeReadError,
        r"imagesTr/phantom_001\.nii\.gz and .*labelsTr/phantom_001\.nii\.gz have different ",
    )
    if fault == "shape":
        nib.save(nib.Nifti1Image(array[:-1], affine), case.images[0])
        message += "shapes, 27 x 24 x 16 and 28 x 24 x 16"
    elif fault == "affine":
        affine[2, 3] += 3
        nib.save(nib.Nifti1Image(array, affine), case.images[0])
        message += "affines: .* 3 mm apart"
    elif fault == "nan":
        array[3, 4, 5] = np.nan
        nib.save(nib.Nifti1Image(array, affine), case.images[0])
        message = r"imagesTr/phantom_001\.nii\.gz: 1 of 10752 voxels are NaN"
    elif fault == "truncated":
        content = Path(case.images[0]).read_bytes()
        Path(case.images[0]).write_bytes(content[: len(content) // 2])
        message = r"imagesTr/phantom_001\.nii\.gz is truncated"
    elif fault == "4d":
        nib.save(nib.Nifti1Image(np.stack([array] * 2, -1), affine), case.images[0])
        message = r"imagesTr/phantom_001\.nii\.gz has 4 dimensions"
    else:
        (own / "labelsTr" / "phantom_001.nii.gz").unlink()
        error, message = FileNotFoundError, r"1 files of .* the first is '.*labelsTr/phantom_001\.nii\.gz'"
    for cache in (True, False):
        with pytest.raises(error, match=message):
            dataset(own, "all", cache=cache, on_missing_class="ignore")[1]
    if fault == "nan":
        assert dataset(own, "all", nan=-1000.0, normalisation=None, patch_size=None)[1]["inputs"].min() == -1000


def test_a_fold_with_a_class_absent_is_named(own, caplog):
    cases = find_volume_data(own).cases
    val = {c.name for c in dataset(own, "val", fold=3).cases}
    for case in cases:
        if case.name not in val:
            replace(case.label, lambda y: np.where(y == 4, 0, y))
    for cache in (True, False):
        with pytest.raises(ValueError, match="fold 3: no volume to train on has class 'gallbladder'"):
            dataset(own, fold=3, on_missing_class="raise", cache=cache)
    with caplog.at_level(logging.WARNING):
        assert len(dataset(own, fold=3, on_missing_class="warn")) == 8
    assert "fold 3: no volume to train on has class 'gallbladder'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        dataset(own, "val", fold=1, on_missing_class="raise")
    assert "fold 1: no volume to validate on has class 'gallbladder'" in caplog.text
    assert len(dataset(own, fold=0, on_missing_class="raise")) == 8


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(split="dev"), "split='dev' is unknown"),
        (dict(axis=3), "axis=3 is unknown"),
        (dict(patch_size=(4, 4)), "patch_size=.* must be 3 numbers"),
        (dict(axis=1, patch_size=(4, 4, 4)), "must be 2 numbers"),
        (dict(samples_per_volume=0), "samples_per_volume=0"),
        (dict(foreground=1.5), "foreground=1.5"),
        (dict(cache=2), "cache=2"),
        (dict(on_missing_class="no"), "on_missing_class='no'"),
        (dict(fold=5), "fold=5 must be from 0 to 4"),
        (dict(folds=50), "folds=50"),
        (dict(normalisation="x"), "normalisation 'x' is unknown"),
        (dict(augment=dict(recipe="x")), "recipe='x' is unknown"),
    ],
)
def test_arguments_are_checked(phantom, options, message):
    with pytest.raises(ValueError, match=message):
        dataset(phantom, **options)


def test_a_misspelt_key_of_a_config_is_found():
    from mmengine.config import Config

    def check(**arguments):
        loader = dict(batch_size=1, dataset=dict(type=VolumeDataset, source="x", **arguments))
        check_config(Config(dict(train_dataloader=loader)))

    check(patch_size=(8, 8, 8), augment=dict(recipe="light", flip_axes=(0, 1)))
    with pytest.raises(Exception, match="samples_per_volume"):
        check(sample_per_volume=3)
    with pytest.raises(Exception, match="flip_axes"):
        check(augment=dict(recipe="light", flip_axis=(0,)))


# -- augmentation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 10, 8), (12, 10)])
def test_augmentation_keeps_image_and_label_together(shape):
    """An image that is its label plus a little is still that after moves; intensities change without moving."""
    rng = np.random.default_rng(0)
    label = torch.from_numpy((rng.random(shape) < 0.3).astype(np.int64))
    transform = build_volume_transforms("none", flip_axes=range(len(shape)))
    flipped = 0
    for seed in range(12):
        x, y = transform(label[None].float() * 2, label, seed)
        assert torch.equal(x[0], y.float() * 2)
        assert x.shape == (1, *shape)
        assert y.dtype == torch.int64
        flipped += not torch.equal(y, label)
    assert 6 <= flipped <= 12
    smooth = torch.zeros(shape)
    smooth[tuple(slice(n // 4, 3 * n // 4) for n in shape)] = 1
    moved = build_volume_transforms("full", probability=1.0, rotate=25)
    x, y = moved(smooth[None] * 4, smooth.long(), 5)
    assert type(x) is torch.Tensor
    assert not torch.equal(y, smooth.long())
    assert x[0][y == 1].mean() > x[0][y == 0].mean() + 1.5
    light = build_volume_transforms("light")
    x, y = light(smooth[None] * 4, smooth.long(), 5)
    assert torch.equal(y, smooth.long())
    assert not torch.equal(x, smooth[None] * 4)
    again, _ = light(smooth[None] * 4, smooth.long(), 5)
    assert torch.equal(again, x)
    assert not torch.equal(light(smooth[None] * 4, smooth.long(), 6)[0], x)


@pytest.mark.parametrize("options", [dict(recipe="no"), dict(probability=2), dict(rotate=-1), dict(flip_axes=(3,))])
def test_augmentation_checks_its_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        build_volume_transforms(**options)
    assert build_volume_transforms("none") is None


def test_volume_sample_takes_integers_of_two_or_three_dimensions():
    sample = VolumeSample(metainfo={"case": "a"})
    assert sample.set_gt_label(np.zeros((2, 3), np.uint8)).gt_label.dtype == torch.int64
    assert sample.set_pred_label(torch.zeros(2, 3, 4, dtype=torch.int32)).pred_label.shape == (2, 3, 4)
    assert sample.set_pred_score(torch.zeros(5, 2, 3)).pred_score.shape == (5, 2, 3)
    with pytest.raises(TypeError, match="gt_label is torch.float32"):
        sample.set_gt_label(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="pred_label has shape"):
        sample.set_pred_label(torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="pred_score"):
        sample.set_pred_score(torch.zeros(5, 2, 3, dtype=torch.long))
