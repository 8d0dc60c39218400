"""RF-DETR: the whole network over images, and its training losses."""

from typing import Any

from torch import Tensor

from zoo.detection.matcher import HungarianMatcher
from zoo.detection.rfdetr_criterion import RFDETRCriterion
from zoo.registry import MODELS, build
from zoo.weights.importers import rfdetr as importer

NETWORKS = (importer.NETWORK,)


def _classification(kwargs: dict[str, Any]) -> str:
    if kwargs.get("ia_bce_loss", True):
        return "iou_bce"
    if kwargs.get("use_position_supervised_loss"):
        return "position"
    return "varifocal" if kwargs.get("use_varifocal_loss") else "focal"


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    training = "targets" in inputs
    model = build(importer.config_from_official(entry, kwargs), MODELS).train(training)
    model.load_state_dict(importer.convert_state_dict(entry, state))
    out = model(inputs["tensor"], inputs["mask"])
    found = {k: v for k, v in out.items() if k not in ("features", "groups")} | {"vit": out["features"]}
    if training:
        alpha = kwargs.get("focal_alpha", 0.25)
        costs = {k: kwargs.get(f"set_{k}", v) for k, v in (("cost_class", 2), ("cost_bbox", 5), ("cost_giou", 2))}
        criterion = RFDETRCriterion(
            kwargs["num_classes"] + 1,
            HungarianMatcher(**costs, focal_alpha=alpha),
            classification=_classification(kwargs),
            focal_alpha=alpha,
            sum_group_losses=kwargs.get("sum_group_losses", False),
        ).train()
        found["losses"] = criterion(out, inputs["targets"])
    return found
