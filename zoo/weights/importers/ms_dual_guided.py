"""Importer of Multi-Scale-Attention (https://github.com/sinAshish/Multi-Scale-Attention, no licence file)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import official_arguments, refuse
from zoo.weights.importers._prefixes import PrefixMap

NETWORK = "src/models/my_stacked_danet.py:DAF_stack"
_ATTENTION = "src/models/attention.py:"
#: parts, whose arguments come as a list: names of the arguments and what they are by default
PARTS: dict[str, tuple[tuple[str, Any], ...]] = {
    f"{_ATTENTION}PAM_Module": (("in_dim", None),),
    f"{_ATTENTION}CAM_Module": (("in_dim", None),),
    f"{_ATTENTION}PAM_CAM_Layer": (("in_ch", None), ("use_pam", True)),
    f"{_ATTENTION}MultiConv": (("in_ch", None), ("out_ch", None), ("attn", True)),
    f"{_ATTENTION}semanticModule": (("in_dim", None),),
}

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("MSDualGuided",)}

_ARGUMENTS: dict[str, Any] = dict(channels=64, num_classes=5, in_channels=1, backbone=None, backbone_channels=None)
_BACKBONE: dict[str, Any] = dict(
    type="resnext_bottleneck", stem=64, planes=(64, 128, 256, 512), layers=(3, 4, 23, 3), groups=32, base_width=8
)


def _part(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    from zoo.medical import dual_attention as own
    from zoo.medical.ms_dual_guided import SemanticModule

    signature = PARTS[entry]
    kwargs = dict(kwargs)
    listed = kwargs.pop("args", [])
    if len(listed) > len(signature):
        raise TypeError(f"{entry} takes at most {len(signature)} arguments, not {len(listed)}")
    args = official_arguments(entry, kwargs, dict(signature)) | {n: v for (n, _), v in zip(signature, listed)}
    missing = [n for n, v in args.items() if v is None]
    if missing:
        raise TypeError(f"{entry} needs the argument {missing[0]!r}")
    first, *more = args.values()
    return {
        "PAM_Module": lambda: dict(type=own.PositionAttention, dim=first),
        "CAM_Module": lambda: dict(type=own.ChannelAttention),
        "PAM_CAM_Layer": lambda: dict(type=own.GuidedAttention, dim=first, position=bool(more[0])),
        "MultiConv": lambda: dict(type=own.FuseConvs, in_chans=first, out_chans=more[0], softmax=bool(more[1])),
        "semanticModule": lambda: dict(type=SemanticModule, dim=first),
    }[entry.removeprefix(_ATTENTION)]()


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec for the authors' arguments.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: an argument that the authors' constructor does not have, or that is not supported.
    """
    from zoo.medical.ms_dual_guided import MSDualGuided

    if entry in PARTS:
        return _part(entry, kwargs)
    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted are {NETWORK!r} and its parts")
    args = official_arguments(entry, kwargs, _ARGUMENTS)
    backbone = official_arguments(f"{entry} backbone", args["backbone"] or {}, _BACKBONE)
    if backbone.pop("type") != "resnext_bottleneck":
        raise refuse(entry, "backbone", args["backbone"], "{'type': 'resnext_bottleneck', ...}")
    widths = [4 * n for n in backbone["planes"]]
    if args["backbone_channels"] is not None and list(args["backbone_channels"]) != widths:
        raise refuse(entry, "backbone_channels", args["backbone_channels"], f"{widths}, those of the backbone")
    return dict(
        type=MSDualGuided,
        in_chans=args["in_channels"],
        num_classes=args["num_classes"],
        dim=args["channels"],
        backbone=backbone,
        keep_unused=True,
    )


def _semantic(official: str, own: str) -> list[tuple[str, str]]:
    # convolution, normalisation, ReLU, twice, and a transposed convolution behind the decoder's
    unit = [(0, "0.0"), (1, "0.1"), (3, "1.0"), (4, "1.1")]
    found = [(f"{official}enc{n}.encode.{a}", f"{own}enc{n}.{b}") for n in (1, 2) for a, b in unit]
    for n in (1, 2):
        found += [(f"{official}dec{n}.decode.{a}", f"{own}dec{n}.0.{b}") for a, b in unit]
        found.append((f"{official}dec{n}.decode.6", f"{own}dec{n}.1"))
    return found


def _parts(entry: str) -> list[tuple[str, str]]:
    if entry in PARTS:
        name = entry.removeprefix(_ATTENTION)
        inner = {"PAM_CAM_Layer": [("attn", "")], "MultiConv": [("fuse_attn", "")], "semanticModule": _semantic("", "")}
        return inner.get(name, [("", "")])
    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted are {NETWORK!r} and its parts")
    found = [
        ("resnext.layer0", "backbone.stem"),
        ("resnext.layer1.1", "backbone.stages.0"),
        ("fuse1.fuse_attn", "fuse"),
    ]
    found += [(f"resnext.layer{i}", f"backbone.stages.{i - 1}") for i in (2, 3, 4)]
    for i in range(1, 5):
        own = i - 1
        found.append((f"down{i}", f"down.{own}"))
        for name in ("attention", "refine"):
            found.append((f"{name}{i}.fuse_attn", f"unused.{name}.{own}"))
        found += [(f"conv{n}_{i}.1", f"unused.conv{n}.{own}") for n in (6, 7)]
        for stack, (conv8, head) in enumerate((("conv8_{}", "predict{}"), ("conv8_1{}", "predict{}_2"))):
            there, here = stack + 1, f"stacks.{stack}."
            found.append((head.format(i), f"predict.{stack}.{own}"))
            found.append((f"pam_attention_{there}_{i}.attn", f"{here}position.{own}"))
            found.append((f"cam_attention_{there}_{i}.attn", f"{here}channel.{own}"))
            # these two are counted from the coarsest scale
            found.append((f"conv_sem_{there}_{i}", f"{here}guide.{4 - i}"))
            found.append((conv8.format(i), f"{here}project.{4 - i}"))
    for stack in (1, 2):
        found += _semantic(f"semanticModule_{stack}_1.", f"stacks.{stack - 1}.semantic.")
    return found


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours; raises KeyError for a key that is not theirs."""
    return PrefixMap(_parts(entry)).convert(state)


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors'; raises KeyError for a key that is not ours."""
    return PrefixMap(_parts(entry)).revert(state)
