"""``zoo test``: the metrics of a checkpoint, or of predictions in files, on a config's test data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from zoo.cli import masks, volumes
from zoo.cli.output import print_json, print_table
from zoo.cli.reports import add_reports

HELP = "evaluate a checkpoint, or predictions in files, on a config's test data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", help="config file or name; with --predictions also a COCO annotations file, or a folder of volumes"
    )
    parser.add_argument("checkpoint", nargs="?", help="safetensors or torch file, this project's or the authors'")
    parser.add_argument(
        "--predictions",
        help="instead of a checkpoint, from any program: COCO results JSON, or a folder of label maps (PNG, NIfTI, "
        "NRRD) or panoptic segments",
    )
    masks.add_arguments(parser)
    parser.add_argument("--work-dir", help="where the log goes (default: beside the checkpoint)")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the config")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")


def run(args: argparse.Namespace) -> int:
    if (args.checkpoint is None) == (args.predictions is None):
        raise ValueError("give a checkpoint, or --predictions FILE")
    if args.predictions is not None and volumes.is_label_folder(args.predictions):
        return volumes.test_predictions(args)
    if args.predictions is not None:
        return masks.test_predictions(args) if Path(args.predictions).is_dir() else _evaluate_file(args)
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
    boxes = _add_box_report(config, out)
    label_maps = volumes.add_report(config, out)
    mask_tables = masks.add_report(config, out)
    with torch.autocast(local_device().type, dtype=torch.bfloat16, enabled=args.amp):
        metrics = launch.test(config, args.checkpoint, work_dir=out, options=args.cfg_options)
    if int(os.environ.get("RANK", 0)) == 0:
        plain = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        if args.json:
            print_json(plain)
        else:
            print_table(("metric", "value"), [(k, round(v, 4)) for k, v in plain.items()])
            _report_tables(tables, out)
            if boxes:
                _report_boxes(out, masks=any("mask_AP" in name for name in plain))
            if label_maps:
                volumes.print_report(out)
            if mask_tables:
                masks.print_report(out)
    return 0


def _evaluate_file(args: argparse.Namespace) -> int:
    """Evaluate a results file on the annotations of a config's test data, or of a COCO annotations file."""
    import json

    from zoo.engine.evaluate import evaluate_predictions

    out = Path(args.work_dir or Path(args.predictions).resolve().parent / "test")
    result = evaluate_predictions(args.config, args.predictions, out_dir=out, options=args.cfg_options)
    if args.json:
        print_json({f"coco/{k}": v for k, v in result.all_stats().items()})
        return 0
    print_table(("metric", "value"), [(f"coco/{k}", round(v, 4)) for k, v in result.all_stats().items()])
    _report_boxes(out, masks=result.masks is not None)
    entries = json.loads(Path(args.predictions).read_text(encoding="utf-8"))
    what = "boxes and masks" if result.masks is not None else "boxes"
    print(f"{what} of {len(entries)} predictions were evaluated")
    if result.masks is None and any("segmentation" in e for e in entries):
        print("the annotations have no masks to compare those of the predictions with")
    return 0


def _add_box_report(config: Any, out: Path) -> bool:
    """Have the metrics of boxes write predictions, tables and plots too."""
    from zoo.metrics.coco import CocoBoxes
    from zoo.metrics.coco_masks import CocoMasks

    return add_reports(config, out, CocoBoxes, CocoMasks)


def _report_boxes(out: Path, *, masks: bool = False) -> None:
    import csv

    for name in ("per_class.csv", "per_class_masks.csv") if masks else ("per_class.csv",):
        with (out / name).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if len(rows) <= 100:
            if masks:
                header[0] = "masks" if "masks" in name else "boxes"
            print_table(header, [[f"{float(c):.4f}" if 2 <= i <= 5 else c for i, c in enumerate(row)] for row in rows])
    more = "per_class_masks.csv, precision_recall_masks.png, " if masks else ""
    print(f"predictions.json, per_class.csv, precision_recall.png, {more}confusion.json and confusion.png are in {out}")


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

    with (out / "per_class.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    shown = [[cell if i in (0, 4) else f"{float(cell):.2f}" for i, cell in enumerate(row)] for row in rows]
    if len(shown) <= 50:
        print_table(header, shown)
    confusion = json.loads((out / "confusion.json").read_text(encoding="utf-8"))
    save_confusion(np.array(confusion["matrix"]), confusion["classes"], out / "confusion.png")
    print(f"per_class.csv, confusion.json and confusion.png are in {out}")
