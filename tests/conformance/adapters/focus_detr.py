"""Focus-DETR: the authors' network over given maps, and its losses."""

from typing import Any

import torch
from torch import Tensor

from zoo.detection.boxes import xyxy_to_cxcywh
from zoo.detection.focus_criterion import FocusCriterion
from zoo.detection.matcher import HungarianMatcher
from zoo.registry import MODELS, build
from zoo.weights.importers import focus_detr as importer

NETWORKS = (importer.NETWORK,)


@torch.no_grad()
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    training = "labels" in inputs
    spec = importer.config_from_official(entry, kwargs)
    # The recorded training cases are without noise.
    spec |= dict(dn_label_noise_ratio=0.0, dn_box_noise_scale=0.0)
    model = build(spec, MODELS).train(training)
    model.load_state_dict(importer.convert_state_dict(entry, state))
    features = [inputs["features"][k] for k in sorted(inputs["features"])]
    sizes = inputs["image_sizes"].tolist()
    height, width = inputs["padded_size"].tolist()
    mask = torch.zeros(len(sizes), height, width, dtype=torch.bool)
    targets = None
    if training:
        # In evaluation the authors' code takes no notice of padding.
        for m, (h, w) in zip(mask, sizes):
            m[h:], m[:, w:] = True, True
        scale = [torch.tensor([w, h, w, h]) for h, w in sizes]
        boxes = [xyxy_to_cxcywh(b / s) for b, s in zip(inputs["boxes_xyxy"], scale)]
        targets = [{"labels": c, "boxes": b} for c, b in zip(inputs["labels"], boxes)]
    out = model(features, mask, targets=targets)
    found = {k: out[k] for k in ("pred_logits", "pred_boxes", "memory")}
    found |= {"focus_token_nums": out["foreground_counts"], "foreground_inds": out["foreground_indices"]}
    found |= {"foreground_score": out["foreground_logits"], "enc_boxes": out["first_boxes"]}
    found["aux_outputs"] = out["aux_outputs"]
    if training:
        found["enc_outputs"] = out["interm_outputs"]
        if "dn_outputs" in out:
            found["dn"] = {k: out["dn_outputs"][k] for k in ("pred_logits", "pred_boxes", "aux_outputs")}
        criterion = FocusCriterion(
            kwargs["num_classes"], HungarianMatcher(2, 5, 2, eps=1e-6), losses=("labels", "boxes")
        )
        criterion.train()
        losses = criterion(out, targets)
        found["foreground_target"] = criterion.targets_of_tokens(out, targets)
        # detrex multiplies by the weights, calls the first stage "enc" and the classification "class".
        weighted = {k: v * w for k, v in losses.items() if (w := criterion.weight_of(k)) is not None}
        found["losses"] = {
            k.replace("loss_ce", "loss_class").replace("_interm", "_enc"): v for k, v in weighted.items()
        }
    return found
