"""What a pickle says, as data: stand-ins for classes and objects that are never imported, made or called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from zoo.weights.errors import CheckpointError

_MODULES = """
_posixsubprocess _winapi asyncio bdb cProfile code codeop commands ctypes distutils fileinput ftplib gc glob http
imp importlib inspect io linecache marshal mmap multiprocessing nt ntpath operator os pathlib pdb pickle _pickle
pip pkgutil platform popen2 posix posixpath profile pty pydoc requests runpy setuptools shelve shutil signal site
socket sqlite3 ssl subprocess sys sysconfig tempfile threading timeit trace types urllib venv webbrowser
xmlrpc zipimport
"""
#: Modules whose names no checkpoint has a need of; a file that asks for one is refused as a whole. Nothing here is what
#: keeps the reader safe (it calls nothing anyway): it tells people that they hold a file made to do harm.
HARMFUL = frozenset(_MODULES.split())
#: What is pickled of those modules in honest files: options that hold a path, a type or a getter.
_HARMLESS = frozenset(
    {
        "operator.attrgetter",
        "operator.itemgetter",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
    }
)
_BUILTINS = """
__import__ breakpoint compile delattr eval exec execfile exit globals help input locals memoryview open quit
setattr vars
"""
_HARMFUL_NAMES = frozenset(f"builtins.{name}" for name in _BUILTINS.split()) | {
    "copyreg.add_extension",
    "numpy.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "torch.serialization.load",
    "torch.utils.cpp_extension.load",
}


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, such as ``argparse.Namespace``. It is a name and nothing more."""

    name: str


class Inert:
    """An object of a class that was not imported, or the result of a call that was not made.

    Attributes of the object read as attributes of this one (``options.lr`` of a pickled ``argparse.Namespace``), keys
    of a pickled mapping by ``[...]``.

    Args:
        class_name: dotted name of the class or function.
        arguments: what it would have been called with.
    """

    __slots__ = ("arguments", "class_name", "elements", "mapping", "state")

    def __init__(self, class_name: str, arguments: tuple[Any, ...] = ()):
        self.class_name = class_name
        self.arguments = arguments
        #: attributes
        self.state: Any = {}
        #: items of a subclass of dict
        self.mapping: dict[Any, Any] = {}
        #: items of a subclass of list or set
        self.elements: list[Any] = []

    def set_state(self, state: Any) -> None:
        """Take what a pickle gives to ``__setstate__``: attributes, or anything else as it is."""
        if isinstance(state, tuple) and len(state) == 2 and all(s is None or isinstance(s, dict) for s in state):
            state = {**(state[0] or {}), **(state[1] or {})}
        if isinstance(state, dict) and isinstance(self.state, dict):
            self.state = {**self.state, **state}
        else:
            self.state = state

    def __getattr__(self, name: str) -> Any:
        state = object.__getattribute__(self, "state")
        if isinstance(state, dict) and name in state and not name.startswith("__"):
            return state[name]
        raise AttributeError(f"the pickled {self.class_name} has no attribute {name!r}")

    def __getitem__(self, key: Any) -> Any:
        return self.mapping[key]

    def __repr__(self) -> str:
        return f"<inert {self.class_name}>"


def checked_name(module: Any, name: Any) -> str:
    """The dotted name of something that a pickle asks for.

    Raises:
        CheckpointError: no name at all, or of a module that no checkpoint has a need of.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise CheckpointError("it names a class by something that is no text")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}.get(module, module)
    full = f"{module}.{name}"
    top = module.partition(".")[0]
    if full in _HARMFUL_NAMES or (top in HARMFUL and full not in _HARMLESS):
        raise CheckpointError(
            f"it asks for {full[:100]}, which a checkpoint has no need of; nothing of it was run. Do not use this file "
            f"with any other program"
        )
    return full


def is_mapping(value: Any) -> bool:
    """Whether ``value`` is a mapping, or the stand-in of one (yacs, mmcv and omegaconf configs)."""
    return isinstance(value, Mapping) or (isinstance(value, Inert) and bool(value.mapping))


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """The items of a mapping or of a stand-in of one; the attributes of another stand-in; None of anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Inert):
        return value.mapping or (value.state if isinstance(value.state, dict) else {})
    return None


def plain(value: Any, depth: int = 8, _left: list[int] | None = None) -> Any:
    """A copy for JSON: numbers, text, lists and dicts; tensors and what lies deeper than ``depth`` are named only.

    Raises:
        CheckpointError: it has more than 100,000 parts (lists within lists can refer to each other many times).
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    left = [100_000] if _left is None else _left
    left[0] -= 1
    if left[0] < 0:
        raise CheckpointError("what it says about itself has more than 100,000 parts")
    if depth <= 0:
        return f"<{type(value).__name__}>"
    items = as_mapping(value)
    if items or isinstance(value, Mapping):
        return {str(k): plain(v, depth - 1, left) for k, v in (items or {}).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v, depth - 1, left) for v in value]
    if isinstance(value, Inert) and value.elements:
        return [plain(v, depth - 1, left) for v in value.elements]
    if hasattr(value, "item") and getattr(value, "size", None) == 1:
        return plain(value.item(), depth - 1, left)
    if isinstance(value, Name):
        return value.name
    return str(value) if isinstance(value, Inert | torch.dtype | torch.device) else f"<{type(value).__name__}>"
