"""Folders of images and masks: which number is which class, layouts of public data, and what is wrong with masks."""

import numpy as np
import pytest
from PIL import Image

from zoo.data.label_maps import MaskError, describe, label_lookup, read_classes, read_mask, write_mask
from zoo.data.loading import ImageReadError
from zoo.data.mask_folder import MaskFolder, guess_suffix, pair_masks
from zoo.data.segmentation_classes import (
    ADE_CLASSES,
    ADE_COLOURS,
    CITYSCAPES_IDS,
    COCO_STUFF_CLASSES,
    COCO_STUFF_IDS,
    voc_colours,
)
from zoo.data.segmentation_folder import build_dataset, find_mask_data
from zoo.data.segmentation_layouts import Ade20k, Cityscapes, CocoStuff, VocSegmentation
from zoo.data.shapes_segmentation import ShapesSegmentation

MASK = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)


def put(root, images, masks, values=MASK, names=("a", "b"), image_end=".jpg", mask_end=".png", **kwargs):
    """Images and masks of the given names below ``root``."""
    for name in names:
        path = root / images / f"{name}{image_end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*values.shape, 3), np.uint8)).save(path)
        write_mask(root / masks / f"{name}{mask_end}", values, **kwargs)
    return root


@pytest.mark.parametrize(
    "options, values, expected",
    [
        (dict(num_classes=3), [0, 1, 2, 255], [0, 1, 2, 255]),
        (dict(num_classes=2, reduce_zero_label=True), [0, 1, 2, 255], [255, 0, 1, 255]),
        (dict(num_classes=2, label_map={0: 0, 255: 1}), [0, 255], [0, 1]),
        (dict(num_classes=2, label_map={7: 0, 9: 1, 3: 255}), [7, 9, 3, 255], [0, 1, 255, 255]),
        (dict(num_classes=2, label_map={7: 0, 9: 2}, reduce_zero_label=True), [7, 9, 255], [255, 1, 255]),
        (dict(num_classes=65535, ignore_index=65535), [0, 65534, 65535], [0, 65534, 65535]),
        (dict(num_classes=300, ignore_index=65535), [255, 299], [255, 299]),
    ],
)
def test_what_becomes_of_numbers(options, values, expected):
    lookup = label_lookup(**options)
    assert lookup[values].tolist() == expected
    assert (lookup >= 0).sum() >= len(set(values))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(num_classes=0), "num_classes=0"),
        (dict(num_classes=300), "ignore_index=255: accepted are 300"),
        (dict(num_classes=3, ignore_index=2), "ignore_index=2"),
        (dict(num_classes=2, label_map={0: 5}), "makes 0 class 5"),
        (dict(num_classes=2, label_map={70000: 0}), "70000"),
        (dict(num_classes=255, reduce_zero_label=True), "ignore_index=255 in a file would be class 254"),
    ],
)
def test_wrong_tables(options, words):
    with pytest.raises(ValueError, match=words):
        label_lookup(**options)


def test_accepted_numbers_as_text():
    assert describe(label_lookup(3)) == "0 to 2, 255"
    assert describe(label_lookup(2, label_map={5: 0, 7: 1})) == "5, 7, 255"


def test_samples(tmp_path):
    data = MaskFolder(put(tmp_path, "images", "masks") / "images", tmp_path / "masks", ["x", "y", "z"])
    sample = data[1]["data_samples"]
    assert sample.gt_sem_seg.tolist() == MASK.tolist()
    assert sample.gt_sem_seg.dtype.is_floating_point is False
    assert (sample.ori_shape, sample.img_shape) == ((2, 3), (2, 3))
    assert data[1]["inputs"].shape == (3, 2, 3)
    assert data.metainfo["classes"] == ("x", "y", "z")
    assert data.mask_of(1).endswith("b.png")
    assert "gt_panoptic" not in sample


def test_zero_is_reduced_before_padding(tmp_path):
    """Class 0 of the masks (nothing) and the padding are ignored; number 1 becomes class 0 and stays it."""
    put(tmp_path, "images", "masks")
    data = MaskFolder(
        tmp_path / "images",
        tmp_path / "masks",
        2,
        reduce_zero_label=True,
        transform=dict(recipe="crop", train=True, crop=(4, 4), ratio_range=(1, 1), hflip=0.0, photometric=False),
    )
    found = data[0]["data_samples"].gt_sem_seg.numpy()
    assert found[:2, :3].tolist() == [[255, 0, 1], [1, 0, 255]]
    assert (found[2:] == 255).all()
    assert (found[:, 3] == 255).all()


def test_16_bits(tmp_path):
    values = np.array([[0, 300, 65534], [65535, 256, 1]], np.uint16)
    put(tmp_path, "images", "masks", values)
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 65535, ignore_index=65535)
    assert data[0]["data_samples"].gt_sem_seg.tolist() == values.tolist()
    assert read_mask(tmp_path / "masks" / "a.png").dtype == np.uint16


def test_palette_masks_give_their_indices(tmp_path):
    path = write_mask(tmp_path / "m.png", MASK, palette=voc_colours())
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        rgb = np.asarray(image.convert("RGB"))
    assert read_mask(path).tolist() == MASK.tolist()
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    assert read_mask(tmp_path / "rgb.png", voc_colours()).tolist() == MASK.tolist()


def test_voc_colours_are_vocs():
    colours = voc_colours()
    assert colours[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert (colours[15], colours[20], colours[255]) == ((192, 128, 128), (0, 64, 128), (224, 224, 192))
    assert len(set(colours)) == 256
    assert len(ADE_CLASSES) == len(ADE_COLOURS) == 150
    assert (ADE_CLASSES[0], ADE_CLASSES[149], ADE_COLOURS[149]) == ("wall", "flag", (92, 0, 255))
    assert len(COCO_STUFF_CLASSES) == 171
    assert dict(zip(COCO_STUFF_IDS, COCO_STUFF_CLASSES))[92] == "banner"


# -- faults -------------------------------------------------------------------------------------------------------


def test_values_out_of_range(tmp_path):
    put(tmp_path, "images", "masks", np.array([[0, 7, 9], [1, 1, 255]], np.uint8))
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 3, on_error="skip")
    with pytest.raises(MaskError, match=r"a.png' has the values 7, 9 \(33 % .* accepted are 0 to 2, 255"):
        data[0]


def test_another_size_than_the_image(tmp_path):
    put(tmp_path, "images", "masks")
    write_mask(tmp_path / "masks" / "b.png", np.zeros((3, 2), np.uint8))
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 3)
    with pytest.raises(MaskError, match=r"b.png' of .*b.jpg' is 3 x 2 pixels .* but the image 2 x 3"):
        data[1]


def test_rgb_where_indices_are_meant(tmp_path):
    put(tmp_path, "images", "masks")
    colours = np.array([(0, 0, 0), (200, 0, 0), (0, 200, 0)], np.uint8)
    Image.fromarray(colours[np.array([[0, 1, 2]] * 2)]).save(tmp_path / "masks" / "a.png")
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 3)
    with pytest.raises(MaskError, match="RGB image where class indices are meant; save class indices"):
        data[0]
    Image.fromarray(np.full((2, 3, 3), 2, np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(MaskError, match="its three channels are equal"):
        data[0]
    (tmp_path / "classes.txt").write_text("sky 0 0 0\ntall tree 200 0 0\ngrass 0 200 0\n")
    Image.fromarray(colours[np.array([[0, 1, 2]] * 2)]).save(tmp_path / "masks" / "a.png")
    named = MaskFolder(tmp_path / "images", tmp_path / "masks", tmp_path / "classes.txt", mask_palette=True)
    assert named[0]["data_samples"].gt_sem_seg.tolist() == [[0, 1, 2]] * 2
    assert (named.classes[1], named.palette[1]) == ("tall tree", (200, 0, 0))
    Image.fromarray(np.full((2, 3, 3), 9, np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(MaskError, match=r"the palette of 3 colours lacks, such as \(9, 9, 9\)"):
        named[0]


def test_all_ignored_and_one_pixel(tmp_path):
    put(tmp_path, "images", "masks", np.full((1, 1), 255, np.uint8))
    data = MaskFolder(tmp_path / "images", tmp_path / "masks", 3, transform=dict(train=True, crop=8))
    assert (data[0]["data_samples"].gt_sem_seg == 255).all()


def test_missing_and_broken_masks(tmp_path):
    put(tmp_path, "images", "masks", names=("a", "b", "c"))
    (tmp_path / "masks" / "b.png").write_bytes((tmp_path / "masks" / "b.png").read_bytes()[:44])
    broken = MaskFolder(tmp_path / "images", tmp_path / "masks", 3)
    with pytest.raises(ImageReadError, match=r"cannot read mask .*b.png"):
        broken[1]
    skipping = MaskFolder(tmp_path / "images", tmp_path / "masks", 3, on_error="skip")
    assert skipping[1]["data_samples"].img_path.endswith("c.jpg")
    assert [p[-5:] for p in skipping.skipped_paths()] == ["b.jpg"]
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no mask in .*a.jpg"):
        MaskFolder(tmp_path / "images", tmp_path / "masks", 3)


def test_lossy_masks_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "m.jpg")
    with pytest.raises(MaskError, match="JPEG file, whose losses change class indices"):
        read_mask(tmp_path / "m.jpg")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "m.tif")
    with pytest.raises(MaskError, match="mode 'F'"):
        read_mask(tmp_path / "m.tif")


def test_lists_of_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# comment\nroad\n\ntraffic light\n")
    assert read_classes(path) == (["road", "traffic light"], None)
    for text, words in (
        ("a\nb\na\n", "names classes twice: a"),
        ("\n", "names no class"),
        ("a 1 2 3\nb\n", "1 of its 2"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_classes(path)


# -- layouts ------------------------------------------------------------------------------------------------------


def test_suffixes():
    assert guess_suffix(["img1", "img10"], ["img1_mask", "img10_mask"]) == "_mask"
    assert guess_suffix(["a"], ["a", "a_colour"]) == ""
    assert guess_suffix(["a"], ["b"]) == ""


def test_pairs_by_name(tmp_path):
    put(tmp_path, "i", "m", names=("x/1", "x/2"), mask_end="_seg.png")
    pairs = pair_masks(tmp_path / "i", tmp_path / "m")
    assert [(a[-5:], b[-9:]) for a, b in pairs] == [("1.jpg", "1_seg.png"), ("2.jpg", "2_seg.png")]
    with pytest.raises(FileNotFoundError, match="1 of 1 listed images are not in"):
        pair_masks(tmp_path / "i", tmp_path / "m", names=["x/3"])
    with pytest.raises(FileNotFoundError, match="no folder"):
        pair_masks(tmp_path / "none", tmp_path / "m")


def test_ade20k(tmp_path):
    values = np.array([[0, 1, 150]], np.uint8)
    for split in ("training", "validation"):
        put(tmp_path, f"images/{split}", f"annotations/{split}", values, names=("ADE_train_1",))
    data = Ade20k(tmp_path, "val")
    assert data[0]["data_samples"].gt_sem_seg.tolist() == [[255, 0, 149]]
    found = find_mask_data(tmp_path)
    assert (found.format, sorted(found.splits)) == ("ade20k", ["train", "val"])
    with pytest.raises(ValueError, match="split='test' is unknown"):
        Ade20k(tmp_path, "test")


def test_cityscapes(tmp_path):
    values = np.array([[0, 7, 33, 11, 6]], np.uint8)
    images, masks = "leftImg8bit/train/aachen", "gtFine/train/aachen"
    put(
        tmp_path,
        images,
        masks,
        values,
        names=("aachen_1",),
        image_end="_leftImg8bit.png",
        mask_end="_gtFine_labelIds.png",
    )
    write_mask(tmp_path / masks / "aachen_1_gtFine_instanceIds.png", np.zeros((1, 5), np.uint8))
    data = Cityscapes(tmp_path, "train")
    assert data[0]["data_samples"].gt_sem_seg.tolist() == [[255, 0, 18, 2, 255]]
    assert sorted(CITYSCAPES_IDS.values()) == list(range(19))
    assert find_mask_data(tmp_path).format == "cityscapes"


def test_voc(tmp_path):
    values = np.array([[0, 20, 255]], np.uint8)
    put(tmp_path, "JPEGImages", "SegmentationClass", values, names=("1", "2"), palette=voc_colours())
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2\n")
    (lists / "val.txt").write_text("1\n")
    data = VocSegmentation(tmp_path, "train")
    assert len(data) == 1
    assert data.path_of(0).endswith("2.jpg")
    assert data[0]["data_samples"].gt_sem_seg.tolist() == [[0, 20, 255]]
    assert find_mask_data(tmp_path).format == "voc_segmentation"
    with pytest.raises(FileNotFoundError, match="split='test'"):
        VocSegmentation(tmp_path, "test")


def test_coco_stuff(tmp_path):
    put(tmp_path, "train2017", "maps", np.array([[0, 181, 255, 91]], np.uint8))
    data = CocoStuff(tmp_path / "train2017", tmp_path / "maps")
    assert data[0]["data_samples"].gt_sem_seg.tolist() == [[0, 170, 255, COCO_STUFF_IDS.index(92)]]
    put(tmp_path, "train2017", "maps", np.array([[11]], np.uint8))  # id 12, which COCO never annotates
    with pytest.raises(MaskError, match="has the values 11"):
        CocoStuff(tmp_path / "train2017", tmp_path / "maps")[0]


@pytest.mark.parametrize(
    "train, val",
    [
        (("images/train", "masks/train"), ("images/val", "masks/val")),
        (("train/images", "train/masks"), ("valid/images", "valid/masks")),
        (("img_dir/train", "ann_dir/train"), ("img_dir/val", "ann_dir/val")),
    ],
)
def test_generic_layouts(tmp_path, train, val):
    put(tmp_path, *train)
    put(tmp_path, *val, names=("c",))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    found = find_mask_data(tmp_path)
    sets = [build_dataset(spec) for spec in found.training()]
    assert [len(s) for s in sets] == [2, 1]
    assert sets[0].classes == ("a", "b", "c")
    assert sets[1][0]["data_samples"].gt_sem_seg.tolist() == MASK.tolist()


def test_without_splits_a_part_is_held_out(tmp_path):
    put(tmp_path, "images", "masks", names=[str(i) for i in range(10)])
    found = find_mask_data(tmp_path)
    assert list(found.splits) == ["all"]
    train, val = (build_dataset({**spec, "classes": 3}) for spec in found.training())
    assert (len(train), len(val)) == (8, 2)
    assert not {train.path_of(i) for i in range(8)} & {val.path_of(i) for i in range(2)}
    with pytest.raises(ValueError, match="in none of the layouts"):
        find_mask_data(tmp_path / "images")


# -- shapes -------------------------------------------------------------------------------------------------------


def test_shapes_targets_agree():
    data = ShapesSegmentation("val", 4, 64)
    for i in range(4):
        sample = data[i]["data_samples"]
        ids, segments = sample.gt_panoptic.ids, sample.gt_panoptic.segments
        assert ids.min() == 1  # no pixel is void
        for segment in segments:
            assert (sample.gt_sem_seg[ids == segment["id"]] == segment["label"]).all()
        things = [s for s in segments if s["is_thing"]]
        assert sample.gt_instances.labels.tolist() == [s["label"] for s in things]
        for mask, segment in zip(sample.gt_instances.masks, things):
            assert mask.equal(ids == segment["id"])
        assert len(sample.ground_truth["segmentations"]) == len(things)
    assert data.classes == ("background", "circle", "square", "triangle", "star", "cross")
    assert data.things == (False, *[True] * 5)


def test_shapes_options():
    data = ShapesSegmentation("val", 2, 64, num_shapes=2, background=False, targets=["semantic"])
    sample = data[0]["data_samples"]
    assert set(sample.gt_sem_seg.unique().tolist()) <= {0, 1, 255}
    assert "gt_panoptic" not in sample
    assert "gt_instances" not in sample
    with pytest.raises(ValueError, match="num_shapes=9"):
        ShapesSegmentation(num_shapes=9)
    with pytest.raises(ValueError, match="targets="):
        ShapesSegmentation("val", 1, 64, targets=["boxes"])
