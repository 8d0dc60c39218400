"""`zoo data check` on folders of masks and on panoptic annotations: each fault is found and named."""

import json

import numpy as np
import pytest
from PIL import Image

from zoo.cli import main
from zoo.data.check import check_folder
from zoo.data.check_segmentation import classes_of_values
from zoo.data.coco_panoptic import write_ids
from zoo.data.label_maps import write_mask

GOOD = np.kron(np.array([[0, 1], [2, 255]]), np.ones((8, 8), int))


@pytest.fixture
def folder(tmp_path):
    """Six images with masks of three classes, four to train on."""
    for i in range(6):
        split = "train" if i < 4 else "val"
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / split / f"{i}.png")
        write_mask(tmp_path / "masks" / split / f"{i}.png", GOOD)
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    return tmp_path


def test_good_data(folder):
    report = check_folder(folder)
    assert (report.format, report.ok, report.num_images) == ("masks", True, 6)
    assert report.histogram == {s: dict(road=64 * n, sky=64 * n, tree=64 * n) for s, n in (("train", 4), ("val", 2))}
    assert report.details["ignored pixels in train"] == "25.0 %"
    assert report.sizes["height"] == {"min": 16, "median": 16, "max": 16}
    assert report.problems == []


def mask(values):
    return lambda root: write_mask(root / "masks" / "train" / "1.png", values)


def save(array, name="masks/train/1.png"):
    return lambda root: Image.fromarray(array.astype(np.uint8)).save(root / name)


def move(source, target):
    return lambda root: (root / source).rename(root / target)


def copy(source, target):
    return lambda root: (root / target).write_bytes((root / source).read_bytes())


@pytest.mark.parametrize(
    "change, severity, kind, words",
    [
        (
            mask(np.full((16, 16), 77)),
            "error",
            "values",
            r"masks/train/1.png has the values 77.* accepted are 0 to 2, 255",
        ),
        (mask(GOOD[:8]), "error", "size_mismatch", r"1.png is 8 x 16 pixels .* images/train/1.png 16 x 16"),
        (mask(np.full((16, 16), 255)), "warning", "all_ignored", r"masks/train/1.png has no pixel of a class"),
        (save(np.zeros((16, 16, 3))), "error", "rgb_mask", "RGB image where class indices are meant"),
        (move("masks/train/1.png", "masks/train/x.png"), "error", "missing_mask", "images/train/1.png has no mask"),
        (move("images/train/1.png", "x.png"), "warning", "mask_without_image", "masks/train/1.png"),
        (lambda r: (r / "masks/train/1.png").write_bytes(b"no"), "error", "broken", "cannot read mask"),
        (
            lambda r: (r / "images/train/1.png").write_bytes(b"no"),
            "error",
            "broken",
            "images/train/1.png cannot be read",
        ),
        (copy("images/val/4.png", "images/train/1.png"), "error", "leak", "the same image in train and val"),
        (
            lambda r: (r / "classes.txt").write_text("a\nb\nc\nd\n"),
            "warning",
            "empty_class",
            "without a pixel in train: d",
        ),
        (lambda r: (r / "classes.txt").write_text("a\na\n"), "error", "no_images", "names classes twice"),
        (
            lambda r: [write_mask(r / f"masks/train/{i}.png", GOOD, [(i == 1, 0, 0)] * 3) for i in range(4)],
            "warning",
            "palette",
            "1 masks have another palette than most",
        ),
    ],
)
def test_faults(folder, change, severity, kind, words):
    change(folder)
    report = check_folder(folder, "masks")
    found = [p for p in report.problems if p.kind == kind]
    assert found, report.problems
    assert {p.severity for p in found} == {severity}
    import re

    assert any(re.search(words, p.message) for p in found), [p.message for p in found]
    assert report.ok == (severity == "warning")


def test_image_of_one_pixel(folder):
    save(np.zeros((1, 1, 3)), "images/train/1.png")(folder)
    mask(np.zeros((1, 1)).astype(int))(folder)
    report = check_folder(folder)
    assert report.ok
    assert [p.kind for p in report.problems] == ["tiny"]


def test_classes_follow_from_values(folder):
    (folder / "classes.txt").unlink()
    report = check_folder(folder)
    assert report.classes == ["0", "1", "2"]
    assert any("no classes.txt" in s for s in report.suggestions)
    assert classes_of_values(np.array([0, 1, 2, 255])) == {"classes": ["0", "1", "2"]}
    assert classes_of_values(np.array([3, 8])) == {"classes": ["3", "8"], "label_map": {3: 0, 8: 1}}
    assert classes_of_values(np.array([0, 255])) == {"classes": ["0", "255"], "label_map": {0: 0, 255: 1}}
    assert classes_of_values(np.array([0, 255, 256])) == {
        "classes": ["0", "255", "256"],
        "ignore_index": 65535,
        "label_map": {0: 0, 255: 1, 256: 2},
    }
    for values, words in ((np.arange(256), "too many"), (np.array([4, 255]), "two classes are needed")):
        with pytest.raises(ValueError, match=words):
            classes_of_values(values)


def test_masks_of_0_and_255(folder):
    (folder / "classes.txt").unlink()
    for path in folder.glob("masks/*/*.png"):
        write_mask(path, np.where(GOOD == 1, 255, 0))
    report = check_folder(folder)
    assert [p.kind for p in report.problems] == ["binary"]
    assert report.histogram["train"] == {"0": 4 * 192, "255": 4 * 64}


def test_command(folder, capsys):
    assert main(["data", "check", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "6 images in 3 classes, format masks" in text
    mask(np.full((16, 16), 77))(folder)
    assert main(["data", "check", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["kind"] == "values"


def test_panoptic(tmp_path):
    (tmp_path / "train").mkdir()
    images, annotations = [], []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / f"{i}.png")
        write_ids(tmp_path / "annotations" / "panoptic_train" / f"{i}.png", np.where(GOOD == 255, 0, GOOD + 300))
        images.append(dict(id=i, file_name=f"{i}.png", height=16, width=16))
        infos = [dict(id=300 + k, category_id=k, iscrowd=0) for k in range(3)]
        annotations.append(dict(image_id=i, file_name=f"{i}.png", segments_info=infos))
    content = dict(images=images, annotations=annotations, categories=[dict(id=k, name=f"c{k}") for k in range(3)])
    path = tmp_path / "annotations" / "panoptic_train.json"
    path.write_text(json.dumps(content))
    report = check_folder(tmp_path)
    assert (report.format, report.ok, report.num_images) == ("coco_panoptic", True, 3)
    assert report.histogram == {"train": {"c0": 3, "c1": 3, "c2": 3}}
    annotations[0]["segments_info"].pop()
    annotations[1]["segments_info"].append(dict(id=9, category_id=0))
    path.write_text(json.dumps(content))
    folder = tmp_path / "annotations" / "panoptic_train"
    write_ids(folder / "2.png", GOOD[:8] * 0)
    report = check_folder(tmp_path)
    assert {p.kind for p in report.problems} == {
        "unknown_segment",
        "empty_segment",
        "size_mismatch",
        "all_ignored",
    }
    (folder / "2.png").unlink()
    (tmp_path / "train" / "1.png").unlink()
    kinds = {p.kind for p in check_folder(tmp_path).problems}
    assert {"missing_mask", "missing"} <= kinds
