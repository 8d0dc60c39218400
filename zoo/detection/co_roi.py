"""The Faster R-CNN head of Co-DETR's first auxiliary head, on torchvision's RoIAlign and perceptron.

Faster R-CNN (arXiv:1506.01497); RoIAlign: Mask R-CNN (arXiv:1703.06870); levels: Feature Pyramid Networks
(arXiv:1612.03144), eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import clip_boxes_to_image, roi_align

from zoo.detection.co_anchors import Offsets
from zoo.detection.co_assign import Permutation, assign_by_overlap, sample
from zoo.detection.co_postprocess import best_of_classes
from zoo.layers.token_linear import TokenLinear

#: side of a region's features
SIDE = 7


class RoIHead(nn.Module):
    """Classes and boxes of proposals.

    Args:
        num_classes: classes; the last output is background.
        in_channels: of the maps.
        channels: of the hidden layers.
        strides: image pixels a pixel of each map that is read; further maps are not.
        finest: regions smaller than twice this (root of the area, in pixels) are read from the first map.
        samples: proposals of an image that the losses see, objects included.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        channels: int = 1024,
        strides: Sequence[int] = (8, 16, 32, 64),
        finest: float = 112,
        samples: int = 512,
    ):
        super().__init__()
        self.num_classes, self.strides, self.finest, self.samples = num_classes, tuple(strides), finest, samples
        self.offsets = Offsets((0.1, 0.1, 0.2, 0.2))
        self.shared = TwoMLPHead(in_channels * SIDE**2, channels)
        self.classifier = TokenLinear(channels, num_classes + 1)
        self.locate = TokenLinear(channels, num_classes * 4)
        for layer in (self.shared.fc6, self.shared.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, deviation in ((self.classifier, 0.01), (self.locate, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def regions(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Features of each image's boxes ``[K, 4]`` in pixels: ``[sum of K, C, 7, 7]``."""
        image = torch.cat([torch.full((len(b), 1), float(i), device=b.device) for i, b in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(list(boxes))], dim=1)
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        level = (side / self.finest + 1e-6).log2().floor().clamp(0, len(self.strides) - 1)
        found = maps[0].new_zeros(len(rois), maps[0].shape[1], SIDE, SIDE)
        for i, (m, stride) in enumerate(zip(maps, self.strides)):
            here = (level == i).nonzero()[:, 0]
            pooled = roi_align(m, rois[here].to(m.dtype), SIDE, 1 / stride, sampling_ratio=0, aligned=True)
            found = found.index_copy(0, here, pooled)
        return found

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[K, C, 7, 7]`` to logits ``[K, classes + 1]`` and offsets ``[K, classes * 4]``."""
        hidden = self.shared(regions)
        return self.classifier(hidden), self.locate(hidden)

    @torch.no_grad()
    def sampled(
        self,
        proposals: Sequence[Tensor],
        objects: Sequence[Tensor],
        labels: Sequence[Tensor],
        permutation: Permutation,
    ) -> dict[str, Any]:
        """Proposals to learn from, the image's objects before them.

        Args:
            proposals: corners in pixels ``[K, 4]`` of each image.
            objects, labels: corners in pixels ``[G, 4]`` and classes ``[G]`` of each image.
            permutation: a permutation of so many numbers.

        Returns:
            For each image ``boxes [S, 4]``, ``labels [S]`` (background last) and ``targets [S, 4]``, zero for
            background; positives come first.
        """
        found: dict[str, Any] = {"boxes": [], "labels": [], "targets": []}
        for boxes, real, classes in zip(proposals, objects, labels):
            own = torch.arange(len(real), device=boxes.device)
            assigned = torch.cat([own, assign_by_overlap(boxes, real, 0.5, 0.5)])
            boxes = torch.cat([real, boxes])
            yes, no = sample(assigned, self.samples, 0.25, permutation)
            found["boxes"].append(boxes[torch.cat([yes, no])])
            background = torch.full_like(no, self.num_classes)
            found["labels"].append(torch.cat([classes[assigned[yes]], background]))
            found["targets"].append(torch.cat([real[assigned[yes]], boxes.new_zeros(len(no), 4)]))
        return found

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Tensor,
        count: int = 100,
        threshold: float = 0.0,
        overlap: float = 0.5,
    ) -> list[dict[str, Tensor]]:
        """Objects of each image.

        Args:
            maps: each ``[B, C, H, W]``.
            proposals: corners in pixels ``[K, 4 or more]`` of each image.
            sizes: height and width of each image without padding, ``[B, 2]``.
            count: objects of an image at most.
            threshold: least score.
            overlap: suppress boxes that overlap a better one of their class more than this.

        Returns:
            For each image ``scores``, ``labels`` and ``boxes`` (corners in pixels), best first.
        """
        boxes = [p[:, :4] for p in proposals]
        logits, offsets = (x.float() for x in self(self.regions(maps, boxes)))
        counts = [len(b) for b in boxes]
        found = []
        for b, c, o, size in zip(boxes, logits.split(counts), offsets.split(counts), sizes.tolist()):
            placed = clip_boxes_to_image(self.offsets.apply(o, b).unflatten(1, (-1, 4)), size)  # [K, classes, 4]
            found.append(best_of_classes(placed, c.softmax(-1)[:, :-1], None, threshold, overlap, count))
        return found
