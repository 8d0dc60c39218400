"""A model, a dataset and hooks small enough that a training takes a second; imported by the configs of the tests."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo.backbones.base import Backbone
from zoo.classification.data_sample import ClsDataSample

CLASSES = 3


class ToyBlock(nn.Module):
    """A residual convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x)).relu()


class ToyBackbone(Backbone):
    """Two stages of one block, with dropout (torch's random numbers) and batch norm (buffers)."""

    def __init__(self, num_classes: int = CLASSES, dim: int = 8, dropout: float = 0.1, batch_norm: bool = True):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 2, stride=2)
        self.bn = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.blocks = nn.ModuleList([ToyBlock(dim), ToyBlock(dim)])
        self.table = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(dim, num_classes) if num_classes else None
        self._describe([dim, dim], [2, 2], num_classes=num_classes)

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Any]:
        x = self.bn(self.stem(x)) + self.table
        maps = []
        for block in self.blocks:
            x = self.run_block(block, x)
            maps.append(x)
        return maps, x

    def forward_head(self, trunk: Any) -> Tensor:
        pooled = self.drop(trunk.mean((2, 3)))
        return pooled if self.fc is None else self.fc(pooled)

    def stage_modules(self) -> list[list[nn.Module]]:
        return [[self.stem, self.bn], [self.blocks[0]], [self.blocks[1]]]

    def num_layers(self) -> int:
        return 4

    def layer_id(self, name: str) -> int:
        if name.startswith("blocks."):
            return 1 + int(name.split(".")[1])
        return 3 if name.startswith("fc.") else 0

    def no_weight_decay(self) -> set[str]:
        return {"table"}


class ToyData(Dataset):
    """Images of noise around a colour of their class; the noise follows from (seed, epoch, index)."""

    metainfo = {"classes": ("red", "green", "blue")}

    def __init__(self, length: int = 20, size: int = 8, seed: int = 0):
        self.length, self.size, self.seed, self.epoch = length, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(self.seed * 7_368_787 + self.epoch * 7919 + index)
        label = index % CLASSES
        image = torch.randint(0, 120, (3, self.size, self.size), generator=draw)
        image[label] += 100
        sample = ClsDataSample(metainfo={"sample_idx": index, "epoch": self.epoch}).set_gt_label(label)
        return {"inputs": image.to(torch.uint8), "data_samples": sample}


class ToyAccuracy(BaseMetric):
    """Share of right labels."""

    default_prefix = "toy"

    def process(self, data_batch: Any, data_samples: Any) -> None:
        for sample in data_samples:
            self.results.append(int(sample["pred_label"]) == int(sample["gt_label"]))

    def compute_metrics(self, results: list[bool]) -> dict[str, float]:
        return {"accuracy": sum(results) / len(results)}


class TraceHook(Hook):
    """Records which samples were trained on, the learning rate and the loss of every iteration."""

    def __init__(self, file: str | None = None):
        self.file, self.lines = file, []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        samples = [(s.sample_idx, s.epoch) for s in data_batch["data_samples"]]
        lr = runner.optim_wrapper.param_groups[0]["lr"]
        self.lines.append((runner.iter, batch_idx, samples, lr, float(outputs["loss"].detach())))
        if self.file:
            with open(self.file, "a", encoding="utf-8") as f:
                f.write(f"{self.lines[-1]}\n")


class KillHook(Hook):
    """Kills its own process with SIGKILL: KILL_AT="step:5" before iteration 5, "write:2:1000" when the second
    checkpoint has 1000 bytes on the disk."""

    priority = "HIGHEST"

    def before_run(self, runner: Any) -> None:
        kind, *numbers = os.environ.get("KILL_AT", "never").split(":")
        self.step = int(numbers[0]) if kind == "step" else -1
        if kind == "write":
            _kill_in_write(int(numbers[0]), int(numbers[1]))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _kill_in_write(number: int, size: int) -> None:
    from zoo.engine import checkpoint

    whole, count = checkpoint.save_atomically, [0]

    class Deadly:
        def __init__(self, file: Any):
            self.file, self.written = file, 0

        def write(self, data: Any) -> int:
            self.written += len(data)
            self.file.write(data)
            if self.written >= size:
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return len(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def save(path: Any, write: Any) -> None:
        count[0] += str(path).endswith(".pth")
        whole(path, (lambda f: write(Deadly(f))) if count[0] == number and str(path).endswith(".pth") else write)

    checkpoint.save_atomically = save


class NaNModel(nn.Module):
    """A loss that becomes NaN at a call."""

    def __init__(self, at: int):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        loss = nn.functional.cross_entropy(logits, targets)
        return loss * float("nan") if self.calls == self.at else loss
