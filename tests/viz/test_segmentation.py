"""Pictures of masks: colours where the classes are, legends that name them."""

import numpy as np
import pytest

from zoo.data.segmentation_classes import ADE_CLASSES, ADE_COLOURS, CITYSCAPES_CLASSES, CITYSCAPES_COLOURS
from zoo.segmentation.palettes import generated_palette, palette_of
from zoo.viz.segmentation import draw_label_map, draw_objects, draw_segments, shade, with_legend

PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
NAMES = ["sky", "road", "a car of quite a long name"]


def has(picture: np.ndarray, colour) -> bool:
    return bool((picture == np.array(colour, np.uint8)).all(-1).any())


def test_colours_lie_over_the_classes():
    image = np.full((500, 600, 3), 100, np.uint8)
    labels = np.zeros((500, 600), np.uint8)
    labels[:, 300:] = 2
    labels[:50] = 255
    picture = draw_label_map(image, labels, NAMES, PALETTE, legend=False)
    assert picture.shape == image.shape
    np.testing.assert_allclose(picture[200, 100], (178, 50, 50), atol=1)
    np.testing.assert_allclose(picture[200, 500], (50, 50, 178), atol=1)
    assert picture[20, 100].tolist() == [100, 100, 100]  # what is ignored stays as it is
    assert picture[200, 299].tolist() == [255, 255, 255]  # the border
    assert (image == 100).all()


@pytest.mark.parametrize("shape", [(500, 600), (1, 1), (30, 3000), (3000, 30), (700, 500)])
def test_the_legend_names_what_is_there(shape):
    image = np.full((*shape, 3), 100, np.uint8)
    labels = np.zeros(shape, np.uint8)
    labels[-1, -1] = 2
    bare = draw_label_map(image, labels, NAMES, PALETTE, legend=False)
    picture = draw_label_map(image, labels, NAMES, PALETTE)
    grown = [picture.shape[i] - bare.shape[i] for i in (0, 1)]
    below = bare.shape[1] > 1.2 * bare.shape[0]
    assert grown[0 if below else 1] > 0
    legend = picture[bare.shape[0] :] if below else picture[:, bare.shape[1] :]
    there = {0, 2} if labels.size > 1 else {2}
    assert {k for k in range(3) if has(legend, PALETTE[k])} == there
    assert (legend < 128).all(-1).any()  # letters
    assert max(picture.shape) <= 4096


def test_large_images_are_shrunk():
    picture = draw_label_map(
        np.zeros((100, 900, 3), np.uint8), np.zeros((100, 900), np.uint8), NAMES, PALETTE, legend=False, max_side=300
    )
    assert picture.shape == (33, 300, 3)


def test_more_classes_than_fit():
    canvas = np.zeros((60, 400, 3), np.uint8)
    rows = [(f"class {i}", (i, 1, 1), "1 %") for i in range(1, 200)]
    picture = with_legend(canvas, rows)
    assert picture.shape[0] < 60 + 300
    assert has(picture, (1, 1, 1))
    assert not has(picture, (199, 1, 1))  # it is counted in the last line
    assert with_legend(canvas, []) is canvas


def test_segments_of_one_class_have_shades():
    image = np.zeros((480, 480, 3), np.uint8)
    ids = np.zeros((480, 480), np.int32)
    ids[:100], ids[100:200], ids[200:300] = 7, 8, 300
    segments = [dict(id=7, label=1), dict(id=8, label=1), dict(id=300, label=0)]
    picture = draw_segments(image, ids, segments, NAMES, PALETTE, opacity=1.0, legend=False)
    assert picture[50, 9].tolist() == [0, 255, 0]
    assert picture[150, 9].tolist() == list(shade((0, 255, 0), 1)) != [0, 255, 0]
    assert picture[250, 9].tolist() == [255, 0, 0]
    assert picture[400, 9].tolist() == [0, 0, 0]
    assert len({shade((90, 60, 30), n) for n in range(10)}) == 10


def test_objects_lie_on_each_other():
    masks = np.zeros((2, 480, 480), bool)
    masks[0, 100:300, 100:300] = True
    masks[1, 100:400, 100:400] = True
    boxes = np.array([[100, 100, 300, 300], [100, 100, 400, 400]], np.float32)
    image = np.zeros((480, 480, 3), np.uint8)
    picture = draw_objects(image, masks, boxes, [2, 1], NAMES, [0.9, 0.8], PALETTE, opacity=1.0)
    assert picture[250, 150].tolist() == [0, 0, 255]
    assert picture[350, 150].tolist() == [0, 255, 0]
    assert picture.shape[1] > 480
    none = draw_objects(image, masks[:0], boxes[:0], [], NAMES, [], PALETTE)
    np.testing.assert_array_equal(none, image)
    with pytest.raises(ValueError, match="masks have shape"):
        draw_objects(image, masks[:, 1:], boxes, [2, 1], NAMES, [0.9, 0.8], PALETTE)


def test_faults_are_named():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"labels have shape \(4, 5\)"):
        draw_label_map(image, np.zeros((4, 5), np.uint8), NAMES, PALETTE)
    with pytest.raises(ValueError, match="2 colours for 3 classes"):
        draw_label_map(image, np.zeros((4, 4), np.uint8), NAMES, PALETTE[:2])
    with pytest.raises(ValueError, match="opacity=2"):
        draw_label_map(image, np.zeros((4, 4), np.uint8), NAMES, PALETTE, opacity=2)
    with pytest.raises(ValueError, match="float64"):
        draw_label_map(np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), NAMES, PALETTE)


def test_palettes():
    colours = generated_palette(3000)
    assert len(set(colours)) == 3000
    assert (0, 0, 0) not in colours
    assert colours[:150] == generated_palette(150)
    near = np.array(colours[:24], int)
    distance = np.abs(near[:, None] - near[None]).sum(-1) + 1000 * np.eye(24, dtype=int)
    assert distance.min() > 30
    assert palette_of(150, ADE_CLASSES) == list(ADE_COLOURS)
    assert palette_of(19, CITYSCAPES_CLASSES) == palette_of(19, None, "cityscapes") == list(CITYSCAPES_COLOURS)
    assert palette_of(3, ["a", "b", "c"]) == generated_palette(3)
    assert palette_of(1, None, [[1, 2, 3]]) == [(1, 2, 3)]
    with pytest.raises(ValueError, match="palette has 1 entries"):
        palette_of(1, None, [(0, 0, 256)])
