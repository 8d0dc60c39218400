"""Importer of Turbolift's checkpoints (https://github.com/soumickmj/Turbolift), by the names of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers._prefixes import PrefixMap

VOLUME = "Models/attentionunet3d.py:AttU_Net"
IMAGE = "Models/DeepSupAttUNet2D.py:DeepSupAttentionUnet"
NETWORKS = (VOLUME, IMAGE)

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {VOLUME: ("AdditiveGateUNet",), IMAGE: ("DeepSupervisedUNet",)}

_VOLUME: dict[str, Any] = dict(img_ch=1, output_ch=1, base_channels=64, last_inter_channels=None)
_IMAGE: dict[str, Any] = dict(
    in_channels=1,
    out_channels=1,
    is_batchnorm=True,
    is_leaky=True,
    finalact="sigmoid",
    channels=(32, 64, 128, 256, 512),
)


def _known(entry: str) -> None:
    if entry not in NETWORKS:
        raise LookupError(f"entry {entry!r} is not known; accepted are {', '.join(NETWORKS)}")


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.medical.additive_gate_unet import AdditiveGateUNet
    from zoo.medical.deep_supervised_unet import DeepSupervisedUNet

    _known(entry)
    if entry == VOLUME:
        args = official_arguments(entry, kwargs, _VOLUME)
        base = args["base_channels"]
        last = args["last_inter_channels"] or max(base // 2, 1)
        return dict(
            type=AdditiveGateUNet,
            in_chans=args["img_ch"],
            num_classes=args["output_ch"],
            widths=[base * 2**i for i in range(5)],
            inter_chans=[last, base, 2 * base, 4 * base],
        )
    args = official_arguments(entry, kwargs, _IMAGE)
    if args["finalact"] is not None and not isinstance(args["finalact"], str):
        raise refuse(entry, "finalact", args["finalact"], "'sigmoid', 'softmax', or any other text for logits")
    return dict(
        type=DeepSupervisedUNet,
        in_chans=args["in_channels"],
        num_classes=args["out_channels"],
        widths=list(args["channels"]),
        norm=args["is_batchnorm"],
        leaky=args["is_leaky"],
        activation=args["finalact"] if args["finalact"] in ("sigmoid", "softmax") else "none",
    )


def _volume() -> list[tuple[str, str]]:
    # two units of convolution, normalisation and ReLU in one row of theirs, in two of ours
    unit = [(0, "0.0"), (1, "0.1"), (3, "1.0"), (4, "1.1")]
    found = [(f"Conv{i}.conv.{a}", f"encoder.{i - 1}.{b}") for i in range(1, 6) for a, b in unit]
    for i in range(2, 6):
        own = i - 2
        found += [(f"Up{i}.up.{n}", f"up.{own}.{n - 1}") for n in (1, 2)]
        found += [(f"Att{i}", f"gates.{own}")]
        found += [(f"Up_conv{i}.conv.{a}", f"decoder.{own}.{b}") for a, b in unit]
    return [*found, ("Conv", "head")]


def _image() -> list[tuple[str, str]]:
    names = [f"{name}{n}" for n in (1, 2) for name in ("conv", "bn", "act")]
    blocks = {f"conv{i}": f"encoder.{i - 1}" for i in range(1, 5)}
    blocks |= {f"conv{i}": f"decoder.{i - 6}" for i in range(6, 10)} | {"center": "center"}
    found = [(f"{a}.{name}", f"{b}.{n}") for a, b in blocks.items() for n, name in enumerate(names)]
    gate = {"conv1": "theta", "conv2": "phi", "conv3": "psi", "act_xg": "act", "conv4": "W.0", "bn1": "W.1"}
    for i in range(3):
        found += [(f"conv_scale{i + 2}", f"scales.{i}.0"), (f"act{i + 1}", f"scales.{i}.1")]
        found += [(f"g{i + 1}.{name}", f"signals.{i}.{n}") for n, name in enumerate(("conv", "bn", "act"))]
        found += [(f"attn{i + 1}.{a}", f"gates.{i}.{b}") for a, b in gate.items()]
        found.append((f"pred{i + 1}", f"heads.{i}"))
    for i in range(4):
        found += [(f"up{i + 1}", f"up.{i}.0"), (f"act{i + 4}", f"up.{i}.1")]
    return [*found, ("final", "heads.3")]


def _parts(entry: str) -> list[tuple[str, str]]:
    _known(entry)
    return _volume() if entry == VOLUME else _image()


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; raises KeyError for a key that is not theirs."""
    return PrefixMap(_parts(entry)).convert(state)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors'; raises KeyError for a key that is not ours."""
    return PrefixMap(_parts(entry)).revert(state)
