"""What the check of a folder of volumes finds."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from zoo.cli import main
from zoo.data.check import check_folder
from zoo.data.phantom import write_phantom
from zoo.data.volumes import read_volume


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    write_phantom(root, 10, (28, 24, 16), test=1)
    return root


@pytest.fixture
def own(phantom, tmp_path):
    return shutil.copytree(phantom, tmp_path / "own")


def kinds(report):
    return {p.kind for p in report.problems}


def rewrite(path, change=None, affine=None, label=False):
    volume = read_volume(path, label=label)
    data = volume.data if change is None else change(volume.data)
    nib.save(nib.Nifti1Image(data, volume.affine if affine is None else affine), path)


def test_a_good_folder(phantom, capsys):
    report = check_folder(phantom)
    assert report.ok
    assert report.problems == []
    assert report.format == "volumes"
    assert report.num_images == 11
    assert report.classes[0] == "background"
    assert report.histogram == {"train": {"liver": 10, "spleen": 10, "kidney": 10, "gallbladder": 10}}
    assert report.sizes["z"] == {"min": 16, "median": 16, "max": 16}
    assert report.details["orientations"] == {"LPS": 11}
    assert report.details["layout"] == "msd"
    assert report.details["cases"] == {"with labels": 10, "without": 1, "groups": 10}
    assert main(["data", "check", str(phantom)]) == 0
    assert "can be trained on" in capsys.readouterr().out


def test_every_fault_is_named(own, capsys):
    images, labels = own / "imagesTr", own / "labelsTr"
    for i, (folder, name) in enumerate([(images, "000"), (labels, "001")]):
        path = folder / f"phantom_{name}.nii.gz"
        path.write_bytes(path.read_bytes()[: 60 + i])
    rewrite(labels / "phantom_002.nii.gz", lambda y: np.where(y == 3, 77, y), label=True)
    rewrite(images / "phantom_003.nii.gz", lambda x: x[:, :-1])
    moved = nib.load(images / "phantom_004.nii.gz").affine
    moved[:3, 3] += 4
    rewrite(images / "phantom_004.nii.gz", affine=moved)
    rewrite(images / "phantom_005.nii.gz", lambda x: np.where(x > 150, np.nan, x))
    rewrite(labels / "phantom_006.nii.gz", lambda y: y * 0, label=True)
    (labels / "phantom_007.nii.gz").unlink()
    nib.save(nib.Nifti1Image(np.zeros((28, 24, 16, 2), np.int16), np.eye(4)), images / "phantom_008.nii.gz")
    shutil.copy(images / "phantom_009.nii.gz", own / "imagesTs" / "phantom_010.nii.gz")
    report = check_folder(own)
    assert not report.ok
    severity = {p.severity for p in report.of_kind("empty_label")}
    assert severity == {"warning"}
    by_kind = {k: [p.message for p in report.of_kind(k)] for k in kinds(report)}
    assert len(by_kind["broken"]) == 3
    assert any("imagesTr/phantom_000.nii.gz is truncated" in m for m in by_kind["broken"])
    assert any("labelsTr/phantom_001.nii.gz is truncated" in m for m in by_kind["broken"])
    assert any("phantom_008.nii.gz has 4 dimensions" in m for m in by_kind["broken"])
    assert "phantom_002.nii.gz has labels outside the class list: 77" in by_kind["unknown_label"][0]
    assert sorted("shapes" in m or "affines" in m for m in by_kind["different_grid"]) == [True, True]
    assert "voxels are NaN" in by_kind["nan"][0]
    assert by_kind["missing"] == ["labelsTr/phantom_007.nii.gz is named but there is no such file"]
    assert "phantom_006" in by_kind["empty_label"][0]
    assert "phantom_009" in by_kind["leak"][0]
    assert main(["data", "check", str(own), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_orientations_shear_and_missing_affines(own):
    image, label = own / "imagesTr" / "phantom_000.nii.gz", own / "labelsTr" / "phantom_000.nii.gz"
    turned = np.diag([2.0, 2, 3, 1])
    rewrite(image, affine=turned)
    rewrite(label, affine=turned, label=True)
    sheared = nib.load(own / "imagesTr" / "phantom_001.nii.gz").affine
    sheared[:3, 2] += 0.2 * sheared[:3, 1]
    for folder in ("imagesTr", "labelsTr"):
        rewrite(own / folder / "phantom_001.nii.gz", affine=sheared, label=folder == "labelsTr")
        path = own / folder / "phantom_002.nii.gz"
        volume = read_volume(path, label=folder == "labelsTr")
        nib.save(nib.Nifti1Image(volume.data, None), path)
    report = check_folder(own)
    assert report.of_kind("orientations")[0].severity == "warning"
    assert "phantom_000" in report.of_kind("orientations")[0].paths
    assert any("orientation='RAS'" in s for s in report.suggestions)
    assert "not at right angles" in report.of_kind("sheared")[0].message
    assert len(report.of_kind("no_affine")) == 2
    assert "allow_missing_affine=True" in report.of_kind("no_affine")[0].message


def test_classes_that_are_missing_and_folds_without_one(own):
    for i in range(10):
        path = own / "labelsTr" / f"phantom_{i:03d}.nii.gz"
        rewrite(path, lambda y, i=i: np.where((y == 2) | ((y == 4) & (i != 3)), 0, y), label=True)
    report = check_folder(own)
    assert [p.paths for p in report.of_kind("empty_class")] == [["spleen"]]
    messages = [p.message for p in report.of_kind("fold_without_class")]
    assert len(messages) == 5
    assert sum("holds all cases of class 'gallbladder'" in m for m in messages) == 1
    assert sum("has no case of class 'gallbladder'" in m for m in messages) == 4


def test_ids_with_gaps_few_cases_and_no_layout(tmp_path):
    for i in range(2):
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
            data = np.random.default_rng(i).choice([0, 3, 9], (6, 5, 4)).astype(np.uint8)
            nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / folder / f"{i}.nii.gz")
    report = check_folder(tmp_path)
    assert report.format == "volumes"
    assert report.ok
    assert report.details["ids of classes in files"] == {"background": 0, "class 3": 3, "class 9": 9}
    assert any("have gaps" in s for s in report.suggestions)
    assert kinds(report) == {"few"}
    (tmp_path / "classes.json").write_text("[]")
    report = check_folder(tmp_path, "volumes")
    assert kinds(report) == {"layout"}
    assert not report.ok
