"""``zoo show``: everything that is known of a model, or a config with all it inherits."""

from __future__ import annotations

import argparse
from typing import Any

from zoo.cli.output import human, print_json

HELP = "show a model (sizes, stages, arguments, published metrics) or a resolved config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_or_config", help="a model name, a config name or a config file")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to a config")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from zoo.registry import MODELS

    if args.model_or_config in MODELS:
        return _show_model(args)
    from zoo.engine.config import require_known

    require_known(args.model_or_config)
    return _show_config(args)


def _show_model(args: argparse.Namespace) -> int:
    from zoo.backbones.base import Backbone
    from zoo.complexity import count_flops, count_parameters, on_meta
    from zoo.registry import MODELS, accepted_arguments
    from zoo.weights.index import local_weights, model_info

    name = args.model_or_config
    entry = MODELS.entry(name)
    model: Any = on_meta(entry.builder).eval()
    # a detector's maps are its backbone's; networks that are no pyramid have none to tell
    maps: Any = model if isinstance(model, Backbone) else getattr(model, "backbone", None)
    info = model_info(name)
    size: Any = info.input_size if info else entry.meta.get("input_size", 224)
    size = size if isinstance(size, int) else tuple(size)
    facts = {
        "name": name,
        "class": f"{type(model).__module__}.{type(model).__name__}",
        **entry.meta,
        "params": count_parameters(model),
        "flops": count_flops(model, size, getattr(model, "in_chans", 3)),
        "input_size": size,
    }
    if isinstance(maps, Backbone):
        facts |= {"stage_channels": list(maps.stage_channels), "strides": list(maps.stage_strides)}
    elif hasattr(maps, "out_channels") and hasattr(maps, "strides"):
        facts |= {"stage_channels": list(maps.out_channels), "strides": list(maps.strides)}
    facts["arguments"] = sorted(accepted_arguments(entry.builder)[0])
    if info:
        facts |= {
            "title": info.title,
            "paper": info.paper,
            "source": info.source,
            "licence": info.licence,
            "published_metrics": list(info.metrics),
            "weights": info.weights | {"local_file": str(local_weights(info) or "") or None},
        }
    if args.json:
        print_json(facts)
        return 0
    for key, value in facts.items():
        if key in ("params", "flops"):
            value = f"{human(value)} ({value:,})"
        elif isinstance(value, list):
            value = "; ".join(_flat(v) for v in value)
        elif isinstance(value, dict):
            value = _flat(value)
        print(f"{key:<18} {value}")
    return 0


def _flat(value) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items() if v is not None) if isinstance(value, dict) else str(value)


def _show_config(args: argparse.Namespace) -> int:
    from zoo.engine.config import config_text, load_config

    cfg = load_config(args.model_or_config, args.cfg_options)
    if args.json:
        print_json(cfg.to_dict())
    else:
        print(config_text(cfg), end="")
    return 0
