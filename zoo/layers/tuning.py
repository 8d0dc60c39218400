"""What a partly frozen model has learned: its trainable parameters, to be saved and loaded without the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tuned_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that take gradients, by name (detached, sharing memory)."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_tuned_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what :func:`tuned_state_dict` gave back into a model of the same kind.

    Raises:
        KeyError: names that are missing or left over; the model is unchanged then.
        ValueError: another shape; the model is unchanged then.
    """
    own = tuned_state_dict(model)
    differences = sorted(own.keys() ^ state.keys())
    if differences:
        raise KeyError(
            f"{len(differences)} trainable parameters are missing or left over: {', '.join(differences[:5])}"
        )
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, the model has {tuple(value.shape)}")
    for name, value in own.items():
        value.copy_(state[name])
