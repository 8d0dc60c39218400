"""Importer of RF-DETR checkpoints (https://github.com/roboflow/rf-detr, package rfdetr 1.11, Apache-2.0).

The arguments are the fields of the namespace that the authors' builder reads, as their checkpoints keep it. ``vit``
overrides fields of the backbone's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

NETWORK = "rfdetr.models.lwdetr.build_model"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("Detector", "RFDETR")}

#: fields of the namespace that shape the network, as the authors' base model and defaults have them
_ARGUMENTS: dict[str, Any] = dict(
    encoder="dinov2_windowed_small",
    vit=None,
    out_feature_indexes=[2, 5, 8, 11],
    window_block_indexes=None,
    projector_scale=["P4"],
    patch_size=14,
    num_windows=4,
    positional_encoding_size=37,
    hidden_dim=256,
    dim_feedforward=2048,
    dropout=0.0,
    drop_path=0.0,
    sa_nheads=8,
    ca_nheads=16,
    dec_n_points=2,
    dec_layers=3,
    decoder_norm="LN",
    num_queries=300,
    group_detr=13,
    two_stage=True,
    bbox_reparam=True,
    lite_refpoint_refine=True,
    layer_norm=True,
    num_classes=90,
    aux_loss=True,
    segmentation_head=False,
    mask_downsample_ratio=4,
    use_grouppose_keypoints=False,
    num_keypoints_per_class=[],
    grouppose_keypoint_dim_downscale=1,
    keypoint_cross_attn=True,
    inter_instance_kp_attn=False,
    num_decoder_registers=0,
    dual_projector=False,
    dual_projector_kp_only=False,
    freeze_encoder=False,
    gradient_checkpointing=False,
    rms_norm=False,
    backbone_lora=False,
    encoder_only=False,
    backbone_only=False,
    use_cls_token=False,
    num_channels=3,
)
_FIXED: dict[str, Any] = dict(rms_norm=False, backbone_lora=False, encoder_only=False, backbone_only=False)
#: fields that no weight and no output depends on: inputs, training, post-processing
_ABOUT = frozenset(
    {
        "image_sizes", "num_targets", "resolution", "shape", "device", "amp", "compile", "cuda_graphs", "num_select",
        "postprocess_trace_alpha", "pretrain_weights", "pretrained_encoder", "pretrain_exclude_keys",
        "pretrain_keys_modify_to_load", "pretrained_distiller", "vit_encoder_num_layers", "position_embedding",
        "force_no_pretrain", "freeze_batch_norm", "drop_mode", "drop_schedule", "cutoff_epoch", "print_freq",
        "do_benchmark", "coco_path", "dont_save_weights", "start_epoch", "eval", "world_size", "dist_url",
        "lr_scheduler", "lr_min_factor", "subcommand", "focal_alpha", "set_cost_class", "set_cost_bbox",
        "set_cost_giou", "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef", "sum_group_losses",
        "use_varifocal_loss", "use_position_supervised_loss", "ia_bce_loss", "mask_ce_loss_coef",
        "mask_dice_loss_coef", "mask_point_sample_ratio", "keypoint_l1_loss_coef", "keypoint_findable_loss_coef",
        "keypoint_visible_loss_coef", "keypoint_nll_loss_coef", "lr", "lr_encoder", "weight_decay", "epochs",
        "batch_size", "grad_accum_steps", "seed", "class_names", "dataset_file", "dataset_dir", "output_dir",
        "num_feature_levels", "warmup_epochs", "lr_drop", "lr_vit_layer_decay", "lr_component_decay", "use_ema",
        "ema_decay", "ema_tau", "multi_scale", "expanded_scales", "clip_max_norm", "num_workers", "resume",
        "square_resize_div_64", "do_random_resize_via_padding", "early_stopping", "checkpoint_interval", "run",
        "project", "tensorboard", "wandb", "license",
    }
)  # fmt: skip
#: the sizes of DINOv2
_SIZES: dict[str, dict[str, int]] = {
    "small": dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6),
    "base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12),
    "large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
}
_VIT: dict[str, Any] = dict(
    hidden_size=384,
    num_hidden_layers=12,
    num_attention_heads=6,
    mlp_ratio=4,
    layer_norm_eps=1e-6,
    qkv_bias=True,
    layerscale_value=1.0,
    num_register_tokens=0,
    use_swiglu_ffn=False,
    hidden_act="gelu",
    apply_layernorm=True,
    reshape_hidden_states=True,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
_VIT_FIXED: dict[str, Any] = dict(
    hidden_act="gelu",
    apply_layernorm=True,
    reshape_hidden_states=True,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def backbone_spec(entry: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of the backbone.

    Raises:
        ValueError: an encoder, or a field of its size, that is not supported.
    """
    from zoo.backbones.dinov2_windowed import WindowedDINOv2

    parts = str(args["encoder"]).split("_")
    registers = "registers" in parts
    if parts[0] != "dinov2" or parts[-1] not in _SIZES or "windowed" not in parts or len(parts) != 3 + registers:
        raise refuse(entry, "encoder", args["encoder"], "'dinov2_[registers_]windowed_' and 'small', 'base' or 'large'")
    vit = official_arguments(
        f"{entry} vit",
        {**_SIZES[parts[-1]], "num_register_tokens": 4 * registers, **(args["vit"] or {})},
        _VIT,
    )
    for key, value in _VIT_FIXED.items():
        if vit[key] != value:
            raise refuse(entry, f"vit.{key}", vit[key], repr(value))
    depth, stages = vit["num_hidden_layers"], list(args["out_feature_indexes"])
    if not stages or stages != sorted(set(stages)) or not 1 <= stages[0] <= stages[-1] <= depth:
        raise refuse(entry, "out_feature_indexes", stages, f"increasing numbers from 1 to {depth}")
    windowed = args["window_block_indexes"]
    if windowed is None:
        # Block numbers and stage numbers are compared as they are, although stage k comes after block k - 1.
        windowed = set(range(stages[-1] + 1)) - set(stages)
    elif len(set(windowed)) != len(windowed) or not set(windowed) <= set(range(depth)):
        raise refuse(entry, "window_block_indexes", windowed, f"different numbers from 0 to {depth - 1}")
    return dict(
        type=WindowedDINOv2,
        embed_dim=vit["hidden_size"],
        depth=depth,
        num_heads=vit["num_attention_heads"],
        patch_size=args["patch_size"],
        table_size=args["positional_encoding_size"],
        num_windows=args["num_windows"],
        global_blocks=sorted(set(range(depth)) - set(windowed)),
        out_indices=tuple(s - 1 for s in stages),
        registers=vit["num_register_tokens"],
        mlp_ratio=vit["mlp_ratio"],
        qkv_bias=vit["qkv_bias"],
        gated=vit["use_swiglu_ffn"],
        layer_scale=vit["layerscale_value"],
        norm_eps=vit["layer_norm_eps"],
        drop_path_rate=args["drop_path"],
        in_chans=args["num_channels"],
        frozen_stages=depth if args["freeze_encoder"] else -1,
        grad_checkpointing=args["gradient_checkpointing"],
    )


def config_from_official(entry: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our spec of the whole detector for the fields of the authors' namespace.

    Raises:
        LookupError: an unknown entry.
        TypeError, ValueError: a field that the authors' builder does not read, or a value that is not supported.
    """
    from zoo.detection.detector import Detector
    from zoo.detection.rfdetr import RFDETR

    if entry != NETWORK:
        raise LookupError(f"entry {entry!r} is not known; accepted is {NETWORK!r}")
    args = official_arguments(entry, {k: v for k, v in kwargs.items() if k not in _ABOUT}, _ARGUMENTS)
    for key, value in _FIXED.items():
        if args[key] != value:
            raise refuse(entry, key, args[key], repr(value))
    if args["decoder_norm"] not in ("LN", "Identity"):
        raise refuse(entry, "decoder_norm", args["decoder_norm"], "'LN' and 'Identity'")
    if args["dec_layers"] < 1:
        raise refuse(entry, "dec_layers", args["dec_layers"], "1 and above")
    if args["use_grouppose_keypoints"] and not sum(args["num_keypoints_per_class"] or ()):
        raise refuse(entry, "num_keypoints_per_class", args["num_keypoints_per_class"], "at least one keypoint")
    if args["num_keypoints_per_class"] and not args["use_grouppose_keypoints"]:
        raise refuse(entry, "num_keypoints_per_class", args["num_keypoints_per_class"], "[] for a model without any")
    if args["use_grouppose_keypoints"] and not (args["lite_refpoint_refine"] and args["two_stage"]):
        raise refuse(entry, "use_grouppose_keypoints", True, "with lite_refpoint_refine and two_stage only")
    counts = tuple(args["num_keypoints_per_class"]) if args["use_grouppose_keypoints"] else ()
    backbone = backbone_spec(entry, args)
    network = dict(
        type=RFDETR,
        num_classes=args["num_classes"] + 1,
        num_queries=args["num_queries"],
        groups=args["group_detr"],
        stride=args["patch_size"],
        levels=tuple(args["projector_scale"]),
        layer_norm=args["layer_norm"],
        aux_loss=args["aux_loss"],
        segmentation_head=args["segmentation_head"],
        mask_downsample_ratio=args["mask_downsample_ratio"],
        keypoint_counts=counts,
        dual_projector=args["dual_projector"],
        dual_projector_kp_only=args["dual_projector_kp_only"],
        transformer=dict(
            d_model=args["hidden_dim"],
            sa_heads=args["sa_nheads"],
            ca_heads=args["ca_nheads"],
            num_layers=args["dec_layers"],
            dim_feedforward=args["dim_feedforward"],
            dropout=args["dropout"],
            n_points=args["dec_n_points"],
            two_stage=args["two_stage"],
            bbox_reparam=args["bbox_reparam"],
            lite_refpoint_refine=args["lite_refpoint_refine"],
            decoder_norm=args["decoder_norm"] == "LN",
            registers=args["num_decoder_registers"],
            keypoint_dim_downscale=args["grouppose_keypoint_dim_downscale"],
            keypoint_cross_attn=args["keypoint_cross_attn"],
            inter_instance_kp_attn=args["inter_instance_kp_attn"],
        ),
    )
    return dict(type=Detector, backbone=backbone, network=network)


_VIT_PREFIX = "backbone.0.encoder.encoder."
_BLOCK = [
    ("norm1.{p}", "norm1.{p}"),
    ("norm2.{p}", "norm2.{p}"),
    ("attention.qkv.{p}", "qkv.{p}"),
    ("attention.output.dense.{p}", "proj.{p}"),
    ("layer_scale1.lambda1", "gamma1"),
    ("layer_scale2.lambda1", "gamma2"),
    ("mlp.fc{n}.{p}", "mlp.fc{n}.{p}"),
    ("mlp.weights_in.{p}", "mlp.fc1.{p}"),
    ("mlp.weights_out.{p}", "mlp.fc2.{p}"),
]
_TRUNK = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "register_tokens"),
    ("embeddings.position_embeddings", "position"),
    ("embeddings.patch_embeddings.projection.{p}", "patch_embed.{p}"),
    ("layernorm.{p}", "norm.{p}"),
    *((f"encoder.layer.{{s}}.{a}", f"blocks.{{s}}.{b}") for a, b in _BLOCK),
]
_BACKBONE = KeyMap(_TRUNK)
_GATED = KeyMap([pair for pair in _TRUNK if "mlp.fc{n}" not in pair[0]])
_QKV = ("query", "key", "value")
#: prefixes of the network, theirs and ours
_PREFIXES = (
    ("backbone.0.projector.", "projector."),
    ("backbone.0.cross_attn_projector.", "cross_attn_projector."),
    ("transformer.enc_out_class_embed.", "enc_out_class_embed."),
    ("transformer.enc_out_bbox_embed.", "enc_out_bbox_embed."),
    ("transformer.enc_out_keypoint_embed.", "enc_out_keypoint_embed."),
    ("_kp_active_mask", "keypoint_active"),
)
_LAYER = "transformer.decoder.layers."
_KEYPOINT_PARTS = ("kp_", "inst_", "memory_in_proj.", "inter_inst_", "instance_kp_")
_SHARED = "transformer.decoder.bbox_embed."


def join_qkv(state: Mapping[str, Tensor], parts: tuple[str, str, str], joined: str) -> dict[str, Tensor]:
    """Queries, keys and values of attentions in one layer.

    Args:
        state: a state dict.
        parts: names of the three layers.
        joined: name of the one layer.

    Raises:
        KeyError: a query without its key or value.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        for i, part in enumerate(parts):
            if f".{part}." not in key:
                continue
            if i == 0:
                names = [key.replace(f".{part}.", f".{p}.") for p in parts]
                if missing := [n for n in names if n not in state]:
                    raise KeyError(f"the state dict has {key!r} but not {missing[0]!r}")
                found[key.replace(f".{part}.", f".{joined}.")] = torch.cat([state[n] for n in names])
            break
        else:
            found[key] = value
    return found


def split_qkv(state: Mapping[str, Tensor], parts: tuple[str, str, str], joined: str) -> dict[str, Tensor]:
    """The inverse of :func:`join_qkv`."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if f".{joined}." in key:
            found |= {key.replace(f".{joined}.", f".{p}."): v for p, v in zip(parts, value.chunk(3))}
        else:
            found[key] = value
    return found


def _network_key(key: str) -> str:
    for old, new in _PREFIXES:
        if key.startswith(old):
            return new + key[len(old) :]
    if key.startswith(_LAYER):
        number, name = key[len(_LAYER) :].split(".", 1)
        if name.startswith(_KEYPOINT_PARTS):
            return f"{_LAYER}{number}.keypoints.{name}"
    return key


def _official_key(key: str) -> str:
    for old, new in _PREFIXES:
        if key.startswith(new):
            return old + key[len(new) :]
    return key.replace(".keypoints.", ".", 1) if key.startswith(_LAYER) else key


def convert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict to ours.

    The decoder's second name of the box head is dropped.

    Raises:
        KeyError: a key of the backbone that is not known.
        ValueError: the two names of the box head hold different numbers.
    """
    backbone = {k[len(_VIT_PREFIX) :]: v for k, v in state.items() if k.startswith(_VIT_PREFIX)}
    backbone = join_qkv(backbone, tuple(f"attention.attention.{n}" for n in _QKV), "attention.qkv")  # type: ignore[arg-type]
    found = {f"backbone.{k}": v for k, v in _BACKBONE.convert(backbone).items()}
    for key, value in state.items():
        if key.startswith(_SHARED):
            if not torch.equal(value, state[key[len("transformer.decoder.") :]]):
                raise ValueError(f"{key} and the decoder's box head are one tensor in this model but hold two")
        elif not key.startswith(_VIT_PREFIX):
            found[f"network.{_network_key(key)}"] = value
    return found


def revert_state_dict(entry: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict to the authors'.

    Raises:
        KeyError: a key that this model does not have.
    """
    if unknown := [k for k in state if not k.startswith(("backbone.", "network."))]:
        raise KeyError(f"{len(unknown)} unexpected keys in the state dict: {', '.join(unknown[:8])}")
    backbone = {k[len("backbone.") :]: v for k, v in state.items() if k.startswith("backbone.")}
    widths = [v.shape[0] for k, v in backbone.items() if k.endswith("mlp.fc1.bias")]
    inner = [v.shape[1] for k, v in backbone.items() if k.endswith("mlp.fc2.weight")]
    keys = _GATED if widths[:1] != inner[:1] else _BACKBONE
    own = split_qkv(keys.revert(backbone), tuple(f"attention.attention.{n}" for n in _QKV), "attention.qkv")  # type: ignore[arg-type]
    found = {_VIT_PREFIX + k: v for k, v in own.items()}
    network = {k[len("network.") :]: v for k, v in state.items() if k.startswith("network.")}
    return found | {_official_key(k): v for k, v in network.items()}
