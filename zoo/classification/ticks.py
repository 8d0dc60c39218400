"""Training of models that predict at every tick of a thought: their loss, and a classifier that gives it all ticks.

Continuous Thought Machines (arXiv 2505.05522, section 3.5, eq. 11-12).
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.classification.data_sample import ClsDataSample
from zoo.classification.model import ImageClassifier


def certainty(predictions: Tensor) -> Tensor:
    """1 minus the normalised entropy of logits ``[B, C, T]``: ``[B, T]``, from 0 (uniform) to 1."""
    log_p = predictions.log_softmax(1)
    return 1 + (log_p.exp() * log_p).sum(1) / math.log(predictions.shape[1])


def at_tick(values: Tensor, tick: Tensor) -> Tensor:
    """``[B, ..., T]`` and a tick for each image ``[B]`` -> ``[B, ...]``."""
    index = tick.reshape(-1, *[1] * (values.ndim - 1)).expand(*values.shape[:-1], 1)
    return values.gather(-1, index).squeeze(-1)


class TickLoss(nn.Module):
    """Half the cross entropy at the tick where it is lowest, half at the tick that is most certain, an image at a time.

    Args:
        use_most_certain: the second half is taken at the most certain tick; otherwise at the last.
        label_smoothing: of the targets.

    Source: eq. 12; the authors' ``image_classification_loss``.
    """

    def __init__(self, use_most_certain: bool = True, label_smoothing: float = 0.0):
        super().__init__()
        self.use_most_certain = use_most_certain
        self.label_smoothing = label_smoothing

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits ``[B, C, T]`` (``[B, C]``: one tick) and classes ``[B]`` or distributions ``[B, C]``.

        Raises:
            ValueError: another number of dimensions.
        """
        if predictions.ndim == 2:
            predictions = predictions.unsqueeze(2)
        if predictions.ndim != 3 or targets.ndim not in (1, 2):
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)}: accepted are "
                "[B, C, T] or [B, C] with [B] or [B, C]"
            )
        every = targets[..., None].expand(*targets.shape, predictions.shape[2])
        losses = F.cross_entropy(predictions, every, reduction="none", label_smoothing=self.label_smoothing)  # [B, T]
        chosen = losses[:, -1]
        if self.use_most_certain:
            chosen = at_tick(losses, certainty(predictions.detach()).argmax(1))
        return 0.5 * (losses.amin(1).mean() + chosen.mean())


class TickClassifier(ImageClassifier):
    """An image classifier whose loss, in training, reads the predictions of all ticks ``[B, C, T]``.

    In training mode "tensor" gives those too; in evaluation every mode reads the tick that the backbone selects.

    Args:
        backbone: one with ``think``, such as :class:`zoo.backbones.ctm.CTM`.
        loss: :class:`TickLoss` by default.
        others: of :class:`~zoo.classification.model.ImageClassifier`, without ``head``.

    Raises:
        TypeError: a backbone that does not think.
    """

    def __init__(self, backbone: Any, loss: Any = None, **others: Any):
        super().__init__(backbone, loss=TickLoss() if loss is None else loss, **others)
        if not hasattr(self.backbone, "think") or self.head is not None:
            raise TypeError(f"{type(self.backbone).__name__}: accepted are backbones with think(), with their own head")

    def _logits(self, images: Tensor) -> Tensor:
        think: Any = self.backbone.think
        return think(images).predictions if self.training else super()._logits(images)

    def _predict(self, logits: Tensor, samples: list[ClsDataSample] | None) -> list[ClsDataSample]:
        if logits.ndim == 3:
            logits = logits[..., -1] if self.backbone.tick == "last" else at_tick(logits, certainty(logits).argmax(1))
        return super()._predict(logits, samples)
