"""The model that trains, predicts and is evaluated: a segmentation network with its loss, and whole volumes in windows.

A network is any module from ``[B, C, ...]`` to logits ``[B, K, ...]`` with ``dims`` (2 or 3), ``in_chans`` and
``num_classes``. Its class may say more of itself:

- ``size_multiple``: what the sizes of an input have to be multiples of, a number or one for each dimension;
- ``logits_of(outputs)``: the logits, where it gives something else;
- ``training_losses(outputs, target, loss)``: weighted losses by name, of what it gives in training mode;
- ``default_loss``: the loss that its authors train with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from zoo.layers.precision import as_float
from zoo.medical.data_sample import VolumeSample
from zoo.medical.layers import to_tuple
from zoo.medical.sliding import sliding_window
from zoo.medical.training_losses import DiceCE, build_loss
from zoo.registry import MODELS, build


class VolumePreprocessor(BaseDataPreprocessor):
    """Images and volumes to the device, in float32, and normalised where the dataset has not done it.

    Args:
        mean, std: of each channel, or one number for all; None leaves the intensities as they come.
        non_blocking: copy to the device without waiting (pinned memory).
    """

    def __init__(
        self,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        non_blocking: bool = False,
    ):
        super().__init__(non_blocking=non_blocking)
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean}, std={std}: accepted are both or neither")
        self.normalises = mean is not None
        if mean is not None and std is not None:
            # Checked as numbers: a model may be built on the meta device, where tensors have no values.
            means, deviations = (list(v) if isinstance(v, Sequence) else [v] for v in (mean, std))
            if len(means) != len(deviations) or min(deviations, default=0) <= 0:
                raise ValueError(f"mean={mean}, std={std}: accepted are as many of both, and positive deviations")
            self.register_buffer("mean", torch.tensor(means, dtype=torch.float32), persistent=False)
            self.register_buffer("std", torch.tensor(deviations, dtype=torch.float32), persistent=False)

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """``dict(inputs=tensors [C, ...], data_samples=...)`` -> the same on the device: ``inputs`` is one tensor
        ``[B, C, ...]`` where all sizes agree, and else a list."""
        volumes = [i.to(self.device, non_blocking=self._non_blocking).float() for i in data["inputs"]]
        if self.normalises:
            shape = [-1, *[1] * (volumes[0].dim() - 1)]
            mean, std = (self.get_buffer(n).view(shape) for n in ("mean", "std"))
            volumes = [(v - mean) / std for v in volumes]
        same = len({v.shape for v in volumes}) == 1
        if training and not same:
            raise ValueError(
                f"patches of sizes {sorted({tuple(v.shape) for v in volumes})} are in one batch: give the training "
                "data a patch_size"
            )
        samples = data.get("data_samples")
        return {
            "inputs": torch.stack(volumes) if same else volumes,
            "data_samples": None if samples is None else self.cast_data(list(samples)),
        }


class VolumeSegmenter(BaseModel):
    """A segmentation network that can be trained.

    Args:
        network: a model's name ("wau_unet_3d"), a ``dict(type=name or class, ...)`` or a module.
        num_classes: classes, background included; None for the network's own number.
        loss: ``dict(type=..., ...)`` or a function of logits ``[B, K, ...]`` and labels ``[B, ...]``; None for the one
            that the network's class names (``default_loss``), else Dice and cross entropy.
        window: size of the windows that a prediction is put together from: a number or one for each dimension of the
            network; None runs whole volumes (whole slices) through it.
        overlap: of neighbouring windows, as a share of their size, from 0 up to (not including) 1.
        weighting: "gaussian" or "constant": how windows are weighted where they overlap.
        window_batch: windows (slices) that the network gets at once.
        mirror_axes: axes of the image or volume, such as (0, 1), whose mirrored predictions are averaged.
        axis: for 2-D networks: the axis of a volume that is cut into slices.
        data_preprocessor: arguments of :class:`VolumePreprocessor`, or a ready one.

    Raises:
        ValueError: an argument outside the above, or a network that gives probabilities in place of logits.
    """

    #: What takes the dicts among the arguments that have no ``type``; a config is checked by it.
    config_parts: ClassVar[dict[str, Any]] = {"data_preprocessor": VolumePreprocessor}

    def __init__(
        self,
        network: Any,
        num_classes: int | None = None,
        loss: Any = None,
        window: int | Sequence[int] | None = None,
        overlap: float = 0.5,
        weighting: str = "gaussian",
        window_batch: int = 4,
        mirror_axes: Sequence[int] = (),
        axis: int = 2,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
    ):
        if not isinstance(data_preprocessor, nn.Module):
            data_preprocessor = build({"type": VolumePreprocessor, **(data_preprocessor or {})}, MODELS)
        super().__init__(data_preprocessor)
        own = {} if num_classes is None else {"num_classes": num_classes}
        if not isinstance(network, nn.Module):
            network = build(dict(network) if isinstance(network, Mapping) else {"type": network}, MODELS, **own)
        self.network: Any = network
        self.dims, self.num_classes = int(network.dims), int(network.num_classes)
        if num_classes not in (None, self.num_classes):
            raise ValueError(f"num_classes={num_classes}, but the network has {self.num_classes}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes}: accepted are 2 and above, background included")
        if getattr(network, "activation", "none") != "none":
            raise ValueError(f"the network's activation is {network.activation!r}: accepted is 'none', that is logits")
        self.loss = build_loss(getattr(network, "default_loss", {"type": DiceCE}) if loss is None else loss)
        self.multiple = to_tuple(getattr(network, "size_multiple", 1), self.dims, "size_multiple")
        self.window = None if window is None else to_tuple(window, self.dims, "window")
        if self.window is not None and any(w % m for w, m in zip(self.window, self.multiple)):
            raise ValueError(f"window={self.window}: accepted are multiples of {self.multiple}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap={overlap}: accepted are numbers from 0 up to (not including) 1")
        if weighting not in ("gaussian", "constant"):
            raise ValueError(f"weighting={weighting!r}: accepted are 'gaussian' and 'constant'")
        if window_batch < 1:
            raise ValueError(f"window_batch={window_batch}: accepted are 1 and above")
        if axis not in (0, 1, 2):
            raise ValueError(f"axis={axis}: accepted are 0, 1 and 2")
        if any(a not in (0, 1, 2) for a in mirror_axes):
            raise ValueError(f"mirror_axes={tuple(mirror_axes)}: accepted are 0, 1 and 2")
        self.overlap, self.weighting, self.window_batch = overlap, weighting, window_batch
        self.mirror_axes, self.axis = tuple(mirror_axes), axis
        self._compiled: list[Callable[[Tensor], Any]] = []  # in a list, so that it is no second submodule

    def init_weights(self) -> None:
        """Nothing: the network initialises itself as it is built."""

    def compile_network(self, **options: Any) -> None:
        """Compile the network with ``torch.compile(**options)``; names of parameters stay."""
        self._compiled = [torch.compile(self.network, **options)]

    def _run(self, x: Tensor) -> Any:
        return (self._compiled[0] if self._compiled else self.network)(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits ``[B, K, ...]`` of patches ``[B, C, ...]`` of a size that the network takes."""
        found = self._run(x)
        return self.network.logits_of(found) if hasattr(self.network, "logits_of") else found

    def forward(
        self,
        inputs: Tensor | list[Tensor],
        data_samples: list[VolumeSample] | None = None,
        mode: str = "tensor",
    ) -> Any:
        """Losses, predictions or raw outputs.

        Args:
            inputs: ``[B, C, ...]``: patches with as many dimensions as the network for "loss" and "tensor"; for
                "predict" whole images or volumes, of any sizes, also as a list of ``[C, ...]``.
            data_samples: one for each; "loss" reads ``gt_label``.
            mode: "loss" gives weighted losses by name, whose sum is the loss; "predict" the samples with
                ``pred_label``; "tensor" what the network gives.

        Raises:
            ValueError: unknown mode, a label that is no class or of another size, no samples where they are needed.
            FloatingPointError: a loss that is no finite number; the message names the cases of the batch.
        """
        if mode == "tensor":
            return self._run(inputs)  # type: ignore[arg-type]
        if mode not in ("loss", "predict"):
            raise ValueError(f"mode={mode!r}: accepted are 'loss', 'predict' and 'tensor'")
        if mode == "predict":
            return self._predict(inputs, data_samples)
        if data_samples is None:
            raise ValueError("mode='loss' needs data_samples")
        if not isinstance(inputs, Tensor) or inputs.dim() != self.dims + 2:
            shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else [tuple(i.shape) for i in inputs]
            raise ValueError(f"the inputs have shape {shape}: accepted is [B, C] and {self.dims} sizes")
        target = self.targets(data_samples, inputs)
        outputs = self._run(inputs)
        with torch.autocast(inputs.device.type, enabled=False):  # sums over voxels do not survive half precision
            return self._losses(as_float(outputs), target, data_samples)

    def targets(self, samples: Sequence[VolumeSample], inputs: Tensor) -> Tensor:
        """Labels ``[B, ...]`` of the samples, checked.

        Raises:
            ValueError: a label is no class, or has another size than its image; the message names the case.
        """
        for sample in samples:
            label = sample.gt_label
            if tuple(label.shape) != tuple(inputs.shape[2:]):
                raise ValueError(
                    f"case {_name(sample)}: the label has size {tuple(label.shape)}, "
                    f"the image {tuple(inputs.shape[2:])}"
                )
            if label.numel() and not 0 <= int(label.min()) <= int(label.max()) < self.num_classes:
                raise ValueError(
                    f"case {_name(sample)} has labels between {int(label.min())} and {int(label.max())}, but the model "
                    f"has {self.num_classes} classes (0 to {self.num_classes - 1})"
                )
        return torch.stack([s.gt_label.to(inputs.device).long() for s in samples])

    def _losses(self, outputs: Any, target: Tensor, samples: Sequence[VolumeSample]) -> dict[str, Tensor]:
        if hasattr(self.network, "training_losses"):
            losses = self.network.training_losses(outputs, target, self.loss)
        else:
            losses = {"loss_seg": self.loss(outputs, target)}
        finite = torch.stack([v.detach() for v in losses.values()]).isfinite().tolist()  # one wait for the device
        if not all(finite):
            values = ", ".join(f"{k}={float(v.detach())}" for k, v in losses.items())
            cases = ", ".join(_name(s) for s in samples)
            raise FloatingPointError(f"the loss is not finite: {values}; the batch has the cases {cases}")
        return losses

    @torch.no_grad()
    def whole(self, volume: Tensor, progress: Any = None, **changes: Any) -> Tensor:
        """Logits ``[B, K, ...]`` of whole images or volumes ``[B, C, ...]``, put together from windows.

        Args:
            volume: one more dimension than the network's is cut into slices along ``axis``.
            progress: see :func:`zoo.medical.sliding.sliding_window`.
            **changes: other values of ``window``, ``overlap``, ``weighting``, ``batch``, ``mirror_axes``, ``axis``; and
                ``output="probabilities"`` or ``"labels"`` (integers ``[B, ...]``) in place of logits.

        Raises:
            ValueError: a number of dimensions that the network cannot take.
        """
        extra = volume.dim() - 2 - self.dims
        if extra not in (0, 1) or (extra and self.dims != 2):
            raise ValueError(
                f"the input has shape {tuple(volume.shape)}: accepted is [B, C] and {self.dims} sizes"
                + (", or 3 that are cut into slices" if self.dims == 2 else "")
            )
        options: dict[str, Any] = {
            "window": self.window,
            "overlap": self.overlap,
            "weighting": self.weighting,
            "batch": self.window_batch,
            "mirror_axes": self.mirror_axes,
            "axis": self.axis if extra else None,
            **changes,
        }
        if options["window"] is None:
            sizes = [n for i, n in enumerate(volume.shape[2:]) if i != options["axis"]]
            options["window"] = tuple(-(-n // m) * m for n, m in zip(sizes, self.multiple))
        return sliding_window(self.logits, volume, options.pop("window"), progress=progress, **options)

    def _predict(self, inputs: Tensor | list[Tensor], samples: list[VolumeSample] | None) -> list[VolumeSample]:
        samples = [VolumeSample() for _ in inputs] if samples is None else samples
        for volume, sample in zip(inputs, samples):
            sample.set_pred_label(self.whole(volume[None], output="labels")[0])
        return samples


def _name(sample: VolumeSample) -> str:
    return str(sample.get("case", "?"))
