"""RelationNet++'s head: a dense head whose features attend to the key points of all objects.

RelationNet++: Bridging Visual Representations for Object Detection via Transformer Decoder (arXiv:2010.15831). Authors'
code: github.com/microsoft/RelationNet2 (MIT); this follows the paper and recorded results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from zoo.detection.bvr_attention import BVRTransformer
from zoo.detection.bvr_keypoints import KeypointHead, best_keypoints, grid_points, sample_keys
from zoo.detection.dense_heads import ATSSHead, DenseHead, FCOSHead, RetinaHead
from zoo.detection.dense_tasks import TASKS

HEADS: dict[str, type[DenseHead]] = {"retina": RetinaHead, "fcos": FCOSHead, "atss": ATSSHead}


class BVRHead(nn.Module):
    """A dense head, a head for key points, and attention from the first to the second.

    Args:
        num_classes: classes.
        head: "retina", "fcos" or "atss".
        dim: channels C.
        strides: of the maps.
        stacked_convs: convolutions of a tower of the dense head.
        groups: of all group normalisations; None for none.
        head_options: further arguments of the dense head.
        task_options: of the head's task in :mod:`zoo.detection.dense_tasks`, such as its anchors.
        keypoints: further arguments of :class:`zoo.detection.bvr_keypoints.KeypointHead`.
        keypoint_pos: what the head for key points reads: "input", "cls" or "reg".
        cls_keypoints, reg_keypoints: types that the features for classes and for boxes attend to; empty for none.
        max_keypoint_num: key points of a type on each map.
        selection: further arguments of :func:`zoo.detection.bvr_keypoints.sample_keys`.
        num_heads: attention heads.
        scale_position: offsets are counted in strides of each map; otherwise in those of the first.
        scale_factor: further factor of these.
        location: arguments of :class:`zoo.detection.bvr_attention.LocationEmbedding`; None for no location.
        appearance: see :class:`zoo.detection.bvr_attention.RelationAttention`.
        shared_inter: one location embedding for all types that a branch attends to.
        shared_outer: one for both branches.
        reg_cat_pos: the mean offset to the key points is mixed into the features for boxes.

    Raises:
        ValueError: an unknown head, branch or type, a location embedding that cannot be shared.
    """

    def __init__(
        self,
        num_classes: int = 80,
        head: str = "retina",
        dim: int = 256,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        stacked_convs: int = 4,
        groups: int | None = 32,
        head_options: Mapping[str, Any] | None = None,
        task_options: Mapping[str, Any] | None = None,
        keypoints: Mapping[str, Any] | None = None,
        keypoint_pos: str = "input",
        cls_keypoints: Sequence[str] = ("center",),
        reg_keypoints: Sequence[str] = ("top_left_corner", "bottom_right_corner"),
        max_keypoint_num: int = 20,
        selection: Mapping[str, Any] | None = None,
        num_heads: int = 8,
        scale_position: bool = False,
        scale_factor: float = 1.0,
        location: Mapping[str, Any] | None = None,
        appearance: bool = True,
        shared_inter: bool = True,
        shared_outer: bool = False,
        reg_cat_pos: bool = False,
    ):
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"head={head!r}: accepted are {', '.join(HEADS)}")
        if keypoint_pos not in ("input", "cls", "reg"):
            raise ValueError(f"keypoint_pos={keypoint_pos!r}: accepted are 'input', 'cls' and 'reg'")
        if shared_outer and not (shared_inter and cls_keypoints):
            raise ValueError("shared_outer=True needs shared_inter=True and types in cls_keypoints")
        self.num_classes, self.strides, self.kind = num_classes, tuple(strides), head
        self.task_options = dict(task_options or {})
        options = {"strides": strides, "stacked_convs": stacked_convs, "groups": groups, **(head_options or {})}
        self.task = TASKS[head](num_classes, strides, **self.task_options)
        if head == "retina":
            options["num_anchors"] = self.task.anchors.num_anchors_per_location()[0]  # type: ignore[union-attr]
        self.bbox_head = HEADS[head](num_classes, dim, **options)
        self.keypoint_head = KeypointHead(num_classes, dim, strides, **{"groups": groups, **(keypoints or {})})
        if not {*cls_keypoints, *reg_keypoints} <= set(self.keypoint_head.types):
            raise ValueError(
                f"cls_keypoints={tuple(cls_keypoints)}, reg_keypoints={tuple(reg_keypoints)}: "
                f"accepted are {', '.join(self.keypoint_head.types)}"
            )
        self.keypoint_pos = keypoint_pos
        self.cls_keypoints, self.reg_keypoints = tuple(cls_keypoints), tuple(reg_keypoints)
        self.max_keypoint_num, self.selection = max_keypoint_num, dict(selection or {})
        self.scale_position, self.scale_factor = scale_position, scale_factor
        shared: dict[str, Any] = dict(location=location, shared_location=shared_inter, appearance=appearance)
        self.cls_transformer = self.reg_transformer = None
        if cls_keypoints:
            self.cls_transformer = BVRTransformer(dim, num_heads, len(cls_keypoints), **shared)
        if reg_keypoints:
            outer = self.cls_transformer.relative_positional_encoding if shared_outer else None  # type: ignore[union-attr]
            self.reg_transformer = BVRTransformer(
                dim, num_heads, len(reg_keypoints), location_embedding=outer, cat_pos=reg_cat_pos, **shared
            )

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Any]:
        """Predict.

        Args:
            maps: each ``[B, C, H, W]``.

        Returns:
            ``predictions`` (see :mod:`zoo.detection.dense_heads`), ``keypoint_logits`` and ``keypoint_offsets`` (see
            :class:`zoo.detection.bvr_keypoints.KeypointHead`), and for "cls" and "reg" as far as they attend,
            ``relations``: their ``features`` for each map, and the ``key_features`` and ``key_positions`` of the first
            map for each type.

        Raises:
            ValueError: another number of maps than of strides.
        """
        if len(maps) != len(self.strides):
            raise ValueError(f"{len(maps)} maps were given; this head takes {len(self.strides)}")
        cls, reg = self.bbox_head.features(maps)
        logits, offsets = self.keypoint_head({"input": maps, "cls": cls, "reg": reg}[self.keypoint_pos])
        relations: dict[str, Any] = {}
        if self.cls_transformer is not None:
            relations["cls"] = self.relate(cls, logits, offsets, self.cls_keypoints, self.cls_transformer)
            cls = relations["cls"]["features"]
        if self.reg_transformer is not None:
            relations["reg"] = self.relate(reg, logits, offsets, self.reg_keypoints, self.reg_transformer)
            reg = relations["reg"]["features"]
        return {
            "predictions": self.bbox_head.predict(cls, reg),
            "keypoint_logits": logits,
            "keypoint_offsets": offsets,
            "relations": relations,
        }

    def relate(
        self,
        maps: list[Tensor],
        logits: Mapping[str, list[Tensor]],
        offsets: Mapping[str, list[Tensor]],
        types: Sequence[str],
        transformer: BVRTransformer,
    ) -> dict[str, Any]:
        """The maps of a branch after they attended to key points of these types."""
        features: list[list[Tensor]] = [[] for _ in maps]
        positions: list[list[Tensor]] = [[] for _ in maps]
        for t in types:
            found = [
                best_keypoints(x, o, s, self.max_keypoint_num) for x, o, s in zip(logits[t], offsets[t], self.strides)
            ]
            own, places = sample_keys(maps, found, self.strides[0], **self.selection)
            for i in range(len(maps)):
                features[i].append(own[i])
                positions[i].append(places[i])
        points = [grid_points(x.shape[-2:], s, x) for x, s in zip(maps, self.strides)]
        units = self.strides if self.scale_position else (self.strides[0],) * len(maps)
        scales = [u * self.scale_factor for u in units]
        return {
            "features": transformer(maps, points, features, positions, scales),
            "key_features": features[0],
            "key_positions": positions[0],
        }
