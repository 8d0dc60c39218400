"""Evaluation of label maps that any program wrote, on the truth of a config's test data or of a folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.data.volume_dataset import VolumeDataset, ids_to_indices
from zoo.data.volume_folder import VolumeCase, VolumeFolder, find_volume_data, is_volume_folder
from zoo.data.volumes import check_same_grid, is_volume_file, read_channels, read_volume, strip_ending
from zoo.metrics.volume import ClassScore, score_labels
from zoo.metrics.volume_report import SummaryRow, summarise, write_report

logger = logging.getLogger(__name__)

Track = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass
class VolumeReport:
    """What an evaluation gave.

    Attributes:
        scores: of every case and class.
        rows: means with confidence intervals.
        classes: names, background first.
        unused: files of predictions that belong to no case.
    """

    scores: list[ClassScore]
    rows: list[SummaryRow]
    classes: list[str]
    unused: list[str] = field(default_factory=list)


def evaluate_label_maps(
    truth: str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    *,
    out_dir: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | Iterable[str] | None = None,
    overlays: bool = True,
    surface: bool = True,
    seed: int = 0,
    track: Track | None = None,
) -> VolumeReport:
    """Dice, HD95, ASSD and volume errors of a folder of label maps, on the grid of the truth's files.

    A case's prediction is the file that is named like the case, its label or its image, with any ending of volumes;
    ids are those of the truth's files.

    Args:
        truth: a config (name or file) whose test data is of volumes; or a folder in a layout that
            :func:`zoo.data.volume_folder.find_volume_data` knows, or of label maps alone. Names and ids of the latter's
            classes come from ``classes.json``, ``classes.txt`` or ``dataset.json`` in it or beside it; without such a
            file all ids that occur are classes.
        predictions: a folder of label maps.
        out_dir: where to write ``cases.csv``, ``summary.csv``, ``summary.json``, ``boxplot.png`` and, for each case
            whose image is known, ``overlays/CASE.png``; None: nowhere.
        options: overrides of the config's keys.
        overlays: draw prediction and truth of each case.
        surface: measure surface distances.
        seed: of the confidence intervals.
        track: wraps the iteration over cases, with their number, to show progress.

    Raises:
        FileNotFoundError: there is no such folder or config.
        ConfigError: the config's test data is not of volumes.
        ValueError: a case has no prediction, or more than one; a label is no class; a prediction has another shape or
            place than its truth (both files are named).
    """
    folder = Path(predictions)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of predictions {str(folder)!r}")
    found, read_options = _truth(truth, options)
    files = label_files(folder)
    pairs, unused = match_predictions(found.cases, files, str(folder))
    for name in unused:
        logger.warning("%s belongs to no case of the truth, and is left out", name)
    if not found.classes:  # a folder of label maps that does not name them
        _find_classes(found, pairs, read_options)
    scores: list[ClassScore] = []
    for case, file in track(pairs, len(pairs)) if track is not None else pairs:
        target = read_volume(str(case.label), label=True, **read_options)
        own = read_volume(file, label=True, **read_options)
        check_same_grid(own, target)
        said, true = (ids_to_indices(v.data, found.label_ids, v.path, found.classes) for v in (own, target))
        scores += score_labels(said, true, target.spacing, found.classes, case=case.name, surface=surface)
        if out_dir is not None and overlays and case.images:
            _overlay(Path(out_dir), case, (said, true), target, found.classes, read_options)
    rows = summarise(scores, seed=seed) if out_dir is None else write_report(out_dir, scores, seed=seed)
    return VolumeReport(scores, rows, list(found.classes), unused)


def _truth(
    truth: str | os.PathLike[str], options: Mapping[str, Any] | Iterable[str] | None
) -> tuple[VolumeFolder, dict[str, Any]]:
    """Cases with labels, classes (none where nothing names them), and how the files are read."""
    path = Path(truth)
    if not path.is_dir():
        dataset = volumes_of_config(truth, options)
        cases = [c for c in dataset.cases if c.label is not None]
        if not cases:
            raise ValueError(f"the test data of {truth} has no labels")
        own = dataset.folder
        return VolumeFolder(own.format, cases, [], own.classes, own.label_ids, own.channels), dataset._read_options
    if is_volume_folder(path):
        return find_volume_data(path), {}
    labels = label_files(path)
    if not labels:
        raise FileNotFoundError(f"the folder {str(path)!r} holds no label maps, and no data set of volumes")
    cases = [VolumeCase(name, (), file) for name, file in labels.items()]
    names, ids = _named_classes(path) or ([], [])
    return VolumeFolder("labels", cases, [], names, ids, root=str(path)), {}


def volumes_of_config(
    config: str | os.PathLike[str], options: Mapping[str, Any] | Iterable[str] | None = None
) -> VolumeDataset:
    """The test data of a config; no volume is read.

    Raises:
        ConfigError: it is not of volumes.
    """
    from mmengine.registry import DATASETS

    from zoo.engine.config import ConfigError
    from zoo.engine.config_data import evaluated_data

    spec, kind = evaluated_data(config, options)
    if not (isinstance(kind, type) and issubclass(kind, VolumeDataset)):
        name = getattr(kind, "__name__", spec.get("type"))
        raise ConfigError(f"the test data of {config} is {name}, which has no volumes")
    return DATASETS.build({**spec, "cache": 0, "on_missing_class": "ignore"})


def _named_classes(folder: Path) -> tuple[list[str], list[int]] | None:
    from zoo.data.volume_folder import _class_file, _classes, _read_json

    for root in (folder, folder.resolve().parent):
        named = _class_file(root)
        if named is not None:
            return named
        file = root / "dataset.json"
        if file.is_file() and "labels" in (content := _read_json(file)):
            return _classes(content["labels"], file)
    return None


def label_files(folder: Path) -> dict[str, str]:
    """Name without ending -> file, of the volumes of a folder; probabilities that ``zoo predict`` wrote are left out.

    Raises:
        ValueError: two files differ in their ending alone.
    """
    found: dict[str, str] = {}
    for file in sorted(p for p in folder.iterdir() if p.is_file() and is_volume_file(p)):
        name = strip_ending(file)
        if name.endswith("_probabilities"):
            continue
        if name in found:
            raise ValueError(f"{found[name]} and {file} are both label maps of {name!r}")
        found[name] = str(file)
    return found


def match_predictions(
    cases: Sequence[VolumeCase], files: Mapping[str, str], where: str
) -> tuple[list[tuple[VolumeCase, str]], list[str]]:
    """The prediction of each case, and the files that are of none.

    Args:
        cases: with labels.
        files: name without ending -> file.
        where: what the files are called in messages.

    Raises:
        ValueError: a case has none or several.
    """
    pairs, missing, used = [], [], set()
    for case in cases:
        names = [case.name, *(strip_ending(f) for f in (case.label, *case.images[:1]) if f)]
        names += [re.sub(r"_\d{4}$", "", strip_ending(f)) for f in case.images[:1]]
        own = list(dict.fromkeys(files[n] for n in names if n in files))
        if len(own) > 1:
            raise ValueError(f"the case {case.name!r} has several predictions: {', '.join(own)}")
        if own:
            pairs.append((case, own[0]))
            used.add(own[0])
        else:
            missing.append(case.name)
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(
            f"{where} has no prediction of {len(missing)} of {len(cases)} cases: {listed}. A prediction is named like "
            f"its case, such as {missing[0]}.nii.gz"
        )
    return pairs, [f for f in files.values() if f not in used]


def _find_classes(found: VolumeFolder, pairs: Iterable[tuple[VolumeCase, str]], read_options: dict[str, Any]) -> None:
    import numpy as np

    ids = {0}
    for case, file in pairs:
        for path in (str(case.label), file):
            ids.update(np.unique(read_volume(path, label=True, **read_options).data).tolist())
    found.label_ids = sorted(ids)
    found.classes = ["background", *(f"class {i}" for i in found.label_ids[1:])]


def _overlay(
    out_dir: Path, case: VolumeCase, labels: Sequence[Any], target: Any, classes: Sequence[str], read: dict[str, Any]
) -> None:
    from zoo.viz.volumes import save_overlay

    image = read_channels(case.images, nan=0.0, **read)
    check_same_grid(image, target)
    save_overlay(
        out_dir / "overlays" / f"{case.name}.png", image.data[0], *labels, affine=target.affine, classes=classes,
        title=case.name,
    )  # fmt: skip
