"""Data loaders from configs: their order follows from the seed and the epoch, and they can start in the middle."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmengine.dataset import pseudo_collate, worker_init_fn
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from torch.utils.data import BatchSampler, DataLoader, Subset

from zoo.engine.loops import ResumableBatchSampler


def build_dataloader(dataloader: Any, seed: int | None = None) -> DataLoader:
    """A data loader of a config.

    Args:
        dataloader: ``dict(dataset=dict(type=...), batch_size=...)``, further ``sampler`` (by default in order),
            ``batch_sampler``, ``collate_fn``, ``worker_init_fn``, ``num_batch_per_epoch`` and arguments of DataLoader;
            or a ready data loader, which is returned.
        seed: of the order and, unless the dataset's config has its own ``seed``, of the augmentation.

    Raises:
        ValueError: a needed key is missing.
    """
    if isinstance(dataloader, DataLoader):
        return dataloader
    cfg = dict(dataloader)
    needed = ("dataset",) if cfg.get("batch_sampler") else ("dataset", "batch_size")
    for key in needed:
        if key not in cfg:
            raise ValueError(f"the data loader's config has no {key!r}")
    dataset = _dataset(cfg.pop("dataset"), seed)
    limit = cfg.pop("num_batch_per_epoch", None)
    if limit is not None:
        dataset = Subset(dataset, range(min(len(dataset), limit * cfg["batch_size"] * get_world_size())))
    sampler = cfg.pop("sampler", None) or {"type": "DefaultSampler", "shuffle": False}
    if isinstance(sampler, dict):
        sampler = DATA_SAMPLERS.build(dict(sampler), default_args={"dataset": dataset, "seed": seed})
    batches = cfg.pop("batch_sampler", None)
    size, drop_last = cfg.pop("batch_size", None), cfg.pop("drop_last", False)
    if isinstance(batches, dict):
        batches = DATA_SAMPLERS.build(dict(batches), default_args={"sampler": sampler, "batch_size": size})
    elif batches is None:
        batches = BatchSampler(sampler, size, drop_last)
    workers = cfg.pop("num_workers", 0)
    if not workers:  # DataLoader refuses these without workers
        cfg.pop("persistent_workers", None)
        cfg.pop("prefetch_factor", None)
    init = cfg.pop("worker_init_fn", None)
    if init is None and seed is not None:
        init = partial(worker_init_fn, num_workers=workers, rank=get_rank(), seed=seed, disable_subprocess_warning=True)
    return DataLoader(
        dataset=dataset,
        batch_sampler=ResumableBatchSampler(batches),
        collate_fn=_function(cfg.pop("collate_fn", pseudo_collate)),
        num_workers=workers,
        worker_init_fn=_function(init),
        generator=torch.Generator(),
        **cfg,
    )


def _dataset(spec: Any, seed: int | None) -> Any:
    if not isinstance(spec, dict):
        return spec
    dataset = DATASETS.build(dict(spec))
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    if seed is not None and "seed" not in spec and hasattr(dataset, "seed"):
        dataset.seed = seed
    return dataset


def _function(spec: Any) -> Any:
    """A function, or ``dict(type=function or name, **arguments)`` with its arguments bound."""
    if not isinstance(spec, dict):
        return spec
    arguments = dict(spec)
    kind = arguments.pop("type")
    return partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind, **arguments)
