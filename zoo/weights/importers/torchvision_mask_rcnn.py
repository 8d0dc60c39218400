"""Importer of torchvision's Mask R-CNN and Faster R-CNN checkpoints (BSD-3-Clause).

An entry is torchvision's function, its arguments those of the function. Torchvision's class k is our class k - 1: its
class 0 is the background. Files of before torchvision 0.12 have older names of some convolutions; those are read too,
and given back by the newer names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers._prefixes import PrefixMap

MASK = "torchvision.models.detection.maskrcnn_resnet50_fpn"
MASK_V2 = "torchvision.models.detection.maskrcnn_resnet50_fpn_v2"
FASTER = "torchvision.models.detection.fasterrcnn_resnet50_fpn"
FASTER_V2 = "torchvision.models.detection.fasterrcnn_resnet50_fpn_v2"
ENTRIES = (MASK, MASK_V2, FASTER, FASTER_V2)

#: our classes that an entry's checkpoints are for
CHECKPOINTS = dict.fromkeys(ENTRIES, ("Detector", "MaskRCNN"))

_NAMES = PrefixMap(
    [
        ("backbone.body", "backbone"),
        ("backbone.fpn", "network.neck.pyramid"),
        ("rpn", "network.rpn"),
        ("roi_heads", "network.roi_heads"),
    ]
)
_OLDER = [
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"backbone\.fpn\.(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)"), r"backbone.fpn.\1.\2.0.\3"),
]
_OLDER_MASKS = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)")
#: torchvision's defaults; thresholds and numbers of boxes by our names
_NUMBERS = {
    "box_score_thresh": (0.05, "score_threshold"),
    "box_nms_thresh": (0.5, "nms_threshold"),
    "box_detections_per_img": (100, "count"),
    "rpn_batch_size_per_image": (256, "rpn_samples"),
    "box_batch_size_per_image": (512, "roi_samples"),
}
_PAIRS = {
    "rpn_candidates": (("rpn_pre_nms_top_n_train", 2000), ("rpn_pre_nms_top_n_test", 1000)),
    "rpn_proposals": (("rpn_post_nms_top_n_train", 2000), ("rpn_post_nms_top_n_test", 1000)),
}
_SIZES = {"min_size": 800, "max_size": 1333}  # of the preprocessing, which is not the network's here


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for a call of torchvision's function.

    ``weights`` may be "COCO_V1": the published weights of the first versions want norms without an epsilon.
    ``frozen_norm`` says whether the batch normalisation has fixed statistics, which torchvision decides by whether
    weights are given.

    Raises:
        LookupError: an unknown entry.
        TypeError: an argument that torchvision's function does not have.
        ValueError: a value that is not supported.
    """
    from zoo.detection.detector import Detector
    from zoo.detection.mask_rcnn import MaskRCNN
    from zoo.detection.resnet import ResNetBackbone

    _known(entry)
    defaults: dict[str, Any] = {name: default for name, (default, _) in _NUMBERS.items()}
    defaults |= {name: default for pair in _PAIRS.values() for name, default in pair}
    defaults |= dict(_SIZES, num_classes=91, weights=None, weights_backbone=None, trainable_backbone_layers=None)
    given = official_arguments(entry, kwargs, {**defaults, "progress": True, "frozen_norm": None})
    newer = entry in (MASK_V2, FASTER_V2)
    published = given["weights"] is not None
    if published and str(given["weights"]).rpartition(".")[2] != "COCO_V1":
        raise refuse(entry, "weights", given["weights"], "None and 'COCO_V1'")
    if given["num_classes"] < 2:
        raise refuse(entry, "num_classes", given["num_classes"], "2 and above (the background is one of them)")
    trained = published or given["weights_backbone"] is not None
    layers = given["trainable_backbone_layers"]
    layers = (3 if trained else 5) if layers is None or not trained else layers
    if not 0 <= layers <= 5:
        raise refuse(entry, "trainable_backbone_layers", layers, "0 to 5")
    frozen_norm = given["frozen_norm"]
    if frozen_norm is None:
        frozen_norm = trained and not newer
    backbone = dict(
        type=ResNetBackbone,
        name="resnet50",
        out_indices=(0, 1, 2, 3),
        frozen_norm=frozen_norm,
        frozen_stages=4 - layers if layers < 5 else -1,
        norm_eps=0.0 if published and not newer else 1e-5,
    )
    network: dict[str, Any] = dict(type=MaskRCNN, num_classes=given["num_classes"] - 1, masks=entry in (MASK, MASK_V2))
    network |= {ours: given[name] for name, (_, ours) in _NUMBERS.items()}
    network |= {ours: tuple(given[name] for name, _ in pair) for ours, pair in _PAIRS.items()}
    if newer:
        network |= dict(neck=dict(batch_norm=True), rpn_convs=2, box_head="conv", mask_norm=entry == MASK_V2)
    return dict(type=Detector, backbone=backbone, network=network)


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's keys to ours.

    Raises:
        LookupError: an unknown entry.
        KeyError: a key that is not one of the model's.
        ValueError: masks' keys for an entry without masks, or none for one with masks.
    """
    _known(entry)
    state = {_newer(k): v for k, v in state_dict.items()}
    if len(state) != len(state_dict):
        raise KeyError("the state dict has both an older and a newer name of a convolution")
    has = any(k.startswith("roi_heads.mask_") for k in state)
    if has != (entry in (MASK, MASK_V2)):
        raise ValueError(
            f"{entry} has {'no' if has else 'a'} head of masks, but the state dict has {'one' if has else 'none'}"
        )
    return _NAMES.convert(state)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our keys to torchvision's (the newer names); raises like :func:`convert_state_dict`."""
    _known(entry)
    return _NAMES.revert(state_dict)


def _known(entry: str) -> None:
    if entry not in ENTRIES:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(ENTRIES)}")


def _newer(key: str) -> str:
    masks = _OLDER_MASKS.fullmatch(key)
    if masks:
        return f"roi_heads.mask_head.{int(masks[1]) - 1}.0.{masks[2]}"
    for old, new in _OLDER:
        if old.fullmatch(key):
            return old.sub(new, key)
    return key
