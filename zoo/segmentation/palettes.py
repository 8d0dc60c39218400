"""A colour for each class: those of the public data sets where the classes are theirs, else generated ones."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from zoo.data.segmentation_classes import (
    ADE_CLASSES,
    ADE_COLOURS,
    CITYSCAPES_CLASSES,
    CITYSCAPES_COLOURS,
    VOC_CLASSES,
    Colour,
    voc_colours,
)

#: Of pixels that have no class.
VOID: Colour = (0, 0, 0)
#: Turns of the colour circle from a colour to the next: the golden ratio, which leaves no two near each other.
_TURN = 0.6180339887498949
_LIGHTNESS = (0.50, 0.66, 0.36)

PUBLIC: dict[str, tuple[tuple[str, ...], tuple[Colour, ...]]] = {
    "ade20k": (ADE_CLASSES, ADE_COLOURS),
    "cityscapes": (CITYSCAPES_CLASSES, CITYSCAPES_COLOURS),
    "voc": (VOC_CLASSES, voc_colours(len(VOC_CLASSES))),
}


def generated_palette(count: int) -> list[Colour]:
    """``count`` colours that differ (up to 65,536), the same ones every time, none of them black.

    Neighbours in the list are far apart in hue; lightness changes with every turn of the circle.
    """
    colours: list[Colour] = []
    used = {VOID}
    number = 0
    while len(colours) < count:
        hue = number * _TURN % 1
        lightness = _LIGHTNESS[number // 12 % 3]
        saturation = 0.75 - 0.35 * (number // 36 % 3) / 2
        red, green, blue = (round(255 * v) for v in colorsys.hls_to_rgb(hue, lightness, saturation))
        number += 1
        while (red, green, blue) in used:  # beyond some thousands: the next free blue
            blue = (blue + 1) % 256
            green = (green + (blue == 0)) % 256
        used.add((red, green, blue))
        colours.append((red, green, blue))
    return colours


def palette_of(
    num_classes: int, classes: Sequence[str] | None = None, given: Sequence[Sequence[int]] | str | None = None
) -> list[Colour]:
    """The colours of a model's classes.

    Args:
        num_classes: how many.
        classes: their names; those of a public data set have its colours.
        given: colours to use instead, or the name of one of :data:`PUBLIC`.

    Raises:
        ValueError: another number of colours than of classes, or an unknown name.
    """
    if isinstance(given, str):
        if given not in PUBLIC:
            raise ValueError(f"palette={given!r}: accepted are {', '.join(PUBLIC)}, or a colour for each class")
        given = PUBLIC[given][1]
    if given is not None:
        if len(given) != num_classes or any(len(c) != 3 or not 0 <= min(c) <= max(c) <= 255 for c in given):
            raise ValueError(
                f"palette has {len(given)} entries for {num_classes} classes; accepted are {num_classes} colours (R, "
                f"G, B) of 0 to 255"
            )
        return [(int(c[0]), int(c[1]), int(c[2])) for c in given]
    for names, colours in PUBLIC.values():
        if classes is not None and tuple(classes) == names:
            return list(colours)
    return generated_palette(num_classes)
