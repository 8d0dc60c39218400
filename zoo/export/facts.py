"""What an exported file says about itself, as JSON inside the file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from zoo import __version__

#: Key of an ONNX file's metadata, and name within the archive of a ``.pt2`` file.
KEY = "attnzoo"
_ENTRY = "extra/attnzoo.json"
_REQUIRED = ("task", "model", "classes", "mean", "std", "size", "dynamic", "multiple", "batch", "transform", "format")


def facts_of(predictor: Any, format: str, dynamic: str, multiple: int, batch: int) -> dict[str, Any]:
    """Facts of a predictor that is exported.

    Args:
        predictor: whose transform was given as a dict, which can be recorded.
        format: "onnx", "torch-export" or "aoti".
        dynamic: "all" (batch and size), "batch" or "none".
        multiple: what height and width must be multiples of where the size is dynamic.
        batch: number of images where the batch is fixed.
    """
    return {
        "task": predictor.task,
        "model": predictor.name,
        "classes": predictor.classes,
        "score": getattr(predictor, "score", None),
        "mean": [float(m) for m in predictor.mean.flatten()],
        "std": [float(s) for s in predictor.std.flatten()],
        "size": list(image_size(predictor)),
        "transform": predictor.transform_spec,
        "dynamic": dynamic,
        "multiple": multiple,
        "batch": batch,
        "format": format,
        "int8": False,
        "attnzoo": __version__,
        **predictor.export_facts(),
    }


def image_size(predictor: Any) -> tuple[int, int]:
    """Height and width of what goes into the network.

    Raises:
        ValueError: the predictor's transform is a function, of which a file can record nothing.
    """
    spec = getattr(predictor, "transform_spec", None)
    if spec is None:
        raise ValueError("the predictor's transform is a function; give its arguments as a dict to export it")
    size = spec.get("size", 224)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def dump(facts: dict[str, Any]) -> str:
    """The JSON text of facts."""
    return json.dumps(facts)


def parse(text: str | None, path: Path) -> dict[str, Any]:
    """Facts from their text, checked.

    Raises:
        ValueError: there are none, or one is missing: another program wrote the file.
    """
    try:
        facts = json.loads(text) if text else None
    except json.JSONDecodeError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{path} was not written by zoo export: it does not say how its images are prepared")
    missing = [k for k in _REQUIRED if k not in facts]
    if missing:
        raise ValueError(f"{path} was written by another version: it lacks {', '.join(missing)}")
    return facts


def add_to_archive(path: Path, facts: dict[str, Any]) -> None:
    """Add facts to a ``.pt2`` archive."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/{_ENTRY}", dump(facts))


def of_archive(path: Path) -> dict[str, Any]:
    """Facts of a ``.pt2`` archive, read without loading the model.

    Raises:
        ValueError: it is no archive, or was not written here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next((n for n in archive.namelist() if n.endswith("/" + _ENTRY)), None)
            text = archive.read(entry).decode() if entry else None
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no .pt2 file: {error}") from error
    return parse(text, path)
