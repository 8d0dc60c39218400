"""Pascal VOC: one XML file of objects an image.

Format: M. Everingham et al., "The Pascal Visual Object Classes Challenge", development kit, section 4.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from zoo.data.coco import AnnotationError
from zoo.data.detection import DetectionDataset, ObjectTable
from zoo.data.loading import IMAGE_EXTENSIONS
from zoo.data.text_lines import read_lines
from zoo.registry import did_you_mean

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc(path: str | os.PathLike) -> dict[str, Any]:
    """One XML file: ``filename``, ``size`` (height, width) and ``objects``, dicts of ``name``, ``box`` (x, y, w, h) and
    ``difficult``.

    VOC counts pixels from 1 and means the last pixel of a box; here a box of pixels 1 to 10 is x=0, w=10.

    Raises:
        AnnotationError: it is no XML, or an object has no name or box; the message names the file.
    """
    text = Path(path).read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise AnnotationError(f"{path} declares entities; annotations need none")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise AnnotationError(f"{path} is no XML: {error}") from None
    size = root.find("size")
    objects = []
    for number, node in enumerate(root.iter("object")):
        name, box = (node.findtext("name") or "").strip(), node.find("bndbox")
        try:
            if not name or box is None:
                raise ValueError
            x0, y0, x1, y1 = (float(box.findtext(k) or "") for k in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            raise AnnotationError(
                f"{path}: object {number} ({name!r}) needs a name and a bndbox of 4 numbers"
            ) from None
        difficult = (node.findtext("difficult") or "0").strip() not in ("", "0")
        objects.append({"name": name, "box": [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1], "difficult": difficult})
    height, width = (int(float((size.findtext(k) if size is not None else None) or 0)) for k in ("height", "width"))
    return {"filename": (root.findtext("filename") or "").strip(), "size": (height, width), "objects": objects}


def voc_files(root: Path, split: str | None = None) -> list[Path]:
    """The XML files of a split (``ImageSets/Main/<split>.txt``), or all of them.

    Raises:
        FileNotFoundError: there is no folder of XML files, no such list, or a listed file is missing.
    """
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    if split is not None:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            raise FileNotFoundError(f"there is no list {listed} of the split {split!r}")
        files = [folder / f"{line.split()[0]}.xml" for line in read_lines(listed)]
        missing = [str(f) for f in files if not f.is_file()]
        if missing:
            raise FileNotFoundError(f"{listed} names {len(missing)} files that are missing: {', '.join(missing[:3])}")
        return files
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise FileNotFoundError(f"there are no XML files in {folder}")
    return files


def voc_image(root: Path, file: Path, name: str) -> Path:
    """The image of an XML file: by the name in it, or its own, in ``JPEGImages``, ``images`` or beside it."""
    places = [p for p in (root / "JPEGImages", root / "images", file.parent, root) if p.is_dir()]
    names = [name] if name else []
    names += [f"{file.stem}{ending}" for ending in (".jpg", ".png", *IMAGE_EXTENSIONS)]
    return next((p / n for n in names for p in places if (p / n).is_file()), places[0] / names[0])


class VocDetection(DetectionDataset):
    """Images and boxes of a folder in Pascal VOC's layout (``Annotations``, ``JPEGImages``, ``ImageSets/Main``), or of
    XML files beside their images.

    Objects marked as difficult are no targets, and like crowd regions the metrics ignore what is found there.

    Args:
        root: the folder.
        split: a list of ``ImageSets/Main``; None for all.
        classes: class names; by default the names that occur, sorted (VOC's own 20 in their order where they are).
        **common: ``transform``, ``seed``, ``on_error``, ``keep_empty``; see
            :class:`zoo.data.detection.DetectionDataset`.

    Raises:
        FileNotFoundError: there are no XML files, or no such split.
        AnnotationError: a file cannot be read, or has an object of no class.
    """

    def __init__(
        self, root: str | os.PathLike, split: str | None = None, *, classes: Sequence[str] | None = None, **common: Any
    ):
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {str(root)!r}")
        files = voc_files(root, split)
        read = [read_voc(f) for f in files]
        if classes is None:
            found = sorted({o["name"] for r in read for o in r["objects"]})
            classes = VOC_CLASSES if found and set(found) <= set(VOC_CLASSES) and len(found) > 10 else found
        index = {name: i for i, name in enumerate(classes)}
        records = []
        for number, (file, content) in enumerate(zip(files, read)):
            objects = []
            for o in content["objects"]:
                if o["name"] not in index:
                    raise AnnotationError(
                        f"{file}: {o['name']!r} is none of the classes{did_you_mean(o['name'], index)}"
                    )
                objects.append({"box": o["box"], "label": index[o["name"]], "crowd": o["difficult"]})
            path = voc_image(root, file, content["filename"])
            records.append({"path": str(path), "id": number + 1, "size": content["size"], "objects": objects})
        super().__init__(ObjectTable.build(records), list(classes), range(1, len(classes) + 1), **common)
