"""Boxes and masks go where the pixels go."""

import numpy as np
import pytest

from zoo.data.detection_transforms import build_detection_transforms, scaled_size


def scene(height=240, width=320):
    image = np.zeros((height, width, 3), np.uint8)
    boxes = np.array([[100, 60, 180, 140], [10, 20, 40, 60]], float)
    masks = np.zeros((2, height, width), bool)
    for k, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        image[y0:y1, x0:x1] = 250 if k == 0 else 120
        masks[k, y0:y1, x0:x1] = True
    return image, boxes, masks


@pytest.mark.parametrize("recipe", ["detr", "resize", "plain"])
@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_masks_follow_the_pixels(recipe, seed):
    image, boxes, masks = scene()
    options = {} if recipe == "detr" else {"size": 180}
    done = build_detection_transforms(recipe, train=True, **options)(image, boxes, [4, 5], masks, seed)
    height, width = done["image"].shape[:2]
    assert done["masks"].shape == (len(done["boxes"]), height, width)
    assert set(done["labels"].tolist()) <= {4, 5}
    grey = done["image"][:, :, 0]
    for box, label, mask in zip(done["boxes"], done["labels"], done["masks"]):
        bright = grey > 185 if label == 4 else (grey > 60) & (grey < 180) & mask
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(around) - box).max() <= 2.5
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert np.abs(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) - box).max() <= 1.01


def test_detr_crops_flips_and_scales():
    image, boxes, _ = scene()
    transform = build_detection_transforms(train=True)
    shapes, counts = set(), set()
    for seed in range(40):
        done = transform(image, boxes, [0, 1], None, seed)
        shapes.add(done["image"].shape)
        counts.add(len(done["boxes"]))
        assert done["masks"] is None
        assert 480 <= min(done["image"].shape[:2]) <= 800
        assert max(done["image"].shape[:2]) <= 1333
    assert len(shapes) > 10
    assert 1 in counts  # a crop removed an object
    assert 2 in counts


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4000, 200), (200, 4000), (17, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_extreme_images(height, width, train):
    image = np.full((height, width, 3), 7, np.uint8)
    done = build_detection_transforms(train=train)(image, [[0, 0, width, height]], [0], None, 3)
    assert max(done["image"].shape[:2]) <= 1333
    assert min(done["image"].shape[:2]) >= 1
    assert done["boxes"].tolist() == [[0, 0, *done["image"].shape[1::-1]]]
    none = build_detection_transforms(train=train)(image, None, None, None, 3)
    assert none["boxes"].shape == (0, 4)


def test_size_is_that_of_the_family():
    assert scaled_size(480, 640, 800, 1333) == (800, 1066)
    assert scaled_size(640, 480, 800, 1333) == (1066, 800)
    assert scaled_size(200, 4000, 800, 1333) == (67, 1333)
    assert scaled_size(100, 100, 800, None) == (800, 800)


def test_unknown_options_are_told():
    with pytest.raises(ValueError, match="did you mean detr"):
        build_detection_transforms("dtr", train=True)
    with pytest.raises(TypeError, match="did you mean max_size"):
        build_detection_transforms(train=True, maxsize=3)
    with pytest.raises(ValueError, match="max_size not below size"):
        build_detection_transforms(train=False, size=800, max_size=400)
