"""From a model's name to a weights file on this disk: the checkout, the cache, or a verified download."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from zoo.files import save_atomically
from zoo.weights.checkpoint import CheckpointError
from zoo.weights.index import home, local_weights, model_info


class WeightsUnavailableError(LookupError):
    """No weights can be had for a model; the message says what to do instead."""


def resolve_weights(name: str) -> Path:
    """The weights file of a model, downloaded into :func:`home` if the index says from where.

    Raises:
        WeightsUnavailableError: the index knows no weights that can be fetched.
        CheckpointError: the file does not have the recorded sha256.
    """
    info = model_info(name)
    if info is None or info.weights_status == "none":
        raise WeightsUnavailableError(f"there are no weights for {name}; pass pretrained=False, or load your own file")
    path = local_weights(info)
    expected = info.weights.get("sha256")
    if path is None:
        url, file = info.weights.get("url"), info.weights.get("file")
        if not url or not file or not expected:
            raise WeightsUnavailableError(
                f"the weights of {name} are published by its authors at {url or 'no recorded address'}, as a page that "
                f"no program can download from and without a recorded checksum; download the file by hand and load it "
                f"with zoo.load_weights(model, file), which translates the authors' keys"
            )
        path = download(url, home() / "weights" / file, sha256=expected)
    elif expected and sha256_of(path) != expected:
        raise CheckpointError(f"{path} has another sha256 than the {expected} recorded for {name}; delete it")
    return path


def download(url: str, to: Path, *, sha256: str, timeout: float = 30.0) -> Path:
    """Download a file; it gets its name only when its sha256 is right.

    Raises:
        ConnectionError: the server cannot be reached or answers with an error.
        CheckpointError: the content has another sha256.
    """

    def write(file: IO[bytes]) -> None:
        digest = hashlib.sha256()
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                while chunk := answer.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
        except (urllib.error.URLError, TimeoutError) as error:
            raise ConnectionError(f"{url} cannot be downloaded: {error}; put the file at {to} by hand") from error
        if digest.hexdigest() != sha256:
            raise CheckpointError(f"{url} has sha256 {digest.hexdigest()} instead of {sha256}; it was not kept")

    save_atomically(to, write)
    return to


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
