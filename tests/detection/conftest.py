"""Small detection data in the three formats, and batches for models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

OBJECTS = [  # image -> (x, y, w, h), category
    [((4, 5, 20, 10), 7), ((30, 30, 10, 12), 3)],
    [((1, 2, 8, 8), 3)],
    [],
]
SIZES = [(48, 64), (40, 40), (32, 56)]


def write_images(folder: Path, count: int = 3) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (*SIZES[i], 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"img{i}.png"), pixels)
        names.append(f"img{i}.png")
    return names


@pytest.fixture
def coco_folder(tmp_path: Path):
    """``make(change=None)``: a folder with images and ``annotations/instances_train.json`` with ids 3 and 7;
    ``change`` edits the content before it is written."""

    def make(change=None, split: str = "train") -> Path:
        root = tmp_path / "coco"
        names = write_images(root / split)
        annotations: list[dict[str, Any]] = []
        for i, objects in enumerate(OBJECTS):
            for box, category in objects:
                annotations.append(
                    dict(id=len(annotations) + 1, image_id=10 + i, category_id=category, bbox=list(box), iscrowd=0,
                         area=box[2] * box[3])
                )  # fmt: skip
        content = dict(
            images=[dict(id=10 + i, file_name=n, height=SIZES[i][0], width=SIZES[i][1]) for i, n in enumerate(names)],
            annotations=annotations,
            categories=[dict(id=7, name="seven"), dict(id=3, name="three")],
        )
        if change:
            change(content)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return root

    return make


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """A folder in VOC's layout; the second object of the first image is difficult."""
    root = tmp_path / "voc"
    names = write_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    word = {7: "seven", 3: "three"}
    for i, objects in enumerate(OBJECTS):
        text = "".join(
            f"<object><name>{word[c]}</name><difficult>{int(i == 0 and n == 1)}</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for n, ((x, y, w, h), c) in enumerate(objects)
        )
        size = f"<size><width>{SIZES[i][1]}</width><height>{SIZES[i][0]}</height><depth>3</depth></size>"
        name = Path(names[i]).stem
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{names[i]}</filename>{size}{text}</annotation>"
        )
    return root


@pytest.fixture
def yolo_folder(tmp_path: Path) -> Path:
    """A folder in YOLO's layout; the last image has no text."""
    root = tmp_path / "yolo"
    write_images(root / "images" / "train")
    (root / "labels" / "train").mkdir(parents=True)
    for i, objects in enumerate(OBJECTS[:2]):
        h, w = SIZES[i]
        lines = [
            f"{0 if c == 3 else 1} {(x + bw / 2) / w} {(y + bh / 2) / h} {bw / w} {bh / h}"
            for (x, y, bw, bh), c in objects
        ]
        (root / "labels" / "train" / f"img{i}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("names: [three, seven]\n")
    return root


@pytest.fixture
def batch():
    """``make([(h, w), ...], [[(box, label), ...], ...])``: what a data loader gives; masks are the boxes' areas."""
    from zoo.detection.data_sample import DetDataSample

    def make(sizes, objects) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        images, samples = [], []
        for number, ((h, w), found) in enumerate(zip(sizes, objects)):
            images.append(torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8))
            truth = dict(
                boxes=[[x0, y0, x1 - x0, y1 - y0] for (x0, y0, x1, y1), _ in found],
                labels=[label for _, label in found],
                areas=[(x1 - x0) * (y1 - y0) for (x0, y0, x1, y1), _ in found],
                crowd=[0] * len(found),
            )
            sample = DetDataSample(
                metainfo=dict(img_path=f"{number}.png", img_id=100 + number, sample_idx=number, ori_shape=(h, w),
                              img_shape=(h, w), ground_truth=truth)
            )  # fmt: skip
            boxes = torch.tensor([b for b, _ in found], dtype=torch.float32).reshape(-1, 4)
            masks = torch.zeros(len(found), h, w, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
                mask[y0:y1, x0:x1] = True
            sample.set_gt(boxes, [label for _, label in found], masks)
            samples.append(sample)
        return {"inputs": images, "data_samples": samples}

    return make
