"""Functions that the DETR family shares: boxes, positions, proposals, padding, losses."""

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d, masks_to_boxes

from zoo.detection import boxes, deformable_transformer, images, losses, mask_head, positions


def _box_ops(inputs: dict[str, Any], eps: float) -> dict[str, Tensor]:
    a, b = boxes.cxcywh_to_xyxy(inputs["boxes1"]), boxes.cxcywh_to_xyxy(inputs["boxes2"])
    iou, union = boxes.box_iou(a, b, eps)
    return {
        "xyxy1": a,
        "back": boxes.xyxy_to_cxcywh(a),
        "iou": iou,
        "union": union,
        "giou": boxes.generalised_box_iou(a, b, eps),
    }


def _proposals(inputs: dict[str, Any], learned: bool) -> dict[str, Any]:
    masks = inputs["masks"]
    shapes = [(m.shape[1], m.shape[2]) for m in masks]
    padding = torch.cat([m.flatten(1) for m in masks], 1)
    memory, logits = deformable_transformer.encoder_proposals(inputs["memory"], padding, shapes)
    infinite = logits.isinf()
    found = {
        "output_memory": memory,
        "proposals_is_inf": infinite,
        "proposals_finite": logits.masked_fill(infinite, 0.0),
        "proposals_sigmoid": logits.sigmoid(),
    }
    if learned:
        size = torch.tensor([-2.5, -3.1])  # the fixture's note names these logits
        logits = deformable_transformer.encoder_proposals(inputs["memory"], padding, shapes, size)[1]
        found |= {"learned_wh_is_inf": logits.isinf(), "learned_wh_sigmoid": logits.sigmoid()}
    return found


def _segmentation(kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    attention = mask_head.AttentionMaps(**kwargs["MHAttentionMap"]).eval()
    head = mask_head.MaskHead(**kwargs["MaskHeadSmallConv"]).eval()
    for module, prefix in ((attention, "bbox_attention."), (head, "mask_head.")):
        module.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
    maps = attention(inputs["hs"], inputs["memory"], inputs["mask"])
    masks = head(inputs["src_proj"], maps, inputs["fpns"])
    return {"bbox_mask": maps, "seg_masks": masks, "pred_masks": masks.view(*maps.shape[:2], *masks.shape[-2:])}


def run(
    entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any], source: str
) -> dict[str, Any]:
    deformable = source.startswith("fundamentalvision/Deformable-DETR")
    # One name, two functions: the DAB-DETR line of repositories has epsilons of its own.
    dab = source.startswith("IDEA-Research/")
    if entry == "util/box_ops.py":
        return _box_ops(inputs, 1e-6 if dab else 0.0)
    if entry == "util/box_ops.py:masks_to_boxes":
        return {"": masks_to_boxes(inputs["masks"])}
    if entry == "util/misc.py:inverse_sigmoid":
        return {"": boxes.inverse_sigmoid(inputs["x"], 1e-3 if dab else 1e-5)}
    if entry == "util/misc.py:nested_tensor_from_tensor_list":
        batch, mask = images.pad_images(inputs["images"])
        sizes = [(2, 5), (3, 3), (5, 4)]
        return {"tensors": batch, "mask": mask} | {f"mask_{h}x{w}": images.mask_at(mask, (h, w)) for h, w in sizes}
    if entry == "models/backbone.py:FrozenBatchNorm2d":
        norm = FrozenBatchNorm2d(kwargs["n"])
        norm.load_state_dict(state)
        return {"": norm(inputs["x"])}
    if entry == "models/segmentation.py:sigmoid_focal_loss,dice_loss":
        args = inputs["inputs"], inputs["targets"], inputs["num_boxes"]
        return {
            "focal": losses.sigmoid_focal_loss(*args),
            "focal_gamma3": losses.sigmoid_focal_loss(*args, alpha=0.6, gamma=3),
            "focal_alpha_neg": losses.sigmoid_focal_loss(*args, alpha=-1),
            "dice": losses.dice_loss(*args),
        }
    if entry.startswith("models/segmentation.py:MHAttentionMap"):
        return _segmentation(kwargs, state, inputs)
    if entry == "models/position_encoding.py:PositionEmbeddingLearned":
        learned = positions.LearnedPositions(kwargs["num_pos_feats"])
        learned.load_state_dict(state)
        return {"": learned(inputs["mask"])}
    if entry == "models/position_encoding.py:PositionEmbeddingSine":
        settings = {"normalized": (16, 10000.0, True), "plain": (10, 10000.0, False)}
        found = {
            k: positions.SinePositions(f, t, n, half_pixel=deformable)(inputs["mask"])
            for k, (f, t, n) in settings.items()
        }
        scaled = positions.SinePositions(8, 20.0, True, scale=3.0, half_pixel=deformable)
        return found | {"scaled": scaled(inputs["mask"])}
    if entry == "models/dino/position_encoding.py:PositionEmbeddingSineHW":
        settings = {"t20": (16, 20.0, True), "th5_tw40": (10, (5.0, 40.0), True), "plain": (8, 10000.0, False)}
        return {k: positions.SinePositions(f, t, n)(inputs["mask"]) for k, (f, t, n) in settings.items()}
    if entry == "models/dino/utils.py:gen_sineembed_for_position":
        return {k: positions.box_sines(v) for k, v in inputs.items()}
    if entry == "models/deformable_transformer.py:get_proposal_pos_embed":
        return {"": positions.coordinate_sines(inputs["proposals"].sigmoid() * (2 * math.pi), 128)}
    if entry.startswith("models/deformable_transformer.py:get_valid_ratio"):
        ratios = torch.stack([deformable_transformer.valid_ratio(m) for m in inputs["masks"]], 1)
        shapes = [(m.shape[1], m.shape[2]) for m in inputs["masks"]]
        return {
            "valid_ratios": ratios,
            "reference_points": deformable_transformer.encoder_reference_points(shapes, ratios),
        }
    if entry == "gen_encoder_output_proposals":
        return _proposals(inputs, dab)
    raise LookupError(entry)
