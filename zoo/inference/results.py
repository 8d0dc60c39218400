"""Typed results: what every task's result can do, and a list of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from zoo.files import write_file

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image


@dataclass
class Result:
    """What a model says of one image; a task's class adds its fields and defines the methods that raise here.

    Attributes:
        source: path, address, or "image 3" for the fourth of a list.
        frame: number of the frame in its video or animation, or None.
        size: height and width of the image in pixels, upright; None where it could not be read.
        error: set, and the task's fields left empty, for an image that could not be read.
    """

    source: str
    frame: int | None = None
    size: tuple[int, int] | None = None
    error: str | None = None
    _image: np.ndarray | None = field(default=None, repr=False, compare=False)
    _load: Callable[[], np.ndarray] | None = field(default=None, repr=False, compare=False)

    @property
    def image(self) -> np.ndarray:
        """The image, RGB uint8 ``[H, W, 3]``; read again where it was not kept.

        Raises:
            ValueError: it was not kept and cannot be read again (a video's frame, a generator's image, a broken file).
        """
        if self.error is not None:
            raise ValueError(f"{self.source} has no image: {self.error}")
        if self._image is None and self._load is None:
            raise ValueError(
                f"the image of {self.source} was not kept; predict with keep_images=True to draw frames of videos and "
                f"images out of generators"
            )
        return self._image if self._image is not None else self._load()  # type: ignore[misc]

    def head(self) -> dict[str, Any]:
        """The JSON-ready fields that all tasks share; ``frame`` and ``error`` only where there is one."""
        fields: dict[str, Any] = {"source": self.source}
        if self.frame is not None:
            fields["frame"] = self.frame
        if self.error is not None:
            fields["error"] = self.error
        return fields

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the image."""
        return self.head() if self.error is not None else {**self.head(), **self.body()}

    def to_json(self) -> str:
        """One line of JSON: :meth:`to_dict`."""
        return json.dumps(self.to_dict())

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Entries of a COCO results file; none for an image that could not be read."""
        return [] if self.error is not None else self.coco_entries(image_id)

    def to_dataframe(self) -> pandas.DataFrame:
        """A table with one row a finding, see :meth:`Results.to_dataframe`."""
        return Results([self]).to_dataframe()

    def show(self) -> None:
        """Open the drawn picture in the system's viewer (in a notebook, naming the result shows it)."""
        self.draw().show()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the drawn picture (``.png``, ``.jpg`` ...) or, as ``.json``, :meth:`to_dict`; atomically."""
        import io

        from PIL import Image

        path = Path(path)
        if path.suffix.lower() == ".json":
            return write_file(path, self.to_json() + "\n")
        formats = Image.registered_extensions()
        if path.suffix.lower() not in formats:
            raise ValueError(f"{path}: accepted are file names that end in .json, .png, .jpg and the like")
        content = io.BytesIO()
        self.draw().save(content, formats[path.suffix.lower()])
        return write_file(path, content.getvalue())

    def _repr_png_(self) -> bytes | None:
        import io

        try:
            picture = self.draw()
        except ValueError:  # no image to draw on: the notebook shows the text
            return None
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()

    # -- what a task defines ---------------------------------------------------------------------------------------

    def body(self) -> dict[str, Any]:
        """The task's fields, JSON-ready."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """The task's findings as flat rows, best first."""
        raise NotImplementedError

    def coco_entries(self, image_id: int) -> list[dict[str, Any]]:
        """The task's findings as COCO result entries."""
        raise NotImplementedError

    def draw(self) -> Image:
        """The image with what was found, as a PIL image.

        Raises:
            ValueError: the image is not there any more, see :attr:`image`.
        """
        raise NotImplementedError


T = TypeVar("T", bound=Result)


class Results(list[T]):
    """Results of several images, in the order of the images."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """:meth:`Result.to_dict` of each."""
        return [r.to_dict() for r in self]

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """JSON lines, one an image; written to ``path`` too, atomically, if it is given."""
        text = "".join(r.to_json() + "\n" for r in self)
        if path is not None:
            write_file(path, text)
        return text

    def to_coco(
        self, image_ids: Mapping[str, int] | None = None, path: str | os.PathLike[str] | None = None
    ) -> list[dict[str, Any]]:
        """The list that a COCO results file holds.

        Args:
            image_ids: source -> image id of the annotations; positions in this list by default.
            path: file to write it to as well, atomically.

        Raises:
            KeyError: a source has no id.
        """
        entries: list[dict[str, Any]] = []
        for position, result in enumerate(self):
            if image_ids is not None and result.source not in image_ids:
                raise KeyError(f"image_ids has no id for {result.source!r}")
            entries += result.to_coco(position if image_ids is None else image_ids[result.source])
        if path is not None:
            write_file(path, json.dumps(entries) + "\n")
        return entries

    def to_dataframe(self) -> pandas.DataFrame:
        """A pandas table with a row a finding; columns ``source``, ``frame``, ``error`` and the task's.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas (or use to_dicts)") from error
        rows: list[dict[str, Any]] = []
        for r in self:
            head = {"source": r.source, "frame": r.frame, "error": r.error}
            rows += [{**head, **row} for row in (r.rows() if r.error is None else [{}])]
        return pandas.DataFrame(rows)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``predictions.jsonl`` and a picture of each image into a folder, which is made if needed.

        Raises:
            ValueError: an image is not there any more, see :attr:`Result.image`.
        """
        folder = Path(folder)
        for number, result in enumerate(self):
            if result.error is None:
                result.save(folder / picture_name(number, result))
        self.to_json(folder / "predictions.jsonl")
        return folder

    @property
    def errors(self) -> list[T]:
        """Those whose image could not be read."""
        return [r for r in self if r.error is not None]


def picture_name(number: int, result: Result) -> str:
    """A file name for a result's picture that no other of the same run has."""
    stem = Path(result.source.split("?")[0]).stem
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)[:80]
    return f"{number:05d}_{safe}.png"


def collect(results: Iterable[T]) -> Results[T]:
    """All of a stream."""
    return Results(results)
