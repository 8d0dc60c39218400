"""Transforms of images with label maps and masks: random resize, rotation, crop, flip and photometric distortion.

The training recipe is the one that published scores of semantic segmentation were measured with: scale 0.5 to 2, crop,
flip (Chen et al., "Rethinking Atrous Convolution", arXiv:1706.05587, section 4.1), the photometric distortion of Liu et
al., "SSD" (arXiv:1512.02325), section 2.2, and crops that one class may not fill (``cat_max_ratio``). Images are
resized bilinearly without a low-pass filter, as those scores were; label maps always take the nearest pixel.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from zoo.data.transforms import _albumentations
from zoo.registry import check_arguments, did_you_mean

#: what the image is padded with: the mean colour of ImageNet, which is about zero once it is normalised
PAD_COLOUR = (124, 116, 104)
_CROP_TRIES = 10


@dataclass(frozen=True)
class Maps:
    """What is known of each pixel of an image; any of it may be None.

    Attributes:
        semantic: class indices or the ignore index, integers ``[H, W]``.
        segments: numbers of segments from 1, or 0 for none, integers ``[H, W]``.
        masks: bool ``[N, H, W]``, one a object; they may overlap.
    """

    semantic: np.ndarray | None = None
    segments: np.ndarray | None = None
    masks: np.ndarray | None = None


class SegmentationPipeline:
    """A transform of an image with its label maps.

    Args:
        step: called as ``step(image, maps, generator, python_random)``; gives image and maps anew. Wherever a map has
            no value (padding), it has to put 0: the semantic map is handed over with the ignore index as 0 and class k
            as k + 1.
        keeps_maps: whether the maps keep the size of the original image, as those of evaluation do.
    """

    def __init__(self, step: Callable[..., tuple[np.ndarray, Maps]], *, keeps_maps: bool = False):
        self.step, self.keeps_maps = step, keeps_maps

    def __call__(
        self, image: np.ndarray, maps: Maps | None = None, seed: int = 0, *, ignore_index: int = 255
    ) -> tuple[np.ndarray, Maps]:
        """Transform one image; the same image and seed give the same result in any process.

        Args:
            image: RGB uint8 ``[H, W, 3]``.
            maps: of the same height and width.
            seed: of everything random.
            ignore_index: what the semantic map has where no class counts; padding gets it too.

        Raises:
            ValueError: a map of another size than the image.
        """
        maps = maps or Maps()
        for name in ("semantic", "segments", "masks"):
            value = getattr(maps, name)
            if value is not None and value.shape[-2:] != image.shape[:2]:
                raise ValueError(
                    f"{name} is {value.shape[-2]} x {value.shape[-1]} pixels, but the image {image.shape[0]} x "
                    f"{image.shape[1]}"
                )
        if self.keeps_maps:
            return self.step(image, maps, None, None)
        dtype = None if maps.semantic is None else maps.semantic.dtype
        if maps.semantic is not None:
            shifted = np.where(maps.semantic == ignore_index, 0, maps.semantic.astype(np.int32) + 1)
            maps = replace(maps, semantic=_narrow(shifted))
        image, maps = self.step(image, maps, np.random.default_rng(seed), random.Random(seed))
        if maps.semantic is not None:
            shifted = maps.semantic.astype(np.int64)
            maps = replace(maps, semantic=np.where(shifted == 0, ignore_index, shifted - 1).astype(dtype))
        return np.ascontiguousarray(image), maps


def build_segmentation_transforms(recipe: str = "crop", *, train: bool, **options: Any) -> SegmentationPipeline:
    """Transforms by name.

    Args:
        recipe: "crop" (random resize, crop, flip, photometric distortion: :func:`crop_train`), "jitter" (large-scale
            jitter, for instances and panoptic segmentation: :func:`jitter_train`), "resize" (flips, and the image
            resized whole: :func:`resize_train`) or "plain" (evaluation's in training too).
        train: random augmentation, or :func:`evaluation`.
        options: of the function that the recipe names; evaluation takes ``size`` and ``max_size``.

    Raises:
        ValueError: the recipe is unknown.
        TypeError: an option is unknown; the message has the nearest.
    """
    if recipe not in _RECIPES:
        raise ValueError(
            f"recipe={recipe!r} is unknown{did_you_mean(recipe, _RECIPES)}; accepted are {', '.join(_RECIPES)}"
        )
    function = _RECIPES[recipe] if train else evaluation
    check_arguments(function, options, where=f"segmentation transforms {recipe!r}")
    return function(**options)


def evaluation(size: int | None = None, *, max_size: int | None = None, square: bool = False) -> SegmentationPipeline:
    """Resize the image as a whole, or leave it; label maps stay as they are, since scores are of original pixels.

    Args:
        size: the shorter side in pixels; None leaves the image as it is.
        max_size: the longer side at most; the aspect ratio stays.
        square: both sides become ``size``, whatever the aspect ratio.
    """
    _check_size(size, max_size)

    def step(image: np.ndarray, maps: Maps, *_: Any) -> tuple[np.ndarray, Maps]:
        if size is None:
            return image, maps
        height, width = image.shape[:2]
        new = (size, size) if square else fitting_size(height, width, size, max_size)
        return _resized(image, new), maps

    return SegmentationPipeline(step, keeps_maps=True)


def crop_train(
    crop: int | tuple[int, int] = 512,
    *,
    size: int | None = None,
    max_size: int | None = None,
    ratio_range: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    hflip: float = 0.5,
    vflip: float = 0.0,
    rotate: float = 0.0,
    photometric: bool = True,
) -> SegmentationPipeline:
    """Resize by a random factor, turn, crop, flip, distort colours; pad what is smaller than the crop.

    Args:
        crop: height and width of the result, or one number for both.
        size: shorter side that a factor of 1 means; None for the image's own size.
        max_size: the longer side at a factor of 1 at most; the aspect ratio stays.
        ratio_range: of the factor, uniform.
        cat_max_ratio: a crop is drawn anew, up to ten times, while one class has this share of its labelled pixels or
            more; 1 for the first crop, whatever it shows.
        hflip, vflip: probabilities of flips.
        rotate: turn about the centre by an angle of up to so many degrees either way; the corners become padding.
        photometric: change brightness, contrast, saturation and hue at random.
    """
    height, width = (crop, crop) if isinstance(crop, int) else crop
    _check_size(size, max_size)
    if min(height, width) < 1:
        raise ValueError(f"crop={crop} must be at least 1 pixel")
    if not 0 < ratio_range[0] <= ratio_range[1]:
        raise ValueError(f"ratio_range={tuple(ratio_range)}: accepted are two ascending numbers above 0")
    if not 0 < cat_max_ratio <= 1:
        raise ValueError(f"cat_max_ratio={cat_max_ratio}: accepted are numbers above 0 up to 1")
    if not 0 <= rotate <= 180:
        raise ValueError(f"rotate={rotate}: accepted are degrees from 0 to 180")
    parts = _parts()
    transforms = [
        parts["RandomFactor"](size, max_size, tuple(ratio_range)),
        *([parts["Turn"](rotate)] if rotate else []),
        parts["PaddedCrop"]((int(height), int(width)), float(cat_max_ratio)),
        *_flips(hflip, vflip),
    ]
    return SegmentationPipeline(_Composed(transforms + ([parts["Photometric"]()] if photometric else [])))


def jitter_train(
    crop: int | tuple[int, int] = 1024,
    *,
    ratio_range: tuple[float, float] = (0.1, 2.0),
    hflip: float = 0.5,
    photometric: bool = False,
) -> SegmentationPipeline:
    """Large-scale jitter (Ghiasi et al., arXiv:2012.07177, section 3.1): a factor on the size that fits the crop.

    Args:
        crop: height and width of the result, or one number for both.
        ratio_range: of the factor; 1 lets the image just fit into the crop.
        hflip: probability of a flip.
        photometric: change colours at random.
    """
    sides = (crop, crop) if isinstance(crop, int) else crop
    return crop_train(
        crop,
        size=min(sides),
        max_size=min(sides),
        ratio_range=ratio_range,
        cat_max_ratio=1.0,
        hflip=hflip,
        photometric=photometric,
    )


def resize_train(
    size: int | Sequence[int] = 512,
    *,
    max_size: int | None = None,
    square: bool = False,
    hflip: float = 0.5,
    vflip: float = 0.0,
    photometric: bool = False,
) -> SegmentationPipeline:
    """Flip and resize the whole image.

    Args:
        size: shorter side, or several to choose from.
        max_size: the longer side at most.
        square: both sides become that long, whatever the aspect ratio.
        hflip, vflip: probabilities of flips.
        photometric: change colours at random.
    """
    sizes = (size,) if isinstance(size, int) else tuple(size)
    _check_size(min(sizes), max_size)
    parts = _parts()
    transforms = [parts["OneSize"](sizes, max_size, square), *_flips(hflip, vflip)]
    return SegmentationPipeline(_Composed(transforms + ([parts["Photometric"]()] if photometric else [])))


_RECIPES: dict[str, Callable[..., SegmentationPipeline]] = {
    "crop": crop_train,
    "jitter": jitter_train,
    "resize": resize_train,
    "plain": evaluation,
}


def fitting_size(height: int, width: int, size: int, max_size: int | None, factor: float = 1.0) -> tuple[int, int]:
    """Height and width with the shorter side ``size`` times ``factor``, less where the longer one is above
    ``max_size`` times ``factor``; at least 1."""
    scale = size / min(height, width)
    if max_size is not None:
        scale = min(scale, max_size / max(height, width))
    return max(1, int(height * scale * factor + 0.5)), max(1, int(width * scale * factor + 0.5))


def photometric_distortion(
    image: np.ndarray,
    *,
    brightness: float = 0.0,
    contrast: float = 1.0,
    contrast_last: bool = False,
    saturation: float = 1.0,
    hue: int = 0,
) -> np.ndarray:
    """SSD's colour changes with given strengths.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        brightness: added, in 0 ... 255.
        contrast: factor on all channels, right after the brightness or, with ``contrast_last``, at the end.
        saturation: factor.
        hue: added, in steps of 2 degrees.
    """
    values = np.arange(256, dtype=np.float64)
    first = np.clip(values + brightness, 0, 255)
    if not contrast_last:
        first = np.clip(first * contrast, 0, 255)
    image = cv2.LUT(image, np.round(first).astype(np.uint8))
    if saturation != 1.0 or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        tables = np.zeros((1, 256, 3), np.uint8)
        tables[0, :, 0] = (values + hue) % 180
        tables[0, :, 1] = np.round(np.clip(values * saturation, 0, 255))
        tables[0, :, 2] = values
        image = cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB)
    if contrast_last and contrast != 1.0:
        image = cv2.LUT(image, np.round(np.clip(values * contrast, 0, 255)).astype(np.uint8))
    return image


def _check_size(size: int | None, max_size: int | None) -> None:
    if (size is not None and size < 1) or (max_size is not None and max_size < (size or 1)):
        raise ValueError(f"size={size}, max_size={max_size}: accepted are sizes from 1, and max_size not below size")
    if size is None and max_size is not None:
        raise ValueError(f"max_size={max_size} without size: it bounds the longer side where the shorter one is given")


def _flips(hflip: float, vflip: float) -> list[Any]:
    A = _albumentations()
    return ([A.HorizontalFlip(p=hflip)] if hflip else []) + ([A.VerticalFlip(p=vflip)] if vflip else [])


def _resized(image: np.ndarray, new: tuple[int, int]) -> np.ndarray:
    return image if image.shape[:2] == new else cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)


def _narrow(labels: np.ndarray) -> np.ndarray:
    """The same numbers from 0 in the smallest of uint8, uint16 and int32."""
    top = int(labels.max(initial=0))
    return labels.astype(np.uint8 if top < 256 else np.uint16 if top < 65536 else np.int32)


class _Composed:
    """albumentations' transforms on images with maps; all draw from the sample's two generators."""

    def __init__(self, transforms: list[Any]):
        self.compose = _albumentations().Compose(transforms, additional_targets={"segments": "mask"})

    def __call__(
        self, image: np.ndarray, maps: Maps, generator: np.random.Generator, python_random: random.Random
    ) -> tuple[np.ndarray, Maps]:
        # One stream for all: set_random_seed would start every transform with the same numbers.
        self.compose.set_random_state(generator, python_random)
        given: dict[str, Any] = {"image": image}
        if maps.semantic is not None:
            given["mask"] = maps.semantic
        if maps.segments is not None:
            given["segments"] = _narrow(maps.segments)
        if maps.masks is not None and len(maps.masks):
            given["masks"] = maps.masks.astype(np.uint8)
        done = self.compose(**given)
        image, masks = done["image"], None
        if maps.masks is not None:
            masks = np.asarray(done["masks"], bool) if "masks" in given else np.zeros((0, *image.shape[:2]), bool)
        segments = None if maps.segments is None else np.ascontiguousarray(done["segments"]).astype(maps.segments.dtype)
        return image, Maps(done.get("mask") if maps.semantic is not None else None, segments, masks)


@functools.cache
def _parts() -> dict[str, Any]:
    """Transforms that albumentations lacks, made of its classes."""
    A: Any = _albumentations()

    class Resized(A.DualTransform):
        """Resize to a size that a subclass draws."""

        _targets = A.SmallestMaxSize._targets

        def apply(self, img: np.ndarray, new: tuple[int, int], **params: Any) -> np.ndarray:
            return _resized(img, new)

        def apply_to_mask(self, mask: np.ndarray, new: tuple[int, int], **params: Any) -> np.ndarray:
            # Rows and columns at the pixels' centres, for any integer type.
            rows = np.minimum((np.arange(new[0]) + 0.5) * mask.shape[0] / new[0], mask.shape[0] - 1).astype(np.intp)
            columns = np.minimum((np.arange(new[1]) + 0.5) * mask.shape[1] / new[1], mask.shape[1] - 1).astype(np.intp)
            return mask[rows][:, columns]

        def apply_to_masks(self, masks: np.ndarray, new: tuple[int, int], **params: Any) -> np.ndarray:
            return np.stack([self.apply_to_mask(m, new) for m in masks])

    class RandomFactor(Resized):
        """Resize by a random factor."""

        class InitSchema(A.BasicTransform.InitSchema):
            size: Any
            max_size: Any
            ratio_range: Any

        def __init__(self, size: int | None, max_size: int | None, ratio_range: tuple[float, float], p: float = 1.0):
            super().__init__(p=p)
            self.size, self.max_size, self.ratio_range = size, max_size, ratio_range

        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            factor = self.py_random.uniform(*self.ratio_range)
            return {"new": fitting_size(height, width, self.size or min(height, width), self.max_size, factor)}

    class OneSize(Resized):
        """Resize to one of several shorter sides."""

        class InitSchema(A.BasicTransform.InitSchema):
            sizes: Any
            max_size: Any
            square: bool

        def __init__(self, sizes: tuple[int, ...], max_size: int | None, square: bool, p: float = 1.0):
            super().__init__(p=p)
            self.sizes, self.max_size, self.square = sizes, max_size, square

        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            size = self.py_random.choice(self.sizes)
            height, width = params["shape"][:2]
            return {"new": (size, size) if self.square else fitting_size(height, width, size, self.max_size)}

    class PaddedCrop(A.DualTransform):
        """A crop at a random place that no class fills, padded to its size at the right and below."""

        _targets = A.SmallestMaxSize._targets

        class InitSchema(A.BasicTransform.InitSchema):
            crop: Any
            cat_max_ratio: float

        def __init__(self, crop: tuple[int, int], cat_max_ratio: float, p: float = 1.0):
            super().__init__(p=p)
            self.crop, self.cat_max_ratio = crop, cat_max_ratio

        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            labels, place = data.get("mask"), (0, 0)
            choosy = labels is not None and self.cat_max_ratio < 1
            for _ in range(_CROP_TRIES if choosy else 1):
                place = tuple(self.py_random.randint(0, max(0, s - c)) for s, c in zip((height, width), self.crop))
                if labels is None or not choosy:
                    break
                counts = np.bincount(self._cut(labels, place).ravel())[1:]  # 0 is what is ignored
                if (counts > 0).sum() > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                    break
            return {"place": place}

        def _cut(self, array: np.ndarray, place: tuple[int, int]) -> np.ndarray:
            return array[place[0] : place[0] + self.crop[0], place[1] : place[1] + self.crop[1]]

        def apply(self, img: np.ndarray, place: tuple[int, int], **params: Any) -> np.ndarray:
            cut = self._cut(img, place)
            out = np.empty((*self.crop, 3), np.uint8)
            out[:] = PAD_COLOUR
            out[: cut.shape[0], : cut.shape[1]] = cut
            return out

        def apply_to_mask(self, mask: np.ndarray, place: tuple[int, int], **params: Any) -> np.ndarray:
            cut = self._cut(mask, place)
            out = np.zeros(self.crop, mask.dtype)
            out[: cut.shape[0], : cut.shape[1]] = cut
            return out

        def apply_to_masks(self, masks: np.ndarray, place: tuple[int, int], **params: Any) -> np.ndarray:
            return np.stack([self.apply_to_mask(m, place) for m in masks])

    class Turn(A.DualTransform):
        """A rotation about the centre; the size stays."""

        _targets = A.SmallestMaxSize._targets

        class InitSchema(A.BasicTransform.InitSchema):
            degrees: float

        def __init__(self, degrees: float, p: float = 1.0):
            super().__init__(p=p)
            self.degrees = degrees

        def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
            height, width = params["shape"][:2]
            angle = self.py_random.uniform(-self.degrees, self.degrees)
            return {"matrix": cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)}

        def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
            return cv2.warpAffine(img, matrix, img.shape[1::-1], flags=cv2.INTER_LINEAR, borderValue=PAD_COLOUR)

        def apply_to_mask(self, mask: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
            exact = mask.astype(np.float64) if mask.dtype == np.int32 else mask  # OpenCV turns no 32-bit integers
            return cv2.warpAffine(exact, matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST).astype(mask.dtype)

        def apply_to_masks(self, masks: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
            return np.stack([self.apply_to_mask(m, matrix) for m in masks])

    class Photometric(A.ImageOnlyTransform):
        """Each of brightness, contrast, saturation and hue with probability one half."""

        class InitSchema(A.BasicTransform.InitSchema):
            pass

        def __init__(self, p: float = 1.0):
            super().__init__(p=p)

        def get_params(self) -> dict[str, Any]:
            draw = self.py_random
            changes: dict[str, Any] = {"contrast_last": draw.random() < 0.5}
            if draw.random() < 0.5:
                changes["brightness"] = draw.uniform(-32, 32)
            if draw.random() < 0.5:
                changes["contrast"] = draw.uniform(0.5, 1.5)
            if draw.random() < 0.5:
                changes["saturation"] = draw.uniform(0.5, 1.5)
            if draw.random() < 0.5:
                changes["hue"] = draw.randint(-18, 17)
            return {"changes": changes}

        def apply(self, img: np.ndarray, changes: dict[str, Any], **params: Any) -> np.ndarray:
            return photometric_distortion(img, **changes)

    return {
        "RandomFactor": RandomFactor,
        "OneSize": OneSize,
        "PaddedCrop": PaddedCrop,
        "Turn": Turn,
        "Photometric": Photometric,
    }
