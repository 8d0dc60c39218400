"""Images of any kind as a stream of named items, each of which can be decoded in any thread."""

from __future__ import annotations

import glob
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from zoo.data.loading import ImageReadError, decode_frames, decode_image, is_image_file
from zoo.inference.arrays import array_to_rgb, split_batch, tensor_to_rgb

#: File name endings that are taken for videos.
VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
#: Frames of a video that are decoded before they are asked for.
_AHEAD = 8


@dataclass(frozen=True)
class SourceOptions:
    """How sources are read.

    Attributes:
        allow_urls: fetch ``http`` and ``https`` addresses; refused otherwise.
        url_timeout: seconds for the whole of a download.
        url_max_bytes: size above which a download is given up.
        frames: "first" or "all" frames of animated images and pages of TIFF files; videos always give all.
        video_stride: take every n-th frame of a video.
    """

    allow_urls: bool = False
    url_timeout: float = 20.0
    url_max_bytes: int = 64 * 2**20
    frames: str = "first"
    video_stride: int = 1

    def __post_init__(self) -> None:
        if self.frames not in ("first", "all"):
            raise ValueError(f"frames={self.frames!r}: accepted are 'first' and 'all'")
        for name in ("url_timeout", "url_max_bytes", "video_stride"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: accepted are numbers above 0")


@dataclass(frozen=True)
class Item:
    """One image to come.

    Attributes:
        source: its name in results and messages.
        load: gives RGB uint8 ``[H, W, 3]``; may be called in any thread, and raises ImageReadError.
        frame: number in its video or animation, or None.
        again: whether ``load`` can be called a second time at no cost in memory.
    """

    source: str
    load: Callable[[], np.ndarray]
    frame: int | None = None
    again: bool = True


def expand(images: Any, options: SourceOptions | None = None) -> Iterator[Item]:
    """Items of what a user may give.

    Accepts a path of an image or a video, a folder (its images, sorted, with sub-folders), a glob pattern, an address,
    the bytes of an image file, a PIL image, a numpy array or a tensor (:mod:`zoo.inference.arrays`), or an iterable of
    these, which is read as the items are asked for.

    Raises:
        FileNotFoundError: a path or pattern matches nothing, or a folder holds no images.
        ImageReadError: a video cannot be opened.
        ValueError: an address without ``allow_urls``, or of a scheme other than http and https.
        TypeError: something that is no image.
    """
    yield from _expand(images, options or SourceOptions(), "image")


def count(images: Any) -> int | None:
    """Number of items, where it is known without decoding anything; else None."""
    if isinstance(images, str | os.PathLike):
        text = os.fspath(images)
        if _scheme(text) or text.lower().endswith(VIDEO_EXTENSIONS):
            return 1 if _scheme(text) else None
        return len(find_files(text))
    if isinstance(images, list | tuple):
        counts = [count(i) for i in images]
        return None if None in counts else sum(c for c in counts if c is not None)
    if hasattr(images, "ndim"):
        return int(images.shape[0]) if images.ndim == 4 else 1
    return 1 if isinstance(images, bytes | Image.Image) else None


def _expand(value: Any, options: SourceOptions, name: str) -> Iterator[Item]:
    if isinstance(value, str | os.PathLike):
        yield from _expand_path(os.fspath(value), options)
    elif isinstance(value, bytes | bytearray):
        yield from _encoded(lambda: bytes(value), name, options)
    elif isinstance(value, Image.Image):
        yield from _pil(value, name, options)
    elif isinstance(value, np.ndarray) or hasattr(value, "detach"):
        convert = array_to_rgb if isinstance(value, np.ndarray) else tensor_to_rgb
        many = split_batch(value)
        if many is None:
            yield Item(name, partial(convert, value, name))
        else:
            for i, one in enumerate(many):
                yield Item(f"{name}[{i}]", partial(convert, one, f"{name}[{i}]"))
    elif isinstance(value, Iterable) and not isinstance(value, dict):
        # What comes out of a generator may be more than fits into memory, so results do not hold on to it.
        passing = not isinstance(value, list | tuple)
        for i, one in enumerate(value):
            path = isinstance(one, str | os.PathLike)
            for item in _expand(one, options, f"{name} {i}"):
                yield replace(item, again=False) if passing and not path else item
    else:
        raise TypeError(
            f"{name} is a {type(value).__name__}; accepted are paths, addresses, bytes of image files, PIL images, "
            f"numpy arrays, tensors, and iterables of these"
        )


def _expand_path(text: str, options: SourceOptions) -> Iterator[Item]:
    scheme = _scheme(text)
    if scheme:
        if scheme not in ("http", "https"):
            raise ValueError(f"{text!r} has the scheme {scheme!r}; accepted are http and https")
        if not options.allow_urls:
            raise ValueError(f"{text!r} is an address; pass allow_urls=True (--allow-urls) to have it fetched")
        yield from _encoded(partial(fetch, text, options.url_timeout, options.url_max_bytes), text, options)
        return
    for path in find_files(text):
        if path.name.lower().endswith(VIDEO_EXTENSIONS):
            yield from _video(path, options)
        else:
            yield from _encoded(partial(_read, path), str(path), options)


def _scheme(text: str) -> str:
    """Scheme of an address; empty for paths, drive letters included."""
    return urlsplit(text).scheme.lower() if "://" in text else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageReadError(f"cannot read image {str(path)!r}: {error.strerror or error}", str(path)) from error


def _encoded(read: Callable[[], bytes], name: str, options: SourceOptions) -> Iterator[Item]:
    """Items of an image file's content: one, or with ``frames="all"`` one a frame."""
    if options.frames == "first":
        yield Item(name, lambda: decode_image(read(), name))
        return
    try:
        data = read()
        yield from _frames(decode_frames(data, name), name)
    except ImageReadError as error:
        yield Item(name, _raiser(error))


def _frames(frames: Iterator[np.ndarray], name: str) -> Iterator[Item]:
    """One item a frame, without a frame number where there is a single one."""
    first = next(frames)
    second = next(frames, None)
    yield Item(name, lambda: first, frame=None if second is None else 0, again=False)
    number = 1
    while second is not None:
        yield Item(name, partial(_same, second), frame=number, again=False)
        second = next(frames, None)
        number += 1


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _raiser(error: Exception) -> Callable[[], np.ndarray]:
    def fail() -> np.ndarray:
        raise error

    return fail


def _pil(image: Image.Image, name: str, options: SourceOptions) -> Iterator[Item]:
    from zoo.data.loading import pil_to_rgb

    file = getattr(image, "filename", None)
    name = str(file) if file else name
    count = getattr(image, "n_frames", 1) if options.frames == "all" and image.format != "MPO" else 1
    if count == 1:
        # A copy of the reference only: decoding a lazily opened image happens in the thread that loads it.
        yield Item(name, partial(pil_to_rgb, image, name))
        return
    for number in range(count):
        image.seek(number)
        yield Item(name, partial(_same, pil_to_rgb(image, name)), frame=number, again=False)


def _video(path: Path, options: SourceOptions) -> Iterator[Item]:
    """Frames of a video in order, decoded ahead by one thread of their own."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ImageReadError(f"cannot read video {str(path)!r}: OpenCV knows no decoder for it", str(path))
    worker = ThreadPoolExecutor(1, thread_name_prefix="zoo-video")

    def following() -> np.ndarray | None:
        for _ in range(options.video_stride - 1 if started else 0):
            if not capture.grab():
                return None
        started.append(True)
        good, bgr = capture.read()
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB) if good else None

    started: list[bool] = []
    number = 0
    try:
        ahead = [worker.submit(following) for _ in range(_AHEAD)]
        while (frame := ahead.pop(0).result()) is not None:
            ahead.append(worker.submit(following))
            yield Item(str(path), partial(_same, frame), frame=number, again=False)
            number += options.video_stride
        if number == 0:
            raise ImageReadError(f"cannot read video {str(path)!r}: it has no frames that can be decoded", str(path))
    finally:
        worker.shutdown(wait=True, cancel_futures=True)
        capture.release()


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https addresses only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urlsplit(newurl).scheme.lower()
        if scheme not in ("http", "https"):
            raise urllib.error.URLError(f"it redirects to the scheme {scheme!r}; accepted are http and https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, timeout: float, max_bytes: int) -> bytes:
    """Content of an ``http`` or ``https`` address.

    Args:
        timeout: seconds for all of it, connection included.
        max_bytes: size above which it is given up.

    Raises:
        ImageReadError: it cannot be had, takes too long, or is too large; the message has the address.
    """

    def error(reason: object) -> ImageReadError:
        return ImageReadError(f"cannot read image {url!r}: {reason}", url)

    end = time.monotonic() + timeout
    slow = f"not complete after {timeout:g} seconds"
    opener = urllib.request.build_opener(_HttpOnly)
    request = urllib.request.Request(url, headers={"User-Agent": "attnzoo"})
    try:
        with opener.open(request, timeout=timeout) as answer:
            size = answer.headers.get("Content-Length", "")
            if size.isdigit() and int(size) > max_bytes:
                raise error(f"it has {size} bytes, more than url_max_bytes={max_bytes}")
            parts, total = [], 0
            # read1 gives what has arrived, so that a server that sends a byte now and then cannot hold us for ever
            while chunk := answer.read1(1 << 16):
                total += len(chunk)
                if total > max_bytes:
                    raise error(f"it has more than url_max_bytes={max_bytes} bytes")
                if time.monotonic() > end:
                    raise error(slow)
                parts.append(chunk)
            if size.isdigit() and total < int(size):
                raise error(f"the connection ended after {total} of {size} bytes")
    except ImageReadError:
        raise
    except TimeoutError as reason:
        raise error(slow) from reason
    except urllib.error.HTTPError as reason:
        raise error(f"the server answered {reason.code} {reason.reason}") from reason
    except urllib.error.URLError as reason:
        raise error(slow if isinstance(reason.reason, TimeoutError) else reason.reason) from reason
    except (OSError, ValueError) as reason:  # http.client's errors are ValueError's or OSError's children
        raise error(f"{type(reason).__name__}: {reason}") from reason
    return b"".join(parts)


def find_files(text: str) -> list[Path]:
    """Files behind a path, a folder or a glob pattern, sorted.

    Raises:
        FileNotFoundError: there are none.
    """
    path = Path(text)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if is_image_file(p))
        if not found:
            raise FileNotFoundError(f"the folder {text} holds no images")
        return found
    if path.exists():
        return [path]
    if glob.has_magic(text):
        found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if found:
            return found
        raise FileNotFoundError(f"no file matches {text!r}")
    raise FileNotFoundError(f"no such file: {text}")
