"""The arena's pictures: accuracy against latency with the Pareto front, and cost against tokens."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoo.viz.figures import COLOURS, MUTED, new_figure

_GROWTHS = {"linear": COLOURS[2], "n log n": COLOURS[3], "quadratic": COLOURS[1]}


def draw_accuracy(points: dict[str, tuple[float, float, float]], front: list[str], title: str) -> Figure:
    """Mixers as points (latency in ms, top-1 in %, its standard deviation), those of the Pareto front joined."""
    figure = new_figure(9.5, 6.5)
    axes = figure.add_subplot()
    for name, (x, y, spread) in points.items():
        colour = COLOURS[0] if name in front else MUTED
        axes.errorbar(x, y, yerr=spread or None, fmt="o", ms=5, color=colour, elinewidth=0.8, alpha=0.9)
    line = [points[name] for name in front]
    axes.step([p[0] for p in line], [p[1] for p in line], where="post", color=COLOURS[0], lw=1.2, label="Pareto front")
    axes.set_xscale("log")
    axes.set(xlabel="latency of one image, ms", ylabel="top-1, %", title=title)
    _names(axes, {name: (x, y) for name, (x, y, _) in points.items()}, front)
    axes.legend(loc="lower right", frameon=False)
    _plain(axes)
    return figure


def draw_cost(
    lines: dict[str, list[tuple[float, float]]], growth: dict[str, str], title: str, unit: str, along: str = "tokens"
) -> Figure:
    """Cost of each mixer against tokens (or pixels), both logarithmic, coloured by the growth that it claims."""
    figure = new_figure(9.5, 6.5)
    axes = figure.add_subplot()
    ends: dict[str, tuple[float, float]] = {}
    seen: set[str] = set()
    for name, points in sorted(lines.items()):
        claim = growth.get(name, "")
        x, y = zip(*points)
        label = f"claims {claim}" if claim and claim not in seen else None
        seen.add(claim)
        axes.plot(x, y, color=_GROWTHS.get(claim, MUTED), lw=1.1, marker="o", ms=2.5, alpha=0.85, label=label)
        ends[name] = (x[-1], y[-1])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel=along, ylabel=unit, title=title)
    axes.margins(x=0.22)
    _names(axes, ends, list(ends))
    if seen - {""}:
        axes.legend(loc="upper left", frameon=False)
    _plain(axes)
    return figure


def _names(axes: Axes, points: dict[str, tuple[float, float]], strong: list[str]) -> None:
    """Names right of their points; where two would overlap, the later one moves up."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout decides where points are in pixels
    placed: list[tuple[float, float]] = []
    height, width = 11.0, 90.0
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        x, y = axes.transData.transform(point)
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        shift = 0.0
        while any(abs(y + shift - py) < height and abs(x - px) < width for px, py in placed):
            shift += 3.0
        placed.append((x, y + shift))
        axes.annotate(
            name,
            point,
            xytext=(7, shift * 72 / figure.dpi - 2),
            textcoords="offset points",
            fontsize=7,
            color="black" if name in strong else MUTED,
            arrowprops=dict(arrowstyle="-", lw=0.4, color=MUTED) if shift > height else None,
        )


def _plain(axes: Axes) -> None:
    axes.grid(True, which="major", color="#d9dee3", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
