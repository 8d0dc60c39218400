"""What a segmenter says of an image: a label map, objects with masks, panoptic segments; all at its original size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data.masks import compress_masks, decode_masks, mask_to_polygons
from zoo.inference.results import Result
from zoo.segmentation.palettes import palette_of

if TYPE_CHECKING:
    from PIL.Image import Image

#: How masks are handed on: PNG files of their own (and nothing in JSON but objects' run lengths), COCO's compressed run
#: lengths, or outlines.
MASK_FORMATS = ("png", "rle", "polygons")


@dataclass(eq=False)
class Instances:
    """Objects of one image, best first.

    Attributes:
        labels: class index of each.
        scores: between 0 and 1.
        boxes: float ``[N, 4]`` corners (x0, y0, x1, y1) around the masks, ends exclusive.
        segmentations: the masks as COCO's compressed run lengths.
    """

    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    segmentations: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(eq=False)
class Segments:
    """A partition of one image.

    Attributes:
        ids: int32 ``[H, W]``, number of each pixel's segment; 0 where there is none.
        infos: a dict a segment: ``id``, ``label``, ``is_thing``, ``score``, ``area`` (pixels).
    """

    ids: np.ndarray
    infos: list[dict[str, Any]]


@dataclass
class SegmentationResult(Result):
    """What a segmenter says of one image.

    Attributes:
        label_map: class index of each pixel ``[H, W]``, uint8 or, with more than 256 classes, uint16 (int32 above
            65,536); None where the model gives none.
        instances: objects; None where the model gives none.
        segments: panoptic segments; None where the model gives none.
        classes: names; empty where there is an ``error``.
        palette: a colour a class.
        category_ids: what the data calls the classes.
        mask_format: one of :data:`MASK_FORMATS`.
    """

    label_map: np.ndarray | None = None
    instances: Instances | None = None
    segments: Segments | None = None
    classes: list[str] = field(default_factory=list)
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    mask_format: str = "png"

    def class_areas(self) -> list[dict[str, Any]]:
        """The classes of the label map, largest first: ``label``, ``name``, ``pixels``, ``share``.

        Raises:
            ValueError: the model gives no label map.
        """
        found = self._needed("label_map")
        counts = np.zeros(len(self.classes), np.int64)
        for part in np.array_split(found.reshape(-1), max(1, found.size >> 22)):  # bincount makes int64 of them
            counts += np.bincount(part, minlength=len(counts))
        order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
        return [
            {"label": k, "name": self.classes[k], "pixels": int(counts[k]), "share": float(counts[k] / found.size)}
            for k in order
        ]

    @property
    def masks(self) -> np.ndarray:
        """The objects' masks, bool ``[N, H, W]``.

        Raises:
            ValueError: the model gives no objects.
        """
        objects = self._needed("instances")
        assert self.size is not None
        return decode_masks(objects.segmentations, *self.size)

    def class_mask(self, label: int) -> np.ndarray:
        """Where a class is in the label map, bool ``[H, W]``."""
        return self._needed("label_map") == label

    def body(self) -> dict[str, Any]:
        content: dict[str, Any] = {"size": None if self.size is None else list(self.size)}
        if self.label_map is not None:
            content["classes"] = [{**row, **self._shape_of_class(row["label"])} for row in self.class_areas()]
        if self.instances is not None:
            content["objects"] = self._objects()
        if self.segments is not None:
            content["segments"] = [
                {**self._named(info), **self._shape_of(self.segments.ids == info["id"])} for info in self.segments.infos
            ]
        return content

    def rows(self) -> list[dict[str, Any]]:
        """One row a finding, with its ``kind`` ("object", "segment" or "class") and ``name``: objects, else panoptic
        segments, by score; else classes by area."""
        if self.instances is not None:
            return [{"kind": "object", **{k: v for k, v in o.items() if k != "segmentation"}} for o in self._objects()]
        if self.segments is not None:
            infos = sorted(self.segments.infos, key=lambda i: -i.get("score", 0.0))
            return [{"kind": "segment", **self._named(i)} for i in infos]
        return [{"kind": "class", **row} for row in self.class_areas()]

    def coco_entries(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file: the objects or, of a model of label maps, one for each class (the form of
        COCO-Stuff's results)."""
        if self.instances is None:
            return [
                {
                    "image_id": image_id,
                    "category_id": self.category_ids[row["label"]],
                    "segmentation": compress_masks(self.class_mask(row["label"])[None])[0],
                }
                for row in (self.class_areas() if self.label_map is not None else [])
            ]
        entries = []
        for row in self._objects():
            x0, y0, x1, y1 = row["box"]
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": self.category_ids[row["label"]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": row["score"],
                    "segmentation": row["segmentation"],
                }
            )
        return entries

    def panoptic_annotation(self, image_id: int, file_name: str) -> dict[str, Any]:
        """The entry of a file of panoptic results in COCO's format, whose PNG is ``file_name``.

        Raises:
            ValueError: the model gives no segments.
        """
        infos = [
            {"id": i["id"], "category_id": self.category_ids[i["label"]], "area": i["area"]}
            for i in self._needed("segments").infos
        ]
        return {"image_id": image_id, "file_name": file_name, "segments_info": infos}

    def save_masks(self, folder: str | os.PathLike[str], name: str | None = None) -> list[Path]:
        """Write ``masks/NAME.png``, the label map with its palette (of 8 bits, up to 256 classes; of 16 above), and
        ``panoptic/NAME.png``, the segments in COCO's colours (id = R + 256 G + 65536 B).

        Args:
            folder: made if needed.
            name: by default that of the image, without its ending.

        Returns:
            The files; none for a model of objects alone.
        """
        from zoo.data.coco_panoptic import write_ids
        from zoo.data.label_maps import write_mask

        folder = Path(folder)
        name = Path(self.source.split("?")[0]).stem if name is None else name
        files = []
        if self.label_map is not None:
            files.append(write_mask(folder / "masks" / f"{name}.png", self.label_map, self.palette))
        if self.segments is not None:
            files.append(write_ids(folder / "panoptic" / f"{name}.png", self.segments.ids))
        return files

    def draw(self) -> Image:
        """The image under its panoptic segments or, where there are none, its objects or classes, with a legend."""
        import PIL.Image

        from zoo.viz.segmentation import draw_label_map, draw_objects, draw_segments

        image = self.image
        palette = self.palette or palette_of(len(self.classes), self.classes)
        if self.segments is not None and (self.segments.infos or (self.label_map is None and not self.instances)):
            drawn = draw_segments(image, self.segments.ids, self.segments.infos, self.classes, palette)
        elif self.instances is not None and (len(self.instances) or self.label_map is None):
            objects = self.instances
            drawn = draw_objects(
                image, self.masks, objects.boxes, objects.labels, self.classes, objects.scores, palette
            )
        else:
            drawn = draw_label_map(image, self._needed("label_map"), self.classes, palette)
        return PIL.Image.fromarray(drawn)

    def _needed(self, name: str) -> Any:
        value = getattr(self, name)
        if value is None:
            given = [n for n in ("label_map", "instances", "segments") if getattr(self, n) is not None]
            raise ValueError(f"{self.source} has no {name}: the model gives {', '.join(given) or self.error}")
        return value

    def _named(self, info: dict[str, Any]) -> dict[str, Any]:
        return {"name": self.classes[info["label"]], **info}

    def _objects(self) -> list[dict[str, Any]]:
        objects = self._needed("instances")
        shapes: Sequence[Any] = objects.segmentations
        if self.mask_format == "polygons":
            shapes = [mask_to_polygons(m) for m in self.masks]
        return [
            {
                "box": [round(float(v), 2) for v in box],
                "label": label,
                "name": self.classes[label],
                "score": score,
                "segmentation": shape,
            }
            for box, label, score, shape in zip(objects.boxes, objects.labels, objects.scores, shapes)
        ]

    def _shape_of_class(self, label: int) -> dict[str, Any]:
        return {} if self.mask_format == "png" else self._shape_of(self.class_mask(label))

    def _shape_of(self, mask: np.ndarray) -> dict[str, Any]:
        """``segmentation`` as it goes into JSON, or nothing."""
        if self.mask_format == "png":
            return {}
        return {
            "segmentation": mask_to_polygons(mask) if self.mask_format == "polygons" else compress_masks(mask[None])[0]
        }


def narrow_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices in the smallest type that holds all classes."""
    return labels.astype(np.uint8 if num_classes <= 256 else np.uint16 if num_classes <= 65536 else np.int32)


def instances_of(found: dict[str, Any], threshold: float, most: int) -> Instances:
    """Objects of ``labels [N]``, ``scores [N]`` and ``masks [N, H, W]``: above the threshold, best first."""
    import torch

    from zoo.segmentation.data_sample import boxes_of_masks

    scores = torch.as_tensor(found["scores"])
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold][:most]
    masks = torch.as_tensor(found["masks"])[order].bool()
    return Instances(
        torch.as_tensor(found["labels"])[order].tolist(),
        scores[order].tolist(),
        boxes_of_masks(masks).cpu().numpy(),
        compress_masks(masks.cpu().numpy()),
    )


def segments_of(found: dict[str, Any]) -> Segments:
    """Panoptic segments of ``ids [H, W]`` and ``segments``, with their areas."""
    ids = np.ascontiguousarray(found["ids"].cpu().numpy().astype(np.int32))
    counts = np.bincount(ids.ravel(), minlength=1)
    infos = []
    for s in found["segments"]:
        area = int(counts[s["id"]]) if s["id"] < len(counts) else 0
        score = {"score": float(s["score"])} if "score" in s else {}
        infos.append({"id": int(s["id"]), "label": int(s["label"]), "is_thing": bool(s["is_thing"]), **score,
                      "area": area})  # fmt: skip
    return Segments(ids, infos)
