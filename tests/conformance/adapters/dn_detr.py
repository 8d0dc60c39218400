"""DN-DETR: the authors' networks, training cases, and the denoising queries alone."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.detection.denoising import Denoising, Draws, denoising
from zoo.detection.dn_criterion import DNCriterion
from zoo.detection.matcher import HungarianMatcher
from zoo.registry import MODELS, build
from zoo.weights.importers import dn_detr as importer

NETWORKS = (importer.NETWORK, importer.DEFORMABLE)
DENOISING = "models/DN_DAB_DETR/dn_components.py:prepare_for_dn"


class Recorded(Draws):
    """Draws in the order of the authors' calls."""

    def __init__(self, draws: dict[str, Tensor]):
        self.floats = [draws["label_p_rand"], draws["box_rand"]]
        self.whole = [draws["new_label_randint"]]

    def uniform(self, *size: int) -> Tensor:
        return self.floats.pop(0).view(size)

    def integers(self, high: int, *size: int) -> Tensor:
        return self.whole.pop(0).view(size)


def _mask_dict(queries: Denoising, batch: int) -> dict[str, Any]:
    """How the authors name what belongs to the denoising queries."""
    objects = len(queries.labels) // queries.groups
    return {
        "known_indice": torch.arange(objects).repeat(queries.groups),
        "batch_idx": queries.where[0][:objects],
        "map_known_indice": queries.where[1],
        "pad_size": torch.tensor(queries.size),
    }


def _prepare(kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    label_enc = nn.Embedding(*state["label_enc.weight"].shape)
    label_enc.load_state_dict({"weight": state["label_enc.weight"]})
    times = max(1, kwargs["num_patterns"])
    queries = denoising(
        inputs["targets"],
        label_enc,
        kwargs["num_queries"] * times,
        kwargs["num_classes"],
        kwargs["scalar"],
        kwargs["label_noise_scale"],
        kwargs["box_noise_scale"],
        Recorded(inputs["draws"]),
    )
    batch = len(inputs["targets"])
    unknown = nn.functional.pad(label_enc.weight[kwargs["num_classes"]], (0, 1))
    content = unknown.expand(batch, kwargs["num_queries"] * times, -1)
    anchors = inputs["anchors"].repeat(times, 1).expand(batch, -1, -1)
    mask_dict = _mask_dict(queries, batch)
    mask_dict |= {"known_labels": queries.labels, "known_bboxs": queries.clean_boxes}
    return {
        "input_query_label": torch.cat([queries.content, content], 1).transpose(0, 1),
        "input_query_bbox": torch.cat([queries.boxes, anchors], 1).transpose(0, 1),
        "attn_mask": queries.attn_mask,
        "mask_dict": mask_dict,
    }


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    if entry == DENOISING:
        return _prepare(kwargs, state, inputs)
    training = "targets" in inputs
    spec = importer.config_from_official(entry, kwargs)
    if training:
        # The recorded training cases are without noise.
        spec.get("network", spec).update(dn_label_noise_scale=0.0, dn_box_noise_scale=0.0)
    model = build(spec, MODELS).train(training)
    model.load_state_dict(importer.convert_state_dict(entry, state))
    found: dict[str, Any] = {}
    if "images" in inputs:
        out = model(inputs["images"], targets=inputs.get("targets"))
        found["backbone"], found["backbone_mask"] = out["features"], out["masks"]
    else:
        out = model(inputs["features"], inputs["mask"], targets=inputs.get("targets"))
        memory = out["memory"]
        if entry == importer.NETWORK:
            found["intermediate"] = {"memory": memory.transpose(0, 1), "transformer": [out["hs"], out["references"]]}
        else:
            steps = [out["hs"], out["init_reference"], out["inter_references"]]
            found["intermediate"] = {"memory": memory, "transformer": steps}
    found |= {k: out[k] for k in ("pred_logits", "pred_boxes", "aux_outputs") if k in out}
    if training:
        queries, dn = out["denoising"], out["dn_outputs"]
        layers = [*dn["aux_outputs"], dn]
        found["mask_dict"] = _mask_dict(queries, len(inputs["targets"])) | {
            "known_lbs_bboxes": [queries.labels, queries.clean_boxes],
            "output_known_lbs_bboxes": [torch.stack([x[k] for x in layers]) for k in ("pred_logits", "pred_boxes")],
        }
        weights = {k: inputs["weight_dict"][k].item() for k in ("loss_ce", "loss_bbox", "loss_giou")}
        criterion = DNCriterion(kwargs["num_classes"], HungarianMatcher(eps=1e-6), weights).train()
        found["losses"] = criterion(out, inputs["targets"])
        found["total"] = criterion.total(found["losses"])
        found["total"].backward()
        grads = {k: p.grad for k, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}
        found["grad_norm"] = {k: g.norm() for k, g in importer.revert_state_dict(entry, grads).items()}
    return found
