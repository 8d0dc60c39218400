"""Segmentation and detection in the arena: small heads over the hosts' maps, on generated shapes.

The scenes, the neck and the optimizer are the same for both tasks and for every mixer. The neck brings all maps of a
host to a quarter of the image's size and adds them up (Semantic FPN, arXiv:1901.02446, section 3.1, reduced to a
convolution a map). Segmentation classifies each cell; detection is FCOS (arXiv:1904.01355) at one level, without its
centerness: cells near the centre of a box predict its class and its four distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.arena.grid import TASKS, Job, Settings, build_host
from zoo.arena.store import Row
from zoo.arena.train import _groups, _statistics, _to_tensor, fit
from zoo.data.shapes import SHAPE_CLASSES, Shapes
from zoo.files import save_atomically

#: the kinds of shapes, the first of SHAPE_CLASSES
NUM_SHAPES = 5
TRAIN_IMAGES, TEST_IMAGES = 400, 100
#: images are at least so large; shapes of fewer pixels cannot be told apart
MIN_SIZE = 64
#: passes over the data for each of the settings' epochs: there are fewer images than digits
PASSES = 2
_BATCH = 16
_STRIDE = 4
_DIM = 64
_EVAL_BATCH = 50
_MOST = 8  # objects of a scene


@dataclass(frozen=True)
class Scenes:
    """Generated scenes of one size.

    Attributes:
        images: uint8 ``[N, S, S, 3]``.
        semantic: uint8 ``[N, S, S]``, 0 for the background and 1 to 5 for the shapes.
        boxes: float32 ``[N, 8, 4]`` corners in pixels.
        labels: int64 ``[N, 8]``, 0 to 4; -1 where there is no object.
    """

    images: np.ndarray
    semantic: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


class DenseNet(nn.Module):
    """A host, the neck over its maps, and a head of two convolutions.

    Args:
        backbone: gives ``forward_features`` and ``out_channels``.
        out_dim: channels of the result.
    """

    def __init__(self, backbone: Any, out_dim: int):
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList(nn.Conv2d(c, _DIM, 1) for c in backbone.out_channels)
        self.head = nn.Sequential(
            nn.GroupNorm(8, _DIM),
            nn.ReLU(),
            nn.Conv2d(_DIM, _DIM, 3, padding=1),
            nn.GroupNorm(8, _DIM),
            nn.ReLU(),
            nn.Conv2d(_DIM, out_dim, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]`` to ``[B, out_dim, S / 4, S / 4]``."""
        maps = self.backbone.forward_features(images)
        size = [-(-n // _STRIDE) for n in images.shape[-2:]]
        x: Any = 0
        for conv, m in zip(self.lateral, maps):
            x = x + F.interpolate(conv(m), size, mode="bilinear", align_corners=False)
        return self.head(x)


class _Dense:
    """What both tasks share: scenes, training, errors as rows."""

    name = ""

    @staticmethod
    def prepare(settings: Settings, path: Path) -> None:
        """Write the scenes that all jobs share; what is there already is kept."""
        if path.is_file():
            return
        parts = {"train": min(TRAIN_IMAGES, settings.max_train), "test": min(TEST_IMAGES, settings.max_test)}
        arrays: dict[str, Any] = {}
        for split, count in parts.items():
            scenes = draw_scenes(split, count, max(MIN_SIZE, settings.image_size))
            arrays |= {f"{split}.{k}": v for k, v in vars(scenes).items()}
        save_atomically(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def rows(cls, settings: Settings, job: Job, path: Path) -> Iterator[Row]:
        """Train with each seed; a seed that fails is a row with its error."""
        with np.load(path, allow_pickle=False) as stored:
            train, test = (
                Scenes(**{k.partition(".")[2]: stored[k] for k in stored.files if k.startswith(f"{split}.")})
                for split in ("train", "test")
            )
        for seed in settings.seeds:
            try:
                found = cls.train_once(settings, job.host, job.mixer, train, test, seed)
            except Exception as error:
                yield Row(cls.measures()[0], error=f"{type(error).__name__}: {error}", seed=seed)
                continue
            for measure, value in found.items():
                yield Row(measure, value, seed=seed)

    @classmethod
    def train_once(
        cls, settings: Settings, host: str, mixer: Any, train: Scenes, test: Scenes, seed: int
    ) -> dict[str, float]:
        """Train a host with a mixer once and measure it: the task's measures in per cent, ``<task>_loss`` (mean over
        the last pass) and ``<task>_s``.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        size = train.images.shape[1]
        backbone = build_host(host, mixer, num_classes=0, image_size=size, small=True)
        model = DenseNet(backbone, cls.out_dim()).to(device)
        mean, std = _statistics(train.images, device)
        images = _to_tensor(train.images, device)
        targets = cls.targets(train, device)
        rate = settings.learning_rate / 2
        optimizer = torch.optim.AdamW(_groups(model), lr=rate, weight_decay=0.05)

        def loss_of(chosen: Tensor) -> Tensor:
            rows = chosen.to(device)
            output = model((images[rows].float() / 255 - mean) / std)
            return cls.loss(output, [t[rows] for t in targets])

        generator = torch.Generator().manual_seed(seed)
        losses, seconds = fit(model, optimizer, loss_of, len(images), _BATCH, PASSES * settings.epochs, rate, generator)
        with torch.no_grad():
            parts = _to_tensor(test.images, device).split(_EVAL_BATCH)
            outputs = torch.cat([model((p.float() / 255 - mean) / std) for p in parts])
        found = cls.evaluate(outputs, test)
        return {**found, f"{cls.name}_loss": float(np.mean(losses)), f"{cls.name}_s": seconds}

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        """Names of what is measured, the most telling first."""
        raise NotImplementedError

    @classmethod
    def out_dim(cls) -> int:
        """Channels that the head gives."""
        raise NotImplementedError

    @classmethod
    def targets(cls, scenes: Scenes, device: torch.device) -> list[Tensor]:
        """What the outputs are compared with; the first dimension is that of the images."""
        raise NotImplementedError

    @classmethod
    def loss(cls, output: Tensor, targets: list[Tensor]) -> Tensor:
        """The loss of a batch."""
        raise NotImplementedError

    @classmethod
    def evaluate(cls, outputs: Tensor, scenes: Scenes) -> dict[str, float]:
        """The measures, in per cent, of the outputs for all images."""
        raise NotImplementedError


@TASKS.register(name="segmentation")
class Segmentation(_Dense):
    """The class of each pixel, five shapes and the background: mIoU on held-out scenes."""

    name = "segmentation"

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("mIoU",)

    @classmethod
    def out_dim(cls) -> int:
        return NUM_SHAPES + 1

    @classmethod
    def targets(cls, scenes: Scenes, device: torch.device) -> list[Tensor]:
        return [torch.from_numpy(scenes.semantic).to(device)]

    @classmethod
    def loss(cls, output: Tensor, targets: list[Tensor]) -> Tensor:
        labels = targets[0].long()
        logits = F.interpolate(output, labels.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, labels)

    @classmethod
    def evaluate(cls, outputs: Tensor, scenes: Scenes) -> dict[str, float]:
        from zoo.metrics.semantic import PixelTotals, count_pairs

        totals = PixelTotals(NUM_SHAPES + 1)
        for output, truth in zip(outputs, scenes.semantic):
            logits = F.interpolate(output[None], truth.shape, mode="bilinear", align_corners=False)[0]
            totals.add(count_pairs(logits.argmax(0).byte().cpu().numpy(), truth, NUM_SHAPES + 1))
        return {"mIoU": 100 * totals.result().stats["mIoU"]}


@TASKS.register(name="detection")
class Detection(_Dense):
    """Boxes of five shapes: COCO's AP on held-out scenes."""

    name = "detection"

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("AP", "AP50")

    @classmethod
    def out_dim(cls) -> int:
        return NUM_SHAPES + 4

    @classmethod
    def targets(cls, scenes: Scenes, device: torch.device) -> list[Tensor]:
        side = -(-scenes.images.shape[1] // _STRIDE)
        parts = [assign(b, n, side) for b, n in zip(scenes.boxes, scenes.labels)]
        return [torch.from_numpy(np.stack([p[i] for p in parts])).to(device) for i in range(2)]

    @classmethod
    def loss(cls, output: Tensor, targets: list[Tensor]) -> Tensor:
        from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

        labels, boxes = targets  # [B, h, w], [B, h, w, 4]
        positive = labels >= 0
        classes = F.one_hot(labels.clamp(min=0), NUM_SHAPES).float() * positive[..., None]
        # Shifted, so that nearly no cell finds an object at the start (the prior of arXiv:1708.02002, section 4.1).
        logits = output[:, :NUM_SHAPES].permute(0, 2, 3, 1) - 4.0
        count = positive.sum().clamp(min=1)
        focal = sigmoid_focal_loss(logits, classes, reduction="sum") / count
        found = decode_boxes(output[:, NUM_SHAPES:])
        return focal + generalized_box_iou_loss(found[positive], boxes[positive], reduction="sum") / count

    @classmethod
    def evaluate(cls, outputs: Tensor, scenes: Scenes) -> dict[str, float]:
        from zoo.metrics.coco import coco_predictions, coco_truth, evaluate_boxes

        size = scenes.images.shape[1]
        ids = list(range(1, NUM_SHAPES + 1))
        pairs, predictions = [], []
        for i, (output, boxes, labels) in enumerate(zip(outputs.float().cpu(), scenes.boxes, scenes.labels)):
            there = labels >= 0
            corners = boxes[there].astype(np.float64)
            sides = corners[:, 2:] - corners[:, :2]
            truth = {
                "boxes": np.concatenate([corners[:, :2], sides], axis=1).tolist(),
                "labels": labels[there].tolist(),
                "areas": sides.prod(1).tolist(),
                "crowd": [0] * int(there.sum()),
            }
            pairs.append(({"id": i + 1, "height": size, "width": size}, truth))
            predictions += coco_predictions(i + 1, find_boxes(output, size), ids)
        stats = evaluate_boxes(coco_truth(pairs, SHAPE_CLASSES[:NUM_SHAPES], ids), predictions).stats
        return {"AP": 100 * stats["AP"], "AP50": 100 * stats["AP50"]}


def draw_scenes(split: str, count: int, size: int) -> Scenes:
    """Scenes of one to four of five shapes, partly hidden by each other and by bars."""
    shapes = Shapes(split, count, size, objects=(1, 4), classes=SHAPE_CLASSES[:NUM_SHAPES])
    boxes, labels = np.zeros((count, _MOST, 4), np.float32), np.full((count, _MOST), -1, np.int64)
    images, semantic = [], []
    for i in range(count):
        scene = shapes.scene(i)
        images.append(scene.image)
        semantic.append(scene.semantic)
        boxes[i, : len(scene.labels)], labels[i, : len(scene.labels)] = scene.boxes, scene.labels
    return Scenes(np.stack(images), np.stack(semantic), boxes, labels)


def assign(boxes: np.ndarray, labels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Which object each cell is to find: labels ``[side, side]`` (-1: none) and boxes ``[side, side, 4]``.

    A cell belongs to a box if its centre is in it and at most one and a half cells away from the box's centre; of
    several boxes to the smallest.
    """
    centre = (np.arange(side) + 0.5) * _STRIDE
    found, at = np.full((side, side), -1, np.int64), np.zeros((side, side, 4), np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for k in sorted(np.flatnonzero(labels >= 0), key=lambda k: -areas[k]):  # the smallest last: it stays
        x0, y0, x1, y1 = boxes[k]
        near = 1.5 * _STRIDE
        columns = (centre > x0) & (centre < x1) & (np.abs(centre - (x0 + x1) / 2) <= near)
        rows = (centre > y0) & (centre < y1) & (np.abs(centre - (y0 + y1) / 2) <= near)
        cells = rows[:, None] & columns[None]
        found[cells], at[cells] = labels[k], boxes[k]
    return found, at


def decode_boxes(output: Tensor) -> Tensor:
    """Corners ``[B, h, w, 4]`` in pixels, of distances ``[B, 4, h, w]`` (left, top, right, bottom) from cells."""
    reach = F.softplus(output.permute(0, 2, 3, 1)) * 2 * _STRIDE
    y, x = ((torch.arange(n, device=output.device) + 0.5) * _STRIDE for n in output.shape[-2:])
    centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # [h, w, 2]
    return torch.cat([centre - reach[..., :2], centre + reach[..., 2:]], dim=-1)


def find_boxes(output: Tensor, size: int, keep: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``[n, 4]``, scores ``[n]`` and labels ``[n]`` of an image from ``[5 + 4, h, w]``, overlapping ones of a
    class left out."""
    from torchvision.ops import batched_nms

    scores, labels = (output[:NUM_SHAPES] - 4.0).sigmoid().flatten(1).max(0)
    boxes = decode_boxes(output[None, NUM_SHAPES:])[0].flatten(0, 1).clamp(0, size)
    best = scores.topk(min(200, len(scores))).indices
    chosen = best[batched_nms(boxes[best], scores[best], labels[best], 0.6)[:keep]]
    return boxes[chosen], scores[chosen], labels[chosen]
