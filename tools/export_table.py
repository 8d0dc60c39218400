"""Try to export every class of models and write the table of what goes where into docs/export.md.

    python tools/export_table.py [--formats onnx torch-export aoti] [--dynamic batch all] [--only CLASS ...]

What has been tried is kept in docs/benchmarks/export.csv, a line each; --only and a shorter list of formats replace
only their lines. A size that is left open (--dynamic all) takes minutes for models with windows, and AOTInductor a
minute a model.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "benchmarks" / "export.csv"
PAGE = ROOT / "docs" / "export.md"
FIELDS = ("class", "model", "family", "format", "asked", "open", "error", "seconds", "reason", "torch", "date")
BEGIN, END = "<!-- table: tools/export_table.py -->", "<!-- end of table -->"


def read_rows() -> dict[tuple[str, str, str], dict[str, str]]:
    """What has been tried, by class, format and what was asked to be open."""
    if not TABLE.is_file():
        return {}
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {(r["class"], r["format"], r["asked"]): r for r in csv.DictReader(file)}


def write_rows(rows: dict[tuple[str, str, str], dict[str, str]]) -> None:
    """Write the table, in order."""
    from zoo.files import write_file

    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[k] for k in sorted(rows, key=lambda k: (rows[k]["family"], k)))
    write_file(TABLE, text.getvalue())


def try_all(formats: list[str], dynamics: list[str], only: list[str]) -> None:
    """Try the asked combinations and add each to the table as soon as it is known."""
    from zoo.export.survey import representatives, try_export

    chosen = [r for r in representatives("classification") if not only or r.kind in only]
    unknown = set(only) - {r.kind for r in chosen}
    if unknown:
        raise SystemExit(f"no model has the class {', '.join(sorted(unknown))}")
    for representative in chosen:
        for format in formats:
            for dynamic in dynamics:
                found = try_export(representative, format, dynamic)
                rows = read_rows()
                rows[representative.kind, format, dynamic] = {
                    "class": representative.kind,
                    "model": representative.name,
                    "family": representative.family,
                    "format": format,
                    "asked": dynamic,
                    "open": found.dynamic or "",
                    "error": "" if found.error is None else f"{found.error:.1e}",
                    "seconds": f"{found.seconds:.0f}",
                    "reason": " ".join(found.reason.split()),
                    "torch": torch.__version__,
                    "date": time.strftime("%Y-%m-%d"),
                }
                write_rows(rows)
                said = found.dynamic or f"no: {found.reason}"
                print(f"{representative.kind:<24} {format:<13} {dynamic:<6} {said}", flush=True)


def table(rows: dict[tuple[str, str, str], dict[str, str]]) -> str:
    """The table as Markdown: a class a line, a format a column, and notes on what is not there."""
    formats = [f for f in ("onnx", "torch-export", "aoti") if any(k[1] == f for k in rows)]
    notes: dict[str, int] = {}
    lines = [f"| class | family | tried with | {' | '.join(formats)} |", "|---" * (3 + len(formats)) + "|"]
    for kind in sorted(
        {k[0] for k in rows}, key=lambda c: (next(r["family"] for k, r in rows.items() if k[0] == c), c)
    ):
        cells = []
        for format in formats:
            tried = [rows[k] for k in ((kind, format, "all"), (kind, format, "batch")) if k in rows]
            cells.append(_cell(tried, notes))
        row = next(r for k, r in rows.items() if k[0] == kind)
        lines.append(f"| {kind} | {row['family']} | `{row['model']}` | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {text}" for text, number in notes.items())]
    return "\n".join(lines).rstrip() + "\n"


def _cell(tried: list[dict[str, str]], notes: dict[str, int]) -> str:
    if not tried:
        return "not tried"
    best = next((r for r in tried if r["open"]), tried[0])
    words = {"all": "batch, size", "batch": "batch", "none": "fixed", "": "no"}[best["open"]]
    if best["open"] in ("", "none") and best["reason"]:
        words += f" ({notes.setdefault(best['reason'], len(notes) + 1)})"
    return words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=["onnx", "torch-export"])
    parser.add_argument("--dynamic", nargs="+", choices=("all", "batch", "none"), default=["batch"])
    parser.add_argument("--only", nargs="+", default=[], metavar="CLASS")
    parser.add_argument("--table-only", action="store_true", help="write the page from what has been tried")
    args = parser.parse_args()
    if not args.table_only:
        try_all(args.formats, args.dynamic, args.only)
    from zoo.files import write_file

    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    write_file(PAGE, f"{before}{BEGIN}\n\n{table(read_rows())}\n{END}{after}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
