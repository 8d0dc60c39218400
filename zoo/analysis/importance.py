"""Importance of heads: what a measure loses when a head's output is taken away.

P. Michel, O. Levy and G. Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019, arXiv:1905.10650, section 3
(masks of heads, ablating one at a time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoo.mixers.base import Mixer

#: What mixers call the layer that joins their heads.
_PROJECTIONS = ("proj", "wo")


def output_projection(mixer: Mixer) -> nn.Linear:
    """The layer that joins the heads: input channels ``h * head_dim ...`` come from head h.

    Raises:
        TypeError: the mixer has none that takes all heads one after the other.
    """
    for name in _PROJECTIONS:
        layer = getattr(mixer, name, None)
        if isinstance(layer, nn.Linear) and layer.in_features == mixer.dim:
            return layer
    raise TypeError(f"{type(mixer).__name__} joins its heads in no layer {' or '.join(_PROJECTIONS)} of dim channels")


@contextmanager
def pruned(mixer: Mixer, heads: Iterable[int]) -> Iterator[None]:
    """Within the context the mixer's given heads contribute nothing; weights are then as before.

    Raises:
        ValueError: a number that is no head.
        TypeError: see :func:`output_projection`.
    """
    chosen = list(heads)
    if any(not 0 <= h < mixer.num_heads for h in chosen):
        raise ValueError(f"heads={chosen}: accepted are 0 to {mixer.num_heads - 1}")
    weight = output_projection(mixer).weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            for h in chosen:
                weight[:, h * mixer.head_dim : (h + 1) * mixer.head_dim] = 0
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def head_importance(
    model: nn.Module, loss: Callable[[], float], names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """How much ``loss()`` grows when one head is taken away, for every head of every mixer.

    Args:
        model: any module with mixers in it.
        loss: evaluates the model as it is at the time; larger is worse.
        names: of mixers in the model; None takes all whose heads can be taken away.

    Returns:
        mixer name -> float64 ``[heads]``; negative where the model is better off without the head.

    Raises:
        LookupError: a name is no mixer of the model.
        TypeError: a named mixer's heads cannot be taken away.
    """
    mixers = {name: m for name, m in model.named_modules() if isinstance(m, Mixer)}
    if names is None:
        chosen = [name for name, mixer in mixers.items() if _can_be_pruned(mixer)]
    else:
        chosen = list(names)
        if unknown := [name for name in chosen if name not in mixers]:
            raise LookupError(f"no mixer is named {', '.join(unknown)}; there are {', '.join(mixers)}")
    base = float(loss())
    found = {}
    for name in chosen:
        mixer = mixers[name]
        growth = []
        for head in range(mixer.num_heads):
            with pruned(mixer, [head]):
                growth.append(float(loss()) - base)
        found[name] = torch.tensor(growth, dtype=torch.float64)
    return found


def _can_be_pruned(mixer: Mixer) -> bool:
    try:
        output_projection(mixer)
    except TypeError:
        return False
    return True
