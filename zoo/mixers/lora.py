"""Low-rank adapters on the projections of any mixer, through peft.

LoRA: Low-Rank Adaptation of Large Language Models (ICLR 2022, arXiv 2106.09685, eq. 3). The adapters are those of the
optional package peft (extra ``lora``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.mixers.base import Mixer
from zoo.registry import did_you_mean


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("lora needs the package peft: pip install 'attnzoo[lora]'") from error
    return peft


def projections(model: nn.Module, targets: Sequence[str] | None = None) -> list[str]:
    """Names of the linear layers that get an adapter.

    Args:
        model: a backbone or any other module.
        targets: last parts of names ("qkv", "attn.proj"); None for all linear layers inside mixers.

    Raises:
        ValueError: a target that no linear layer has; the message has the nearest. Or there is none at all.
    """
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if targets is None:
        mixers = [n for n, m in model.named_modules() if isinstance(m, Mixer)]
        found = [n for n in linear if any(n.startswith(f"{m}." if m else "") for m in mixers)]
        if not found:
            raise ValueError(
                f"{type(model).__name__} has no mixer with linear layers; name the layers by targets=[...]"
            )
        return found
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets={targets!r}: accepted is a list of names of linear layers, or None")
    for target in targets:
        if not any(_named(n, target) for n in linear):
            names = sorted({n.rpartition(".")[2] for n in linear})
            raise ValueError(f"targets: no linear layer is named {target!r}{did_you_mean(target, names)}")
    return [n for n in linear if any(_named(n, t) for t in targets)]


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def add_lora(
    model: nn.Module,
    targets: Sequence[str] | None = None,
    r: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
) -> list[str]:
    """Add ``alpha / r * B A`` to the weights of linear layers; only A and B take gradients afterwards.

    B starts at zero, so that the model's results are unchanged.

    Args:
        model: changed in place; an adapted layer's weight is called ``<name>.base_layer.weight`` from now on.
        targets: see :func:`projections`.
        r: rank.
        alpha: factor, in units of ``1 / r``.
        dropout: of what goes into A, in training.

    Returns:
        The names of the adapted layers.

    Raises:
        ImportError: peft is not installed.
        ValueError: a rank below 1, or targets that do not exist.
    """
    if r < 1:
        raise ValueError(f"r={r}: accepted are ranks from 1")
    peft = _peft()
    names = projections(model, targets)
    config = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, bias="none")
    peft.inject_adapter_in_model(config, model)
    adapted = {n for n, m in model.named_modules() if hasattr(m, "lora_A")}
    if adapted != set(names):  # a name that ends like another's full name
        raise ValueError(f"targets: also adapted would be {', '.join(sorted(adapted ^ set(names)))}; give longer names")
    for n, p in model.named_parameters():
        p.requires_grad_(".lora_" in n)
    return names


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the adapters to the weights and remove them, in place: the same results under the original names.

    Raises:
        ValueError: there is no adapter.
    """
    adapted = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    if not adapted:
        raise ValueError(f"{type(model).__name__} has no adapters to merge")
    for name, layer in adapted:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model
