"""Model cards: what the index knows of a model, in Markdown with the header that the Hugging Face Hub reads."""

from __future__ import annotations

from typing import Any

import yaml

from zoo.weights.index import ModelInfo

_STATUS = {
    "trained": "trained by this project",
    "converted": "converted by this project from the authors' file",
    "published": "published by the authors; this project has not reproduced their numbers",
    "none": "none are known",
}
#: how this project's tasks are called on the Hub
_TASKS = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "medical": "image-segmentation",
}


def model_card(name: str, info: ModelInfo | None, *, repository: str | None = None) -> str:
    """The card of a model.

    Args:
        name: the model's.
        info: its entry of the index; None for a model that is not in it.
        repository: where it is on the Hugging Face Hub, for the line that loads it.
    """
    header: dict[str, Any] = {"library_name": "attnzoo", "tags": ["attnzoo", "pytorch"]}
    if info is not None:
        header["license"] = info.licence.lower() if info.licence else "unknown"
        if info.task in _TASKS:
            header["pipeline_tag"] = _TASKS[info.task]
    lines = ["---", yaml.safe_dump(header, sort_keys=True).strip(), "---", "", f"# {name}", ""]
    if info is None:
        lines += ["A model of attnzoo that its index does not list.", ""]
    else:
        lines += _facts(info)
    lines += ["## Use", "", "```python", "import zoo", ""]
    if repository:
        lines += ["from zoo.weights.hf import from_hub", "", f'model = from_hub("{repository}")']
    else:
        lines += [f'model = zoo.create_model("{name}")']
    return "\n".join([*lines, "```", ""])


def _facts(info: ModelInfo) -> list[str]:
    known = {
        "task": info.task,
        "mixers": ", ".join(info.mixers),
        "parameters": f"{info.params:,}" + (f" (with {info.num_classes} classes)" if info.num_classes else ""),
        "FLOPs": None if info.flops is None else f"{info.flops:,} multiply-accumulates of one image",
        "input": f"{info.input_size} pixels, mean {_numbers(info.mean)}, standard deviation {_numbers(info.std)}",
        "paper": info.paper,
        "source": info.source,
        "licence": info.licence or "not stated by the authors",
        "recipe": info.config,
    }
    lines = [f"{info.title}.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in known.items() if value]
    lines += ["", "## Results", ""]
    for metric in info.metrics:
        values = ", ".join(
            f"{k} {v}" for k, v in metric.items() if k not in ("dataset", "source", "reproduced") and v is not None
        )
        made = "reproduced here" if metric.get("reproduced") else "as published, not reproduced here"
        lines.append(
            f"- {metric.get('dataset', 'unknown data')}: {values} ({metric.get('source') or 'no source'}; {made})"
        )
    if not info.metrics:
        lines.append("No published results are recorded.")
    weights = info.weights
    lines += ["", "## Weights", "", f"Weights: {_STATUS[info.weights_status]}."]
    if weights.get("url"):
        lines.append(
            f"Address: <{weights['url']}>" + (f", file `{weights['file']}`" if weights.get("file") else "") + "."
        )
    if info.weights_status != "none":
        lines.append(
            f"sha256: `{weights['sha256']}`." if weights.get("sha256") else "sha256: none recorded, unverified."
        )
    return [*lines, ""]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:g}" for v in values)
