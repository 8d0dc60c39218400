"""Co-DETR: the authors' detector over given maps, its auxiliary heads, their positives as queries, and all losses.

The last map of small images is one pixel, where a normalisation with one channel a group multiplies float32's rounding
by 300: recorded outputs are 1.5e-4 off the exact ones there, which is beyond the tolerance, and so is the authors' own
code by another number of threads. They can be met by the same rounding only. So the cases run in one thread, and
deformable attention by the formulation that exporters get, which rounds as the authors' PyTorch code does.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from zoo.detection.boxes import xyxy_to_cxcywh
from zoo.detection.co_criterion import CoCriterion, CoDINOCriterion
from zoo.detection.co_postprocess import best_of_pairs_clipped
from zoo.detection.co_queries import padding_mask
from zoo.detection.matcher import HungarianMatcher
from zoo.registry import MODELS, build
from zoo.weights.importers import co_detr as importer

NETWORKS = (importer.DEFORMABLE, importer.DINO)
#: detections of an image in the recorded evaluations
DETECTIONS = 20
_NAMES = {"boxes": "coords", "features": "feats", "box_weights": "bbox_weights"}
_HEADS = {
    "loss_rpn_ce_": "loss_rpn_cls/",
    "loss_rpn_bbox_": "loss_rpn_bbox/",
    "loss_roi_ce": "loss_cls0",
    "loss_roi_bbox": "loss_bbox0",
    "loss_atss_ce_": "loss_cls1/",
    "loss_atss_bbox_": "loss_bbox1/",
    "loss_atss_centre_": "loss_centerness1/",
}


def _official(name: str) -> str:
    """``loss_giou_aux0_1`` -> ``d1.loss_iou_aux0`` and the like."""
    for own, official in _HEADS.items():
        if name.startswith(own):
            return name.replace(own, official)
    _, kind, *parts = name.split("_")
    kind = {"ce": "loss_cls", "bbox": "loss_bbox", "giou": "loss_iou"}[kind]
    if parts and parts[0] in ("enc", "interm"):
        return f"enc_{kind}"
    if parts and parts[0] == "dn":
        kind, parts = f"dn_{kind}", parts[1:]
    if parts and parts[0].startswith("aux"):
        kind, parts = f"{kind}_{parts[0]}", parts[1:]
    return f"d{parts[0]}.{kind}" if parts else kind


def _dets(found: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [
        {"boxes_scores": torch.cat([f["boxes"], f["scores"][:, None]], dim=1), "labels": f["labels"]} for f in found
    ]


def _layers(outputs: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return tuple(torch.stack([p[k] for p in outputs]) for k in ("pred_logits", "pred_boxes"))


def _query(out: dict[str, Any]) -> dict[str, Any]:
    first = out["interm_outputs"] if "interm_outputs" in out else out.get("enc_outputs")
    classes, boxes = _layers([*out["aux_outputs"], out])
    if "dn_outputs" in out:
        dn = out["dn_outputs"]
        restored = _layers([*dn["aux_outputs"], dn])
        classes, boxes = torch.cat([restored[0], classes], dim=2), torch.cat([restored[1], boxes], dim=2)
    found = {"all_cls_scores": classes, "all_bbox_preds": boxes}
    return found | ({} if first is None else {"enc_cls": first["pred_logits"], "enc_boxes": first["pred_boxes"]})


def _atss(predictions: Any) -> dict[str, list[Tensor]]:
    return dict(zip(("cls", "reg", "centerness"), predictions))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
@patch("zoo_kernels.ms_deform_attention.eager.exporting", lambda: True)
def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    training = "gt_labels" in inputs
    spec = importer.config_from_official(entry, kwargs)
    # The recorded cases see all anchors (padding is theirs too) and proposals, and are without noise.
    spec["auxiliary"] |= {"rpn_samples": 10**6, "roi_samples": 10**6, "anchors_in_padding": True}
    if entry == importer.DINO:
        spec |= dict(dn_label_noise_ratio=0.0, dn_box_noise_scale=0.0)
    model = build(spec, MODELS).train(training)
    model.load_state_dict(importer.convert_state_dict(entry, state))
    heads = model.auxiliary
    # Theirs is the identity in the place of random permutations.
    heads.permutation = torch.arange
    sizes = inputs["image_sizes"]
    mask = torch.ones(len(sizes), *inputs["batch_input_shape"].tolist(), dtype=torch.bool)
    for m, (h, w) in zip(mask, sizes.tolist()):
        m[:h, :w] = False
    if not training:
        with torch.no_grad():
            return _evaluated(model, inputs["features"], mask, sizes)
    scale = [torch.tensor([w, h, w, h]) for h, w in sizes.tolist()]
    boxes = [xyxy_to_cxcywh(b / s) for b, s in zip(inputs["gt_bboxes"], scale)]
    targets = [{"labels": c, "boxes": b} for c, b in zip(inputs["gt_labels"], boxes)]
    out = model(inputs["features"], mask, targets)
    kind = CoDINOCriterion if entry == importer.DINO else CoCriterion
    lambdas = {k: kwargs[k] for k in ("lambda_1", "lambda_2") if k in kwargs}
    criterion = kind(kwargs["num_classes"], HungarianMatcher(), **lambdas).train()
    losses = criterion(out, targets)
    auxiliary = out["auxiliary"]
    found: dict[str, Any] = {"query": _query(out), "encoder_feats": out["encoder_maps"]}
    found["rpn"] = {"cls": auxiliary["rpn"]["logits"], "reg": auxiliary["rpn"]["offsets"]}
    found["roi"] = {"cls_score": auxiliary["roi"]["logits"], "bbox_pred": auxiliary["roi"]["offsets"]}
    found["atss"] = _atss(auxiliary["atss"][k] for k in ("logits", "offsets", "centre"))
    found["proposals"] = auxiliary["proposals"]
    weights = {k: criterion.weight_of(k) for k in losses}
    found["losses"] = {_official(k): v * w for k, v in losses.items() if (w := weights[k]) is not None}
    # Some of theirs are a row of one number.
    found["losses"] = {
        k: v[None] if "loss_cls" in k and k[-1] not in "0123456789" or "loss_cls_aux" in k else v
        for k, v in found["losses"].items()
    }
    found["losses"]["acc0"] = losses["roi_accuracy"][None]
    for i, queries in enumerate(out.get("positive_queries", ())):
        named = {_NAMES.get(k, k): v for k, v in queries.items() if k != "positive"}
        if "positive" in queries:
            named["attn_mask"] = padding_mask(queries["positive"], kwargs["heads"])
        found.setdefault("aux_targets", []).append(named)
        classes, places = _layers(out["positive_outputs"][i])
        found.setdefault("aux_outputs", []).append({"cls": classes, "boxes": places})
    return found


def _evaluated(model: Any, features: list[Tensor], mask: Tensor, sizes: Tensor) -> dict[str, Any]:
    out = model(features, mask)
    maps, heads = model.encoder_maps(out), model.auxiliary
    logits, offsets = heads.rpn(maps)
    proposals = heads.proposals(maps, sizes)
    return {
        "query": _query(out),
        "query_dets": _dets(best_of_pairs_clipped(out, sizes, DETECTIONS)),
        "encoder_feats": maps,
        "rpn": {"cls": logits, "reg": offsets},
        "rpn_proposals": proposals,
        "atss": _atss(heads.atss(maps)),
        "roi_dets": _dets(heads.detect(maps, sizes, "roi", DETECTIONS)),
        "atss_dets": _dets(heads.detect(maps, sizes, "atss", DETECTIONS)),
    }
