"""Generated scenes: consistent labels, determinism, and COCO export read back by independent decoders."""

import json

import cv2
import numpy as np
import pytest

from zoo.data.masks import mask_to_polygons, mask_to_rle, rle_to_mask
from zoo.data.shapes import SHAPE_CLASSES, Shapes


@pytest.fixture(scope="module")
def crowd():
    return Shapes("val", 24, (96, 128), objects=(2, 6), occluders=(0, 3))


def test_labels_agree_with_each_other(crowd):
    for i in range(len(crowd)):
        scene = crowd.scene(i)
        count = len(scene.labels)
        assert 1 <= count <= 6
        assert scene.masks.shape == (count, 96, 128)
        assert scene.masks.sum(0).max() == 1  # visible parts do not overlap
        expected = (scene.masks * (scene.labels + 1)[:, None, None]).sum(0)
        assert np.array_equal(scene.semantic, expected)
        for mask, (x0, y0, x1, y1) in zip(scene.masks, scene.boxes):
            ys, xs = mask.nonzero()
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
        assert scene.label == scene.labels[0] == crowd.labels[i]
        assert scene.image.dtype == np.uint8


def test_occlusion_happens_and_is_bounded():
    bare = Shapes(length=40, size=96, occluders=(0, 0))
    covered = Shapes(length=40, size=96, occluders=(2, 2), min_visible=0.6)
    shares = np.array([covered.scene(i).masks[0].sum() / bare.scene(i).masks[0].sum() for i in range(40)])
    assert shares.max() <= 1
    assert shares.min() >= 0.6
    assert (shares < 0.98).mean() > 0.3


def test_background_and_objects_are_textured():
    for i in range(10):
        scene = Shapes(length=10, size=96).scene(i)
        smooth = cv2.GaussianBlur(scene.image, (9, 9), 0).astype(int)  # without the pixel noise
        assert smooth[scene.semantic == 0].std(0).max() > 4


def test_determinism_and_independence_of_length(crowd):
    again = Shapes("val", 5, (96, 128), objects=(2, 6), occluders=(0, 3))
    for i in range(5):
        assert np.array_equal(again.scene(i).image, crowd.scene(i).image)
        assert np.array_equal(again.scene(i).masks, crowd.scene(i).masks)
    others = [Shapes("train", 5, (96, 128)), Shapes("val", 5, (96, 128), data_seed=1)]
    assert not any(np.array_equal(o.scene(0).image, Shapes("val", 5, (96, 128)).scene(0).image) for o in others)


def test_classes_are_balanced():
    dataset = Shapes(length=80)
    assert np.bincount(dataset.labels).tolist() == [10] * 8
    assert dataset.classes == SHAPE_CLASSES
    assert dataset[0]["inputs"].shape == (3, 64, 64)
    assert int(dataset[11]["data_samples"].gt_label) == dataset.labels[11]


def test_shapes_are_what_they_are_called():
    """Area over the area of the smallest enclosing circle, which no rotation changes."""
    expected = {"circle": 1.0, "square": 2 / np.pi, "triangle": 0.4135, "ring": 1 - 0.55**2}
    dataset = Shapes(length=64, size=200, occluders=(0, 0))
    for i in range(64):
        name, mask = SHAPE_CLASSES[dataset.labels[i]], dataset.scene(i).masks[0]
        if name in expected and not (mask[[0, -1]].any() or mask[:, [0, -1]].any()):
            radius = cv2.minEnclosingCircle(np.argwhere(mask).astype(np.float32))[1]
            assert mask.sum() / (np.pi * radius**2) == pytest.approx(expected[name], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "'dev'"),
        ({"length": 0}, "length=0"),
        ({"size": 8}, "size=8"),
        ({"objects": (0, 2)}, "objects="),
        ({"objects": (3, 2)}, "objects="),
        ({"occluders": (-1, 2)}, "occluders="),
        ({"min_visible": 0}, "min_visible=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**arguments)


def polygon_mask(polygons, shape):
    """Even-odd filling by scikit-image, on a grid four times as fine."""
    from skimage.draw import polygon2mask

    result = np.zeros((shape[0] * 4, shape[1] * 4), bool)
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)[:, ::-1] * 4 - 0.5
        result |= polygon2mask(result.shape, points)
    return result.reshape(shape[0], 4, shape[1], 4).mean((1, 3)) > 0.5


class TestCoco:
    @pytest.mark.parametrize("segmentation", ["rle", "polygon"])
    def test_export_is_complete(self, crowd, tmp_path, segmentation):
        seen = []
        path = crowd.write_coco(
            tmp_path, segmentation=segmentation, progress=lambda done, total: seen.append((done, total))
        )
        content = json.loads(path.read_text(encoding="utf-8"))
        assert path == tmp_path / "annotations" / "instances_val.json"
        assert seen[-1] == (24, 24)
        assert len(content["images"]) == 24
        assert [c["name"] for c in content["categories"]] == list(SHAPE_CLASSES)
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
        for image in content["images"]:
            scene = crowd.scene(image["id"] - 1)
            pixels = cv2.imread(str(tmp_path / "val" / image["file_name"]))[:, :, ::-1]
            semantic = cv2.imread(str(tmp_path / "semantic_val" / image["file_name"]), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(pixels, scene.image)
            assert np.array_equal(semantic, scene.semantic)
            annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            assert [a["category_id"] - 1 for a in annotations] == scene.labels.tolist()
            for annotation, mask, box in zip(annotations, scene.masks, scene.boxes):
                x, y, w, h = annotation["bbox"]
                assert [x, y, x + w, y + h] == box.tolist()
                assert annotation["area"] == mask.sum()
                if segmentation == "polygon":
                    drawn = polygon_mask(annotation["segmentation"], mask.shape)
                    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.93
        assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tmp"]

    @pytest.mark.parametrize("segmentation", ["rle", "polygon"])
    def test_pycocotools_reads_the_same_masks(self, crowd, tmp_path, segmentation, capsys):
        coco = pytest.importorskip("pycocotools.coco")
        api = coco.COCO(str(crowd.write_coco(tmp_path, segmentation=segmentation)))
        for image_id in api.getImgIds():
            annotations = api.loadAnns(api.getAnnIds(imgIds=image_id))
            for annotation, mask in zip(annotations, crowd.scene(image_id - 1).masks):
                decoded = api.annToMask(annotation).astype(bool)
                if segmentation == "rle":
                    assert np.array_equal(decoded, mask)
                else:
                    assert (decoded & mask).sum() / (decoded | mask).sum() > 0.93

    def test_unknown_segmentation(self, crowd, tmp_path):
        with pytest.raises(ValueError, match="'bitmap'"):
            crowd.write_coco(tmp_path, segmentation="bitmap")


class TestRunLengths:
    @pytest.mark.parametrize("shape", [(1, 1), (5, 7), (7, 5), (0, 3)])
    @pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
    def test_round_trip(self, shape, density):
        mask = np.random.default_rng(0).random(shape) < density
        rle = mask_to_rle(mask)
        assert rle["size"] == list(shape)
        assert sum(rle["counts"]) == mask.size
        assert np.array_equal(rle_to_mask(rle), mask)

    def test_columns_first_zeros_first(self):
        assert mask_to_rle(np.array([[0, 1], [1, 1]])) == {"size": [2, 2], "counts": [1, 3]}
        assert mask_to_rle(np.array([[1, 0], [0, 0]])) == {"size": [2, 2], "counts": [0, 1, 3]}

    @pytest.mark.parametrize("counts", [[3], [5], [-1, 5], []])
    def test_wrong_cover(self, counts):
        with pytest.raises(ValueError, match="2 x 2"):
            rle_to_mask({"size": [2, 2], "counts": counts})


class TestPolygons:
    def test_a_square_covers_its_pixels(self):
        mask = np.zeros((10, 12), bool)
        mask[2:6, 3:9] = True
        (polygon,) = mask_to_polygons(mask)
        points = np.array(polygon).reshape(-1, 2)
        assert np.abs(points.min(0) - (3, 2)).max() <= 0.25
        assert np.abs(points.max(0) - (9, 6)).max() <= 0.25

    def test_holes_and_parts_survive(self):
        mask = np.zeros((40, 60), bool)
        mask[5:35, 5:35] = True
        mask[10:15, 10:15] = False
        mask[20:30, 20:30] = False
        mask[0:8, 45:55] = True
        mask[24:26, 24:26] = True  # an island in a hole is a part of its own
        polygons = mask_to_polygons(mask)
        assert len(polygons) == 3
        assert (polygon_mask(polygons, mask.shape) != mask).mean() < 0.02

    def test_one_pixel_and_nothing(self):
        mask = np.zeros((5, 5), bool)
        assert mask_to_polygons(mask) == []
        mask[2, 2] = True
        assert len(mask_to_polygons(mask)) == 1
