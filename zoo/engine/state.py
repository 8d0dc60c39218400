"""The state of random numbers and of half-finished gradient accumulation: all that a rank has of its own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed python, numpy and torch (all devices); every rank draws its own numbers."""
    value = (seed + 1_000_003 * rank) % 2**32
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 (timm's Mixup draws from numpy's global generator)
    torch.manual_seed(value)


def rng_state() -> dict[str, Any]:
    """The state of every global generator, as tensors, numbers and lists."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, position, has_gauss, cached = numpy_state
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` gave."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
    keys = numpy["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextlib.contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Whatever is drawn inside the block leaves the global generators as they were (validation, saving)."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients accumulated on this rank so far (the local shard of a sharded one)."""
    found = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            grad = p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad
            found[name] = grad.detach().cpu().clone()
    return found


def set_gradients(model: nn.Module, grads: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`gradients` gave."""
    for name, p in model.named_parameters():
        if name not in grads:
            p.grad = None
        elif hasattr(p, "device_mesh"):
            from torch.distributed.tensor import DTensor

            sharded: Any = p
            p.grad = DTensor.from_local(grads[name].to(p.device), sharded.device_mesh, sharded.placements)
        else:
            p.grad = grads[name].to(p.device)
