"""torch's checkpoint files: zip archives (torch >= 1.6), the older stream of pickles, and plain pickles.

Sizes that a file declares are compared with the file's own before anything is made, and nothing is unpacked to disk.
"""

from __future__ import annotations

import mmap
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from zoo.weights.errors import CheckpointError
from zoo.weights.rebuild import REBUILDERS, Storage, storage_dtype
from zoo.weights.unpickle import Budget, Machine

#: what a file of the older format begins with
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
#: bytes of tensors and containers that a file may describe, beyond this many times its own size
_TIMES, _EXTRA = 16, 1 << 24
_MAX_PICKLE = 1 << 28


def read_torch(path: Path) -> Any:
    """What a torch file holds, on the CPU.

    Raises:
        CheckpointError: damaged, refused, or no torch file. Its text has no path: the caller adds it.
    """
    size = path.stat().st_size
    budget = Budget(_TIMES * size + _EXTRA)
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] == b"PK\x03\x04":
            return _read_zip(path, size, budget)
        if start[:5].lower() in (b"<!doc", b"<html"):
            raise CheckpointError("it is a web page and no checkpoint; the address leads to a page with the file on it")
        if start[:4] == b"Rar!" or start[:2] == b"\x1f\x8b" or start[:6] == b"7z\xbc\xaf\x27\x1c":
            raise CheckpointError("it is a compressed archive; unpack it and load the checkpoint that it holds")
        file.seek(0)
        if file.read(262)[257:262] == b"ustar":
            raise CheckpointError("it is a tar archive (of torch before 0.2 or of a whole folder), which is not read")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_stream(data, budget)


# -- zip ----------------------------------------------------------------------------------------------------------


def _read_zip(path: Path, size: int, budget: Budget) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(archive, size, budget).read()
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"it is damaged ({error})") from error


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, size: int, budget: Budget):
        self.archive = archive
        self.budget = budget
        self.storages: dict[str, Storage] = {}
        entries = archive.infolist()
        self.entries = {e.filename: e for e in entries}
        if len(self.entries) != len(entries):
            raise CheckpointError("its archive has two parts of one name")
        total = 0
        for entry in entries:
            self._check(entry)
            total += entry.file_size
            if total > size or entry.header_offset + entry.file_size > size:
                raise CheckpointError(f"its part {entry.filename!r} is declared larger than the file"[:300])
        pickles = [n for n in self.entries if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError("it is a zip archive, but none of torch's; unpack it and load what it holds")
        self.prefix = pickles[0].removesuffix("data.pkl")
        if f"{self.prefix}constants.pkl" in self.entries:
            raise CheckpointError(
                "it is a TorchScript program; save the state dict of the module that it was made from instead"
            )

    @staticmethod
    def _check(entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or name[:1] in ("/", "\\") or name[1:2] == ":":
            raise CheckpointError(f"its archive has a part named {name!r}, which leads out of it"[:300])
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise CheckpointError(f"its archive has a link, {name!r}"[:300])
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(f"its part {name!r} is compressed, which torch does not do"[:300])
        if entry.flag_bits & 1:
            raise CheckpointError(f"its part {name!r} is encrypted"[:300])

    def read(self) -> Any:
        if self._small("byteorder", b"little").strip() != b"little":
            raise CheckpointError("its numbers are big-endian, which is not read")
        if self.entries[f"{self.prefix}data.pkl"].file_size > _MAX_PICKLE:
            raise CheckpointError("its description of objects is larger than 256 MiB")
        data = self.archive.read(f"{self.prefix}data.pkl")
        return Machine(data, persistent=self._storage, rebuilders=_REBUILDERS, budget=self.budget).run()

    def _small(self, name: str, default: bytes) -> bytes:
        entry = self.entries.get(f"{self.prefix}{name}")
        return default if entry is None or entry.file_size > 100 else self.archive.read(entry)

    def _storage(self, pid: Any) -> Storage:
        kind, key, _, count = _described(pid, 5)[:4]
        dtype = storage_dtype(kind)
        found = self.storages.get(str(key))
        if found is None:
            entry = self.entries.get(f"{self.prefix}data/{key}")
            if entry is None:
                raise CheckpointError(f"its part data/{key} is missing"[:300])
            found = self.storages[str(key)] = Storage(_bytes_of(self.archive, entry), dtype)
        if count * dtype.itemsize != found.data.numel():
            raise CheckpointError(f"its part data/{key} has {found.data.numel()} bytes, not {count} of {dtype}"[:300])
        return Storage(found.data, dtype)


def _bytes_of(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> torch.Tensor:
    """A part's bytes, uint8 [n]; its checksum is verified."""
    data = torch.empty(entry.file_size, dtype=torch.uint8)
    target, done = _memory(data), 0
    with archive.open(entry) as part:
        while done < len(target):
            count = part.readinto(target[done : done + (1 << 20)])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"its part {entry.filename!r} is truncated"[:300])
            done += count
        part.read(1)  # the checksum is compared at the end
    return data


def _memory(data: torch.Tensor) -> memoryview:
    """The bytes of a uint8 tensor, to write into."""
    array: Any = data.numpy()
    return memoryview(array)


def _described(pid: Any, length: int) -> tuple[Any, ...]:
    """(storage class, key, location, number of elements, ...) of a storage that a pickle refers to."""
    if not isinstance(pid, tuple) or len(pid) < length or pid[0] not in ("storage", b"storage"):
        raise CheckpointError("it is damaged (a storage that is described by something else)")
    kind, key, location, count = pid[1:5]
    if not isinstance(count, int) or count < 0:
        raise CheckpointError(f"it is damaged (a storage of {count!r} elements)"[:200])
    if not isinstance(key, str | int) or (isinstance(key, str) and not key.isalnum()):
        raise CheckpointError(f"it is damaged (a storage named {key!r})"[:200])
    return (kind, key, location, count, *pid[5:])


# -- the older format ---------------------------------------------------------------------------------------------


class _Stream:
    """Storages of the older format: they come after the pickle, so they are made empty and filled afterwards."""

    def __init__(self, size: int):
        self.size = size
        self.storages: dict[str, Storage] = {}
        self.declared = 0

    def storage(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] in ("module", b"module"):
            return pid[1]  # a whole module was saved; (class, file, source code) follow, and the class is a name
        kind, key, _, count, *rest = _described(pid, 5)
        dtype = storage_dtype(kind)
        found = self.storages.get(str(key))
        if found is None:
            self.declared += count * dtype.itemsize
            if self.declared > self.size:
                raise CheckpointError(f"its storages are declared larger ({self.declared:,} bytes) than the file")
            data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
            found = self.storages[str(key)] = Storage(data, dtype)
        elif count * dtype.itemsize != found.data.numel() or dtype != found.dtype:
            raise CheckpointError(f"it is damaged (storage {key} is described in two ways)"[:200])
        view = rest[0] if rest else None
        if view is None:
            return found
        if not isinstance(view, tuple) or len(view) != 3 or not all(isinstance(v, int) and v >= 0 for v in view[1:]):
            raise CheckpointError(f"it is damaged (a part of storage {key})"[:200])
        _, offset, length = view
        if offset + length > count:
            raise CheckpointError(f"it is damaged (a part of storage {key} that reaches out of it)"[:200])
        return Storage(found.data[offset * dtype.itemsize : (offset + length) * dtype.itemsize], dtype)

    def fill(self, data: Any, position: int, keys: Any) -> int:
        """Read all storages from ``position`` on; returns where they end."""
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self.storages):
            raise CheckpointError("it is damaged (the list of its storages is not that of its tensors)")
        for key in keys:
            storage = self.storages[str(key)]
            count = int.from_bytes(data[position : position + 8], "little")
            length = storage.data.numel()
            if count * storage.dtype.itemsize != length or position + 8 + length > self.size:
                raise CheckpointError(f"its storage {key} is truncated or has another size than declared"[:200])
            _memory(storage.data)[:] = data[position + 8 : position + 8 + length]
            position += 8 + length
        return position


def _read_stream(data: Any, budget: Budget, depth: int = 0) -> Any:
    """The older format, or a plain pickle."""

    def machine(position: int, persistent: Any = None) -> Machine:
        return Machine(data, position, persistent=persistent, rebuilders=_REBUILDERS, budget=budget, depth=depth)

    first = machine(0)
    content = first.run()
    if not isinstance(content, int) or content != _MAGIC:
        return content
    header = machine(first.position)
    if header.run() != _PROTOCOL:
        raise CheckpointError("its format is of another version than the 1001 of all releases of torch")
    system = machine(header.position)
    if isinstance(info := system.run(), dict) and info.get("little_endian") is False:
        raise CheckpointError("its numbers are big-endian, which is not read")
    stream = _Stream(len(data))
    objects = machine(system.position, stream.storage)
    content = objects.run()
    listed = machine(objects.position)
    keys = listed.run()
    stream.fill(data, listed.position, keys)
    return content


def _load_from_bytes(m: Machine, a: tuple[Any, ...]) -> Any:
    """A storage within a plain pickle: a whole file of the older format, as bytes."""
    if len(a) != 1 or not isinstance(a[0], bytes | bytearray) or m.depth > 0:
        raise CheckpointError("it is damaged (files within files)")
    m.budget.charge(len(a[0]))
    return _read_stream(bytes(a[0]), m.budget, m.depth + 1)


_REBUILDERS = {**REBUILDERS, "torch.storage._load_from_bytes": _load_from_bytes}
