"""Bring ``weights/index`` up to date with the registered models: sizes are counted, everything else is kept.

    python tools/update_index.py           # rewrite the files
    python tools/update_index.py --check   # only say whether they are up to date (exit status 1 if not)

A model that is new to the index gets an entry without metrics and weights; fill those in by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from zoo.complexity import count_flops, count_parameters, on_meta
from zoo.mixers.base import Mixer
from zoo.registry import MIXERS, MODELS

INDEX = Path(__file__).resolve().parents[1] / "weights" / "index"


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
        "mixers": ["any"] if entry.module == "zoo.backbones.hosts" else sorted(used),
    }


def updated(system: str, data: dict[str, Any]) -> dict[str, Any]:
    """The content of a system's file with measured values replaced and new models added."""
    old = data.get("models") or {}
    models = {}
    for name in MODELS.names(family=system):
        kept = old.get(name) or {"metrics": [], "weights": {"status": "none"}}
        models[name] = {
            **measured(name),
            **{k: v for k, v in kept.items() if k in ("metrics", "weights", "mean", "std")},
        }
    ordered = dict(sorted(models.items(), key=lambda item: (item[1]["params"], item[0])))
    return {**{k: v for k, v in data.items() if k != "models"}, "models": ordered}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a file is out of date")
    args = parser.parse_args()
    systems = {MODELS.entry(n).meta["family"] for n in MODELS.names()}
    stale = []
    for system in sorted(systems):
        path = INDEX / f"{system}.yaml"
        data = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        data = {"system": system, "title": system, "task": "classification", **data}
        new = yaml.safe_dump(updated(system, data), sort_keys=False, width=110, allow_unicode=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != new:
            stale.append(path.name)
            if not args.check:
                temporary = path.with_suffix(".tmp")
                temporary.write_text(new, encoding="utf-8")
                os.replace(temporary, path)
    stale += [p.name for p in INDEX.glob("*.yaml") if p.stem not in systems]
    print(f"{'out of date' if args.check else 'written'}: {', '.join(stale) or 'nothing'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
