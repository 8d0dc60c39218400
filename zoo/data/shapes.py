"""Generated images of textured shapes with exact labels for every task: class, boxes, instance masks, semantic map.

Each scene is a function of (seed, split, index): the data set needs no files and can be of any length.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from zoo.data.base import ImageDataset
from zoo.data.masks import mask_to_polygons, mask_to_rle
from zoo.files import write_file

#: The classes, in the order of their indices.
SHAPE_CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "semicircle", "arrow")

_SPLITS = {"train": 0, "val": 1, "test": 2}
_TRIES = 20


@dataclass(frozen=True)
class Scene:
    """One generated image and what is in it.

    Attributes:
        image: RGB uint8 ``[H, W, 3]``.
        label: class index of the main object, which is the first and the largest.
        labels: int64 ``[n]`` class index of each object.
        boxes: float32 ``[n, 4]`` x0, y0, x1, y1 of the visible part, in pixels, edges outside the last pixel.
        masks: bool ``[n, H, W]`` visible part of each object; they do not overlap.
        semantic: uint8 ``[H, W]``: 0 background (occluders too), class index + 1 elsewhere.
    """

    image: np.ndarray
    label: int
    labels: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    semantic: np.ndarray


class Shapes(ImageDataset):
    """Textured shapes before a textured background, partly hidden by each other and by unlabelled occluders.

    As a data set it yields classification samples (the class of the main object); :meth:`scene` gives everything.

    Args:
        split: "train", "val" or "test"; they share no scene.
        length: number of images.
        size: height and width in pixels, or one number for both; at least 16.
        objects: least and greatest number of objects (fewer are placed where there is no room).
        occluders: least and greatest number of occluding bars.
        min_visible: least visible share of each object.
        data_seed: which data set.
        classes: the kinds of shapes, some of :data:`SHAPE_CLASSES`.
        transform, seed, on_error: see :class:`~zoo.data.base.ImageDataset`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 1000,
        size: int | tuple[int, int] = 64,
        *,
        objects: tuple[int, int] = (1, 1),
        occluders: tuple[int, int] = (0, 2),
        min_visible: float = 0.5,
        data_seed: int = 0,
        classes: Sequence[str] = SHAPE_CLASSES,
        **common: Any,
    ):
        unknown = [c for c in classes if c not in SHAPE_CLASSES]
        if unknown or not len(classes):
            raise ValueError(f"classes={tuple(classes)}: accepted are some of {', '.join(SHAPE_CLASSES)}")
        if split not in _SPLITS:
            raise ValueError(f"split={split!r} is unknown; accepted are {', '.join(map(repr, _SPLITS))}")
        if length < 1:
            raise ValueError(f"length={length} must be at least 1")
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 16:
            raise ValueError(f"size={size} must be at least 16 pixels")
        if not 1 <= objects[0] <= objects[1]:
            raise ValueError(f"objects={objects} must be two ascending numbers, the first at least 1")
        if not 0 <= occluders[0] <= occluders[1]:
            raise ValueError(f"occluders={occluders} must be two ascending numbers")
        if not 0 < min_visible <= 1:
            raise ValueError(f"min_visible={min_visible} must be above 0 and at most 1")
        self.split = split
        self.size = (height, width)
        self.objects = objects
        self.occluders = occluders
        self.min_visible = min_visible
        self.data_seed = data_seed
        # Every run of as many images as there are classes has each class once, in an order of its own.
        rounds = -(-length // len(classes))
        order = [self._rng(10**9 + i).permutation(len(classes)) for i in range(rounds)]
        super().__init__(classes, np.concatenate(order)[:length].tolist(), **common)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.data_seed, _SPLITS[self.split], index))

    def load_image(self, index: int) -> np.ndarray:
        return self.scene(index).image

    def path_of(self, index: int) -> str:
        return f"shapes/{self.split}/{index:06d}"

    def scene(self, index: int) -> Scene:
        """Image ``index`` with all its labels."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} scenes")
        rng = self._rng(index)
        height, width = self.size
        background = rng.uniform(0, 255, 3)
        canvas = _Canvas(_texture(rng, height, width, background), self.min_visible)
        count = int(rng.integers(self.objects[0], self.objects[1] + 1))
        labels = [int(self.labels[index]), *rng.integers(self.num_classes, size=count - 1).tolist()]
        # Several objects are smaller, so that there is room for them; the main one stays the largest.
        largest = 0.5 * min(height, width) * (0.8 if count == 1 else 0.55)
        main_radius = largest * rng.uniform(0.65, 1.0)
        placed = []
        for i, label in enumerate(labels):
            colour = _contrasting(rng, background)
            fill = _texture(rng, height, width, colour)
            for _ in range(_TRIES):
                radius = main_radius if i == 0 else main_radius * rng.uniform(0.45, 0.85)
                if canvas.place(_shape_mask(rng, self.classes[label], height, width, radius), fill, is_object=True):
                    placed.append(label)
                    break
        for _ in range(int(rng.integers(self.occluders[0], self.occluders[1] + 1))):
            fill = _texture(rng, height, width, rng.uniform(0, 255, 3))
            for _ in range(_TRIES):
                if canvas.place(_bar_mask(rng, height, width), fill, is_object=False):
                    break
        noise = rng.normal(0, 4, canvas.image.shape)
        image = np.clip(canvas.image + noise, 0, 255).astype(np.uint8)
        masks = canvas.masks()
        semantic = np.zeros((height, width), np.uint8)
        for label, mask in zip(placed, masks):
            semantic[mask] = label + 1
        boxes = np.array([_box(mask) for mask in masks], np.float32)
        return Scene(image, placed[0], np.array(placed, np.int64), boxes, masks, semantic)

    def write_coco(
        self,
        out_dir: str | os.PathLike,
        *,
        segmentation: str = "rle",
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write all images and their objects in COCO's layout.

        ``out_dir/<split>/000000.png`` ..., ``out_dir/semantic_<split>/000000.png`` ... (semantic maps) and
        ``out_dir/annotations/instances_<split>.json``, which is written last, when everything it names is there.

        Args:
            out_dir: a folder, made if missing.
            segmentation: "rle" (uncompressed run lengths, exact) or "polygon".
            progress: called with the number of written images and of all images.

        Returns:
            The path of the annotations file.
        """
        if segmentation not in ("rle", "polygon"):
            raise ValueError(f"segmentation={segmentation!r} is unknown; accepted are 'rle' and 'polygon'")
        encode = mask_to_rle if segmentation == "rle" else mask_to_polygons
        root = Path(out_dir)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(len(self)):
            scene = self.scene(i)
            name = f"{i:06d}.png"
            _write_png(root / self.split / name, cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
            _write_png(root / f"semantic_{self.split}" / name, scene.semantic)
            images.append({"id": i + 1, "file_name": name, "height": self.size[0], "width": self.size[1]})
            for label, box, mask in zip(scene.labels.tolist(), scene.boxes.tolist(), scene.masks):
                x0, y0, x1, y1 = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": label + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": encode(mask),
                    }
                )
            if progress:
                progress(i + 1, len(self))
        content = {
            "info": {"description": f"generated shapes, data_seed={self.data_seed}, split={self.split}"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": n, "supercategory": "shape"} for i, n in enumerate(self.classes)],
        }
        return write_file(root / "annotations" / f"instances_{self.split}.json", json.dumps(content))


class _Canvas:
    """An image onto which things are laid; what would hide too much of an object is refused."""

    def __init__(self, background: np.ndarray, min_visible: float):
        self.image = background
        self.min_visible = min_visible
        self.areas: list[int] = []
        self.owner = np.full(background.shape[:2], -1, np.int32)  # [H, W]: index of the object on top, -1: none

    def place(self, mask: np.ndarray, fill: np.ndarray, is_object: bool) -> bool:
        if not mask.any():
            return False
        hidden = np.bincount(self.owner[mask] + 1, minlength=len(self.areas) + 1)[1:]
        visible = np.bincount(self.owner.ravel() + 1, minlength=len(self.areas) + 1)[1:] - hidden
        if any(v < max(8, self.min_visible * a) for v, a in zip(visible, self.areas)):
            return False
        self.owner[mask] = len(self.areas) if is_object else -1
        self.image[mask] = fill[mask]
        if is_object:
            self.areas.append(int(mask.sum()))
        return True

    def masks(self) -> np.ndarray:
        return self.owner[None] == np.arange(len(self.areas))[:, None, None]  # [n, H, W]


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def _contrasting(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """A colour that differs clearly from the background's mean."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - background).mean() > 70:
            return colour


def _texture(rng: np.random.Generator, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    """A texture around ``colour``: stripes, checks, blobs or a gradient; float ``[H, W, 3]``."""
    kind = rng.integers(4)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    period = rng.uniform(0.06, 0.2) * min(height, width) + 3
    if kind == 0:
        pattern = np.sin(along * 2 * np.pi / period)
    elif kind == 1:
        pattern = np.sign(np.sin(along * np.pi / period) * np.sin(across * np.pi / period))
    elif kind == 2:
        grid = rng.uniform(-1, 1, (int(rng.integers(4, 10)),) * 2).astype(np.float32)
        pattern = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        pattern = along / np.hypot(height, width)
    strength = rng.uniform(15, 45) * rng.uniform(0.4, 1.0, 3)
    return np.clip(colour + pattern[:, :, None] * strength, 0, 255)


def _regular(corners: int, radius: float = 1.0, phase: float = -np.pi / 2) -> np.ndarray:
    angles = phase + np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outlines() -> dict[str, list[np.ndarray]]:
    """Outlines ``[n, 2]`` (x, y) of each shape within the unit circle; a second outline is a hole."""
    star = np.empty((10, 2))
    star[::2], star[1::2] = _regular(5), _regular(5, 0.42, -np.pi / 2 + np.pi / 5)
    a = 0.33
    cross = np.array(
        [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    )
    half = np.array([(np.cos(t), np.sin(t) - 0.4) for t in np.linspace(0, np.pi, 24)])
    arrow = np.array([(0, -1), (0.75, -0.1), (0.27, -0.1), (0.27, 0.95), (-0.27, 0.95), (-0.27, -0.1), (-0.75, -0.1)])
    return {
        "circle": [_regular(48)],
        "square": [_regular(4)],
        "triangle": [_regular(3)],
        "star": [star],
        "cross": [cross * 0.95],
        "ring": [_regular(48), _regular(48, 0.55)],
        "semicircle": [half],
        "arrow": [arrow],
    }


_OUTLINES = _outlines()
_SUBPIXEL_BITS = 4  # cv2.fillPoly takes fixed-point coordinates


def _fill(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    points = [np.round(o * (1 << _SUBPIXEL_BITS)).astype(np.int32) for o in outlines]
    cv2.fillPoly(mask, points, 1, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
    return mask.astype(bool)


def _shape_mask(rng: np.random.Generator, kind: str, height: int, width: int, radius: float) -> np.ndarray:
    """bool ``[H, W]``: a shape at a random place and angle, at most a little beyond the border."""
    margin = 0.85 * radius
    centre = np.array([rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)])
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return _fill([o @ turn * radius + centre for o in _OUTLINES[kind]], height, width)


def _bar_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """bool ``[H, W]``: a bar across a random point."""
    side = min(height, width)
    length, thickness = side * rng.uniform(0.4, 1.0), side * rng.uniform(0.06, 0.16)
    centre = rng.uniform((0, 0), (width, height))
    angle = rng.uniform(0, np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    corners = [s * along * length / 2 + t * across * thickness / 2 for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return _fill([np.array(corners) + centre], height, width)


def _write_png(path: Path, image: np.ndarray) -> None:
    ok, data = cv2.imencode(".png", image)
    if not ok:
        raise OSError(f"cannot encode {str(path)!r}")
    write_file(path, data.tobytes())
