"""Downloads from a server on this machine that does everything that servers do wrong."""

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from zoo.weights import hub
from zoo.weights.download import Limits, download
from zoo.weights.errors import CheckpointError

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Limits(timeout=2.0, answer=2.0, window=0.5, slowest=20_000, attempts=3, backoff=0.01)


class Server(ThreadingHTTPServer):
    """Answers ``/<behaviour>/<anything>``; ``log`` has (path, range) of every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.log = []
        self.etag = '"one"'
        self.content = CONTENT
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that go away are part of the tests

    def count(self, behaviour):
        return sum(path.split("/")[1] == behaviour for path, _ in self.log)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.replace(self.server.url, "")  # a proxy gets whole addresses
        self.server.log.append((path, self.headers.get("Range")))
        self.close_connection = True
        getattr(self, f"do_{path.split('/')[1]}")()

    def head(self, status=200, length=None, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()

    def whole(self, content=None, **headers):
        content = self.server.content if content is None else content
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and self.headers.get("If-Range") == self.server.etag:
            start = int(match[1])
            if start >= len(content):
                return self.head(416, 0)
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.head(206, len(content) - start, Content_Range=place, ETag=self.server.etag)
            return self.wfile.write(content[start:])
        self.head(200, len(content), ETag=self.server.etag, **headers)
        return self.wfile.write(content)

    def cut(self, at, **headers):
        """Announce everything and close after ``at`` bytes."""
        self.head(200, len(self.server.content), ETag=self.server.etag, **headers)
        self.wfile.write(self.server.content[:at])
        self.wfile.flush()

    do_good = whole

    def do_cut_once(self):
        if self.server.count("cut_once") == 1:
            return self.cut(100_000)
        return self.whole()

    def do_always_cut(self):
        if self.headers.get("Range"):
            start = int(self.headers["Range"][6:-1])
            place = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            self.head(206, len(CONTENT) - start, Content_Range=place, ETag=self.server.etag)
            return self.wfile.write(CONTENT[start : start + 1000])
        return self.cut(50_000)

    def do_no_resume(self):
        if self.server.count("no_resume") == 1:
            return self.cut(100_000)
        self.head(200, len(CONTENT))
        return self.wfile.write(CONTENT)

    def do_wrong_place(self):
        if self.headers.get("Range"):
            self.head(206, 10, Content_Range=f"bytes 5-14/{len(CONTENT)}", ETag=self.server.etag)
            return self.wfile.write(CONTENT[5:15])
        return self.cut(100_000)

    def do_corrupt(self):
        self.whole(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))

    def do_short(self):
        self.whole(CONTENT[:-10])

    def do_empty(self):
        self.whole(b"")

    def do_page(self):
        self.whole(b"<!DOCTYPE html><html>please log in</html>")

    def do_packed(self):
        self.whole(Content_Encoding="gzip")

    def do_busy(self):
        if self.server.count("busy") < 3:
            return self.head(503, 0, Retry_After="0")
        return self.whole()

    def do_failing(self):
        self.head(500, 0)

    def do_gone(self):
        self.head(404, 0)

    def do_secret(self):
        self.head(403, 0)

    def do_to_good(self):
        self.head(302, 0, Location="/good/model.pth")

    def do_to_file(self):
        self.head(302, 0, Location="file:///etc/passwd")

    def do_to_ftp(self):
        self.head(301, 0, Location="ftp://127.0.0.1/x")

    def do_to_data(self):
        self.head(307, 0, Location="data:text/plain,hello")

    def do_loop(self):
        self.head(302, 0, Location=f"/loop/{len(self.server.log)}")

    def do_nonsense(self):
        self.wfile.write(b"this is no HTTP\r\n\r\n")

    def do_slow_head(self):
        try:
            for letter in "HTTP/1.1 200 OK\r\nX-Padding: " + "x" * 400:
                self.wfile.write(letter.encode())
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def do_slow(self):
        self.head(200, len(CONTENT), ETag=self.server.etag)
        try:
            for byte in CONTENT[:400]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def do_silent(self):
        time.sleep(4)

    def do_endless(self):
        self.head(200)
        try:
            while True:
                self.wfile.write(CONTENT)
        except OSError:
            pass

    def do_unhurried(self):
        self.head(200, len(CONTENT), ETag=self.server.etag)
        for i in range(0, len(CONTENT), 30_000):
            self.wfile.write(CONTENT[i : i + 30_000])
            self.wfile.flush()
            time.sleep(0.15)


@pytest.fixture
def server():
    httpd = Server()
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def cache(tmp_path):
    """A folder in a folder: nothing may appear beside it."""
    folder = tmp_path / "outer" / "cache"
    folder.mkdir(parents=True)
    yield folder
    assert os.listdir(tmp_path / "outer") == ["cache"]


def files(folder):
    """What is in the cache besides locks."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def get(server, behaviour, cache, limits=QUICK, sha256=SHA256, **more):
    return download(f"{server.url}/{behaviour}/model.pth", cache / "model.pth", sha256=sha256, limits=limits, **more)


def test_a_file_is_downloaded_once(server, cache):
    seen = []
    path = get(server, "good", cache, size=len(CONTENT), progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert files(cache) == ["model.pth"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    get(server, "good", cache)
    assert server.count("good") == 1


def test_an_interrupted_download_resumes(server, cache):
    get(server, "cut_once", cache)
    assert (cache / "model.pth").read_bytes() == CONTENT
    assert [r for _, r in server.log] == [None, "bytes=100000-"]
    assert files(cache) == ["model.pth"]


def test_the_next_process_resumes(server, cache):
    with pytest.raises(ConnectionError, match=r"1 tries.*ended after 50,000 of 300,000 bytes.*kept"):
        get(server, "always_cut", cache, limits=Limits(timeout=2, attempts=1))
    assert files(cache) == [".model.pth.part", ".model.pth.part.json"]
    assert (cache / ".model.pth.part").stat().st_size == 50_000
    with pytest.raises(ConnectionError):
        get(server, "always_cut", cache, limits=Limits(timeout=2, attempts=1))
    assert server.log[-1][1] == "bytes=50000-"
    assert (cache / ".model.pth.part").read_bytes() == CONTENT[:51_000]


def test_part_of_another_address_or_version_is_not_continued(server, cache):
    with pytest.raises(ConnectionError):
        get(server, "always_cut", cache, limits=Limits(timeout=2, attempts=1))
    get(server, "good", cache)  # another address
    assert server.log[-1][1] is None
    (cache / "model.pth").unlink()
    (cache / ".model.pth.part").write_bytes(b"x" * 1000)
    server.etag = '"two"'
    (cache / ".model.pth.part.json").write_text(f'{{"url": "{server.url}/good/model.pth", "tag": "\\"one\\""}}')
    get(server, "good", cache)  # the server's file has changed
    assert (cache / "model.pth").read_bytes() == CONTENT


def test_a_part_longer_than_the_file(server, cache):
    (cache / ".model.pth.part").write_bytes(b"x" * 400_000)
    (cache / ".model.pth.part.json").write_text(f'{{"url": "{server.url}/good/model.pth", "tag": "\\"one\\""}}')
    get(server, "good", cache)
    assert (cache / "model.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("notes", ["", "[]", "{}", "not json", '{"url": 3, "tag": []}'])
def test_notes_that_say_nothing(server, cache, notes):
    (cache / ".model.pth.part").write_bytes(CONTENT[:1000])
    (cache / ".model.pth.part.json").write_text(notes)
    get(server, "good", cache)
    assert server.log == [("/good/model.pth", None)]


@pytest.mark.parametrize("behaviour", ["no_resume", "busy", "to_good"])
def test_servers_that_are_merely_inconvenient(server, cache, behaviour):
    assert get(server, behaviour, cache).read_bytes() == CONTENT
    assert files(cache) == ["model.pth"]


@pytest.mark.parametrize(
    "behaviour, message",
    [
        ("corrupt", "has sha256 .* instead of"),
        ("short", "has 299,990 bytes instead of 300,000"),
        ("empty", "has 0 bytes instead of"),
        ("endless", "goes on beyond the 300,000 bytes"),
        ("page", "has 41 bytes"),
    ],
)
def test_wrong_content_is_removed(server, cache, behaviour, message):
    with pytest.raises(CheckpointError, match=message):
        get(server, behaviour, cache, size=len(CONTENT))
    assert not [f for f in files(cache) if not f.endswith(".json")]
    get(server, "good", cache)  # and a good one comes after it


def test_wrong_hash_and_pages_without_a_size(server, cache):
    with pytest.raises(CheckpointError, match=f"has sha256 {SHA256} instead of {'0' * 64}; it was not kept"):
        get(server, "good", cache, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="is a web page"):
        get(server, "page", cache, sha256=None)
    with pytest.raises(CheckpointError, match="is empty"):
        get(server, "empty", cache, sha256=None)
    with pytest.raises(CheckpointError, match="300,000 bytes; 1,000 are expected at most"):
        get(server, "good", cache, limits=Limits(largest=1000))
    with pytest.raises(CheckpointError, match="goes on beyond the 400,000"):
        get(server, "endless", cache, limits=Limits(largest=400_000))
    assert not [f for f in files(cache) if not f.endswith(".json")]


@pytest.mark.parametrize(
    "behaviour, requests, message",
    [
        ("failing", 3, r"\(3 tries\): HTTP 500"),
        ("gone", 1, "answers HTTP 404 Not Found"),
        ("secret", 1, "answers HTTP 403"),
        ("always_cut", 3, r"ended after 52,000 of 300,000 bytes"),
        ("wrong_place", 3, "continues at another place"),
        ("nonsense", 3, "BadStatusLine"),
        ("packed", 1, "in the encoding 'gzip'"),
        ("loop", 9, "HTTP 302"),
    ],
)
def test_errors_of_servers(server, cache, behaviour, requests, message):
    with pytest.raises(ConnectionError, match=message) as error:
        get(server, behaviour, cache)
    assert f"can be put at {cache / 'model.pth'} by hand" in str(error.value)
    assert server.count(behaviour) == requests
    assert not (cache / "model.pth").exists()


@pytest.mark.parametrize("behaviour, scheme", [("to_file", "file"), ("to_ftp", "ftp"), ("to_data", "data")])
def test_redirects_to_other_schemes(server, cache, behaviour, scheme):
    with pytest.raises(ConnectionError, match=rf"redirects: {scheme}:.*only addresses of http and https"):
        get(server, behaviour, cache, sha256=None)
    assert files(cache) == []


def test_redirect_from_https_to_http_is_refused():
    from zoo.weights.download import _check_scheme

    with pytest.raises(ValueError, match="unprotected"):
        _check_scheme("http://b/x", "https://a/x")
    _check_scheme("https://b/x", "http://a/x")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "/etc/passwd", "data:,x", "gopher://a"])
def test_other_schemes(url, cache):
    with pytest.raises(ValueError, match="only addresses of http and https"):
        download(url, cache / "x", sha256=None)


@pytest.mark.parametrize(
    "behaviour, message",
    [
        ("slow_head", "no complete answer within 2 s"),
        ("slow", "less than 20000 bytes a second"),
        ("silent", r"1 tries\): (timed out|The read operation timed out|TimeoutError)"),
    ],
)
def test_slow_servers_end_in_time(server, cache, behaviour, message):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=message):
        get(server, behaviour, cache, limits=Limits(**{**vars(QUICK), "attempts": 1, "timeout": 1.0}))
    assert time.monotonic() - start < 8
    assert not (cache / "model.pth").exists()


def test_a_server_that_is_merely_unhurried(server, cache):
    assert get(server, "unhurried", cache).read_bytes() == CONTENT  # 200 kB a second


def test_nobody_answers(cache):
    with pytest.raises(ConnectionError, match=r"Connection refused.*can be put at"):
        download("http://127.0.0.1:9/x", cache / "x", sha256=SHA256, limits=QUICK)


def test_two_processes_download_once(server, cache):
    code = (
        "import sys; from zoo.weights.download import download\n"
        f"print(download({server.url!r} + '/unhurried/m', sys.argv[1], sha256={SHA256!r}))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(cache / "m")], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert out.strip() == str(cache / "m")
    assert server.count("unhurried") == 1
    assert (cache / "m").read_bytes() == CONTENT


def test_waiting_for_a_process_ends(server, cache):
    from filelock import FileLock

    with (
        FileLock(cache / ".model.pth.lock"),
        pytest.raises(ConnectionError, match=r"another process has been downloading .*\.lock"),
    ):
        get(server, "good", cache, limits=Limits(lock=0.2))


def test_links_are_not_followed(server, cache, tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (cache / ".model.pth.part").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        get(server, "good", cache)
    (cache / ".model.pth.part").unlink()
    (cache / ".model.pth.part.json").unlink()
    (cache / ".model.pth.part.json").symlink_to(tmp_path / "victim")
    (cache / "model.pth").symlink_to(tmp_path / "victim")
    get(server, "good", cache)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (cache / "model.pth").is_symlink()


# -- addresses ------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_home(monkeypatch, cache):
    monkeypatch.setenv("ZOO_HOME", str(cache))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)


@pytest.mark.parametrize(
    "tail, name",
    [
        ("good/../../../../etc/evil.pth", "evil.pth"),
        ("good/..%2f..%2f..%2fevil.pth", "evil.pth"),
        ("good/%2e%2e", "weights"),
        ("good/.bashrc", "bashrc"),
        ("good/C%3A%5Cevil.pth", "evil.pth"),
        ("good/a b%00c.pth", "a_b_c.pth"),
        ("good/", "good"),
        ("good/model.pth?download=1", "model.pth"),
        ("good/" + "x" * 500, "x" * 100),
    ],
)
def test_names_of_addresses_stay_in_the_cache(server, at_home, cache, tail, name):
    path = hub.resolve_weights(f"{server.url}/{tail.replace(' ', '%20')}#sha256={SHA256}", limits=QUICK)
    assert path.name == name
    assert path.parent.parent == cache / "downloads"
    assert path.read_bytes() == CONTENT
    assert files(cache) == [name]


def test_addresses_without_a_hash_are_unverified(server, at_home):
    with pytest.warns(UserWarning, match="unverified"):
        path = hub.resolve_weights(f"{server.url}/good/model.pth")
    assert hub.resolve_weights(f"{server.url}/good/model.pth") == path
    assert len(server.log) == 1
    with pytest.raises(ValueError, match="64 hexadecimal"):
        hub.resolve_weights(f"{server.url}/good/model.pth#sha256=12")


def test_offline_says_what_to_put_where(server, at_home, monkeypatch, cache):
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    url = f"{server.url}/good/model.pth"
    with pytest.raises(hub.WeightsUnavailableError, match="get http.* and put the file at") as error:
        hub.resolve_weights(url)
    target = str(error.value).rpartition(" at ")[2]
    assert target.startswith(str(cache))
    assert server.log == []
    os.makedirs(os.path.dirname(target))
    with open(target, "wb") as file:
        file.write(CONTENT)
    assert str(hub.resolve_weights(f"{url}#sha256={SHA256}")) == target


def test_proxies_are_obeyed(server, at_home, monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(variable, server.url)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("REQUEST_METHOD", raising=False)
    address = "http://weights.invalid/good/model.pth"
    server.url, proxied = "http://weights.invalid", server.url
    path = hub.resolve_weights(f"{address}#sha256={SHA256}", limits=QUICK)
    server.url = proxied
    assert path.read_bytes() == CONTENT
    assert server.count("good") == 1
