"""The ATSS head, Co-DETR's second auxiliary head: one anchor a pixel, and how near it is to the object's centre.

Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection
(arXiv:1912.02424); centre-ness: FCOS (arXiv:1904.01355), eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from zoo.detection.co_anchors import Anchors, Offsets
from zoo.detection.co_assign import assign_atss
from zoo.detection.co_postprocess import best_of_classes
from zoo.detection.co_rpn import flat
from zoo.detection.layers import classifier_bias


class ATSSHead(nn.Module):
    """Classes, boxes and centre-ness of every pixel.

    Args:
        num_classes: classes.
        channels: of the maps and of the hidden convolutions.
        strides: image pixels a pixel of each map.
        convolutions: hidden ones of either branch.
        groups: groups of their normalisation.
        nearest: anchors of a level that are candidates for an object.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 256,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        convolutions: int = 1,
        groups: int = 32,
        nearest: int = 9,
    ):
        super().__init__()
        self.num_classes, self.nearest = num_classes, nearest
        self.anchors = Anchors(strides, 8, 1, (1.0,))
        self.offsets = Offsets((0.1, 0.1, 0.2, 0.2))
        self.classes, self.places = (
            nn.Sequential(*(self._hidden(channels, groups) for _ in range(convolutions))) for _ in range(2)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.locate = nn.Conv2d(channels, 4, 3, padding=1)
        self.centre = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in strides)
        for layer in (self.classifier, self.locate, self.centre):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, classifier_bias() if layer is self.classifier else 0.0)  # type: ignore[arg-type]

    @staticmethod
    def _hidden(channels: int, groups: int) -> nn.Sequential:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=0.01)
        return nn.Sequential(conv, nn.GroupNorm(groups, channels), nn.ReLU())

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Maps ``[B, C, H, W]`` to logits ``[B, classes, H, W]``, offsets ``[B, 4, H, W]``, centre-ness
        ``[B, 1, H, W]``."""
        logits = [self.classifier(self.classes(m)) for m in maps]
        hidden = [self.places(m) for m in maps]
        offsets = [self.locate(h) * s for h, s in zip(hidden, self.scales)]
        return logits, offsets, [self.centre(h) for h in hidden]

    @torch.no_grad()
    def targets(
        self, maps: Sequence[Tensor], sizes: Tensor, objects: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Any]:
        """What pixels shall say.

        Args:
            maps: each ``[B, C, H, W]``.
            sizes: height and width of each image without padding, ``[B, 2]``.
            objects, labels: corners in pixels ``[G, 4]`` and classes ``[G]`` of each image.

        Returns:
            ``anchors [B, N, 4]``, zero in the padding, ``labels [B, N]`` (``num_classes`` for background), ``targets
            [B, N, 4]``, corners in pixels, ``inside [B, N]``, and ``count``, the positives, at least one an image.
        """
        levels = self.anchors.of(maps)
        anchors, inside = torch.cat(levels), self.anchors.inside(maps, sizes)
        wanted = anchors.new_zeros(*inside.shape, 4)
        classes, count = torch.full_like(inside, self.num_classes, dtype=torch.int64), 0
        for i, (boxes, own) in enumerate(zip(objects, labels)):
            usable = inside[i].nonzero()[:, 0]
            counts = [int(part.sum()) for part in inside[i].split([len(a) for a in levels])]
            assigned = assign_atss(anchors[usable], counts, boxes, self.nearest)
            yes = (assigned >= 0).nonzero()[:, 0]
            where = usable[yes]
            classes[i, where], wanted[i, where] = own[assigned[yes]], boxes[assigned[yes]]
            count += max(len(yes), 1)
        return {
            "anchors": anchors * inside[..., None],
            "labels": classes,
            "targets": wanted,
            "inside": inside,
            "count": count,
            "sizes": [len(a) for a in levels],
        }

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        sizes: Tensor,
        count: int = 100,
        before: int = 1000,
        threshold: float = 0.0,
        overlap: float = 0.6,
    ) -> list[dict[str, Tensor]]:
        """Objects of each image.

        Args:
            maps: each ``[B, C, H, W]``.
            sizes: height and width of each image without padding, ``[B, 2]``.
            count: objects of an image at most.
            before: pairs of pixel and class of a level before suppression.
            threshold: least score, before it is multiplied by the centre-ness.
            overlap: suppress boxes that overlap a better one of their class more than this.

        Returns:
            For each image ``scores``, ``labels`` and ``boxes`` (corners in pixels), best first.
        """
        logits, offsets, centre = self(maps)
        levels = list(zip(flat(logits, self.num_classes), flat(offsets, 4), flat(centre, 1), self.anchors.of(maps)))
        found = []
        for i, size in enumerate(sizes.tolist()):
            scores, boxes, factors = [], [], []
            for c, o, n, a in levels:
                score = c[i].sigmoid()
                # Pairs below the level's best are dropped by a score of zero below the threshold.
                if score.numel() > before:
                    kept = score.flatten().sort(descending=True).indices[:before]
                    best = torch.full_like(score, -1.0).flatten()
                    best[kept] = score.flatten()[kept]
                    score = best.view_as(score)
                scores.append(score)
                boxes.append(clip_boxes_to_image(self.offsets.apply(o[i], a), size))
                factors.append(n[i, :, 0].sigmoid())
            found.append(
                best_of_classes(
                    torch.cat(boxes)[:, None], torch.cat(scores), torch.cat(factors), threshold, overlap, count
                )
            )
        return found


def centre_ness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central the anchors' middles are in the boxes, ``[N]`` from corners ``[N, 4]``, 1 in the centre."""
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    low, high = middle - boxes[:, :2], boxes[:, 2:] - middle  # [N, 2]
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(-1).sqrt()
