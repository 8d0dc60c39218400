"""What the predictions of dense heads mean and what they learn: anchors and points, assignment, losses, boxes.

RetinaNet (arXiv:1708.02002), FCOS (arXiv:1904.01355) and ATSS (arXiv:1912.02424), on torchvision's anchors, box coder
and losses. Losses and assignment follow the settings of RelationNet++'s authors, which train on mmdetection; where
torchvision differs (it rounds anchors, and gives an anchor that is an object's best to the object that it overlaps
most), theirs are taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from zoo.detection.dense_heads import Predictions

#: losses by name, one for each map
Losses = dict[str, list[Tensor]]


def over_processes(count: Tensor) -> Tensor:
    """The mean of a number over all processes."""
    if dist.is_available() and dist.is_initialized():
        count = count.clone()
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count


class Anchors(AnchorGenerator):
    """torchvision's anchors without rounding.

    Args:
        strides: of the maps.
        base_scale: side of the smallest anchor over the stride.
        scales_per_octave: sizes between a size and its double.
        ratios: height over width.
    """

    def __init__(
        self, strides: Sequence[int], base_scale: float, scales_per_octave: int, ratios: Sequence[float] = (1.0,)
    ):
        sizes = tuple(
            tuple(s * base_scale * 2 ** (i / scales_per_octave) for i in range(scales_per_octave)) for s in strides
        )
        super().__init__(sizes, (tuple(ratios),) * len(sizes))
        self.map_strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (as torchvision has it)
    ) -> Tensor:
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        root = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        half_w, half_h = (sizes / root[:, None]).flatten() / 2, (sizes * root[:, None]).flatten() / 2
        return torch.stack([-half_w, -half_h, half_w, half_h], dim=1)

    def of(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of each map as corners in pixels, ``[H * W * A, 4]``."""
        like = maps[0]
        self.set_cell_anchors(torch.float32, like.device)
        strides = [[torch.tensor(s, device=like.device)] * 2 for s in self.map_strides]
        return list(self.grid_anchors([list(x.shape[-2:]) for x in maps], strides))


def tokens(x: Tensor, size: int) -> Tensor:
    """``[B, anchors * size, H, W] -> [B, H * W * anchors, size]``."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, size)


def assign_by_overlap(anchors: Tensor, boxes: Tensor, high: float = 0.5, low: float = 0.4) -> Tensor:
    """RetinaNet's assignment: the object of each anchor, -1 for background, -2 for neither, ``[A]``.

    An object also gets all anchors that overlap it as much as its best one does, whatever else they overlap.
    """
    if not len(boxes):
        return anchors.new_full((len(anchors),), -1, dtype=torch.int64)
    overlap = box_iou(boxes, anchors)  # [N, A]
    best, owner = overlap.max(0)
    found = torch.where(best >= high, owner, torch.where(best < low, -1, -2))
    for i, row in enumerate(overlap):
        found = torch.where((row == row.max()) & (row > 0), i, found)
    return found


def assign_adaptively(anchors: Sequence[Tensor], boxes: Tensor, count: int = 9) -> Tensor:
    """ATSS's assignment (arXiv:1912.02424, algorithm 1), -1 for background, ``[A]``."""
    together = torch.cat(list(anchors))
    found = together.new_full((len(together),), -1, dtype=torch.int64)
    if not len(boxes):
        return found
    overlap = box_iou(together, boxes)  # [A, N]
    centre = (together[:, :2] + together[:, 2:]) / 2
    distance = (centre[:, None] - ((boxes[:, :2] + boxes[:, 2:]) / 2)[None]).square().sum(-1).sqrt()  # [A, N]
    candidates, first = [], 0
    for level in anchors:
        part = distance[first : first + len(level)]
        candidates.append(part.topk(min(count, len(level)), dim=0, largest=False).indices + first)
        first += len(level)
    chosen = torch.cat(candidates)  # [K, N]
    values = overlap.gather(0, chosen)
    threshold = values.mean(0) + (values.std(0) if len(values) > 1 else 0.0)
    sides = torch.cat([centre[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - centre[:, None]], dim=-1)
    inside = sides.amin(-1).gather(0, chosen) > 0.01
    good = (values >= threshold) & inside
    kept = torch.full_like(overlap, -math.inf)
    kept.scatter_(0, chosen, torch.where(good, values, torch.full_like(values, -math.inf)))
    best, owner = kept.max(1)
    return torch.where(best > -math.inf, owner, found)


def one_hot(owner: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Classes of assigned points, ``[A, classes]`` of 0 and 1."""
    wanted = torch.zeros(len(owner), classes, device=owner.device)
    positive = (owner >= 0).nonzero()[:, 0]
    wanted[positive, labels[owner[positive]]] = 1.0
    return wanted


def centerness(sides: Tensor) -> Tensor:
    """How central a point is, from its distances (left, top, right, bottom) ``[N, 4]`` to the sides of its box."""
    horizontal, vertical = sides[:, 0::2], sides[:, 1::2]
    return (horizontal.amin(1) / horizontal.amax(1) * (vertical.amin(1) / vertical.amax(1))).clamp(min=0).sqrt()


class RetinaTask:
    """RetinaNet's anchors, targets and boxes.

    Args:
        num_classes: classes.
        strides: of the maps.
        base_scale, scales_per_octave, ratios: see :class:`Anchors`.
    """

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[int],
        base_scale: float = 4.0,
        scales_per_octave: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ):
        self.num_classes = num_classes
        self.anchors = Anchors(strides, base_scale, scales_per_octave, ratios)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def losses(self, predictions: Predictions, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Losses:
        """``loss_cls`` (focal) and ``loss_bbox`` (L1), over the number of positive anchors.

        Args:
            predictions: of a head.
            boxes, labels: of each image, corners in pixels ``[N, 4]`` and ``[N]``.
        """
        levels = self.anchors.of(predictions["cls"])
        together, sizes = torch.cat(levels), [len(a) for a in levels]
        owners = [assign_by_overlap(together, b) for b in boxes]
        count = sum((o >= 0).sum().clamp(min=1) for o in owners)
        cls = torch.cat([tokens(x, self.num_classes) for x in predictions["cls"]], 1).float()
        reg = torch.cat([tokens(x, 4) for x in predictions["reg"]], 1).float()
        wanted = torch.stack([one_hot(o, c, self.num_classes) for o, c in zip(owners, labels)])
        counted = torch.stack([o > -2 for o in owners])[..., None]
        class_loss = sigmoid_focal_loss(cls, wanted) * counted
        box_loss = torch.zeros_like(reg)
        for i, (owner, b) in enumerate(zip(owners, boxes)):
            positive = (owner >= 0).nonzero()[:, 0]
            deltas = self.coder.encode_single(b[owner[positive]], together[positive])
            box_loss[i, positive] = (reg[i, positive] - deltas).abs()
        return {
            "loss_cls": [x.sum() / count for x in class_loss.split(sizes, 1)],
            "loss_bbox": [x.sum() / count for x in box_loss.split(sizes, 1)],
        }

    def boxes(self, predictions: Predictions) -> list[Tensor]:
        """Corners in pixels of each map, ``[B, H * W * A, 4]``."""
        found = []
        for x, anchors in zip(predictions["reg"], self.anchors.of(predictions["cls"])):
            deltas = tokens(x, 4).float()
            decoded = self.coder.decode_single(deltas.flatten(0, 1), anchors.repeat(len(deltas), 1))
            found.append(decoded.unflatten(0, deltas.shape[:2]))
        return found


class FCOSTask:
    """FCOS's points, targets and boxes.

    Args:
        num_classes: classes.
        strides: of the maps.
        norm_on_bbox: see :class:`zoo.detection.dense_heads.FCOSHead`.
        radius: points within this many strides of an object's centre are positive, where they are inside of it.
        smallest: pixels; each map takes objects whose farthest side is up to this far, and twice that on the next one.
    """

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[int],
        norm_on_bbox: bool = True,
        radius: float = 1.5,
        smallest: float = 64.0,
    ):
        self.num_classes, self.strides = num_classes, tuple(strides)
        self.norm_on_bbox, self.radius = norm_on_bbox, radius
        bounds = [-1.0, *(smallest * 2**i for i in range(len(self.strides) - 1)), 1e8]
        self.ranges = list(zip(bounds[:-1], bounds[1:]))

    def points(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The middles of the pixels of each map, ``[H * W, 2]``."""
        found = []
        for x, stride in zip(maps, self.strides):
            height, width = x.shape[-2:]
            rows = (torch.arange(height, device=x.device, dtype=torch.float32) + 0.5) * stride
            columns = (torch.arange(width, device=x.device, dtype=torch.float32) + 0.5) * stride
            grid = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], dim=-1)
            found.append(grid.flatten(0, 1))
        return found

    def assign(self, points: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The smallest object that a point can take, -1 for none, ``[P]``."""
        together = torch.cat(list(points))
        if not len(boxes):
            return together.new_full((len(together),), -1, dtype=torch.int64)
        sides = torch.cat([together[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - together[:, None]], dim=-1)
        reach = torch.cat([p.new_full((len(p), 1), self.radius * s) for p, s in zip(points, self.strides)])
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        near = (together[:, None] - centre[None]).abs().amax(-1) < reach
        inside = near & (sides.amin(-1) > 0)
        low, high = (torch.cat([p.new_full((len(p), 1), r[i]) for p, r in zip(points, self.ranges)]) for i in range(2))
        farthest = sides.amax(-1)
        inside &= (farthest >= low) & (farthest <= high)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        smallest, owner = torch.where(inside, area[None], math.inf).min(1)
        return torch.where(smallest < math.inf, owner, -1)

    def losses(self, predictions: Predictions, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Losses:
        """``loss_cls`` (focal), ``loss_bbox`` (generalised IoU, weighted by the centerness) and ``loss_centerness``."""
        levels = self.points(predictions["cls"])
        points = torch.cat(levels)
        stride = torch.cat([p.new_full((len(p), 1), float(s)) for p, s in zip(levels, self.strides)])
        cls = torch.cat([tokens(x, self.num_classes) for x in predictions["cls"]], 1).float()
        reg = torch.cat([tokens(x, 4) for x in predictions["reg"]], 1).float()
        central = torch.cat([tokens(x, 1) for x in predictions["centerness"]], 1).float()[..., 0]
        owners = [self.assign(levels, b) for b in boxes]
        count = over_processes(torch.stack([(o >= 0).sum() for o in owners]).sum().float()).clamp(min=1)
        wanted = torch.stack([one_hot(o, c, self.num_classes) for o, c in zip(owners, labels)])
        found, targets, weights, logits = [], [], [], []
        for i, (owner, b) in enumerate(zip(owners, boxes)):
            positive = (owner >= 0).nonzero()[:, 0]
            place, goal, unit = points[positive], b[owner[positive]], stride[positive]
            sides = torch.cat([place - goal[:, :2], goal[:, 2:] - place], dim=1)
            distance = reg[i, positive] * (unit if self.norm_on_bbox else 1.0)
            found.append(torch.cat([place - distance[:, :2], place + distance[:, 2:]], dim=1))
            targets.append(goal)
            weights.append(centerness(sides))
            logits.append(central[i, positive])
        weight = torch.cat(weights)
        overlap = generalized_box_iou_loss(torch.cat(found), torch.cat(targets)) * weight
        total = over_processes(weight.sum()).clamp(min=1e-6)
        return {
            "loss_cls": [sigmoid_focal_loss(cls, wanted, reduction="sum") / count],
            "loss_bbox": [overlap.sum() / total],
            "loss_centerness": [F.binary_cross_entropy_with_logits(torch.cat(logits), weight, reduction="sum") / count],
        }

    def boxes(self, predictions: Predictions) -> list[Tensor]:
        """Corners in pixels of each map, ``[B, H * W, 4]``, from the predictions outside training."""
        found = []
        for x, points in zip(predictions["reg"], self.points(predictions["cls"])):
            d = tokens(x, 4).float()
            found.append(torch.cat([points - d[..., :2], points + d[..., 2:]], dim=-1))
        return found


class ATSSTask:
    """ATSS's anchors, targets and boxes.

    Args:
        num_classes: classes.
        strides: of the maps.
        base_scale: see :class:`Anchors`.
        candidates: anchors of each map nearest to an object that may be positive.
    """

    def __init__(self, num_classes: int, strides: Sequence[int], base_scale: float = 8.0, candidates: int = 9):
        self.num_classes, self.candidates = num_classes, candidates
        self.anchors = Anchors(strides, base_scale, 1)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def losses(self, predictions: Predictions, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Losses:
        """``loss_cls`` (focal), ``loss_bbox`` (twice the generalised IoU loss, weighted by the centerness) and
        ``loss_centerness``, each over all images for every map."""
        levels = self.anchors.of(predictions["cls"])
        together, sizes = torch.cat(levels), [len(a) for a in levels]
        owners = [assign_adaptively(levels, b, self.candidates) for b in boxes]
        count = over_processes(torch.stack([(o >= 0).sum().clamp(min=1) for o in owners]).sum().float()).clamp(min=1)
        cls = torch.cat([tokens(x, self.num_classes) for x in predictions["cls"]], 1).float()
        reg = torch.cat([tokens(x, 4) for x in predictions["reg"]], 1).float()
        central = torch.cat([tokens(x, 1) for x in predictions["centerness"]], 1).float()[..., 0]
        wanted = torch.stack([one_hot(o, c, self.num_classes) for o, c in zip(owners, labels)])
        class_loss = sigmoid_focal_loss(cls, wanted)
        box_loss, centre_loss = reg.new_zeros(reg.shape[:2]), reg.new_zeros(reg.shape[:2])
        total = reg.new_zeros(())
        for i, (owner, b) in enumerate(zip(owners, boxes)):
            positive = (owner >= 0).nonzero()[:, 0]
            anchors, goal = together[positive], b[owner[positive]]
            centre = (anchors[:, :2] + anchors[:, 2:]) / 2
            weight = centerness(torch.cat([centre - goal[:, :2], goal[:, 2:] - centre], dim=1))
            decoded = self.coder.decode_single(reg[i, positive], anchors)
            box_loss[i, positive] = 2.0 * generalized_box_iou_loss(decoded, goal) * weight
            centre_loss[i, positive] = F.binary_cross_entropy_with_logits(
                central[i, positive], weight, reduction="none"
            )
            total = total + weight.sum()
        total = over_processes(total).clamp(min=1)
        return {
            "loss_cls": [x.sum() / count for x in class_loss.split(sizes, 1)],
            "loss_bbox": [x.sum() / total for x in box_loss.split(sizes, 1)],
            "loss_centerness": [x.sum() / count for x in centre_loss.split(sizes, 1)],
        }

    def boxes(self, predictions: Predictions) -> list[Tensor]:
        """Corners in pixels of each map, ``[B, H * W, 4]``."""
        found = []
        for x, anchors in zip(predictions["reg"], self.anchors.of(predictions["cls"])):
            deltas = tokens(x, 4).float()
            decoded = self.coder.decode_single(deltas.flatten(0, 1), anchors.repeat(len(deltas), 1))
            found.append(decoded.unflatten(0, deltas.shape[:2]))
        return found


#: by the name of the head
TASKS: dict[str, type[RetinaTask] | type[FCOSTask] | type[ATSSTask]] = {
    "retina": RetinaTask,
    "fcos": FCOSTask,
    "atss": ATSSTask,
}
