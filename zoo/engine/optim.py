"""Parameter groups (layer-wise learning rates, no weight decay where it harms) and schedules with a warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mmengine.optim
import torch
from mmengine.optim import _ParamScheduler
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Learning-rate factor of every parameter: ``layer_decay ** (last layer - its layer)``.

    Layers are those of the model's backbones (modules with ``group_matcher`` and ``num_layers``); what lies outside of
    them (necks, heads) trains at the full rate, as in BEiT (arXiv:2106.08254) and timm.
    """
    scales = {name: 1.0 for name, _ in model.named_parameters()}
    for prefix, module in model.named_modules():
        if hasattr(module, "group_matcher") and hasattr(module, "num_layers"):
            last = module.num_layers() - 1
            for name, layer in module.group_matcher().items():
                scales[f"{prefix}.{name}" if prefix else name] = layer_decay ** (last - layer)
    return scales


def undecayed(model: nn.Module) -> set[str]:
    """Names of parameters that take no weight decay: biases, norms, scalars and vectors, and what the modules name
    themselves (``no_weight_decay()``: position tables, tokens)."""
    names = set()
    for prefix, module in model.named_modules():
        own = {f"{prefix}.{n}" if prefix else n: p for n, p in module.named_parameters(recurse=False)}
        names |= {n for n, p in own.items() if p.ndim <= 1 or n.endswith(".bias") or isinstance(module, NORMS)}
        if callable(getattr(module, "no_weight_decay", None)):
            names |= {f"{prefix}.{n}" if prefix else n for n in module.no_weight_decay()}
    return names


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    decay_norm_and_bias: bool = False,
    custom_keys: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameters that require gradients, grouped by learning rate and weight decay.

    Args:
        model: its parameters are grouped; one shared by two modules is listed once.
        lr: learning rate of the last layer.
        weight_decay: of the parameters that take any.
        layer_decay: factor from a layer to the one before it; 1 for none.
        decay_norm_and_bias: decay norms, biases and position tables as well.
        custom_keys: part of a parameter's name -> ``dict(lr_mult=..., decay_mult=...)``; the longest part that
            matches counts, on top of the rest.

    Raises:
        ValueError: a factor is out of range, or a custom key matches no parameter.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay}: accepted are numbers above 0 up to 1")
    custom = {k: dict(v) for k, v in (custom_keys or {}).items()}
    for key, factors in custom.items():
        unknown = set(factors) - {"lr_mult", "decay_mult"}
        if unknown:
            raise ValueError(f"custom_keys[{key!r}] has {sorted(unknown)}; accepted are lr_mult and decay_mult")
        if not any(key in name for name, _ in model.named_parameters()):
            raise ValueError(f"custom_keys: no parameter's name has {key!r} in it")
    scales = layer_scales(model, layer_decay)
    plain = set() if decay_norm_and_bias else undecayed(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = custom[max((k for k in custom if k in name), key=len)] if any(k in name for k in custom) else {}
        scale = scales[name] * own.get("lr_mult", 1.0)
        decay = (0.0 if name in plain else weight_decay) * own.get("decay_mult", 1.0)
        group = groups.setdefault((scale, decay), {"params": [], "lr": lr * scale, "weight_decay": decay})
        group["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter that requires gradients")
    return list(groups.values())


class ParamGroups:
    """Builds the optimizer wrapper over :func:`parameter_groups`; the engine's default constructor.

    Args:
        optim_wrapper_cfg: ``dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=..., weight_decay=...))``.
        paramwise_cfg: see :meth:`settings`.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None):
        self.wrapper = dict(optim_wrapper_cfg)
        self.options = self.settings(**(paramwise_cfg or {}))

    @staticmethod
    def settings(
        layer_decay: float = 1.0,
        decay_norm_and_bias: bool = False,
        custom_keys: Mapping[str, Mapping[str, float]] | None = None,
    ) -> dict[str, Any]:
        """What ``paramwise_cfg`` may hold; see :func:`parameter_groups`."""
        return {"layer_decay": layer_decay, "decay_norm_and_bias": decay_norm_and_bias, "custom_keys": custom_keys}

    def __call__(self, model: nn.Module) -> mmengine.optim.OptimWrapper:
        """The wrapper, with its optimizer."""
        model = getattr(model, "module", model)
        wrapper, optimizer = dict(self.wrapper), dict(self.wrapper["optimizer"])
        if "lr" not in optimizer:
            raise ValueError("optim_wrapper.optimizer needs a learning rate 'lr'")
        groups = parameter_groups(model, optimizer["lr"], optimizer.get("weight_decay", 0.0), **self.options)
        optimizer["params"] = groups
        wrapper["optimizer"] = OPTIMIZERS.build(optimizer)
        wrapper.setdefault("type", "OptimWrapper")
        return OPTIM_WRAPPERS.build(wrapper)


class WarmupCosineLR(_ParamScheduler):
    """Linear warm-up, then half a cosine down to the end of the run, set before every iteration.

    At iteration t of T with W of warm-up the factor on each group's learning rate is, for t < W,
    ``warmup_start + (1 - warmup_start) * t / W``, and then
    ``min_ratio + (1 - min_ratio) * (1 + cos(pi * (t - W) / (T - W))) / 2`` (SGDR, arXiv:1608.03983, equation 5).

    Args:
        optimizer: the optimizer wrapper.
        total_iters: T; the runner gives the length of the training.
        epoch_length: iterations of an epoch; the runner gives it.
        warmup_epochs: length of the warm-up; may be a fraction.
        warmup_iters: the same in iterations, instead.
        warmup_start: factor at the first iteration.
        min_ratio: factor at the end.
    """

    def __init__(
        self,
        optimizer: Any,
        total_iters: int,
        epoch_length: int = 1,
        warmup_epochs: float = 0.0,
        warmup_iters: int | None = None,
        warmup_start: float = 1e-3,
        min_ratio: float = 0.0,
    ):
        if total_iters < 1:
            raise ValueError(f"total_iters={total_iters}: at least 1 is needed")
        for name, ratio in (("warmup_start", warmup_start), ("min_ratio", min_ratio)):
            if not 0 <= ratio <= 1:
                raise ValueError(f"{name}={ratio}: accepted are factors from 0 to 1")
        warmup = round(warmup_epochs * epoch_length) if warmup_iters is None else warmup_iters
        if warmup < 0:
            raise ValueError(f"the warm-up is {warmup} iterations; accepted are 0 and above")
        self.total_iters = total_iters
        self.warmup = min(warmup, total_iters)
        self.warmup_start = warmup_start
        self.min_ratio = min_ratio
        super().__init__(optimizer, "lr", by_epoch=False)

    def factor(self, iteration: int) -> float:
        """What the learning rates are multiplied with at an iteration."""
        if iteration < self.warmup:
            return self.warmup_start + (1 - self.warmup_start) * iteration / self.warmup
        progress = min(1.0, (iteration - self.warmup) / max(1, self.total_iters - self.warmup))
        return self.min_ratio + (1 - self.min_ratio) * self.fall(progress)

    def fall(self, progress: float) -> float:
        """From 1 to 0 as what follows the warm-up goes from 0 to 1."""
        return (1 + math.cos(math.pi * progress)) / 2

    def step(self) -> None:
        """Go to the next iteration and set every group's learning rate."""
        self._global_step += 1
        self.last_step = self._global_step
        factor = self.factor(self.last_step)
        for group, base in zip(self.optimizer.param_groups, self.base_values):
            group["lr"] = base * factor
        self._last_value = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands; its length stays the configured one, so that a run can be prolonged."""
        return {"last_step": self.last_step, "_global_step": self._global_step, "base_values": list(self.base_values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where a schedule stood."""
        super().load_state_dict(state_dict)
        self._global_step -= 1
        self.step()


class WarmupPolyLR(WarmupCosineLR):
    """Linear warm-up, then a power of what is left of the run, set before every iteration (segmentation's schedule).

    The factor is that of :class:`WarmupCosineLR` during the warm-up, and then
    ``min_ratio + (1 - min_ratio) * (1 - (t - W) / (T - W)) ** power`` (DeepLab, arXiv:1606.00915, section 4.1.1).

    Args:
        optimizer, total_iters, epoch_length, warmup_epochs, warmup_iters, warmup_start, min_ratio: see
            :class:`WarmupCosineLR`.
        power: 1 falls along a line, 0.9 is DeepLab's.
    """

    def __init__(
        self,
        optimizer: Any,
        total_iters: int,
        epoch_length: int = 1,
        warmup_epochs: float = 0.0,
        warmup_iters: int | None = None,
        warmup_start: float = 1e-6,
        min_ratio: float = 0.0,
        power: float = 1.0,
    ):
        if not power > 0:
            raise ValueError(f"power={power}: accepted are numbers above 0")
        self.power = power
        super().__init__(optimizer, total_iters, epoch_length, warmup_epochs, warmup_iters, warmup_start, min_ratio)

    def fall(self, progress: float) -> float:
        """From 1 to 0 as what follows the warm-up goes from 0 to 1."""
        return (1 - progress) ** self.power


def whole_norm(clip: Any) -> Any:
    """A clipping function whose result is an ordinary tensor also when the gradients are sharded."""

    def clip_and_gather(parameters: Any, **kwargs: Any) -> torch.Tensor | None:
        norm = clip(parameters, **kwargs)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    return clip_and_gather
