"""Deformable DETR: the authors' network over given maps or images, and its losses and gradients in training cases."""

from typing import Any

from torch import Tensor

from zoo.detection.criterion import SetCriterion
from zoo.detection.matcher import HungarianMatcher
from zoo.registry import MODELS, build
from zoo.weights.importers import deformable_detr as importer

NETWORKS = (importer.NETWORK,)
INTERMEDIATES = ("hs", "memory", "init_reference", "inter_references")


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    model = build(importer.config_from_official(entry, kwargs), MODELS).eval()
    model.load_state_dict(importer.convert_state_dict(entry, {k: v.float() for k, v in state.items()}))
    found: dict[str, Any] = {}
    if "images" in inputs:
        out = model(inputs["images"])
        found["backbone"] = out["features"]
        found["backbone_mask"] = out["masks"][: len(out["features"])]
    else:
        out = model(inputs["features"], inputs["mask"])
    found |= {
        k: out[k] for k in ("pred_logits", "pred_boxes", "aux_outputs", "enc_outputs", *INTERMEDIATES) if k in out
    }
    if "targets" in inputs:
        weights = {
            k: v.item() for k, v in inputs["weight_dict"].items() if not k[-1].isdigit() and not k.endswith("_enc")
        }
        criterion = SetCriterion(kwargs["num_classes"], HungarianMatcher(), weights)
        found["losses"] = criterion(out, inputs["targets"])
        found["total"] = criterion.total(found["losses"])
        found["total"].backward()
        grads = {k: p.grad for k, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
        found["grad_norm"] = {k: g.norm() for k, g in importer.revert_state_dict(entry, grads).items()}
    return found
