"""Importer of the authors' CTM checkpoints (https://github.com/SakanaAI/continuous-thought-machines, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.weights.importers._official import KeyMap, official_arguments, refuse

NETWORK = "models/ctm.py:ContinuousThoughtMachine"

#: our classes that an entry's checkpoints are for
CHECKPOINTS = {NETWORK: ("CTM",)}

#: without a value where the authors' constructor has no default
_REQUIRED = (
    "iterations",
    "d_model",
    "d_input",
    "heads",
    "n_synch_out",
    "n_synch_action",
    "synapse_depth",
    "memory_length",
    "deep_nlms",
    "memory_hidden_dims",
    "do_layernorm_nlm",
    "backbone_type",
    "positional_embedding_type",
    "out_dims",
)
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(_REQUIRED),
    "prediction_reshaper": (-1,),
    "dropout": 0.0,
    "dropout_nlm": None,
    "neuron_select_type": "random-pairing",
    "n_random_pairing_self": 0,
}

_FOURIER = (("Wr.weight", "frequencies.weight"), ("mlp.{j}.{p}", "mlp.{j}.{p}"))
_MAP = KeyMap(
    [
        ("initial_rgb.{p}", "features.rgb.{p}"),
        ("backbone.conv1.{p}", "features.conv1.{p}"),
        ("backbone.bn1.{p}", "features.bn1.{p}"),
        *(
            pair
            for i in range(4)
            for pair in (
                (f"backbone.layer{i + 1}.{{j}}.{{p}}.{{p2}}", f"features.layers.{i}.{{j}}.{{p}}.{{p2}}"),
                (
                    f"backbone.layer{i + 1}.{{j}}.downsample.{{k}}.{{p}}",
                    f"features.layers.{i}.{{j}}.downsample.{{k}}.{{p}}",
                ),
            )
        ),
        ("backbone.layers.{j}.{p}", "features.layers.0.0.{j}.{p}"),
        *((f"positional_embedding.{a}", f"thinker.position.{b}") for a, b in _FOURIER),
        *((f"positional_embedding.embedders.{{s}}.{a}", f"thinker.position.encodings.{{s}}.{b}") for a, b in _FOURIER),
        ("positional_embedding.combination", "thinker.position.weights"),
        ("positional_embedding.start_vector", "thinker.position.start_vector"),
        ("positional_embedding.projection.0.{p}", "thinker.position.projection.{p}"),
        ("kv_proj.{s}.{p}", "thinker.kv_proj.{s}.{p}"),
        ("q_proj.{p}", "thinker.q_proj.{p}"),
        ("attention.out_proj.{p}", "thinker.attn_out.{p}"),
        ("synapses.{s}.{p}", "thinker.synapses.{s}.{p}"),
        ("synapses.{p}.{j}.{p2}", "thinker.synapses.{p}.{j}.{p2}"),
        ("synapses.{p}.{j}.{k}.{p2}", "thinker.synapses.{p}.{j}.{k}.{p2}"),
        # linear layers of the neuron-level models, between which there are activations
        *(
            (f"trace_processor.0.{2 * i}.{a}", f"thinker.neuron_models.{i}.{b}")
            for i in range(2)
            for a, b in (("w1", "weight"), ("b1", "bias"), ("T", "temperature"), ("layernorm.{p}", "norm.{p}"))
        ),
        ("start_activated_state", "thinker.start_activated_state"),
        ("start_trace", "thinker.start_trace"),
        *(
            pair
            for kind in ("action", "out")
            for pair in (
                (f"decay_params_{kind}", f"thinker.synch_{kind}.decay"),
                (f"{kind}_neuron_indices_left", f"thinker.synch_{kind}.left"),
                (f"{kind}_neuron_indices_right", f"thinker.synch_{kind}.right"),
            )
        ),
        ("output_projector.0.{p}", "thinker.output_projector.{p}"),
    ]
)


def config_from_official(
    entry: str, kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """A spec for :func:`zoo.registry.build` from the authors' class and its arguments.

    Args:
        entry, kwargs: the authors' class and what it is built with.
        state_dict: the authors' weights: the first layers of their model take their channels from the first image, so
            that only the weights know them; without it 3 channels.

    Raises:
        LookupError: unknown entry.
        TypeError: an argument that the authors' constructor does not have, or none for one that it needs.
        ValueError: a value that is not supported.
    """
    if entry != NETWORK:
        raise LookupError(f"ctm: no entry {entry!r}")
    a = official_arguments(entry, kwargs, _DEFAULTS)
    if missing := [n for n in _REQUIRED if n not in kwargs]:
        raise TypeError(f"{entry} needs the argument {missing[0]!r}")
    if a["backbone_type"] == "parity_backbone":
        raise refuse(entry, "backbone_type", a["backbone_type"], "those of images, or 'none'")
    if a["positional_embedding_type"] == "custom-rotational-1d":
        raise refuse(entry, "positional_embedding_type", a["positional_embedding_type"], "those of images, or 'none'")
    if not a["heads"]:
        raise refuse(entry, "heads", a["heads"], "1 and above (the authors' forward pass attends)")
    shape = tuple(a["prediction_reshaper"])
    same = ("iterations", "d_model", "d_input", "heads", "n_synch_out", "n_synch_action", "synapse_depth")
    more = ("memory_length", "memory_hidden_dims", "dropout", "dropout_nlm", "neuron_select_type")
    return dict(
        type="zoo.backbones.ctm.CTM",
        features=a["backbone_type"],
        in_chans=3 if state_dict is None else _channels(a["backbone_type"], state_dict),
        num_classes=a["out_dims"],
        deep_nlms=bool(a["deep_nlms"]),
        do_layernorm_nlm=bool(a["do_layernorm_nlm"]),
        position=a["positional_embedding_type"],
        prediction_shape=shape,
        # without effect in the authors' constructor under the other selections
        n_random_pairing_self=a["n_random_pairing_self"] if a["neuron_select_type"] == "random-pairing" else 0,
        **{k: a[k] for k in (*same, *more)},
    )


def _channels(backbone: str, state: Mapping[str, Tensor]) -> int:
    """Channels of the images of a checkpoint."""
    key = {"none": "kv_proj.0.weight", "shallow-wide": "backbone.layers.0.weight"}.get(backbone, "initial_rgb.weight")
    if key not in state:
        raise KeyError(f"missing in the state dict: {key}")
    return state[key].shape[1]


def _turned(name: str, value: Tensor, back: bool) -> Tensor:
    """A weight of the neuron-level models between [in, out, neurons] and [neurons, in, out], their bias likewise."""
    if not name.startswith("thinker.neuron_models."):
        return value
    if name.endswith(".weight") and value.ndim == 3:
        return value.permute(1, 2, 0) if back else value.permute(2, 0, 1)
    return value.transpose(0, 1) if name.endswith(".bias") and value.ndim == 3 else value


def convert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names.

    Raises:
        LookupError: unknown entry.
        KeyError: a key that the authors' class has not, or no attention in it.
    """
    if entry != NETWORK:
        raise LookupError(f"ctm: no entry {entry!r}")
    rest = dict(state_dict)
    own: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        if f"attention.in_proj_{part}" not in rest:
            raise KeyError(f"missing in the state dict: attention.in_proj_{part}")
        q, k, v = rest.pop(f"attention.in_proj_{part}").chunk(3)
        own[f"thinker.attn_q.{part}"], own[f"thinker.attn_kv.{part}"] = q, torch.cat([k, v])
    own.update({n: _turned(n, v, False) for n, v in _MAP.convert(rest).items()})
    return own


def revert_state_dict(entry: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_state_dict`."""
    if entry != NETWORK:
        raise LookupError(f"ctm: no entry {entry!r}")
    rest = dict(state_dict)
    official: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        joined = [rest.pop(f"thinker.attn_{name}.{part}") for name in ("q", "kv")]
        official[f"attention.in_proj_{part}"] = torch.cat(joined)
    official.update(_MAP.revert({n: _turned(n, v, True) for n, v in rest.items()}))
    return official
