"""DINO: the authors' network over given maps or images, training cases, and the denoising queries alone."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.denoising import Draws, contrastive_denoising
from zoo.detection.dino_criterion import DINOCriterion
from zoo.detection.matcher import HungarianMatcher
from zoo.registry import MODELS, build
from zoo.weights.importers import dino as importer

NETWORKS = (importer.NETWORK,)
DENOISING = "models/dino/dn_components.py:prepare_for_cdn"


class Recorded(Draws):
    """Draws in the order of the authors' calls."""

    def __init__(self, draws: dict[str, Tensor]):
        self.numbers = {"uniform": [draws["label_p_rand"], draws["box_part_rand"]]}
        self.numbers["integers"] = [draws["new_label_randint"], draws["box_sign_randint01"]]

    def uniform(self, *size: int) -> Tensor:
        return self.numbers["uniform"].pop(0).view(size)

    def integers(self, high: int, *size: int) -> Tensor:
        return self.numbers["integers"].pop(0).view(size)


def _denoising(dn: Any) -> dict[str, Any]:
    return {
        "attn_mask": dn.attn_mask,
        "input_query_label": dn.content,
        "input_query_bbox": dn.boxes,
        "num_dn_group": torch.tensor(dn.groups),
        "pad_size": torch.tensor(dn.size),
    }


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    if entry == DENOISING:
        label_enc = nn.Embedding(*state["label_enc.weight"].shape)
        label_enc.load_state_dict({"weight": state["label_enc.weight"]})
        dn = contrastive_denoising(
            inputs["targets"],
            label_enc,
            kwargs["num_queries"],
            kwargs["num_classes"],
            kwargs["dn_number"],
            kwargs["label_noise_ratio"],
            kwargs["box_noise_scale"],
            Recorded(inputs["draws"]) if "draws" in inputs else None,
        )
        return _denoising(dn)
    training = "targets" in inputs
    model = build(importer.config_from_official(entry, kwargs), MODELS).train(training)
    model.load_state_dict(importer.convert_state_dict(entry, {k: v.float() for k, v in state.items()}))
    found: dict[str, Any] = {}
    if "images" in inputs:
        out = model(inputs["images"], targets=inputs.get("targets"))
        found["backbone"], found["backbone_mask"] = out["features"], out["masks"][: len(out["features"])]
    else:
        out = model(inputs["features"], inputs["mask"], targets=inputs.get("targets"))
    found |= {k: out[k] for k in ("pred_logits", "pred_boxes", "aux_outputs", "interm_outputs") if k in out}
    found["transformer"] = {k: out[k] for k in ("memory", "hs", "references", "init_box_proposal")}
    if "first_tokens" in out:
        found["transformer"] |= {"hs_enc": out["first_tokens"][None], "ref_enc": out["first_boxes"][None]}
    if training:
        dn = out["dn_outputs"]
        found["cdn"] = _denoising(out["denoising"])
        found["dn_meta"] = {
            "num_dn_group": torch.tensor(dn["groups"]),
            "pad_size": torch.tensor(dn["size"]),
            "output_known_lbs_bboxes": {k: dn[k] for k in ("pred_logits", "pred_boxes", "aux_outputs")},
        }
        weights = {k: inputs["weight_dict"][k].item() for k in ("loss_ce", "loss_bbox", "loss_giou")}
        criterion = DINOCriterion(kwargs["num_classes"], HungarianMatcher(eps=1e-6), weights).train()
        found["losses"] = criterion(out, inputs["targets"])
        found["total"] = criterion.total(found["losses"])
        found["total"].backward()
        grads = {k: p.grad for k, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
        found["grad_norm"] = {k: g.norm() for k, g in importer.revert_state_dict(entry, grads).items()}
    return found
