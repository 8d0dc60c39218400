"""Bring ``weights/index``, ``docs/models.md`` and ``model-index.yml`` up to date with the registered models.

Sizes are counted, everything else in the index is kept.

    python tools/update_index.py           # rewrite the files
    python tools/update_index.py --check   # only say whether they are up to date (exit status 1 if not)
    python tools/update_index.py --system davit   # only this system's file of the index (may be repeated)

A model that is new to the index gets an entry without metrics and weights; fill those in by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from zoo.cli.output import human
from zoo.complexity import count_flops, count_parameters, on_meta
from zoo.engine.config import list_configs
from zoo.mixers.base import Mixer
from zoo.registry import MIXERS, MODELS

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "weights" / "index"
CONFIGS = list_configs()
TABLE = ROOT / "docs" / "models.md"
#: what OpenMMLab's tools read
MODEL_INDEX = ROOT / "model-index.yml"
#: what is not measured: written by hand, and left as it is
KEPT = ("metrics", "weights", "mean", "std", "licence", "paper", "notes")
#: the normalisation of images where the authors of a system give no other
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
#: our names of data sets and metrics -> OpenMMLab's
_DATASETS = {"imagenet-1k": "ImageNet-1k", "coco": "COCO", "ade20k": "ADE20K"}
_TASKS = {
    "classification": "Image Classification",
    "detection": "Object Detection",
    "segmentation": "Semantic Segmentation",
}
_METRICS = {"top1": "Top 1 Accuracy", "top5": "Top 5 Accuracy", "AP": "box AP", "mIoU": "mIoU"}


def measured(name: str) -> dict[str, Any]:
    """What is counted from the model itself."""
    entry = MODELS.entry(name)
    model = on_meta(entry.builder).eval()
    size = entry.meta.get("input_size", 224)
    names = {MIXERS.get(n): n for n in MIXERS.names()}
    used = {names[type(m)] for m in model.modules() if isinstance(m, Mixer) and type(m) in names}
    return {
        "params": count_parameters(model),
        "flops": count_flops(model, size, getattr(model, "in_chans", 3)),
        "input_size": size,
        "num_classes": model.num_classes,
        "config": recipe(name),
        "mixers": ["any"] if entry.module == "zoo.backbones.hosts" else sorted(used),
    }


def recipe(name: str) -> str | None:
    """The config that trains a model, by its name: the first of ``<model>_<task>_...`` for large images."""
    start = name.replace("_", "-") + "_"
    found = sorted(c for c in CONFIGS if c.startswith(start))
    return next((c for c in found if not c.endswith("_digits")), found[0] if found else None)


def updated(system: str, data: dict[str, Any]) -> dict[str, Any]:
    """The content of a system's file with measured values replaced and new models added."""
    old = data.get("models") or {}
    models = {}
    for name in MODELS.names(family=system):
        kept = old.get(name) or {"metrics": [], "weights": {"status": "none"}}
        models[name] = {
            **measured(name),
            **{k: v for k, v in kept.items() if k in KEPT},
        }
    ordered = dict(sorted(models.items(), key=lambda item: (item[1]["params"], item[0])))
    rest = {k: v for k, v in data.items() if k != "models"}
    if data.get("task") == "classification":
        rest = {**rest, **{k: rest.get(k, v) for k, v in IMAGENET.items()}}
    return {**rest, "models": ordered}


def model_index(systems: list[dict[str, Any]]) -> str:
    """``model-index.yml``: collections and models as OpenMMLab's tools read them."""
    collections, models = [], []
    for data in systems:
        collections.append(
            {
                "Name": data["title"],
                "Metadata": {"Architecture": sorted({x for m in data["models"].values() for x in m["mixers"]})},
                "Paper": {"URL": _paper(data.get("paper")), "Title": data["title"]},
                "Code": {"URL": f"https://github.com/{data['source'].split('@')[0]}" if data.get("source") else None},
                "License": data.get("licence"),
            }
        )
        for name, m in data["models"].items():
            weights = m.get("weights") or {}
            results = []
            for metric in m.get("metrics") or []:
                values = {_METRICS.get(k, k): v for k, v in metric.items() if isinstance(v, int | float)}
                values = {k: v for k, v in values.items() if not isinstance(v, bool)}
                dataset = _DATASETS.get(metric["dataset"], metric["dataset"])
                results.append({"Task": _TASKS.get(data["task"], data["task"]), "Dataset": dataset, "Metrics": values})
            config = CONFIGS.get(m.get("config") or "")
            models.append(
                {
                    "Name": name,
                    "In Collection": data["title"],
                    "Metadata": {"Parameters": m["params"], "FLOPs": m["flops"]},
                    "Results": results,
                    "Config": config.relative_to(ROOT).as_posix() if config else None,
                    "Weights": weights.get("url"),
                    "Converted From": {"Weights": weights.get("url"), "Code": data.get("source")},
                }
            )
    text = yaml.safe_dump({"Collections": collections, "Models": models}, sort_keys=False, width=110)
    return f"# Written by tools/update_index.py. Results are those of the authors.\n{text}"


def _paper(text: str | None) -> str | None:
    return f"https://arxiv.org/abs/{text.removeprefix('arXiv:')}" if text and text.startswith("arXiv:") else text


def page_of(system: str) -> str:
    """The page on a system below docs/, named after it or after the file of its models; empty where there is none."""
    modules = {MODELS.entry(n).module.rpartition(".")[2] for n in MODELS.names(family=system)}
    pages = [f"models/{name}.md" for name in (system, *sorted(modules))]
    return next((page for page in pages if (TABLE.parent / page).is_file()), "")


def table(systems: list[dict[str, Any]]) -> str:
    """``docs/models.md``: all models in Markdown."""
    lines = [
        "# Models",
        "",
        "Parameters are counted with 1000 classes, FLOPs (multiply-accumulates of one image of the input size) from",
        "what this project computes. Accuracies are top-1 on ImageNet-1K as the authors published them; none has been",
        "reproduced here. This page is written by `tools/update_index.py`.",
    ]
    for data in systems:
        source = data.get("source")
        about = [f"paper {data['paper']}" if data.get("paper") else "", f"source `{source}`" if source else ""]
        page = page_of(data["system"])
        lines += ["", f"## {data['title']}", ""]
        known = ", ".join([*(a for a in about if a), f"licence {data.get('licence') or 'not stated'}"])
        lines += [known + (f". [What it is]({page})." if page else "."), ""]
        lines += [
            "| model | mixers | parameters | FLOPs | input | published top-1 | weights |",
            "|---|---|--:|--:|--:|--:|---|",
        ]
        for name, m in data["models"].items():
            top1 = next((x["top1"] for x in m["metrics"] if x.get("dataset") == "imagenet-1k" and "top1" in x), "")
            lines.append(
                f"| `{name}` | {', '.join(m['mixers'])} | {human(m['params'])} | {human(m['flops'])} "
                f"| {m['input_size']} | {top1} | {m['weights'].get('status', 'none')} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a file is out of date")
    parser.add_argument("--system", action="append", default=[], help="only this system's file (may be repeated)")
    args = parser.parse_args()
    names = sorted({MODELS.entry(n).meta["family"] for n in MODELS.names()})
    if unknown := set(args.system) - set(names):
        parser.error(f"--system {', '.join(sorted(unknown))}: accepted are {', '.join(names)}")
    systems = []
    for system in args.system or names:
        path = INDEX / f"{system}.yaml"
        data = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        systems.append(updated(system, {"system": system, "title": system, "task": "classification", **data}))
    wanted = {INDEX / f"{d['system']}.yaml": yaml.safe_dump(d, sort_keys=False, width=110) for d in systems}
    if not args.system:
        wanted[TABLE] = table(systems)
        wanted[MODEL_INDEX] = model_index(systems)
    stale = []
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not args.check:
                temporary = path.with_suffix(".tmp")
                temporary.write_text(text, encoding="utf-8")
                os.replace(temporary, path)
    stale += [p.name for p in INDEX.glob("*.yaml") if p.stem not in names]
    print(f"{'out of date' if args.check else 'written'}: {', '.join(stale) or 'nothing'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
