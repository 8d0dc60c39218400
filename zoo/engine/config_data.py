"""The test data of a config: what its metrics, and predictions in files, are compared with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.engine.config import ConfigError, apply_options, load_config

# isort: split
from mmengine.registry import DATASETS


def evaluated_data(
    config: str | os.PathLike[str], options: Mapping[str, Any] | Iterable[str] | None = None
) -> tuple[dict[str, Any], Any]:
    """The arguments of a config's test data set, ``type`` among them, and its class; nothing is built.

    Raises:
        ConfigError: the config has no test data.
    """
    cfg = load_config(Path(config), check=False)
    if options:
        apply_options(cfg, options)
    if (cfg.get("test_dataloader") or {}).get("dataset") is None:
        raise ConfigError(f"{config} has no test_dataloader with a dataset")
    spec = cfg.test_dataloader.dataset.to_dict()
    kind = spec.get("type")
    return spec, DATASETS.get(kind) if isinstance(kind, str) else kind
