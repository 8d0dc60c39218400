"""Key points of objects: where corners and centres are, which of them are read, and what they learn from.

RelationNet++ (arXiv:2010.15831), sections 3.2 and 3.4. Authors' code: github.com/microsoft/RelationNet2 (MIT); this
follows the paper and recorded results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.detection.conv_tower import prediction, tower
from zoo.detection.deformable_transformer import gather_tokens
from zoo.detection.layers import classifier_bias

TYPES = ("top_left_corner", "bottom_right_corner", "center")


def grid_points(size: tuple[int, int] | torch.Size, stride: int, like: Tensor) -> Tensor:
    """Points of a map in pixels of the image, ``[H * W, 2]`` (x, y): whole strides and half a stride, rounded down."""
    height, width = size
    y = torch.arange(height, device=like.device, dtype=like.dtype) * stride + stride // 2
    x = torch.arange(width, device=like.device, dtype=like.dtype) * stride + stride // 2
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)


def box_points(boxes: Tensor, kind: str) -> Tensor:
    """The key points of one type of boxes ``[N, 4]`` (corners): ``[N, 2]``."""
    if kind == "top_left_corner":
        return boxes[:, :2]
    if kind == "bottom_right_corner":
        return boxes[:, 2:]
    return (boxes[:, :2] + boxes[:, 2:]) * 0.5


class Keypoints(NamedTuple):
    """The best key points of one map: ``scores [B, K]``, ``positions [B, K, 2]`` in pixels, ``indices [B, K]``."""

    scores: Tensor
    positions: Tensor
    indices: Tensor


class KeypointHead(nn.Module):
    """Classes and offsets of each type of key points at every point of every map.

    Args:
        num_classes: classes of objects.
        dim: channels C of maps and towers.
        strides: of the maps.
        types: of :data:`TYPES`.
        shared_convs: convolutions for all types together.
        convs: further convolutions for each type.
        logits_convs: further convolutions for classes and for offsets.
        groups: of the group normalisation; None for none.

    Raises:
        ValueError: an unknown type.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        types: Sequence[str] = TYPES,
        shared_convs: int = 0,
        convs: int = 2,
        logits_convs: int = 1,
        groups: int | None = 32,
    ):
        super().__init__()
        if not types or not set(types) <= set(TYPES):
            raise ValueError(f"types={tuple(types)}: accepted are {', '.join(TYPES)}")
        self.num_classes, self.strides, self.types = num_classes, tuple(strides), tuple(types)
        self.shared_layers = tower(dim, shared_convs, groups)
        self.keypoint_layers = nn.ModuleDict({t: tower(dim, convs, groups) for t in types})

        def branch(out_dim: int, bias: float) -> nn.Sequential:
            return nn.Sequential(*tower(dim, logits_convs, groups), prediction(dim, out_dim, bias))

        self.keypoint_cls_heads = nn.ModuleDict({t: branch(num_classes, classifier_bias()) for t in types})
        self.keypoint_offset_heads = nn.ModuleDict({t: branch(2, 0.0) for t in types})

    def forward(self, maps: Sequence[Tensor]) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """For each type and map logits ``[B, classes, H, W]`` and offsets in strides ``[B, 2, H, W]``."""
        logits: dict[str, list[Tensor]] = {t: [] for t in self.types}
        offsets: dict[str, list[Tensor]] = {t: [] for t in self.types}
        for x in maps:
            x = self.shared_layers(x)
            for t in self.types:
                own = self.keypoint_layers[t](x)
                logits[t].append(self.keypoint_cls_heads[t](own))
                offsets[t].append(self.keypoint_offset_heads[t](own))
        return logits, offsets


def best_keypoints(logits: Tensor, offsets: Tensor, stride: int, count: int) -> Keypoints:
    """The points of a map that score best among their neighbours, whatever their classes.

    Args:
        logits: ``[B, classes, H, W]``.
        offsets: ``[B, 2, H, W]``, in strides.
        stride: of the map.
        count: how many at most.
    """
    scores = logits.sigmoid()
    scores = torch.where(F.max_pool2d(scores, 3, 1, 1) == scores, scores, torch.zeros_like(scores)).flatten(2)
    count = min(count, scores.shape[-1])
    best, places = scores.topk(count, dim=-1)  # [B, classes, count]
    best, which = best.flatten(1).topk(count, dim=-1)
    indices = places.flatten(1).gather(1, which)
    points = grid_points(logits.shape[-2:], stride, offsets)[indices]  # [B, count, 2]
    return Keypoints(best, points + gather_tokens(offsets.flatten(2).transpose(1, 2), indices) * stride, indices)


def sample_keys(
    maps: Sequence[Tensor],
    found: Sequence[Keypoints],
    stride: int,
    method: str = "index",
    cross_level_topk: int = -1,
    cross_level_selection: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Features and positions of the key points that each map reads.

    Args:
        maps: each ``[B, C, H, W]``.
        found: key points of each map.
        stride: of the first map.
        method: "index" takes the feature of a point as it is, "interpolation" that at its exact position.
        cross_level_topk: the best of all maps are read by every map; with -1 each map reads its own.
        cross_level_selection: features are those of the map where a key point was found; otherwise each map samples
            itself at the positions.

    Returns:
        For each map ``[B, K, C]`` and ``[B, K, 2]``.
    """
    width, height = maps[0].shape[-1] * stride, maps[0].shape[-2] * stride

    def features(x: Tensor, positions: Tensor, indices: Tensor | None) -> Tensor:
        if method == "index" and indices is not None:
            return gather_tokens(x.flatten(2).transpose(1, 2), indices)
        grid = positions * 2.0 / positions.new_tensor([width, height]) - 1.0
        sampled = F.grid_sample(x, grid[:, None].to(x.dtype), align_corners=False, padding_mode="border")
        return sampled[:, :, 0].transpose(1, 2)

    if cross_level_topk <= 0:
        return [features(x, k.positions, k.indices) for x, k in zip(maps, found)], [k.positions for k in found]
    scores = torch.cat([k.scores for k in found], dim=1)
    best = scores.topk(min(cross_level_topk, scores.shape[1]), dim=1).indices
    positions = gather_tokens(torch.cat([k.positions for k in found], dim=1), best)
    if cross_level_selection:
        own = torch.cat([features(x, k.positions, k.indices) for x, k in zip(maps, found)], dim=1)
        return [gather_tokens(own, best)] * len(maps), [positions] * len(maps)
    return [features(x, positions, None) for x in maps], [positions] * len(maps)


def gaussian_radius(height: Tensor, width: Tensor, overlap: float) -> Tensor:
    """How far corners may move until boxes overlap less than this (CornerNet, arXiv:1808.01244, section 3.2).

    CornerNet's first code, which this repeats, divides all three solutions by 2a instead of two of them by 2.
    """
    total, area = height + width, height * width
    found = []
    for a, b, c, sign in (
        (1.0, total, area * (1 - overlap) / (1 + overlap), -1.0),
        (4.0, 2 * total, (1 - overlap) * area, -1.0),
        (4.0 * overlap, -2 * overlap * total, (overlap - 1) * area, 1.0),
    ):
        found.append((b + sign * (b**2 - 4 * a * c).sqrt()) / (2 * a))
    return torch.stack(found).amin(0)


def keypoint_targets(
    points: Sequence[Tensor],
    strides: Sequence[int],
    objects: Tensor,
    boxes: Tensor,
    labels: Tensor,
    num_classes: int,
    overlap: float = 0.7,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the points of an image learn for one type of key points.

    On each map the point nearest to a key point is positive, and scores fall off around it as a Gaussian of the size
    of the object.

    Args:
        points: of each map, ``[P_l, 2]``.
        strides: of the maps.
        objects: the objects' key points ``[N, 2]``.
        boxes, labels: of the objects, ``[N, 4]`` corners in pixels and ``[N]``.
        num_classes: classes.
        overlap: see :func:`gaussian_radius`.

    Returns:
        Scores ``[P, classes]``, offsets ``[P, 2]`` in strides, positives ``[P]`` (0 or 1), P over all maps.
    """
    all_points = torch.cat(list(points))
    P = len(all_points)
    scores, offsets = all_points.new_zeros(P, num_classes), all_points.new_zeros(P, 2)
    positive = all_points.new_zeros(P)
    if not len(boxes):
        return scores, offsets, positive
    sigma = (2 * gaussian_radius(boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0], overlap) + 1) / 6
    parts, first = [], 0
    for level in points:
        nearest = (level[:, None] - objects[None]).square().sum(-1).argmin(0)  # [N]
        distance = (level[:, None] - level[nearest][None]).square().sum(-1)  # [P_l, N]
        parts.append(torch.exp(-0.5 * distance / sigma**2))
        positive[first + nearest] = 1
        first += len(level)
    best, owner = torch.cat(parts).max(dim=1)
    scores[torch.arange(P, device=scores.device), labels[owner]] = best
    stride = torch.cat([p.new_full((len(p), 1), float(s)) for p, s in zip(points, strides)])
    offsets = torch.where(positive[:, None] > 0, (objects[owner] - all_points) / stride, offsets)
    return scores, offsets, positive


def gaussian_focal_loss(p: Tensor, target: Tensor, alpha: float = 2.0, gamma: float = 4.0) -> Tensor:
    """Focal loss for targets that fall off around 1 (CornerNet, arXiv:1808.01244, eq. 1), not reduced."""
    eps = 1e-12
    positive = -(p + eps).log() * (1 - p) ** alpha * (target == 1)
    return positive - (1 - p + eps).log() * p**alpha * (1 - target) ** gamma


def keypoint_losses(
    logits: Mapping[str, Sequence[Tensor]],
    offsets: Mapping[str, Sequence[Tensor]],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    strides: Sequence[int],
    overlap: float = 0.7,
    class_weight: float = 0.25,
    offset_weight: float = 1.0,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of all types of key points together, over their number of positive points.

    Args:
        logits, offsets: of :class:`KeypointHead`.
        boxes: of each image, corners in pixels ``[N, 4]``.
        labels: of each image, ``[N]``.
        strides: of the maps.
        overlap: see :func:`gaussian_radius`.
        class_weight, offset_weight: weights of the two losses.

    Returns:
        ``loss_point_cls`` and ``loss_point_offset``, weighted; and the targets ``score``, ``offset`` and ``pos``, type
        after type and image after image.
    """
    first = next(iter(logits.values()))
    points = [grid_points(x.shape[-2:], s, x.float()) for x, s in zip(first, strides)]
    found = [
        keypoint_targets(points, strides, box_points(b, t), b, c, first[0].shape[1], overlap)
        for t in logits
        for b, c in zip(boxes, labels)
    ]
    score, offset, positive = (torch.stack(parts) for parts in zip(*found))

    def joined(parts: Mapping[str, Sequence[Tensor]]) -> Tensor:
        return torch.cat([torch.cat([x.flatten(2) for x in maps], dim=2) for maps in parts.values()]).transpose(1, 2)

    count = positive.sum()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    count = count.clamp(min=1)
    classes, places = joined(logits).float().sigmoid(), joined(offsets).float()
    regression = F.smooth_l1_loss(places, offset, reduction="none") * positive[..., None]
    losses = {
        "loss_point_cls": class_weight * gaussian_focal_loss(classes, score).sum() / count,
        "loss_point_offset": offset_weight * regression.sum() / count,
    }
    return losses, {"score": score, "offset": offset, "pos": positive[..., None]}
