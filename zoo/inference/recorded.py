"""What a checkpoint of ours says about itself: the config that it was trained with, and its classes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def checkpoint_meta(weights: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint of ours says about itself: ``cfg``, ``dataset_meta`` ...; empty for others."""
    path = Path(weights)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            recorded = (file.metadata() or {}).get("attnzoo_meta")
        return json.loads(recorded) if recorded else {}
    from zoo.weights.checkpoint import read_checkpoint

    content = read_checkpoint(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) else {}


def config_of(meta: dict[str, Any]) -> Any:
    """The config that a checkpoint of our runner records, checked, or None."""
    from zoo.engine.recorded import recorded_config

    return recorded_config(meta.get("cfg"))


def classes_of(meta: dict[str, Any]) -> list[str] | None:
    """Class names that a checkpoint of ours records, or None."""
    names = (meta.get("dataset_meta") or {}).get("classes")
    return [str(n) for n in names] if names else None


def needs_weights(config: Any, weights: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The weights for a config.

    Raises:
        ValueError: there are none.
    """
    if weights is None:
        raise ValueError(f"config {config} has no weights of its own; give a checkpoint file as weights")
    return weights


def model_arguments(cfg: Any) -> dict[str, Any]:
    """The arguments of the model of a config, without its type."""
    return {k: v for k, v in cfg.model.to_dict().items() if k != "type"}
