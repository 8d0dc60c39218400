"""What ``zoo predict`` and ``zoo test`` do with volumes."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoo.cli.output import print_json, print_table, track
from zoo.cli.reports import add_reports

#: Options of ``zoo predict`` that are not for volumes: attribute -> how the command line calls it.
_OF_IMAGES = {
    "score_threshold": "--score-threshold",
    "max_detections": "--max-detections",
    "attention": "--attention",
    "polygons": "--polygons",
    "coco": "--coco",
    "size": "--size",
    "allow_urls": "--allow-urls",
    "sliding": "--sliding",
    "tta": "--tta",
    "tta_scales": "--tta-scales",
    "masks": "--masks",
}


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``zoo predict`` that are for volumes alone."""
    group = parser.add_argument_group("volumes (NIfTI, NRRD, folders of a DICOM series)")
    group.add_argument("--probabilities", action="store_true", help="also write the softmax, as 4-D NIfTI")
    group.add_argument(
        "--largest-component",
        nargs="*",
        metavar="CLASS",
        help="keep each class's (or these classes') largest part only",
    )
    group.add_argument("--mirror-axes", type=int, nargs="+", metavar="AXIS", help="average over mirrored volumes")
    group.add_argument("--window", type=int, nargs="+", metavar="N", help="size of the windows (default: the model's)")
    group.add_argument("--overlap", type=float, help="of neighbouring windows, as a share (default: the model's)")
    group.add_argument("--slice-axis", type=int, help="2-D models: axis that the slices lie across (0, 1 or 2)")
    group.add_argument("--nan", type=float, help="put this value where voxels are NaN, instead of an error")


def given_for_volumes(args: argparse.Namespace) -> list[str]:
    """Which of the options of :func:`add_predict_arguments` the command line has."""
    names = ("probabilities", "largest_component", "mirror_axes", "window", "overlap", "slice_axis", "nan")
    return ["--" + n.replace("_", "-") for n in names if getattr(args, n, None) not in (None, False)]


def predict(args: argparse.Namespace) -> int:
    """``zoo predict`` for a model of volumes: label maps, overlays, ``predictions.jsonl``."""
    from zoo.files import write_file
    from zoo.inference.load import load_predictor
    from zoo.medical.cases import find_cases

    for name, option in _OF_IMAGES.items():
        if getattr(args, name, None) not in (None, False):
            raise ValueError(f"{option} is for models of images, not for {args.model_or_config}")
    for path in args.images:
        find_cases(path)  # before the model is loaded: a wrong path fails at once
    predictor = load_predictor(
        args.model_or_config, args.weights, device=args.device, amp=args.amp, compile=args.compile
    )
    cleaned = args.largest_component
    options: dict[str, Any] = {
        "probabilities": args.probabilities,
        "largest_component": cleaned if cleaned else cleaned is not None,
        "mirror_axes": args.mirror_axes,
        "window": args.window if args.window is None or len(args.window) > 1 else args.window[0],
        "overlap": args.overlap,
        "axis": args.slice_axis,
        "nan": args.nan,
    }
    out = Path(args.out) if args.out else None
    if out is None and args.probabilities:
        raise ValueError("--probabilities needs --out, the folder that they are written to")
    lines, failed = [], 0
    with windows_bar() as progress:
        results = predictor(args.images, stream=True, on_error=args.on_error, progress=progress, **options)
        for result in results:
            if result.error is None and out is not None:
                result.save_all(out, picture=not args.no_pictures)
            lines.append(result.to_json())
            failed += result.error is not None
            if args.json:
                print(result.to_json(), flush=True)
            elif result.error is not None:
                print(f"{result.source}: {result.error}", file=sys.stderr)
            else:
                volumes = "  ".join(f"{name} {ml:.1f} ml" for name, ml in result.volumes_ml.items())
                print(f"{result.source}\t{volumes}", flush=True)
    if out is not None:
        write_file(out / "predictions.jsonl", "".join(line + "\n" for line in lines))
        print(f"{len(lines) - failed} label maps are in {out}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(lines)} volumes could not be read", file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def windows_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress over the windows of each volume, on a terminal's standard error; None where it is not one."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("predicting")
        yield lambda case, done, total: bar.update(task, description=case, completed=done, total=total)


def is_label_folder(path: str) -> bool:
    """Whether a path is a folder with files of volumes in it."""
    from zoo.data.volumes import is_volume_file

    return Path(path).is_dir() and any(is_volume_file(p) for p in Path(path).iterdir())


def test_predictions(args: argparse.Namespace) -> int:
    """``zoo test`` for a folder of label maps."""
    from zoo.engine.evaluate_volumes import evaluate_label_maps
    from zoo.metrics.volume_report import format_summary, mean_scores

    folder = Path(args.predictions)
    out = Path(args.work_dir or folder.resolve() / "test")
    report = evaluate_label_maps(
        args.config, folder, out_dir=out, options=args.cfg_options,
        track=lambda items, total: track(items, "evaluating", total=total),
    )  # fmt: skip
    if args.json:
        print_json({f"volume/{k}": v for k, v in mean_scores(report.scores).items()})
        return 0
    print_table(*format_summary(report.rows))
    print(f"{len({s.case for s in report.scores})} cases; tables, box plot and overlays are in {out}")
    return 0


def add_report(config: Any, out: Path) -> bool:
    """Have the metric of volumes write its tables and plot too."""
    from zoo.metrics.volume import VolumeMetric

    return add_reports(config, out, VolumeMetric)


def print_report(out: Path) -> None:
    """The summary that the metric of volumes wrote, as a table."""
    from zoo.metrics.volume_report import SummaryRow, format_summary

    content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    rows = []
    for row in content["rows"]:
        values: dict[str, Any] = {k: float("nan") if v is None else v for k, v in row.items()}
        rows.append(SummaryRow(**values))
    print_table(*format_summary(rows))
    print(f"cases.csv, summary.csv, summary.json and boxplot.png are in {out}")
