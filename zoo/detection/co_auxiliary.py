"""Co-DETR's auxiliary heads together: what they predict over the encoder's maps, and the queries that come of them.

DETRs with Collaborative Hybrid Assignments Training (arXiv:2211.12860), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.co_assign import Permutation
from zoo.detection.co_atss import ATSSHead
from zoo.detection.co_queries import positive_queries
from zoo.detection.co_roi import RoIHead
from zoo.detection.co_rpn import RPN, flat

#: proposals of a level before suppression, in evaluation
BEFORE = 1000


class AuxiliaryHeads(nn.Module):
    """RPN with Faster R-CNN (head 0) and ATSS (head 1) over the encoder's maps.

    Args:
        dim: channels C of the maps.
        num_classes: classes.
        strides: image pixels a pixel of each of the encoder's maps; one more map of twice the last stride follows.
        rpn_channels, rpn_octaves, rpn_samples: see :class:`zoo.detection.co_rpn.RPN`.
        proposals: of an image in training.
        roi_channels, roi_finest, roi_samples: see :class:`zoo.detection.co_roi.RoIHead`.
        atss_convolutions, atss_groups, atss_nearest: see :class:`zoo.detection.co_atss.ATSSHead`.
        max_queries: customised positive queries of a head and image at most.
        anchors_in_padding: anchors that stand on the padding are background; otherwise no loss sees them.
        zero_padding: see :func:`zoo.detection.co_queries.positive_queries`.

    Raises:
        ValueError: fewer queries or proposals than one.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        strides: Sequence[int],
        rpn_channels: int = 256,
        rpn_octaves: int = 3,
        rpn_samples: int = 256,
        proposals: int = 1000,
        roi_channels: int = 1024,
        roi_finest: float = 112,
        roi_samples: int = 512,
        atss_convolutions: int = 1,
        atss_groups: int = 32,
        atss_nearest: int = 9,
        max_queries: int = 300,
        zero_padding: bool = False,
        anchors_in_padding: bool = False,
    ):
        super().__init__()
        for name, value in (("max_queries", max_queries), ("proposals", proposals)):
            if value < 1:
                raise ValueError(f"{name}={value}: accepted are whole numbers from 1")
        self.num_classes, self.max_queries, self.zero_padding = num_classes, max_queries, zero_padding
        self.anchors_in_padding = anchors_in_padding
        every = (*strides, strides[-1] * 2)
        self.rpn = RPN(dim, rpn_channels, every, rpn_octaves, keep=proposals, samples=rpn_samples)
        self.roi = RoIHead(num_classes, dim, roi_channels, strides, roi_finest, roi_samples)
        self.atss = ATSSHead(num_classes, dim, every, atss_convolutions, atss_groups, atss_nearest)
        #: what is drawn at random; a test may give a permutation that is none
        self.permutation: Permutation = torch.randperm

    def forward(
        self, maps: Sequence[Tensor], sizes: Tensor, targets: Sequence[Mapping[str, Tensor]]
    ) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
        """Predictions, what they shall be, and the customised positive queries.

        Args:
            maps: each ``[B, C, H, W]``, the further one included.
            sizes: height and width of each image without padding, ``[B, 2]``.
            targets: for each image ``labels [G]`` and ``boxes [G, 4]`` (cx, cy, w, h in 0 ... 1).

        Returns:
            A dict of ``rpn``, ``roi`` and ``atss`` for :class:`zoo.detection.co_criterion.CoCriterion`, and the queries
            of head 0 and head 1 as of :func:`zoo.detection.co_queries.positive_queries`.
        """
        # Where anchors count: on the image, or wherever there is a pixel of a map.
        shown = torch.full_like(sizes, torch.iinfo(sizes.dtype).max) if self.anchors_in_padding else sizes
        scale = sizes.flip(1).repeat(1, 2).float()  # [B, 4]: width, height, width, height
        objects = [cxcywh_to_xyxy(t["boxes"].float()) * s for t, s in zip(targets, scale)]
        labels = [t["labels"] for t in targets]
        rpn, proposals = self._rpn(maps, sizes, shown, objects)
        roi, regions = self._roi(maps, proposals, objects, labels)
        atss, pixels = self._atss(maps, shown, objects, labels)
        queries = [
            positive_queries(c, sizes, self.num_classes, self.max_queries, self.zero_padding, self.permutation)
            for c in (regions, pixels)
        ]
        return {"rpn": rpn, "roi": roi, "atss": atss, "proposals": proposals}, queries

    def _rpn(
        self, maps: Sequence[Tensor], sizes: Tensor, shown: Tensor, objects: Sequence[Tensor]
    ) -> tuple[dict[str, Any], list[Tensor]]:
        logits, offsets = self.rpn(maps)
        out = {"logits": logits, "offsets": offsets, "wanted": self.rpn.targets(maps, shown, objects, self.permutation)}
        return out, self.rpn.proposals(logits, offsets, sizes, self.rpn.before, self.rpn.keep)

    def _roi(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        objects: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        wanted = self.roi.sampled([p[:, :4] for p in proposals], objects, labels, self.permutation)
        regions = self.roi.regions(maps, wanted["boxes"])
        logits, offsets = self.roi(regions)
        boxes, classes, places = (torch.cat(wanted[k]) for k in ("boxes", "labels", "targets"))
        out = {
            "logits": logits,
            "boxes": self.roi.offsets.apply(offsets.float(), boxes).unflatten(1, (-1, 4)),
            "offsets": offsets,
            "labels": classes,
            "targets": places,
        }
        counts = [len(b) for b in wanted["boxes"]]
        fewest = min(counts)
        features = regions.mean((2, 3)).split(counts)
        first = {k: torch.stack([x[:fewest] for x in wanted[k]]) for k in ("boxes", "labels", "targets")}
        return out, first | {"features": torch.stack([x[:fewest] for x in features])}

    def _atss(
        self, maps: Sequence[Tensor], sizes: Tensor, objects: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        logits, offsets, centre = self.atss(maps)
        wanted = self.atss.targets(maps, sizes, objects, labels)
        anchors = wanted["anchors"].flatten(0, 1)
        boxes = self.atss.offsets.apply(torch.cat(flat(offsets, 4), dim=1).flatten(0, 1), anchors)
        out = {
            "logits": logits,
            "offsets": offsets,
            "centre": centre,
            "boxes": boxes.view_as(wanted["targets"]),
            "wanted": wanted,
        }
        features = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # [B, N, C]
        pixels = {"boxes": wanted["anchors"], "labels": wanted["labels"], "targets": wanted["targets"]}
        return out, pixels | {"features": features}

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], sizes: Tensor, head: str, count: int = 100) -> list[dict[str, Tensor]]:
        """What the auxiliary head "roi" or "atss" finds by itself.

        Args:
            maps: each ``[B, C, H, W]``, the further one included.
            sizes: height and width of each image without padding, ``[B, 2]``.
            head: "roi" or "atss".
            count: objects of an image at most.

        Returns:
            For each image ``scores``, ``labels`` and ``boxes`` (corners in pixels), best first.

        Raises:
            ValueError: another head.
        """
        if head == "atss":
            return self.atss.detect(maps, sizes, count)
        if head != "roi":
            raise ValueError(f"head={head!r}: accepted are 'roi' and 'atss'")
        return self.roi.detect(maps, self.proposals(maps, sizes), sizes, count)

    def proposals(self, maps: Sequence[Tensor], sizes: Tensor) -> list[Tensor]:
        """Corners in pixels and scores ``[K, 5]`` of each image's proposals in evaluation."""
        logits, offsets = self.rpn(maps)
        return self.rpn.proposals(logits, offsets, sizes, BEFORE, self.rpn.keep)
