"""COCO's panoptic annotations: a JSON of segments and a PNG an image, whose colours are the segments' numbers.

Format: A. Kirillov et al., "Panoptic Segmentation", CVPR 2019, https://cocodataset.org/#format-data. The number of a
segment is R + 256 G + 256^2 B of its pixels; 0 is void.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.coco import AnnotationError, find_image_folder
from zoo.data.label_maps import MaskError
from zoo.data.loading import ImageReadError
from zoo.data.segmentation import Annotation, SegmentationDataset, check_size
from zoo.files import save_atomically

#: numbers of segments are below this
MAX_IDS = 1 << 24


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
    """Numbers int32 ``[H, W]`` of colours uint8 ``[H, W, 3]``: R + 256 G + 256^2 B."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] + (wide[..., 1] << 8) + (wide[..., 2] << 16)


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Colours uint8 ``[H, W, 3]`` of numbers ``[H, W]``.

    Raises:
        ValueError: a number below 0 or from 2^24 on.
    """
    ids = np.asarray(ids, np.int64)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < MAX_IDS:
        raise ValueError(f"ids are between {ids.min()} and {ids.max()}; accepted are 0 to {MAX_IDS - 1}")
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def read_ids(path: str | os.PathLike) -> np.ndarray:
    """The numbers int32 ``[H, W]`` in a panoptic PNG.

    Raises:
        ImageReadError: the file is missing or broken.
        MaskError: it is no RGB image.
    """
    name = os.fspath(path)
    try:
        with Image.open(name, formats=["PNG"]) as image:
            mode = image.mode
            rgb = np.asarray(image.convert("RGB")) if mode in ("RGB", "RGBA") else None
    except OSError as error:
        raise ImageReadError(f"cannot read segments {name!r}: {error.strerror or error}", name) from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, ValueError, zlib.error ...
        raise ImageReadError(f"cannot read segments {name!r}: {type(error).__name__}: {error}", name) from error
    if rgb is None:
        raise MaskError(
            f"segments {name!r} have pixels of Pillow's mode {mode!r}; accepted is RGB (R + 256 G + 65536 B)"
        )
    return rgb_to_ids(rgb)


def write_ids(path: str | os.PathLike, ids: np.ndarray) -> Path:
    """Write numbers ``[H, W]`` as a panoptic PNG."""
    image = Image.fromarray(ids_to_rgb(ids))
    return save_atomically(path, lambda file: image.save(file, format="PNG"))


def read_panoptic(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a panoptic JSON.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: it is no JSON, or has no annotations with ``segments_info``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no annotations file {str(path)!r}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path} is no JSON: {error}") from None
    listed = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(listed, list) or any("segments_info" not in a or "file_name" not in a for a in listed):
        raise AnnotationError(
            f"{path} is no panoptic annotations file: it needs annotations with 'file_name' and 'segments_info'"
        )
    return content


def numbered(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], where: str
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segments numbered 1, 2, ... in their order: the map int32 ``[H, W]``, and those that have a pixel.

    Args:
        ids: numbers as in the file ``[H, W]``, 0 for void.
        segments: dicts with ``id`` and whatever else is to stay.
        where: the file, for messages.

    Raises:
        MaskError: a number occurs that no segment has, or two segments have one number.
    """
    known = np.array([s["id"] for s in segments], np.int64)
    if len(np.unique(known)) < len(known) or (known <= 0).any():
        double = [i for i, n in Counter(known.tolist()).items() if n > 1 or i <= 0]
        raise MaskError(f"{where}: segments have the ids {double[:5]} twice, or ids below 1")
    present, inverse = np.unique(ids, return_inverse=True)
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known[order], present).clip(max=max(0, len(known) - 1))
    found = order[at] if len(known) else np.zeros(len(present), np.int64)
    missing = (present != 0) & ((known[found] != present) if len(known) else np.ones(len(present), bool))
    if missing.any():
        raise MaskError(f"{where} has pixels of the segments {present[missing][:5].tolist()}, which are not described")
    table = np.where(present == 0, 0, found + 1).astype(np.int32)
    there = set(table.tolist())
    kept = [{**s, "id": i} for i, s in enumerate(segments, 1) if i in there]
    return table[inverse.reshape(ids.shape)], kept


class CocoPanoptic(SegmentationDataset):
    """Images with COCO's panoptic segments; samples have panoptic, instance and semantic targets.

    Classes are numbered in the order of the category ids, things and stuff together; the semantic map gives each pixel
    its segment's class, crowds included. Crowds are no instances.

    Args:
        annotations: the JSON file.
        images: folder of the images; by default the one of the usual places that has the first image.
        segments: folder of the PNG files; by default the JSON's name without its ending.
        **common: ``targets``, ``transform`` ...; see :class:`zoo.data.segmentation.SegmentationDataset`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        AnnotationError: the JSON is none, or names an image or a category that it does not list.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike | None = None,
        segments: str | os.PathLike | None = None,
        **common: Any,
    ):
        path = Path(annotations)
        content = read_panoptic(path)
        for name in ("images", "categories"):
            if not isinstance(content.get(name), list) or not content[name]:
                raise AnnotationError(f"{path} has no list of {name}")
        listed = {i["id"]: i for i in content["images"]}
        order = sorted(c["id"] for c in content["categories"])
        if len(set(order)) < len(order):
            raise AnnotationError(f"{path}: category ids occur more than once")
        categories = {c["id"]: c for c in content["categories"]}
        label_of = {c: k for k, c in enumerate(order)}
        things = [bool(categories[c].get("isthing", 1)) for c in order]
        self.folder = Path(segments) if segments is not None else path.with_suffix("")
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder {str(self.folder)!r} of panoptic PNG files; name it segments=")
        first = content["images"][0]["file_name"]
        images = panoptic_images(path, first) if images is None else Path(images)
        if not Path(images).is_dir():
            raise FileNotFoundError(f"there is no folder {str(images)!r} of images")
        rows = []
        for a in content["annotations"]:
            if a.get("image_id") not in listed:
                raise AnnotationError(f"{path}: {a['file_name']!r} is of image {a.get('image_id')!r}, not listed")
            infos = []
            for s in a["segments_info"]:
                if s.get("category_id") not in label_of:
                    raise AnnotationError(
                        f"{path}: segment {s.get('id')} of {a['file_name']!r} is of category {s.get('category_id')!r}, "
                        f"which is not listed"
                    )
                label = label_of[s["category_id"]]
                infos.append((int(s["id"]), label, bool(s.get("iscrowd", 0))))
            rows.append((a["image_id"], a["file_name"], infos))
        self.annotations, self._files, self._infos = path, [r[1] for r in rows], [r[2] for r in rows]
        colours = [categories[c].get("color") for c in order]
        super().__init__(
            [os.path.join(images, listed[r[0]]["file_name"]) for r in rows],
            [str(categories[c].get("name", c)) for c in order],
            things=things,
            palette=colours if all(c is not None for c in colours) else None,
            image_ids=[r[0] for r in rows],
            category_ids=order,
            **common,
        )

    def segments_of(self, row: int) -> Path:
        """The PNG file of an image."""
        return self.folder / self._files[row]

    def annotation(self, row: int, size: tuple[int, int]) -> Annotation:
        path = str(self.segments_of(row))
        ids = read_ids(path)
        check_size(ids, size, f"panoptic map {path!r}", str(self.paths[row]))
        described = [
            {"id": i, "label": label, "is_thing": self.things[label], "is_crowd": crowd}  # type: ignore[index]
            for i, label, crowd in self._infos[row]
        ]
        ids, infos = numbered(ids, described, path)
        if not self.wants("semantic"):
            return Annotation(segments=ids, infos=infos)
        table = np.full(len(described) + 1, self.ignore_index, np.int32)
        for info in infos:
            table[info["id"]] = info["label"]
        semantic = table[ids]
        if self.ignore_index < 256:
            semantic = semantic.astype(np.uint8)
        return Annotation(semantic=semantic, segments=ids, infos=infos)


def panoptic_images(annotations: Path, first: str) -> Path:
    """The folder of the images of a panoptic JSON, looked for in COCO's usual places.

    Raises:
        FileNotFoundError: the first image is in none of them.
    """
    plain = annotations.with_name(annotations.name.removeprefix("panoptic_"))
    return find_image_folder(plain, first)
