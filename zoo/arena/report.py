"""The results as Markdown, CSV and pictures."""

from __future__ import annotations

import csv
import datetime
import io
import os
import platform
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.arena.grid import ALONE
from zoo.arena.growth import LINEAR, exceeds
from zoo.arena.plots import draw_accuracy, draw_cost
from zoo.arena.store import Store
from zoo.cli.output import human
from zoo.files import write_file
from zoo.registry import MIXERS, resolve
from zoo.viz.figures import save_figure


@dataclass
class Summary:
    """All that was measured of a mixer in a host.

    Attributes:
        values: (measure, size) -> values, one a seed; the size is None where there is none.
        errors: (measure, size) -> the first error.
    """

    mixer: str
    host: str
    values: dict[tuple[str, int | None], list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[tuple[str, int | None], str] = field(default_factory=dict)

    def mean(self, measure: str, size: int | None = None) -> float | None:
        """The mean over seeds; None where nothing was measured."""
        found = self.values.get((measure, size))
        return statistics.fmean(found) if found else None

    def spread(self, measure: str) -> float | None:
        """The standard deviation over seeds; None for fewer than two."""
        found = self.values.get((measure, None), [])
        return statistics.stdev(found) if len(found) > 1 else None


def summarise(store: Store, device: str = "cpu") -> list[Summary]:
    """One summary of a device's rows for each mixer in each host (and by itself), in alphabetical order."""
    found: dict[tuple[str, str], Summary] = {}
    for row in store.rows(device=device):
        summary = found.setdefault((row["host"], row["mixer"]), Summary(row["mixer"], row["host"]))
        key = (row["measure"], row["size"])
        if row["error"] is None:
            summary.values[key].append(row["value"])
        else:
            summary.errors.setdefault(key, row["error"])
    return [found[key] for key in sorted(found)]


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names that no other beats in cost and value at once, cheapest first; points are (cost, value)."""
    front: list[str] = []
    best = float("-inf")
    for name, (_, value) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1], item[0])):
        if value > best:
            front.append(name)
            best = value
    return front


def within_budget(store: Store, milliseconds: float, size: int) -> list[tuple[str, str, float, float]]:
    """(mixer, host, top-1, latency) of all that take at most so long at that size, the most accurate first.

    Raises:
        LookupError: nothing was measured at that size; the message has the sizes that were.
    """
    summaries = [s for s in summarise(store) if s.host != ALONE]
    sizes = {n for s in summaries for m, n in s.values if m == "latency_ms" and n is not None}
    if size not in sizes:
        raise LookupError(f"no latency was measured at {size} px; measured were {sorted(sizes)}")
    found = []
    for s in summaries:
        top1, latency = s.mean("top1"), s.mean("latency_ms", size)
        if top1 is not None and latency is not None and latency <= milliseconds:
            found.append((s.mixer, s.host, top1, latency))
    return sorted(found, key=lambda item: (-item[2], item[3]))


def growth_table(store: Store) -> tuple[list[tuple[str, str, float | None, str]], bool]:
    """(mixer, claim, fitted exponent, verdict) of each mixer, and whether all keep what they claim.

    A mixer that claims to be linear and could not be measured does not keep it.
    """
    table, kept = [], True
    for s in summarise(store):
        if s.host != ALONE:
            continue
        claim = resolve(s.mixer, MIXERS).growth  # type: ignore[attr-defined]
        fitted = s.mean("mixer_time_exponent")
        if fitted is None:
            verdict = next(iter(s.errors.values()), "not measured")
            kept = kept and claim != "linear"
        else:
            wrong = exceeds(claim, fitted)
            verdict = f"above {LINEAR}" if wrong else "as claimed" if claim == "linear" else ""
            kept = kept and not wrong
        table.append((s.mixer, claim, fitted, verdict))
    return table, kept


def write_report(store: Store, folder: str | os.PathLike[str]) -> Path:
    """Write ``arena.md``, ``arena.csv`` (every row) and the pictures beside them; returns the page's path."""
    folder = Path(folder)
    summaries = summarise(store)
    hosts = sorted({s.host for s in summaries} - {ALONE})
    pictures = []
    size = min((n for s in summaries for m, n in s.values if m == "latency_ms" and n), default=None)
    for host in hosts:
        of_host = [s for s in summaries if s.host == host]
        points = {
            s.mixer: (latency, top1, s.spread("top1") or 0.0)
            for s in of_host
            if (top1 := s.mean("top1")) is not None and (latency := s.mean("latency_ms", size)) is not None
        }
        if points:
            front = pareto_front({name: (x, y) for name, (x, y, _) in points.items()})
            title = f"{host}: accuracy against latency at {size} px"
            pictures.append(save_figure(draw_accuracy(points, front, title), folder / f"accuracy_{host}.png"))
    alone = [s for s in summaries if s.host == ALONE]
    lines = {s.mixer: _series(s, "mixer_cpu_ms") for s in alone}
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if lines:
        growth = {name: str(getattr(resolve(name, MIXERS), "growth", "")) for name in lines}
        title = "CPU time of one mixer against tokens"
        pictures.append(save_figure(draw_cost(lines, growth, title, "ms, one thread"), folder / "growth.png"))
    for host in hosts:
        memory = {s.mixer: _series(s, "peak_memory_mib") for s in summaries if s.host == host}
        memory = {name: points for name, points in memory.items() if len(points) > 1}
        if memory:
            growth = {name: str(getattr(resolve(name, MIXERS), "growth", "")) for name in memory}
            figure = draw_cost(memory, growth, f"{host}: peak memory against image size", "MiB", "pixels a side")
            pictures.append(save_figure(figure, folder / f"memory_{host}.png"))
    write_file(folder / "arena.csv", _csv(store))
    return write_file(folder / "arena.md", markdown(store, [p.name for p in pictures]))


def _series(summary: Summary, measure: str) -> list[tuple[float, float]]:
    sizes = sorted(n for m, n in summary.values if m == measure and n is not None)
    return [(float(n), summary.values[measure, n][0]) for n in sizes if summary.values[measure, n][0] > 0]


def markdown(store: Store, pictures: list[str]) -> str:
    """The page: how it was measured, a table a host, growth, what failed."""
    summaries = summarise(store)
    recipe, machine = store.meta("recipe") or {}, store.meta("machine") or {}
    data = "the embedded digits" if recipe.get("data") is None else "the images of a folder"
    page = [
        "# Arena",
        "",
        f"Measured on {machine.get('cpu', 'an unknown CPU')}, torch {machine.get('torch', '?')}, "
        f"{machine.get('date', '?')}; {recipe.get('threads', 1)} thread(s) a job.",
        f"Every mixer with its default settings, in the same hosts, trained by one recipe on {data}",
        f"({recipe.get('image_size')} px, {recipe.get('epochs')} epochs, seeds "
        f"{', '.join(map(str, recipe.get('seeds', [])))}): this compares mixers with each other and says nothing",
        "about ImageNet. Cost is measured in wider hosts of the same shape, one image a time. Accuracies are means",
        "over seeds with their standard deviation. This page is written by `zoo compare`.",
    ]
    page += [f"\n![{Path(name).stem.replace('_', ' ')}]({name})" for name in pictures]
    sizes = recipe.get("sizes", [])
    for host in sorted({s.host for s in summaries} - {ALONE}):
        page += ["", f"## Host {host}", "", *_host_table([s for s in summaries if s.host == host], sizes)]
    for gpu in sorted({row["device"] for row in store.rows()} - {"cpu"}):
        page += ["", f"## On {gpu}", "", *_gpu_table(summarise(store, gpu), sizes)]
    table, _ = growth_table(store)
    if table:
        page += ["", "## Growth of a mixer's CPU time, 1,024 to 16,384 tokens", ""]
        page += ["| mixer | claim | fitted exponent | |", "|---|---|--:|---|"]
        page += [f"| `{m}` | {claim} | {_number(fitted, 2)} | {verdict} |" for m, claim, fitted, verdict in table]
    failed = [(s, key, text) for s in summaries for key, text in s.errors.items()]
    if failed:
        page += ["", "## What has no value, and why", "", "| mixer | host | measure | reason |", "|---|---|---|---|"]
        merged: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for s, (measure, size), text in failed:
            merged[s.mixer, s.host, text].append(measure if size is None else f"{measure} at {size}")
        for (mixer, host, text), measures in merged.items():
            page.append(f"| `{mixer}` | {host} | {', '.join(measures)} | {_cell(text)} |")
    return "\n".join(page) + "\n"


def _host_table(summaries: list[Summary], sizes: list[int]) -> list[str]:
    dense = [m for m in ("mIoU", "AP") if any(s.mean(m) is not None for s in summaries)]
    header = ["mixer", "top-1 %", "corrupted %", *(f"{m} %" for m in dense), "parameters"]
    header.append(f"FLOPs {sizes[0]} px" if sizes else "FLOPs")
    header += [f"ms {n} px" for n in sizes] + [f"MiB {n} px" for n in sizes]
    header += ["time ~ N^", "memory ~ N^", "export", "ONNX"]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 3) + "---|---|"]
    for s in sorted(summaries, key=lambda s: (-(s.mean("top1") or 0), s.mixer)):
        cells = [f"`{s.mixer}`", _with_spread(s, "top1"), _with_spread(s, "robust_top1")]
        cells += [_with_spread(s, m) for m in dense]
        cells += [human(s.mean("parameters")), human(s.mean("flops", sizes[0]) if sizes else None)]
        cells += [_number(s.mean("latency_ms", n), 1) for n in sizes]
        cells += [_number(s.mean("peak_memory_mib", n), 0) for n in sizes]
        cells += [_number(s.mean("time_exponent"), 2), _number(s.mean("memory_exponent"), 2)]
        cells += [_yes(s, "torch_export"), _yes(s, "onnx")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _gpu_table(summaries: list[Summary], sizes: list[int]) -> list[str]:
    header = ["mixer", "host"] + [f"ms {n} px" for n in sizes] + [f"MiB {n} px" for n in sizes]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "--:|" * (len(header) - 2)]
    for s in summaries:
        cells = [f"`{s.mixer}`", s.host, *(_number(s.mean("latency_ms", n), 2) for n in sizes)]
        cells += [_number(s.mean("peak_memory_mib", n), 0) for n in sizes]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _with_spread(summary: Summary, measure: str) -> str:
    mean, spread = summary.mean(measure), summary.spread(measure)
    return _number(mean, 1) + (f" +- {spread:.1f}" if mean is not None and spread is not None else "")


def _yes(summary: Summary, measure: str) -> str:
    if (measure, None) in summary.errors:
        return "no"
    return "yes" if summary.mean(measure) is not None else "-"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:240]


def _csv(store: Store) -> str:
    columns = ("task", "host", "mixer", "measure", "seed", "size", "device", "value", "error")
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in store.rows():
        writer.writerow({**row, "value": "" if row["value"] is None else f"{row['value']:.6g}"})
    return out.getvalue()


def machine() -> dict[str, Any]:
    """What the results were measured on, for the page."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "gpu": gpu, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
