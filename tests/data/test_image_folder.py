"""Class folders and annotation lists."""

import json
import locale

import cv2
import numpy as np
import pytest

from zoo.data.image_folder import ImageFolder, find_splits, read_annotations


def test_classes_are_sorted_and_folders_searched_deeply(make_folder, tmp_path):
    root = make_folder(tmp_path / "d", {"zebra": 2, "ant": 3, "ant/old": 1})
    (root / "notes.txt").write_text("no image")
    (root / "ant" / "readme.md").write_text("no image")
    (root / ".cache").mkdir()
    dataset = ImageFolder(root)
    assert dataset.classes == ("ant", "zebra")
    assert dataset.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert dataset.path_of(3) == str(root / "ant" / "old" / "0.png")
    expected = cv2.imread(str(root / "ant" / "0.png"))[:, :, ::-1]
    assert np.array_equal(dataset[0]["inputs"].numpy().transpose(1, 2, 0), expected)


def test_given_classes_set_the_indices(make_folder, tmp_path):
    root = make_folder(tmp_path / "d", {"a": 1, "b": 1})
    dataset = ImageFolder(root, classes=["b", "c", "a"])
    assert dataset.labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match="did you mean"):
        ImageFolder(make_folder(tmp_path / "e", {"zebr": 1}), classes=["zebra", "ant"])


def test_names_that_are_not_ascii(make_folder, tmp_path):
    dataset = ImageFolder(make_folder(tmp_path / "d", {"k\u00e4se": 2, "a": 1}))
    assert dataset[1]["data_samples"].img_path.endswith("k\u00e4se/0.png")


@pytest.mark.parametrize(
    ("counts", "loose", "message"),
    [
        ({}, 0, "no images in class folders"),
        ({}, 2, "2 images lie in it directly"),
        ({"a": 0, "b": 0}, 0, "no images in class folders"),
        ({"a": 2, "b": 0}, 0, "without images.*: b"),
    ],
)
def test_empty_folders_are_named(make_folder, tmp_path, counts, loose, message):
    root = tmp_path / "d"
    root.mkdir()
    make_folder(root, counts)
    for i in range(loose):
        (root / f"{i}.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        ImageFolder(root)


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="it is a file"):
        ImageFolder(tmp_path / "file")


def test_parts_are_stratified_and_complete(make_folder, tmp_path):
    root = make_folder(tmp_path / "d", {"a": 10, "b": 5})
    parts = [ImageFolder(root, part=p, val_fraction=0.2) for p in ("train", "val")]
    paths = [{d.path_of(i) for i in range(len(d))} for d in parts]
    assert not paths[0] & paths[1]
    assert len(paths[0] | paths[1]) == 15
    assert np.bincount(parts[1].labels).tolist() == [2, 1]
    assert parts[0].classes == parts[1].classes
    with pytest.raises(ValueError, match="'val' part.*is empty"):
        ImageFolder(make_folder(tmp_path / "e", {"a": 1, "b": 1}), part="val")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "val"], ("train", "val")),
        (["training", "test"], ("training", "test")),
        (["train"], ("train", None)),
        (["train", "test", "valid"], ("train", "valid")),
        (["cats", "dogs"], ("", None)),
    ],
)
def test_splits_are_found(tmp_path, folders, expected):
    for name in folders:
        (tmp_path / name).mkdir()
    assert find_splits(tmp_path) == (tmp_path / expected[0], expected[1] and tmp_path / expected[1])


LISTS = {
    "l.txt": "a/0.png cat\na/1.png dog\n\nb b/0.png cat\n",
    "l.csv": "label, path\ncat,a/0.png\ndog,a/1.png\ncat,b b/0.png\n",
    "m.csv": "a/0.png,cat\na/1.png,dog\nb b/0.png,cat\n",
    "a.json": '[{"path": "a/0.png", "label": "cat"}, {"path": "a/1.png", "label": "dog"}, ["b b/0.png", "cat"]]',
    "b.json": '{"a/0.png": "cat", "a/1.png": "dog", "b b/0.png": "cat"}',
    "c.json": '{"classes": ["cat", "dog"], "samples": [["a/0.png", 0], ["a/1.png", 1], ["b b/0.png", 0]]}',
}


@pytest.mark.parametrize("name", LISTS)
def test_annotation_lists(make_folder, tmp_path, name):
    root = make_folder(tmp_path / "d", {"a": 2, "b b": 1})
    (tmp_path / name).write_text(LISTS[name])
    dataset = ImageFolder(root, tmp_path / name)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 0]
    assert [dataset.path_of(i) for i in range(3)] == [str(root / p) for p in ("a/0.png", "a/1.png", "b b/0.png")]
    assert dataset[2]["inputs"].shape == (3, 12, 16)


@pytest.fixture
def ascii_locale():
    """The locale "C": text files that are opened without an encoding are ASCII."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.mark.usefixtures("ascii_locale")
@pytest.mark.parametrize("name", LISTS)
def test_lists_are_utf8_in_every_locale(tmp_path, name):
    (tmp_path / name).write_bytes(LISTS[name].replace("cat", "K\u00e4tzchen").replace("b b", "b \u00fc").encode())
    pairs, classes = read_annotations(tmp_path / name)
    assert [path for path, _ in pairs] == ["a/0.png", "a/1.png", "b \u00fc/0.png"]
    assert (classes or [label for _, label in pairs])[:2] == ["K\u00e4tzchen", "dog"]


def test_numbers_are_indices(make_folder, tmp_path):
    root = make_folder(tmp_path / "d", {"a": 2})
    (tmp_path / "l.txt").write_text("a/0.png 2\na/1.png 0\n")
    assert read_annotations(tmp_path / "l.txt") == ([("a/0.png", 2), ("a/1.png", 0)], None)
    assert ImageFolder(root, tmp_path / "l.txt").classes == ("0", "1", "2")
    assert ImageFolder(root, tmp_path / "l.txt", classes=["x", "y", "z"]).labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match="label 2 of 'a/0.png' is none of the 2 classes"):
        ImageFolder(root, tmp_path / "l.txt", classes=["x", "y"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "a.png 0\nb.png\n", "line 2"),
        ("l.txt", "", "is empty"),
        ("l.csv", "path,label\na.png\n", "line 2"),
        ("l.csv", "path,label\n", "is empty"),
        ("l.json", "{", "is no JSON"),
        ("l.json", '[["a.png"]]', "sample 0"),
        ("l.json", '[["a.png", 0.5]]', "sample 0"),
        ("l.json", '[["a.png", true]]', "sample 0"),
        ("l.json", '[["a.png", 0], ["b.png", "cat"]]', "must be all"),
        ("l.json", "3", "sample"),
        ("l.xml", "<a/>", "unknown ending"),
    ],
)
def test_malformed_lists_say_where(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, tmp_path / name)


def test_unknown_label_gets_the_nearest(tmp_path):
    (tmp_path / "l.json").write_text(json.dumps([["a.png", "zebr"]]))
    with pytest.raises(ValueError, match="did you mean zebra"):
        ImageFolder(tmp_path, tmp_path / "l.json", classes=["zebra", "ant"])


def test_unknown_argument(make_folder, tmp_path):
    with pytest.raises(TypeError, match="trasform"):
        ImageFolder(make_folder(tmp_path / "d", {"a": 1}), trasform=None)
