"""What ``zoo test`` says of label maps and panoptic segments of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zoo.cli.output import print_json, print_table
from zoo.cli.reports import add_reports

_LISTED = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a folder of label maps."""
    parser.add_argument(
        "--numbers",
        choices=("classes", "masks"),
        default="classes",
        help="pixels of label maps in a folder: class indices from 0, or the numbers that the true masks have",
    )
    parser.add_argument("--boundary", action="store_true", help="label maps in a folder: the boundary score too")


def test_predictions(args: argparse.Namespace) -> int:
    """Evaluate a folder of label maps or of panoptic segments on a config's test data."""
    from zoo.engine.evaluate_segmentation import evaluate_mask_folder
    from zoo.metrics.panoptic import PanopticResult

    out = Path(args.work_dir or Path(args.predictions).resolve().parent / "test")
    result = evaluate_mask_folder(
        args.config,
        args.predictions,
        numbers=args.numbers,
        boundary=args.boundary,
        out_dir=out,
        options=args.cfg_options,
    )
    prefix = "panoptic" if isinstance(result, PanopticResult) else "semantic"
    stats = {f"{prefix}/{k}": v for k, v in result.stats.items()}
    if args.json:
        print_json(stats)
        return 0
    print_table(("metric", "value"), [(k, round(v, 4)) for k, v in stats.items()])
    print_report(out)
    return 0


def add_report(config: Any, out: Path) -> bool:
    """Have the metrics of label maps and of panoptic segments write tables and plots too."""
    from zoo.metrics.panoptic import PanopticQuality
    from zoo.metrics.semantic import SemanticSegmentation

    return add_reports(config, out, SemanticSegmentation, PanopticQuality)


def print_report(out: Path) -> None:
    """Print the table of classes that an evaluation wrote, and which files there are."""
    import csv

    with (out / "per_class.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    if len(rows) <= _LISTED:
        print_table(header, [[row[0], *map(_short, row[1:])] for row in rows])
    names = [n for n in ("per_class.csv", "confusion.json", "confusion.png") if (out / n).is_file()]
    print(f"{', '.join(names)} are in {out}")


def _short(cell: str) -> str:
    return f"{float(cell):.4f}" if "." in cell else cell
