"""What ``zoo predict`` does with models of masks: their options, and the files of masks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

#: Attributes of the command line -> how it calls them.
_OPTIONS = {"sliding": "--sliding", "tta": "--tta", "tta_scales": "--tta-scales", "masks": "--masks"}


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``zoo predict`` that are for segmenters alone."""
    group = parser.add_argument_group("segmentation")
    group.add_argument(
        "--sliding",
        type=int,
        nargs="+",
        metavar="N",
        help="read images at their own resolution by windows of this size; a second number is the step (default: 2/3)",
    )
    group.add_argument("--tta", action="store_true", help="average over six scales and mirrored images")
    group.add_argument("--tta-scales", type=float, nargs="+", metavar="S", help="average over these, and mirrored")
    group.add_argument(
        "--masks",
        choices=("png", "rle", "polygons"),
        help="PNG files in --out (default), or run lengths or outlines in the JSON",
    )


def predict_options(args: argparse.Namespace, known: Any) -> dict[str, Any]:
    """Options of the predictor that the command line has.

    Args:
        known: the predictor's options.

    Raises:
        ValueError: options of segmenters for another model.
    """
    given = {n: getattr(args, n) for n in _OPTIONS if getattr(args, n, None) not in (None, False)}
    if "sliding" not in known:
        for name in given:
            raise ValueError(f"{_OPTIONS[name]} is for segmenters, not for {args.model_or_config}")
        return {}
    options: dict[str, Any] = {}
    if "sliding" in given:
        if len(given["sliding"]) > 2:
            raise ValueError(f"--sliding {' '.join(map(str, given['sliding']))}: accepted are one or two numbers")
        options["sliding"] = tuple(given["sliding"])
    if "tta" in given or "tta_scales" in given:
        options["tta"] = given.get("tta_scales", True)
    masks = given.get("masks", "polygons" if args.polygons else None)
    if masks is not None:
        options["masks"] = masks
    return options


class MaskFiles:
    """The files of masks of one run: ``masks/NAME.png`` (label maps), ``panoptic/NAME.png`` and ``panoptic.json``.

    Args:
        folder: that of the run's other files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: set[str] = set()
        self.annotations: list[dict[str, Any]] = []
        self.categories: list[dict[str, Any]] = []

    def add(self, number: int, result: Any) -> None:
        """Write one result's; those of a model of objects alone have none.

        The name is the image's, with its number before it where another image has the same.
        """
        if result.mask_format != "png":
            return
        name = Path(result.source.split("?")[0]).stem
        name = name if result.frame is None else f"{name}_{result.frame:06d}"
        name = "".join(c if c.isalnum() or c in "-_. " else "_" for c in name)
        name = name if name not in self.names else f"{number:05d}_{name}"
        self.names.add(name)
        result.save_masks(self.folder, name)
        if result.segments is not None:
            image = int(name) if name.isdecimal() else number
            self.annotations.append(result.panoptic_annotation(image, f"{name}.png"))
            self.categories = [{"id": i, "name": n} for i, n in zip(result.category_ids, result.classes)]

    def finish(self) -> None:
        """Write ``panoptic.json`` in COCO's format, if there are segments."""
        from zoo.files import write_file

        if self.annotations:
            content = {"annotations": self.annotations, "categories": self.categories}
            write_file(self.folder / "panoptic.json", json.dumps(content) + "\n")
