"""``zoo test``: the metrics of a checkpoint on a config's test data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from zoo.cli.output import print_json, print_table

HELP = "evaluate a checkpoint on a config's test data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="config file or name")
    parser.add_argument("checkpoint", help="safetensors or torch file, this project's or the authors'")
    parser.add_argument("--work-dir", help="where the log goes (default: beside the checkpoint)")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the config")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")


def run(args: argparse.Namespace) -> int:
    import torch

    from zoo.engine.compat import local_device
    from zoo.engine.config import load_config
    from zoo.engine.runner import Runner

    config = load_config(args.config, args.cfg_options)
    if not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint file at {args.checkpoint}")
    config.work_dir = args.work_dir or str(Path(args.checkpoint).resolve().parent / "test")
    config.load_from, config.resume, config.load_strict = args.checkpoint, False, True
    if args.json:
        config.log_level = "WARNING"
    if "LOCAL_RANK" in os.environ:
        config.launcher = "pytorch"
    runner = Runner.from_cfg(config)
    with torch.autocast(local_device().type, dtype=torch.bfloat16, enabled=args.amp):
        metrics = runner.test()
    if int(os.environ.get("RANK", 0)) == 0:
        plain = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        if args.json:
            print_json(plain)
        else:
            print_table(("metric", "value"), [(k, round(v, 4)) for k, v in plain.items()])
    return 0
