"""Training loops that continue from any iteration, and evaluation loops that leave the random numbers alone.

A run is at iteration ``i`` of a data loader with ``n`` batches: that is batch ``i % n`` of pass ``i // n``. The order
of a pass follows from the seed and the number of the pass, so that a resumed run starts at the very batch where the
other stopped, without loading what came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mmengine.runner
import torch
from torch.utils.data import DataLoader, IterableDataset

from zoo.engine.state import rng_state, set_rng_state, undisturbed_rng


class ResumableBatchSampler:
    """A batch sampler whose next pass can start in the middle.

    Args:
        batch_sampler: yields lists of indices; its order must follow from its epoch alone.
    """

    def __init__(self, batch_sampler: Any):
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.batch_size = batch_sampler.batch_size
        self.drop_last = getattr(batch_sampler, "drop_last", False)
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        for i, batch in enumerate(self.batch_sampler):
            if i >= start:
                yield batch

    def __len__(self) -> int:
        return len(self.batch_sampler)


def set_epoch(dataset: Any, epoch: int) -> None:
    """Tell a dataset, and the ones that it wraps, which pass begins (their augmentations follow from it)."""
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)
        return
    for inner in [getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())]:
        if inner is not None and inner is not dataset:
            set_epoch(inner, epoch)


def batches(loader: DataLoader, epoch: int, start: int, seed: int) -> Iterator[tuple[int, Any]]:
    """Number and content of the batches of pass ``epoch``, from number ``start`` on."""
    sampler = loader.batch_sampler
    holders: tuple[Any, ...] = (loader.sampler, getattr(sampler, "sampler", None))
    for holder in holders:
        if hasattr(holder, "set_epoch"):
            holder.set_epoch(epoch)
    set_epoch(loader.dataset, epoch)
    if loader.generator is not None:
        loader.generator.manual_seed((seed * 1_000_003 + epoch) % 2**63)
    state = rng_state()
    skip = start
    if isinstance(sampler, ResumableBatchSampler):
        sampler.start, skip = start, 0
    iterator = iter(loader)
    for _ in range(skip):
        next(iterator)
    set_rng_state(state)  # making the iterator and skipping draw numbers; an uninterrupted run must not differ
    number = start
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield number, batch
        number += 1


def _check_loader(loader: DataLoader) -> None:
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError("the training dataset is an IterableDataset; one with a length is needed to resume")
    if len(loader) == 0:
        dataset: Any = loader.dataset
        raise ValueError(
            f"the training data loader has no batch: {len(dataset)} samples, "
            f"batch_size={loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)}, drop_last"
        )


class EpochTrainLoop(mmengine.runner.EpochBasedTrainLoop):
    """Train for ``max_epochs`` passes over the data; validates every ``val_interval`` epochs.

    Args:
        runner: the runner.
        dataloader: a data loader or its config.
        max_epochs: passes over the data.
        val_begin: first epoch after which to validate.
        val_interval: epochs between validations; the last epoch is always followed by one.
    """

    def __init__(self, runner: Any, dataloader: Any, max_epochs: int, val_begin: int = 1, val_interval: int = 1):
        super().__init__(runner, dataloader, max_epochs, val_begin=val_begin, val_interval=val_interval)
        _check_loader(self.dataloader)
        self.validation_due = False

    def _is_val_epoch(self) -> bool:
        return (
            self.runner.val_loop is not None
            and self._epoch >= self.val_begin
            and (self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs)
        )

    def run(self) -> torch.nn.Module:
        """Train, from wherever the runner was resumed."""
        self.runner.call_hook("before_train")
        if self.validation_due and self._is_val_epoch():  # the run stopped after an epoch, before its validation
            self.runner.val_loop.run()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            if self._is_val_epoch():
                self.runner.val_loop.run()
            self.runner.stop_if_asked()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train the rest of the current epoch."""
        start = self._iter - self._epoch * len(self.dataloader)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        if start < len(self.dataloader):
            for number, batch in batches(self.dataloader, self._epoch, start, self.runner.seed):
                self.run_iter(number, batch)
                self.runner.stop_if_asked()
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


class IterTrainLoop(mmengine.runner.IterBasedTrainLoop):
    """Train for ``max_iters`` iterations; validates every ``val_interval`` iterations.

    Args:
        runner: the runner.
        dataloader: a data loader or its config.
        max_iters: iterations.
        val_begin: first iteration after which to validate.
        val_interval: iterations between validations; the last iteration is always followed by one.
    """

    def __init__(self, runner: Any, dataloader: Any, max_iters: int, val_begin: int = 1, val_interval: int = 1000):
        if max_iters < 1 or int(max_iters) != max_iters:
            raise ValueError(f"max_iters={max_iters}: accepted are whole numbers from 1")
        mmengine.runner.BaseLoop.__init__(self, runner, dataloader)  # its own __init__ would start the workers
        self._max_iters, self._max_epochs, self._epoch, self._iter = int(max_iters), 1, 0, 0
        self.val_begin, self.val_interval, self.stop_training = val_begin, val_interval, False
        if hasattr(self.dataloader.dataset, "metainfo"):
            self.runner.visualizer.dataset_meta = self.dataloader.dataset.metainfo
        _check_loader(self.dataloader)
        self.validation_due = False

    def _is_val_iter(self) -> bool:
        return (
            self.runner.val_loop is not None
            and self._iter >= self.val_begin
            and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)
        )

    def run(self) -> torch.nn.Module:
        """Train, from wherever the runner was resumed."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        if self.validation_due and self._iter > 0 and self._is_val_iter():
            self.runner.val_loop.run()
        length = len(self.dataloader)
        while self._iter < self._max_iters and not self.stop_training:
            passes, start = divmod(self._iter, length)
            for _, batch in batches(self.dataloader, passes, start, self.runner.seed):
                self.runner.model.train()
                self.run_iter(batch)
                if self._is_val_iter():
                    self.runner.val_loop.run()
                self.runner.stop_if_asked()
                if self._iter >= self._max_iters or self.stop_training:
                    break
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


class ValLoop(mmengine.runner.ValLoop):
    """Evaluate on the validation data; the training's random numbers stay as they are.

    Args:
        runner: the runner.
        dataloader: a data loader or its config.
        evaluator: an evaluator, a metric's config or a list of them.
        fp16: autocast to half precision (GPU).
    """

    def run(self) -> dict[str, float]:
        """Metrics by name."""
        set_epoch(self.dataloader.dataset, 0)
        with undisturbed_rng():
            return super().run()


class TestLoop(mmengine.runner.TestLoop):
    """Evaluate on the test data.

    Args:
        runner: the runner.
        dataloader: a data loader or its config.
        evaluator: an evaluator, a metric's config or a list of them.
        fp16: autocast to half precision (GPU).
    """

    __test__ = False  # no test case of pytest's

    def run(self) -> dict[str, float]:
        """Metrics by name."""
        set_epoch(self.dataloader.dataset, 0)
        with undisturbed_rng():
            return super().run()


__all__: Sequence[str] = ["EpochTrainLoop", "IterTrainLoop", "ResumableBatchSampler", "TestLoop", "ValLoop", "batches"]
