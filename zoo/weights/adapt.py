"""Weights of a model of another size, made to fit: position tables, bias tables, input channels, classifiers.

Tables are interpolated as the model itself does on a map of another size, so that a model made for the new size gives
what the old one gives on such images. Swin's bias tables, whose windows have a fixed size, are interpolated bicubically
as Swin's authors do when they load weights of other windows.

A module with tables of its own kind defines ``adapt_weight(name, value) -> Tensor | None``: ``value`` is what the
checkpoint has for its parameter ``name``; None says that it cannot be made to fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.position_table import PositionTable
from zoo.layers.relative_position import RelativePositionBias
from zoo.layers.token_positions import TokenPositions
from zoo.mixers.agent import AgentBias

#: Names of modules with one output, or one embedding, a class, in models that are no backbones.
_HEADS = frozenset(
    ("head", "heads", "fc", "classifier", "cls_head", "class_embed", "decode_head", "conv_seg", "fc_cls")
    # detectors: of the proposals, the denoising queries' labels, torchvision's predictors, Co-DETR's boxes of classes
    + ("first_class_embed", "enc_out_class_embed", "label_enc", "box_predictor", "mask_fcn_logits", "locate")
)


def adapt_tensor(model: nn.Module, key: str, value: Tensor, target: Tensor) -> tuple[Tensor, str] | None:
    """A checkpoint's tensor in the size that the model has, and how it was made; None where no rule applies.

    Args:
        model: the model that is loaded.
        key: the tensor's name in it.
        value: what the checkpoint has.
        target: what the model has.
    """
    path, _, name = key.rpartition(".")
    try:
        module: Any = model.get_submodule(path)
    except AttributeError:
        return None
    if not value.is_floating_point():
        return None
    made: Tensor | None = None
    how = ""
    if hasattr(module, "adapt_weight"):
        made, how = module.adapt_weight(name, value), f"by {type(module).__name__}"
    for kind, (rule, text) in _RULES.items():
        if made is None and isinstance(module, kind):
            made, how = rule(module, name, value.float()), text
    if made is None or made.shape != target.shape:
        return None
    return made.to(value.dtype).contiguous(), f"{tuple(value.shape)} -> {tuple(target.shape)}, {how}"


def is_head(model: nn.Module, key: str) -> bool:
    """Whether a key of the model (or of a checkpoint of one) belongs to what turns features into classes."""
    backbone: Any = getattr(model, "backbone", model)
    inner = key if backbone is model else key.removeprefix("backbone.")
    if hasattr(backbone, "layer_id") and (backbone is model or inner != key):
        try:
            return backbone.layer_id(inner) == backbone.num_layers() - 1
        except (ValueError, KeyError, IndexError, LookupError):
            pass
    return any(part in _HEADS for part in key.split(".")[:-1])


def is_other_classifier(model: nn.Module, key: str, value: Tensor, target: Tensor) -> bool:
    """Whether a tensor is that of a classifier with another number of classes."""
    return is_head(model, key) and value.ndim == target.ndim and value.shape[1:] == target.shape[1:]


def _table(module: Any, name: str, value: Tensor) -> Tensor | None:
    # [1, h, w, C] -> [1, H, W, C]
    own = module.table
    if name != "table" or value.ndim != 4 or value.shape[3] != own.shape[3]:
        return None
    planes = value.permute(0, 3, 1, 2)
    planes = F.interpolate(planes, size=own.shape[1:3], mode="bicubic", antialias=True, align_corners=False)
    return planes.permute(0, 2, 3, 1)


def _tokens(module: Any, name: str, value: Tensor) -> Tensor | None:
    # [1, P + h*w, C] -> [1, P + H*W, C]; the checkpoint's map has to be a square
    prefix, grid = module.prefix, module.grid
    side = math.isqrt(max(0, value.shape[1] - prefix)) if value.ndim == 3 else 0
    if name != "table" or side < 1 or side**2 != value.shape[1] - prefix or value.shape[2] != module.table.shape[2]:
        return None
    planes = value[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
    planes = F.interpolate(planes, size=tuple(grid), mode="bilinear", align_corners=False)
    return torch.cat([value[:, :prefix], planes.flatten(2).transpose(1, 2)], dim=1)


def _relative(module: Any, name: str, value: Tensor) -> Tensor | None:
    # [(2w-1)^2, heads] -> [(2W_h-1)(2W_w-1), heads]; the checkpoint's window has to be a square
    side = math.isqrt(value.shape[0]) if value.ndim == 2 else 0
    if name != "table" or side % 2 == 0 or side**2 != value.shape[0] or value.shape[1] != module.table.shape[1]:
        return None
    size = (2 * module.window[0] - 1, 2 * module.window[1] - 1)
    planes = F.interpolate(value.t().reshape(1, -1, side, side), size=size, mode="bicubic", align_corners=False)
    return planes.flatten(2)[0].t()


#: dimension of the table along the map, in the shapes of AgentBias
_AGENT_AXES = {"ah_bias": 3, "aw_bias": 4, "ha_bias": 2, "wa_bias": 3}


def _agent(module: Any, name: str, value: Tensor) -> Tensor | None:
    # one axis of [1, h, n, L, 1], [1, h, n, 1, L], [1, h, L, 1, n] or [1, h, 1, L, n]
    axis, own = _AGENT_AXES.get(name), getattr(module, name, None)
    if axis is None or own is None or value.ndim != 5:
        return None
    lines = value.movedim(axis, -1)
    made = F.interpolate(lines.flatten(0, 3)[:, None], size=own.shape[axis], mode="linear", align_corners=False)
    return made.reshape(*lines.shape[:-1], own.shape[axis]).movedim(-1, axis)


def _input_channels(module: Any, name: str, value: Tensor) -> Tensor | None:
    # timm's rule: one channel gets the sum of the three; more get them repeated and scaled
    from timm.models import adapt_input_conv

    if name != "weight" or value.ndim != 4 or value.shape[1] != 3 or module.groups != 1:
        return None
    return adapt_input_conv(module.in_channels, value)


_RULES: dict[type[nn.Module], tuple[Callable[[Any, str, Tensor], Tensor | None], str]] = {
    PositionTable: (_table, "bicubic"),
    TokenPositions: (_tokens, "bilinear"),
    RelativePositionBias: (_relative, "bicubic"),
    AgentBias: (_agent, "linear"),
    nn.Conv2d: (_input_channels, "input channels by timm's rule"),
}
