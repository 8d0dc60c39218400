"""``zoo data check``: is a folder a data set that can be trained on, and what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from zoo.cli.output import print_json, print_table

HELP = "look at a data set before training on it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="class histogram, broken files, sizes, duplicates, what to do about them")
    check.add_argument("folder")
    check.add_argument("--format", help="data format (default: recognised from the folder)")
    check.add_argument("--workers", type=int, help="threads that read the images")
    check.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from zoo.data.check import check_folder

    with _progress() as progress:
        report = check_folder(args.folder, args.format, workers=args.workers, progress=progress)
    if args.json:
        print_json(report.to_dict())
    else:
        print_report(report)
    return 0 if report.ok else 1


def print_report(report: Any, listed: int = 5) -> None:
    """A check report as text; at most ``listed`` problems of each kind."""
    print(f"{report.root}: {report.num_images} images in {len(report.classes)} classes, format {report.format}")
    for side, values in report.sizes.items():
        print(f"{side}: {values['min']} to {values['max']} pixels, median {values['median']}")
    splits = list(report.histogram)
    names = dict.fromkeys(name for counts in report.histogram.values() for name in counts)
    if names:
        rows = [(name, *(report.histogram[s].get(name, 0) for s in splits)) for name in names]
        print_table(("class", *splits), rows)
    for name, value in report.details.items():
        print(f"{name}: {value}")
    shown: dict[str, int] = {}
    for problem in report.problems:
        shown[problem.kind] = shown.get(problem.kind, 0) + 1
        if shown[problem.kind] <= listed:
            print(f"{problem.severity}: {problem.message}")
    for kind, count in shown.items():
        if count > listed:
            print(f"... and {count - listed} more problems of kind {kind}")
    for suggestion in report.suggestions:
        print(f"suggestion: {suggestion}")
    print("the data set can be trained on" if report.ok else "the data set has errors")


class _progress:
    """A progress bar on a terminal's standard error, as the callback that a check takes; None elsewhere."""

    def __enter__(self):
        if not sys.stderr.isatty():
            return None
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), transient=True)
        self.bar.start()
        task = self.bar.add_task("reading images", total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()
