"""Layouts of volume data, and folds."""

import json

import nibabel as nib
import numpy as np
import pytest

from zoo.data.volume_folder import (
    ACDC_CLASSES,
    BTCV_CLASSES,
    VolumeCase,
    find_volume_data,
    fold_cases,
    is_volume_folder,
    split_folds,
)


def put(path, values=(0, 1), shape=(4, 4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.resize(np.array(values, np.uint8), shape), np.eye(4)), path)


def describe(root, **content):
    (root / "dataset.json").write_text(json.dumps(content))


def names(cases):
    return [c.name for c in cases]


def relative(case, root):
    return [f.removeprefix(f"{root.resolve()}/") for f in case.files]


def test_msd(tmp_path):
    describe(
        tmp_path,
        labels={"0": "background", "2": "tumour", "1": "liver"},
        modality={"1": "T2", "0": "FLAIR"},
        training=[{"image": f"./imagesTr/l_{i}.nii.gz", "label": f"./labelsTr/l_{i}.nii.gz"} for i in (3, 1, 2)],
        test=["./imagesTs/l_9.nii.gz"],
    )
    for i in (1, 2):
        put(tmp_path / "imagesTr" / f"l_{i}.nii.gz")
        put(tmp_path / "labelsTr" / f"l_{i}.nii.gz")
    found = find_volume_data(tmp_path)
    assert found.format == "msd"
    assert is_volume_folder(tmp_path)
    assert (found.classes, found.label_ids) == (["background", "liver", "tumour"], [0, 1, 2])
    assert found.channels == ["FLAIR", "T2"]
    assert names(found.cases) == ["l_1", "l_2", "l_3"]
    assert relative(found.cases[0], tmp_path) == ["imagesTr/l_1.nii.gz", "labelsTr/l_1.nii.gz"]
    assert names(found.test_cases) == ["l_9"]
    assert [f[-20:] for f in found.missing_files()] == [
        "/imagesTr/l_3.nii.gz",
        "/labelsTr/l_3.nii.gz",
        "/imagesTs/l_9.nii.gz",
    ]


def test_nnunet(tmp_path):
    describe(tmp_path, channel_names={"0": "CT", "1": "PET"}, labels={"background": 0, "b": 5, "a": 2}, numTraining=2)
    for name in ("x_1", "x_2", "x_3"):
        for c in ("0000", "0001"):
            put(tmp_path / "imagesTr" / f"{name}_{c}.nii.gz")
        if name != "x_3":
            put(tmp_path / "labelsTr" / f"{name}.nii.gz")
    put(tmp_path / "imagesTs" / "y_0000.nii.gz")
    put(tmp_path / "imagesTs" / "y_0001.nii.gz")
    found = find_volume_data(tmp_path)
    assert found.format == "nnunet"
    assert (found.classes, found.label_ids) == (["background", "a", "b"], [0, 2, 5])
    assert found.channels == ["CT", "PET"]
    assert names(found.cases) == ["x_1", "x_2"]
    assert relative(found.cases[1], tmp_path) == [
        "imagesTr/x_2_0000.nii.gz",
        "imagesTr/x_2_0001.nii.gz",
        "labelsTr/x_2.nii.gz",
    ]
    assert names(found.test_cases) == ["x_3", "y"]
    (tmp_path / "imagesTr" / "x_1_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"case x_1 has 1 channel\(s\)"):
        find_volume_data(tmp_path)


def test_an_older_nnunet_lists_names_without_channels(tmp_path):
    training = [{"image": "./imagesTr/c1.nii.gz", "label": "./labelsTr/c1.nii.gz"}]
    describe(tmp_path, modality={"0": "MRI"}, labels={"0": "background", "1": "a"}, training=training, test=[])
    put(tmp_path / "imagesTr" / "c1_0000.nii.gz")
    put(tmp_path / "labelsTr" / "c1.nii.gz")
    found = find_volume_data(tmp_path)
    assert found.format == "nnunet"
    assert relative(found.cases[0], tmp_path) == ["imagesTr/c1_0000.nii.gz", "labelsTr/c1.nii.gz"]


@pytest.mark.parametrize("below", ["", "Training", "RawData/Training"])
def test_synapse(tmp_path, below):
    for n in ("0001", "0002", "0035"):
        put(tmp_path / below / "img" / f"img{n}.nii.gz")
        put(tmp_path / below / "label" / f"label{n}.nii.gz")
    put(tmp_path / below / "img" / "img0061.nii.gz")
    found = find_volume_data(tmp_path)
    assert found.format == "synapse"
    assert is_volume_folder(tmp_path)
    assert found.classes == list(BTCV_CLASSES)
    assert len(found.classes) == 14
    assert names(found.cases) == ["img0001", "img0002", "img0035"]
    assert found.cases[2].label.endswith("label0035.nii.gz")
    assert names(found.test_cases) == ["img0061"]
    (tmp_path / "classes.txt").write_text("background\nspleen\n")
    assert find_volume_data(tmp_path).classes == ["background", "spleen"]


@pytest.mark.parametrize("below", ["", "training"])
def test_acdc(tmp_path, below):
    for p in (1, 2):
        folder = tmp_path / below / f"patient00{p}"
        put(folder / f"patient00{p}_4d.nii.gz")
        for frame in ("01", "12"):
            put(folder / f"patient00{p}_frame{frame}.nii.gz")
            put(folder / f"patient00{p}_frame{frame}_gt.nii.gz")
    put(tmp_path / "testing" / "patient101" / "patient101_frame01.nii.gz")
    found = find_volume_data(tmp_path)
    assert found.format == "acdc"
    assert is_volume_folder(tmp_path)
    assert found.classes == list(ACDC_CLASSES)
    assert names(found.cases) == [f"patient00{p}_frame{f}" for p in (1, 2) for f in ("01", "12")]
    assert found.cases[0].label.endswith("patient001_frame01_gt.nii.gz")
    assert names(found.test_cases) == (["patient101_frame01"] if below else [])
    train, val = fold_cases(found.cases, 0, folds=2)  # both frames of a patient on one side
    assert {c.group for c in train}.isdisjoint({c.group for c in val})
    assert len(train) == len(val) == 2


def test_plain(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / "images" / f"{name}.nii.gz")
        put(tmp_path / "labels" / f"{name}{'_seg' if name == 'b' else ''}.nii.gz", (0, 7, 3))
    put(tmp_path / "images" / "c.nii.gz")
    found = find_volume_data(tmp_path)
    assert found.format == "plain"
    assert is_volume_folder(tmp_path)
    assert (found.classes, found.label_ids) == (["background", "class 3", "class 7"], [0, 3, 7])
    assert names(found.cases) == ["a", "b"]
    assert names(found.test_cases) == ["c"]
    (tmp_path / "classes.json").write_text('{"vein": 7, "liver": 3}')  # the background goes without saying
    found = find_volume_data(tmp_path)
    assert (found.classes, found.label_ids) == (["background", "liver", "vein"], [0, 3, 7])


def test_plain_with_channels_in_files(tmp_path):
    for c in range(2):
        put(tmp_path / "images" / f"a_000{c}.nii.gz")
    put(tmp_path / "labels" / "a.nii.gz")
    found = find_volume_data(tmp_path)
    assert [len(c.images) for c in found.cases] == [2]
    assert found.channels == ["image 0", "image 1"]
    put(tmp_path / "images" / "b.nii.gz")
    with pytest.raises(ValueError, match=r"different numbers of channels, \[1, 2\]"):
        find_volume_data(tmp_path)


def test_plain_with_dicom_series(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / "labels" / f"{name}.nii.gz")
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 8)
    (tmp_path / "images" / "notes").mkdir()
    (tmp_path / "images" / "notes" / "a.txt").write_text("no series")
    found = find_volume_data(tmp_path)
    assert is_volume_folder(tmp_path)
    assert names(found.cases) == ["a", "b"]
    assert found.test_cases == []
    assert relative(found.cases[0], tmp_path) == ["images/a", "labels/a.nii.gz"]


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"background": 0, "whole": [1, 2]}, "'whole' is a region of several ids"),
        ({"background": 0, "a": 1, "ignore": 2}, "'ignore' label is not supported"),
        ({"background": 0, "a": "x"}, "has no integer id"),
        ({"a": 1, "b": 1}, "must be different"),
        ({"0": "a", "1": "a"}, "must be different"),
        ({"background": 0, "a": -2}, "negative"),
        ({}, "'labels' is"),
        (None, "'labels' is"),
    ],
)
def test_class_lists_that_say_nothing_usable(tmp_path, labels, message):
    put(tmp_path / "imagesTr" / "a.nii.gz")
    describe(tmp_path, labels=labels, training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}])
    with pytest.raises(ValueError, match=message):
        find_volume_data(tmp_path)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_volume_data(tmp_path / "absent")
    assert not is_volume_folder(tmp_path)
    with pytest.raises(ValueError, match="none of the layouts"):
        find_volume_data(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    (tmp_path / "labels" / "a.png").write_bytes(b"")
    assert not is_volume_folder(tmp_path)  # of the segmentation of images
    with pytest.raises(ValueError, match="none of the layouts"):
        find_volume_data(tmp_path)
    with pytest.raises(ValueError, match="format='nrrd' is unknown; accepted are 'msd'"):
        find_volume_data(tmp_path, "nrrd")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json is no JSON"):
        find_volume_data(tmp_path)


def cases(count, groups=None):
    return [VolumeCase(f"c{i:02d}", ("x",), "y", f"g{i % groups}" if groups else "") for i in range(count)]


def test_folds_follow_from_the_seed_and_the_names():
    pool = cases(23)
    folds = split_folds(pool, 5, seed=3)
    assert sorted(len(f) for f in folds) == [4, 4, 5, 5, 5]
    assert sorted(names(sum(folds, []))) == names(pool)
    again = split_folds(pool[::-1], 5, seed=3)  # whatever the order
    assert [set(names(f)) for f in again] == [set(names(f)) for f in folds]
    assert [set(names(f)) for f in split_folds(pool, 5, seed=4)] != [set(names(f)) for f in folds]
    train, val = fold_cases(pool, 2, 5, 3)
    assert names(val) == names(folds[2])
    assert sorted(names(train) + names(val)) == names(pool)


def test_groups_stay_together_and_limits_are_checked():
    folds = split_folds(cases(12, groups=4), 4)
    assert [len({c.group for c in f}) for f in folds] == [1] * 4
    with pytest.raises(ValueError, match="folds=5 must be from 2 to the number of groups of cases, 4"):
        split_folds(cases(12, groups=4), 5)
    with pytest.raises(ValueError, match="folds=1"):
        split_folds(cases(12), 1)
    with pytest.raises(ValueError, match="fold=5 must be from 0 to 4"):
        fold_cases(cases(12), 5)
