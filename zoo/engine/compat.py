"""All that today's torch and setuptools need of mmengine 0.10.7; nothing of torch is patched.

What is here, why, and when it can go:

- ``import mmengine.runner`` looks for optimizers of other packages and imports the whole of transformers for one of
  them. Importing this module first hides transformers from that look-up (and only from it). Goes with the mmengine
  that asks lazily.
- mmengine calls ``torch.load`` without ``weights_only``: since torch 2.6 that refuses mmengine's own checkpoints
  (``HistoryBuffer``, numpy scalars). Our runner reads every checkpoint through
  :func:`zoo.weights.checkpoint.read_checkpoint`, which makes data of them, and never reaches mmengine's loader.
  mmengine's main branch has its own answer; goes with 0.11.
- ``init_dist(launcher="pytorch")`` calls ``torch.cuda.set_device`` without a GPU: :func:`init_process_group`.
- ``MMDistributedDataParallel`` is built with ``device_ids`` on the CPU as well: :func:`ddp_arguments`.
- ``AmpOptimWrapper`` refuses the CPU and uses ``torch.cuda.amp``: our :class:`AmpOptimWrapper`.
- ``mmengine.utils.get_installed_path`` imports ``pkg_resources``, gone from setuptools 82; it is reached by absolute
  imports under ``read_base()``, which :func:`zoo.engine.config.load_config` refuses, and by model hubs, unused here.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Make ``import package`` raise ImportError inside the block, unless it is already imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


with _hidden("transformers"):
    import mmengine.optim  # noqa: F401

from mmengine.optim import OptimWrapper  # noqa: E402

# -- processes ----------------------------------------------------------------------------------------------------


def local_device() -> torch.device:
    """The device of this process: ``cuda:LOCAL_RANK`` where there is a GPU, the CPU otherwise."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def init_process_group(backend: str | None = None, timeout: float | None = None) -> None:
    """Join the process group that ``torchrun`` describes in the environment.

    Args:
        backend: by default NCCL with GPUs and gloo without; NCCL is replaced by gloo where there is no GPU.
        timeout: seconds after which an operation that waits for another process fails.

    Raises:
        RuntimeError: the process was not started by torchrun.
    """
    missing = [k for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
    if missing:
        raise RuntimeError(f"launcher='pytorch' needs torchrun, but {', '.join(missing)} are not in the environment")
    if dist.is_initialized():
        return
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "nccl" in (backend or ""):
        backend = "gloo"
    arguments: dict[str, Any] = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
    dist.init_process_group(backend or ("nccl" if device.type == "cuda" else "gloo"), **arguments)


def end_process(status: int) -> NoReturn:
    """End a process that torchrun started, with its work done: nothing is torn down but open files.

    torch 2.15 with gloo sometimes aborts (SIGABRT in a thread of the group) while the interpreter is torn down, and
    torchrun then counts a finished training as failed.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def ddp_arguments(device: torch.device) -> dict[str, Any]:
    """``device_ids`` for DistributedDataParallel, which takes none on the CPU."""
    return {"device_ids": [device.index]} if device.type == "cuda" else {}


# -- mixed precision ----------------------------------------------------------------------------------------------


class AmpOptimWrapper(OptimWrapper):
    """Mixed precision on CPU and GPU: autocast in the forward pass and, for float16, loss scaling.

    Args:
        dtype: "bfloat16" (CPU and GPU) or "float16" (GPU).
        loss_scale: "dynamic" or a fixed factor; used with float16 only.
        **kwargs: of :class:`mmengine.optim.OptimWrapper` (optimizer, accumulative_counts, clip_grad).
    """

    def __init__(self, dtype: str = "bfloat16", loss_scale: str | float = "dynamic", **kwargs: Any):
        if dtype not in ("bfloat16", "float16"):
            raise ValueError(f"dtype={dtype!r}: accepted are 'bfloat16' and 'float16'")
        if loss_scale != "dynamic" and not (isinstance(loss_scale, int | float) and loss_scale > 0):
            raise ValueError(f"loss_scale={loss_scale!r}: accepted are 'dynamic' and positive numbers")
        super().__init__(**kwargs)
        self.cast_dtype = getattr(torch, dtype)
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        device = parameters[0].device.type if parameters else local_device().type
        if dtype == "float16" and device == "cpu":
            raise ValueError("dtype='float16' needs a GPU; on the CPU use 'bfloat16'")
        scaling: dict[str, Any] = {"enabled": dtype == "float16"}
        if loss_scale != "dynamic":
            scaling |= {"init_scale": float(loss_scale), "growth_interval": 2**31 - 1}
        self.loss_scaler = torch.amp.GradScaler(device, **scaling)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Accumulate gradients of the (scaled) loss."""
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        """Unscale, clip, and update; a step whose gradients overflowed is skipped."""
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the loss scaler's."""
        return {**super().state_dict(), "loss_scaler": self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, or the state of a wrapper without a scaler."""
        state_dict = dict(state_dict)
        scaler = state_dict.pop("loss_scaler", None)
        if scaler:
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state_dict)

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no gradient exchange between the steps of an accumulation."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=self.cast_dtype):
            yield
