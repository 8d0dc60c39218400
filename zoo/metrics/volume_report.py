"""What an evaluation of label maps says as a whole: means with confidence intervals, tables, a box plot."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from zoo.files import write_file
from zoo.metrics.volume import ClassScore

#: What is summarised: name -> its value of a score. Volume errors count without their sign.
MEASURES = {
    "dice": lambda s: s.dice,
    "hd95_mm": lambda s: s.hd95,
    "assd_mm": lambda s: s.assd,
    "volume_error_ml": lambda s: abs(s.error_ml) if s.truth_ml or s.predicted_ml else float("nan"),
    "volume_error_percent": lambda s: abs(s.error_percent),
}
#: The row over all classes.
ALL = "(all classes)"


@dataclass(frozen=True)
class SummaryRow:
    """One measure of one class over the cases.

    Attributes:
        name: of the class, or :data:`ALL`: the mean over classes of their means.
        measure: key of :data:`MEASURES`.
        cases: how many count: those in which the value is a finite number.
        mean, std, median: over those; of :data:`ALL` the spread is over the cases' means.
        low, high: confidence interval of the mean, by bootstrap over cases; NaN with fewer than two.
        missed: cases in which the class is there and nothing of it was predicted.
        invented: cases in which it was predicted and is not there.
        absent: cases in which it is neither.
    """

    name: str
    measure: str
    cases: int
    mean: float
    low: float
    high: float
    std: float
    median: float
    missed: int
    invented: int
    absent: int


def summarise(
    scores: Sequence[ClassScore], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[SummaryRow]:
    """Means over cases with confidence intervals, for each class and over all of them.

    Intervals are percentiles of means over ``resamples`` draws of as many cases with replacement (Efron, "Bootstrap
    methods", 1979); the draws are the same for all classes and measures, so that the mean over classes is over the same
    cases.

    Args:
        scores: of all cases and classes.
        confidence: of the interval, between 0 and 1.
        resamples: draws.
        seed: of the draws.

    Raises:
        ValueError: there are no scores, or an argument is out of range.
    """
    if not scores:
        raise ValueError("there are no scores to summarise")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: accepted are numbers between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: accepted are 1 and above")
    names, table = _table(scores)
    cases = len(next(iter(table.values())))
    draws = np.random.default_rng(seed).integers(0, cases, (resamples, cases)) if cases > 1 else None
    unmatched = {
        name: [
            sum(s.missed for s in scores if s.name == name),
            sum(s.invented for s in scores if s.name == name),
            sum(not s.truth_ml and not s.predicted_ml for s in scores if s.name == name),
        ]
        for name in names
    }
    rows = []
    for measure, values in table.items():  # values [cases, classes]
        means = _means(values[None])[0]  # [classes]
        spread = _bootstrap(values, draws)  # [resamples, classes + 1]
        tails = 50 * (1 - confidence), 50 * (1 + confidence)
        for k, name in enumerate([*names, ALL]):
            own = values[:, k] if k < len(names) else _means(values.T[None])[0]  # over cases; of ALL: cases' means
            own = own[np.isfinite(own)]
            drawn = spread[:, k][np.isfinite(spread[:, k])] if len(own) > 1 else np.zeros(0)
            low, high = np.percentile(drawn, tails) if drawn.size else (np.nan, np.nan)
            mean = means[k] if k < len(names) else _means(means[None, :, None])[0, 0]
            counts = unmatched[name] if name in unmatched else [sum(v) for v in zip(*unmatched.values())]
            rows.append(
                SummaryRow(
                    name, measure, len(own), float(mean), float(low), float(high),
                    float(own.std(ddof=1)) if len(own) > 1 else float("nan"),
                    float(np.median(own)) if len(own) else float("nan"),
                    missed=counts[0], invented=counts[1], absent=counts[2],
                )
            )  # fmt: skip
    order = {name: k for k, name in enumerate([*names, ALL])}
    return sorted(rows, key=lambda r: order[r.name])


def _table(scores: Sequence[ClassScore]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Class names, and for each measure float64 ``[cases, classes]`` with NaN for what is no finite number."""
    names = list(dict.fromkeys(s.name for s in scores))
    cases = list(dict.fromkeys(s.case for s in scores))
    row, column = {c: i for i, c in enumerate(cases)}, {n: k for k, n in enumerate(names)}
    table = {m: np.full((len(cases), len(names)), np.nan) for m in MEASURES}
    seen = set()
    for s in scores:
        at = row[s.case], column[s.name]
        if at in seen:
            raise ValueError(f"case {s.case!r} has two scores of class {s.name!r}")
        seen.add(at)
        for measure, of in MEASURES.items():
            value = of(s)
            table[measure][at] = value if np.isfinite(value) else np.nan
    return names, table


def _means(values: np.ndarray) -> np.ndarray:
    """Mean over axis 1 ``[r, n, k] -> [r, k]`` of what is no NaN; NaN where there is nothing."""
    good = np.isfinite(values)
    count = good.sum(1)
    total = np.where(good, values, 0).sum(1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _bootstrap(values: np.ndarray, draws: np.ndarray | None) -> np.ndarray:
    """Means over drawn cases ``[resamples, classes + 1]`` of values ``[cases, classes]``; last the mean of classes."""
    if draws is None:
        return np.full((1, values.shape[1] + 1), np.nan)
    parts = [_means(values[draws[i : i + 100]]) for i in range(0, len(draws), 100)]  # a hundred draws at a time
    means = np.concatenate(parts)
    return np.concatenate([means, _means(means[:, :, None])], axis=1)


def mean_scores(scores: Sequence[ClassScore], *, surface: bool = True) -> dict[str, float]:
    """Scalars for a log: means over cases and then classes, and each class's Dice.

    A distance is infinite where no case has the class in both label maps, though one has it in either.
    """
    names, table = _table(scores)
    kept = [m for m in MEASURES if surface or not m.startswith(("hd95", "assd"))]
    short = {"dice": "dice", "hd95_mm": "hd95", "assd_mm": "assd"}
    result = {}
    for measure in kept:
        means = _means(table[measure][None])[0]
        value = float(_means(means[None, :, None])[0, 0])
        if np.isnan(value) and measure in ("hd95_mm", "assd_mm") and any(s.missed or s.invented for s in scores):
            value = float("inf")
        result[short.get(measure, measure)] = value
    result["missed"] = float(sum(s.missed for s in scores))
    result["invented"] = float(sum(s.invented for s in scores))
    for name, value in zip(names, _means(table["dice"][None])[0]):
        result[f"dice/{name}"] = float(value)
    return result


def write_report(
    out_dir: str | os.PathLike[str],
    scores: Sequence[ClassScore],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[SummaryRow]:
    """Write ``cases.csv``, ``summary.csv``, ``summary.json`` and ``boxplot.png``; gives the summary.

    In the tables an empty cell is a value that there is none of (NaN), and ``inf`` a distance to nothing.
    """
    from zoo.viz.volumes import save_boxplot

    out_dir = Path(out_dir)
    rows = summarise(scores, confidence=confidence, resamples=resamples, seed=seed)
    write_file(out_dir / "cases.csv", cases_csv(scores))
    names = [f.name for f in fields(SummaryRow)]
    table = [["class" if n == "name" else n for n in names]]
    table += [[_cell(getattr(r, n)) for n in names] for r in rows]
    write_file(out_dir / "summary.csv", _csv(table))
    content = {
        "cases": len({s.case for s in scores}), "confidence": confidence, "resamples": resamples, "seed": seed,
        "rows": [{k: _plain(v) for k, v in asdict(r).items()} for r in rows],
    }  # fmt: skip
    write_file(out_dir / "summary.json", json.dumps(content, indent=1) + "\n")
    save_boxplot(scores, out_dir / "boxplot.png")
    return rows


def cases_csv(scores: Sequence[ClassScore]) -> str:
    """A table with a row a case and class."""
    header = ["case", "class", "label", "dice", "hd95_mm", "assd_mm", "truth_ml", "predicted_ml", "error_ml",
              "error_percent"]  # fmt: skip
    body = [
        [s.case, s.name, str(s.label),
         *(_cell(v) for v in (s.dice, s.hd95, s.assd, s.truth_ml, s.predicted_ml, s.error_ml, s.error_percent))]
        for s in scores
    ]  # fmt: skip
    return _csv([header, *body])


def format_summary(rows: Sequence[SummaryRow]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table for people: a row a class, ``mean [low, high]`` of each measure."""
    names = list(dict.fromkeys(r.name for r in rows))
    header = ["class", "dice", "HD95 mm", "ASSD mm", "volume error ml", "missed", "invented"]
    body = []
    for name in names:
        own = {r.measure: r for r in rows if r.name == name}
        cells = [_interval(own[m]) for m in ("dice", "hd95_mm", "assd_mm", "volume_error_ml")]
        body.append([name, *cells, str(own["dice"].missed), str(own["dice"].invented)])
    return header, body


def _interval(row: SummaryRow) -> str:
    digits = 3 if row.measure == "dice" else 2
    if np.isnan(row.mean):
        return "-"
    mean = f"{row.mean:.{digits}f}"
    return mean if np.isnan(row.low) else f"{mean} [{row.low:.{digits}f}, {row.high:.{digits}f}]"


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return str(value)


def _plain(value: str | float) -> str | float | None:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
