"""The index of models: what is known of each without building it (sizes, published metrics, weights).

One YAML file a system, in ``weights/index`` of a checkout or in the installed package.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from zoo.weights.index_schema import check_system


@dataclass(frozen=True)
class ModelInfo:
    """What the index says of one model; None where it is not known.

    ``flops`` are multiply-accumulates of one image of ``input_size``; ``params`` are those with ``num_classes``.
    """

    name: str
    system: str
    task: str
    mixers: tuple[str, ...]
    params: int
    flops: int | None
    input_size: int | tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics: tuple[dict[str, Any], ...] = ()
    weights: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    paper: str | None = None
    source: str | None = None
    licence: str | None = None
    #: name of the recipe
    config: str | None = None
    #: name of the importer of the authors' checkpoints
    importer: str | None = None

    @property
    def weights_status(self) -> str:
        """``trained`` (here), ``converted``, ``published`` (by the authors, to be converted) or ``none``."""
        return self.weights.get("status", "none")


def data_dir(name: str) -> Path:
    """The folder ``name`` (``configs``, ``weights/index``): of the checkout, or the copy in the installed package."""
    package = Path(__file__).resolve().parents[1]
    for root in (package.parent, package / "_data"):
        if (root / name).is_dir() and (root == package / "_data" or (root / "pyproject.toml").is_file()):
            return root / name
    raise FileNotFoundError(f"the folder {name} is neither beside the package {package} nor inside it")


@lru_cache(maxsize=1)
def load_index() -> dict[str, ModelInfo]:
    """All models of the index by name.

    Raises:
        ValueError: a file lacks a required key or has one of the wrong kind; the message names both.
    """
    models: dict[str, ModelInfo] = {}
    for path in sorted(data_dir("weights/index").glob("*.yaml")):
        for info in read_system(path):
            if info.name in models:
                raise ValueError(f"{path}: model {info.name} is in the index twice")
            models[info.name] = info
    return models


def read_system(path: Path) -> list[ModelInfo]:
    """The models of one index file, checked (see :mod:`zoo.weights.index_schema`).

    Raises:
        ValueError: it is no YAML, or a key is missing, unknown or of the wrong kind; the message names both.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        check_system(path, data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    found = []
    for name, m in data["models"].items():
        size = m["input_size"]
        found.append(
            ModelInfo(
                name=name,
                system=data["system"],
                task=data["task"],
                mixers=tuple(m.get("mixers", data.get("mixers", []))),
                params=m["params"],
                flops=m.get("flops"),
                input_size=tuple(size) if isinstance(size, list) else size,
                num_classes=m["num_classes"],
                mean=tuple(m.get("mean", data.get("mean", (0.485, 0.456, 0.406)))),
                std=tuple(m.get("std", data.get("std", (0.229, 0.224, 0.225)))),
                metrics=tuple(m.get("metrics") or ()),
                weights=m.get("weights") or {},
                title=data["title"],
                paper=m.get("paper", data.get("paper")),
                source=data.get("source"),
                licence=(m.get("weights") or {}).get("licence") or m.get("licence", data.get("licence")),
                config=m.get("config"),
                importer=data.get("importer"),
            )
        )
    return found


def model_info(name: str) -> ModelInfo | None:
    """The index's entry of a model, or None."""
    return load_index().get(name)


def home() -> Path:
    """Where downloads are kept: ``$ZOO_HOME``, else ``~/.cache/attnzoo``."""
    return Path(os.environ.get("ZOO_HOME") or Path.home() / ".cache" / "attnzoo")


def local_weights(info: ModelInfo) -> Path | None:
    """The weights file of a model that is on this disk already, or None."""
    file = info.weights.get("file")
    if not file:
        return None
    try:
        folders = [data_dir("weights/index").parent]
    except FileNotFoundError:
        folders = []
    for folder in (*folders, home() / "weights"):
        if (folder / file).is_file():
            return folder / file
    return None
