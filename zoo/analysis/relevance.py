"""Relevance of positions for a class: attention times its gradient, followed through the layers.

H. Chefer, S. Gur and L. Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers", ICCV 2021, arXiv:2103.15679, equations 5 and 6: ``A' = mean over heads of max(0, grad A * A)`` and
``R <- R + A' R``, from ``R = 1``.

The gradient of attention is computed from that of the mixer's output: with ``y = proj(concat of A_h V_h) + ...`` it is
``dL/dA_h = (dL/dy W_h) V_h^T``, so that models keep their fast attention and nothing of them is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo.analysis.importance import output_projection
from zoo.analysis.rollout import multiplied
from zoo.mixers.base import Mixer

_TOLERANCE = 1e-3


@dataclass
class _Pass:
    """What a mixer got and gave: ``[1, H, W, C]`` each."""

    x: Tensor
    y: Tensor = field(init=False)


def relevance(
    model: nn.Module,
    inputs: Tensor,
    target: int | None = None,
    names: Sequence[str] | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, tuple[int, int]]:
    """Relevance of each position for a class.

    Args:
        model: gives logits ``[1, classes]``; runs in evaluation mode and is put back afterwards.
        inputs: a normalised image ``[1, 3, H, W]``.
        target: the class; None for the one that the model says.
        names: mixers to follow, in any order; None takes all that have an attention map and values.
        forward: what to run instead of ``model``.

    Returns:
        float ``[H, W]`` over the positions of the first mixer (mean over the positions of the last one), and that grid.

    Raises:
        TypeError: no mixer has an attention map and values, or a named one has not.
        LookupError: a name is no mixer of the model; ``target`` is no class.
    """
    mixers = {n: m for n, m in model.named_modules() if isinstance(m, Mixer)}
    if names is not None and (unknown := [n for n in names if n not in mixers]):
        raise LookupError(f"no mixer is named {', '.join(unknown)}; there are {', '.join(mixers)}")
    passes: dict[str, _Pass] = {}
    handles = [mixers[n].register_forward_hook(_recorder(passes, n)) for n in (names or mixers)]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.enable_grad():
            logits = (forward or model)(inputs.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    if logits.ndim != 2 or logits.shape[0] != 1:
        raise TypeError(f"the model gave {tuple(logits.shape)}; logits [1, classes] of one image are needed")
    target = int(logits.argmax()) if target is None else target
    if not 0 <= target < logits.shape[1]:
        raise LookupError(f"target={target} is no class; accepted are 0 to {logits.shape[1] - 1}")
    outputs = [p.y for p in passes.values()]
    gradients = torch.autograd.grad(logits[0, target], outputs, allow_unused=True)
    layers, grids = [], []
    for (name, seen), gradient in zip(passes.items(), gradients):
        try:
            if gradient is None:
                raise TypeError(f"{name} has no influence on the logits")
            weighted = weighted_attention(mixers[name], seen.x, gradient, seen.y)
        except TypeError:
            if names is not None:
                raise
            continue
        layers.append(weighted + torch.eye(weighted.shape[0], dtype=weighted.dtype, device=weighted.device))
        grids.append((seen.x.shape[1], seen.x.shape[2]))
    if not layers:
        raise TypeError(f"no mixer of {type(model).__name__} has an attention map and values to weigh it with")
    total = multiplied(layers, grids)  # [N last, N first]
    return total.mean(0).reshape(grids[0]), grids[0]


@torch.no_grad()
def weighted_attention(mixer: Mixer, x: Tensor, gradient: Tensor, y: Tensor) -> Tensor:
    """Equation 5, ``[N, N]``: the mean over heads of the positive part of attention times its gradient.

    Args:
        mixer: with an attention map.
        x: ``[1, H, W, C]``, what it got.
        gradient: ``[1, H, W, C]`` of what it gave.
        y: ``[1, H, W, C]``, what it gave: maps and values that are only guessed must reproduce it.

    Raises:
        TypeError: the mixer has no map, no values, or values that do not give its output.
    """
    attention = mixer.attention_map(x)  # [1, heads, N, N]
    projection = output_projection(mixer)
    values = values_of(mixer, x, attention, projection, y)  # [1, heads, N, d]
    flat = gradient.flatten(1, 2) @ projection.weight  # [1, N, C], before the projection
    heads = flat.unflatten(2, (attention.shape[1], -1)).transpose(1, 2)  # [1, heads, N, d]
    slope = heads @ values.transpose(-1, -2)
    return (slope * attention).clamp_min(0).mean(1)[0]


def values_of(mixer: Mixer, x: Tensor, attention: Tensor, projection: nn.Linear, y: Tensor) -> Tensor:
    """The values ``[1, heads, N, d]`` that the attention weighs: the mixer's own word, or the last third of ``qkv``.

    Raises:
        TypeError: neither is there, or the latter does not give the mixer's output.
    """
    if type(mixer).attention_values is not Mixer.attention_values:
        return mixer.attention_values(x)
    qkv = getattr(mixer, "qkv", None)
    if not isinstance(qkv, nn.Linear) or qkv.out_features != 3 * mixer.dim or attention.shape[1] != mixer.num_heads:
        raise TypeError(f"{type(mixer).__name__} does not say which values its attention weighs (attention_values)")
    values = qkv(x.flatten(1, 2))[..., 2 * mixer.dim :].unflatten(2, (mixer.num_heads, -1)).transpose(1, 2)
    again = projection((attention @ values).transpose(1, 2).flatten(2)).reshape(y.shape)
    if not float((again - y).norm()) <= _TOLERANCE * float(y.norm()):
        raise TypeError(f"{type(mixer).__name__}: the last third of qkv is not what its attention weighs")
    return values


def _recorder(passes: dict[str, _Pass], name: str) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(output, Tensor) and output.requires_grad:
            passes[name] = _Pass(args[0].detach())
            passes[name].y = output

    return record
