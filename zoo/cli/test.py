"""``zoo test``: the metrics of a checkpoint on a config's test data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

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

    from zoo.engine import launch
    from zoo.engine.compat import local_device
    from zoo.engine.config import load_config

    config = load_config(args.config)
    if not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f"no checkpoint file at {args.checkpoint}")
    out = Path(args.work_dir or Path(args.checkpoint).resolve().parent / "test")
    config.load_strict = True
    if args.json:
        config.log_level = "WARNING"
    tables = _add_tables(config, out)
    with torch.autocast(local_device().type, dtype=torch.bfloat16, enabled=args.amp):
        metrics = launch.test(config, args.checkpoint, work_dir=out, options=args.cfg_options)
    if int(os.environ.get("RANK", 0)) == 0:
        plain = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        if args.json:
            print_json(plain)
        else:
            print_table(("metric", "value"), [(k, round(v, 4)) for k, v in plain.items()])
            _report_tables(tables, out)
    return 0


def _add_tables(config: Any, out: Path) -> bool:
    """Have a classifier's test write its per-class table and confusion matrix too."""
    from zoo.classification.model import ImageClassifier
    from zoo.metrics.confusion import ConfusionMatrix
    from zoo.metrics.per_class import PerClass

    kind = config.model.get("type")
    if kind is not ImageClassifier and str(kind).rpartition(".")[2] != ImageClassifier.__name__:
        return False
    own = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    config.test_evaluator = [
        *own,
        dict(type=PerClass, out_file=str(out / "per_class.csv")),
        dict(type=ConfusionMatrix, out_file=str(out / "confusion.json")),
    ]
    return True


def _report_tables(written: bool, out: Path) -> None:
    if not written:
        return
    import csv
    import json

    import numpy as np

    from zoo.viz.confusion import save_confusion

    with (out / "per_class.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    shown = [[cell if i in (0, 4) else f"{float(cell):.2f}" for i, cell in enumerate(row)] for row in rows]
    if len(shown) <= 50:
        print_table(header, shown)
    confusion = json.loads((out / "confusion.json").read_text())
    save_confusion(np.array(confusion["matrix"]), confusion["classes"], out / "confusion.png")
    print(f"per_class.csv, confusion.json and confusion.png are in {out}")
