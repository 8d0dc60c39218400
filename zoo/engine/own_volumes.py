"""A config for a user's own volumes: spacing, patch, normalisation and levels follow from the data's fingerprint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.complexity import on_meta
from zoo.data.fingerprint import Fingerprint, Plan, fingerprint
from zoo.data.volume_dataset import VolumeDataset
from zoo.data.volume_folder import find_volume_data, fold_cases
from zoo.engine.hooks import EMAHook
from zoo.engine.optim import WarmupCosineLR
from zoo.engine.own_common import candidates, check_positive, is_of, run_name, runner_values, worker_count, written
from zoo.medical.layers import to_tuple
from zoo.medical.model import VolumeSegmenter
from zoo.metrics.volume import VolumeMetric
from zoo.registry import MODELS

# isort: split
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper

#: Patches (slices) that a default schedule shows the network, in total: nano networks, others.
SHOWN = (10_000, 100_000)
#: Voxels of a step of nano networks, in 3-D and in slices; others take the plan's own.
NANO_VOXELS = (2 * 64**3, 8 * 192**2)
FOLDS = 5


def is_volume_segmenter(model: str) -> bool:
    """Whether a name is that of a network that segments volumes, or that of a family of them."""
    return is_of(model, task="medical", kind="segmentation")


def volume_segmenter_name(model: str) -> str:
    """The registered network of a name; a family's name means its first one for volumes that is not nano.

    Raises:
        UnknownNameError: there is neither such a network nor such a family.
    """
    names = candidates(model, "network for volumes", task="medical", kind="segmentation")
    return min(names, key=lambda n: ("nano" in n, "3d" not in n, len(n), n))


def own_volumes_config(
    model: str,
    data: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    size: int | None = None,
    lr: float | None = None,
    weights: str | os.PathLike[str] | None = None,
    mixer: str | None = None,
    workers: int | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Config:
    """A training config for a network on a folder of volumes, written to ``work_dir`` and read back.

    The cases that are trained on are read once; their fingerprint (``fingerprint.json`` beside the config, taken again
    only where it is not there) gives spacing, patch, normalisation, and strides and kernels where the network takes any
    (:meth:`zoo.data.fingerprint.Fingerprint.plan`). 2-D networks get slices across the coarsest axis. One of five folds
    is held out.

    Args:
        model: a network's name, or a family's ("attention_unet").
        data: a folder that :func:`zoo.data.volume_folder.find_volume_data` knows.
        epochs: by default as many as show the network 10,000 patches (nano) or 100,000, between 10 and 1000.
        batch_size: patches of a step; by default the plan's.
        size: side of a patch in voxels; by default the plan's patch.
        lr: learning rate; by default 2e-3 for nano networks, else 5e-4.
        weights: a checkpoint to start from; a head of other classes is replaced.
        mixer: refused, these networks take none.
        workers: processes that cut patches; by default the cores but one, at most 4.
        work_dir: by default ``work_dirs/<model>_<folder>``.
        seed: of everything; the folds are those of seed 0.

    Raises:
        UnknownNameError: no such network.
        FileNotFoundError: no such folder, or files that it lists are missing.
        ValueError: the data cannot be trained on, or a mixer is given.
    """
    check_positive(epochs=epochs, batch_size=batch_size, size=size)
    if mixer is not None:
        raise ValueError(f"mixer={mixer!r}: networks for volumes take none")
    name = volume_segmenter_name(model)
    nano = "nano" in name
    found = find_volume_data(data)
    if len(found.cases) < 2:
        raise ValueError(f"{data} has {len(found.cases)} case(s) with labels; at least 2 are needed")
    folds = min(FOLDS, len({c.group or c.name for c in found.cases}))
    train_cases, _ = fold_cases(found.cases, 0, folds)
    out = Path(work_dir or Path("work_dirs") / run_name(name, data))
    facts_file = out / "fingerprint.json"
    names = sorted(c.name for c in train_cases)
    facts = Fingerprint.load(facts_file) if facts_file.is_file() else None
    if facts is None or sorted(c.name for c in facts.cases) != names:
        facts = fingerprint(found, cases=train_cases)
        facts.save(facts_file)
    network: Any = on_meta(MODELS.get(name))
    dims = int(network.dims)
    plan = facts.plan(axis="auto" if dims == 2 else None, max_voxels=NANO_VOXELS[dims == 2] if nano else None)
    levels = _levels(name, plan, dims)
    multiple = to_tuple(getattr(network, "size_multiple", 1), dims, "size_multiple")
    patch = tuple(-(-p // m) * m for p, m in zip((size,) * dims if size else plan.patch_size, multiple))
    batch_size = batch_size or min(plan.batch_size, 8 if nano else 64)
    per_volume = max(1, 4 * batch_size // len(train_cases))
    count = per_volume * len(train_cases)
    batch_size = min(batch_size, count)
    epochs = epochs or max(10, min(1000, round(SHOWN[not nano] / count)))
    workers = worker_count(workers)
    shared: dict[str, Any] = dict(
        type=VolumeDataset,
        source=str(Path(data).resolve()),
        fold=0,
        folds=folds,
        spacing=plan.spacing,
        orientation=plan.orientation,
        normalisation=plan.normalisation,
    )
    train_data = dict(
        shared,
        split="train",
        patch_size=patch,
        axis=plan.axis,
        samples_per_volume=per_volume,
        augment=dict(recipe="light" if nano else "full"),
        seed=seed,
    )

    def loader(dataset: Mapping[str, Any], training: bool) -> dict[str, Any]:
        return dict(
            batch_size=batch_size if training else 1,
            num_workers=workers if training else 0,
            persistent_workers=training and workers > 0,
            sampler=dict(type=DefaultSampler, shuffle=training),
            dataset=dict(dataset),
        )

    window = None if dims == 2 and not size else patch
    values = {
        **runner_values(
            loader(train_data, True),
            loader(dict(shared, split="val"), False),
            [dict(type=VolumeMetric)],
            epochs=epochs,
            seed=seed,
            weights=weights,
            work_dir=out,
            save_best="volume/dice",
        ),
        "model": dict(
            type=VolumeSegmenter,
            network=dict(type=name, in_chans=len(found.channels), **levels),
            num_classes=len(found.classes),
            window=window,
            window_batch=4 if dims == 2 else 1,
            **({"axis": plan.axis} if dims == 2 else {}),
        ),
        "optim_wrapper": dict(
            type=OptimWrapper,
            optimizer=dict(type=torch.optim.AdamW, lr=lr or (2e-3 if nano else 5e-4), weight_decay=1e-4),
            clip_grad=dict(max_norm=5.0),
        ),
        "param_scheduler": [dict(type=WarmupCosineLR, warmup_epochs=0.02 * epochs, min_ratio=0.02)],
        "custom_hooks": [dict(type=EMAHook, decay=0.98 if nano else 0.999)],
    }
    about = f"{name} on {Path(data).resolve().name} ({found.format}): {len(train_cases)} volumes, "
    about += f"{len(found.classes)} classes, the background among them."
    return written(values, out / f"{run_name(name, data)}.py", about)


def _levels(name: str, plan: Plan, dims: int) -> dict[str, Any]:
    """Widths, strides and kernels by the plan, for networks whose strides may differ by dimension."""
    from zoo.medical.baselines import MonaiDynUNet
    from zoo.medical.unet import UNet

    builder: Any = MODELS.get(name)
    if not issubclass(builder.builds, (UNet, MonaiDynUNet)):
        return {}
    widths = list(builder.preset["widths"])
    strides = [tuple(s) for s in plan.strides[1 : len(widths)]]
    if not strides:  # a patch that no level halves
        strides = [(1,) * dims]
    found: dict[str, Any] = {"widths": tuple(widths[: len(strides) + 1]), "strides": strides}
    if issubclass(builder.builds, MonaiDynUNet):
        found["kernels"] = [tuple(k) for k in plan.kernel_sizes[: len(strides) + 1]]
        supervised = builder.preset.get("deep_supervision", 2)
        found["deep_supervision"] = max(0, min(supervised, len(strides) - 1))
    return found
