"""What metrics share: one result a sample, gathered so that no sample counts twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmengine.dist as dist
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor


class GatheredMetric(BaseMetric):
    """A metric whose ``results`` are tuples of a sample's ``sample_idx`` and what was measured of it.

    A sampler pads the last batch of a distributed run with samples that another process has too, and
    ``on_error="skip"`` replaces an unreadable image by its neighbour. A sample is therefore known by its
    ``sample_idx`` and counted once, whichever processes saw it; samples without one count once each, the first
    ``size`` of them.
    """

    def __init__(self, prefix: str | None = None):
        super().__init__(collect_device="cpu", prefix=prefix)

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of all processes together, on each of them; ``size`` is the length of the data set."""
        parts = dist.all_gather_object(list(self.results))
        self.results.clear()
        # Samplers deal samples out in turn, so taking the parts in turn restores the order.
        longest = max(map(len, parts))
        gathered = [part[i] for i in range(longest) for part in parts if i < len(part)]
        metrics = self.compute_metrics(_once(gathered, size))
        return {f"{self.prefix}/{name}" if self.prefix else name: value for name, value in metrics.items()}


class SampleMetric(GatheredMetric):
    """A metric over independent samples; a subclass gives :meth:`measure` and :meth:`summarise`."""

    def measure(self, targets: Tensor, scores: Tensor, samples: Sequence[dict]) -> list[Any]:
        """One small picklable result a sample, from targets ``[B]`` int64 and scores ``[B, C]`` float32."""
        raise NotImplementedError

    def summarise(self, results: list[Any]) -> dict[str, float]:
        """Scalars from the results of all samples, in the order of the data set."""
        raise NotImplementedError

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Measure one batch of predicted samples (dicts of :class:`ClsDataSample`'s fields)."""
        targets, scores = stack_batch(data_samples)
        measured = self.measure(targets, scores, data_samples)
        self.results.extend(zip([s.get("sample_idx") for s in data_samples], measured))

    def compute_metrics(self, results: list[tuple[int | None, Any]]) -> dict[str, float]:
        """Metrics of ``results``, pairs of sample index and what :meth:`measure` gave."""
        if not results:
            raise ValueError(f"{type(self).__name__} has seen no sample; there is nothing to evaluate")
        return self.summarise([measured for _, measured in results])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of the data set, if the runner has told them."""
        return (self.dataset_meta or {}).get("classes")


def _once(results: list[tuple[Any, ...]], size: int) -> list[tuple[Any, ...]]:
    if any(index is None for index, *_ in results):
        return results[:size]
    unique: dict[int, tuple[Any, ...]] = {}
    for entry in results:
        unique.setdefault(entry[0], entry)
    return [unique[index] for index in sorted(unique)]


def stack_batch(data_samples: Sequence[dict]) -> tuple[Tensor, Tensor]:
    """Targets ``[B]`` int64 and scores ``[B, C]`` float32, on the CPU, of predicted samples.

    Raises:
        ValueError: a sample has no single label or no scores, a label is no class, or a score is not a finite number.
    """
    targets, scores = [], []
    for sample in data_samples:
        name = sample.get("img_path", "a sample")
        target, score = sample.get("gt_label"), sample.get("pred_score")
        if target is None or score is None:
            raise ValueError(f"{name!r} has no {'gt_label' if target is None else 'pred_score'} to evaluate")
        target, score = torch.as_tensor(target).reshape(-1), torch.as_tensor(score).detach().float().cpu()
        if target.numel() != 1:
            raise ValueError(f"{name!r} has {target.numel()} labels; these metrics take single-label samples")
        if not torch.isfinite(score).all():
            raise ValueError(f"the scores of {name!r} are not finite numbers; the model has diverged")
        if not 0 <= int(target) < score.numel():
            raise ValueError(f"{name!r} has label {int(target)}, but the model scores {score.numel()} classes")
        targets.append(int(target))
        scores.append(score)
    if len({s.numel() for s in scores}) > 1:
        raise ValueError("samples of one batch have scores of different numbers of classes")
    return torch.tensor(targets), torch.stack(scores)
