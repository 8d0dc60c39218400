"""Training curves from the scalars that mmengine's local visualiser writes as JSON lines."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zoo.viz.figures import COLOURS, new_figure, save_figure

# Bookkeeping of the log that is no curve.
_IGNORED = {"epoch", "iter", "step", "time", "data_time", "memory", "eta"}
# Curves of one panel; detectors log some dozen losses, most of them of single layers.
_MOST = 12

#: Curve name -> points (x, value), ascending in x.
Curves = dict[str, list[tuple[float, float]]]


def read_scalars(work_dir: str | os.PathLike) -> tuple[Curves, Curves, str]:
    """Read the logged scalars of a work directory, of all its runs (a resumed run overwrites what it repeats).

    Args:
        work_dir: it holds ``<timestamp>/vis_data/scalars.json``, one run each.

    Returns:
        Training curves, validation curves, and what x is: "epoch" or "iteration".

    Raises:
        FileNotFoundError: no run has logged anything.
    """
    files = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    train: dict[int, dict] = {}
    val: dict[int, dict] = {}
    for file in files:
        for record in _records(file):
            if "step" not in record:
                continue
            kind = train if "lr" in record or "iter" in record else val
            kind[int(record["step"])] = record
    if not train and not val:
        raise FileNotFoundError(f"no scalars are logged below {str(work_dir)!r} (<run>/vis_data/scalars.json)")
    # With epochs in the log, validation is logged at epochs and training at iterations.
    epochs = {step: record["epoch"] for step, record in train.items() if "epoch" in record}
    per_epoch = _iterations_per_epoch(epochs)
    x_of = {step: step / per_epoch if per_epoch else float(step) for step in train}
    train_curves = _curves((x_of[step], record) for step, record in sorted(train.items()))
    val_curves = _curves((float(step), record) for step, record in sorted(val.items()))
    return train_curves, val_curves, "epoch" if per_epoch else "iteration"


def _records(file: Path) -> Iterable[dict]:
    """The lines of a log; one that a killed process left half-written is passed over."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            yield record


def _iterations_per_epoch(epochs: dict[int, int]) -> float | None:
    """Iterations of one epoch, from logged steps (counted from 1) and their epochs (counted from 1).

    Each epoch is logged at the same places, so that the first logged steps of two epochs lie whole epochs apart; with
    one epoch alone, its last logged step is taken for its end. A step s of epoch e obeys (e - 1) n < s <= e n.
    """
    if not epochs:
        return None
    first: dict[int, int] = {}
    for step in sorted(epochs):
        first.setdefault(epochs[step], step)
    numbers = sorted(first)
    gaps = [(first[b] - first[a]) / (b - a) for a, b in zip(numbers, numbers[1:])]
    return max([statistics.median(gaps) if gaps else 0.0, *(step / epoch for step, epoch in epochs.items())])


def _curves(records: Iterable[tuple[float, dict]]) -> Curves:
    curves: Curves = {}
    for x, record in records:
        for name, value in record.items():
            if name not in _IGNORED and isinstance(value, (int, float)) and not isinstance(value, bool):
                curves.setdefault(name, []).append((x, float(value)))
    return curves


def draw_curves(work_dir: str | os.PathLike, title: str | None = None) -> Figure:
    """Loss, validation metrics and learning rate of a work directory; see :func:`read_scalars`."""
    train, val, unit = read_scalars(work_dir)
    if "lr" in train:
        train.pop("base_lr", None)
    rates = {n: p for n, p in train.items() if n in ("lr", "base_lr") or n.endswith("/lr")}
    losses = {n: p for n, p in train.items() if "loss" in n}
    losses |= {f"val {n}": p for n, p in val.items() if "loss" in n}
    others = {f"train {n}": p for n, p in train.items() if n not in rates and "loss" not in n}
    metrics = {n: p for n, p in val.items() if "loss" not in n}
    panels = [
        ("loss", losses),
        ("validation", metrics),
        ("training", others),
        ("learning rate", rates),
    ]
    panels = [(name, _fewer(curves)) for name, curves in panels if curves]
    figure = new_figure(4.6 * len(panels), 3.6)
    for i, (name, curves) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), i)
        for (label, points), colour in zip(sorted(curves.items()), COLOURS * (1 + len(curves) // len(COLOURS))):
            x, y = zip(*points)
            axes.plot(x, y, label=label, color=colour, lw=1.6, marker="o" if len(x) <= 30 else None, ms=3)
        axes.set(title=name, xlabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, color="#d9dee3", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if name == "learning rate":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        if name == "validation":
            _annotate_best(axes, curves)
        if len(curves) > 1 or name != "learning rate":
            axes.legend(fontsize=8, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def _fewer(curves: Curves) -> Curves:
    """At most a dozen curves: those with the shortest names, which belong to the whole rather than to a part."""
    names = sorted(curves, key=lambda n: (len(n), n))[:_MOST]
    return {n: curves[n] for n in sorted(names)}


def _annotate_best(axes, curves: Curves) -> None:
    name = next((n for n in sorted(curves) if n.endswith("top1")), None)
    if name:
        x, y = max(curves[name], key=lambda point: point[1])
        side = "right" if x > sum(axes.get_xlim()) / 2 else "left"
        axes.annotate(f"best {y:.2f}", (x, y), xytext=(0, -14), textcoords="offset points", ha=side, fontsize=8)


def plot_curves(
    work_dir: str | os.PathLike, path: str | os.PathLike | None = None, *, title: str | None = None
) -> Path:
    """Write the curves of a work directory as a picture, by default ``work_dir/curves.png``.

    Raises:
        FileNotFoundError: no run has logged anything.
    """
    return save_figure(draw_curves(work_dir, title), path or Path(work_dir) / "curves.png")
