"""Importer of the authors' Sparsifiner checkpoints (https://github.com/lim142857/Sparsifiner, MIT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.weights.importers._official import KeyMap, layer_norm_eps, official_arguments, refuse

NETWORK = "src/models/sparsifiner.py:Sparsifiner"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Sparsifiner",)}

_DEFAULTS: dict[str, Any] = dict(
    img_size=224,
    patch_size=16,
    in_chans=3,
    num_classes=1000,
    embed_dim=768,
    depth=12,
    num_heads=12,
    mlp_ratio=4.0,
    qkv_bias=True,
    qk_scale=None,
    representation_size=None,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.0,
    hybrid_backbone=None,
    norm_layer=None,
    distill=False,
    attn_keep_rate_list=None,
    token_keep_rate_list=None,
    token_pruning_loc_indicator=None,
    reduce_n_factor=8,
    reduce_c_factor=2,
    share_inout_proj=False,
    cfg=None,
)
#: of the authors' configuration what the network reads, by flat names (sparsifiner_default_config.yaml)
_CFG_DEFAULTS: dict[str, Any] = dict(
    BASIS_THRESHOLD=2e-2,
    BASIS_COEF_USE_TOPK=True,
    BASIS_COEF_TOPK=8,
    BASIS_COEF_THRESHOLD=5e-2,
    ATTN_SCORE_USE_TOPK=True,
    ATTN_SCORE_THRESHOLD=1e-4,
    PRUNE_ATTN_MATRIX_ROW=False,
    PRUNE_ATTN_MATRIX_COL=False,
    OUT_BASIS_SPARSITY=True,
    OUT_BASIS_COEF_SPARSITY=True,
    OUT_ATTN_MASK_SPARSITY=True,
    USE_ATTN_RECON=False,
)

_MAP = KeyMap(
    [
        ("cls_token", "cls_token"),
        ("pos_embed", "pos_embed.table"),
        ("patch_embed.proj.{p}", "patch_embed.{p}"),
        ("norm.{p}", "norm.{p}"),
        ("pre_logits.fc.{p}", "pre_logits.{p}"),
        ("head.{p}", "head.{p}"),
        ("blocks.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
        ("blocks.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
        ("blocks.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
        ("blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.qkv.{p}"),
        ("blocks.{i}.attn.proj.{p}", "blocks.{i}.attn.proj.{p}"),
        ("blocks.{i}.attn.mask_predictor.proj_c_q.{p}", "blocks.{i}.attn.proj_c_q.{p}"),
        ("blocks.{i}.attn.mask_predictor.proj_c_k.{p}", "blocks.{i}.attn.proj_c_k.{p}"),
        ("blocks.{i}.attn.mask_predictor.proj_n", "blocks.{i}.attn.proj_n"),
        ("blocks.{i}.attn.mask_predictor.proj_back_n", "blocks.{i}.attn.proj_back_n"),
    ]
)


def _side(entry: str, value: Any) -> int:
    sides = [value] if isinstance(value, int) else list(value)
    if len(set(sides)) != 1:
        raise refuse(entry, "patch_size", value, "a number, or two equal ones")
    return sides[0]


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    ``cfg`` is a dict with the flat names of the authors' ``cfg.SPAR`` (``BASIS_COEF_TOPK`` and so on). Without effect
    in the network, and so here: ``distill``, ``PRUNE_ATTN_MATRIX_COL``; the ``OUT_...`` choose what else is put out.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry != NETWORK:
        raise LookupError(f"sparsifiner: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS)
    cfg = official_arguments(f"{entry} cfg", a["cfg"] or {}, _CFG_DEFAULTS)
    lists = ("attn_keep_rate_list", "token_keep_rate_list", "token_pruning_loc_indicator")
    for name in lists:
        if a[name] is None:
            raise TypeError(f"{entry} needs the argument {name!r}")
        if len(a[name]) < a["depth"]:
            raise refuse(entry, name, a[name], f"one entry for each of depth={a['depth']} blocks")
    for name, accepted in (("drop_rate", 0), ("attn_drop_rate", 0), ("hybrid_backbone", None)):
        if a[name] != accepted:
            raise refuse(entry, name, a[name], repr(accepted))
    if cfg["USE_ATTN_RECON"]:
        raise refuse(f"{entry} cfg", "USE_ATTN_RECON", True, "False; record 'approximation' for a loss of your own")
    if a["num_classes"] < 1:
        raise refuse(entry, "num_classes", a["num_classes"], "1 and above (features have no norm here)")
    if not cfg["ATTN_SCORE_USE_TOPK"] and cfg["ATTN_SCORE_THRESHOLD"] <= 0:
        raise refuse(f"{entry} cfg", "ATTN_SCORE_THRESHOLD", cfg["ATTN_SCORE_THRESHOLD"], "numbers above 0")
    size = a["img_size"] if isinstance(a["img_size"], int) else tuple(a["img_size"])
    depth = a["depth"]
    pruning = zip(a["token_keep_rate_list"][:depth], a["token_pruning_loc_indicator"][:depth])
    kept = (
        "in_chans num_classes embed_dim depth num_heads mlp_ratio qkv_bias qk_scale representation_size drop_path_rate "
        "reduce_n_factor reduce_c_factor share_inout_proj"
    )
    return dict(
        type="zoo.backbones.sparsifiner.Sparsifiner",
        img_size=size,
        patch_size=_side(entry, a["patch_size"]),
        norm_eps=1e-6 if a["norm_layer"] is None else layer_norm_eps(entry, "norm_layer", a["norm_layer"]),
        attn_keep_rates=list(a["attn_keep_rate_list"][:depth]),
        token_keep_rates=[rate if prunes else None for rate, prunes in pruning],
        basis_threshold=cfg["BASIS_THRESHOLD"],
        coefficient_topk=cfg["BASIS_COEF_TOPK"] if cfg["BASIS_COEF_USE_TOPK"] else None,
        coefficient_threshold=cfg["BASIS_COEF_THRESHOLD"],
        score_threshold=None if cfg["ATTN_SCORE_USE_TOPK"] else cfg["ATTN_SCORE_THRESHOLD"],
        prune_rows=cfg["PRUNE_ATTN_MATRIX_ROW"],
        straight_through=False,
        drop_remainder=True,
        **{k: a[k] for k in kept.split()},
    )


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not.
    """
    if entry != NETWORK:
        raise LookupError(f"sparsifiner: no entry {entry!r}")
    return _MAP.convert(state_dict)


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    if entry != NETWORK:
        raise LookupError(f"sparsifiner: no entry {entry!r}")
    return _MAP.revert(state_dict)
