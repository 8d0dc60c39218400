"""Push to and load from the Hugging Face Hub, against a server on this machine that answers its calls."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

import zoo
from zoo.cli import main
from zoo.weights import hf, hub
from zoo.weights.checkpoint import CheckpointError, read_checkpoint

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One repository's files in memory; large ones go through the LFS protocol as on the real hub."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.lfs: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.token = None
        self.refuse = False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, content=b"", status=200, **headers):
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers["Content_Type"] = "application/json"
        self.send_response(status)
        for key, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_call(self):
        body = self.body()
        self.server.calls.append(f"{self.command} {self.path}")
        self.server.token = self.headers.get("Authorization") or self.server.token
        if self.server.refuse:
            return self.answer({"error": "no write access"}, 403)
        path = self.path.partition("?")[0]
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return method(self, body, *match.groups())
        return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_call

    def create(self, body):
        data = json.loads(body)
        name = "/".join(filter(None, [data.get("organization"), data["name"]]))
        self.server.repositories.setdefault(name, {})
        self.answer({"url": f"{self.server.url}/{name}"})

    def validate(self, body):
        header = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        errors = [] if "license" in header else [{"message": "no license"}]
        self.answer({"errors": errors, "warnings": []})

    def preupload(self, body, name, revision):
        files = json.loads(body)["files"]
        modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("tensors") else "regular",
                  "shouldIgnore": False} for f in files]  # fmt: skip
        self.answer({"files": modes})

    def batch(self, body, name):
        found = []
        for item in json.loads(body)["objects"]:
            url = f"{self.server.url}/upload/{item['oid']}"
            found.append({**item, "actions": {"upload": {"href": url}}})
        self.answer({"transfer": "basic", "objects": found})

    def upload(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.lfs[oid] = body
        self.answer()

    def commit(self, body, name, revision):
        files = self.server.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.server.lfs[entry["value"]["oid"]]
        self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}"})

    def resolve(self, body, name, revision, file):
        content = self.server.repositories.get(name, {}).get(file)
        if content is None:
            return self.answer(
                b"", 404, X_Error_Code="EntryNotFound" if name in self.server.repositories else "RepoNotFound"
            )
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")

    def info(self, body, name):
        if name not in self.server.repositories:
            return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
        return self.answer({"id": name, "sha": COMMIT, "private": False, "siblings": []})


ROUTES = [
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (r"POST /api/models/(.+)/preupload/(\w+)", Handler.preupload),
    (r"POST /(.+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /upload/(\w+)", Handler.upload),
    (r"POST /api/models/(.+)/commit/(\w+)", Handler.commit),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
    (r"GET /api/models/([^/]+/[^/]+)(?:/revision/\w+)?", Handler.info),
]


@pytest.fixture
def server(monkeypatch, tmp_path):
    httpd = Hub()
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", httpd.url)
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    # the plain protocol of large files: the newer one has an address of its own
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = zoo.create_model("davit_nano", num_classes=5)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    return model, tmp_path / "w.pth"


def test_pushed_models_come_back(server, weights, capsys):
    model, file = weights
    assert main(["push", "davit_nano", str(file), "someone/nano", "--num-classes", "5"]) == 0
    assert "someone/nano" in capsys.readouterr().out
    files = server.repositories["someone/nano"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert server.token == "Bearer hf_abcdefghijklmnop"
    assert json.loads(files["config.json"]) == {
        "architecture": "davit_nano",
        "arguments": {"num_classes": 5},
        "library": "attnzoo",
        "version": zoo.__version__,
    }
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert header == {
        "library_name": "attnzoo", "license": "mit", "pipeline_tag": "image-classification",
        "tags": ["attnzoo", "pytorch"],
    }  # fmt: skip
    assert 'from_hub("someone/nano")' in files["README.md"].decode()
    loaded = hf.from_hub("someone/nano")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    # by the command line, and in another model than the config's
    assert main(["pull", "hf:someone/nano"]) == 0
    path = capsys.readouterr().out.strip()
    assert read_checkpoint(path).keys() == model.state_dict().keys()
    other = zoo.create_model("davit_nano", num_classes=3, weights=hub.resolve_weights("hf:someone/nano"))
    assert torch.equal(other.stem.conv.weight, model.stem.conv.weight)


def test_the_cache_serves_offline(server, weights, monkeypatch, tmp_path):
    _, file = weights
    hf.push("davit_nano", file, "someone/nano", arguments={"num_classes": 5})
    path = hub.resolve_weights("hf:someone/nano")
    assert tmp_path / "home" / "huggingface" in path.parents
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    calls = len(server.calls)
    assert hub.resolve_weights("hf:someone/nano") == path
    with pytest.raises(ConnectionError, match=r"other\.bin of someone/nano cannot be had .* a copy belongs into"):
        hub.resolve_weights("hf:someone/nano:other.bin")
    assert len(server.calls) == calls


def test_what_cannot_be_loaded_is_not_pushed(server, weights):
    _, file = weights
    with pytest.raises(CheckpointError, match="of another model"):
        hf.push("davit_nano", file, "someone/nano")  # five classes, not a thousand
    with pytest.raises(ValueError, match="owner/repository"):
        hf.push("davit_nano", file, "nano")
    with pytest.raises(ValueError, match="owner/name"):
        hf.push("davit_nano", file, "someone/nano@main")
    assert server.calls == []


def test_errors_of_the_hub(server, weights):
    _, file = weights
    with pytest.raises(ConnectionError, match=r"config\.json of someone/none cannot be had .*NotFound"):
        hf.from_hub("someone/none")
    server.refuse = True
    with pytest.raises(ConnectionError, match="someone/nano could not be pushed"):
        hf.push("davit_nano", file, "someone/nano", arguments={"num_classes": 5})


@pytest.mark.parametrize(
    "config",
    [b"not json", b"[]", b"{}", b'{"architecture": "os.system", "arguments": {}}',
     b'{"architecture": "davit_nano", "arguments": []}', b'{"architecture": ["davit_nano"], "arguments": {}}'],
)  # fmt: skip
def test_configs_of_strangers(server, config):
    server.repositories["someone/bad"] = {"config.json": config, "model.safetensors": b""}
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hf.from_hub("someone/bad")


@pytest.mark.parametrize(
    "arguments",
    [{"mixer": {"type": "os.system", "command": "touch {}"}}, {"mixer": "os.system"},
     {"mixer": {"type": "agent", "more": [{"type": "subprocess.Popen", "args": "touch {}"}]}}],
)  # fmt: skip
def test_configs_of_strangers_call_nothing(server, arguments, tmp_path):
    flag = tmp_path / "it_ran"
    text = json.dumps({"architecture": "vit_nano", "arguments": arguments}).replace("{}", str(flag))
    server.repositories["someone/bad"] = {"config.json": text.encode(), "model.safetensors": b""}
    with pytest.raises(CheckpointError, match="named as they are registered"):
        hf.from_hub("someone/bad")
    assert not flag.exists()
    with pytest.raises(ValueError, match="named as they are registered"):
        hf.push("vit_nano", tmp_path / "none", "someone/bad", arguments=json.loads(text)["arguments"])


@pytest.mark.parametrize("text", ["", "nano", "a/b/c", "a/b@", "a/b:../../x", "a b/c", "https://x/y"])
def test_other_forms_of_names(text):
    with pytest.raises(ValueError, match="owner/repository"):
        hf.parse(text)
    assert hf.parse("a/b@v1:x/y.bin") == ("a/b", "v1", "x/y.bin")
