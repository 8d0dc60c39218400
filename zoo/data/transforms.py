"""Image transforms as recipes over albumentations, timm's automatic augmentation and Pillow's resizing.

Every random choice is drawn from generators made of the seed that is given with the image, so a sample's augmentation
depends on nothing else. Normalisation is the model's preprocessor's work: images stay uint8. Evaluation resizes with
Pillow (antialiased), which is what published accuracies were measured with.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from zoo.registry import check_arguments, did_you_mean

_PILLOW_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# timm's mean colour, which its automatic augmentation fills uncovered corners with.
_FILL = (124, 116, 104)


class Pipeline:
    """Steps one after the other; an image RGB uint8 ``[H, W, 3]`` goes in and comes out.

    Args:
        steps: called as ``step(image, generator, python_random)`` with a numpy Generator and a ``random.Random``.
    """

    def __init__(self, steps: list[Callable[..., np.ndarray]]):
        self.steps = steps

    def __call__(self, image: np.ndarray, seed: int = 0) -> np.ndarray:
        """Transform one image; the same image and seed give the same result in any process."""
        generator, python_random = np.random.default_rng(seed), random.Random(seed)
        for step in self.steps:
            image = step(image, generator, python_random)
        return image

    def __repr__(self) -> str:
        return "Pipeline(\n" + "".join(f"  {step}\n" for step in self.steps) + ")"


def build_transforms(
    recipe: str = "imagenet", *, train: bool, size: int | tuple[int, int] = 224, **options: Any
) -> Pipeline:
    """Transforms by name.

    Args:
        recipe: "imagenet" (timm's: :func:`imagenet_train`), "light" (small shifts and rotations for small data:
            :func:`light_train`) or "plain" (evaluation's resizing in training too).
        train: random augmentation, or :func:`evaluation` (of the whole image for "light").
        size: height and width of the result in pixels, or one number for both.
        options: of the function that the recipe names.

    Raises:
        ValueError: the recipe is unknown.
        TypeError: an option is unknown; the message has the nearest.
    """
    if recipe not in _RECIPES:
        raise ValueError(
            f"recipe={recipe!r} is unknown{did_you_mean(recipe, _RECIPES)}; accepted are {', '.join(_RECIPES)}"
        )
    function = _RECIPES[recipe] if train else evaluation
    check_arguments(function, options, where=f"transforms {recipe!r}")
    if not train and recipe == "light":  # it trains on whole images, resized to the shape of the result
        options = {"crop_pct": 1.0, "crop_mode": "squash", **options}
    return function(size, **options)


def evaluation(
    size: int | tuple[int, int] = 224,
    *,
    crop_pct: float = 0.875,
    interpolation: str = "bicubic",
    crop_mode: str = "center",
) -> Pipeline:
    """Resize and crop the centre, equal to timm's evaluation transform.

    Args:
        size: height and width of the result.
        crop_pct: share of the resized image's side that the crop keeps.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop_mode: "center" keeps the aspect ratio and cuts off what sticks out; "squash" keeps all of the image.
    """
    height, width = _size(size)
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct={crop_pct} must be above 0 and at most 1")
    if crop_mode not in ("center", "squash"):
        raise ValueError(f"crop_mode={crop_mode!r} is unknown; accepted are 'center' and 'squash'")
    resize = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    return Pipeline(
        [_PillowResize(resize, interpolation, keep_ratio=crop_mode == "center"), _CenterCrop((height, width))]
    )


def imagenet_train(
    size: int | tuple[int, int] = 224,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float = 0.4,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
    interpolation: str = "bicubic",
) -> Pipeline:
    """timm's training recipe: random resized crop, flips, colour, random erasing.

    Args:
        size: height and width of the result.
        scale: range of the crop's area as a share of the image's.
        ratio: range of the crop's width over height.
        hflip, vflip: probabilities of the flips.
        color_jitter: strength of brightness, contrast and saturation changes; not used with ``auto_augment``.
        auto_augment: a policy in timm's notation, such as "rand-m9-mstd0.5-inc1", "original" or "augmix-m5-w4-d2".
        random_erasing: probability that a rectangle of 2 to 33 % of the area becomes noise.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos"; larger crops are averaged over areas.
    """
    A = _albumentations()
    crop = A.RandomResizedCrop(
        _size(size), scale, ratio, interpolation=_opencv_filter(interpolation), area_for_downscale="image"
    )
    steps: list[Callable[..., np.ndarray]] = []
    spatial: list[Any] = [crop, *_flips(hflip, vflip)]
    if auto_augment:
        steps += [_Albumentations(spatial), _TimmAugment(auto_augment, _size(size))]
        spatial = []
    elif color_jitter:
        low, high = max(0.0, 1 - color_jitter), 1 + color_jitter
        spatial.append(A.ColorJitter((low, high), (low, high), (low, high), hue=(0, 0), p=1.0))
    if random_erasing:
        spatial.append(A.Erasing(scale=(0.02, 1 / 3), ratio=(0.3, 3.3), fill="random", p=random_erasing))
    if spatial:
        steps.append(_Albumentations(spatial))
    return Pipeline(steps)


def light_train(
    size: int | tuple[int, int] = 32,
    *,
    shift: float = 0.08,
    rotate: float = 10.0,
    zoom: float = 0.1,
    hflip: float = 0.0,
    brightness: float = 0.1,
    random_erasing: float = 0.0,
    interpolation: str = "bicubic",
    border: str = "replicate",
) -> Pipeline:
    """Small geometric and brightness changes, for small data sets and for images whose class a crop would destroy.

    Args:
        size: height and width of the result; the image is resized to it whole.
        shift: largest shift as a share of the side.
        rotate: largest rotation in degrees.
        zoom: largest change of scale, as a share.
        hflip: probability of a horizontal flip.
        brightness: largest change of brightness and contrast, as a share.
        random_erasing: probability that a rectangle becomes noise.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos", of the resizing.
        border: what uncovered margins show: "replicate", "reflect" or "black".
    """
    import cv2

    A = _albumentations()
    borders = {"replicate": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT_101, "black": cv2.BORDER_CONSTANT}
    if border not in borders:
        raise ValueError(f"border={border!r} is unknown; accepted are {', '.join(map(repr, borders))}")
    transforms: list[Any] = []
    if shift or rotate or zoom:
        transforms.append(
            A.Affine(
                scale=(1 - zoom, 1 + zoom),
                translate_percent=(-shift, shift),
                rotate=(-rotate, rotate),
                border_mode=borders[border],
                p=1.0,
            )
        )
    transforms += _flips(hflip, 0.0)
    if brightness:
        limits = (1 - brightness, 1 + brightness)
        transforms.append(A.ColorJitter(limits, limits, saturation=(1, 1), hue=(0, 0), p=1.0))
    if random_erasing:
        transforms.append(A.Erasing(scale=(0.02, 0.2), ratio=(0.3, 3.3), fill="random", p=random_erasing))
    steps: list[Callable[..., np.ndarray]] = [_PillowResize(_size(size), interpolation, keep_ratio=False)]
    if transforms:
        steps.append(_Albumentations(transforms))
    return Pipeline(steps)


def _albumentations() -> Any:
    """The module, imported with its first use (half a second) and without its look for a newer version on the net."""
    name = "NO_ALBUMENTATIONS_UPDATE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import albumentations
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return albumentations


_RECIPES: dict[str, Callable[..., Pipeline]] = {
    "imagenet": imagenet_train,
    "light": light_train,
    "plain": evaluation,
}


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    return int(height), int(width)


def _check_filter(interpolation: str) -> None:
    if interpolation not in _PILLOW_FILTERS:
        raise ValueError(f"interpolation={interpolation!r} is unknown; accepted are {', '.join(_PILLOW_FILTERS)}")


def _opencv_filter(interpolation: str) -> int:
    import cv2

    _check_filter(interpolation)
    names = {
        "nearest": "INTER_NEAREST",
        "bilinear": "INTER_LINEAR",
        "bicubic": "INTER_CUBIC",
        "lanczos": "INTER_LANCZOS4",
    }
    return getattr(cv2, names[interpolation])


def _flips(hflip: float, vflip: float) -> list[Any]:
    A = _albumentations()
    return ([A.HorizontalFlip(p=hflip)] if hflip else []) + ([A.VerticalFlip(p=vflip)] if vflip else [])


class _Albumentations:
    """albumentations' transforms, all drawing from the two generators of the sample."""

    def __init__(self, transforms: list[Any]):
        self.compose = _albumentations().Compose(transforms)

    def __call__(self, image: np.ndarray, generator: np.random.Generator, python_random: random.Random) -> np.ndarray:
        # One stream for all: set_random_seed would start every transform with the same numbers.
        self.compose.set_random_state(generator, python_random)
        return self.compose(image=image)["image"]

    def __repr__(self) -> str:
        return ", ".join(repr(t) for t in self.compose.transforms)


class _TimmAugment:
    """timm's AutoAugment, RandAugment, 3-Augment or AugMix; the global generators they draw from are restored."""

    def __init__(self, policy: str, size: tuple[int, int]):
        from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

        hparams = {"translate_const": int(min(size) * 0.45), "img_mean": _FILL}
        if policy.startswith("rand"):
            self.augment = rand_augment_transform(policy, hparams)
        elif policy.startswith("augmix"):
            self.augment = augment_and_mix_transform(policy, {**hparams, "translate_pct": 0.3})
        else:
            self.augment = auto_augment_transform(policy, hparams)
        self.policy = policy

    def __call__(self, image: np.ndarray, generator: np.random.Generator, python_random: random.Random) -> np.ndarray:
        with _global_seeds(int(generator.integers(2**32))):
            return np.asarray(self.augment(Image.fromarray(image)))

    def __repr__(self) -> str:
        return f"timm({self.policy})"


@contextmanager
def _global_seeds(seed: int) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


class _PillowResize:
    """Antialiased resizing, to ``size`` or to the smallest image of the same aspect ratio that covers it."""

    def __init__(self, size: tuple[int, int], interpolation: str, keep_ratio: bool):
        _check_filter(interpolation)
        self.size, self.interpolation, self.keep_ratio = size, interpolation, keep_ratio

    def __call__(self, image: np.ndarray, generator: np.random.Generator, python_random: random.Random) -> np.ndarray:
        height, width = self.size
        if self.keep_ratio:
            height, width = _covering(image.shape[0], image.shape[1], height, width)
        if (height, width) == image.shape[:2]:
            return image
        resized = Image.fromarray(image).resize((width, height), _PILLOW_FILTERS[self.interpolation])
        return np.asarray(resized)

    def __repr__(self) -> str:
        return f"Resize({self.size}, {self.interpolation}, keep_ratio={self.keep_ratio})"


def _covering(image_height: int, image_width: int, height: int, width: int) -> tuple[int, int]:
    """Size with the image's aspect ratio that covers ``height`` x ``width``."""
    if height == width:  # torchvision's Resize, which timm uses for square sizes, truncates the longer side
        if image_width <= image_height:
            return max(1, int(width * image_height / image_width)), width
        return height, max(1, int(height * image_width / image_height))
    factor = min(image_height / height, image_width / width)
    return max(1, round(image_height / factor)), max(1, round(image_width / factor))


class _CenterCrop:
    """The centre ``size`` of the image, margins filled with zeros where the image is smaller."""

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def __call__(self, image: np.ndarray, generator: np.random.Generator, python_random: random.Random) -> np.ndarray:
        height, width = self.size
        missing = max(0, height - image.shape[0]), max(0, width - image.shape[1])
        if any(missing):
            image = np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])
        top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
        return image[top : top + height, left : left + width]

    def __repr__(self) -> str:
        return f"CenterCrop({self.size})"
