"""The model that trains on bags of patches: a multiple-instance head with its losses, and typed predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from zoo.classification.data_sample import ClsDataSample
from zoo.medical.acmil import GatedACMIL, QueryACMIL, acmil_losses
from zoo.medical.aem import DSMIL, aem_losses, bag_probabilities
from zoo.medical.mil import BagOutput
from zoo.registry import MODELS, build, check_arguments

_LOSSES: dict[str, Any] = {"acmil": acmil_losses, "aem": aem_losses}


class BagPreprocessor(BaseDataPreprocessor):
    """Bags of different sizes to the device, in float32.

    Args:
        non_blocking: copy to the device without waiting (pinned memory).
    """

    def __init__(self, non_blocking: bool = False):
        super().__init__(non_blocking=non_blocking)

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """``dict(inputs=bags [N, D], data_samples=...)`` -> the same on the device; ``inputs`` stays a list."""
        bags = [b.to(self.device, non_blocking=self._non_blocking).float() for b in data["inputs"]]
        samples = data.get("data_samples")
        return {"inputs": bags, "data_samples": None if samples is None else self.cast_data(list(samples))}


class BagClassifier(BaseModel):
    """A classifier of bags: each bag of a batch goes through the head by itself, and their losses are averaged.

    Args:
        head: a model's name ("acmil_ga_uni"), a ``dict(type=name or class, ...)`` or a module: a bag ``[1, N, D]`` in,
            :class:`~zoo.medical.mil.BagOutput` out.
        num_classes: classes; None for the head's own number.
        loss: "acmil" (of heads with branches: cross entropies and the branches' likeness) or "aem" (cross entropy and
            the entropy of the attention); None: "acmil" for ACMIL's heads, "aem" for others.
        loss_options: arguments of :func:`zoo.medical.aem.aem_losses`: ``weight`` and ``top_k``.
        data_preprocessor: arguments of :class:`BagPreprocessor`, or a ready one.

    Raises:
        ValueError: an unknown loss, or one that the head does not serve; numbers of classes that contradict each other.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"data_preprocessor": BagPreprocessor}

    def __init__(
        self,
        head: Any,
        num_classes: int | None = None,
        loss: str | None = None,
        loss_options: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
    ):
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = build({"type": BagPreprocessor, **(data_preprocessor or {})}, MODELS)
        super().__init__(data_preprocessor)
        own = {} if num_classes is None else {"num_classes": num_classes}
        if not isinstance(head, nn.Module):
            head = build(dict(head) if isinstance(head, Mapping) else {"type": head}, MODELS, **own)
        self.head: Any = head
        self.num_classes = int(head.num_classes)
        if num_classes not in (None, self.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the head has {self.num_classes}")
        self.branched = isinstance(head, GatedACMIL | QueryACMIL)
        self.loss_name = loss or ("acmil" if self.branched else "aem")
        if self.loss_name not in ("acmil", "aem"):
            raise ValueError(f"loss={loss!r}: accepted are 'acmil' and 'aem'")
        if (self.loss_name == "acmil") != self.branched:
            raise ValueError(
                f"loss={loss!r} is not for {type(head).__name__}: ACMIL's heads take 'acmil', others 'aem'"
            )
        self.loss_options = dict(loss_options or {})
        check_arguments(_LOSSES[self.loss_name], self.loss_options, where="loss_options")
        self._network: Any = self._one

    def init_weights(self) -> None:
        """Nothing: the head initialises itself as it is built."""

    def compile_network(self, **options: Any) -> None:
        """Compile the head with ``torch.compile(dynamic=True, **options)``: bags differ in size."""
        self._network = torch.compile(self._one, **{"dynamic": True, **options})

    def _one(self, bag: Tensor) -> BagOutput:
        return self.head(bag)

    def forward(
        self,
        inputs: Sequence[Tensor] | Tensor,
        data_samples: list[ClsDataSample] | None = None,
        mode: str = "tensor",
    ) -> dict[str, Tensor] | list[ClsDataSample] | list[BagOutput]:
        """Losses, predictions or raw outputs.

        Args:
            inputs: bags ``[N, D]``, whose N differ, or one tensor ``[B, N, D]``.
            data_samples: one for each bag; "loss" reads ``gt_label``.
            mode: "loss" gives ``loss`` and, not counted again, its parts; "predict" the samples with ``pred_score``
                ``[C]``, ``pred_label`` and ``attention`` ``[N]`` (see :func:`attention_of`); "tensor" a list of
                :class:`~zoo.medical.mil.BagOutput`.

        Raises:
            ValueError: an unknown mode, a label that is no class or none, no samples where they are needed.
        """
        if mode not in ("loss", "predict", "tensor"):
            raise ValueError(f"mode={mode!r}: accepted are 'loss', 'predict' and 'tensor'")
        targets = self._targets(data_samples) if mode == "loss" else None
        outputs = [self._network(bag[None]) for bag in inputs]
        if mode == "tensor":
            return outputs
        if targets is not None:
            return self._losses(outputs, targets)
        samples = [ClsDataSample() for _ in outputs] if data_samples is None else data_samples
        for sample, output in zip(samples, outputs, strict=True):
            score = self.probabilities(output)
            sample.set_pred_score(score)
            sample.set_pred_label(score.argmax())
            sample.set_field(attention_of(output, int(score.argmax())), "attention", dtype=Tensor)
        return samples

    def probabilities(self, output: BagOutput) -> Tensor:
        """Probabilities ``[C]`` of a bag."""
        output = _in_float32(output)
        return (output.logits.softmax(-1) if not isinstance(self.head, DSMIL) else bag_probabilities(output))[0]

    def _targets(self, samples: list[ClsDataSample] | None) -> Tensor:
        if samples is None:
            raise ValueError("mode='loss' needs data_samples")
        if any(s.gt_label.numel() != 1 for s in samples):
            raise ValueError("a bag has several labels; these heads are for classes that exclude each other")
        labels = torch.cat([s.gt_label for s in samples])
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"labels are between {int(labels.min())} and {int(labels.max())}, but the model has "
                f"{self.num_classes} classes (0 to {self.num_classes - 1})"
            )
        return labels

    def _losses(self, outputs: list[BagOutput], targets: Tensor) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        compute = _LOSSES[self.loss_name]
        for output, label in zip(outputs, targets.to(outputs[0].logits.device)):
            output = _in_float32(output)
            for name, value in compute(output, label[None], **self.loss_options).items():
                found.setdefault(name, []).append(value)
        means = {name: torch.stack(values).mean() for name, values in found.items()}
        return {"loss": means.pop("total"), **{name: value.detach() for name, value in means.items()}}


def _in_float32(output: BagOutput) -> BagOutput:
    parts = None if output.parts is None else output.parts.float()
    return BagOutput(output.logits.float(), output.scores.float(), parts)


def attention_of(output: BagOutput, label: int) -> Tensor:
    """How much a bag's prediction looks at each patch: ``[N]``, not negative, its sum is one.

    The mean over heads and branches of the attention, or that of the predicted class where classes have their own.

    Args:
        output: of a head.
        label: the predicted class.
    """
    weights = output.scores.float().softmax(-1)
    return weights[label] if weights.dim() == 2 else weights.flatten(0, -2).mean(0)
