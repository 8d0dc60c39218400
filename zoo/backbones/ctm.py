"""Continuous Thought Machine: neurons with a memory of their own think about an image for a number of ticks.

Continuous Thought Machines (NeurIPS 2025, arXiv 2505.05522). Authors' code:
github.com/SakanaAI/continuous-thought-machines (Apache-2.0). Differences: images only (no parity sequences), any image
size, and of the ticks' predictions :class:`CTM` gives that of the most certain tick, or the last; :meth:`CTM.think`
gives all of them. The machine itself is in :mod:`zoo.backbones.ctm_machine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones.base import Backbone
from zoo.backbones.ctm_machine import POSITIONS, SELECTIONS, Thinker, Thoughts
from zoo.layers.resnet import RESNETS
from zoo.layers.stages import drop_path_rates
from zoo.layers.token_linear import TokenLinear
from zoo.registry import register_model, variant


class ResNetFeatures(nn.Module):
    """The first stages of a ResNet, after a 1x1 convolution to 3 channels and with a 3x3 stem convolution of stride 1.

    Args:
        in_chans: channels of the image.
        depth: 18, 34, 50, 101 or 152.
        stages: how many of the four.
        width: channels of the stem; 64.
        drop_path_rate: stochastic depth of the last block.
    """

    def __init__(self, in_chans: int, depth: int, stages: int, width: int, drop_path_rate: float = 0.0):
        super().__init__()
        block, depths = RESNETS[depth]
        self.depths = depths[:stages]
        self.channels = tuple(width * 2**i * block.expansion for i in range(stages))
        self.strides = tuple(2 ** (i + 1) for i in range(stages))
        rates = drop_path_rates(drop_path_rate, self.depths)
        self.rgb = nn.Conv2d(in_chans, 3, 1)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layers = nn.ModuleList()
        before = width
        for i, n in enumerate(self.depths):
            blocks = nn.ModuleList()
            for j in range(n):
                blocks.append(block(before, width * 2**i, 2 if i and not j else 1, rates[i][j]))
                before = self.channels[i]
            self.layers.append(blocks)

    def stem(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W] -> [B, width, H/2, W/2]``, rounded up."""
        return F.max_pool2d(F.relu(self.bn1(self.conv1(self.rgb(x)))), 3, 2, 1)


class ShallowWideFeatures(nn.Module):
    """Two wide convolutions with gated linear units: one stage of 2048 channels and stride 2."""

    depths, channels, strides = (1,), (2048,), (2,)

    def __init__(self, in_chans: int):
        super().__init__()
        first = [nn.Conv2d(in_chans, 4096, 3, 2, 1), nn.GLU(dim=1), nn.BatchNorm2d(2048)]
        second = [nn.Conv2d(2048, 4096, 3, 1, 1, groups=32), nn.GLU(dim=1), nn.BatchNorm2d(2048)]
        self.layers = nn.ModuleList([nn.ModuleList([nn.Sequential(*first, *second)])])

    def stem(self, x: Tensor) -> Tensor:
        return x


class NoFeatures(nn.Module):
    """The image is the map of features: one stage of stride 1 without a layer."""

    depths, strides = (0,), (1,)

    def __init__(self, in_chans: int):
        super().__init__()
        self.channels = (in_chans,)
        self.layers = nn.ModuleList([nn.ModuleList()])

    def stem(self, x: Tensor) -> Tensor:
        return x


class CTM(Backbone):
    """Continuous Thought Machine for images.

    The maps are those of the feature extractor; the machine is the classifier. Logits are the prediction of the tick
    that is most certain of it, an image at a time.

    Args:
        features: "resnet18-1" to "resnet152-4" (depth, stages), "shallow-wide", or "none": the image is the features.
        width: channels of a ResNet's stem.
        in_chans: channels of the image.
        num_classes: classes; 0 for features, without the machine.
        iterations: ticks T.
        d_model: neurons D.
        d_input: channels that the neurons read the features with.
        heads: of that attention.
        n_synch_out, n_synch_action: neurons (pairs, under "random-pairing") whose synchronisation predicts, or attends.
        synapse_depth: 1 for one gated layer, more for a U-Net.
        memory_length: pre-activations M that a neuron remembers.
        deep_nlms: neuron-level models of two layers rather than one.
        memory_hidden_dims: width between them.
        do_layernorm_nlm: layer-normalise what they read.
        position: encoding added to the features: "none", "learnable-fourier", "multi-learnable-fourier",
            "custom-rotational".
        neuron_select_type: "first-last", "random" (both all pairs of the neurons) or "random-pairing". What is drawn
            is drawn from torch's generator and kept in the state dict.
        n_random_pairing_self: pairs of a neuron with itself under "random-pairing".
        prediction_shape: shape of the logits for the certainty, classes last; -1 for all that remains.
        dropout: of synapses and attention.
        dropout_nlm: of what the neuron-level models read; None for ``dropout``.
        tick: "most_certain" or "last": whose prediction the logits are.
        drop_path_rate: stochastic depth of a ResNet's last block.
        out_indices, frozen_stages: see :class:`~zoo.backbones.base.Backbone`.

    Raises:
        ValueError: an argument outside what is accepted.

    Source: section 3 and appendix C; the authors' ``models/ctm.py``.
    """

    def __init__(
        self,
        features: str = "resnet18-2",
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 1000,
        iterations: int = 50,
        d_model: int = 512,
        d_input: int = 128,
        heads: int = 4,
        n_synch_out: int = 64,
        n_synch_action: int = 64,
        synapse_depth: int = 4,
        memory_length: int = 25,
        deep_nlms: bool = True,
        memory_hidden_dims: int = 4,
        do_layernorm_nlm: bool = False,
        position: str = "none",
        neuron_select_type: str = "random-pairing",
        n_random_pairing_self: int = 0,
        prediction_shape: Sequence[int] = (-1,),
        dropout: float = 0.0,
        dropout_nlm: float | None = None,
        tick: str = "most_certain",
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
    ):
        super().__init__()
        for name, value, accepted in (
            ("tick", tick, ("most_certain", "last")),
            ("position", position, tuple(POSITIONS)),
            ("neuron_select_type", neuron_select_type, SELECTIONS),
        ):
            if value not in accepted:
                raise ValueError(f"{name}={value!r}: accepted are {', '.join(map(repr, accepted))}")
        counts = dict(iterations=iterations, heads=heads, synapse_depth=synapse_depth, memory_length=memory_length)
        for name, count in {**counts, "n_synch_out": n_synch_out, "n_synch_action": n_synch_action}.items():
            if count < 1:
                raise ValueError(f"{name}={count}: accepted are numbers from 1")
        if d_input % heads:
            raise ValueError(f"d_input={d_input} must be a multiple of heads={heads}")
        if neuron_select_type == "first-last" and n_synch_out + n_synch_action > d_model:
            raise ValueError(
                f"n_synch_out={n_synch_out} and n_synch_action={n_synch_action} are more neurons than d_model={d_model}"
            )
        if neuron_select_type == "random-pairing" and n_random_pairing_self >= min(n_synch_out, n_synch_action):
            raise ValueError(
                f"n_random_pairing_self={n_random_pairing_self}: accepted are numbers below n_synch_out={n_synch_out} "
                f"and n_synch_action={n_synch_action}"
            )
        if features == "none" and position != "none":
            raise ValueError(f"position={position!r}: with features='none' there is none")
        if num_classes == 1 or prediction_shape[-1] == 1:
            raise ValueError(f"num_classes={num_classes}, prediction_shape={prediction_shape}: one class is no choice")
        self.features = _features(features, in_chans, width, drop_path_rate)
        self._describe(
            self.features.channels,
            self.features.strides,
            num_classes=num_classes,
            in_chans=in_chans,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
        )
        self.tick = tick
        self._thinker_arguments: dict[str, Any] = dict(
            in_dim=self.num_features,
            iterations=iterations,
            d_model=d_model,
            d_input=d_input,
            heads=heads,
            n_synch_out=n_synch_out,
            n_synch_action=n_synch_action,
            synapse_depth=synapse_depth,
            memory_length=memory_length,
            deep_nlms=deep_nlms,
            memory_hidden_dims=memory_hidden_dims,
            do_layernorm_nlm=do_layernorm_nlm,
            position=position,
            neuron_select_type=neuron_select_type,
            n_random_pairing_self=n_random_pairing_self,
            prediction_shape=prediction_shape,
            dropout=dropout,
            dropout_nlm=dropout if dropout_nlm is None else dropout_nlm,
        )
        self.thinker = Thinker(num_classes=num_classes, **self._thinker_arguments) if num_classes else None
        self.freeze()

    def forward_trunk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.features.stem(x)
        maps = []
        for blocks in self.features.layers:
            for block in blocks.children():
                x = self.run_block(block, x)
            maps.append(x)
        return maps, x

    def think(self, x: Tensor, track: bool = False) -> Thoughts:
        """All ticks' predictions, certainties and synchronisation of images ``[B, in_chans, H, W]``.

        Args:
            track: keep activations, synchronisation and attention of each tick too.

        Raises:
            TypeError: the model has no classifier.
        """
        self.check_image(x)
        if self.thinker is None:
            raise TypeError("a model without a classifier (num_classes=0) does not think")
        return self.thinker(self.forward_trunk(x)[1], track)

    def select(self, thoughts: Thoughts) -> Tensor:
        """The prediction ``[B, num_classes]`` of the tick that :attr:`tick` says."""
        if self.tick == "last":
            return thoughts.predictions[..., -1]
        best = thoughts.certainties[:, 1].argmax(-1)  # [B]
        return thoughts.predictions.gather(2, best[:, None, None].expand(-1, self.num_classes, 1)).squeeze(2)

    def forward_head(self, trunk: Tensor) -> Tensor:
        return trunk.mean((2, 3)) if self.thinker is None else self.select(self.thinker(trunk))

    def reset_classifier(self, num_classes: int) -> None:
        if num_classes < 0 or num_classes == 1:
            raise ValueError(f"num_classes={num_classes}: accepted are 0 (features), 2 and above")
        self.num_classes = num_classes
        if not num_classes:
            self.thinker = None
        elif self.thinker is None:
            thinker = Thinker(num_classes=num_classes, **self._thinker_arguments).train(self.training)
            self.thinker = thinker.to(next(self.features.parameters(), torch.empty(0)))
        else:
            old = self.thinker.output_projector
            self.thinker.output_projector = TokenLinear(old.in_features, num_classes).to(old.weight)

    def stage_modules(self) -> list[list[nn.Module]]:
        stem = [getattr(self.features, n) for n in ("rgb", "conv1", "bn1") if hasattr(self.features, n)]
        return [stem, *([stage] for stage in self.features.layers)]

    def layer_id(self, name: str) -> int:
        part, *rest = name.split(".")
        if part == "thinker":
            return self.num_layers() - 1
        if rest[0] != "layers":
            return 0
        return sum(self.features.depths[: int(rest[1])]) + int(rest[2]) + 1

    def num_layers(self) -> int:
        return sum(self.features.depths) + 2


def _features(name: str, in_chans: int, width: int, drop_path_rate: float) -> Any:
    if name == "none":
        return NoFeatures(in_chans)
    if name == "shallow-wide":
        return ShallowWideFeatures(in_chans)
    depth, _, stages = name.removeprefix("resnet").partition("-")
    if not name.startswith("resnet") or depth not in map(str, RESNETS) or stages not in ("1", "2", "3", "4"):
        raise ValueError(
            f"features={name!r}: accepted are 'none', 'shallow-wide' and 'resnetD-S' with D of "
            f"{', '.join(map(str, RESNETS))} and S from 1 to 4"
        )
    return ResNetFeatures(in_chans, int(depth), int(stages), width, drop_path_rate)


@register_model(task="classification", family="ctm", input_size=32)
@variant(CTM)
def ctm_nano() -> dict[str, Any]:
    """For small images (32 x 32): narrow ResNet, 96 neurons, 8 ticks."""
    return dict(
        features="resnet18-2",
        width=16,
        iterations=8,
        d_model=96,
        d_input=32,
        heads=2,
        n_synch_out=64,
        n_synch_action=32,
        synapse_depth=2,
        memory_length=6,
        memory_hidden_dims=4,
        n_random_pairing_self=8,
    )


@register_model(task="classification", family="ctm", input_size=224)
@variant(CTM)
def ctm_resnet152() -> dict[str, Any]:
    """The authors' size for ImageNet-1K: 4096 neurons, 50 ticks, over a ResNet-152."""
    return dict(
        features="resnet152-4",
        iterations=50,
        d_model=4096,
        d_input=1024,
        heads=16,
        n_synch_out=8196,
        n_synch_action=2048,
        synapse_depth=8,
        memory_length=25,
        memory_hidden_dims=64,
        n_random_pairing_self=32,
        dropout=0.2,
        dropout_nlm=0.0,
    )
