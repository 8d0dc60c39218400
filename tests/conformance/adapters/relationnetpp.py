"""RelationNet++: the head over given maps, and its losses and targets."""

from typing import Any

from torch import Tensor

from zoo.detection.bvr_keypoints import keypoint_losses
from zoo.registry import MODELS, build
from zoo.weights.importers import relationnetpp as importer


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    head = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    head.load_state_dict(importer.convert_state_dict(entry, state))
    out = head(inputs["features"])
    found: dict[str, Any] = {
        "box_head": out["predictions"],
        "keypoint_logits": out["keypoint_logits"],
        "keypoint_offsets": out["keypoint_offsets"],
    }
    for name, relation in out["relations"].items():
        found[f"{name}_transformer"] = {
            "key_features": relation["key_features"],
            "key_positions": relation["key_positions"],
            "out": [x.permute(0, 2, 3, 1) for x in relation["features"]],
        }
    if "gt_bboxes" in inputs:
        boxes, labels = inputs["gt_bboxes"], inputs["gt_labels"]
        losses, found["keypoint_targets"] = keypoint_losses(
            out["keypoint_logits"], out["keypoint_offsets"], boxes, labels, kwargs["strides"]
        )
        box_losses = head.task.losses(head.train()(inputs["features"])["predictions"], boxes, labels)
        found["losses"] = {f"kpt_{k}": v for k, v in losses.items()}
        found["losses"] |= {f"bbox_{k}": v for k, v in box_losses.items()}
    return found
