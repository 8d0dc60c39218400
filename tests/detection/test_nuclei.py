"""Real data: nuclei of a fluorescence image (BBBC038) are found in the quadrant that was held out."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from zoo.data.detection import DetectionDataset, ObjectTable
from zoo.data.masks import compress_masks
from zoo.detection.model import DetectionModel
from zoo.metrics.coco import CocoBoxes
from zoo.metrics.coco_masks import CocoMasks

ROOT = Path(__file__).parents[2]
CROP, HALF = 128, 256


@pytest.fixture(scope="module")
def nuclei() -> tuple[np.ndarray, np.ndarray]:
    """The image, RGB, and its map of instances."""
    folder = Path(os.environ.get("ZOO_NUCLEI") or ROOT.parent / "shared" / "data" / "nuclei")
    if not (folder / "instances.png").is_file():
        pytest.skip(f"the image of nuclei is not in {folder}; ZOO_NUCLEI names its folder")
    image = cv2.imread(str(folder / "image.png"), cv2.IMREAD_GRAYSCALE)
    return np.repeat(image[..., None], 3, 2), cv2.imread(str(folder / "instances.png"), cv2.IMREAD_UNCHANGED)


class Nuclei(DetectionDataset):
    """Windows (y, x, side) of the image; instances of fewer than 20 pixels in a window are left out."""

    def __init__(self, image: np.ndarray, instances: np.ndarray, windows: list[tuple[int, int, int]], **common):
        self.images, records = [], []
        for number, (y, x, side) in enumerate(windows):
            part = instances[y : y + side, x : x + side]
            masks = np.array([part == i for i in np.unique(part) if i and (part == i).sum() >= 20], bool)
            masks = masks.reshape(-1, side, side)
            objects = []
            for mask, runs in zip(masks, compress_masks(masks)):
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
                objects.append({"box": box, "label": 0, "area": int(mask.sum()), "segmentation": runs})
            records.append({"path": f"{y}_{x}", "id": number + 1, "size": (side, side), "objects": objects})
            self.images.append(np.ascontiguousarray(image[y : y + side, x : x + side]))
        super().__init__(ObjectTable.build(records, with_masks=True), ["nucleus"], [1], **common)

    def load_image(self, index: int) -> np.ndarray:
        return self.images[self._indices[index]]


def trained(name: str, data: Nuclei, steps: int, batch: int = 4) -> DetectionModel:
    torch.manual_seed(0)
    model = DetectionModel(name, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 20) * max(0.02, 0.5 * (1 + np.cos(np.pi * i / steps)))
    )
    rng = np.random.default_rng(0)
    model.train()
    for step in range(steps):
        data.set_epoch(step)
        samples = [data[int(i)] for i in rng.choice(len(data), batch, replace=False)]
        inputs = {k: [s[k] for s in samples] for k in ("inputs", "data_samples")}
        losses = model(**model.data_preprocessor(inputs, True), mode="loss")
        optimizer.zero_grad()
        sum(v for k, v in losses.items() if "loss" in k).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def datasets(nuclei) -> tuple[Nuclei, Nuclei]:
    """Overlapping windows outside of the last quadrant, and that quadrant."""
    places = [(y, x, CROP) for y in range(0, 385, 64) for x in range(0, 385, 64)]
    windows = [(y, x, s) for y, x, s in places if y + s <= HALF or x + s <= HALF]
    augment = dict(recipe="resize", train=True, size=(112, 128, 144), color_jitter=0.2)
    return Nuclei(*nuclei, windows, transform=augment), Nuclei(*nuclei, [(HALF, HALF, HALF)])


def scores(model: DetectionModel, data: Nuclei, metric: CocoBoxes) -> dict[str, float]:
    sample = data[0]
    inputs = {k: [sample[k]] for k in ("inputs", "data_samples")}
    with torch.no_grad():
        found = model(**model.data_preprocessor(inputs), mode="predict")
    metric.dataset_meta = data.metainfo
    metric.process(None, [s.to_dict() for s in found])
    return metric.evaluate(1)


@pytest.mark.slow
def test_instances_of_the_held_out_quadrant(nuclei):
    """Boxes and masks at AP50 of at least 0.5."""
    train, held_out = datasets(nuclei)
    found = scores(trained("mask_rcnn_nano", train, 300), held_out, CocoMasks())
    assert found["coco/mask_AP50"] >= 0.5
    assert found["coco/AP50"] >= 0.5


@pytest.mark.slow
def test_boxes_of_the_held_out_quadrant(nuclei):
    """Boxes of RetinaNet at AP50 of at least 0.5."""
    train, held_out = datasets(nuclei)
    assert scores(trained("retinanet_nano", train, 300), held_out, CocoBoxes())["coco/AP50"] >= 0.5


def test_windows_share_no_pixel_with_the_held_out_quadrant(nuclei):
    train, held_out = datasets(nuclei)
    assert len(train) == 33
    for index in range(len(train)):
        y, x = (int(v) for v in train.path_of(index).split("_"))
        assert y + CROP <= HALF or x + CROP <= HALF
    assert 15 < len(held_out.table.labels) < 60
    sample = held_out[0]["data_samples"]
    assert (sample.gt_instances.masks.flatten(1).sum(1) >= 20).all()
