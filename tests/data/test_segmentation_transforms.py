"""Transforms of images with label maps: both move together, padding is ignored, colours change as SSD's do."""

import colorsys
import random

import numpy as np
import pytest

from zoo.data.segmentation_transforms import (
    PAD_COLOUR,
    Maps,
    build_segmentation_transforms,
    fitting_size,
    photometric_distortion,
)


def labelled(height=60, width=80, classes=4, seed=0):
    """An image whose colour says the class of each pixel, with its map (some of it ignored), segments and masks."""
    rng = np.random.default_rng(seed)
    semantic = np.kron(rng.integers(0, classes, (6, 8)), np.ones((height // 6, width // 8), int)).astype(np.uint8)
    image = np.repeat(semantic[:, :, None] * 40 + 10, 3, axis=2).astype(np.uint8)
    segments = semantic.astype(np.int32) * 70_000 + 1  # beyond 16 bits
    return image, Maps(semantic, segments, semantic[None] == np.arange(classes)[:, None, None])


@pytest.mark.parametrize("recipe", ["crop", "jitter", "resize"])
def test_image_and_maps_move_together(recipe):
    options = {
        "crop": dict(crop=(40, 100), ratio_range=(1, 1), vflip=0.5, photometric=False),
        "jitter": dict(crop=80, ratio_range=(1, 1)),
        "resize": dict(size=60, vflip=0.5),
    }[recipe]
    transform = build_segmentation_transforms(recipe, train=True, **options)
    image, maps = labelled()
    maps.semantic[:10] = 255
    image[:10] = 0
    results = set()
    for seed in range(6):
        out, found = transform(image, maps, seed)
        padded = (out == PAD_COLOUR).all(2)
        assert padded.any() == (recipe != "resize")
        assert (found.semantic[padded] == 255).all()
        there = ~padded & (found.semantic != 255)
        assert there.any()
        assert (out[there] == (found.semantic[there] * 40 + 10)[:, None]).all()
        assert (out[~padded & (found.semantic == 255)] == 0).all()
        assert (found.segments[there] == found.semantic[there].astype(np.int32) * 70_000 + 1).all()
        assert (found.segments[padded] == 0).all()
        assert found.segments.dtype == np.int32
        for k in range(4):
            assert (found.masks[k][there] == (found.semantic[there] == k)).all()
            assert not found.masks[k][padded].any()
        results.add(out.tobytes())
    assert len(results) > 1  # the seeds differ


def test_a_quarter_turn():
    image, maps = labelled(48, 48)
    maps.semantic[:5] = 255
    options = dict(crop=48, ratio_range=(1, 1), hflip=0, rotate=180, photometric=False, cat_max_ratio=1)
    turn = build_segmentation_transforms("crop", train=True, **options)

    class Drawn(random.Random):
        def uniform(self, low, high):
            return 1.0 if low == high == 1 else 90.0  # the factor of the size, the angle

    out, found = turn.step(image, maps, np.random.default_rng(0), Drawn(0))
    assert np.array_equal(out, np.rot90(image))
    assert np.array_equal(found.semantic, np.rot90(maps.semantic))
    assert np.array_equal(found.segments, np.rot90(maps.segments))  # 32 bits
    assert np.array_equal(found.masks, np.rot90(maps.masks, axes=(1, 2)))


def test_turned_maps_follow_the_image():
    turn = build_segmentation_transforms(
        "crop", train=True, crop=40, ratio_range=(1, 1), rotate=60, photometric=False, cat_max_ratio=1
    )
    y, x = np.mgrid[:40, :40]
    inside = (x - 12) ** 2 + (y - 25) ** 2 < 80
    image = np.where(inside[..., None], 200, 60).astype(np.uint8).repeat(3, 2)
    angles = set()
    for seed in range(6):
        out, found = turn(image, Maps(inside.astype(np.uint8), inside * 70_000, inside[None]), seed)
        padded = found.semantic == 255
        assert padded[0, 0] or padded[0, -1]  # a corner is empty
        near = np.abs(out[..., 0].astype(int) - 130) > 60  # neither at the border of the circle ...
        near &= (out == PAD_COLOUR).all(2) == padded  # ... nor where padding is blended in
        kept = near & ~padded
        assert kept.sum() > 0.8 * (~padded).sum()
        assert ((out[..., 0] > 130) == (found.semantic == 1))[kept].all()
        assert ((found.segments == 70_000) == (found.semantic == 1)).all()
        assert (found.masks[0] == (found.semantic == 1)).all()
        angles.add(out.tobytes())
    assert len(angles) == 6


def test_a_seed_gives_one_result():
    transform = build_segmentation_transforms("crop", train=True, crop=32)
    image, maps = labelled()
    first = transform(image, maps, 5)
    transform(image, maps, 6)
    again = build_segmentation_transforms("crop", train=True, crop=32)(image, maps, 5)
    for a, b in ((transform(image, maps, 5), first), (again, first)):
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[1].semantic, b[1].semantic)


def test_resizing_is_by_nearest_pixel():
    image, maps = labelled()
    out, found = build_segmentation_transforms("resize", train=True, size=30, hflip=0.0)(image, maps, 0)
    assert out.shape == (30, 40, 3)
    # A factor of two takes the odd rows and columns: their centres are nearest to those of the new pixels.
    assert np.array_equal(found.semantic, maps.semantic[1::2, 1::2])
    assert np.array_equal(found.segments, maps.segments[1::2, 1::2])
    assert np.array_equal(found.masks, maps.masks[:, 1::2, 1::2])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((480, 640, 512, 2048), (512, 683)),
        ((640, 480, 512, 2048), (683, 512)),
        ((100, 1000, 512, 2048), (205, 2048)),  # the longer side decides
        ((300, 300, 512, None, 0.5), (256, 256)),
        ((1, 4000, 10, 100), (1, 100)),
    ],
)
def test_sizes(arguments, expected):
    assert fitting_size(*arguments) == expected


def test_one_class_does_not_fill_crops():
    """A class that covers all but a corner: crops look for the corner, unless cat_max_ratio is 1."""
    image, semantic = np.zeros((200, 200, 3), np.uint8), np.zeros((200, 200), np.uint8)
    semantic[:100, :100] = 1
    shares = {}
    for ratio in (0.75, 1.0):
        transform = build_segmentation_transforms(
            "crop", train=True, crop=40, ratio_range=(1, 1), cat_max_ratio=ratio, photometric=False
        )
        crops = [transform(image, Maps(semantic), seed)[1].semantic for seed in range(60)]
        shares[ratio] = np.mean([0.25 < (c == 1).mean() < 0.75 for c in crops])
    assert shares[0.75] > 2 * shares[1.0]
    semantic[:] = 255  # nothing is labelled: the last try counts
    out, found = build_segmentation_transforms("crop", train=True, crop=40)(image, Maps(semantic), 0)
    assert out.shape == (40, 40, 3)
    assert (found.semantic == 255).all()


def test_evaluation_leaves_maps_alone():
    image, maps = labelled()
    out, found = build_segmentation_transforms("crop", train=False, size=30, max_size=35)(image, maps)
    assert out.shape == (26, 35, 3)
    assert found.semantic is maps.semantic
    assert found.masks is maps.masks
    assert build_segmentation_transforms(train=False)(image, maps)[0] is image
    assert build_segmentation_transforms(train=False, size=30, square=True)(image, maps)[0].shape == (30, 30, 3)


@pytest.mark.parametrize("recipe", ["crop", "jitter", "resize", "plain"])
def test_one_pixel(recipe):
    options = {"resize": dict(size=16), "plain": dict(size=16)}.get(recipe, dict(crop=16))
    transform = build_segmentation_transforms(recipe, train=True, **options)
    for masks in (np.ones((1, 1, 1), bool), np.zeros((0, 1, 1), bool)):
        maps = Maps(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.int32), masks)
        out, found = transform(np.full((1, 1, 3), 77, np.uint8), maps, 1)
        assert out.shape == (16, 16, 3)
        assert found.masks.shape == (len(masks), *found.semantic.shape)
        assert set(np.unique(found.semantic)) <= {0, 255}
        assert (found.semantic == 0).any()


def test_colours_against_the_formulas():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    wide = image.astype(np.float64)
    out = photometric_distortion(image, brightness=-20, contrast=1.3)
    expected = np.clip(np.clip(wide - 20, 0, 255) * 1.3, 0, 255)
    assert np.abs(out - expected).max() <= 0.5
    out = photometric_distortion(image, brightness=30, contrast=0.6, contrast_last=True)
    assert np.abs(out - np.clip(wide + 30, 0, 255) * 0.6).max() <= 1
    out = photometric_distortion(image, saturation=0.5, hue=20)
    for before, after in zip(image.reshape(-1, 3), out.reshape(-1, 3)):
        h, s, v = colorsys.rgb_to_hsv(*(before / 255))
        expected = np.array(colorsys.hsv_to_rgb((h + 40 / 360) % 1, 0.5 * s, v)) * 255
        assert np.abs(after - expected).max() <= 5  # OpenCV keeps hue in steps of two degrees
    assert np.array_equal(photometric_distortion(image), image)


@pytest.mark.parametrize(
    "options, error, words",
    [
        (dict(recipe="crp"), ValueError, "did you mean crop"),
        (dict(crp=3), TypeError, "did you mean crop"),
        (dict(crop=0), ValueError, "crop=0"),
        (dict(ratio_range=(2, 1)), ValueError, "ratio_range"),
        (dict(cat_max_ratio=0), ValueError, "cat_max_ratio=0"),
        (dict(rotate=181), ValueError, "rotate=181"),
        (dict(size=30, max_size=20), ValueError, "max_size=20"),
        (dict(max_size=20), ValueError, "without size"),
    ],
)
def test_wrong_options(options, error, words):
    with pytest.raises(error, match=words):
        build_segmentation_transforms(**options, train=True)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="semantic is 3 x 4 pixels, but the image 4 x 4"):
        build_segmentation_transforms(train=True)(np.zeros((4, 4, 3), np.uint8), Maps(np.zeros((3, 4), np.uint8)))
