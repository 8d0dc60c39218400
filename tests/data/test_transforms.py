"""Transforms against timm's, and their randomness."""

import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zoo.data.transforms import build_transforms

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
TRAIN = {
    "imagenet": {},
    "strong jitter": {"color_jitter": 1.5, "vflip": 0.5},
    "erasing": {"random_erasing": 1.0},
    "rand": {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5},
    "original": {"auto_augment": "original-mstd0.5"},
    "augmix": {"auto_augment": "augmix-m5-w4-d2"},
    "light": {"recipe": "light", "hflip": 0.5, "random_erasing": 0.5},
}


@pytest.mark.parametrize("size", [32, (24, 40)])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (17, 200), (1, 1), (32, 32), (33, 31)])
@pytest.mark.parametrize("options", [{}, {"crop_pct": 1.0}, {"crop_pct": 0.9, "crop_mode": "squash"}])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_is_timms(size, shape, options, interpolation):
    from timm.data import create_transform

    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    height, width = (size, size) if isinstance(size, int) else size
    reference = create_transform(
        (3, height, width),
        interpolation=interpolation,
        crop_pct=options.get("crop_pct", 0.875),
        crop_mode=options.get("crop_mode", "center"),
        normalize=False,
    )
    expected = reference(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    result = build_transforms(train=False, size=size, interpolation=interpolation, **options)(image)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("name", TRAIN)
def test_training_depends_on_the_seed_alone(name):
    transform = build_transforms(train=True, size=(32, 48), **TRAIN[name])
    result = transform(IMAGE, 7)
    assert result.shape == (32, 48, 3)
    assert result.dtype == np.uint8
    others = [transform(IMAGE, seed) for seed in range(4)]
    assert not all(np.array_equal(others[0], o) for o in others[1:])
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert np.array_equal(transform(IMAGE, 7), result)
    assert np.array_equal(pickle.loads(pickle.dumps(transform))(IMAGE, 7), result)
    assert np.array_equal(build_transforms(train=True, size=(32, 48), **TRAIN[name])(IMAGE, 7), result)


def test_the_input_is_left_alone():
    before = IMAGE.copy()
    for options in TRAIN.values():
        build_transforms(train=True, size=32, **options)(IMAGE, 1)
    assert np.array_equal(IMAGE, before)


def test_global_generators_are_left_alone():
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    for options in TRAIN.values():
        build_transforms(train=True, size=32, **options)(IMAGE, 1)
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002


@pytest.mark.parametrize("name", TRAIN)
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_images_of_one_pixel_height_or_width(name, shape):
    image = np.full((*shape, 3), 130, np.uint8)
    assert build_transforms(train=True, size=16, **TRAIN[name])(image, 0).shape == (16, 16, 3)


def test_crops_are_of_the_asked_area_and_flips_as_frequent_as_asked():
    ramp = np.tile(np.arange(0, 200, dtype=np.uint8)[None, :, None], (200, 1, 3))  # the value is the column
    transform = build_transforms(train=True, size=50, scale=(0.25, 0.25), ratio=(1.0, 1.0), color_jitter=0.0)
    results = [transform(ramp, seed) for seed in range(200)]
    spans = np.array([int(r[0, -1, 0]) - int(r[0, 0, 0]) for r in results])
    assert np.abs(np.abs(spans) - 98).max() <= 2  # half the side, between the centres of the first and last pixel
    assert 0.38 < (spans < 0).mean() < 0.62


def test_light_shift_is_bounded():
    point = np.zeros((64, 64, 3), np.uint8)
    point[32, 32] = 255
    transform = build_transforms(
        "light", train=True, size=64, shift=0.1, rotate=0, zoom=0, brightness=0, border="black"
    )
    peaks = np.array([np.unravel_index(transform(point, s)[:, :, 0].argmax(), (64, 64)) for s in range(100)])
    offsets = np.abs(peaks - 32)
    assert offsets.max() <= 7
    assert offsets.max() >= 4


def test_light_shows_the_border_that_was_asked():
    white = np.full((32, 32, 3), 255, np.uint8)
    for border, darkest in (("replicate", 255), ("reflect", 255), ("black", 0)):
        transform = build_transforms("light", train=True, size=32, shift=0.3, brightness=0, border=border)
        assert min(transform(white, s).min() for s in range(10)) == darkest


def test_light_evaluates_the_whole_image_as_it_trains():
    still = {"shift": 0, "rotate": 0, "zoom": 0, "brightness": 0}
    train = build_transforms("light", train=True, size=32, **still)
    assert np.array_equal(build_transforms("light", train=False, size=32)(IMAGE), train(IMAGE, 3))


def test_plain_trains_like_evaluation():
    train, test = build_transforms("plain", train=True, size=32), build_transforms("plain", train=False, size=32)
    assert np.array_equal(train(IMAGE, 1), test(IMAGE, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recipe": "imagnet"}, ValueError, "did you mean imagenet"),
        ({"color_jiter": 0.1}, TypeError, "color_jitter"),
        ({"train": False, "hflip": 0.5}, TypeError, "no argument 'hflip'"),
        ({"interpolation": "cubic"}, ValueError, "interpolation='cubic'.*bicubic"),
        ({"size": 0}, ValueError, "size=0"),
        ({"train": False, "crop_pct": 1.5}, ValueError, "crop_pct=1.5"),
        ({"train": False, "crop_mode": "corner"}, ValueError, "crop_mode='corner'"),
        ({"recipe": "light", "border": "wrap"}, ValueError, "border='wrap'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        build_transforms(**{"train": True, "size": 32, **arguments})


def test_importing_data_is_free():
    code = (
        "import sys, zoo.data, zoo.metrics, zoo.viz; heavy = {'albumentations', 'cv2', 'torch', 'matplotlib'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "import zoo.data.transforms, zoo.data.image_folder, zoo.data.digits; "
        "assert 'albumentations' not in sys.modules; assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_albumentations_does_not_call_home():
    code = (
        "import os, urllib.request\n"
        "def refuse(*args, **kwargs): raise SystemExit('looked for a newer version')\n"
        "urllib.request.build_opener = refuse\n"
        "from zoo.data.transforms import build_transforms\n"
        "build_transforms('light', train=True, size=8)\n"
        "assert 'NO_ALBUMENTATIONS_UPDATE' not in os.environ\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment)
