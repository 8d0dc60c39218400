"""Masks from annotations to files of predictions: faulty data is named, crops keep them aligned, one command trains."""

import json
import shutil

import numpy as np
import pytest
import torch

from zoo.cli import main
from zoo.data.coco import AnnotationError, CocoDetection, annotation_mask, annotation_rle, label_table
from zoo.data.detection_transforms import build_detection_transforms
from zoo.data.masks import compress_masks, decode_masks, mask_to_polygons, mask_to_rle
from zoo.data.shapes import Shapes
from zoo.data.shapes_detection import ShapesDetection
from zoo.detection.data_sample import DetDataSample
from zoo.engine.config import load_config
from zoo.engine.own_detection import own_detection_config
from zoo.registry import MODELS


def square(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def with_squares(content):
    for a in content["annotations"]:
        a["segmentation"] = square(*a["bbox"])


def annotations(root):
    return root / "annotations" / "instances_train.json"


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[1, 2, 3, 4]], {"size": [48, 64]}, {}])
def test_annotations_without_a_segmentation_are_named(coco_folder, segmentation):
    def change(content):
        with_squares(content)
        content["annotations"][1]["segmentation"] = segmentation

    root = coco_folder(change)
    with pytest.raises(AnnotationError, match="1 of 3 annotations have no segmentation .*: ids 2"):
        CocoDetection(annotations(root), with_masks=True)
    assert len(CocoDetection(annotations(root))) == 3  # boxes alone are fine


def test_run_lengths_of_another_size_are_named(coco_folder):
    def change(content):
        with_squares(content)
        content["annotations"][2]["segmentation"] = mask_to_rle(np.ones((40, 41), bool))

    with pytest.raises(
        AnnotationError, match=r"annotation 3 has a mask of size \[40, 41\], but image 11 is \[40, 40\]"
    ):
        CocoDetection(annotations(coco_folder(change)), with_masks=True)

    def unknown_size(content):
        change(content)
        for image in content["images"]:
            del image["height"], image["width"]

    dataset = CocoDetection(annotations(coco_folder(unknown_size)), with_masks=True)
    with pytest.raises(ValueError, match=r"img1.png': a mask of size \[40, 41\] belongs to an image of 40 x 40"):
        dataset[1]


def test_images_without_objects_and_categories_without_instances(coco_folder):
    def change(content):
        with_squares(content)
        content["categories"].append(dict(id=9, name="nothing"))

    dataset = CocoDetection(annotations(coco_folder(change)), with_masks=True)
    assert dataset.classes == ("three", "seven", "nothing")
    empty = dataset[2]["data_samples"]
    assert empty.gt_instances.masks.shape == (0, 32, 56)
    assert empty.ground_truth["segmentations"] == []


def test_objects_thinner_than_a_pixel_are_no_targets(coco_folder):
    def change(content):
        with_squares(content)
        content["annotations"][0]["segmentation"] = [[4.1, 5.1, 4.2, 5.1, 4.2, 5.2]]

    sample = CocoDetection(annotations(coco_folder(change)), with_masks=True)[0]["data_samples"]
    assert sample.gt_instances.labels.tolist() == [0]
    assert len(sample.gt_instances.masks) == 1
    assert len(sample.ground_truth["segmentations"]) == 2  # what is evaluated stays


def test_area_of_the_mask_where_none_is_annotated(coco_folder):
    def change(content):
        with_squares(content)
        for a in content["annotations"]:
            del a["area"]
        content["annotations"][0]["segmentation"] = [[4, 5, 24, 5, 4, 15]]

    dataset = CocoDetection(annotations(coco_folder(change)), with_masks=True)
    assert 80 <= dataset.table.areas[0] <= 120  # half of 200
    assert dataset.table.areas[1] == 120


def test_run_lengths_and_masks_are_the_same():
    rng = np.random.default_rng(0)
    masks = rng.random((5, 13, 17)) > 0.5
    masks[1], masks[2] = False, True
    runs = compress_masks(masks)
    assert json.loads(json.dumps(runs)) == runs
    assert (decode_masks(runs, 13, 17) == masks).all()
    for mask, run in zip(masks, runs):
        assert annotation_rle(mask_to_rle(mask), 13, 17) == run == annotation_rle(run, 13, 17)
        assert (annotation_mask(run, 13, 17) == mask).all()
    assert compress_masks(masks[:0]) == []
    assert decode_masks([], 3, 4).shape == (0, 3, 4)
    assert not annotation_mask([[]], 3, 4).any()
    assert annotation_mask(square(0, 0, 1, 1), 1, 1).shape == (1, 1)
    with pytest.raises(ValueError, match="belongs to an image"):
        decode_masks(runs, 17, 13)
    with pytest.raises(ValueError, match="cover 4 pixels"):
        annotation_rle({"size": [2, 3], "counts": [1, 3]}, 2, 3)
    with pytest.raises(ValueError, match=r"accepted is \[N, H, W\]"):
        compress_masks(masks[0])


def test_labels_from_category_id_one():
    names, ids, labels = label_table([dict(id=1, name="a"), dict(id=4, name="d")], "category_id - 1")
    assert (ids, labels) == ([1, 2, 3, 4], {1: 0, 4: 3})
    assert names[0] == "a"
    with pytest.raises(ValueError, match="category of id 0"):
        label_table([dict(id=0)], "category_id - 1")


@pytest.mark.parametrize(
    "options", [dict(recipe="detr", size=(64, 96), crop=(20, 50), crop_scales=(60, 90), crop_probability=1.0),
                dict(recipe="resize", size=(50, 70, 131))]
)  # fmt: skip
def test_masks_stay_with_their_boxes(options):
    """After crops, flips and resizes every mask is that of its box and label."""
    scenes = Shapes("train", 12, 96, objects=(2, 5))
    transform = build_detection_transforms(train=True, **options)
    dropped, slack = 0, 4.0  # a pixel of a crop becomes up to five, and the nearest one is taken twice
    for i in range(12):
        scene = scenes.scene(i)
        # the label says which object it was, the image holds the label plus one inside of its mask
        image = np.zeros((96, 96, 3), np.uint8)
        for n, mask in enumerate(scene.masks):
            image[mask] = 40 * (n + 1)
        done = transform(image, scene.boxes, np.arange(len(scene.labels)), scene.masks, seed=i)
        assert len(done["boxes"]) == len(done["labels"]) == len(done["masks"])
        dropped += len(scene.labels) - len(done["labels"])
        height, width = done["image"].shape[:2]
        assert done["masks"].shape[1:] == (height, width)
        for box, label, mask in zip(done["boxes"], done["labels"], done["masks"]):
            if not mask.any():
                continue
            values = done["image"][..., 0][mask]
            assert abs(np.median(values.astype(int)) - 40 * (label + 1)) <= 20
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert columns[0] >= box[0] - slack
            assert columns[-1] + 1 <= box[2] + slack
            assert rows[0] >= box[1] - slack
            assert rows[-1] + 1 <= box[3] + slack
    assert (dropped > 0) == (options["recipe"] == "detr")


def test_samples_hold_no_empty_masks_after_a_crop():
    options = dict(recipe="detr", train=True, size=64, crop=(16, 30), crop_scales=(64,), crop_probability=1.0)
    dataset = ShapesDetection("train", 10, 64, with_masks=True, transform=options)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for i in range(10):
            gt = dataset[i]["data_samples"].gt_instances
            assert len(gt.boxes) == len(gt.masks) == len(gt.labels)
            assert gt.masks.flatten(1).any(1).all()


def test_samples_refuse_masks_that_do_not_fit():
    sample = DetDataSample()
    with pytest.raises(ValueError, match="a mask a box"):
        sample.set_gt([[0, 0, 2, 2]], [0], np.zeros((2, 4, 4), bool))
    boxes, labels, scores = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]]), torch.tensor([0, 1]), torch.tensor([0.1, 0.9])
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[1] = True
    assert sample.set_pred(boxes, labels, scores, masks).pred_instances.masks[0].all()  # in the order of the scores
    with pytest.raises(ValueError, match="a mask a box"):
        sample.set_pred(boxes, labels, scores, masks[:1])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Shapes as COCO with gaps in the category ids; polygons to train on, run lengths to validate on."""
    root = tmp_path_factory.mktemp("shapes")
    for split, count, kind in (("train", 8, "polygon"), ("val", 3, "rle")):
        file = Shapes(split, count, 64, objects=(1, 3)).write_coco(root, segmentation=kind)
        content = json.loads(file.read_text(encoding="utf-8"))
        for item in content["categories"]:
            item["id"] *= 10
        for item in content["annotations"]:
            item["category_id"] *= 10
        file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """The work directory of a Mask R-CNN that one command trained."""
    out = tmp_path_factory.mktemp("work")
    command = ["train", "--model", "mask_rcnn", "--data", str(shapes), "--epochs", "1", "--work-dir", str(out)]
    options = ["log_level=WARNING", "model.detector.network_options.score_threshold=0.0"]  # it has hardly learnt
    assert main([*command, "--workers", "0", "--cfg-options", *options]) == 0
    return out


def test_own_data_is_tested_as_its_predictions_are(trained, shapes, capsys):
    config = load_config(next(trained.glob("mask_rcnn_nano_*.py")))
    assert config.train_dataloader.dataset.with_masks is True
    file = str(next(trained.glob("mask_rcnn_nano_*.py")))
    given = ["test", file, str(trained / "epoch_1.pth"), "--work-dir", str(trained / "test")]
    assert main([*given, "--json"]) == 0
    by_model = json.loads(capsys.readouterr().out)
    assert {"coco/AP", "coco/mask_AP", "coco/mask_AR100"} <= set(by_model)
    predictions = trained / "test" / "predictions.json"
    entries = json.loads(predictions.read_text(encoding="utf-8"))
    assert entries
    assert all(e["segmentation"]["size"] == [64, 64] for e in entries)
    again = ["--predictions", str(predictions), "--work-dir", str(trained / "again")]
    for source in (str(shapes / "annotations" / "instances_val.json"), file):
        assert main(["test", source, *again, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == pytest.approx(by_model, abs=1e-9)
    assert main(["test", file, *again]) == 0
    assert "per_class_masks.csv" in capsys.readouterr().out


def test_predictions_of_the_truth_are_perfect(shapes, tmp_path, capsys):
    """Masks alone, without boxes; then one of another size, and one that is missing."""
    file = shapes / "annotations" / "instances_val.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    size = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    entries = [
        dict(image_id=a["image_id"], category_id=a["category_id"], score=0.9,
             segmentation=annotation_rle(a["segmentation"], *size[a["image_id"]]))
        for a in content["annotations"]
    ]  # fmt: skip
    given = tmp_path / "given.json"
    given.write_text(json.dumps(entries))
    assert main(["test", str(file), "--predictions", str(given), "--json", "--work-dir", str(tmp_path / "w")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["coco/mask_AP"] == found["coco/AP"] == pytest.approx(1.0)
    other = {**entries[0], "segmentation": compress_masks(np.ones((1, 5, 5), bool))[0]}
    box_only = {**{k: v for k, v in entries[0].items() if k != "segmentation"}, "bbox": [1, 2, 3, 4]}
    for last, message in ((other, "a mask of size [5, 5]"), (box_only, "has no segmentation")):
        given.write_text(json.dumps([*entries, last]))
        assert main(["test", str(file), "--predictions", str(given), "--work-dir", str(tmp_path / "w")]) != 0
        told = capsys.readouterr().err
        assert f"prediction {len(entries)}" in told
        assert message in told


def test_predict_writes_masks(trained, shapes, tmp_path):
    weights = str(trained / "epoch_1.pth")
    given = ["predict", "mask_rcnn_nano", str(shapes / "val"), "--weights", weights, "--out", str(tmp_path)]
    more = ["--score-threshold", "0", "--max-detections", "3", "--coco", str(tmp_path / "coco.json")]
    assert main([*given, *more]) == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    runs = [o["segmentation"] for line in lines for o in line["objects"]]
    assert runs
    assert all(r["size"] == [64, 64] for r in runs)
    assert [e["segmentation"] for e in json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))] == runs
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert main([*given, *more, "--polygons"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    outlines = [o["segmentation"] for line in lines for o in line["objects"]]
    assert outlines == [mask_to_polygons(m) for m in decode_masks(runs, 64, 64)]
    assert main([*given, "--attention"]) != 0


def test_own_data_without_masks_is_refused(shapes, voc_folder, tmp_path):
    with pytest.raises(ValueError, match="learns from masks, and .* has boxes only"):
        own_detection_config("mask_rcnn_nano", voc_folder, work_dir=tmp_path / "w")
    root = tmp_path / "few"
    shutil.copytree(shapes, root)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for a in content["annotations"][:2]:
        a["segmentation"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="annotations have no segmentation .*: ids 1, 2"):
        own_detection_config("mask_rcnn_nano", root, work_dir=tmp_path / "w")
    config = own_detection_config("faster_rcnn_nano", root, work_dir=tmp_path / "w", workers=0)
    assert "with_masks" not in config.train_dataloader.dataset


def test_only_models_of_masks_say_that_they_need_them():
    names = MODELS.names(task="detection")
    assert {n for n in names if MODELS.entry(n).meta.get("masks")} == set(MODELS.names(family="mask_rcnn"))
