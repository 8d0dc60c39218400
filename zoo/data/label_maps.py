"""Masks in files: which numbers their pixels have, and which class each number means.

What happens to a number, in this order (see docs/segmentation_data.md for the table):

1. ``ignore_index`` in the file stays what it is;
2. ``label_map``, where there is one, replaces it (numbers that it does not name are faults);
3. ``reduce_zero_label`` makes 0 the ignore index and k > 0 class k - 1;
4. what is then no class is a fault, which names the file and the numbers.

Padding comes after all of this, with the ignore index.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data.loading import REFUSED_FORMATS, ImageReadError

#: masks hold whole numbers below this
MAX_VALUES = 1 << 16
_FAULT = -1


class MaskError(ValueError):
    """A mask whose pixels are no class indices, or that is of another size than its image; names the file."""


def label_lookup(
    num_classes: int,
    *,
    ignore_index: int = 255,
    reduce_zero_label: bool = False,
    label_map: Mapping[int, int] | None = None,
) -> np.ndarray:
    """The class of each number that a mask may hold, int32 ``[65536]``; -1 for numbers that are faults.

    Args:
        num_classes: classes are 0 to ``num_classes`` - 1.
        ignore_index: number of pixels that do not count, in files and afterwards.
        reduce_zero_label: 0 in the file is no class, and 1 is class 0.
        label_map: number in the file -> number that is meant; ``ignore_index`` may be among both.

    Raises:
        ValueError: the ignore index is a class or no 16-bit number, or a number of the map is out of range.
    """
    if not 1 <= num_classes < MAX_VALUES:
        raise ValueError(f"num_classes={num_classes}: accepted are 1 to {MAX_VALUES - 1}")
    if not num_classes <= ignore_index < MAX_VALUES:
        raise ValueError(
            f"ignore_index={ignore_index}: accepted are {num_classes} (no class of {num_classes}) to {MAX_VALUES - 1}"
        )
    if label_map is None and reduce_zero_label and ignore_index == num_classes:
        raise ValueError(f"ignore_index={ignore_index} in a file would be class {num_classes - 1} too; take another")
    lookup = np.full(MAX_VALUES, _FAULT, np.int32)
    pairs = {i: i for i in range(num_classes + bool(reduce_zero_label))} if label_map is None else dict(label_map)
    for number, label in pairs.items():
        if not 0 <= number < MAX_VALUES:
            raise ValueError(f"label_map has the number {number}; masks hold 0 to {MAX_VALUES - 1}")
        if label != ignore_index and reduce_zero_label:
            label = label - 1 if label else ignore_index
        if label != ignore_index and not 0 <= label < num_classes:
            raise ValueError(
                f"label_map makes {number} class {label}; accepted are 0 to {num_classes - 1}, and {ignore_index}"
            )
        lookup[number] = label
    if label_map is None or ignore_index not in label_map:
        lookup[ignore_index] = ignore_index
    return lookup


def apply_lookup(values: np.ndarray, lookup: np.ndarray, path: str, accepted: str = "") -> np.ndarray:
    """Class indices uint8 or int32 ``[H, W]`` of a mask's numbers, by a table of :func:`label_lookup`.

    Raises:
        MaskError: numbers that are no class; the message has the file and the numbers.
    """
    labels = lookup[values]
    if labels.size and int(labels.min()) < 0:
        wrong = np.unique(values[labels < 0])
        shown = ", ".join(map(str, wrong[:10])) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        share = 100 * float((labels < 0).mean())
        raise MaskError(
            f"mask {path!r} has the values {shown} ({share:.2g} % of its pixels), which are no class; "
            f"accepted are {accepted or describe(lookup)}"
        )
    return labels.astype(np.uint8) if labels.size == 0 or int(labels.max()) < 256 else labels


def describe(lookup: np.ndarray) -> str:
    """The numbers that a table accepts, as text: "0 to 149, 255"."""
    numbers = np.flatnonzero(lookup >= 0)
    if not len(numbers):
        return "none"
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    parts = [str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs]
    return ", ".join(parts[:8]) + (" ..." if len(parts) > 8 else "")


def read_mask(path: str | os.PathLike, palette: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """The numbers in a mask file, uint8 or uint16 ``[H, W]``.

    Grey images of 1, 8 and 16 bits give their values, palette images the indices; colour images are refused, unless a
    palette says which colour means which number.

    Args:
        path: PNG, TIFF or another format without losses.
        palette: colours (R, G, B); a pixel of the k-th has the number k.

    Raises:
        ImageReadError: the file is missing or broken.
        MaskError: its pixels are colours (and no palette is given, or one is not in it), not whole, or were changed by
            a lossy compression.
    """
    name = os.fspath(path)
    formats = [f for f in _known_formats() if f not in REFUSED_FORMATS]
    try:
        with Image.open(name, formats=formats) as image:
            if image.format in ("JPEG", "MPO") or (image.format == "WEBP" and image.mode != "P"):
                raise MaskError(f"mask {name!r} is a {image.format} file, whose losses change class indices; use PNG")
            mode = image.mode
            if mode in ("RGB", "RGBA"):
                return _from_colours(np.asarray(image.convert("RGB")), palette, name)
            if mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
                raise MaskError(f"mask {name!r} has pixels of Pillow's mode {mode!r}; accepted are 8 or 16 bit numbers")
            values = np.array(image)
    except MaskError:
        raise
    except OSError as error:
        raise ImageReadError(f"cannot read mask {name!r}: {error.strerror or error}", name) from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, ValueError, zlib.error ...
        raise ImageReadError(f"cannot read mask {name!r}: {type(error).__name__}: {error}", name) from error
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype == np.uint8:
        return values
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < MAX_VALUES:
        raise MaskError(f"mask {name!r} has values from {values.min()} to {values.max()}; accepted are 0 to 65535")
    return values.astype(np.uint16)


def _known_formats() -> list[str]:
    Image.init()
    return list(Image.ID)


def _from_colours(rgb: np.ndarray, palette: Sequence[Sequence[int]] | None, name: str) -> np.ndarray:
    if palette is None:
        grey = bool((rgb == rgb[:, :, :1]).all())
        hint = (
            "its three channels are equal: save one of them"
            if grey
            else "save class indices as grey or palette PNG, or give a palette"
        )
        raise MaskError(f"mask {name!r} is an RGB image where class indices are meant; {hint}")
    codes = rgb.astype(np.int32) @ np.array([65536, 256, 1])
    known = np.array(palette, np.int64).reshape(-1, 3) @ np.array([65536, 256, 1])
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    found = order[at]
    wrong = known[found] != codes
    if wrong.any():
        strange = np.unique(codes[wrong])[:5]
        shown = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in strange.tolist())
        raise MaskError(f"mask {name!r} has colours that the palette of {len(known)} colours lacks, such as {shown}")
    return found.astype(np.uint8 if len(known) <= 256 else np.uint16)


def read_classes(path: str | os.PathLike) -> tuple[list[str], list[tuple[int, int, int]] | None]:
    """Class names, and their colours where they are given, of a text file with a class a line: ``name`` or
    ``name R G B``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no line, a name twice, or colours for some classes only.
    """
    path = Path(path)
    names: list[str] = []
    colours: list[tuple[int, int, int]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.strip().rsplit(maxsplit=3)
        if not words or line.lstrip().startswith("#"):
            continue
        if len(words) == 4 and all(w.isdecimal() and int(w) < 256 for w in words[1:]):
            names.append(words[0])
            colours.append((int(words[1]), int(words[2]), int(words[3])))
        else:
            names.append(line.strip())
    if not names or len(set(names)) < len(names):
        double = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(f"{path} " + (f"names classes twice: {', '.join(double)}" if names else "names no class"))
    if colours and len(colours) < len(names):
        raise ValueError(f"{path} has colours for {len(colours)} of its {len(names)} classes; all or none is accepted")
    return names, colours or None


def write_mask(path: str | os.PathLike, labels: np.ndarray, palette: Sequence[Sequence[int]] | None = None) -> Path:
    """Write numbers ``[H, W]`` as PNG, of 8 bits (with a palette, where one is given) or 16 as they need.

    Raises:
        ValueError: numbers outside of 0 ... 65535.
    """
    from zoo.files import save_atomically

    labels = np.asarray(labels)
    top = int(labels.max(initial=0))
    if labels.ndim != 2 or int(labels.min(initial=0)) < 0 or top >= MAX_VALUES:
        raise ValueError(f"labels of shape {labels.shape} up to {top}; accepted are [H, W] of 0 to {MAX_VALUES - 1}")
    image = Image.fromarray(labels.astype(np.uint8 if top < 256 else np.uint16))
    if palette is not None and top < 256:
        image = image.convert("P") if image.mode != "L" else Image.fromarray(labels.astype(np.uint8), mode="P")
        flat = [int(v) for colour in palette for v in colour][: 3 * 256]
        image.putpalette(flat + [0] * (3 * 256 - len(flat)))
    return save_atomically(path, lambda file: image.save(file, format="PNG"))
