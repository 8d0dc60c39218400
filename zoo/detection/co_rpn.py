"""The region proposal network of Co-DETR's first auxiliary head.

Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks (arXiv:1506.01497), section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image

from zoo.detection.co_anchors import Anchors, Offsets
from zoo.detection.co_assign import Permutation, assign_by_overlap, sample


def flat(maps: Sequence[Tensor], width: int) -> list[Tensor]:
    """Maps ``[B, A * width, H, W]`` to ``[B, H * W * A, width]`` in float32, anchors of a pixel together."""
    return [m.float().permute(0, 2, 3, 1).reshape(len(m), -1, width) for m in maps]


class RPN(nn.Module):
    """Scores and offsets of anchors, proposals, and what to learn from.

    Args:
        in_channels: of the maps.
        channels: of the hidden convolution.
        strides: image pixels a pixel of each map.
        octaves: sizes an octave of the anchors.
        before, keep: proposals of a level before suppression, and of an image after it, in training.
        samples: anchors of an image that the losses see.
    """

    def __init__(
        self,
        in_channels: int = 256,
        channels: int = 256,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        octaves: int = 3,
        before: int = 4000,
        keep: int = 1000,
        samples: int = 256,
    ):
        super().__init__()
        self.anchors = Anchors(strides, 4, octaves, (0.5, 1.0, 2.0))
        self.offsets = Offsets()
        self.before, self.keep, self.samples = before, keep, samples
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.classify = nn.Conv2d(channels, self.anchors.per_location, 1)
        self.locate = nn.Conv2d(channels, self.anchors.per_location * 4, 1)
        for layer in (self.conv, self.classify, self.locate):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps ``[B, C, H, W]`` to logits ``[B, A, H, W]`` and offsets ``[B, A * 4, H, W]``."""
        hidden = [F.relu(self.conv(m)) for m in maps]
        return [self.classify(h) for h in hidden], [self.locate(h) for h in hidden]

    @torch.no_grad()
    def proposals(
        self, logits: Sequence[Tensor], offsets: Sequence[Tensor], sizes: Tensor, before: int, keep: int
    ) -> list[Tensor]:
        """The best boxes of each image.

        Args:
            logits, offsets: as of :meth:`forward`.
            sizes: height and width of each image without padding, ``[B, 2]``.
            before: of a level before suppression.
            keep: of an image after it.

        Returns:
            For each image corners in pixels and scores ``[K, 5]``, best first.
        """
        anchors = self.anchors.of(logits)
        scores = [s[..., 0].sigmoid() for s in flat(logits, 1)]
        found = []
        for i, (height, width) in enumerate(sizes.tolist()):
            score, box, level = [], [], []
            for number, (s, o, a) in enumerate(zip(scores, flat(offsets, 4), anchors)):
                top = s[i].sort(descending=True).indices[:before]
                score.append(s[i][top])
                box.append(self.offsets.apply(o[i][top], a[top]))
                level.append(torch.full_like(top, number))
            boxes = clip_boxes_to_image(torch.cat(box), (height, width))
            all_scores, levels = torch.cat(score), torch.cat(level)
            large = (boxes[:, 2:] > boxes[:, :2]).all(1)
            boxes, all_scores, levels = boxes[large], all_scores[large], levels[large]
            best = batched_nms(boxes, all_scores, levels, 0.7)[:keep]
            found.append(torch.cat([boxes[best], all_scores[best, None]], dim=1))
        return found

    @torch.no_grad()
    def targets(
        self, maps: Sequence[Tensor], sizes: Tensor, objects: Sequence[Tensor], permutation: Permutation
    ) -> dict[str, Any]:
        """What anchors shall say.

        Args:
            maps: each ``[B, C, H, W]``.
            sizes: height and width of each image without padding, ``[B, 2]``.
            objects: corners in pixels ``[G, 4]`` of each image.
            permutation: a permutation of so many numbers.

        Returns:
            ``positive`` and ``sampled`` (bool), ``offsets``: ``[B, N]`` and ``[B, N, 4]``; ``count``, anchors that are
            learned from.
        """
        levels = self.anchors.of(maps)
        anchors = torch.cat(levels)
        inside = self.anchors.inside(maps, sizes)
        positive = torch.zeros_like(inside)
        sampled, wanted, count = positive.clone(), anchors.new_zeros(*inside.shape, 4), 0
        for i, boxes in enumerate(objects):
            usable = inside[i].nonzero()[:, 0]
            assigned = assign_by_overlap(anchors[usable], boxes, 0.7, 0.3, 0.3)
            yes, no = sample(assigned, self.samples, 0.5, permutation)
            where = usable[yes]
            positive[i, where], sampled[i, where], sampled[i, usable[no]] = True, True, True
            wanted[i, where] = self.offsets.encode_single(boxes[assigned[yes]], anchors[where])
            count += max(len(yes), 1) + max(len(no), 1)
        return {
            "positive": positive,
            "sampled": sampled,
            "offsets": wanted,
            "count": count,
            "sizes": [len(a) for a in levels],
        }
