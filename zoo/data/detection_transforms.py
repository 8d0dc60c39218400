"""Transforms of images with boxes and masks: the DETR family's augmentation on albumentations, evaluation's resizing.

The augmentation is that of End-to-End Object Detection with Transformers (arXiv:2005.12872), appendix A.4. Evaluation
resizes with Pillow (antialiased), which is what published scores were measured with.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zoo.data.transforms import _albumentations, _PillowResize
from zoo.registry import check_arguments, did_you_mean

#: shorter sides of the family's multi-scale training
SCALES = tuple(range(480, 801, 32))


class DetectionPipeline:
    """A transform of an image with its objects.

    Args:
        step: called as ``step(image, boxes, labels, masks, generator, python_random)``; gives the four anew.
    """

    def __init__(self, step: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]):
        self.step = step

    def __call__(
        self,
        image: np.ndarray,
        boxes: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Transform one image; the same image and seed give the same result in any process.

        Args:
            image: RGB uint8 ``[H, W, 3]``.
            boxes: ``[N, 4]`` corners in pixels, inside the image.
            labels: ``[N]``.
            masks: bool ``[N, H, W]`` or None.
            seed: of everything random.

        Returns:
            ``image``, ``boxes``, ``labels`` and ``masks``; objects that a crop removed are left out.
        """
        boxes = np.zeros((0, 4)) if boxes is None else np.asarray(boxes, np.float64).reshape(-1, 4)
        labels = np.zeros(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
        done = self.step(image, boxes, labels, masks, np.random.default_rng(seed), random.Random(seed))
        return dict(zip(("image", "boxes", "labels", "masks"), done))


def build_detection_transforms(recipe: str = "detr", *, train: bool, **options: Any) -> DetectionPipeline:
    """Transforms by name.

    Args:
        recipe: "detr" (multi-scale, random crop branch, flips: :func:`detr_train`), "resize" (flips, and the image
            resized whole: :func:`resize_train`) or "plain" (evaluation's resizing in training too).
        train: random augmentation, or :func:`evaluation`.
        options: of the function that the recipe names; evaluation takes ``size``, ``max_size`` and ``square``.

    Raises:
        ValueError: the recipe is unknown.
        TypeError: an option is unknown; the message has the nearest.
    """
    if recipe not in _RECIPES:
        raise ValueError(
            f"recipe={recipe!r} is unknown{did_you_mean(recipe, _RECIPES)}; accepted are {', '.join(_RECIPES)}"
        )
    function = _RECIPES[recipe] if train else evaluation
    check_arguments(function, options, where=f"detection transforms {recipe!r}")
    return function(**options)


def scaled_size(height: int, width: int, size: int, max_size: int | None) -> tuple[int, int]:
    """Height and width with the shorter side ``size``, less where the longer one would be above ``max_size``."""
    short, long = min(height, width), max(height, width)
    if max_size is not None and long / short * size > max_size:
        size = max(1, round(max_size * short / long))
    scaled = max(1, int(size * long / short))
    scaled = scaled if max_size is None else min(scaled, max_size)
    return (size, scaled) if height <= width else (scaled, size)


def evaluation(size: int = 800, *, max_size: int | None = 1333, square: bool = False) -> DetectionPipeline:
    """Resize the whole image.

    Args:
        size: the shorter side in pixels.
        max_size: the longer side at most.
        square: both sides become ``size``, whatever the aspect ratio.
    """
    _check_size(size, max_size)

    def step(image, boxes, labels, masks, generator, python_random):
        height, width = image.shape[:2]
        new = (size, size) if square else scaled_size(height, width, size, max_size)
        image = _PillowResize(new, "bilinear", keep_ratio=False)(image, generator, python_random)
        boxes = boxes * np.tile([new[1] / width, new[0] / height], 2)
        if masks is not None:
            rows = np.minimum((np.arange(new[0]) + 0.5) * height / new[0], height - 1).astype(int)
            columns = np.minimum((np.arange(new[1]) + 0.5) * width / new[1], width - 1).astype(int)
            masks = masks[:, rows][:, :, columns]
        return image, boxes, labels, masks

    return DetectionPipeline(step)


def detr_train(
    size: int | Sequence[int] = SCALES,
    *,
    max_size: int = 1333,
    crop: tuple[int, int] = (384, 600),
    crop_scales: Sequence[int] = (400, 500, 600),
    crop_probability: float = 0.5,
    hflip: float = 0.5,
    color_jitter: float = 0.0,
) -> DetectionPipeline:
    """The family's augmentation: flip, then either resize, or resize, crop and resize again.

    Args:
        size: shorter sides to choose from.
        max_size: the longer side at most.
        crop: least and greatest side of the random crop.
        crop_scales: shorter sides before the crop.
        crop_probability: of the branch with the crop.
        hflip: probability of a flip.
        color_jitter: strength of brightness, contrast and saturation changes.
    """
    sizes = (size,) if isinstance(size, int) else tuple(size)
    _check_size(min(sizes), max_size)
    A, parts = _albumentations(), _parts()
    last = parts["Shortest"](sizes, max_size)
    cropped = A.Sequential([parts["Shortest"](tuple(crop_scales), None), parts["RandomSizeCrop"](*crop), last])
    whole = A.Sequential([parts["Shortest"](sizes, max_size)])
    branch = A.OneOf([_weighted(whole, 1 - crop_probability), _weighted(cropped, crop_probability)], p=1.0)
    return DetectionPipeline(_Composed([*_flip(hflip), *_colour(color_jitter), branch]))


def resize_train(
    size: int | Sequence[int] = 128,
    *,
    max_size: int | None = None,
    square: bool = False,
    hflip: float = 0.5,
    color_jitter: float = 0.0,
) -> DetectionPipeline:
    """Flip and resize the whole image.

    Args:
        size: shorter side, or several to choose from.
        max_size: the longer side at most.
        square: both sides become that long, whatever the aspect ratio.
        hflip: probability of a flip.
        color_jitter: strength of brightness, contrast and saturation changes.
    """
    sizes = (size,) if isinstance(size, int) else tuple(size)
    _check_size(min(sizes), max_size)
    A, parts = _albumentations(), _parts()
    resize = A.OneOf([A.Resize(s, s) for s in sizes], p=1.0) if square else parts["Shortest"](sizes, max_size)
    return DetectionPipeline(_Composed([*_flip(hflip), *_colour(color_jitter), resize]))


_RECIPES: dict[str, Callable[..., DetectionPipeline]] = {
    "detr": detr_train,
    "resize": resize_train,
    "plain": evaluation,
}


def _check_size(size: int, max_size: int | None) -> None:
    if size < 1 or (max_size is not None and max_size < size):
        raise ValueError(f"size={size}, max_size={max_size}: accepted are sizes from 1, and max_size not below size")


def _flip(probability: float) -> list[Any]:
    return [_albumentations().HorizontalFlip(p=probability)] if probability else []


def _colour(strength: float) -> list[Any]:
    if not strength:
        return []
    limits = (max(0.0, 1 - strength), 1 + strength)
    return [_albumentations().ColorJitter(limits, limits, limits, hue=(0, 0), p=0.5)]


def _weighted(transform: Any, weight: float) -> Any:
    """OneOf draws by the transforms' own probabilities."""
    transform.p = weight
    return transform


class _Composed:
    """albumentations' transforms on images with boxes and masks; all draw from the sample's two generators."""

    def __init__(self, transforms: list[Any]):
        A = _albumentations()
        # Boxes come clipped; what a crop leaves of one may be of any size, as in the family's own augmentation.
        boxes = A.BboxParams(
            format="pascal_voc", label_fields=["labels", "rows"], clip=True, filter_invalid_bboxes=True
        )
        self.compose = A.Compose(transforms, bbox_params=boxes)

    def __call__(self, image, boxes, labels, masks, generator, python_random):
        self.compose.set_random_state(generator, python_random)
        rows = np.arange(len(boxes))
        more = {} if masks is None or not len(masks) else {"masks": masks.astype(np.uint8)}
        done = self.compose(image=image, bboxes=boxes, labels=labels, rows=rows, **more)
        image, kept = done["image"], np.asarray(done["rows"], np.int64)
        boxes = np.asarray(done["bboxes"], np.float64).reshape(-1, 4)
        if masks is not None:
            whole = np.asarray(done["masks"], bool) if more else np.zeros((0, *image.shape[:2]), bool)
            masks = whole[kept] if len(whole) == len(rows) else whole
        return image, boxes, labels[kept], masks


@functools.cache
def _parts() -> dict[str, Any]:
    """Transforms that albumentations lacks, made of its classes."""
    import cv2

    A: Any = _albumentations()

    class Shortest(A.DualTransform):
        """Resize to one of several shorter sides, the longer one bounded."""

        _targets = A.SmallestMaxSize._targets

        class InitSchema(A.BasicTransform.InitSchema):
            sizes: Any
            max_size: Any

        def __init__(self, sizes: tuple[int, ...], max_size: int | None, p: float = 1.0):
            super().__init__(p=p)
            self.sizes, self.max_size = sizes, max_size

        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            return {"new": scaled_size(height, width, self.py_random.choice(self.sizes), self.max_size)}

        def apply(self, img: np.ndarray, new: tuple[int, int], **params: Any) -> np.ndarray:
            if img.shape[:2] == new:
                return img
            shrinks = new[0] * new[1] < img.shape[0] * img.shape[1]
            return cv2.resize(img, new[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

        def apply_to_mask(self, mask: np.ndarray, new: tuple[int, int], **params: Any) -> np.ndarray:
            return cv2.resize(mask, new[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

        def apply_to_masks(self, masks: np.ndarray, new: tuple[int, int], **params: Any) -> np.ndarray:
            return np.stack([self.apply_to_mask(m, new) for m in masks])

        def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
            return bboxes  # in shares of the sides

    class RandomSizeCrop(A.RandomCrop):
        """A crop of random sides at a random place."""

        class InitSchema(A.BasicTransform.InitSchema):
            least: int
            most: int

        def __init__(self, least: int, most: int, p: float = 1.0):
            super().__init__(height=1, width=1, p=p)
            self.least, self.most = least, most

        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            h, w = (self.py_random.randint(min(self.least, s), min(self.most, s)) for s in (height, width))
            y, x = self.py_random.randint(0, height - h), self.py_random.randint(0, width - w)
            return {"crop_coords": (x, y, x + w, y + h), "pad_params": None}

    return {"Shortest": Shortest, "RandomSizeCrop": RandomSizeCrop}
