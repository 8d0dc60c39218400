"""What `zoo data check` says of detection data."""

import cv2
import numpy as np
import pytest

from zoo.cli import main
from zoo.data.check import check_folder


def kinds(report, severity=None):
    return {p.kind for p in report.problems if severity in (None, p.severity)}


def test_good_data_in_three_formats(coco_folder, voc_folder, yolo_folder):
    for root, name in ((coco_folder(), "coco"), (voc_folder, "voc"), (yolo_folder, "yolo")):
        report = check_folder(root)
        assert report.format == name
        assert report.num_images == 3
        assert set(report.classes) == {"three", "seven"}
        assert {c: n for counts in report.histogram.values() for c, n in counts.items()} == {"three": 2, "seven": 1}
        assert report.ok, report.problems
        assert "no objects" in kinds(report, "warning")  # the third image
        assert report.details["objects"] == (2 if name == "voc" else 3)  # one is difficult


def test_ids_and_gaps_are_reported(coco_folder):
    report = check_folder(coco_folder())
    assert report.details["category ids"] == [3, 7]
    assert report.details["gaps in category ids"] == [4, 5, 6]
    assert any("gap" in s for s in report.suggestions)

    def zero(content):
        content["categories"][0]["id"] = 0
        for a in content["annotations"]:
            a["category_id"] = 0 if a["category_id"] == 7 else 3

    assert "label 0" in kinds(check_folder(coco_folder(zero)))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5]), "degenerate box"),
        (lambda c: c["annotations"][0].update(bbox=[500, 1, 4, 5]), "box outside the image"),
        (lambda c: c["annotations"][0].update(image_id=77), "unknown image id"),
        (lambda c: c["annotations"][0].update(category_id=77), "unknown category id"),
        (lambda c: c["annotations"][0].pop("bbox"), "no box"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, float("nan"), 5]), "box not finite"),
        (lambda c: c["images"].append({**c["images"][0]}), "duplicate images ids"),
        (lambda c: c["categories"].append(dict(id=3, name="x")), "duplicate category ids"),
        (lambda c: c["images"][0].update(height=99), "wrong image size"),
        (lambda c: c["images"].append(dict(id=55, file_name="gone.png", height=4, width=4)), "missing"),
    ],
)
def test_errors_of_coco_files(coco_folder, change, kind):
    report = check_folder(coco_folder(change))
    assert kind in kinds(report, "error")
    assert not report.ok


def test_missing_and_broken_files_are_named(coco_folder, capsys):
    root = coco_folder()
    (root / "train" / "img1.png").unlink()
    (root / "train" / "img2.png").write_bytes(b"no image")
    report = check_folder(root)
    assert [p.paths for p in report.of_kind("missing")] == [["train/img1.png"]]
    assert [p.paths for p in report.of_kind("broken")] == [["train/img2.png"]]
    assert main(["data", "check", str(root)]) == 1
    shown = capsys.readouterr().out
    assert "train/img1.png is listed but there is no such file" in shown
    assert "category ids: [3, 7]" in shown


def test_boxes_beyond_the_border_are_warned_of(coco_folder):
    report = check_folder(coco_folder(lambda c: c["annotations"][0].update(bbox=[50, 40, 30, 30])))
    assert "box beyond the border" in kinds(report, "warning")
    assert report.ok


def test_all_crowd(coco_folder):
    report = check_folder(coco_folder(lambda c: [a.update(iscrowd=1) for a in c["annotations"]]))
    assert report.details["crowd regions in train"] == 3
    assert report.details["objects"] == 0


def test_yolo_faults(yolo_folder):
    labels = yolo_folder / "labels" / "train"
    (labels / "img1.txt").write_text("5 0.5 0.5 0.1 0.1\n1 1.4 0.5 0.1 0.1\n1 0.5 0.5 0 0.1\n")
    (labels / "left.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    report = check_folder(yolo_folder)
    assert {"unknown class", "box outside the image", "degenerate box"} <= kinds(report, "error")
    assert {"text without an image", "no text"} <= kinds(report, "warning")
    (labels / "img0.txt").write_text("a b c\n")
    assert "annotations" in kinds(check_folder(yolo_folder), "error")


def test_yolo_that_counts_from_one(yolo_folder):
    for text in (yolo_folder / "labels" / "train").glob("*.txt"):
        text.write_text("1 0.5 0.5 0.2 0.2\n")
    assert "label 0" in kinds(check_folder(yolo_folder), "warning")


def test_voc_faults(voc_folder):
    file = voc_folder / "Annotations" / "img1.xml"
    file.write_text(file.read_text(encoding="utf-8").replace("<name>three</name>", ""))
    (voc_folder / "ImageSets" / "Main").mkdir(parents=True)
    (voc_folder / "ImageSets" / "Main" / "train.txt").write_text("img0\ngone\n")
    (voc_folder / "ImageSets" / "Main" / "val.txt").write_text("img0\n")
    report = check_folder(voc_folder)
    assert {"annotations", "missing annotation", "image in two splits"} <= kinds(report, "error")


def test_leaks_between_splits(coco_folder):
    root = coco_folder()
    coco_folder(split="val")
    assert "leak" in kinds(check_folder(root), "error")
    for i in range(3):
        pixels = np.random.default_rng(90 + i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "val" / f"img{i}.png"), pixels)
    assert "leak" not in kinds(check_folder(root))
