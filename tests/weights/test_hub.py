"""From a name to a weights file: cache, verified download from a server on this machine, messages."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from zoo.weights import hub
from zoo.weights.checkpoint import CheckpointError
from zoo.weights.index import ModelInfo

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def visible(folder):
    """Names in a folder, without locks and the notes of unfinished downloads."""
    return sorted(p.name for p in folder.iterdir() if not (p.name.startswith(".") and p.suffix in (".lock", ".json")))


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "nano.safetensors").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


@pytest.fixture
def indexed(monkeypatch, tmp_path):
    """Put one model into the index and the cache into a folder of the test."""
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))

    def add(**weights):
        info = ModelInfo("some_nano", "some", "classification", (), 1, 1, 32, 10, (), (), weights=weights)
        monkeypatch.setattr(hub, "model_info", lambda name: info if name == "some_nano" else None)
        return info

    return add


def test_download_is_verified_and_cached(server, indexed, tmp_path):
    indexed(status="trained", url=f"{server}/nano.safetensors", file="nano.safetensors", sha256=SHA256)
    path = hub.resolve_weights("some_nano")
    assert path == tmp_path / "home" / "weights" / "nano.safetensors"
    assert path.read_bytes() == CONTENT
    indexed(status="trained", url="http://127.0.0.1:9/gone", file="nano.safetensors", sha256=SHA256)
    assert hub.resolve_weights("some_nano") == path  # no second download


def test_wrong_content_is_not_kept(server, indexed, tmp_path):
    indexed(status="trained", url=f"{server}/nano.safetensors", file="nano.safetensors", sha256="0" * 64)
    with pytest.raises(CheckpointError, match=SHA256):
        hub.resolve_weights("some_nano")
    assert visible(tmp_path / "home" / "weights") == []


def test_cached_file_that_was_changed(server, indexed, tmp_path):
    indexed(status="trained", url=f"{server}/nano.safetensors", file="nano.safetensors", sha256=SHA256)
    hub.resolve_weights("some_nano").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="delete it"):
        hub.resolve_weights("some_nano")


def test_missing_on_the_server(server, indexed, tmp_path):
    indexed(status="trained", url=f"{server}/none.safetensors", file="none.safetensors", sha256=SHA256)
    with pytest.raises(ConnectionError, match="by hand"):
        hub.resolve_weights("some_nano")
    assert visible(tmp_path / "home" / "weights") == []


def test_published_without_a_checksum(indexed):
    indexed(status="published", url="https://example.org/page", file=None, sha256=None)
    with pytest.raises(hub.WeightsUnavailableError, match="by hand"):
        hub.resolve_weights("some_nano")


def test_no_weights_at_all(indexed):
    indexed(status="none")
    with pytest.raises(hub.WeightsUnavailableError, match="no weights for some_nano"):
        hub.resolve_weights("some_nano")
