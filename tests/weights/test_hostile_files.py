"""Files made to do harm, and broken ones: nothing in them is run, each ends in a message, good files are read after."""

import importlib
import io
import os
import pickle
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zoo.cli import main
from zoo.weights.checkpoint import CheckpointError, read_checkpoint, state_dict_of
from zoo.weights.inert import Inert
from zoo.weights.load import load_weights

STATE = {"weight": torch.arange(12.0).view(3, 4), "bias": torch.arange(3.0)}


class Call:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def raw(*parts: bytes) -> bytes:
    return b"".join(parts)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def zipped(path: Path, pickled: bytes, parts=(), **info) -> None:
    """A torch archive around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for key, data in parts:
            archive.writestr(key if isinstance(key, zipfile.ZipInfo) else f"archive/{key}", data)


def older(path: Path, pickled: bytes, keys=(), storages: bytes = b"") -> None:
    """A file of torch's older format around a pickle."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    data = b"".join(pickle.dumps(x, 2) for x in head) + pickled + pickle.dumps(list(keys), 2) + storages
    path.write_bytes(data)


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """What a pickle says instead of a storage."""
    number = b"\x8a\x08" + struct.pack("<q", count)
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number + b"tQ"


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(integer(v) for v in values) + b"t"


def tensor(source: bytes, offset: int, size: bytes, stride: bytes) -> bytes:
    arguments = b"(" + source + integer(offset) + size + stride + b"\x89" + name("collections", "OrderedDict") + b")Rt"
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def state_of(value: bytes) -> bytes:
    """A pickled dict of one item."""
    return b"\x80\x02}" + text("weight") + value + b"s."


# -- payloads that run code where a pickle is loaded the usual way --------------------------------------------------


def _touch(flag):
    return f"open({str(flag)!r}, 'w').close()"


PAYLOADS = {
    "system": lambda f: Call(os.system, f"touch {f}"),
    "mkdir": lambda f: Call(os.mkdir, str(f)),
    "exec": lambda f: Call(exec, _touch(f)),
    "eval": lambda f: Call(eval, _touch(f)),
    "popen": lambda f: Call(subprocess.check_output, ["touch", str(f)]),
    "import_module": lambda f: Call(importlib.import_module, "antigravity"),
    "builtin_import": lambda f: Call(__import__, "antigravity"),
    "open": lambda f: Call(open, str(f), "w"),
    "nested": lambda f: {"state_dict": {"a": [({"b": Call(os.system, f"touch {f}")},)]}},
    "beside_good_weights": lambda f: {"state_dict": STATE, "args": Call(os.mkdir, str(f))},
    "as_a_key": lambda f: {Call(os.mkdir, str(f)): STATE["bias"]},
    "pickled_pickle": lambda f: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(f)))),
    "runpy": lambda f: Call(importlib.import_module("runpy").run_path, str(f)),
    "torch_load": lambda f: Call(torch.load, str(f)),
}


@pytest.mark.parametrize("form", ["zip", "older", "pickle"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_calls_are_not_made(payload, form, tmp_path):
    flag, file = tmp_path / "it_ran", tmp_path / "bad.pth"
    modules = set(sys.modules)
    content = PAYLOADS[payload](flag)
    if form == "pickle":
        file.write_bytes(pickle.dumps(content, 4))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"bad\.pth is refused: it asks for .* nothing of it was run"):
        read_checkpoint(file)
    assert not flag.exists()
    assert "antigravity" not in set(sys.modules) - modules


def test_the_payloads_are_live(tmp_path):
    """An unsafe reader would have run them, so that the test above can fail."""
    for payload in ("system", "mkdir", "exec", "eval", "popen", "open", "nested", "pickled_pickle"):
        flag = tmp_path / payload
        pickle.loads(pickle.dumps(PAYLOADS[payload](flag), 4))
        assert flag.exists(), payload


RAW = {
    # instructions that reach names and calls by other ways
    "inst": lambda f: raw(b"(", text(f"touch {f}"), b"ios\nsystem\n."),
    "obj": lambda f: raw(b"(", name("os", "system"), text(f"touch {f}"), b"o."),
    "newobj": lambda f: raw(b"\x80\x02", name("os", "system"), text(f"touch {f}"), b"\x85\x81."),
    "newobj_ex": lambda f: raw(b"\x80\x04", name("os", "system"), text(f"touch {f}"), b"\x85}\x92."),
    "stack_global": lambda f: raw(b"\x80\x04", text("os"), text("system"), b"\x93", text(f"touch {f}"), b"\x85R."),
    "python2": lambda f: raw(name("__builtin__", "eval"), text(_touch(f)), b"\x85R."),
    "dotted": lambda f: raw(b"\x80\x04", text("os.path"), text("os.system"), b"\x93", text(f"touch {f}"), b"\x85R."),
    "extension": lambda f: raw(b"\x80\x02\x82\x01."),
    "out_of_band": lambda f: raw(b"\x80\x05\x97."),
}


@pytest.mark.parametrize("form", ["zip", "older", "pickle"])
@pytest.mark.parametrize("payload", RAW)
def test_instructions_are_not_followed(payload, form, tmp_path):
    flag, file = tmp_path / "it_ran", tmp_path / "bad.pth"
    data = RAW[payload](flag)
    {"zip": zipped, "older": older, "pickle": lambda p, d: p.write_bytes(d)}[form](file, data)
    with pytest.raises(CheckpointError, match=r"bad\.pth is refused"):
        read_checkpoint(file)
    assert not flag.exists()


def test_getters_and_state_setters_are_data(tmp_path):
    """Names outside the list of harmful ones are data: no attribute is read, nothing is called."""
    called = []

    class Loud:
        def __setstate__(self, state):
            called.append(state)

        def __reduce__(self):
            return Loud, (), {"x": 1}

    Loud.__module__, Loud.__qualname__ = __name__, "Loud"
    data = raw(
        b"\x80\x04}",
        text("weight"),
        pickle.dumps(STATE["bias"].numpy(), 4)[2:-1],
        b"s",
        text("loud"),
        name("some.module", "Loud"),
        b")R}",
        text("x"),
        b"K\x01sbs",
        text("got"),
        name("builtins", "getattr"),
        name("torch", "Tensor"),
        text("__init__"),
        b"\x86Rs.",
    )
    (tmp_path / "c.pth").write_bytes(data)
    content = read_checkpoint(tmp_path / "c.pth")
    assert not called
    assert isinstance(content["loud"], Inert)
    assert content["loud"].x == 1
    assert isinstance(content["got"], Inert)
    assert torch.equal(state_dict_of(content)["weight"], STATE["bias"])
    assert "some.module" not in sys.modules


# -- sizes that are not true ----------------------------------------------------------------------------------------

ONE = ("data/0", b"\0" * 16)
HUGE = 1 << 46


def _many_lists() -> bytes:
    return b"\x80\x02(" + b"]" * 100_000 + b"l."


def _copies() -> bytes:
    big = b"\x80\x04" + b"\x8e" + struct.pack("<Q", 1 << 20) + b"a" * (1 << 20) + b"q\x00("
    return big + (name("builtins", "bytearray") + b"h\x00\x85R") * 400 + b"l."


def _hash_forever() -> bytes:
    return b"\x80\x02}" + b"N\x85" + b"q\x00h\x00\x86" * 80 + b"K\x01s."


BROKEN = {
    "storage_declared_huge": lambda p: zipped(p, state_of(tensor(storage(HUGE), 0, numbers(4), numbers(1))), [ONE]),
    "storage_declared_negative": lambda p: zipped(p, state_of(tensor(storage(-4), 0, numbers(4), numbers(1))), [ONE]),
    "storage_missing": lambda p: zipped(p, state_of(tensor(storage(4, "9"), 0, numbers(4), numbers(1))), [ONE]),
    "storage_key_leads_out": lambda p: zipped(
        p, state_of(tensor(storage(4, "../../etc/passwd"), 0, numbers(4), numbers(1))), [ONE]
    ),
    "storage_of_objects": lambda p: zipped(
        p, state_of(tensor(storage(4, kind="QInt8Storage"), 0, numbers(4), numbers(1))), [ONE]
    ),
    "size_declared_huge": lambda p: zipped(p, state_of(tensor(storage(4), 0, numbers(HUGE), numbers(0))), [ONE]),
    "size_times_size": lambda p: zipped(
        p, state_of(tensor(storage(4), 0, numbers(*[1 << 20] * 8), numbers(*[0] * 8))), [ONE]
    ),
    "size_negative": lambda p: zipped(p, state_of(tensor(storage(4), 0, numbers(-1), numbers(1))), [ONE]),
    "offset_out_of_range": lambda p: zipped(p, state_of(tensor(storage(4), 1, numbers(4), numbers(1))), [ONE]),
    "offset_negative": lambda p: zipped(p, state_of(tensor(storage(4), -1, numbers(4), numbers(1))), [ONE]),
    "stride_out_of_range": lambda p: zipped(p, state_of(tensor(storage(4), 0, numbers(2), numbers(4))), [ONE]),
    "stride_negative": lambda p: zipped(p, state_of(tensor(storage(4), 3, numbers(4), numbers(-1))), [ONE]),
    "stride_overlaps": lambda p: zipped(p, state_of(tensor(storage(4), 0, numbers(2, 2), numbers(1, 1))), [ONE]),
    "strides_too_few": lambda p: zipped(p, state_of(tensor(storage(4), 0, numbers(2, 2), numbers(1))), [ONE]),
    "tensor_without_storage": lambda p: zipped(p, state_of(tensor(text("x"), 0, numbers(4), numbers(1))), [ONE]),
    "older_declared_huge": lambda p: older(p, state_of(tensor(storage(HUGE), 0, numbers(4), numbers(1))), ["0"]),
    "older_truncated": lambda p: older(
        p, state_of(tensor(storage(4), 0, numbers(4), numbers(1))), ["0"], struct.pack("<q", 4) + b"\0" * 8
    ),
    "older_other_size": lambda p: older(
        p, state_of(tensor(storage(4), 0, numbers(4), numbers(1))), ["0"], struct.pack("<q", 5) + b"\0" * 20
    ),
    "older_other_keys": lambda p: older(p, state_of(tensor(storage(4), 0, numbers(4), numbers(1))), ["1"]),
    "older_version": lambda p: p.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(7)),
    "bytes_declared_huge": lambda p: zipped(p, b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"abc."),
    "array_other_size": lambda p: p.write_bytes(pickle.dumps(np.zeros(4, "f4"), 2).replace(b"K\x04\x85", b"K\x7f\x85")),
    "too_many_objects": lambda p: p.write_bytes(_many_lists()),
    "too_many_copies": lambda p: p.write_bytes(_copies()),
    "key_that_hashes_forever": lambda p: p.write_bytes(_hash_forever()),
    "list_as_key": lambda p: p.write_bytes(b"\x80\x02}]K\x01s."),
    "stack_underflow": lambda p: p.write_bytes(b"\x80\x02R."),
    "memo_unknown": lambda p: p.write_bytes(b"\x80\x02h\x07."),
    "mark_as_value": lambda p: p.write_bytes(b"\x80\x02(."),
    "no_end": lambda p: p.write_bytes(b"\x80\x02}" + text("a")),
    "number_of_million_digits": lambda p: p.write_bytes(b"I" + b"9" * 1_000_000 + b"\n."),
    "only_zeros": lambda p: p.write_bytes(b"\0" * 1000),
    "a_picture": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100),
    "a_web_page": lambda p: p.write_bytes(b"<!DOCTYPE html><html>Quota exceeded</html>"),
    "a_gzip": lambda p: p.write_bytes(b"\x1f\x8b\x08" + b"\0" * 50),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_end_in_a_message(case, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.weights.unpickle.MAX_INSTRUCTIONS", 50_000)
    file = tmp_path / "broken.pth"
    BROKEN[case](file)
    with pytest.raises(CheckpointError, match=r"broken\.pth is refused: \w+"):
        read_checkpoint(file)


def _entry(filename: str, mode: int = 0o644, **changes) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(filename)
    info.external_attr = mode << 16
    for key, value in changes.items():
        setattr(info, key, value)
    return info


GOOD_PICKLE = pickle.dumps({"epoch": 3}, 2)


def _bomb(path: Path) -> None:
    zipped(path, GOOD_PICKLE, [(_entry("archive/data/0", compress_type=zipfile.ZIP_DEFLATED), b"\0" * (32 << 20))])


def _compressed_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", GOOD_PICKLE * 1000)


def _twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(path, GOOD_PICKLE, [("data.pkl", pickle.dumps({"epoch": 4}))])


def _lying_size(path: Path) -> None:
    """The central directory says that a part has 2 GiB."""
    zipped(path, state_of(tensor(storage(4), 0, numbers(4), numbers(1))), [ONE])
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02", 0, data.rfind(b"archive/data/0"))
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    path.write_bytes(data)


def _overlapping(path: Path) -> None:
    """Many names for the same bytes: each is small, together they are larger than the file."""
    zipped(path, GOOD_PICKLE, [(f"data/{i}", b"\0" * 4096) for i in range(10)])
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        if data[at + 46 :].startswith(b"archive/data/"):
            data[at + 20 : at + 28] = struct.pack("<II", 1 << 15, 1 << 15)
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)


def _encrypted(path: Path) -> None:
    zipped(path, GOOD_PICKLE, [ONE])
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)


def _flipped(path: Path) -> None:
    torch.save(STATE, path)
    data = bytearray(path.read_bytes())
    at = data.find(STATE["weight"].numpy().tobytes())
    assert at > 0
    data[at + 5] ^= 0xFF
    path.write_bytes(data)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())


def _script(path: Path) -> None:
    zipped(path, GOOD_PICKLE, [("constants.pkl", GOOD_PICKLE), ("code/__torch__.py", b"raise SystemExit")])


ARCHIVES = {
    "bomb": (_bomb, "compressed"),
    "compressed_pickle": (_compressed_pickle, "compressed"),
    "two_of_one_name": (_twice, "two parts of one name"),
    "lying_size": (_lying_size, "declared larger"),
    "overlapping": (_overlapping, "declared larger"),
    "encrypted": (_encrypted, "encrypted"),
    "flipped_bit": (_flipped, "CRC"),
    "parent_folder": (lambda p: zipped(p, GOOD_PICKLE, [("../../evil", b"x")]), "leads out"),
    "absolute": (lambda p: zipped(p, GOOD_PICKLE, [(_entry("/etc/cron.d/evil"), b"x")]), "leads out"),
    "backslashes": (lambda p: zipped(p, GOOD_PICKLE, [(_entry("archive\\..\\..\\evil"), b"x")]), "leads out"),
    "drive": (lambda p: zipped(p, GOOD_PICKLE, [(_entry("C:evil"), b"x")]), "leads out"),
    "link": (lambda p: zipped(p, GOOD_PICKLE, [(_entry("archive/x", stat.S_IFLNK | 0o777), b"/etc/passwd")]), "link"),
    "tar_with_links": (_tar, "tar archive"),
    "torchscript": (_script, "TorchScript"),
    "no_torch_archive": (lambda p: zipfile.ZipFile(p, "w").writestr("readme.txt", "hello"), "damaged|none of torch's"),
    "big_endian": (lambda p: zipped(p, GOOD_PICKLE, [("byteorder", b"big")]), "big-endian"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_with_tricks_are_refused(case, tmp_path):
    folder = tmp_path / "only"
    folder.mkdir()
    make, message = ARCHIVES[case]
    make(folder / "bad.pth")
    with pytest.raises(CheckpointError, match=rf"bad\.pth is refused: .*({message})"):
        read_checkpoint(folder / "bad.pth")
    assert os.listdir(folder) == ["bad.pth"]
    assert os.listdir(tmp_path) == ["only"]


# -- weights that are no use ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_nan_weights_are_named(tmp_path, suffix):
    state = {"weight": STATE["weight"].clone(), "bias": STATE["bias"].clone()}
    state["bias"][1] = float("nan")
    file = tmp_path / f"c{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    model = torch.nn.Linear(4, 3)
    before = model.bias.detach().clone()
    with pytest.raises(CheckpointError, match=r"has NaN in bias"):
        load_weights(model, file)
    assert torch.equal(model.bias, before)
    with pytest.warns(UserWarning, match="has NaN in bias"):
        load_weights(model, file, on_nan="warn")
    assert model.bias[1].isnan()
    with pytest.raises(ValueError, match="on_nan='maybe'"):
        load_weights(model, file, on_nan="maybe")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_other_kinds_of_numbers_are_refused(tmp_path, dtype):
    torch.save({"weight": STATE["weight"], "bias": torch.ones(3).to(dtype)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=rf"another kind of number: bias is {dtype}, the model has torch.float32"):
        load_weights(torch.nn.Linear(4, 3), tmp_path / "c.pth")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_precisions_are_taken(tmp_path, dtype):
    torch.save({k: v.to(dtype) for k, v in STATE.items()}, tmp_path / "c.pth")
    model = torch.nn.Linear(4, 3)
    assert load_weights(model, tmp_path / "c.pth").exact
    assert torch.equal(model.bias, STATE["bias"])


def test_an_extreme_safetensors_header(tmp_path):
    file = tmp_path / "bad.safetensors"
    for data in (
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 8) + b"{{{{{{{{",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 56) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}  ',
    ):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"bad\.safetensors is damaged"):
            read_checkpoint(file)


def test_a_good_file_beside_all_of_them_is_read(tmp_path, capsys):
    torch.save(STATE, tmp_path / "good.pth")
    for case, make in BROKEN.items():
        if not case.startswith("too_many"):
            make(tmp_path / f"{case}.pth")
    for file in sorted(tmp_path.glob("*.pth")):
        if file.name != "good.pth":
            with pytest.raises(CheckpointError):
                read_checkpoint(file)
            assert main(["convert", "davit", str(file), str(tmp_path / "out.safetensors")]) == 1
            assert "CheckpointError" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    found = read_checkpoint(tmp_path / "good.pth")
    assert all(torch.equal(found[k], v) for k, v in STATE.items())


def test_notes_that_refer_to_each_other_do_not_take_forever(tmp_path, capsys):
    """Eight lists of a thousand references each are small in the file and endless when written out."""
    own = importlib.import_module("zoo.weights.importers.davit")
    model = importlib.import_module("zoo").create_model("davit_nano", num_classes=5)
    names = ["cat"]
    for _ in range(7):
        names = [names] * 1000
    state = own.revert_state_dict(own.NETWORK, model.state_dict())
    torch.save({"state_dict": state, "meta": {"CLASSES": names}}, tmp_path / "in.pth")
    assert main(["convert", "davit", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 1
    assert "more than 100,000 parts" in capsys.readouterr().err


def test_tensors_are_moved_to_other_devices(tmp_path):
    shared = [STATE["bias"]]
    torch.save({"a": shared, "b": (shared, {"c": STATE["weight"]}), "n": 3}, tmp_path / "c.pth")
    found = read_checkpoint(tmp_path / "c.pth", "meta")
    assert found["b"][1]["c"].device.type == found["a"][0].device.type == "meta"
    assert found["b"][0] is found["a"]
    assert found["n"] == 3


def test_many_names_for_one_tensor_do_not_fill_the_disk(tmp_path, capsys):
    """A megabyte under thousands of names would be written thousands of times."""
    big = torch.zeros(1 << 18)
    torch.save({f"w{i}": big.view(-1) for i in range(3000)}, tmp_path / "in.pth")
    assert main(["convert", "davit", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 1
    assert "far larger than the file" in capsys.readouterr().err
    torch.save({f"w{i}": big.view(-1) for i in range(30)}, tmp_path / "in.pth")
    assert main(["convert", "davit", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 1
    assert "share their memory too often" in capsys.readouterr().err
