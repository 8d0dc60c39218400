"""Folders of images and of masks with the same names: semantic segmentation from PNG files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.data.label_maps import apply_lookup, label_lookup, read_classes, read_mask
from zoo.data.loading import is_image_file
from zoo.data.segmentation import Annotation, SegmentationDataset, check_size
from zoo.data.text_lines import read_lines

_NAMED = 5
_GUESSED_FROM = 50


class MaskFolder(SegmentationDataset):
    """Images with a mask each, whose pixels are class indices.

    Masks are grey or palette images of 8 or 16 bits; :func:`zoo.data.label_maps.label_lookup` says what happens to
    their numbers. RGB masks are refused unless ``mask_palette`` gives the number of each colour.

    Args:
        images: folder of the images, searched at any depth.
        masks: folder of the masks: the same relative names, apart from ending and suffixes.
        classes: their names, how many there are, or a text file with a name (and perhaps a colour) a line.
        names: relative names without ending of the images to use, or a text file with one a line; None for all.
        image_suffix, mask_suffix: what stands at the end of the stems of images and of masks, such as "_leftImg8bit"
            and "_gtFine_labelIds"; None for the mask's: whatever the first masks have.
        reduce_zero_label: 0 in the masks is no class, and 1 is class 0.
        label_map: number in the masks -> number that is meant.
        mask_palette: colours (R, G, B) of the numbers 0, 1, ... in RGB masks; True for the classes' own.
        ignore_index: number of pixels that do not count, in the masks and afterwards.
        **common: ``palette``, ``transform``, ``seed``, ``on_error``, ``part`` ...; see
            :class:`zoo.data.segmentation.SegmentationDataset`.

    Raises:
        FileNotFoundError: there is no such folder, no image, or images without masks; the message names the first.
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        images: str | os.PathLike,
        masks: str | os.PathLike,
        classes: Sequence[str] | str | os.PathLike | int,
        *,
        names: Sequence[str] | str | os.PathLike | None = None,
        image_suffix: str = "",
        mask_suffix: str | None = None,
        reduce_zero_label: bool = False,
        label_map: Mapping[int, int] | None = None,
        mask_palette: Sequence[Sequence[int]] | bool | None = None,
        ignore_index: int = 255,
        **common: Any,
    ):
        if isinstance(classes, int):
            classes = [str(i) for i in range(classes)]
        elif isinstance(classes, str | os.PathLike):
            classes, colours = read_classes(classes)
            if common.get("palette") is None:
                common["palette"] = colours
        if mask_palette is True:
            mask_palette = common.get("palette")
            if mask_palette is None:
                raise ValueError("mask_palette=True needs a palette, or a file of classes with their colours")
        self.lookup = label_lookup(
            len(classes), ignore_index=ignore_index, reduce_zero_label=reduce_zero_label, label_map=label_map
        )
        self.mask_palette = mask_palette or None
        if isinstance(names, str | os.PathLike):
            names = read_lines(names)
        pairs = pair_masks(images, masks, names=names, image_suffix=image_suffix, mask_suffix=mask_suffix)
        missing = [image for image, mask in pairs if mask is None]
        if missing:
            shown = ", ".join(map(repr, missing[:_NAMED])) + (" ..." if len(missing) > _NAMED else "")
            raise FileNotFoundError(f"{len(missing)} of {len(pairs)} images have no mask in {str(masks)!r}: {shown}")
        self.mask_paths = [str(mask) for _, mask in pairs]
        super().__init__([image for image, _ in pairs], classes, ignore_index=ignore_index, **common)

    def mask_of(self, index: int) -> str:
        """The mask file of image ``index``."""
        return self.mask_paths[int(self._indices[index])]

    def annotation(self, row: int, size: tuple[int, int]) -> Annotation:
        path = self.mask_paths[row]
        values = read_mask(path, self.mask_palette)  # type: ignore[arg-type]
        check_size(values, size, f"mask {path!r}", str(self.paths[row]))
        return Annotation(semantic=apply_lookup(values, self.lookup, path))


def pair_masks(
    images: str | os.PathLike,
    masks: str | os.PathLike,
    *,
    names: Sequence[str] | None = None,
    image_suffix: str = "",
    mask_suffix: str | None = None,
) -> list[tuple[str, str | None]]:
    """Each image file with its mask file, or with None where there is none, sorted by name.

    Args: see :class:`MaskFolder`.

    Raises:
        FileNotFoundError: there is no such folder, no image, or no image of a name; the message has the first.
    """
    image_files, mask_files = files_by_stem(images), files_by_stem(masks)
    image_files = {k[: len(k) - len(image_suffix)]: v for k, v in image_files.items() if k.endswith(image_suffix)}
    if names is not None:
        absent = [n for n in names if n not in image_files]
        if absent:
            raise FileNotFoundError(
                f"{len(absent)} of {len(names)} listed images are not in {str(images)!r}, such as {absent[0]!r}"
            )
        image_files = {n: image_files[n] for n in names}
    if not image_files:
        raise FileNotFoundError(
            f"there are no images in {str(images)!r}" + (f" that end in {image_suffix!r}" if image_suffix else "")
        )
    if mask_suffix is None:
        mask_suffix = guess_suffix(list(image_files), list(mask_files))
    return [(path, mask_files.get(stem + mask_suffix)) for stem, path in image_files.items()]


def files_by_stem(folder: str | os.PathLike) -> dict[str, str]:
    """Image files at any depth: path relative to the folder without its ending, with forward slashes -> file, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two files differ in their ending only.
    """
    root = os.fspath(folder)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"there is no folder {root!r}")
    found: dict[str, str] = {}
    for directory, _, files in os.walk(root, followlinks=True):
        for file in files:
            if not is_image_file(file):
                continue
            path = os.path.join(directory, file)
            stem = os.path.splitext(os.path.relpath(path, root))[0].replace(os.sep, "/")
            if stem in found:
                raise ValueError(f"{found[stem]!r} and {path!r} have the same name; one of them has to go")
            found[stem] = path
    return dict(sorted(found.items()))


def guess_suffix(images: Sequence[str], masks: Sequence[str]) -> str:
    """What most of the first images' masks have at the end of their names beyond the images' own."""
    known = set(masks)
    if any(stem in known for stem in images[:_GUESSED_FROM]):
        return ""
    ordered = sorted(known)
    rest: Counter[str] = Counter()
    for stem in images[:_GUESSED_FROM]:
        # Names that go on with a digit are another image's.
        rest.update(m[len(stem) :] for m in ordered if m.startswith(stem) and not m[len(stem) :][:1].isdigit())
    return rest.most_common(1)[0][0] if rest else ""
