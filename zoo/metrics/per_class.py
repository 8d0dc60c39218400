"""Precision, recall and F1 of every class."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import mmengine.dist as dist
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

from zoo.files import write_file
from zoo.metrics.confusion import LabelMetric


@dataclass(frozen=True)
class ClassRow:
    """One class: precision, recall and F1 in percent (0 where nothing was predicted or true), and how many samples."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def per_class_table(targets: Tensor, predictions: Tensor, classes: tuple[str, ...]) -> list[ClassRow]:
    """A row for each class, from true and predicted labels ``[N]`` int64."""
    size = max(2, len(classes))  # torchmetrics takes two classes or more
    columns = [
        (function(predictions, targets, num_classes=size, average=None).double() * 100).tolist()
        for function in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    support = torch.bincount(targets, minlength=size).tolist()
    return [ClassRow(name, *values) for name, *values in zip(classes, *columns, support)]


def format_table(rows: list[ClassRow]) -> str:
    """The table as text, one line a class."""
    width = max([5, *(len(r.name) for r in rows)])
    lines = [f"{'class':<{width}}  precision  recall      f1  support"]
    lines += [f"{r.name:<{width}}  {r.precision:9.2f}  {r.recall:6.2f}  {r.f1:6.2f}  {r.support:7d}" for r in rows]
    return "\n".join(lines)


class PerClass(LabelMetric):
    """Precision, recall and F1 of every class: :attr:`rows` after evaluation, a CSV file, and their means.

    The means ``macro/precision``, ``macro/recall`` and ``macro/f1`` are over the classes that occur, in percent.

    Args:
        out_file: where to write the table as CSV; None: nowhere.
    """

    default_prefix = "macro"

    def __init__(self, out_file: str | os.PathLike | None = None, prefix: str | None = None):
        super().__init__(prefix)
        self.out_file = None if out_file is None else Path(out_file)
        self.rows: list[ClassRow] = []

    def summarise_labels(self, targets: Tensor, predictions: Tensor, classes: tuple[str, ...]) -> dict[str, float]:
        self.rows = per_class_table(targets, predictions, classes)
        if self.out_file is not None and dist.is_main_process():
            text = io.StringIO()
            writer = csv.DictWriter(text, [f.name for f in fields(ClassRow)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)
            write_file(self.out_file, text.getvalue())
        present = [row for row in self.rows if row.support]
        return {name: sum(getattr(r, name) for r in present) / len(present) for name in ("precision", "recall", "f1")}
