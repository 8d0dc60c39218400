"""COCO's panoptic annotations and instances as segmentation data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.coco import AnnotationError
from zoo.data.coco_instances import CocoInstances
from zoo.data.coco_panoptic import CocoPanoptic, ids_to_rgb, numbered, read_ids, rgb_to_ids, write_ids
from zoo.data.label_maps import MaskError
from zoo.data.loading import ImageReadError
from zoo.data.shapes import Shapes
from zoo.data.transforms import build_transforms

IDS = np.array([[0, 300, 300, 70_000], [5, 5, 300, 70_000]])
SEGMENTS = [
    dict(id=70_000, category_id=20, iscrowd=1, area=2, bbox=[3, 0, 1, 2]),
    dict(id=300, category_id=20, iscrowd=0, area=3, bbox=[1, 0, 2, 2]),
    dict(id=5, category_id=7, iscrowd=0, area=2, bbox=[0, 1, 2, 1]),
]
CATEGORIES = [
    dict(id=20, name="cat", isthing=1),
    dict(id=7, name="grass", isthing=0),
    dict(id=9, name="sky", isthing=0),
]


@pytest.fixture
def panoptic(tmp_path):
    """``make(change=None, ids=IDS)``: an annotations file with one image; ``change`` edits its content."""

    def make(change=None, ids=IDS):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(tmp_path / "images" / "x.png")
        content = json.loads(
            json.dumps(
                dict(
                    images=[dict(id=42, file_name="x.png", height=2, width=4)],
                    annotations=[dict(image_id=42, file_name="x.png", segments_info=SEGMENTS)],
                    categories=CATEGORIES,
                )
            )
        )
        if change:
            change(content)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        write_ids(tmp_path / "annotations" / "panoptic_train" / "x.png", ids)
        path = tmp_path / "annotations" / "panoptic_train.json"
        path.write_text(json.dumps(content))
        return path

    return make


def test_ids_in_colours(tmp_path):
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 70_000, (1 << 24) - 1]])
    assert ids_to_rgb(ids)[1, 2].tolist() == [70_000 % 256, 70_000 // 256 % 256, 1]
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)
    assert np.array_equal(read_ids(write_ids(tmp_path / "i.png", ids)), ids)
    for wrong in (-1, 1 << 24):
        with pytest.raises(ValueError, match="accepted are 0 to 16777215"):
            ids_to_rgb(np.array([[wrong]]))
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(MaskError, match="accepted is RGB"):
        read_ids(tmp_path / "grey.png")
    with pytest.raises(ImageReadError, match="cannot read segments"):
        read_ids(tmp_path / "none.png")


def test_targets(panoptic):
    data = CocoPanoptic(panoptic())
    assert data.classes == ("grass", "sky", "cat")  # in the order of their ids
    assert data.things == (False, False, True)
    assert data.category_ids == (7, 9, 20)
    sample = data[0]["data_samples"]
    assert sample.img_id == 42
    assert sample.gt_panoptic.ids.tolist() == [[0, 2, 2, 1], [3, 3, 2, 1]]
    assert [(s["id"], s["label"], s["is_thing"], s["is_crowd"]) for s in sample.gt_panoptic.segments] == [
        (1, 2, True, True),
        (2, 2, True, False),
        (3, 0, False, False),
    ]
    assert sample.gt_sem_seg.tolist() == [[255, 2, 2, 2], [0, 0, 2, 2]]
    assert sample.gt_instances.labels.tolist() == [2]  # crowds and stuff are none
    assert sample.gt_instances.masks[0].equal(sample.gt_panoptic.ids == 2)
    assert sample.ground_truth["crowd"] == [1, 0]
    assert sample.ground_truth["areas"] == [2.0, 3.0]


def test_only_wanted_targets_and_crops(panoptic):
    crop = dict(recipe="crop", train=True, crop=(2, 3), ratio_range=(1, 1), hflip=0.0, photometric=False)
    data = CocoPanoptic(panoptic(), targets=["panoptic"], transform=crop)
    seen = set()
    for epoch in range(8):
        data.set_epoch(epoch)
        sample = data[0]["data_samples"]
        assert "gt_sem_seg" not in sample
        assert "gt_instances" not in sample
        assert {s["id"] for s in sample.gt_panoptic.segments} == set(sample.gt_panoptic.ids.unique().tolist()) - {0}
        seen.add(len(sample.gt_panoptic.segments))
    assert seen == {2, 3}  # crops without the crowd, and with all three


def test_numbers_are_dense_and_checked():
    ids, kept = numbered(IDS, [*({**s, "id": s["id"]} for s in SEGMENTS), dict(id=9, category_id=9)], "x")
    assert [s["id"] for s in kept] == [1, 2, 3]  # the fourth has no pixel
    assert ids.max() == 3
    with pytest.raises(MaskError, match=r"pixels of the segments \[5, 300, 70000\], which are not described"):
        numbered(IDS, [], "x")
    with pytest.raises(MaskError, match="twice"):
        numbered(IDS, [SEGMENTS[0], SEGMENTS[0]], "x")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["annotations"][0].update(image_id=1), "is of image 1, not listed"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=3), "of category 3, which is not listed"),
        (lambda c: c.update(categories=[]), "has no list of categories"),
        (lambda c: c["annotations"][0].pop("segments_info"), "no panoptic annotations file"),
        (lambda c: c["categories"].append(dict(id=7)), "more than once"),
    ],
)
def test_wrong_annotations(panoptic, change, words):
    with pytest.raises(AnnotationError, match=words):
        CocoPanoptic(panoptic(change))


def test_wrong_files(panoptic):
    path = panoptic(ids=IDS.T)
    with pytest.raises(MaskError, match="is 4 x 2 pixels"):
        CocoPanoptic(path)[0]
    with pytest.raises(FileNotFoundError, match="no folder"):
        CocoPanoptic(path, segments=path.parent / "other")
    with pytest.raises(FileNotFoundError, match="no annotations file"):
        CocoPanoptic(path.with_name("none.json"))


def test_instances_are_cocos(tmp_path):
    shapes = Shapes("train", 3, 64, objects=(2, 3), classes=("circle", "square"))
    path = shapes.write_coco(tmp_path)
    data = CocoInstances(path)
    for i in range(3):
        sample, scene = data[i]["data_samples"], shapes.scene(i)
        assert sample.gt_instances.masks.equal(torch.from_numpy(scene.masks))
        assert sample.gt_instances.labels.tolist() == scene.labels.tolist()
        assert sample.gt_instances.boxes.tolist() == scene.boxes.tolist()
        assert len(sample.ground_truth["segmentations"]) == len(scene.labels)
        assert "gt_sem_seg" not in sample
    content = json.loads(path.read_text(encoding="utf-8"))
    crowd, flat = content["annotations"][:2]
    crowd["iscrowd"] = 1
    flat["segmentation"]["size"] = [32, 128]
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"annotation 2 has a mask of size \[32, 128\]"):
        CocoInstances(path)
    flat["segmentation"]["size"] = [64, 64]
    path.write_text(json.dumps(content))
    sample = CocoInstances(path)[0]["data_samples"]
    assert len(sample.gt_instances.labels) == len(shapes.scene(0).labels) - 1
    assert sample.ground_truth["crowd"][0] == 1


def test_a_category_without_instances_and_an_image_without_any(tmp_path):
    path = Shapes("train", 2, 64, classes=("circle",)).write_coco(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["categories"].append({"id": 9, "name": "nothing"})
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    path.write_text(json.dumps(content))
    data = CocoInstances(path, transform=dict(recipe="jitter", train=True, crop=64))
    assert data.classes == ("circle", "nothing")
    assert data[1]["data_samples"].gt_instances.masks.shape == (0, 64, 64)
    assert len(CocoInstances(path, keep_empty=False)) == 1


def test_other_transforms_are_refused(panoptic):
    data = CocoPanoptic(panoptic(), transform=build_transforms("plain", train=False, size=32))
    with pytest.raises(RuntimeError, match="the transform failed"):
        data[0]
