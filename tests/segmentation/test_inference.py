"""Predictions: label maps, objects and segments at the original size, in the files they are handed on in."""

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.cli import main as zoo_cli
from zoo.data.coco_panoptic import read_ids
from zoo.data.label_maps import read_mask
from zoo.data.masks import decode_masks
from zoo.data.segmentation_classes import VOC_CLASSES
from zoo.segmentation.data_sample import SegDataSample
from zoo.segmentation.inference import SegmentationPredictor, untrained_predictor, windows_of
from zoo.segmentation.mask_postprocess import mask_postprocess
from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.results import Instances, SegmentationResult, Segments
from zoo.weights.checkpoint import save_safetensors

K = 4
SIZES = ((40, 31), (1, 1), (6, 200))


class Pixels(nn.Module):
    """A semantic network of one convolution."""

    num_classes = K

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, 2, 1)

    def forward(self, images):
        return {"logits": self.conv(images)}


class Masks(nn.Module):
    """Two queries: the bright pixels are an object of class 1, the others class 0."""

    num_classes, kind = 2, "masks"
    default_criterion = dict(type="zoo.segmentation.mask_criterion.MaskCriterion")
    default_postprocess = dict(type=mask_postprocess, thing_classes=[1])

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        bright = images.mean(1, keepdim=True) * self.scale
        classes = torch.tensor([[8.0, 0.0, 0.0], [0.0, 8.0, 0.0]]).expand(images.shape[0], 2, 3)
        return {"mask_logits": torch.cat([-bright, bright], 1), "class_logits": classes}


def model(network=None, **options):
    torch.manual_seed(0)
    return SegmentationModel(network or Pixels(), **options)


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*s, 3), np.uint8) for s in SIZES]


@pytest.fixture
def square() -> np.ndarray:
    """Black, with a white square in the rows 5 to 14 and the columns 10 to 29."""
    image = np.zeros((30, 50, 3), np.uint8)
    image[5:15, 10:30] = 255
    return image


def normalised(predictor, image):
    return (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - predictor.mean) / predictor.std


@torch.no_grad()
def plain_logits(predictor, image, size, original):
    """Logits at the original size of an image that is resized first."""
    resized = image if size == image.shape[:2] else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    logits = predictor.model.segmenter.conv(normalised(predictor, resized))
    for step in (size, original):
        if logits.shape[-2:] != step:
            logits = F.interpolate(logits, size=step, mode="bilinear", align_corners=False)
    return logits[0]


def agree(found, scores):
    """Labels are those of the largest score, apart from ties."""
    best = scores.topk(2, 0).values
    certain = (best[0] - best[1]) > 1e-5
    assert certain.float().mean() > 0.9
    return torch.equal(torch.from_numpy(found.astype(np.int64))[certain], scores.argmax(0)[certain])


def test_label_maps_at_the_original_size(images):
    predictor = SegmentationPredictor(model(), {"size": 24, "max_size": 64}, device="cpu")
    for image, result in zip(images, predictor(images), strict=True):
        size = predictor.transform(image)[0].shape[:2]
        assert result.size == result.label_map.shape == image.shape[:2]
        assert result.label_map.dtype == np.uint8
        assert agree(result.label_map, plain_logits(predictor, image, size, image.shape[:2]))
        areas = result.class_areas()
        assert sum(a["pixels"] for a in areas) == image.shape[0] * image.shape[1]
        assert [a["pixels"] for a in areas] == sorted((a["pixels"] for a in areas), reverse=True)
        assert all(a["pixels"] == result.class_mask(a["label"]).sum() for a in areas)


def test_padding_to_multiples_is_cut_off(images):
    """The same labels as the model's own prediction, which pads too."""
    net = model(data_preprocessor=dict(divisor=16)).eval()
    predictor = SegmentationPredictor(net, device="cpu")
    for image, result in zip(images, predictor(images), strict=True):
        sample = SegDataSample(metainfo=dict(img_shape=image.shape[:2], ori_shape=image.shape[:2]))
        data = net.data_preprocessor({"inputs": [torch.from_numpy(image).permute(2, 0, 1)], "data_samples": [sample]})
        with torch.no_grad():
            (expected,) = net(**data, mode="predict")
        assert (expected.pred_sem_seg.numpy() == result.label_map).mean() > 0.99


def test_windows_see_the_image_at_its_own_resolution(images):
    def averaged(predictor, image, crop, stride):
        height, width = image.shape[:2]
        total, count = torch.zeros(K, height, width), torch.zeros(height, width)
        for y in {min(y, max(0, height - crop)) for y in range(0, height, stride)}:
            for x in {min(x, max(0, width - crop)) for x in range(0, width, stride)}:
                part = np.ascontiguousarray(image[y : y + crop, x : x + crop])
                total[:, y : y + crop, x : x + crop] += plain_logits(predictor, part, part.shape[:2], part.shape[:2])
                count[y : y + crop, x : x + crop] += 1
        return total / count

    predictor = SegmentationPredictor(model(), {"size": 12, "max_size": 64}, device="cpu")
    for image, result in zip(images, predictor(images, sliding=(16, 12)), strict=True):
        assert agree(result.label_map, averaged(predictor, image, 16, 12))
    for options in ({"native": False}, {}):
        made = SegmentationPredictor(
            model(test_cfg=dict(mode="slide", crop=16, stride=12) if not options else None),
            {"size": 12}, device="cpu", **options,
        )  # fmt: skip
        (found,) = made(images[:1], **({"sliding": (16, 12)} if options else {}))
        resized = made.transform(images[0])[0]
        assert resized.shape[:2] == (15, 12)
        assert agree(found.label_map, plain_logits(made, images[0], resized.shape[:2], images[0].shape[:2]))


def test_mean_over_scales_and_mirrored_images(images):
    predictor = SegmentationPredictor(model(), {"size": 24, "max_size": 96}, device="cpu")
    image = images[0]
    total = 0
    for size in ((15, 12), (31, 24)):
        for mirrored in (False, True):
            resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
            given = np.ascontiguousarray(resized[:, ::-1]) if mirrored else resized
            probabilities = plain_logits(predictor, given, size, image.shape[:2]).softmax(0)
            total = total + (probabilities.flip(-1) if mirrored else probabilities)
    (found,) = predictor([image], tta=[0.5, 1.0])
    assert agree(found.label_map, total)
    single = predictor(images, tta=(1.0,), sliding=64)
    assert [r.label_map.shape for r in single] == list(SIZES)
    assert [r.label_map.shape for r in predictor(images, tta=[0.5, 2], sliding=16)] == list(SIZES)


def test_objects_and_segments(square):
    predictor = SegmentationPredictor(model(Masks()), device="cpu", classes=["ground", "box"])
    (found,) = predictor([square])
    expected = square[..., 0] > 0
    np.testing.assert_array_equal(found.label_map, expected)
    assert found.instances.labels == [1]
    np.testing.assert_array_equal(found.masks[0], expected)
    assert found.instances.boxes.tolist() == [[10, 5, 30, 15]]
    assert [(i["label"], i["is_thing"], i["area"]) for i in found.segments.infos] == [(0, False, 1300), (1, True, 200)]
    np.testing.assert_array_equal(found.segments.ids, 1 + expected)
    (row,) = found.rows()
    assert (row["kind"], row["name"], row["box"]) == ("object", "box", [10, 5, 30, 15])
    (entry,) = found.to_coco(7)
    assert (entry["image_id"], entry["category_id"], entry["bbox"]) == (7, 1, [10, 5, 20, 10])
    np.testing.assert_array_equal(decode_masks([entry["segmentation"]], 30, 50)[0], expected)
    (none,) = predictor([square], score_threshold=1.0)
    assert len(none.instances) == 0
    assert none.masks.shape == (0, 30, 50)
    (outlines,) = predictor([square], masks="polygons")
    (polygon,) = outlines.to_dict()["objects"][0]["segmentation"]
    np.testing.assert_allclose(np.array(polygon).reshape(-1, 2).min(0), (10, 5), atol=0.25)
    np.testing.assert_allclose(np.array(polygon).reshape(-1, 2).max(0), (30, 15), atol=0.25)


def test_json_with_masks_of_each_kind(images):
    predictor = SegmentationPredictor(model(), device="cpu", classes=["a", "b", "c", "d"])
    (plain,) = predictor(images[:1])
    assert all(set(c) == {"label", "name", "pixels", "share"} for c in json.loads(plain.to_json())["classes"])
    (runs,) = predictor(images[:1], masks="rle")
    for row in json.loads(runs.to_json())["classes"]:
        np.testing.assert_array_equal(decode_masks([row["segmentation"]], *SIZES[0])[0], runs.label_map == row["label"])
    (outlines,) = predictor(images[:1], masks="polygons")
    for row in json.loads(outlines.to_json())["classes"]:
        canvas = np.zeros(tuple(8 * s for s in SIZES[0]), np.uint8)  # holes are cut in, so filling by parity is exact
        for polygon in row["segmentation"]:
            points = np.round(np.array(polygon).reshape(-1, 2) * 8 - 0.5).astype(np.int32)
            cv2.fillPoly(canvas, [points], 1)
        middles = canvas[4::8, 4::8].astype(bool)
        np.testing.assert_array_equal(middles, runs.label_map == row["label"])


def test_masks_as_palette_png(images, tmp_path):
    palette = [(0, 0, 1), (200, 3, 3), (4, 220, 4), (9, 9, 250)]
    predictor = SegmentationPredictor(model(), device="cpu", palette=palette)
    (found,) = predictor(images[:1])
    (path,) = found.save_masks(tmp_path, "x")
    assert path == tmp_path / "masks" / "x.png"
    np.testing.assert_array_equal(read_mask(path), found.label_map)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.array(palette)[found.label_map])


def test_numbers_above_a_byte(tmp_path):
    labels = np.array([[0, 299], [70, 1]], np.uint16)
    result = SegmentationResult("x.png", size=(2, 2), label_map=labels, classes=list(map(str, range(300))))
    (path,) = result.save_masks(tmp_path)
    np.testing.assert_array_equal(read_mask(path), labels)
    assert [a["label"] for a in result.class_areas()] == [0, 1, 70, 299]


def test_results_say_what_they_lack():
    empty = SegmentationResult("x.png", size=(2, 2), instances=Instances(), classes=["a"])
    with pytest.raises(ValueError, match=r"x\.png has no label_map: the model gives instances"):
        empty.class_areas()
    with pytest.raises(ValueError, match="has no segments"):
        empty.panoptic_annotation(0, "x.png")
    with pytest.raises(ValueError, match="has no instances"):
        SegmentationResult("x.png", segments=Segments(np.zeros((1, 1), np.int32), []))._needed("instances")
    assert empty.rows() == []


def test_logits_that_are_no_numbers(images):
    net = model()
    net.segmenter.conv.bias.data[0] = float("nan")
    predictor = SegmentationPredictor(net, device="cpu")
    for options in ({}, {"sliding": 16}):
        with pytest.raises((RuntimeError, FloatingPointError), match=r"image 0.*not finite|not finite.*image 0"):
            predictor(images[:1], **options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(sliding=0), ValueError, "crop=0"),
        (dict(sliding=(8, 9)), ValueError, "left out"),
        (dict(sliding="512"), ValueError, "sliding='512'"),
        (dict(sliding={"window": 3}), ValueError, "keys crop and stride"),
        (dict(tta="scales"), ValueError, "tta='scales'"),
        (dict(masks="jpg"), ValueError, "masks='jpg'"),
        (dict(score_threshold=2), ValueError, "score_threshold=2"),
        (dict(max_detections=0), ValueError, "max_detections=0"),
        (dict(batch_size=0, sliding=8), ValueError, "batch_size=0"),
        (dict(slide=3), TypeError, "sliding"),
    ],
)
def test_options_that_are_refused(images, options, error, message):
    with pytest.raises(error, match=message):
        SegmentationPredictor(model(), device="cpu")(images, **options)


def test_descriptions_that_do_not_fit():
    with pytest.raises(ValueError, match="3 names, but the model has 4 classes"):
        SegmentationPredictor(model(), classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="palette has 2 entries for 4 classes"):
        SegmentationPredictor(model(), palette=[(0, 0, 0), (1, 1, 1)])
    with pytest.raises(ValueError, match="category_ids has 1 entries for 4 classes"):
        SegmentationPredictor(model(), category_ids=[7])
    with pytest.raises(ValueError, match="palette='ade'"):
        SegmentationPredictor(model(), palette="ade")


def test_windows_of_what_a_user_gives():
    assert windows_of(None) is None
    assert windows_of(9) == windows_of((9,)) == windows_of({"crop": 9}) == ((9, 9), (6, 6))
    assert windows_of(((8, 6), 2)) == windows_of({"crop": [8, 6], "stride": 2}) == ((8, 6), (2, 2))


def test_a_public_data_sets_colours():
    named = SegmentationPredictor(untrained_predictor("upernet_davit_nano", num_classes=21).model, classes=VOC_CLASSES)
    assert named.palette[:3] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]


def test_zoo_predict(images, tmp_path, capsys):
    """Two files of one name in different folders, windows, a checkpoint; label maps and JSON agree."""
    torch.manual_seed(0)
    net = SegmentationModel("upernet_davit_nano")
    weights = tmp_path / "w.safetensors"
    save_safetensors(weights, net.state_dict(), {})
    for name in ("a/x.png", "b/x.png", "b/y.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[0]).save(path)
    out = tmp_path / "out"
    common = ["--weights", str(weights), "--device", "cpu"]
    assert zoo_cli(["predict", "upernet_davit_nano", str(tmp_path / "in"), *common, "--out", str(out)]) == 0
    assert sorted(p.name for p in (out / "masks").iterdir()) == ["00001_x.png", "x.png", "y.png"]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    labels = read_mask(out / "masks" / "x.png")
    assert {c["label"]: c["pixels"] for c in lines[0]["classes"]} == dict(
        zip(*(v.tolist() for v in np.unique(labels, return_counts=True)))
    )
    assert (out / "00000_x.png").is_file()
    capsys.readouterr()
    arguments = ["--sliding", "32", "24", "--tta-scales", "1", "--masks", "rle", "--json"]
    assert zoo_cli(["predict", "upernet_davit_nano", str(tmp_path / "in" / "a"), *common, *arguments]) == 0
    said = json.loads(capsys.readouterr().out)
    (expected,) = zoo.predict(
        "upernet_davit_nano", str(tmp_path / "in" / "a"), weights=weights, device="cpu", sliding=(32, 24), tta="flip",
        masks="rle",
    )  # fmt: skip
    assert said["classes"] == expected.to_dict()["classes"]


def test_zoo_predict_writes_panoptic_segments(square, tmp_path):
    from zoo.cli.segmentation import MaskFiles

    Image.fromarray(square).save(tmp_path / "000012.png")
    predictor = SegmentationPredictor(model(Masks()), device="cpu", category_ids=[3, 90])
    (found,) = predictor([str(tmp_path / "000012.png")])
    files = MaskFiles(tmp_path / "out")
    files.add(0, found)
    files.finish()
    np.testing.assert_array_equal(read_ids(tmp_path / "out" / "panoptic" / "000012.png"), found.segments.ids)
    (annotation,) = json.loads((tmp_path / "out" / "panoptic.json").read_text(encoding="utf-8"))["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (12, "000012.png")
    assert [s["category_id"] for s in annotation["segments_info"]] == [3, 90]


def test_options_of_segmenters_for_other_models(tmp_path, images, capsys):
    Image.fromarray(images[0]).save(tmp_path / "x.png")
    save_safetensors(tmp_path / "w.safetensors", zoo.create_model("davit_nano").state_dict(), {})
    arguments = ["predict", "davit_nano", str(tmp_path / "x.png"), "--weights", str(tmp_path / "w.safetensors")]
    assert zoo_cli([*arguments, "--sliding", "64"]) != 0
    assert "--sliding is for segmenters" in capsys.readouterr().err
