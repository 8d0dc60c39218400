"""Multi-scale deformable attention: the operator, the module and its initial values, gradients included."""

from typing import Any

import torch
from torch import Tensor

from zoo.detection.ms_deform import MSDeformAttn
from zoo_kernels.ms_deform_attention import ms_deform_attention

MODULE = "models/ops/modules/ms_deform_attn.py:MSDeformAttn"
OPERATOR = "models/ops/functions/ms_deform_attn_func.py:ms_deform_attn_core_pytorch"


def _shapes(x: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((int(h), int(w)) for h, w in x)


def run(entry: str, kwargs: dict[str, Any], state: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Any]:
    if entry == OPERATOR:
        leaves = {k: inputs[k].requires_grad_() for k in ("value", "sampling_locations", "attention_weights")}
        out = ms_deform_attention(spatial_shapes=_shapes(inputs["spatial_shapes"]), **leaves)
        grads = torch.autograd.grad(out, list(leaves.values()), inputs["grad_output"])
        return {"output": out} | {f"grad_{k}": g for k, g in zip(leaves, grads)}
    if entry != MODULE:
        raise LookupError(entry)
    module = MSDeformAttn(**kwargs)
    if not inputs:
        return {
            "sampling_offsets.bias": module.sampling_offsets.bias,
            "sampling_offsets.weight_abs_max": module.sampling_offsets.weight.abs().max(),
            "attention_weights.bias_abs_max": module.attention_weights.bias.abs().max(),
            "attention_weights.weight_abs_max": module.attention_weights.weight.abs().max(),
        }
    module.load_state_dict(state)
    leaves = {k: inputs[k].requires_grad_() for k in ("query", "reference_points", "input_flatten")}
    out = module(*leaves.values(), _shapes(inputs["input_spatial_shapes"]), inputs.get("input_padding_mask"))
    out.backward(inputs["grad_output"])
    found = {"output": out} | {f"grad_{k}": t.grad for k, t in leaves.items()}
    return found | {f"grad_param/{k}": p.grad for k, p in module.named_parameters()}
