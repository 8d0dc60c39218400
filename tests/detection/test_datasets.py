"""COCO, VOC and YOLO data: the same objects from all three, and everything that can be wrong with them."""

import json

import numpy as np
import pytest

from zoo.data.coco import AnnotationError, CocoDetection, annotation_mask, label_table
from zoo.data.detection import ObjectTable, clip_boxes, split_indices
from zoo.data.detection_folder import find_detection_data
from zoo.data.loading import ImageReadError
from zoo.data.masks import mask_to_polygons, mask_to_rle
from zoo.data.shapes import Shapes
from zoo.data.shapes_detection import ShapesDetection
from zoo.data.voc import VocDetection, read_voc
from zoo.data.yolo import YoloDetection, read_yolo


def boxes_of(dataset, index):
    gt = dataset[index]["data_samples"].gt_instances
    return gt.boxes.tolist(), gt.labels.tolist()


def annotations(root):
    return root / "annotations" / "instances_train.json"


def test_sparse_category_ids_become_labels_and_back(coco_folder):
    dataset = CocoDetection(annotations(coco_folder()))
    assert dataset.classes == ("three", "seven")
    assert dataset.category_ids == (3, 7)
    assert boxes_of(dataset, 0) == ([[4, 5, 24, 15], [30, 30, 40, 42]], [1, 0])
    assert boxes_of(dataset, 2) == ([], [])
    same = CocoDetection(annotations(coco_folder()), labels="category_id")
    assert boxes_of(same, 0)[1] == [7, 3]
    assert same.num_classes == 8
    assert same.classes[7] == "seven"
    assert same.classes[4] == "(no class 4)"


def test_the_three_formats_agree(coco_folder, voc_folder, yolo_folder):
    coco = CocoDetection(annotations(coco_folder()))
    voc, yolo = VocDetection(voc_folder), YoloDetection(yolo_folder)
    assert voc.classes == ("seven", "three")
    assert yolo.classes == coco.classes
    for i in range(3):
        boxes, labels = boxes_of(coco, i)
        found, own = boxes_of(yolo, i)
        assert np.allclose(found, boxes, atol=1e-4)
        assert own == labels
    assert boxes_of(voc, 0) == ([[4, 5, 24, 15]], [0])  # the difficult object is no target
    assert voc[0]["data_samples"].ground_truth["crowd"] == [0, 1]
    assert voc.dropped["crowd"] == 1


def test_formats_are_recognised(coco_folder, voc_folder, yolo_folder, tmp_path):
    assert find_detection_data(coco_folder()).format == "coco"
    assert find_detection_data(voc_folder).format == "voc"
    assert find_detection_data(yolo_folder).format == "yolo"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none of the formats"):
        find_detection_data(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        find_detection_data(tmp_path / "nowhere")


def test_boxes_are_clipped_and_degenerate_ones_counted(coco_folder):
    def change(content):
        content["annotations"] += [
            dict(id=11, image_id=11, category_id=3, bbox=[30, 30, 100, 100]),
            dict(id=12, image_id=11, category_id=3, bbox=[5, 5, 0, 3]),
            dict(id=13, image_id=11, category_id=3, bbox=[200, 5, 10, 3]),
            dict(id=14, image_id=11, category_id=3, bbox=[0, 0, 40, 40], iscrowd=1),
        ]

    dataset = CocoDetection(annotations(coco_folder(change)))
    assert dataset.dropped == {"crowd": 1, "degenerate": 1, "outside": 1, "clipped (kept)": 1}
    assert boxes_of(dataset, 1)[0] == [[1, 2, 9, 10], [30, 30, 40, 40]]
    truth = dataset[1]["data_samples"].ground_truth
    assert truth["boxes"][1] == [30, 30, 100, 100]  # the metrics get what was annotated
    assert truth["crowd"] == [0, 0, 0, 0, 1]


def test_all_boxes_crowd(coco_folder):
    dataset = CocoDetection(annotations(coco_folder(lambda c: [a.update(iscrowd=1) for a in c["annotations"]])))
    assert all(boxes_of(dataset, i) == ([], []) for i in range(3))
    with pytest.raises(ValueError, match="keep_empty=False"):
        CocoDetection(
            annotations(coco_folder(lambda c: [a.update(iscrowd=1) for a in c["annotations"]])), keep_empty=False
        )


def test_images_without_boxes_can_be_left_out(coco_folder):
    dataset = CocoDetection(annotations(coco_folder()), keep_empty=False)
    assert [dataset[i]["data_samples"].img_id for i in range(len(dataset))] == [10, 11]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(dict(c["images"][0])), r"image ids occur more than once: \[10\]"),
        (lambda c: c["annotations"][0].update(image_id=99), "annotation 1 is of image 99, which is not listed"),
        (lambda c: c["annotations"][0].update(category_id=99), "annotation 1 is of category 99"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 1 has neither a bbox nor"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\]"),
        (lambda c: c["categories"].append(dict(id=3, name="again")), r"category ids occur more than once: \[3\]"),
        (lambda c: c.pop("categories"), "no list 'categories'"),
    ],
)
def test_wrong_annotations_are_told(coco_folder, change, message):
    with pytest.raises(AnnotationError, match=message) as error:
        CocoDetection(annotations(coco_folder(change)))
    assert "instances_train.json" in str(error.value)


def test_a_missing_image_is_named(coco_folder):
    root = coco_folder()
    (root / "train" / "img1.png").unlink()
    dataset = CocoDetection(annotations(root))
    with pytest.raises(ImageReadError, match=r"img1\.png"):
        dataset[1]
    lenient = CocoDetection(annotations(root), on_error="skip")
    assert lenient[1]["data_samples"].img_id == 12
    assert [p.endswith("img1.png") for p in lenient.skipped_paths()] == [True]


def test_masks_of_every_kind(coco_folder):
    mask = np.zeros((48, 64), bool)
    mask[5:15, 4:24] = True
    for segmentation in (mask_to_rle(mask), mask_to_polygons(mask), [[4, 5, 24, 5, 24, 15, 4, 15]]):
        found = annotation_mask(segmentation, 48, 64)
        assert (found != mask).sum() <= 60  # polygons by COCO's rule at the outline
    assert (annotation_mask(mask_to_rle(mask), 48, 64) == mask).all()
    from faster_coco_eval.core import mask as api

    assert (annotation_mask(api.encode(np.asfortranarray(mask.astype(np.uint8))), 48, 64) == mask).all()
    with pytest.raises(ValueError, match="belongs to an image"):
        annotation_mask(mask_to_rle(mask), 64, 48)

    def change(content):
        content["annotations"][0].update(segmentation=mask_to_rle(mask))
        content["annotations"][0].pop("bbox")
        for a in content["annotations"][1:]:
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

    dataset = CocoDetection(annotations(coco_folder(change)), with_masks=True)
    gt = dataset[0]["data_samples"].gt_instances
    assert gt.boxes[0].tolist() == [4, 5, 24, 15]  # from the mask
    assert (gt.masks[0].numpy() == mask).all()


def test_label_table_refuses_what_is_no_id():
    with pytest.raises(ValueError, match="no whole numbers"):
        label_table([dict(id="a"), dict(id=1)])
    with pytest.raises(ValueError, match="accepted are"):
        label_table([dict(id=1)], "other")


def test_clip_boxes():
    boxes = np.array(
        [[-5, -5, 10, 10], [0, 0, 5, np.nan], [95, 5, 10, 10], [20, 20, 0, 5], [100, 0, 5, 5], [3, 3, -1, 2]]
    )
    corners, usable = clip_boxes(boxes.astype(float), 50, 100)
    assert usable.tolist() == [True, False, True, False, False, False]
    assert corners[usable].tolist() == [[0, 0, 5, 5], [95, 5, 100, 15]]


def test_parts_are_disjoint_and_complete():
    a, b = split_indices(50, "train", 0.2, 3), split_indices(50, "val", 0.2, 3)
    assert len(b) == 10
    assert sorted([*a, *b]) == list(range(50))
    with pytest.raises(ValueError, match="cannot be split"):
        split_indices(1, "val", 0.2, 0)


def test_yolo_lines(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("2 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.3 0.1 0.3 0.5\n")
    (first, second) = read_yolo(file)
    assert first[0] == 2
    assert np.allclose(first[1], [0.4, 0.3, 0.2, 0.4])
    assert np.allclose(second[1], [0.1, 0.1, 0.2, 0.4])  # around the polygon
    for bad in ("x 0 0 1 1", "0 0.5 0.5", "1.5 0 0 1 1"):
        file.write_text(f"0 0.5 0.5 0.1 0.1\n{bad}\n")
        with pytest.raises(AnnotationError, match="line 2"):
            read_yolo(file)


def test_voc_files(tmp_path):
    file = tmp_path / "a.xml"
    for text, message in (
        ("<annotation><object>", "is no XML"),
        ("<annotation><object><name>a</name></object></annotation>", "object 0"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', "entities"),
    ):
        file.write_text(text)
        with pytest.raises(AnnotationError, match=message):
            read_voc(file)


def test_generated_shapes_are_those_that_are_written(tmp_path):
    own = ShapesDetection("val", 4, 64, objects=(1, 3))
    Shapes("val", 4, 64, objects=(1, 3)).write_coco(tmp_path)
    read = CocoDetection(tmp_path / "annotations" / "instances_val.json")
    for i in range(4):
        a, b = own[i], read[i]
        assert (a["inputs"] == b["inputs"]).all()
        assert boxes_of(own, i) == boxes_of(read, i)
        assert a["data_samples"].ground_truth == b["data_samples"].ground_truth
    assert own.category_ids == read.category_ids


def test_augmentation_follows_seed_and_epoch(coco_folder):
    def first(**more):
        dataset = CocoDetection(annotations(coco_folder()), transform=dict(train=True), **more)
        return dataset, dataset[0]["inputs"]

    dataset, a = first(seed=1)
    _, b = first(seed=1)
    assert a.shape == b.shape
    assert (a == b).all()
    dataset.set_epoch(1)
    c = dataset[0]["inputs"]
    assert a.shape != c.shape or not (a == c).all()


def test_table_needs_known_labels():
    table = ObjectTable.build([dict(path="a", id=1, objects=[dict(box=[0, 0, 1, 1], label=5)])])
    from zoo.data.detection import DetectionDataset

    with pytest.raises(ValueError, match="there are 2 classes"):
        DetectionDataset(table, ["a", "b"], [1, 2])


def test_no_json(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("{")
    with pytest.raises(AnnotationError, match="is no JSON"):
        CocoDetection(file)
    file.write_text(json.dumps([1]))
    with pytest.raises(AnnotationError, match="no COCO annotations"):
        CocoDetection(file)
