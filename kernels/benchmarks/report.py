"""Results on disk: one CSV a device and thread count, the table made from them, and the plots."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

COLUMNS = (
    "date", "device", "driver", "clocks", "threads", "python", "torch", "triton", "timm", "transformers",
    "operator", "shape", "dtype", "mode", "implementation", "backend", "microseconds", "q20", "q80",
    "ratio", "must", "ok", "gb_per_s", "copy_fraction", "tflops", "peak_bytes", "error", "tokens", "message",
)  # fmt: skip

KEY = ("device", "threads", "operator", "shape", "dtype", "mode", "implementation")

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def write(path: Path, text: str) -> None:
    """Write to a temporary name, then move into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none if it is absent."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def merge(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put ``rows`` into a CSV in place of the rows of the same operators, shapes and modes."""
    fresh = {tuple(str(r.get(k, "")) for k in KEY[:-1]) for r in rows}
    kept = [r for r in read(path) if tuple(r[k] for k in KEY[:-1]) not in fresh]
    merged = kept + [{c: "" if r.get(c) is None else str(r[c]) for c in COLUMNS} for r in rows]
    merged.sort(key=lambda r: (r["operator"] == "ceiling", r["operator"], r["mode"] == "growth"))
    lines = [",".join(COLUMNS)]
    lines += [",".join(_quoted(r[c]) for c in COLUMNS) for r in merged]
    write(path, "\n".join(lines) + "\n")


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""').replace("\n", " ") + '"' if any(c in value for c in ',"\n') else value


def table(paths: list[Path]) -> str:
    """Markdown: for each device the ratio to each peer, and the growth lines."""
    out: list[str] = []
    for path in paths:
        rows = [r for r in read(path) if r["operator"] != "ceiling"]
        if not rows:
            continue
        ceilings = {r["shape"]: r["message"] for r in read(path) if r["operator"] == "ceiling"}
        newest = max(r["date"] for r in rows)
        first = rows[0]
        out += [
            f"### {first['device']}, {first['threads']} thread(s)" if first["threads"] else f"### {first['device']}",
            "",
            f"{newest}, torch {first['torch']}, timm {first['timm']}, transformers {first['transformers']}; "
            + "; ".join(f"{k} {v}" for k, v in sorted(ceilings.items()))
            + ".",
            "",
            "| operator | shape | dtype | mode | ours, us | peer | times faster | must | copy rate |",
            "|---|---|---|---|---:|---|---:|---:|---:|",
        ]
        ours = {tuple(r[k] for k in KEY[:-1]): r for r in rows if r["implementation"] == "ours"}
        for r in rows:
            if r["implementation"] == "ours":
                continue
            mine = ours.get(tuple(r[k] for k in KEY[:-1]), r)
            if r["message"] and not r["ratio"]:
                cells = (
                    r["operator"],
                    r["shape"],
                    r["dtype"],
                    r["mode"],
                    "",
                    r["implementation"],
                    r["message"],
                    "",
                    "",
                )
            else:
                failed = " (missed)" if r["ok"] == "no" else ""
                cells = (
                    r["operator"], r["shape"], r["dtype"], r["mode"], mine["microseconds"], r["implementation"],
                    r["ratio"] + failed, r["must"], mine["copy_fraction"],
                )  # fmt: skip
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    return "\n".join(out)


def into_readme(readme: Path, text: str) -> None:
    """Replace what stands between the two markers of a README.

    Raises:
        ValueError: the markers are missing.
    """
    old = readme.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise ValueError(f"{readme} lacks the markers {BEGIN} and {END}")
    head, rest = old.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    write(readme, f"{head}{BEGIN}\n\n{text}\n{END}{tail}")


def plot(path: Path) -> list[Path]:
    """Two pictures next to a CSV: cost against tokens, and the fraction of the copy rate of each forward."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read(path)
    made = []
    growth = [r for r in rows if r["mode"] == "growth" and r["tokens"]]
    if growth:
        figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
        for operator in sorted({(r["operator"], r["shape"]) for r in growth}):
            mine = [r for r in growth if (r["operator"], r["shape"]) == operator]
            points = sorted((int(r["tokens"]), float(r["microseconds"])) for r in mine)
            axes.plot(*zip(*points), marker="o", label=" ".join(operator))
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="us a forward", title=growth[0]["device"])
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize=7)
        made.append(_save(figure, path.with_name(path.stem + "-growth.png")))
        plt.close(figure)
    bars = [r for r in rows if r["implementation"] == "ours" and r["mode"] == "forward" and r["copy_fraction"]]
    if bars:
        figure, axes = plt.subplots(figsize=(7, 0.8 + 0.25 * len(bars)), layout="constrained")
        axes.barh([f"{r['operator']} {r['shape']}" for r in bars], [float(r["copy_fraction"]) for r in bars])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set(xlabel="compulsory bytes a second / measured copy rate", title=bars[0]["device"])
        made.append(_save(figure, path.with_name(path.stem + "-roofline.png")))
        plt.close(figure)
    return made


def _save(figure: Any, path: Path) -> Path:
    temporary = path.with_name(path.stem + ".tmp.png")
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)
    return path
