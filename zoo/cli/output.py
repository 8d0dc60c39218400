"""How verbs print: tables that fit a terminal, plain text in a pipe, JSON for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    print()


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table: aligned columns on a terminal, tab-separated values in a pipe."""
    text = [[str(c) for c in row] for row in rows]
    if not sys.stdout.isatty():
        for row in ([str(h) for h in header], *text):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, name in enumerate(header):
        numeric = bool(text) and all(_is_number(row[i]) for row in text)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=i == 0)
    for row in text:
        table.add_row(*row)
    Console().print(table)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.rstrip("kMGT%").replace(".", "", 1).isdigit()


def track(items: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
    """Iterate with a progress bar on a terminal's standard error; silently where it is not one."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=description, total=total, console=Console(stderr=True), transient=True)


def human(number: float | None, digits: int = 1) -> str:
    """28360168 -> '28.4M'; None -> '-'."""
    if number is None:
        return "-"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.{digits}f}{unit}"
    return f"{number:.0f}"
