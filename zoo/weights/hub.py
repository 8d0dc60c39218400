"""From a model's name, an address or a path to a weights file on this disk."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
import warnings
from pathlib import Path

from zoo.weights.download import Limits, Progress, download, sha256_of
from zoo.weights.errors import CheckpointError
from zoo.weights.index import ModelInfo, home, load_index, local_weights, model_info


class WeightsUnavailableError(LookupError):
    """No weights can be had for a model; the message says what to do instead."""


def is_offline() -> bool:
    """Whether ``ZOO_OFFLINE`` (or ``HF_HUB_OFFLINE``) is set: nothing is downloaded then."""
    return any(os.environ.get(v, "").lower() in ("1", "true", "yes", "on") for v in ("ZOO_OFFLINE", "HF_HUB_OFFLINE"))


def resolve_weights(
    source: str | os.PathLike[str], *, limits: Limits | None = None, progress: Progress | None = None
) -> Path:
    """The weights file that ``source`` stands for, downloaded into :func:`zoo.weights.index.home` where it has to be.

    Args:
        source: the path of a file; a model's name; an address of http or https, with ``#sha256=...`` to have it
            verified; or ``hf:owner/repository[@revision][:file]`` of the Hugging Face Hub.
        limits: see :class:`zoo.weights.download.Limits`.
        progress: see :func:`zoo.weights.download.download`.

    Raises:
        WeightsUnavailableError: nothing can be fetched (no weights are known, no direct address, offline); the message
            says which file to put where.
        ConnectionError: the download failed.
        CheckpointError: the file does not have the recorded size or sha256.
    """
    text = os.fspath(source)
    if text.startswith("hf:"):
        from zoo.weights.hf import fetch

        return fetch(text[3:])
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return _of_address(text, limits, progress)
    info = model_info(text)
    if info is not None:
        return _of_model(info, limits, progress)
    if Path(text).is_file():
        return Path(text)
    from zoo.registry import did_you_mean

    raise WeightsUnavailableError(
        f"there are no weights for {text}: it is no file and no model of the index{did_you_mean(text, load_index())}"
    )


def _of_model(info: ModelInfo, limits: Limits | None, progress: Progress | None) -> Path:
    if info.weights_status == "none":
        raise WeightsUnavailableError(
            f"there are no weights for {info.name}; pass pretrained=False, or load your own file"
        )
    path = local_weights(info)
    expected = info.weights.get("sha256")
    if path is not None:
        if expected is None:
            warnings.warn(f"{path}: unverified, no sha256 is recorded for {info.name}", stacklevel=3)
        elif sha256_of(path) != expected:
            raise CheckpointError(f"{path} has another sha256 than the {expected} recorded for {info.name}; delete it")
        return path
    url, file = info.weights.get("url"), info.weights.get("file")
    if not url or not file:
        raise WeightsUnavailableError(
            f"the weights of {info.name} are published by its authors at {url or 'no recorded address'}, as a page "
            f"that no program can download from; download the file by hand and load it with "
            f"zoo.load_weights(model, file), which translates the authors' keys"
        )
    to = home() / "weights" / safe_name(file)
    _require_online(url, to)
    return download(url, to, sha256=expected, size=info.weights.get("size"), limits=limits, progress=progress)


def _of_address(url: str, limits: Limits | None, progress: Progress | None) -> Path:
    address, _, fragment = url.partition("#")
    sha256 = None
    if fragment:
        match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
        if match is None:
            raise ValueError(f"{url}: what follows # has to be sha256= and 64 hexadecimal digits")
        sha256 = match[1]
    name = safe_name(urllib.parse.unquote(urllib.parse.urlsplit(address).path))
    to = home() / "downloads" / hashlib.sha256(address.encode()).hexdigest()[:16] / name
    if to.is_file() and (sha256 is None or sha256_of(to) == sha256):
        return to
    _require_online(address, to)
    return download(address, to, sha256=sha256, limits=limits, progress=progress)


def _require_online(url: str, to: Path) -> None:
    if is_offline():
        raise WeightsUnavailableError(
            f"{to.name} is not on this machine, and ZOO_OFFLINE forbids to download it: "
            f"get {url} on another machine and put the file at {to}"
        )


def safe_name(text: str) -> str:
    """A plain file name from the last part of a path: letters, digits, dot, dash and underscore, 100 at most."""
    last = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", last).lstrip(".")[-100:]
    return name or "weights"
