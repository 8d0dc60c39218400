"""The few objects that a checkpoint's pickle does give: containers, numbers, numpy arrays and torch tensors.

Every one is made by the code here from parts that were checked first; nothing that a file names is called.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.weights.errors import CheckpointError
from zoo.weights.inert import Inert, Name
from zoo.weights.unpickle import Machine, checked_keys, ordered

_NAMES = """
float64 float32 float16 bfloat16 complex128 complex64 complex32 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool
float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz
"""
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES.split() if hasattr(torch, name)}
_ALIASES = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "cfloat": "complex64",
    "cdouble": "complex128",
}
#: torch's classes of storages -> type of their elements
STORAGES: dict[str, torch.dtype] = {
    f"{name}Storage": getattr(torch, dtype)
    for name, dtype in {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexDouble": "complex128",
        "ComplexFloat": "complex64",
        "Untyped": "uint8",
    }.items()
}


@dataclass(frozen=True)
class Storage:
    """Bytes of tensors: ``data`` is uint8 ``[n]``, ``dtype`` what they are read as."""

    data: Tensor
    dtype: torch.dtype

    def numel(self) -> int:
        return self.data.numel() // self.dtype.itemsize


def storage_dtype(kind: Any) -> torch.dtype:
    """The element type of a storage class that a pickle names.

    Raises:
        CheckpointError: it names something else (quantised storages too).
    """
    name = kind.name if isinstance(kind, Name) else str(kind)
    dtype = STORAGES.get(name.rpartition(".")[2])
    if dtype is None or not name.startswith("torch."):
        raise CheckpointError(f"it has a storage of kind {name[:80]}; accepted are {', '.join(sorted(STORAGES))}")
    return dtype


def _integers(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(v, int) and 0 <= v < 2**48 for v in values):
        raise CheckpointError(f"a tensor in it has the {what} {values!r}"[:200])
    if len(values) > 64:
        raise CheckpointError(f"a tensor in it has {len(values)} dimensions")
    return tuple(int(v) for v in values)


def tensor_of(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> Tensor:
    """The view of a storage that a pickle describes.

    Raises:
        CheckpointError: it reaches out of the storage, or two of its elements are one.
    """
    if not isinstance(storage, Storage):
        raise CheckpointError("a tensor in it has no storage")
    dtype = storage.dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"a tensor in it has the element type {dtype!r}"[:200])
    size, stride = _integers(size, "size"), _integers(stride, "strides")
    (offset,) = _integers((offset,), "offset")
    if len(size) != len(stride):
        raise CheckpointError(f"a tensor in it has {len(size)} dimensions and {len(stride)} strides")
    elements = math.prod(size)
    machine.budget.charge(elements * dtype.itemsize)
    reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if elements else offset
    available = storage.data.numel() // dtype.itemsize
    if reach > available:
        raise CheckpointError(
            f"a tensor in it, of size {size}, reaches to element {reach} of a storage that has {available}"
        )
    need = 1  # elements below the stride of the next dimension must not reach it
    for s, n in sorted((s, n) for n, s in zip(size, stride, strict=True) if n > 1) if elements else ():
        if s < need:
            raise CheckpointError(f"a tensor in it, of size {size} and strides {stride}, overlaps itself")
        need = s * (n - 1) + need
    whole = storage.data[: available * dtype.itemsize].view(dtype)
    return torch.as_strided(whole, size, stride, offset)


# -- torch --------------------------------------------------------------------------------------------------------


def _tensor(m: Machine, a: tuple[Any, ...]) -> Any:
    # (storage, offset, size, stride, requires_grad, hooks); extra arguments are of no use here
    if len(a) < 4:
        raise CheckpointError("a tensor in it is described incompletely")
    return tensor_of(m, a[0], a[1], a[2], a[3])


def _tensor_v3(m: Machine, a: tuple[Any, ...]) -> Any:
    # (storage, offset, size, stride, requires_grad, hooks, dtype)
    if len(a) < 7:
        raise CheckpointError("a tensor in it is described incompletely")
    return tensor_of(m, a[0], a[1], a[2], a[3], a[6])


def _parameter(m: Machine, a: tuple[Any, ...]) -> Any:
    return a[0] if a and isinstance(a[0], Tensor) else Inert("torch.nn.parameter.Parameter", a)


def _from_type(m: Machine, a: tuple[Any, ...]) -> Any:
    # (function, type, its arguments, state): a subclass of Tensor
    if len(a) < 3 or not isinstance(a[2], tuple):
        raise CheckpointError("a tensor in it is described incompletely")
    return m.call(a[0], a[2])


def _from_numpy(m: Machine, a: tuple[Any, ...]) -> Any:
    # (array, dtype, device, requires_grad)
    if not a or not isinstance(a[0], np.ndarray):
        return Inert("torch._utils._rebuild_device_tensor_from_numpy", a)
    m.budget.charge(a[0].nbytes)
    return torch.from_numpy(np.array(a[0]))


def _from_cpu(m: Machine, a: tuple[Any, ...]) -> Any:
    return _parameter(m, a)


def _size(m: Machine, a: tuple[Any, ...]) -> Any:
    return torch.Size(_integers(a[0] if a else (), "size"))


def _device(m: Machine, a: tuple[Any, ...]) -> Any:
    try:
        return torch.device(*a)
    except (RuntimeError, TypeError):
        return Inert("torch.device", a)


def _dtype_constant(dtype: torch.dtype) -> Callable[[Machine, tuple[Any, ...]], Any]:
    return lambda m, a: dtype


# -- numpy --------------------------------------------------------------------------------------------------------

_CODE = re.compile(r"[<>=|]?[biufcSU?]\d{0,8}")
_ARRAY = "numpy.ndarray"


def _np_dtype(code: Any, order: Any = "", size: Any = -1) -> np.dtype[Any] | None:
    """A dtype of plain numbers or text; None for any other (objects, records, dates)."""
    if isinstance(code, Name):
        code = code.name.rpartition(".")[2]
        dtype = DTYPES.get(code.rstrip("_"))
        return np.dtype(code.rstrip("_")) if dtype is not None and "bfloat" not in code and "8_e" not in code else None
    if isinstance(code, bytes):
        code = code.decode("latin1")
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        return None
    if code[-1] in "SU" and isinstance(size, int) and 0 < size <= 1 << 20:
        code = f"{code}{size // (4 if code[-1] == 'U' else 1)}"
    dtype = np.dtype(code)
    if isinstance(order, bytes):
        order = order.decode("latin1")
    return dtype.newbyteorder(order) if order in ("<", ">") else dtype


def _dtype(m: Machine, a: tuple[Any, ...]) -> Any:
    # an object that is told its byte order afterwards
    return Inert("numpy.dtype", a)


def _dtype_state(m: Machine, a: tuple[Any, ...]) -> Any:
    item, state = a
    # (version, byte order, subarray, names, fields, item size, ...)
    if not item.arguments or not isinstance(state, tuple) or len(state) < 6 or state[3] is not None:
        return item
    return _np_dtype(item.arguments[0], state[1], state[5]) or item


def _as_dtype(value: Any) -> np.dtype[Any] | None:
    if isinstance(value, Inert) and value.class_name == "numpy.dtype" and value.arguments:
        return _np_dtype(value.arguments[0])  # a copy that was told nothing
    return value if isinstance(value, np.dtype) else None


def _raw(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode("latin1")
    return bytes(value) if isinstance(value, bytes | bytearray) else None


def _array(m: Machine, dtype: Any, shape: Any, raw: Any, fortran: bool) -> Any:
    """An array, or None where it is no array of plain numbers."""
    dtype, raw = _as_dtype(dtype), _raw(raw)
    if dtype is None or raw is None:
        return None
    shape = _integers(shape, "shape")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise CheckpointError(f"an array in it, of shape {shape}, has {len(raw)} bytes")
    m.budget.charge(len(raw))
    return np.frombuffer(bytearray(raw), dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(m: Machine, a: tuple[Any, ...]) -> Any:
    return Inert(_ARRAY, a)


def _array_state(m: Machine, a: tuple[Any, ...]) -> Any:
    item, state = a
    # (version, shape, dtype, whether in Fortran's order, bytes); the version is left out by the oldest
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        return item
    shape, dtype, fortran, raw = state[-4:]
    made = _array(m, dtype, shape, raw, bool(fortran))
    return item if made is None else made


def _frombuffer(m: Machine, a: tuple[Any, ...]) -> Any:
    # (bytes, dtype, shape, order), protocol 5
    made = _array(m, a[1], a[2], a[0], a[3] == "F") if len(a) == 4 else None
    return Inert(_ARRAY, a) if made is None else made


def _scalar(m: Machine, a: tuple[Any, ...]) -> Any:
    made = _array(m, a[0], (), a[1], False) if len(a) == 2 else None
    return Inert("numpy.generic", a) if made is None else made[()]


# -- containers ---------------------------------------------------------------------------------------------------


def _sequence(kind: Callable[[Any], Any], keys: bool = False) -> Callable[[Machine, tuple[Any, ...]], Any]:
    def make(m: Machine, a: tuple[Any, ...]) -> Any:
        items = a[0] if a else ()
        if isinstance(items, Inert):
            items = items.elements
        if not isinstance(items, list | tuple | set | frozenset):
            raise CheckpointError("it is damaged (a container made of something that is none)")
        m.budget.charge(8 * len(items))
        return kind(checked_keys(items) if keys else items)

    return make


def _ordered(m: Machine, a: tuple[Any, ...]) -> Any:
    if not a:
        return OrderedDict()
    m.budget.charge(100 * len(a[0]) if isinstance(a[0], list | tuple | dict) else 0)
    return ordered(a[0])


def _dict(m: Machine, a: tuple[Any, ...]) -> Any:
    return dict(_ordered(m, a))


def _defaultdict(m: Machine, a: tuple[Any, ...]) -> Any:
    return dict(_ordered(m, a[1:]))  # a[0] is the factory, which is left alone


def _encode(m: Machine, a: tuple[Any, ...]) -> Any:
    text, encoding = (*a, "latin1", "latin1")[:2]
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        return Inert("_codecs.encode", a)
    m.budget.charge(len(text))
    return text.encode(encoding)


def _bytes(kind: Callable[[bytes], Any]) -> Callable[[Machine, tuple[Any, ...]], Any]:
    def make(m: Machine, a: tuple[Any, ...]) -> Any:
        raw = _raw(a[0]) if a else b""
        if raw is None:
            return Inert(f"builtins.{kind.__name__}", a)
        m.budget.charge(len(raw))
        return kind(raw)

    return make


def _complex(m: Machine, a: tuple[Any, ...]) -> Any:
    if len(a) not in (1, 2) or not all(isinstance(x, int | float) for x in a):
        return Inert("builtins.complex", a)
    return complex(*a)


def _copyreg(m: Machine, a: tuple[Any, ...]) -> Any:
    # (class, base, state of the base): objects of protocols 0 and 1
    name = a[0].name if a and isinstance(a[0], Name) else "object"
    if name == "collections.OrderedDict":
        return OrderedDict()
    made = Inert(name)
    if len(a) == 3 and isinstance(a[2], dict):
        made.mapping = dict(a[2])
    elif len(a) == 3 and isinstance(a[2], list | tuple):
        made.elements = list(a[2])
    return made


REBUILDERS: dict[str, Callable[[Machine, tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    **{f"= torch.{name}": _dtype_constant(dtype) for name, dtype in DTYPES.items()},
    **{f"= torch.{name}": _dtype_constant(DTYPES[dtype]) for name, dtype in _ALIASES.items()},
    **{
        f"numpy.{core}.multiarray.{name}": make
        for core in ("core", "_core")
        for name, make in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
    f"{_ARRAY}.__setstate__": _array_state,
    "numpy.dtype": _dtype,
    "numpy.dtype.__setstate__": _dtype_state,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _dict,
    "collections.defaultdict": _defaultdict,
    "collections.deque": _sequence(list),
    "builtins.set": _sequence(set, keys=True),
    "builtins.frozenset": _sequence(frozenset, keys=True),
    "builtins.list": _sequence(list),
    "builtins.tuple": _sequence(tuple),
    "builtins.dict": _dict,
    "builtins.bytes": _bytes(bytes),
    "builtins.bytearray": _bytes(bytearray),
    "builtins.complex": _complex,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _copyreg,
}
