"""Importer of the authors' Agent Attention checkpoints (https://github.com/LeapLabTHU/Agent-Attention)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers import _hybrid
from zoo.weights.importers._official import KeyMap, official_arguments, refuse

DEIT = "models.agent_deit.VisionTransformer"
PVT = "models.agent_pvt.PyramidVisionTransformer"
SWIN = "models.agent_swin.AgentSwinTransformer"
CSWIN = "models.agent_cswin.CSWinTransformer"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {DEIT: ("AgentDeiT",), PVT: ("AgentPVT",), SWIN: ("AgentSwin",), CSWIN: ("AgentCSWin",)}

_DEFAULTS: dict[str, dict[str, Any]] = {
    DEIT: dict(_hybrid.DEIT_DEFAULTS, agent_num=(49, 49, 49, 49), agent_layer=-1),
    PVT: dict(_hybrid.PVT_DEFAULTS, agent_sr_ratios="1111", agent_num=(9, 16, 49, 49), attn_type="AAAA"),
    SWIN: dict(_hybrid.SWIN_DEFAULTS, agent_num=(9, 16, 49, 49), attn_type="BBBB"),
    CSWIN: dict(_hybrid.CSWIN_DEFAULTS, agent_num=49, attn_type="AAAA"),
}

_AGENT = [("attn.dwc.{p}", "attn.core.dwc.{p}"), ("attn.{p}", "attn.core.position.{p}")]
_MAPS = {
    DEIT: _hybrid.deit_map(_AGENT),
    PVT: _hybrid.pvt_map(_AGENT),
    SWIN: _hybrid.swin_map(_AGENT),
    CSWIN: _hybrid.cswin_map([("attns.{k}.{p}", "attn.branches.{k}.position.{p}")]),
}


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Without effect in the authors' constructors, and so here: ``patch_size`` of CSWin.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have.
        ValueError: a value that is not supported.
    """
    if entry not in _DEFAULTS:
        raise LookupError(f"agent_attention: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS[entry])
    if not isinstance(a["agent_num"], (list, tuple)):
        raise refuse(entry, "agent_num", a["agent_num"], "a number for each stage")
    agents = _hybrid.integers(a["agent_num"])
    if entry == DEIT:
        config = dict(_hybrid.deit_config(entry, a), agent_layer=a["agent_layer"])
        return dict(config, type="zoo.backbones.agent_deit.AgentDeiT", agent_num=agents)
    if entry == PVT:
        config = dict(_hybrid.pvt_config(entry, a), agent_sr_ratios=_hybrid.integers(a["agent_sr_ratios"]))
        attn_type = a["attn_type"] or "AAAA"
        return dict(config, type="zoo.backbones.agent_pvt.AgentPVT", agent_num=agents, attn_type=attn_type)
    if entry == SWIN:
        return dict(_hybrid.swin_config(entry, a), type="zoo.backbones.agent_swin.AgentSwin", agent_num=agents)
    return dict(_hybrid.cswin_config(entry, a), type="zoo.backbones.agent_cswin.AgentCSWin", agent_num=agents)


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
        ValueError: a buffer that is not what the authors' class makes.
    """
    own: dict[str, Tensor] = {}
    if entry == SWIN:
        state_dict, own = _hybrid.without_buffers(state_dict, lambda grid, _window: grid)
    return {**_map(entry).convert(state_dict), **own}


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    official: dict[str, Tensor] = {}
    if entry == SWIN:
        whole = state_dict
        state_dict, official = _hybrid.with_buffers(
            state_dict, lambda block, _grid: whole[f"{block}.attn.core.position.ah_bias"].shape[3]
        )
    return {**_map(entry).revert(state_dict), **official}


def _map(entry: str) -> KeyMap:
    if entry not in _MAPS:
        raise LookupError(f"agent_attention: no entry {entry!r}")
    return _MAPS[entry]
