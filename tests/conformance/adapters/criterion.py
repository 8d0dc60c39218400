"""The set criteria, matchers and post-processing of the DETR family over recorded predictions."""

from typing import Any

import torch
from torch import Tensor

from zoo.detection.criterion import SetCriterion
from zoo.detection.denoising import Denoising
from zoo.detection.dino_criterion import DINOCriterion
from zoo.detection.dn_criterion import DNCriterion
from zoo.detection.mask_head import masks_at_original_size
from zoo.detection.matcher import HungarianMatcher
from zoo.detection.postprocess import best_of_pairs, best_of_queries

_KINDS = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")


def _leaves(tree: Any) -> Any:
    """Predictions that record gradients."""
    if isinstance(tree, dict):
        return {k: _leaves(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_leaves(v) for v in tree]
    return tree.detach().requires_grad_()


def _grads(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _grads(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_grads(v) for v in tree]
    return torch.zeros_like(tree) if tree.grad is None else tree.grad


def _found(indices: Any) -> list[dict[str, Tensor]]:
    return [{"src": i, "tgt": j} for i, j in indices]


def _restored(outputs: dict[str, Any], inputs: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The predictions of DN-DETR's denoising queries, and what they stand for."""
    *first, last = ({"pred_logits": c, "pred_boxes": b} for c, b in zip(outputs["dn_class"], outputs["dn_coord"]))
    known, groups = inputs["known_indice"], kwargs["scalar"]
    labels, boxes = (torch.cat([t[k] for t in inputs["targets"]])[known] for k in ("labels", "boxes"))
    where = inputs["batch_idx"].repeat(groups), inputs["map_known_indice"]
    empty = torch.empty(0)
    queries = Denoising(empty, empty, empty, groups, kwargs["pad_size"], where, labels, boxes)
    return {"dn_outputs": last | {"aux_outputs": first}, "denoising": queries}


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    softmax = entry.startswith("models/detr.py")
    dino = entry.startswith("models/dino/")
    dn = entry.startswith("models/DN_DAB_DETR/")
    dab = dn or entry.startswith("models/DAB_DETR/")
    if not (softmax or dino or dab or entry.startswith(("models/conditional_detr.py", "models/deformable_detr.py"))):
        raise LookupError(entry)
    classification = "softmax" if softmax else "focal"
    eps = 1e-6 if dino or dab else 0.0
    given = kwargs.get("matcher") or {"cost_class": 1 if softmax else 2, "cost_bbox": 5, "cost_giou": 2}
    matcher = HungarianMatcher(**given, classification=classification, eps=eps)
    weights = {k: inputs["weight_dict"][k].item() for k in _KINDS if k in inputs["weight_dict"]}
    options = dict(weights=weights, losses=kwargs["losses"], classification=classification, eps=eps)
    options |= {k: kwargs[k] for k in ("focal_alpha", "eos_coef") if k in kwargs}
    kind = DINOCriterion if dino else DNCriterion if dn else SetCriterion
    criterion = kind(kwargs["num_classes"], matcher, **options, log_parts=dino or dab)
    criterion.train(kwargs.get("training", True))

    outputs = _leaves(inputs["outputs"])
    given_outputs = dict(outputs)
    if "dn_meta" in outputs:
        given_outputs["dn_outputs"] = outputs["dn_meta"] | {
            "groups": kwargs["num_dn_group"],
            "size": kwargs["pad_size"],
        }
    targets = inputs["targets"]
    if "dn_class" in outputs:
        given_outputs |= _restored(outputs, inputs, kwargs)
    losses = criterion(given_outputs, targets)
    total = criterion.total(losses)
    total.backward()
    indices = {"last": _found(matcher(outputs, targets))}
    indices |= {f"aux_{i}": _found(matcher(o, targets)) for i, o in enumerate(outputs.get("aux_outputs", ()))}
    if "interm_outputs" in outputs:
        indices["interm"] = _found(matcher(outputs["interm_outputs"], targets))
    if "enc_outputs" in outputs:
        objects = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
        indices["enc"] = _found(matcher(outputs["enc_outputs"], objects))
    found = {"losses": losses, "total": total, "grad": _grads(outputs), "indices": indices}
    if "pred_masks" in outputs:
        sizes = inputs["max_target_sizes"], inputs["orig_target_sizes"]
        found["postprocess_segm"] = masks_at_original_size(outputs["pred_masks"], *sizes, kwargs["threshold"])
    if "target_sizes" in inputs:
        sizes = inputs["target_sizes"]
        count = kwargs.get("num_select", 100)
        if softmax:
            found["postprocess"] = best_of_queries(outputs, sizes)
        else:
            found["postprocess"] = best_of_pairs(outputs, sizes, count)
            if kwargs.get("nms_iou_threshold", -1) > 0:
                found["postprocess_nms"] = best_of_pairs(outputs, sizes, count, kwargs["nms_iou_threshold"])
    return found
