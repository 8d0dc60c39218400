"""The way from images to results: decoding and preparing in threads, batches by size, the network, results in order."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from zoo.inference.results import Result, Results
from zoo.inference.sources import Item, SourceOptions, expand
from zoo.registry import did_you_mean

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: Batches that may wait for images of the same size before the oldest is run as it is.
_WAITING_BATCHES = 4

R = TypeVar("R", bound=Result)
A = TypeVar("A")
B = TypeVar("B")


@dataclass
class Sample:
    """An image on its way to the network.

    Attributes:
        item: where it comes from.
        size: height and width of the image.
        pixels: prepared, uint8 ``[h, w, 3]``; None where there is an ``error``.
        info: what :meth:`Predictor.prepare` wants back when it makes the result.
        image: the image itself, if it is kept.
        error: why it could not be read.
    """

    item: Item
    size: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    info: Any = None
    image: np.ndarray | None = None
    error: Exception | None = None


class Predictor(Generic[R]):
    """A network with its preprocessing; a task defines :meth:`prepare`, :meth:`results` and :attr:`options`.

    Args:
        network: maps normalised images ``[B, 3, h, w]`` to what :meth:`results` reads; a module, or a function.
        mean, std: of the normalisation, for pixels in 0 ... 1.
        classes: class names; numbers where None.
        device: "auto" is the GPU if there is one.
        amp: compute in bfloat16 (True) or another dtype ("float16", "bfloat16") where that is safe (autocast).
        compile: compile the network; a dict has arguments of ``torch.compile``.
    """

    #: Options of a call that the task defines, with their defaults.
    options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        classes: Sequence[str] | None = None,
        device: str | torch.device = "auto",
        amp: bool | str | torch.dtype = False,
        compile: bool | dict[str, Any] = False,
    ):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.amp = _amp_dtype(amp)
        self.network = network.eval().to(self.device) if isinstance(network, torch.nn.Module) else network
        self._run: Callable[[Tensor], Any] = self.network
        if compile:
            self._run = torch.compile(self.network, **(compile if isinstance(compile, dict) else {}))
        self.mean = torch.tensor(mean, device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, -1, 1, 1)
        self.classes = None if classes is None else [str(c) for c in classes]

    # -- what a task defines ---------------------------------------------------------------------------------------

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, Any]:
        """RGB uint8 ``[H, W, 3]`` -> what goes into the network, uint8 ``[h, w, 3]``, and whatever the result needs."""
        raise NotImplementedError

    def results(self, outputs: Any, samples: Sequence[Sample], **options: Any) -> list[R]:
        """Results of a batch from what the network gave; ``options`` are :attr:`options`, as the caller set them."""
        raise NotImplementedError

    def failed(self, sample: Sample) -> R:
        """The result of an image that could not be read."""
        raise NotImplementedError

    def check_options(self, **options: Any) -> None:
        """Raise ValueError for an option of the task that is out of range."""

    # -- what a task may change of export ----------------------------------------------------------------------------

    def for_export(self) -> Predictor[R]:
        """The predictor as an exported file stands for it: one that brings all images to one size."""
        return self

    def export_network(self) -> Any:
        """What is exported: a module from normalised images ``[B, 3, h, w]`` to tensors."""
        return self.network

    def export_facts(self) -> dict[str, Any]:
        """What the task wants to find again in an exported file, JSON-ready."""
        return {}

    @staticmethod
    def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """How far outputs of an exported file are from PyTorch's: the largest ``|a - b| / |b|`` of one of them."""
        return max(float((f - e).norm() / e.norm().clamp_min(1e-12)) for f, e in zip(found, expected))

    # -- what all tasks share --------------------------------------------------------------------------------------

    def __call__(
        self,
        images: Any,
        *,
        batch_size: int = 16,
        stream: bool = False,
        on_error: str = "raise",
        keep_images: bool | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> Results[R] | Iterator[R]:
        """Predict, one result an image, in order.

        Args:
            images: see :func:`zoo.inference.sources.expand`.
            batch_size: images of one size in a step.
            stream: give an iterator that reads images as results are taken, instead of a list.
            on_error: an image that cannot be read raises an error that names it ("raise"), is left out and logged
                ("skip"), or gives a result with ``error`` ("report").
            keep_images: put the image into the result. By default results know how to read it again, except frames of
                videos and what comes out of generators.
            workers: threads that decode and prepare; by default as many as there are CPU cores, 8 at most.
            **options: attributes of :class:`~zoo.inference.sources.SourceOptions` and the task's :attr:`options`.

        Raises:
            ValueError, TypeError: an option is unknown or out of range.
            ImageReadError: an image cannot be read (``on_error="raise"``).
            FileNotFoundError: a path does not exist.
            RuntimeError: the network failed; the message names the images of the batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: accepted are 1 and above")
        if on_error not in ("raise", "skip", "report"):
            raise ValueError(f"on_error={on_error!r}: accepted are 'raise', 'skip' and 'report'")
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if workers < 1:
            raise ValueError(f"workers={workers}: accepted are 1 and above")
        source_names = {f.name for f in fields(SourceOptions)}
        for name in options:
            if name not in source_names and name not in self.options:
                known = sorted(source_names | set(self.options))
                hint = did_you_mean(name, known) or f"; accepted are {', '.join(known)}"
                raise TypeError(f"{type(self).__name__} has no option {name!r}{hint}")
        source = SourceOptions(**{k: v for k, v in options.items() if k in source_names})
        own = {**self.options, **{k: v for k, v in options.items() if k in self.options}}
        self.check_options(**own)
        results = self._stream(expand(images, source), batch_size, on_error, keep_images, workers, own)
        return results if stream else Results(results)

    def _stream(
        self,
        items: Iterator[Item],
        batch_size: int,
        on_error: str,
        keep_images: bool | None,
        workers: int,
        options: dict[str, Any],
    ) -> Iterator[R]:
        def work(item: Item) -> Sample:
            return self._load(item, bool(keep_images))

        # As many images on their way as make two batches: one is computed while the next is prepared.
        samples = ordered_map(work, items, workers, 2 * batch_size + workers)
        with contextlib.closing(samples):
            for sample, result in by_size(samples, batch_size, lambda batch: self._batch(batch, options)):
                if sample.error is not None:
                    if on_error == "raise":
                        raise sample.error
                    if on_error == "skip":
                        logger.warning("skipped: %s", sample.error)
                        continue
                    result = self.failed(sample)
                if keep_images is None and sample.item.again:
                    result._load = sample.item.load
                yield result

    def _load(self, item: Item, keep: bool) -> Sample:
        try:
            image = item.load()
        except ValueError as error:  # ImageReadError is one
            return Sample(item, error=error)
        try:
            pixels, info = self.prepare(image)
        except Exception as error:
            failure = ValueError(f"cannot prepare image {item.source!r} {image.shape}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            return Sample(item, error=failure)
        return Sample(item, image.shape[:2], pixels, info, image if keep else None)

    def _batch(self, samples: Sequence[Sample], options: dict[str, Any]) -> list[R]:
        try:
            outputs = self.forward([s.pixels for s in samples if s.pixels is not None])
        except Exception as error:
            names = ", ".join(s.item.source for s in samples[:4]) + (" ..." if len(samples) > 4 else "")
            raise RuntimeError(f"the network failed on {names}: {type(error).__name__}: {error}") from error
        results = self.results(outputs, samples, **options)
        for result, sample in zip(results, samples):
            result._image = sample.image
        return results

    @torch.inference_mode()
    def forward(self, pixels: Sequence[np.ndarray]) -> Any:
        """What the network gives for prepared images of one size, uint8 ``[h, w, 3]`` each."""
        x = torch.from_numpy(np.stack(pixels)).to(self.device).permute(0, 3, 1, 2).float() / 255  # [B, 3, h, w]
        x = (x - self.mean) / self.std
        with torch.autocast(self.device.type, dtype=self.amp or torch.bfloat16, enabled=self.amp is not None):
            return self._run(x)

    def class_name(self, index: int) -> str:
        """Name of a class; its number where names are not known."""
        return self.classes[index] if self.classes and index < len(self.classes) else str(index)


def _amp_dtype(amp: bool | str | torch.dtype) -> torch.dtype | None:
    named = {True: torch.bfloat16, False: None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(amp, torch.dtype):
        amp = str(amp).removeprefix("torch.")
    if amp not in named:
        raise ValueError(f"amp={amp!r}: accepted are True, False, 'bfloat16' and 'float16'")
    return named[amp]  # type: ignore[index]


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Generator[B, None, None]:
    """``map`` in threads: results in order, at most ``ahead`` items taken from ``items`` and not given out yet.

    ``items`` itself is read in the calling thread. An exception of ``function`` is raised where its result would be.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="zoo-prepare")
    pending: deque[Future[B]] = deque()
    iterator = iter(items)
    try:
        for item in iterator:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def by_size(
    samples: Iterable[Sample], batch_size: int, run: Callable[[list[Sample]], list[R]]
) -> Iterator[tuple[Sample, Any]]:
    """Run samples in batches of one size; (sample, result) pairs in the order of the samples.

    A batch is run when it is full, or when so many samples wait for others of their size that the oldest must go.
    """
    waiting: dict[int, Sample] = {}  # position -> sample, oldest first
    groups: dict[tuple[int, ...], list[int]] = {}  # shape -> positions
    done: dict[int, tuple[Sample, Any]] = {}
    given = 0

    def run_group(shape: tuple[int, ...]) -> None:
        positions = groups.pop(shape)
        batch = [waiting.pop(i) for i in positions]
        for i, sample, result in zip(positions, batch, run(batch), strict=True):
            done[i] = sample, result

    for position, sample in enumerate(samples):
        if sample.pixels is None:
            done[position] = sample, None
        else:
            waiting[position] = sample
            group = groups.setdefault(sample.pixels.shape, [])
            group.append(position)
            if len(group) == batch_size:
                run_group(sample.pixels.shape)
            elif len(waiting) >= _WAITING_BATCHES * batch_size:
                oldest = waiting[next(iter(waiting))].pixels
                assert oldest is not None
                run_group(oldest.shape)
        while given in done:
            yield done.pop(given)
            given += 1
    for shape in list(groups):
        run_group(shape)
    while given in done:
        yield done.pop(given)
        given += 1
