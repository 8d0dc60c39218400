"""timm's HaloNets, to measure against."""

from __future__ import annotations

import torch
from peers.registry import Sides, pair

from zoo.registry import MODELS
from zoo.weights.importers import timm_halonet


def _sides(name: str) -> Sides:
    import timm

    torch.manual_seed(0)
    peer, ours = timm.create_model(name).eval(), MODELS.get(name)().eval()
    for module in peer.modules():  # the last norm of a block starts at 0, which would hide its attention
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)
    ours.load_state_dict(timm_halonet.convert_state_dict(name, peer.state_dict()))
    size = MODELS.entry(name).meta["input_size"]
    x = torch.randn(1, 3, size, size)
    return (lambda: ours(x)), (lambda: peer(x))


@pair("backbone", "halonet26t 1x3x256x256", "timm", 1.0)
def halonet26t() -> Sides:
    return _sides("halonet26t")


@pair("backbone", "halonet50ts 1x3x256x256", "timm", 1.0)
def halonet50ts() -> Sides:
    return _sides("halonet50ts")


@pair("backbone", "halonet_h1 1x3x256x256", "timm", 1.0)
def halonet_h1() -> Sides:
    return _sides("halonet_h1")


@pair("backbone", "haloregnetz_b 1x3x224x224", "timm", 1.0)
def haloregnetz_b() -> Sides:
    return _sides("haloregnetz_b")
