"""A machine for pickles that makes data of them and nothing else.

It knows every instruction of protocols 0 to 5. Where Python's own would import a name and call it, this one looks the
name up in :data:`zoo.weights.rebuild.REBUILDERS` (containers, numbers, arrays, tensors) and otherwise writes down what
was asked for, as :class:`zoo.weights.inert.Inert`. It does not recurse; time and memory are bounded by the file's size.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from zoo.weights.errors import CheckpointError
from zoo.weights.inert import Inert, Name, checked_name

#: Instructions that a pickle may have: the largest published checkpoints have less than a tenth of that.
MAX_INSTRUCTIONS = 5_000_000


class Budget:
    """Bytes that objects may take beyond what the file itself holds."""

    def __init__(self, size: int):
        self.left = size

    def charge(self, size: int) -> None:
        """Use up ``size`` bytes; raises CheckpointError when there are not that many left."""
        self.left -= size
        if self.left < 0:
            raise CheckpointError("what it describes is far larger than the file itself")


_MARK = object()


def _check_key(key: Any) -> None:
    """Keys of mappings and elements of sets: what hashes quickly (a nest of tuples can take forever to hash)."""
    if isinstance(key, str | int):
        return
    pending, seen = [key], 0
    while pending:
        item = pending.pop()
        seen += 1
        if seen > 64:
            raise CheckpointError("a key of a mapping in it is a nest of tuples")
        if isinstance(item, tuple | frozenset):
            pending.extend(list(item)[:65])
        elif isinstance(item, list | dict | set | bytearray):
            raise CheckpointError(f"a key of a mapping in it is a {type(item).__name__}")
    try:
        hash(key)
    except TypeError as error:
        raise CheckpointError(f"a key of a mapping in it is a {type(key).__name__}") from error


class Machine:
    """Runs one pickle.

    Args:
        data: bytes or a memory map.
        start: where the pickle begins.
        persistent: called with what the file says instead of a storage.
        rebuilders: dotted name -> function of the machine and the arguments.
        budget: what the objects may take.

    After :meth:`run`, ``position`` is where the pickle ended.
    """

    def __init__(
        self,
        data: Any,
        start: int = 0,
        *,
        persistent: Callable[[Any], Any] | None = None,
        rebuilders: dict[str, Callable[[Machine, tuple[Any, ...]], Any]],
        budget: Budget,
        depth: int = 0,
    ):
        self.data = data
        self.position = start
        self.budget = budget
        self.rebuilders = rebuilders
        self.depth = depth
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._places: dict[int, list[int]] = {}  # id of a stand-in -> places in the memo

    # -- reading --------------------------------------------------------------------------------------------------

    def _read(self, size: int) -> bytes:
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise CheckpointError(f"it ends within an object ({size} bytes are announced)")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def _number(self, code: str) -> int:
        return struct.unpack(code, self._read(struct.calcsize(code)))[0]

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise CheckpointError("it ends within a line")
        piece = self.data[self.position : end]
        self.position = end + 1
        return piece

    # -- running --------------------------------------------------------------------------------------------------

    def run(self) -> Any:
        """The object that the pickle describes.

        Raises:
            CheckpointError: damaged, larger than its file, or asking for something harmful.
        """
        try:
            return self._run()
        except CheckpointError:
            raise
        except (IndexError, KeyError, struct.error, UnicodeError, ValueError, TypeError, OverflowError) as error:
            raise CheckpointError(f"it is damaged (byte {self.position}: {type(error).__name__}: {error})") from error
        except (MemoryError, RecursionError) as error:
            raise CheckpointError(f"it cannot be held in memory ({type(error).__name__})") from error

    def _run(self) -> Any:
        steps = 0
        while True:
            code = self._read(1)[0]
            steps += 1
            if steps > MAX_INSTRUCTIONS:
                raise CheckpointError(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
            if code == pickle.STOP[0]:
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise CheckpointError(f"it is damaged (byte {self.position - 1}: no instruction {code})")
            step(self)

    def _pop(self) -> Any:
        item = self._stack.pop()
        if item is _MARK:
            raise CheckpointError("it is damaged (a mark where a value is expected)")
        return item

    def _to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def _remember(self, place: int) -> None:
        item = self._stack[-1]
        if item is _MARK:
            raise CheckpointError("it is damaged (a mark where a value is expected)")
        self._memo[place] = item
        if isinstance(item, Inert):
            self._places.setdefault(id(item), []).append(place)

    def _text(self, raw: bytes) -> str | bytes:
        """Python 2 strings: text where they are ASCII, and bytes otherwise (numpy's arrays)."""
        try:
            return raw.decode("ascii")
        except UnicodeDecodeError:
            return raw

    # -- objects --------------------------------------------------------------------------------------------------

    def call(self, target: Any, arguments: Any) -> Any:
        """What ``target(*arguments)`` stands for."""
        if not isinstance(arguments, tuple):
            raise CheckpointError("it is damaged (a call without a tuple of arguments)")
        if not isinstance(target, Name):
            return Inert(f"call of {target!r}"[:200] if isinstance(target, Inert) else "call", (target, *arguments))
        if target.name in ("copyreg.__newobj__", "copyreg.__newobj_ex__") and arguments:
            return self.call(arguments[0], arguments[1:])
        rebuild = self.rebuilders.get(target.name)
        return Inert(target.name, arguments) if rebuild is None else rebuild(self, arguments)

    def _build(self) -> None:
        state = self._pop()
        item = self._stack[-1]
        if isinstance(item, Inert):
            finish = self.rebuilders.get(f"{item.class_name}.__setstate__")
            made = item if finish is None else finish(self, (item, state))
            if made is item:
                item.set_state(state)
                return
            self._stack[-1] = made
            for place in self._places.get(id(item), ()):
                if self._memo.get(place) is item:
                    self._memo[place] = made
        elif item is _MARK or isinstance(item, Name):
            raise CheckpointError("it is damaged (attributes of something that has none)")
        # attributes of containers and tensors (a state dict's _metadata) are of no use here

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Inert):
            target.elements.extend(items)
        else:
            raise CheckpointError(f"it is damaged (elements of a {type(target).__name__})")

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise CheckpointError("it is damaged (a key without a value)")
        target = self._stack[-1]
        mapping = target.mapping if isinstance(target, Inert) else target
        if not isinstance(mapping, dict):
            raise CheckpointError(f"it is damaged (items of a {type(target).__name__})")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            mapping[key] = value

    def _add_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target.elements.extend(items)
        elif isinstance(target, set):
            target.update(checked_keys(items))
        else:
            raise CheckpointError(f"it is damaged (elements of a {type(target).__name__})")

    def _push_name(self, module: Any, name: Any) -> None:
        full = checked_name(module, name)
        constant = self.rebuilders.get(f"= {full}")
        self._stack.append(Name(full) if constant is None else constant(self, ()))

    def _load_persistent(self, pid: Any) -> None:
        if self._persistent is None:
            raise CheckpointError("it refers to a storage, but has none")
        self._stack.append(self._persistent(pid))


def checked_keys(items: Any) -> list[Any]:
    """A list whose items may be keys; raises CheckpointError otherwise."""
    items = list(items)
    for item in items:
        _check_key(item)
    return items


def _step_newobj(m: Machine) -> None:
    arguments, cls = m._pop(), m._pop()
    m._stack.append(m.call(cls, arguments))


def _step_newobj_ex(m: Machine) -> None:
    kwargs, arguments, cls = m._pop(), m._pop(), m._pop()
    made = m.call(cls, arguments)
    if isinstance(made, Inert) and isinstance(kwargs, dict):
        made.set_state(kwargs)
    m._stack.append(made)


def _step_inst(m: Machine) -> None:
    module, name = m._line().decode("utf-8"), m._line().decode("utf-8")
    m._stack.append(m.call(Name(checked_name(module, name)), tuple(m._to_mark())))


def _step_obj(m: Machine) -> None:
    items = m._to_mark()
    m._stack.append(m.call(items[0], tuple(items[1:])))


def _step_stack_global(m: Machine) -> None:
    name, module = m._pop(), m._pop()
    m._push_name(module, name)


def _step_dict(m: Machine) -> None:
    items = m._to_mark()
    m._stack.append({})
    m._set_items(items)


def _step_setitem(m: Machine) -> None:
    value, key = m._pop(), m._pop()
    m._set_items([key, value])


def _step_int(m: Machine) -> None:
    line = m._line()
    m._stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))


def _step_string(m: Machine) -> None:
    line = m._line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
        raise CheckpointError("it is damaged (a string without quotes)")
    m._stack.append(m._text(codecs.escape_decode(line[1:-1])[0]))  # type: ignore[attr-defined]


def _step_dup(m: Machine) -> None:
    item = m._pop()
    m._stack += [item, item]


def _step_tuple(size: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        items = [m._pop() for _ in range(size)]
        m._stack.append(tuple(reversed(items)))

    return step


def _refuse(what: str) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        raise CheckpointError(f"it uses {what}, which checkpoints do not")

    return step


def _push(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m._stack.append(make(m))

    return step


def _reduce(m: Machine) -> None:
    arguments, target = m._pop(), m._pop()
    m._stack.append(m.call(target, arguments))


def _utf8(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


_STEPS: dict[int, Callable[[Machine], Any]] = {
    code[0]: step
    for code, step in {
        # values
        pickle.NONE: _push(lambda m: None),
        pickle.NEWTRUE: _push(lambda m: True),
        pickle.NEWFALSE: _push(lambda m: False),
        pickle.INT: _step_int,
        pickle.LONG: _push(lambda m: int(m._line().rstrip(b"L"))),
        pickle.BININT: _push(lambda m: m._number("<i")),
        pickle.BININT1: _push(lambda m: m._number("<B")),
        pickle.BININT2: _push(lambda m: m._number("<H")),
        pickle.LONG1: _push(lambda m: pickle.decode_long(m._read(m._number("<B")))),
        pickle.LONG4: _push(lambda m: pickle.decode_long(m._read(m._number("<i")))),
        pickle.FLOAT: _push(lambda m: float(m._line())),
        pickle.BINFLOAT: _push(lambda m: m._number(">d")),
        pickle.STRING: _step_string,
        pickle.BINSTRING: _push(lambda m: m._text(m._read(m._number("<i")))),
        pickle.SHORT_BINSTRING: _push(lambda m: m._text(m._read(m._number("<B")))),
        pickle.UNICODE: _push(lambda m: str(m._line(), "raw-unicode-escape")),
        pickle.BINUNICODE: _push(lambda m: _utf8(m._read(m._number("<I")))),
        pickle.SHORT_BINUNICODE: _push(lambda m: _utf8(m._read(m._number("<B")))),
        pickle.BINUNICODE8: _push(lambda m: _utf8(m._read(m._number("<Q")))),
        pickle.BINBYTES: _push(lambda m: m._read(m._number("<I"))),
        pickle.SHORT_BINBYTES: _push(lambda m: m._read(m._number("<B"))),
        pickle.BINBYTES8: _push(lambda m: m._read(m._number("<Q"))),
        pickle.BYTEARRAY8: _push(lambda m: bytearray(m._read(m._number("<Q")))),
        # containers
        pickle.EMPTY_TUPLE: _push(lambda m: ()),
        pickle.TUPLE: _push(lambda m: tuple(m._to_mark())),
        pickle.TUPLE1: _step_tuple(1),
        pickle.TUPLE2: _step_tuple(2),
        pickle.TUPLE3: _step_tuple(3),
        pickle.EMPTY_LIST: _push(lambda m: []),
        pickle.LIST: _push(lambda m: m._to_mark()),
        pickle.APPEND: lambda m: m._append([m._pop()]),
        pickle.APPENDS: lambda m: m._append(m._to_mark()),
        pickle.EMPTY_DICT: _push(lambda m: {}),
        pickle.DICT: _step_dict,
        pickle.SETITEM: _step_setitem,
        pickle.SETITEMS: lambda m: m._set_items(m._to_mark()),
        pickle.EMPTY_SET: _push(lambda m: set()),
        pickle.ADDITEMS: lambda m: m._add_items(m._to_mark()),
        pickle.FROZENSET: _push(lambda m: frozenset(checked_keys(m._to_mark()))),
        # objects
        pickle.GLOBAL: lambda m: m._push_name(m._line().decode("utf-8"), m._line().decode("utf-8")),
        pickle.STACK_GLOBAL: _step_stack_global,
        pickle.REDUCE: _reduce,
        pickle.NEWOBJ: _step_newobj,
        pickle.NEWOBJ_EX: _step_newobj_ex,
        pickle.INST: _step_inst,
        pickle.OBJ: _step_obj,
        pickle.BUILD: Machine._build,
        pickle.PERSID: lambda m: m._load_persistent(m._line().decode("ascii")),
        pickle.BINPERSID: lambda m: m._load_persistent(m._pop()),
        # stack and memo
        pickle.MARK: lambda m: m._stack.append(_MARK),
        pickle.POP: lambda m: m._stack.pop(),
        pickle.POP_MARK: Machine._to_mark,
        pickle.DUP: _step_dup,
        pickle.GET: _push(lambda m: m._memo[int(m._line())]),
        pickle.BINGET: _push(lambda m: m._memo[m._number("<B")]),
        pickle.LONG_BINGET: _push(lambda m: m._memo[m._number("<I")]),
        pickle.PUT: lambda m: m._remember(int(m._line())),
        pickle.BINPUT: lambda m: m._remember(m._number("<B")),
        pickle.LONG_BINPUT: lambda m: m._remember(m._number("<I")),
        pickle.MEMOIZE: lambda m: m._remember(len(m._memo)),
        # of no consequence here
        pickle.PROTO: lambda m: m._read(1),
        pickle.FRAME: lambda m: m._read(8),
        # of no use in a file
        pickle.EXT1: _refuse("the registry of extensions"),
        pickle.EXT2: _refuse("the registry of extensions"),
        pickle.EXT4: _refuse("the registry of extensions"),
        pickle.NEXT_BUFFER: _refuse("buffers outside of the file"),
        pickle.READONLY_BUFFER: _refuse("buffers outside of the file"),
    }.items()
}


def ordered(pairs: Any) -> OrderedDict[Any, Any]:
    """An OrderedDict of (key, value) pairs; raises CheckpointError for other things."""
    if isinstance(pairs, dict):
        return OrderedDict(pairs)
    result: OrderedDict[Any, Any] = OrderedDict()
    for pair in pairs if isinstance(pairs, list | tuple) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise CheckpointError("it is damaged (an OrderedDict of something that is no list of pairs)")
        _check_key(pair[0])
        result[pair[0]] = pair[1]
    return result
