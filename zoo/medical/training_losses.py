"""Losses of a segmenter, each a function of logits and labels, and how a spec names one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.medical import losses as authors
from zoo.registry import MODELS, build, check_arguments, resolve

#: Losses of probabilities and one-hot labels that :class:`OnProbabilities` takes by name.
OF_PROBABILITIES: dict[str, Callable[..., Tensor]] = {
    "squared_dice": authors.squared_dice_loss,
    "jaccard": authors.jaccard_loss,
    "focal_tversky": authors.focal_tversky_loss,
}


def need_monai() -> Any:
    """The module ``monai``.

    Raises:
        ImportError: it is not installed; the message has the command that installs it.
    """
    try:
        import monai
    except ImportError as error:
        raise ImportError("MONAI is needed here: pip install attnzoo[medical]") from error
    return monai


class DiceCE(nn.Module):
    """Dice loss and cross entropy in equal parts (nnU-Net, arXiv 1904.08128), by MONAI's ``DiceCELoss``.

    Args:
        include_background: count class 0 in the Dice loss.
        batch: one Dice for all images of a batch, instead of one each: a class that an image lacks then has a slope.
        squared: squares in the Dice loss's denominator.
        dice, ce: weights of the two.
        smooth: added to the Dice loss's numerator and denominator.
        label_smoothing: of the cross entropy.

    Raises:
        ImportError: MONAI is not installed.
    """

    def __init__(
        self,
        include_background: bool = False,
        batch: bool = True,
        squared: bool = False,
        dice: float = 1.0,
        ce: float = 1.0,
        smooth: float = 1e-5,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        need_monai()
        from monai.losses import DiceCELoss

        self.loss = DiceCELoss(
            include_background=include_background,
            to_onehot_y=True,
            softmax=True,
            squared_pred=squared,
            batch=batch,
            smooth_nr=smooth,
            smooth_dr=smooth,
            lambda_dice=dice,
            lambda_ce=ce,
            label_smoothing=label_smoothing,
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits ``[B, K, ...]`` and labels ``[B, ...]``."""
        return self.loss(logits, target[:, None])


class OnProbabilities(nn.Module):
    """A loss of probabilities and one-hot labels, given logits and labels.

    Args:
        loss: one of :data:`OF_PROBABILITIES`.
        **options: of that function.

    Raises:
        ValueError: an unknown loss.
        TypeError: it takes no such option.
    """

    def __init__(self, loss: str = "focal_tversky", **options: float):
        super().__init__()
        if loss not in OF_PROBABILITIES:
            raise ValueError(f"loss={loss!r}: accepted are {', '.join(map(repr, OF_PROBABILITIES))}")
        check_arguments(OF_PROBABILITIES[loss], options, where=loss)
        self.loss = functools.partial(OF_PROBABILITIES[loss], **options)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits ``[B, K, ...]`` and labels ``[B, ...]``."""
        one_hot = F.one_hot(target.long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        return self.loss(logits.softmax(1), one_hot)


def build_loss(spec: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of a ``dict(type=class or function or its dotted name, **options)``; callables stay as they are.

    Raises:
        TypeError: the loss takes no such option.
    """
    if isinstance(spec, str):
        spec = {"type": spec}
    if not isinstance(spec, Mapping):
        return spec
    options = dict(spec)
    kind = resolve(options.pop("type"), MODELS)
    if isinstance(kind, type):
        return build({**options, "type": kind}, MODELS)
    check_arguments(kind, options, where="loss")
    return functools.partial(kind, **options)


def halving_weights(count: int) -> Tensor:
    """Weights 1, 1/2, 1/4, ... of predictions from the finest to coarser ones, with a sum of 1 (nnU-Net)."""
    weights = 0.5 ** torch.arange(count, dtype=torch.float32)
    return weights / weights.sum()


def halving_losses(
    outputs: Tensor | list[Tensor], target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Losses of one prediction, or of several of the same size, weighted by :func:`halving_weights`."""
    predictions = [outputs] if isinstance(outputs, Tensor) else outputs
    weights = halving_weights(len(predictions)).tolist()
    return {f"loss_level{i}": w * loss(p, target) for i, (w, p) in enumerate(zip(weights, predictions))}
