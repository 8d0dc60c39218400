"""How a model is spread over processes: replicated (DistributedDataParallel) or sharded (torch's FSDP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from torch import nn

from zoo.engine.compat import ddp_arguments


@dataclass
class Strategy:
    """The config key ``strategy``: ``dict(name="ddp")``, the default, or ``dict(name="fsdp")``.

    With one process neither does anything.

    Args:
        name: "ddp" replicates the model; "fsdp" shards parameters, gradients and optimizer state
            (torch.distributed.fsdp.fully_shard), for models that outgrow one GPU.
        find_unused_parameters: ddp: look for parameters without a gradient in every iteration.
        broadcast_buffers: ddp: copy rank 0's buffers to all in every forward pass.
        units: fsdp: endings of class names; every module of such a class is gathered by itself.
        reshard_after_forward: fsdp: free a unit's gathered parameters between forward and backward.
        param_dtype: fsdp: "bfloat16" or "float16" to compute in, None for the parameters' own.
        cpu_offload: fsdp: keep the shards in host memory; with GPUs the processes then need both backends,
            ``env_cfg=dict(dist_cfg=dict(backend="cpu:gloo,cuda:nccl"))``.
    """

    name: str = "ddp"
    find_unused_parameters: bool = False
    broadcast_buffers: bool = False
    units: tuple[str, ...] = ("Block",)
    reshard_after_forward: bool = True
    param_dtype: str | None = None
    cpu_offload: bool = False

    def __post_init__(self) -> None:
        if self.name not in ("ddp", "fsdp"):
            raise ValueError(f"strategy name={self.name!r}: accepted are 'ddp' and 'fsdp'")
        if self.param_dtype not in (None, "bfloat16", "float16"):
            raise ValueError(f"strategy param_dtype={self.param_dtype!r}: accepted are None, 'bfloat16' and 'float16'")

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model, ready for several processes (the sharded model is the same object)."""
        if self.name == "fsdp":
            return self._shard(model, device)
        if not any(p.requires_grad for p in model.parameters()):
            return model
        return MMDistributedDataParallel(
            module=model,
            broadcast_buffers=self.broadcast_buffers,
            find_unused_parameters=self.find_unused_parameters,
            **ddp_arguments(device),
        )

    def _shard(self, model: nn.Module, device: torch.device) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

        if not sharding_works(device):
            raise RuntimeError(
                f"strategy name='fsdp' on the CPU needs a newer torch than {torch.__version__}, whose sharding uses "
                f"GPU streams; take name='ddp', or a GPU"
            )
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, 0)
        arguments: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
            "reshard_after_forward": self.reshard_after_forward,
        }
        if self.param_dtype:
            arguments["mp_policy"] = MixedPrecisionPolicy(param_dtype=getattr(torch, self.param_dtype))
        if self.cpu_offload:
            if device.type == "cuda" and "gloo" not in str(dist.get_backend_config()):
                raise ValueError("strategy cpu_offload=True needs env_cfg.dist_cfg.backend='cpu:gloo,cuda:nccl'")
            arguments["offload_policy"] = CPUOffloadPolicy()
        units = [m for m in model.modules() if m is not model and type(m).__name__.endswith(self.units)]
        for unit in reversed(units):  # inner ones first
            fully_shard(unit, **arguments)
        fully_shard(model, **arguments)
        return model


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter is a shard."""
    return any(hasattr(p, "device_mesh") for p in model.parameters())


def sharding_works(device: torch.device) -> bool:
    """Whether this torch can shard on a device: before torch had CPU stream events (2.6), only on GPUs."""
    return device.type != "cpu" or hasattr(torch.cpu.Stream, "record_event")
