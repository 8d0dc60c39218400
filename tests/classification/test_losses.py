"""Losses by name against their formulas; mixing of batches against timm and its own definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from zoo.classification.losses import BatchMixup, build_loss, smooth_one_hot
from zoo.registry import UnknownNameError

LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1, 1, 2])


def test_values_by_formula() -> None:
    log_p = LOGITS.log_softmax(-1)
    hot = nn.functional.one_hot(LABELS, 4).double()
    cross_entropy = -(hot * log_p).sum(-1).mean()
    torch.testing.assert_close(build_loss(None, mixed=False)(LOGITS, LABELS), cross_entropy)
    torch.testing.assert_close(build_loss("cross_entropy", mixed=False)(LOGITS, LABELS), cross_entropy)
    smoothed = -((0.9 * hot + 0.1 / 4) * log_p).sum(-1).mean()
    spec = {"type": "label_smoothing", "smoothing": 0.1}
    torch.testing.assert_close(build_loss(spec, mixed=False)(LOGITS, LABELS), smoothed)
    soft = smooth_one_hot(LABELS, 4, 0.1).double()
    torch.testing.assert_close(build_loss(None, mixed=True)(LOGITS, soft), smoothed, rtol=1e-6, atol=1e-7)
    p = LOGITS.sigmoid()
    binary = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean()
    spec = {"type": "binary_cross_entropy", "smoothing": 0.0}
    torch.testing.assert_close(build_loss(spec, mixed=False)(LOGITS, LABELS), binary)


def test_wrong_losses_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean label_smoothing"):
        build_loss("label_smooting", mixed=False)
    with pytest.raises(TypeError, match="did you mean smoothing"):
        build_loss({"type": "label_smoothing", "smooting": 0.1}, mixed=False)
    with pytest.raises(TypeError, match="takes no mixed targets"):
        build_loss("label_smoothing", mixed=True)
    assert isinstance(build_loss(SoftTargetCrossEntropy, mixed=True), SoftTargetCrossEntropy)


def _images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_even_batches_are_mixed_by_timm(mode: str) -> None:
    images, labels = _images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    options: dict[str, Any] = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mode": mode, "label_smoothing": 0.1}
    for seed in range(4):  # mixup and cutmix both come up
        np.random.seed(seed)  # noqa: NPY002
        expected = Mixup(num_classes=3, **options)(images.clone(), labels)
        np.random.seed(seed)  # noqa: NPY002
        mixed, targets = BatchMixup(3, **options)(images, labels)
        assert torch.equal(mixed, expected[0])
        assert torch.equal(targets, expected[1])
    assert torch.equal(images, _images(6)), "the batch itself is not changed"


def test_mixup_is_the_convex_combination() -> None:
    images, labels = _images(4), torch.tensor([0, 1, 2, 0])
    np.random.seed(0)  # noqa: NPY002
    mixed, targets = BatchMixup(3, mixup_alpha=1.0, cutmix_alpha=0.0)(images, labels)
    share = targets[0, 0].item()
    torch.testing.assert_close(
        mixed[1], images[1] * mixed_share(targets, 1) + images[2] * (1 - mixed_share(targets, 1))
    )
    assert share == 1, "the first and the last image have one class"
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def mixed_share(targets: torch.Tensor, index: int) -> float:
    """How much of image ``index`` is itself (its class is ``index`` here)."""
    return targets[index, index].item()


@pytest.mark.parametrize("count", [1, 5])
def test_odd_batch_leaves_the_last_image(count: int) -> None:
    images, labels = _images(count), torch.arange(count) % 3
    mixed, targets = BatchMixup(3, label_smoothing=0.3)(images, labels)
    assert mixed.shape == images.shape
    assert torch.equal(mixed[-1], images[-1])
    expected = torch.full((3,), 0.1)
    expected[labels[-1]] += 0.7
    torch.testing.assert_close(targets[-1], expected)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))


@pytest.mark.parametrize("options", [{"mode": "all"}, {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, {"mixup_alpha": -1.0}])
def test_wrong_mixing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"accepted are|negative"):
        BatchMixup(3, **options)
