"""Downloads that resume, end in a bounded time, and give a file its name only when it is verified."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import __version__
from zoo.weights.errors import CheckpointError

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Limits:
    """How long a download may take and how large it may be.

    Args:
        timeout: seconds to connect, and to wait for each piece.
        answer: seconds until the answer's headers are complete, redirects included.
        window: seconds over which the speed is measured.
        slowest: bytes per second, on average over the window, below which a download is given up.
        attempts: tries in all, after errors that pass.
        backoff: seconds before the second try; doubled for each further one.
        largest: bytes that a file of unknown size may have.
        lock: seconds to wait for another process that downloads the same file.
    """

    timeout: float = 20.0
    answer: float = 60.0
    window: float = 60.0
    slowest: float = 1024.0
    attempts: int = 4
    backoff: float = 1.0
    largest: int = 32 << 30
    lock: float = 3600.0


class _Transient(Exception):
    """An error after which another try makes sense; ``wait`` are seconds that the server asks for."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


def download(
    url: str,
    to: str | os.PathLike[str],
    *,
    sha256: str | None,
    size: int | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a file; it gets its name when its size and sha256 are right.

    What an interrupted download leaves (``.<name>.part``) is continued by the next. Proxies are taken from the usual
    environment variables. Processes that want one file wait for the first to get it.

    Args:
        url: http or https; redirects may lead to these only, and not from https to http.
        to: where the file goes.
        sha256: expected hash; None for unverified, which is said in a warning.
        size: expected bytes, if known.
        limits: see :class:`Limits`.
        progress: called with the bytes so far and the bytes in all (None if unknown); by default a line on a terminal.

    Raises:
        ValueError: the address is no http or https.
        ConnectionError: the server cannot be reached, is too slow or answers with an error.
        CheckpointError: the content has another size or sha256; nothing of it is kept.
    """
    from filelock import FileLock, Timeout

    to, limits = Path(to), limits or Limits()
    _check_scheme(url, None)
    to.parent.mkdir(parents=True, exist_ok=True)
    lock = to.with_name(f".{to.name}.lock")
    if to.is_dir():
        raise IsADirectoryError(f"{to} is a folder; a file is to be written there")
    try:
        with FileLock(lock, timeout=limits.lock):
            if to.is_file() and (sha256 is None or sha256_of(to) == sha256):
                return to  # another process was faster
            part = to.with_name(f".{to.name}.part")
            try:
                _fetch(url, part, size, limits, progress or _terminal(to.name))
            except CheckpointError:
                part.unlink(missing_ok=True)
                raise
            except ConnectionError as error:
                raise ConnectionError(f"{error}; the file can be put at {to} by hand") from error
            _verify(url, part, sha256, size)
            os.replace(part, to)
            _notes(part).unlink(missing_ok=True)
    except Timeout:
        raise ConnectionError(
            f"another process has been downloading {to} for more than {limits.lock:.0f} s; end it, or delete {lock}"
        ) from None
    return to


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _verify(url: str, part: Path, sha256: str | None, size: int | None) -> None:
    found = part.stat().st_size
    with part.open("rb") as file:
        start = file.read(15).lstrip().lower()
    wrong = None
    if size is not None and found != size:
        wrong = f"{url} has {found:,} bytes instead of {size:,}"
    elif sha256 is not None and (digest := sha256_of(part)) != sha256:
        wrong = f"{url} has sha256 {digest} instead of {sha256}"
    elif found == 0:
        wrong = f"{url} is empty"
    elif start.startswith((b"<!doctype", b"<html")):
        wrong = f"{url} is a web page and no checkpoint; open it in a browser and download the file by hand"
    if wrong:
        part.unlink()
        _notes(part).unlink(missing_ok=True)
        raise CheckpointError(f"{wrong}; it was not kept")
    if sha256 is None:
        warnings.warn(f"{url}: unverified, no sha256 is recorded for it", stacklevel=3)


# -- one file -----------------------------------------------------------------------------------------------------


def _fetch(url: str, part: Path, size: int | None, limits: Limits, progress: Progress) -> None:
    for attempt in range(1, limits.attempts + 1):
        try:
            return _attempt(url, part, size, limits, progress)
        except _Transient as error:
            if attempt == limits.attempts:
                kept = f"; {part.stat().st_size:,} bytes are kept and the next try goes on" if part.is_file() else ""
                raise ConnectionError(f"{url} cannot be downloaded ({attempt} tries): {error}{kept}") from error
            time.sleep(min(max(limits.backoff * 2 ** (attempt - 1), error.wait), 60.0))


def _attempt(url: str, part: Path, size: int | None, limits: Limits, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    tag = _recorded_tag(part, url) if have else None
    headers = {"User-Agent": f"attnzoo/{__version__}", "Accept-Encoding": "identity"}
    if have and tag:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    watch = _Watch(url)
    with _translated(), watch.limit(limits.answer):
        try:
            answer = _opener(watch).open(urllib.request.Request(url, headers=headers), timeout=limits.timeout)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:
                raise
            error.close()
            part.unlink()  # nothing follows what is here, and it was not verified: it is of another file
            raise _Transient("the server's file is another one now") from error
    with answer:
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise ConnectionError(f"{url} is sent in the encoding {answer.headers['Content-Encoding']!r}, not as it is")
        start = _start(answer, have) if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        largest = size if size is not None else limits.largest
        if total is not None and total > largest:
            raise CheckpointError(f"{url} has {total:,} bytes; {largest:,} are expected at most")
        room = shutil.disk_usage(part.parent).free
        if total is not None and total - start > room:
            raise OSError(f"{url} has {total:,} bytes, and {room:,} are free for {part.parent}")
        _record_tag(part, url, answer)
        with _open_part(part, start) as file, _translated():
            _copy(answer, file, start, total, largest, url, limits, progress)


def _copy(
    answer: Any, file: Any, done: int, total: int | None, largest: int, url: str, limits: Limits, progress: Progress
) -> None:
    since, at_since = time.monotonic(), done
    while True:
        chunk = answer.read1(1 << 16)
        if not chunk:
            break
        done += len(chunk)
        if done > largest:
            raise CheckpointError(f"{url} goes on beyond the {largest:,} bytes that are expected at most")
        file.write(chunk)
        progress(done, total)
        now = time.monotonic()
        if now - since >= limits.window:
            if done - at_since < limits.slowest * (now - since):
                raise ConnectionError(
                    f"{url} sends less than {limits.slowest:g} bytes a second and was given up; "
                    f"{done:,} bytes are kept and the next try goes on"
                )
            since, at_since = now, done
    if total is not None and done < total:
        raise _Transient(f"the connection ended after {done:,} of {total:,} bytes")


def _start(answer: Any, have: int) -> int:
    """Where a partial answer begins."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != have:
        raise _Transient(f"the server continues at another place ({answer.headers.get('Content-Range')})")
    return have


def _open_part(part: Path, start: int) -> Any:
    # never through a link, which could lead out of the cache
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(part, flags, 0o666), "wb")
    file.truncate(start)
    file.seek(start)
    return file


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _record_tag(part: Path, url: str, answer: Any) -> None:
    """Note what identifies the server's file, so that a later try continues this very file."""
    tag = answer.headers.get("ETag")
    tag = answer.headers.get("Last-Modified") if tag is None or tag.startswith("W/") else tag
    notes = _notes(part)
    notes.unlink(missing_ok=True)  # a link would be followed
    notes.write_text(json.dumps({"url": url, "tag": tag}), encoding="utf-8")


def _recorded_tag(part: Path, url: str) -> str | None:
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
        return notes["tag"] if notes["url"] == url and isinstance(notes["tag"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of urllib and of sockets as transient ones or as ConnectionError."""
    try:
        yield
    except CheckpointError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (408, 425, 429) or error.code >= 500:
                wait = error.headers.get("Retry-After", "0") if error.headers else "0"
                raise _Transient(f"HTTP {error.code} {error.reason}", float(wait) if wait.isdigit() else 0.0) from error
            raise ConnectionError(f"{error.url} answers HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, _Refused):
            raise ConnectionError(str(error.reason)) from error
        raise _Transient(str(error.reason)) from error
    except (TimeoutError, http.client.HTTPException, ConnectionError) as error:
        if type(error) is ConnectionError:
            raise
        raise _Transient(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


# -- connections --------------------------------------------------------------------------------------------------


class _Refused(Exception):
    pass


def _check_scheme(url: str, before: str | None) -> None:
    scheme = urllib.parse.urlsplit(url).scheme.lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"{url[:200]}: only addresses of http and https are downloaded from")
    if before is not None and urllib.parse.urlsplit(before).scheme.lower() == "https" and scheme == "http":
        raise ValueError(f"{before[:200]} leads to the unprotected address {url[:200]}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 8

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        try:
            _check_scheme(newurl, req.full_url)
        except ValueError as error:
            raise urllib.error.URLError(_Refused(f"{req.full_url} redirects: {error}")) from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req, fp, code, msg, headers):  # type: ignore[no-untyped-def]
        # checked here too: urllib has a message of its own for other schemes
        target = headers.get("location") or headers.get("uri")
        if target:
            self.redirect_request(req, fp, code, msg, headers, urllib.parse.urljoin(req.full_url, target))
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Watch:
    """Ends a connection whose answer takes too long, however steadily its pieces arrive."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sockets: list[socket.socket] = []
        self.expired = False

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        cause: Exception | None = None
        try:
            yield
        except Exception as error:
            cause = error
            if not self.expired:
                raise
        finally:
            timer.cancel()
        if self.expired:  # headers that were cut off look complete
            raise ConnectionError(f"{self.url} gives no complete answer within {seconds:g} s") from cause

    def _end(self) -> None:
        self.expired = True
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class _Watched:
    """Mixed into http.client's connections: tells the watch of its socket."""

    watch: _Watch

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.watch.sockets.append(self.sock)  # type: ignore[attr-defined]
        if self.watch.expired:
            raise TimeoutError


def _watched(kind: type, watch: _Watch) -> Any:
    return type(kind.__name__, (_Watched, kind), {"watch": watch})


class _Http(urllib.request.HTTPHandler):
    def __init__(self, watch: _Watch):
        super().__init__()
        self._kind = _watched(http.client.HTTPConnection, watch)

    def http_open(self, req):  # type: ignore[no-untyped-def]
        return self.do_open(self._kind, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, watch: _Watch):
        super().__init__()
        self._kind = _watched(http.client.HTTPSConnection, watch)

    def https_open(self, req):  # type: ignore[no-untyped-def]
        return self.do_open(self._kind, req)  # with the default context, which verifies certificates


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(watch),
        _Https(watch),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _terminal(name: str) -> Progress:
    """Progress on a terminal's standard error; silent elsewhere."""
    if not sys.stderr.isatty():
        return lambda done, total: None
    last = [0.0]

    def show(done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - last[0] < 0.2 and done != total:
            return
        last[0] = now
        share = f"{done / total:4.0%} of {total / 2**20:,.0f} MiB" if total else f"{done / 2**20:,.0f} MiB"
        print(f"\r{name}: {share}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
