"""What the check of a data set finds."""

import json
import shutil

import pytest

from zoo.data.check import CHECKS, CheckReport, check_folder, register_check


def kinds(report):
    return {p.kind for p in report.problems}


def test_a_good_folder(make_folder, tmp_path):
    make_folder(tmp_path / "d" / "train", {"a": 12, "b": 14})
    make_folder(tmp_path / "d" / "val", {"a": 3, "b": 2}, size=(20, 10))
    report = check_folder(tmp_path / "d")
    assert report.ok
    assert report.format == "image_folder"
    assert report.num_images == 31
    assert report.classes == ["a", "b"]
    assert report.histogram == {"train": {"a": 12, "b": 14}, "val": {"a": 3, "b": 2}}
    assert report.sizes == {
        "height": {"min": 12, "median": 12, "max": 20},
        "width": {"min": 10, "median": 16, "max": 16},
    }
    assert report.problems == []
    assert any("light" in s for s in report.suggestions)


def test_broken_files_are_named_with_the_reason(make_folder, tmp_path):
    root = make_folder(tmp_path / "d", {"a": 12, "b": 12})
    (root / "a" / "3.png").write_bytes(b"")
    (root / "b" / "4.png").write_bytes((root / "b" / "4.png").read_bytes()[:50])
    (root / "b" / "5.png").write_bytes(b"hello")
    report = check_folder(root)
    assert not report.ok
    broken = report.of_kind("broken")
    assert [p.paths for p in broken] == [["a/3.png"], ["b/4.png"], ["b/5.png"]]
    assert "empty (0 bytes)" in broken[0].message
    assert "no known image format" in broken[2].message
    assert report.num_images == 24
    assert any("3 of 24" in s and "on_error='skip'" in s for s in report.suggestions)


def test_duplicates_conflicts_and_leaks_are_told_apart(make_folder, tmp_path):
    root = tmp_path / "d"
    make_folder(root / "train", {"a": 11, "b": 11})
    make_folder(root / "val", {"a": 2, "b": 2})
    shutil.copy(root / "train/a/1.png", root / "train/a/copy.png")
    shutil.copy(root / "train/a/2.png", root / "train/b/copy.png")
    shutil.copy(root / "train/b/3.png", root / "val/b/copy.png")
    for name in ("x.png", "y.png"):  # empty files are broken, not duplicates
        (root / "train/a" / name).write_bytes(b"")
    report = check_folder(root)
    assert [p.paths for p in report.of_kind("duplicate")] == [["train/a/1.png", "train/a/copy.png"]]
    assert [p.paths for p in report.of_kind("conflict")] == [["train/a/2.png", "train/b/copy.png"]]
    assert [p.paths for p in report.of_kind("leak")] == [["train/b/3.png", "val/b/copy.png"]]
    severities = [p.severity for p in report.problems]
    assert severities == sorted(severities)  # errors before warnings
    assert report.of_kind("duplicate")[0].severity == "warning"


def test_classes_that_are_empty_missing_or_unknown(make_folder, tmp_path):
    make_folder(tmp_path / "d" / "train", {"a": 10, "b": 10, "c": 0, "d": 10})
    make_folder(tmp_path / "d" / "val", {"a": 1, "b": 1, "x": 1})
    report = check_folder(tmp_path / "d")
    assert report.of_kind("empty_class")[0].paths == ["c"]
    assert report.of_kind("missing_class")[0].paths == ["c", "d"]
    assert report.of_kind("unknown_class")[0].paths == ["x"]
    assert not report.ok


def test_imbalance_few_images_and_one_class(make_folder, tmp_path):
    report = check_folder(make_folder(tmp_path / "d", {"a": 40, "b": 3}))
    assert {"imbalance", "few"} <= kinds(report)
    assert report.ok
    assert any("held out" in s for s in report.suggestions)
    assert "one_class" in kinds(check_folder(make_folder(tmp_path / "e", {"a": 12})))


def test_loose_and_tiny_images(make_folder, tmp_path):
    root = make_folder(tmp_path / "d", {"a": 10, "b": 10}, size=(4, 4))
    shutil.copy(root / "a" / "0.png", root / "loose.png")
    report = check_folder(root)
    assert report.of_kind("loose")[0].paths == ["loose.png"]
    assert len(report.of_kind("tiny")[0].paths) == 20


@pytest.mark.parametrize("loose", [0, 2])
def test_nothing_to_train_on(tmp_path, loose):
    for i in range(loose):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    report = check_folder(tmp_path)
    assert not report.ok
    assert kinds(report) == {"no_images"}
    assert "<class>/<image>" in report.suggestions[0]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        check_folder(tmp_path / "nowhere")


def test_the_report_is_json_and_progress_is_told(make_folder, tmp_path):
    seen = []
    root = make_folder(tmp_path / "d", {"a": 5, "b": 5})
    report = check_folder(root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]
    again = json.loads(json.dumps(report.to_dict()))
    assert again["ok"] is True
    assert again["histogram"] == {"all": {"a": 5, "b": 5}}
    assert again["problems"][0]["severity"] == "warning"


def test_one_worker_and_many_agree(make_folder, tmp_path):
    root = make_folder(tmp_path / "d", {"a": 20, "b": 20})
    (root / "a" / "3.png").write_bytes(b"")
    assert check_folder(root, workers=1).to_dict() == check_folder(root, workers=4).to_dict()


def test_a_format_can_be_added(tmp_path, monkeypatch):
    CHECKS.names()  # fill it first
    monkeypatch.setattr(CHECKS, "_entries", dict(CHECKS._entries))

    @register_check(name="toy")
    class CheckToy:
        @staticmethod
        def recognises(root):
            return (root / "toy.txt").exists()

        @staticmethod
        def check(root, **options):
            return CheckReport(str(root), "toy", num_images=3)

    assert check_folder(tmp_path).format == "image_folder"
    (tmp_path / "toy.txt").write_text("")
    assert check_folder(tmp_path).format == "toy"
    assert check_folder(tmp_path, "image_folder").format == "image_folder"
    with pytest.raises(LookupError, match="unknown data format 'toyy'; did you mean toy"):
        check_folder(tmp_path, "toyy")
