"""Random changes of patches and slices in training, by MONAI's transforms, each a function of a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Recipes by name; "none" changes nothing.
RECIPES = ("none", "light", "full")

Augment = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def build_volume_transforms(
    recipe: str = "light",
    *,
    flip_axes: Sequence[int] = (),
    rotate: float = 10.0,
    scale: float = 0.1,
    probability: float = 0.2,
) -> Augment | None:
    """Transforms of a recipe for normalised patches, 3-D or 2-D.

    - "light": brightness and contrast, a little noise.
    - "full": also rotation about every axis and scaling (in voxels, by one interpolation), blur and gamma, after
      nnU-Net's choice.

    Args:
        recipe: one of :data:`RECIPES`.
        flip_axes: axes of the patch that are mirrored half of the time; none by default, for left and right of a body
            differ.
        rotate: largest angle in degrees.
        scale: largest share by which sizes change.
        probability: of each change of "full" (of rotation and scaling together, too).

    Returns:
        ``(image float32 [C, ...], label int64 [...], seed) -> (image, label)``, or None where nothing changes.

    Raises:
        ValueError: an argument is out of range.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe={recipe!r} is unknown; accepted are {', '.join(map(repr, RECIPES))}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} must be from 0 to 1")
    if not 0 <= rotate <= 180 or not 0 <= scale < 1:
        raise ValueError(f"rotate={rotate} must be from 0 to 180 degrees, scale={scale} from 0 to below 1")
    if any(a not in (0, 1, 2) for a in flip_axes):
        raise ValueError(f"flip_axes={tuple(flip_axes)} must be of 0, 1 and 2")
    if recipe == "none" and not flip_axes:
        return None
    return VolumeTransforms(recipe, tuple(flip_axes), math.radians(rotate), scale, probability)


class VolumeTransforms:
    """What :func:`build_volume_transforms` returns."""

    def __init__(self, recipe: str, flip_axes: tuple[int, ...], rotate: float, scale: float, probability: float):
        from monai import transforms as T

        self.flip_axes = flip_axes
        pixels: list[Any] = []
        if recipe != "none":
            pixels = [
                T.RandScaleIntensity(factors=0.15, prob=0.5),
                T.RandShiftIntensity(offsets=0.1, prob=0.5),
                T.RandGaussianNoise(prob=probability, std=0.1),
            ]
        self.space = None
        if recipe == "full":
            pixels += [
                T.RandGaussianSmooth((0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=probability),
                T.RandAdjustContrast(prob=probability, gamma=(0.7, 1.5), retain_stats=True),
            ]
            self.space = {n: _affine(T, n, rotate, scale, probability) for n in (2, 3)}
        self.pixels = pixels

    def __call__(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Changed copies of image float32 ``[C, ...]`` and label int64 ``[...]``."""
        draws = torch.Generator().manual_seed(seed % 2**63)
        seeds = torch.randint(2**31, (len(self.pixels) + 1,), generator=draws).tolist()
        flips = torch.rand(3, generator=draws).tolist()
        axes = [a for a in self.flip_axes if a < label.ndim and flips[a] < 0.5]
        if axes:
            image, label = image.flip([a + 1 for a in axes]), label.flip(axes)
        if self.space is not None:
            image, label = self._move(image, label, seeds[-1])
        for transform, s in zip(self.pixels, seeds):
            transform.set_random_state(seed=s)
            image = _plain(transform(image))
        return image.contiguous(), label.contiguous()

    def _move(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        affine = self.space[label.ndim]  # type: ignore[index]
        affine.set_random_state(seed=seed)
        moved = affine({"image": image, "label": label[None].float()})
        return _plain(moved["image"]), _plain(moved["label"])[0].round().to(torch.int64)


def _affine(T: Any, ndim: int, rotate: float, scale: float, probability: float) -> Any:
    return T.RandAffined(
        keys=("image", "label"),
        prob=probability,
        rotate_range=(rotate,) * (3 if ndim == 3 else 1),
        scale_range=(scale,) * ndim,
        mode=("bilinear", "nearest"),
        padding_mode=("border", "border"),
    )


def _plain(tensor: Any) -> Tensor:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
